"""A self-test without a number is shown with a dash, in the table, the picture and the sentences."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from stockpredict.evaluate.plots import self_test_strip
from stockpredict.ops.drift_page import drift_of
from stockpredict.ops.study import Study
from stockpredict.train.judge import SelfTest


def market(name, expected, ic, head="direction", ok=True):
    low, high = (None, None) if ic is None else (ic - 0.02, ic + 0.02)
    row = dict(market=name, seed=1, expected=expected, model="ridge", head=head, decision=expected, ok=ok)
    return row | dict(ic=ic, low=low, high=high, alarms=[])


MARKETS = [
    market("null", "hold", None, ok=False),
    market("planted", "promote", 0.05),
    market("moving", "promote", None, "volatility"),
    market("steady", "hold", None, "volatility"),
]


def test_a_market_without_a_number_keeps_its_place():
    study = Study.__new__(Study)
    study.self_test = SelfTest.from_json(SelfTest(False, MARKETS).to_json())
    study.experiment = SimpleNamespace(settings=SimpleNamespace(gate=SimpleNamespace(max_ic=0.1)))
    rows = study.self_test_rows()
    assert rows.index.tolist() == ["null 1", "planted 1"] and rows.value.isna().tolist() == [True, False]
    assert rows.loc["planted 1", "expected_low"] < 0.05 < rows.loc["planted 1", "expected_high"]
    axes = self_test_strip(rows).axes
    assert [[t.get_text() for t in ax.texts] for ax in axes] == [["–"], []]
    assert axes[0].get_title("left") == "FAILED: null 1"


def test_sentences_of_markets_without_a_number():
    null, planted, moving, steady = SelfTest(False, MARKETS).sentences()
    assert "rank IC –, hold" in null and "rank IC 0.050 [0.030, 0.070]" in planted
    assert moving.endswith("volatility promote.") and steady.endswith("volatility hold.")


def test_undefined_first_months_do_not_hide_drift():
    """The first year of a feature with a window of a year is undefined. As zeros, these months were the most
    unusual of all, the limit rose with them, and no feature ever left it."""
    draw = np.random.default_rng(7)
    values = draw.normal(size=(630, 30))
    values[:252] = np.nan
    values[504:] *= 3
    row = drift_of(values, 504)
    assert np.isnan(row["months"][:12]).all() and np.isfinite(row["months"][12:]).all()
    assert row["beyond"] == 1.0 and row["usual"] < 0.2
    ruined = drift_of(np.nan_to_num(values), 504)
    assert ruined["beyond"] < 0.2 and ruined["usual"] > 10 * row["usual"]


def test_the_interval_of_a_month_is_no_larger_than_its_share_allows():
    "The months of the page had intervals from 0 to 1, made for years; a month of 21 sessions has its own."
    draw = np.random.default_rng(8)
    y = 0.01 * draw.normal(size=(126, 25))
    levels = (0.05, 0.5, 0.95)
    spread = torch.tensor([-1.645, 0.0, 1.645]) * 0.01
    wide = SimpleNamespace(levels=levels, horizon_index=lambda h: 0, quantiles=spread.expand(126, 25, 1, 3))
    study = Study.__new__(Study)
    study.horizon, study.served_quantiles = 1, lambda: wide
    days = pd.bdate_range("2024-01-02", periods=126)
    study.experiment = SimpleNamespace(
        outcome=lambda h: y, benchmark=wide, sessions=days, tested=slice(0, 126), horizons=(1,)
    )
    months = study.coverage_months()
    whole = months[months.sessions >= 20]
    assert len(whole) >= 4 and (whole.high - whole.low).max() < 0.15
    assert ((whole.low < 0.9) & (whole.high > 0.9)).mean() >= 0.75

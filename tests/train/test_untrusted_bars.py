"""Bad bars of a real market neither widen a forecast nor decide a verdict; untraded tails are left out."""

import numpy as np
import pandas as pd
import pytest
import torch
from stockpredict.algebra.panel import Panel
from stockpredict.catalogue.design_matrix import Spec, make_inputs
from stockpredict.core.calendar import get_calendar
from stockpredict.core.settings import load_settings
from stockpredict.evaluate.label_mask import linked_closes
from stockpredict.ingest.ingest import ingest
from stockpredict.sources.simulate import simulate
from stockpredict.train.experiment import run_experiment
from stockpredict.train.gate import decide
from stockpredict.train.skill_table import one_day_returns

NAMES = ["AAPL", "BHF", "CAT", "CA", "COL", "CVX", "DIS", "GE", "IBM", "JNJ", "JPM", "KO", "MSFT", "SCG"]


@pytest.fixture(scope="module")
def study(shared, tmp_path_factory):
    "Fourteen real tickers: BHF jumps 1,191,900 % on 2017-07-05, CA, COL and SCG have untraded tails."
    home = tmp_path_factory.mktemp("home")
    whole = pd.read_parquet(shared / "us_daily_2015_2020.parquet")
    whole[whole.ticker.isin(NAMES)].to_parquet(home / "prices.parquet")
    small = load_settings(
        overrides={
            "data.source": "files",
            "data.files_path": str(home / "prices.parquet"),
            "data.start": "2015-01-01",
            "storage.home": str(home),
            "features.names": "ret_1 mom_5 vol_20",
            "models.candidates": "reversal",
            "models.trials": 0,
            "validation.first_train": 500,
            "validation.folds": 2,
        },
        environ={},
    )
    ingest(small)
    return run_experiment(small, home / "work")


def test_one_bad_bar_does_not_poison_forecasts(study):
    "The daily volatility was 4,482 %, the served median +211 %."
    for candidate in study.candidates.values():
        sigma, median = (candidate.forecast.frame(k, 1) for k in ("volatility", "median"))
        assert sigma.BHF.notna().sum() > 300, "BHF is still forecast"
        assert sigma.max().max() < 0.15 and median.abs().max().max() < 0.05


def test_one_bad_bar_does_not_decide_the_verdict(study):
    "It was a suspected leak: R² of 15.8 % against a mean model that the bar had ruined."
    verdict = decide(study)
    assert verdict.decision == "hold" and not verdict.numbers["alarms"]
    for row in verdict.numbers["table"]:
        assert abs(row["r2_os"]) < 0.01 and abs(row["ic"]) < 0.05
        assert 0.85 < row["cover90"] < 0.95


@pytest.mark.parametrize("name", ["COL", "CA", "SCG"])
def test_an_untraded_tail_is_neither_scored_nor_traded(study, name):
    n = study.tickers.index(name)
    at = study.sessions[study.tested]
    tail = at >= {"COL": "2019-03-27", "CA": "2018-12-10", "SCG": "2019-01-01"}[name]
    assert tail.any()
    for candidate in study.candidates:
        assert not np.isfinite(study.score(candidate)[tail, n]).any()
        assert not study.portfolio(candidate).weights[name].to_numpy()[-int(tail.sum()) :].any()
    assert not np.isfinite(study.outcome()[tail, n]).any()


def test_volatility_is_robust_on_every_path():
    "One close a hundred times too high, then right again: batch and newest row agree and stay small."
    bars = simulate("null", tickers=4, sessions=160, seed=8).bars
    clean = make_inputs(Panel.from_bars(bars, get_calendar()), Spec(("ret_1",))).volatility
    hurt = bars.copy()
    hurt.loc[hurt.index[hurt.ticker == "SIM1"][150], "close"] *= 100
    panel = Panel.from_bars(hurt, get_calendar())
    whole = make_inputs(panel, Spec(("ret_1",)))
    newest = make_inputs(panel, Spec(("ret_1",)), newest=1)
    torch.testing.assert_close(whole.volatility[-1:], newest.volatility)
    assert whole.volatility.nan_to_num().max() < 0.2, "it was 24 a day"
    torch.testing.assert_close(whole.volatility[:150], clean[:150], equal_nan=True)


def test_a_source_of_closes_alone_is_trained_on(tmp_path):
    "The bundled sample publishes no volume, so it is unknown what was traded, and nothing is left out."
    from stockpredict.catalogue.design_matrix import Spec, make_inputs
    from stockpredict.core.settings import Settings
    from stockpredict.ingest.ingest import ingest
    from stockpredict.train.training_data import training_panel

    settings = Settings().with_(
        **{"storage.home": str(tmp_path), "data.source": "sample", "data.end": "2012-12-31"}
    )
    ingest(settings)
    panel, _ = training_panel(settings)
    assert not panel.has("volume")
    inputs = make_inputs(panel, Spec(("ret_1", "mom_5")))
    assert inputs.usable.float().mean() > 0.9


def test_no_portfolio_earns_the_move_over_an_untrusted_bar(study):
    "CA on 2018-09-28: -34.5 % in one session from a price that is no price, a twentieth of the whole book."
    returns = pd.DataFrame(one_day_returns(study.close), study.sessions, study.tickers)
    at = study.sessions.get_loc(pd.Timestamp("2018-09-28"))
    assert np.isnan(returns.CA.iloc[at - 1]) and abs(returns.CA.iloc[at]) < 1e-9
    assert study.portfolio("reversal").gross[study.sessions[at]] < 0.02, "it was +4.7 %"


def test_a_forgotten_split_costs_the_holder_nothing_and_a_halt_its_whole_move():
    close = np.array([[100.0, 50], [101, 51], [10.1, np.nan], [10.2, 30], [10.1, 31]])
    untrusted = np.zeros(close.shape, bool)
    untrusted[2, 0] = True
    returns = one_day_returns(linked_closes(close, untrusted))
    np.testing.assert_allclose(returns[1:, 0], [0.01, np.nan, 0.0, 10.1 / 10.2 - 1], atol=1e-12)
    np.testing.assert_allclose(returns[3, 1], 30 / 51 - 1)

"""A self-test without a number is shown with a dash, in the table, the picture and the sentences."""

from types import SimpleNamespace

from stockpredict.evaluate.plots import self_test_strip
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

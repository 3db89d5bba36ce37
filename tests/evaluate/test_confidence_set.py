"""The model confidence set against arch, and with doubles, a clear winner and none."""

import numpy as np
import pytest
from arch.bootstrap import MCS
from stockpredict.core.errors import EvaluateError
from stockpredict.evaluate.forecast_comparison import confidence_set

DRAW = np.random.default_rng(11)
LOSSES = {name: 1 + 0.02 * k + 0.3 * DRAW.normal(size=400) for k, name in enumerate("abcde")}


def test_the_p_values_are_those_of_arch():
    table = confidence_set(LOSSES, draws=200, seed=3)
    mcs = MCS(np.column_stack(list(LOSSES.values())), 0.1, reps=200, block_size=7, method="max", seed=3)
    mcs.compute()
    expected = dict(zip("abcde", mcs.pvalues.sort_index().Pvalue, strict=True))
    assert table.mcs_p.to_dict() == pytest.approx(expected, abs=0)
    assert set(table.index[table.in_set.astype(bool)]) == {"abcde"[i] for i in mcs.included}


def test_gaps_are_differences_of_means_and_the_lowest_has_none():
    table = confidence_set(LOSSES, draws=50)
    means = {name: loss.mean() for name, loss in LOSSES.items()}
    best = min(means, key=means.get)
    assert table.index[0] == best and table.gap[best] == table.low[best] == table.high[best] == 0
    for name in set(LOSSES) - {best}:
        assert table.gap[name] == pytest.approx(means[name] - means[best])
        assert table.low[name] < table.gap[name] < table.high[name]


def test_one_loss_under_two_names_stays_one_candidate():
    table = confidence_set(LOSSES | {"again": LOSSES["a"]}, draws=100)
    single = confidence_set(LOSSES, draws=100)
    assert table.mcs_p["again"] == table.mcs_p["a"] == single.mcs_p["a"]
    only = confidence_set({"a": LOSSES["a"], "again": LOSSES["a"]})
    assert only.in_set.all() and (only[["gap", "low", "high"]] == 0).all(axis=None)


def test_one_candidate_is_no_comparison():
    with pytest.raises(EvaluateError, match="two forecasts or more"):
        confidence_set({"a": LOSSES["a"]})

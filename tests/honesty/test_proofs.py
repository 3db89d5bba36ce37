"""Features are proven many at a time; one that leaks is caught among any number of honest ones."""

import math

import pandas as pd
import pytest
import torch

from stockpredict.core.errors import FeatureError, NotEnoughHistory, SeesFuture
from stockpredict.catalogue.feature import Feature, as_features, compute, prove_all
from stockpredict.algebra.panel import Panel
from stockpredict.algebra.series import Series


def raw(b):
    return b.close.values


def hand(x, b):
    return Series(x, b.grid, fields={"close"})


LEAKS = {
    "tomorrow": (SeesFuture, lambda b: hand(raw(b).roll(-1, 0), b)),
    "full sample": (SeesFuture, lambda b: b.returns / raw(b).nan_to_num(0.0).std().item()),
    "half of it": (SeesFuture, lambda b: b.returns + hand(raw(b).roll(-1, 0), b).pct_change() * 0.5),
    "all so far": (NotEnoughHistory, lambda b: hand(raw(b).nan_to_num(0.0).cumsum(0), b)),
    "neighbour": (FeatureError, lambda b: hand(raw(b).roll(1, 1), b)),
    "no series": (FeatureError, lambda b: raw(b)),
    "breaks": (ZeroDivisionError, lambda b: b.close / (1 // (len(b) < 9))),
}


def honest():  # fresh, so that nothing is proven yet
    return [
        Feature(f.func, f.args, f.group, f.source, f.across, f.sets)
        for f in as_features(["core", "ohlcv", "market"])
    ]


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_among_honest_features_is_refused_by_name(leak):
    error, func = LEAKS[leak]
    bad = Feature(func, group="mutant")
    func.__name__ = "mutant_" + leak.replace(" ", "_")
    fine = honest()
    with pytest.raises(error, match=None if error is ZeroDivisionError else bad.name):
        prove_all([*fine[:20], bad, *fine[20:]])
    assert not bad.proven


def test_the_door_to_values_proves_all_that_pass():
    close = 50 * (0.02 * torch.randn(300, 5, generator=torch.Generator().manual_seed(1))).cumsum(0).exp()
    panel = Panel({"close": close}, pd.bdate_range("2020-01-01", periods=300), list("ABCDE"))
    fine, bad = honest(), Feature(LEAKS["tomorrow"][1], group="mutant")
    with pytest.raises(SeesFuture):
        compute(panel, [*fine, bad])
    compute(panel, fine)
    assert all(f.proven >= 160 for f in fine) and not bad.proven
    assert not math.isnan(compute(panel, fine)["ret_1"][-1, 0])

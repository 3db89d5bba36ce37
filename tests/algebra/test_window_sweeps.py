"One pass over a series gives every window the bits of its own loop, and keeps no leftovers."

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.algebra import kernels, numba_moments
from stockpredict.algebra.panel import Panel
from stockpredict.algebra.recipes import SeriesCache, sweep_groups
from stockpredict.algebra.window_sweeps import STATISTICS, sweep_windows
from stockpredict.catalogue.feature import Feature, compute, fill_features


def same(a, b):
    return np.array_equal(a.numpy(), b.numpy(), equal_nan=True)


def hard_series(rows, tickers, seed=0):
    noise = np.random.default_rng(seed)
    x = (50 * np.exp(np.cumsum(0.02 * noise.standard_normal((rows, tickers)), 0))).astype(np.float32)
    x[noise.random(x.shape) < 0.01] = np.nan
    x[noise.random(x.shape) < 0.003] = noise.choice([np.inf, -np.inf, 0.0, -0.0, 1e-30, 3e37])
    x[rows // 3 : rows // 2, 0] = x[rows // 3, 0]  # a flat stretch
    return torch.from_numpy(x)


@pytest.mark.parametrize("rows,tickers", [(1, 1), (7, 3), (300, 2), (150, 260), (40, 700)])
def test_every_statistic_equals_its_own_loop(rows, tickers):
    x, y = hard_series(rows, tickers), hard_series(rows, tickers, 1)
    for series, names in (([x], (*STATISTICS[:7], "sum")), ([x, y], STATISTICS[7:10])):
        for windows in ((33, 5, 3, 20), (20, 5), (64,), (68, 3)):  # some pass over a width, or over several
            wanted = [(s, n) for n in windows for s in names]
            for (s, n), got in zip(wanted, sweep_windows(series, wanted)):
                assert same(got, getattr(numba_moments, f"rolling_{s}")(*series, n)), (s, n)


def test_a_quotient_is_that_of_a_division():
    x = hard_series(400, 9).nan_to_num(1.0, 1.0, 1.0)
    for n in (3, 7, 21, 252):
        got = sweep_windows([x], [("var", n), ("skew", n)])
        exact = kernels.rolling_moments(x, n, 2)[1] * (n / (n - 1))
        assert same(got[0][n - 1 :], exact.float())


def test_a_feature_that_ends_in_a_division_is_the_same_divided_while_written():
    x = hard_series(200, 40)
    sessions, names = pd.bdate_range("2020-01-01", periods=200), [f"T{i}" for i in range(40)]
    panel = Panel({"close": x, "volume": x.roll(1, 0)}, sessions, names)
    whole = Panel({k: v.nan_to_num(0.0) for k, v in panel._fields.items()}, panel.sessions, panel.tickers)

    def divided(bars):
        "The mean of ten closes in units of the volume, which may be zero, infinite or absent."
        return bars.close.mean(10) / bars.volume

    def not_last(bars):
        "The same with a further step."
        return bars.close.mean(10) / bars.volume + 0

    for market in (panel, whole):
        a, b = compute(market, [Feature(divided), Feature(not_last)]).values()
        assert same(a, b) and not a.isinf().any() and 0 < a.isfinite().float().mean() < 1


def test_what_waits_for_the_same_series_is_computed_with_it_and_nothing_stays():
    calls = []

    def five(bars):
        "Five windows of one close."
        c = bars.close
        return c.mean(5) + c.std(20) / c.slope(10) + c.mean(20).corr(c.std(20), 5) + c.std(20)

    x = hard_series(200, 4).nan_to_num(30.0, 30.0, 30.0)
    panel = Panel({"close": x}, pd.bdate_range("2020-01-01", periods=200), list("ABCD"))
    f = Feature(five)
    groups = sweep_groups(f.uses)
    assert sorted(Counter(map(len, groups.values())).items()) == [(4, 4)]
    seen = SeriesCache.get

    def get(self, recipe, make):
        calls.append(self)
        return seen(self, recipe, make)

    SeriesCache.get = get
    try:
        fill_features(panel, {f: (out := torch.empty_like(x))})
    finally:
        SeriesCache.get = seen
    whole = f(panel).values
    assert same(out, whole.masked_fill(~whole.isfinite(), float("nan")))
    assert not calls[-1].kept and not any(calls[-1].uses.values())

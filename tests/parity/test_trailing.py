"""Kaufman's average, Parabolic SAR and Supertrend: against TA-Lib, against formulas written anew, and the
same wherever the history starts."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from test_feature_oracles import market

from stockpredict.algebra.panel import FIELDS, Panel
from stockpredict.catalogue.feature import FEATURES, compute, prove
from stockpredict.catalogue.latest import latest
from stockpredict.features.trailing import MEMORY

NAMES = ["kama_ratio_10", "parabolic_sar_2_20", "supertrend_10_3"]
PANEL = market(700)


@pytest.fixture(scope="module")
def got():
    return {n: x.double().numpy() for n, x in compute(PANEL, NAMES).items()}


def arrays(j: int):
    return [PANEL._fields[k][:, j].double().numpy() for k in FIELDS]


def kama(c: np.ndarray) -> float:
    "The last value, started at the first of these closes; ten more closes stand before them."
    line = c[10]
    for t in range(11, len(c)):
        way = np.abs(np.diff(c[t - 10 : t + 1])).sum()
        e = abs(c[t] - c[t - 10]) / way if way else 0.0
        line += (e * (2 / 3 - 2 / 31) + 2 / 31) ** 2 * (c[t] - line)
    return line


def sar(h: np.ndarray, lo: np.ndarray, step: float, most: float) -> float:
    "Wilder's rules, long and short written out."
    down, up = lo[0] - lo[1], h[1] - h[0]
    long = not (down > 0 and down > up)
    stop, best, speed = (lo[0], h[1], step) if long else (h[0], lo[1], step)
    for t in range(1, len(h)):
        p = max(t - 1, 1)
        value = stop
        if long and lo[t] <= stop:
            long, value = False, max(best, h[p], h[t])
            best, speed = lo[t], step
            stop = max(value + step * (best - value), h[p], h[t])
        elif long:
            if h[t] > best:
                best, speed = h[t], min(speed + step, most)
            stop = min(stop + speed * (best - stop), lo[p], lo[t])
        elif h[t] >= stop:
            long, value = True, min(best, lo[p], lo[t])
            best, speed = h[t], step
            stop = min(value + step * (best - value), lo[p], lo[t])
        else:
            if lo[t] < best:
                best, speed = lo[t], min(speed + step, most)
            stop = max(stop + speed * (best - stop), h[p], h[t])
    return value


def band(h: np.ndarray, lo: np.ndarray, c: np.ndarray, width: np.ndarray) -> float:
    "The band in force at the end."
    for t in range(len(c)):
        middle = (h[t] + lo[t]) / 2
        over, under = middle + width[t], middle - width[t]
        if t == 0:
            upper, lower, rising = over, under, c[0] >= middle
            continue
        upper = over if over < upper or c[t - 1] > upper else upper
        lower = under if under > lower or c[t - 1] < lower else lower
        rising = c[t] >= lower if rising else c[t] > upper
    return lower if rising else upper


def average_range(h, lo, c):
    past = np.r_[math.nan, c[:-1]]
    wide = pd.Series(np.maximum(h - lo, np.maximum(np.abs(h - past), np.abs(lo - past))))
    wide[0] = math.nan
    return wide.ewm(alpha=0.1, min_periods=10).mean().to_numpy()


def test_every_value_equals_the_rules_written_anew_in_double_precision(got):
    counted = dict.fromkeys(NAMES, 0)
    for j in range(len(PANEL.tickers)):
        _, h, lo, c, _ = arrays(j)
        wide = 3 * average_range(h, lo, c)
        for t in [*range(300, 700, 37), 698, 699]:
            window = slice(t - MEMORY + 1, t + 1)
            if not np.isfinite(c[t - MEMORY - 160 : t + 1]).all():
                continue
            want = dict(
                kama_ratio_10=c[t] / kama(c[t - MEMORY - 9 : t + 1]) - 1,
                parabolic_sar_2_20=c[t] / sar(h[window], lo[window], 0.02, 0.2) - 1,
                supertrend_10_3=c[t] / band(h[window], lo[window], c[window], wide[window]) - 1,
            )
            for name, value in want.items():
                assert got[name][t, j] == pytest.approx(value, abs=2e-5), (name, t, j)
                counted[name] += 1
    assert min(counted.values()) > 30


def test_talib_agrees_though_it_starts_at_the_first_bar(got):
    talib = pytest.importorskip("talib", reason="TA-Lib is an oracle of the extra 'dev'.")
    kaufman, wilder = [], []
    for j in range(len(PANEL.tickers)):
        _, h, lo, c, _ = arrays(j)
        if not np.isfinite(c).all():
            continue
        kaufman.append(got["kama_ratio_10"][:, j] - (c / talib.KAMA(c, 10) - 1))
        wilder.append(got["parabolic_sar_2_20"][:, j] - (c / talib.SAR(h, lo, 0.02, 0.2) - 1))
    kaufman, wilder = (np.abs(np.concatenate([x[250:] for x in part])) for part in (kaufman, wilder))
    assert np.nanquantile(kaufman, 0.99) < 1e-4
    assert np.nanmean(wilder < 1e-5) > 0.995


@pytest.mark.parametrize("name", NAMES)
def test_it_is_causal_needs_no_more_than_it_says_and_serves_what_it_trained(name, got):
    f = prove(FEATURES[name])
    assert f.proven and f.source.startswith(("Kaufman", "Wilder", "Seban"))
    batch, now = compute(PANEL, [name])[name], latest(PANEL, [name], 5)[f]
    assert torch.equal(batch[-5:].nan_to_num(-9.0), now.nan_to_num(-9.0))
    tail = compute(PANEL.tail(f.lookback, f.crossings), [name])[name]
    assert torch.equal(batch[-1].nan_to_num(-9.0), tail[-1].nan_to_num(-9.0))


@pytest.mark.parametrize("name", NAMES)
def test_the_loop_equals_the_tensors_in_double_precision(name):
    wide = Panel({k: x.double() for k, x in PANEL._fields.items()}, PANEL.sessions, PANEL.tickers)
    single, double = compute(PANEL, [name])[name], compute(wide, [name])[name]
    assert torch.equal(single.isnan(), double.isnan())
    close = (single.double() - double).abs().nan_to_num(0.0)
    assert (close < 1e-4).double().mean() > 0.995, "rounding may turn a position on a tie, and only then"


def test_the_unit_of_the_price_does_not_matter():
    scaled = Panel(
        {k: x * (1.0 if k == "volume" else 4.0) for k, x in PANEL._fields.items()},
        PANEL.sessions,
        PANEL.tickers,
    )
    for name in NAMES:
        a, b = compute(PANEL, [name])[name], compute(scaled, [name])[name]
        assert torch.equal(a.nan_to_num(-9.0), b.nan_to_num(-9.0)), name

"""A window in which nothing moved has no correlation, no R² and no shape: undefined on every path."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.algebra import kernels, numba_moments
from stockpredict.algebra.latest_kernels import latest_kernel
from stockpredict.algebra.panel import Panel
from stockpredict.catalogue.feature import FEATURES, Feature, compute
from stockpredict.catalogue.latest import latest
from stockpredict.evaluate.metrics import ic_summary, rank_ic

CLOSES = [0.125, 0.625, 0.5, 0.8125, 0.1875]
ONE_STEP = [100.0, 100.0, 100.0, float(np.nextafter(np.float32(100), np.float32(101))), 100.0]


def column(values, dtype=torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)[:, None]


def newest(name: str, n: int, *xs: torch.Tensor):
    "The value by the path that computes the newest row alone."
    return latest_kernel(f"{name} {n}", n - 1, None)(1, *xs)


def every_path(name: str, *xs: torch.Tensor) -> dict[str, float]:
    "The last value of a rolling statistic by each way to compute it, in both precisions."
    n = len(xs[0])
    longer = [torch.cat([x[:1] * 1.5, x]) for x in xs]  # a sliding window instead of a single one
    wide = [x.double() for x in xs]
    tensors, loop = getattr(kernels, f"rolling_{name}"), getattr(numba_moments, f"rolling_{name}")
    ways = dict(
        tensors=tensors(*xs, n),
        double=tensors(*wide, n),
        loop=loop(*xs, n),
        sliding=loop(*longer, n),
        newest=newest(name, n, *xs),
    )
    if name == "skew":
        ways["several"] = latest_kernel(f"skew {n}", n - 1, None)(2, *longer)
    return {way: float(x[-1]) for way, x in ways.items()}


def all_undefined(values: dict) -> bool:
    return all(math.isnan(v) for v in values.values())


@pytest.mark.parametrize("still", [0.2, 0.1, 1 / 3, 100.1, 1e6 + 0.7])
def test_nothing_correlates_with_a_constant(still):
    "The example of the report: closes against 0.2 gave -1, because a rounding error was divided by zero."
    x, flat = column(CLOSES), column([still] * 5)
    for pair in ((x, flat), (flat, x), (flat, flat)):
        assert all_undefined(every_path("corr", *pair)), pair
    assert all_undefined(every_path("beta", x, flat))
    slope = every_path("beta", flat, x)
    assert all(abs(v) < 1e-9 * still for v in slope.values()), "a constant has no slope, which is defined"


@pytest.mark.parametrize("values", [ONE_STEP, [0.1] * 5, [37.3] * 7, [1e6 + 0.7] * 21, [0.0] * 6])
def test_a_line_through_rounding_error_explains_nothing(values):
    assert all_undefined(every_path("rsquare", column(values)))
    assert all(v == 0 for v in every_path("slope", column([values[0]] * len(values))).values())
    assert all(v == 0 for v in every_path("residual", column([values[0]] * len(values))).values())


def test_movement_above_the_rounding_error_keeps_its_value():
    "One cent on a price of a hundred is movement, and the values are those of the definition."
    values = [100.0, 100.0, 100.0, 100.01, 100.0]
    exact = np.array(values, np.float32).astype(float)
    r = np.corrcoef(exact, np.arange(5.0))[0, 1]
    for v in every_path("rsquare", column(values)).values():
        assert v == pytest.approx(r * r, rel=1e-5)
    other = np.array(CLOSES)
    for v in every_path("corr", column(values), column(CLOSES)).values():
        assert v == pytest.approx(np.corrcoef(exact, other)[0, 1], rel=1e-5)


def test_no_r_square_and_no_correlation_is_wrong_by_more_than_rounding_allows():
    "Random windows that move by a few steps of single precision, against long arithmetic."
    noise, worst = np.random.default_rng(3), dict(corr=0.0, rsquare=0.0, skew=0.0)
    undefined = {name: 0 for name in worst}
    for n in (5, 20, 60, 252):
        for level in (0.37, 37.3, 100.0, 1000.7, 54321.0):
            for steps in (1, 2, 3, 6, 20, 1000):
                ulp = np.spacing(np.float32(level))
                x, y = (
                    (level + ulp * noise.integers(-steps, steps + 1, (n, 40))).astype(np.float32)
                    for _ in range(2)
                )
                a, b = (v.astype(np.longdouble) - v.astype(np.longdouble).mean(0) for v in (x, y))
                k = (np.arange(n) - (n - 1) / 2).astype(np.longdouble)[:, None]
                with np.errstate(all="ignore"):
                    truth = dict(
                        corr=(a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0)),
                        rsquare=(a * k).sum(0) ** 2 / ((a * a).sum(0) * (k * k).sum()),
                        skew=(a**3).mean(0) / (a * a).mean(0) ** 1.5 * math.sqrt(n * (n - 1)) / (n - 2),
                    )
                xs, ys = torch.from_numpy(x), torch.from_numpy(y)
                got = dict(
                    corr=numba_moments.rolling_corr(xs, ys, n),
                    rsquare=numba_moments.rolling_rsquare(xs, n),
                    skew=numba_moments.rolling_skew(xs, n),
                )
                for name, want in truth.items():
                    have = got[name][-1].numpy()
                    defined = np.isfinite(have)
                    assert np.isfinite(want[defined]).all(), "defined where the definition is not"
                    undefined[name] += int((~defined).sum())
                    gap = np.abs(have - want.astype(float))[defined]
                    worst[name] = max(worst[name], gap.max() if len(gap) else 0.0)
    assert worst["corr"] < 0.1 and worst["rsquare"] < 0.1 and worst["skew"] < 0.05, worst
    assert min(undefined.values()) > 0


def frozen(frozen_sessions: int = 8, tickers: int = 6, sessions: int = 340) -> Panel:
    "A market in which one stock's close stands still for some sessions while its volume moves."
    noise = np.random.default_rng(7)
    close = 50 * np.exp(np.cumsum(0.01 * noise.standard_normal((sessions, tickers)), 0))
    close[-frozen_sessions:, 2] = 37.3
    volume = np.exp(11 + noise.standard_normal((sessions, tickers))).round()
    volume[-3:, 3] = 0
    x = dict(open=close, high=close * 1.01, low=close * 0.99, close=close, volume=volume)
    dates = pd.bdate_range("2020-01-01", periods=sessions)
    return Panel({k: torch.from_numpy(v).float() for k, v in x.items()}, dates, list("ABCDEF"))


def test_features_of_a_stock_that_stands_still():
    panel, names = frozen(), ["alpha_corr_5", "alpha_rsqr_5", "alpha_corr_10", "alpha_rsqr_10"]
    batch, now = compute(panel, names), {f.name: x for f, x in latest(panel, names).items()}
    for name in names:
        values = torch.stack([batch[name][-1], now[name][-1]])
        assert torch.equal(values[0].isnan(), values[1].isnan())
        short = name.endswith("_5")
        assert values[0, 2].isnan().item() is short, name
        assert values[0, [0, 1, 4, 5]].isfinite().all()


def test_a_day_without_volume_has_no_ratio_to_it():
    panel, names = frozen(), ["alpha_volume_3", "alpha_vma_20", "alpha_vstd_20"]
    batch, now = compute(panel, names), {f.name: x for f, x in latest(panel, names).items()}
    for name in names:
        assert batch[name][-1, 3].isnan() and now[name][-1, 3].isnan(), name
        assert batch[name][:, [0, 1, 2, 4, 5]].nan_to_num(0.0).abs().max() < 1e4


def test_every_feature_of_a_market_that_stands_still_is_small_or_undefined():
    "No feature turns the rounding error of a frozen market into a large number, a limit, or infinity."
    sessions = 420
    level = np.array([37.3, 100.1, 0.2, 1e4 + 0.3, 59.7, 12.34])
    close = np.broadcast_to(level, (sessions, 6)).copy()
    volume = np.full((sessions, 6), 1234567.0)
    x = dict(open=close, high=close, low=close, close=close, volume=volume)
    dates = pd.bdate_range("2020-01-01", periods=sessions)
    panel = Panel({k: torch.from_numpy(v).float() for k, v in x.items()}, dates, list("ABCDEF"))
    names = [n for n, f in FEATURES.items() if f.fields <= {"open", "high", "low", "close", "volume"}]
    shapes = ("corr", "rsqr", "line_share", "beta", "skew", "kurt", "delay", "_z_", "zscore", "autocorr")
    got = compute(panel, [n for n in names if any(s in n for s in shapes)])
    limit = {n: float(v[-1].abs().nan_to_num(0.0).max()) for n, v in got.items()}
    assert not {n: v for n, v in limit.items() if v > 1e-3}
    assert len(got) > 30


def test_a_limit_does_not_turn_a_division_by_zero_into_a_number():
    panel = frozen()

    def ratio(bars):
        return (bars.close / (bars.volume * 0.0)).clip(-3.0, 3.0)

    assert Feature(ratio).on(panel).values.isnan().all()
    limited = (panel.returns * 1e6).clip(-3.0, 3.0).values[1:]
    assert limited.abs().max() == 3.0, "a large number is still limited"


def test_a_score_that_never_ranks_has_no_ic():
    y = np.random.default_rng(0).normal(size=(300, 8))
    summary = ic_summary(rank_ic(np.full((300, 8), 0.7), y))
    assert math.isnan(summary.value) and math.isnan(summary.low) and summary.n == 0
    once = np.full((300, 8), 0.7)
    once[5] = np.arange(8)
    ic = rank_ic(once, y)
    assert ic.notna().all() and (ic.drop(5) == 0).all(), "silence on single sessions still counts as zero"

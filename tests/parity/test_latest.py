"""The newest sessions, computed alone, are those of the whole history, to the last bit."""

import math

import pandas as pd
import pytest
import torch

from stockpredict.algebra import kernels, numba_kernels, numba_moments, order_statistics
from stockpredict.catalogue.feature import Feature, as_features, compute
from stockpredict.catalogue.latest import latest, scattered_tickers
from stockpredict.algebra.latest_kernels import section_mean_or_spread, latest_kernel
from stockpredict.algebra.panel import FIELDS, Panel, equal_with_nan

COLUMNS = [
    "rolling_sum",
    "rolling_mean",
    "rolling_var",
    "rolling_std",
    "rolling_skew",
    "rolling_slope",
    "rolling_rsquare",
    "rolling_residual",
    "rolling_rank",
    "rolling_extreme",
    "rolling_age",
]


def market(sessions: int = 620, tickers: int = 11, gaps: bool = True) -> Panel:
    """Halts inside and at the edge of windows, late listings, a delisting, one that comes back for the
    last session."""
    noise = torch.Generator().manual_seed(21)

    def draw():
        return torch.randn(sessions, tickers, generator=noise)

    close = 40 * (0.02 * draw()).cumsum(0).clamp(-2, 2).exp()
    open_ = close * (0.006 * draw()).exp()
    x = dict(
        open=open_,
        high=torch.maximum(open_, close) * (0.004 * draw().abs()).exp(),
        low=torch.minimum(open_, close) / (0.004 * draw().abs()).exp(),
        close=close,
        volume=(12 + draw()).exp().round(),
    )
    for v in x.values():
        v[:400, 3] = math.nan
        if not gaps:
            continue
        v[-40:-33, 1] = math.nan
        v[-9:-1, 2] = math.nan
        v[-30:, 4] = math.nan
        v[-300:-180, 5] = math.nan
        v[-3:-1, 6] = math.nan
    return Panel(x, pd.bdate_range("2020-01-01", periods=sessions), [f"T{i}" for i in range(tickers)])


@pytest.mark.parametrize("name", COLUMNS)
def test_one_window_by_itself_is_the_last_of_many(name):
    "A loop that sees no more than one window takes a shortcut; its answer is that of the long way."
    x = 50 + torch.randn(300, 21, generator=torch.Generator().manual_seed(3)).cumsum(0)
    x[:, 5:9] = x[:, 5:9].round()
    x[250, 3] = math.nan
    loop = getattr(numba_moments, name, None) or getattr(order_statistics, name)
    for n in (3, 4, 5, 7, 8, 13, 20, 31, 60, 64, 100, 252):
        long = loop(x, n)[-1:]
        assert equal_with_nan(loop(x[-n:], n)[-1:], long), f"{name} over {n}"
        wide = getattr(kernels, name)(x[-n:].double(), n)[-1:]
        torch.testing.assert_close(
            long.double(),
            wide,
            rtol=2e-5,
            atol=2e-5 * float(wide.nan_to_num(0.0).abs().mean()),
            equal_nan=True,
        )


def test_one_window_of_pairs_and_of_fading_weights():
    x = torch.randn(600, 9, generator=torch.Generator().manual_seed(4))
    y = x.flip(1).contiguous() + 0.1 * x
    x[590, 2] = math.nan
    for n in (3, 20, 60, 64, 252):
        for f in (numba_moments.rolling_cov, numba_moments.rolling_corr, numba_moments.rolling_beta):
            assert equal_with_nan(f(x[-n:], y[-n:], n)[-1:], f(x, y, n)[-1:])
    for decay in (0.5, 0.9, 0.94, 0.99):
        whole = numba_moments.exp_mean(x, decay, 5)[-1:]
        for rows in (len(x), kernels.exp_memory(decay), 2 * kernels.exp_memory(decay)):
            assert equal_with_nan(numba_moments.exp_mean_newest(x[-rows:], decay, 5)[-1:], whole)
        for rows in (2, 7, 40):
            assert equal_with_nan(
                numba_moments.exp_mean_newest(x[-rows:], decay, 5)[-1:],
                numba_moments.exp_mean(x[-rows:], decay, 5)[-1:],
            )


@pytest.mark.parametrize("gaps", [True, False])
def test_every_feature_of_the_newest_sessions_is_that_of_the_whole_history(gaps):
    panel = market(gaps=gaps)
    names = [f for f in as_features("all") if f.fields <= set(FIELDS) and "alpha360" not in f.sets]
    whole = compute(panel, names)
    for n in (1, 5):
        got = latest(panel, names, n)
        wrong = [f.name for f in names if not equal_with_nan(got[f], whole[f.name][-n:])]
        assert not wrong, f"{len(wrong)} features differ over {n} sessions: {wrong[:5]}"
    assert bool(scattered_tickers(panel, 300).any()) == gaps


def test_what_is_missing_or_too_young_is_undefined():
    panel = market(30, gaps=False)
    closes = Panel({"close": panel._fields["close"]}, panel.sessions, panel.tickers)
    got = {f.name: x for f, x in latest(closes, ["mom_5", "sma_ratio_200", "atr_14"], 99).items()}
    assert all(len(x) == 30 for x in got.values())
    assert (
        got["atr_14"].isnan().all()
        and got["sma_ratio_200"].isnan().all()
        and equal_with_nan(got["mom_5"], compute(closes, ["mom_5"])["mom_5"])
    )


def test_a_step_made_by_hand_takes_the_long_way():
    "A feature with a part that cannot be traced is computed like any other, on its whole look-back."
    from stockpredict.algebra.series import Series

    def by_hand(b):
        return Series(b.close.values, b.grid, fields={"close"}).mean(20)

    f = Feature(by_hand, group="by hand")
    panel = market()
    assert f.recipe is None and equal_with_nan(latest(panel, [f])[f], compute(panel, [f])["by_hand"][-1:])


def test_every_feature_of_the_bars_has_a_recipe():
    "One without would take the long way for every ticker, each time."
    assert not [f.name for f in as_features("all") if f.fields <= set(FIELDS) and f.recipe is None]


def test_a_short_history_and_a_session_without_anybody():
    "Fewer rows than the longest look-back, and a market without any bar on a day."
    short, empty = market(90), market(330)
    for x in empty._fields.values():
        x[-40] = math.nan
    empty = Panel(empty._fields, empty.sessions, empty.tickers)
    names = [f for f in as_features("all") if f.fields <= set(FIELDS) and "alpha360" not in f.sets]
    for panel, some in ((short, names), (empty, [f for f in names if f.crossings])):
        whole = compute(panel, some)
        got = latest(panel, some, 2)
        wrong = [f.name for f in some if not equal_with_nan(got[f], whole[f.name][-2:])]
        assert not wrong, f"{len(wrong)} features differ: {wrong[:5]}"


def test_shortcuts_say_what_the_loops_say():
    x = 50 + torch.randn(700, 70, generator=torch.Generator().manual_seed(6)).cumsum(0)
    x[:, 5:9] = x[:, 5:9].round()
    x[690, 3] = math.nan
    x[:640, 4] = math.nan
    y = x.roll(1, 1).contiguous()
    ask = {
        "sum": numba_moments.rolling_sum,
        "mean": numba_moments.rolling_mean,
        "var": numba_moments.rolling_var,
        "std": numba_moments.rolling_std,
        "skew": numba_moments.rolling_skew,
        "slope": numba_moments.rolling_slope,
        "rsquare": numba_moments.rolling_rsquare,
        "residual": numba_moments.rolling_residual,
        "max": order_statistics.rolling_extreme,
        "argmax": order_statistics.rolling_age,
        "corr": numba_moments.rolling_corr,
        "cov": numba_moments.rolling_cov,
        "beta": numba_moments.rolling_beta,
    }
    taken = 0
    for name, loop in ask.items():
        pair = (x, y) if name in ("corr", "cov", "beta") else (x,)
        for n in (4, 7, 20, 61, 252):
            for rows in (1, 30):
                got = latest_kernel(f"{name} {n} ()", n - 1, None)(
                    rows, *(z[-(n + rows - 1) :] for z in pair)
                )
                taken += got is not None
                assert got is None or equal_with_nan(got, loop(*pair, n)[-rows:]), (
                    f"{name} over {n}, {rows} rows"
                )
    for decay, rows in ((0.5, 1), (0.9, 1), (0.94, 200), (0.99, 1)):
        got = latest_kernel(f"ewm {decay} 5", kernels.exp_memory(decay) - 1, None)(
            rows, x[-(kernels.exp_memory(decay) + rows - 1) :]
        )
        assert got is None or equal_with_nan(got, numba_moments.exp_mean(x, decay, 5)[-rows:])
    assert taken > 60
    assert equal_with_nan(section_mean_or_spread(x), numba_kernels.mean_across(x).float()) and equal_with_nan(
        section_mean_or_spread(x, True), numba_kernels.spread_across(x)[1].float()
    )

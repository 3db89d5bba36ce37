"""Intervals hold what they state: at every level of volatility, and with few residuals."""

import numpy as np
import pandas as pd
import pytest
import torch
from stockpredict.algebra.panel import Panel
from stockpredict.core.calendar import get_calendar
from stockpredict.models.contract import make_model
from stockpredict.models.dataset import Dataset, sample_dataset


def inside_by_width(forecast, y, h=0):
    "Share of outcomes inside the 90 % interval, by tercile of its width."
    low, high = (q[..., h].numpy() for q in forecast.interval(0.9))
    width = high - low
    known = np.isfinite(width) & np.isfinite(y)
    inside = (y >= low) & (y <= high)
    tercile = np.digitize(width, np.quantile(width[known], [1 / 3, 2 / 3]))
    return np.array([inside[known & (tercile == k)].mean() for k in range(3)])


@pytest.fixture(scope="module")
def real(shared):
    "Eighty-one US stocks, 2015 to 2020."
    bars = pd.read_parquet(shared / "us_daily_2015_2020.parquet")
    bars = bars[bars.ticker.isin(sorted(bars.ticker.unique())[::6])].drop_duplicates(["ticker", "date"])
    bars["event_time"] = get_calendar().closes(pd.DatetimeIndex(pd.to_datetime(bars.date)))
    bars["close"] = bars.adj_close
    panel = Panel.from_bars(bars[["ticker", "event_time", "close", "volume"]], get_calendar())
    return Dataset.from_panel(panel, ["ret_1", "mom_5"], (1, 5))


@pytest.mark.parametrize("name", ["mean", "zero", "reversal"])
@pytest.mark.parametrize("train, stop", [(600, 900), (900, 1250)])
def test_calm_and_wild_times_are_covered_alike(real, name, train, stop):
    "The narrowest third of the 90 % intervals held 86 to 88 %, the widest 92 to 94 %."
    forecast = make_model(name).fit(real.window(0, train)).predict(real.inputs.until(stop), train + 10, stop)
    shares = inside_by_width(forecast, real.y[train + 10 : stop, :, 0].numpy())
    assert np.abs(shares - 0.9).max() < 0.022 and np.ptp(shares) < 0.022, shares


def test_a_simulated_market_is_covered_alike():
    data = sample_dataset("realistic", tickers=30, sessions=900)
    forecast = make_model("mean").fit(data.window(0, 450)).predict(data.inputs, 460)
    for h in range(2):
        shares = inside_by_width(forecast, data.y[460:, :, h].numpy(), h)
        assert np.abs(shares - 0.9).max() < 0.02, shares


def test_few_residuals_make_wide_enough_intervals():
    "Plain quantiles of about 100 residuals held 88 % where 90 % were stated."
    shares = []
    for seed in range(40):
        data = sample_dataset("null", tickers=3, sessions=180, names=("ret_1",), horizons=(1,), seed=seed)
        y = torch.randn(data.y.shape, generator=torch.Generator().manual_seed(seed)) * 0.01
        data.y = torch.where(data.y.isfinite(), y, float("nan"))
        data.inputs.volatility[data.inputs.volatility.isfinite()] = 0.01
        window = data.window(20, 60)
        forecast = make_model("zero").fit(window).predict(data.inputs, 70)
        low, high = (q.numpy() for q in forecast.interval(0.9, 1))
        outcome = data.y[70:, :, 0].numpy()
        known = np.isfinite(outcome) & np.isfinite(low)
        shares.append(((outcome >= low) & (outcome <= high))[known].mean())
    assert 0.895 < np.mean(shares) < 0.912, np.mean(shares)


# --- After the market has changed

SHARES = (0.5, 0.8, 0.9, 0.95)
BREAK, FIRST = 700, 600


@pytest.fixture(scope="module")
def broken():
    "Forty stocks whose days differ little in size until the break, and very much after it."
    rng = np.random.default_rng(8)
    size = np.where(
        np.arange(1150)[:, None] < BREAK, 1.0, rng.choice([0.4, 0.7, 2.0], (1150, 1), p=[0.45, 0.3, 0.25])
    )
    r = 0.015 * size * rng.standard_normal((1150, 40))
    close = torch.tensor(100 * np.exp(np.cumsum(r, 0)), dtype=torch.float32)
    days = pd.bdate_range("2015-01-01", periods=1150)
    panel = Panel({"close": close}, days, [f"S{i:02d}" for i in range(40)])
    return Dataset.from_panel(panel, ["ret_1"], (1, 5))


def shares_inside(forecast, y, sessions):
    "Coverage of each stated share, `[share, horizon]`."
    out = []
    for share in SHARES:
        low, high = (q[sessions] for q in forecast.interval(share))
        known = y[sessions].isfinite() & low.isfinite()
        inside = (y[sessions] >= low) & (y[sessions] <= high)
        out.append([inside[..., j][known[..., j]].float().mean().item() for j in range(y.shape[-1])])
    return np.array(out)


def test_adaptive_intervals_hold_through_a_break_of_the_variance_and_static_ones_fail(broken, monkeypatch):
    "ACI within 2 points over the sessions after the break, at every share; without it up to 15 points off."
    from stockpredict.models.composed import Composed
    from stockpredict.models.volatility import VolatilityModel

    model = Composed("mean", "ewma").fit(broken.window(0, FIRST))
    after, y = slice(BREAK - FIRST, None), broken.y[FIRST:]
    adaptive = shares_inside(model.predict(broken.inputs, FIRST).validate(), y, after)
    monkeypatch.setattr(VolatilityModel, "_widths", lambda self, inputs, a, b, q: torch.ones(b - a, *q.shape))
    static = shares_inside(model.predict(broken.inputs, FIRST), y, after)
    gap = np.abs(adaptive - np.array(SHARES)[:, None])
    assert gap[:, 0].max() < 0.02, adaptive
    assert gap[:, 1].max() < 0.04, adaptive
    assert np.abs(static - np.array(SHARES)[:, None])[:, 0].max() > 0.05, static


def test_the_service_adapts_as_the_study_did(broken):
    "One session at a time, from a window of bars, the widths are those of the walk-forward forecast."
    from stockpredict.models.contract import make_model

    model = make_model("ewma").fit(broken.window(0, FIRST))
    whole = model.predict(broken.inputs, FIRST)
    for t in (BREAK + 30, 1100):
        inputs = broken.inputs.until(t + 1).last(1)
        one = model.predict(inputs, 0)
        low, expected = one.interval(0.9, 1)[0][0], whole.interval(0.9, 1)[0][t - FIRST]
        assert torch.allclose(low, expected, rtol=1e-5)


def test_outcomes_not_known_yet_change_nothing(broken):
    "The interval at a decision does not move when the prices that its label needs are changed."
    from dataclasses import replace

    from stockpredict.models.contract import make_model

    model = make_model("ewma").fit(broken.window(0, FIRST))
    t = BREAK + 40
    bars = broken.inputs.bars.other_future(t)
    other = model.predict(replace(broken.inputs, bars=bars), t, t + 1)
    same = model.predict(broken.inputs, t, t + 1)
    assert torch.equal(other.quantiles, same.quantiles)


@pytest.mark.parametrize("name", ["ewma", "log_har"])
def test_the_pit_is_flat_and_p_up_is_calibrated(name):
    "On a simulated market every cell between neighbouring quantiles holds its share of outcomes."
    data = sample_dataset("null", tickers=60, sessions=800, seed=4)
    f = make_model(name).fit(data.window(0, 450)).predict(data.inputs, 460)
    y = data.y[460:, :, 0]
    known = y.isfinite() & f.available
    place = (y[..., None] > f.quantiles[:, :, 0]).sum(-1)[known]
    shares = torch.bincount(place, minlength=len(f.levels) + 1) / len(place)
    expected = torch.tensor([0.0, *f.levels, 1.0]).diff()
    assert (shares - expected).abs().max() < 0.025, shares
    assert abs(f.p_up[..., 0][known].mean() - (y[known] > 0).float().mean()) < 0.03

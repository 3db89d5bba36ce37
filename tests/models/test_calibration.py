"""Intervals hold what they state: at every level of volatility, and with few residuals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from stockpredict.algebra.panel import Panel
from stockpredict.core.calendar import get_calendar
from stockpredict.models import calibration
from stockpredict.models.calibration import volatility_pull
from stockpredict.models.contract import make_model
from stockpredict.models.dataset import Dataset, sample_dataset
from stockpredict.models.forecast import join_forecasts


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


def refitted(real, name):
    "Forecasts of 2017 to 2020 by a model refitted each year, and their outcomes."
    parts = []
    for stop in (504, 756, 1008):
        model, end = make_model(name).fit(real.window(0, stop)), min(stop + 252, 1259)
        parts.append(model.predict(real.inputs.until(end), stop, end))
    return join_forecasts(parts), real.y[504:]


def spread_over_names(forecast, y, h):
    "Standard deviation over names of the coverage of the 90 % interval."
    low, high = (q[..., h].numpy() for q in forecast.interval(0.9))
    known, y = np.isfinite(low) & np.isfinite(y), np.asarray(y)
    inside = (y >= low) & (y <= high)
    return float(
        np.std([inside[known[:, n], n].mean() for n in range(y.shape[1]) if known[:, n].sum() > 250])
    )


@pytest.mark.parametrize("name", ["mean", "zero", "log_har"])
def test_intervals_hold_in_calm_and_wild_times_and_for_each_name(real, name, monkeypatch):
    "90 +- 1 % overall, each third of volatility within 2 points, names closer to each other."
    forecast, y = refitted(real, name)
    sigma = real.inputs.volatility[504:].numpy()
    for h, most in ((0, 0.02), (1, 0.025)):
        low, high = (q[..., h].numpy() for q in forecast.interval(0.9))
        outcome = y[..., h].numpy()
        known = np.isfinite(low) & np.isfinite(outcome)
        third = np.digitize(sigma, np.quantile(sigma[known], [1 / 3, 2 / 3]))
        inside = (outcome >= low) & (outcome <= high)
        inside_third = np.array([inside[known & (third == k)].mean() for k in range(3)])
        assert np.abs(inside_third - 0.9).max() < 0.02, (h, inside_third)
        shares = inside_by_width(forecast, y[..., h].numpy(), h)
        assert abs(shares.mean() - 0.9) < 0.01 and np.abs(shares - 0.9).max() < most, (h, shares)
    monkeypatch.setattr("stockpredict.models.interval_widths.own_widths", lambda u: np.ones(u.shape[1:]))
    monkeypatch.setattr("stockpredict.models.baselines.adapts", lambda model, inputs: False)
    monkeypatch.setattr(
        "stockpredict.models.interval_widths.volatility_pull",
        lambda u, v, by_name=False: volatility_pull(u, v),
    )
    monkeypatch.setattr("stockpredict.models.baselines.relative_volatility", lambda model, i, v, start: v)
    monkeypatch.setattr("stockpredict.models.volatility.relative_volatility", lambda model, i, v, start: v)
    plain, _ = refitted(real, name)
    for h in range(2):
        names = [spread_over_names(f, y[..., h].numpy(), h) for f in (forecast, plain)]
        most = 1.02 if name == "log_har" else 0.8  # closes alone: it has little left to correct
        assert names[0] < most * names[1], (h, names)


def test_a_simulated_market_is_covered_alike():
    data = sample_dataset("realistic", tickers=30, sessions=900)
    forecast = make_model("mean").fit(data.window(0, 450)).predict(data.inputs, 460)
    for h in range(2):
        shares = inside_by_width(forecast, data.y[460:, :, h].numpy(), h)
        assert np.abs(shares - 0.9).max() < 0.025, shares


def test_few_residuals_make_wide_enough_intervals():
    "Plain quantiles of about 100 residuals held 88 % where 90 % were stated."
    shares = []
    for seed in range(40):
        data = sample_dataset("null", tickers=3, sessions=180, names=("ret_1",), horizons=(1,), seed=seed)
        y = torch.randn(data.y.shape, generator=torch.Generator().manual_seed(seed)) * 0.01
        data.y = torch.where(data.y.isfinite(), y, float("nan"))
        data.inputs.volatility[data.inputs.volatility.isfinite()] = 0.01
        data.inputs = replace(data.inputs, bars=None)  # these outcomes are not those of its prices
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


def test_a_direction_model_adapts_by_itself(broken, monkeypatch):
    "The intervals of a model of the direction hold after the break too; without the record they do not."
    model = make_model("mean").fit(broken.window(0, FIRST))
    after, y = slice(BREAK - FIRST, None), broken.y[FIRST:]
    adaptive = shares_inside(model.predict(broken.inputs, FIRST).validate(), y, after)
    monkeypatch.setattr("stockpredict.models.baselines.adapts", lambda model, inputs: False)
    static = shares_inside(model.predict(broken.inputs, FIRST), y, after)
    stated = np.array(SHARES)
    assert np.abs(adaptive[:, 0] - stated).max() < 0.02 < 0.05 < np.abs(static[:, 0] - stated).max()


def test_widths_survive_the_artifact_and_unseen_names_get_the_width_of_all(broken):
    from stockpredict.models.interval_widths import widths_by_name

    model = make_model("mean").fit(broken.window(0, FIRST))
    again = type(model).from_state(*model.state())
    names = [broken.inputs.tickers[5], "new", broken.inputs.tickers[0]]
    assert torch.equal(widths_by_name(again, names), widths_by_name(model, names))
    assert widths_by_name(again, names)[1].tolist() == [1.0, 1.0]
    a, b = (m.predict(broken.inputs, BREAK, BREAK + 3).quantiles for m in (model, again))
    assert torch.equal(a.nan_to_num(9), b.nan_to_num(9))


@pytest.mark.parametrize("name", ["ewma", "mean"])
def test_the_service_adapts_as_the_study_did(broken, name):
    "One session at a time, from a window of bars, the widths are those of the walk-forward forecast."
    from stockpredict.models.contract import make_model

    model = make_model(name).fit(broken.window(0, FIRST))
    whole = model.predict(broken.inputs, FIRST)
    for t in (BREAK + 30, 1100):
        inputs = broken.inputs.until(t + 1).last(1)
        one = model.predict(inputs, 0)
        low, expected = one.interval(0.9, 1)[0][0], whole.interval(0.9, 1)[0][t - FIRST]
        assert torch.allclose(low, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["ewma", "mean"])
def test_outcomes_not_known_yet_change_nothing(broken, name):
    "The interval at a decision does not move when the prices that its label needs are changed."
    model = make_model(name).fit(broken.window(0, FIRST))
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


def test_widths_follow_the_record_bit_by_bit_with_and_without_numba(monkeypatch):
    "Against one decision after the other in plain numpy; two horizons, gaps, and decisions not known yet."
    rng = np.random.default_rng(7)
    outcomes = rng.standard_t(4, (330, 25, 2))
    outcomes[rng.random(outcomes.shape) < 0.1] = np.nan
    outcomes[:15], outcomes[40] = np.nan, np.nan
    shares, count = calibration.outcome_shares(outcomes)
    levels, quantiles = (0.05, 0.25, 0.75, 0.95), np.sort(rng.standard_t(4, (2, 4)), -1)
    ends = np.arange(200, 240)[:, None] - np.array([0, 4])
    z = torch.special.ndtri(torch.tensor(levels)).abs().numpy()
    density, p = z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), np.asarray(levels)
    speed = calibration.RATE / density / np.sqrt((1, 5))[:, None]
    wanted, h = np.zeros((40, 2, 4)), np.arange(2)
    for back in range(calibration.RECORD, 0, -1):
        j = (ends - back).clip(min=0)
        x = quantiles * np.exp(wanted)
        at = ((np.arcsinh(4 * x) + 4.5) / (9 / 360)).clip(0, 359.999)
        low = at.astype(int)
        a, b = (shares[j[..., None], h[:, None], low + k] for k in (0, 1))
        n = count[j, h]
        step = speed * (n / (n + calibration.FEW))[..., None] * np.where(p < 0.5, -1.0, 1.0)
        step = step * (p - (a + (at - low) * (b - a)))
        step = np.where(((ends >= back) & (n > 0))[..., None], step, 0.0)
        wanted = (wanted + step).clip(-calibration.MOST_WIDTH, calibration.MOST_WIDTH)
    assert np.abs(wanted).max() > 0.1
    for pays in (True, False):
        monkeypatch.setattr(calibration, "numba_pays", lambda values, pays=pays: pays)
        got = calibration.adapted_log_widths(shares, count, quantiles, levels, ends, (1, 5))
        assert np.array_equal(got, wanted), pays

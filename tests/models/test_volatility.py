"""Volatility models: right numbers, better than EWMA where there is structure, robust to bad bars."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.algebra.panel import Panel
from stockpredict.catalogue.bar_history import BarHistory
from stockpredict.core.errors import FeatureError, SeesFuture
from stockpredict.models.contract import make_model, models
from stockpredict.models.dataset import Dataset
from stockpredict.models.garch import GarchParameters, fit_garch, garch_variance, to_parameters
from stockpredict.models.volatility import VolatilityModel, weighted_mean
from stockpredict.train.walk_forward import check_no_lookahead

NAMES = [n for n in models.names() if models[n].kind == "volatility"]
TEST = 520


def simulated(tickers=20, sessions=700, seed=1, react=0.04, keep=0.82, fall=0.14):
    "Bars of stocks whose variance follows GJR, with ranges; and their true volatility of each session."
    rng = np.random.default_rng(seed)
    long_run = rng.uniform(0.01, 0.03, tickers) ** 2
    h, level, paths, true = long_run.copy(), long_run * (1 - react - fall / 2 - keep), [], []
    close = np.full(tickers, 100.0)
    days = pd.bdate_range("2015-01-01", periods=sessions)
    for _ in days:
        steps = rng.normal(size=(40, tickers)) * np.sqrt(h / 40)
        path = np.exp(np.cumsum(steps, 0)) * close
        r = np.log(path[-1] / close)
        paths.append(
            np.stack([close, np.maximum(path.max(0), close), np.minimum(path.min(0), close), path[-1]])
        )
        true.append(np.sqrt(h))
        close, h = path[-1], level + (react + fall * (r < 0)) * r**2 + keep * h
    o, high, low, c = np.array(paths).transpose(1, 0, 2)
    fields = {
        k: torch.tensor(v, dtype=torch.float32) for k, v in dict(open=o, high=high, low=low, close=c).items()
    }
    fields["volume"] = torch.full_like(fields["close"], 1e6)
    return Panel(fields, days, [f"S{i:02d}" for i in range(tickers)]), np.array(true)


def dataset(panel):
    return Dataset.from_panel(panel, ["ret_1", "mom_5"], (1, 5))


@pytest.fixture(scope="module")
def market():
    panel, true = simulated()
    return dataset(panel), true


def qlike(forecast, data, start=TEST):
    "Mean QLIKE of squared one-session returns."
    y, sigma = data.y[start:, :, 0].double(), forecast.volatility[..., 0].double()
    ratio = ((y / sigma) ** 2).clip(min=1e-3)
    return (ratio - ratio.log() - 1).nanmean().item()


# --- Agreement with the library arch


@pytest.mark.parametrize("lean", [0.0, 0.08])
def test_variance_and_term_structure_agree_with_arch(lean):
    from arch import arch_model

    rng = np.random.default_rng(3)
    r = rng.normal(size=(800, 1))
    p = GarchParameters(*(np.array([x]) for x in (1.2, 0.05, lean, 0.88)))
    rest = 1 - p.persistence[0]
    model = arch_model(r[:, 0], mean="Zero", vol="GARCH", p=1, o=1 if lean else 0, q=1, rescale=False)
    params = [1.2 * rest, 0.05, *([lean] if lean else []), 0.88]
    fixed = model.fix(params)
    first = np.array([fixed.conditional_volatility[0] ** 2])
    ours = garch_variance(r, p, first)[:, 0]
    assert np.allclose(ours[:-1], fixed.conditional_volatility**2, rtol=1e-6)
    theirs = fixed.forecast(horizon=20, reindex=False).variance.to_numpy()[0]
    total = p.persistence[0]
    term = 1.2 + (ours[-1] - 1.2) * total ** np.arange(20)
    assert np.allclose(term, theirs, rtol=1e-6)


@pytest.mark.parametrize("leverage", [False, True])
def test_the_likelihood_reached_is_that_of_arch(leverage):
    from arch import arch_model

    panel, _ = simulated(tickers=3, sessions=900, seed=5)
    r = np.log(panel.close.values.double().numpy())
    r = 100 * np.diff(r, axis=0)
    first = np.mean(r**2, 0)
    p = to_parameters(fit_garch(r, leverage, prior=0.0, first=first, passes=200))
    for n in range(3):
        model = arch_model(r[:, n], mean="Zero", vol="GARCH", p=1, o=int(leverage), q=1, rescale=False)
        theirs = model.fit(disp="off", backcast=first[n], tol=1e-12, options=dict(maxiter=2000))
        one = GarchParameters(*(x[n : n + 1] for x in vars(p).values()))
        h = garch_variance(r[:, n : n + 1], one, first[n : n + 1])[:-1, 0]
        ours = -0.5 * np.sum(np.log(2 * np.pi) + np.log(h) + r[:, n] ** 2 / h)
        assert ours > theirs.loglikelihood - 1e-6 * abs(theirs.loglikelihood)
        assert p.beta[n] == pytest.approx(theirs.params["beta[1]"], abs=0.02)


def test_exponential_weighting_agrees_with_pandas():
    x = np.random.default_rng(0).normal(size=(400, 3)) ** 2
    x[[50, 51, 200], 1] = np.nan
    ours = weighted_mean(x, 0.94, 250)
    theirs = pd.DataFrame(x).ewm(alpha=0.06, min_periods=15).mean().to_numpy()
    seen = ~np.isnan(x)
    assert np.allclose(ours[300:][seen[300:]], theirs[300:][seen[300:]], rtol=1e-5)


# --- What they are for


@pytest.mark.parametrize("name", ["garch", "gjr", "har", "log_har"])
def test_planted_structure_beats_exponential_weighting(name, market):
    data, true = market
    past = data.window(0, TEST)
    ewma = make_model("ewma").fit(past).predict(data.inputs, TEST)
    f = make_model(name).fit(past).predict(data.inputs, TEST).validate()
    assert qlike(f, data) < qlike(ewma, data)
    expected = torch.tensor(true[TEST:])  # of the session before the label, as good a truth as any
    gap = [(g.volatility[..., 0].log() - expected.log()).std().item() for g in (f, ewma)]
    assert gap[0] < gap[1]


@pytest.mark.parametrize("name", NAMES)
def test_no_direction_is_claimed_and_the_scale_is_right(name, market):
    data, _ = market
    f = make_model(name).fit(data.window(0, TEST)).predict(data.inputs, TEST).validate()
    assert f.score[f.available].abs().max() == 0
    for j, h in enumerate(f.horizons):
        ratio = (data.y[TEST:, :, j] / f.volatility[..., j]) ** 2
        assert 0.8 < ratio.nanmean() < 1.25, f"{name} over {h}"


@pytest.mark.parametrize("name", NAMES)
def test_no_volatility_sees_the_future(name, market):
    data, _ = market
    m = make_model(name).fit(data.window(0, TEST))
    check_no_lookahead(m, data.inputs, m.predict(data.inputs.until(600), TEST, 600), TEST)


def test_a_variance_that_reads_tomorrow_is_caught(market):
    data, _ = market

    class Peeking(VolatilityModel):
        "Squared return of the next session."

        def variance(self, bars, start, stop):
            squares = np.vstack([bars.moves()["close"][1:], np.full((1, len(bars.tickers)), 0.01)]) ** 2
            return squares[bars.ahead + start : bars.ahead + stop, :, None] * np.array(self.horizons, float)

    m = Peeking().fit(data.window(0, TEST))
    with pytest.raises(SeesFuture):
        check_no_lookahead(m, data.inputs, m.predict(data.inputs.until(600), TEST, 600), TEST)


# --- Bad data


@pytest.mark.parametrize("name", NAMES)
def test_one_bad_bar_does_not_ruin_a_forecast(name):
    "A close 10,000 times too high for one session: masked as untrusted, and even without the mask bounded."
    panel, _ = simulated(tickers=8, seed=2)
    clean = dataset(panel)
    spoilt = {k: v.clone() for k, v in panel._fields.items()}
    for k in ("open", "high", "low", "close"):
        spoilt[k][400, 3] *= 10_000
    bad = dataset(Panel(spoilt, panel.sessions, panel.tickers))
    mask = torch.zeros_like(panel.present)
    mask[400, 3] = True
    reference = make_model(name).fit(clean.window(0, TEST)).predict(clean.inputs, TEST)
    for data, most in (
        (bad, 2.0),
        (replace(bad, inputs=replace(bad.inputs, bars=bad.inputs.bars.without(mask))), 1.02),
    ):
        data.inputs.volatility[:] = clean.inputs.volatility
        data.y[:] = clean.y
        f = make_model(name).fit(data.window(0, TEST)).predict(data.inputs, TEST).validate()
        most = max(most, 1.15) if "lightgbm" in name else most  # one row more or less moves a split
        ratio = (f.volatility / reference.volatility)[f.available]
        assert 1 / most < ratio.min() and ratio.max() < most, (
            f"{name}: {ratio.min():.2f} to {ratio.max():.2f}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_young_and_halted_tickers_are_forecast(name):
    panel, _ = simulated(tickers=8, seed=4)
    fields = {k: v.clone() for k, v in panel._fields.items()}
    for v in fields.values():
        v[:480, 1] = float("nan")  # listed a few weeks before the fit ends
        v[:560, 2] = float("nan")  # listed after it
        v[530:545, 3] = float("nan")  # halted
    data = dataset(Panel(fields, panel.sessions, panel.tickers))
    full = dataset(panel)
    f = make_model(name).fit(data.window(0, TEST)).predict(data.inputs, TEST).validate()
    g = make_model(name).fit(full.window(0, TEST)).predict(full.inputs, TEST)
    assert torch.equal(f.available, data.inputs.usable[TEST:])
    late = slice(620 - TEST, None)
    ratio = f.volatility[late, 1:4, 0] / g.volatility[late, 1:4, 0]
    assert 0.6 < ratio.nanmean(0).min() and ratio.nanmean(0).max() < 1.6, ratio.nanmean(0)


def test_closes_alone_are_enough():
    panel, _ = simulated(tickers=6)
    data = dataset(Panel({"close": panel._fields["close"]}, panel.sessions, panel.tickers))
    for name in NAMES:
        f = make_model(name).fit(data.window(0, TEST)).predict(data.inputs, TEST).validate()
        assert torch.equal(f.available, data.inputs.usable[TEST:])


def test_inputs_without_prices_are_refused(market):
    data, _ = market
    bare = replace(data, inputs=replace(data.inputs, bars=None))
    with pytest.raises(FeatureError, match="needs the prices behind the features"):
        make_model("ewma").fit(bare.window(0, TEST))


# --- The prices behind the inputs


def test_training_and_serving_read_the_same_prices(market):
    from stockpredict.catalogue.design_matrix import Spec, make_inputs

    panel, _ = simulated()
    data, _ = market
    m = make_model("log_har").fit(data.window(0, TEST))
    whole = m.predict(data.inputs, TEST)
    for stop in (650, 700):
        newest = panel.first(stop).last(m.memory + 1)
        inputs = make_inputs(newest, Spec(("ret_1", "mom_5"), "rank"), 1)
        served = m.predict(inputs, 0)
        row = stop - 1 - TEST
        rows = whole.available[row]
        assert torch.allclose(served.volatility[0][rows], whole.volatility[row][rows], rtol=1e-5)
        assert torch.allclose(served.quantiles[0][rows], whole.quantiles[row][rows], rtol=1e-3, atol=1e-6)


def test_cut_prices_have_nothing_behind_them(market):
    bars = market[0].window(0, 300).inputs.bars
    assert len(bars) == 300
    assert bars.prices.untyped_storage().nbytes() == bars.prices.numel() * 4


def test_a_bad_bar_breaks_two_moves_also_across_a_halt():
    panel, _ = simulated(tickers=2, sessions=60)
    fields = {k: v.clone() for k, v in panel._fields.items()}
    for v in fields.values():
        v[31:34, 0] = float("nan")
    mask = torch.zeros(60, 2, dtype=torch.bool)
    mask[30, 0] = True
    bars = BarHistory.from_panel(Panel(fields, panel.sessions, panel.tickers)).without(mask)
    missing = np.isnan(bars.moves()["close"][:, 0]).nonzero()[0].tolist()
    assert missing == [0, 30, 31, 32, 33, 34]

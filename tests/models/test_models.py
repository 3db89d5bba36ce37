"""The contract of every registered model, of datasets and of forecasts."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.core.errors import FeatureError, ModelOutputInvalid, NotEnoughSessions, NotFitted
from stockpredict.core.errors import UnknownHorizon, UnknownName, UnknownTicker
from stockpredict.models.artifact import ensure_keys, load_artifact, save_artifact
from stockpredict.models.contract import HEADS, make_model, models
from stockpredict.models.dataset import Dataset, sample_dataset
from stockpredict.models.forecast import LEVELS, Forecast, join_forecasts

NAMES = ("ret_1", "mom_5", "mom_21", "mom_252_21", "vol_20", "rsi_14")
SMALL = dict(
    lightgbm=dict(rounds=20), lstm=dict(epochs=2, hidden=8, sequence=10)
)  # quick to fit; everything else as it comes
ALL = models.names()
STOP = 460


def new(name, **params):
    return make_model(name, **{**SMALL.get(name, {}), **params})


def same(a: Forecast, b: Forecast, tolerance=0.0):
    "The same rows with the same numbers."
    assert torch.equal(a.available, b.available)
    for part in ("quantiles", "p_up", "volatility", "score"):
        gap = (getattr(a, part)[a.available] - getattr(b, part)[b.available]).abs()
        assert gap.max().item() <= tolerance if gap.numel() else True, f"{part} differs by {gap.max().item()}"


def same_state(a, b):
    (heads, weights, texts) = zip(a.state(), b.state(), strict=True)
    assert heads[0] == heads[1] and texts[0] == texts[1] and weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def scrambled(data: Dataset, stop: int) -> Dataset:
    "The same dataset with another world from `stop` on, labels that end there included."
    g, i, y = torch.Generator().manual_seed(99), data.inputs, data.y.clone()
    x, present, vol = i.x.clone(), i.present.clone(), i.volatility.clone()
    x[stop:] = torch.rand(x[stop:].shape, generator=g) * 100
    present[stop:] = torch.rand(present[stop:].shape, generator=g) > 0.5
    vol[stop:] = torch.rand(vol[stop:].shape, generator=g)
    for j, h in enumerate(data.horizons):
        first = stop - data.entry_delay - h
        y[first:, :, j] = torch.randn(y[first:, :, j].shape, generator=g)
    return Dataset(replace(i, x=x, present=present, volatility=vol), y, data.horizons)


def reordered(data: Dataset) -> Dataset:
    "The same dataset with its tickers in another order."
    order = torch.randperm(len(data.inputs.tickers), generator=torch.Generator().manual_seed(4))
    i = data.inputs
    return Dataset(
        replace(
            i,
            x=i.x[:, order],
            present=i.present[:, order],
            volatility=i.volatility[:, order],
            tickers=[i.tickers[k] for k in order],
        ),
        data.y[:, order],
        data.horizons,
    )


@pytest.fixture(scope="module")
def data():
    return sample_dataset(tickers=16, sessions=520, names=NAMES)


@pytest.fixture(scope="module")
def past(data):
    return data.window(0, STOP)


@pytest.fixture(scope="module")
def fitted(past):
    "Each model fitted once on the past."
    fitted = {}

    def get(name):
        if name not in fitted:
            fitted[name] = new(name, seed=3).fit(past)
        return fitted[name]

    return get


@pytest.fixture(scope="module")
def null():
    "A market without anything to find."
    return sample_dataset("null", tickers=40, sessions=800, names=NAMES, seed=11)


def test_the_registry_has_every_model_of_the_settings():
    assert {"zero", "mean", "reversal", "momentum", "persistence", "ridge", "lightgbm", "lstm"} <= set(ALL)
    for name in ALL:
        assert models[name].name == name and set(models.meta(name)["heads"]) <= set(HEADS)
    assert (
        models["zero"].complexity
        < models["ridge"].complexity
        < models["lightgbm"].complexity
        < models["lstm"].complexity
    )
    with pytest.raises(UnknownName, match="ridge"):
        make_model("rigde")


@pytest.mark.parametrize("name", ALL)
def test_shapes_and_values(name, fitted, data):
    m = fitted(name)
    f = m.predict(data.inputs, STOP, 500).validate()
    assert f.quantiles.shape == (40, 16, 2, len(LEVELS)) and f.model == name and f.horizons == (1, 5)
    assert f.sessions.equals(data.inputs.sessions[STOP:500]) and f.tickers == list(data.inputs.tickers)
    assert torch.equal(f.available, data.inputs.usable[STOP:500]), (
        "a forecast for every row with a bar and a volatility, and for no other"
    )
    assert (f.volatility[..., 1][f.available] / f.volatility[..., 0][f.available] - 5**0.5).abs().max() < 1e-5
    up, middle = f.p_up[f.available], f.median[f.available]
    odd = ((up > 0.5) != (middle > 0)) & (middle.abs() > 1e-4)
    assert odd.float().mean() < 0.02, "the probability agrees with the median"
    everything = m.predict(data.inputs)
    assert len(everything.sessions) == 520 and not everything.available[: m.sequence - 1].any()
    assert m.predict(data.inputs, 519).quantiles.shape[0] == 1


@pytest.mark.parametrize("name", ALL)
def test_state_is_plain_data_and_predicts_the_same(name, fitted, data):
    m = fitted(name)
    head, weights, texts = m.state()
    again = type(m).from_state(json.loads(json.dumps(head)), weights, texts)
    assert all(isinstance(w, torch.Tensor) for w in weights.values()) and all(
        isinstance(t, str) for t in texts.values()
    )
    assert m.feature_count() in (None, len(NAMES))
    same(m.predict(data.inputs, STOP), again.predict(data.inputs, STOP))
    same_state(m, again)


@pytest.mark.parametrize("name", ALL)
def test_artifact_predicts_the_same(name, fitted, data, tmp_path):
    m, keys = fitted(name), ensure_keys(tmp_path / "keys")
    loaded = load_artifact(save_artifact(m, data.inputs.spec, tmp_path / name, {}, keys.private), keys.public)
    same(m.predict(data.inputs, STOP), loaded.model.predict(data.inputs, STOP))
    assert loaded.spec == data.inputs.spec and loaded.lookback == data.inputs.spec.lookback + m.sequence - 1


@pytest.mark.parametrize("name", ALL)
def test_the_latest_bar_needs_only_its_sequence(name, fitted, data):
    m = fitted(name)
    whole, n = m.predict(data.inputs, STOP), m.sequence
    for stop in (STOP + 1, 490, 520):
        latest = m.predict(data.inputs.until(stop).last(n), n - 1)
        assert latest.available.any()
        same(latest, whole.reindex(latest.sessions), tolerance=1e-6 if name == "lstm" else 0.0)


@pytest.mark.parametrize("name", ALL)
def test_one_ticker_alone_gets_the_same_forecast(name, fitted, data):
    "Forecasts are made row by row; the comparison across tickers is finished in the inputs."
    m, i = fitted(name), data.inputs
    one = replace(
        i, x=i.x[:, 3:4], present=i.present[:, 3:4], volatility=i.volatility[:, 3:4], tickers=[i.tickers[3]]
    )
    alone, whole = m.predict(one, STOP), m.predict(i, STOP)
    g = alone.available[:, 0]
    assert (alone.quantiles[g, 0] - whole.quantiles[g, 3]).abs().max() <= (1e-6 if name == "lstm" else 0.0)


@pytest.mark.parametrize("name", ALL)
def test_order_of_tickers_does_not_matter(name, fitted, data):
    other = reordered(data)
    m = new(name, seed=3).fit(other.window(0, STOP))
    f, g = fitted(name).predict(data.inputs, STOP), m.predict(other.inputs, STOP)
    back = [other.inputs.tickers.index(t) for t in data.inputs.tickers]
    g = Forecast(
        g.levels,
        g.quantiles[:, back],
        g.p_up[:, back],
        g.volatility[:, back],
        g.sessions,
        f.tickers,
        g.horizons,
        g.model,
        g.score[:, back],
    )
    same(f, g, tolerance=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_no_model_sees_the_future(name, fitted, data):
    other = scrambled(data, STOP)
    m = new(name, seed=3).fit(other.window(0, STOP))
    same_state(fitted(name), m)
    same(
        fitted(name).predict(data.inputs, 300, STOP),
        m.predict(other.inputs, 300, STOP),
        tolerance=1e-6 if name == "lstm" else 0.0,
    )


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_model(name, fitted, past):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    again = new(name, seed=3).fit(past)
    same_state(fitted(name), again)
    assert torch.equal(before, torch.random.get_rng_state()), "fitting leaves the global random state alone"


@pytest.mark.parametrize("name", ["lightgbm", "lstm"])
def test_another_seed_another_model(name, fitted, past, data):
    a, b = fitted(name).predict(data.inputs, STOP), new(name, seed=4).fit(past).predict(data.inputs, STOP)
    assert not torch.equal(a.score[a.available], b.score[b.available])


def test_no_two_models_rank_alike(fitted, data):
    own = [n for n in ALL if "direction" in models.meta(n)["heads"] and n != "composed"]
    scores = {name: fitted(name).predict(data.inputs, STOP) for name in own}
    for a, b in combinations(own, 2):
        one, two = scores[a], scores[b]
        assert not torch.equal(one.score[one.available], two.score[two.available]), f"{a} and {b} rank alike"


@pytest.mark.parametrize("name", ALL)
def test_predict_refuses_before_fit_and_for_other_features(name, fitted, data):
    with pytest.raises(NotFitted):
        new(name).predict(data.inputs, STOP)
    i = data.inputs
    flipped = replace(i, x=i.x.flip(-1), names=tuple(reversed(i.names)))
    with pytest.raises(FeatureError, match="another order"):
        fitted(name).predict(flipped, STOP)
    fewer = replace(i, x=i.x[..., :-1], names=i.names[:-1])
    with pytest.raises(FeatureError, match="rsi_14"):
        fitted(name).predict(fewer, STOP)


@pytest.mark.parametrize("name", ["reversal", "momentum", "persistence"])
def test_a_rule_without_its_feature_names_it(name, data):
    i, column = data.inputs, models[name].column
    keep = [k for k, n in enumerate(i.names) if n != column]
    without = Dataset(
        replace(i, x=i.x[..., keep], names=tuple(i.names[k] for k in keep)), data.y, data.horizons
    )
    with pytest.raises(FeatureError, match=f"Add {column} to"):
        make_model(name).fit(without)


@pytest.mark.parametrize("name", ALL)
def test_no_skill_in_a_null_market_and_calibrated_intervals(name, null):
    "On a null market 90 % intervals hold 90 % ± 3 points out of sample, and no score ranks."
    m = new(name, seed=1).fit(null.window(0, 560))
    f, y = m.predict(null.inputs, 560).validate(), null.y[560:]
    rows = f.available[..., None] & y.isfinite()
    for j, h in enumerate(f.horizons):
        o = y[..., j][rows[..., j]]
        for share, slack in ((0.5, 0.05), (0.8, 0.04), (0.9, 0.03), (0.95, 0.02)):
            low, high = (q[rows[..., j]] for q in f.interval(share, h))
            coverage = ((o >= low) & (o <= high)).float().mean().item()
            assert abs(coverage - share) < slack, f"{share:.0%} at horizon {h}: {coverage:.3f}"
        assert abs(f.p_up[..., j][rows[..., j]].mean() - 0.5) < 0.05
    outcome = pd.DataFrame(y[..., 0].numpy(), f.sessions, f.tickers)
    ic = (
        f.frame("score", 1)
        .where(outcome.notna())
        .rank(axis=1)
        .corrwith(outcome.rank(axis=1), axis=1)
        .dropna()
    )
    assert name == "zero" or abs(ic.mean()) < 4 * ic.std() / len(ic) ** 0.5


def test_a_score_high_on_average_does_not_lift_the_market(past, data):
    class Lifted(models["reversal"]):
        "The reversal rule, with every score three volatilities higher."

        def to_score(self, x):
            return super().to_score(x) + 3

    plain, lifted = (cls().fit(past) for cls in (models["reversal"], Lifted))
    assert plain.weights["slope"].min() > 0.05, "the score matters here"
    f, g = plain.predict(data.inputs, STOP), lifted.predict(data.inputs, STOP)
    assert (f.quantiles[f.available] - g.quantiles[g.available]).abs().max() < 1e-5 and (
        f.p_up[f.available] - g.p_up[g.available]
    ).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["reversal", "ridge", "lightgbm", "lstm"])
def test_the_planted_signal_is_learned(name):
    data = sample_dataset(tickers=40, sessions=700, names=NAMES, rank_ic=0.1, seed=2)
    f, y = make_model(name, seed=1).fit(data.window(0, 500)).predict(data.inputs, 500), data.y[500:, :, 0]
    outcome = pd.DataFrame(y.numpy(), f.sessions, f.tickers)
    ic = (
        f.frame("score", 1)
        .where(outcome.notna())
        .rank(axis=1)
        .corrwith(outcome.rank(axis=1), axis=1)
        .dropna()
    )
    assert ic.mean() > 0.04 and ic.mean() > 2 * ic.std() / len(ic) ** 0.5, f"{name}: {ic.mean():.3f}"


@pytest.mark.parametrize("name", [n for n in ALL if hasattr(models[n], "space")])
def test_the_search_space_makes_models(name, past):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        params = models[name].space(study.ask())
        assert make_model(name, seed=1, **params).params.items() >= params.items()
    json.dumps(params)


def test_training_a_net_prints_nothing_and_leaves_no_files(tmp_path, past, monkeypatch):
    monkeypatch.chdir(tmp_path)
    levels = {n: logging.getLogger(n).level for n in ("lightning.pytorch", "lightning.fabric")}
    out, err, steps = io.StringIO(), io.StringIO(), []
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        new("lstm").fit(past, report=lambda epoch, loss: steps.append((epoch, loss)))
    assert not os.listdir(tmp_path) and out.getvalue() == "" and err.getvalue() == ""
    assert [s[0] for s in steps] == [0, 1] and all(np.isfinite(s[1]) for s in steps)
    assert levels == {n: logging.getLogger(n).level for n in levels}


def test_a_report_may_stop_training(past):
    class Enough(Exception):
        pass

    def stop(epoch, loss):
        raise Enough

    with pytest.raises(Enough):
        new("lstm").fit(past, report=stop)


def test_importing_models_is_light():
    "Predicting needs torch; training libraries are loaded by the function that trains."
    heavy = (
        "lightning",
        "lightgbm",
        "optuna",
        "mlflow",
        "sklearn",
        "prefect",
        "matplotlib",
        "great_expectations",
    )
    code = (
        "import sys; from stockpredict.core.registry import load_all; load_all('stockpredict.models');"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_settings_reach_the_models():
    from stockpredict.core.settings import load_settings

    settings = load_settings(
        overrides={"models.seed": "5", "models.sequence": "7", "models.epochs": "2"}, environ={}
    )
    lstm = make_model("lstm", settings, hidden=8)
    assert (lstm.seed, lstm.sequence, lstm.epochs, lstm.hidden) == (5, 7, 2, 8)
    assert make_model("ridge", settings).seed == 5


# --- Dataset


def test_a_window_owns_its_past_only(data):
    w = data.window(100, 300)
    for tensor in (w.inputs.x, w.inputs.present, w.inputs.volatility, w.y):
        assert tensor.shape[0] == 300
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), (
            "no future behind the tensor"
        )
    assert len(w.inputs.sessions) == 300 and len(w) == 200


@pytest.mark.parametrize("stop", [60, 299, 300])
def test_a_label_that_ends_at_the_stop_is_removed(data, stop):
    full = Dataset(data.inputs, torch.ones_like(data.y), data.horizons, entry_delay=1)
    for w in (
        full.window(0, stop),
        full.until(stop),
        full.window(0, 400).until(stop),
        Dataset(data.inputs, full.y, (1, 5), 0, stop),
    ):
        known = w.y.isfinite().all(1)
        for j, h in enumerate(w.horizons):
            assert known[: stop - 1 - h, j].all(), "labels that ended before the cut stay"
            assert not known[stop - 1 - h :, j].any(), "exit t + 1 + h must lie before the cut"


def test_labels_of_other_delays_are_purged(data):
    w = Dataset(data.inputs, torch.ones_like(data.y), data.horizons, entry_delay=3).until(200)
    assert w.y[:, 0, 0].isfinite().sum() == 200 - 3 - 1 and w.y[:, 0, 1].isfinite().sum() == 200 - 3 - 5


def test_a_window_does_not_change_the_original(data):
    before = data.y.clone()
    data.window(0, 100).y.fill_(7)
    assert torch.equal(before.nan_to_num(9), data.y.nan_to_num(9))


def test_training_and_validation_part_do_not_overlap(data):
    head, tail = data.window(0, STOP).split()
    t, _ = head.rows()
    assert t.max() + head.entry_delay + min(head.horizons) < tail.start == head.stop
    assert tail.stop == STOP and tail.rows()[0].min() >= tail.start
    ends = head.y[..., 1].isfinite().any(1).nonzero().max() + 1 + 5
    assert ends < tail.start


def test_rows_are_usable_and_sorted_by_name(data):
    other = reordered(data)
    (t, n), (u, m) = data.rows(), other.rows()
    assert torch.equal(t, u) and [data.inputs.tickers[i] for i in n] == [other.inputs.tickers[i] for i in m]
    assert data.inputs.usable[t, n].all() and data.y[t, n].isfinite().any(-1).all()
    assert data.rows(sequence=50)[0].min() >= 49


def test_relative_labels_have_no_session_mean(data):
    r, u = data.relative(clip=1e9), data.standardised()
    assert r.nanmean(1).abs().nan_to_num(0).max() < 1e-4
    gap = u - r
    assert (gap.nan_to_num(0).sum(1) / gap.isfinite().sum(1).clip(min=1) - u.nanmean(1)).nan_to_num(
        0
    ).abs().max() < 1e-4
    assert data.relative().nan_to_num(0).abs().max() <= 5


@pytest.mark.parametrize("window", [(5, 5), (10, 4), (-1, 9), (0, 521)])
def test_windows_outside_the_history_are_refused(data, window):
    with pytest.raises(NotEnoughSessions):
        data.window(*window)


def test_a_window_too_short_to_split_is_refused(data):
    with pytest.raises(NotEnoughSessions):
        make_model("ridge").fit(data.window(0, 30))


# --- Forecast


def some(S=6, N=4, seed=0) -> Forecast:
    g = torch.Generator().manual_seed(seed)
    sigma = 0.01 + 0.02 * torch.rand(S, N, 2, generator=g)
    q = sigma[..., None] * torch.special.ndtri(torch.tensor(LEVELS)) + 0.01 * torch.randn(
        S, N, 2, 1, generator=g
    )
    f = Forecast(
        LEVELS,
        q,
        torch.rand(S, N, 2, generator=g),
        sigma,
        pd.bdate_range("2021-03-01", periods=S),
        list("ABCD")[:N],
        (1, 5),
        "some",
    )
    for part in (f.quantiles, f.p_up, f.volatility, f.score):
        part[2, 1] = float("nan")
    return f


FAULTS = {
    "nan": (lambda f: f.quantiles[3, 2, 0].__setitem__(1, float("nan")), "not finite"),
    "inf": (lambda f: f.quantiles[3, 2, 0].__setitem__(4, float("inf")), "not finite"),
    "nan in p_up": (lambda f: f.p_up[3, 2].__setitem__(0, float("nan")), "not finite"),
    "nan in score": (lambda f: f.score[3].__setitem__(2, float("nan")), "not finite"),
    "one horizon missing": (
        lambda f: [
            p[3, 2].__setitem__(1, float("nan")) for p in (f.quantiles, f.p_up, f.volatility, f.score)
        ],
        "not finite",
    ),
    "crossing": (lambda f: f.quantiles[3, 2, 1].__setitem__(0, 0.9), "crossing"),
    "probability": (lambda f: f.p_up[3, 2].__setitem__(1, 1.2), "probability"),
    "volatility": (lambda f: f.volatility[3, 2].__setitem__(0, 0.0), "volatility"),
    "ruin": (lambda f: f.quantiles[3, 2, 0].__setitem__(0, -1.4), "everything"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_forecasts_are_refused(fault):
    f = some()
    assert f.validate() is f and f.available.sum() == 23
    spoil, word = FAULTS[fault]
    spoil(f)
    with pytest.raises(ModelOutputInvalid, match=f"{word}.* C on 2021-03-04"):
        f.validate()


def test_wrong_shapes_are_refused():
    f = some()
    with pytest.raises(ModelOutputInvalid, match="p_up has the shape"):
        Forecast(LEVELS, f.quantiles, f.p_up[:-1], f.volatility, f.sessions, f.tickers, f.horizons)


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_a_saved_forecast_is_read_bit_for_bit(tmp_path, unit):
    f = some()
    f.sessions = f.sessions.as_unit(unit).rename("session")
    g = Forecast.load(f.save(tmp_path / "deep" / "f.safetensors"))
    for part in ("quantiles", "p_up", "volatility", "score"):
        assert torch.equal(getattr(f, part).view(torch.int32), getattr(g, part).view(torch.int32)), (
            "bit for bit, NaN included"
        )
    assert (f.tickers, f.horizons, f.levels, f.model) == (g.tickers, g.horizons, g.levels, g.model)
    assert (
        g.sessions.equals(f.sessions)
        and g.sessions.dtype == f.sessions.dtype
        and g.sessions.name == "session"
    )
    assert os.listdir(tmp_path / "deep") == ["f.safetensors"]
    assert f.save(tmp_path / "a").read_bytes() == f.save(tmp_path / "b").read_bytes()


def test_long_table():
    f = some()
    t = f.to_frame()
    assert list(t) == [
        "ticker",
        "session",
        "horizon",
        *("q025", "q05", "q10", "q25", "q50", "q75", "q90", "q95", "q975"),
        "p_up",
        "volatility",
        "score",
    ]
    assert len(t) == 23 * 2 and not t.isna().any().any()
    row = t[(t.ticker == "C") & (t.session == f.sessions[3]) & (t.horizon == 5)].iloc[0]
    assert (
        row.q95 == f.quantile(0.95, 5)[3, 2].item()
        and row.q975 == f.quantiles[3, 2, 1, 8].item()
        and row.score == f.score[3, 2, 1].item()
        and row.p_up == f.p_up[3, 2, 1].item()
    )
    assert f.frame("p_up", 5).loc[f.sessions[3], "C"] == f.p_up[3, 2, 1].item()
    nothing = f.reindex(pd.DatetimeIndex(["2030-01-01"]))
    assert len(nothing.to_frame()) == 0 and list(nothing.to_frame()) == list(t)


def test_join_and_reindex():
    f = some(10)
    parts = [f.reindex(f.sessions[a:b]) for a, b in ((0, 3), (3, 7), (7, 10))]
    g = join_forecasts(parts)
    same(f, g)
    wide = g.reindex(pd.bdate_range("2021-02-22", periods=20))
    assert wide.available.sum() == f.available.sum() and not wide.available[:5].any()
    with pytest.raises(ModelOutputInvalid, match="overlap"):
        join_forecasts([parts[1], parts[0]])
    with pytest.raises(ModelOutputInvalid, match="overlap"):
        join_forecasts([parts[0], parts[0]])
    with pytest.raises(ModelOutputInvalid, match="different tickers"):
        join_forecasts([parts[0], some(10, 3).reindex(f.sessions[5:])])


def test_unknown_horizon_and_ticker():
    with pytest.raises(UnknownHorizon, match="Ask for one of 1, 5"):
        some().horizon_index(2)
    with pytest.raises(UnknownTicker):
        some().ticker_index("ZZZ")

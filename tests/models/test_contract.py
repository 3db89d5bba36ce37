"""The contract of every registered model: a new one is tested here because it is registered."""

import json
from dataclasses import replace
from itertools import combinations

import pandas as pd
import pytest
import torch
from stockpredict.core.errors import FeatureError, ModelOutputInvalid, NotEnoughHistory, NotFitted
from stockpredict.core.errors import StockpredictError
from stockpredict.models.artifact import ensure_keys, load_artifact, save_artifact
from stockpredict.models.contract import make_model, models
from stockpredict.models.dataset import Dataset, sample_dataset
from stockpredict.models.forecast import LEVELS, Forecast, join_forecasts
from zoo import ALL, NAMES, STOP, is_net, new, reordered, rounding, same, same_state, scrambled, some_tickers


@pytest.mark.parametrize("name", ALL)
def test_shapes_and_values(name, fitted, data):
    m = fitted(name)
    f = m.predict(data.inputs, STOP, 500).validate()
    assert f.quantiles.shape == (40, 16, 2, len(LEVELS)) and f.model == name and f.horizons == (1, 5)
    assert f.sessions.equals(data.inputs.sessions[STOP:500]) and f.tickers == list(data.inputs.tickers)
    assert torch.equal(f.available, data.inputs.usable[STOP:500]), (
        "a forecast for every row with a bar and a volatility, and for no other"
    )
    ratio = f.volatility[..., 1][f.available] / f.volatility[..., 0][f.available]
    assert 1 < ratio.min() and ratio.max() < 5, "five sessions move more than one"
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
    assert loaded.spec == data.inputs.spec and loaded.lookback == (
        max(data.inputs.spec.lookback, m.memory + 1) + m.sequence - 1
    )


@pytest.mark.parametrize("name", ALL)
def test_the_latest_bar_needs_only_its_sequence(name, fitted, data):
    m = fitted(name)
    whole, n = m.predict(data.inputs, STOP), m.sequence
    for stop in (STOP + 1, 490, 520):
        latest = m.predict(data.inputs.until(stop).last(n), n - 1)
        assert latest.available.any()
        same(latest, whole.reindex(latest.sessions), tolerance=rounding(name))


@pytest.mark.parametrize("name", [n for n in ALL if not getattr(models[n], "reads_across", False)])
def test_one_ticker_alone_gets_the_same_forecast(name, fitted, data):
    "Forecasts are made row by row; the comparison across tickers is finished in the inputs."
    m, i = fitted(name), data.inputs
    one = some_tickers(i, [3])
    alone, whole = m.predict(one, STOP), m.predict(i, STOP)
    g = alone.available[:, 0]
    assert (alone.quantiles[g, 0] - whole.quantiles[g, 3]).abs().max() <= rounding(name)


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
def test_no_model_sees_the_future_and_the_same_seed_gives_the_same_model(name, fitted, data):
    "Fitted again on a window cut from another future: the same bits."
    other = scrambled(data, STOP)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    m = new(name, seed=3).fit(other.window(0, STOP))
    same_state(fitted(name), m)
    assert torch.equal(before, torch.random.get_rng_state()), "fitting leaves the global random state alone"
    same(
        fitted(name).predict(data.inputs, 300, STOP),
        m.predict(other.inputs, 300, STOP),
        tolerance=rounding(name),
    )


@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "forest", "double_ensemble", "mlp", "lstm"])
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
    claims = name not in ("zero", "always_up") and "direction" in models.meta(name)["heads"]
    assert not claims or abs(ic.mean()) < 4 * ic.std() / len(ic) ** 0.5


QUICK = dict(lstm=dict(rows=10_000, sequence=10), mlp=dict(rows=40_000), forest=dict(trees=20, rows=8000))
LEARNERS = ("reversal", "ridge", "elastic_net", "online", "lightgbm", "xgboost", "forest", "mlp", "lstm")


@pytest.fixture(scope="module")
def planted():
    return sample_dataset(tickers=40, sessions=700, names=NAMES, rank_ic=0.1, seed=2)


@pytest.mark.parametrize("name", LEARNERS)
def test_the_planted_signal_is_learned(name, planted):
    data, m = planted, make_model(name, seed=1, **QUICK.get(name, {}))
    f, y = m.fit(data.window(0, 500)).predict(data.inputs, 500), data.y[500:, :, 0]
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


def test_what_reads_across_stocks_says_so(fitted, data):
    "A net over the cross-section forecasts one ticker from the others, and a change in one reaches all."
    m, i = fitted("cross_attention"), data.inputs
    moved = replace(i, x=i.x.clone())
    moved.x[STOP:, 3] = -moved.x[STOP:, 3]
    f, g = m.predict(i, STOP + 20), m.predict(moved, STOP + 20)
    others = [k for k in range(16) if k != 3]
    assert (f.score[:, others] - g.score[:, others]).abs().nan_to_num(0).max() > 1e-7


# --- what cannot be learned from


def odd(data, **change):
    "The dataset with something changed in its inputs or labels."
    copy = Dataset(data.inputs, data.y, data.horizons, data.start, data.stop, data.entry_delay)
    for name, alter in change.items():
        if name == "y":
            copy.y = alter(copy.y.clone())
        else:
            copy.inputs = replace(copy.inputs, **{name: alter(getattr(copy.inputs, name).clone())})
    return copy


@pytest.mark.parametrize("name", ALL)
def test_a_feature_with_a_hole_is_named(name, past):
    def hole(x):
        x[200, 3, 1] = float("nan")
        return x

    with pytest.raises(FeatureError, match="mom_5"):
        new(name).fit(odd(past, x=hole))


@pytest.mark.parametrize("name", ALL)
def test_labels_that_are_all_unknown_are_named(name, past):
    with pytest.raises(NotEnoughHistory, match="no outcome is known"):
        new(name).fit(odd(past, y=lambda y: y * float("nan")))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, 0.01])
def test_a_target_that_never_moves_ends_in_a_forecast_or_a_sentence(name, value, past, data):
    "A constant target teaches nothing: the forecast is finite and ordered, or the error is one of ours."
    few = Dataset(some_tickers(past.inputs, range(8)), past.y[:, :8], past.horizons).window(0, 300)
    try:
        m = new(name).fit(odd(few, y=lambda y: torch.where(y.isfinite(), value, y)))
    except StockpredictError as e:
        assert e.fix
        return
    assert m.predict(data.inputs, STOP, STOP + 20).validate().available.any()


@pytest.mark.parametrize("name", ALL)
def test_one_ticker_ends_in_a_forecast_or_a_sentence(name, past):
    one = some_tickers(past.inputs, [3])
    try:
        m = new(name).fit(Dataset(one, past.y[:, 3:4], past.horizons))
    except StockpredictError as e:
        assert e.fix
        return
    assert m.predict(one, 400).validate().available.any()


@pytest.mark.parametrize("name", [n for n in ALL if is_net(n)])
def test_a_loss_that_explodes_is_named(name, past):
    with pytest.raises(ModelOutputInvalid, match="its loss was not finite"):
        new(name, rate=1e30).fit(odd(past.window(0, 200), x=lambda x: x * 1e30))


@pytest.mark.parametrize("name", [n for n in ALL if is_net(n)])
def test_chunks_of_any_size_give_the_same(name, fitted, data):
    m = fitted(name)
    whole = m.predict(data.inputs, STOP)
    parts = [m.predict(data.inputs, t, min(t + 7, 520)) for t in range(STOP, 520, 7)]
    same(join_forecasts(parts), whole, tolerance=1e-6)

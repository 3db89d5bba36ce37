"""Models, datasets and forecasts; the contract of every model is in test_contract.py."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.core.errors import FeatureError, ModelOutputInvalid, NotEnoughSessions
from stockpredict.core.errors import UnknownHorizon, UnknownName, UnknownTicker
from stockpredict.models.contract import HEADS, make_model, models
from stockpredict.models.dataset import Dataset
from stockpredict.models.forecast import LEVELS, Forecast, join_forecasts
from zoo import ALL, STOP, new, reordered, same


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


@pytest.mark.parametrize("name", ["reversal", "momentum", "persistence"])
def test_a_rule_without_its_feature_names_it(name, data):
    i, column = data.inputs, models[name].column
    keep = [k for k, n in enumerate(i.names) if n != column]
    without = Dataset(
        replace(i, x=i.x[..., keep], names=tuple(i.names[k] for k in keep)), data.y, data.horizons
    )
    with pytest.raises(FeatureError, match=f"Add {column} to"):
        make_model(name).fit(without)


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


def test_training_a_net_prints_nothing_and_leaves_no_files(tmp_path, past, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import lightning.pytorch  # noqa: F401 - its import sets levels of its own

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


# --- Heads


@pytest.mark.parametrize("name", ALL)
def test_a_model_names_the_heads_it_has_something_of_its_own_for(name, fitted, data):
    "One that names no volatility passes on that of the inputs; one that names no direction ranks nothing."
    own = models[name].heads
    assert own == models.meta(name)["heads"] == fitted(name).heads and set(own) <= set(HEADS) and own
    f = fitted(name).predict(data.inputs, STOP, STOP + 10)
    given = data.inputs.volatility[STOP : STOP + 10, :, None] * torch.tensor([1.0, 5.0]).sqrt()
    passed_on = (f.volatility / given)[f.available].sub(1).abs().max() < 1e-6
    assert passed_on == ("volatility" not in own) or name in ("ewma", "composed")
    assert ("direction" in own) == (f.score[f.available].std() > 0) or name in ("zero", "always_up")

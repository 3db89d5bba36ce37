"""An experiment: reproducible, resumable after a crash, and independent of later data."""

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import warm
from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import EmptyUniverse, LakeUnavailable, NotEnoughHistory, NotEnoughSessions
from stockpredict.core.errors import EvaluateError, RunError, SeesFuture
from stockpredict.core.settings import load_settings
from stockpredict.ingest.ingest import ingest
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars, simulate
from stockpredict.evaluate.splits import Fold, leaking_sessions
from stockpredict.catalogue.design_matrix import Spec
from stockpredict.algebra.panel import Panel
from stockpredict.models.contract import make_model, models
from stockpredict.models.dataset import Dataset
from stockpredict.train.experiment import Experiment, run_experiment
from stockpredict.train.gate import decide
from stockpredict.train.holdout import holdout_sentence
from stockpredict.train.training_data import covered_spec
from stockpredict.train.walk_forward import make_folds, run_candidate
from stockpredict.train.training_data import training_panel
from stockpredict.train.walk_forward import walk_forward_forecasts
from stockpredict.train.tune import tune

SMALL = {
    "data.source": "simulated",
    "simulated.kind": "planted",
    "simulated.tickers": 12,
    "simulated.sessions": 420,
    "models.trials": 2,
    "models.candidates": "reversal ridge",
    "features.names": "ret_1 mom_5 vol_20",
    "validation.first_train": 200,
    "validation.folds": 2,
}


def small(home, **more):
    return load_settings(overrides={**SMALL, "storage.home": str(home), **more}, environ={})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("home")
    ingest(small(place))
    return place


@pytest.fixture(scope="module")
def study(home, tmp_path_factory):
    return run_experiment(small(home), tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def data():
    panel = Panel.from_bars(simulate("planted", tickers=12, sessions=420, seed=3).bars, get_calendar())
    return Dataset.from_panel(panel, Spec(("ret_1", "mom_5", "vol_20")), [1, 5])


def hashes(study):
    return {name: c.artifact for name, c in study.candidates.items()}


def test_the_same_data_code_and_seed_give_the_same_artifacts_whatever_the_commit(
    home, study, tmp_path, monkeypatch
):
    "A commit made meanwhile changes no hash, and each run names one."
    commits = (f"{n:040x}" for n in range(10_000))
    monkeypatch.setattr("stockpredict.train.lineage.git_commit", lambda: next(commits))
    monkeypatch.setattr("stockpredict.models.artifact.git_commit", lambda: next(commits))
    again = run_experiment(small(home), tmp_path / "other")
    assert hashes(again) == hashes(study) and all(len(h) == 64 for h in hashes(study).values())
    assert all(
        torch.equal(
            again.candidates[n].forecast.quantiles.nan_to_num(-9), c.forecast.quantiles.nan_to_num(-9)
        )
        for n, c in study.candidates.items()
    )
    assert all(again.candidates[n].ledger.equals(c.ledger) for n, c in study.candidates.items())
    manifests = [json.loads(path.read_text()) for path in tmp_path.rglob("manifest.json")]
    assert {m["commit"] for m in manifests} == {again.lineage["commit"]} and len(manifests) > 1


def test_another_installation_with_its_own_keys_and_lake_agrees(study, tmp_path):
    mine = small(tmp_path / "home")
    ingest(mine)
    assert hashes(run_experiment(mine, tmp_path / "work")) == hashes(study)


def test_another_seed_of_the_market_is_another_result(study, tmp_path):
    other = small(tmp_path / "home", **{"simulated.seed": 2})
    ingest(other)
    assert set(hashes(run_experiment(other, tmp_path / "work")).values()).isdisjoint(hashes(study).values())


CHILD = """
import os, signal, sys, json
import stockpredict.train.experiment as train
import stockpredict.train.lineage as lineage
from contextlib import contextmanager
from stockpredict.core.settings import load_settings
overrides, work, at = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
lineage.code_version = lambda: sys.argv[4]  # the parent's, should a file of the package be changed meanwhile
steps = iter(range(10_000))
def tick(word):
    if next(steps) == at: os.kill(os.getpid(), signal.SIGKILL)
@contextmanager
def progress(*_): yield tick
train.progress = progress
train.run_experiment(load_settings(overrides=overrides, environ={}), work)
"""


@pytest.mark.parametrize("at", [5, 11])
def test_killed_training_goes_on_and_ends_with_the_same_bytes(home, study, tmp_path, at):
    how = [json.dumps({**SMALL, "storage.home": str(home)}), str(tmp_path), str(at), study.lineage["code"]]
    done = warm.python(CHILD, *how)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(RunError):
        Experiment.load(tmp_path)
    whole = {
        p.parent.name: p.stat().st_mtime_ns for p in (tmp_path / "candidates").glob("[a-z]*/candidate.json")
    }
    assert 0 < len(whole) < len(study.candidates)
    again = run_experiment(small(home), tmp_path)
    assert hashes(again) == hashes(study)
    assert all(
        (tmp_path / "candidates" / n / "candidate.json").stat().st_mtime_ns == t for n, t in whole.items()
    ), "finished candidates are read, not repeated"
    assert not list((tmp_path / "candidates").glob(".*")), "no half-written candidate is left"


def test_a_finished_experiment_is_read_completely(study):
    read = Experiment.load(study.workdir)
    assert (read.lineage, read.tickers, read.features, read.folds, read.trials) == (
        study.lineage,
        study.tickers,
        study.features,
        study.folds,
        study.trials,
    )
    assert (
        read.sessions.equals(study.sessions)
        and np.array_equal(read.y, study.y, equal_nan=True)
        and np.array_equal(read.close, study.close, equal_nan=True)
    )
    for name, c in study.candidates.items():
        assert (
            read.daily_ic(name).equals(study.daily_ic(name))
            and read.candidates[name].params == c.params
            and read.candidates[name].ledger.equals(c.ledger)
        )
    assert read.feature_ic.equals(study.feature_ic)


def test_stored_experiments_contain_no_path_and_no_secret_and_progress_is_silent(home, tmp_path, capfd):
    settings = small(
        home,
        **{
            "storage.mlflow_uri": "http://user:hunter2@example.invalid",
            "serving.redis_url": "redis://:hunter2@example.invalid",
        },
    )
    study = run_experiment(settings, tmp_path / "work")
    assert "fold" not in "".join(capfd.readouterr()), "there is no terminal"
    texts = [p.read_bytes() for p in study.workdir.rglob("*") if p.is_file()]
    assert not any(b"hunter2" in t or str(home).encode() in t or str(tmp_path).encode() in t for t in texts)


def test_changed_settings_make_every_candidate_anew(home, study, tmp_path):
    shutil.copytree(study.workdir, tmp_path / "work")
    second = run_experiment(small(home, **{"models.seed": 8}), tmp_path / "work")
    assert set(hashes(second).values()).isdisjoint(hashes(study).values())


def test_training_ends_before_the_holdout_of_the_settings(home, study, tmp_path):
    mine = small(home, **{"validation.holdout": 60, "models.candidates": "reversal", "models.trials": 0})
    shorter = run_experiment(mine, tmp_path)
    assert list(shorter.sessions) == list(study.sessions[:-60])
    assert "are held out" in holdout_sentence(mine) and np.isnan(shorter.y[-1]).all()


def test_no_training_label_overlaps_a_test(study):
    assert [leaking_sessions(f) for f in study.folds] == [0, 0]
    assert study.tested.stop == len(study.sessions)


def test_the_mean_is_always_among_the_candidates(study):
    assert (
        list(study.candidates) == ["mean", "reversal", "ridge"] and len(study.candidates["ridge"].ledger) == 2
    )


def scrambled(data, t):
    "The same data with everything from session t on replaced by noise."
    noise = torch.Generator().manual_seed(9)
    x, y = data.inputs.x.clone(), data.y.clone()
    x[t:] = torch.randn(x[t:].shape, generator=noise)
    volatility = data.inputs.volatility.clone()
    volatility[t:] = 0.1 * torch.rand(volatility[t:].shape, generator=noise) + 0.01
    for j, h in enumerate(data.horizons):
        late = y[max(t - data.entry_delay - h, 0) :, :, j]
        late[:] = 0.05 * torch.randn(late.shape, generator=noise)
    return replace(data, inputs=replace(data.inputs, x=x, volatility=volatility), y=y)


@pytest.mark.parametrize("name", ["mean", "momentum", "ridge", "lightgbm", "lstm"])
def test_forecasts_and_trials_do_not_depend_on_the_future(name, tmp_path):
    names = ("ret_1", "mom_5", "vol_20", "mom_252_21") if name == "momentum" else ("ret_1", "mom_5", "vol_20")
    panel = Panel.from_bars(simulate("planted", tickers=8, sessions=420, seed=3).bars, get_calendar())
    whole = Dataset.from_panel(panel, Spec(names), [1, 5])
    settings = small(tmp_path, **{"models.epochs": 1, "models.sequence": 5, "models.trials": 1})
    folds = make_folds(settings, len(panel))
    cut = folds[1].test_start
    a, b = (run_candidate(settings, d, folds, name) for d in (whole, scrambled(whole, cut)))
    n = cut - folds[0].test_start
    assert a.params == b.params and a.ledger.equals(b.ledger)
    assert torch.equal(a.forecast.quantiles[:n].nan_to_num(-9), b.forecast.quantiles[:n].nan_to_num(-9))
    if name != "mean":
        assert not torch.equal(a.forecast.score[n:].nan_to_num(-9), b.forecast.score[n:].nan_to_num(-9)), (
            "the scramble would have been seen"
        )


def test_a_model_that_reads_the_next_row_is_refused(data):
    class Peeks(models["reversal"]):
        def score(self, inputs, start, stop):
            return super().score(inputs, start, stop).roll(-1, 0)

    with pytest.raises(SeesFuture, match="cut away"):
        walk_forward_forecasts(data, make_folds(small("x"), len(data.inputs.sessions)), Peeks)


def test_a_model_that_normalises_over_the_test_is_refused(data):
    class Centres(models["reversal"]):
        def score(self, inputs, start, stop):
            z = super().score(inputs, start, stop)
            return z - z.nanmean(0, keepdim=True)

    with pytest.raises(SeesFuture):
        walk_forward_forecasts(data, make_folds(small("x"), len(data.inputs.sessions)), Centres)


def test_tuning_is_seeded_counts_and_survives_models_without_a_space(data):
    best, ledger = tune(data, "ridge", 3, seed=1)
    again, same = tune(data, "ridge", 3, seed=1)
    other, _ = tune(data, "ridge", 3, seed=2)
    assert best == again and ledger.equals(same) and best != other and list(ledger.trial) == [0, 1, 2]
    assert best == json.loads(ledger.loc[ledger.value.idxmax(), "params"])
    for name, trials in (("reversal", 5), ("ridge", 0)):
        params, none = tune(data, name, trials)
        assert params == {} and len(none) == 0 and list(none.columns) == list(ledger.columns)


def test_features_that_a_close_only_source_cannot_fill_are_left_out(tmp_path):
    bars = sample_bars(6, 300)
    bars[["open", "high", "low", "volume"]] = np.nan
    panel = Panel.from_bars(bars, get_calendar())
    settings = small(tmp_path, **{"features.names": "ret_1 mom_5 volume_ratio_20 atr_14 mom_252_21"})
    assert list(covered_spec(settings, panel, 200).names) == ["ret_1", "mom_5"]
    with pytest.raises(NotEnoughHistory, match="None of the 1 features"):
        covered_spec(small(tmp_path, **{"features.names": "volume_ratio_20"}), panel, 200)


def test_training_reads_finished_sessions_as_known(tmp_path, home):
    settings = small(home)
    whole, _ = training_panel(settings)
    for as_of in ("2016-03-01", "2016-03-01T15:00:00-05:00"):
        part, _ = training_panel(settings, as_of)
        last = "2016-03-01" if len(as_of) == 10 else "2016-02-29"
        assert str(part.sessions[-1].date()) == last and len(part) < len(whole), (
            "a session that has not closed is no session"
        )
    with pytest.raises(EmptyUniverse):
        training_panel(settings, "2014-01-01")
    with pytest.raises(LakeUnavailable):
        training_panel(small(tmp_path / "nothing"))


def test_a_snapshot_is_read_again_after_a_correction(tmp_path):
    settings = small(tmp_path)
    ingest(settings)
    before, snapshot = training_panel(settings)
    with Lake(settings.storage) as lake:
        bars = lake.bars(adjusted=False)
        late = bars[bars.event_time == bars.event_time.max()].copy()
        late["close"] = late["close"] * 1.001
        late[["open", "high", "low"]] = np.nan
        late["known_at"] = pd.Timestamp.now("UTC") - pd.Timedelta(minutes=1)
        lake.append(late)
    now, newer = training_panel(settings)
    then, _ = training_panel(settings, snapshot=snapshot)
    assert newer > snapshot and torch.equal(then.close.values.nan_to_num(), before.close.values.nan_to_num())
    assert not torch.equal(now.close.values.nan_to_num(), before.close.values.nan_to_num())


def test_a_history_too_short_is_refused_in_one_sentence(home, tmp_path):
    with pytest.raises(NotEnoughSessions, match="sessions are too few"):
        run_experiment(small(home, **{"validation.first_train": 2000}), tmp_path)


def test_a_champion_outside_the_candidates_is_tried_on_the_same_sessions(home, study, tmp_path):
    class Now:
        model, params = "ridge", {"alpha": 5.0}

    with_rival = run_experiment(small(home), tmp_path / "a", champion=Now)
    read = Experiment.load(tmp_path / "a")
    assert (
        hashes(with_rival) == hashes(study)
        and read.rival.params == {"alpha": 5.0}
        and "champion" not in with_rival.candidates
    )
    assert read.daily_ic(read.rival).index.equals(study.daily_ic("ridge").index) and not read.rival.artifact
    Now.params = study.candidates["ridge"].params
    assert (
        run_experiment(small(home), tmp_path / "b", champion=Now).rival.artifact
        == study.candidates["ridge"].artifact
    )
    assert Experiment.load(tmp_path / "b").rival.model == "ridge"
    Now.model, Now.params = "a model that is gone", {}
    gone = run_experiment(small(home), tmp_path / "c", champion=Now)
    assert gone.rival is None and "could not be tried" in gone.lineage["rival"]


@pytest.mark.slow
def test_the_sample_experiment_tries_every_candidate(tmp_path):
    settings = load_settings(overrides={"storage.home": str(tmp_path), "models.trials": 1}, environ={})
    ingest(settings)
    study = run_experiment(settings, tmp_path / "work")
    volatilities = ["ewma", "garch", "har", "log_har"]
    names = ["mean", "reversal", "momentum", "ridge", "lightgbm", "lstm", *volatilities]
    assert list(study.candidates) == names
    volatility = decide(study).heads["volatility"]
    assert (volatility["decision"], volatility["model"]) == ("promote", "log_har"), "the first answer"


def test_make_model_uses_the_settings(tmp_path):
    assert make_model("lstm", small(tmp_path, **{"models.sequence": 7})).sequence == 7


class Peeking(models["reversal"]):
    "Reads `ahead` rows ahead at every `step`-th row, with scores times `scale`."

    ahead, step, scale = 2, 1, 1e-4

    def score(self, inputs, start, stop):
        z = super().score(inputs, start, min(stop + self.ahead, len(inputs.sessions)))
        own = z[: stop - start].clone()
        for t in range(stop - start):
            if (start + t) % self.step == 0 and t + self.ahead < len(z):
                own[t] = z[t + self.ahead]
        return own * self.scale


@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1.0])
@pytest.mark.parametrize("ahead, step", [(1, 1), (1, 2), (2, 1), (2, 2), (5, 1)])
def test_a_peek_is_found_at_every_scale(data, scale, ahead, step):
    "Scores times 1e-4 that read two rows ahead passed, with a rank IC of 0.998."
    peek = type("Peek", (Peeking,), dict(scale=scale, ahead=ahead, step=step))
    with pytest.raises(SeesFuture):
        walk_forward_forecasts(data, make_folds(small("x"), len(data.inputs.sessions)), peek)


class BreaksTies(models["reversal"]):
    "States two values, and breaks the ties by what it sees ahead where it forecasts a whole test."

    ahead = 1

    def score(self, inputs, start, stop):
        z = super().score(inputs, start, stop)
        return z.sign() + 2e-4 * (z.roll(-self.ahead, 0) if stop - start > 40 else 0 * z)


@pytest.mark.parametrize("ahead", [1, 5])
def test_a_peek_below_every_tolerance_is_found(data, ahead):
    "Within a thousandth of the spread the forecast of a whole test was believed."
    folds = [Fold(200, 210, 290, 6)]
    with pytest.raises(SeesFuture, match="changed"):
        walk_forward_forecasts(data, folds, type("Breaks", (BreaksTies,), dict(ahead=ahead)))
    assert len(walk_forward_forecasts(data, folds, models["reversal"]).sessions) == 80


@pytest.mark.parametrize("at", [300, 301])
def test_a_fold_of_one_session_hides_no_peek(data, at):
    peek = type("Peek", (Peeking,), dict(ahead=1, step=2))
    folds = [Fold(at + k - 10, at + k, at + k + 1, 6) for k in range(2)]
    with pytest.raises(SeesFuture):
        walk_forward_forecasts(data, folds, peek)
    assert len(walk_forward_forecasts(data, folds, models["reversal"]).sessions) == 2


def test_a_fold_that_trains_on_its_test_is_refused(data):
    with pytest.raises(EvaluateError, match="not possible"):
        Fold(900, 700, 1000, 2)
    with pytest.raises(EvaluateError, match="6 training labels"):
        walk_forward_forecasts(data, [Fold(300, 300, 330, 6)], models["reversal"])


@pytest.mark.parametrize("name", ["mean", "zero", "ridge", "lightgbm", "lstm"])
def test_an_honest_model_is_not_suspected_whatever_its_scale(data, name):
    def new():
        params = dict(epochs=1, sequence=5) if name == "lstm" else {}
        return make_model(name, **params)

    folds = make_folds(small("x"), len(data.inputs.sessions))[:1]
    assert walk_forward_forecasts(data, folds, new).available.any()

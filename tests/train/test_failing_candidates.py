"""A candidate that fails ends the experiment in a named error: no half-made part, and the champion stays."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import small_study
import torch
import warm
from stockpredict.core.errors import ArtifactRejected, ModelOutputInvalid, OutOfMemory
from stockpredict.models.contract import explain_memory, model, models
from stockpredict.models.dataset import sample_dataset
from stockpredict.train.champion import current_champion
from stockpredict.train.experiment import Experiment, run_experiment
from stockpredict.train.gate import decide
from stockpredict.train.registry import publish_model
from stockpredict.train.tune import tune


def real_numpy(self, data):
    np.empty(10**15)


def real_torch(self, data):
    torch.empty(10**14)


def stopped(self, data):
    raise KeyboardInterrupt


@pytest.fixture
def misfit():
    "A registered model that is a ridge until a test gives it a fault."

    class Misfit(models["ridge"]):
        at_fit = at_predict = None

        def fit(self, data, report=None):
            if Misfit.at_fit:
                Misfit.at_fit(self, data)
            return super().fit(data, report)

        def predict(self, inputs, start=0, stop=None):
            forecast = super().predict(inputs, start, stop)
            if Misfit.at_predict:
                Misfit.at_predict(forecast)
            return forecast

    model("misfit", complexity=3, kind="linear")(Misfit)
    yield Misfit
    del models._parts["misfit"], models._meta["misfit"]


def holes(forecast):
    forecast.score[2, forecast.available[2].nonzero()[0, 0]] = float("nan")


def crossing(forecast):
    forecast.quantiles[2, forecast.available[2].nonzero()[0, 0], 0] *= -1


FAULTS = {
    "numpy": ("at_fit", real_numpy, OutOfMemory, "misfit ran out of memory in the fold that tests"),
    "torch": ("at_fit", real_torch, OutOfMemory, "misfit ran out of memory in the fold that tests"),
    "forecast": (
        "at_predict",
        lambda forecast: real_torch(None, None),
        OutOfMemory,
        "misfit ran out of memory",
    ),
    "holes": ("at_predict", holes, ModelOutputInvalid, "not finite"),
    "crossing": ("at_predict", crossing, ModelOutputInvalid, "crossing quantiles"),
    "interrupt": ("at_fit", stopped, KeyboardInterrupt, None),
}


def files_of(folder):
    "Every file below a folder with its content, but for the lock."
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    "A home with a champion, and the settings of the next training, which tries the model that fails."
    with pytest.MonkeyPatch.context() as patch:
        small_study.without_mlflow(patch)
        home = tmp_path_factory.mktemp("failing") / "home"
        settings, study = small_study.copy_of(trained, home)
        publish_model(settings, study, decide(study))
    return settings.with_(**{"models.candidates": "reversal misfit"})


def folders(work):
    return {p.name for p in (work / "candidates").iterdir()}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_candidate_ends_in_a_named_error_and_registers_nothing(published, misfit, fault):
    where, act, error, words = FAULTS[fault]
    setattr(misfit, where, act)
    work, before = published.storage.home_dir / "next", files_of(published.storage.registry_dir)
    with pytest.raises(error, match=words) as caught:
        run_experiment(published, work)
    if words:
        assert caught.value.fix and "misfit" in str(caught.value)
    assert folders(work) == {"mean", "reversal"} and not (work / "experiment.json").exists()
    assert files_of(published.storage.registry_dir) == before and current_champion(published).model == "mean"


def test_after_a_failure_the_same_command_continues(published, misfit):
    work = published.storage.home_dir / "again"
    misfit.at_fit = real_torch
    with pytest.raises(OutOfMemory):
        run_experiment(published, work)
    kept = files_of(work / "candidates")
    misfit.at_fit = None
    study = run_experiment(published, work)
    assert set(study.candidates) == {"mean", "reversal", "misfit"} and study.candidates["misfit"].artifact
    assert kept.items() <= files_of(work / "candidates").items(), "finished candidates are not made again"


def test_the_final_fit_names_its_step(published, misfit):
    calls = []

    def third(self, data):
        calls.append(self)
        if len(calls) > small_study.SMALL["validation.folds"]:
            real_numpy(self, data)

    misfit.at_fit = third
    with pytest.raises(OutOfMemory, match="in the fit on everything"):
        run_experiment(published, published.storage.home_dir / "next")


def test_a_champion_that_needs_too_much_memory_is_noted(published, misfit):
    misfit.at_fit = real_torch
    settings = published.with_(**{"models.candidates": "reversal"})
    champion = SimpleNamespace(model="misfit", params={"alpha": 2.0})
    study = run_experiment(settings, published.storage.home_dir / "rival", champion=champion)
    assert study.rival is None and "misfit ran out of memory" in study.lineage["rival"]


def test_parameters_that_need_too_much_memory_are_a_failed_trial(misfit):
    tried = []

    def first_only(self, data):
        tried.append(self.alpha)
        if len(set(tried)) == 1:
            real_torch(self, data)

    misfit.at_fit = first_only
    params, ledger = tune(sample_dataset(tickers=8, sessions=200), "misfit", trials=2)
    assert list(ledger.state) == ["fail", "complete"] and params == json.loads(ledger.params[1])
    misfit.at_fit = real_torch
    params, ledger = tune(sample_dataset(tickers=8, sessions=200), "misfit", trials=2)
    assert params == {} and list(ledger.state) == ["fail", "fail"]


WORDS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried"),
    RuntimeError("[LightGBM] [Fatal] std::bad_alloc"),
]


@pytest.mark.parametrize("error", WORDS, ids=["gpu", "windows", "boosting"])
def test_the_words_of_every_library_are_known(error):
    with (
        pytest.raises(OutOfMemory, match="ridge ran out of memory in a fold"),
        explain_memory("ridge", "in a fold"),
    ):
        raise error


def test_other_errors_pass_unchanged():
    for error in (ValueError("a negative price"), RuntimeError("shapes do not match"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, explain_memory("ridge", "in a fold"):
            raise error
        assert caught.value is error


DAMAGED = ["forecast.safetensors", "trials.parquet", "candidate.json", "artifact/weights.safetensors"]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_candidate_is_made_again(published, name):
    settings = published.with_(**{"models.candidates": "reversal"})
    work = published.storage.home_dir / "rival"
    run_experiment(settings, work)
    path = work / "candidates" / "reversal" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    if "/" not in name:  # loading a model verifies it anyway
        with pytest.raises(ArtifactRejected, match=r"candidate reversal of .* is damaged") as caught:
            Experiment.load(work)
        assert "training again" in caught.value.fix
    run_experiment(settings, work)
    assert path.read_bytes() == whole


LIMITED = """
import resource, sys
from dataclasses import replace
from stockpredict.core.errors import OutOfMemory
from stockpredict.core.settings import load_settings
from stockpredict.models.dataset import sample_dataset
from stockpredict.train.walk_forward import make_folds, run_candidate

settings = load_settings(overrides={"validation.first_train": 200, "validation.folds": 2}, environ={})
data = sample_dataset(tickers=40, sessions=420)
wide = dict(x=data.inputs.x.repeat(1, 1, 150), names=[f"f{k}" for k in range(150 * len(data.inputs.names))])
data = replace(data, inputs=replace(data.inputs, **wide))
folds = make_folds(settings, len(data.inputs))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 40 * 2**20, resource.RLIM_INFINITY))
try:
    run_candidate(settings, data, folds, sys.argv[1], {})
except OutOfMemory as e:
    print(e)
"""


def test_a_process_that_may_use_little_memory_says_so():
    done = warm.python(LIMITED, "ridge")
    assert "The model ridge ran out of memory in the fold that tests" in done.stdout, done.stderr[-2000:]

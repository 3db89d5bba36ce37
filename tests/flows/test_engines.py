"""The engines of [flows]: the same models to the last bit, and no hang or half result when a worker dies."""

import json
import os
import sys

import engine_jobs
import patience
import pytest
import small_study
import torch

from stockpredict.core.errors import EngineFailed, ModelError
from stockpredict.core.settings import load_settings
from stockpredict.train import engines, shared_training
from stockpredict.train.experiment import Experiment, run_experiment

pytestmark = pytest.mark.slow


def flows(engine, workers=2, **more):
    "Settings of an engine."
    more = {k.replace("__", "."): v for k, v in more.items()}
    return load_settings(overrides={"flows.engine": engine, "flows.workers": workers, **more}, environ={})


def test_jobs_run_elsewhere_with_one_thread_and_come_back_by_number():
    x = {"x": torch.arange(12.0).reshape(3, 4)}
    jobs, done = [(0,), (3,), (1,)], []
    local = engines.run_jobs(flows("local"), engine_jobs.process_and_sum, x, jobs, list("abc"))
    two = flows("processes")
    shared = engines.run_jobs(
        two, engine_jobs.process_and_sum, x, jobs, list("abc"), lambda i, r: done.append(i)
    )
    assert [r[2] for r in shared] == [r[2] for r in local] == [12.0, 21.0, 15.0]
    assert {r[0] for r in local} == {os.getpid()} and os.getpid() not in {r[0] for r in shared}
    assert {r[1] for r in [*local, *shared]} == {1} and sorted(done) == [0, 1, 2]


def test_a_worker_that_dies_is_replaced_once_and_then_named(tmp_path):
    shared, jobs = {"folder": str(tmp_path)}, [(0,), (1,), (2,)]
    names = ["ridge, fold 1", "ridge, fold 2", "ridge, fold 3"]
    assert engines.run_jobs(flows("processes"), engine_jobs.die_once, shared, jobs, names) == [0, 1, 2]
    assert (tmp_path / "died").exists()
    with pytest.raises(EngineFailed, match="died twice while it was at work on ridge, fold 2") as e:
        engines.run_jobs(flows("processes", 1), engine_jobs.always_die, shared, jobs, names)
    assert e.value.context["jobs"] == ["ridge, fold 2"] and "engine = local" in e.value.fix


def test_an_error_in_a_job_keeps_its_code_and_leaves_no_worker(tmp_path):
    with pytest.raises(ModelError, match="cannot be fitted") as e:
        engines.run_jobs(
            flows("processes"), engine_jobs.refuse, {"folder": str(tmp_path)}, [(7,)] * 3, list("abc")
        )
    assert e.value.context == {"column": 7}
    workers = [int(p.name) for p in tmp_path.iterdir()]
    patience.wait_until(lambda: workers and all(map(patience.is_gone, workers)))


def test_dask_is_named_where_it_is_missing_or_does_not_answer(monkeypatch):
    with pytest.raises(EngineFailed, match="No Dask scheduler answers at tcp"):
        engines.run_jobs(
            flows("dask", flows__dask_address="tcp://127.0.0.1:9"),
            engine_jobs.process_and_sum,
            {},
            [(1,)],
            ["a"],
        )
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(EngineFailed, match="not installed") as e:
        engines.run_jobs(flows("dask"), engine_jobs.process_and_sum, {}, [(1,)], ["a"])
    assert 'pip install "stockpredict[dask]"' in e.value.fix


def content(study: Experiment) -> dict:
    "Everything about an experiment that another engine must not change."
    models = study.candidates.items()
    candidates = {name: (c.artifact, c.params, c.ledger.to_json(), c.in_sample) for name, c in models}
    text = json.loads((study.workdir / "experiment.json").read_text())
    return {"candidates": candidates, "text": text, "audit": study.audit.forecasts}


CASES = {
    "processes": {
        "models.candidates": "reversal ridge lightgbm lstm",
        "models.trials": 2,
        "models.epochs": 1,
    },
    "dask": {"models.candidates": "reversal ridge", "models.trials": 2},
}


@pytest.mark.parametrize("engine", CASES)
def test_the_same_experiment_whichever_engine_trained(trained, tmp_path, engine, monkeypatch):
    "Searched, walked forward and refitted by two workers; the experiment then reads what is finished."
    settings = small_study.settings_at(trained, **CASES[engine])
    monkeypatch.setattr("stockpredict.train.lineage.git_commit", lambda: "0" * 40)  # the same during the test
    local = run_experiment(settings, tmp_path / "local")
    notes, plain = [], shared_training.CandidateStore.__init__

    def noted(store, place, s, lineage, spec, on_step, *more):
        plain(store, place, s, lineage, spec, lambda text: (notes.append(text), on_step(text)), *more)

    monkeypatch.setattr("stockpredict.train.experiment.CandidateStore.__init__", noted)
    shared = settings.with_(**{"flows.engine": engine, "flows.workers": 2})
    other = run_experiment(shared, tmp_path / "shared")
    assert content(other) == content(local)
    assert "ridge: fold 2 of 2" in notes and "ridge: tuned" in notes
    assert len(notes) == len(local.candidates) * 4, "each search, fold and final fit once, none again here"

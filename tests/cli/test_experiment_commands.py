"""Experiments from the shell: recorded before they change which model answers, and refused like over HTTP."""

import pytest
from stockpredict.cli.main import app
from stockpredict.core.errors import NoChampion, StockpredictError
from stockpredict.core.settings import load_settings
from stockpredict.models.artifact import ensure_keys
from stockpredict.predict.experiments import ModelExperiment, experiment_state, write_experiment
from typer.testing import CliRunner

COMPARED = ModelExperiment("exp-20261130T150000-5f3a9c01", "a" * 64, "b" * 64, (2, 1), "5f" * 32)


@pytest.fixture
def desk(tmp_path):
    "A home with one experiment that runs, and a shell for it."
    settings = load_settings(None, {"storage.home": str(tmp_path)}, environ={})
    ensure_keys(settings.storage.keys_dir)
    write_experiment(settings, COMPARED)

    def shell(*words):
        return CliRunner().invoke(app, ["experiments", *words, "--set", f"storage.home={tmp_path}"])

    return settings, shell


def recorded(settings):
    segments = sorted((settings.storage.home_dir / "audit").glob("console*.jsonl"))
    return "".join(path.read_text() for path in segments)


def test_an_experiment_is_stopped_once_and_the_audit_log_knows_why(desk):
    settings, shell = desk
    assert "the champion answers all callers" in shell("stop", COMPARED.id, "--why", "decided").output
    assert "has ended already" in shell("stop", COMPARED.id, "--why", "too late").output
    state = experiment_state(settings, COMPARED)
    assert (state["state"], state["reason"], state["by"]) == ("stopped", "decided", "shell")
    assert f"experiments stop {COMPARED.id}" in recorded(settings) and "too late" not in recorded(settings)


def test_a_start_is_recorded_although_it_is_refused(desk):
    settings, shell = desk
    done = shell("start", "2", "--why", "trees against ridge")
    assert isinstance(done.exception, NoChampion)
    assert "experiments start 2" in recorded(settings) and "trees against ridge" in recorded(settings)


def test_without_an_audit_log_nothing_is_changed(desk):
    settings, shell = desk
    (settings.storage.home_dir / "audit").write_text("no folder")
    assert isinstance(shell("stop", COMPARED.id).exception, StockpredictError)
    assert experiment_state(settings, COMPARED)["state"] == "running"

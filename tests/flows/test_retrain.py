"""The Prefect flow: the same story, no overlap, skipped on closed days, and nothing done twice."""

import ast
import importlib.util
import os
import sys

import patience
import pytest
import yaml

from stockpredict.core.errors import FlowLocked
from stockpredict.core.settings import load_settings
from stockpredict.ops import pipeline, work


@pytest.fixture(scope="module")
def flow(root):
    spec = importlib.util.spec_from_file_location("retrain", root / "flows" / "retrain.py")
    module = importlib.util.module_from_spec(spec)
    before = dict(os.environ)
    spec.loader.exec_module(module)
    os.environ.clear()
    os.environ.update(before)
    return module


def test_the_flow_tells_the_same_story_as_the_pipeline(root):
    tree = ast.parse((root / "flows" / "retrain.py").read_text())
    answer = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "story")
    calls = sorted(
        (n for n in ast.walk(answer) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)),
        key=lambda n: n.lineno,
    )
    names = [n.args[1].value if n.func.id == "page" else n.func.id for n in calls]
    story = [s if isinstance(s, str) else s.__name__ for s in pipeline.STORY]
    assert [n for n in names if n in story or n == "ingest"] == ["ingest", *story]


def test_nothing_is_cached_and_only_the_source_is_tried_again(flow):
    from prefect.cache_policies import NO_CACHE

    steps = [flow.features, flow.train, flow.self_test, flow.judge, flow.publish, flow.refresh, flow.page]
    assert all(s.cache_policy == NO_CACHE and s.retries == 0 for s in steps)
    assert flow.ingest.cache_policy == NO_CACHE and flow.ingest.retries == 2


def test_a_second_flow_is_refused(flow, tmp_path):
    mine = {
        "storage.home": str(tmp_path / "home"),
        "storage.reports": str(tmp_path / "reports"),
        "data.source": "simulated",
    }
    with (
        work.retrain_lock(load_settings(overrides=mine), "the nightly run"),
        pytest.raises(FlowLocked, match="nightly"),
    ):
        flow.retrain.fn("", mine)


def test_a_second_run_of_a_deployment_is_skipped_with_the_reason(flow, tmp_path, monkeypatch):
    mine = {"storage.home": str(tmp_path / "home"), "data.source": "simulated", "schedule.retrain": "daily"}
    monkeypatch.setattr(flow.pipeline, "due", lambda settings: "")
    with work.retrain_lock(load_settings(overrides=mine), "the nightly run"):
        report = flow.retrain.fn("", mine, scheduled=True)
    assert report.is_completed() and report.name == "Skipped"
    assert report.message.startswith("busy: the nightly run is running here already")


def test_the_form_explains_each_parameter_and_takes_a_date(flow):
    form = flow.retrain.parameters.properties
    assert list(form) == ["settings_path", "overrides", "as_of", "scheduled"]
    assert [name for name, field in form.items() if len(field.get("description", "")) < 40] == []
    assert {"type": "string", "format": "date"} in form["as_of"]["anyOf"]


def test_a_day_on_which_it_is_not_time_is_a_completed_run(flow, tmp_path):
    mine = {"storage.home": str(tmp_path / "home"), "schedule.retrain": "never"}
    report = flow.retrain.fn("", mine, scheduled=True)
    assert report.is_completed() and report.message.startswith("closed:") and not (tmp_path / "home").exists()


def test_the_deployment_file_fits_the_flow(flow, root):
    report = yaml.safe_load((root / "prefect.yaml").read_text())
    one = report["deployments"][0]
    path, name = one["entrypoint"].split(":")
    assert (root / path).exists() and getattr(flow, name).name == one["name"] == "retrain"
    assert "parameters" not in one, "a run by hand is not asked whether it is time"
    cron, zone = flow.close_schedule(load_settings(path=root / "settings.ini", environ={}))
    again = {"scheduled": True}
    assert [{"cron": cron, "timezone": zone, "parameters": again}] == one["schedules"]
    assert set(again) <= set(flow.retrain.parameters.properties)
    assert one["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


@pytest.mark.slow
def test_the_flow_runs_without_a_server_and_does_nothing_twice(finished_alone, root, tmp_path):
    """On a question that was answered already: Prefect starts, every step is read back, nothing is
    published again."""
    history = finished_alone["settings"].storage.registry_dir / "history.jsonl"
    before = history.read_text()
    env = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "COLUMNS": "200"}
    command = [sys.executable, root / "flows" / "retrain.py", *finished_alone["asked"]]
    done = patience.run(command, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (
        finished_alone["report"]["sentence"] in done.stdout
        and "stockpredict serve" in done.stdout
        and "index.html" in done.stdout
    )
    assert history.read_text() == before
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_wrong_setting_is_a_sentence(root, tmp_path):
    env = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    done = patience.run(
        [sys.executable, root / "flows" / "retrain.py", "--set", "data.sorce=x"],
        env=env,
    )
    assert done.returncode == 2 and "Did you mean source?" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""

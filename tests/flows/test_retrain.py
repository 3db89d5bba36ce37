"""The Prefect flow: the same story, no overlap, skipped on closed days, and nothing done twice."""

import ast
import os
import sys

import pytest
import warm

from stockpredict.cli.flow_program import load_flow
from stockpredict.core.errors import FlowLocked
from stockpredict.core.settings import load_settings
from stockpredict.ops import pipeline, work
from stockpredict.ops.desk_day import done_until


@pytest.fixture(scope="module")
def flow():
    "The file of the flow, as a module."
    before = dict(os.environ)
    load_flow("retrain")
    os.environ.clear()
    os.environ.update(before)
    return sys.modules["stockpredict_flow_retrain"]


def test_the_flow_tells_the_same_story_as_the_pipeline(root):
    tree = ast.parse((root / "flows" / "retrain.py").read_text())
    answer = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "story")
    calls = sorted(
        (n for n in ast.walk(answer) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)),
        key=lambda n: n.lineno,
    )
    steps = [s.__name__ for s in pipeline.STORY if callable(s)]
    assert [n.func.id for n in calls if n.func.id in ("ingest", *steps)] == ["ingest", *steps]
    assert pipeline.STORY[len(steps) :] == pipeline.PAGES, "a page delays no answer"
    assert "for name in pipeline.PAGES" in ast.unparse(answer)


def test_nothing_is_cached_and_only_the_source_is_tried_again(flow):
    from prefect.cache_policies import NO_CACHE

    steps = [flow.features, flow.train, flow.self_test, flow.judge, flow.publish, flow.refresh]
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
        flow.retrain.fn(overrides=mine)


def test_a_second_run_of_a_deployment_is_skipped_with_the_reason(flow, tmp_path):
    mine = {"storage.home": str(tmp_path / "home"), "data.source": "simulated"}
    with work.retrain_lock(load_settings(overrides=mine), "the nightly run"):
        report = flow.retrain.fn(overrides=mine, scheduled=True)
    assert report.is_completed() and report.name == "Skipped"
    assert report.message.startswith("busy: the nightly run is running here already")
    assert done_until(load_settings(overrides=mine), "retrain") == "", "a skipped session is not done"


def test_a_session_after_which_nothing_is_trained_is_a_completed_run(flow, tmp_path):
    mine = {
        "storage.home": str(tmp_path / "home"),
        "schedule.retrain": "never",
        "schedule.incremental": False,
    }
    report = flow.retrain.fn(overrides=mine, scheduled=True, mode="by calendar")
    assert (report.name, report.message) == ("Skipped", "Retraining is switched off in [schedule].")
    assert not (tmp_path / "home" / "lake").exists()


@pytest.mark.slow
def test_the_flow_runs_without_a_server_and_does_nothing_twice(finished_alone, root, tmp_path):
    """On a question that was answered already: Prefect starts, every step is read back, nothing is
    published again."""
    history = finished_alone["settings"].storage.registry_dir / "history.jsonl"
    before = history.read_text()
    env = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "COLUMNS": "200"}
    done = warm.python(root / "flows" / "retrain.py", *finished_alone["asked"], cwd=tmp_path, env=env)
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
    done = warm.python(root / "flows" / "retrain.py", "--set", "data.sorce=x", env=env)
    assert done.returncode == 2 and "Did you mean source?" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""

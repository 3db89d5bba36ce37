"""The server, the schedules and a run, all killed in one moment and started again.

The next run goes on where the killed one stopped and publishes once, and nothing stays "Running", although
MLflow is away all the while. Artifacts, verdict and table equal those of an undisturbed run elsewhere.
"""

import json
import os
import signal
from types import SimpleNamespace

import desk_form
import kill_points
import patience
import psutil
import pytest
from desk_form import ask
from live_redis import spare_port

from stockpredict.core.settings import load_settings
from stockpredict.ops import pipeline
from stockpredict.ops.desk_day import DESK_DAY
from stockpredict.ops.lifeline import marked
from stockpredict.ops.parts import parts
from stockpredict.ops.processes import _purpose, down, up
from stockpredict.train.champion import current_champion, read_events
from stockpredict.train.mlflow_mirror import waiting_cards

WHY = "Two starts of Prefect and a training, with --all-steps; test_killed and test_schedule kill less."
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get(kill_points.ALL) != "1", reason=WHY),
]
AWAY = {"storage.mlflow_uri": "http://127.0.0.1:9"}  # no server listens there
TINY = {"simulated.tickers": 8, "simulated.sessions": 480, "models.candidates": ["mean", "ridge"]}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    "Settings of a small market, and a function that starts Prefect and its schedules as `up` does."
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    changes = pipeline.SMALL | TINY | {"schedule.prefect_port": spare_port()}
    changes |= {f"storage.{k}": str(tmp_path / k) for k in ("home", "reports")}
    options = [
        word
        for name, value in (changes | AWAY).items()
        for word in ("--set", f"{name}={','.join(value) if isinstance(value, list) else value}")
    ]
    settings = load_settings(overrides=changes, environ={})
    wanted = [p for p in parts(settings, options) if p.name in ("prefect", "schedule")]
    api, home = f"http://127.0.0.1:{settings.schedule.prefect_port}/api", settings.storage.home_dir

    def start():
        alive = {name: psutil.Process(entry["pid"]) for name, entry in up(wanted, home).items()}

        def known():
            ids = {d["name"]: d["id"] for d in ask(api, "deployments/filter")}
            return ids if set(ids) == set(DESK_DAY) else None

        return alive, patience.wait_until(known, *alive.values(), every=0.5)

    try:
        yield SimpleNamespace(
            settings=settings, start=start, api=api, purpose=_purpose(home), changes=changes
        )
    finally:
        down(home)


def steps_of(settings):
    "Name of each step that is done to what it left."
    return {p.stem: p for p in settings.storage.work_dir.glob("*/steps/*.json")}


def content(settings):
    "What a run leaves that must not depend on kills."
    steps, table = steps_of(settings), pipeline.predictions(settings)
    kept = {name: json.loads(steps[name].read_text()) for name in ("train", "judge", "publish")}
    return {
        "artifacts": kept["train"]["artifacts"],
        "verdict": kept["judge"],
        "published": kept["publish"],
        "champion": current_champion(settings).artifact,
        "history": [e["event"] for e in read_events(settings)],
        "table": json.loads(json.dumps(table.to_dict("records"), default=str)),
    }


def kill_everything(desk, alive):
    "SIGKILL to every process of the desk, the parents first; how many there were."
    family = [p for one in alive.values() for p in (one, *one.children(recursive=True))]
    family += [p for p in marked(desk.purpose) if p not in family]
    for process in family:
        os.kill(process.pid, signal.SIGKILL)
    for process in family:
        patience.wait_until(lambda process=process: patience.is_gone(process.pid))
    return len(family)


def run_flow(desk, ids, name, **parameters):
    "Ask the server for a run; its id."
    return ask(desk.api, f"deployments/{ids[name]}/create_flow_run", parameters=parameters)["id"]


def test_all_killed_at_once_the_next_run_publishes_once_and_none_stays_running(desk):
    settings = desk.settings
    alive, ids = desk.start()
    first = run_flow(desk, ids, "retrain")
    patience.wait_until(lambda: "features" in steps_of(settings), *alive.values(), every=0.1)
    assert kill_everything(desk, alive) > len(alive), "the run was under way"
    assert "publish" not in steps_of(settings) and not settings.storage.registry_dir.exists()

    alive, ids = desk.start()
    second = run_flow(desk, ids, "retrain")
    desk_form.end_of(desk.api, second, alive["prefect"], alive["schedule"])
    both = ask(desk.api, "flow_runs/filter", flow_runs={"id": {"any_": [first, second]}})
    assert {run["id"]: run["state_type"] for run in both} == {first: "CRASHED", second: "COMPLETED"}
    running = {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
    assert not ask(desk.api, "flow_runs/filter", flow_runs=running)

    champion, events = current_champion(settings), read_events(settings)
    assert [e["event"] for e in events].count("promote") + [e["event"] for e in events].count("baseline") == 1
    assert champion.mlflow == "pending" and waiting_cards(settings), "MLflow was away"

    elsewhere = {f"storage.{k}": f"{settings.storage.home_dir}-calm/{k}" for k in ("home", "reports")}
    calm = load_settings(overrides=desk.changes | AWAY | elsewhere, environ={})
    pipeline.retrain(calm, pages=False)
    killed, undisturbed = content(settings), content(calm)
    assert {k for k in undisturbed if killed[k] != undisturbed[k]} == set()
    assert undisturbed["artifacts"] and len({row["ticker"] for row in undisturbed["table"]}) == 8

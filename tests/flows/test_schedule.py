"""A deployment that is served receives its scheduled runs, from a real Prefect server, and leaves nothing."""

import os
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import desk_form
import pandas as pd
import patience
import psutil
import pytest
from desk_form import ask
from live_redis import spare_port
from tab import Tab
from typer.testing import CliRunner

from stockpredict.cli.console import SettingsOptions
from stockpredict.cli.flow_commands import flows
from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import NotFound
from stockpredict.core.settings import load_settings
from stockpredict.lake.lake import Lake
from stockpredict.ops.desk_day import DESK_DAY
from stockpredict.ops.doctor import run_check
from stockpredict.ops.exchange_schedule import run_starts
from stockpredict.ops.flow_edge import session_of
from stockpredict.ops.flow_server import has_ended, run_sign
from stockpredict.ops.ingest_day import part_words, plan_backfill
from stockpredict.ops.lifeline import marked
from stockpredict.ops.parts import parts
from stockpredict.ops.processes import _purpose, down, up
from stockpredict.serve.desk_state import read_desk, schedule_sentence
from stockpredict.sources.simulate import simulate
from stockpredict.testing.fake_vendors import FakeVendors

pytestmark = pytest.mark.slow
LOOP_ERROR = re.compile(r"Traceback|ERROR|CRITICAL|Can't evaluate|Unexpected error|service failed", re.I)


def planned(api, log):
    "The runs that the scheduler has planned; fails when its loop has failed."
    assert not LOOP_ERROR.search(text := log.read_text()), text[-3000:]
    wanted = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    return [run for run in ask(api, "flow_runs/filter", flow_runs=wanted) if run["auto_scheduled"]]


def dead_sign():
    "The sign of a run whose process has ended."
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    born = psutil.Process(child.pid).create_time()
    child.communicate()
    sign = f"process {socket.gethostname()} {child.pid} {born:.2f}"
    assert has_ended([sign])
    return sign


@pytest.fixture
def alone(tmp_path, monkeypatch):
    "A scratch working folder and Prefect home, without any server of the machine's."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    return tmp_path


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "A Prefect server and the process that keeps the schedules, as `up` starts them."
    place = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv("PREFECT_HOME", str(place / "prefect"))
        changes = {
            "storage.home": place / "home",
            "schedule.prefect_port": spare_port(),
            "schedule.retrain": "never",  # a planned run that is started here ends at once
            "schedule.incremental": "no",
        }
        options = [word for k, v in changes.items() for word in ("--set", f"{k}={v}")]
        settings = load_settings(overrides={k: str(v) for k, v in changes.items()})
        wanted = [part for part in parts(settings, options) if part.name in ("prefect", "schedule")]
        log = settings.storage.home_dir / "logs" / "prefect.log"
        try:
            ledger = up(wanted, settings.storage.home_dir)
            alive = [psutil.Process(entry["pid"]) for entry in ledger.values()]
            api = next(part for part in wanted if part.name == "schedule").env["PREFECT_API_URL"]
            deployed = lambda: len(ask(api, "deployments/filter")) == len(DESK_DAY)  # noqa: E731
            patience.wait_until(deployed, *alive, every=0.5)
            yield SimpleNamespace(settings=settings, api=api, log=log, alive=alive)
        finally:
            down(settings.storage.home_dir)
    assert not LOOP_ERROR.search(log.read_text()), log.read_text()[-3000:]
    patience.wait_until(lambda: not marked(_purpose(settings.storage.home_dir)))  # nothing outlives `down`


def plan_of(desk):
    "The planned instants of each deployment that has a rhythm, once all of them have some."

    def all_planned():
        ids = {d["id"]: d["name"] for d in ask(desk.api, "deployments/filter")}
        times = {}
        for run in planned(desk.api, desk.log):
            times.setdefault(ids[run["deployment_id"]], []).append(pd.Timestamp(run["expected_start_time"]))
        return times if set(times) == {flow.name for flow in DESK_DAY.values() if flow.every} else None

    return patience.wait_until(all_planned, *desk.alive, every=0.5)


def assert_planned_by_the_calendar(desk):
    "Each planned run begins at an instant of the exchange calendar, and none is left out."
    calendar = get_calendar(desk.settings.data.calendar)
    for name, times in plan_of(desk).items():
        flow, first, last = DESK_DAY[name], min(times), max(times)
        days = (first - pd.Timedelta("3D")).date(), last.date()
        truth = run_starts(calendar, flow.minutes(desk.settings), *days, flow.every)
        assert sorted(times) == [t for t in truth if first <= t <= last], name
        assert len(times) >= 3, name


def test_what_up_deploys_receives_scheduled_runs(desk):
    assert_planned_by_the_calendar(desk)
    finding = run_check("schedule", desk.settings)
    assert finding.state == "ok" and "the next run is " in finding.observed
    deployed = {d["name"]: d for d in ask(desk.api, "deployments/filter")}
    assert set(deployed) == set(DESK_DAY)
    for name, deployment in deployed.items():
        assert deployment["tags"] == ["stockpredict", name]
        assert deployment["parameters"].get("scheduled") is None
        assert deployment["description"] == DESK_DAY[name].summary
        form = deployment["parameter_openapi_schema"]["properties"]
        assert all(field.get("description") for field in form.values())


def test_the_front_page_reads_the_plan_of_the_real_server(desk):
    plan = plan_of(desk)
    seen = read_desk(desk.settings)
    assert seen.scheduler and desk.settings.schedule.prefect_port in seen.open_ports
    assert dict(seen.planned) == {name: f"{min(times):%Y-%m-%d %H:%M} UTC" for name, times in plan.items()}
    name, when = seen.planned[0]
    rhythm = desk.settings.with_(**{"schedule.retrain": "weekly"})
    assert schedule_sentence(seen, rhythm) == (f"The next run is {name}, {when}.", False)


def test_a_planned_run_is_skipped_with_its_reason_and_closes_killed_ones(desk):
    deployment = next(d for d in ask(desk.api, "deployments/filter") if d["name"] == "retrain")
    killed, living, foreign = (
        ask(desk.api, "flow_runs/", flow_id=deployment["flow_id"], state={"type": "RUNNING"}, tags=tags)["id"]
        for tags in ([dead_sign()], [run_sign()], ["process elsewhere 1 0.00"])
    )
    [schedule] = deployment["schedules"]
    assert schedule["parameters"] == {"scheduled": True, "mode": "by calendar"}
    start = f"deployments/{deployment['id']}/create_flow_run"
    started = ask(desk.api, start, parameters=schedule["parameters"])["id"]
    [ended] = patience.wait_until(
        lambda: [
            run
            for run in ask(desk.api, "flow_runs/filter", flow_runs={"id": {"any_": [started]}})
            if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        ],
        *desk.alive,
        every=0.5,
    )
    assert (ended["state_name"], ended["state_type"]) == ("Skipped", "COMPLETED")
    assert ended["state"]["message"] == "Retraining is switched off in [schedule]."
    session = session_of(desk.settings, DESK_DAY["retrain"])
    assert ended["name"] == f"retrain {session} sample"
    assert {"stockpredict", "retrain", "sample"} < set(ended["tags"])
    assert sum(tag.startswith("process ") for tag in ended["tags"]) == 1, "it signed itself"
    every = {"flow_runs": {"id": {"any_": [killed, living, foreign]}}}
    states = {run["id"]: run["state"] for run in ask(desk.api, "flow_runs/filter", **every)}
    assert [states[i]["type"] for i in (killed, living, foreign)] == ["CRASHED", "RUNNING", "RUNNING"]
    assert states[killed]["message"].startswith("Its process was killed")


def test_a_run_is_started_by_name_on_the_server_of_the_environment(desk, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", desk.api)
    elsewhere = ["--set", "schedule.prefect_port=1029"]  # no server listens there

    def start(name):
        return CliRunner().invoke(flows, ["start", name, *elsewhere], obj=SettingsOptions())

    refused = start("mantain").exception
    assert isinstance(refused, NotFound) and "Did you mean maintain?" in str(refused)
    assert start("maintain").stdout.startswith("Started: ")
    deployment = next(d["id"] for d in ask(desk.api, "deployments/filter") if d["name"] == "maintain")
    by_hand = {"deployment_id": {"any_": [deployment]}, "state": {"type": {"not_any_": ["SCHEDULED"]}}}
    [run] = patience.wait_until(lambda: ask(desk.api, "flow_runs/filter", flow_runs=by_hand), *desk.alive)
    assert not run["auto_scheduled"] and not run["parameters"].get("do_it")
    assert desk_form.end_of(desk.api, run["id"], *desk.alive)["name"].startswith("maintain ")


def test_an_operator_sees_the_next_run_and_starts_one_from_the_form(desk, tmp_path):
    base, plan = desk.api.removesuffix("/api"), plan_of(desk)
    deployment = next(d["id"] for d in ask(desk.api, "deployments/filter") if d["name"] == "retrain")
    tab = Tab(tmp_path / "chromium")
    try:
        tab.resize(1280, 1400)
        tab.send("Emulation.setTimezoneOverride", timezoneId="UTC")
        tab.open(f"{base}/deployments")
        tab.until_text(*DESK_DAY)
        tab.open(f"{base}/deployments/deployment/{deployment}")
        tab.until_text("Next Run", f"Scheduled for {min(plan['retrain']):%Y/%m/%d %I:%M:%S %p}")
        overrides = desk_form.open_form(tab, base, deployment)
        assert overrides["storage.home"] == str(desk.settings.storage.home_dir)
        desk_form.choose(tab, "by calendar")
        edited = overrides | {"schedule.minutes_after_close": "91"}
        run = desk_form.submit(tab, desk.api, deployment, "started by hand", edited)
        ended = desk_form.end_of(desk.api, run, *desk.alive)
        assert (ended["state_name"], ended["parameters"]["mode"]) == ("Skipped", "by calendar")
        assert ended["state"]["message"] == "Retraining is switched off in [schedule]."
        tab.open(f"{base}/runs/flow-run/{run}")
        tab.until_text("Skipped", ended["name"])
    finally:
        tab.close()


def test_a_backfill_stands_in_the_graph_part_by_part_and_goes_on_where_it_stopped(desk, root, tmp_path):
    market = simulate(kind="null", tickers=3, sessions=300, seed=5).bars
    names, years = sorted(market.ticker.unique()), sorted({str(t.year) for t in market.event_time})
    with FakeVendors(market) as shop:
        changes = {
            "storage.home": tmp_path / "home",
            "data.source": "vendors",
            "data.universe": ",".join(names),
            "sources.chain": "tiingo",
            "sources.base_urls": f"all={shop.url}",
            "sources.batch": 2,
        }
        settings = load_settings(overrides={k: str(v) for k, v in changes.items()})
        first, last = (f"{market.event_time.agg(end):%Y-%m-%d}" for end in ("min", "max"))
        plan = plan_backfill(settings, first, last)
        plan.finish(plan.parts[0])
        options = [word for k, v in changes.items() for word in ("--set", f"{k}={v}")]
        env = {**os.environ, "PREFECT_API_URL": desk.api, "TIINGO_API_KEY": "demo"}
        command = [sys.executable, root / "flows" / "backfill.py", "--first", first, "--last", last, *options]
        done = patience.run(command, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [run] = [r for r in ask(desk.api, "flow_runs/filter") if r["name"].startswith("backfill ")]
    assert run["state_type"] == "COMPLETED" and {"stockpredict", "backfill", "vendors"} < set(run["tags"])
    tasks = ask(desk.api, "task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    parts_done = [t["name"] for t in sorted(tasks, key=lambda t: t["start_time"])]
    wanted = [f"{y} {part_words(p)}" for y in years[::-1] for p in (names[:2], names[2:])]
    assert parts_done == wanted[1:], "newest year first, without the part that was done"
    assert plan.left == []
    [artifact] = ask(desk.api, "artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    assert "new bars" in artifact["data"] and artifact["key"] == "backfill"
    with Lake(settings.storage, read_only=True) as lake:
        stored = lake.bars(adjusted=False)
    fetched = market[~((market.event_time.dt.year == int(years[-1])) & market.ticker.isin(names[:2]))]
    assert len(stored) == len(fetched)


PIECES = """
from prefect import flow
from stockpredict.core.progress import at_once
from stockpredict.ops.flow_edge import as_step

def train(each=at_once):
    "Two folds, of which the second fails."
    each("ridge: fold 1 of 2", lambda: 1)
    return each("ridge: fold 2 of 2", lambda: 1 / 0)

@flow(flow_run_name="pieces of a training")
def story():
    as_step(train, spin=False, pieces=True)()

story(return_state=True)
"""


def test_each_fold_of_a_training_is_a_task_of_its_own_below_the_step(desk, tmp_path):
    env = {**os.environ, "PREFECT_API_URL": desk.api}
    (tmp_path / "pieces.py").write_text(PIECES)
    patience.run([sys.executable, "pieces.py"], cwd=tmp_path, env=env)
    [run] = [r for r in ask(desk.api, "flow_runs/filter") if r["name"] == "pieces of a training"]

    def arrived():
        tasks = ask(desk.api, "task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
        states = {t["name"]: t["state_type"] for t in tasks}
        return states if len(states) == 3 and "RUNNING" not in states.values() else None

    states = patience.wait_until(arrived, *desk.alive, every=0.5)
    assert states == {"train": "FAILED", "ridge: fold 1 of 2": "COMPLETED", "ridge: fold 2 of 2": "FAILED"}
    assert run["state_name"] == "Failed"


def test_the_deployment_file_deploys_every_flow_to_a_server(desk, root):
    "Last of this server: the file replaces what was served."
    ask(desk.api, "work_pools/", name="local", type="process")
    env = {**os.environ, "PREFECT_API_URL": desk.api, "PREFECT_HOME": str(desk.log.parent / "prefect")}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = patience.run(command, cwd=root, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    deployed = {d["name"]: d for d in ask(desk.api, "deployments/filter")}
    assert set(deployed) == set(DESK_DAY)
    assert {d["work_pool_name"] for d in deployed.values()} == {"local"}
    assert {d["concurrency_options"]["collision_strategy"] for d in deployed.values()} == {"CANCEL_NEW"}
    assert_planned_by_the_calendar(desk)


def servers_of(child):
    "The Prefect servers that a process has started."
    return [p for p, owner in marked("flow").items() if owner and owner.pid == child.pid]


def api_of(server):
    "The address of a server's API, once it answers."
    words = server.cmdline()
    api = f"http://127.0.0.1:{words[words.index('--port') + 1]}/api"
    return api if patience.answers(f"{api}/health") else ""


def flow(root, alone, *words):
    "The flow as a program of its own."
    with (alone / "flow.log").open("wb") as log:
        command = [sys.executable, root / "flows" / "retrain.py", *words]
        home = ["--set", f"storage.home={alone / 'home'}", "--set", f"storage.reports={alone / 'reports'}"]
        words = [*map(str, command), *home]
        return subprocess.Popen(words, stdout=log, stderr=log, preexec_fn=patience.die_with_parent)


def test_staying_without_a_server_also_plans_runs_and_a_kill_leaves_no_server(root, alone):
    child = flow(root, alone, "--serve")
    try:
        [server] = patience.wait_until(lambda: servers_of(child), child)
        api = patience.wait_until(lambda: api_of(server), child, server, every=0.3)
        log = alone / "prefect" / "flow-server.log"
        assert len(patience.wait_until(lambda: planned(api, log), child, server, every=0.5)) >= 3
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    patience.wait_until(lambda: patience.is_gone(server.pid))
    assert not LOOP_ERROR.search(log.read_text()), log.read_text()[-3000:]


def test_a_killed_flow_leaves_no_server(root, alone):
    "The kernels of its pages: tests/ops/test_page_kernel.py."
    small = ["data.source=simulated", "simulated.tickers=8", "simulated.sessions=500", "models.trials=0"]
    child = flow(root, alone, *(word for change in small for word in ("--set", change)))
    try:
        [server] = patience.wait_until(lambda: servers_of(child), child)
        family = [server, *psutil.Process(child.pid).children(recursive=True)]
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    for process in family:
        patience.wait_until(lambda process=process: patience.is_gone(process.pid))

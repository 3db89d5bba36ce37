"""A deployment that is served receives its scheduled runs, from a real Prefect server, and leaves nothing."""

import json
import re
import signal
import socket
import subprocess
import sys
from urllib.request import Request, urlopen

import patience
import psutil
import pytest
from live_redis import spare_port

from stockpredict.core.settings import load_settings
from stockpredict.ops.doctor import run_check
from stockpredict.ops.flow_server import close_schedule, has_ended, run_sign
from stockpredict.ops.lifeline import marked
from stockpredict.ops.parts import parts
from stockpredict.ops.processes import _purpose, down, up

pytestmark = pytest.mark.slow
LOOP_ERROR = re.compile(r"Traceback|ERROR|CRITICAL|Can't evaluate|Unexpected error|service failed", re.I)


def ask(api, path, **body):
    "What the API answers to a question with a body."
    request = Request(f"{api}/{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=60) as response:
        return json.load(response)


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


def test_what_up_deploys_receives_scheduled_runs(alone):
    changes = {
        "storage.home": alone / "home",
        "schedule.prefect_port": spare_port(),
        "schedule.retrain": "never",  # a run that is started here ends at once: it is not time
    }
    options = [word for k, v in changes.items() for word in ("--set", f"{k}={v}")]
    settings = load_settings(overrides={k: str(v) for k, v in changes.items()})
    wanted = [part for part in parts(settings, options) if part.name in ("prefect", "schedule")]
    api = wanted[1].env["PREFECT_API_URL"]
    try:
        ledger = up(wanted, settings.storage.home_dir)
        log = settings.storage.home_dir / "logs" / "prefect.log"
        alive = [psutil.Process(entry["pid"]) for entry in ledger.values()]
        runs = patience.wait_until(lambda: planned(api, log), *alive, every=0.5)
        finding = run_check("schedule", settings)
        assert finding.state == "ok" and "the next run begins 20" in finding.observed
        cron, zone = close_schedule(settings)
        [deployment] = ask(api, "deployments/filter")
        [schedule] = deployment["schedules"]
        assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == (cron, zone)
        minute = int(cron.split()[0])
        times = {run["expected_start_time"] for run in runs}
        assert len(times) == len(runs) >= 3 and all(f":{minute:02d}:00" in t for t in times)
        killed, living, foreign = (
            ask(api, "flow_runs/", flow_id=deployment["flow_id"], state={"type": "RUNNING"}, tags=tags)["id"]
            for tags in ([dead_sign()], [run_sign()], ["process elsewhere 1 0.00"])
        )
        assert (deployment["tags"], deployment["parameters"].get("scheduled")) == (
            ["stockpredict", "retrain"],
            None,
        )
        by_schedule = {"parameters": schedule["parameters"]}
        assert by_schedule == {"parameters": {"scheduled": True}}
        started = ask(api, f"deployments/{deployment['id']}/create_flow_run", **by_schedule)["id"]
        wait = {"flow_runs": {"id": {"any_": [started]}}}
        ended = patience.wait_until(
            lambda: [
                run
                for run in ask(api, "flow_runs/filter", **wait)
                if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
            ],
            *alive,
            every=0.5,
        )
        assert (ended[0]["state_name"], ended[0]["state_type"]) == ("Skipped", "COMPLETED")
        assert re.fullmatch(r"retrain \d{4}-\d\d-\d\d sample", ended[0]["name"]), ended[0]["name"]
        assert sum(tag.startswith("process ") for tag in ended[0]["tags"]) == 1, "it signed itself"
        every = {"flow_runs": {"id": {"any_": [killed, living, foreign]}}}
        states = {run["id"]: run["state"] for run in ask(api, "flow_runs/filter", **every)}
        assert [states[i]["type"] for i in (killed, living, foreign)] == ["CRASHED", "RUNNING", "RUNNING"]
        assert states[killed]["message"].startswith("Its process was killed")
    finally:
        down(settings.storage.home_dir)
    assert not LOOP_ERROR.search(log.read_text()), log.read_text()[-3000:]
    assert not marked(_purpose(settings.storage.home_dir)), "something outlived `down`"


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


def test_a_killed_flow_leaves_neither_server_nor_kernel(root, alone):
    small = ["data.source=simulated", "simulated.tickers=8", "simulated.sessions=500", "models.trials=0"]
    child = flow(root, alone, *(word for change in small for word in ("--set", change)))
    try:
        [server] = patience.wait_until(lambda: servers_of(child), child)
        me = psutil.Process(child.pid)
        kernels = patience.wait_until(
            lambda: [p for p in me.children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())],
            child,
        )
        family = [server, *kernels, *me.children(recursive=True)]
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    for process in family:
        patience.wait_until(lambda process=process: patience.is_gone(process.pid))

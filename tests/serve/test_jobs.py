"""Jobs: started once, watched, cancelled, never left running, and seen by those who may."""

import asyncio
import os
import signal
import subprocess
import sys

import patience
import psutil
import pytest
from stockpredict.access.permissions import ROLES, Caller
from stockpredict.core.errors import NotFound
from stockpredict.core.files import file_lock, read_json, write_json
from stockpredict.core.settings import load_settings
from stockpredict.ops.flow_edge import DayResult, result_markdown
from stockpredict.serve.job_runner import read_error, read_outcome
from stockpredict.serve.jobs import Job, JobRunning, JobStore, job_moment, this_process
from stockpredict.serve.training import TRAIN_STEPS, printed_outcome, run_ending

SLEEP = ["timeit", "-n1", "-r1", "import time; time.sleep(600)"]


def ended(store, job_id):
    patience.wait_until(lambda: not store.read(job_id).active)
    return store.read(job_id)


def caller(role, name="key:1"):
    return Caller(name, "key", ROLES[role])


@pytest.fixture
def store(tmp_path):
    return JobStore(tmp_path / "jobs")


def test_a_job_of_a_killed_runner_is_interrupted_and_its_command_ends(store):
    job = store.submit("train", SLEEP, "local")
    patience.wait_until(lambda: store.read(job.id).owner != this_process())
    patience.wait_until(lambda: store.path(job.id, ".err").exists())
    runner = psutil.Process(store.read(job.id).owner[1])
    patience.wait_until(lambda: runner.children())
    [command] = runner.children()
    os.kill(runner.pid, signal.SIGKILL)
    assert ended(store, job.id).state == "interrupted"
    patience.wait_until(lambda: not command.is_running() or command.status() == psutil.STATUS_ZOMBIE)
    again = store.submit("train", lambda handle: {"version": 2}, "local")  # the place is free again
    assert ended(store, again.id).result == {"version": 2}


def test_a_runner_told_to_end_writes_so_and_cancel_ends_clean(store):
    job = store.submit("train", SLEEP, "local")
    patience.wait_until(lambda: store.path(job.id, ".err").exists())
    with pytest.raises(JobRunning) as refused:
        store.submit("train", SLEEP, "key:2")
    assert refused.value.context["job"] == job.id and refused.value.status == 409
    os.kill(store.read(job.id).owner[1], signal.SIGTERM)
    assert ended(store, job.id).state == "interrupted"
    assert ended(store, store.cancel(job.id).id).state == "interrupted"  # an ended job stays as it is


def test_a_command_is_interrupted_even_where_a_shell_ignores_interrupts(store):
    "A shell starts background work with interrupts ignored, and children inherit that."
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ready = "import sys, time; print('ready', file=sys.stderr, flush=True); time.sleep(600)"
        job = store.submit("train", ["timeit", "-n1", "-r1", ready], "local")
    finally:
        signal.signal(signal.SIGINT, before)
    err = store.path(job.id, ".err")
    patience.wait_until(lambda: err.exists() and "ready" in err.read_text())
    store.cancel(job.id)
    assert ended(store, job.id).state == "cancelled"
    assert "KeyboardInterrupt" in err.read_text()


def test_records_survive_and_a_torn_one_is_not_shown(store):
    job = store.submit("batch", lambda handle: {"rows": 7}, "key:1")
    ended(store, job.id)
    (store.folder / f"{job.id[:-8]}00000000.json").write_text('{"id": "half')
    with pytest.raises(NotFound):
        JobStore(store.folder).read(f"{job.id[:-8]}00000000")
    assert [j.id for j in JobStore(store.folder).jobs()] == [job.id]


def test_a_record_of_a_later_version_is_read_and_one_without_its_fields_is_not_shown(store):
    job = store.submit("batch", lambda handle: {}, "key:1")
    path = store.path(ended(store, job.id).id)
    write_json(path, read_json(path) | {"priority": 3})
    write_json(store.path(f"{job.id[:-8]}00000000"), {"id": "half"})
    assert [j.id for j in store.jobs()] == [job.id] and store.read(job.id).state == "done"


def test_the_first_job_after_a_crash_starts_though_nobody_has_looked_since(store):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    born = psutil.Process(gone.pid).create_time()
    gone.wait()
    lost = Job("train-20261130T150000-00000001", "train", "local", job_moment())
    lost.owner = [this_process()[0], gone.pid, born]
    store.write(lost)
    job = store.submit("train", lambda handle: {"version": 2}, "local")
    assert ended(store, job.id).state == "done" and store.read(lost.id).state == "interrupted"


@pytest.mark.parametrize("name", ["../secret", "train-20261130T141500-5f3a9c0", "x" * 300, "", "train-\0"])
def test_what_is_no_id_is_not_found(store, name):
    with pytest.raises(NotFound):
        store.read(name)


def test_a_job_whose_run_was_cancelled_elsewhere_is_cancelled(store):
    _, _, printed = run_ending({"type": "CANCELLED", "name": "Cancelled", "message": "by the page"}, "")
    ends = f"import os, sys; print({printed!r}, file=sys.stderr, flush=True); os._exit(130)"
    job = ended(store, store.submit("train", ["timeit", "-n1", "-r1", ends], "local").id)
    assert (job.state, job.error["code"]) == ("cancelled", "job-cancelled")
    assert job.error["problem"] == "The run was cancelled: by the page" and job.error["fix"]


def test_a_run_on_a_server_ends_with_the_outcome_that_a_process_prints(tmp_path):
    settings = load_settings(None, {"storage.reports": str(tmp_path)}, environ={})
    numbers = {"decision": "hold", "published": "version 1, composed"}
    page, late = str(tmp_path / "2022-12-28" / "run" / "page.html"), ["3 tickers are late"]
    for result in (
        DayResult("retrain", "2022-12-28", "No evidence of skill.", numbers, page, late),
        DayResult("retrain", "2022-12-28", "No evidence of skill."),
    ):
        attached = printed_outcome(result_markdown(result, settings))
        assert read_outcome(attached) == read_outcome("\n".join(result.lines()))


def test_an_error_of_a_flow_keeps_its_code():
    error = read_error("  ingest  1.0 s\nTraceback\n\nThe lake is empty.\nIngest.\n[empty-universe]\n", 2)
    assert (error.code, error.problem, error.fix) == ("empty-universe", "The lake is empty.", "Ingest.")
    full = read_error("\nThe audit log cannot be written.\nFree some space.\n[audit-full]\n", 2)
    assert (full.code, full.fix) == ("audit-full", "Free some space.")
    assert read_error("Segmentation fault\n", -11).code == "run-failed"


def request(served, settings, *asked, who=None, headers=None):
    "Send (method, path, body) one after the other as one caller."

    async def go():
        async with served(settings) as client:
            if who is not None:
                client.service.door.caller_of = lambda scope: who
            answers = []
            for method, path, body in asked:
                options = {} if body is None else {"json": body}
                answers.append(await client.request(method, path, headers=headers, **options))
            return answers

    return asyncio.run(go())


def stored(settings, kind, by, state="done", n=0):
    job = Job(f"{kind}-20261130T15000{n}-0000000{n}", kind, by, job_moment(), state)
    job.owner = this_process()
    store = JobStore(settings.storage.home_dir / "jobs")
    store.folder.mkdir(parents=True, exist_ok=True)
    store.write(job)
    return job.id


def test_a_caller_sees_and_cancels_only_what_it_may(served, settings):
    own, other = stored(settings, "batch", "key:1", n=1), stored(settings, "batch", "key:2", "running", n=2)
    training = stored(settings, "train", "key:2", "running", n=3)
    wanted = {
        "viewer": (1, 404, 404, 404),
        "analyst": (1, 404, 404, 404),
        "trainer": (3, 200, 202, 202),
        "operator": (3, 200, 202, 403),
        "admin": (3, 200, 202, 202),
    }
    asked = [("GET", "/v1/jobs", None), ("GET", f"/v1/jobs/{own}", None), ("GET", f"/v1/jobs/{other}", None)]
    asked += [("DELETE", f"/v1/jobs/{other}", None), ("DELETE", f"/v1/jobs/{training}", None)]
    for role, (count, seen, cancelled, ended_training) in wanted.items():
        listed, mine, theirs, batch, train = request(served, settings, *asked, who=caller(role))
        assert listed.json()["metadata"]["count"] == count and mine.status_code == 200, role
        statuses = theirs.status_code, batch.status_code, train.status_code
        assert statuses == (seen, cancelled, ended_training), role


def test_pages_of_jobs(served, settings):
    names = [stored(settings, "batch", "local", n=n) for n in range(5)]
    [first] = request(served, settings, ("GET", "/v1/jobs?limit=2", None))
    ids = [job["id"] for job in first.json()["data"]]
    cursor = first.json()["metadata"]["next_cursor"]
    second, kind, wrong = request(
        served,
        settings,
        ("GET", f"/v1/jobs?limit=9&cursor={cursor}", None),
        ("GET", "/v1/jobs?kind=train", None),
        ("GET", "/v1/jobs?cursor=nothing", None),
    )
    assert sorted(ids + [job["id"] for job in second.json()["data"]]) == names
    assert kind.json()["data"] == [] and wrong.status_code == 409


def test_training_is_refused_before_it_starts(served, settings):
    home = settings.storage.home_dir
    write_json(home / "retrain.json", {"who": "the retrain flow", "pid": 4711, "since": "today"})
    bad = [{"modus": "full"}, {"mode": "all"}, {"as_of": "tomorrow"}, ["full"]]
    for answer in request(served, settings, *[("POST", "/v1/train", body) for body in bad]):
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "request-invalid")
    with file_lock(home / "retrain.lock"):
        [answer] = request(served, settings, ("POST", "/v1/train", {}))
    assert answer.status_code == 409 and "4711" in answer.json()["error"]["message"]
    [forbidden] = request(served, settings, ("POST", "/v1/train", {}), who=caller("operator"))
    assert forbidden.status_code == 403
    assert JobStore(home / "jobs").jobs() == []


def test_the_steps_of_a_job_are_those_of_the_flow():
    from stockpredict.ops.pipeline import PAGES
    from pathlib import Path

    flow = (Path(__file__).parents[2] / "flows" / "retrain.py").read_text()
    assert TRAIN_STEPS[-len(PAGES) :] == list(PAGES)
    positions = [
        flow.index(f"    {name}")
        for name in ("work = ingest(", "features(work)", "train(work", "self_test(work")
    ]
    positions += [flow.index(f"    {name}(work)") for name in ("judge", "publish", "refresh")]
    assert positions == sorted(positions) and len(TRAIN_STEPS) == len(positions) + len(PAGES)

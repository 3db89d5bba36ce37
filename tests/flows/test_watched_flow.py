"""A run of a flow is one trace, flow to lake; its ids are in every log, secrets are nowhere."""

import json
import os
from pathlib import Path

import pytest
import warm
from otlp import otlp_receiver

KEY = "planted-vendor-key-71c2"
IN_SETTINGS = "planted-catalog-password"


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    "What a run that succeeds and one that fails have left: processes, receiver, folder."
    folder = tmp_path_factory.mktemp("watched")
    ours = ("STOCKPREDICT_", "PREFECT_", "TRACEPARENT")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    env |= {"PREFECT_HOME": str(folder / "prefect"), "TIINGO_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), env.get("PYTHONPATH")]))
    with otlp_receiver() as receiver:
        settings = {
            "storage.home": folder / "home",
            "storage.reports": folder / "reports",
            "data.source": "simulated",
            "logs.level": "info",
            "logs.style": "json",
            "traces.endpoint": receiver.url,
            "serving.redis_url": f"redis://:{IN_SETTINGS}@127.0.0.1:1/0",
        }
        words = [w for k, v in settings.items() for w in ("--set", f"{k}={v}")]
        program = Path(__file__).with_name("watched_flow.py")
        done = warm.python(program, *words, cwd=folder, env=env)
        failed = warm.python(program, *words, "--fail", cwd=folder, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert failed.returncode != 0
        yield done, failed, receiver, folder


def test_flow_step_page_and_lake_are_one_trace(watched):
    _, _, receiver, _ = watched
    first, second = receiver.named("flow monitor")
    assert first.trace != second.trace and not first.failed and second.failed
    own = [span for span in receiver.spans if span.trace == first.trace]
    names = {span.name for span in own}
    assert {"flow monitor", "step fill_lake", "notebook r99_watched", "lake commit", "lake read"} <= names
    [page] = [span for span in own if span.name == "notebook r99_watched"]
    assert receiver.chain(page) == ["notebook r99_watched", "step run", "flow monitor"]
    in_kernel = [span for span in own if span.service == "stockpredict kernel"]
    assert in_kernel and receiver.chain(in_kernel[0])[1:] == receiver.chain(page)
    commit = next(span for span in own if span.name == "lake commit")
    assert receiver.chain(commit)[1:] == ["step fill_lake", "flow monitor"]


def events(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"timestamp"')]


def test_flow_kernel_and_lake_log_the_same_run_and_the_lake_keeps_it(watched):
    from stockpredict.core.settings import Settings
    from stockpredict.lake.lake import Lake

    done, _, receiver, folder = watched
    lines = {event["logger"]: event for event in events(done.stderr)}
    trace = receiver.named("flow monitor")[0].trace
    runs = {lines[name]["flow_run"] for name in ("stockpredict", "stockpredict.page", "stockpredict.lake")}
    assert len(runs) == 1 and {line["trace_id"] for line in lines.values() if "trace_id" in line} == {trace}
    assert lines["stockpredict.page"]["page"] == "r99_watched" and lines["stockpredict.lake"]["step"]
    assert lines["stockpredict.page"]["event"] == "logged ***"
    with Lake(Settings().with_(**{"storage.home": str(folder / "home")}).storage, read_only=True) as lake:
        ids = [json.loads(text) for text in lake.snapshots().ids if text]
    assert {entry["flow_run"] for entry in ids} >= runs and {entry["flow"] for entry in ids} == {"monitor"}


def test_no_planted_secret_is_in_any_page_notebook_log_or_database(watched):
    done, failed, receiver, folder = watched
    for text in (done.stdout, done.stderr, failed.stdout, failed.stderr):
        assert KEY not in text and IN_SETTINGS not in text
    files = [path for path in folder.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".html", ".ipynb", ".json", ".db"} <= kinds or {".html", ".ipynb", ".json", ".sqlite"} <= kinds
    leaks = [(p.name, s) for p in files for s in (KEY, IN_SETTINGS) if s.encode() in p.read_bytes()]
    assert leaks == [] and KEY not in repr(receiver.spans)
    pages = [path.read_text() for path in files if path.name == "page.html"]
    assert len(pages) == 2 and all("printed ***" in page and "displayed ***" in page for page in pages)

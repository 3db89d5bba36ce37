"""What every test may ask for."""

import contextlib
import fcntl
import gc
import json
import os
import secrets
import time
from pathlib import Path

import kill_points
import numba  # noqa: F401 - so that every test computes with the loops
import pytest
import warm

ROOT = Path(__file__).resolve().parents[1]

pytest_plugins = ["served_desk"]  # a desk with a table and a champion, for serve, predict and client

for name, value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "MPLBACKEND": "agg",
}.items():
    os.environ.setdefault(name, value)

gc.set_threshold(20_000)  # new objects between two collections; Python's own number is 700


LONGEST = (
    "test_stream_faults",
    "test_ingest",
    "test_templates",
    "test_features",
    "test_train",
    "test_store",
    "test_lake_faults",
    "test_registry",
    "test_gate",
    "test_cli",
    "test_killed",
    "test_markets",
    "test_pages",
    "test_retrain",
    "test_models",
    "test_runs",
    "test_server",
)


STARTED = pytest.StashKey[float]()


def pytest_addoption(parser):
    parser.addoption(
        "--all-steps", action="store_true", help="kill at every step there is, not at a few of them"
    )
    parser.addoption("--seconds", type=float, default=0, help="begin no further test after so many seconds")
    parser.addoption(
        "--kill-seed", default="", help="draw the same kill points again as the run that printed this"
    )


def pytest_configure(config):
    "The workers and the children of the tests inherit the choice through the environment."
    if hasattr(config, "workerinput"):
        return
    os.environ[kill_points.ALL] = "1" if config.getoption("--all-steps") else "0"
    os.environ[kill_points.SEED] = config.getoption("--kill-seed") or str(secrets.randbelow(10**6))


def pytest_runtest_setup(item):
    limit, started = (
        item.config.getoption("--seconds"),
        item.config.stash.setdefault(STARTED, time.monotonic()),
    )
    if limit and time.monotonic() - started > limit:
        pytest.skip("No time is left in this quick check; `make test` runs it.")


def pytest_collection_finish():
    "What was imported stays until the end; the collector need not look through it again and again."
    gc.freeze()


def pytest_report_header():
    if os.environ[kill_points.ALL] == "1":
        return "kill points: all of them"
    return f"kill points: a few, drawn by --kill-seed {os.environ[kill_points.SEED]}; all with --all-steps"


def pytest_collection_modifyitems(config, items):
    """The longest files come first, so that no worker is left alone with one at the end; kill points are
    drawn."""
    order = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    families = {}
    for item in items:
        if mark := item.get_closest_marker("kill_points"):
            families.setdefault((item.nodeid.partition("[")[0], mark.args[0]), []).append(item.nodeid)
    drawn = {node for (_, most), nodes in families.items() for node in kill_points.sample(nodes, most)}
    left = [item for item in items if item.get_closest_marker("kill_points") and item.nodeid not in drawn]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def root() -> Path:
    "The top of the checkout."
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    "The development market data; skips with a sentence where it is absent."
    place = Path(os.environ.get("STOCKPREDICT_SHARED", ROOT.parent / "shared")) / "data"
    if not place.is_dir():
        why = (
            f"The development market data is not at {place.name}; set STOCKPREDICT_SHARED to the folder "
            "that holds data/."
        )
        pytest.skip(why)
    return place


@pytest.fixture
def standin(market):
    "A server on loopback that sells the market of the test file."
    from stockpredict.testing.fake_vendors import FakeVendors

    with FakeVendors(market) as s:
        yield s


@pytest.fixture
def server(tmp_path):
    "A real Redis that keeps its data."
    from live_redis import Server

    server = Server(tmp_path / "redis").start()
    yield server
    server.kill()


@pytest.fixture
def from_standin(tmp_path, standin):
    "What a test file usually sets -> function of further settings, all pointing to the stand-in."
    from stockpredict.core.settings import Settings

    def usual(plain):
        base = {
            "storage.home": str(tmp_path / "home"),
            "data.source": "vendors",
            "sources.base_urls": f"all={standin.url}",
            "sources.budgets": "yahoo=500/5000 tiingo=500/5000 fmp=500/5000 alphavantage=500/5000",
        }
        return lambda **more: Settings().with_(
            **base | plain | {k.replace("__", "."): v for k, v in more.items()}
        )

    return usual


@pytest.fixture
def two_vendors(from_standin):
    "Settings of two tickers, asked from Yahoo and then from Tiingo, without a second try."
    return from_standin(
        {
            "data.universe": ["AAA", "BBB"],
            "data.start": "2019-01-01",
            "data.end": "2020-03-10",
            "sources.chain": ["yahoo", "tiingo"],
            "sources.retries": 0,
        }
    )


@pytest.fixture(scope="session")
def together(tmp_path_factory, worker_id) -> Path:
    "A folder that all workers of this run share."
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "together"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def in_turn(lock: Path):
    "One worker at a time."
    with lock.open("a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def finished(together):
    """A small simulated market that went through every step, pages included: the report of `stockpredict
    retrain`, and its settings.

    Made by the first worker that asks; a test that changes it asks for `finished_alone`."""
    from stockpredict.core.settings import load_settings
    from stockpredict.ops.pipeline import SMALL

    place = together / "finished"
    changes = SMALL | {"storage.home": str(place / "home"), "storage.reports": str(place / "reports")}
    asked = [
        x for k, v in changes.items() for x in ("--set", f"{k}={','.join(v) if isinstance(v, list) else v}")
    ]
    answer = together / "finished.json"
    with in_turn(together / "finished.lock"):
        if not answer.exists():
            done = warm.stockpredict("retrain", "--json", *asked, cwd=ROOT)
            answer.write_text(
                json.dumps({"code": done.returncode, "report": done.stdout, "console": done.stderr})
            )
    done = json.loads(answer.read_text())
    assert done["code"] == 0, done["report"][-3000:] + done["console"][-3000:]
    return {
        "report": json.loads(done["report"]),
        "settings": load_settings(overrides=changes),
        "asked": asked,
        "place": place,
        "console": done["console"],
    }


@pytest.fixture(scope="session")
def trained(together) -> Path:
    "The home of the small study, made by the first worker that asks; a test that changes it takes a copy."
    import small_study

    home = together / "trained"
    with in_turn(together / "trained.lock"):
        if not (home / small_study.STUDY / "experiment.json").exists():
            small_study.train(home)
    return home


@pytest.fixture
def finished_alone(finished, together):
    "The same, and no other test changes it meanwhile."
    with in_turn(together / "changed.lock"):
        yield finished


@pytest.fixture
def self_tested(finished):
    """Function of a home: what this code's self-test said is known there too, for it is the same code; its
    markets need not be judged twice."""
    import shutil

    def known(home: Path):
        (home / "work").mkdir(parents=True, exist_ok=True)
        for one in finished["settings"].storage.work_dir.glob("selftest-*.json"):
            shutil.copy(one, home / "work")

    return known

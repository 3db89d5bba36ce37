"""A served desk for the tests of serve, predict and client: a simulated market in a lake, a fitted model in
a signed artifact, a pointer to it, and processes that serve it."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import patience
import pytest

HORIZONS = (1, 5)


def build_settings(home, **more):
    from stockpredict.core.settings import load_settings

    base = {
        "storage.home": str(home),
        "storage.reports": str(Path(home) / "reports"),
        "data.source": "simulated",
        "serving.device": "cpu",
    }
    return load_settings(None, base | more, environ={})


def fill_lake(settings, bars):
    from stockpredict.lake.lake import Lake

    with Lake(settings.storage) as lake:
        lake.append(bars)


def publish(settings, name="mean", version=1, skill="none", features=("ret_1", "mom_5", "vol_20"), seed=0):
    "Fit on the lake, save signed, point at it: what train.registry does, without MLflow."
    from stockpredict.core.calendar import get_calendar
    from stockpredict.lake.lake import Lake
    from stockpredict.catalogue.design_matrix import Spec
    from stockpredict.algebra.panel import Panel
    from stockpredict.models.artifact import artifact_hash, ensure_keys, save_artifact
    from stockpredict.models.contract import make_model
    from stockpredict.models.dataset import Dataset

    with Lake(settings.storage, read_only=True) as lake:
        panel = Panel.from_bars(lake.bars(), get_calendar())
    spec, registry = Spec(tuple(features)), settings.storage.registry_dir
    model = make_model(name, seed=seed).fit(Dataset.from_panel(panel, spec, HORIZONS))
    key = ensure_keys(settings.storage.keys_dir).private
    part = save_artifact(
        model, spec, registry / "versions" / f".new{version}", {"entry_delay": 1, "seed": seed}, key
    )
    place = part.with_name(artifact_hash(part))
    if not place.exists():
        part.rename(place)
    point(settings, place.name, version, skill, name)
    return place


def point(settings, artifact, version=1, skill="none", model="mean"):
    "Swap the champion pointer, atomically."
    from stockpredict.train.champion import append_event, write_champion

    entry = {
        "version": version,
        "artifact": artifact,
        "model": model,
        "skill": skill,
        "decision": "hold",
        "promoted_at": f"2026-01-01T00:00:{version:02d}+00:00",
    }
    write_champion(settings, entry)
    append_event(settings, {"event": "promote"} | entry)


def own_bars(engine, ticker):
    "The bars of a ticker as a caller would send them."
    rows = engine.window().bars[engine.window().bars.ticker == ticker]
    keep = ["close", "open", "high", "low", "volume"]
    return [
        {"date": t.date(), **{k: v for k, v in zip(keep, row, strict=True) if v == v}}
        for t, row in zip(rows.event_time, rows[keep].itertuples(index=False), strict=True)
    ]


@pytest.fixture(scope="session")
def market():
    "Fourteen tickers; one is halted for the last three sessions, one was delisted long ago."
    from stockpredict.sources.simulate import simulate

    bars = simulate("realistic", tickers=14, sessions=380, seed=4).bars
    halted = (bars.ticker == "SIM05") & (
        bars.event_time > bars.event_time.drop_duplicates().nlargest(4).min()
    )
    delisted = (bars.ticker == "SIM06") & (
        bars.event_time > bars.event_time.min() + (bars.event_time.max() - bars.event_time.min()) / 4
    )
    return bars[~halted & ~delisted].reset_index(drop=True)


@pytest.fixture(scope="session")
def template(tmp_path_factory, market):
    "Built once: lake, champion, table."
    from stockpredict.predict.answer_table import refresh_answers

    settings = build_settings(tmp_path_factory.mktemp("served"))
    fill_lake(settings, market)
    publish(settings)
    refresh_answers(settings)
    return settings


@pytest.fixture
def settings(template, tmp_path):
    "A copy that a test may break."
    import shutil

    home = tmp_path / "home"
    shutil.copytree(template.storage.home_dir, home, ignore=shutil.ignore_patterns("audit"))
    return build_settings(home)


class Served:
    "An application and a client for it, in one event loop with its background loop on or off."

    def __init__(self, settings, background=False, **kw):
        from stockpredict.serve.app import create_app

        self.app, self.background = create_app(settings, **kw), background
        self.service = self.app.state.service

    async def __aenter__(self):
        self.stack = contextlib.AsyncExitStack()
        if self.background:
            await self.stack.enter_async_context(self.app.router.lifespan_context(self.app))
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        client = await self.stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://localhost")
        )
        client.service = self.service
        return client

    async def __aexit__(self, *error):
        await self.stack.aclose()


@pytest.fixture
def served():
    return Served


@pytest.fixture
def run():
    return asyncio.run


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def uvicorn_process(settings, tmp_path, *args):
    "A real server on a spare port; yields (process, base url, CPU seconds until it answered)."
    ini, port = tmp_path / "settings.ini", free_port()
    ini.write_text(settings.to_ini())
    ours = {"STOCKPREDICT_SETTINGS": str(ini), "OMP_NUM_THREADS": "1"}
    env = {k: v for k, v in os.environ.items() if not k.startswith("STOCKPREDICT_")} | ours
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "uvicorn",
            "--factory",
            "stockpredict.serve.app:app_factory",
            "--port",
            str(port),
            "--log-level",
            "warning",
            "--no-access-log",
            *args,
        ],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=patience.die_with_parent,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        patience.wait_until(lambda: patience.answers(url + "/health"), process)
        yield process, url, patience.cpu_seconds(process.pid)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                patience.wait_until(lambda: process.poll() is not None, process)
            except patience.Standstill:
                process.kill()
                process.wait()


@contextlib.contextmanager
def service_process(settings, folder, **changes):
    "`stockpredict serve` on a spare port; yields the process and the port."
    port, ini = free_port(), Path(folder) / "served.ini"
    ini.write_text(settings.with_(**{"serving.port": port} | changes).to_ini())
    ours = {"STOCKPREDICT_SETTINGS": str(ini), "OMP_NUM_THREADS": "1"}
    env = {k: v for k, v in os.environ.items() if not k.startswith("STOCKPREDICT_")} | ours
    with open(Path(folder) / "said.txt", "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "stockpredict.cli.main", "serve"],
            env=env | {"PYTHONUNBUFFERED": "1"},
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=patience.die_with_parent,
        )
    try:
        patience.wait_until(lambda: accepts(port), process)
        yield process, port
    finally:
        if process.poll() is None:
            process.terminate()
            patience.wait_until(lambda: process.poll() is not None, process)


def accepts(port) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    except OSError:
        return False


QUICK = {
    "serving.header_seconds": 0.5,
    "serving.body_seconds": 0.7,
    "serving.keep_alive_seconds": 0.6,
    "serving.max_connections": 40,
    "serving.max_body_mb": 1,
    "serving.drain_seconds": 600.0,  # a busy machine may need long for what is under way
}


@pytest.fixture(scope="session")
def whole_service(template, tmp_path_factory):
    "A parent, a reader and an engine with short deadlines, on a home of their own: process, port, settings."
    import shutil

    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(template.storage.home_dir, folder / "home")
    settings = build_settings(folder / "home")
    with service_process(settings, folder, **QUICK) as (process, port):
        yield process, port, settings

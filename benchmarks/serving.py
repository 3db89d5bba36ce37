"""Reading a stored forecast, beside the bare frameworks, in one run.

    python benchmarks/serving.py [--seconds 2] [--rounds 3] [--clients 16] [--what-if] [--no-servers]

Peers: an ASGI function that returns the same number of bytes, and a FastAPI route that returns them. Ours:
the same answer through the FastAPI router, and through the fast path in front of it, with request id,
metrics, audit log and headers on; and both once more as a service that asks for a key and counts the
requests of each caller against limits. All servers stay up and take turns, one uvicorn process each; CPU is
what the server process used per request, which is the figure to compare on a busy machine. Ratios are against
the peer in the same round; the best round counts. Last comes an open loop at half of the best throughput:
requests start on time whatever became of those before, and the time counts from when each was due.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PEERS = """
import asyncio
from fastapi import FastAPI, Response
BODY = b"x" * {size}
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
async def bare(scope, receive, send):
    if scope["type"] != "http": return
    await send(dict(type="http.response.start", status=200, headers=HEADERS))
    await send(dict(type="http.response.body", body=BODY))
async def rsgi(scope, protocol):
    protocol.response_bytes(200, [("content-type", "application/json")], BODY)
plain = FastAPI()
@plain.get("/v1/predictions/{{ticker}}")
async def read(ticker: str, horizon: int | None = None): return Response(BODY, media_type="application/json")
"""
OURS = """
import os
from stockpredict.core.settings import load_settings
from stockpredict.serve.app import create_app
many = {"access.requests_per_minute": 10**9, "access.total_per_minute": 10**9}
always = {"access.required": "always"} | many
fast, slow = (create_app(load_settings(), fast=f) for f in (True, False))
keyed, keyed_slow = (create_app(load_settings(None, always), fast=f) for f in (True, False))
"""


def prepare(home: Path):
    "A small simulated market, a fitted model, a table of answers."
    from stockpredict.core.calendar import get_calendar
    from stockpredict.core.settings import load_settings
    from stockpredict.lake.lake import Lake
    from stockpredict.sources.simulate import simulate
    from stockpredict.catalogue.design_matrix import Spec
    from stockpredict.algebra.panel import Panel
    from stockpredict.models.artifact import artifact_hash, ensure_keys, save_artifact
    from stockpredict.models.contract import make_model
    from stockpredict.models.dataset import Dataset
    from stockpredict.predict.answer_table import refresh_answers

    settings = load_settings(None, {"storage.home": str(home / "home"), "serving.device": "cpu"}, environ={})
    with Lake(settings.storage) as lake:
        lake.append(simulate("null", tickers=40, sessions=340, seed=1).bars)
        bars = lake.bars()
    spec, registry = Spec(("ret_1", "mom_5", "vol_20")), settings.storage.registry_dir
    model = make_model("ridge").fit(Dataset.from_panel(Panel.from_bars(bars, get_calendar()), spec, (1, 5)))
    saved = save_artifact(
        model,
        spec,
        registry / "versions" / "new",
        {"entry_delay": 1},
        ensure_keys(settings.storage.keys_dir).private,
    )
    saved = saved.rename(saved.with_name(artifact_hash(saved)))
    (registry / "champion.json").write_text(
        json.dumps({"version": 1, "artifact": saved.name, "skill": "none"})
    )
    refresh_answers(settings)
    (home / "settings.ini").write_text(settings.to_ini())
    return settings


def new_key(settings) -> bytes:
    "An API key for reading."
    from stockpredict.access.keys import KeyStore

    return KeyStore(settings.storage).create(["viewer"], "benchmark")[1].encode()


def spare_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


WIRE = """
import asyncio, socket, sys
sys.path.insert(0, {home!r})
from peers import bare
from stockpredict.serve.server import run_loop
from stockpredict.serve.wire import WireConfig, WireServer
config = WireConfig(bare, lifespan="off", log_config=None, timeout_graceful_shutdown=5)
run_loop(WireServer(config)._serve([socket.create_server(("127.0.0.1", {port}))]))
"""


def start_program(command: list, port: int, env: dict, home: Path):
    "Any server; returns it and its port once it answers."
    process = subprocess.Popen([sys.executable, *command], env=env, cwd=home, stdout=subprocess.DEVNULL)
    for _ in range(1200):
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return process, port
        except OSError:
            time.sleep(0.05)
        if process.poll() is not None:
            raise SystemExit(f"{command} did not start.")
    raise SystemExit(f"{command} did not answer.")


def start(target: str, home: Path, env: dict):
    "One uvicorn process with an application."
    port = spare_port()
    options = ["--port", str(port), "--no-access-log", "--log-level", "error"]
    return start_program(["-m", "uvicorn", target, *options], port, env, home)


def other_servers(home: Path, env: dict):
    "The simplest application on each server, and ours as `stockpredict serve` runs it, all on."
    ports = [spare_port() for _ in range(5)]
    granian = ["-m", "granian", "--no-log", "--loop", "uvloop", "--host", "127.0.0.1"]
    asgi, rsgi = ([*granian, "--interface", kind, "--port"] for kind in ("asginl", "rsgi"))
    served = ["-m", "stockpredict.cli.main", "serve", "--readers", "1", "--engine", "0", "--port"]
    keyed = ["-m", "stockpredict.cli.main", "--set", "access.required=always", *served[2:]]
    commands = {
        "Granian ASGI": [*asgi, str(ports[0]), "peers:bare"],
        "Granian RSGI": [*rsgi, str(ports[1]), "peers:rsgi"],
        "ours, server, bare ASGI": ["-c", WIRE.format(home=str(home), port=ports[2])],
        "ours, as served": [*served, str(ports[3])],
        "ours, as served, key": [*keyed, str(ports[4])],
    }
    limits = {"STOCKPREDICT_ACCESS__REQUESTS_PER_MINUTE": "0", "STOCKPREDICT_ACCESS__TOTAL_PER_MINUTE": "0"}
    for (name, command), port in zip(commands.items(), ports, strict=True):
        yield name, start_program(command, port, env | limits, home)


async def load(port: int, request: bytes, clients: int, seconds: float) -> list[float]:
    "Seconds of every answer to `clients` connections that ask again at once."
    took, end = [], time.perf_counter() + seconds

    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head[:20], head
            at = head.lower().index(b"content-length: ") + 16
            await reader.readexactly(int(head[at : head.index(b"\r", at)]))
            took.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return took


def cpu_of_tree(pid: int) -> float:
    "CPU seconds of a process and everything it started."
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def measure(process, port: int, request: bytes, clients: int, seconds: float) -> dict:
    "Throughput, latency and CPU of one server for a while."
    before, began = cpu_of_tree(process.pid), time.perf_counter()
    took = sorted(asyncio.run(load(port, request, clients, seconds)))
    wall, cpu = time.perf_counter() - began, cpu_of_tree(process.pid) - before
    return {
        "rps": len(took) / wall,
        "p50": took[len(took) // 2] * 1e3,
        "p99": took[int(len(took) * 0.99)] * 1e3,
        "cpu": cpu / len(took) * 1e6,
    }


async def on_time(port: int, request: bytes, rate: float, seconds: float, clients: int) -> list[float]:
    "Seconds from when each request was due until its answer, whatever became of those before."
    took, began, gap = [], time.perf_counter() + 0.1, clients / rate

    async def one(number: int):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in range(int(seconds / gap)):
            due = began + (turn + number / clients) * gap
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            at = head.lower().index(b"content-length: ") + 16
            await reader.readexactly(int(head[at : head.index(b"\r", at)]))
            took.append(time.perf_counter() - due)
        writer.close()

    await asyncio.gather(*(one(n) for n in range(clients)))
    return sorted(took)


def at_half_load(name: str, port: int, request: bytes, rate: float, seconds: float, clients: int):
    "Latency in an open loop at half of what the server could do."
    late = asyncio.run(on_time(port, request, rate, seconds, clients))
    p50, p99 = (late[int(len(late) * share)] * 1e3 for share in (0.5, 0.99))
    print(f"{name}, half load: {rate:,.0f} rps offered, p50 {p50:.2f} ms, p99 {p99:.2f} ms (target 10)")


def what_if(settings, process, port: int, seconds: float):
    "Forecasting a caller's own bars: one caller, and sixteen at once."
    import orjson

    from stockpredict.predict.answer_table import TABLE_FILE, AnswerTable

    example = AnswerTable.open(settings.storage.serving_dir / TABLE_FILE).header["example"]
    body = orjson.dumps({"bars": example["bars"], "horizon": 1})
    request = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )
    measure(process, port, request, 1, 0.1)
    for clients in (1, 16):
        r = measure(process, port, request, clients, seconds)
        print(
            f"what if, {clients:>2} callers                {r['rps']:>8,.0f} {r['p50']:>8.2f} "
            f"{r['p99']:>8.2f} {r['cpu']:>8,.0f}"
        )


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--seconds", type=float, default=2.0)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--clients", type=int, default=16)
    ask.add_argument("--what-if", action="store_true")
    ask.add_argument("--servers", action=argparse.BooleanOptionalAction, default=True, help="Granian too")
    args = ask.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = prepare(home)
        line = b"GET /v1/predictions/SIM00?horizon=1 HTTP/1.1\r\nHost: localhost\r\n"
        request, with_key = line + b"\r\n", line + b"Authorization: Bearer %b\r\n\r\n" % new_key(settings)
        env = os.environ | {"STOCKPREDICT_SETTINGS": str(home / "settings.ini"), "OMP_NUM_THREADS": "1"}
        (home / "ours.py").write_text(OURS)
        servers = {}
        try:
            servers["ours, fast path"] = start("ours:fast", home, env)
            servers["ours, FastAPI router"] = start("ours:slow", home, env)
            servers["ours, fast path, key"] = start("ours:keyed", home, env)
            servers["ours, router, key"] = start("ours:keyed_slow", home, env)
            size = len(asyncio.run(body_of(servers["ours, fast path"][1], request)))
            (home / "peers.py").write_text(PEERS.format(size=size))
            servers["bare ASGI GET"] = start("peers:bare", home, env)
            servers["FastAPI GET of bytes"] = start("peers:plain", home, env)
            if args.servers:
                for name, server in other_servers(home, env):
                    servers[name] = server
            time.sleep(5)  # let the engines of ours finish loading
            rounds = [
                {
                    name: measure(*server, with_key if "key" in name else request, args.clients, args.seconds)
                    for name, server in servers.items()
                }
                for _ in range(args.rounds)
            ]
            print(
                f"{size} bytes, {args.clients} connections, best of {args.rounds} rounds of "
                f"{args.seconds:g} s"
            )
            print(f"{'':<32}{'rps':>9} {'p50 ms':>8} {'p99 ms':>8} {'CPU µs':>8}")
            for name in servers:
                r = min((r[name] for r in rounds), key=lambda r: r["cpu"])
                print(f"{name:<32}{r['rps']:>9,.0f} {r['p50']:>8.2f} {r['p99']:>8.2f} {r['cpu']:>8.1f}")
            for mine, peer in (
                ("ours, fast path", "bare ASGI GET"),
                ("ours, FastAPI router", "FastAPI GET of bytes"),
                ("ours, fast path, key", "bare ASGI GET"),
                ("ours, router, key", "FastAPI GET of bytes"),
                ("ours, as served", "bare ASGI GET"),
                ("ours, as served, key", "bare ASGI GET"),
                ("ours, as served, key", "ours, server, bare ASGI"),
            ):
                if mine not in servers:
                    continue
                share = max(r[mine]["rps"] / r[peer]["rps"] for r in rounds)
                cost = min(r[mine]["cpu"] for r in rounds) / min(r[peer]["cpu"] for r in rounds)
                print(f"{mine} / {peer}: {share:.2f} of its throughput, {cost:.2f} times its CPU")
            for name in ("bare ASGI GET", "ours, fast path, key", "ours, as served, key"):
                if name in servers:
                    half = max(r[name]["rps"] for r in rounds) / 2
                    at_half_load(name, servers[name][1], with_key, half, args.seconds, args.clients)
            if args.what_if:
                what_if(settings, *servers["ours, fast path"], args.seconds)
        finally:
            for process, _ in servers.values():
                process.terminate()
            for process, _ in servers.values():
                process.wait(30)


async def body_of(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    at = head.index(b"content-length: ") + 16
    body = await reader.readexactly(int(head[at : head.index(b"\r", at)]))
    writer.close()
    return body


if __name__ == "__main__":
    main()

"""What a read costs inside the process: with and without a key, one ticker and many, small and large tables.

    python benchmarks/read_cost.py [--tickers 100 10000 100000] [--rounds 7] [--number 2000]

No server and no socket: the application is called, and its CPU time is counted, the audit log's writer
included. `served` is the function that the server asks first, `router` the way through FastAPI, and
`plain dict` a loop that looks the same names up in a dictionary of as many bodies and copies one: what the
caches of the machine let any table cost. The best and the median round are printed, then the ratios of the
best ones. The tickers of a list are drawn anew for each request, so that no list is answered from memory, but
for the one that is asked again and again.

With `--http` the service as `stockpredict serve` starts it is asked over a connection for one ticker and for
lists, beside the same number of bytes from the same server without any application: CPU of its processes.
"""

import argparse
import asyncio
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

LISTED = 100


def make_apps(home: Path, tickers: list[str]) -> tuple:
    "The service over a signed table of these tickers: at the desk, with a key, by the router; and a key."
    import orjson

    from stockpredict.access.keys import KeyStore
    from stockpredict.core.settings import load_settings
    from stockpredict.predict.answer_table import (
        EXAMPLE_HEADER,
        example_answer,
        pack_table,
        table_signer,
        write_example,
        write_table,
    )
    from stockpredict.serve.app import create_app

    place = {"storage.home": str(home)}
    unlimited = {"access.requests_per_minute": 10**9, "access.total_per_minute": 10**9}
    settings = load_settings(None, place, environ={})
    keyed = load_settings(None, place | unlimited | {"access.required": "always"}, environ={})
    write_example(settings)
    bodies = {(t, 1): orjson.dumps(example_answer(t, 1))[:-1] for t in tickers}
    write_table(pack_table(EXAMPLE_HEADER, bodies, table_signer(settings)), settings.storage.serving_dir)
    key = KeyStore(settings.storage).create(["viewer"], "benchmark")[1].encode()
    desk, with_key, router = create_app(settings), create_app(keyed), create_app(keyed, fast=False)
    return desk, with_key, router, key


def scope_of(path: str, query: bytes, key: bytes | None) -> dict:
    "A GET request as the server describes it."
    headers = [(b"host", b"localhost")]
    if key:
        headers.append((b"authorization", b"Bearer " + key))
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http"}
    scope |= {"method": "GET", "path": path, "raw_path": path.encode(), "query_string": query}
    scope |= {"headers": headers, "root_path": "", "state": {}}
    return scope | {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}


async def call(app, scope: dict):
    "One request to the application; anything but 200 ends the benchmark."

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if message.get("status", 200) != 200:
            raise SystemExit(f"{scope['path']} was answered with {message['status']}; no figure is valid.")

    await app(scope, receive, send)


def at_once(app, scopes: list[dict]):
    "Requests as the server asks them first."
    from stockpredict.serve.instant import instant_answer

    for scope in scopes:
        if instant_answer(app.entry, scope) is None:
            raise SystemExit("The request was not answered at once; no figure is valid.")


async def one_by_one(app, scopes: list[dict]):
    "Requests by the application."
    for scope in scopes:
        await call(app, scope)


def cost(work, scopes_of, rounds: int, number: int) -> tuple[float, float]:
    "CPU microseconds per request: the best round and the median one."
    results = []
    for _ in range(rounds + 1):  # the first warms up
        scopes = scopes_of(number)
        began = time.process_time_ns()
        work(scopes)
        results.append((time.process_time_ns() - began) / number / 1000)
    return min(results[1:]), statistics.median(results[1:])


def plain_dictionary(tickers: list[str]):
    "A function that looks paths up in a dictionary and copies what it finds."
    import orjson

    from stockpredict.predict.answer_table import example_answer

    bodies = {f"/v1/predictions/{t}": orjson.dumps(example_answer(t, 1))[:-1] for t in tickers}

    def look_up(scopes):
        for scope in scopes:
            bodies[scope["path"]] + b"}"

    return look_up


def measure(size: int, rounds: int, number: int) -> dict[str, float]:
    "The best costs over a table of so many tickers, printed as they come."
    tickers, draw = [f"T{n:06d}" for n in range(size)], random.Random(0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        desk, with_key, router, key = make_apps(Path(folder), tickers)

        def singles(key):
            return lambda n: [
                scope_of(f"/v1/predictions/{draw.choice(tickers)}", b"horizon=1", key) for _ in range(n)
            ]

        def lists(count):
            def scopes(n):
                drawn = (",".join(draw.sample(tickers, count)).encode() for _ in range(n))
                return [scope_of("/v1/predictions", b"tickers=" + d, key) for d in drawn]

            return scopes

        def through(app):
            return lambda scopes: asyncio.run(one_by_one(app, scopes))

        def again(n):
            (scope,) = lists(min(LISTED, size))(1)
            return [dict(scope) for _ in range(n)]

        few = max(50, number // 10)
        ways = {
            "served, no key": (lambda s: at_once(desk, s), singles(None), number),
            "served, key": (lambda s: at_once(with_key, s), singles(key), number),
            "router, key": (through(router), singles(key), few),
            "list of 1, key": (lambda s: at_once(with_key, s), lists(1), few),
            f"list of {min(LISTED, size)}, key": (lambda s: at_once(with_key, s), lists(LISTED), few),
            "same list, key": (lambda s: at_once(with_key, s), again, few),
            "plain dict": (plain_dictionary(tickers), singles(None), number),
        }
        best = {}
        for name, (work, scopes, count) in ways.items():
            best[name], median = cost(work, scopes, rounds, count)
            print(f"{size:>7,} tickers  {name:<18}{best[name]:>9.1f} {median:>9.1f}", flush=True)
        return best


HTTP_TICKERS = 400
AUDIT_SECONDS = 0.7  # by then the audit log's writer has written what was asked


def ask_in_turn(port: int, requests: list[bytes]):
    "Each request on one connection, answered before the next is sent."
    with socket.create_connection(("127.0.0.1", port)) as link, link.makefile("rb", 1 << 18) as answers:
        for request in requests:
            link.sendall(request)
            status = answers.readline()
            if b" 200 " not in status:
                raise SystemExit(f"The service said {status!r}; no figure is valid.")
            while (line := answers.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    size = int(line[15:])
            answers.read(size)


def http_questions(tickers: list[str], key: str) -> dict:
    "Name to a function that draws requests."
    draw = random.Random(0)
    head = f" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"

    def drawn(count):
        return f"GET /v1/predictions?tickers={','.join(draw.sample(tickers, count))}{head}".encode()

    one = f"GET /v1/predictions/%s?horizon=1{head}"
    same = drawn(LISTED)
    return {
        "one ticker": lambda: (one % draw.choice(tickers)).encode(),
        "list of 1": lambda: drawn(1),
        f"list of {LISTED}": lambda: drawn(LISTED),
        "same list": lambda: same,
    }


def start_servers(home: Path, key_settings: list, sizes: dict):
    "Name to process and port: the service, and the bare server with as many bytes as an answer of each kind."
    import serving

    served = ["-m", "stockpredict.cli.main", *key_settings, "serve", "--readers", "1", "--engine", "0"]
    env = os.environ | {"STOCKPREDICT_STORAGE__HOME": str(home / "home"), "OMP_NUM_THREADS": "1"}
    env |= {"STOCKPREDICT_ACCESS__REQUESTS_PER_MINUTE": "0", "STOCKPREDICT_ACCESS__TOTAL_PER_MINUTE": "0"}
    port = serving.spare_port()
    servers = {"service": serving.start_program([*served, "--port", str(port)], port, env, home)}
    for name, size in sizes.items():
        folder, port = home / name, serving.spare_port()
        folder.mkdir()
        (folder / "peers.py").write_text(serving.PEERS.format(size=size))
        wire = serving.WIRE.format(home=str(folder), port=port)
        servers[name] = serving.start_program(["-c", wire], port, env, folder)
    return servers


def cpu_ns(pid: int) -> int:
    "Nanoseconds that a process and its children have been on a processor."
    import psutil

    parent, total = psutil.Process(pid), 0
    for process in (parent, *parent.children(recursive=True)):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    return total


def over_http(rounds: int):
    "CPU of the service for one ticker and for lists, beside a bare server that sends as many bytes."
    from stockpredict.predict.answer_table import open_answers

    tickers = [f"T{n:06d}" for n in range(HTTP_TICKERS)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        (home / "home").mkdir()
        key = make_apps(home / "home", tickers)[3].decode()
        row = len(next(iter(open_answers(load_home(home / "home")).rows.values()))) + 80
        sizes = {"bytes of one": row + 150, "bytes of a list": row * LISTED + 150}
        servers = start_servers(home, ["--set", "access.required=always"], sizes)
        ways = {name: ("service", draw) for name, draw in http_questions(tickers, key).items()}
        plain = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        ways |= {name: (name, lambda: plain) for name in sizes}
        costs = {name: [] for name in ways}
        try:
            for _ in range(rounds + 1):
                for name, (server, draw) in ways.items():
                    process, port = servers[server]
                    requests, before = [draw() for _ in range(1_000)], cpu_ns(process.pid)
                    ask_in_turn(port, requests)
                    time.sleep(AUDIT_SECONDS)  # the writer's work belongs to the requests that it records
                    costs[name].append((cpu_ns(process.pid) - before) / 1e6)
        finally:
            for process, _ in servers.values():
                process.terminate()
                process.wait(30)
    best = {name: min(values[1:]) for name, values in costs.items()}
    for name, value in best.items():
        print(f"over HTTP: {name:<20}{value:>8.0f} µs")
    many, bare = best[f"list of {LISTED}"], best["bytes of a list"] / best["bytes of one"]
    print(f"over HTTP: list of {LISTED} / list of 1: {many / best['list of 1']:.1f} (target 2)", end="; ")
    print(f"same list / list of 1: {best['same list'] / best['list of 1']:.1f}", end="; ")
    print(f"list of {LISTED} / one ticker: {many / best['one ticker']:.1f}; bare bytes of both: {bare:.1f}")


def load_home(home: Path):
    "The settings of a home."
    from stockpredict.core.settings import load_settings

    return load_settings(None, {"storage.home": str(home)}, environ={})


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--tickers", type=int, nargs="+", default=[100, 10_000, 100_000])
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--number", type=int, default=2_000)
    ask.add_argument("--http", action="store_true", help="lists over HTTP too")
    args = ask.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    print(f"{'CPU µs per request':<34}{'best':>9} {'median':>9}")
    costs = {size: measure(size, args.rounds, args.number) for size in args.tickers}
    small, large = costs[args.tickers[0]], costs[args.tickers[-1]]
    print(f"a key costs {small['served, key'] - small['served, no key']:.1f} µs")
    many = next(name for name in small if name.startswith("list of") and name != "list of 1, key")
    print(f"{many} / list of 1: {small[many] / small['list of 1, key']:.2f} (target 2)")
    print(f"same list / list of 1: {small['same list, key'] / small['list of 1, key']:.2f}")
    for name in ("served, key", "router, key"):
        ratio = large[name] / small[name]
        print(f"{name}: {args.tickers[-1]:,} tickers / {args.tickers[0]:,}: {ratio:.2f} (target 1)")
    print(
        f"plain dict: {large['plain dict'] - small['plain dict']:.1f} µs more over the larger table;", end=" "
    )
    print(f"served, key: {large['served, key'] - small['served, key']:.1f} µs more")
    print(f"router, key: {small['router, key']:.0f} µs (target 200)")
    if args.http:
        over_http(args.rounds)


if __name__ == "__main__":
    main()

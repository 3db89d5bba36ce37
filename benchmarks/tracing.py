"""What traces cost a request: off, on for one in a hundred, on for all, and with a collector that is down.

    python benchmarks/tracing.py [--requests 2000] [--rounds 7]

The rounds alternate between the ways. Each figure is CPU time for a request, so other work on the machine
counts little. "http" is a stored read asked over HTTP of a reader process, all of its CPU, the best of many
short rounds and the median of four processes. "stored" is the same read inside the application alone,
without HTTP, as the server asks it first, and "routed" the list of models, through the router, threads and
the register. The promise is 5 % at a ratio of 0.01. A collector runs in a process of its own.

With `--requests 4000 --rounds 5`: a stored read 7.9 µs in the application, 41.3 when each one is
sampled, so a sampled read costs 33 µs more, what is sent included (81 before finished spans were made
from their parts). At a ratio of 0.01 that is 0.3 µs, and the choice takes 0.2: 0.5 of the 15 µs that a
read over HTTP takes on a quiet machine, 3 to 4 %. Measured directly the difference is smaller than the
noise of such a round (2 to 6 % over HTTP). Routed requests: 4 % in one run, within noise in others.
"""

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from serving import spare_port
from serving_load import start_service

from stockpredict.core import traces
from stockpredict.core.settings import load_settings
from stockpredict.predict.answer_table import write_example
from stockpredict.serve.app import create_app
from stockpredict.serve.instant import instant_answer

COLLECTOR = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Take(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"])); self.send_response(200); self.end_headers()
    def log_message(self, *words): pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
print(server.server_port, flush=True)
server.serve_forever()
"""
PATHS = {"stored": "/v1/predictions/AAPL?horizon=1", "routed": "/v1/models"}


def switch(endpoint, ratio, home):
    "Traces of this process off, or on with a ratio."
    traces.stop_tracing()
    settings = load_settings(
        None, {"storage.home": home, "traces.endpoint": endpoint, "traces.ratio": ratio}, {}
    )
    traces.start_tracing(settings, "benchmark")
    traces.finished_span("first", 0.0)  # the first span opens the connection
    traces.flush_traces()


async def cost(app, path, requests) -> float:
    "Microseconds of CPU for a request."
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "root_path": ""}
    route, _, query = path.partition("?")
    scope |= {
        "path": route,
        "raw_path": route.encode(),
        "query_string": query.encode(),
        "client": ("127.0.0.1", 9),
    }
    scope |= {"headers": [(b"host", b"localhost")], "server": ("localhost", 80), "asgi": {"version": "3.0"}}

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            assert message["status"] == 200, message

    start = time.process_time()
    for _ in range(requests):
        if path == PATHS["stored"]:
            assert instant_answer(app.entry, {**scope, "state": {}}) is not None
        else:
            await app({**scope, "state": {}}, receive, send)
    traces.flush_traces()  # what the sender needs belongs to the requests, too
    return (time.process_time() - start) / requests * 1e6


@contextmanager
def reader(settings, folder, endpoint, ratio):
    "A reader process without an engine: its port and its processes."
    port, home = spare_port(), Path(tempfile.mkdtemp(dir=folder))
    more = {"traces.endpoint": endpoint, "traces.ratio": ratio, "serving.engine": 0}
    process = start_service(settings, home, port, readers=1, **more)
    try:
        while True:
            with suppress(OSError):
                ask_over_http(port, 500)
                break
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.2)
        yield port, [process, *psutil.Process(process.pid).children()]
    finally:
        process.terminate()
        process.wait()


def ask_over_http(port, requests):
    "Ask one after the other on one connection."
    head = f"GET {PATHS['stored']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as line, line.makefile("rb") as answers:
        for _ in range(requests):
            line.sendall(head)
            status = answers.readline()
            assert status.startswith(b"HTTP/1.1 200"), status
            names = dict(part.lower().split(b": ", 1) for part in iter(answers.readline, b"\r\n"))
            answers.read(int(names[b"content-length"]))


def over_http(settings, living, requests, rounds):
    "Print what a whole request costs the processes of the service, without and with traces."
    ways = {"off": ("", 0.0), "on, none sampled": (living, 0.0), "1 % sampled": (living, 0.01)}
    best = {way: [] for way in ways}
    for _ in range(4):  # two processes that do the same differ by several percent, so each way has four
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            served = {way: stack.enter_context(reader(settings, folder, *how)) for way, how in ways.items()}
            for way, spent in in_turn(served, requests, 6 * rounds).items():
                best[way].append(min(spent))
    base = statistics.median(best["off"])
    for way, spent in best.items():
        middle = statistics.median(spent)
        row = f"http    {way:22}{middle:9.1f} µs{middle / base - 1:+9.1%}"
        print(f"{row}   {min(spent):.1f} to {max(spent):.1f}")


def in_turn(served, requests, rounds) -> dict:
    "Microseconds of CPU for a request in each of many short rounds, by way; a busy machine slows all alike."
    figures, order = {way: [] for way in served}, list(served)
    for _ in range(rounds):
        order.append(order.pop(0))
        for way in order:
            port, processes = served[way]
            before = cpu_of(processes)
            ask_over_http(port, requests)
            figures[way].append((cpu_of(processes) - before) / requests * 1e6)
    return figures


def cpu_of(processes) -> float:
    "Seconds of CPU that processes have used."
    return sum(cpu_of_one(process.pid) for process in processes)


def cpu_of_one(pid) -> float:
    "Of one process with all its threads: to the nanosecond on Linux, elsewhere in steps of a clock tick."
    if sys.platform == "linux":
        return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) returns
    return sum(psutil.Process(pid).cpu_times()[:2])


def main():
    "Measure, and print a row for each way."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    child = subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True)
    try:
        living = f"http://127.0.0.1:{int(child.stdout.readline())}"
        ways = {
            "off": ("", 0.0),
            "1 % sampled": (living, 0.01),
            "all sampled": (living, 1.0),
            "1 %, collector down": ("http://127.0.0.1:9", 0.01),
        }
        with tempfile.TemporaryDirectory() as home:
            settings = load_settings(None, {"storage.home": str(Path(home))}, {})
            write_example(settings)
            over_http(settings, living, options.requests, options.rounds)
            app = create_app(settings)
            figures = {(way, kind): [] for way in ways for kind in PATHS}
            for turn in range(options.rounds + 1):
                for way, (endpoint, ratio) in ways.items():
                    switch(endpoint, ratio, home)
                    for kind, path in PATHS.items():
                        count = options.requests if kind == "stored" else options.requests // 5
                        spent = asyncio.run(cost(app, path, count))
                        if turn:  # the first turn warms up
                            figures[way, kind].append(spent)
            traces.stop_tracing()
            for kind in PATHS:
                base = statistics.median(figures["off", kind])
                for way in ways:
                    spent = statistics.median(figures[way, kind])
                    print(f"{kind:8}{way:22}{spent:9.1f} µs{(spent / base - 1):+9.1%}")
    finally:
        child.kill()


if __name__ == "__main__":
    main()

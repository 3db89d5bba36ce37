"""A rolling restart, a blue/green switch and a rollback behind nginx, under load: no request may fail.

    python benchmarks/rolling.py [--replicas 4] [--clients 6] [--seconds 3] [--pause 0.02]

Every replica is `stockpredict serve --engine 0` with a home of its own, which holds what a reader in a
cluster gets: the public key, the keys of the callers, the audit log, and the table of answers. nginx runs
with the files of `deploy/nginx`; only its limit for one address is lifted, as all callers are one address
here. Half of the clients keep their connections, half open one for each request; all of them ask the whole
time. Then the replicas are restarted one after another (SIGTERM, drain, start, ready), a second group of
replicas takes over by a reload of nginx, and the first one takes over again.

`failed` are answers other than the right one, and connections that ended without an answer; it has to be 0.
`reopened` are kept connections that nginx closed before a request arrived on them, as HTTP lets a server do
at any time: the client opens another one and asks there, as browsers and HTTP libraries do. What a replica
takes to start depends on this machine; the table says what 20 replicas need at the same pace.
"""

import argparse
import asyncio
import json
import shutil
import ssl
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
from nginx_edge import Edge
from serving import prepare, spare_port
from serving_load import exchange, expected_answers, start_service

PHASES = ("quiet", "rolling restart", "blue to green", "back to blue")


def share_with_readers(settings, folder: Path) -> Path:
    "A home as a reader in a cluster has it, from the home of the service that computes."
    ours, home = settings.storage, folder / "home"
    (home / "keys").mkdir(parents=True)
    shutil.copy(ours.keys_dir / "signing.pub", home / "keys")
    shutil.copytree(ours.serving_dir, home / "serving")
    for name in ("access", "audit", "keys/audit"):
        (ours.home_dir / name).mkdir(exist_ok=True)
        (home / name).symlink_to(ours.home_dir.absolute() / name)
    return home


class Replica:
    "One reader: started, waited for, and stopped as an orchestrator does it."

    def __init__(self, settings, folder: Path):
        folder.mkdir()
        self.folder, self.port = folder, spare_port()
        home = share_with_readers(settings, folder)
        self.settings = settings.with_(**{"storage.home": str(home), "access.required": "always"})
        self.process = None

    def start(self):
        more = {"serving.engine": 0, "serving.edges": "127.0.0.1"}
        self.process = start_service(self.settings, self.folder, self.port, 1, **more)

    async def ready(self):
        "Until /health/ready answers 200."
        while await probe(self.port) != 200:
            assert self.process.poll() is None, self.process.stdout.read().decode()
            await asyncio.sleep(0.05)

    async def stop(self):
        "SIGTERM, and wait for the end of what it was answering."
        self.process.terminate()
        while self.process.poll() is None:
            await asyncio.sleep(0.05)
        assert self.process.returncode == 0, self.process.stdout.read().decode()

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


async def probe(port: int) -> int:
    "The status of /health/ready; 0 when no server listens."
    try:
        connection = await asyncio.open_connection("127.0.0.1", port)
        head = b"GET /health/ready HTTP/1.1\r\nHost: replica\r\nConnection: close\r\n\r\n"
        status, _, _ = await exchange(*connection, head)
        connection[1].close()
    except (OSError, asyncio.IncompleteReadError):
        return 0
    return status


class Callers:
    "Clients of the edge that ask without end, and what they saw, by phase."

    def __init__(self, edge: Edge, key: str, expected: dict, pause: float = 0.0):
        self.edge, self.key, self.expected, self.pause = edge, key, expected, pause
        self.tls = ssl.create_default_context(cafile=str(edge.cert))
        self.phase, self.seen, self.failures, self.stop = PHASES[0], Counter(), [], False
        self.slowest = Counter()

    def fail(self, why):
        self.seen[self.phase, "failed"] += 1
        self.failures.append((self.phase, str(why)[:300]))

    def connect(self):
        return asyncio.open_connection(
            "127.0.0.1", self.edge.secure, ssl=self.tls, server_hostname="localhost"
        )

    def question(self, number: int) -> tuple:
        "What is asked, and the quantiles that are the right answer."
        (_, ticker, horizon), right = self.expected[number % len(self.expected)]
        head = f"GET /v1/predictions/{ticker}?horizon={horizon} HTTP/1.1\r\nHost: localhost\r\n"
        return f"{head}Authorization: Bearer {self.key}\r\n".encode(), right

    async def ask(self, kept, data: bytes) -> tuple:
        "An answer, and the connection when it stays open."
        for used in (kept, None):
            try:
                connection = used or await self.connect()
                status, body, close = await exchange(*connection, data)
            except (OSError, asyncio.IncompleteReadError) as error:
                if used is None:
                    raise
                closed = not isinstance(error, asyncio.IncompleteReadError) or not error.partial
                assert closed, "an answer was cut"
                self.seen[self.phase, "reopened"] += 1
                continue
            if close:
                connection[1].close()
            return status, body, None if close else connection

    async def one(self, number: int, step: int, keep: bool):
        "One client."
        connection, closing = None, b"" if keep else b"Connection: close\r\n"
        while not self.stop:
            head, right = self.question(number)
            begun = time.monotonic()
            try:
                status, body, connection = await self.ask(connection, head + closing + b"\r\n")
                if status == 200 and json.loads(body)["data"]["quantiles"] == right:
                    self.seen[self.phase, "right"] += 1
                else:
                    self.fail(body)
            except (OSError, asyncio.IncompleteReadError, AssertionError) as error:
                connection = None
                self.fail(repr(error))
            self.slowest[self.phase] = max(self.slowest[self.phase], time.monotonic() - begun)
            number += step
            await asyncio.sleep(self.pause)

    async def load(self, clients: int):
        await asyncio.gather(*(self.one(i, clients, i % 2 == 0) for i in range(clients)))


async def story(callers: Callers, blue, green, restarts, clients: int, seconds: float) -> dict:
    "All phases under load, for these replicas; the seconds that each phase took."
    load, took = asyncio.create_task(callers.load(clients)), {}
    await asyncio.sleep(seconds)
    callers.phase = PHASES[1]
    begun = time.monotonic()
    for replica in restarts:
        await replica.stop()
        replica.start()
        await replica.ready()
    took[PHASES[1]] = time.monotonic() - begun
    await asyncio.sleep(seconds)
    for replica in green:
        if replica.process is None:
            replica.start()
    for replica in green:
        await replica.ready()
    for phase, group in ((PHASES[2], green), (PHASES[3], blue)):
        callers.phase = phase
        callers.edge.name([replica.port for replica in group])
        took[phase] = await asyncio.to_thread(callers.edge.reload)
        await asyncio.sleep(seconds)
    callers.stop = True
    await load
    return took


async def rehearse(settings, folder, replicas=4, clients=6, seconds=3.0, pause=0.0, small=False) -> tuple:
    "The whole story; what the callers saw, and what it took. A small one restarts one, and has one group."
    from stockpredict.access.keys import KeyStore

    key = KeyStore(settings.storage).create(["viewer"], "callers")[1]
    expected = sorted(expected_answers(settings).items())
    blue = [Replica(settings, folder / f"blue{i}") for i in range(replicas)]
    green = blue[1:] if small else [Replica(settings, folder / f"green{i}") for i in range(replicas)]
    try:
        for replica in blue:
            replica.start()
        for replica in blue:
            await replica.ready()
        (folder / "edge").mkdir()
        ports = spare_port(), spare_port()
        served, lifted = [replica.port for replica in blue], {"rate=500r/s": "rate=100000r/s"}
        with Edge(folder / "edge", ports, served, workers=2, changes=lifted) as edge:
            callers = Callers(edge, key, expected, pause)
            took = await story(callers, blue, green, blue[:1] if small else blue, clients, seconds)
        for replica in {*blue, *green}:
            await replica.stop()
    finally:
        for replica in blue + green:
            replica.kill()
    return callers, took


def report(callers: Callers, took: dict, replicas: int) -> str:
    "The table of what happened."
    lines = [f"{'':<18}{'right':>9}{'failed':>9}{'reopened':>10}{'slowest':>10}{'took':>9}"]
    for phase in PHASES:
        right, failed, reopened = (callers.seen[phase, word] for word in ("right", "failed", "reopened"))
        duration = f"{took[phase]:.1f} s" if phase in took else ""
        slowest = f"{1000 * callers.slowest[phase]:.0f} ms"
        lines.append(f"{phase:<18}{right:>9,}{failed:>9,}{reopened:>10,}{slowest:>10}{duration:>9}")
    each = took[PHASES[1]] / replicas
    lines.append(
        f"\nOne replica: {each:.1f} s. 20 of them, one after another: {20 * each / 60:.1f} min (< 10)."
    )
    lines.append(f"Rollback: {took[PHASES[3]]:.1f} s (< 60).")
    return "\n".join(lines)


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--replicas", type=int, default=4)
    ask.add_argument("--clients", type=int, default=6)
    ask.add_argument("--seconds", type=float, default=3.0)
    ask.add_argument("--pause", type=float, default=0.02)
    args = ask.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = prepare(Path(folder))
        callers, took = asyncio.run(rehearse(settings, Path(folder), **vars(args)))
    print(report(callers, took, args.replicas))
    for failure in callers.failures[:10]:
        print(failure)
    raise SystemExit(bool(callers.failures))


if __name__ == "__main__":
    main()

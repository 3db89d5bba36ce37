"""The service under load while its model changes, its processes are replaced one by one, and two are killed.

    python benchmarks/serving_load.py [--seconds 5] [--readers 2] [--clients 8]

Every answer is compared with what the model that it names says for this ticker and horizon, and with the id
of its request. A question is asked again once when its connection is closed before the answer; that is
counted as a reset. Only the clients of a reader that is killed with `kill -9` may see one. `wrong` and `lost`
have to be 0, and `reset` has to be 0 in every phase but that one.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from serving import prepare, spare_port

PHASES = ("quiet", "new model", "rolling restart", "kill -9 of the engine", "kill -9 of a reader")


class Hammer:
    "Clients that ask without a pause, and what they saw, by phase."

    def __init__(self, port: int, expected: dict, what_if: bytes = b"", pause: float = 0.0):
        self.port, self.expected, self.what_if, self.pause = port, expected, what_if, pause
        self.phase, self.seen, self.stop, self.failures = PHASES[0], Counter(), False, []
        self.early = []  # answers of a model that became the champion while it was being published

    def note(self, word: str, detail=""):
        self.seen[self.phase, word] += 1
        if word != "right":
            self.failures.append((self.phase, word, str(detail)[:300]))

    def request(self, number: int) -> tuple:
        "The next question of a client: its key among the expected answers, its id and its bytes."
        tickers = sorted({ticker for _, ticker, _ in self.expected})
        ticker, horizon, name = tickers[number % len(tickers)], (1, 5)[number % 2], f"load-{number}"
        if self.what_if and number % 50 == 49:
            head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            head += b"X-Request-ID: %b\r\nContent-Length: %d\r\n\r\n" % (name.encode(), len(self.what_if))
            return None, name, head + self.what_if
        path = f"GET /v1/predictions/{ticker}?horizon={horizon} HTTP/1.1\r\nHost: localhost\r\n"
        return (ticker, horizon), name, f"{path}X-Request-ID: {name}\r\n\r\n".encode()

    def judge(self, key, name: str, status: int, body: bytes):
        "Is an answer right?"
        if status != 200:
            return self.note("lost", f"{status} {body.decode(errors='replace')}")
        answer = json.loads(body)
        data, right = answer["data"], answer["metadata"]["request_id"] == name
        version = data["model"]["version"]
        if key is None:
            right &= data["source"] == "caller"
        elif (version, *key) not in self.expected:
            return self.early.append((self.phase, (version, *key), data["quantiles"], right))
        else:
            right &= data["quantiles"] == self.expected[(version, *key)]
        self.note("right" if right else "wrong", body)

    def judge_early(self):
        "Judge what was answered before the new answers were known here."
        for phase, key, quantiles, right in self.early:
            self.phase = phase
            self.note("right" if right and quantiles == self.expected.get(key) else "wrong", quantiles)

    async def one(self, first: int, step: int):
        "One client with a kept connection."
        connection, number = None, first
        while not self.stop:
            key, name, data = self.request(number)
            for again in (False, True):
                try:
                    if connection is None:
                        connection = await asyncio.open_connection("127.0.0.1", self.port)
                    status, body, close = await exchange(*connection, data)
                except (OSError, asyncio.IncompleteReadError) as error:
                    connection = None
                    self.note("lost" if again else "reset", repr(error))
                    continue
                self.judge(key, name, status, body)
                if close:
                    connection[1].close()
                    connection = None
                break
            number += step
            await asyncio.sleep(self.pause)

    async def load(self, clients: int):
        await asyncio.gather(*(self.one(i, clients) for i in range(clients)))


async def exchange(reader, writer, data: bytes) -> tuple:
    "One request and its answer: status, body, and whether the server closes the connection."
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    at = lower.index(b"content-length: ") + 16
    body = await reader.readexactly(int(lower[at : lower.index(b"\r", at)]))
    return int(head.split(b" ", 2)[1]), body, b"connection: close" in lower


def expected_answers(settings) -> dict:
    "(version, ticker, horizon) -> quantiles, of the table that is served now."
    from stockpredict.predict.answer_table import open_answers

    table = open_answers(settings)
    answers = {key: json.loads(body + b"}") for key, body in table.rows.items()}
    return {(a["model"]["version"], *key): a["quantiles"] for key, a in answers.items()}


def example_question(settings) -> bytes:
    from stockpredict.predict.answer_table import open_answers

    example = open_answers(settings).header["example"]
    body = {"ticker": example["ticker"], "bars": example["bars"], "horizon": 1}
    return json.dumps(body).encode()


def start_service(settings, home: Path, port: int, readers: int, **more) -> subprocess.Popen:
    "`stockpredict serve` as a user starts it."
    ini = Path(home) / "load.ini"
    ini.write_text(settings.with_(**{"serving.port": port, "serving.readers": readers} | more).to_ini())
    env = {k: v for k, v in os.environ.items() if not k.startswith("STOCKPREDICT_")}
    env |= {"STOCKPREDICT_SETTINGS": str(ini), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stockpredict.cli.main", "serve"]
    return subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def children(process, role: str) -> list:
    "The living processes of the service with a role."
    living = []
    for child in psutil.Process(process.pid).children():
        try:
            if role in child.cmdline()[-1]:
                living.append(child)
        except (psutil.Error, IndexError):
            continue  # it has ended, or is about to begin
    return living


async def until(condition, process):
    "Wait until something is true, as long as the service lives."
    while not await asyncio.to_thread(condition):
        assert process.poll() is None, "the service ended"
        await asyncio.sleep(0.05)


async def story(hammer: Hammer, process, publish, clients: int, seconds: float, say=print) -> Counter:
    "Load, and in the middle of it everything that may happen to a service."
    load = asyncio.create_task(hammer.load(clients))
    await asyncio.sleep(seconds)

    def begin(phase):
        hammer.phase = phase
        say(f"{phase} …")
        return time.monotonic()

    begin("new model")
    hammer.expected |= await asyncio.to_thread(publish)
    await asyncio.sleep(seconds)

    begin("rolling restart")
    before = {p.pid for p in children(process, "")}
    process.send_signal(signal.SIGHUP)
    await until(lambda: not before & {p.pid for p in children(process, "")}, process)
    await asyncio.sleep(seconds)

    for phase, role in ((PHASES[3], "engine"), (PHASES[4], "reader")):
        begin(phase)
        victim = children(process, role)[0]
        victim.kill()
        victims = len(children(process, role))
        await until(lambda role=role, n=victims: len(children(process, role)) >= n, process)
        await asyncio.sleep(seconds)
    hammer.stop = True
    await load
    hammer.judge_early()
    return hammer.seen


def publish_second(settings):
    "Another model becomes the champion; returns what it says."
    from stockpredict.core.calendar import get_calendar
    from stockpredict.algebra.panel import Panel
    from stockpredict.catalogue.design_matrix import Spec
    from stockpredict.lake.lake import Lake
    from stockpredict.models.artifact import artifact_hash, ensure_keys, save_artifact
    from stockpredict.models.contract import make_model
    from stockpredict.models.dataset import Dataset
    from stockpredict.predict.answer_table import refresh_answers

    with Lake(settings.storage, read_only=True) as lake:
        panel = Panel.from_bars(lake.bars(), get_calendar())
    spec, registry = Spec(("ret_1", "vol_20")), settings.storage.registry_dir
    model = make_model("mean").fit(Dataset.from_panel(panel, spec, (1, 5)))
    key = ensure_keys(settings.storage.keys_dir).private
    saved = save_artifact(model, spec, registry / "versions" / "new2", {"entry_delay": 1}, key)
    saved = saved.rename(saved.with_name(artifact_hash(saved)))
    pointer = {"version": 2, "artifact": saved.name, "skill": "none"}
    (registry / "champion.new").write_text(json.dumps(pointer))
    (registry / "champion.new").rename(registry / "champion.json")
    refresh_answers(settings)
    return expected_answers(settings)


def table_of(seen: Counter) -> str:
    words = ("right", "wrong", "lost", "reset")
    lines = [f"{'':<26}" + "".join(f"{word:>10}" for word in words)]
    for phase in PHASES:
        lines.append(f"{phase:<26}" + "".join(f"{seen[phase, word]:>10,}" for word in words))
    return "\n".join(lines)


def kept(seen: Counter) -> bool:
    "Was every phase answered, no answer wrong or lost, and no connection reset but those of a killed reader?"
    bad = sum(seen[phase, word] for phase in PHASES for word in ("wrong", "lost"))
    resets = sum(seen[phase, "reset"] for phase in PHASES[:-1])
    return not bad and not resets and all(seen[phase, "right"] for phase in PHASES)


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--seconds", type=float, default=5.0)
    ask.add_argument("--readers", type=int, default=2)
    ask.add_argument("--clients", type=int, default=8)
    args = ask.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = prepare(home)
        hammer = Hammer(spare_port(), expected_answers(settings), example_question(settings))
        process = start_service(settings, home, hammer.port, args.readers)
        try:
            asyncio.run(_run(hammer, process, settings, args))
        finally:
            process.terminate()
            process.wait(60)
        print(table_of(hammer.seen))
        for failure in hammer.failures[:10]:
            print(failure)
        return int(not kept(hammer.seen))


async def _run(hammer, process, settings, args):
    await until(lambda: ready(hammer.port), process)
    await story(hammer, process, lambda: publish_second(settings), args.clients, args.seconds)


def ready(port: int) -> bool:
    "Do readers answer, and has the engine loaded its model?"
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(f"http://127.0.0.1:{port}/health") as answer:
            return json.load(answer)["components"]["model"]["status"] == "ok"
    except (URLError, OSError, KeyError):
        return False


if __name__ == "__main__":
    sys.exit(main())

"""How long a person waits: `stockpredict --help`, the first RSI, and the service until it answers, beside
the bare frameworks.

    python benchmarks/startup.py [--rsi]

Peers in the same run: a typer program with one command, the imports of pandas and torch alone, and a
FastAPI application with one route under uvicorn. The first RSI is that of a new process after `make env`: the
bars of the sample, a panel, `rsi_14` with its proof. It is measured in CPU seconds (user and system, the best
of three processes), and a busy machine stretches those too: compare them with the imports of the same run.
`--rsi` measures nothing else.
"""

import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

TYPER = "import typer\napp = typer.Typer()\n@app.command()\ndef hello(): pass\napp()"
FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n@app.get('/health')\nasync def health(): return {}\n"

IMPORTS = "import pandas, torch"
RSI = """
import stockpredict as sp
from stockpredict.catalogue.feature import compute
(x,) = compute(sp.Panel.from_bars(sp.sample_prices()), ["rsi_14"]).values()
assert x.isfinite().sum() > 100_000
"""


def best(measure, n=3) -> float:
    "The smallest of `n` measurements, in seconds: noise only ever adds."
    return min(measure() for _ in range(n))


def runs(*command) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def cpu(code) -> float:
    "CPU seconds of a new process."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_rsi():
    "The first RSI of a process, in turn with its imports alone."
    pairs = [(cpu(RSI), cpu(IMPORTS)) for _ in range(3)]
    ours, peer = (min(column) for column in zip(*pairs, strict=True))
    print(
        f"first RSI             {ours:6.2f} CPU s   pandas and torch alone {peer:6.2f} CPU s   ours on top "
        f"{ours - peer:5.2f}   (promised: 2 in all)"
    )


def spare_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(command, port, cwd, env) -> float:
    "Seconds from the start of a server to its first answer of any status."
    started = time.perf_counter()
    child = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - started < 60:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            except HTTPError:
                pass
            except (URLError, OSError):
                time.sleep(0.01)
                continue
            return time.perf_counter() - started
        raise SystemExit(f"{' '.join(command)} did not answer within 60 s")
    finally:
        child.terminate()
        child.wait()


def main():
    first_rsi()
    if "--rsi" in sys.argv:
        return
    ours = best(lambda: runs(sys.executable, "-m", "stockpredict.cli.main", "--help"))
    peer = best(lambda: runs(sys.executable, "-c", TYPER, "--help"))
    print(
        f"stockpredict --help   {ours:6.2f} s   typer alone   {peer:6.2f} s   ratio "
        f"{ours / peer:5.2f}   (promised: under 1 s)"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bare.py").write_text(FASTAPI)
        env = {**os.environ, "STOCKPREDICT_SERVING__REDIS_URL": ""}

        def serve(*app):
            port = spare_port()
            command = [sys.executable, "-m", "uvicorn", *app, "--host", "127.0.0.1", "--port", str(port)]
            return answers(command, port, folder if app[0] == "bare:app" else Path.cwd(), env)

        ours = best(lambda: serve("--factory", "stockpredict.serve.app:app_factory"))
        peer = best(lambda: serve("bare:app"))
    print(
        f"service answers       {ours:6.2f} s   FastAPI alone {peer:6.2f} s   ratio "
        f"{ours / peer:5.2f}   (promised: under 5 s)"
    )


if __name__ == "__main__":
    main()

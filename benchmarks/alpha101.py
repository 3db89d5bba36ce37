"""Alpha101 for a whole market, beside KunQuant, in one run.

    python benchmarks/alpha101.py [--tickers 4000] [--sessions 261] [--rounds 5] [--no-install]

The market is made from a fixed seed. Ours computes all 101 formulas, the eighteen neutral to a sector
or an industry included. KunQuant's own list has the 82 that it can compute. CPU seconds of the whole process,
one thread, best of the rounds, after a first one that compiles and proves. The promise is 3.6 CPU s for 4,000
tickers and 261 sessions. KunQuant lives in an environment of its own in the user's cache folder, which the
first run makes. It compiles C++ for minutes, and where it cannot be installed it is reported as absent.

Measured with `--rounds 3`: ours 3.18 CPU s for 101 formulas (first use 6.0), KunQuant 12.2 for its 82.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROMISE = 3.6  # CPU s for 4,000 tickers and 261 sessions
PEER = "KunQuant==0.1.12"


def market(tickers: int, sessions: int) -> dict[str, np.ndarray]:
    "Prices in cents with a common factor, volumes, sectors and industries."
    rng, shape = np.random.default_rng(20200101), (sessions, tickers)
    move = 0.01 * rng.standard_normal((sessions, 1)) + 0.02 * rng.standard_normal(shape)
    close = 30 * np.exp(np.cumsum(move, axis=0) + 0.5 * rng.standard_normal(tickers))
    open_ = np.vstack([close[:1], close[:-1]]) * np.exp(0.006 * rng.standard_normal(shape))
    high = np.maximum(open_, close) * np.exp(0.008 * np.abs(rng.standard_normal(shape)))
    low = np.minimum(open_, close) * np.exp(-0.008 * np.abs(rng.standard_normal(shape)))
    volume = np.rint(np.exp(13 + 0.5 * rng.standard_normal(shape)))
    x = {k: np.round(v, 2) for k, v in dict(open=open_, high=high, low=low, close=close).items()}
    sector = rng.integers(1, 12, tickers)
    industry = sector * 20 + rng.integers(0, 13, tickers)
    x |= dict(volume=volume, sector=np.tile(sector, (sessions, 1)), industry=np.tile(industry, (sessions, 1)))
    x |= dict(
        raw_close=x["close"], shares_outstanding=np.tile(np.exp(rng.normal(18, 1, tickers)), (sessions, 1))
    )
    return {k: v.astype(np.float32) for k, v in x.items()}


def ours(x):
    import pandas as pd
    import torch

    from stockpredict.algebra.panel import Panel
    from stockpredict.catalogue.feature import compute

    torch.set_num_threads(1)
    sessions, tickers = x["close"].shape
    days = pd.bdate_range("2020-01-01", periods=sessions)
    fields = {k: torch.from_numpy(v) for k, v in x.items()}
    panel = Panel(fields, days, [f"T{i:05d}" for i in range(tickers)])
    return lambda: len(compute(panel, "alpha101"))


def kunquant(x):
    from KunQuant.Driver import KunCompilerConfig
    from KunQuant.jit import cfake
    from KunQuant.Op import Builder, Input, Output
    from KunQuant.predefined.Alpha101 import AllData, all_alpha
    from KunQuant.runner import KunRunner
    from KunQuant.Stage import Function

    with (builder := Builder()):
        data = AllData(**{k: Input(k) for k in ("open", "close", "high", "low", "volume", "amount")})
        for alpha in all_alpha:
            Output(alpha(data), alpha.__name__)
    config = KunCompilerConfig(input_layout="TS", output_layout="TS")
    library = cfake.compileit(
        [("alpha101", Function(builder.ops), config)], "alpha101", cfake.CppCompilerConfig()
    )
    module = library.getModule("alpha101")
    runner = KunRunner.createSingleThreadExecutor()
    arrays = {k: np.ascontiguousarray(x[k]) for k in ("open", "close", "high", "low", "volume")}
    arrays["amount"] = arrays["close"] * arrays["volume"]
    return lambda: len(KunRunner.runGraph(runner, module, arrays, 0, len(x["close"])))


def worker(who: str, path: str, rounds: int):
    "Time one engine in this process and print what was measured."
    with np.load(path) as z:
        x = {k: z[k] for k in z.files}
    began = time.process_time()
    job = globals()[who](x)
    count, spent = job(), []
    first = time.process_time() - began
    for _ in range(rounds):
        began = time.process_time()
        count = job()
        spent.append(time.process_time() - began)
    print(json.dumps(dict(first=first, cpu=min(spent), count=count)))


def environment(install: bool) -> Path | None:
    "The peer's own Python, made when it is missing."
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stockpredict" / "peers-alpha101"
    python, ready = home / "bin" / "python", home / "ready"
    if ready.exists() or not install:
        return python if ready.exists() else None
    print(f"making the peer's environment in {home}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "numpy", PEER]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        print(
            f"{PEER} could not be installed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        )
        return None
    ready.write_text(PEER)
    return python


def measure(python, who, path, rounds) -> dict | str:
    "Run one engine in a process of its own."
    command = [python, Path(__file__).resolve(), "--worker", who, path, "--rounds", str(rounds)]
    calm = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=calm, cwd=Path(path).parent)
    if done.returncode:
        return next((x for x in reversed(done.stderr.splitlines()) if "Error" in x), "no reason given")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tickers", type=int, default=4000)
    parser.add_argument("--sessions", type=int, default=261)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--no-install", action="store_true", help="leave KunQuant out if it is not there already"
    )
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        return worker(*a.worker, a.rounds)
    peer = environment(not a.no_install)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "market.npz"))
        np.savez(path, **market(a.tickers, a.sessions))
        print(f"Alpha101, {a.tickers:,} tickers x {a.sessions} sessions, single precision, one thread")
        for name, python, who in (("stockpredict", sys.executable, "ours"), ("KunQuant", peer, "kunquant")):
            got = measure(python, who, path, a.rounds) if python else "its environment was not made"
            if isinstance(got, str):
                print(f"{name:14} absent: {got}", flush=True)
                continue
            promise = (
                f"   promise {PROMISE}" if who == "ours" and (a.tickers, a.sessions) == (4000, 261) else ""
            )
            each = got["cpu"] / got["count"]
            line = f"{name:14}{got['count']:4} formulas {got['cpu']:6.2f} CPU s, {1000 * each:5.1f} ms each"
            print(f"{line}, first use {got['first']:.1f}{promise}", flush=True)


if __name__ == "__main__":
    main()

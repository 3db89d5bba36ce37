"""The engines of [flows]: speed-up on two processes, overhead per task, and the same hash each time.

    python benchmarks/engines.py [--engines local,processes,dask] [--workers 2] [--tickers 60]
    python benchmarks/engines.py --tickers 8 --sessions 620 --tasks 5 --candidates "reversal ridge"   # quick

Trains the candidates once on each engine in a call of its own, prints wall and CPU seconds, the speed-up over
`local`, the overhead of a task that does nothing, and whether all artifacts have the same hash.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from stockpredict.core.settings import load_settings
from stockpredict.ingest.ingest import ingest
from stockpredict.train.engines import run_jobs
from stockpredict.train.experiment import run_experiment

SMALL = {
    "data.source": "simulated",
    "features.names": "core",
    "models.candidates": "reversal ridge lightgbm lstm har",
    "models.trials": 2,
    "models.epochs": 2,
    "validation.first_train": 400,
    "validation.folds": 4,
}


def seconds() -> tuple:
    "Wall and CPU seconds so far, of this process and of its children that have ended."
    t = os.times()
    return time.perf_counter(), t.user + t.system + t.children_user + t.children_system


def overhead(settings, tasks: int) -> float:
    "Milliseconds that a task costs which does nothing, without the start of the workers."
    times = []
    for count in (1, tasks):
        began = seconds()[0]
        run_jobs(settings, np.power, 2.0, [(1,)] * count, ["nothing"] * count)
        times.append(seconds()[0] - began)
    return 1e3 * max(times[1] - times[0], 0.0) / (tasks - 1)


def identity(study) -> str:
    "One hash of every artifact and forecast of an experiment."
    content = {n: (c.artifact, study.audit.forecasts[n]) for n, c in study.candidates.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def main():
    ask = argparse.ArgumentParser(description="Engines of the training.")
    ask.add_argument("--engines", default="local,processes,dask")
    ask.add_argument("--workers", type=int, default=2)
    ask.add_argument("--tickers", type=int, default=60)
    ask.add_argument("--sessions", type=int, default=900)
    ask.add_argument("--tasks", type=int, default=400, help="that do nothing")
    ask.add_argument("--candidates", default=SMALL["models.candidates"], help="names between spaces")
    asked = ask.parse_args()
    hashes, local = set(), None
    print(f"{'engine':10} {'wall s':>8} {'CPU s':>8} {'speed-up':>9} {'ms a task':>10}", flush=True)
    with tempfile.TemporaryDirectory(prefix="stockpredict-engines-") as home:
        market = {"simulated.tickers": asked.tickers, "simulated.sessions": asked.sessions}
        market["models.candidates"] = asked.candidates
        base = load_settings(overrides={**SMALL, **market, "storage.home": home}, environ={})
        ingest(base)
        for engine in asked.engines.split(","):
            settings = base.with_(**{"flows.engine": engine, "flows.workers": asked.workers})
            wall, cpu = seconds()
            study = run_experiment(settings, f"{home}/work/{engine}")
            wall, cpu = (now - then for now, then in zip(seconds(), (wall, cpu), strict=True))
            local = local or wall
            hashes.add(identity(study))
            each = overhead(settings, asked.tasks)
            print(f"{engine:10} {wall:8.1f} {cpu:8.1f} {local / wall:8.2f}x {each:10.2f}", flush=True)
    same = len(hashes) == 1
    print(f"{'the same' if same else 'DIFFERENT'} artifacts and forecasts: {', '.join(sorted(hashes))}")
    return not same


if __name__ == "__main__":
    raise SystemExit(main())

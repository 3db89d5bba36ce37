"""The newest session of a whole market: every feature of one more bar, beside computing all of history again.

    python benchmarks/latest.py [--tickers 10000] [--sessions 600] [--halted 0.02] [--rounds 2] [--no-naive]

A market of the size asked for is made from a fixed seed, once without a gap and once with some tickers halted
now and then. CPU seconds of the whole process are compared, best of the rounds, after a first one that
compiles and proves. Beside the bare values stand the two that use them: the engine's input (`make_inputs`)
and the store's file of one session, without the reading of bars from a lake. The naive way takes the ordinary
batch over all sessions and keeps its last row; it is measured on a twentieth of the tickers and multiplied,
because its result would not fit. There every value is compared to the last bit.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stockpredict.catalogue.feature import SETS, as_features, compute
from stockpredict.catalogue.latest import latest
from stockpredict.catalogue.design_matrix import Spec, make_inputs
from stockpredict.algebra.panel import FIELDS, Panel, equal_with_nan
from stockpredict.catalogue.part_files import write_part

CEILING = 3.0  # CPU seconds


def market(tickers: int, sessions: int, halted: float) -> Panel:
    "Prices that wander, some tickers listed late, some halted for a few sessions."
    noise = np.random.Generator(np.random.PCG64(20200101))

    def draw(scale):
        return scale * noise.standard_normal((sessions, tickers), dtype=np.float32)

    close = 40 * np.exp(np.cumsum(draw(0.02), axis=0))
    open_ = close * np.exp(draw(0.01))
    x = dict(
        open=open_,
        high=np.maximum(open_, close) * np.exp(np.abs(draw(0.01))),
        low=np.minimum(open_, close) / np.exp(np.abs(draw(0.01))),
        close=close,
        volume=np.rint(np.exp(13 + draw(1.0))),
    )
    absent = np.arange(sessions)[:, None] < noise.integers(-9 * sessions, sessions, tickers)
    for i in np.flatnonzero(noise.random(tickers) < halted):
        absent[(a := noise.integers(0, sessions - 9)) : a + 5, i] = True
    for k in FIELDS:
        x[k][absent] = np.nan
    return Panel(
        {k: torch.from_numpy(v) for k, v in x.items()},
        pd.bdate_range("2015-01-01", periods=sessions),
        [f"T{i:05d}" for i in range(tickers)],
    )


def timed(
    job, rounds: int
) -> tuple[float, float, float, object]:  # CPU and wall of the best round, CPU of the first, the result
    cpu, wall = [], []
    for _ in range(rounds + 1):
        c, w = time.process_time(), time.perf_counter()
        out = job()
        cpu.append(time.process_time() - c)
        wall.append(time.perf_counter() - w)
    return min(cpu[1:] or cpu), min(wall[1:] or wall), cpu[0], out


def written(panel: Panel, names: list) -> dict:  # the newest session as the store keeps it
    "One session computed and written to a file."
    values, there = latest(panel, names), panel.present[-1:].numpy()
    with tempfile.TemporaryDirectory() as folder:
        return write_part(
            Path(folder),
            panel.sessions[-1:],
            panel.tickers,
            there,
            {f.name: x.numpy() for f, x in values.items()},
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in dict(tickers=10_000, sessions=600, rounds=2).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--halted", type=float, default=0.02, help="share of tickers that were halted once")
    parser.add_argument("--naive", action=argparse.BooleanOptionalAction, default=True)
    a = parser.parse_args()
    torch.set_num_threads(1)
    every = [f for f in as_features("all") if f.fields <= set(FIELDS)]
    fewer = [f for f in every if f.name not in set(SETS["alpha360"])]
    by_hand = sum(f.recipe is None for f in every)
    print(f"{len(every)} features, {by_hand} of them without a recipe ({by_hand / len(every):.1%})")
    print(f"{'market':24}{'what':>36}{'CPU s':>8}{'wall s':>8}   first use, CPU s")
    for halted in (0.0, a.halted):
        panel = market(a.tickers, a.sessions, halted)
        spec = Spec(tuple(f.name for f in every))
        jobs = {
            f"all ({len(every)})": lambda p=panel: latest(p, every),
            f"without Alpha360 ({len(fewer)})": lambda p=panel: latest(p, fewer),
            "all, as the engine's input": lambda p=panel, s=spec: make_inputs(p, s, 1),
            "all, as a file of the store": lambda p=panel: written(p, every),
        }
        for label, job in jobs.items():
            cpu, wall, first, _ = timed(job, a.rounds)
            bound = f"   ceiling {CEILING:g}" if a.tickers == 10_000 and label.startswith("all (") else ""
            print(
                f"{f'{a.tickers:,} tickers, {halted:.0%} halted':24}{label:>36}{cpu:8.2f}{wall:8.2f} "
                f"  {first:.1f}{bound}",
                flush=True,
            )
        if not a.naive:
            continue
        few = panel.select(panel.tickers[::20])
        cpu, wall, _, whole = timed(lambda p=few: compute(p, every), 0)
        now = latest(few, every)
        equal = sum(equal_with_nan(now[f], whole[f.name][-1:]) for f in every)
        print(
            f"{'':24}{'all of history again':>36}{cpu * 20:8.1f}{wall * 20:8.1f}   from "
            f"{len(few.tickers)} tickers; "
            f"{equal} of {len(every)} features have the same newest values to the last bit",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""How the cost of a batch of features grows with the market: straight lines, in tickers and in sessions.

    python benchmarks/growth.py [--features core] [--tickers 100 200 400 800 1600] [--sessions 400 800 1600
    3200] [--out growth.png]

CPU seconds of this process for each size, best of the rounds. The exponent is the slope of log cost on log
size, by least squares over the whole grid: 1 is a straight line, 2 would be four times the cost for twice the
market.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from latest import market

from stockpredict.catalogue.feature import as_features, compute
from stockpredict.algebra.panel import FIELDS

CEILING = 1.1  # exponent


def cost(panel, names, rounds: int) -> float:  # CPU seconds
    out = []
    for _ in range(rounds):
        begin = time.process_time()
        compute(panel, names)
        out.append(time.process_time() - begin)
    return min(out)


def exponents(cells: dict) -> tuple[float, float]:  # in tickers, in sessions
    "Slopes of log cost on log size."
    rows = np.array([(1, np.log(n), np.log(t)) for n, t in cells])
    return tuple(np.linalg.lstsq(rows, np.log(list(cells.values())), rcond=None)[0][1:])


def plot(cells: dict, path: Path):
    "Cost by tickers, a line for each length of history, and a straight one to compare with."
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for t in sorted({t for _, t in cells}):
        x = sorted(n for n, s in cells if s == t)
        axes.loglog(x, [cells[n, t] for n in x], "o-", label=f"{t:,} sessions")
    n, t = min(cells)
    ends = np.array([n, max(n for n, _ in cells)])
    axes.loglog(ends, cells[n, t] * ends / n, "k:", label="a straight line")
    axes.set(xlabel="tickers", ylabel="CPU seconds")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=80, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", nargs="+", default=["core", "ohlcv", "market"])
    parser.add_argument("--tickers", type=int, nargs="+", default=[100, 200, 400, 800, 1600])
    parser.add_argument("--sessions", type=int, nargs="+", default=[400, 800, 1600, 3200])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir(), "growth.png"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    names = [f for f in as_features(a.features) if f.fields <= set(FIELDS)]
    largest = market(max(a.tickers), max(a.sessions), 0.0)
    compute(largest.select(largest.tickers[:8]), names)  # compiles and proves
    cells = {}
    print(
        f"{len(names)} features, CPU s\n{'tickers':>10}"
        + "".join(f"{f'{t:,} sessions':>16}" for t in a.sessions)
    )
    for n in a.tickers:
        some = largest.select(largest.tickers[:n])
        for t in a.sessions:
            cells[n, t] = cost(some.last(t), names, a.rounds)
        print(f"{n:10,}" + "".join(f"{cells[n, t]:16.3f}" for t in a.sessions), flush=True)
    by_tickers, by_sessions = exponents(cells)
    per_value = 1e9 * cells[max(a.tickers), max(a.sessions)] / (max(a.tickers) * max(a.sessions) * len(names))
    print(
        f"exponent {by_tickers:.2f} in tickers, {by_sessions:.2f} in sessions (ceiling {CEILING:g}); "
        f"{per_value:.1f} ns a value at the largest size"
    )
    plot(cells, a.out)
    print(f"plot: {a.out}")


if __name__ == "__main__":
    main()

"""Every pair of a training and a test decision, by the definition, in random configurations of the splits.

    python benchmarks/splits.py [--configurations 10000] [--seed 0]

Walk-forward folds (expanding and rolling), combinatorial folds, and purges of labels that end at different
times. A pair is wrong when the windows of the two labels meet, or when the embargo after a test label is
broken.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")


def wrong_pairs(train, test, ends, embargo: int) -> tuple:
    "Wrong pairs, and pairs looked at."
    import numpy as np

    t, s = np.meshgrid(np.asarray(train), np.asarray(test), indexing="ij")
    apart = np.minimum(ends[t], ends[s]) < np.maximum(t, s)
    late = (t > ends[s]) & (t <= ends[s] + embargo)
    return int((~apart | late).sum()), t.size


def check(rng) -> tuple:
    "Kind, wrong pairs and pairs of one random configuration; nothing when it is refused."
    import numpy as np

    from stockpredict.core.errors import NotEnoughSessions
    from stockpredict.evaluate.index_splits import combinatorial_folds, purge
    from stockpredict.evaluate.splits import walk_forward

    kind = ("walk-forward", "combinatorial", "labels of any length")[rng.integers(3)]
    n, horizon, delay = int(rng.integers(30, 400)), int(rng.integers(1, 15)), int(rng.integers(0, 3))
    embargo, ends = int(rng.integers(0, 10)), np.arange(n) + horizon + delay
    try:
        if kind == "walk-forward":
            window = None if rng.random() < 0.5 else int(rng.integers(1, 200))
            first = int(rng.integers(1, 150))
            folds = walk_forward(n, horizon, delay, int(rng.integers(1, 6)), first, embargo, 5, window)
            pairs = [wrong_pairs(f.train, f.test, ends, embargo) for f in folds]
        elif kind == "combinatorial":
            blocks = int(rng.integers(2, 7))
            tested = int(rng.integers(1, blocks))
            folds = combinatorial_folds(n, horizon, delay, blocks, tested, embargo)
            pairs = [wrong_pairs(f.train, f.test, ends, embargo) for f in folds]
        else:
            ends = np.arange(n) + rng.integers(1, horizon + 1, n)
            test = np.flatnonzero(rng.random(n) < rng.uniform(0, 0.3))
            rest = np.setdiff1d(np.arange(n), test)
            pairs = [wrong_pairs(purge(rest, test, horizon, embargo, ends), test, ends, embargo)]
    except NotEnoughSessions:
        return kind, None, 0
    return kind, sum(w for w, _ in pairs), sum(p for _, p in pairs)


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--configurations", type=int, default=10_000)
    ask.add_argument("--seed", type=int, default=0)
    args = ask.parse_args()
    import numpy as np
    from tqdm import tqdm

    rng, done = np.random.default_rng(args.seed), {}
    for _ in tqdm(range(args.configurations), disable=None):
        kind, wrong, pairs = check(rng)
        row = done.setdefault(kind, [0, 0, 0, 0])
        row[0] += 1
        row[1] += wrong is None
        row[2] += pairs
        row[3] += wrong or 0
    for kind, (count, refused, pairs, wrong) in done.items():
        print(f"{kind}: {count:,} configurations ({refused:,} refused), {pairs:,} pairs, {wrong} wrong")


if __name__ == "__main__":
    main()

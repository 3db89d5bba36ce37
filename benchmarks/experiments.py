"""How often equal challengers are called different, and how soon planted ones are seen, in a year of looks.

    python benchmarks/experiments.py            200 experiments of each kind, 72 CPU seconds
    python benchmarks/experiments.py --draws 50

The paired daily differences are drawn with fat tails and with volatility that comes and goes, because a test
that holds for the normal distribution alone would promise too much. Equal means: no difference in the mean.
"""

import argparse

import numpy as np

from stockpredict.predict.experiment_scores import PairedSession, judge_sessions
from stockpredict.predict.experiments import ModelExperiment

EXPERIMENT = ModelExperiment("exp-20261130T150000-5f3a9c01", "a" * 64, "b" * 64, (2, 1), "5f" * 32)
KINDS = {
    "equal": dict(gain=0.0, coverage=0.9),
    "a little worse": dict(gain=-0.02, coverage=0.9),
    "worse": dict(gain=-0.05, coverage=0.9),
    "better": dict(gain=0.05, coverage=0.9),
    "intervals too narrow": dict(gain=0.0, coverage=0.65),
}


def sessions(rng, gain, coverage, count=250, tickers=60):
    "A year of paired sessions with fat tails and changing volatility."
    scale = np.exp(0.5 * np.cumsum(rng.normal(0, 0.1, count)) - 0.5 * np.arange(count) * 0.0025)
    differences = gain + 0.05 * np.clip(scale, 0.3, 3) * rng.standard_t(4, count)
    shares = rng.binomial(tickers, coverage, count) / tickers
    return [
        PairedSession(f"{n}", tickers, d, c) for n, (d, c) in enumerate(zip(differences, shares, strict=True))
    ]


def first_look(drawn):
    "The session at which an experiment is decided, and how; the last one when it never is."
    verdict = judge_sessions(EXPERIMENT, drawn)
    if verdict.decision == "running":
        return len(drawn), "running"
    low, high = 1, len(drawn)  # p-values remember their smallest value, so decided stays decided
    while low < high:
        middle = (low + high) // 2
        decided = judge_sessions(EXPERIMENT, drawn[:middle]).decision != "running"
        low, high = (low, middle) if decided else (middle + 1, high)
    return low, judge_sessions(EXPERIMENT, drawn[:low]).decision


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    draws, rng = parser.parse_args().draws, np.random.default_rng(5)
    print(
        f"{'kind':24}{'running':>9}{'better':>9}{'worse':>9}{'coverage':>10}  median session of the decision"
    )
    for kind, options in KINDS.items():
        results = [first_look(sessions(rng, **options)) for _ in range(draws)]
        counts = [sum(d == word for _, d in results) for word in ("running", "better", "worse", "coverage")]
        decided = [n for n, d in results if d != "running"]
        when = f"{np.median(decided):.0f}" if decided else "–"
        shares = "".join(f"{c / draws:>{w}.1%}" for c, w in zip(counts, (9, 9, 9, 10), strict=True))
        print(f"{kind:24}{shares}  {when}")


if __name__ == "__main__":
    main()

"""Fit of a linear model on 100 sessions, end to end: bars, features, labels, fit, forecast.

    python benchmarks/small_fit.py [--rows 100] [--rounds 5]

A hundred rows of bars in all are refused with a sentence, because the intervals need 100 outcomes that the
fit has not seen, so it is a hundred sessions of ten tickers. Printed are CPU seconds of a process with its
libraries (best of the rounds), and those of a new process with everything it imports. The bar is 1 s for the
first.
"""

import argparse
import resource
import time


def bars_of(rows: int):
    "Bars of a simulated market with ten tickers."
    from stockpredict.sources.simulate import simulate

    return simulate("null", tickers=10, sessions=rows, seed=1).bars


def fit(bars):
    "A ridge regression on three features, and its forecast of the newest session."
    from stockpredict.algebra.panel import Panel
    from stockpredict.models.contract import make_model
    from stockpredict.models.dataset import Dataset

    data = Dataset.from_panel(Panel.from_bars(bars), ("ret_1", "mom_5", "vol_5"), (1,))
    return make_model("ridge").fit(data).predict(data.inputs, len(data.inputs.sessions) - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    bars, seconds = bars_of(options.rows), []
    fit(bars)
    used = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(options.rounds):
        begin = time.process_time()
        forecast = fit(bars)
        seconds.append(time.process_time() - begin)
    print(f"{options.rows} sessions: {min(seconds):.3f} CPU s with the libraries there; {forecast!r}")
    print(f"new process, imports and first fit included: {used.ru_utime + used.ru_stime:.1f} CPU s")


if __name__ == "__main__":
    main()

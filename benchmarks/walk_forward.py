"""Time of a walk-forward with monthly refits on real stocks and Alpha158, against LightGBM called directly
with the same rows and parameters in the same run.

    python benchmarks/walk_forward.py [--data ../shared/data/us_daily_2015_2020.parquet] [--refits 12]
                                      [--threads 2] [--horizons 1]

Without --refits all months after the first two years are refitted (about 34). What is printed are CPU seconds
and the wall time; on a busy machine only the first can be compared.
"""

import argparse
import itertools
import resource
import time
from pathlib import Path


def read_data(path: Path, horizons: tuple):
    "Features, labels and volatility of every ticker of the file."
    import pandas as pd

    from stockpredict.algebra.panel import Panel
    from stockpredict.catalogue.design_matrix import Spec
    from stockpredict.models.dataset import Dataset

    bars = pd.read_parquet(path).rename(columns=dict(date="event_time"))
    bars = bars[(bars[["open", "high", "low", "close"]] > 0).all(axis=1)].drop_duplicates(
        ["ticker", "event_time"], keep="last"
    )
    panel = Panel.from_bars(bars)
    return Dataset.from_panel(panel, Spec("alpha158"), horizons)


def month_starts(sessions, first: int) -> list:
    "Positions of the first session of each month from `first` on, and the end."
    months = sessions.to_period("M")
    starts = [i for i in range(first, len(sessions)) if months[i] != months[i - 1]]
    return [*starts, len(sessions)]


def direct_seconds(data, end: int, params: dict) -> float:
    "CPU seconds of the trainings of one refit, by LightGBM alone on the same rows."
    import lightgbm
    import numpy as np

    from stockpredict.models.trees import FIXED_PARAMS

    total = 0.0
    train, _ = data.window(0, end).split()
    for part in (train, data.window(0, end)):
        t, n = part.rows()
        x, y = part.inputs.x[t, n].numpy(), part.relative()[t, n].numpy()
        for j in range(y.shape[1]):
            ok = np.isfinite(y[:, j])
            settings = FIXED_PARAMS | dict(
                seed=0, num_leaves=15, learning_rate=0.05, min_data_in_leaf=round(0.01 * ok.sum())
            )
            begin = time.process_time()
            lightgbm.train(settings | params, lightgbm.Dataset(x[ok], y[ok, j]), num_boost_round=60)
            total += time.process_time() - begin
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/us_daily_2015_2020.parquet"))
    parser.add_argument("--refits", type=int, default=0)
    parser.add_argument("--model", default="lightgbm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--horizons", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    import torch

    from stockpredict.evaluate.metrics import ic_summary, rank_ic
    from stockpredict.models.contract import make_model
    from stockpredict.models.forecast import join_forecasts

    torch.set_num_threads(options.threads)
    begin, cpu = time.perf_counter(), time.process_time()
    data = read_data(options.data, tuple(options.horizons))
    print(f"{data}\n  features and labels: {time.process_time() - cpu:.1f} CPU s")
    starts = month_starts(data.inputs.sessions, 504)
    months = list(itertools.pairwise(starts))
    if options.refits:
        months = months[:: max(1, len(months) // options.refits)][: options.refits]
    parts, cpu = [], time.process_time()
    for start, stop in months:
        model = make_model(options.model)
        model.threads = options.threads
        model.fit(data.window(0, start))
        parts.append(model.predict(data.inputs.until(stop), start, stop))
    each = (time.process_time() - cpu) / len(months)
    print(f"  {len(months)} refits: {each:.1f} CPU s each, wall {time.perf_counter() - begin:.0f} s in all")
    if options.model == "lightgbm":
        middle = months[len(months) // 2][0]
        cpu = time.process_time()
        model = make_model("lightgbm")
        model.threads = options.threads
        model.fit(data.window(0, middle))
        ours = time.process_time() - cpu
        theirs = direct_seconds(data, middle, dict(num_threads=options.threads))
        print(f"  one refit of {middle} sessions: {ours:.1f} CPU s, LightGBM alone {theirs:.1f}")
    forecast = join_forecasts(parts)
    y = data.y[data.inputs.sessions.get_indexer(forecast.sessions), :, 0]
    print(f"  rank IC {ic_summary(rank_ic(forecast.score[..., 0], y))}")
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()

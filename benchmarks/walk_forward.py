"""Time of a walk-forward with monthly refits on real stocks and Alpha158, against LightGBM called directly
with the same rows and parameters in the same run.

    python benchmarks/walk_forward.py [--data ../shared/data/us_daily_2015_2020.parquet] [--refits 12]
                                      [--workers 2] [--horizons 1] [--limits 6]

Without --refits all months after the first two years are refitted (about 36). `--workers` of them are
made at a time, each on one core, as the engine `processes` does it. Printed are CPU seconds and the wall
time; on a busy machine only the first can be compared, and divided by the workers it is the least wall time.

`--limits 6` measures instead, on that many refits, what the limit on the features of a tree (`feature_share`)
costs in skill: rank IC with and without it on the same sessions, once with the labels of the file and once
with a weak planted signal, because in the file there is next to nothing to lose.

Measured on two quiet cores: all 36 refits 226 s by the clock and 437 CPU s, features and labels included, at
most 3.37 GiB; 12.0 CPU s a refit, LightGBM alone 12.3. With two threads in each booster a refit took 57 to 67
CPU s, half of it threads that waited for each other.
With `--limits 3`, in 753 sessions, for 7.4 instead of 10.6 CPU s a fit: with the labels of the file rank IC
0.0052 with the limit, 0.0050 without, gap +0.0002 ± 0.0028; with the planted signal 0.0287 and 0.0291, gap
-0.0003 ± 0.0022.
"""

import argparse
import itertools
import resource
import time
from concurrent.futures import ThreadPoolExecutor
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

    from stockpredict.models.trees import FIXED_PARAMS, feature_share

    total = 0.0
    train, _ = data.window(0, end).split()
    for part in (train, data.window(0, end)):
        t, n = part.rows()
        x, y = part.inputs.x[t, n].numpy(), part.relative()[t, n].numpy()
        for j in range(y.shape[1]):
            ok = np.isfinite(y[:, j])
            settings = FIXED_PARAMS | dict(feature_fraction=feature_share(x.shape[1]))
            settings |= dict(
                seed=0, num_leaves=15, learning_rate=0.05, min_data_in_leaf=round(0.01 * ok.sum())
            )
            begin = time.process_time()
            lightgbm.train(settings | params, lightgbm.Dataset(x[ok], y[ok, j]), num_boost_round=60)
            total += time.process_time() - begin
    return total


def plant(data):
    "Add a weak signal to the labels: an interaction of two features, and a third one."
    import torch

    x = data.inputs.x
    signal = torch.where(x[..., 10] > 0, x[..., 60], -x[..., 60]) + 0.5 * x[..., 110]
    signal /= signal[data.inputs.present].std()
    data.y += 0.03 * (signal * data.inputs.volatility)[..., None]


def cost_of_limit(data, refits: int):
    "Rank IC of the boosters with and without the limit of `feature_share`, on the same sessions."
    import numpy as np
    import torch

    from stockpredict.evaluate.metrics import rank_ic
    from stockpredict.models import trees
    from stockpredict.models.contract import make_model

    limit, n = trees.MOST_COLUMNS, len(data.inputs.sessions)
    ends = np.linspace(504, n, refits + 1).astype(int)
    for what in ("the labels of the file", "a planted signal"):
        ic, cpu = {True: [], False: []}, {True: 0.0, False: 0.0}
        for start, stop in itertools.pairwise(ends):
            for limited in ic:
                trees.MOST_COLUMNS = limit if limited else float("inf")
                begin = time.process_time()
                model = make_model("lightgbm").fit_for_score(data.window(0, int(start)))
                cpu[limited] += time.process_time() - begin
                score = model.score(data.inputs, int(start), int(stop))[..., 0]
                score = torch.where(data.inputs.present[start:stop], score, float("nan"))
                ic[limited].append(rank_ic(score, data.y[start:stop, :, 0]))
        trees.MOST_COLUMNS = limit
        a, b = (np.concatenate(ic[key]) for key in (True, False))
        gap = (a - b)[np.isfinite(a - b)]
        print(
            f"  {what}: rank IC {np.nanmean(a):.4f} with the limit, {np.nanmean(b):.4f} without, gap "
            f"{gap.mean():+.4f} ± {1.96 * gap.std() / len(gap) ** 0.5:.4f} in {len(gap)} sessions; "
            f"{cpu[True] / refits:.1f} and {cpu[False] / refits:.1f} CPU s a fit",
            flush=True,
        )
        plant(data)


def walk(data, name: str, months: list, workers: int):
    "Forecasts of all months, `workers` refits at a time; CPU seconds of each refit and the wall time."
    from stockpredict.models.contract import make_model
    from stockpredict.models.forecast import join_forecasts

    kind = type(make_model(name))  # loads the models before the threads begin

    def refit(month):
        start, stop = month
        model = kind().fit(data.window(0, start))
        return model.predict(data.inputs.until(stop), start, stop)

    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(refit, months))
    return join_forecasts(parts), (time.process_time() - cpu) / len(months), time.perf_counter() - wall


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/us_daily_2015_2020.parquet"))
    parser.add_argument("--refits", type=int, default=0)
    parser.add_argument("--model", default="lightgbm")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--horizons", type=int, nargs="+", default=[1])
    parser.add_argument("--limits", type=int, default=0)
    options = parser.parse_args()
    import torch

    from stockpredict.evaluate.metrics import ic_summary, rank_ic
    from stockpredict.models.contract import make_model

    torch.set_num_threads(1)
    begin, cpu = time.perf_counter(), time.process_time()
    data = read_data(options.data, tuple(options.horizons))
    print(f"{data}\n  features and labels: {time.process_time() - cpu:.1f} CPU s", flush=True)
    if options.limits:
        return cost_of_limit(data, options.limits)
    months = list(itertools.pairwise(month_starts(data.inputs.sessions, 504)))
    if options.refits:
        months = months[:: max(1, len(months) // options.refits)][: options.refits]
    forecast, each, wall = walk(data, options.model, months, options.workers)
    print(f"  {len(months)} refits: {each:.1f} CPU s each, wall {wall:.0f} s with {options.workers} workers")
    print(f"  all of it: {time.process_time() - cpu:.0f} CPU s, wall {time.perf_counter() - begin:.0f} s")
    y = data.y[data.inputs.sessions.get_indexer(forecast.sessions), :, 0]
    print(f"  rank IC {ic_summary(rank_ic(forecast.score[..., 0], y))}")
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)
    if options.model == "lightgbm":
        middle = months[len(months) // 2][0]
        cpu = time.process_time()
        make_model("lightgbm").fit(data.window(0, middle))
        ours = time.process_time() - cpu
        theirs = direct_seconds(data, middle, dict(num_threads=1))
        print(f"  one refit of {middle} sessions: {ours:.1f} CPU s, LightGBM alone {theirs:.1f}")


if __name__ == "__main__":
    main()

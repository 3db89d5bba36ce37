"""Qlib's Linear and LightGBM beside ours on identical features, labels and splits: IC and CPU seconds.

    python benchmarks/qlib_models.py [--data ../shared/data/us_daily_2015_2020.parquet] [--every 4]
                                     [--refits 6]

pyqlib runs in an environment of its own (`benchmarks/peers.py`). Both read the same Alpha158 values of ours
and the same label (the return of one session less the mean of the session, in units of volatility, filled
one session later), and learn from the same rows of an expanding window: sessions whose outcome was known at
the refit. Qlib's models are its own classes, fed through its own `DataHandlerLP` and `DatasetH`, with the
parameters of its published Alpha158 benchmarks (`examples/benchmarks/Linear` and `LightGBM`):

- Linear: ordinary least squares; label ranked within the session (`CSRankNorm`), as its configuration does,
  and a second time with the label as it is.
- LightGBM: 210 leaves, depth 8, l1 205.7, l2 581.0, learning rate 0.2, up to 1,000 rounds with early stopping
  after 50; the last fifth of the rows is its validation segment.

Ours are `ridge` and `lightgbm` with their defaults. Compared is the mean IC of each session (Pearson and
rank): "within" says that ours is less than two of its standard errors away from Qlib's. The mean of the daily
differences with its own, much smaller standard error stands beside it. CPU seconds are those of fitting and
predicting, on one thread.

Printed with pyqlib 0.9.7 (121 tickers, 6 refits, 753 sessions from 2017 on), each within two standard errors:

| | rank IC, ours | Qlib | IC, ours | Qlib | CPU s, ours | Qlib |
|---|---|---|---|---|---|---|
| Linear | .0090 | .0092 | .0054 | .0052 | 9.1 | 4.8 |
| Linear, label as it is | .0090 | .0088 | .0054 | .0059 | 8.5 | 3.8 |
| LightGBM | .0054 | .0084 | .0053 | .0037 | 34 | 27 |

No IC here differs from 0 by two standard errors. Our seconds contain what Qlib's models lack: the
slope, drift and residual quantiles measured on unseen days, for which each model is fitted twice.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import peers

PEER = """
import json, os, sys, time, logging, tempfile
import numpy as np, pandas as pd, qlib
from qlib.workflow import R
from qlib.contrib.model.linear import LinearModel
from qlib.contrib.model.gbdt import LGBModel
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import StaticDataLoader

file, folder, out = sys.argv[1:4]
os.chdir(folder)  # qlib writes ./mlruns
uri = f"sqlite:///{folder}/runs.db"
manager = {"class": "MLflowExpManager", "module_path": "qlib.workflow.expm",
    "kwargs": {"uri": uri, "default_exp_name": "benchmark"}}
qlib.init(provider_uri=folder, exp_manager=manager, logging_level=logging.ERROR)
data = np.load(file)
days, width = pd.to_datetime(data["days"]), data["x"].shape[1]
index = pd.MultiIndex.from_arrays([days[data["t"]], data["n"]], names=["datetime", "instrument"])
columns = pd.MultiIndex.from_tuples([("feature", f"F{i}") for i in range(width)] + [("label", "LABEL0")])
frame = pd.DataFrame(np.hstack([data["x"], data["y"][:, None]]), index, columns)
ranked = [{"class": "DropnaLabel"}, {"class": "CSRankNorm", "kwargs": {"fields_group": "label"}}]
handlers = {steps: DataHandlerLP(data_loader=StaticDataLoader(frame), infer_processors=[],
    learn_processors=ranked[:steps]) for steps in (1, 2)}
scores = {name: np.full(len(index), np.nan) for name in ("linear", "plain", "lightgbm")}
cpu, place = dict.fromkeys(scores, 0.0), pd.Series(np.arange(len(index)), index)
tree = dict(loss="mse", colsample_bytree=0.8879, learning_rate=0.2, subsample=0.8789, lambda_l1=205.6999,
    lambda_l2=580.9768, max_depth=8, num_leaves=210, num_threads=1, seed=0)
for known, valid, start, stop in data["folds"]:
    segments = dict(train=(days[0], days[valid - 1]), valid=(days[valid], days[known - 1]),
        test=(days[start], days[stop - 1]))
    for name in scores:
        begin = time.process_time()
        parts = DatasetH(handlers[1 if name == "plain" else 2], segments)
        if name != "lightgbm":
            model = LinearModel("ols", include_valid=True)
            model.fit(parts)
        else:
            model = LGBModel(**tree)
            with R.start(experiment_name="benchmark"):
                model.fit(parts, verbose_eval=0)
        answer = model.predict(parts)
        cpu[name] += time.process_time() - begin
        scores[name][place[answer.index].to_numpy()] = answer.to_numpy()
np.savez(out, **scores)
print(json.dumps(dict(cpu=cpu, version=qlib.__version__)))
"""

PAIRS = (
    ("Linear", "ridge", "linear"),
    ("Linear, label as it is", "ridge", "plain"),
    ("LightGBM", "lightgbm", "lightgbm"),
)


def read(path: Path, every: int):
    "Alpha158 values, one-session labels and volatility of every so many tickers of the file."
    from stockpredict.algebra.panel import Panel
    from stockpredict.catalogue.design_matrix import Spec
    from stockpredict.core.calendar import get_calendar
    from stockpredict.evaluate.label_mask import untrusted_bars
    from stockpredict.models.dataset import Dataset
    from stockpredict.train.experiment import exclude_bars

    bars = pd.read_parquet(path).drop_duplicates(["ticker", "date"])
    bars = bars[(bars[["open", "high", "low", "close"]] > 0).all(axis=1)]
    bars = bars[bars.ticker.isin(sorted(bars.ticker.unique())[::every])]
    calendar, ratio = get_calendar(), bars.adj_close / bars.close
    times = calendar.closes(pd.DatetimeIndex(pd.to_datetime(bars.date)))
    bars = bars.assign(event_time=times, **{k: bars[k] * ratio for k in ("open", "high", "low", "close")})
    panel = Panel.from_bars(bars.drop(columns=["date", "adj_close"]), calendar)
    data = Dataset.from_panel(panel, Spec("alpha158"), (1,))
    return exclude_bars(data, panel, untrusted_bars(panel, calendar))[0]


def our_scores(data, folds, name: str):
    "Scores `[session, ticker]` of a model of ours over the folds, and its CPU seconds."
    from stockpredict.models.contract import make_model

    begin, score = time.process_time(), np.full(tuple(data.y.shape[:2]), np.nan)
    for _, _, start, stop in folds:
        model = make_model(name)
        model.threads = 1
        model.fit(data.window(0, start))
        score[start:stop] = model.predict(data.inputs.until(stop), start, stop).score[..., 0].numpy()
    return score, time.process_time() - begin


def compare(title: str, ours: np.ndarray, theirs: np.ndarray, y: np.ndarray, seconds: tuple):
    "Print the ICs of both and whether they are within two standard errors."
    from stockpredict.evaluate.metrics import hac_mean, ic_summary, rank_ic

    both = np.isfinite(ours) & np.isfinite(theirs)
    ours, theirs = (np.where(both, v, np.nan) for v in (ours, theirs))
    print(f"{title}: ours {seconds[0]:.1f} s, Qlib {seconds[1]:.1f} s CPU")
    values = {}
    for kind in ("rank IC", "IC"):
        if kind == "rank IC":
            daily = [np.asarray(rank_ic(v, y), float) for v in (ours, theirs)]
        else:
            known = [np.where(np.isfinite(y), v, np.nan) for v in (ours, theirs)]
            daily = [np.array([pearson(a, b) for a, b in zip(v, y, strict=True)]) for v in known]
        values = [ic_summary(d) for d in daily]
        gap = hac_mean(daily[0] - daily[1])
        within = "within" if abs(gap.value) <= 2 * values[1].se else "NOT within"
        print(f"  {kind}: ours {values[0]}, Qlib {values[1]}: {within} two standard errors; difference {gap}")


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    "Correlation of the pairs that are known, NaN with fewer than three."
    ok = np.isfinite(a) & np.isfinite(b)
    moving = ok.sum() > 2 and a[ok].std() > 0 and b[ok].std() > 0
    return float(np.corrcoef(a[ok], b[ok])[0, 1]) if moving else np.nan


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/us_daily_2015_2020.parquet"))
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--refits", type=int, default=6)
    options = parser.parse_args()
    data = read(options.data, options.every)
    sessions, reach = len(data.inputs.sessions), data.entry_delay + 1
    starts = np.linspace(504, sessions, options.refits + 1).astype(int)
    folds = [(a - reach, int(0.8 * (a - reach)), a, b) for a, b in itertools.pairwise(starts)]
    t, n = (v.numpy() for v in data.usable().nonzero(as_tuple=True))
    y, x = data.relative()[..., 0].numpy(), data.inputs.x.numpy()
    print(f"{data}\n{len(folds)} refits, tested on {sessions - 504} sessions, {len(t):,} rows")
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "rows.npz", Path(folder) / "scores.npz"
        days = data.inputs.sessions.tz_localize(None).normalize().to_numpy()
        np.savez(file, x=x[t, n], y=y[t, n], t=t, n=n, days=days, folds=np.array(folds))
        theirs = peers.run("qlib", PEER, file, folder, out)
        scores = dict(np.load(out))
    print(f"Qlib {theirs['version']}")
    for title, name, peer in PAIRS:
        ours, seconds = our_scores(data, folds, name)
        grid = np.full(y.shape, np.nan)
        grid[t, n] = scores[peer]
        outcome = data.y[..., 0].numpy().astype(float)
        outcome[: starts[0]] = np.nan
        compare(title, ours, grid, outcome, (seconds, theirs["cpu"][peer]))


if __name__ == "__main__":
    main()

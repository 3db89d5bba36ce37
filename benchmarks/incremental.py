"""The daily incremental retrain on the 482 US stocks of 2015 to 2020: what one more session costs.

    python benchmarks/incremental.py [candidates=mean,ridge,ewma,log_har] [tickers=482] [data=PATH]

A home is filled with all sessions of the file but the last two, a full run publishes the best of a few
candidates, then one session arrives after the other, and the incremental run (what is served, on the newest
data) is timed with its ingest and without pages. The first one tests the gate on the markets of known truth
again, because it has fewer candidates than the full run; later days find that test kept. Promise: under 180 s
on two cores.

Measured on two quiet cores with four candidates: full 96 s (110 CPU s), first incremental 107 s (121),
a usual day 95 s (102), in a process that compiled nothing before the full run.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from stockpredict.core.settings import load_settings
from stockpredict.ops import pipeline
from stockpredict.ops.training_day import training_settings
from stockpredict.train.champion import current_champion

HERE = Path(__file__).resolve().parents[1]
DATA = HERE.parent / "shared" / "data" / "us_daily_2015_2020.parquet"


def timed(name: str, settings):
    "One run from ingest to the refreshed table; its cost is printed."
    began, before = time.perf_counter(), sum(os.times()[:4])
    outcome = pipeline.retrain(settings, pages=False)
    wall, cpu = time.perf_counter() - began, sum(os.times()[:4]) - before
    print(f"{name}: {wall:.0f} s, {cpu:.0f} CPU s; {outcome.as_dict().get('sentence', '')}", flush=True)


def main():
    asked = dict(word.split("=", 1) for word in sys.argv[1:])
    bars = pd.read_parquet(asked.get("data", DATA))
    names = sorted(bars.ticker.unique())[: int(asked.get("tickers", 482))]
    bars = bars[bars.ticker.isin(names)]
    with tempfile.TemporaryDirectory(prefix="stockpredict-incremental-") as place:
        prices = Path(place) / "prices.parquet"
        changes = {
            "storage.home": f"{place}/home",
            "storage.reports": f"{place}/reports",
            "data.source": "files",
            "data.files_path": str(prices),
            "models.candidates": asked.get("candidates", "mean,ridge,ewma,log_har").split(","),
            "models.trials": 0,
        }
        settings = load_settings(overrides=changes, environ={})
        print(f"{len(names)} tickers, sessions to {bars.date.max()}", flush=True)
        *_, before, last = sorted(bars.date.unique())[-3:]
        bars[bars.date < before].to_parquet(prices)
        timed("full", settings)
        for name, day in {"first incremental": before, "a usual day": last}.items():
            bars[bars.date <= day].to_parquet(prices)
            daily = training_settings(settings, "incremental", current_champion(settings))
            print(f"retrained daily: {', '.join(daily.models.candidates)}", flush=True)
            timed(name, daily)


if __name__ == "__main__":
    main()

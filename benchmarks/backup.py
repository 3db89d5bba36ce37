"""What a backup and a restore of a lake cost, beside copying the same files.

    python benchmarks/backup.py [--tickers 1000] [--sessions 2700] [--rounds 3]

A lake is filled with simulated bars in ten ingests, by default 2.7 million rows. Then, in each round, the
files are copied and flushed to the disk, a first backup is made, a second one of the unchanged lake, and the
first is restored. Printed are wall and CPU seconds of this process, the best of the rounds, and the ratio to
the copy.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from stockpredict.backup import restore
from stockpredict.backup.backups import Backups
from stockpredict.backup.sealed_files import new_backup_key, read_backup_keys
from stockpredict.core.settings import load_settings
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import simulate

assert restore  # it adds its verbs to Backups


def timed(work):
    "Wall and CPU seconds of a call."
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def fill(settings, tickers, sessions, ingests=10):
    "A lake in several ingests."
    bars = simulate("null", tickers=tickers, sessions=sessions, seed=1).bars
    days = np.array_split(np.sort(bars.event_time.unique()), ingests)
    with Lake(settings.storage) as lake:
        for part in days:
            lake.append(bars[bars.event_time.between(part[0], part[-1])])
    return len(bars)


def one_round(settings, place):
    "Seconds of each of the four works."
    backups = Backups(settings, read_backup_keys(new_backup_key()))

    def copy():
        shutil.copytree(settings.storage.home_dir, place / "copy")
        os.sync()

    works = {
        "copy": copy,
        "first backup": backups.create,
        "second backup": backups.create,
        "restore": lambda: backups.restore(place / "restored"),
    }
    seconds = {name: timed(work) for name, work in works.items()}
    for name in ("copy", "restored", "there"):
        shutil.rmtree(place / name)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tickers", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=2700)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        sets = {"storage.home": "home", "storage.reports": "reports", "backup.target": "there"}
        settings = load_settings(None, {name: str(place / to) for name, to in sets.items()}, environ={})
        rows = fill(settings, options.tickers, options.sessions)
        size = sum(path.stat().st_size for path in (place / "home").rglob("*") if path.is_file())
        print(f"{rows:,} rows, {size / 1e6:,.0f} MB, best of {options.rounds} rounds")
        rounds = [one_round(settings, place) for _ in range(options.rounds)]
    best = {name: [min(r[name][i] for r in rounds) for i in (0, 1)] for name in rounds[0]}
    for name, (wall, cpu) in best.items():
        print(f"{name:14}{wall:8.2f} s wall{cpu:8.2f} s CPU{wall / best['copy'][0]:8.2f} x the copy")


if __name__ == "__main__":
    main()

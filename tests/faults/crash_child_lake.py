"""Forks children that work on a lake and are killed, and reports what they left behind, one JSON line each.

Run as a script: `crash_child_lake.py HOME`. No database is open when it forks, so each child opens its own.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kill_points import sample

from stockpredict.core.settings import Settings
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars

BARS = sample_bars(tickers=3, sessions=60)
TOLD = pd.DataFrame(
    dict(series="GDP", event_time="2010-01-01", known_at=["2010-04-26", "2010-05-26"], value=[2.1, 1.7])
)


def open_lake(home, **how):
    return Lake(Settings().with_(**{"storage.home": str(home)}).storage, **how)


def fill(lake):
    lake.append(BARS[:90], now="2024-01-01T12:00Z")
    lake.add("macro", TOLD[:1])


def add(lake):
    lake.add("macro", TOLD)


def append(lake):
    lake.append(BARS, now="2024-01-02T12:00Z")


def purge(lake):
    lake.retain(dict(macro=2, bars=100), now="2024-06-01", dry_run=False)


def tidy(lake):
    lake.upkeep(days=0, grace="0s", dry_run=False)


def look(home):
    with open_lake(home, read_only=True) as lake:
        return dict(
            bars=len(lake.bars()),
            macro=lake.facts("macro", versions=True).value.tolist(),
            pins=len(lake.pins()),
            mark=lake.verify(),
        )


def forked(work):
    "What `work` says, from a process of its own: (exit code, JSON or None)."
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            report = work()
            os.write(write, json.dumps(report).encode())
        except BaseException as e:
            print(repr(e), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as f:
        text = f.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), json.loads(text) if text else None


def work_on(home, task, k):
    seen = []

    def step(name):
        seen.append(name)
        if len(seen) == k:
            os.kill(os.getpid(), signal.SIGKILL)

    with open_lake(home, on_step=step) as lake:
        task(lake)
    return seen


def fill_in(home):
    with open_lake(home) as lake:
        fill(lake)


def main(home):
    home = Path(home)
    with open_lake(home / "warm"):
        pass  # the children inherit verified extensions
    forked(lambda: fill_in(home / "seed"))
    for task in (append, add, purge, tidy):
        before = forked(lambda: look(home / "seed"))[1]
        calm = killed(home, task, 0)
        after = calm["found"]
        points = range(1, len(calm["steps"]) + 1)
        for outcome in (calm, *(killed(home, task, k) for k in sample(points, 2))):
            whole = outcome["found"] in (before, after)
            print(json.dumps(outcome | dict(whole=whole, healed=outcome["healed"] == after)), flush=True)


def killed(home, task, k):
    """What one child leaves that is killed at step `k` of a task (0: never), and what the next one makes
    of it."""
    place = home / f"{task.__name__}{k}"
    shutil.copytree(home / "seed", place)
    code, steps = forked(lambda: work_on(place, task, k))
    again, (left, _, healed) = forked(lambda: (look(place), work_on(place, task, 0), look(place)))
    shutil.rmtree(place)
    return dict(task=task.__name__, k=k, code=code, steps=steps, found=left, again=again, healed=healed)


if __name__ == "__main__":
    main(sys.argv[1])

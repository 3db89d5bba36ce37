"""The lake beside DuckDB and bare Parquet, in one run.

    python benchmarks/lake.py [--quick] [--gate] [--rows-25m]

Ratios are against a peer that did the same work in the same run on the same rows; the smaller of several
measurements counts. `--quick` takes a tenth of the size, `--gate` adds the quality gate and Great
Expectations alone, `--rows-25m` loads 25 million rows in chunks in a process of its own and prints its peak
memory (minutes).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from stockpredict.core.calendar import get_calendar
from stockpredict.core.settings import Settings
from stockpredict.sources.bars import as_bars
from stockpredict.lake.lake import Lake


def market(tickers: int, sessions: int, first: int = 0, seed: int = 0) -> pd.DataFrame:
    "Random bars in the form of `tidy_bars`, sorted, with adjusted closes; `first` numbers the tickers."
    calendar, rng = get_calendar("XNYS"), np.random.default_rng(seed)
    events = calendar.event_times(calendar.sessions("1995-01-01", "2025-12-31")[-sessions:])
    close = 50 * np.exp(np.cumsum(rng.normal(0, 0.02, (tickers, sessions)), axis=1)).ravel()
    names = pd.Series(
        pd.Categorical.from_codes(
            np.repeat(np.arange(tickers), sessions), [f"T{first + i:05d}" for i in range(tickers)]
        )
    ).astype("str")
    event = np.tile(events, tickers)
    known = np.tile(events + pd.Timedelta(minutes=15), tickers)
    return as_bars(
        dict(
            ticker=names,
            event_time=event,
            known_at=known,
            open=close * 0.999,
            high=close * 1.01,
            low=close * 0.99,
            close=close,
            volume=rng.integers(1, 10**6, len(close)),
            source="bench",
            adj_close=close,
        )
    )


def timed(work):
    began = time.perf_counter()
    done = work()
    return time.perf_counter() - began, done


def settings(folder):
    return Settings().with_(**{"storage.home": str(folder)})


def line(name, ours, peer, peer_name, bar=""):
    print(
        f"{name:<44} {ours:7.2f} s   {peer_name} {peer:7.2f} s   ratio {ours / peer:5.2f}   {bar}", flush=True
    )


def copy(parquet: Path, place: Path) -> float:
    "DuckDB's own Parquet → table copy, until it is on the disk."
    with duckdb.connect(str(place)) as con:
        return timed(
            lambda: (con.execute(f"CREATE TABLE bars AS FROM '{parquet}'"), con.execute("CHECKPOINT"))
        )[0]


def load(folder: Path, size: float, gate: bool):
    bars = market(int(800 * size), 3390)
    parquet = folder / "bars.parquet"
    bars.to_parquet(parquet)
    peer = min(copy(parquet, folder / f"peer{i}.duckdb") for i in range(2))
    ours = []
    for i in range(2):
        with Lake(settings(folder / f"home{i}").storage) as lake:
            ours.append(timed(lambda lake=lake: lake.append(bars))[0])
    line(f"append {len(bars):,} bars", min(ours), peer, "DuckDB copy")
    if gate:
        from stockpredict.quality.gate import RULES, _validate, inspect_bars, with_rule_columns

        calendar, now = get_calendar("XNYS"), pd.Timestamp("2026-06-01", tz="UTC")
        alone, _ = timed(lambda: _validate(with_rule_columns(bars, calendar, now), RULES))
        through, _ = timed(lambda: inspect_bars(bars, calendar, now=now))
        line(
            f"gate and append {len(bars):,} bars",
            through + min(ours),
            3 * peer + alone,
            "3 copies + GE alone",
            "(promised: at most 1)",
        )
        print(
            f"{'':<44} gate {through:.2f} s, Great Expectations alone {alone:.2f} s, append "
            f"{min(ours):.2f} s, copy {peer:.2f} s"
        )
    return bars


def session(folder: Path, size: float):
    "One new session for every ticker, into a lake that holds a year of them."
    tickers = int(10_000 * size)
    bars = market(tickers, 252)
    last = bars.event_time.max()
    with Lake(settings(folder / "session").storage) as lake:
        lake.append(bars[bars.event_time < last])
        newest = bars[bars.event_time == last].reset_index(drop=True)
        evening = newest.known_at.max()  # when a daily run receives it
        seconds, done = timed(lambda: lake.append(newest, now=evening))
        again, _ = timed(lambda: lake.append(newest, now=evening))
    assert done.rows_new == tickers
    print(
        f"append one session of {tickers:,} tickers              {seconds:6.2f} s   the same again "
        f"{again:6.2f} s   (promised: under 5 s)",
        flush=True,
    )


def panel(folder: Path, bars: pd.DataFrame, size: float):
    """500 tickers over five years, out of the whole lake and out of one Parquet file, both sorted and as
    pandas."""
    names = sorted(bars.ticker.unique())[: int(500 * size)]
    start = bars.event_time.max() - pd.DateOffset(years=5)
    query = (
        f"FROM '{folder / 'bars.parquet'}' WHERE ticker = ANY($names) AND event_time >= $start ORDER "
        "BY ticker, event_time"
    )
    peers, ours, adjusted = [], [], []
    with Lake(settings(folder / "home0").storage, read_only=True) as lake, duckdb.connect() as con:
        for _ in range(4):
            seconds, theirs = timed(
                lambda: con.execute(query, dict(names=names, start=start)).to_arrow_table().to_pandas()
            )
            peers.append(seconds)
            seconds, mine = timed(lambda: lake.bars(names, start, adjusted=False))
            ours.append(seconds)
            adjusted.append(timed(lambda: lake.bars(names, start))[0])
        assert len(mine) == len(theirs) and np.array_equal(mine.close, theirs.close)
    line(
        f"read {len(mine):,} bars of {len(names)} tickers",
        min(ours),
        min(peers),
        "from Parquet",
        "(promised: at most 1.5)",
    )
    line("the same, adjusted", min(adjusted), min(peers), "from Parquet", "(promised: at most 1.5)")


CHUNK = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
from lake import market, settings
from stockpredict.lake.lake import Lake
chunks, tickers, sessions = map(int, sys.argv[3:6])
peaks, began, rows = [], time.perf_counter(), 0
with Lake(settings(sys.argv[2]).storage) as lake:
    for i in range(chunks):
        rows += lake.append(market(tickers, sessions, first=i * tickers, seed=i)).rows_new
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
print(json.dumps(dict(rows=rows, seconds=time.perf_counter() - began, peaks=peaks)))
"""


def chunks(folder: Path, n: int, tickers: int, sessions: int):
    "Peak memory of a process that loads `n` chunks, generation included."
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            CHUNK,
            str(Path(__file__).parent),
            str(folder / "chunks"),
            str(n),
            str(tickers),
            str(sessions),
        ],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    report = json.loads(done.stdout)
    early, late = report["peaks"][max(1, n // 4) - 1], report["peaks"][-1]
    print(
        f"load {report['rows']:,} bars in {n} chunks     {report['seconds']:6.1f} s   peak "
        f"{late:.2f} GiB, {early:.2f} after a quarter of them",
        flush=True,
    )


def main():
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--quick", "--gate", "--rows-25m"):
        asked.add_argument(flag, action="store_true")
    how = asked.parse_args()
    size = 0.1 if how.quick else 1.0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        bars = load(folder, size, how.gate)
        panel(folder, bars, size)
        del bars
        session(folder, size)
        if how.rows_25m:
            chunks(folder, 40, 250, 2520)
        else:
            chunks(folder, 8, int(250 * size), 2520)


if __name__ == "__main__":
    main()

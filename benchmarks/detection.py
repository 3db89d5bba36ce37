"""How many errors the quality gate finds, of which kind, how often it cries wolf, and what it costs.

    python benchmarks/detection.py [--each 20] [--seeds 1 2 3] [--rows 2700000] [--quick]

First the confusion of seeded damage with what was reported: recall (injected errors found under a fitting
name), precision (such findings that lie on a damaged bar), over several markets. Then recorded vendor errors,
where the development data are at hand. Last the time: the whole gate on millions of clean bars beside Great
Expectations alone on the same table.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")


def counted(each: int, seeds: list, tickers: int) -> str:
    "Recall and precision by fault, added up over the markets."
    import pandas as pd

    from stockpredict.testing.detector_benchmark import measure_detection

    runs = [measure_detection(each, tickers, 500, seed) for seed in seeds]
    total = sum(r.table[["events", "found", "noticed", "alarms", "right"]] for r in runs)
    total = total.assign(
        recall=total.found / total.events, precision=total.right / total.alarms.where(total.found > 0)
    )
    healthy = pd.concat([r.matrix.loc["healthy bar"] for r in runs], axis=1).sum(axis=1)
    where = healthy[healthy > 0].astype(int).to_dict()
    summary = (
        f"{total.found.sum()} of {total.events.sum()} injected errors found; {int(healthy.sum())} "
        "findings on healthy bars among "
        f"{sum(r.bars for r in runs):,} bars: {where}; {sum(r.healthy for r in runs)} findings in "
        "the same markets undamaged."
    )
    return f"{total.round(3).to_string()}\n\n{summary}"


def recorded(folder: Path) -> str:
    "The recorded cases, one line each."
    if not folder.is_dir():
        return "Recorded vendor errors: the development data are not here."
    from stockpredict.testing.detector_benchmark import recorded_cases

    cases = recorded_cases(folder)
    bad = cases[cases.bad]
    return (
        f"{cases.drop(columns='bad').to_string()}\n\n{int(bad.found.astype(bool).sum())} of "
        f"{len(bad)} recorded errors found; "
        f"{int((bad.false_alarms != '').sum())} of {len(bad)} mended files still flagged; "
        f"{int((cases.false_alarms[~cases.bad] != '').sum())} of {int((~cases.bad).sum())} right "
        "files flagged."
    )


def clean_bars(rows: int):
    "A table of clean bars, 3,393 sessions long."
    import numpy as np
    import pandas as pd

    from stockpredict.core.calendar import get_calendar
    from stockpredict.sources.bars import as_bars

    cal, sessions = get_calendar(), 3393
    n = max(1, rows // sessions)
    rng = np.random.default_rng(0)
    at = cal.closes(cal.sessions("2008-01-01", "2022-12-31")[:sessions])
    close = 50 * np.exp(np.cumsum(rng.normal(0, 0.015, (n, sessions)), axis=1))
    opened = close * np.exp(rng.normal(0, 0.005, close.shape))
    return as_bars(
        {
            "ticker": np.repeat([f"T{i:04d}" for i in range(n)], sessions),
            "event_time": pd.DatetimeIndex(np.tile(at, n)),
            "known_at": pd.DatetimeIndex(np.tile(at, n)),
            "open": opened.ravel(),
            "high": (np.maximum(opened, close) * 1.003).ravel(),
            "low": (np.minimum(opened, close) * 0.997).ravel(),
            "close": close.ravel(),
            "volume": rng.lognormal(14, 0.5, close.shape).ravel().round(),
            "adj_close": close.ravel(),
            "source": "x",
        }
    )


def timed(rows: int) -> str:
    "The whole gate beside Great Expectations alone."
    import resource

    import pandas as pd

    from stockpredict.core.calendar import get_calendar
    from stockpredict.quality.gate import CONFLICT, RULES, failing_rows, inspect_bars, with_rule_columns

    now, cal, bars = pd.Timestamp("2024-01-01", tz="UTC"), get_calendar(), clean_bars(rows)
    inspect_bars(bars[:1000], cal, now=now)  # imports
    took = {}
    start = time.perf_counter()
    table = with_rule_columns(bars, cal, now)
    failing_rows(table, RULES, whole=len(bars))
    failing_rows(bars, [CONFLICT], whole=len(bars))
    took["Great Expectations alone, every row"] = time.perf_counter() - start
    start = time.perf_counter()
    failing_rows(table, RULES)
    took["Great Expectations after the quick look"] = time.perf_counter() - start
    del table
    start = time.perf_counter()
    inspect_bars(bars, cal, now=now)
    took["the whole gate, detectors included"] = time.perf_counter() - start
    base = took["Great Expectations alone, every row"]
    lines = [f"{k:45s} {v:6.2f} s  {v / base:5.2f} x" for k, v in took.items()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return "\n".join(
        [f"{len(bars):,} clean bars of {bars.ticker.nunique()} tickers, peak memory {peak:.1f} GB", *lines]
    )


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--each", type=int, default=20)
    ask.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    ask.add_argument("--rows", type=int, default=2_700_000)
    ask.add_argument(
        "--data",
        type=Path,
        default=Path(__file__).resolve().parents[2] / "shared" / "data",
        help="development data, if any",
    )
    ask.add_argument("--quick", action="store_true", help="one small market and a tenth of the rows")
    args = ask.parse_args()
    if args.quick:
        args.each, args.seeds, args.rows = 5, [1], args.rows // 10
    print(
        counted(args.each, args.seeds, 10 * args.each),
        recorded(args.data / "quality_cases"),
        timed(args.rows),
        sep="\n\n",
    )


if __name__ == "__main__":
    main()

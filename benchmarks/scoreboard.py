"""What the scoreboard costs and whether its intervals keep their promise.

`python benchmarks/scoreboard.py cost` publishes and scores one session of 10,000 tickers, two horizons, and
prints the CPU seconds of each step. `python benchmarks/scoreboard.py years [COUNT]` simulates null years
(1,000 by default) with one and five sessions ahead, with steady and clustered volatility, looks at every
interval after every session, and prints the share of years in which one ever excludes the truth.
"""

import argparse
import tempfile
import time

import numpy as np
import orjson
import pandas as pd

CLUSTERS, HORIZONS = (0.0, 0.1, 0.2), (1, 5)


def years(count):
    "Exclusions in many null years."
    from stockpredict.scoreboard.null_years import count_exclusions

    worst = 0.0
    for horizon in HORIZONS:
        for clusters in CLUSTERS:
            result = count_exclusions(count, horizon, clusters)
            worst = max(worst, *(c / count for c in result.counts.values()))
            print(result, flush=True)
    print(f"most years with an exclusion: {worst:.1%}, promised: at most 5 %")


def market(tickers, sessions):
    "Bars of a wide market, a random walk each."
    from stockpredict.core.calendar import get_calendar

    rng, calendar = np.random.default_rng(7), get_calendar()
    days = calendar.sessions("2024-01-02", "2024-12-31")[:sessions]
    closes = 50 * np.exp(rng.normal(0, 0.02, (sessions, tickers)).cumsum(0))
    names = np.array([f"T{i:05d}" for i in range(tickers)])
    frame = pd.DataFrame({"ticker": np.tile(names, sessions), "close": closes.ravel()})
    frame["event_time"] = np.repeat(calendar.closes(days), tickers)
    frame = frame.assign(open=frame.close, high=frame.close * 1.01, low=frame.close * 0.99, volume=1e6)
    frame = frame.assign(known_at=frame.event_time + pd.Timedelta(minutes=20), source="simulated")
    return frame, days, calendar


def packed(settings, frame, days, calendar):
    "The signed table of one evening, 10,000 tickers and two horizons."
    from scipy.stats import norm

    from stockpredict.predict.answer_table import EXAMPLE_MODEL, example_answer, table_signer
    from stockpredict.predict.table_format import pack_table

    day, rng = days[0], np.random.default_rng(8)
    dates = {"decision_session": str(day.date()), "entry_session": str(days[1].date())}
    dates |= {"data_as_of": f"{calendar.close(day):%Y-%m-%dT%H:%M:%SZ}", "snapshot": 1}
    levels, bodies = [0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975], {}
    for ticker in frame.ticker.unique():
        for horizon in HORIZONS:
            sd = 0.02 * horizon**0.5 * float(np.exp(rng.normal(0, 0.3)))
            answer = example_answer(ticker, horizon) | dates
            answer |= {
                "target_session": str(days[1 + horizon].date()),
                "expected": float(rng.normal(0, 1e-3)),
            }
            answer["quantiles"] = {f"{q:g}": round(float(sd * norm.ppf(q)), 6) for q in levels}
            answer["volatility"] = {"daily": 0.02, "horizon": round(sd, 6)}
            bodies[ticker, horizon] = orjson.dumps(answer)[:-1]
    return pack_table(
        {"key": "v1-bench", "built_at": "", "model": EXAMPLE_MODEL} | dates, bodies, table_signer(settings)
    )


def cost(tickers):
    "CPU seconds of publishing, scoring and drawing up the board."
    from stockpredict.core.settings import load_settings
    from stockpredict.lake.lake import Lake
    from stockpredict.models.artifact import ensure_keys
    from stockpredict.predict.answer_table import publish_table, table_verifier
    from stockpredict.predict.published_rows import note_archived
    from stockpredict.scoreboard.scoreboard import update_scoreboard
    from stockpredict.scoreboard.scoring import score_published

    def timed(name, work):
        started = time.process_time()
        result = work()
        print(f"{name:34} {time.process_time() - started:6.2f} CPU s", flush=True)
        return result

    with tempfile.TemporaryDirectory() as home:
        settings = load_settings(None, {"storage.home": home, "data.source": "simulated"}, environ={})
        ensure_keys(settings.storage.keys_dir)
        frame, days, calendar = market(tickers, 9)
        with Lake(settings.storage) as lake:
            lake.append(frame)
            sectors = pd.DataFrame({"ticker": frame.ticker.unique()})
            sectors["sector"] = [f"Sector {i % 11}" for i in range(len(sectors))]
            sectors["event_time"] = pd.Timestamp("2020-01-01", tz="UTC")
            lake.add("sectors", sectors, known_at="2020-01-02")
        raw = packed(settings, frame, days, calendar)
        timed("publish: lake, then swap", lambda: publish_table(settings, raw))
        timed("note the publication", lambda: note_archived(settings, table_verifier(settings)))
        print(timed(f"score {tickers:,} tickers x 2 horizons", lambda: score_published(settings)))
        timed("look again, nothing to do", lambda: score_published(settings))
        timed("draw up the board", lambda: update_scoreboard(settings))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["cost", "years"])
    parser.add_argument("count", nargs="?", type=int, help="tickers, or years")
    options = parser.parse_args()
    cost(options.count or 10_000) if options.what == "cost" else years(options.count or 1_000)

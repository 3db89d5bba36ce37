"""Forks children that consume and are killed, and reports what they left behind, one JSON line each.

Run as a script: `crash_child_stream.py FOLDER`. Everything slow is loaded once, before the first fork.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kill_points import sample
from live_redis import Server, live_settings

from stockpredict.core.calendar import get_calendar
from stockpredict.stream.consumer import consume
from stockpredict.stream.messages import encode_messages
from stockpredict.lake.lake import Lake
from stockpredict.stream.live_table import LiveTable
from stockpredict.sources.simulate import sample_bars
from stockpredict.stream.queue import Stream


def everything():
    "Bars of closed sessions, one of them corrected and one bad; trades of a session that ends; nonsense."
    bars = sample_bars(tickers=3, sessions=30)
    newer = bars.tail(2).assign(
        volume=lambda f: f.volume + 1, known_at=lambda f: f.known_at + pd.Timedelta(hours=1)
    )
    opens, close = pd.Timestamp("2024-06-03 13:30", tz="UTC"), get_calendar("XNYS").close("2024-06-03")
    at = opens + pd.to_timedelta(np.linspace(0, 23_000, 40), unit="s")
    trades = pd.DataFrame(
        dict(
            ticker="TTT",
            event_time=at,
            close=50 + np.sin(np.arange(40.0)),
            volume=100.0,
            source="feed",
            id=[str(i) for i in range(40)],
        )
    )
    bell = trades.tail(1).assign(volume=0.0, id="clock", event_time=close + pd.Timedelta(minutes=15))
    return [
        *encode_messages(bars.head(60)),
        b"nonsense",
        *encode_messages(trades.head(20), "tick", trades.event_time.head(20)),
        *encode_messages(bars.tail(len(bars) - 60)),
        *encode_messages(newer),
        *encode_messages(bars.head(1).assign(close=-1.0)),
        *encode_messages(bars.head(5)),
        *encode_messages(trades.tail(25), "tick", trades.event_time.tail(25)),
        *encode_messages(bell, "tick", bell.event_time),
    ]


def in_child(work):
    "Run `work` in a forked process; the code is -9 when it was killed."
    if (pid := os.fork()) == 0:
        try:
            work()
        except BaseException as e:
            print(repr(e), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(k):
    seen = []

    def step(name):
        seen.append(name)
        if len(seen) == k:
            tell(step=name)
            os.kill(os.getpid(), signal.SIGKILL)

    return step


def look(s):
    with Lake(s.storage, read_only=True) as lake, LiveTable(s.storage) as live, Stream(s) as stream:
        count = {
            t: int(lake.rows(f"SELECT count(*) AS n FROM lake.{t}").n[0]) for t in ("bars", "quarantine")
        }
        same = {"feed": lake.fingerprint(source="feed"), "market": lake.fingerprint(source="simulated")}
        rows = live.rows(
            "SELECT span, ticker, event_us, id, open, high, low, close, volume, state FROM bars "
            "ORDER BY 1, 2, 3, 4"
        )
        dead_letters = live.rows("SELECT message, reason FROM letters ORDER BY 1").to_dict("records")
        return {
            **count,
            **same,
            "live": int(pd.util.hash_pandas_object(rows, index=False).sum() % 2**53),
            "rows": len(rows),
            "letters": dead_letters,
            "pending": stream.state()["groups"][0]["pending"],
        }


def looked(s, before=lambda: None):
    read, write = os.pipe()
    code = in_child(lambda: (before(), os.write(write, json.dumps(look(s)).encode())))
    os.close(write)
    with os.fdopen(read) as f:
        text = f.read()
    return json.loads(text) if code == 0 else {"broken": code}


def tell(**facts):
    os.write(1, (json.dumps(facts) + "\n").encode())


def most(name):
    return 1 if name == "taken" else 2


def main(folder):
    folder = Path(folder)
    server = Server(folder / "redis").start()
    sent = everything()
    try:

        def fresh(name):
            s = live_settings(folder / name, server.url, **{"stream.name": name, "stream.wait": 20})
            with Stream(s) as stream:
                stream.publish(sent)
            return s

        consume(
            fresh("warm"), idle=0.02
        )  # the children inherit calendars, expectations and verified extensions
        s, steps = fresh("calm"), folder / "steps"
        in_child(lambda: consume(s, idle=0.02, on_step=lambda name: steps.open("a").write(name + "\n")))
        names = steps.read_text().split("\n")[:-1]
        wanted = looked(s)
        tell(calm=wanted, steps=names)
        first = [k for k in range(1, len(names) + 1) if names[:k].count(names[k - 1]) <= most(names[k - 1])]
        for k in sample(first, 3):  # without later rounds of the same write, and looks that found nothing
            s = fresh(f"k{k}")
            code = in_child(lambda s=s, k=k: consume(s, idle=0.02, on_step=killed_at(k)))
            tell(k=k, code=code, healed=looked(s, lambda s=s: consume(s, idle=0.02)))
    finally:
        server.kill()


if __name__ == "__main__":
    main(*sys.argv[1:])

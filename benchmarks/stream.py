"""What the live path carries and how late it is, beside a bare redis-py loop on the same Redis in the same
run.

    python benchmarks/stream.py [--messages 20000] [--seconds 6] [--rate 2000]

Throughput: all messages are sent, then all are stored; the bare loop adds, reads and acknowledges the same
bytes and stores nothing. Delay: trades are sent at a steady rate while a consumer runs, and another
connection asks the live table what has arrived; bars of closed sessions are sent one by one, and another
connection asks the lake.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import redis

from stockpredict.core.errors import LakeUnavailable
from stockpredict.core.settings import Settings
from stockpredict.stream.consumer import consume
from stockpredict.stream.messages import encode_messages
from stockpredict.lake.lake import Lake
from stockpredict.stream.live_table import LiveTable
from stockpredict.sources.simulate import sample_bars
from stockpredict.stream.queue import PACK_SIZE, Stream


def trades(n, tickers=100, seed=1):
    rng, now = np.random.default_rng(seed), pd.Timestamp.now("UTC").floor("s")
    at = now - pd.to_timedelta(np.sort(rng.uniform(0, 600, n))[::-1], unit="s")
    return pd.DataFrame(
        dict(
            ticker=[f"T{i:03d}" for i in rng.integers(0, tickers, n)],
            event_time=at,
            close=50 + rng.normal(0, 0.1, n),
            volume=100.0,
            source="bench",
            id=[str(i) for i in range(n)],
        )
    )


def bare(client, data, key="bare"):
    "Seconds to add, and to read and acknowledge, in packs and without doing anything with them."
    client.delete(key)
    client.xgroup_create(key, "g", id="0", mkstream=True)
    began = time.perf_counter()
    for i in range(0, len(data), PACK_SIZE):
        with client.pipeline(transaction=False) as p:
            for d in data[i : i + PACK_SIZE]:
                p.xadd(key, {"d": d})
            p.execute()
    added, got = time.perf_counter() - began, 0
    began = time.perf_counter()
    while got < len(data):
        pack = client.xreadgroup("g", "c", {key: ">"}, count=5000)[0][1]
        client.xack(key, "g", *(i for i, _ in pack))
        got += len(pack)
    took = time.perf_counter() - began
    client.delete(key)
    return added, took


def throughput(settings, n):
    data, bars = encode_messages(trades(n), "tick"), sample_bars(tickers=40, sessions=max(20, n // 100))
    final = encode_messages(bars.tail(n // 4))
    with Stream(settings) as s:
        consume(settings, idle=0.05)  # everything is loaded
        began = time.perf_counter()
        s.publish(data)
        sent = time.perf_counter() - began
        began, cpu = time.perf_counter(), time.process_time()
        did = consume(settings, idle=0.01)
        stored, cpu = time.perf_counter() - began, time.process_time() - cpu
        s.publish(final)
        began = time.perf_counter()
        lake = consume(settings, idle=0.01)
        in_lake = time.perf_counter() - began
        added, read = bare(s.client, data)
    assert did.live == n and lake.lake_new == len(final), (did, lake)

    def rate(count, seconds):
        return f"{count / seconds:>9,.0f} messages/s"

    print(
        f"send          ours {rate(n, sent)}   bare XADD             {rate(n, added)}   ratio "
        f"{sent / added:5.2f}"
    )
    print(
        f"store trades  ours {rate(n, stored)}   bare XREADGROUP+XACK  {rate(n, read)}   ratio "
        f"{stored / read:5.2f}   "
        f"(ours validates, stores, rolls up to 1 s, 1 min, session; {cpu / n * 1e6:.0f} µs of "
        "processor a message)"
    )
    print(
        f"store bars    ours {rate(len(final), in_lake)}   through the gate into the lake, "
        f"{lake.batches} commits"
    )


def consuming(settings, stop):
    "A running consumer that has begun to wait for messages."
    ready = threading.Event()
    thread = threading.Thread(
        target=consume, args=(settings,), kwargs=dict(stop=stop, on_step=lambda name: ready.set())
    )
    thread.start()
    ready.wait(120)
    return thread


def late(sent_at, seen_at):
    q = np.quantile([seen_at[k] - sent_at[k] for k in sent_at if k in seen_at], [0.5, 0.9, 0.99, 1])
    return "  ".join(
        f"{name} {v:6.3f} s" for name, v in zip(("median", "90 %", "99 %", "worst"), q, strict=True)
    ), len([k for k in sent_at if k in seen_at])


def delay_live(settings, seconds, rate):
    rows, sent_at, seen_at, stop = trades(int(seconds * rate), seed=2), {}, {}, threading.Event()
    rows["id"] = "d" + rows["id"]
    thread = consuming(settings, stop)
    step = max(1, rate // 20)

    def look():
        with LiveTable(settings.storage) as live:
            while not stop.is_set():
                n = live.con.execute(
                    "SELECT count(*) FROM bars WHERE span = 'tick' AND source = 'bench' AND id LIKE 'd%'"
                ).fetchone()[0]
                now = time.perf_counter()
                for k in range(len(seen_at), n // step):
                    seen_at[k] = now
                time.sleep(0.005)

    watcher = threading.Thread(target=look)
    watcher.start()
    with Stream(settings) as s:
        began = time.perf_counter()
        for k in range(len(rows) // step):
            time.sleep(max(0, began + k * step / rate - time.perf_counter()))
            s.publish(encode_messages(rows.iloc[k * step : (k + 1) * step], "tick"))
            sent_at[k] = time.perf_counter()
        until = time.perf_counter() + 20
        while len(seen_at) < len(sent_at) and time.perf_counter() < until:
            time.sleep(0.05)
    stop.set()
    thread.join()
    watcher.join()
    return late(sent_at, seen_at)


def delay_lake(settings, seconds):
    bars, sent_at, seen_at, stop = sample_bars(tickers=1, sessions=400, seed=5), {}, {}, threading.Event()
    bars["source"] = "bench-lake"
    thread = consuming(settings, stop)

    def look():
        with Lake(settings.storage, read_only=True) as lake:
            while not stop.is_set():
                try:
                    n = int(lake.rows("SELECT count(*) AS n FROM lake.bars WHERE source = 'bench-lake'").n[0])
                except LakeUnavailable:
                    continue  # the catalog was being written; ask again
                now = time.perf_counter()
                for k in range(len(seen_at), n):
                    seen_at[k] = now
                time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    began, k = time.perf_counter(), 0
    with Stream(settings) as s:
        while time.perf_counter() - began < seconds and k < len(bars):
            s.publish(encode_messages(bars.iloc[[k]]))
            sent_at[k] = time.perf_counter()
            k += 1
            time.sleep(0.25)
        until = time.perf_counter() + 20
        while len(seen_at) < len(sent_at) and time.perf_counter() < until:
            time.sleep(0.05)
    stop.set()
    thread.join()
    watcher.join()
    return late(sent_at, seen_at)


def delay_bare(client, seconds, rate, key="bare"):
    client.delete(key)
    client.xgroup_create(key, "g", id="0", mkstream=True)
    sent_at, seen_at, n, step = {}, {}, int(seconds * rate), max(1, rate // 20)

    def read():
        other = redis.Redis(connection_pool=client.connection_pool)
        while len(seen_at) < n // step:
            for _, pack in other.xreadgroup("g", "c", {key: ">"}, count=5000, block=50) or []:
                now = time.perf_counter()
                for i, f in pack:
                    seen_at.setdefault(int(f[b"d"]), now)
                    other.xack(key, "g", i)

    thread = threading.Thread(target=read)
    thread.start()
    began = time.perf_counter()
    for k in range(n // step):
        time.sleep(max(0, began + k * step / rate - time.perf_counter()))
        client.xadd(key, {"d": k})
        sent_at[k] = time.perf_counter()
    thread.join()
    return late(sent_at, seen_at)


def main():
    ask = argparse.ArgumentParser()
    for name, default in dict(messages=20_000, seconds=6.0, rate=2000).items():
        ask.add_argument(f"--{name}", type=type(default), default=default)
    args = ask.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings().with_(
            **{"storage.home": str(Path(folder) / "home"), "stream.block_ms": 100, "data.start": "2000-01-01"}
        )
        with Stream(settings) as keep:
            throughput(settings, args.messages)
            report, n = delay_live(settings, args.seconds, args.rate)
            print(f"sent to readable in the live table, {args.rate:,} trades/s   {report}   ({n} looks)")
            report, n = delay_bare(keep.client, args.seconds, args.rate)
            print(f"sent to read, bare XADD and XREADGROUP              {report}   ({n} looks)")
            report, n = delay_lake(settings, args.seconds)
            print(
                f"sent to readable in the lake, 4 bars/s              {report}   ({n} bars; promised "
                "below 30 s)"
            )


if __name__ == "__main__":
    sys.exit(main())

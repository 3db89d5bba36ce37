"""The feature store beside a bare redis-py GET in the same run: reading, a miss, and a new session beside the
batch.

    python benchmarks/store.py [--tickers 200] [--sessions 1000] [--reads 3000] [--names core] [--quick]

Everything runs on loopback with the embedded Redis server. Latencies are wall time of one thread that waits
for each answer. The bare GET fetches a value of the same size from the same server through the same client,
in turn with ours, so that both see the same moments of a busy machine. Batch and new sessions are CPU time,
which a busy machine stretches less.
"""

import argparse
import os
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")


def percentiles(seconds: list) -> tuple[float, float]:
    "Median and 99th percentile in milliseconds."
    import numpy as np

    return tuple(float(x) * 1000 for x in np.percentile(seconds, [50, 99]))


def timed(call, clock=time.perf_counter) -> tuple[float, object]:
    "Seconds and answer."
    began = clock()
    answer = call()
    return clock() - began, answer


def reading(online, tickers, n):
    "One value at a time, under a Zipf load, in turn with a bare GET."
    import numpy as np

    keys = [online.key(online.snapshot(), t) for t in tickers]
    ours, bare = [], []
    for i in np.random.default_rng(1).zipf(1.2, n).clip(max=len(tickers)) - 1:
        ours.append(timed(lambda t=tickers[i]: online.get(t))[0])
        bare.append(timed(lambda k=keys[i]: online.client.get(k))[0])
    return percentiles(ours), percentiles(bare)


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--tickers", type=int, default=200)
    ask.add_argument("--sessions", type=int, default=1000)
    ask.add_argument("--reads", type=int, default=3000)
    ask.add_argument("--names", default="core")
    ask.add_argument("--quick", action="store_true", help="40 tickers, 500 sessions, 500 reads")
    args = ask.parse_args()
    if args.quick:
        args.tickers, args.sessions, args.reads = 40, 500, 500
    import numpy as np

    from stockpredict.core.settings import load_settings
    from stockpredict.lake.lake import Lake
    from stockpredict.sources.source import make_source
    from stockpredict.catalogue.feature import compute, proof_panel
    from stockpredict.catalogue.online_store import OnlineStore
    from stockpredict.catalogue.feature_store import FeatureStore

    with tempfile.TemporaryDirectory() as home:
        settings = load_settings(
            environ={},
            overrides={
                "storage.home": home,
                "data.source": "simulated",
                "simulated.kind": "realistic",
                "simulated.tickers": args.tickers,
                "simulated.sessions": args.sessions,
                "data.start": "1995-01-01",
                "store.timeout_ms": 5000,
            },
        )
        source = make_source(settings)
        bars = source.fetch(source.tickers())
        days = np.sort(bars.event_time.unique())
        with Lake(settings.storage) as lake:
            lake.append(bars[bars.event_time < days[-3]])
        store = FeatureStore(settings, args.names.split(","))
        compute(proof_panel(160), store.names)  # proofs are made once a process, not once a batch
        store.lake.snapshot()  # the lake is open
        batch, done = timed(store.materialise, time.process_time)
        print(
            f"{args.tickers} tickers, {done.sessions} sessions, {len(store.names)} features, "
            f"{done.rows:,} rows\n"
        )
        print(f"batch             {batch * 1000:9.1f} ms of CPU  {done.loaded} sessions read")
        for at in (-3, -2, -1):
            with Lake(settings.storage) as lake:
                lake.append(bars[bars.event_time == days[at]])
            one, done = timed(store.materialise, time.process_time)
            print(
                f"one more session  {one * 1000:9.1f} ms of CPU  {done.loaded} sessions read, "
                f"{done.rows - done.kept} rows computed, "
                f"{one / batch:.1%} of the batch"
            )
        print(f"read all          {timed(store.frame)[0] * 1000:9.1f} ms  {done.rows:,} rows as a frame")
        few = timed(lambda: store.frame(source.tickers()[:5]))
        print(f"read 5 tickers    {few[0] * 1000:9.1f} ms  {len(few[1]):,} rows\n")
        with OnlineStore(store) as online:
            miss, value = timed(lambda: online.get(source.tickers()[0]))
            print(
                f"first miss        {miss * 1000:9.1f} ms  server started, {value.origin}, all "
                f"{args.tickers} tickers filled"
            )
            online.client.flushall()
            online._memo.clear()
            miss, value = timed(lambda: online.get(source.tickers()[0]))
            print(
                f"miss and fill     {miss * 1000:9.1f} ms  {value.origin} from disk, all "
                f"{args.tickers} tickers filled"
            )
            ours, bare = reading(online, source.tickers(), args.reads)
            print(
                f"online read       p50 {ours[0]:.3f} ms  p99 {ours[1]:.3f} ms  under a Zipf load, "
                f"{online.counts}"
            )
            print(f"bare redis-py GET p50 {bare[0]:.3f} ms  p99 {bare[1]:.3f} ms")
            print(f"ratio             p50 {ours[0] / bare[0]:.2f}      p99 {ours[1] / bare[1]:.2f}")
            whole, _ = timed(online.latest)
            print(f"all tickers       {whole * 1000:9.1f} ms  in one round trip, as a frame")


if __name__ == "__main__":
    main()

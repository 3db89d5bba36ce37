"""Random single-bit flips in what training and serving read: none may give a wrong value without a word.

    python benchmarks/bit_flips.py [--flips 500] [--seed 0]

Three in five flips hit data files of the lake (bars, adjustments, ingests, facts, flags, intraday), one the
files of the feature store, one the table of answers. The lake has to name the file and still read the
version before, the store to compute the values again, the table to refuse. A flip is silent when a wrong
value comes back.

Of 500 flips with seed 0 (300 in the lake, 100 in stored features, 100 in the table) none was silent: 71 CPU
seconds. Nor was one of 500 with seed 1 (29 CPU seconds) or with seed 905. Nor of
500 with seed 4711, the first with `ingests`, flags and intraday bars: 69 CPU seconds.
"""

import argparse
import logging
import os
import random
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")

NOW = "2024-01-01T12:00Z"


def flipped(content: bytes, rng) -> bytes:
    "The bytes with one bit turned."
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]


def stored_lake(storage):
    "A lake with bars, adjustments, facts, flags and intraday bars in two versions; the number of the first."
    import pandas as pd

    from stockpredict.lake.lake import Lake
    from stockpredict.quality.scan import FLAGS
    from stockpredict.sources.simulate import sample_bars

    market = sample_bars(tickers=4, sessions=120)
    early, late = market[:200], market.iloc[::30]
    halved = market.close.where(market.event_time > market.event_time[60], market.close / 2)
    remarks = dict(flag="stale_price", usable=True, move=0.1, sentence="It did not move.")
    remarks = late[["ticker", "event_time", "known_at"]].assign(**remarks)[FLAGS]
    months = pd.DataFrame(dict(series="GDP", event_time=market.event_time[:50], value=1.0))
    steps = early[["ticker", "event_time", "open", "high", "low", "close", "volume"]].assign(interval="5min")
    with Lake(storage) as lake:
        first = lake.append(early, now=NOW)
        lake.append(market.assign(adj_close=halved), now=NOW, flags=remarks)
        lake.add("macro", months, lag="1D")
        lake.add("intraday", steps, lag="5min", source="sample")
    return first.snapshot


def reads_of(lake) -> list:
    "What trains, serves or is published, as calls."
    return [
        lake.bars,
        lake.flags,
        lambda: lake.facts("macro"),
        lambda: lake.facts("intraday"),
        lake.source,
        lake.recorded_fingerprint,
        lake.flags_complete,
        lake.tickers,
        lake.sessions,
    ]


def equal(a, b) -> bool:
    "Whether two answers are the same; frames and indexes are compared whole."
    return bool(a.equals(b)) if hasattr(a, "equals") else a == b


def lake_flips(home, count: int, rng, progress) -> int:
    "Silent wrong values of a lake; every flip is named by one of the reads, and the version before reads."
    from stockpredict.core.errors import LakeDamaged
    from stockpredict.core.settings import Settings
    from stockpredict.lake.lake import Lake

    storage = Settings().with_(**{"storage.home": str(home)}).storage
    first = stored_lake(storage)
    with Lake(storage, read_only=True) as lake:
        sound = [read() for read in reads_of(lake)]
    paths = sorted(storage.lake_dir.rglob("*.parquet"))
    assert {"bars", "adjustments", "ingests", "flags", "macro", "intraday"} <= {p.parent.name for p in paths}
    silent, named, tables = 0, 0, sorted({p.parent.name for p in paths})
    for number in progress(range(count)):
        path = rng.choice([p for p in paths if p.parent.name == tables[number % len(tables)]])
        content = path.read_bytes()
        path.write_bytes(flipped(content, rng))
        with Lake(storage, read_only=True) as lake:
            noted = False
            for read, right in zip(reads_of(lake), sound, strict=True):
                try:
                    silent += not equal(read(), right)
                except LakeDamaged as e:
                    assert path.name in e.problem and "snapshot=" in e.fix and e.code == "lake-damaged"
                    noted = True
        named += noted
        path.write_bytes(content)
    with Lake(storage, read_only=True) as lake:
        assert all(equal(read(), right) for read, right in zip(reads_of(lake), sound, strict=True))
        assert len(lake.bars(snapshot=first)) == 200
    assert named == count, "each flip is in a file that one of the reads needs"
    return silent


def store_flips(home, count: int, rng, progress) -> int:
    "Silent wrong values of the feature store."
    from stockpredict.catalogue.feature_store import FeatureStore
    from stockpredict.core.settings import load_settings
    from stockpredict.lake.lake import Lake
    from stockpredict.sources.source import make_source

    market = {"data.source": "simulated", "simulated.tickers": 5, "simulated.sessions": 80}
    market |= {"storage.home": str(home), "data.start": "2000-01-01"}
    settings = load_settings(environ={}, overrides=market)
    source = make_source(settings)
    with Lake(settings.storage) as lake:
        lake.append(source.fetch(source.tickers()), now=NOW, backfill=True)
    logging.getLogger("stockpredict.catalogue.feature_store").setLevel(logging.ERROR)
    silent = 0
    with FeatureStore(settings, ["mom_5", "vol_20", "rsi_14"]) as store:
        right = store.frame()
        for _ in progress(range(count)):
            named = store.manifest(store.lake.snapshot())
            files = [part["file"] for part in named["parts"]] + [named["presence"]]
            path = store.folder / rng.choice([*files, f"{store.lake.snapshot()}.json"])
            path.write_bytes(flipped(path.read_bytes(), rng))
            silent += not (store.frame().equals(right) and store.tickers() == sorted(set(right.ticker)))
    return silent


def table_flips(count: int, rng, progress) -> int:
    "Silent wrong answers of the table of answers; its signature is checked by readers over a network."
    from stockpredict.core.errors import NotReady
    from stockpredict.predict.answer_table import AnswerTable, pack_table

    names = [(f"T{k:03d}", h) for k in range(50) for h in (1, 5)]
    raw = pack_table(
        {"key": "k"}, {key: f'{{"ticker":"{key[0]}","horizon":{key[1]}'.encode() for key in names}
    )
    right, silent = AnswerTable(raw).rows, 0
    for _ in progress(range(count)):
        try:
            silent += AnswerTable(flipped(raw, rng)).rows != right
        except NotReady:
            pass
    return silent


def check_flips(count: int, seed, progress=lambda x: x) -> dict:  # place -> flips, silent wrong values
    "Flips in lake, feature store and table of answers."
    rng, fifth = random.Random(seed), count // 5
    with tempfile.TemporaryDirectory() as home:
        return dict(
            lake=(count - 2 * fifth, lake_flips(f"{home}/lake", count - 2 * fifth, rng, progress)),
            features=(fifth, store_flips(f"{home}/features", fifth, rng, progress)),
            answers=(fifth, table_flips(fifth, rng, progress)),
        )


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--flips", type=int, default=500)
    ask.add_argument("--seed", default="0")
    args = ask.parse_args()
    from tqdm import tqdm

    done = check_flips(args.flips, args.seed, lambda x: tqdm(x, disable=None))
    parts = ", ".join(f"{flips} in {place} ({silent} silent)" for place, (flips, silent) in done.items())
    print(f"{args.flips} random bit flips: {parts}")


if __name__ == "__main__":
    main()

"""Random single-bit flips in what training and serving read: none may give a wrong value without a word.

    python benchmarks/bit_flips.py [--flips 500] [--seed 0]

Three in five flips hit data files of the lake (bars, adjustments, facts), one the files of the feature store,
one the table of answers. The lake has to name the file and still read the version before, the store to
compute the values again, the table to refuse. A flip is silent when a wrong value comes back.

Of 500 flips with seed 0 (300 in the lake, 100 in stored features, 100 in the table) none was silent: 71 CPU
seconds. Nor was one of 500 with seed 1 (29 CPU seconds) or with seed 905.
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


def lake_flips(home, count: int, rng, progress) -> int:
    "Silent wrong values of a lake; every flip is named by one of the reads, and the version before reads."
    import pandas as pd

    from stockpredict.core.errors import LakeDamaged
    from stockpredict.core.settings import Settings
    from stockpredict.lake.lake import Lake
    from stockpredict.sources.simulate import sample_bars

    storage = Settings().with_(**{"storage.home": str(home)}).storage
    market = sample_bars(tickers=4, sessions=120)
    with Lake(storage) as lake:
        first = lake.append(market[:200], now=NOW)
        halved = market.close.where(market.event_time > market.event_time[60], market.close / 2)
        lake.append(market.assign(adj_close=halved), now=NOW)
        months = pd.DataFrame(dict(series="GDP", event_time=market.event_time[:50], value=1.0))
        lake.add("macro", months, lag="1D")
        sound = [lake.bars(), lake.facts("macro")]
    silent, named = 0, 0
    for _ in progress(range(count)):
        paths = [p for p in sorted(storage.lake_dir.rglob("*.parquet")) if p.parent.name != "ingests"]
        path = rng.choice(paths)
        content = path.read_bytes()
        path.write_bytes(flipped(content, rng))
        with Lake(storage, read_only=True) as lake:
            for read, right in zip((lake.bars, lambda lake=lake: lake.facts("macro")), sound, strict=True):
                try:
                    silent += not read().equals(right)
                except LakeDamaged as e:
                    assert path.name in e.problem and "snapshot=" in e.fix and e.code == "lake-damaged"
                    named += 1
        path.write_bytes(content)
    with Lake(storage, read_only=True) as lake:
        assert lake.bars().equals(sound[0]) and len(lake.bars(snapshot=first.snapshot)) == 200
    assert named == count, "each flip is in a file that one of the two reads"
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

"""The lake under two writers, kill -9, full disks, read-only folders, flipped bytes, broken catalogs and
names that attack."""

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import warm
import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import DataError, LakeLocked, LakeUnavailable, UnknownTicker
from stockpredict.core.settings import Settings
from stockpredict.sources.bars import as_bars
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars

NOW = "2024-01-01T12:00Z"
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def market():
    return sample_bars(tickers=4, sessions=120)


def storage(home):
    return Settings().with_(**{"storage.home": str(home)}).storage


@pytest.fixture
def small_disk(tmp_path):
    "A disk of three megabytes, mounted for the test."
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.getuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True
        ).returncode
    ):
        pytest.skip("Mounting a small disk needs the rights of root; the full-disk tests need one.")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


# ---- kill -9


@pytest.mark.slow
def test_killed_at_every_step_of_every_task_the_lake_is_before_or_after(tmp_path):
    out = warm.python(Path(__file__).with_name("crash_child_lake.py"), tmp_path, env=ENV)
    assert out.returncode == 0, out.stderr[-2000:]
    report = [json.loads(line) for line in out.stdout.splitlines()]
    assert {x["task"] for x in report} == {"append", "add", "purge", "tidy"} and len(report) >= 8
    for x in report:
        assert x["code"] == (0 if x["k"] == 0 else -9), x
        assert x["whole"] and x["again"] == 0 and x["healed"], x


CRASH = """
import os, signal, sys
from stockpredict.core.settings import Settings
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars
step = lambda name: name == "quarantine written" and os.kill(os.getpid(), signal.SIGKILL)
with Lake(Settings().with_(**{"storage.home": sys.argv[1]}).storage, on_step=step) as lake:
    lake.append(sample_bars(tickers=4, sessions=120))
"""


def test_a_lock_left_by_a_crash_does_not_matter_and_its_files_are_swept(tmp_path, market):
    with Lake(storage(tmp_path)) as lake:
        lake.append(market[:200], now=NOW)
    assert warm.python(CRASH, tmp_path, env=ENV).returncode == -signal.SIGKILL
    assert (storage(tmp_path).lake_dir / "writer.json").exists()
    with Lake(storage(tmp_path)) as lake:
        left = lake.clean("0s")
        assert left and len(lake.bars()) == 200, "the dead writer's file is there, and no reader sees it"
        assert lake.clean("0s", dry_run=False) == left and lake.clean("0s") == []
        assert (
            lake.append(market, now=NOW).rows_new == len(market) - 200
            and lake.verify() == lake.recorded_fingerprint()
        )


# ---- two writers


HALF_WRITTEN = """
import os, signal, sqlite3, sys
catalog = sqlite3.connect(sys.argv[1])
catalog.execute("PRAGMA cache_size = 1")
catalog.execute("BEGIN IMMEDIATE")
catalog.execute("CREATE TABLE unfinished (text)")
catalog.executemany("INSERT INTO unfinished VALUES (?)", [("x" * 300,)] * 3000)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("already_open", [False, True], ids=["new reader", "open reader"])
def test_a_reader_is_not_refused_after_a_writer_was_killed_in_its_commit(tmp_path, market, already_open):
    "A read-only SQLite connection cannot finish a rollback by itself."
    at = storage(tmp_path)
    with Lake(at) as lake:
        expected = lake.append(market, now=NOW)
    readers = [Lake(at, read_only=True)] if already_open else []
    catalog = at.lake_dir / "catalog.sqlite"
    assert subprocess.run([sys.executable, "-c", HALF_WRITTEN, catalog]).returncode == -signal.SIGKILL
    assert catalog.with_name("catalog.sqlite-journal").exists()
    with readers[0] if readers else Lake(at, read_only=True) as lake:
        assert lake.fingerprint() == expected.fingerprint and lake.snapshot() == expected.snapshot
    assert not catalog.with_name("catalog.sqlite-journal").exists()


def test_two_writers_who_wait_both_commit_and_nothing_is_lost(tmp_path, market):
    parts = [
        market[market.ticker.isin(t)].assign(source="both") for t in np.array_split(market.ticker.unique(), 2)
    ]
    failures = []

    def write(part):
        try:
            with Lake(storage(tmp_path)) as lake:
                for _, day in list(part.groupby("event_time"))[:4]:
                    with lake.writer(wait=60):
                        lake.append(day, now=NOW)
        except BaseException as e:
            failures.append(e)

    with Lake(storage(tmp_path)):
        pass
    threads = [threading.Thread(target=write, args=(p,)) for p in parts]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []
    with Lake(storage(tmp_path), read_only=True) as lake:
        assert len(lake.bars()) == sum((p.event_time <= sorted(set(p.event_time))[3]).sum() for p in parts)
        assert (
            lake.rows("SELECT count(*) AS n FROM lake.ingests").n[0] == 8
            and lake.verify() == lake.recorded_fingerprint()
        )


def test_a_second_writer_is_refused_in_every_verb(tmp_path, market):
    with Lake(storage(tmp_path)) as first, Lake(storage(tmp_path)) as second:
        first.append(market, now=NOW)
        answer = pd.DataFrame(dict(series=["x"], event_time=["2020-01-01"], value=[1.0]))
        with first.writer():
            for verb in (
                lambda: second.append(market.assign(source="b")),
                lambda: second.add("macro", answer, lag="1D"),
                lambda: second.pin("p"),
                second.compact,
                lambda: second.clean(dry_run=False),
            ):
                with pytest.raises(LakeLocked, match=f"Process {os.getpid()} has been writing"):
                    verb()
            assert len(second.bars()) == len(market)


# ---- disks


def test_a_full_disk_refuses_cleanly_and_keeps_what_was_there(small_disk, market):
    with Lake(storage(small_disk)) as lake:
        kept_rows = lake.append(market, now=NOW)
        big = sample_bars(tickers=60, sessions=300).assign(source="big")
        filler = small_disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 400_000))
        files = sorted(p.name for p in small_disk.rglob("*.parquet"))
        with pytest.raises(LakeUnavailable, match=r"Nothing of the batch was stored.*disk space"):
            lake.append(big, now=NOW)
        assert sorted(p.name for p in small_disk.rglob("*.parquet")) == files, "nothing is left behind"
        kept_rows = lake.append(market[:20].assign(source="little"), now=NOW)  # there is room again
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "rest").write_bytes(bytes(4 << 20))
        answer = pd.DataFrame(
            dict(series=[f"s{i}" for i in range(3000)], event_time="2020-01-01", value=np.arange(3000.0))
        )
        with pytest.raises(LakeUnavailable, match="disk space"):
            lake.add("macro", answer, lag="1D")
        assert lake.fingerprint() == kept_rows.fingerprint and lake.snapshot() == kept_rows.snapshot
        filler.unlink()
        (small_disk / "rest").unlink()
        lake.clean("0s", dry_run=False)
        assert lake.add("macro", answer, lag="1D").rows_new == 3000 and lake.verify() == kept_rows.fingerprint


def test_a_fresh_home_on_a_full_disk_hears_of_the_disk(small_disk):
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(LakeUnavailable, match=r"disk is full.*Free some disk space"):
        Lake(storage(small_disk / "home"))


def test_a_folder_that_became_read_only_still_reads(small_disk, market):
    with Lake(storage(small_disk)) as lake:
        kept_rows = lake.append(market, now=NOW).fingerprint
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Lake(storage(small_disk), read_only=True) as lake:
        assert lake.verify() == kept_rows
    with (
        pytest.raises(LakeUnavailable, match=r"(cannot be|Nothing).*rights"),
        Lake(storage(small_disk)) as lake,
    ):
        lake.append(market.assign(source="b"))
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    with Lake(storage(small_disk)) as lake:
        assert lake.append(market.assign(source="b"), now=NOW).rows_new == len(market)


def test_a_place_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LakeUnavailable, match=r"storage\.home"):
        Lake(storage(tmp_path / "file"))


# ---- bytes


def test_a_flipped_byte_anywhere_is_named_and_the_version_before_reads(tmp_path, market):
    cut = np.sort(market.event_time.unique())[-30]
    with Lake(storage(tmp_path)) as lake:
        first = lake.append(market[market.event_time < cut], now=NOW)
        lake.append(market, now=NOW)
    path = max(
        (storage(tmp_path).lake_dir / "data").rglob("bars/*.parquet"), key=lambda p: p.stat().st_mtime_ns
    )
    whole = path.read_bytes()
    for at in (0, 5, len(whole) // 3, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with Lake(storage(tmp_path), read_only=True) as lake:
            with pytest.raises(
                LakeUnavailable, match=f"{path.name} of the table bars is not what was written"
            ) as e:
                lake.verify()
            assert f"versions up to {first.snapshot}" in e.value.fix
            assert lake.fingerprint(first.snapshot) == first.fingerprint
            try:
                lake.bars()
            except LakeUnavailable as failed:
                assert path.name in str(failed), "a read that fails names the file too"
    path.unlink()
    with (
        Lake(storage(tmp_path), read_only=True) as lake,
        pytest.raises(LakeUnavailable, match=f"{path.name} of the table bars is missing"),
    ):
        lake.verify()


def test_checksums_are_what_sha256sum_reads_and_a_torn_line_is_mended(tmp_path, market):
    s = storage(tmp_path)
    with Lake(s) as lake:
        lake.append(market, now=NOW)
    assert (
        subprocess.run(
            ["sha256sum", "--check", "--quiet", "files.sha256"], cwd=s.lake_dir, capture_output=True
        ).returncode
        == 0
    )
    seals = s.lake_dir / "files.sha256"
    seals.write_text(seals.read_text()[:-40])
    with Lake(s) as lake:
        known = len(lake.checksums())
        lake.append(market.assign(source="b"), now=NOW)
        assert len(lake.checksums()) > known + 1, "the torn one is written anew"
        lake.check_files()


@pytest.mark.parametrize("damage", [b"", b"not a database" * 100, None], ids=["empty", "garbage", "cut"])
def test_a_broken_catalog_is_a_clear_sentence(tmp_path, market, damage):
    s = storage(tmp_path)
    with Lake(s) as lake:
        lake.append(market, now=NOW)
    catalog = s.lake_dir / "catalog.sqlite"
    catalog.write_bytes(catalog.read_bytes()[:3000] if damage is None else damage)
    for how in (True, False):
        with pytest.raises(LakeUnavailable, match=r"restore|backup|stockpredict ingest") as e:
            with Lake(s, read_only=how) as lake:
                lake.bars()
        assert "Traceback" not in str(e.value) and len(str(e.value)) < 900


@pytest.mark.parametrize("catalog", [b"", None], ids=["empty", "missing"])
def test_no_new_lake_is_started_over_an_old_one(tmp_path, market, catalog):
    s = storage(tmp_path)
    with Lake(s) as lake:
        mark = lake.append(market, now=NOW).fingerprint
    path = s.lake_dir / "catalog.sqlite"
    saved = path.read_bytes()
    path.unlink()
    if catalog is not None:
        path.write_bytes(catalog)
    with pytest.raises(LakeUnavailable, match=r"data files of a lake.*Restore the catalog from a backup"):
        Lake(s)
    path.write_bytes(saved)
    with Lake(s) as lake:
        assert lake.verify() == mark


def test_a_flipped_bit_is_never_read_as_a_price(tmp_path):
    "`python benchmarks/bit_flips.py` draws 500, also in stored features and in the table of answers."
    lake_flips = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/bit_flips.py"))["lake_flips"]
    rng = random.Random(os.environ.get("TESTS_KILL_SEED", "0"))
    assert lake_flips(tmp_path, 15, rng, iter) == 0


# ---- foreign programs


FOREIGN = """
import sys
from stockpredict.core.settings import Settings
from stockpredict.lake.connection import connect
con = connect(Settings().with_(**{"storage.home": sys.argv[1]}).storage)
con.execute("BEGIN")
con.execute("INSERT INTO lake.ingests (number) VALUES (99)")
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.mark.slow
def test_foreign_transactions_on_the_catalog_are_named(tmp_path, market):
    s = storage(tmp_path)
    with Lake(s) as lake:
        kept = lake.append(market, now=NOW)
    command = [sys.executable, "-c", FOREIGN, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV)
    others = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        assert [p.stdout.readline() for p in others] == ["open\n"] * 2
        with Lake(s) as lake, pytest.raises(LakeLocked) as e:
            lake.append(market.assign(source="b"), now=NOW)
        assert all(f"process {p.pid} (" in e.value.problem for p in others) and e.value.code == "lake-locked"
    finally:
        for p in others:
            p.kill()
            p.communicate()
    with Lake(s) as lake:
        assert lake.fingerprint() == kept.fingerprint
        assert lake.append(market.assign(source="b"), now=NOW).rows_new == len(market)


# ---- names that attack


HOSTILE = [
    "'; DROP TABLE lake.bars; --",
    "../../../etc/passwd",
    "a\nb\r\nc",
    "$tickers",
    '" OR 1=1 --',
    "x" * 10_000,
    "тикер",
    "%s{0}",
    "NULL",
    "",
]


def test_hostile_names_are_only_names(tmp_path, market):
    at = market.event_time.iloc[: len(HOSTILE)].to_numpy()
    bars = as_bars(
        dict(
            ticker=HOSTILE,
            event_time=at,
            known_at=at,
            close=np.arange(1.0, len(HOSTILE) + 1),
            source="'; DROP TABLE lake.ingests; --",
        )
    )
    with Lake(storage(tmp_path)) as lake:
        lake.append(market, now=NOW)
        for verb in (
            lambda: lake.append(bars.assign(ticker="A\0B")),
            lambda: lake.bars(["A\0", "'; DROP"]),
            lambda: lake.bars(source="A\0"),
            lambda: lake.pin("A\0"),
            lambda: lake.sql("SELECT count(*) FROM bars WHERE ticker = $t", t="A\0"),
        ):
            with pytest.raises(DataError, match="NUL character"):
                verb()
        lake.append(bars, now=NOW)
        source = bars.source[0]
        for i, name in enumerate(HOSTILE):
            assert lake.bars([name], source=source).close.tolist() == [i + 1.0]
        assert sorted(lake.tickers(source)) == sorted(HOSTILE) and len(lake.bars(source="made up")) == 0
        for name in HOSTILE[::3]:
            with pytest.raises(DataError):
                lake.bars(snapshot=name or "none")
            with pytest.raises((UnknownTicker, DataError)) as e:
                lake.history(name)
            assert len(str(e.value)) < 1000
            with pytest.raises(DataError):
                lake.facts(name)
            with pytest.raises(DataError):
                lake.members(name)
            if name:
                lake.pin(name, 2)
                assert lake.snapshot_number(name) == 2
        assert lake.verify() == lake.recorded_fingerprint() and set(lake.table_names()) >= {
            "bars",
            "ingests",
            "pins",
        }
        assert len(lake.bars(source=market.source.iloc[0])) == len(market)
    strange = [p for p in tmp_path.rglob("*") if "passwd" in p.name or "DROP" in p.name]
    assert strange == []

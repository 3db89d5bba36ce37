"""One contract, two grounds: SQLite and a folder, PostgreSQL and S3.

PostgreSQL is Debian's, started on a spare loopback port; S3 is moto's server. Both are real programs spoken
to over sockets.
"""

import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from live_postgres import start_postgres
from live_redis import spare_port

from stockpredict.core.errors import DataError, LakeDamaged, LakeLocked, LakeUnavailable
from stockpredict.core.settings import Settings
from stockpredict.ingest.ingest import ingest, load_bars
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars

GROUNDS = ["sqlite and a folder", "postgres and s3"]
HOLD = """
import sys, time
from stockpredict.core.settings import Settings
from stockpredict.lake.lake import Lake
home, catalog, data = sys.argv[1:4]
changes = {"storage.home": home, "storage.catalog": catalog, "storage.data_path": data}
with Lake(Settings().with_(**changes).storage) as lake, lake.writer():
    print("holding", flush=True); time.sleep(120)
"""


@pytest.fixture(scope="module")
def postgres():
    server = start_postgres()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def s3():
    moto = pytest.importorskip(
        "moto.server", reason="moto's S3 server is not installed: pip install stockpredict[dev]."
    )
    import httpx

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    assert httpx.put(f"{url}/market").status_code == 200
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(
            AWS_ENDPOINT_URL=url,
            AWS_ACCESS_KEY_ID="key",
            AWS_SECRET_ACCESS_KEY="secret",
            AWS_REGION="us-east-1",
        ).items():
            patch.setenv(name, value)
        yield url
    server.stop()


@pytest.fixture(params=GROUNDS)
def ground(request, tmp_path):
    "Settings of an empty lake; the same tests must hold whatever it stands on."
    s = Settings().with_(**{"storage.home": str(tmp_path / "home")})
    if request.param == GROUNDS[0]:
        return s
    catalog = request.getfixturevalue("postgres").database()
    request.getfixturevalue("s3")
    return s.with_(
        **{"storage.catalog": catalog, "storage.data_path": f"s3://market/{catalog.rsplit('=')[-1]}"}
    )


@pytest.fixture(scope="module")
def market():
    return sample_bars(tickers=3, sessions=60)


def test_bars_go_in_once_and_the_past_stays(ground, market):
    cut = np.sort(market.event_time.unique())[-5]
    fixed = market.assign(close=market.close.where(market.index != 7, market.close * 0.99))
    with Lake(ground.storage) as lake:
        first = lake.append(market[market.event_time < cut], now="2024-01-01T12:00Z")
        assert lake.append(market[market.event_time < cut], now="2024-01-01T13:00Z").batch == ""
        second = lake.append(fixed, now="2024-01-02T12:00Z")
        assert (second.rows_new, second.rows_corrected) == ((market.event_time >= cut).sum(), 1)
        assert lake.verify() == second.fingerprint != first.fingerprint == lake.fingerprint(first.snapshot)
        assert lake.bars().close.tolist() == fixed.close.tolist()
        assert len(lake.bars(snapshot=first.snapshot)) == (market.event_time < cut).sum()
        at, ticker = market.event_time[7], market.ticker[7]
        assert [lake.bars(ticker, at, at, as_of=d).close.item() for d in ("2024-01-01", "2024-01-02")] == [
            market.close[7],
            fixed.close[7],
        ]
        assert lake.sql("SELECT count(*) AS n FROM bars").n[0] == len(market) + 1
        with pytest.raises(DataError, match="Only one SELECT"):
            lake.sql("DELETE FROM bars")


def test_a_second_reader_sees_each_commit_and_is_not_blocked_by_an_open_batch(ground, market):
    with Lake(ground.storage) as lake:
        lake.append(market[:90], now="2024-01-01T12:00Z")
        seen = []

        def look(step):
            if step in ("bars written", "diary written"):
                with Lake(ground.storage, read_only=True) as other:
                    seen.append(len(other.bars()))

        with Lake(ground.storage, read_only=True) as reader:
            lake.step = look
            lake.append(market, now="2024-01-02T12:00Z")
            assert seen == [90, 90] and len(reader.bars()) == len(market)
            with pytest.raises(LakeUnavailable, match="opened for reading"):
                reader.append(market)


def test_facts_pins_and_cleaning(ground):
    notices = pd.DataFrame(
        dict(series="GDP", event_time="2020-01-01", known_at=["2020-04-26", "2020-05-26"], value=[2.1, 1.7])
    )
    with Lake(ground.storage) as lake:
        assert lake.add("macro", notices).rows_new + lake.add("macro", notices).rows_same == 4
        assert [lake.macro("GDP", as_of=d).GDP.item() for d in ("2020-05-01", "2020-06-01")] == [2.1, 1.7]
        lake.pin("run-1")
        for day in range(1, 6):
            lake.add("macro", notices[:1].assign(value=float(day)), known_at=f"2021-01-0{day}")
        lake.compact()
        assert len(lake.expire(days=0, dry_run=False)) >= 5 and lake.clean("0s", dry_run=False)
        assert lake.macro("GDP", snapshot="run-1").GDP.item() == 1.7 and lake.macro("GDP").GDP.item() == 5
        lake.check_files()
        assert lake.storage_table().bytes["macro"] > 0


def test_one_writer_across_processes_and_a_crash_frees_the_lock(ground, market, tmp_path):
    "With a catalog on a server the second writer has a home of its own, as on another machine."
    s = ground.storage
    theirs = str(tmp_path / "other") if s.catalog else s.home
    with Lake(s) as lake:
        lake.append(market, now="2024-01-01T12:00Z")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, theirs, s.catalog, s.data_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "holding\n"
        with Lake(s) as lake:
            with pytest.raises(
                LakeLocked, match=f"Process {holder.pid}.* has been writing to the lake since"
            ):
                lake.append(market.assign(source="b"))
            assert len(lake.bars()) == len(market), "readers go on"
            began = time.monotonic()
            with pytest.raises(LakeLocked), lake.writer(wait=0.5):
                pass
            assert time.monotonic() - began > 0.4
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with lake.writer(wait=20):
                assert lake.append(market.assign(source="b")).rows_new == len(market)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


# ---- a foreign program with a transaction on a PostgreSQL catalog

BEGUN = {
    "reads": "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM ducklake_snapshot;",
    "writes": "BEGIN; UPDATE ducklake_snapshot SET snapshot_time = snapshot_time WHERE snapshot_id = 1;",
    "locks": "BEGIN; LOCK TABLE ducklake_snapshot IN ACCESS EXCLUSIVE MODE;",
}
FOREIGN = """
import sys
from stockpredict.core.settings import Settings
from stockpredict.lake.connection import connect
home, catalog, data = sys.argv[1:4]
changes = {"storage.home": home, "storage.catalog": catalog, "storage.data_path": data}
con = connect(Settings().with_(**changes).storage)
con.execute("BEGIN")
con.execute("INSERT INTO lake.quarantine (ticker, reason) VALUES ('FOREIGN', 'test')")
print("open", flush=True)
sys.stdin.readline()
con.execute("COMMIT")
"""


@pytest.fixture
def served(postgres, tmp_path, market):
    "A lake with 90 bars in a catalog on the server, data in a folder."
    catalog, data = postgres.database(), str(tmp_path / "data")
    changes = {"storage.home": str(tmp_path / "home"), "storage.catalog": catalog, "storage.data_path": data}
    s = Settings().with_(**changes)
    with Lake(s.storage) as lake:
        lake.append(market[:90], now="2024-01-01T12:00Z")
    return s


@pytest.mark.parametrize("kind", ["reads", "writes", pytest.param("locks", marks=pytest.mark.slow)])
def test_a_foreign_transaction_hinders_nobody_unless_it_locks_the_tables(postgres, served, market, kind):
    name = served.storage.catalog.rsplit("=")[-1]
    words = ["-h", "127.0.0.1", "-p", str(postgres.port), "-U", "postgres", "-d", name, "-qAt"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=postgres.place)
    other = subprocess.Popen([*postgres.user, str(postgres.bin / "psql"), *words], **pipes)
    try:
        other.stdin.write(f"SET application_name = 'a report';\n{BEGUN[kind]}\nSELECT 'ready';\n")
        other.stdin.flush()
        while (line := other.stdout.readline().strip()) != "ready":
            assert other.poll() is None, line
        if kind == "locks":
            with pytest.raises(LakeLocked, match=r"process \d+ \(a report\) has a transaction open") as e:
                with Lake(served.storage) as lake:
                    lake.append(market, now="2024-01-02T12:00Z")
            assert e.value.code == "lake-locked" and "stored data is untouched" in e.value.fix
        else:
            with Lake(served.storage) as lake:
                assert lake.append(market, now="2024-01-02T12:00Z").rows_new == len(market) - 90
        assert other.poll() is None, "it is still there"
    finally:
        other.kill()
        other.communicate()
    with Lake(served.storage) as lake:
        lake.append(market, now="2024-01-02T12:00Z")
        assert len(lake.bars()) == len(market) and lake.verify() == lake.recorded_fingerprint()


def test_a_foreign_writer_and_ours_both_keep_what_they_wrote(served, market):
    s = served.storage
    words = [str(s.home), s.catalog, str(s.data_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    other = subprocess.Popen([sys.executable, "-c", FOREIGN, *words], **pipes)
    try:
        assert other.stdout.readline() == "open\n"
        with Lake(s) as lake:
            mark = lake.append(market, now="2024-01-02T12:00Z").fingerprint
            assert lake.sql("SELECT count(*) AS n FROM quarantine").n[0] == 0, "not committed yet"
        other.communicate("\n")
        assert other.returncode == 0
    finally:
        other.kill()
        other.communicate()
    with Lake(s) as lake:
        assert lake.sql("SELECT ticker FROM quarantine").ticker.tolist() == ["FOREIGN"]
        assert lake.verify() == mark and len(lake.bars()) == len(market)


def test_an_interrupted_batch_leaves_nothing(ground, market):
    def fail(step):
        if step == "diary written":
            raise KeyboardInterrupt

    with Lake(ground.storage) as lake:
        lake.append(market[:30], now="2024-01-01T12:00Z")
        before, lake.step = lake.fingerprint(), fail
        with pytest.raises(KeyboardInterrupt):
            lake.append(market, now="2024-01-02T12:00Z")
        lake.step = lambda step: None
        assert lake.verify() == before
        assert lake.append(market, now="2024-01-02T12:00Z").rows_new == len(market) - 30


def test_the_whole_road_from_a_source_to_a_frame(ground):
    s = ground.with_(
        **{
            "data.source": "simulated",
            "simulated.tickers": 4,
            "simulated.sessions": 40,
            "data.start": "2000-01-01",
        }
    )
    report = ingest(s, "2024-01-01T12:00Z")
    assert (
        report.rows_new == len(load_bars(s, adjusted=False)) > 0
        and ingest(s, "2024-01-01T13:00Z").batch == ""
    )


@pytest.fixture
def bucket(s3):
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: pip install stockpredict[dev].")
    keys = dict(aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1")
    return boto3.client("s3", endpoint_url=s3, **keys)


def flip(bucket, prefix, table, at=None, newest=True):
    "Change a byte of an object of a table; its name, its key and its bytes before."
    listed = bucket.list_objects_v2(Bucket="market", Prefix=f"{prefix}/main/{table}/")["Contents"]
    key = sorted(o["Key"] for o in listed)[-1 if newest else 0]  # the names grow with time
    body = bucket.get_object(Bucket="market", Key=key)["Body"].read()
    place = len(body) // 3 if at is None else at
    bucket.put_object(
        Bucket="market", Key=key, Body=body[:place] + bytes([body[place] ^ 0x10]) + body[place + 1 :]
    )
    return key.rsplit("/")[-1], key, body


READ = """
import sys
from stockpredict.core.settings import Settings
from stockpredict.lake.lake import Lake
home, catalog, data = sys.argv[1:4]
changes = {"storage.home": home, "storage.catalog": catalog, "storage.data_path": data}
with Lake(Settings().with_(**changes).storage, read_only=True) as lake:
    print(len(lake.bars()))
"""


@pytest.mark.parametrize("kind", GROUNDS)
def test_a_flipped_byte_of_an_object_is_never_read_as_a_price(
    request, bucket, tmp_path, market, kind, monkeypatch
):
    "With the catalog on a server, the reader is another machine: another home and another process."
    prefix = f"flip-{tmp_path.name}"
    catalog = request.getfixturevalue("postgres").database() if kind == GROUNDS[1] else ""
    changes = {"storage.home": str(tmp_path / "home"), "storage.data_path": f"s3://market/{prefix}"}
    s = Settings().with_(**changes, **{"storage.catalog": catalog}).storage
    with Lake(s) as lake:
        first = lake.append(market[:90], now="2024-01-01T12:00Z")
        lake.append(market, now="2024-01-02T12:00Z")
        assert set(lake.checksums()) == {f.rsplit("/")[-1] for f in lake.files().file}
        assert len(lake.bars()) == len(market) and lake.check_files() is None
    name, key, body = flip(bucket, prefix, "bars")
    with Lake(s, read_only=True) as lake:
        with pytest.raises(LakeDamaged, match=f"{name} of the table bars is not what was written") as e:
            lake.bars()
        assert e.value.code == "lake-damaged" and f"snapshot={first.snapshot}" in e.value.fix
        for read in (lake.fingerprint, lake.verify, lake.check_files):
            with pytest.raises(LakeDamaged, match=name):
                read()
        assert len(lake.bars(snapshot=first.snapshot)) == 90
        bucket.put_object(Bucket="market", Key=key, Body=body)
        assert len(lake.bars()) == len(market), "restored, it reads again"
    other = str(tmp_path / ("another machine" if catalog else "home"))
    words = [sys.executable, "-c", READ, other, catalog, s.data_path]
    flip(bucket, prefix, "bars", at=40)
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode and f"LakeDamaged: {name} of the table bars" in done.stderr
    bucket.delete_object(Bucket="market", Key=key)
    with Lake(s, read_only=True) as lake, pytest.raises(LakeDamaged, match=f"{name}.*is missing"):
        lake.bars()
    bucket.put_object(Bucket="market", Key=key, Body=body)
    monkeypatch.setattr("stockpredict.lake.integrity.YOUNG", pd.Timedelta(0))
    time.sleep(1)  # the bucket counts in seconds
    with Lake(s, read_only=True) as lake:
        assert len(lake.bars()) == len(market)
        fetched = []
        monkeypatch.setattr(type(lake), "differences", lambda *_: fetched.append(1))
        assert len(lake.bars()) == len(market) and not fetched, "compared once, then remembered"


def test_checksums_of_objects_follow_the_upkeep_and_older_lakes_get_them(bucket, s3, tmp_path, market):
    prefix = f"upkeep-{tmp_path.name}"
    changes = {"storage.home": str(tmp_path), "storage.data_path": f"s3://market/{prefix}"}
    with Lake(Settings().with_(**changes).storage) as lake:
        lake.append(market[:90], now="2024-01-01T12:00Z")
        lake.con.execute("DROP TABLE __ducklake_metadata_lake.data_file_checksums")  # as earlier releases
        assert lake.checksums() == {} and len(lake.bars()) == 90
        lake.append(market, now="2024-01-02T12:00Z")
        lake.compact()
        gone = lake.clean("0s", dry_run=False)
        assert gone and set(lake.checksums()) == {f.rsplit("/")[-1] for f in lake.files().file}
        assert len(lake.bars()) == len(market)
        name, *_ = flip(bucket, prefix, "bars")
        with pytest.raises(LakeDamaged, match=name):
            lake.bars()


def test_a_broken_object_is_named(postgres, bucket, tmp_path, market):
    catalog = postgres.database()
    prefix = catalog.rsplit("=")[-1]
    changes = {"storage.home": str(tmp_path), "storage.data_path": f"s3://market/{prefix}"}
    with Lake(Settings().with_(**changes, **{"storage.catalog": catalog}).storage) as lake:
        first = lake.append(market[:90], now="2024-01-01T12:00Z")
        lake.append(market, now="2024-01-02T12:00Z")
        name, *_ = flip(bucket, prefix, "bars", at=6)
        with pytest.raises(LakeUnavailable, match=name):
            lake.verify()
        assert len(lake.bars(snapshot=first.snapshot)) == 90


def test_a_server_that_is_not_there_is_a_sentence(tmp_path, s3):
    s = Settings().with_(
        **{
            "storage.home": str(tmp_path),
            "storage.data_path": "s3://market/none",
            "storage.catalog": f"postgres:host=127.0.0.1 port={spare_port()} user=postgres dbname=none "
            "password=hunter2",
        }
    )
    with pytest.raises(LakeUnavailable, match="catalog server") as e:
        Lake(s.storage)
    assert "hunter2" not in str(e.value)

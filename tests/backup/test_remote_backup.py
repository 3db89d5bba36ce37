"""A backup of a lake with its catalog in PostgreSQL and its data files in a bucket, and the way back."""

import subprocess
import threading

import duckdb
import pytest
from live_postgres import start_postgres

from stockpredict.backup import restore
from stockpredict.backup.backups import Backups
from stockpredict.backup.drill import drill
from stockpredict.backup.sealed_files import new_backup_key, read_backup_keys
from stockpredict.core.errors import LakeUnavailable, NotReady
from stockpredict.core.settings import load_settings
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import simulate

assert restore  # it adds its verbs to Backups


@pytest.fixture(scope="module")
def postgres():
    server = start_postgres()
    yield server
    server.stop()


@pytest.fixture
def s3(monkeypatch):
    moto = pytest.importorskip(
        "moto.server", reason="moto's S3 server is not installed: pip install stockpredict[dev]."
    )
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: pip install stockpredict[s3].")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    for name, value in {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="market")
    yield client
    server.stop()


def test_catalog_and_bucket_come_back_as_they_were(postgres, s3, tmp_path):
    sets = {
        "storage.home": str(tmp_path / "home"),
        "storage.reports": str(tmp_path / "reports"),
        "storage.catalog": postgres.database(),
        "storage.data_path": "s3://market/lake",
        "backup.target": str(tmp_path / "there"),
    }
    settings = load_settings(None, sets, environ={})
    bars = simulate("null", tickers=4, sessions=60, seed=3).bars
    days = sorted(bars.event_time.unique())
    with Lake(settings.storage) as lake:
        lake.append(bars[bars.event_time < days[-5]])
    backups = Backups(settings, read_backup_keys(new_backup_key()))
    stop = threading.Event()

    def write():
        for day in days[-5:-1]:
            with Lake(settings.storage) as lake:
                lake.append(bars[bars.event_time == day])
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    taken = [backups.create()]
    while not stop.is_set():
        taken.append(backups.create())
    writer.join()
    with Lake(settings.storage, read_only=True) as lake:
        before = lake.verify()
    last = backups.create()
    assert all(backups.check(backup.name) == [] for backup in (*taken, last))
    assert backups.create().stored < 200_000  # data files are known by name; the dump differs in its time

    with Lake(settings.storage) as lake:
        lake.append(bars[bars.event_time == days[-1]])
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="market"):
        for item in page["Contents"]:
            s3.delete_object(Bucket="market", Key=item["Key"])
    backups.restore_home(last.name)
    with Lake(settings.storage) as lake:
        assert lake.verify() == before
        assert lake.bars().event_time.max() == days[-2]
        lake.append(bars[bars.event_time == days[-1]])
        assert lake.bars().event_time.max() == days[-1]

    rows = drill(backups, tmp_path / "drill")
    assert [(row.what, row.ok) for row in rows] == [("the whole home folder", True)]
    assert "not counted" in rows[0].loss


def test_the_password_of_the_catalog_is_a_secret_and_shown_nowhere(postgres, tmp_path, monkeypatch, caplog):
    address, first, second = (
        postgres.database().replace("user=postgres", "user=desk"),
        "tulip's harbour",
        "drift-77",
    )
    database = address.rpartition("dbname=")[2]

    def ask(sql):
        postgres.run("psql", "-h", "127.0.0.1", "-p", postgres.port, "-U", "postgres", "-qc", sql)

    rules = postgres.place / "data" / "pg_hba.conf"
    rules.write_text(f"host all desk 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    ask(f"CREATE ROLE desk LOGIN PASSWORD '{first.replace(chr(39), chr(39) * 2)}'")
    ask(f"ALTER DATABASE {database} OWNER TO desk")
    ask("SELECT pg_reload_conf()")
    monkeypatch.delenv("DESK_LAKE", raising=False)
    sets = {
        "storage.home": str(tmp_path / "home"),
        "storage.catalog": f"{address} password=${{DESK_LAKE}}",
        "secrets.provider": f"file:{tmp_path}",
        "backup.target": str(tmp_path / "there"),
    }
    settings, texts, words = load_settings(None, sets, environ={}), [], []
    with pytest.raises(NotReady, match="names the secret DESK_LAKE") as refused:
        Lake(settings.storage)
    texts += [refused.value, refused.value.fix]
    (tmp_path / "DESK_LAKE").write_text(first)
    bars = simulate("null", tickers=3, sessions=20, seed=3).bars
    with Lake(settings.storage) as lake:
        lake.append(bars)
        texts += lake.con.execute("FROM duckdb_databases()").fetchall()
        texts += lake.con.execute("FROM duckdb_secrets()").fetchall()
    plain = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda line, **more: (words.append(line), plain(line, **more))[1])
    backups = Backups(settings, read_backup_keys(new_backup_key()))
    backups.restore_home(backups.create().name)
    assert {str(line[0]).rpartition("/")[2] for line in words} >= {"pg_dump", "pg_restore"}
    ask(f"ALTER ROLE desk PASSWORD '{second}'")
    with pytest.raises(LakeUnavailable, match="password authentication failed") as refused:
        Lake(settings.storage)
    assert isinstance(refused.value.__cause__, duckdb.Error)
    (tmp_path / "DESK_LAKE").write_text(second)  # rotated; no setting changes, nothing restarts
    with Lake(settings.storage, read_only=True) as lake:
        assert len(lake.bars()) == len(bars)
    texts += [*words, refused.value, refused.value.__cause__, settings.to_ini(), settings, caplog.text]
    assert not any(word in str(text) for text in texts for word in ("harbour", second))

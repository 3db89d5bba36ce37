"""The purge deletes exactly what the policy says: records on both sides of every limit, in every store."""

import hashlib
import os
import random
import shutil
from pathlib import Path

import kill_points
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from stockpredict.access.audit_chain import AuditChain, audit_segments
from stockpredict.access.audit_search import search_audit, verify_audit
from stockpredict.access.keys import KeyStore
from stockpredict.alerts.alert_records import AlertEvent, new_rule
from stockpredict.alerts.alert_store import AlertStore
from stockpredict.core.files import write_json
from stockpredict.core.settings import load_settings
from stockpredict.govern.policy import LAKE_RULES, RULES, lake_policy
from stockpredict.govern.purge import run_purge as purge
from stockpredict.lake.facts import FACT_TABLES
from stockpredict.lake.lake import BAR_TABLES, Lake
from stockpredict.lake.maintenance import AGES_BY
from stockpredict.lake.predictions import RECORD_TABLES
from stockpredict.serve.jobs import Job, JobStore
from stockpredict.sources.vendor_chain import vendor_ledger
from stockpredict.watch.input_drift import training_requests

NOW = pd.Timestamp("2026-11-30 12:00", tz="UTC")
TICK = pd.Timedelta(microseconds=1)


@pytest.fixture
def settings(tmp_path):
    return load_settings(None, {"storage.home": str(tmp_path / "home")}, environ={})


def limit_of(settings, rule):
    return RULES[rule].before(settings, NOW)


def around(limit, draw, count=6):
    "Moments on both sides of a limit: the limit itself, one microsecond before it, and some further away."
    near = [limit, limit - TICK, limit + TICK]
    spread = [limit + pd.Timedelta(seconds=draw.randint(-400, 400) * 86_400 + 3_600) for _ in range(count)]
    return near + [at for at in spread if at < NOW]


# ---- the lake


def value_of(kind, name, n):
    "A value of an SQL type."
    if name in ("ticker", "index_name", "security"):
        return f"T{n % 3}"
    if name in ("sums", "files"):
        return None
    plain = {"VARCHAR": f"{name}-{n}", "DOUBLE": 100.0 + n, "DOUBLE[]": [0.5], "BOOLEAN": False}
    return plain.get(kind, n)


def columns_of(table):
    if table in FACT_TABLES:
        return FACT_TABLES[table].columns
    declared = (BAR_TABLES | RECORD_TABLES)[table]
    return dict(column.strip().split() for column in declared.split(","))


def fill_table(lake, table, moments):
    "Rows of a table at these moments, written as they stand."
    columns = columns_of(table)
    rows = []
    for n, at in enumerate(moments):
        row = {name: value_of(kind, name, n) for name, kind in columns.items()}
        times = {name: at for name, kind in columns.items() if kind == "TIMESTAMPTZ"}
        days = {name: at.date() for name, kind in columns.items() if kind == "DATE"}
        rows.append(row | times | days | ({"source": "files"} if "source" in columns else {}))
    lake.con.register("rows_of_test", pa.Table.from_pylist(rows))
    ddl = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    lake.con.execute(f"CREATE TABLE IF NOT EXISTS lake.{table} ({ddl})")
    names = ", ".join(columns)
    lake.con.execute(f"INSERT INTO lake.{table} ({names}) SELECT {names} FROM rows_of_test")
    lake.con.unregister("rows_of_test")
    lake.record_checksums()


def fill_lake(settings, seed, tables=tuple(LAKE_RULES)):
    draw = random.Random(seed)
    with Lake(settings.storage) as lake:
        for table in tables:
            rule = LAKE_RULES[table]
            limit = limit_of(settings, rule) or limit_of(settings, "market")
            fill_table(lake, table, around(limit, draw))


def table_rows(lake, table):
    return sorted(map(repr, lake.con.execute(f"SELECT * FROM lake.{table}").fetchall()))


def kept_rows(lake, settings, table):
    "What the policy leaves of a table, reckoned outside of the purge."
    frame = lake.con.execute(f"SELECT * FROM lake.{table}").fetch_arrow_table().to_pylist()
    limit, column = limit_of(settings, LAKE_RULES[table]), AGES_BY.get(table, "event_time")
    if limit is None:
        return len(frame)

    def stays(value):
        moment = pd.Timestamp(value)
        return (moment if moment.tzinfo else moment.tz_localize("UTC")) >= limit

    return sum(stays(row[column]) for row in frame)


def as_of_hash(lake, since):
    "Digest of the bars that stay, as known at three moments."
    digest = hashlib.sha256()
    for at in (since + pd.Timedelta(days=n) for n in (30, 200, 2_000)):
        bars = lake.bars(start=since, as_of=at, adjusted=False, source="files")
        digest.update(bars.to_json(date_format="iso").encode())
    return digest.hexdigest(), len(bars)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_table_loses_what_is_older_than_its_rule_and_nothing_else(settings, seed):
    fill_lake(settings, seed)
    since = limit_of(settings, "market")
    with Lake(settings.storage) as lake:
        before = {table: table_rows(lake, table) for table in LAKE_RULES}
        expected = {table: kept_rows(lake, settings, table) for table in LAKE_RULES}
        pinned, known = lake.pin("run-1"), as_of_hash(lake, since)
    assert known[1] > 2, "some bars stay"

    counted = {p.what: p.count for p in purge(settings, now=NOW)}
    with Lake(settings.storage) as lake:
        assert {t: table_rows(lake, t) for t in LAKE_RULES if t != "pins"} == {
            t: rows for t, rows in before.items() if t != "pins"
        }, "a dry run changes nothing"

    done = {p.what: p.count for p in purge(settings, do_it=True, now=NOW)}
    assert done | {"tables with files to write anew": 0} == counted | {"tables with files to write anew": 0}
    with Lake(settings.storage) as lake:
        for table in LAKE_RULES:
            after, count = table_rows(lake, table), counted.get(f"rows of {table}", 0)
            if table in ("ingests", "pins"):  # a purge notes its fingerprints, and the test its pin
                assert len(set(before[table]) & set(after)) == expected[table], table
                continue
            assert set(after) <= set(before[table]) and len(after) == expected[table], table
            assert count == len(before[table]) - len(after), table
            assert (count > 0) == (table in lake_policy(settings)), table
        assert as_of_hash(lake, since) == known
        assert lake.verify() == lake.fingerprint(), "every file is as it was written"
        old = lake.con.execute(f"SELECT count(*) FROM lake.bars AT (VERSION => {pinned})").fetchone()[0]
        assert old == len(before["bars"]), "the pinned version shows what it showed"
        assert lake.rewrite() == []

    assert [p for p in purge(settings, do_it=True, now=NOW) if p.count] == [], "a second purge finds nothing"
    assert len(list(search_audit(settings, path="govern purge"))) == 1


def test_purged_rows_leave_the_disk_once_their_versions_expire(settings):
    fill_lake(settings, 4, ["bars", "macro", "spells"])
    purge(settings, do_it=True, now=NOW, only=["market"])
    with Lake(settings.storage) as lake:
        lake.expire(days=0, dry_run=False)
        lake.clean("0s", dry_run=False)
        files = list(Path(settings.storage.data_url).rglob("*.parquet"))
        bars = [f for f in files if f.parent.name == "bars"]
        oldest = min(pa.parquet.read_table(f)["event_time"].to_pandas().min() for f in bars)
    assert oldest >= limit_of(settings, "market")


# ---- the home folder


def stamp(path, at):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a line\n")
    os.utime(path, (at.timestamp(), at.timestamp()))


def fill_home(settings, seed=1):
    "Records on both sides of each limit in every store of the home folder; those that stay, by store."
    draw, home = random.Random(seed), settings.storage.home_dir
    limits = {rule: limit_of(settings, rule) for rule in RULES}
    limits["activity"] = limits["activity"].floor("s")
    moments = {rule: around(at, draw) for rule, at in limits.items() if at is not None}
    whole = [at.floor("s") for at in moments["activity"]]

    ledger = vendor_ledger(settings)
    with ledger.open() as con:
        for n, at in enumerate(moments["raw"]):
            text = f"{at:%Y-%m-%dT%H:%M:%S}"
            con.execute("INSERT INTO answers VALUES ('s', ?, 'v', '', '', 1, ?)", (f"T{n}", text))
            con.execute("INSERT INTO letters VALUES ('s', ?, '', '', 1, '', ?, '[]')", (f"T{n}", text))
            con.execute("INSERT INTO spent VALUES (?, ?, 1)", (f"{at:%Y-%m-%d}", f"v{n}"))
    store, rule = AlertStore(settings.storage), new_rule("user:anna", "price", ["AAPL"], {"above": 1})
    store.add([rule])
    for n, at in enumerate(whole):
        fields = (f"e{n}", "l", rule.id, rule.owner, "AAPL", "price", "warning", "t", f"{at:%Y-%m-%d}", "c")
        store.append_events([AlertEvent(*fields, at.isoformat(timespec="seconds"), 1.0)])
    jobs = JobStore(home / "jobs")
    for n, at in enumerate([*whole, None]):
        name, ended = f"train-20260101T000000-{n:08x}", at.isoformat(timespec="seconds") if at else ""
        jobs.write(Job(name, "train", "user:anna", "2020-01-01T00:00:00+00:00", "done" if at else "running"))
        jobs.write(Job(name, "train", "user:anna", "2020", "done" if at else "running", ended=ended))
    keys, named = KeyStore(settings.storage), {}
    for at in moments["activity"]:
        entry, _ = keys.create(["viewer"], days=1, now=at.timestamp() - 86_400)
        named[entry.id] = at
    keys.create(["viewer"], days=None, now=0.0)
    for n, at in enumerate(moments["predictions"]):
        stamp(home / "serving" / "history" / f"{at:%Y-%m-%d}_20200101T000000000000Z_{n:012x}.zst", at)
    for n, at in enumerate(moments["logs"]):
        stamp(home / "logs" / f"part-{n}.log", at)
    asked = [{"session": f"{at:%Y-%m-%d}", "reason": "", "done": "x"} for at in moments["aggregates"]]
    (home / "watch").mkdir(parents=True)
    write_json(home / "watch" / "retraining.json", [*asked, {"session": "2001-01-02", "done": ""}])

    def late(rule, day=False):
        limit = limits[rule]
        return [at for at in moments[rule] if (at.date() >= limit.date() if day else at >= limit)]

    return {
        "answers": len([at for at in moments["raw"] if at.floor("s") >= limits["raw"].floor("s")]),
        "events": len([at for at in whole if at >= limits["activity"]]),
        "jobs": len([at for at in whole if at >= limits["activity"]]) + 1,
        "keys": len(late("activity")) + 1,
        "tables": len(late("predictions", day=True)),
        "logs": len(late("logs")),
        "asked": len(late("aggregates", day=True)) + 1,
    }


def home_counts(settings):
    home = settings.storage.home_dir
    with vendor_ledger(settings).open() as con:
        answers = con.execute("SELECT count(*) FROM answers").fetchone()[0]
    with AlertStore(settings.storage).look() as con:
        events = con.execute("SELECT count(*) FROM events").fetchone()[0]
    return {
        "answers": answers,
        "events": events,
        "jobs": len(JobStore(home / "jobs").stored_jobs()),
        "keys": len(KeyStore(settings.storage).entries()),
        "tables": len(list((home / "serving" / "history").iterdir())),
        "logs": len(list((home / "logs").iterdir())),
        "asked": len(training_requests(settings)),
    }


@pytest.mark.parametrize("seed", [1, 2])
def test_every_store_of_the_home_folder_keeps_what_the_policy_keeps(settings, seed):
    expected, all_of_it = fill_home(settings, seed), None
    all_of_it = home_counts(settings)
    purge(settings, now=NOW)
    assert home_counts(settings) == all_of_it != expected, "a dry run changes nothing"
    purge(settings, do_it=True, now=NOW)
    assert home_counts(settings) == expected
    assert verify_audit(settings)["ok"]


class Killed(BaseException):
    "Stands for a process that ends here."


def test_a_purge_killed_between_deleting_and_writing_anew_is_finished(settings, monkeypatch):
    fill_lake(settings, 5, ["bars", "macro", "scores"])
    real = Lake.rewrite

    def dies(self, dry_run=True):
        if not dry_run:
            raise Killed
        return real(self, dry_run)

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "rewrite", dies)
        with pytest.raises(Killed):
            purge(settings, do_it=True, now=NOW)
    with Lake(settings.storage) as lake:
        assert lake.rewrite(), "files still contain deleted rows"
    purge(settings, do_it=True, now=NOW)
    with Lake(settings.storage) as lake:
        assert lake.rewrite() == [] and lake.verify()


def test_a_purge_that_is_killed_is_finished_by_the_next(settings, tmp_path):
    home, tables = settings.storage.home_dir, ("bars", "scores")
    expected, full = fill_home(settings), home_counts(settings)
    fill_lake(settings, 6, tables)
    shutil.copytree(home, tmp_path / "before")

    def work():
        purge(settings, do_it=True, now=NOW)

    def again():
        "The home folder as it was before the purge."
        shutil.rmtree(home)
        shutil.copytree(tmp_path / "before", home)

    def state():
        with Lake(settings.storage) as lake:
            assert lake.rewrite() == [] and lake.verify() == lake.fingerprint()
            return home_counts(settings), [table_rows(lake, table) for table in tables]

    work()
    calm = state()
    assert calm[0] == expected
    again()
    steps = kill_points.in_fork(work)
    assert steps > 20
    for at in kill_points.sample(list(range(1, steps + 1)), 3):
        again()
        assert kill_points.in_fork(work, at) == 0, "it was killed"
        assert verify_audit(settings)["ok"], f"killed at step {at} of {steps}"
        if home_counts(settings) != full:
            [note] = search_audit(settings, path="govern purge")
            assert note["detail"]["logs"], "what was due was written down before it went"
        work()
        assert state() == calm, f"killed at step {at} of {steps}"
        assert not [p for p in purge(settings, now=NOW) if p.count]
        assert verify_audit(settings)["ok"]


def test_old_files_of_the_audit_log_go_and_the_chain_still_verifies(settings):
    folder, keys = settings.storage.home_dir / "audit", settings.storage.keys_dir
    for day in ("2015-01-05", "2016-01-05", "2026-11-20"):
        chain = AuditChain(folder, keys, today=lambda day=day: day)
        for _ in range(2):  # a file is sealed by the second batch of a later day
            chain.append([{"kind": "change", "at": f"{day}T00:00:00.000+00:00", "who": "user:anna"}])
        chain.close()
        newest = audit_segments(folder)["w00"][-1][1]
        at = pd.Timestamp(day, tz="UTC").timestamp()
        os.utime(newest, (at, at))
    first, second, _ = (path for _, path in audit_segments(folder)["w00"])
    for path, day in ((first, "2015-01-05"), (second, "2026-11-20")):  # the second is within ten years
        at = pd.Timestamp(day, tz="UTC").timestamp()
        os.utime(path, (at, at))
    purge(settings, do_it=True)
    assert not first.exists() and second.exists() and verify_audit(settings)["ok"]


def test_times_are_set_in_the_settings(settings):
    longer = settings.with_(**{"retention.predictions_years": 5, "retention.logs_days": 10})
    assert limit_of(longer, "predictions") == NOW - pd.DateOffset(years=5)
    assert limit_of(longer, "logs") == NOW - pd.DateOffset(days=10)
    with pytest.raises(Exception, match="raw_years"):
        load_settings(None, {"retention.raw_years": "never"}, environ={})

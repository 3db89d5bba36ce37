"""Backups under attack: kills at every step, a lake that is written meanwhile, damage, other keys, and S3."""

import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import kill_points
import patience
import pytest

from stockpredict.backup import backup_retention, restore
from stockpredict.backup.backup_contents import LAST_BACKUP
from stockpredict.backup.backups import Backups
from stockpredict.backup.drill import drill, loss_of_today
from stockpredict.backup.sealed_files import BackupUnreadable, new_backup_key, read_backup_keys
from stockpredict.core.files import write_json
from stockpredict.core.settings import load_settings
from stockpredict.lake.lake import Lake
from stockpredict.predict.answer_table import write_example
from stockpredict.sources.simulate import simulate

assert backup_retention and restore  # they add their verbs to Backups


@pytest.fixture(scope="module")
def market():
    return simulate("null", tickers=4, sessions=60, seed=3).bars


@pytest.fixture
def settings(tmp_path, market):
    "A home with a lake, a served table, a key and a registry."
    sets = {"home": tmp_path / "home", "reports": tmp_path / "reports"}
    overrides = {f"storage.{name}": str(place) for name, place in sets.items()}
    settings = load_settings(None, overrides | {"backup.target": str(tmp_path / "there")}, environ={})
    with Lake(settings.storage) as lake:
        lake.append(market)
    write_example(settings)
    write_json(settings.storage.registry_dir / "champion.json", {"version": 1})
    write_json(settings.storage.registry_dir / "versions" / "a1" / "manifest.json", {"model": "mean"})
    settings.storage.reports_dir.mkdir()
    (settings.storage.reports_dir / "page.html").write_text("<h1>Report</h1>")
    return settings


@pytest.fixture
def backups(settings):
    return Backups(settings, read_backup_keys(new_backup_key()))


def tree(folder):
    "Every file below a folder with its content, but for locks, the catalog and the note of the last backup."
    left = (".lock", ".sqlite", LAST_BACKUP)
    files = (path for path in Path(folder).rglob("*") if path.is_file() and not path.name.endswith(left))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_comes_back_is_what_was_there(backups, settings, tmp_path):
    backup = backups.create()
    backups.restore(tmp_path / "new")
    assert tree(tmp_path / "new" / "reports") == tree(settings.storage.reports_dir)
    before, after = tree(settings.storage.home_dir), tree(tmp_path / "new" / "home")
    assert after == before
    old, new = settings.storage, settings.with_(**{"storage.home": str(tmp_path / "new" / "home")}).storage
    with Lake(old, read_only=True) as first, Lake(new) as second:
        assert second.verify() == first.fingerprint()
    assert backup.size > sum(len(content) for content in after.values())


@pytest.mark.parametrize("what", ["create", "restore", "restore_home", "prune"])
def test_a_kill_at_any_step_loses_nothing(backups, settings, tmp_path, what):
    first, home = backups.create(), settings.storage.home_dir
    old = tree(home)
    (home / "note.txt").write_text("newer")
    work = {
        "create": backups.create,
        "restore": lambda: backups.restore(tmp_path / "new", first.name),
        "restore_home": lambda: backups.restore_home(first.name),
        "prune": lambda: backups.prune(do_it=True),
    }[what]
    steps = kill_points.in_fork(work)
    assert steps > 3
    for at in kill_points.sample(list(range(1, steps + 1)), 6):
        if (tmp_path / "new").exists():
            subprocess.run(["rm", "-r", tmp_path / "new"], check=True)
        if what == "restore_home" and home.is_dir():
            (home / "note.txt").write_text("newer")
        kill_points.in_fork(work, at)
        names = backups.names()
        assert names and all(backups.check(name) == [] for name in names), f"killed at step {at}"
        if what == "restore":
            if not (tmp_path / "new").exists():
                backups.restore(tmp_path / "new", first.name)
            assert tree(tmp_path / "new" / "home") == old
        if what == "restore_home":
            backups.restore_home(first.name)
            assert tree(home) == old
    assert backups.check(backups.create().name) == []


WRITER = """
import sys
from pathlib import Path
from stockpredict.core.sections import Storage
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import simulate

home, stop = sys.argv[1:]
bars = simulate("null", tickers=4, sessions=400, seed=3).bars
days = sorted(bars.event_time.unique())[60:]
for number, day in enumerate(days):
    with Lake(Storage(home=home)) as lake:
        lake.append(bars[bars.event_time == day])
        if number % 5 == 4:
            lake.compact()
            lake.expire(2, keep=())
            lake.clean("0s")
    print(number, flush=True)
    if Path(stop).exists():
        break
"""


def test_a_backup_under_write_load_is_consistent(backups, settings, tmp_path):
    stop = tmp_path / "stop"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, settings.storage.home, str(stop)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=patience.die_with_parent,
    )
    taken = []
    for line in writer.stdout:
        if int(line) % 3 == 0:
            taken.append(backups.create())
        if len(taken) == 6:
            stop.touch()
            break
    writer.stdout.read()
    assert writer.wait() == 0
    sessions = []
    for number, backup in enumerate(taken):
        assert backups.check(backup.name) == []
        backups.restore(tmp_path / f"r{number}", backup.name)
        storage = settings.with_(**{"storage.home": str(tmp_path / f"r{number}" / "home")}).storage
        with Lake(storage) as lake:
            lake.verify()
            sessions.append(lake.rows("SELECT count(DISTINCT event_time) AS n FROM lake.bars").n[0])
    assert sessions == sorted(sessions) and sessions[-1] > sessions[0] >= 60


def test_every_damage_is_found_and_the_newest_good_backup_is_named(backups, settings, tmp_path):
    good = backups.create()
    (settings.storage.home_dir / "note.txt").write_text("newer")
    bad = backups.create()
    [changed] = {file.object for file in bad.files} - {file.object for file in good.files}
    stored = tmp_path / "there" / "objects" / changed[:2] / changed
    whole = stored.read_bytes()
    for damage in (whole[:-1], whole[:17], b"", whole[:40] + b"\0" + whole[41:], whole + b"more"):
        stored.write_bytes(damage)
        assert len(backups.check(bad.name)) == 1
        with pytest.raises(BackupUnreadable, match=good.name) as refused:
            backups.restore(tmp_path / "new", bad.name)
        assert refused.value.code == "backup-unreadable"
    listed = tmp_path / "there" / "backups" / f"{bad.name}.backup"
    listed.write_bytes(listed.read_bytes()[:-3])
    assert backups.newest_good() == good.name
    swapped = tmp_path / "there" / "backups" / f"{good.name}.backup"
    listed.write_bytes(swapped.read_bytes())
    with pytest.raises(BackupUnreadable):
        backups.read(bad.name)


def test_keys_rotate_and_a_stranger_learns_nothing(backups, settings, tmp_path):
    first = backups.create()
    rotated = Backups(settings, [*read_backup_keys(new_backup_key()), *backups.keys])
    second = rotated.create()
    assert second.stored > 0 and rotated.check(first.name) == rotated.check(second.name) == []
    assert {file.object for file in first.files}.isdisjoint(file.object for file in second.files)
    stranger = Backups(settings, read_backup_keys(new_backup_key()))
    with pytest.raises(BackupUnreadable, match=backups.keys[0].name):
        stranger.read(first.name)
    raw = b"".join(path.read_bytes() for path in (tmp_path / "there").rglob("*") if path.is_file())
    names = " ".join(path.name for path in (tmp_path / "there").rglob("*"))
    for secret in (b"AAPL", b"champion.json", b"PRIVATE KEY", b"<h1>Report</h1>", b"SQLite format"):
        assert secret not in raw and secret.decode() not in names
    assert first.files[0].digest not in names


def test_a_bucket_holds_the_same_backup(settings, tmp_path, monkeypatch):
    moto = pytest.importorskip(
        "moto.server", reason="moto's S3 server is not installed: pip install stockpredict[dev]."
    )
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: pip install stockpredict[s3].")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="desk")
        settings = settings.with_(**{"backup.target": "s3://desk/london"})
        backups = Backups(settings, read_backup_keys(new_backup_key()))
        backup = backups.create()
        assert backups.create().stored == 0
        assert backups.check(backup.name) == []
        assert backups.restore(tmp_path / "new", backup.name) == backup.name
        assert tree(tmp_path / "new" / "reports") == tree(settings.storage.reports_dir)
        assert backups.prune(do_it=True).backups == (backup.name,)
        assert len(backups.names()) == 1
    finally:
        server.stop()


def test_a_full_target_is_a_sentence_and_leaves_no_backup(backups, monkeypatch):
    import errno

    from stockpredict.backup import backup_target
    from stockpredict.core.errors import FolderUnavailable

    def full(path, replace=True, durable=True):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(backup_target, "atomic_path", full)
    with pytest.raises(FolderUnavailable, match="disk is full"):
        backups.create()
    assert backups.names() == []
    monkeypatch.undo()
    assert backups.check(backups.create().name) == []


def test_the_drill_keeps_its_promises(backups, tmp_path):
    rows = drill(backups, tmp_path / "drill")
    assert [row.what for row in rows if not row.ok] == [], [row.note for row in rows]
    assert len(rows) == 6
    losses = {row.what: row.loss for row in rows}
    for what in ("the catalog of the lake", "the whole home folder"):
        assert losses[what] == "0 of 1 acknowledged ingests"


def test_the_drill_says_what_a_loss_would_have_cost_without_its_own_backup(backups, settings):
    "The backup of a drill is seconds old, so its own table always says that nothing is lost."
    assert loss_of_today(settings).endswith(
        "no backup; a loss of the machine would have cost 1 acknowledged ingest."
    )
    later = datetime.fromisoformat(backups.create().created_at) + timedelta(minutes=42)
    assert " 42 minutes old and lacked 0 of 1 acknowledged ingest:" in loss_of_today(settings, later)
    with Lake(settings.storage) as lake:
        lake.append(simulate("null", tickers=4, sessions=60, seed=4).bars)
    assert " 42 minutes old and lacked 1 of 2 acknowledged ingests:" in loss_of_today(settings, later)

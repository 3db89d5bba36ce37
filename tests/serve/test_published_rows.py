"""The lake has every forecast before a reader sees it, wherever the publisher is killed."""

import os
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest
from kill_points import sample

from stockpredict.core.errors import LakeLocked, LakeUnavailable
from stockpredict.lake.lake import Lake
from stockpredict.predict import answer_table
from stockpredict.predict.answer_table import AnswerTableFile, example_table, open_answers
from stockpredict.predict.answer_table import publish_table, refresh_answers, rollback_table, table_signer
from stockpredict.predict.answer_table import table_verifier, write_table
from stockpredict.predict.published_rows import note_archived, note_publications, table_content, table_rows
from stockpredict.predict.table_format import pack_table, unpack_table

STEPS = [
    *("tables made", "record begun", "predictions written", "publications written", "record committed"),
    *("sealed", "stored", "archived", "swapped", "noted"),
]


class Killed(BaseException):
    "Nothing in the package catches it, as nothing catches a kill."


def next_table(settings):
    "The served table with other numbers: a signed table that is due."
    raw = (settings.storage.serving_dir / "table.bin").read_bytes()
    header, index, start = unpack_table(raw)
    bodies = {
        (t, h): raw[start + at : start + at + n].replace(b'"p_up":0.', b'"p_up":0.0') for t, h, at, n in index
    }
    header = {k: v for k, v in header.items() if k not in ("format", "rows")} | {"key": "v1-next"}
    return pack_table(header, bodies, table_signer(settings))


def publish(settings, raw, stop_at=None, monkeypatch=None):
    "Publish as a refresh does, and die at a step."

    def step(name):
        if name == stop_at:
            raise Killed(name)

    def archive(*args, real=answer_table.archive_table):
        path = real(*args)
        step("archived")
        return path

    with monkeypatch.context() as patched:
        patched.setattr(answer_table, "archive_table", archive)
        publish_table(settings, raw, on_step=step)
        note_publications(settings, table_verifier(settings), unpack_table(raw)[0]["decision_session"])
        step("noted")


def record_of(settings):
    with Lake(settings.storage, read_only=True) as lake:
        noted = lake.publications()
        rows = lake.rows("SELECT content, ticker, horizon, count(*) AS n FROM lake.predictions GROUP BY ALL")
    return noted, rows


def check_invariant(settings):
    "What readers see is in the lake, once."
    noted, rows = record_of(settings)
    served = (settings.storage.serving_dir / "table.bin").read_bytes()
    content = table_content(served)
    assert content in set(noted.content) and (rows.n == 1).all()
    assert len(rows[rows.content == content]) == unpack_table(served)[0]["rows"]


def test_a_publisher_killed_at_any_step_never_shows_a_forecast_that_the_lake_lacks(settings, monkeypatch):
    start = settings.storage.serving_dir / "table.bin"
    raw, before = next_table(settings), start.read_bytes()
    seen = []
    steps = sample(STEPS, 5)
    for step in steps:
        home = settings.storage.home_dir
        copy = home.with_name(f"kill-{len(seen)}")
        shutil.copytree(home, copy)
        victim = settings.with_(**{"storage.home": str(copy)})
        try:
            publish(victim, raw, step, monkeypatch)
        except Killed as died:
            seen.append(str(died))
        check_invariant(victim)
        assert open_answers(victim).key in ("v1-next", open_answers(settings).key)
        publish(victim, raw, None, monkeypatch)  # the next run does what is left, once
        publish(victim, raw, None, monkeypatch)
        check_invariant(victim)
        noted = record_of(victim)[0]
        new = noted[noted.content == table_content(raw)]
        assert new.event.tolist() == ["stored", "published"], step
        assert (victim.storage.serving_dir / "table.bin").read_bytes() == raw
        shutil.rmtree(copy)
    assert set(steps) - set(seen) <= {"tables made"}  # the lake of the fixture has its tables
    assert start.read_bytes() == before


CHILD = """
import os, signal, sys
from pathlib import Path
from stockpredict.core.settings import load_settings
from stockpredict.predict.answer_table import publish_table
settings = load_settings(sys.argv[1], environ={})
def step(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
publish_table(settings, Path(sys.argv[2]).read_bytes(), on_step=step)
"""


def test_a_real_kill_inside_the_transaction_leaves_a_lake_that_can_be_read_and_written(
    settings, tmp_path, monkeypatch
):
    raw = next_table(settings)
    (tmp_path / "next.bin").write_bytes(raw)
    (tmp_path / "settings.ini").write_text(settings.to_ini())
    words = [
        sys.executable,
        "-c",
        CHILD,
        tmp_path / "settings.ini",
        tmp_path / "next.bin",
        "publications written",
    ]
    assert subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == -signal.SIGKILL
    check_invariant(settings)
    assert table_content(raw) not in set(record_of(settings)[0].content)
    publish(settings, raw, None, monkeypatch)
    check_invariant(settings)


def test_while_the_lake_is_written_or_read_only_the_table_of_before_goes_on_being_served(
    settings, monkeypatch
):
    raw, served = next_table(settings), open_answers(settings).key
    reader = AnswerTableFile(settings.storage.serving_dir, table_verifier(settings), every=0)
    with (
        Lake(settings.storage) as other,
        other.writer(),
        pytest.raises(LakeLocked, match="Wait until it has finished"),
    ):
        publish_table(settings, raw)
    assert reader.current().key == served

    def full_disk(*args, **kw):
        raise LakeUnavailable("The record was not written: the disk is full.", "Free some disk space.")

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "append_records", full_disk)
        with pytest.raises(LakeUnavailable, match="disk is full"):
            publish_table(settings, raw)
    assert reader.current().key == served and not reader.problem
    publish_table(settings, raw)
    assert reader.current().key == "v1-next"


def test_a_note_that_cannot_be_written_does_not_fail_a_table_that_readers_see(settings):
    raw = next_table(settings)
    publish_table(settings, raw)
    with Lake(settings.storage) as other, other.writer():
        note_publications(settings, table_verifier(settings), "2099-01-01")  # would remove every kept table
    assert list((settings.storage.serving_dir / "history").glob("*.zst"))
    note_publications(settings, table_verifier(settings), unpack_table(raw)[0]["decision_session"])
    assert (record_of(settings)[0].event == "published").sum() == 2


def test_a_stored_forecast_is_no_new_data_so_the_next_refresh_finds_nothing_to_do(settings):
    with Lake(settings.storage, read_only=True) as lake:
        data, newest = lake.snapshot(), int(lake.snapshots().snapshot.max())
    assert newest > data  # the record made versions of its own
    assert refresh_answers(settings).status == "unchanged"
    with Lake(settings.storage) as lake:
        lake.pin("a-model")
        assert lake.snapshot() > newest  # a pin counts, as ever
        lake.unpin("a-model")
        lake.append_records({"publications": lake.rows("FROM lake.publications LIMIT 1")})
        data = lake.snapshot()
        lake.expire(days=-1, dry_run=False)
        assert lake.snapshot() == data and len(lake.bars(snapshot=data))
        assert int(lake.snapshots().snapshot.max()) > data


def test_a_home_of_an_earlier_release_is_read_and_its_archive_is_brought_in(settings):
    with Lake(settings.storage) as lake:  # as an earlier release left it: an archive, no record
        for table in ("predictions", "publications"):
            lake.con.execute(f"DROP TABLE lake.{table}")
    with Lake(settings.storage, read_only=True) as lake:
        assert not len(lake.publications()) and not len(lake.predictions("any", "2024-01-02"))
        assert len(lake.bars())
    assert note_archived(settings, table_verifier(settings)) == []
    noted = record_of(settings)[0]
    assert sorted(noted.event) == ["published", "stored"]
    assert noted.happened_at.nunique() == 1  # known since it was published, not since it was brought in
    check_invariant(settings)


def test_a_rollback_is_a_publication_of_its_own(settings, monkeypatch):
    first = (settings.storage.serving_dir / "table.bin").read_bytes()
    publish(settings, next_table(settings), None, monkeypatch)
    rollback_table(settings.storage.serving_dir, table_verifier(settings))
    note_publications(settings, table_verifier(settings), "2000-01-01")
    noted = record_of(settings)[0]
    published = noted[noted.event == "published"]
    assert published.content.tolist()[0] == published.content.tolist()[-1] == table_content(first)
    assert (noted.event == "stored").sum() == 2


def test_a_kept_table_that_somebody_else_signed_is_no_evidence(settings):
    raw = example_table()  # not signed
    write_table(raw, settings.storage.serving_dir)
    [problem] = note_archived(settings, table_verifier(settings))
    assert "not signed by our key" in problem
    assert table_content(raw) not in set(record_of(settings)[0].content)


def test_the_rows_are_the_stored_answers_to_the_last_digit(settings):
    import orjson

    table = open_answers(settings)
    rows = table_rows((settings.storage.serving_dir / "table.bin").read_bytes()).to_pandas()
    assert len(rows) == len(table.rows)
    for row in rows.itertuples():
        answer = orjson.loads(table.rows[row.ticker, row.horizon] + b"}")
        assert dict(zip(map(str, row.levels), row.quantiles)) == {
            str(float(k)): v for k, v in answer["quantiles"].items()
        }
        assert (row.p_up, row.volatility) == (answer["p_up"], answer["volatility"]["horizon"])
        assert row.decided_at == pd.Timestamp(answer["data_as_of"])

"""The table of answers: complete or refused, reloaded when it changes, and shared."""

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as rules
from hypothesis import strategies as st

from stockpredict.core.errors import ArtifactRejected, NotReady, UnknownHorizon, UnknownTicker
from stockpredict.predict.schemas import Prediction
from stockpredict.predict.answer_table import (
    PREVIOUS_FILE,
    TABLE_FILE,
    AnswerTable,
    AnswerTableFile,
    pack_table,
    refresh_answers,
    rollback_table,
)
from stockpredict.predict.answer_table import (
    table_signer,
    render_staleness,
    table_key,
    table_verifier,
    write_table,
)

from served_desk import fill_lake, publish

BODIES = {
    (t, h): orjson.dumps({"ticker": t, "horizon": h})[:-1] for t in ("AAPL", "KO", "MSFT") for h in (1, 5)
}
RAW = pack_table({"key": "k"}, BODIES)


@given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
@rules(max_examples=300, deadline=None)
def test_a_changed_byte_never_gives_an_answer(at, flip):
    "Any changed byte is refused, except inside the signature, which only a networked reader checks."
    raw = bytearray(RAW)
    raw[at] ^= flip
    if 40 <= at < 104:
        assert AnswerTable(bytes(raw)).rows == AnswerTable(RAW).rows
    else:
        with pytest.raises(NotReady):
            AnswerTable(bytes(raw))


@given(st.integers(0, len(RAW) - 1))
@rules(max_examples=100, deadline=None)
def test_a_cut_file_is_refused(length):
    with pytest.raises(NotReady):
        AnswerTable(RAW[:length])


@pytest.mark.parametrize("junk", [b"", b"SPTABLE1", b"{}", b"\x80\x04.", RAW + b"x", b"SPTABLE2" + RAW[8:]])
def test_junk_is_refused(junk):
    with pytest.raises(NotReady):
        AnswerTable(junk)


def test_same_content_same_bytes_in_any_order():
    assert pack_table({"key": "k"}, dict(reversed(BODIES.items()))) == RAW


def test_lookup_and_its_refusals():
    table = AnswerTable(
        pack_table({"key": "k", "decision_session": "2022-12-27", "absent": {"OLD": "2020-01-02"}}, BODIES)
    )
    assert [orjson.loads(b + b"}")["horizon"] for b in table.get("KO")] == [1, 5]
    with pytest.raises(UnknownHorizon, match="1, 5"):
        table.get("KO", 2)
    with pytest.raises(UnknownTicker, match="MSFT"):
        table.get("MSTF")
    with pytest.raises(UnknownTicker, match="2020-01-02"):
        table.get("OLD")


def test_every_stored_answer_is_a_whole_prediction(template):
    table = AnswerTable.open(template.storage.serving_dir / TABLE_FILE)
    assert len(table.rows) == len(table.tickers) * len(table.horizons) > 0
    for (ticker, horizon), body in table.rows.items():
        p = Prediction.model_validate_json(body + render_staleness(0, 3, False))
        assert (p.ticker, p.horizon) == (ticker, horizon)
        assert p.decision_session < p.entry_session < p.target_session
        q = list(p.quantiles.values())
        assert q == sorted(q) and q[0] < q[-1]
        assert p.prices["0.5"] == pytest.approx(p.last_close * (1 + p.quantiles["0.5"]), abs=1e-4)


def test_dates_come_from_the_calendar(template):
    from stockpredict.core.calendar import get_calendar

    cal, table = get_calendar(), AnswerTable.open(template.storage.serving_dir / TABLE_FILE)
    p = orjson.loads(table.get(table.tickers[0], 5)[0] + b"}")
    assert p["entry_session"] == str(cal.offset(p["decision_session"], 1).date())
    assert p["target_session"] == str(cal.offset(p["decision_session"], 6).date())
    assert p["data_as_of"] == cal.close(p["decision_session"]).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert table.age() == cal.age(p["decision_session"])


def test_last_close_is_the_lakes(template):
    from stockpredict.lake.lake import Lake

    with Lake(template.storage, read_only=True) as lake:
        bars = lake.bars(adjusted=False)
    newest = bars[bars.event_time == bars.event_time.max()].set_index("ticker").close
    table = AnswerTable.open(template.storage.serving_dir / TABLE_FILE)
    for ticker in table.tickers:
        assert orjson.loads(table.get(ticker, 1)[0] + b"}")["last_close"] == pytest.approx(
            newest[ticker], rel=1e-6
        )


def test_tickers_without_a_bar_are_named_and_not_answered(template, market):
    table = AnswerTable.open(template.storage.serving_dir / TABLE_FILE)
    newest = market.event_time.max()
    silent = set(market.ticker) - set(market.ticker[market.event_time == newest])
    assert {"SIM05", "SIM06"} <= silent <= set(table.header["absent"])
    assert not silent & set(table.tickers)


def test_refresh_twice_changes_nothing(settings):
    before = (settings.storage.serving_dir / TABLE_FILE).read_bytes()
    info = refresh_answers(settings)
    assert info.status == "unchanged" and (settings.storage.serving_dir / TABLE_FILE).read_bytes() == before
    assert refresh_answers(settings, force=True).status == "written"
    again = AnswerTable.open(settings.storage.serving_dir / TABLE_FILE)
    assert again.rows == AnswerTable(before).rows


def test_a_new_model_and_new_bars_each_change_the_key(settings, market):
    keys = [refresh_answers(settings).key]
    publish(settings, "ridge", 2)
    keys.append(refresh_answers(settings).key)
    last = market[market.event_time == market.event_time.max()].copy()
    last["close"] *= 1.01
    last["high"] = last[["high", "close"]].max(axis=1)
    last["known_at"] = last.known_at + __import__("pandas").Timedelta(days=1)
    fill_lake(settings, last.drop(columns="adj_close", errors="ignore"))
    keys.append(refresh_answers(settings).key)
    assert len(set(keys)) == 3
    assert AnswerTable.open(settings.storage.serving_dir / PREVIOUS_FILE).key == keys[1]
    assert (
        rollback_table(settings.storage.serving_dir).key
        == keys[1]
        == AnswerTable.open(settings.storage.serving_dir / TABLE_FILE).key
    )


def test_a_damaged_table_is_written_anew(settings):
    (settings.storage.serving_dir / TABLE_FILE).write_bytes(b"junk")
    assert refresh_answers(settings).status == "written"


def test_a_refused_model_leaves_the_table(settings):
    before = (settings.storage.serving_dir / TABLE_FILE).read_bytes()
    place = publish(settings, "ridge", 2)
    (place / "state.json").write_bytes((place / "state.json").read_bytes() + b" ")
    with pytest.raises(ArtifactRejected):
        refresh_answers(settings)
    assert (settings.storage.serving_dir / TABLE_FILE).read_bytes() == before


def test_overwriting_the_file_in_place_does_not_reach_a_reader(settings):
    "A mapped file would change under the reader, or kill it."
    follow = AnswerTableFile(settings.storage.serving_dir, every=0)
    table = follow.current()
    answers = dict(table.rows)
    with open(follow.path, "r+b") as f:
        f.truncate(10)
    follow.check()
    assert follow.current() is table and table.rows == answers and "damaged" in follow.problem
    write_table(pack_table({"key": "next"}, BODIES), settings.storage.serving_dir)
    assert follow.current().key == "next" and not follow.problem


def test_starts_from_the_table_before_when_the_newest_is_damaged(settings):
    refresh_answers(settings, force=True)
    (settings.storage.serving_dir / TABLE_FILE).write_bytes(b"junk")
    follow = AnswerTableFile(settings.storage.serving_dir)
    assert follow.current().tickers and "damaged" in follow.problem


def test_only_our_signature_is_accepted(settings, tmp_path):
    raw = (settings.storage.serving_dir / TABLE_FILE).read_bytes()
    assert AnswerTable(raw, table_verifier(settings)).tickers
    with pytest.raises(ArtifactRejected):
        AnswerTable(RAW, table_verifier(settings))
    from served_desk import build_settings

    other = build_settings(tmp_path / "other")
    from stockpredict.models.artifact import ensure_keys

    ensure_keys(other.storage.keys_dir)
    with pytest.raises(ArtifactRejected):
        AnswerTable(pack_table({"key": "k"}, BODIES, table_signer(other)), table_verifier(settings))


def test_without_the_private_key_no_table_is_written(settings):
    before = (settings.storage.serving_dir / TABLE_FILE).read_bytes()
    (settings.storage.keys_dir / "signing.key").unlink()
    with pytest.raises(ArtifactRejected, match="no signing key"):
        refresh_answers(settings, force=True)
    assert (settings.storage.serving_dir / TABLE_FILE).read_bytes() == before
    assert not (settings.storage.keys_dir / "signing.key").exists()


def repacked(raw, sign=None):
    "The same table with other probabilities."
    table = AnswerTable(raw)
    bodies = {k: orjson.dumps(orjson.loads(b + b"}") | {"p_up": 0.99})[:-1] for k, b in table.rows.items()}
    return pack_table(table.header, bodies, sign)


def test_a_repacked_table_on_disk_is_refused_and_written_again(settings):
    "A user who can write into the folder still cannot sign."
    from stockpredict.serve.service import Service

    service = Service(settings)
    right = dict(service.ready_table().rows)
    path = settings.storage.serving_dir / TABLE_FILE
    write_table(repacked(path.read_bytes()), settings.storage.serving_dir)
    service.table_file.check()
    assert service.ready_table().rows == right and "not signed by our key" in service.table_file.problem
    assert service.health()["components"]["table"]["status"] == "trouble"
    assert Service(settings).ready_table().rows == right, "a fresh start reads the table before"
    asyncio.run(service.refresh_parts())
    assert AnswerTable.open(path, table_verifier(settings)).rows == right
    service.table_file.check()
    assert not service.table_file.problem and service.table_file.table.rows == right


def test_a_service_is_not_ready_while_its_only_table_is_forged(settings):
    from stockpredict.serve.service import Service

    folder = settings.storage.serving_dir
    forged = repacked((folder / TABLE_FILE).read_bytes())
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    write_table(forged, folder)
    service = Service(settings)
    assert [service.probe(name)[0] for name in ("live", "ready")] == [200, 503]
    with pytest.raises(NotReady, match="not signed by our key"):
        service.ready_table()
    asyncio.run(service.refresh_parts())  # the engine computes a true one
    assert service.probe("ready")[0] == 200 and service.ready_table().rows != AnswerTable(forged).rows


def test_a_part_is_unknown_until_somebody_looked(settings):
    from stockpredict.serve.service import Service

    place = settings.storage.registry_dir / "versions"
    state = next(place.glob("*/state.json"))
    state.write_bytes(state.read_bytes() + b" ")
    service = Service(settings)
    report = service.health()
    assert report["components"]["model"]["status"] == "unknown" and report["status"] == "starting"
    asyncio.run(service.refresh_parts())
    report = service.health()
    assert report["components"]["model"]["status"] == "trouble" and report["status"] == "degraded"


WRITER = """
import sys
from pathlib import Path
from stockpredict.predict.answer_table import pack_table, write_table
bodies = {("T%d" % i, 1): b"x" * 2000 for i in range(2000)}
n = 0
while True:
    n += 1
    write_table(pack_table({"key": "k%d" % n}, bodies), Path(sys.argv[1]))
    if n == 1: print("ready", flush=True)
"""


def test_killed_while_writing_leaves_a_whole_table(tmp_path):
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(0.15)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert len(AnswerTable.open(tmp_path / TABLE_FILE).rows) == 2000


def test_info_is_plain_data(template):
    info = refresh_answers(template)
    assert orjson.loads(orjson.dumps(dataclasses.asdict(info)))["rows"] == info.tickers * 2
    assert info.shared is None


def test_key_holds_model_snapshot_and_content():
    header = {"model": {"version": 3, "artifact": "a" * 64}, "snapshot": 7, "fingerprint": "f" * 16}
    assert table_key(header).startswith("v3-aaaaaaaaaaaa-s7-ffffffffffff-")

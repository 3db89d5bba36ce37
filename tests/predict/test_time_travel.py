"""`as_of`: what was published stays, what is reconstructed uses only what was known, and both say so."""

import asyncio
import shutil
from datetime import UTC, datetime
from types import SimpleNamespace

import orjson
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import ArtifactRejected, QueueFull
from stockpredict.core.settings import load_settings
from stockpredict.models.artifact import ensure_keys
from stockpredict.predict import time_travel
from stockpredict.predict.answer_table import EXAMPLE_HEADER, TABLE_FILE, AnswerTable, example_table
from stockpredict.predict.answer_table import refresh_answers, rollback_table, table_signer
from stockpredict.predict.table_archive import archive_table, archived_tables, forget_archived
from stockpredict.predict.table_archive import unpack_archived

from served_desk import build_settings, fill_lake, publish


@pytest.fixture(scope="module")
def past(tmp_path_factory, market):
    "A home whose lake ends with the market, its settings, and some sessions before the end."
    settings = build_settings(tmp_path_factory.mktemp("past"))
    fill_lake(settings, market)
    publish(settings)
    refresh_answers(settings)
    sessions = sorted(get_calendar().session_of(market.event_time.unique()))
    return settings, [str(day.date()) for day in sessions[-12:]]


def ask(served, settings, *paths, background=False):
    async def go():
        async with served(settings, background=background) as client:
            return [await client.get(path) for path in paths]

    responses = asyncio.run(go())
    return responses[0] if len(responses) == 1 else responses


ORIGIN = {"snapshot", "fingerprint", "staleness", "stale_model"}  # name the lake of today, or the reading


def numbers(response):
    "Everything in an answer that a forecast is made of."
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    return [
        {k: v for k, v in p.items() if k not in ORIGIN} for p in (data if isinstance(data, list) else [data])
    ]


def correction(market, session, factor=1.3):
    "All bars of a session, wrong by a factor, known a month later."
    day = get_calendar().session_of(market.event_time)
    bars = market[day == pd.Timestamp(session)].drop(columns="adj_close", errors="ignore").copy()
    for column in ("open", "high", "low", "close"):
        bars[column] *= factor
    bars["known_at"] = bars.known_at + pd.Timedelta(days=30)
    return bars


def test_a_published_day_is_given_back_as_it_was(served, settings, market):
    "A new model and a correction of the very bars change the answer of today, and not that of the day."
    table = AnswerTable.open(settings.storage.serving_dir / TABLE_FILE)
    session = table.header["decision_session"]
    before = {k: orjson.loads(b + b"}") for k, b in table.rows.items()}
    publish(settings, "ridge", 2)
    fill_lake(settings, correction(market, session))
    refresh_answers(settings)
    now, was = ask(served, settings, "/v1/predictions/SIM00", f"/v1/predictions/SIM00?as_of={session}")
    assert numbers(now) != numbers(was) and now.json()["data"][0]["model"]["name"] == "ridge"
    for answer in was.json()["data"]:
        stored = before[answer["ticker"], answer["horizon"]]
        assert {k: v for k, v in answer.items() if k in stored} == stored, "to the last digit"
    origin = was.json()["metadata"]["as_of"]
    assert (origin["basis"], origin["session"], origin["table"]) == ("published", session, table.key)
    assert "as_of" not in now.json()["metadata"]


LATE = ("2022-12-27", "2023-01-05T13:00:00Z")


@pytest.mark.parametrize("order", [LATE, LATE[::-1]], ids=["day first", "instant first"])
def test_a_table_that_was_published_late_says_so_however_it_is_asked_for(tmp_path, order):
    "The session after 27 December was over for a week when the table appeared."
    settings = load_settings(None, {"storage.home": str(tmp_path)}, environ={})
    ensure_keys(settings.storage.keys_dir)
    late = datetime(2023, 1, 5, 12, tzinfo=UTC)
    raw = example_table(table_signer(settings))
    archive_table(raw, EXAMPLE_HEADER, settings.storage.serving_dir, late)
    travel = time_travel.TimeTravel(settings)

    async def both():
        return [(await travel.ask(text, None)).origin for text in order]

    for origin in asyncio.run(both()):
        assert (origin["session"], origin["knew_outcome"]) == ("2022-12-27", True)


def test_days_without_a_waiting_caller_do_not_turn_others_away(past, monkeypatch):
    settings, sessions = past
    travel, table = time_travel.TimeTravel(settings), SimpleNamespace(size=1)

    async def go():
        gate, loop = asyncio.Event(), asyncio.get_running_loop()

        def slow(engine, moment):
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
            return time_travel.PastTable(table, {"session": str(moment.session)})

        monkeypatch.setattr(time_travel, "reconstructed_table", slow)

        async def engine():
            return SimpleNamespace(pointer=SimpleNamespace(artifact="a"))

        gone = [asyncio.ensure_future(travel.ask(day, engine)) for day in sessions[2:6]]
        while len(travel.running) < 4:
            await asyncio.sleep(0.01)
        for task in gone:
            task.cancel()
        gate.set()
        await asyncio.gather(*gone, return_exceptions=True)
        await asyncio.wrap_future(travel.thread.submit(int))  # whatever was under way is over
        return await travel.ask(sessions[7], engine), travel.running

    result, running = asyncio.run(go())
    assert result.origin["session"] == sessions[7] and not running


def test_a_rollback_is_what_readers_saw_from_then_on(settings):
    from stockpredict.predict.table_archive import table_at

    folder = settings.storage.serving_dir
    first = AnswerTable.open(folder / TABLE_FILE)
    publish(settings, "ridge", 2)
    refresh_answers(settings)
    second = AnswerTable.open(folder / TABLE_FILE)
    rollback_table(folder)
    kept = sorted(archived_tables(folder), key=lambda table: table.published_at)
    keys = [AnswerTable(unpack_archived(table.path)).key for table in kept]
    assert keys == [first.key, second.key, first.key]
    assert table_at(kept, kept[1].published_at) == kept[1] and table_at(kept, datetime.now(UTC)) == kept[2]


def test_a_reconstructed_day_says_what_the_engine_would_have_said(served, past, market, tmp_path):
    "The same model in a lake that ends on that day gives the same numbers, to the last digit."
    settings, sessions = past
    day = sessions[-6]
    then = build_settings(tmp_path / "then")
    following = get_calendar().offset(day, 1)
    opens = get_calendar()._opens[get_calendar()._at([following])][0]
    bars = market[(market.event_time <= get_calendar().close(day)) & (market.known_at <= opens)]
    late = market[market.event_time == get_calendar().close(day)].known_at
    assert late.max() > get_calendar().close(day) + pd.Timedelta(hours=1), "some bars came overnight"
    fill_lake(then, bars)
    for name in ("registry", "keys"):
        shutil.copytree(settings.storage.home_dir / name, then.storage.home_dir / name, dirs_exist_ok=True)
    refresh_answers(then)
    paths = "/v1/predictions?limit=1000", f"/v1/predictions?limit=1000&as_of={day}"
    expected, reconstructed = ask(served, then, paths[0]), ask(served, settings, paths[1])
    assert numbers(reconstructed) == numbers(expected) and len(numbers(expected)) > 20
    origin = reconstructed.json()["metadata"]["as_of"]
    assert (origin["basis"], origin["session"], origin["published_at"]) == ("reconstructed", day, None)
    assert pd.Timestamp(origin["known_until"]) == opens
    assert {p["staleness"]["state"] for p in reconstructed.json()["data"]} == {"stale"}


def test_a_later_correction_does_not_reach_back(served, past, market, tmp_path):
    settings, sessions = past
    home = tmp_path / "home"
    shutil.copytree(settings.storage.home_dir, home)
    settings, day = build_settings(home), sessions[-4]
    path = f"/v1/predictions?horizon=1&as_of={day}"
    before = numbers(ask(served, settings, path))
    fill_lake(settings, correction(market, day))
    assert numbers(ask(served, settings, path)) == before

    from stockpredict.predict.several_models import Engine

    moment = time_travel.past_moment(settings, time_travel.parse_as_of(day))
    later = type(moment)(
        moment.session, moment.close, moment.next_close, pd.Timestamp.now("UTC").to_pydatetime()
    )
    corrected = time_travel.reconstructed_table(Engine(settings), later).table
    closes = [orjson.loads(corrected.get(p["ticker"], 1)[0] + b"}")["last_close"] for p in before]
    assert closes == pytest.approx([1.3 * p["last_close"] for p in before]), "the correction is there"


def test_the_outcome_was_known_to_a_model_that_was_trained_on_it(past):
    from stockpredict.predict.several_models import Engine

    settings, sessions = past
    engine = Engine(settings)
    for trained, knew in ((sessions[-8], False), (sessions[-2], True), (None, None)):
        engine.artifact.manifest["lineage"] = {"last_session": trained}
        moment = time_travel.past_moment(settings, time_travel.parse_as_of(sessions[-5]))
        origin = time_travel.reconstructed_table(engine, moment).origin
        assert (origin["knew_outcome"], origin["trained_until"]) == (knew, trained)


REFUSED = {
    "2199-01-05": "as-of-in-the-future",
    "2199-01-05T10:00:00Z": "as-of-in-the-future",
    "2016-07-04": "as-of-no-session",
    "2016-07-02": "as-of-no-session",
    "2015-02-29": "as-of-no-session",
    "1960-01-05": "as-of-before-the-data",
    "1700-01-05": "as-of-no-session",
}


@pytest.mark.parametrize("path", ["/v1/predictions/SIM00?as_of=", "/v1/predictions?format=csv&as_of="])
def test_days_without_an_answer_have_named_errors(served, past, path):
    responses = ask(served, past[0], *(path + day for day in REFUSED))
    assert [r.status_code for r in responses] == [404] * len(REFUSED)
    assert [r.json()["error"]["code"] for r in responses] == list(REFUSED.values())
    assert all(r.json()["error"]["fix"] for r in responses)


@pytest.mark.parametrize(
    "text", ["yesterday", "2016-7-1", "2016-07-01T10:00", "20160701", "2016-W01-1", "", "0"]
)
def test_what_is_no_day_is_invalid(served, past, text):
    refused = ask(served, past[0], f"/v1/predictions/SIM00?as_of={text}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "request-invalid")


def test_columns_of_a_past_day_carry_their_basis(served, past):
    import io

    settings, sessions = past
    frames = []
    for day in (sessions[-5], sessions[-1]):
        response = ask(served, settings, f"/v1/predictions?format=csv&as_of={day}")
        frames.append(pd.read_csv(io.StringIO(response.text)))
    assert [f.as_of_basis.unique().tolist() for f in frames] == [["reconstructed"], ["published"]]
    assert [f.decision_session.unique().tolist() for f in frames] == [[sessions[-5]], [sessions[-1]]]
    plain = ask(served, settings, "/v1/predictions?format=csv")
    assert "as_of_basis" not in plain.text.partition("\n")[0]


def test_an_altered_archive_is_refused_and_not_replaced(served, settings):
    import zstandard

    (kept,) = archived_tables(settings.storage.serving_dir)
    raw = bytearray(unpack_archived(kept.path))
    at = raw.index(b'"p_up":') + 9
    raw[at] ^= 1
    day = str(kept.session)
    kept.path.write_bytes(zstandard.ZstdCompressor().compress(bytes(raw)))
    refused = ask(served, settings, f"/v1/predictions/SIM00?as_of={day}")
    assert refused.status_code == 503 and "damaged" in refused.json()["error"]["message"]
    from test_table import repacked

    table = (settings.storage.serving_dir / TABLE_FILE).read_bytes()
    kept.path.write_bytes(zstandard.ZstdCompressor().compress(repacked(table)))
    refused = ask(served, settings, f"/v1/predictions/SIM00?as_of={day}")
    assert refused.json()["error"]["code"] == ArtifactRejected.code


def test_a_full_archive_folder_publishes_nothing(settings, monkeypatch):
    "What cannot be kept as evidence is not served either."
    before = (settings.storage.serving_dir / TABLE_FILE).read_bytes()
    publish(settings, "ridge", 2)

    def full(*_):
        raise OSError(28, "No space left on device", "history")

    monkeypatch.setattr("stockpredict.predict.table_archive.atomic_write", full)
    with pytest.raises(OSError):
        refresh_answers(settings)
    assert (settings.storage.serving_dir / TABLE_FILE).read_bytes() == before


def test_old_tables_are_forgotten_after_the_days_of_the_settings(settings):
    folder = settings.storage.serving_dir
    (kept,) = archived_tables(folder)
    later = str(kept.session + pd.Timedelta(days=400))
    assert forget_archived(folder, 400, later) == 0 and forget_archived(folder, 0, "2199-01-01") == 0
    assert forget_archived(folder, 399, later) == 1 and archived_tables(folder) == []


def test_a_few_reconstructions_wait_and_more_are_turned_away(past, monkeypatch):
    "Same questions share one computation; the fifth other day gets 503 with a pause."
    settings, sessions = past
    travel, started = time_travel.TimeTravel(settings), []

    async def go():
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(engine, moment):
            started.append(moment.session)
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
            return time_travel.PastTable(SimpleNamespace(size=1), {"session": str(moment.session)})

        monkeypatch.setattr(time_travel, "reconstructed_table", slow)

        async def engine():
            return SimpleNamespace(pointer=SimpleNamespace(artifact="a"))

        tasks = [asyncio.ensure_future(travel.ask(day, engine)) for day in [*sessions[2:6], *sessions[2:6]]]
        while len(travel.running) < 4:
            await asyncio.sleep(0.01)
        with pytest.raises(QueueFull) as refused:
            await travel.ask(sessions[7], engine)
        gate.set()
        return refused.value, await asyncio.gather(*tasks)

    error, results = asyncio.run(go())
    assert error.context["retry_after"] > 0 and len(started) == 4
    assert [r.origin["session"] for r in results] == [*sessions[2:6], *sessions[2:6]]

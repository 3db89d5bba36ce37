"""The live path: what is sent arrives once in effect, in any order, and what is not over stays out of the
lake."""

import threading
import time

import numpy as np
import orjson
import pandas as pd
import pytest
from live_redis import Server, live_settings

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import BarsInvalid, ParameterRefused, StreamFull, StreamUnavailable
from stockpredict.stream.consumer import ENOUGH_TO_REFUSE, Consumer, consume
from stockpredict.stream.dead_letters import unreadable_messages
from stockpredict.stream.messages import decode_messages, message_fault, encode_messages, publish_rows
from stockpredict.stream.dead_letters import replay_from, resend_dead_letters
from stockpredict.lake.lake import Lake
from stockpredict.stream.live_table import LiveTable
from stockpredict.stream.replay import replay, split_into_trades
from stockpredict.sources.simulate import sample_bars
from stockpredict.stream.queue import Entry, Stream
from stockpredict.stream.monitor import stream_status

CALENDAR = get_calendar("XNYS")
DAY = pd.Timestamp("2024-06-03 13:30", tz="UTC")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.kill()


@pytest.fixture
def settings(tmp_path, server, request):
    server.client.flushall()
    return live_settings(tmp_path / "home", server.url)


@pytest.fixture(scope="module")
def market():
    return sample_bars(tickers=4, sessions=60)


def trades(n=200, seed=1, ticker="AAA", minutes=30):
    rng = np.random.default_rng(seed)
    at = DAY + pd.to_timedelta(np.sort(rng.integers(0, minutes * 60_000_000, n)), unit="us")
    return pd.DataFrame(
        dict(
            ticker=ticker,
            event_time=at,
            close=np.round(50 + np.cumsum(rng.normal(0, 0.02, n)), 2),
            volume=rng.integers(1, 9, n) * 100.0,
            source="feed",
            id=[f"{ticker}{seed}-{i}" for i in range(n)],
        )
    )


def send(settings, frame, clock=DAY + pd.Timedelta(hours=1), **more):
    return publish_rows(settings, frame, "tick", clock, **more)


def one_bar(event, known):
    return pd.DataFrame(
        dict(
            ticker="BBB",
            event_time=[event],
            known_at=[known],
            open=1.0,
            high=2.0,
            low=1.0,
            close=2.0,
            volume=3.0,
            source="feed",
        )
    )


def stored(settings, **more):
    with Lake(settings.storage, read_only=True) as lake:
        return lake.bars(**more)


def drain(settings, **more):
    return consume(settings, idle=0.05, **more)


# ---- the queue


def test_everything_sent_is_handed_out_once_in_order_and_stays_until_acknowledged(settings):
    with Stream(settings) as s:
        assert s.publish([b"%d" % i for i in range(1234)]) == 1234
        seen, reached = [], []
        while len(seen) < 1234:
            before, got = s.take("one", 500)
            reached.append(before.split("-")[0])
            seen += got
        assert [int(e.data) for e in seen] == list(range(1234)) and [e.offset for e in seen] == list(
            range(1, 1235)
        )
        assert reached == ["0", "500", "1000"]
        assert s.take("one")[1] == []
        times, again = s.unfinished("one")
        assert times == 1 and [e.offset for e in again] == list(range(1, 1235))
        s.done(seen[:1200])
        assert [e.offset for e in s.unfinished("one")[1]] == list(range(1201, 1235)) and s.unfinished(
            "two"
        ) == (0, [])


def test_groups_each_get_everything_and_consumers_of_one_share(settings):
    other = settings.with_(**{"stream.group": "screen"})
    with Stream(settings) as a, Stream(other) as b:
        a.publish([b"x"] * 10)
        one, two = a.take("one", 4)[1], a.take("two", 10)[1]
        assert [e.offset for e in one + two] == list(range(1, 11)) and len(b.take("one")[1]) == 10
        groups = {g["group"]: g for g in a.state()["groups"]}
        assert groups["lake"]["pending"] == 10 and groups["screen"]["unread"] == 0


def test_numbers_have_no_holes_with_many_senders(settings):
    def send(k):
        with Stream(settings) as s:
            for i in range(20):
                s.publish([b"%d %d" % (k, i)] * 3)

    threads = [threading.Thread(target=send, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    with Stream(settings) as s:
        got = s.take("one", 1000)[1]
        assert [e.offset for e in got] == list(range(1, 241)) and len({e.birth for e in got}) == 1
        for k in range(4):
            assert [int(e.data.split()[1]) for e in got if e.data.startswith(b"%d " % k)] == [
                i for i in range(20) for _ in range(3)
            ]


def test_a_full_stream_refuses_with_a_sentence_and_pushes_nothing_out(settings):
    small = settings.with_(**{"stream.maxlen": 20, "stream.wait": 0.1})
    with Stream(small) as s:
        with pytest.raises(
            StreamFull, match=r"no consumer has ever read them; 20 of 30 messages were accepted"
        ) as e:
            s.publish([b"%d" % i for i in range(30)])
        assert e.value.context["accepted"] == 20
        s.join()
        first = s.take("one", 5)[1]
        with pytest.raises(StreamFull, match="the group lake has 20 unfinished"):
            s.publish([b"x"])
        s.done(first[1:])
        with pytest.raises(StreamFull, match="the group lake has 20 unfinished"):
            s.publish([b"x"])
        s.done(first[:1])
        assert s.publish([b"x"] * 3) == 23 and s.client.xlen(s.key) <= 20
        assert [int(e.data) for e in s.take("one", 15)[1]] == list(range(5, 20))


def test_a_waiting_sender_goes_on_when_there_is_room(settings):
    small, lines = settings.with_(**{"stream.maxlen": 50, "stream.wait": 20}), []
    thread = threading.Thread(target=lambda: send(small, trades(300), tell=lines.append))
    thread.start()
    did = consume(small, idle=1.0)
    thread.join()
    with LiveTable(small.storage) as live:
        assert len(live.bars("tick")) == 300
    assert did.messages == 300 and did.lost == 0 and "stream is full" in lines[0]


def test_history_stays_until_its_room_is_needed(settings):
    small = settings.with_(**{"stream.maxlen": 100})
    with Stream(small) as s:
        for _ in range(10):
            s.publish([b"x"] * 30)
            s.done(s.take("one")[1])
        first, last = s.span()
        assert last.offset == 300 and 60 <= last.offset - first.offset + 1 <= 100


def test_what_somebody_else_removed_is_counted(settings):
    send(settings, trades(20))
    with Stream(settings) as s:
        s.join()
    drain(settings)
    send(settings, trades(40, 2))
    with Stream(settings) as s:
        s.client.xtrim(s.key, maxlen=10, approximate=False)
    lines = []
    did = drain(settings, tell=lines.append)
    assert did.lost == 30 and did.messages == 10 and "30 messages were removed" in lines[0]
    assert stream_status(settings)["groups"][0]["lost"] == 30
    assert drain(settings).lost == 0


def test_pending_messages_that_were_removed_are_counted_and_do_not_block(settings):
    send(settings, trades(20))
    with Consumer(settings) as c:
        got = c.stream.take(c.name)[1]
        c.stream.client.xdel(c.stream.key, *(e.id for e in got[:5]))
    did = drain(settings)
    with LiveTable(settings.storage) as live:
        assert len(live.bars("tick")) == 15
    assert (
        did.lost == 5
        and stream_status(settings)["groups"][0]["pending"] == 0
        and stream_status(settings)["removed"] == 5
    )


def test_an_emptied_redis_is_noticed_and_the_lake_unharmed(settings, market, server):
    publish_rows(settings, market.tail(40))
    drain(settings)
    before = stored(settings)
    time.sleep(1.1)  # another second, another birth
    server.client.flushall()
    publish_rows(settings, market.tail(45))
    lines = []
    did = drain(settings, tell=lines.append)
    assert did.emptied == 1 and "Redis was emptied" in lines[0] and "stockpredict ingest" in lines[0]
    assert (
        stream_status(settings)["emptied"] == 1
        and len(stored(settings)) == 45
        and stored(settings).tail(len(before)).ticker.isin(before.ticker).all()
    )
    assert drain(settings).emptied == 0


def test_offsets_and_times_lead_to_the_same_place(settings):
    with Stream(settings) as s:
        s.publish([b"a"] * 10)
        time.sleep(0.02)
        seconds, us = s.client.time()
        time.sleep(0.02)
        s.publish([b"b"] * 10)
        assert (
            s.offset_at(seconds * 1_000_000 + us) == 11
            and s.offset_at(0) == 1
            and s.offset_at(4 * 10**15) == 21
        )
        assert [e.data for pack in s.again(9) for e in pack] == [b"a"] * 2 + [b"b"] * 10
        s.client.xtrim(s.key, maxlen=5, approximate=False)
        with pytest.raises(StreamUnavailable, match="Message 9 is no longer kept; the oldest is 16"):
            next(s.again(9))


# ---- what is believed


GOOD = dict(
    span="session",
    ticker="AAA",
    source="feed",
    event_us=int(DAY.value // 1000),
    known_us=int(DAY.value // 1000),
    open=1.0,
    high=2.0,
    low=1.0,
    close=2.0,
    volume=3.0,
)


@pytest.mark.parametrize(
    "change, reason",
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b"{" * 10_000, "not a JSON object"),
        (b'{"close": NaN}', "not a JSON object"),
        (dict(ticker=None), "field ticker is missing"),
        (dict(extra=1), "field 'extra' is unknown"),
        (dict(span="day"), "There is no span 'day'"),
        (dict(span=5), "There is no span"),
        (dict(ticker="'; DROP TABLE bars; --"), "is not a ticker"),
        (dict(ticker="../../etc"), "is not a ticker"),
        (dict(ticker="A\x1b[2J"), "is not a ticker"),
        (dict(ticker="aapl"), "is not a ticker"),
        (dict(ticker="\u0410APL"), "is not a ticker"),
        (dict(ticker="A" * 10_000), "is not a ticker"),
        (dict(source="x\ny"), "not a valid name of a source"),
        (dict(source=""), "not a valid name of a source"),
        (dict(event_us="yesterday"), "event_us is not a time"),
        (dict(event_us=-1), "event_us is not a time"),
        (dict(event_us=True), "event_us is not a time"),
        (dict(known_us=1.5), "known_us is not a time"),
        (dict(clock_us=10**19), "clock_us is not a time"),
        (dict(close="12"), "close is not a number"),
        (dict(volume=[1]), "volume is not a number"),
        (dict(id=7), "id is not text"),
        (dict(event_us=int(2e15) + 10**15), "in the future"),
        (dict(span="1m", close=-1.0), "zero, negative"),
        (dict(span="1m", high=0.5), "do not enclose"),
        (dict(span="tick", close=0.0), "zero, negative"),
        (dict(span="tick", close=None), "no close"),
        (dict(span="1m", volume=-5.0), "volume is negative"),
        (dict(span="1m", close=1e308), "zero, negative or not a number"),
    ],
)
def test_nonsense_becomes_a_dead_letter_with_its_reason(change, reason):
    data = change if isinstance(change, bytes) else orjson.dumps(GOOD | change)
    rows, set_aside = decode_messages(
        [Entry(1, 1, int(time.time() * 1e6), data), Entry(2, 1, int(time.time() * 1e6), orjson.dumps(GOOD))],
        int(time.time() * 1e6),
    )
    assert rows["rank"].tolist() == [2] and len(set_aside) == 1 and reason in set_aside[0][1], set_aside
    assert set_aside[0][1].isprintable() and len(set_aside[0][1]) < 200


def test_a_good_message_has_no_fault():
    assert message_fault(GOOD, int(time.time() * 1e6)) == ""


def test_dead_letters_are_kept_and_can_be_sent_again(settings, server):
    with Stream(settings) as s:
        s.publish([b"nonsense", *encode_messages(trades(3), "tick", DAY)])
    assert drain(settings).dead_letters == 1
    server.client.delete("stockpredict:letters")
    result = unreadable_messages(settings)
    assert result.data.tolist() == ["nonsense"] and result.reason.tolist() == [
        "The message is not a JSON object."
    ]
    assert resend_dead_letters(settings) == 1 and len(unreadable_messages(settings)) == 0
    assert drain(settings).dead_letters == 1 and len(unreadable_messages(settings)) == 1


def test_bad_rows_are_quarantined_and_a_rotten_batch_is_set_aside_whole(settings, market):
    few = market.tail(50).copy()
    few.loc[few.index[0], "close"] = -1.0
    publish_rows(settings, few)
    did = drain(settings)
    assert (did.lake_new, did.quarantined, did.dead_letters) == (49, 1, 0)
    rotten = market.head(ENOUGH_TO_REFUSE).copy()
    rotten.loc[rotten.index[: ENOUGH_TO_REFUSE // 2], "volume"] = -5.0
    publish_rows(settings, rotten)
    did = drain(settings)
    assert (did.lake_new, did.quarantined, did.dead_letters) == (
        0,
        0,
        ENOUGH_TO_REFUSE,
    ) and "refused with its batch" in unreadable_messages(settings).reason[0]
    assert len(stored(settings)) == 49


def test_a_table_that_is_none_is_refused_before_sending(settings, market):
    with pytest.raises(BarsInvalid, match="lacks close"):
        encode_messages(market.drop(columns="close"))
    with pytest.raises(ParameterRefused, match="Did you mean tick"):
        encode_messages(market, "ticks")


# ---- the right final state


def test_bars_in_any_order_with_repetitions_and_corrections_give_the_same_lake(settings, tmp_path, market):
    some = market.tail(60)
    newer = some.head(7).assign(
        close=lambda f: f.close * 1.001,
        high=lambda f: f.high * 1.01,
        known_at=lambda f: f.known_at + pd.Timedelta(hours=3),
    )
    everything = pd.concat([some, newer])
    with Lake(live_settings(tmp_path / "plain").storage) as plain:
        plain.append(everything)
        wanted, mark = plain.bars(), plain.fingerprint()
    mixed = pd.concat(
        [everything.sample(frac=1, random_state=3), everything.sample(frac=0.4, random_state=4)]
    )
    for part in np.array_split(np.arange(len(mixed)), 3):
        publish_rows(settings, mixed.iloc[part], clock=mixed.iloc[part].known_at)
        drain(settings)
    pd.testing.assert_frame_equal(stored(settings), wanted)
    with Lake(settings.storage, read_only=True) as lake:
        assert lake.fingerprint() == mark and lake.verify() == mark


def test_a_late_bar_and_a_correction_count_from_when_they_were_sent(settings, market):
    first, late = market.head(9).drop(index=[4]), market.iloc[[4]]
    publish_rows(settings, first, clock=first.known_at)
    drain(settings)
    sent = first.known_at.max() + pd.Timedelta(days=30)
    wrong = first.iloc[[5]].assign(close=lambda f: f.close * 1.001, high=lambda f: f.high * 1.01)
    wrong["known_at"] -= pd.Timedelta(minutes=5)  # the sender has another lag today
    publish_rows(settings, pd.concat([late, wrong]), clock=sent)
    drain(settings)
    before = stored(settings, as_of=sent - pd.Timedelta(seconds=1))
    assert before.close.tolist() == first.close.tolist()
    expected = market.head(9).close.where(market.head(9).index != first.index[5], wrong.close.item())
    assert stored(settings, as_of=sent).close.tolist() == expected.tolist()
    publish_rows(settings, first, clock=first.known_at)  # delivered again
    drain(settings)
    assert stored(settings).close.tolist() == expected.tolist()


def test_of_two_bars_known_at_the_same_time_the_later_in_the_stream_wins(settings, market):
    one = market.tail(1)
    publish_rows(
        settings, pd.concat([one, one.assign(volume=one.volume + 1), one.assign(volume=one.volume + 2)])
    )
    did = drain(settings)
    assert did.quarantined == 0 and stored(settings).volume.tolist() == (one.volume + 2).tolist()


@pytest.mark.parametrize("seed", range(2))
def test_trades_in_any_order_make_the_same_bars(settings, seed):
    sent = pd.concat([trades(150, 1, "AAA"), trades(150, 2, "BBB")], ignore_index=True)
    clock = DAY + pd.Timedelta(hours=1)
    rng = np.random.default_rng(seed)
    mixed = pd.concat([sent.sample(frac=1, random_state=seed), sent.sample(50, random_state=seed + 100)])
    with Stream(settings), LiveTable(settings.storage) as live:
        for part in np.array_split(np.arange(len(mixed)), rng.integers(1, 6)):
            publish_rows(settings, mixed.iloc[part], "tick", clock)
            drain(settings)
        frames = {"1s": "1s", "1m": "1min"}
        for span, rule in frames.items():
            at = sent.event_time.dt.floor(rule) + pd.Timedelta(rule)
            by = sent.sort_values("event_time", kind="stable").groupby(["ticker", at.rename("event_time")])
            wanted = pd.DataFrame(
                dict(
                    open=by.close.first(),
                    high=by.close.max(),
                    low=by.close.min(),
                    close=by.close.last(),
                    volume=by.volume.sum(),
                )
            )
            got = live.bars(span).set_index(["ticker", "event_time"])[wanted.columns]
            pd.testing.assert_frame_equal(got, wanted, check_index_type=False)
        day = live.bars("session")
        assert day.volume.tolist() == sent.groupby("ticker").volume.sum().tolist()
        assert day.provisional.all() and set(day.event_time) == {CALENDAR.close("2024-06-03")}
        assert live.bars("1m").provisional.sum() == 0 and len(live.bars("tick")) == 300


def test_a_cancelled_and_a_corrected_trade_change_the_bar(settings):
    sent = trades(3, minutes=1).assign(close=[10.0, 99.0, 11.0])
    publish_rows(settings, sent, "tick", DAY + pd.Timedelta(minutes=2))
    drain(settings)
    later = DAY + pd.Timedelta(minutes=5)
    publish_rows(settings, sent.iloc[[1]].assign(volume=0.0), "tick", later)
    publish_rows(settings, sent.iloc[[2]].assign(close=12.0), "tick", later)
    drain(settings)
    with LiveTable(settings.storage) as live:
        bar = live.bars("1m").iloc[0]
    assert (bar.open, bar.high, bar.low, bar.close) == (10.0, 12.0, 10.0, 12.0)


def test_a_trade_that_is_too_old_for_the_live_table_is_no_silent_loss(settings):
    publish_rows(settings, trades(10), "tick", DAY + pd.Timedelta(days=20))
    did = drain(settings)
    assert did.dead_letters == 10 and "older than the 5 days" in unreadable_messages(settings).reason[0]


# ---- what is not over


def test_an_open_session_is_provisional_and_never_in_the_lake(settings):
    publish_rows(settings, trades(100), "tick", DAY + pd.Timedelta(hours=2))
    bar = one_bar(CALENDAR.close("2024-06-03"), DAY + pd.Timedelta(hours=2))
    publish_rows(settings, bar, clock=DAY + pd.Timedelta(hours=2))
    drain(settings)
    with LiveTable(settings.storage) as live:
        assert live.bars("session").provisional.tolist() == [True, True]
    assert len(stored(settings, source="feed")) == 0 and stream_status(settings)["open_sessions"] == 2
    with Lake(settings.storage, read_only=True) as lake:
        assert lake.sql("SELECT count(*) AS n FROM quarantine").n[0] == 0
    over = CALENDAR.close("2024-06-03") + pd.Timedelta(minutes=15)
    publish_rows(settings, trades(1, 5).assign(volume=0.0), "tick", over)
    drain(settings)
    with LiveTable(settings.storage) as live:
        assert live.bars("session").provisional.tolist() == [False, False]
    after = stored(settings, source="feed")
    assert (
        after.ticker.tolist() == ["AAA", "BBB"]
        and (after.known_at >= after.event_time).all()
        and stream_status(settings)["open_sessions"] == 0
    )


def test_a_late_trade_after_the_close_becomes_a_correction(settings):
    over = CALENDAR.close("2024-06-03") + pd.Timedelta(minutes=15)
    publish_rows(settings, trades(50), "tick", over)
    drain(settings)
    first = stored(settings, source="feed")
    publish_rows(settings, trades(1, 7).assign(volume=12_345.0), "tick", over + pd.Timedelta(minutes=10))
    did = drain(settings)
    now = stored(settings, source="feed")
    assert (
        did.lake_corrected == 1
        and now.volume[0] == first.volume[0] + 12_345.0
        and now.known_at[0] > first.known_at[0]
    )
    assert stored(settings, source="feed", as_of=first.known_at[0]).volume[0] == first.volume[0]
    assert drain(settings).lake_corrected == 0


def test_the_official_bar_replaces_the_one_made_of_trades(settings):
    over = CALENDAR.close("2024-06-03") + pd.Timedelta(minutes=15)
    publish_rows(settings, trades(50), "tick", over)
    drain(settings)
    official = stored(settings, source="feed").assign(volume=1e6, known_at=over + pd.Timedelta(hours=1))
    publish_rows(settings, official, clock=over + pd.Timedelta(hours=1))
    drain(settings)
    publish_rows(settings, trades(5, 8), "tick", over + pd.Timedelta(hours=2))
    drain(settings)
    with LiveTable(settings.storage) as live:
        assert live.bars("session").volume.tolist() == [1e6]
    assert stored(settings, source="feed").volume.tolist() == [1e6]


def test_a_sender_with_a_wrong_clock_cannot_end_a_session_early_nor_go_back(settings):
    today = CALENDAR.sessions(pd.Timestamp.now("UTC").date(), None)[1]  # a session that has not begun
    opens = CALENDAR.close(today) - pd.Timedelta(hours=6)
    ahead = CALENDAR.close(today) + pd.Timedelta(hours=2)
    sent = trades(3).assign(event_time=pd.Timestamp.now("UTC").floor("s"))
    publish_rows(settings, sent, "tick", ahead)
    drain(settings)
    with LiveTable(settings.storage) as live:
        assert live.set_clocks({})["feed"] <= time.time_ns() // 1000
        publish_rows(settings, one_bar(CALENDAR.close(today), opens), clock=ahead)
        did = drain(settings)
        assert did.lake_new == 0 and len(stored(settings, source="feed")) == 0
        clock = live.set_clocks({})["feed"]
        publish_rows(settings, trades(1, 9), "tick", DAY)
        drain(settings)
        assert live.set_clocks({})["feed"] == clock
    assert stream_status(settings)["freshness_s"] < 60, (
        "an hour's difference between clocks is no hour's delay"
    )


def test_hours_of_a_half_day_and_across_the_change_of_clocks():
    from stockpredict.stream.live_table import session_hours

    at = [
        pd.Timestamp(t, tz="UTC").value // 1000
        for t in ("2024-11-29 15:00", "2024-11-01 15:00", "2024-11-04 15:00", "2024-11-30 15:00")
    ]
    got = session_hours(CALENDAR, at)
    utc = [
        [None if np.isnan(v) else f"{pd.Timestamp(int(v), unit='us'):%H:%M}" for v in row]
        for row in got.to_numpy()
    ]
    assert utc == [["14:30", "18:00"], ["13:30", "20:00"], ["14:30", "21:00"], [None, None]]


# ---- again, and how fresh


def test_replay_from_an_offset_or_a_time_changes_nothing(settings, market):
    publish_rows(settings, market.tail(30))
    drain(settings)
    with Lake(settings.storage, read_only=True) as lake:
        before = lake.fingerprint(), lake.snapshot()
    for start in ("11", pd.Timestamp.now("UTC") - pd.Timedelta(hours=1)):
        did = replay_from(settings, start)
        assert did.messages == (20 if start == "11" else 30) and (did.lake_new, did.lake_corrected) == (0, 0)
    with Lake(settings.storage, read_only=True) as lake:
        assert (lake.fingerprint(), lake.snapshot()) == before


def test_a_restored_lake_catches_up_by_replay(settings, market):
    import shutil

    publish_rows(settings, market.tail(30))
    drain(settings)
    shutil.rmtree(settings.storage.lake_dir)
    assert replay_from(settings, 1).lake_new == 30 and len(stored(settings)) == 30


def test_freshness_is_from_the_event_to_the_reader(settings, market):
    assert stream_status(settings)["freshness_s"] is None
    sent = trades(10)
    publish_rows(settings, sent, "tick", sent.event_time + pd.Timedelta(seconds=7))
    publish_rows(settings, market.tail(3))
    time.sleep(0.2)
    waiting = stream_status(settings)
    assert waiting["waiting_s"] == 0, "without a reader none is late"
    drain(settings)
    lines = stream_status(settings)
    assert (
        7 < lines["delays"]["live"]["median"] < 60
        and 0.2 < lines["delays"]["lake"]["median"]
        and lines["freshness_s"] >= 7
    )
    send(settings, sent.tail(1))
    time.sleep(0.3)
    assert stream_status(settings)["waiting_s"] >= 0.3


def test_a_replayed_session_ends_as_the_bars_it_was_made_of(settings, market):
    last = market[market.event_time == market.event_time.max()]
    sent = replay(settings, last, speed=0, each=20)
    did = drain(settings)
    wanted = last[last.volume > 0]
    got = stored(settings, source=last.source.iloc[0])
    pd.testing.assert_frame_equal(
        got[["ticker", "event_time", "known_at", "open", "high", "low", "close", "volume"]],
        wanted[["ticker", "event_time", "known_at", "open", "high", "low", "close", "volume"]].reset_index(
            drop=True
        ),
    )
    assert sent.trades == did.messages and did.dead_letters == 0


def test_real_five_minute_bars_make_the_session(settings, shared):
    path = shared / "intraday_5m_us.parquet"
    if not path.exists():
        pytest.skip("intraday_5m_us.parquet is not among the development data.")
    raw = pd.read_parquet(path)
    from stockpredict.sources.bars import map_columns

    at = map_columns(raw.columns, {})
    columns = ["ticker", "event_time", "open", "high", "low", "close", "volume"]
    bars = raw[[at[c] for c in columns]].set_axis(columns, axis=1)
    when = pd.to_datetime(bars.event_time, utc=True) + pd.Timedelta(minutes=5)  # stamped by their beginning
    bars = bars.assign(
        event_time=when, known_at=when, source="intraday", ticker=bars.ticker.astype(str)
    ).dropna()
    close = pd.Series(CALENDAR.event_times(CALENDAR.day_of(bars.event_time)), bars.index)
    bars = bars[
        (bars.event_time <= close) & (bars.event_time > close - pd.Timedelta(hours=6.5)) & (bars.volume > 0)
    ]
    day = bars.event_time.dt.date.max()
    bars = bars[
        (bars.event_time.dt.date == day) & bars.ticker.isin(sorted(bars.ticker.unique())[:3])
    ].reset_index(drop=True)
    assert len(split_into_trades(bars, CALENDAR, "5m", 4)) <= 4 * len(bars)
    replay(settings, bars, "5m", speed=0, each=4)
    drain(settings)
    by = bars.sort_values("event_time").groupby("ticker")
    wanted = pd.DataFrame(
        dict(
            open=by.open.first(),
            high=by.high.max(),
            low=by.low.min(),
            close=by.close.last(),
            volume=by.volume.sum(),
        )
    )
    got = stored(settings, source="intraday").set_index("ticker")[wanted.columns]
    pd.testing.assert_frame_equal(got, wanted, check_index_type=False, check_dtype=False)

"""The live path under kill -9, and with a Redis that is away, slow, full, emptied, locked or not what it
should be."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import patience
import warm
import numpy as np
import pandas as pd
import pytest
import redis
from live_redis import Server, consumer_process, live_settings

from stockpredict.core.redis import EmbeddedRedis
from stockpredict.core.errors import LakeUnavailable, SettingsError, StreamFull, StreamUnavailable
from stockpredict.stream.consumer import MAX_DELIVERIES, Consumer, consume
from stockpredict.stream.dead_letters import unreadable_messages
from stockpredict.stream.messages import encode_messages, publish_rows
from stockpredict.lake.lake import Lake
from stockpredict.stream.live_table import LiveTable
from stockpredict.sources.simulate import sample_bars
from stockpredict.stream.queue import Stream
from stockpredict.stream.monitor import stream_status


@pytest.fixture(scope="module")
def market():
    return sample_bars(tickers=3, sessions=30)


@pytest.fixture
def settings(tmp_path, server):
    return live_settings(tmp_path / "home", server.url)


def all_read(state) -> bool:
    "Whether the group of the lake exists and has no message left."
    return bool(g := state["groups"]) and not g[0]["unread"] + g[0]["pending"]


def count(settings):
    with Lake(settings.storage, read_only=True) as lake:
        return len(lake.bars())


# ---- kill -9


@pytest.mark.slow
def test_killed_at_every_step_nothing_is_missing_and_nothing_is_double(tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1", "GX_ANALYTICS_ENABLED": "false"}
    out = warm.python(Path(__file__).with_name("crash_child_stream.py"), tmp_path, env=env)
    assert out.returncode == 0, out.stderr[-3000:]
    report = [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]
    calm, steps, ends = report[0]["calm"], report[0]["steps"], [x for x in report if "k" in x]
    assert {
        "taken",
        "decoded",
        "inspected",
        "begun",
        "bars written",
        "committed",
        "lake stored",
        "live written",
        "live committed",
        "stored",
        "acknowledged",
        "session stored",
    } <= set(steps)
    assert (
        calm["pending"] == 0
        and calm["quarantine"] == 1
        and [x["message"] for x in calm["letters"]] == [61]
        and calm["bars"] > 80
    )
    assert len(ends) >= 3
    assert [x["step"] for x in report if "step" in x] == [steps[x["k"] - 1] for x in ends]
    for x in ends:
        assert (x["code"], x["healed"]) == (-9, calm), (steps[x["k"] - 1], x, calm)


def test_the_unfinished_of_a_dead_consumer_are_taken_over(settings, market):
    patient = settings.with_(**{"stream.claim_after": 1})
    publish_rows(patient, market.tail(20))
    dead = warm.python(
        f"""
import os, signal
from live_redis import live_settings
from stockpredict.stream.queue import Stream
s = Stream(live_settings({str(patient.storage.home)!r}, {patient.stream.redis_url!r}))
s.take('elsewhere-1'); os.kill(os.getpid(), signal.SIGKILL)""",
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert dead.returncode == -signal.SIGKILL
    assert stream_status(patient)["groups"][0]["pending"] == 20
    did = consume(patient, seconds=2.5)
    assert did.lake_new == 20 and stream_status(patient)["groups"][0]["pending"] == 0


def test_two_consumers_share_one_group_and_the_lake(settings, market):
    with Stream(settings) as s:
        s.join()
        did = []
        threads = [
            threading.Thread(
                target=lambda: did.append(
                    consume(settings.with_(**{"stream.batch": 15, "stream.wait": 30}), idle=1.0)
                )
            )
            for _ in range(2)
        ]
        for t in threads:
            t.start()
        for part in np.array_split(np.arange(len(market)), 8):
            publish_rows(settings, market.iloc[part])
        for t in threads:
            t.join()
        assert sum(d.messages for d in did) == len(market) == count(settings) and all(
            d.lost == 0 for d in did
        )
        assert s.state()["groups"][0]["pending"] == 0


def test_a_message_that_kills_its_readers_is_set_aside_and_its_neighbours_are_not(settings, market):
    publish_rows(settings, market.tail(10))
    with Consumer(settings) as c:
        c.stream.take(c.name)
    deadly = 4

    class Killed(BaseException):
        pass

    def reader():
        with Consumer(settings) as c:
            store = c.store

            def dies(entries, *more):
                if any(e.offset == deadly for e in entries) and not (more and len(more) > 1 and more[1]):
                    raise Killed
                return store(entries, *more)

            c.store = dies
            return c.go(idle=0.02)

    for _ in range(MAX_DELIVERIES + 3):
        try:
            reader()
            break
        except Killed:
            pass
    assert (
        unreadable_messages(settings).offset.tolist() == [deadly]
        and "never finished" in unreadable_messages(settings).reason[0]
    )
    assert count(settings) == 9 and stream_status(settings)["groups"][0]["pending"] == 0


# ---- those who look


def test_a_reader_who_never_lets_go_does_not_keep_a_commit_waiting(settings, market):
    publish_rows(settings, market.head(30))
    consume(settings, idle=0.02)
    look = f"""
import sqlite3, sys
reader = sqlite3.connect({str(settings.storage.lake_dir / "catalog.sqlite")!r}, isolation_level=None)
reader.execute("BEGIN")
ask = lambda: print(*reader.execute("SELECT count(*) FROM ducklake_snapshot").fetchone(), flush=True)
ask(); sys.stdin.readline(); ask()"""
    with (
        Consumer(settings) as c,
        subprocess.Popen(
            [sys.executable, "-c", look], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as reader,
    ):
        before = reader.stdout.readline()
        publish_rows(settings, market.tail(60))
        assert c.go(idle=0.02).lake_new == 60 and count(settings) == 90
        assert before and reader.communicate("\n")[0] == before, "and sees what it saw"


def test_the_catalog_is_one_plain_file_when_nobody_writes_and_readable_after_a_kill(settings, market):
    publish_rows(settings, market.head(30))
    catalog = settings.storage.lake_dir / "catalog.sqlite"

    def plain():
        return catalog.read_bytes()[18:20] == b"\1\1" and list(catalog.parent.glob("catalog.sqlite*")) == [
            catalog
        ]

    with Consumer(settings) as c:
        c.go(idle=0.02)
        assert not plain()
    assert plain()
    publish_rows(settings, market.iloc[30:60])
    dead = warm.python(
        f"""
import os, signal
from live_redis import live_settings
from stockpredict.stream.consumer import Consumer
c = Consumer(live_settings({str(settings.storage.home)!r}, {settings.stream.redis_url!r}))
c.go(idle=.02); os.kill(os.getpid(), signal.SIGKILL)""",
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert dead.returncode == -signal.SIGKILL and not plain() and count(settings) == 60
    with Lake(settings.storage):
        pass
    assert plain() and count(settings) == 60


# ---- Redis


def test_redis_away_at_the_start_is_a_sentence_in_bounded_time(tmp_path, market):
    gone = live_settings(tmp_path / "home", "redis://127.0.0.1:1/0", **{"stream.wait": 0.5})
    for work in (
        lambda: publish_rows(gone, market.tail(1)),
        lambda: consume(gone, idle=0.1),
        lambda: stream_status(gone),
    ):
        with pytest.raises(StreamUnavailable, match=r"Redis at 127\.0\.0\.1:1/0 does not answer"):
            work()
    with Lake(gone.storage) as lake:
        assert lake.source_names() == []


def test_an_address_that_is_none_and_a_password_are_said_at_once_and_not_repeated(tmp_path):
    with pytest.raises(SettingsError, match="redis_url is no address"):
        Stream(live_settings(tmp_path, "http://somewhere"))
    with pytest.raises(StreamUnavailable) as e:
        Stream(live_settings(tmp_path, "redis://me:s3cret@127.0.0.1:1/0", **{"stream.wait": 0}))
    assert "s3cret" not in str(e.value)


def test_a_wrong_password_is_no_reason_to_wait(tmp_path):
    server = Server(tmp_path / "redis", "--requirepass", "right")
    server.start(password="right")
    try:
        with pytest.raises(StreamUnavailable, match="refused us"):
            Stream(live_settings(tmp_path / "home", server.url, **{"stream.wait": 30}))
    finally:
        server.kill()


def test_redis_killed_midway_is_waited_for_and_nothing_acknowledged_is_lost(settings, server, market):
    patient, report = settings.with_(**{"stream.wait": 30, "stream.batch": 10}), []
    sent = threading.Thread(
        target=lambda: [
            publish_rows(patient, market.iloc[i : i + 5], tell=report.append) or time.sleep(0.02)
            for i in range(0, len(market), 5)
        ]
    )
    got = []
    reading = threading.Thread(target=lambda: got.append(consume(patient, idle=2.0, tell=report.append)))
    reading.start()
    sent.start()
    while sent.is_alive() and not report:
        server.kill()
        time.sleep(0.3)
        server.start()
        time.sleep(0.5)
    sent.join()
    reading.join()
    assert count(patient) == len(market) and got[0].emptied == 0 and got[0].lost == 0
    assert any("does not answer" in s and "Waiting" in s for s in report)


def test_an_embedded_redis_that_is_killed_comes_back_with_its_messages(tmp_path, market):
    s = live_settings(tmp_path / "home", **{"stream.wait": 20})
    with Stream(s) as stream:
        stream.publish(encode_messages(market.tail(30)))
        pid = stream.client.info("server")["process_id"]
        assert stream.client.config_get("appendfsync") == {"appendfsync": "always"}, (
            "with everysec it answers before it has written when the disk is slow"
        )
        os.kill(pid, signal.SIGKILL)
        assert stream.publish(encode_messages(market.head(3))) == 33
        assert stream.client.info("server")["process_id"] != pid
        assert consume(s, idle=0.05).lake_new == 33
        last = stream.client.info("server")["process_id"]
    patience.wait_until(lambda: patience.is_gone(last))  # the last one to leave stops the server
    with Stream(s) as stream:
        assert stream.span()[1].offset == 33, "what was sent outlives the server"


def test_an_embedded_redis_ends_when_its_only_user_is_killed(tmp_path, market):
    s = live_settings(tmp_path / "home")
    child = consumer_process(s)
    embedded = EmbeddedRedis(s.storage.home_dir / "stream")

    def server():
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(embedded.url) as client:
            return client.info("server")["process_id"]

    number = patience.wait_until(server, child)
    patience.wait_until(lambda: "consume" in child.args and stream_groups(embedded.url), child)
    child.kill()
    child.communicate()
    patience.wait_until(lambda: patience.is_gone(number))
    publish_rows(s, market.tail(3))
    assert consume(s, idle=0.05).lake_new == 3, "and the next start is a new one"


def stream_groups(url):
    "Whether a consumer has joined the stream."
    with contextlib.suppress(redis.RedisError), redis.Redis.from_url(url) as client:
        return client.xinfo_groups("stockpredict:live")


def test_a_redis_that_accepts_and_never_answers_is_given_up_on(tmp_path):
    listener, kept_rows = socket.create_server(("127.0.0.1", 0)), []
    accept = lambda: [kept_rows.append(listener.accept()) for _ in range(8)]  # noqa: E731
    threading.Thread(target=accept, daemon=True).start()
    try:
        with pytest.raises(StreamUnavailable, match="does not answer"):
            Stream(
                live_settings(
                    tmp_path, f"redis://127.0.0.1:{listener.getsockname()[1]}/0", **{"stream.wait": 1}
                )
            )
    finally:
        listener.close()


def test_redis_without_memory_refuses_the_sender_and_still_serves_the_reader(settings, server, market):
    publish_rows(settings, market.tail(50))
    with Stream(settings) as s:
        s.join()  # the reader was there before
    server.client.config_set("maxmemory-policy", "noeviction")
    server.client.config_set("maxmemory", "1")
    with pytest.raises(StreamFull, match="no memory left"):
        publish_rows(settings.with_(**{"stream.wait": 0.3}), market)
    assert (
        consume(settings, idle=0.05).lake_new == 50 and stream_status(settings)["groups"][0]["pending"] == 0
    )
    server.client.config_set("maxmemory", "0")
    publish_rows(settings, market)
    consume(settings, idle=0.05)
    assert count(settings) == len(market)


def test_a_redis_that_may_evict_or_forget_is_pointed_out(settings, server):
    for name, value in {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru", "appendonly": "no"}.items():
        server.client.config_set(name, value)
    report = " ".join(stream_status(settings)["warnings"])
    assert "allkeys-lru" in report and "noeviction" in report and "appendonly" in report


def test_a_redis_that_answers_before_it_has_written_is_pointed_out_and_one_that_does_not_tell_is_believed(
    settings, server
):
    assert stream_status(settings)["warnings"] == []
    server.client.config_set("appendfsync", "everysec")
    assert "appendfsync always" in " ".join(stream_status(settings)["warnings"])
    server.client.acl_setuser("default", enabled=True, nopass=True, commands=["-config"], keys=["*"])
    assert stream_status(settings)["warnings"] == []


def test_a_key_of_another_type_is_left_alone(settings, server, market):
    server.client.lpush("stockpredict:live", "somebody else's")
    for work in (lambda: publish_rows(settings, market.tail(1)), lambda: consume(settings, idle=0.05)):
        with pytest.raises(StreamUnavailable, match="holds something else"):
            work()
    assert server.client.lrange("stockpredict:live", 0, -1) == [b"somebody else's"]


def test_emptied_between_two_batches(settings, server, market):
    "What was stored stays, what is sent afterwards arrives, and the consumer says what happened."
    report, stop = [], threading.Event()
    with Stream(settings) as s:
        reading = threading.Thread(target=lambda: consume(settings, stop=stop, tell=report.append))
        reading.start()
        s.publish(encode_messages(market.head(20)))
        patience.wait_until(lambda: all_read(s.state()), reading)
        time.sleep(1.1)
        server.client.flushall()
        s.publish(encode_messages(market.tail(20)))
        patience.wait_until(lambda: report, reading)
        patience.wait_until(lambda: all_read(s.state()), reading)
        stop.set()
        reading.join()
    assert count(settings) == 40 and "Redis was emptied" in report[0]


# ---- the lake and the disk


def test_while_another_process_writes_to_the_lake_messages_wait(settings, market):
    report, ready = [], threading.Event()

    def hold():
        with Lake(settings.storage) as lake, lake.writer():
            ready.set()
            patience.wait_until(lambda: report)

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait()
    publish_rows(settings, market.tail(10))
    did = consume(settings.with_(**{"stream.wait": 0.3}), idle=0.05, tell=report.append)
    thread.join()
    assert did.lake_new == 10 and count(settings) == 10 and "has been writing to the lake" in report[0]


def test_a_lake_that_cannot_write_stops_the_consumer_and_acknowledges_nothing(settings, market):
    publish_rows(settings, market.tail(10))

    def full(step):
        if step == "decoded":
            raise LakeUnavailable("There is no space left on the disk.", "Free some.")

    for _ in range(MAX_DELIVERIES + 2):  # restarted again and again by a supervisor: not the messages' fault
        with pytest.raises(LakeUnavailable, match="no space left"):
            consume(settings.with_(**{"stream.wait": 0.2}), idle=0.05, on_step=full)
    assert stream_status(settings)["groups"][0]["pending"] == 10 and count(settings) == 0
    assert consume(settings, idle=0.05).lake_new == 10 and len(unreadable_messages(settings)) == 0


def test_a_damaged_live_table_is_named(settings, market):
    publish_rows(settings, market.tail(10))
    with LiveTable(settings.storage) as live:
        path = live.path
    path.write_bytes(b"this is no database" * 500)
    for name in ("-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    with pytest.raises(
        LakeUnavailable, match=r"live table live\.sqlite cannot be used.*file is not a database"
    ) as e:
        consume(settings, idle=0.05)
    assert "remove it" in e.value.fix
    path.unlink()
    assert consume(settings, idle=0.05).lake_new == 10


def test_asked_to_stop_a_consumer_ends_its_batch(tmp_path, server, market):
    s = live_settings(tmp_path / "home", server.url)
    publish_rows(s, market)
    child = consumer_process(s)
    patience.wait_until(lambda: all_read(stream_status(s)), child, every=0.1)
    child.send_signal(signal.SIGTERM)
    out, err = patience.communicate(child)
    assert child.returncode == 0 and json.loads(out)["lake_new"] == len(market) and "Traceback" not in err, (
        out,
        err,
    )
    assert pd.Series(json.loads(out)).lost == 0 and count(s) == len(market)

"""Limits: never more in a minute than allowed, together over processes, whatever becomes of Redis."""

import asyncio
import math
import random
import socket
import threading
import time

import pytest

from stockpredict.access.limits import (
    PAUSE,
    REDIS_TIMEOUT,
    REPORT_EVERY,
    SLICE,
    CallerLimits,
    report_counts,
)
from stockpredict.core.errors import TooManyRequests
from stockpredict.core.redis import EmbeddedRedis, open_redis
from stockpredict.core.sections import Access


def admitted_times(limits, draw, count, pauses, caller="key:1"):
    now, admitted, refused = 0.0, [], []
    for _ in range(count):
        now += draw.choice(pauses)
        try:
            limits.admit(caller, now)
            admitted.append(now)
        except TooManyRequests as error:
            refused.append((now, error.context["retry_after"]))
    return admitted, refused


@pytest.mark.parametrize("seed", range(6))
def test_no_minute_has_more_than_the_limit_and_the_named_wait_is_enough(seed):
    draw = random.Random(seed)
    limits = CallerLimits(Access(requests_per_minute=20))
    admitted, refused = admitted_times(limits, draw, 1500, [0.0, 0.3, 2.0, 7.0, 31.0])
    for i, start in enumerate(admitted):
        assert sum(1 for t in admitted[i : i + 40] if t < start + 60) <= 20
    assert refused
    for now, wait in refused[:30]:
        again = CallerLimits(Access(requests_per_minute=20))
        for t in [t for t in admitted if t <= now]:
            again.admit("key:1", t)
        again.admit("key:1", now + wait)


def test_a_refused_request_is_not_counted_and_a_caller_never_costs_another():
    limits = CallerLimits(Access(requests_per_minute=5))
    for _ in range(50):
        try:
            limits.admit("key:1", 10.0)
        except TooManyRequests:
            pass
    assert limits.windows["key:1", "requests"].total == limits.together.total == 5
    limits.admit("key:2", 10.0)
    limits.admit("key:1", 10.0 + 60 + SLICE)


def test_all_callers_together_have_a_limit_and_zero_is_none():
    limits = CallerLimits(Access(total_per_minute=10))
    for i in range(10):
        limits.admit(f"key:{i}", 1.0)
    with pytest.raises(TooManyRequests, match="all callers together") as refusal:
        limits.admit("key:11", 2.0)
    assert refusal.value.context["kind"] == "everybody"
    free = CallerLimits(
        Access(requests_per_minute=0, asks_per_minute=0, changes_per_minute=0, total_per_minute=0)
    )
    for _ in range(200):
        free.admit("key:1", 1.0)
        free.admit_kind("key:1", "asks", 1.0)
        free.admit_kind("key:1", "changes", 1.0)


def test_silent_callers_are_forgotten():
    limits = CallerLimits(Access())
    for i in range(500):
        limits.admit(f"key:{i}", 1.0)
    limits.collect(2.0)
    assert len(limits.windows) == 500
    limits.collect(1.0 + 60 + SLICE)
    assert limits.windows == {}


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    with server.lock():
        server.start()
    yield server
    client = open_redis(server.url, 5.0)
    client.shutdown(nosave=True)
    client.close()


@pytest.fixture
def redis(redis_server):
    client = open_redis(redis_server.url, 5.0)
    client.flushall()
    yield client
    client.close()


def exchange(limits, process, redis, now):
    sent = limits.collect(now)
    limits.apply_shares(sent, report_counts(redis, process, [line for _, line in sent]))


@pytest.mark.parametrize("seed", range(8))
def test_processes_together_never_exceed_a_limit_but_by_their_first_contacts(redis, seed):
    draw, names = random.Random(seed), "abcd"
    crowd = {name: CallerLimits(Access(requests_per_minute=60)) for name in names}
    for name in names * 2:  # a process knows how many there are before requests come
        exchange(crowd[name], name, redis, 0.0)
    admitted = 0
    for burst in range(60):
        for _ in range(draw.randrange(12)):
            try:
                crowd[draw.choice(names[: 1 + burst % 4])].admit("key:1", 1.0)
                admitted += 1
            except TooManyRequests:
                pass
        for name in draw.sample(names, 2):
            exchange(crowd[name], name, redis, 1.0)
    first_contacts = 4 * math.ceil(60 / 4 / 10)
    assert 56 <= admitted <= 60 + first_contacts


def test_requests_that_come_while_a_report_is_under_way_are_within_the_reservation(redis):
    a, b = (CallerLimits(Access(requests_per_minute=50)) for _ in "ab")
    for limits, name in ((a, "a"), (b, "b"), (a, "a")):
        limits.admit("key:1", 1.0)
        exchange(limits, name, redis, 1.0)
    admitted = 3
    for _ in range(200):
        for limits, name in ((a, "a"), (b, "b")):
            sent = limits.collect(1.0)
            answer = report_counts(redis, name, [line for _, line in sent])
            try:
                while True:  # as many as the old share lets through
                    limits.admit("key:1", 1.0)
                    admitted += 1
            except TooManyRequests:
                pass
            limits.apply_shares(sent, answer)
    assert admitted <= 50


def test_a_report_is_counted_once_and_what_came_meanwhile_is_kept(redis):
    limits = CallerLimits(Access(requests_per_minute=100))
    for _ in range(7):
        limits.admit("key:1", 1.0)
    sent = limits.collect(1.0)
    answer = report_counts(redis, "a", [line for _, line in sent])
    for _ in range(3):  # while the report is under way
        limits.admit("key:1", 1.0)
    limits.apply_shares(sent, answer)
    assert limits.windows["key:1", "requests"].unsent == limits.together.unsent == 3
    exchange(limits, "a", redis, 1.0)
    counted = sum(
        int(redis.hget(key, "key:1|requests")) for key in redis.keys("stockpredict:{limits}:[0-9]*")
    )
    assert counted == 10


def test_nothing_to_report_is_no_failure(redis):
    limits = CallerLimits(Access(total_per_minute=0))
    assert share(limits, redis) == REPORT_EVERY and limits.health() == {"status": "ok"}
    assert limits.processes == 1


def test_a_process_that_died_gives_its_reservation_back(redis):
    report_counts(redis, "dead", [("key:1|requests", 20, 0, 100)])
    assert report_counts(redis, "b", [("key:1|requests", 100, 0, 100)])[1] == 0
    redis.flushall()
    report_counts(redis, "dead", [("key:1|requests", 20, 0, 100)])
    redis.zadd("stockpredict:{limits}:processes", {"dead": time.time() - 11})
    assert report_counts(redis, "b", [("key:1|requests", 20, 0, 100)])[:2] == [1, 60]
    assert 0 < redis.ttl("stockpredict:{limits}:reserved:dead") <= 10


def alone(limits):
    return limits.problem and limits.windows["key:1", "requests"].share == math.inf


def share(limits, client):
    return asyncio.run(limits.share_once(client, "a"))


@pytest.mark.parametrize("damage", ["flushed", "poisoned", "of another kind", "answers nonsense", "away"])
def test_whatever_redis_holds_requests_go_on(redis, redis_server, damage):
    limits = CallerLimits(Access(requests_per_minute=10_000))
    limits.admit("key:1", limits.clock())
    assert share(limits, redis) == REPORT_EVERY
    client = redis
    if damage == "flushed":
        redis.flushall()
        assert share(limits, redis) == REPORT_EVERY and not limits.problem
    if damage == "poisoned":
        for key in redis.keys("stockpredict:{limits}:[0-9]*"):
            redis.hset(key, "key:1|requests", "NaN of a kind")
    if damage == "of another kind":
        redis.delete("stockpredict:{limits}:processes")
        redis.set("stockpredict:{limits}:processes", "a text")
    if damage == "answers nonsense":
        client = type("Nonsense", (), {"eval": lambda *words: [b"x", None]})()
    if damage == "away":
        client = open_redis("unix:///nonexistent/redis.sock", REDIS_TIMEOUT)
    if damage != "flushed":
        assert share(limits, client) == PAUSE and alone(limits)
    for _ in range(50):
        limits.admit("key:1", limits.clock())
    redis.flushall()
    assert share(limits, redis) == REPORT_EVERY and not limits.problem


def test_a_silent_redis_delays_no_request(tmp_path):
    place = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(place))
        silent.listen(8)
        threading.Thread(target=lambda: silent.accept(), daemon=True).start()
        client = open_redis(f"unix://{place}", REDIS_TIMEOUT)
        limits = CallerLimits(Access())

        async def serve():
            report = asyncio.create_task(limits.share_once(client, "a"))
            served = 0
            while not report.done():
                limits.admit("key:1", limits.clock())
                served += 1
                await asyncio.sleep(0)
            return served, report.result()

        served, pause = asyncio.run(serve())
    assert served >= 2 and pause == PAUSE and alone(limits)


def test_after_an_outage_only_what_still_counts_is_reported(redis):
    limits = CallerLimits(Access(requests_per_minute=1000))
    for second in range(600):
        limits.admit("key:1", float(second))
    sent = {line[0]: line[1] for _, line in limits.collect(599.0)}
    assert sent["key:1|requests"] <= 65 and sent["everybody|everybody"] <= 65


def test_the_loop_shares_and_stops(redis, redis_server):
    limits = CallerLimits(Access(requests_per_minute=100))
    limits.admit("key:1", time.perf_counter())

    async def work():
        task = asyncio.create_task(limits.share_loop(redis_server.url, "a"))
        while limits.together.share == math.inf:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(work())
    assert redis.zscore("stockpredict:{limits}:processes", "a")
    assert asyncio.run(CallerLimits(Access()).share_loop("", "a")) is None

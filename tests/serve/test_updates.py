"""Updates over a real server: what changed, for whom, after which id, and how a stream ends."""

import asyncio
import contextlib
import json
import shutil
import signal

import httpx
import patience
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from stockpredict.serve import update_routes
from stockpredict.predict.answer_table import open_answers, table_signer, write_table
from stockpredict.client.client import Client, ServiceUnreachable
from stockpredict.client.client_updates import EventReader
from stockpredict.serve.service import Service
from stockpredict.predict.table_format import pack_table
from stockpredict.serve.updates import UpdateHub, UpdateStream

from served_desk import build_settings, uvicorn_process


def serve_another(settings, name, **p_up):
    "Swap in a table in which some tickers have another forecast."
    table, bodies = open_answers(settings), {}
    for (ticker, horizon), body in table.rows.items():
        answer = json.loads(bytes(body) + b"}") | {"snapshot": 99}
        if ticker in p_up and horizon == 1:
            answer["p_up"] = p_up[ticker]
        bodies[ticker, horizon] = json.dumps(answer, separators=(",", ":")).encode()[:-1]
    header = table.header | {"key": name, "built_at": f"2026-01-01T00:00:00+00:00.{name}"}
    write_table(pack_table(header, bodies, table_signer(settings)), settings.storage.serving_dir)


CALLER_STREAMS = 6  # of the settings


@pytest.fixture(scope="module")
def running(template, tmp_path_factory):
    "A server whose table may be swapped."
    home = tmp_path_factory.mktemp("updates") / "home"
    shutil.copytree(template.storage.home_dir, home)
    settings = build_settings(home, **{"serving.caller_streams": CALLER_STREAMS})
    serve_another(settings, "start")
    with uvicorn_process(settings, tmp_path_factory.mktemp("server")) as (process, url, _):
        yield settings, process, url


@contextlib.contextmanager
def stream(url, query="", last=""):
    "The events of a stream, one after the other."
    headers = {"last-event-id": last} if last else {}
    with httpx.stream("GET", f"{url}/v1/stream{query}", headers=headers, timeout=None) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        reader = EventReader()
        yield (event for data in response.iter_bytes() for event in reader.feed(data))


def read(event):
    return event["id"], json.loads(event["data"])


def test_a_stream_begins_complete_and_then_sends_only_what_changed(running):
    settings, _, url = running
    stored = httpx.get(url + "/v1/predictions/SIM01?horizon=1").json()["data"]
    with stream(url, "?tickers=sim01&horizon=1") as own, stream(url) as all_of_them:
        first, begin = read(next(own))
        assert begin["complete"] and begin["forecasts"] == [stored]
        _, everything = read(next(all_of_them))
        assert len(everything["tickers"]) > 5 and "forecasts" not in everything
        with stream(url, "?tickers=SIM00") as other:
            read(next(other))
            serve_another(settings, "second", SIM01=0.61)
            second, change = read(next(own))
            assert (change["complete"], change["tickers"]) == (False, ["SIM01"])
            assert [f["p_up"] for f in change["forecasts"]] == [0.61] and second != first
            assert read(next(all_of_them))[1]["tickers"] == ["SIM01"]
            serve_another(settings, "third", SIM00=0.62, SIM01=0.61)
            third, unrelated = read(next(other))  # the second table was none of its business
            assert unrelated["tickers"] == ["SIM00"]
    with stream(url, last=first) as back, stream(url, last="made-up") as stranger:
        assert read(next(back))[1]["tickers"] == ["SIM00", "SIM01"]
        assert read(next(stranger))[1]["complete"]
    with Client(url) as client:
        updates = client.updates(["SIM00"], last_event_id=second)
        update = next(updates)
        assert (update.id, update.forecasts[0].p_up, update.complete) == (third, 0.62, False)
        updates.close()


def test_the_socket_sends_the_same(running):
    _, _, url = running
    address = url.replace("http", "ws") + "/v1/ws"
    with (
        connect(address + "?tickers=SIM01&horizon=5") as socket,
        stream(url, "?tickers=SIM01&horizon=5") as sse,
    ):
        message, event = json.loads(socket.recv()), next(sse)
        assert (message["event"], message["id"]) == ("table", event["id"])
        assert message["data"] == json.loads(event["data"])
        socket.send("a word")
        with pytest.raises(ConnectionClosed):
            socket.recv()
        assert socket.close_code == 1003


def test_what_is_refused_says_why(running):
    _, _, url = running
    address = url.replace("http", "ws") + "/v1/ws"
    for query, status, code in (
        ("?tickers=SIM0", 404, "unknown-ticker"),
        ("?horizon=2", 404, "unknown-horizon"),
        ("?tickerz=SIM00", 422, "request-invalid"),
        ("?tickers=" + ",".join(f"T{i}" for i in range(201)), 422, "request-invalid"),
    ):
        answer = httpx.get(f"{url}/v1/stream{query}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), query
        with pytest.raises(InvalidStatus) as refused:
            connect(address + query)
        body = json.loads(refused.value.response.body)
        assert (refused.value.response.status_code, body["error"]["code"]) == (status, code), query
    with pytest.raises(InvalidStatus) as foreign:
        connect(address, origin="https://evil.example")
    assert foreign.value.response.status_code == 403
    head = httpx.head(url + "/v1/stream")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")


def test_one_caller_holds_so_many_streams_and_gets_the_place_back(running):
    _, _, url = running

    with contextlib.ExitStack() as opened:
        for _ in range(CALLER_STREAMS):
            opened.enter_context(stream(url, "?tickers=SIM00"))
        refused = httpx.get(url + "/v1/stream")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too-many-streams")
        assert int(refused.headers["retry-after"]) > 0
        opened.pop_all().close()
    with contextlib.ExitStack() as freed:
        patience.wait_until(lambda: try_stream(freed, url))


def try_stream(stack, url):
    with contextlib.suppress(AssertionError):
        stack.enter_context(stream(url))
        return True


def test_a_reader_that_accepts_nothing_is_dropped_with_a_reason(template, monkeypatch):
    service, notes = Service(template.with_(**{"serving.send_seconds": 0.02})), []
    monkeypatch.setattr(service.log, "warning", lambda text, **facts: notes.append(facts), raising=False)

    async def run():
        hub, full = UpdateHub(service), asyncio.Event()

        async def send(message):
            if message.get("body", b"").startswith(b"id:"):
                await full.wait()  # the buffers of the connection are full

        stream = UpdateStream(caller="key:7")
        await hub.open(stream)
        await update_routes.EventStream(hub, stream)({}, asyncio.Event().wait, send)
        return hub

    hub = asyncio.run(run())
    assert hub.streams == set() and not hub.per_caller
    assert [(note["reason"], note["caller"]) for note in notes] == [("slow-consumer", "key:7")]
    assert b'code="slow-consumer"' in service.counted_metrics()


def test_open_streams_end_with_the_service(running):
    "Without the last event this server, which has no limit for its drain, would wait for ever."
    _, process, url = running
    socket = connect(url.replace("http", "ws") + "/v1/ws?tickers=SIM00")
    with stream(url, "?tickers=SIM00") as sse:
        next(sse), socket.recv()
        process.send_signal(signal.SIGTERM)
        closed = next(sse)
        assert (closed["event"], json.loads(closed["data"])["code"]) == ("closed", "shutting-down")
        assert next(sse, None) is None
    with pytest.raises(ConnectionClosed):
        while True:
            socket.recv()
    assert socket.close_code == 1012
    patience.wait_until(lambda: process.poll() is not None, process)
    with pytest.raises(ServiceUnreachable):
        next(Client(url, patience=0.1).updates(["SIM00"]))

"""Recognising a repeated head changes no byte of any answer, however the requests are cut and mixed."""

import asyncio
import http.client
import random
import re
import shutil
import socket
from types import SimpleNamespace

import patience
import pytest
from served_desk import build_settings, service_process
from uvicorn.server import ServerState

from stockpredict.access.audit_search import search_audit
from stockpredict.access.keys import KeyStore
from stockpredict.predict.experiments import ModelExperiment
from stockpredict.serve.app import create_app
from stockpredict.serve.canary import Canary

from stockpredict.serve.repeated_heads import RepeatProtocol
from stockpredict.serve.server import wire_config
from stockpredict.serve.wire import WireConfig, WireProtocol, WireServer

HEADS = (
    "Host: localhost\r\nAccept: */*\r\n",
    "Host: localhost\r\nAccept: text/html\r\n",
    "Host: localhost\r\nX-Request-ID: one\r\n",
    "Host: localhost\r\nX-Forwarded-For: 10.0.0.1\r\n",
    "Host: localhost\r\nConnection: close\r\n",
    "Host: a\r\nHost: b\r\n",
    "Accept: */*\r\n",
)
TARGETS = (
    "/stored/A",
    "/stored/B",
    "/stored/%41",
    "/stored/A?",
    "/stored/A?x=1",
    "/other",
    "/stored/A#end",
    " /",
)

OF_ITS_OWN = re.compile(rb'"(?:request_id|timestamp)":"[^"]*"|length: [3-9]\d\d')  # of a refusal


def stored(scope):
    "Two stored answers; the others take the usual way."
    path, query = scope["path"], scope["query_string"]
    if path not in ("/stored/A", "/stored/B") or query:
        return None
    text = f"{path} {scope['raw_path']} {scope['client']} {sorted(scope['headers'])}".encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n" % len(text), text


async def usual(scope, receive, send):
    "Answers with what it was asked."
    body, more = b"", True
    while more and (message := await receive())["type"] == "http.request":
        body, more = body + message["body"], message["more_body"]
    text = f"{scope['method']} {scope['path']} {scope['query_string']} {body}".encode()
    headers = [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def some_bytes(draw: random.Random) -> list[bytes]:
    "A few requests of one client, in pieces."
    requests = []
    for head in draw.choices(HEADS, [20, 4, 4, 4, 1, 1, 1], k=draw.randint(2, 9)):
        target, method = draw.choice(TARGETS[:2] * 8 + TARGETS), draw.choice(("GET",) * 18 + ("POST", "HEAD"))
        body = draw.choice((b"", b"", b"GET /stored/A HTTP/1.1\r\n" + head.encode() + b"\r\n"))
        if method == "POST":
            head += f"Content-Length: {len(body)}\r\n"
        requests.append(
            f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + (body if method == "POST" else b"")
        )
    if draw.random() < 0.5:
        return requests
    whole = b"".join(requests)
    cuts = sorted(draw.sample(range(1, len(whole)), draw.randint(0, 6)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)])]


async def answers(kind, pieces) -> tuple[bytes, bool]:
    "All that a connection of this kind writes, and whether it was closed."
    config = WireConfig(usual, instant=stored, protocol=kind, log_config=None, lifespan="off")
    config.load()
    written, closed = [], []
    transport = SimpleNamespace(write=written.append, is_closing=lambda: bool(closed))
    transport.close = transport.abort = transport.write_eof = lambda: closed.append(1)
    transport.pause_reading = transport.resume_reading = lambda: None
    transport.can_write_eof = lambda: True
    transport.get_extra_info = lambda name, default=None: default
    connection = kind(config, ServerState(), {}, asyncio.get_running_loop())
    connection.connection_made(transport)
    for piece in pieces:
        if not closed:
            connection.data_received(piece)
        for _ in range(12):
            await asyncio.sleep(0)
    connection.connection_lost(None)
    await asyncio.sleep(0)
    return OF_ITS_OWN.sub(b"", b"".join(written)), bool(closed)


@pytest.mark.parametrize("seed", range(8))
def test_the_same_bytes_with_and_without(seed, monkeypatch):
    draw, repeated = random.Random(seed), []
    plain = RepeatProtocol.answer_repeated

    def counting(self, data):
        repeated.append(plain(self, data))
        return repeated[-1]

    monkeypatch.setattr(RepeatProtocol, "answer_repeated", counting)

    async def compare():
        for _ in range(60):
            pieces = some_bytes(draw)
            assert await answers(RepeatProtocol, pieces) == await answers(WireProtocol, pieces), pieces

    asyncio.run(compare())
    assert repeated.count(True) > 10  # the shorter way was taken


def test_every_request_has_an_id_of_its_own_and_a_repeated_one_keeps_the_callers(whole_service):
    connection = http.client.HTTPConnection("127.0.0.1", whole_service[1])
    ids = []
    for own in ({}, {}, {"X-Request-ID": "mine"}, {"X-Request-ID": "mine"}, {}):
        connection.request("GET", "/v1/predictions/SIM00?horizon=1", headers=own)
        answer = connection.getresponse()
        assert answer.status == 200 and b'"ticker":"SIM00"' in answer.read()
        ids.append(answer.headers["x-request-id"])
    assert ids[2:4] == ["mine", "mine"]
    assert len(set(ids)) == 4


class Client:
    "A connection that stays open and repeats one request."

    def __init__(self, port, key):
        self.line = http.client.HTTPConnection("127.0.0.1", port)
        self.headers, self.seen = {"Authorization": f"Bearer {key}"}, []

    def ask(self) -> int:
        self.line.request("GET", "/v1/predictions/SIM00?horizon=1", headers=self.headers)
        answer = self.line.getresponse()
        answer.read()
        self.seen.append((answer.status, answer.headers["x-request-id"]))
        return answer.status


def test_a_revoked_key_a_limit_and_the_audit_see_every_repeated_request(template, tmp_path):
    shutil.copytree(template.storage.home_dir, tmp_path / "home")
    settings = build_settings(tmp_path / "home")
    keys = KeyStore(settings.storage)
    (leaving, first_key), (staying, second_key) = keys.create(["viewer"]), keys.create(["viewer"])
    own = {"access.required": "always", "access.requests_per_minute": 6, "serving.engine": 0}
    with service_process(settings, tmp_path, **own) as (process, port):
        first, second = Client(port, first_key), Client(port, second_key)
        sockets = [client.ask() and client.line.sock for client in (first, second)]
        assert [client.ask() for client in (first, second) * 2] == [200] * 4
        keys.revoke(leaving.id)
        patience.wait_until(lambda: first.ask() == 401, process)
        assert first.ask() == 401 and {status for status, _ in first.seen} <= {200, 429, 401}
        assert [second.ask() for _ in range(5)] == [200] * 3 + [429] * 2
        assert second.line.sock is sockets[1]  # one connection, so all but the first were repeated
    noted = [entry["request"] for entry in search_audit(settings, who=f"key:{staying.id}", status=200)]
    answered = [name for status, name in second.seen if status == 200]
    assert len(set(noted)) == 6 and sorted(noted) == sorted(answered)  # one line for each


def test_a_canary_that_begins_between_two_repeated_requests_gets_the_second(template):
    app = create_app(template)
    request = b"GET /v1/predictions/SIM00?horizon=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    challenger = Canary(ModelExperiment("exp-1", "a" * 64, "b" * 64, (1, 2), "c" * 64), 1.0)

    async def work():
        listener, statuses = socket.create_server(("127.0.0.1", 0)), []
        config = wire_config(app, template)
        config.lifespan = "off"  # the loop that would look for a canary
        server = WireServer(config)
        serving = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        for app.state.service.canary in (None, None, challenger, challenger, None):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
            statuses.append(int(head.split()[1]))
        writer.close()
        server.should_exit = True
        await serving
        return statuses

    statuses = asyncio.run(work())
    assert (statuses[:2], statuses[4], challenger.answers) == ([200, 200], 200, 2)
    assert 200 not in statuses[2:4]  # there is no such model beside the champion

"""A response that is written at once leaves a connection that can be used and closed like any other."""

import asyncio
import gzip
import random
import shutil
import socket
from collections import Counter

import orjson
import pytest
import zstandard
from otlp import otlp_receiver
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from stockpredict.access.keys import KeyStore
from stockpredict.core.settings import load_settings
from stockpredict.core.traces import flush_traces, start_tracing, stop_tracing
from stockpredict.predict.answer_table import (
    EXAMPLE_HEADER,
    example_answer,
    pack_table,
    table_signer,
    write_example,
    write_table,
)
from stockpredict.serve.app import create_app
from stockpredict.serve.fast_path import FastPath
from stockpredict.serve.instant import header_lines, instant_answer
from stockpredict.serve.service import Service
from stockpredict.serve.wire import WireConfig, WireServer

READY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", b"ok"
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

CALLER = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def receiver(template):
    "A collector of traces that this process sends to."
    with otlp_receiver() as listening:
        start_tracing(template.with_(**{"traces.endpoint": listening.url, "traces.ratio": 0.0}), "test")
        yield listening
        stop_tracing()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    "The service over a table of 500 tickers; it has no model."
    settings = load_settings(None, {"storage.home": str(tmp_path_factory.mktemp("home"))}, environ={})
    write_example(settings)
    pairs = [(f"T{n:03d}", horizon) for n in range(500) for horizon in (1, 5)]
    bodies = {pair: orjson.dumps(example_answer(*pair))[:-1] for pair in pairs}
    write_table(pack_table(EXAMPLE_HEADER, bodies, table_signer(settings)), settings.storage.serving_dir)
    return create_app(settings)


async def refuse(scope, receive, send):
    raise AssertionError("the application was asked")


def test_a_connection_closes_quietly_after_an_instant_answer():
    problems, answers = [], []

    async def work():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        listener = socket.create_server(("127.0.0.1", 0))
        config = WireConfig(
            refuse, instant=lambda scope: READY, lifespan="off", log_config=None, timeout_graceful_shutdown=2
        )
        server = WireServer(config)
        serving = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        for _ in range(2):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            for _ in range(2):
                writer.write(REQUEST)
                answers.append(await reader.readuntil(b"ok"))
            writer.close()
            while server.server_state.connections:
                await asyncio.sleep(0.01)
        server.should_exit = True
        await serving

    asyncio.run(work())
    assert len(answers) == 4 and all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert problems == []


def test_a_traced_request_is_answered_at_once_and_names_its_trace(template, receiver):
    service = Service(template)
    path = FastPath(None, service)
    scope = {"type": "http", "method": "GET", "path": "/v1/predictions/SIM00", "query_string": b"horizon=1"}
    scope |= {"client": ("127.0.0.1", 9), "http_version": "1.1"}
    headers = [(b"host", b"localhost"), (b"x-request-id", b"walk-3")]
    for caller in (CALLER, CALLER[:-1] + b"0", b"nonsense"):
        head, body = instant_answer(path, scope | {"headers": [*headers, (b"traceparent", caller)]})
        assert head.startswith(b"HTTP/1.1 200") and b'"SIM00"' in body
    flush_traces()
    [span] = receiver.spans
    assert (span.name, span.trace) == ("GET /v1/predictions/{ticker}", CALLER.decode()[3:35])
    assert (span.parent, span.attributes["request_id"]) == (CALLER.decode()[36:52], "walk-3")
    assert span.attributes["http.response.status_code"] == 200
    [exemplar] = service.exemplars.kept.values()
    assert CALLER.decode()[3:35] in exemplar
    service.logs_requests = True  # the line of the log belongs inside the span
    assert instant_answer(path, scope | {"headers": [*headers, (b"traceparent", CALLER)]}) is None


def reads_at_random(draw):
    "A target and its headers: lists in many forms, some of them refused."
    names = [f"T{n:03d}" for n in range(150)]
    asked = draw.sample(names, draw.choice([1, 2, 5, 40, 100]))
    if draw.random() < 0.1:
        asked.append("NOPE")
    if draw.random() < 0.1:
        asked = [name.lower() for name in asked]
    comma = draw.choice([",", ",", "%2C"])
    query = [f"tickers={comma.join(asked)}"] if draw.random() < 0.8 else []
    more = (
        "horizon=1",
        "horizon=5",
        "horizon=7",
        "horizon=x",
        "limit=3",
        "limit=0",
        "limit=1000",
        "horison=1",
    )
    query += draw.sample(more, draw.choice([0, 1, 1, 2]))
    query += draw.choice([[], [], [], ["cursor=T003~000000000000"], ["format=csv"], ["as_of=2022-12-01"]])
    path = draw.choice(["/v1/predictions"] * 8 + ["/v1/predictions/", "/v1/predictions/t001", "/v1/other"])
    headers = [(b"host", b"localhost"), (b"x-request-id", b"walk-%d" % draw.randrange(9))]
    headers += draw.choice([[], [], [(b"accept-encoding", b"gzip")], [(b"accept-encoding", b"zstd, br")]])
    headers += draw.choice([[], [], [(b"accept", b"text/csv")], [(b"accept", b"application/json")]])
    return path, "&".join(query).encode(), headers


def usual_answer(path, scope):
    "What the layer in front of the framework sends by itself; `None` where it asks the framework."
    sent, asked = [], []

    async def framework(scope, receive, send):
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 599, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    inner, path.app = path.app, framework
    asyncio.run(path(scope, None, send))
    path.app = inner
    if asked:
        return None
    start, body = sent
    return STATUS_LINE[start["status"]] + header_lines(start["headers"]), body["body"]


def both_answers(path, scope):
    "A request on both ways; asked again where a second of the clock ended between the two."
    for _ in range(5):
        at_once, usual = instant_answer(path, scope.copy()), usual_answer(path, scope.copy())
        if at_once == usual:
            break
    return at_once, usual


def test_lists_are_answered_at_once_with_the_bytes_of_the_usual_way(wide):
    draw, counts = random.Random(20261201), Counter()
    path, service = wide.entry, wide.state.service
    service.reads.pages.hits = service.reads.pages.misses = 0
    for number in range(600):
        target, query, headers = reads_at_random(draw)
        scope = {"type": "http", "method": "GET", "path": target, "query_string": query, "headers": headers}
        scope |= {"client": ("127.0.0.1", 9), "http_version": "1.1"}
        at_once, usual = both_answers(path, scope)
        assert at_once == usual, (number, target, query)
        counts[at_once[0][9:12] if at_once else "framework"] += 1
        if at_once and at_once[0].startswith(b"HTTP/1.1 200"):
            etag = dict(line.split(b": ", 1) for line in at_once[0].split(b"\r\n")[1:-1])[b"etag"]
            scope["headers"] = [*headers, (b"if-none-match", etag)]
            known, again = both_answers(path, scope)
            assert known == again and known[0].startswith(b"HTTP/1.1 304") and known[1] == b""
    assert counts[b"200"] > 60 and counts["framework"] > 200


def test_a_list_that_needs_the_framework_counts_once(wide, tmp_path):
    shutil.copytree(wide.state.service.settings.storage.home_dir, tmp_path / "home")
    own = {"storage.home": str(tmp_path / "home"), "access.required": "always"}
    settings = load_settings(None, own | {"access.requests_per_minute": 4}, environ={})
    app = create_app(settings)
    key = KeyStore(settings.storage).create(["viewer"])[1].encode()
    statuses, pages = [], app.state.service.reads.pages
    for query in (b"tickers=NOPE", b"tickers=T001", b"limit=900", b"tickers=T001", b"tickers=T001"):
        scope = scope_of("/v1/predictions", query, key)
        if answer := instant_answer(app.entry, scope):
            statuses.append(int(answer[0][9:12]))
        else:
            statuses.append(asyncio.run(status_of(app, scope)))
    assert statuses == [404, 200, 200, 200, 429]
    assert (pages.hits, pages.misses) == (1, 3), "each question is counted once"


def unpacked(head, body):
    "The data of an answer, whatever its encoding; everything is checked to be there."
    encoding = [line[18:] for line in head.split(b"\r\n") if line.startswith(b"content-encoding: ")]
    if encoding == [b"gzip"]:
        body = gzip.decompress(body)
    elif encoding == [b"zstd"]:
        body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return encoding, orjson.loads(body)["data"]


async def answer_of(app, scope):
    "Status, sorted headers and body of what the application sends."
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], sorted(header_lines(sent[0]["headers"]).split(b"\r\n")), body


@pytest.fixture(scope="module")
def locked(wide, tmp_path_factory):
    "The wide service with keys: at once, through the router alone, and the key of a viewer."
    home = tmp_path_factory.mktemp("locked") / "home"
    shutil.copytree(wide.state.service.settings.storage.home_dir, home)
    own = {"storage.home": str(home), "access.required": "always", "access.requests_per_minute": 100_000}
    settings = load_settings(None, own, environ={})
    key = KeyStore(settings.storage).create(["viewer"])[1].encode()
    return create_app(settings), create_app(settings, fast=False), key


def test_keys_and_compression_change_no_byte_between_the_instant_way_and_the_router(locked):
    draw, counts = random.Random(42), Counter()
    app, router, key = locked
    for number in range(500):
        target, query, headers = reads_at_random(draw)
        if draw.random() < 0.2:
            target, query = f"/v1/predictions/T{draw.randrange(520):03d}", draw.choice([b"", b"horizon=5"])
        elif draw.random() < 0.5:
            names = ",".join(f"T{draw.randrange(500):03d}" for _ in range(draw.choice([3, 8, 60, 100])))
            target, query = "/v1/predictions", f"tickers={names}{draw.choice(['', '&horizon=1'])}".encode()
            headers = [*headers[:2], (b"accept-encoding", draw.choice([b"gzip", b"zstd", b"br"]))]
        sent = draw.choice([(b"authorization", b"Bearer " + key)] * 6 + [(b"x-api-key", key)] * 2 + [None])
        sent = draw.choice([(b"authorization", b"Bearer " + key[:-1] + b"x")] + [sent] * 9)
        scope = scope_of(target, query, key)
        scope["headers"] = headers + ([sent] if sent else [])
        for _ in range(5):  # again where a second of the clock ended between the two
            at_once = instant_answer(app.entry, scope.copy())
            if at_once is None:
                break
            usual = asyncio.run(answer_of(router, scope.copy()))
            if usual[2] == at_once[1]:
                break
        allowed = sent is not None and sent[1].endswith(key)
        if at_once is None:
            counts["framework"] += 1
            continue
        assert allowed, "an answer without a valid key"
        status, head = int(at_once[0][9:12]), at_once[0].split(b"\r\n", 1)[1]
        assert (status, sorted(head.split(b"\r\n")), at_once[1]) == usual, (number, target, query)
        encoding, rows = unpacked(*at_once)
        counts[encoding[0] if encoding else "plain"] += 1
        rows = rows if isinstance(rows, list) else [rows]
        pairs = [(row["ticker"], row["horizon"]) for row in rows]
        assert pairs == sorted(set(pairs)) and pairs
    assert min(counts[name] for name in (b"gzip", b"zstd", "plain", "framework")) >= 25


def test_tickers_that_lack_a_horizon_are_answered_as_by_the_router(tmp_path):
    settings = load_settings(None, {"storage.home": str(tmp_path)}, environ={})
    write_example(settings)
    pairs = [(name, horizon) for name in ("AA", "AB", "AC") for horizon in (1, 5)]
    pairs.remove(("AB", 5))
    bodies = {pair: orjson.dumps(example_answer(*pair))[:-1] for pair in pairs}
    write_table(pack_table(EXAMPLE_HEADER, bodies, table_signer(settings)), settings.storage.serving_dir)
    app, router = create_app(settings), create_app(settings, fast=False)
    asked = [
        ("/v1/predictions/AB", b""),
        ("/v1/predictions/AB", b"horizon=5"),
        ("/v1/predictions/AB", b"horizon=1"),
    ]
    asked += [("/v1/predictions", b"tickers=AC,AB" + more) for more in (b"", b"&horizon=1", b"&horizon=5")]
    seen = []
    for target, query in asked:
        scope = scope_of(target, query, b"")
        scope["headers"] = [(b"host", b"localhost"), (b"x-request-id", b"walk-1")]
        answers = [asyncio.run(answer_of(way, scope.copy())) for way in (app, router)]
        assert answers[0][0] == answers[1][0] and answers[0][2] == answers[1][2], (target, query)
        rows = orjson.loads(answers[0][2]).get("data")
        seen.append((answers[0][0], 0 if rows is None else len(rows) if isinstance(rows, list) else 1))
    assert seen == [(200, 1), (404, 0), (200, 1), (200, 3), (200, 2), (404, 0)]


def scope_of(path, query, key):
    "A GET request with a key, as the server describes it."
    headers = [(b"host", b"localhost"), (b"authorization", b"Bearer " + key)]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http"}
    scope |= {"method": "GET", "path": path, "raw_path": path.encode(), "query_string": query}
    scope |= {"headers": headers, "root_path": "", "state": {}}
    return scope | {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}


async def status_of(app, scope):
    "The status that the application answers with."
    statuses = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        statuses.append(message.get("status"))

    await app(scope, receive, send)
    return statuses[0]

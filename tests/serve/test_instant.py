"""A response that is written at once leaves a connection that can be used and closed like any other."""

import asyncio
import socket

import pytest
from otlp import otlp_receiver

from stockpredict.core.traces import flush_traces, start_tracing, stop_tracing
from stockpredict.serve.fast_path import FastPath
from stockpredict.serve.instant import instant_answer
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

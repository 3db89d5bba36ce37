"""Limits, deadlines and smuggling on raw sockets, against one server process with small deadlines."""

import asyncio
import contextlib
import json
import socket
import ssl
import threading

import patience
import pytest

from nginx_edge import self_made_certificate
from served_desk import service_process

HEAD = b"GET /v1/predictions/SIM00?horizon=1 HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def port(whole_service):
    return whole_service[1]


def talk(port, *pieces, tls=None) -> bytes:
    "Everything the server answers to these pieces until it closes."
    with socket.create_connection(("127.0.0.1", port)) as raw:
        s = tls.wrap_socket(raw, server_hostname="localhost") if tls else raw
        try:
            for piece in pieces:
                s.sendall(piece)
        except OSError:
            pass  # it had seen enough
        return rest_of(s)


def rest_of(s) -> bytes:
    "Everything that arrives until the other side closes."
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while part := s.recv(65536):
            answer += part
    return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def code_of(answer: bytes) -> str:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]


def test_a_plain_request_is_answered(port):
    answer = talk(port, HEAD + b"Connection: close\r\n\r\n")
    assert status_of(answer) == 200 and b'"ticker":"SIM00"' in answer


@pytest.mark.parametrize(
    "data, status, code",
    [
        (HEAD + b"".join(b"X-%d: 1\r\n" % i for i in range(20_000)) + b"\r\n", 431, "headers-too-large"),
        (HEAD + b"X-Big: " + b"x" * (5 << 20) + b"\r\n\r\n", 431, "headers-too-large"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "address-too-long"),
        (b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n", 413, "body-too-large"),
        (HEAD, 408, "request-too-slow"),
        (HEAD + b"X-Half: ", 408, "request-too-slow"),
    ],
    ids=["20,000 headers", "5 MB header", "long address", "large body", "half a request", "half a header"],
)
def test_what_goes_beyond_a_limit_is_refused_with_its_status(port, data, status, code):
    answer = talk(port, data)
    assert (status_of(answer), code_of(answer)) == (status, code)
    assert b"connection: close" in answer and answer.count(b"HTTP/1.1") == 1


def test_a_slow_body_ends_in_time(port):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = talk(port, head + b"Content-Length: 100\r\n\r\n", b'{"bars":')
    assert (status_of(answer), code_of(answer)) == (408, "request-too-slow")


def test_a_chunked_body_is_counted_while_it_arrives(port):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    answer = talk(port, head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 40)
    assert status_of(answer) == 413


def test_a_silent_connection_is_closed_without_a_word(port):
    assert talk(port) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nG",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\n12345",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n12345",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\n12345",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET http://evil/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Folded: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\nX-Bare: 1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Null: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
        b"CONNECT evil:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused_once(port, data):
    answer = talk(port, data)
    assert status_of(answer) == 400 and answer.count(b"HTTP/1.1 ") == 1 and b"connection: close" in answer


def test_requests_sent_ahead_are_answered_in_order_and_only_so_many(port):
    def requests(n):
        return b"".join(HEAD + b"X-Request-ID: r%d\r\n\r\n" % i for i in range(n))

    answer = talk(port, requests(5) + HEAD + b"Connection: close\r\n\r\n")
    at = [answer.index(b'"request_id":"r%d"' % i) for i in range(5)]
    assert at == sorted(at) and answer.count(b"HTTP/1.1 200") == 6
    broken = talk(port, requests(2) + b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n")
    assert broken.count(b"HTTP/1.1 200") == 2 and broken.rindex(b"HTTP/1.1 400") > broken.rindex(b'"r1"')


def test_a_trailer_does_not_become_a_header(port):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Request-ID: late\r\n\r\n"
    assert b'"late"' not in talk(port, head + body)


def test_more_connections_than_the_limit_are_told_when_to_come_back(port):
    with contextlib.ExitStack() as stack:
        held_open = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(60)]
        answers = []
        for s in held_open:
            with contextlib.suppress(ConnectionResetError):
                answers.append(s.recv(65536))  # a refusal at once, or nothing when its time is over
    refused = [a for a in answers if a]
    assert refused and all(status_of(a) == 503 and b"retry-after: 1" in a for a in refused)
    assert status_of(talk(port, HEAD + b"Connection: close\r\n\r\n")) == 200


def test_a_connection_whose_answer_had_begun_does_not_hold_up_the_end():
    "The client got no word that the connection ends, so it keeps it open; the server does not wait."
    from stockpredict.serve.server import run_loop
    from stockpredict.serve.wire import WireConfig, WireServer
    from stockpredict.serve.wire_limits import WireLimits

    may_end = threading.Event()

    async def half_and_half(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        await asyncio.to_thread(may_end.wait)
        await send({"type": "http.response.body", "body": b"k"})

    limits, options = WireLimits(idle_seconds=3600), {"lifespan": "off", "log_config": None}
    server = WireServer(WireConfig(half_and_half, limits, timeout_graceful_shutdown=30, **options))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=run_loop, args=(server._serve([listener]),))
    thread.start()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(HEAD + b"\r\n")
        begun = b""
        while not begun.endswith(b"\r\n\r\no"):
            begun += client.recv(65536)
        (connection,) = server.server_state.connections
        server.should_exit = True
        patience.wait_until(lambda: connection.draining, thread)
        may_end.set()
        assert rest_of(client) == b"k" and b"connection: close" not in begun
        thread.join()
    assert not server.server_state.connections  # what was left after 30 s would still be there


def test_the_service_speaks_tls_1_2_and_newer_only(template, tmp_path):
    cert, key = self_made_certificate(tmp_path)
    changes = {"serving.tls_cert": str(cert), "serving.tls_key": str(key), "serving.engine": 0}
    with service_process(template, tmp_path, **changes) as (_, port):
        trusting = ssl.create_default_context(cafile=str(cert))
        assert status_of(talk(port, HEAD + b"Connection: close\r\n\r\n", tls=trusting)) == 200
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, OSError)):
            talk(port, HEAD, tls=old)
        assert not talk(port, HEAD + b"\r\n").startswith(b"HTTP/1.1 200")  # plain text on the same port

"""The edge of `deploy/nginx` in front of a real service."""

import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import httpx
import patience
import psutil
import pytest
from websockets.sync.client import connect

from stockpredict.client.client_updates import EventReader

from nginx_edge import FILES, Edge, nginx_program
from served_desk import build_settings, free_port, service_process
from .test_updates import serve_another
from .test_wire import rest_of, status_of, talk

HEAD = b"GET /v1/predictions/SIM00?horizon=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


@contextlib.contextmanager
def nginx(folder, upstream, head_seconds=10, body_seconds=10):
    "The edge as it stands in deploy, with ports and paths of this test; yields its ports, TLS and plain."
    if not nginx_program():
        why = "nginx is not installed; run .ci/services"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    changes = {
        "client_header_timeout 10s": f"client_header_timeout {head_seconds}s",
        "client_body_timeout 10s": f"client_body_timeout {body_seconds}s",
    }
    with Edge(folder, (free_port(), free_port()), [upstream] * 2, changes=changes) as edge:
        yield edge.secure, edge.plain, edge.cert


@pytest.fixture(scope="module")
def edge_settings(template, tmp_path_factory):
    "Settings of a service that needs keys, with a home of its own."
    folder = tmp_path_factory.mktemp("edge")
    shutil.copytree(template.storage.home_dir, folder / "home")
    return build_settings(folder / "home", **{"access.required": "always"})


@pytest.fixture(scope="module")
def edge(edge_settings):
    "nginx, a service that needs keys, and a key: port, plain port, trusting TLS context, key, service."
    from stockpredict.access.keys import KeyStore

    folder = edge_settings.storage.home_dir.parent
    key = KeyStore(edge_settings.storage).create(["viewer"], "edge")[1].encode()
    changes = {"serving.engine": 0, "serving.edges": "127.0.0.0/8"}
    with service_process(edge_settings, folder, **changes) as (process, port):
        with nginx(folder, port, head_seconds=1, body_seconds=2) as (secure, plain, cert):
            yield secure, plain, ssl.create_default_context(cafile=str(cert)), key, process


def with_key(key):
    return HEAD + b"Authorization: Bearer " + key + b"\r\n\r\n"


def test_a_prediction_comes_through_the_edge(edge):
    secure, _, tls, key, _ = edge
    answer = talk(secure, with_key(key), tls=tls)
    assert status_of(answer) == 200 and b'"ticker":"SIM00"' in answer
    assert b"Strict-Transport-Security: max-age" in answer and b"x-content-type-options: nosniff" in answer
    assert b"nginx/" not in answer and answer.count(b"Strict-Transport-Security") == 1
    once = b"x-content-type-options:", b"content-security-policy:", b"referrer-policy:"
    assert [answer.lower().count(name) for name in once] == [1, 1, 1]


def test_what_the_edge_answers_itself_is_locked_down_too(edge):
    secure, _, tls, _, _ = edge
    large = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99000000\r\n\r\n"
    answer = talk(secure, large, tls=tls)
    assert status_of(answer) == 413 and b"default-src 'none'" in answer
    once = b"x-content-type-options: nosniff", b"content-security-policy:", b"referrer-policy: no-referrer"
    assert [answer.lower().count(name) for name in once] == [1, 1, 1]


def test_the_edge_does_not_replace_the_key(edge):
    secure, _, tls, _, _ = edge
    assert status_of(talk(secure, HEAD + b"\r\n", tls=tls)) == 401
    local = HEAD + b"X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\n\r\n"
    assert status_of(talk(secure, local, tls=tls)) == 401


def test_http_2_and_compression(edge):
    secure, _, _, key, _ = edge
    url = f"https://localhost:{secure}/v1/predictions"
    asked = ["curl", "-sk", "--http2", "-H", f"Authorization: Bearer {key.decode()}"]
    asked += ["-H", "Accept-Encoding: gzip", "-D", "-", "-o", "/dev/null"]
    done = subprocess.run([*asked, url], stdout=subprocess.PIPE)
    head = done.stdout.lower()
    assert head.startswith(b"http/2 200") and b"content-encoding: gzip" in head and b"vary: " in head


def test_updates_pass_the_edge_while_they_happen(edge, edge_settings):
    "An event stream and a WebSocket: complete at once, then only what changed, before either is closed."
    secure, _, tls, key, _ = edge
    bearer = {"authorization": f"Bearer {key.decode()}"}
    place, wanted = f"//localhost:{secure}/v1", "?tickers=SIM00&horizon=1"
    stream = httpx.stream("GET", f"https:{place}/stream{wanted}", headers=bearer, verify=tls, timeout=None)
    socket_of = connect(f"wss:{place}/ws{wanted}", ssl=tls, additional_headers=bearer)
    with stream as answer, socket_of as channel:
        assert answer.status_code == 200 and "content-encoding" not in answer.headers
        reader = EventReader()
        events = (event for data in answer.iter_bytes() for event in reader.feed(data))
        first, message = json.loads(next(events)["data"]), json.loads(channel.recv())
        assert first["complete"] and message["data"] == first
        serve_another(edge_settings, "through-the-edge", SIM00=0.625)
        second, message = json.loads(next(events)["data"]), json.loads(channel.recv())
        assert (second["complete"], second["forecasts"][0]["p_up"]) == (False, 0.625)
        assert message["data"] == second and second["table"] == "through-the-edge"
    assert httpx.get(f"https:{place}/stream", verify=tls).status_code == 401


def test_plain_http_is_sent_to_tls_and_never_to_another_host(edge):
    _, plain, _, _, _ = edge
    answer = talk(plain, b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert status_of(answer) == 308 and b"Location: https://forecasts.example/x" in answer
    evil = talk(plain, b"GET /x HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert b"evil.example" not in evil


def test_old_tls_and_foreign_names_are_refused(edge):
    secure, _, _, _, _ = edge
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2):
        old.minimum_version = old.maximum_version = version
        with pytest.raises((ssl.SSLError, OSError)):
            talk(secure, HEAD, tls=old)
    any_name = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    any_name.check_hostname, any_name.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", secure)) as raw, pytest.raises((ssl.SSLError, OSError)):
        any_name.wrap_socket(raw, server_hostname="evil.example")


@pytest.mark.parametrize(
    "data",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /e HTTP/1.1\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"Content-Length: 3, 3\r\n\r\nabc",
        b"Host: evil\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_request_in_a_request_does_not_pass_the_edge(edge, data):
    secure, _, tls, _, process = edge
    answer = talk(secure, b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n" + data, tls=tls)
    assert 400 <= status_of(answer) <= 501 and answer.count(b"HTTP/1.1 ") == 1
    assert process.poll() is None


def test_slow_clients_end_at_the_edge(edge):
    "The log tells the order: heads that began before a body end before it, as their time is shorter."
    secure, plain, tls, _, process = edge
    silent, half = (socket.create_connection(("127.0.0.1", port)) for port in (secure, plain))
    with silent, half, socket.create_connection(("127.0.0.1", secure)) as raw:
        half_tls = tls.wrap_socket(raw, server_hostname="localhost")
        half.sendall(HEAD)
        half_tls.sendall(HEAD)
        slow = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n12"
        answers = [talk(secure, slow, tls=tls), rest_of(half_tls), rest_of(half), rest_of(silent)]
    assert all(status_of(answer) in (0, 408) for answer in answers)
    log = (Path(psutil.Process(process.pid).cwd()) / "access.log").read_text()
    assert re.findall(r'"(\w+) .*?" 408 ', log) == ["GET", "GET", "POST"]


def test_oversized_clients_end_at_the_edge(edge):
    secure, _, tls, key, _ = edge
    big = HEAD + b"X-Big: " + b"x" * 200_000 + b"\r\n\r\n"
    assert status_of(talk(secure, big, tls=tls)) in (400, 431)
    many = HEAD + b"".join(b"X-%d: 1\r\n" % i for i in range(2000)) + b"\r\n"
    assert status_of(talk(secure, many, tls=tls)) in (400, 431)
    assert status_of(talk(secure, with_key(key), tls=tls)) == 200


def test_the_caller_is_who_the_edge_saw_and_a_dead_service_is_said(tmp_path):
    "A stand-in for the service notes the headers that reach it."
    seen, listener = [], socket.create_server(("127.0.0.1", 0))

    def answer():
        with listener.accept()[0] as s:
            seen.append(s.recv(65536))
            s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        listener.close()

    thread = threading.Thread(target=answer)
    thread.start()
    with nginx(tmp_path, listener.getsockname()[1]) as (secure, _, cert):
        tls = ssl.create_default_context(cafile=str(cert))
        lies = b"X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX_Evil: 1\r\n"
        assert status_of(talk(secure, HEAD + lies + b"\r\n", tls=tls)) == 200
        thread.join()
        assert b"X-Forwarded-For: 127.0.0.1\r\n" in seen[0]
        assert b"6.6.6.6" not in seen[0] and b"X_Evil" not in seen[0]
        away = talk(secure, HEAD + b"\r\n", tls=tls)
        assert status_of(away) == 503 and b"Retry-After: 2" in away
        assert json.loads(away.partition(b"\r\n\r\n")[2])["error"]["code"] == "not-ready"


def port_behind(process) -> int:
    settings = Path(psutil.Process(process.pid).cwd(), "served.ini").read_text()
    return int(re.search(r"\nport = (\d+)", settings)[1])


def test_a_network_of_edges_is_believed(edge, edge_settings):
    "In a cluster an edge has a new address every day; the audit log tells whom the service saw."
    from stockpredict.access.audit_search import search_audit

    key, process = edge[3:]
    forwarded = with_key(key).replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n")
    assert status_of(talk(port_behind(process), forwarded)) == 200
    seen = patience.wait_until(lambda: list(search_audit(edge_settings, address="203.0.113.9")), process)
    assert [entry["status"] for entry in seen] == [200]


def readers_of_the_edge(path, query, accept):
    "Does the edge hand this request to the readers, by its map and its locations?"
    text = (FILES / "stockpredict.conf").read_text()
    lines = re.search(r"\$stockpredict_upstream {\n(.*?)\n}", text, re.S)[1]
    rules = re.findall(r'"~(.*)" stockpredict_(\w+);', lines)
    streams = re.search(r"location ~ (\S+) {\n\s+proxy_pass http://stockpredict_readers;", text)[1]
    if re.search(streams, path):
        return True
    key = f"{path}?{query} {accept}"
    return next((name for rule, name in rules if re.search(rule, key)), "engine") == "readers"


@pytest.mark.parametrize("accept", ["", "application/json", "application/vnd.apache.parquet", "x/arrow"])
@pytest.mark.parametrize("query", ["", "horizon=1", "as_of=2022-12-28", "horizon=1&format=csv"])
def test_the_edge_and_the_service_agree_on_what_a_reader_can_answer(query, accept):
    from stockpredict.access.permissions import TABLE
    from stockpredict.serve.engine_link import needs_engine

    for method, route in TABLE:
        path = re.sub("{.*?}", "AAPL", route)
        kind = "websocket" if method == "WEBSOCKET" else "http"
        scope = {"type": kind, "path": path, "query_string": query.encode()}
        scope["header_map"] = {b"accept": accept.encode()}
        stored = path.startswith(("/v1/predictions", "/v1/stream", "/v1/ws"))
        assert readers_of_the_edge(path, query, accept) == (stored and not needs_engine(scope)), route


def test_a_replica_that_is_away_is_passed_over(edge, tmp_path):
    "Two of three replicas refuse connections, and every question is answered, also a what-if."
    key, process = edge[3:]
    ports = [free_port(), free_port(), port_behind(process)]
    with Edge(tmp_path, (free_port(), free_port()), ports) as front:
        tls = ssl.create_default_context(cafile=str(front.cert))
        answers = [talk(front.secure, with_key(key), tls=tls) for _ in range(6)]
        assert [status_of(answer) for answer in answers] == [200] * 6
        what_if = with_key(key).replace(b"GET /v1/predictions/SIM00?horizon=1", b"POST /v1/predict")
        what_if = what_if.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n{}")
        for _ in range(3):  # the service says so, not the edge
            asked = talk(front.secure, what_if, tls=tls)
            assert b"This service only reads stored forecasts" in asked

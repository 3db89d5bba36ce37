"""A real server process on a spare loopback port."""

import concurrent.futures as cf
import signal
import socket
import threading
import time

import httpx
import patience
import pytest

from stockpredict.core.errors import NotReady, RequestInvalid, UnknownHorizon, UnknownTicker
from stockpredict.client.client import Client, ServiceUnreachable

from served_desk import free_port, uvicorn_process


@pytest.fixture(scope="module")
def server(template, tmp_path_factory):
    with uvicorn_process(template, tmp_path_factory.mktemp("server")) as process_and_url:
        yield process_and_url


def test_ready_after_five_seconds_of_computing(server):
    assert server[2] < 5


def test_the_client_reads_stored_forecasts(server):
    with Client(server[1]) as client:
        one, both = client.predict("sim00", horizon=1), client.predict("SIM00")
        assert one.ticker == "SIM00" and [p.horizon for p in both] == [1, 5] and both[0] == one
        everyone = client.universe(horizon=5)
        assert len(everyone) == len({p.ticker for p in everyone}) > 5
        assert client.models()["champion"]["version"] == 1
        with pytest.raises(UnknownTicker, match="Did you mean"):
            client.predict("SIM0")
        with pytest.raises(UnknownHorizon, match="1, 5"):
            client.predict("SIM00", horizon=2)
        with pytest.raises(RequestInvalid):
            client.predict("';DROP TABLE")


def test_the_client_forecasts_a_frame_of_bars(server, template):
    import pandas as pd

    from stockpredict.predict.engine import Engine

    engine = Engine(template)
    bars = engine.window().bars
    mine = bars[bars.ticker == "SIM01"]
    frame = mine.assign(date=mine.event_time.dt.date)[["date", "open", "high", "low", "close", "volume"]]
    with Client(server[1], timeout=60) as client:  # the first what-if loads the engine
        stored, response = (
            client.predict("SIM01", horizon=1),
            client.what_if(frame, ticker="SIM01", horizon=1),
        )
        assert response.quantiles == stored.quantiles and response.source == "caller"
        indexed = pd.DataFrame(
            {"close": mine.close.to_numpy()}, index=pd.DatetimeIndex(mine.event_time.dt.date)
        )
        assert [p.horizon for p in client.what_if(indexed)] == [1, 5]


def test_a_service_that_is_not_there(server):
    with pytest.raises(ServiceUnreachable, match="stockpredict serve"):
        Client(f"http://127.0.0.1:{free_port()}").predict("AAPL")


def test_the_client_waits_as_long_as_requested_and_gives_up_in_time():
    seen = []

    def answer(request):
        seen.append(time.monotonic())
        error = {"code": "not-ready", "message": "No.", "fix": "Wait."}
        return httpx.Response(
            503, headers={"retry-after": "0" if len(seen) < 3 else "99"}, json={"error": error}
        )

    with pytest.raises(NotReady):
        Client("http://x", transport=httpx.MockTransport(answer)).predict("AAPL")
    assert len(seen) == 3
    with pytest.raises(Exception, match="not the prediction service"):
        Client(
            "http://x", transport=httpx.MockTransport(lambda r: httpx.Response(404, text="<html>"))
        ).predict("AAPL")


def test_many_readers_at_once(server):
    def read(i):
        with httpx.Client(base_url=server[1]) as c:

            def same_id(rid):
                return (
                    c.get(f"/v1/predictions/SIM0{i % 5}?horizon=1", headers={"x-request-id": rid}).json()[
                        "metadata"
                    ]["request_id"]
                    == rid
                )

            return {same_id(f"r{i}-{k}") for k in range(50)}

    with cf.ThreadPoolExecutor(8) as pool:
        assert set.union(*pool.map(read, range(16))) == {True}


def raw_request(url, data: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as s:
        s.sendall(data)
        s.settimeout(5)
        response = b""
        while part := s.recv(65536):
            response += part
        return response


@pytest.mark.parametrize(
    "path",
    [
        "/reports/../../../../etc/passwd",
        "/reports/%2e%2e/%2e%2e/etc/passwd",
        "/v1/predictions/..%2f..%2fetc",
        "//etc/passwd",
        "/assets/../settings.ini",
    ],
)
def test_raw_paths_a_polite_client_would_not_send(server, path):
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    response = raw_request(server[1], request.encode())
    assert (
        response.split(b" ", 2)[1] in (b"404", b"422")
        and b"root:" not in response
        and b"[storage]" not in response
    )


def test_broken_http_is_refused_and_the_server_lives(server):
    lengths = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    smuggled = b"GET /health HTTP/1.1\r\nHost: x\r\n" + lengths + b"Connection: close\r\n\r\n0\r\n\r\nGET /"
    for junk in (b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", smuggled):
        try:
            response = raw_request(server[1], junk)
        except TimeoutError:
            continue
        assert b" 200 " not in response.split(b"\r\n")[0] or response.count(b"HTTP/1.1") == 1
    assert httpx.get(server[1] + "/health").status_code == 200


def test_stopped_under_load_it_finishes_the_requests_under_way(template, tmp_path):
    "SIGTERM while eight readers are busy: no 5xx, no broken answer, gone within 30 s."
    with uvicorn_process(template, tmp_path) as (process, url, _):
        bad, good, stop = [], [], threading.Event()

        def read():
            while not stop.is_set():
                try:
                    with httpx.Client(base_url=url) as c:
                        for _ in range(20):
                            r = c.get("/v1/predictions/SIM00?horizon=1")
                            (good if r.status_code == 200 and r.json()["success"] else bad).append(
                                r.status_code
                            )
                except httpx.ConnectError:
                    return
                except httpx.TransportError as error:
                    if process.poll() is None and not stopping:
                        bad.append(repr(error))
                    return

        stopping = False
        readers = [threading.Thread(target=read) for _ in range(8)]
        for r in readers:
            r.start()
        while len(good) < 200:
            time.sleep(0.01)
        stopping = True
        process.send_signal(signal.SIGTERM)
        patience.wait_until(lambda: process.poll() is not None, process)
        stop.set()
        for r in readers:
            r.join()
        assert bad == [] and process.returncode in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_two_workers_share_one_table(template, tmp_path):
    with uvicorn_process(template, tmp_path, "--workers", "2") as (_, url, _):
        tags = {httpx.get(url + "/v1/predictions/SIM00?horizon=1").headers["etag"] for _ in range(30)}
        assert len(tags) == 1


def test_a_taken_port_is_reported(template):
    from stockpredict.serve.workers import serve

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(NotReady, match=r"serving\.port"):
        serve(template.with_(**{"serving.port": taken.getsockname()[1]}))

"""Both clients: what they send, what they keep, and what they import."""

import asyncio
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import patience
import pytest

from stockpredict.core.errors import RequestInvalid, ServeError, UnknownTicker
from stockpredict.client.async_client import AsyncClient
from stockpredict.client.client import Client


@pytest.fixture
def asked(served, template, run):
    "Run questions of an asynchronous client against the application."

    def ask(questions):
        async def go():
            async with served(template) as http:
                client = AsyncClient("http://127.0.0.1", transport=http._transport)
                return await questions(client)

        return run(go())

    return ask


def test_the_asynchronous_client_reads_what_is_stored(asked):
    async def questions(client):
        one, both = await asyncio.gather(client.predict("sim00", 1), client.predict("SIM00"))
        assert one == both[0] and [p.horizon for p in both] == [1, 5]
        assert await client.predict("sim00", 1) == one and client.answers.hits == 1
        everyone = await client.universe(5)
        assert len(everyone) == len({p.ticker for p in everyone}) > 5
        with pytest.raises(UnknownTicker, match="Did you mean"):
            await client.predict("SIM0")
        with pytest.raises(RequestInvalid):
            await client.predict("';DROP TABLE")

    asked(questions)


def test_a_frame_holds_the_numbers_of_the_predictions(asked):
    async def questions(client):
        frame, everyone = await client.frame(horizon=5), await client.universe(5)
        assert list(frame.ticker) == [p.ticker for p in everyone]
        assert list(frame["q0.95"]) == [p.quantiles["0.95"] for p in everyone]
        assert list(frame.volatility_daily) == [p.volatility.daily for p in everyone]
        assert set(frame.staleness_state) == {everyone[0].staleness.state}
        two = await client.frame(tickers=["SIM01", "SIM00"])
        assert list(two.ticker) == ["SIM00", "SIM00", "SIM01", "SIM01"] and list(two.horizon) == [1, 5, 1, 5]

    asked(questions)


class Redirecting(BaseHTTPRequestHandler):
    "A server that sends every request to another one, and remembers what it was sent."

    elsewhere, seen = "", []

    def do_GET(self):
        Redirecting.seen.append((self.server.server_port, self.headers.get("authorization")))
        self.send_response(307 if self.server.server_port != int(self.elsewhere.rsplit(":", 1)[1]) else 200)
        self.send_header("location", self.elsewhere + self.path)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_key_stays_with_the_address_it_was_given_for(monkeypatch):
    servers = [HTTPServer(("127.0.0.1", 0), Redirecting) for _ in range(2)]
    own, other = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    monkeypatch.setattr(Redirecting, "elsewhere", other)
    monkeypatch.setattr(Redirecting, "seen", [])
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STOCKPREDICT_API_KEY", "sp_from_the_environment")
    try:
        with Client(own) as client, pytest.raises(ServeError, match="nothing was sent there"):
            client.models()
        assert Redirecting.seen == [(servers[0].server_port, "Bearer sp_from_the_environment")]
        with Client(own, api_key="") as client, pytest.raises(ServeError):
            client.models()
        assert Redirecting.seen[1][1] is None
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def test_no_error_and_no_text_of_a_client_shows_its_key():
    def broken(request):
        raise httpx.ReadTimeout("Bearer sp_secret", request=request)

    client = Client(api_key="sp_secret", retries=0, transport=httpx.MockTransport(broken))
    with pytest.raises(ServeError) as refused:
        client.models()
    assert "sp_secret" not in f"{client!r} {client.rules} {refused.value} {refused.value.as_dict()}"


def test_the_clients_import_neither_pandas_nor_a_server():
    heavy = ("torch", "numpy", "pandas", "pyarrow", "duckdb", "fastapi", "uvicorn", "matplotlib")
    code = f"""import sys, stockpredict as sp
sp.Client, sp.AsyncClient
print([m for m in {heavy} if m in sys.modules])"""
    assert patience.run([sys.executable, "-c", code]).stdout.strip() == "[]"

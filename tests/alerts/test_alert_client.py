"""Alert rules and the scoreboard through both clients, against the whole application."""

import asyncio
import json

import httpx
import pytest
from served_desk import Served, build_settings, fill_lake
from sinks import webhook

from stockpredict.access.keys import KeyStore
from stockpredict.alerts.alert_records import AlertExists, AlertNotFound, AlertRuleInvalid
from stockpredict.alerts.alert_session import evaluate_alerts
from stockpredict.alerts.alert_store import AlertStore
from stockpredict.alerts.channels import add_channel
from stockpredict.client.async_client import AsyncClient
from stockpredict.client.client import Client
from stockpredict.core.errors import NotFound, RequestInvalid
from stockpredict.sources.simulate import simulate
from stockpredict.sources.source import source_id

MOVE = {"tickers": ["SIM0"], "params": {"percent": 0.5}, "channels": ["desk"], "cooldown": 0}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "A lake of a small market, one channel that takes everything, and the keys of two callers."
    with webhook() as sink:
        place = tmp_path_factory.mktemp("alerts")
        more = {"access.required": "always", "alerts.allow_hosts": sink.place, "access.changes_per_minute": 0}
        settings = build_settings(place, **more)
        bars = simulate("realistic", tickers=3, sessions=400, seed=4).bars
        fill_lake(settings, bars.assign(source=source_id(settings)))
        add_channel(settings, "desk", f"http://{sink.place}/taken/SECRETdesk")
        store = KeyStore(settings.storage)
        yield settings, [store.create(["analyst"])[1] for _ in range(2)]


@pytest.fixture
def client(desk):
    "A blocking client with the first key."
    settings, keys = desk

    def carry(request):
        async def ask():
            async with Served(settings) as http:
                answer = await http._transport.handle_async_request(request)
                return httpx.Response(
                    answer.status_code, headers=answer.headers, content=await answer.aread()
                )

        return asyncio.run(ask())

    with Client(
        "http://127.0.0.1", api_key=keys[0], retries=0, transport=httpx.MockTransport(carry)
    ) as connected:
        yield connected


def test_the_life_of_a_rule(client, desk):
    tried = client.create_alert("move", dry_run=True, **MOVE)
    assert tried.id == "" and client.alerts() == []
    saved = client.create_alert("move", **MOVE, key="once")
    assert saved.history == tried.history and saved.history.rings > 0 and saved.channels == ["desk"]
    assert client.create_alert("move", **MOVE, key="once").id == saved.id  # sent again, saved once
    assert [card.id for card in client.alerts()] == [saved.id] == [client.alert(saved.id).id]
    assert [(t.channel, t.sent) for t in client.test_alert(saved.id)] == [("desk", True)]
    calmer = client.change_alert(saved.id, params={"percent": 3.0})
    assert calmer.history.rings < saved.history.rings and calmer.severity == saved.severity
    client.change_alert(saved.id, params={"percent": 0.0001})
    AlertStore(desk[0].storage).update(saved.id, created_session="2001-01-02")
    evaluate_alerts(desk[0])
    event = client.alert_events(saved.id)[0]
    assert (event.symbol, event.type, event.acknowledged) == ("SIM0", "move", {}) and event.current_price > 0
    seen = client.acknowledge_alert(saved.id, event.id)
    assert (seen.event, client.alert_events(saved.id)[0].acknowledged["by"]) == (event.id, seen.by)
    assert client.remove_alert(saved.id).id == saved.id and client.alerts() == []


def test_refusals_are_the_errors_of_the_platform(client):
    assert "move" in {kind.name for kind in client.alert_kinds()}
    with pytest.raises(AlertRuleInvalid):
        client.create_alert("move", ["SIM0"], {"percent": -1.0})
    with pytest.raises(RequestInvalid, match="url"):
        client.create_alert("move", ["SIM0"], {"percent": 1.0}, url="http://127.0.0.1/")
    saved = client.create_alert("move", **MOVE)
    with pytest.raises(AlertExists):
        client.create_alert("move", **MOVE)
    client.remove_alert(saved.id)
    with pytest.raises(AlertNotFound):
        client.alert(saved.id)


def test_the_asynchronous_client_does_the_same_and_sees_no_foreign_rule(client, desk):
    saved = client.create_alert("move", **MOVE | {"params": {"percent": 2.0}})

    async def questions():
        async with Served(desk[0]) as http:
            own, other = (AsyncClient("http://127.0.0.1", key, transport=http._transport) for key in desk[1])
            one, rules, foreign = await asyncio.gather(own.alert(saved.id), own.alerts(), other.alerts())
            assert (one.id, [r.id for r in rules], foreign) == (saved.id, [saved.id], [])
            with pytest.raises(AlertNotFound):
                await other.change_alert(saved.id, active=False)
            assert (await own.change_alert(saved.id, active=False)).active is False
            assert (await own.remove_alert(saved.id)).id == saved.id

    asyncio.run(questions())


LINE = {
    "version": 0,
    "model": "every version",
    "artifact": "",
    "role": "champion",
    "slice": "all",
    "part": "all",
}
LINE |= {"measure": "inside_90", "value": 0.8912345678901234, "low": 0.86, "high": 0.92, "target": 0.9}
LINE |= {"word": "as stated", "sessions": 61, "cells": 976, "first": "2024-06-03", "last": "2024-08-30"}
LINES = [LINE | {"horizon": h, "version": v, "kind": "betting"} for h in (1, 5) for v in (0, 2)]


def test_the_scoreboard_is_read_to_the_last_digit(client, desk):
    with pytest.raises(NotFound):
        client.scoreboard()
    board = {"verdict": "As stated.", "pending": "", "until": "2024-09-03", "lines": LINES, "gap": []}
    board |= {"path": {"1": []}, "notes": [], "at": "2024-09-03T21:00:00+00:00"}
    file = desk[0].storage.serving_dir / "scoreboard.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(board))
    try:
        whole = client.scoreboard()
        assert whole.model_dump() == board
        assert client.scoreboard() == whole and client.answers.hits == 1
        assert [(x.version, x.horizon) for x in client.scoreboard(2, 5).lines] == [(2, 5)]
    finally:
        file.unlink()

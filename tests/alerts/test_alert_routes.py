"""Alerts over HTTP, on the page and from the shell: each caller's own, tried before they are saved."""

import asyncio
import json
import sys
from types import SimpleNamespace

import pytest
from served_desk import Served, build_settings, fill_lake
from sinks import webhook
from typer.testing import CliRunner

from stockpredict.access.keys import KeyStore
from stockpredict.alerts.alert_session import evaluate_alerts
from stockpredict.alerts.alert_store import AlertStore
from stockpredict.alerts.channels import add_channel
from stockpredict.alerts.outbox import Outbox
from stockpredict.alerts.sending import send_due
from stockpredict.cli.main import app
from stockpredict.serve.alert_routes import alert_health, alert_loop
from stockpredict.sources.simulate import simulate
from stockpredict.sources.source import source_id

MOVE = {"kind": "move", "tickers": ["SIM0"], "params": {"percent": 0.5}, "channels": ["desk"], "cooldown": 0}


@pytest.fixture(scope="module")
def sink():
    with webhook() as listening:
        yield listening


@pytest.fixture(scope="module")
def home(tmp_path_factory, sink):
    "A lake of a small market, two channels, and a service that asks every caller for a key."
    place = tmp_path_factory.mktemp("alerts")
    more = {"access.required": "always", "alerts.allow_hosts": sink.place, "access.changes_per_minute": 0}
    settings = build_settings(place, **more, **{"alerts.rules_per_caller": 3})
    bars = simulate("realistic", tickers=3, sessions=400, seed=4).bars
    fill_lake(settings, bars.assign(source=source_id(settings)))
    add_channel(settings, "desk", f"http://{sink.place}/taken/SECRETdesk")
    add_channel(settings, "broken", f"http://{sink.place}/fails/SECRETbroken")
    store = KeyStore(settings.storage)
    return settings, {name: store.create([role])[1] for name, role in CALLERS.items()}


CALLERS = {"anna": "analyst", "ben": "analyst", "vera": "viewer", "olga": "admin"}


@pytest.fixture
def ask(home):
    "Function that sends requests, one after the other, each as one of the callers."
    settings, keys = home

    def send(*requests):
        async def go():
            async with Served(settings) as client:
                answers = []
                for who, method, path, *body in requests:
                    options = {"headers": {"authorization": f"Bearer {keys[who]}"}}
                    options |= {"json": body[0]} if body else {}
                    answers.append(await client.request(method, path, **options))
                return answers

        answers = asyncio.run(go())
        return answers if len(answers) > 1 else answers[0]

    return send


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture
def rule(ask):
    "A rule of Anna, removed at the end."
    saved = ask(("anna", "POST", "/v1/alerts", MOVE))
    assert saved.status_code == 201, saved.text
    yield saved.json()["data"]["id"]
    ask(("anna", "DELETE", f"/v1/alerts/{saved.json()['data']['id']}"))


def rung(home, rule):
    "Let the rule ring on the newest session, and return its event."
    AlertStore(home[0].storage).update(rule, created_session="2001-01-02")
    evaluate_alerts(home[0])
    events = [event for _, event in AlertStore(home[0].storage).events(rule=rule, newest_first=True)]
    assert events
    return events[0].id


def test_a_rule_is_tried_saved_changed_and_removed(ask, home):
    tried, listed, saved = ask(
        ("anna", "POST", "/v1/alerts?dry_run=true", MOVE),
        ("anna", "GET", "/v1/alerts"),
        ("anna", "POST", "/v1/alerts", MOVE),
    )
    assert (tried.status_code, listed.json()["data"], saved.status_code) == (200, [], 201)
    assert tried.json()["data"]["id"] == "" and tried.json()["data"]["history"]["rings"] > 0
    card = saved.json()["data"]
    assert card["history"] == tried.json()["data"]["history"]
    assert f"It would have rung {card['history']['rings']} times" in card["history"]["sentence"]
    path = f"/v1/alerts/{card['id']}"
    assert saved.headers["location"] == path
    changed, calmer, one, gone, after = ask(
        ("anna", "PATCH", path, {"active": False}),
        ("anna", "PATCH", path, {"params": {"percent": 3.0}}),
        ("anna", "GET", path),
        ("anna", "DELETE", path),
        ("anna", "GET", path),
    )
    assert (changed.json()["data"]["active"], changed.json()["data"]["history"]) == (False, {})
    assert calmer.json()["data"]["history"]["rings"] < card["history"]["rings"]
    assert one.json()["data"]["params"]["percent"] == 3.0 and gone.status_code == 200
    assert code(after) == (404, "alert-not-found")


def test_the_rule_of_another_caller_is_absent_on_every_route(ask, home, rule):
    event = rung(home, rule)
    path = f"/v1/alerts/{rule}"
    attempts = [
        ("GET", path),
        ("GET", f"{path}/events"),
        ("PATCH", path, {"active": False}),
        ("POST", f"{path}/test"),
        ("POST", f"{path}/events/{event}/acknowledge"),
        ("DELETE", path),
    ]
    answers = ask(*[("ben", *attempt) for attempt in attempts], ("ben", "GET", "/v1/alerts"))
    assert {code(answer) for answer in answers[:-1]} == {(404, "alert-not-found")}
    invented = ask(*[("ben", m, p.replace(rule, "r-000000000000"), *b) for m, p, *b in attempts])
    apart = ("request_id", "timestamp")
    for real, other in zip(answers, invented, strict=False):
        texts = [
            {k: str(v).replace(name, "") for k, v in answer.json()["error"].items() if k not in apart}
            for answer, name in ((real, rule), (other, "r-000000000000"))
        ]
        assert texts[0] == texts[1], "a foreign id is answered like an invented one"
    assert answers[-1].json()["data"] == []
    mine = ask(("ben", "POST", "/v1/alerts", MOVE)).json()["data"]["id"]
    crossed = ask(("ben", "POST", f"/v1/alerts/{mine}/events/{event}/acknowledge"))
    assert code(crossed) == (404, "alert-not-found"), "an own rule opens no foreign event"
    seen, page = ask(("olga", "GET", "/v1/alerts"), ("ben", "GET", "/alerts"))
    assert {card["id"] for card in seen.json()["data"]} == {rule, mine}
    assert rule not in page.text and mine in page.text
    ask(("ben", "DELETE", f"/v1/alerts/{mine}"))


def test_who_reads_may_acknowledge_and_not_save(ask, rule):
    saved, listed, page = ask(
        ("vera", "POST", "/v1/alerts", MOVE), ("vera", "GET", "/v1/alerts"), ("vera", "GET", "/alerts")
    )
    assert code(saved) == (403, "permission-missing")
    assert (listed.json()["data"], page.status_code) == ([], 200)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (MOVE | {"kind": "mvoe"}, 404, "unknown-name"),
        (MOVE | {"params": {"percent": -3}}, 422, "alert-rule-invalid"),
        (MOVE | {"params": {}}, 422, "alert-rule-invalid"),
        (MOVE | {"tickers": ["NOSUCH"]}, 404, "unknown-ticker"),
        (MOVE | {"channels": ["desc"]}, 422, "channel-unknown"),
        (MOVE | {"channels": ["http://127.0.0.1/"]}, 422, "request-invalid"),
        (MOVE | {"url": "http://127.0.0.1/"}, 422, "request-invalid"),
        (MOVE | {"owner": "key:other"}, 422, "request-invalid"),
        (MOVE | {"quiet": "25:00-07:00"}, 422, "alert-rule-invalid"),
        (MOVE | {"delivery": {"escalate_minutes": 5}}, 422, "alert-rule-invalid"),
    ],
)
def test_an_impossible_rule_is_a_sentence_with_a_code(ask, home, body, status, named):
    before = AlertStore(home[0].storage).rules()
    assert code(ask(("anna", "POST", "/v1/alerts", body))) == (status, named)
    assert AlertStore(home[0].storage).rules() == before


def test_a_caller_keeps_as_many_rules_as_the_settings_allow(ask):
    bodies = [MOVE | {"params": {"percent": float(percent)}} for percent in (1, 2, 3, 4)]
    answers = ask(*[("ben", "POST", "/v1/alerts", body) for body in bodies])
    assert [a.status_code for a in answers[:3]] == [201] * 3
    assert code(answers[3]) == (409, "alert-quota-reached")
    ask(*[("ben", "DELETE", f"/v1/alerts/{a.json()['data']['id']}") for a in answers[:3]])


def test_an_event_is_sent_shown_and_acknowledged(ask, home, rule, sink):
    sink.taken.clear()
    event = rung(home, rule)
    send_due(home[0])
    path = f"/v1/alerts/{rule}/events"
    before, seen, again, after, page = ask(
        ("anna", "GET", path),
        ("anna", "POST", f"{path}/{event}/acknowledge"),
        ("olga", "POST", f"{path}/{event}/acknowledge"),
        ("anna", "GET", path),
        ("anna", "GET", "/alerts"),
    )
    card = next(card for card in before.json()["data"] if card["id"] == event)
    assert [d["state"] for d in card["deliveries"]] == ["sent"] and card["acknowledged"] == {}
    sent = {alert["event"] for message in sink.messages() for alert in message["alerts"]} | set(sink.ids())
    assert event in sent
    assert seen.json()["data"]["by"].startswith("key:") and again.json()["data"] == seen.json()["data"]
    card = next(card for card in after.json()["data"] if card["id"] == event)
    assert card["acknowledged"] == {k: seen.json()["data"][k] for k in ("at", "by")}
    assert f"acknowledged by {card['acknowledged']['by']}" in page.text and card["message"] in page.text


def test_a_test_message_says_what_came_of_it_and_no_answer_shows_an_address(ask, home, rule, sink):
    sink.taken.clear()
    changed, tried, listed, page, kinds = ask(
        ("anna", "PATCH", f"/v1/alerts/{rule}", {"channels": ["desk", "broken"], "quiet": "closed"}),
        ("anna", "POST", f"/v1/alerts/{rule}/test"),
        ("anna", "GET", "/v1/alerts"),
        ("olga", "GET", "/alerts"),
        ("vera", "GET", "/v1/alerts/kinds"),
    )
    outcomes = tried.json()["data"]
    assert [(o["channel"], o["sent"]) for o in outcomes] == [("desk", True), ("broken", False)]
    assert outcomes[1]["reason"] == "The webhook answered with status 500."
    assert sink.ids() == [outcomes[0]["id"]] * 2
    assert {"price", "move", "drift", "data_late"} <= {kind["name"] for kind in kinds.json()["data"]}
    assert not any("SECRET" in answer.text for answer in (changed, tried, listed, page, kinds))


def test_a_change_is_in_the_audit_log_without_its_body(ask, home, rule):
    ask(("anna", "PATCH", f"/v1/alerts/{rule}", {"severity": "critical"}))
    lines = [
        json.loads(line)
        for path in (home[0].storage.home_dir / "audit").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert any("/v1/alerts" in json.dumps(line) and "PATCH" in json.dumps(line) for line in lines)
    assert "SECRET" not in json.dumps(lines)


def test_the_service_sends_by_itself_and_its_health_names_the_channel_that_fails(home, sink):
    settings = home[0]
    outbox = Outbox(settings.storage)
    from test_delivery import ring, rule_of

    sink.taken.clear()
    own = rule_of(outbox, channels=["desk", "broken"])
    [event] = ring(outbox, own, 1)

    async def go():
        async with Served(settings) as client:
            task = asyncio.create_task(alert_loop(client.service, 0.05))
            while client.service.__dict__.get("alert_state") is None:
                await asyncio.sleep(0.02)
            task.cancel()
            return alert_health(client.service), client.service.health()

    state, health = asyncio.run(go())
    outbox.store.remove(own.id)
    assert event in sink.ids() and state["status"] == "trouble"
    assert "broken has failed 1 time in a row: The webhook answered with status 500." in state["reason"]
    assert health["components"]["alerts"] == state and "alerts" in health["trouble"]


def test_a_reader_without_a_package_says_so_in_log_health_and_metrics(home, sink, monkeypatch):
    from test_delivery import ring, rule_of

    settings = home[0]
    outbox, lines = Outbox(settings.storage), []
    own = rule_of(outbox, channels=["desk"])
    ring(outbox, own, 1)
    monkeypatch.delitem(sys.modules, "stockpredict.alerts.sending", raising=False)
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, "stockpredict.core.calendar", raising=False)

    async def go():
        async with Served(settings) as client:
            client.service.log = SimpleNamespace(error=lambda event, **fields: lines.append(fields))
            await alert_loop(client.service, 0.05)
            client.service.measured_at = 0  # the next look at the parts is due
            await client.service.measure()
            operator = {"authorization": f"Bearer {home[1]['olga']}"}
            return client.service.health(), (await client.get("/metrics", headers=operator)).text

    health, metrics = asyncio.run(go())
    outbox.store.remove(own.id)
    reason = health["components"]["alerts"]["reason"]
    assert "alerts" in health["trouble"] and "no package pandas" in reason
    assert [line["reason"] for line in lines] == [reason]
    assert 'stockpredict_part_trouble{part="alerts"} 1' in metrics.splitlines()


def test_from_the_shell(home, sink, tmp_path):
    settings = home[0]

    def shell(*words, typed=None):
        more = [
            f"storage.home={settings.storage.home}",
            "data.source=simulated",
            f"alerts.allow_hosts={sink.place}",
        ]
        options = [word for change in more for word in ("--set", change)]
        done = CliRunner().invoke(app, ["alerts", *words, *options], input=typed)
        return done.exit_code, done.output, done.exception

    assert "webhook" in (shown := shell("channels"))[1] and "SECRET" not in shown[1]
    assert (
        "Added pager, webhook." in shell("channels", "--add", "pager", typed="https://SECRET.example/\n")[1]
    )
    code_, text, _ = shell(
        "create", "move", "SIM1", "--param", "percent=0.5", "--channel", "desk", "--dry-run"
    )
    assert code_ == 0 and "It would have rung" in text and "Nothing was saved." in text
    text = shell("create", "move", "SIM1", "--param", "percent=0.5", "--channel", "desk", "--cooldown", "0")[
        1
    ]
    rule = text.rpartition("Saved ")[2].strip().rstrip(".")
    assert rule in shell("list")[1] and "sent, t-" in shell("test", rule)[1]
    AlertStore(settings.storage).update(rule, created_session="2001-01-02")
    assert "sent in" in shell("send", "--evaluate")[1]
    event = json.loads(shell("events", rule, "--json")[1])[0]
    assert event["deliveries"][0]["state"] == "sent"
    assert "Acknowledged by shell" in shell("acknowledge", event["id"])[1]
    assert "acknowledged by shell" in shell("events", rule)[1]
    assert "Removed" in shell("remove", rule)[1] and rule not in shell("list")[1]
    assert shell("acknowledge", "e-none")[2].code == "alert-not-found"
    written = "".join(p.read_text() for p in (settings.storage.home_dir / "audit").glob("console*.jsonl"))
    assert "alerts channels pager" in written and "SECRET" not in written

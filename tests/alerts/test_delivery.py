"""Alerts on their way: refused addresses, channels that misbehave, and an outbox that loses nothing."""

import json
import logging
import os
import socket
import time
from pathlib import Path

import pandas as pd
import patience
import pytest
import warm
from sinks import mail_server, webhook

from stockpredict.alerts.addresses import AddressRefused
from stockpredict.alerts.alert_records import AlertEvent, event_id, new_rule
from stockpredict.alerts.channels import AlertChannel, AlertMessage, ChannelFailed, ChannelInvalid
from stockpredict.alerts.channels import add_channel, send_message
from stockpredict.alerts.outbox import Outbox
from stockpredict.alerts.sending import fire_test, send_due
from stockpredict.core.files import file_lock
from stockpredict.core.settings import Settings
from stockpredict.govern.purge import run_purge

NOON = pd.Timestamp("2024-06-03 12:00", tz="America/New_York").timestamp()
HOUR = 3_600.0
MESSAGE = AlertMessage("e-1", "AAPL above 200", "AAPL closed at 201.50.")


@pytest.fixture(scope="module")
def sink():
    with webhook() as listening:
        yield listening


@pytest.fixture(scope="module")
def mails():
    with mail_server() as listening:
        yield listening


@pytest.fixture
def settings(tmp_path, sink, mails):
    sink.taken.clear(), mails.mails.clear()
    hosts = f"{sink.place}, {mails.place}"
    return Settings().with_(**{"storage.home": str(tmp_path), "alerts.allow_hosts": hosts})


def rule_of(outbox, **options):
    rule = new_rule("user:anna", "price", ["AAPL"], {"above": len(outbox.store.rules())}, **options)
    outbox.store.add([rule])
    return rule


def ring(outbox, rule, *numbers, severity="warning"):
    events = []
    for n in numbers:
        day = f"{pd.Timestamp('2024-01-01') + pd.Timedelta(days=n):%Y-%m-%d}"
        name, text = event_id(rule.id, "AAPL", day, "crossed"), f"AAPL closed above 200 on {day}."
        fields = (name, name, rule.id, rule.owner, "AAPL", rule.kind, severity, text, day, "crossed")
        events.append(AlertEvent(*fields, f"{day}T20:15:00+00:00", 201.5))
    outbox.store.append_events(events)
    return [event.id for event in events]


# ---- addresses


TRICKS = {
    "plain": "http://127.0.0.1:{port}/",
    "name": "http://localhost:{port}/",
    "decimal": "http://2130706433:{port}/",
    "octal": "http://0177.0.0.1:{port}/",
    "hexadecimal": "http://0x7f000001:{port}/",
    "short": "http://127.1:{port}/",
    "nobody's": "http://0.0.0.0:{port}/",
    "IPv6": "http://[::1]:{port}/",
    "IPv4 in IPv6": "http://[::ffff:127.0.0.1]:{port}/",
    "public name before the @": "http://93.184.215.14@127.0.0.1:{port}/",
    "wide digits": "http://①②⑦.⓪.⓪.①:{port}/",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "metadata in NAT64": "http://[64:ff9b::a9fe:a9fe]/",
    "private": "https://10.0.0.1/",
    "link-local": "http://[fe80::1]:{port}/",
    "by a service": "json://127.0.0.1:{port}/",
    "by another service": "gotify://127.0.0.1:{port}/abcdefghijklmnop",
    "by mail": "mailto://example.com:{port}/?smtp=127.0.0.1&mode=insecure&from=a@b.cc&to=a@b.cc",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_private_address_is_refused_in_whatever_form_it_is_written(settings, sink, trick):
    url = TRICKS[trick].format(port=sink.server_port)
    strict = settings.with_(**{"alerts.allow_hosts": ""})
    with pytest.raises((AddressRefused, ChannelInvalid)) as refused:
        send_message(strict, AlertChannel("desk", url), MESSAGE)
    assert sink.taken == [] and "127.0.0.1" not in str(refused.value)


def test_a_name_that_resolves_anew_between_the_look_and_the_connection_gains_nothing(
    settings, sink, monkeypatch
):
    real, answers = socket.getaddrinfo, ["93.184.215.14", "127.0.0.1", "127.0.0.1"]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, *a, **k: real(answers.pop(0), port, *a, **k)
    )
    assert socket.getaddrinfo("rebind.example", 80)[0][4][0] == "93.184.215.14"
    with pytest.raises(AddressRefused):
        send_message(settings, AlertChannel("desk", f"http://rebind.example:{sink.server_port}/"), MESSAGE)
    assert sink.taken == [], "allowing a host does not allow other names for its address"


def test_a_redirect_is_not_followed(settings, sink):
    with webhook() as inside:
        sink.elsewhere = f"http://{inside.place}/taken"
        with pytest.raises(ChannelFailed, match="a redirect, which is not followed"):
            send_message(settings, AlertChannel("desk", f"http://{sink.place}/moved"), MESSAGE)
        assert len(sink.taken) == 1 and inside.taken == []


def test_a_redirect_of_a_service_leads_to_no_private_address(settings, sink):
    with webhook() as inside:
        sink.elsewhere = f"http://{inside.place}/taken"
        url = f"form://{sink.place}/moved"
        with pytest.raises(AddressRefused):
            send_message(settings, AlertChannel("desk", url), MESSAGE)
        assert len(sink.taken) == 1 and inside.taken == []


def test_a_proxy_of_the_environment_is_no_way_around(settings, sink, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://{sink.place}")
    with pytest.raises(AddressRefused):
        send_message(settings, AlertChannel("desk", "http://10.0.0.1/"), MESSAGE)
    slack = "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    with pytest.raises(AddressRefused):
        send_message(settings, AlertChannel("desk", slack), MESSAGE)
    assert sink.taken == []


# ---- channels that misbehave


@pytest.mark.parametrize(
    ("path", "sentence", "perhaps"),
    [
        ("fails", "answered with status 500", False),
        ("hangs", "did not answer in time|took longer than", True),
        ("trickles", "took longer than 1 seconds", True),
    ],
)
def test_a_webhook_that_does_not_take_a_message_is_a_sentence(settings, sink, path, sentence, perhaps):
    with pytest.raises(ChannelFailed, match=sentence) as failed:
        send_message(settings, AlertChannel("desk", f"http://{sink.place}/{path}"), MESSAGE, seconds=1)
    assert "secret" not in str(failed.value) and failed.value.context["perhaps"] is perhaps


def test_a_webhook_that_answers_twice_or_without_end_has_taken_the_message_once(settings, sink):
    for path in ("answers-twice", "endless", "taken"):
        send_message(settings, AlertChannel("desk", f"http://{sink.place}/{path}"), MESSAGE)
    assert sink.ids() == ["e-1"] * 3 and sink.messages()[0]["title"] == "AAPL above 200"
    patience.wait_until(sink.ended.is_set)  # an endless answer is not read to its end


def test_a_pause_that_the_server_names_is_kept(settings, sink):
    add_channel(settings, "desk", f"http://{sink.place}/busy")
    outbox = Outbox(settings.storage)
    ring(outbox, rule_of(outbox, channels=["desk"]), 1)
    send_due(settings, NOON)
    assert outbox.backlog(NOON)["channels"][0]["next"] == 900
    send_due(settings, NOON + 899), send_due(settings, NOON + 901)
    assert len(sink.taken) == 2


def test_a_mail_arrives_with_its_id(settings, mails):
    add_channel(settings, "mail", mails.url)
    outbox = Outbox(settings.storage)
    [name] = ring(outbox, rule_of(outbox, channels=["mail"]), 1)
    report = send_due(settings, NOON)
    [mail] = mails.mails
    assert (report.messages, report.failed) == (1, ())
    assert (mail["X-Alert-Id"], mail["To"]) == (name, "anna@desk.example")
    assert mail["Subject"] == "[warning] AAPL closed above 200 on 2024-01-02."
    assert name in mail.get_body().get_content()


# ---- nothing is lost, nothing comes as a storm


def test_a_channel_that_was_down_for_a_day_gets_everything_in_one_message(settings, sink):
    add_channel(settings, "desk", f"http://{sink.place}/fails")
    outbox = Outbox(settings.storage)
    rules = [rule_of(outbox, channels=["desk"]) for _ in range(2)]
    names = []
    for hour in range(24):
        names += ring(outbox, rules[hour % 2], *range(10 * hour, 10 * hour + 10))
        send_due(settings, NOON + hour * HOUR)
    assert len(sink.taken) <= 24, "a channel that is down is asked once a pause, not once an alert"
    sink.taken.clear()
    add_channel(settings, "desk", f"http://{sink.place}/taken")
    report = send_due(settings, NOON + 25 * HOUR)
    assert (report.messages, report.alerts, report.waiting) == (1, 240, 0)
    [digest] = sink.messages()
    assert {alert["event"] for alert in digest["alerts"]} == set(names)
    assert digest["title"] == "[warning] 240 alerts of 2 rules"
    assert digest["fields"]["counts"] == {"warning": 240}
    assert send_due(settings, NOON + 26 * HOUR).messages == 0


def test_a_clock_that_is_set_back_sends_nothing_twice_and_holds_nothing(settings, sink):
    add_channel(settings, "desk", f"http://{sink.place}/twice-failing")
    outbox = Outbox(settings.storage)
    rule = rule_of(outbox, channels=["desk"], delivery={"pause_minutes": 60, "digest": False})
    [first] = ring(outbox, rule, 1)
    send_due(settings, NOON), send_due(settings, NOON + 600)
    week = NOON - 7 * 24 * HOUR
    assert send_due(settings, week).messages == 1, "the pause after a failure does not last for a week"
    [second] = ring(outbox, rule, 2)
    assert send_due(settings, week - HOUR).messages == 1, "the pause after a message does not either"
    assert send_due(settings, NOON).messages == 0
    assert sink.ids() == [first, first, first, second]


def test_quiet_hours_pauses_and_digests_hold_a_message_back_and_lose_none(settings, sink):
    add_channel(settings, "desk", f"http://{sink.place}/taken")
    outbox = Outbox(settings.storage)
    [quiet] = ring(outbox, rule_of(outbox, channels=["desk"], quiet="closed"), 1)
    [urgent] = ring(outbox, rule_of(outbox, channels=["desk"], quiet="closed"), 1, severity="critical")
    digest = rule_of(outbox, channels=["desk"], delivery={"digest": True})
    ring(outbox, digest, 1, 2, 3)
    night = NOON + 12 * HOUR
    assert send_due(settings, night).messages == 2 and urgent in sink.ids() and quiet not in sink.ids()
    ring(outbox, digest, 4)
    assert send_due(settings, night + HOUR).messages == 0, "one digest a session"
    assert send_due(settings, NOON + 24 * HOUR).messages == 1 and sink.ids()[-1] == quiet
    assert send_due(settings, NOON + 30 * HOUR).messages == 1, "the next digest comes after the next close"


def test_an_alert_that_nobody_acknowledges_reaches_the_second_channel_by_its_id(settings, sink, mails):
    add_channel(settings, "desk", f"http://{sink.place}/taken")
    add_channel(settings, "mail", mails.url)
    outbox = Outbox(settings.storage)
    options = {"escalate_to": "mail", "escalate_minutes": 15}
    rule = rule_of(outbox, channels=["desk"], delivery=options)
    seen, unseen = ring(outbox, rule, 1, 2)
    send_due(settings, NOON)
    outbox.acknowledge(seen, "user:anna")
    send_due(settings, NOON + 14 * 60), send_due(settings, NOON + 16 * 60), send_due(settings, NOON + HOUR)
    [mail] = mails.mails
    assert mail["X-Alert-Id"] == unseen and mail["Subject"].startswith("Not acknowledged: ")
    assert sorted(sink.ids()) == sorted([seen, unseen])


def test_one_sender_at_a_time(settings, sink):
    add_channel(settings, "desk", f"http://{sink.place}/taken")
    outbox = Outbox(settings.storage)
    ring(outbox, rule_of(outbox, channels=["desk"]), 1)
    with file_lock(outbox.store.path.with_name(".sender.lock")):
        report = send_due(settings, NOON)
    assert report.busy and sink.taken == []
    assert send_due(settings, NOON).messages == 1


def test_a_test_message_goes_out_at_once_and_says_what_came_of_it(settings, sink):
    add_channel(settings, "desk", f"http://{sink.place}/taken")
    add_channel(settings, "pager", f"http://{sink.place}/fails")
    outbox = Outbox(settings.storage)
    rule = rule_of(outbox, channels=["desk"], quiet="closed", delivery={"escalate_to": "pager"})
    outcomes = fire_test(settings, rule)
    assert [(o["channel"], o["sent"]) for o in outcomes] == [("desk", True), ("pager", False)]
    assert outcomes[1]["reason"] == "The webhook answered with status 500."
    assert sink.ids() == [outcomes[0]["id"]] * 2 and outbox.rows("SELECT * FROM deliveries") == []


# ---- secrets


def test_no_log_answer_or_file_but_the_private_one_holds_an_address(settings, sink, mails, tmp_path, caplog):
    secret = "xoxSECRETxox"
    urls = {
        "desk": f"http://{sink.place}/taken/{secret}",
        "broken": f"http://{sink.place}/fails/{secret}",
        "mail": mails.url.replace("desk.example:", f"{secret}:{secret}@desk.example:", 1),
        "slack": f"slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrI{secret[:7]}",
    }
    caplog.set_level(0)
    logging.getLogger("apprise").setLevel(0)
    for name, url in urls.items():
        add_channel(settings, name, url)
    outbox = Outbox(settings.storage)
    ring(outbox, rule_of(outbox, channels=list(urls)), 1)
    report = send_due(settings, NOON)
    shown = [caplog.text, repr(report), report.sentence, json.dumps(outbox.backlog(NOON)), repr(urls.keys())]
    shown.append(json.dumps(outbox.rows("SELECT * FROM deliveries")))
    assert [text for text in shown if secret[:7] in text] == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if secret.encode() in path.read_bytes()] == ["channels.json"]


# ---- kill -9


def test_killed_at_every_step_no_alert_is_lost_and_a_second_copy_has_the_same_id(tmp_path, sink):
    sink.taken.clear()
    script = Path(__file__).with_name("crash_child_alerts.py")
    done = warm.python(script, tmp_path, sink.place, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    steps = [line["step"] for line in lines]
    assert {"collected", "claimed", "sent", "recorded"} <= set(steps)
    for line in lines:
        copies = [json.loads(body) for path, _, body in sink.taken if path.endswith(line["home"])]
        ids = [m["id"] for m in copies]
        delivered = {name for m in copies for name in ([a["event"] for a in m["alerts"]] or [m["id"]])}
        assert delivered == set(line["events"]), f"lost when killed at {line['step']}"
        assert line["waiting"] == 0
        assert len(ids) - len(set(ids)) == (line["step"] == "sent"), f"at {line['step']}: {ids}"
        bodies = {m["id"]: {json.dumps(c) for c in copies if c["id"] == m["id"]} for m in copies}
        assert {len(same) for same in bodies.values()} == {1}, "the second copy says the same"


def test_a_purge_forgets_what_became_of_old_alerts_and_nothing_that_waits(settings, sink):
    def purged(do_it):
        return {p.what: p.count for p in run_purge(settings, do_it, only=["alerts"])}

    add_channel(settings, "desk", f"http://{sink.place}/taken")
    add_channel(settings, "down", f"http://{sink.place}/fails")
    outbox, now = Outbox(settings.storage), time.time()
    old = now - 86_400 * (366 * settings.retention.activity_years + 1)
    both, sent = rule_of(outbox, channels=("desk", "down")), rule_of(outbox, channels=("desk",))
    [waits], [done] = ring(outbox, both, 1), ring(outbox, sent, 2)
    outbox.collect_events(settings, now=old)
    [young] = ring(outbox, sent, 3)
    send_due(settings, now)
    outbox.acknowledge(done, "user:anna")
    assert purged(False)["deliveries of alerts"] == 1 and outbox.delivery_records([done])[done]["deliveries"]
    assert purged(True)["deliveries of alerts"] == 1
    records = outbox.delivery_records([waits, done, young])
    assert records[done] == {"acknowledged": {}, "deliveries": []}
    assert {row["channel"]: row["state"] for row in records[waits]["deliveries"]} == {
        "desk": "sent",
        "down": "waiting",
    }
    assert [row["state"] for row in records[young]["deliveries"]] == ["sent"]
    assert set(purged(True).values()) == {0}
    assert outbox.store.event(waits), "the event that still waits stays, too"

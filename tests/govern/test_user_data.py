"""A user gets everything that is stored about them, and nothing of it is left once it is erased."""

import json

import pytest

from stockpredict.access.audit_log import audit_log, change_line
from stockpredict.access.audit_search import search_audit, verify_audit
from stockpredict.access.keys import KeyStore, KeyVerifier
from stockpredict.access.permissions import Caller
from stockpredict.access.sessions import Sessions
from stockpredict.access.tokens import SigningRing, TokenInvalid, Tokens
from stockpredict.access.users import UserStore
from stockpredict.alerts.alert_records import AlertEvent, new_rule
from stockpredict.alerts.alert_store import AlertStore
from stockpredict.core.errors import KeyInvalid, NotFound
from stockpredict.core.settings import load_settings
from stockpredict.govern.user_data import erase_user, export_user
from stockpredict.serve.jobs import Job, JobStore

CHEAP = {"time_cost": 1, "memory_cost": 64}


@pytest.fixture
def desk(tmp_path):
    "Two users with a session, a key, a rule with an event, a job and a line in the audit log each."
    settings = load_settings(None, {"storage.home": str(tmp_path / "home")}, environ={})
    users, texts, tokens = UserStore(settings.storage, **CHEAP), {}, {}
    sessions, chain = Sessions(settings.storage, users), audit_log(settings).chain
    signer = Tokens(users, SigningRing(settings.storage), sessions.lives)
    for n, name in enumerate(("anna", "bert")):
        user, caller = users.create(name, ["analyst"], f"copper lantern {n} drifts"), f"user:{name}"
        sid, refresh = sessions.begin(user)
        tokens[name], texts[name] = signer.issue(user, sid).encode(), KeyStore(settings.storage)
        entry, key = KeyStore(settings.storage).create(["viewer"], note=name)
        texts[name] = {"refresh": refresh, "key": key, "id": entry.id}
        rule = new_rule(caller, "price", ["AAPL"], {"above": 1 + n})
        AlertStore(settings.storage).add([rule])
        fields = (f"e{n}", "l", rule.id, caller, "AAPL", "price", "warning", "t", "2026-01-02", "c")
        AlertStore(settings.storage).append_events([AlertEvent(*fields, "2026-01-02T20:15:00+00:00", 1.0)])
        job = Job(f"train-20260101T000000-{n:08x}", "train", caller, "2026-01-01T00:00:00+00:00", "done")
        JobStore(settings.storage.home_dir / "jobs").write(job)
        scope = {"client": ("10.0.0.7", 1), "method": "POST", "path": "/v1/train", "request_id": b"r"}
        scope["caller"] = Caller(caller, "user", frozenset())
        chain.append([change_line("change", scope, "/v1/train", 202)])
    chain.close()
    return settings, users, texts, tokens, signer


def test_the_export_has_every_record_of_the_user_and_no_secret(desk):
    settings, users, texts, _, _ = desk
    export = export_user(settings, "anna")
    counts = {part: len(rows) for part, rows in export.items() if isinstance(rows, list)}
    assert counts == {
        "callers": 2, "sessions": 1, "keys": 1, "alert_rules": 1, "alert_events": 1, "jobs": 1, "audit": 1
    }  # fmt: skip
    text = json.dumps(export)
    hidden = [users.users()["anna"].hash, texts["anna"]["key"], texts["anna"]["refresh"]]
    hidden += [row["hash"] for row in Sessions(settings.storage, users).file.read().values()]
    hidden += [entry.hash for entry in KeyStore(settings.storage).entries().values()]
    assert not [secret for secret in hidden if secret in text]
    assert "bert" not in text and texts["bert"]["id"] not in text


def test_an_erased_user_is_locked_out_at_once_and_the_other_keeps_everything(desk):
    settings, users, texts, tokens, signer = desk
    before = export_user(settings, "bert")
    assert signer.caller_of(tokens["anna"]).id == "user:anna"
    erased = erase_user(settings, "anna")

    with pytest.raises(TokenInvalid):
        Tokens(UserStore(settings.storage), SigningRing(settings.storage)).caller_of(tokens["anna"])
    verifier = KeyVerifier(KeyStore(settings.storage))
    with pytest.raises(KeyInvalid):
        verifier(texts["anna"]["key"].encode(), {})
    assert users.check("anna", "copper lantern 0 drifts") is None
    with pytest.raises(NotFound):
        export_user(settings, "anna")
    assert export_user(settings, "bert") == before and users.check("bert", "copper lantern 1 drifts")
    assert verifier(texts["bert"]["key"].encode(), {}).id == f"key:{texts['bert']['id']}"

    jobs = {job.caller for job in JobStore(settings.storage.home_dir / "jobs").jobs()}
    assert jobs == {erased["pseudonym"], "user:bert"}
    assert AlertStore(settings.storage).rules(owner="user:anna") == []


def test_after_erasing_only_the_audit_log_names_the_user_and_it_verifies(desk):
    settings, *_ = desk
    lines = verify_audit(settings)["lines"]
    pseudonym = erase_user(settings, "anna")["pseudonym"]
    report = verify_audit(settings)
    assert report["ok"] and report["lines"] > lines
    noted = list(search_audit(settings, path="govern erase-user"))
    assert [line["path"] for line in noted] == [f"govern erase-user {pseudonym}"]
    home = settings.storage.home_dir
    naming = {
        p.relative_to(home).parts[0] for p in home.rglob("*") if p.is_file() and b"anna" in p.read_bytes()
    }
    assert naming == {"audit"}
    with AlertStore(settings.storage).look() as con:
        for table in ("rules", "events"):
            rows = con.execute(f"SELECT * FROM {table}").fetchall()
            assert rows and "anna" not in repr(rows)


def test_a_key_can_be_exported_and_erased_alone(desk):
    settings, _, texts, _, _ = desk
    name = f"key:{texts['anna']['id']}"
    assert export_user(settings, name)["callers"] == [name]
    assert erase_user(settings, name)["keys"] == 1
    assert export_user(settings, "anna")["callers"] == ["user:anna"]

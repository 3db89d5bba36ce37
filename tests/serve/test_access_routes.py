"""Logging in over HTTP, and what the audit log knows afterwards."""

import asyncio
import errno
import threading

import pytest
from patience import STILL

from stockpredict.access.audit_search import search_audit, verify_audit
from stockpredict.access.login import Login
from stockpredict.core.errors import QueueFull
from stockpredict.serve.access_routes import MOST_LOGINS

CHEAP = {"memory_cost": 64, "time_cost": 1, "parallelism": 1}
FORM = {"grant_type": "password", "username": "anna", "password": "copper lantern drifts"}


@pytest.fixture
def closed(settings):
    "A service that asks every caller for a key or a token, with one user."
    settings = settings.with_(**{"access.required": "always"})
    Login(settings.storage, **CHEAP).users.create("anna", ["analyst"], FORM["password"])
    return settings


def ask(served, settings, *requests):
    "Send requests one after the other; a function builds one from the answers so far."

    async def go():
        answers = []
        async with served(settings) as client:
            client.service.login.users.costs |= CHEAP
            for request in requests:
                if callable(request):
                    request = request(answers)
                if request is not None:
                    method, path, options = request
                    answers.append(await client.request(method, path, **options))
            await asyncio.to_thread(client.service.audit.close)
        return answers

    return asyncio.run(go())


def bearer(answer):
    return {"headers": {"Authorization": f"Bearer {answer.json()['access_token']}"}}


LOGIN = "POST", "/v1/token", {"data": FORM}


def test_a_day_with_tokens(served, closed):
    def refresh(answers):
        return "POST", "/v1/token", {"data": {"grant_type": "refresh_token", "refresh_token": first(answers)}}

    def first(answers):
        return answers[0].json()["refresh_token"]

    login, me, stock, second, replay, dead, out = ask(
        served,
        closed,
        LOGIN,
        lambda a: ("GET", "/v1/me", bearer(a[0])),
        lambda a: ("GET", "/v1/predictions", bearer(a[0])),
        refresh,
        refresh,
        lambda a: ("GET", "/v1/me", bearer(a[3])),
        lambda a: ("POST", "/v1/token/revoke", {"data": {"token": first(a)}}),
    )
    assert login.status_code == 200 and login.headers["cache-control"] == "no-store"
    assert set(login.json()) == {"access_token", "token_type", "expires_in", "refresh_token", "scope"}
    assert me.json()["data"] == {"id": "user:anna", "kind": "user", "permissions": ["ask", "read"]}
    assert stock.status_code == 200 and second.status_code == 200
    assert (replay.status_code, replay.json()["error"]) == (400, "invalid_grant")
    assert dead.status_code == 401  # the session has ended, and its youngest token with it
    assert (out.status_code, out.json()) == (200, {})
    entries = list(search_audit(closed, who="user:anna"))
    assert {"/v1/me", "/v1/predictions"} <= {e["path"] for e in entries if e["kind"] == "read"}
    changes = [e for e in search_audit(closed, kind="change")]
    assert [e["path"] for e in changes] == ["/v1/token", "/v1/token", "/v1/token/revoke"]
    assert verify_audit(closed)["ok"]
    disk = b"".join(p.read_bytes() for p in (closed.storage.home_dir / "audit").glob("*.jsonl"))
    for secret in (FORM["password"], login.json()["access_token"], first([login])):
        assert secret.encode() not in disk


def test_forms_are_read_as_the_standard_says(served, closed):
    form = "application/x-www-form-urlencoded"
    wrong = [
        ("content", b"", 400, "invalid_request"),
        ("data", FORM | {"password": "wrong"}, 400, "invalid_grant"),
        ("data", FORM | {"username": "nobody"}, 400, "invalid_grant"),
        ("data", FORM | {"scope": "admin"}, 400, "invalid_scope"),
        ("data", FORM | {"grant_type": "client_credentials"}, 400, "unsupported_grant_type"),
        ("data", {"grant_type": "refresh_token", "refresh_token": "spr_x"}, 400, "invalid_grant"),
        ("content", b"grant_type=password&username=anna&username=root&password=x", 400, "invalid_request"),
        ("content", b"&".join([b"a%d=1" % i for i in range(50)]), 400, "invalid_request"),
        ("content", b"grant_type=%ff%fe", 400, "invalid_request"),
        ("content", b"a=" + b"x" * 9000, 413, None),
        ("json", FORM, 415, None),
    ]
    requests = []
    for kind, value, *_ in wrong:
        options = {kind: value} | ({"headers": {"content-type": form}} if kind == "content" else {})
        requests.append(("POST", "/v1/token", options))
    answers = ask(served, closed, *requests)
    for answer, (_, value, status, word) in zip(answers, wrong, strict=True):
        assert answer.status_code == status, (value, answer.text)
        if word:
            assert answer.json()["error"] == word and answer.json()["code"], value
            assert set(answer.json()) == {"error", "error_description", "code"}
        else:
            assert answer.headers["content-type"] == "application/problem+json"
    same = [{k: v for k, v in answers[i].json().items()} for i in (1, 2)]
    assert same[0] == same[1]  # a wrong password and an unknown name look alike


def test_a_form_gives_no_more_than_the_user_has(served, closed):
    more = {"role": "admin", "grants": "admin", "permissions": "admin", "sub": "root", "gen": "9"}
    login, me, models, lost = ask(
        served,
        closed,
        ("POST", "/v1/token", {"data": FORM | more}),
        lambda a: ("GET", "/v1/me", bearer(a[0])),
        lambda a: ("POST", "/v1/models/1/promote", bearer(a[0]) | {"json": {"reason": "mine"}}),
        ("GET", "/v1/token", {}),
    )
    assert login.json()["scope"] == "ask read" == " ".join(me.json()["data"]["permissions"])
    assert models.status_code == 403
    assert lost.status_code == 401


def test_failed_logins_wait_and_say_how_long(served, closed):
    answers = ask(served, closed, *[("POST", "/v1/token", {"data": FORM | {"password": "no"}})] * 7, LOGIN)
    assert [a.status_code for a in answers] == [400] * 5 + [429] * 3  # the right password waits too
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert answers[-1].json()["error"]["code"] == "login-blocked"
    refused = next(search_audit(closed, kind="refused"))
    assert sum(refused["count"].values()) == 8


def test_a_crowd_of_logins_delays_nobody_else(served, closed):
    end, begun = threading.Event(), threading.Semaphore(0)

    def hold(*words):
        begun.release()
        end.wait(STILL)

    async def go():
        async with served(closed) as client:
            users = client.service.login.users
            token = await client.post("/v1/token", data=FORM)
            users.check = hold
            crowd = [asyncio.create_task(client.post("/v1/token", data=FORM)) for _ in range(40)]
            while begun._value < 2:  # both threads are busy
                await asyncio.sleep(0.01)
            read = await client.get("/v1/jobs", **bearer(token))
            while (still := sum(not task.done() for task in crowd)) > MOST_LOGINS:
                await asyncio.sleep(0.01)  # until the others are refused
            end.set()
            return read, still, await asyncio.gather(*crowd)

    read, still, answers = asyncio.run(go())
    assert read.status_code == 200 and still == MOST_LOGINS
    full = [a for a in answers if a.status_code == QueueFull.status]
    assert len(full) == 40 - MOST_LOGINS and all(int(a.headers["retry-after"]) >= 1 for a in full)


def test_wrong_tokens_get_one_shape(served, closed):
    tokens = ["x.y.z", "a" * 3000 + ".b.c", "eyJhbGciOiJub25lIn0.e30.", "..", "sp_00000000_x"]
    headers = [{"headers": {"Authorization": f"Bearer {token}"}} for token in tokens]
    answers = ask(served, closed, *[("GET", "/v1/predictions", h) for h in headers])
    for answer in answers:
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Bearer")
        assert set(answer.json()["error"]) == set(answers[0].json()["error"])


def test_a_full_disk_stops_logins_and_no_reads(served, closed, monkeypatch):
    from stockpredict.access import audit_chain

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    async def go():
        async with served(closed) as client:
            client.service.login.users.costs |= CHEAP
            login = await client.post("/v1/token", data=FORM)
            monkeypatch.setattr(audit_chain.os, "write", full)
            monkeypatch.setattr(audit_chain.os, "posix_fallocate", full)
            read = await client.get("/v1/me", **bearer(login))
            await asyncio.to_thread(client.service.audit.drain)
            refused = await client.post("/v1/token", data=FORM)
            more = [await client.get("/v1/predictions", **bearer(login)) for _ in range(3)]
            state = client.service.health()["components"]["audit"]
            monkeypatch.undo()
            await asyncio.to_thread(client.service.audit.drain)
            again = await client.post("/v1/token", data=FORM)
            await asyncio.to_thread(client.service.audit.close)
            return read, refused, more, state, again

    read, refused, more, state, again = asyncio.run(go())
    assert read.status_code == 200 and {a.status_code for a in more} == {200}
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "audit-full")
    assert "disk is full" in refused.json()["error"]["detail"]
    assert state["status"] == "trouble" and "State changes are refused" in state["reason"]
    assert again.status_code == 200
    assert verify_audit(closed)["ok"]
    assert len(list(search_audit(closed, path="/v1/predictions"))) == 3


def test_every_changing_route_is_recorded_and_every_operation_names_its_security(served, closed):
    from stockpredict.access.audit_log import AuditedRoute, is_change
    from stockpredict.access.door import GuardedRoute

    async def go():
        async with served(closed) as client:
            return client.service, client._transport.app

    _, app = asyncio.run(go())
    for route in app.router.routes:
        if any(is_change(method, route.path) for method in getattr(route, "methods", None) or ()):
            inner = route.app.app if isinstance(route.app, GuardedRoute) else route.app
            assert isinstance(inner, AuditedRoute), route.path
    schema = app.openapi()
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "apiKey", "login"}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert "security" in operation, (method, path)
    assert schema["paths"]["/v1/token"]["post"]["security"] == []
    assert {"login": ["ask"]} in schema["paths"]["/v1/predict"]["post"]["security"]

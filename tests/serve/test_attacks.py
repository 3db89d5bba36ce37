"""Attacks on the door: foreign hosts, proxies, header floods, keys in addresses, other people's resources.

The application runs in this process, behind its first layer. A request is a raw ASGI scope, so that it may
hold what no decent client sends."""

import asyncio
import base64
import json
import re
import sys
import urllib.request
from urllib.parse import urljoin, urlsplit

import orjson
import pytest
from starlette.routing import Mount

from stockpredict.access import keys
from stockpredict.access.keys import KeyStore
from stockpredict.access.permissions import OPEN, PERMISSIONS, ROLES, TABLE, needed_permission
from stockpredict.core.settings import load_settings
from stockpredict.predict.answer_table import write_example
from stockpredict.serve.app import create_app

READ = "/v1/predictions/AAPL"


def build(folder, **more):
    settings = load_settings(None, {"storage.home": str(folder)} | more, environ={})
    write_example(settings)
    return settings


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    "A service that asks every caller for a key, and a key of each role."
    more = {"access.required": "always", "access.cors_origins": "https://desk.example"}
    more |= {f"access.{kind}_per_minute": 0 for kind in ("requests", "asks", "changes")}
    settings = build(tmp_path_factory.mktemp("strict"), **more)
    store = KeyStore(settings.storage)
    own = {role: store.create([role], role)[1].encode() for role in ROLES}
    return create_app(settings), own


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "A service on loopback that asks for no key."
    return create_app(build(tmp_path_factory.mktemp("desk")))


class Answer:
    "Status, headers and body of a response, and whether the request's body was read."

    def __init__(self):
        self.status, self.raw_headers, self.body, self.reads = 0, [], b"", 0

    @property
    def headers(self):
        return {name.decode(): value.decode("latin-1") for name, value in self.raw_headers}

    @property
    def code(self):
        return orjson.loads(self.body)["error"]["code"]


def ask(
    app,
    method="GET",
    path=READ,
    headers=(),
    query=b"",
    client=("127.0.0.1", 5),
    body=b"",
    host=b"localhost:8000",
):
    answer = Answer()

    async def receive():
        answer.reads += 1
        if answer.reads > 1:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            answer.status, answer.raw_headers = message["status"], message["headers"]
        else:
            answer.body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
    }
    scope |= {
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "client": client,
    }
    scope["headers"] = [(b"host", host), *headers]
    asyncio.run(app(scope, receive, send))
    return answer


def bearer(key):
    return [(b"authorization", b"Bearer " + key)]


def routes(app):
    "Method, address and template of every route, with something in place of each parameter."
    for route in app.router.routes:
        methods = ["GET"] if isinstance(route, Mount) else getattr(route, "methods", None) or []
        path = route.path.replace("{", "").replace("}", "").replace(":path", "")
        for method in sorted(set(methods) - {"HEAD"}):
            yield method, path + ("/index.html" if isinstance(route, Mount) else ""), route.path


# ---- who asks


def test_without_a_key_every_route_but_the_open_ones_refuses_before_it_reads(strict):
    app, _ = strict
    for method, path, template in routes(app):
        if needed_permission(method, path, template) == OPEN:
            continue
        answer = ask(app, method, path, body=b'{"bars": [')
        assert (answer.status, answer.code, answer.reads) == (401, "key-missing", 0), (method, path)
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert ask(app, path="/health/live").status == 200


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reaches_what_its_permissions_name_and_nothing_else(strict, role):
    app, own = strict
    refused = set()
    for method, path, template in routes(app):
        needs = needed_permission(method, path, template)
        if (method != "GET" or template == "/v1/stream") and needs in ROLES[role]:
            continue  # what it may do is tested where it does it
        answer = ask(app, method, path, bearer(own[role]))
        if needs == OPEN or needs in ROLES[role]:
            assert answer.status not in (401, 403), (method, path)
        else:
            assert (answer.status, answer.code, answer.reads) == (403, "permission-missing", 0), (
                method,
                path,
            )
            assert f"`{needs}`" in answer.body.decode()
            refused.add(needs)
    assert refused == set(TABLE.values()) - {OPEN} - ROLES[role]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "//health/live",
            "/health/live/",
            "/health//live",
            "/health/live/../../metrics",
            "/HEALTH/LIVE",
            "",
        ),
        *("/health/live;x", "/health/live\x00", "/health/live ", "/health/./live", "health/live", "*"),
        "/health/live%2f..%2fmetrics",
    ],
)
def test_no_spelling_near_an_open_address_is_open(strict, path):
    answer = ask(strict[0], path=path)
    assert answer.status == 401 and b"process_" not in answer.body


@pytest.mark.parametrize(
    "method", ["HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "get", "GET ", "PROPFIND", "\x00"]
)
def test_no_method_passes_without_a_key(strict, method):
    assert ask(strict[0], method).status == 401


@pytest.mark.parametrize(
    "header",
    [b"x-http-method-override", b"x-http-method", b"x-method-override", b"x-original-url", b"x-rewrite-url"],
)
def test_a_header_changes_neither_method_nor_address(strict, header):
    app, own = strict
    for value in (b"DELETE", b"POST", b"/metrics"):
        plain = ask(app, headers=bearer(own["viewer"]))
        answer = ask(app, headers=[*bearer(own["viewer"]), (header, value)])
        assert answer.status == plain.status == 200
        assert orjson.loads(answer.body)["data"] == orjson.loads(plain.body)["data"]
    assert ask(app, "POST", "/v1/predict", [*bearer(own["viewer"]), (header, b"GET")]).status == 403


# ---- credentials


FLOODS = {
    "a thousand headers": [(b"authorization", b"Bearer sp_1_x")] * 1000,
    "twice": None,
    "two kinds": None,
    "no scheme": [(b"authorization", b"sp_1_x")],
    "empty": [(b"authorization", b"")],
    "only a scheme": [(b"authorization", b"Bearer ")],
    "negotiate": [(b"authorization", b"Negotiate YII=")],
    "basic without base64": [(b"authorization", b"Basic \xff\xff")],
    "not ascii": [(b"x-api-key", "sp_ü_ß".encode())],
    "latin": [(b"x-api-key", b"sp_\xfc\xdf_\x80")],
    "line breaks": [(b"x-api-key", b"sp_1_x\r\nx-admin: 1")],
    "zero bytes": [(b"x-api-key", b"\x00" * 64)],
    "two megabytes": [(b"x-api-key", b"sp_" + b"7" * 2_000_000)],
    "json": [(b"authorization", b'Bearer {"role": "admin"}')],
    "sql": [(b"x-api-key", b"sp_' OR 1=1 --_x")],
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_wrong_credential_is_one_short_refusal(strict, desk, name):
    app, own = strict
    twice = {
        "twice": bearer(own["admin"]) * 2,
        "two kinds": [*bearer(own["admin"]), (b"x-api-key", own["admin"])],
    }
    for service in (app, desk):  # the desk does not ignore a wrong key either
        answer = ask(service, headers=FLOODS[name] or twice[name])
        assert (answer.status, answer.code) == (401, "key-invalid")
        assert len(answer.body) < 1000 and b"x-admin" not in answer.body
        assert all(b"\r" not in value and b"\n" not in value for _, value in answer.raw_headers)


def test_unknown_and_revoked_keys_get_the_same_bytes(strict):
    app, _ = strict
    service = app.state.service
    entry, gone = service.keys.store.create(["admin"])
    service.keys.store.revoke(entry.id)

    def refusal(key):
        service.keys._next_look = 0.0
        answer = ask(app, headers=[*bearer(key), (b"x-request-id", b"same")])
        body = orjson.loads(answer.body)
        body["error"].pop("timestamp"), body["metadata"].pop("timestamp")
        return answer.status, sorted(answer.raw_headers), body

    answers = [refusal(k) for k in (gone.encode(), b"sp_00000000_" + b"x" * 43, b"sp_", gone.encode()[:-1])]
    assert answers[0][0] == 401 and all(answer == answers[0] for answer in answers)


ADDRESSES = [
    {"query": b"api_key=KEY"},
    {"query": b"horizon=1&access_token=KEY"},
    {"query": b"x=KEY"},
    {"query": b"API-KEY=anything"},
    {"query": b"token=eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2ln"},
    {"query": b"token=spr_0123456789abcdef_0123456789abcdef"},
    {"query": b"refresh_token=anything"},
    {"path": "/v1/predictions/spr_0123456789abcdef_0123456789abcdef"},
    {"path": "/v1/predictions/KEY"},
    {"path": "/KEY/../v1/predictions/AAPL"},
]


@pytest.mark.parametrize("where", ADDRESSES)
def test_a_key_in_the_address_is_refused_and_never_repeated(strict, capfd, where):
    app, own = strict
    key = own["viewer"]
    place = {
        name: value.replace(b"KEY", key) if isinstance(value, bytes) else value.replace("KEY", key.decode())
        for name, value in where.items()
    }
    app.state.service.logs_requests = True
    try:
        for headers in ([], bearer(key)):
            answer = ask(app, headers=headers, **place)
            assert (answer.status, answer.code) == (400, "key-in-address")
            assert key.split(b"_", 2)[2] not in answer.body
    finally:
        app.state.service.logs_requests = False
    printed = capfd.readouterr()
    assert key.split(b"_", 2)[2].decode() not in printed.out + printed.err


def test_a_key_typed_into_a_browser_opens_pages_and_changes_nothing(strict):
    app, own = strict
    typed = [(b"authorization", b"Basic " + base64.b64encode(b"me:" + own["admin"]))]
    html = (b"accept", b"text/html,application/xhtml+xml")
    asked = ask(app, path="/", headers=[html])
    assert [v for n, v in asked.raw_headers if n == b"www-authenticate"][1].startswith(b"Basic")
    assert ask(app, path="/", headers=[*typed, html]).status == 200
    for method, path in (("POST", "/v1/predict"), ("POST", "/v1/train"), ("DELETE", "/v1/jobs/1")):
        assert ask(app, method, path, typed).status == 401
    foreign = [*typed, (b"origin", b"https://evil.example")]
    assert ask(app, path="/", headers=foreign).status == 401


# ---- the desk


FOREIGN_HOSTS = [
    b"rebound.example",
    b"rebound.example:8000",
    b"0.0.0.0:8000",
    b"127.0.0.1.nip.io",
    b"localhost.evil.example",
]
FOREIGN_HOSTS += [
    b"[::ffff:10.0.0.1]:8000",
    b"",
    b"localhost@evil.example",
    b"127.0.0.1:8000, evil.example",
    b"\xff",
    b"169.254.169.254",
]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_rebound_name_is_not_the_desk(desk, host):
    for path in (READ, "/", "/v1/models", "/metrics", "/docs"):
        answer = ask(desk, path=path, host=host)
        assert (answer.status, answer.code) == (403, "proxy-refused")


@pytest.mark.parametrize(
    "host", [b"localhost", b"127.0.0.1:8000", b"[::1]:8000", b"LOCALHOST:1", b"a.localhost", b"localhost."]
)
def test_every_loopback_name_is(desk, host):
    assert ask(desk, host=host).status == 200


PROXIES = [
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"via",
    b"x-real-ip",
    b"cf-connecting-ip",
]


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_does_not_inherit_the_rights_of_the_desk(desk, strict, name):
    for value in (b"127.0.0.1", b"", b"for=127.0.0.1"):
        answer = ask(desk, headers=[(name, value)])
        assert (answer.status, answer.code) == (403, "proxy-refused")
        answer = ask(desk, "POST", "/v1/train", [(name, value)])
        assert (answer.status, answer.reads) == (403, 0)
    app, own = strict
    assert ask(app, headers=[*bearer(own["viewer"]), (name, b"192.0.2.7")], host=b"api.example").status == 200


@pytest.mark.parametrize(
    "client", [("192.0.2.7", 5), ("10.0.0.1", 5), ("fe80::1", 5), ("", 0), None, ("127.0.0.1.evil", 1)]
)
def test_a_connection_from_elsewhere_is_not_the_desk(desk, client):
    assert ask(desk, client=client).status == 403


@pytest.mark.parametrize(
    "origin",
    [b"https://evil.example", b"null", b"http://localhost:3000", b"http://localhost", b"file://", b""],
)
def test_a_page_of_another_origin_moves_nothing_at_the_desk(desk, origin):
    for method, path in (
        ("POST", "/v1/train"),
        ("DELETE", "/v1/jobs/1"),
        ("POST", "/v1/predict"),
        ("GET", READ),
    ):
        answer = ask(desk, method, path, [(b"origin", origin)])
        assert (answer.status, answer.code, answer.reads) == (403, "origin-refused", 0)
    assert ask(desk, headers=[(b"origin", b"http://localhost:8000")]).status == 200


def test_a_websocket_passes_the_same_door(desk, strict):
    def connect(app, *headers, query=b""):
        sent = []

        coming = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]

        async def receive():
            return coming.pop(0) if len(coming) > 1 else coming[0]

        async def send(message):
            sent.append(message)

        scope = {
            "type": "websocket",
            "path": "/v1/ws",
            "raw_path": b"/v1/ws",
            "query_string": query,
            "scheme": "ws",
        }
        scope |= {"client": ("127.0.0.1", 5), "subprotocols": [], "root_path": "", "headers": [*headers]}
        asyncio.run(app(scope, receive, send))
        return sent[:1]

    host, (app, own) = (b"host", b"localhost:8000"), strict
    refused = [
        connect(app, host),
        connect(app, host, (b"x-api-key", b"sp_1_x")),
        connect(app, host, query=b"access_token=" + own["viewer"]),
        connect(desk, host, (b"origin", b"https://evil.example")),
        connect(desk, (b"host", b"rebound.example")),
        connect(desk, host, (b"x-forwarded-for", b"127.0.0.1")),
    ]
    assert [first[0]["type"] for first in refused] == ["websocket.close"] * 6
    assert connect(app, host, *bearer(own["viewer"]))[0]["type"] == "websocket.accept"


# ---- other origins


def test_only_listed_origins_may_read_and_none_by_default(strict, desk):
    app, own = strict
    key = bearer(own["viewer"])
    answer = ask(app, headers=[*key, (b"origin", b"https://desk.example")])
    assert answer.headers["access-control-allow-origin"] == "https://desk.example"
    assert "access-control-allow-credentials" not in answer.headers
    for origin in (
        b"https://evil.example",
        b"null",
        b"https://desk.example.evil.example",
        b"http://desk.example",
        b"*",
    ):
        answer = ask(app, headers=[*key, (b"origin", origin)])
        assert (
            "access-control-allow-origin" not in answer.headers and (b"vary", b"origin") in answer.raw_headers
        )
        question = [(b"origin", origin), (b"access-control-request-method", b"POST")]
        assert ask(app, "OPTIONS", "/v1/train", question).status == 401
    question = [(b"origin", b"https://desk.example"), (b"access-control-request-method", b"POST")]
    answer = ask(app, "OPTIONS", "/v1/train", question)
    assert answer.status == 204 and "authorization" in answer.headers["access-control-allow-headers"]
    assert not any(name.startswith(b"access-control") for name, _ in ask(desk).raw_headers)


@pytest.mark.parametrize("path", [READ, "/", "/docs", "/v1/models", "/nowhere", "/health/live"])
def test_every_answer_carries_the_strict_headers(strict, path):
    app, own = strict
    for headers in ([], bearer(own["viewer"])):
        names = ask(app, path=path, headers=headers).headers
        assert names["x-content-type-options"] == "nosniff" and names["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in names["content-security-policy"]
        assert names["cross-origin-resource-policy"] == names["cross-origin-opener-policy"] == "same-origin"
        assert "server" not in names and "x-powered-by" not in names


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: x=1", b"a\nb", b"x" * 65, b"\xff", b"<script>", b""])
def test_a_request_id_cannot_carry_anything_into_the_answer(desk, value):
    answer = ask(desk, headers=[(b"x-request-id", value)])
    assert answer.headers["x-request-id"].encode() != value and b"set-cookie" not in answer.body


# ---- what a body may claim


def test_nobody_gives_himself_rights_by_a_body_a_header_or_a_query(strict):
    app, own = strict
    claims = {"caller": "local", "permissions": list(PERMISSIONS), "role": "admin", "is_admin": True}
    for claim, value in claims.items():
        body = json.dumps({"ticker": "AAPL", "bars": [], claim: value}).encode()
        kind = (b"content-type", b"application/json")
        answer = ask(app, "POST", "/v1/predict", [*bearer(own["analyst"]), kind], body=body)
        assert answer.status == 422 and claim in answer.body.decode()
        header = (f"x-{claim.replace('_', '-')}".encode(), str(value).encode())
        assert ask(app, path="/metrics", headers=[*bearer(own["viewer"]), header]).status == 403
        query = f"{claim}={value}".encode()
        assert ask(app, headers=bearer(own["viewer"]), query=query).status == 422


def test_jobs_of_others_do_not_exist_for_a_viewer(strict):
    app, own = strict
    store = app.state.service.jobs
    mine, foreign = (
        store.submit("batch", lambda job: {"rows": 1}, caller, at_most=9)
        for caller in (f"key:{own['viewer'].split(b'_')[1].decode()}", "key:somebody")
    )
    assert ask(app, path=f"/v1/jobs/{mine.id}", headers=bearer(own["viewer"])).status == 200
    assert ask(app, path=f"/v1/jobs/{foreign.id}", headers=bearer(own["operator"])).status == 200
    absent = ask(app, path="/v1/jobs/absent", headers=bearer(own["viewer"]))
    for method in ("GET", "DELETE"):
        answer = ask(app, method, f"/v1/jobs/{foreign.id}", bearer(own["viewer"]))
        assert (answer.status, answer.code) == (absent.status, absent.code) == (404, "not-found")
    for path in (f"/v1/batch/{foreign.id}", "/v1/batch/absent"):
        answer = ask(app, path=path, headers=bearer(own["analyst"]))
        assert (answer.status, answer.code) == (404, "not-found")
    listed = ask(app, path="/v1/jobs", headers=bearer(own["viewer"]))
    assert foreign.id.encode() not in listed.body and mine.id.encode() in listed.body


def known_jobs(app):
    return {job.id for job in app.state.service.jobs.jobs()}


def json_bodies(app):
    "Method, path and schema of every operation that takes JSON."
    schema = app.openapi()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            if body := content.get("application/json", {}).get("schema"):
                named = body.get("$ref", "").rpartition("/")[2]
                yield (
                    method.upper(),
                    re.sub(r"\{.*?\}", "1", path),
                    schema["components"]["schemas"].get(named, body),
                )


def test_no_body_takes_a_name_that_is_not_documented(strict):
    app, own = strict
    kind, seen, before = (b"content-type", b"application/json"), 0, known_jobs(app)
    for method, path, schema in json_bodies(app):
        assert schema["additionalProperties"] is False, path
        for claim in {"caller", "permissions", "signature", "verdict", "settings", "id", "__proto__"}:
            body = json.dumps({claim: "admin"}).encode()
            answer = ask(app, method, path, [*bearer(own["admin"]), kind], body=body)
            assert answer.status == 422 and claim in answer.body.decode(), (path, claim, answer.body)
        seen += 1
    assert seen >= 6
    assert known_jobs(app) == before


@pytest.mark.parametrize(
    "deep", [b"[" * 100_000, b'{"why":' * 50_000, b'{"bars":[' * 30_000], ids=["[", "{", "{["]
)
def test_no_body_is_too_deep_to_be_refused(strict, deep):
    app, own = strict
    kind = (b"content-type", b"application/json")
    for method, path, _ in json_bodies(app):
        answer = ask(app, method, path, [*bearer(own["admin"]), kind], body=deep)
        assert answer.status in (413, 422), (path, answer.status)
        assert len(answer.body) < 2000


# ---- what stands in an address


PAYLOADS = [
    *("../../access/keys.json", "..\\..\\access\\keys.json", "/etc/passwd", "....//....//access/keys.json"),
    *("%2e%2e%2faccess%2fkeys.json", "keys.json\x00.html", "x" * 5000, "' OR 1=1 --", "{{7*7}}", "${7*7}"),
    *("<script>alert(1)</script>", "a\r\nset-cookie: x=1", "1; rm -rf /", "$(id)", "*", "-1"),
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_nothing_in_place_of_a_parameter_reads_a_file_or_runs(strict, payload):
    app, own = strict
    stored = app.state.service.keys.store.path.read_bytes()
    more = [*bearer(own["admin"]), (b"content-type", b"application/json")]
    tried = 0
    for method, _, template in routes(app):
        if "{" not in template and template != "/reports":
            continue
        path = re.sub(r"\{[^}]*\}", lambda _: payload, template) + f"/{payload}" * (template == "/reports")
        answer = ask(app, method, path, more, body=b'{"why": "an attack"}')
        assert 400 <= answer.status < 500, (method, template, answer.status)
        assert len(answer.body) < 20_000 and stored[:40] not in answer.body and b"root:" not in answer.body
        assert b"<script>alert" not in answer.body or b"json" in answer.headers["content-type"].encode()
        assert all(b"\r" not in value and b"\n" not in value for _, value in answer.raw_headers)
        tried += 1
    assert tried >= 12 and app.state.service.keys.store.path.read_bytes() == stored


@pytest.fixture
def contacts():
    "What this process connects to, resolves or opens meanwhile, as the interpreter itself reports it."
    seen, watching = [], [True]

    def note(event, words):
        if watching and event in ("socket.connect", "socket.getaddrinfo", "open", "subprocess.Popen"):
            seen.append(repr(words))

    sys.addaudithook(note)  # cannot be removed; it ends with `watching`
    yield seen
    watching.clear()


FOREIGN = "http://169.254.169.254:9/evil.example"


def test_no_address_that_a_caller_names_is_contacted_or_redirected_to(strict, contacts):
    with pytest.raises(OSError):
        urllib.request.urlopen("http://127.0.0.1:9", timeout=5)
    assert any("127.0.0.1" in words for words in contacts)  # the watch sees a real contact
    app, own = strict
    key, url = bearer(own["admin"]), FOREIGN.encode()
    head = {"alg": "EdDSA", "typ": "at+jwt", "kid": FOREIGN, "jku": FOREIGN, "x5u": FOREIGN}
    parts = json.dumps(head).encode(), b'{"iss": "%b"}' % url, b"x" * 64
    token = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    answers = [ask(app, headers=bearer(token))]
    names = "origin referer forwarded x-forwarded-host x-forwarded-for x-original-url x-callback-url link"
    for name in names.split():
        answers.append(ask(app, headers=[*key, (name.encode(), url)]))
    for name in ("callback", "webhook", "url", "redirect_uri", "next", "tickers", "as_of", "model"):
        answers.append(ask(app, path="/v1/predictions", headers=key, query=f"{name}={FOREIGN}".encode()))
    kind = (b"content-type", b"application/json")
    for method, path, _ in routes(app):
        for name in ("webhook", "callback_url", "challenger", "bars") if method == "POST" else ():
            answers.append(ask(app, method, path, [*key, kind], body=json.dumps({name: FOREIGN}).encode()))
    paths = "//evil.example //evil.example/ /\\evil.example/ /reports//evil.example/.. /reports /v1/models/"
    for path in (*paths.split(), "/t//evil.example", f"/{FOREIGN}"):
        answers.append(ask(app, path=path, headers=key, host=b"169.254.169.254"))
    assert any("location" in answer.headers for answer in answers)
    for answer in answers:
        target = urljoin("http://this.service/reports", answer.headers.get("location", "/"))
        assert answer.status < 500 and urlsplit(target).netloc == "this.service" and "\\" not in target
    assert not [words for words in contacts if "169.254" in words or "evil.example" in words]


# ---- what a stranger learns


def test_without_a_key_what_exists_looks_like_what_does_not(strict):
    app, _ = strict

    def refusal(path):
        answer = ask(app, path=path, headers=[(b"x-request-id", b"same")])
        body = orjson.loads(answer.body)
        body["error"].pop("timestamp"), body["metadata"].pop("timestamp")
        assert body["error"].pop("instance") == path
        return answer.status, sorted(h for h in answer.raw_headers if h[0] != b"content-length"), body

    paths = [
        READ,
        "/v1/predictions/NOPE",
        "/v1/models/1",
        "/v1/models/99",
        "/v1/jobs/x",
        "/t/AAPL",
        "/nowhere",
    ]
    refusals = [refusal(path) for path in paths]
    assert refusals[0][0] == 401 and all(other == refusals[0] for other in refusals)


# ---- limits and the file of the keys


def test_too_many_requests_say_when_to_come_back(tmp_path):
    settings = build(tmp_path, **{"access.required": "always", "access.requests_per_minute": 3})
    _, key = KeyStore(settings.storage).create(["viewer"])
    _, other = KeyStore(settings.storage).create(["viewer"])
    app = create_app(settings)
    answers = [ask(app, headers=bearer(key.encode())) for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    last = answers[-1]
    assert last.code == "too-many-requests" and 1 <= int(last.headers["retry-after"]) <= 65
    assert last.headers["ratelimit-policy"] == '"requests";q=3;w=60'
    assert last.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert ask(app, headers=bearer(other.encode())).status == 200
    assert ask(app, path="/health/live").status == 200


def test_changes_of_state_have_their_own_limit(tmp_path):
    settings = build(tmp_path, **{"access.required": "always", "access.asks_per_minute": 2})
    _, key = KeyStore(settings.storage).create(["analyst"])
    app = create_app(settings)
    answers = [ask(app, "POST", "/v1/predict", bearer(key.encode()), body=b"{}") for _ in range(4)]
    assert [answer.status for answer in answers] == [415, 415, 429, 429]
    assert ask(app, headers=bearer(key.encode())).status == 200


def test_a_damaged_file_of_keys_lets_nobody_in_and_says_so(tmp_path):
    settings = build(tmp_path, **{"access.required": "always"})
    store = KeyStore(settings.storage)
    _, key = store.create(["admin"])
    app = create_app(settings)
    app.state.service.keys.every = 0.0
    assert ask(app, headers=bearer(key.encode())).status == 200
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-40])
    for headers in (bearer(key.encode()), bearer(b"sp_1_x")):
        answer = ask(app, headers=headers)
        assert (answer.status, answer.code) == (503, "keys-unreadable") and answer.headers["retry-after"]
    assert ask(app, path="/health/ready").status == 503 and ask(app, path="/health/live").status == 200
    store.path.write_bytes(whole)
    assert ask(app, headers=bearer(key.encode())).status == 200
    assert ask(app, path="/health/ready").status == 200


def test_an_open_desk_goes_on_without_its_keys_and_health_names_them(tmp_path):
    settings = build(tmp_path)
    store = KeyStore(settings.storage)
    _, key = store.create(["viewer"])
    store.path.write_bytes(b"damaged")
    app = create_app(settings)
    assert ask(app).status == 200 and ask(app, headers=bearer(key.encode())).status == 503
    report = orjson.loads(ask(app, path="/health").body)
    assert "keys" in report["trouble"] and "keys.json" in report["components"]["keys"]["reason"]


def test_an_expired_key_hears_it_only_with_its_secret(tmp_path, monkeypatch):
    settings = build(tmp_path, **{"access.required": "always"})
    _, key = KeyStore(settings.storage).create(["viewer"], days=1, now=1_800_000_000.0)
    app = create_app(settings)
    monkeypatch.setattr(keys.time, "time", lambda: 1_800_000_000.0 + 2 * keys.DAY)
    assert ask(app, headers=bearer(key.encode())).code == "key-expired"
    assert ask(app, headers=bearer(key.encode()[:-1])).code == "key-invalid"

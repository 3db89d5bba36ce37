"""What the service owes its callers: HEAD, tags, named mistakes, documented refusals."""

import asyncio

import httpx
import pytest

from stockpredict.access.permissions import LOCAL
from stockpredict.core.settings import load_settings
from stockpredict.predict.answer_table import write_example
from stockpredict.serve.app import create_app


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    "The service over the example table; it has no model."
    settings = load_settings(None, {"storage.home": str(tmp_path_factory.mktemp("home"))}, environ={})
    write_example(settings)
    return create_app(settings)


def send(app, method, path, **options):
    async def request():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(request())


PAGES = ("/", "/docs", "/health", "/health/live", "/health/ready", "/metrics", "/v1/models", "/openapi.json")


@pytest.mark.parametrize("path", ["/v1/predictions/AAPL", "/v1/predictions/aapl", "/v1/predictions", *PAGES])
def test_head_is_get_without_its_body(example, path):
    got, head = send(example, "GET", path), send(example, "HEAD", path)
    assert head.status_code == got.status_code == 200 and head.content == b"" != got.content
    changing = {"x-request-id", "content-length"} if path == "/metrics" else {"x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in changing} == {
        k: v for k, v in got.headers.items() if k not in changing
    }


@pytest.mark.parametrize("path", ["/v1/predictions/AAPL", "/v1/predictions/aapl", "/v1/models", "/", "/docs"])
def test_both_spellings_of_a_tag_are_recognised(example, path):
    tag = send(example, "GET", path).headers["etag"]
    for spelling in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        unchanged = send(example, "GET", path, headers={"if-none-match": spelling})
        assert unchanged.status_code == 304 and unchanged.headers["etag"] == tag
        assert "content-length" not in unchanged.headers
    assert send(example, "GET", path, headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("/v1/predictions/AAPL?horison=1", "Did you mean horizon?"),
        ("/v1/predictions/aapl?horison=1", "Did you mean horizon?"),
        ("/v1/predictions?ticker=AAPL", "Did you mean tickers?"),
        ("/metrics?limit=3", "This address takes no parameters."),
        ("/v1/predictions?tickers=,,,", "Leave `tickers` out to get every ticker."),
        ("/v1/predictions?tickers=%20", "Leave `tickers` out to get every ticker."),
    ],
)
def test_a_name_nobody_knows_is_refused_with_the_near_one(example, path, fix):
    refused = send(example, "GET", path)
    assert refused.status_code == 422 and refused.json()["error"]["fix"] == fix


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "application/x-www-form-urlencoded", ""])
def test_only_json_is_parsed(example, kind):
    body = b'{"bars":[{"date":"2022-12-26","close":1.5},{"date":"2022-12-27","close":1.5}]}'
    refused = send(example, "POST", "/v1/predict", content=body, headers={"content-type": kind})
    assert refused.status_code == 415 and refused.json()["error"]["code"] == "unsupported-media-type"
    taken = send(example, "POST", "/v1/predict", content=body, headers={"content-type": "application/json"})
    assert taken.json()["error"]["code"] == "not-ready"


@pytest.mark.parametrize(
    "bar",
    [
        {"date": "2022-12-27", "close": "1.5"},
        {"date": "2022-12-27", "close": True},
        {"date": "2022-12-27", "close": 1, "volume": "9"},
    ],
)
def test_a_text_is_no_price(example, bar):
    refused = send(example, "POST", "/v1/predict", json={"bars": [bar, {"date": "2022-12-26", "close": 2}]})
    assert refused.status_code == 422 and "bars.0" in refused.json()["error"]["message"]


def test_a_redirect_never_leads_to_the_host_of_the_request(example):
    away = send(example, "GET", "/reports")
    assert away.status_code == 308 and away.headers["location"] == "reports/"
    example.state.service.door.caller_of, usual = lambda scope: LOCAL, example.state.service.door.caller_of
    try:
        away = send(example, "GET", "/reports", headers={"host": "evil.example"})
    finally:
        example.state.service.door.caller_of = usual
    assert away.status_code == 308 and away.headers["location"] == "reports/"


async def raw(app, scope):
    "The messages an application sends for a scope."
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    plain = {"type": "http", "method": "GET", "query_string": b"", "headers": [], "client": ("127.0.0.1", 1)}
    await app(plain | scope, receive, send)
    return sent


@pytest.mark.parametrize(("version", "status"), [("1.1", 400), ("1.0", 200)])
def test_http_1_1_needs_a_host(example, version, status):
    scope = {"path": "/v1/predictions/AAPL", "raw_path": b"/v1/predictions/AAPL", "http_version": version}
    assert asyncio.run(raw(example, scope))[0]["status"] == status


def test_every_refusal_is_documented_as_it_is_sent(example):
    schema = send(example, "GET", "/openapi.json").json()
    assert "Failure" in schema["components"]["schemas"]
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    predict = schema["paths"]["/v1/predict"]["post"]["responses"]
    assert {"413", "415", "422", "503"} <= set(predict)
    asked = [
        ("get", "/v1/predictions/{ticker}", send(example, "GET", "/v1/predictions/APPL")),
        ("get", "/v1/predictions/{ticker}", send(example, "GET", "/v1/predictions/AAPL?horizon=9")),
        ("get", "/v1/predictions/{ticker}", send(example, "GET", "/v1/predictions/AAPL?horizon=x")),
        ("get", "/v1/predictions", send(example, "GET", "/v1/predictions?limit=0")),
        ("get", "/v1/models", send(example, "GET", "/v1/models?x=1")),
        ("post", "/v1/predict", send(example, "POST", "/v1/predict", content=b"x" * (1 << 21))),
        ("post", "/v1/predict", send(example, "POST", "/v1/predict", json={"bars": []})),
    ]
    for method, path, refused in asked:
        entry = schema["paths"][path][method]["responses"][str(refused.status_code)]
        assert entry["content"]["application/problem+json"]["schema"]["$ref"].endswith("/Failure")
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["error"]["code"] in entry["description"].split(", ")


def test_probes_of_an_orchestrator(example, tmp_path):
    empty = create_app(load_settings(None, {"storage.home": str(tmp_path)}, environ={}))
    assert [send(empty, "GET", f"/health/{p}").status_code for p in ("live", "ready")] == [200, 503]
    assert send(example, "GET", "/health/ready").status_code == 200
    assert "lake" in send(example, "GET", "/health/dependencies").json()["components"]


def test_no_route_runs_a_plain_function_in_a_thread(settings):
    "FastAPI sends plain functions to a pool of threads, which costs more than the rest of a request."
    from inspect import iscoroutinefunction

    from fastapi.routing import APIRoute

    def calls(dependant):
        yield dependant.call
        for part in dependant.dependencies:
            yield from calls(part)

    routes = [r for r in create_app(settings).routes if isinstance(r, APIRoute)]
    plain = {
        (r.path, c.__qualname__) for r in routes for c in calls(r.dependant) if not iscoroutinefunction(c)
    }
    assert len(routes) > 20 and plain == set()

"""Reading predictions: formats, caches, encodings, pages, and many tickers at once."""

import asyncio
import csv
import gzip
import io
import random
import time

import httpx
import orjson
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from fastapi import FastAPI
from stockpredict.core.settings import load_settings
from stockpredict.serve.answer_pages import PageCache, select_page
from stockpredict.predict.answer_table import (
    EXAMPLE_HEADER,
    AnswerTable,
    example_answer,
    example_table,
    pack_table,
    table_signer,
    write_example,
    write_table,
)
from stockpredict.serve.app import create_app
from stockpredict.serve.caching import RenderCache, keep_seconds
from stockpredict.serve.fast_path import FastPath
from stockpredict.serve.formats import MEDIA_TYPES, accepted_formats
from stockpredict.serve.request_rules import retired

CARD = {"model": "ridge", "evidence": "weak", "verdict": "Weak evidence, -0.3 % a day; =no formula."}
HEADS = {"direction": CARD, "volatility": CARD | {"evidence": "strong"}}


def wide_table(settings, tickers=150, heads=HEADS, **header):
    "A signed table of many tickers, whose model has verdicts on two heads."
    bodies = {}
    for ticker in (f"T{n:03d}" for n in range(tickers)):
        for horizon in (1, 5):
            answer = example_answer(ticker, horizon)
            answer["model"] = answer["model"] | {"heads": heads}
            bodies[ticker, horizon] = orjson.dumps(answer)[:-1]
    return pack_table(EXAMPLE_HEADER | header, bodies, table_signer(settings))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    "The service over a table of 150 tickers; it has no model."
    settings = load_settings(None, {"storage.home": str(tmp_path_factory.mktemp("home"))}, environ={})
    write_example(settings)
    write_table(wide_table(settings), settings.storage.serving_dir)
    return create_app(settings)


def send(app, *requests, **headers):
    "GET responses; no header is sent but these."

    async def all_of_them():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            client.headers.clear()
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            return [await client.get(path, headers=names) for path in requests]

    responses = asyncio.run(all_of_them())
    return responses[0] if len(responses) == 1 else responses


def raw(app, path, query=b"", **headers):
    "Status, headers and body, not decompressed."

    async def request():
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def keep(message):
            sent.append(message)

        own = [(b"host", b"localhost"), *((k.replace("_", "-").encode(), v) for k, v in headers.items())]
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": own}
        scope |= {"query_string": query, "http_version": "1.1", "scheme": "http", "root_path": ""}
        await app(scope | {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 1)}, receive, keep)
        return sent[0]["status"], dict(sent[0]["headers"]), b"".join(m["body"] for m in sent[1:])

    return asyncio.run(request())


def rows_of(response):
    "The rows of a response in any format, as dicts."
    kind = response.headers["content-type"].partition(";")[0]
    if kind == MEDIA_TYPES["arrow"]:
        return pa.ipc.open_stream(response.content).read_all().to_pylist()
    if kind == MEDIA_TYPES["parquet"]:
        return parquet.read_table(io.BytesIO(response.content)).to_pylist()
    return list(csv.DictReader(io.StringIO(response.text)))


@pytest.mark.parametrize("kind", ["arrow", "parquet", "csv"])
def test_columns_say_what_the_json_says(wide, kind):
    answers = []
    cursor = ""
    while True:
        page = send(wide, f"/v1/predictions?limit=100&cursor={cursor}").json()
        answers += page["data"]
        if not (cursor := page["metadata"].get("next_cursor", "")):
            break
    rows = rows_of(send(wide, f"/v1/predictions?format={kind}"))
    assert len(rows) == len(answers) == 300
    for row, answer in list(zip(rows, answers))[::37]:
        same = str if kind == "csv" else lambda x: x
        assert row["ticker"] == answer["ticker"] and float(row["p_up"]) == answer["p_up"]
        for level, quantile in answer["quantiles"].items():
            assert float(row[f"q{level}"]) == quantile
            assert float(row[f"price_q{level}"]) == answer["prices"][level]
        assert str(row["target_session"]) == answer["target_session"]
        assert float(row["volatility_daily"]) == answer["volatility"]["daily"]
        assert float(row["volatility_horizon"]) == answer["volatility"]["horizon"]
        model = answer["model"]
        names = {"model": "name", "artifact": "artifact", "skill": "skill", "verdict": "verdict"}
        assert all(row[column] == model[field] for column, field in names.items())
        assert row["model_version"] == same(model["version"]) and row["snapshot"] == same(1)
        for head in ("direction", "volatility"):
            for field in ("model", "evidence", "verdict"):
                assert row[f"{head}_{field}"] == model["heads"][head][field]
        assert not row["intervals_verdict"], "a head without a verdict is empty"
        assert row["staleness_sessions"] == same(answer["staleness"]["sessions"])
        assert row["staleness_state"] == answer["staleness"]["state"]
        assert row["disclaimer"] == answer["disclaimer"] and row["fingerprint"] == answer["fingerprint"]


def test_older_tables_without_heads_have_the_same_columns(wide, tmp_path):
    settings = load_settings(None, {"storage.home": str(tmp_path)}, environ={})
    write_example(settings)
    old = send(create_app(settings), "/v1/predictions?format=arrow")
    new = send(wide, "/v1/predictions?format=arrow")
    schemas = [pa.ipc.open_stream(r.content).schema for r in (old, new)]
    assert schemas[0].names == schemas[1].names
    assert rows_of(old)[0]["direction_verdict"] is None


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "json"),
        ("text/csv", "csv"),
        ("application/json;q=0.2, text/*", "csv"),
        ("application/vnd.apache.arrow.stream", "arrow"),
        ("application/vnd.apache.parquet;q=1.0, */*;q=0.1", "parquet"),
        ("TEXT/CSV", "csv"),
    ],
)
def test_the_header_accept_chooses(wide, accept, kind):
    response = send(wide, "/v1/predictions?tickers=T001", accept=accept)
    assert response.headers["content-type"].startswith(MEDIA_TYPES[kind])


@pytest.mark.parametrize("request_of", [("format=xlsx", "*/*"), ("", "image/png"), ("", "text/csv;q=0")])
def test_what_is_not_offered_is_refused_with_the_list(wide, request_of):
    query, accept = request_of
    refused = send(wide, f"/v1/predictions?{query}", accept=accept)
    assert refused.status_code == 406 and refused.json()["error"]["code"] == "not-acceptable"
    assert all(media in refused.json()["error"]["fix"] for media in MEDIA_TYPES.values())


@pytest.mark.parametrize(
    "nonsense", ["", ";;;", "q=1", "*/*;q=abc", "text/csv;q=-4", "\xff/\xff", "," * 5000]
)
def test_no_header_accept_is_an_error_of_ours(nonsense):
    assert set(accepted_formats(nonsense)) <= set(MEDIA_TYPES)


def test_no_cell_of_a_table_is_a_formula(wide, tmp_path):
    settings = load_settings(None, {"storage.home": str(tmp_path)}, environ={})
    write_example(settings)
    evil = {"direction": CARD | {"model": "=cmd|' /C calc'!A0", "verdict": "@SUM(1)\r\n+1"}}
    write_table(wide_table(settings, 2, evil), settings.storage.serving_dir)
    for row in rows_of(send(create_app(settings), "/v1/predictions?format=csv")):
        text = [v for k, v in row.items() if not k.startswith(("q0", "price", "expected"))]
        assert not any(v[:1] in "=+@\t\r" and v for v in text), text
        assert row["direction_model"] == "'=cmd|' /C calc'!A0"


@pytest.mark.parametrize("kind", ["arrow", "parquet", "csv"])
def test_columns_of_chosen_tickers_and_pages(wide, kind):
    rows = rows_of(send(wide, f"/v1/predictions?format={kind}&tickers=t005,T001&horizon=5"))
    assert [(r["ticker"], int(r["horizon"])) for r in rows] == [("T001", 5), ("T005", 5)]
    seen, path = [], f"/v1/predictions?format={kind}&limit=60&horizon=1"
    while path:
        response = send(wide, path)
        seen += [r["ticker"] for r in rows_of(response)]
        link = response.headers.get("link", "")
        path = link[1 : link.index(">")] if link else ""
    assert seen == [f"T{n:03d}" for n in range(150)]


@pytest.mark.parametrize(
    "path", ["/v1/predictions", "/v1/predictions?format=csv", "/v1/predictions?format=arrow"]
)
@pytest.mark.parametrize("accept", [b"gzip", b"zstd", b"gzip, zstd;q=0.1", b"br, identity", b"gzip;q=0", b""])
def test_encodings_unpack_to_the_same(wide, path, accept):
    address, _, query = path.partition("?")
    plain = raw(wide, address, query.encode())
    status, headers, body = raw(wide, address, query.encode(), accept_encoding=accept)
    encoding = headers.get(b"content-encoding", b"")
    assert status == 200 and encoding == {b"br, identity": b"", b"gzip;q=0": b""}.get(accept, accept[:4])
    unpacked = {
        b"gzip": gzip.decompress,
        b"zstd": lambda b: zstandard.ZstdDecompressor().decompressobj().decompress(b),
        b"": bytes,
    }[encoding](body)
    assert int(headers[b"content-length"]) == len(body)
    assert encoding == b"" or len(body) < len(unpacked) / 4
    if "format" in path:
        assert unpacked == plain[2]
        assert (headers[b"etag"] == plain[1][b"etag"]) is (encoding == b""), "other bytes, another strong tag"
        assert not headers[b"etag"].startswith(b"W/")
    else:
        assert orjson.loads(unpacked)["data"] == orjson.loads(plain[2])["data"]
    assert b"accept-encoding" in headers[b"vary"]


def test_standard_clients_read_the_compressed_page(wide):
    "Bodies are finished for each request; httpx unpacks them with the standard library."
    for accept in ("gzip", "zstd"):
        response = send(wide, "/v1/predictions?limit=50", accept_encoding=accept)
        assert response.headers["content-encoding"] == accept
        assert response.json()["metadata"]["request_id"] == response.headers["x-request-id"]
        assert len(response.json()["data"]) == 100


def test_small_answers_are_not_compressed(wide):
    for path in ("/v1/predictions/T001", "/v1/predictions?tickers=T001&horizon=1"):
        response = send(wide, path, accept_encoding="gzip, zstd")
        assert "content-encoding" not in response.headers


@pytest.mark.parametrize("kind", ["arrow", "parquet", "csv"])
@pytest.mark.parametrize("question", ["", "&tickers=T001,T002", "&limit=7", "&horizon=1"])
def test_the_strong_tag_of_each_question_is_its_own(wide, kind, question):
    path = f"/v1/predictions?format={kind}{question}"
    first, again = send(wide, path, path)
    assert first.content == again.content and first.headers["etag"] == again.headers["etag"]
    unchanged = send(wide, path, if_none_match=first.headers["etag"])
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert "content-length" not in unchanged.headers and unchanged.headers["vary"]
    other = send(wide, f"/v1/predictions?format={kind}&tickers=T009", if_none_match=first.headers["etag"])
    assert other.status_code == 200


def test_whole_tables_are_rendered_once(wide, monkeypatch):
    from stockpredict.serve import prediction_routes

    real, calls = prediction_routes.render_columns, []
    monkeypatch.setattr(prediction_routes, "render_columns", lambda *a: (calls.append(1), real(*a))[1])
    wide.state.service.reads.rendered.state = None

    async def burst():
        transport = httpx.ASGITransport(wide)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(*[client.get("/v1/predictions?format=parquet") for _ in range(8)])

    assert len({r.content for r in asyncio.run(burst())}) == 1 and len(calls) == 1


class Forgetful(PageCache):
    "Keeps no page."

    def get(self, *question):
        self.pages = {}
        return super().get(*question)


def questions_by_rank(draw):
    "300 queries, the first of which are asked most."
    names = [f"T{n:03d}" for n in range(150)]
    for _ in range(300):
        asked = f"tickers={','.join(draw.sample(names, draw.choice([1, 3, 20, 80])))}"
        pages = [f"limit={draw.randrange(1, 60)}", f"limit={draw.randrange(1, 60)}&horizon=5"]
        yield draw.choice([asked, asked, f"{asked}&horizon=1", *pages, f"format=csv&{asked}", "format=arrow"])


def test_a_zipf_load_comes_from_memory_and_without_any_memory_it_is_the_same(wide):
    draw, app, cold = random.Random(5), *(create_app(wide.state.service.settings) for _ in range(2))
    cold.state.service.reads.pages, cold.state.service.reads.rendered = Forgetful(), RenderCache(limit=0)
    known = list(questions_by_rank(draw))
    weights = [1 / (rank + 1) ** 1.2 for rank in range(len(known))]
    for query in draw.choices(known, weights, k=700):
        packed = {"accept_encoding": draw.choice(["gzip", "zstd", "identity"])}
        warm, same = (send(a, f"/v1/predictions?{query}", **packed) for a in (app, cold))
        assert warm.status_code == same.status_code == 200
        content = [answer.content.partition(b',"metadata":')[0] for answer in (warm, same)]
        assert content[0] == content[1], query
    pages, rendered = app.state.service.reads.pages, app.state.service.reads.rendered
    assert pages.hits / (pages.hits + pages.misses) >= 0.7 and rendered.hits > rendered.misses
    assert cold.state.service.reads.pages.hits == cold.state.service.reads.rendered.hits == 0


def test_a_page_belongs_to_its_table(tmp_path):
    settings = load_settings(None, {"storage.home": str(tmp_path)}, environ={})
    write_example(settings)
    write_table(wide_table(settings, 20), settings.storage.serving_dir)
    app = create_app(settings)
    first = send(app, "/v1/predictions?limit=5").json()
    cursor = first["metadata"]["next_cursor"]
    assert send(app, f"/v1/predictions?limit=5&cursor={cursor}").json()["data"][0]["ticker"] == "T005"
    write_table(wide_table(settings, 20, built_at="2023-01-01T00:00:00+00:00"), settings.storage.serving_dir)
    app.state.service._next_check = 0.0
    app.state.service.table_file._identity = None
    refused = send(app, f"/v1/predictions?limit=5&cursor={cursor}")
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "page-expired"
    assert "Start again" in refused.json()["error"]["fix"]


@pytest.mark.parametrize(
    "cursor", ["T005", "T005~", "~000000000000", "T005~00000000000g", "'~000000000000", "%00"]
)
def test_an_invented_cursor_is_refused(wide, cursor):
    refused = send(wide, f"/v1/predictions?cursor={cursor}")
    assert refused.status_code == 422 and refused.json()["error"]["code"] == "request-invalid"


LISTS = [
    "tickers=T003,T001",
    "tickers=T003%2CT001&horizon=5",
    "tickers=t003, T001 ,T001",
    "limit=3",
    "horizon=1&limit=2",
    "",
]


@pytest.mark.parametrize("query", LISTS)
def test_plain_lists_skip_the_router_and_say_the_same(wide, query, monkeypatch):
    routed = create_app(wide.state.service.settings, fast=False)
    for _ in range(3):
        answers = [send(app, f"/v1/predictions?{query}", x_request_id="same") for app in (wide, routed)]
        if answers[0].content == answers[1].content:
            break
    assert answers[0].content == answers[1].content
    assert dict(answers[0].headers) == dict(answers[1].headers)

    async def no_router(*_):
        raise AssertionError("the router was asked")

    monkeypatch.setattr(FastPath, "forward", no_router)
    assert send(wide, f"/v1/predictions?{query.replace(' ', '')}").status_code == 200


ROUTED = ["", "horizon=5", "model=5d0c3a1b", "as_of=2022-12-27", "horison=1", "horizon=1&horizon=5"]
ROUTED += ["horizon=x", "horizon=", "horizon=%35", "horizon=1+", "horizon=1&&model=", "limit=0"]
ROUTED += ["horizon=5.0", "=1", "&"]


@pytest.fixture(scope="module")
def two_ways(wide):
    "The router with plain routes, and with FastAPI's own functions behind the same addresses."
    from stockpredict.serve.direct_routes import PlainRoute

    quick, usual = (create_app(wide.state.service.settings, fast=False) for _ in range(2))
    plain = [r for r in usual.router.routes if isinstance(getattr(r.app, "app", None), PlainRoute)]
    assert [route.path for route in plain] == ["/v1/predictions/{ticker}", "/v1/predictions"]
    for route in plain:
        route.app.app = route.app.app.app
    return quick, usual


@pytest.mark.parametrize("query", ROUTED)
def test_a_plain_route_answers_what_the_framework_answers(two_ways, query):
    "The parameters are read without FastAPI's dependencies where they are plain, and nothing else changes."
    for path in ("/v1/predictions/T001", "/v1/predictions/..", "/v1/predictions"):
        for _ in range(3):  # the second may change between the two
            both = [send(app, f"{path}?{query}", x_request_id="same") for app in two_ways]
            if both[0].content == both[1].content:
                break
        assert both[0].content == both[1].content and dict(both[0].headers) == dict(both[1].headers)


@pytest.mark.parametrize("name", ["horizon", "limit"])
@pytest.mark.parametrize("path", ["/v1/predictions", "/v1/predictions/T001"])
def test_a_number_beyond_every_integer_is_a_mistake_of_the_request(wide, path, name):
    "Python refuses to parse more than 4300 digits."
    refused = send(wide, f"{path}?{name}={'9' * 5000}")
    assert refused.status_code == 422 and refused.json()["error"]["code"] == "request-invalid"


def test_questions_that_find_nothing_do_not_fill_the_memory(wide, monkeypatch):
    from stockpredict.serve import answer_pages

    monkeypatch.setattr(answer_pages, "KEPT_PAGES", 20 * answer_pages.PAGE_COST)
    table, pages = wide.state.service.ready_table(), answer_pages.PageCache()
    for n in range(200):
        assert not pages.get(table, b"cursor=Z%d~%b" % (n, table.digest[:12].encode())).rows
        assert len(pages.pages) <= 20


@pytest.mark.parametrize("typed", ["t001", "T001?horizon=5", "%20t001", "t001?horizon=1"])
def test_tickers_in_small_letters_skip_the_router(wide, typed, monkeypatch):
    async def no_router(*_):
        raise AssertionError("the router was asked")

    monkeypatch.setattr(FastPath, "forward", no_router)
    response = send(wide, f"/v1/predictions/{typed}")
    data = response.json()["data"]
    assert (data[0] if isinstance(data, list) else data)["ticker"] == "T001"


def test_the_work_for_a_page_does_not_grow_with_the_universe():
    "Counted in rows that are looked at, not in seconds."

    class Counted(dict):
        looks = 0

        def __getitem__(self, key):
            self.looks += 1
            return super().__getitem__(key)

        def __contains__(self, key):
            self.looks += 1
            return super().__contains__(key)

    body, looks = b'{"a":1', []
    for size in (100, 20_000):
        tickers = [f"T{n:06d}" for n in range(size)]
        table = AnswerTable(pack_table({"key": "k"}, {(t, 1): body for t in tickers}))
        table.rows = Counted(table.rows)
        cursor = select_page(table, limit=50).next_cursor
        select_page(table, limit=50, cursor=cursor)
        select_page(table, ",".join(tickers[-50:]))
        looks.append(table.rows.looks)
    assert looks[0] == looks[1]


DAY = 86_400
CLOSES = [1_000_000, 1_000_000 + DAY, 1_000_000 + 2 * DAY]
LAG = 900


@pytest.mark.parametrize(
    ("now", "seconds"),
    [
        (CLOSES[0] - 3600, 3600),
        (CLOSES[0] - 0.5, 0),
        (CLOSES[0], LAG),
        (CLOSES[0] + LAG - 10, 10),
        (CLOSES[0] + LAG, 0),
        (CLOSES[1] - 60, 0),
        (CLOSES[1] + 60, LAG - 60),
        (CLOSES[2] + DAY, 0),
    ],
)
def test_an_answer_is_kept_until_something_can_change(now, seconds):
    assert keep_seconds(CLOSES, now, LAG) == seconds
    assert keep_seconds([], now, LAG) == 0


@pytest.mark.parametrize(
    "path", ["/v1/predictions/T001", "/v1/predictions?limit=2", "/v1/predictions?format=csv"]
)
@pytest.mark.parametrize(
    ("later", "most", "expected"),
    [
        (-3600.0, 0, "private, max-age=3598"),
        (-3600.0, 60, "private, max-age=60"),
        (LAG + 60.0, 0, "no-cache"),
    ],
)
def test_cache_control_ends_before_the_next_bar(tmp_path, path, later, most, expected, monkeypatch):
    home = {"storage.home": str(tmp_path), "serving.cache_seconds": most}
    settings = load_settings(None, home, environ={})
    write_example(settings)
    closes = [int(time.time()) + 7200, int(time.time()) + 7200 + DAY]
    write_table(wide_table(settings, 3, closes=closes), settings.storage.serving_dir)
    monkeypatch.setattr("stockpredict.serve.service.time.time", lambda: closes[0] + later + 0.5)
    first = send(create_app(settings), path)
    assert first.headers["cache-control"] == expected
    unchanged = send(create_app(settings), path, if_none_match=first.headers["etag"])
    assert (unchanged.status_code, unchanged.headers["cache-control"]) == (304, expected)


def test_a_stale_answer_is_never_kept(tmp_path, monkeypatch):
    settings = load_settings(None, {"storage.home": str(tmp_path), "serving.stale_after": 1}, environ={})
    write_example(settings)
    closes = [int(time.time()) - 60, int(time.time()) + DAY]
    write_table(wide_table(settings, 3, closes=closes), settings.storage.serving_dir)
    response = send(create_app(settings), "/v1/predictions/T001?horizon=1")
    assert response.json()["data"]["staleness"] == {"sessions": 1, "state": "stale"}
    assert response.headers["cache-control"] == "no-cache"


def test_an_address_that_will_end_says_so_in_answers_and_refusals(wide):
    service, app = wide.state.service, FastAPI()

    @app.get("/v1/old", **retired("2026-03-01", "2027-03-01", "/v2/new"))
    async def old(fail: bool = False):
        return {} if not fail else 1 / 0

    front = FastPath(app, service)
    answered, refused = send(front, "/v1/old", "/v1/old?fail=7")
    for response, status in ((answered, 200), (refused, 422)):
        assert response.status_code == status
        assert response.headers["deprecation"] == "@1772323200"
        assert response.headers["sunset"] == "Mon, 01 Mar 2027 00:00:00 GMT"
        assert response.headers["link"] == '</v2/new>; rel="successor-version"'
    assert app.openapi()["paths"]["/v1/old"]["get"]["deprecated"] is True
    assert "deprecation" not in send(wide, "/v1/predictions/T001").headers


def test_another_model_of_the_table_answers_when_it_is_named(tmp_path):
    settings = load_settings(None, {"storage.home": str(tmp_path)}, environ={})
    write_example(settings)
    example = AnswerTable(example_table())
    artifact = "abcdef0123456789"
    other = {k: orjson.dumps(orjson.loads(b + b"}") | {"p_up": 0.25})[:-1] for k, b in example.rows.items()}
    raw_table = pack_table(example.header, dict(example.rows), table_signer(settings), {artifact: other})
    write_table(raw_table, settings.storage.serving_dir)
    app = create_app(settings)
    own, named, listed, unknown, invalid = send(
        app,
        "/v1/predictions/AAPL?horizon=1",
        f"/v1/predictions/AAPL?horizon=1&model={artifact[:8]}",
        f"/v1/predictions?model={artifact}&horizon=1",
        "/v1/predictions/AAPL?model=00000000",
        "/v1/predictions/AAPL?model=champion",
    )
    assert (own.json()["data"]["p_up"], named.json()["data"]["p_up"]) == (0.5, 0.25)
    assert {p["p_up"] for p in listed.json()["data"]} == {0.25}
    assert (unknown.status_code, invalid.status_code) == (404, 422)
    assert "These do: 5d0c3a1b, abcdef012345" in unknown.json()["error"]["fix"]

"""The service over ASGI: answers, refusals, headers, degradation. No port, no network."""

import asyncio
import re

import orjson
import pytest

from stockpredict.predict.schemas import Envelope, Prediction
from stockpredict.predict.answer_table import TABLE_FILE, AnswerTable, refresh_answers
from stockpredict.serve.answer_pages import Lookups

from served_desk import own_bars, publish


def get(served, settings, *paths, headers=None, method="GET", **kw):
    async def go():
        async with served(settings, **kw) as client:
            return [await client.request(method, p, headers=headers) for p in paths]

    responses = asyncio.run(go())
    return responses[0] if len(responses) == 1 else responses


def problem(response, status, code):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["success"] is False and body["data"] is None
    error = body["error"]
    assert {"type", "title", "status", "detail", "instance", "code", "message", "fix", "timestamp"} <= set(
        error
    )
    assert (error["code"], error["status"]) == (code, status) and error["detail"]
    assert body["metadata"]["request_id"] == response.headers["x-request-id"]
    return error


@pytest.mark.parametrize("fast", [True, False])
def test_one_ticker(served, template, fast):
    one, many = get(served, template, "/v1/predictions/SIM00?horizon=1", "/v1/predictions/SIM00", fast=fast)
    envelope = Envelope[Prediction].model_validate_json(one.content)
    assert one.json()["data"]["disclaimer"] == "Research output, not investment advice."
    assert (
        envelope.success
        and envelope.data.horizon == 1
        and envelope.data.staleness.state == "stale"
        and not envelope.data.stale_model
    )
    assert envelope.metadata.version == "v1" and envelope.metadata.request_id == one.headers["x-request-id"]
    both = Envelope[list[Prediction]].model_validate_json(many.content).data
    assert [p.horizon for p in both] == [1, 5] and both[0] == envelope.data


def test_fast_path_and_router_give_the_same_bytes_and_headers(served, template):
    tickers = AnswerTable.open(template.storage.serving_dir / TABLE_FILE).tickers
    paths = [f"/v1/predictions/{t}{q}" for t in tickers for q in ("", "?horizon=1", "?horizon=5")]
    for _ in range(3):
        fast, slow = (
            get(served, template, *paths, headers={"x-request-id": "same"}, fast=f) for f in (True, False)
        )

        def plain(responses):
            return [
                (r.status_code, re.sub(rb'"timestamp":"[^"]+"', b"", r.content), sorted(r.headers.items()))
                for r in responses
            ]

        assert plain(fast) == plain(slow)
        if [r.content for r in fast] == [r.content for r in slow]:
            return  # also the second was the same
    raise AssertionError("never within one second")


def test_the_fast_path_is_really_taken(served, template):
    async def go():
        async with served(template) as client:
            client.service.refresh_state()
            client.service.lookups = Lookups()
            client.service.table_file.check = lambda: None
            return await client.get("/v1/predictions/SIM00?horizon=1")

    assert asyncio.run(go()).status_code == 200

    async def poisoned():
        async with served(template) as client:
            client.service.refresh_state()
            bodies = client.service.lookups.by_query[b"horizon=1"]
            bodies["SIM00"] = bodies["SIM00"].replace(b"SIM", b"XIM")
            return await client.get("/v1/predictions/SIM00?horizon=1")

    assert asyncio.run(poisoned()).json()["data"]["ticker"] == "XIM00"


@pytest.mark.parametrize("typed", ["sim00", "Sim00", "%20SIM00%20"])
def test_tickers_in_other_spellings(served, template, typed):
    assert get(served, template, f"/v1/predictions/{typed}?horizon=1").json()["data"]["ticker"] == "SIM00"


def test_unknown_ticker_names_near_ones(served, template):
    error = problem(get(served, template, "/v1/predictions/SIM0?horizon=1"), 404, "unknown-ticker")
    assert re.search(r"Did you mean SIM\d\d or", error["fix"])


def test_known_ticker_without_a_current_bar_says_so(served, template):
    assert (
        "last is of"
        in problem(get(served, template, "/v1/predictions/SIM05"), 404, "unknown-ticker")["message"]
    )
    assert (
        "last is of"
        in problem(get(served, template, "/v1/predictions/SIM06"), 404, "unknown-ticker")["message"]
    )


def test_unknown_horizon_names_the_trained_ones(served, template):
    for path in (
        "/v1/predictions/SIM00?horizon=2",
        "/v1/predictions?horizon=2",
        "/v1/predictions/SIM00?horizon=-1",
    ):
        assert "1, 5" in problem(get(served, template, path), 404, "unknown-horizon")["fix"]


ATTACKS = [
    "';DROP TABLE bars;--",
    "%00",
    "A" * 10_000,
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "\u0410APL",
    "AAPL%0d%0aX-Evil:1",
    " ",
    "<script>alert(1)</script>",
    "${jndi:ldap://x}",
    "%F0%9F%92%A9",
    "\uff21\uff21\uff30\uff2c",
    "%2e%2e",
    "{{7*7}}",
    "=cmd|' /C calc'!A0",
    "A%20B",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_in_place_of_tickers_are_refused(served, template, attack):
    response = get(served, template, f"/v1/predictions/{attack}")
    assert response.status_code in (404, 422), response.text
    assert response.json()["success"] is False and len(response.content) < 2500
    assert "x-evil" not in response.headers
    assert (
        response.headers["content-type"] == "application/problem+json"
        and response.headers["x-content-type-options"] == "nosniff"
    )


@pytest.mark.parametrize(
    "path,status,code",
    [
        ("/v1/predictions/SIM00?horizon=abc", 422, "request-invalid"),
        ("/v1/predictions?limit=0", 422, "request-invalid"),
        ("/v1/predictions?limit=5000", 422, "request-invalid"),
        ("/nowhere", 404, "not-found"),
        ("/v1/predictions?tickers=SIM00,NOPE", 404, "unknown-ticker"),
        ("/v1/predictions?tickers=SIM00,';--", 422, "request-invalid"),
        ("/v1/predictions?cursor=" + "A" * 99, 422, "request-invalid"),
    ],
)
def test_refusals(served, template, path, status, code):
    problem(get(served, template, path), status, code)


def test_wrong_method(served, template):
    response = get(served, template, "/v1/models", method="DELETE")
    problem(response, 405, "request-invalid")
    assert response.headers["allow"] == "GET, HEAD"


def test_old_data_is_trouble_unless_the_source_is_historical(served, template, tmp_path):
    for source, state in (("simulated", "historical"), ("files", "trouble")):
        response = get(
            served, template.with_(**{"data.source": source, "data.files_path": str(tmp_path)}), "/health"
        )
        assert response.status_code == 200 and response.json()["components"]["data"]["status"] == state
        assert ("data" in response.json()["trouble"]) is (state == "trouble")


def test_pages_of_the_list_cover_everything_once(served, template):
    async def go():
        seen, cursor = [], ""
        async with served(template) as client:
            while True:
                page = (
                    await client.get("/v1/predictions", params={"horizon": 1, "limit": 5, "cursor": cursor})
                ).json()
                seen += [p["ticker"] for p in page["data"]]
                assert page["metadata"]["count"] == len(page["data"]) <= 5
                if not (cursor := page["metadata"].get("next_cursor")):
                    return seen

    assert asyncio.run(go()) == AnswerTable.open(template.storage.serving_dir / TABLE_FILE).tickers


def test_chosen_tickers(served, template):
    page = get(served, template, "/v1/predictions?tickers=sim03,SIM01,SIM01&horizon=5").json()
    assert [(p["ticker"], p["horizon"]) for p in page["data"]] == [("SIM01", 5), ("SIM03", 5)]


def test_unchanged_costs_no_body(served, template):
    tag = get(served, template, "/v1/predictions/SIM00?horizon=1").headers["etag"]
    for path in (
        "/v1/predictions/SIM00?horizon=1",
        "/v1/predictions/sim00?horizon=1",
        "/v1/predictions?tickers=SIM00",
    ):
        again = get(served, template, path, headers={"if-none-match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (
        get(served, template, "/v1/predictions/SIM00", headers={"if-none-match": 'W/"other"'}).status_code
        == 200
    )


def test_the_tag_changes_with_the_table(served, settings):
    before = get(served, settings, "/v1/predictions/SIM00").headers["etag"]
    publish(settings, "ridge", 2)
    refresh_answers(settings)
    assert get(served, settings, "/v1/predictions/SIM00").headers["etag"] != before


@pytest.mark.parametrize(
    "proposed,accepted",
    [("order-17_a.b", True), ("x" * 65, False), ("a b", False), ('a"b', False), ("", False)],
)
def test_request_ids(served, template, proposed, accepted):
    response = get(served, template, "/v1/predictions/SIM00", headers={"x-request-id": proposed})
    rid = response.headers["x-request-id"]
    assert (rid == proposed) is accepted and rid and response.json()["metadata"]["request_id"] == rid


def test_every_answer_carries_the_security_headers(served, template):
    for r in get(
        served,
        template,
        "/",
        "/docs",
        "/health",
        "/metrics",
        "/v1/predictions/SIM00",
        "/nowhere",
        "/reports/x",
        "/assets/docs.js",
        "/openapi.json",
    ):
        assert (
            r.headers["x-content-type-options"] == "nosniff" and r.headers["referrer-policy"] == "no-referrer"
        )
        assert (
            "default-src 'none'" in r.headers["content-security-policy"]
            and "unsafe" not in r.headers["content-security-policy"]
        )
        assert r.headers["x-request-id"]


def test_staleness_is_counted_when_read(served, settings, monkeypatch):
    table = AnswerTable.open(settings.storage.serving_dir / TABLE_FILE)
    for sessions in (0, 1, 2, 3, 7):
        at = table.header["closes"][sessions] - 60
        monkeypatch.setattr("stockpredict.predict.answer_table.time.time", lambda at=at: at)
        staleness = get(served, settings, "/v1/predictions/SIM00?horizon=1").json()["data"]["staleness"]
        assert staleness == {"sessions": sessions, "state": "stale" if sessions >= 3 else "fresh"}


def test_a_new_table_is_served_without_a_restart(served, settings):
    async def go():
        async with served(settings) as client:
            first = (await client.get("/v1/predictions/SIM00?horizon=1")).json()["data"]["model"]["name"]
            publish(settings, "ridge", 2, "weak")
            refresh_answers(settings)
            while True:
                model = (await client.get("/v1/predictions/SIM00?horizon=1")).json()["data"]["model"]
                if model["name"] != first:
                    return first, model
                await asyncio.sleep(0.1)

    first, then = asyncio.run(go())
    assert (
        first == "mean"
        and then["name"] == "ridge"
        and then["skill"] == "weak"
        and "eak evidence" in then["verdict"]
    )


def test_without_a_table_everything_says_what_to_do(served, settings):
    for f in settings.storage.serving_dir.glob("*.bin"):
        f.unlink()
    one, many, health, front, docs, metrics = get(
        served, settings, "/v1/predictions/SIM00", "/v1/predictions", "/health", "/", "/docs", "/metrics"
    )
    for r in (one, many):
        assert "stockpredict predict" in problem(r, 503, "not-ready")["fix"] and r.headers["retry-after"]
    assert health.status_code == 503 and health.json()["status"] == "down"
    assert "stockpredict predict" in front.text and docs.status_code == metrics.status_code == 200


def test_a_moved_pointer_heals_by_itself(served, settings):
    "The background loop notices the new champion and writes its table."

    async def go():
        async with served(settings, background=True) as client:
            publish(settings, "ridge", 2, "strong")
            while True:
                prediction = (await client.get("/v1/predictions/SIM00?horizon=1")).json()["data"]
                if prediction["model"]["name"] == "ridge" and not prediction["stale_model"]:
                    return True
                await asyncio.sleep(0.2)

    assert asyncio.run(go())


def test_a_refused_champion_is_flagged_and_the_old_answers_stay(served, settings):
    async def go():
        place = publish(settings, "ridge", 2)
        (place / "state.json").write_bytes(b"{}")
        async with served(settings, background=True) as client:
            while True:
                prediction = (await client.get("/v1/predictions/SIM00?horizon=1")).json()["data"]
                assert prediction["model"]["name"] == "mean"
                if prediction["stale_model"]:
                    break
                await asyncio.sleep(0.2)
            return prediction, (await client.get("/health")).json(), (await client.get("/metrics")).text

    prediction, health, metrics = asyncio.run(go())
    assert (
        prediction["stale_model"]
        and health["status"] == "degraded"
        and "refused" in health["components"]["model"]["reason"]
    )
    assert "stockpredict_stale_model 1\n" in metrics


def test_a_lost_lake_and_registry_do_not_reach_stored_answers(served, settings):
    import shutil

    shutil.rmtree(settings.storage.lake_dir)
    shutil.rmtree(settings.storage.registry_dir)

    async def go():
        async with served(settings, background=True) as client:
            await asyncio.sleep(2)
            return await client.get("/v1/predictions/SIM00"), (await client.get("/health")).json()

    response, health = asyncio.run(go())
    assert (
        response.status_code == 200
        and health["status"] == "degraded"
        and {"lake", "model"} <= set(health["trouble"])
    )


JSON = {"content-type": "application/json"}


def what_if(served, settings, *bodies, **kw):
    async def go():
        async with served(settings, **kw) as client:
            return [
                await client.post(
                    "/v1/predict", headers=JSON, **({"content": b} if isinstance(b, bytes) else {"json": b})
                )
                for b in bodies
            ]

    return asyncio.run(go())


@pytest.fixture(scope="module")
def history(template):
    from stockpredict.predict.engine import Engine

    return [{**b, "date": str(b["date"])} for b in own_bars(Engine(template), "SIM01")]


def test_own_bars_get_the_stored_answer_when_they_are_the_stored_bars(served, template, history):
    one, many = what_if(
        served,
        template,
        {"ticker": "SIM01", "bars": history, "horizon": 5},
        {"ticker": "SIM01", "bars": history},
    )
    prediction = Envelope[Prediction].model_validate_json(one.content).data
    stored = (
        Envelope[Prediction]
        .model_validate(get(served, template, "/v1/predictions/SIM01?horizon=5").json())
        .data
    )
    assert prediction.source == "caller" and prediction.model_copy(update={"source": "lake"}) == stored
    assert [p["horizon"] for p in many.json()["data"]] == [1, 5]
    assert one.headers["cache-control"] == "no-store"


def test_a_different_history_gets_a_different_answer(served, template, history):
    wild = [{**b, "close": b["close"] * (1 + 0.2 * (i % 2))} for i, b in enumerate(history[-60:-1])] + [
        history[-1]
    ]
    wild = [{"date": b["date"], "close": b["close"]} for b in wild]
    calm, response = what_if(served, template, {"bars": history, "horizon": 1}, {"bars": wild, "horizon": 1})
    assert response.json()["data"]["volatility"]["daily"] > 3 * calm.json()["data"]["volatility"]["daily"]


BODIES = [
    b"",
    b"[]",
    b"null",
    b"{",
    b'{"bars":[]}',
    b'{"bars":"x"}',
    b"[" * 100_000,
    b'{"bars":' + b"[" * 50_000,
    b"\x1f\x8b\x08\x00",
    b"\xff\xfe\x00",
    b'{"ticker":"' + b"A" * 5000 + b'","bars":[]}',
    b'{"__class__":"os.system","bars":[]}',
]
BODIES += [
    b'{"bars":[{"date":"2016-07-05","close":1},{"date":%b}]}' % bar
    for bar in (
        b'"2016-07-06","close":NaN',
        b'"2016-07-06","close":1e999',
        b'"2016-07-06","close":-1',
        b'"2016-07-06","close":"a"',
        b'"x","close":1',
        b'"2016-07-06","close":1,"evil":1',
        b'"2016-07-06"',
    )
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_body_that_is_not_a_request_is_refused(served, template, body):
    problem(what_if(served, template, body)[0], 422, "request-invalid")


def test_large_and_compressed_bodies_are_refused(served, template):
    async def chunks():
        for _ in range(40):
            yield b" " * 65536

    async def go():
        async with served(template) as client:
            long = await client.post("/v1/predict", content=b" " * (1 << 20) + b"x", headers=JSON)
            stream = await client.post("/v1/predict", content=chunks(), headers=JSON)
            packed = await client.post(
                "/v1/predict", content=b"x", headers=JSON | {"content-encoding": "gzip"}
            )
            many = await client.post(
                "/v1/predict", json={"bars": [{"date": "2016-07-06", "close": 1}] * 5001}
            )
            return long, stream, packed, many

    long, stream, packed, many = asyncio.run(go())
    problem(long, 413, "body-too-large")
    problem(stream, 413, "body-too-large")
    problem(packed, 422, "request-invalid")
    problem(many, 422, "request-invalid")


def test_what_if_errors_name_the_reason(served, template, history):
    bodies = (
        {"bars": history[:-1]},
        {"bars": history, "horizon": 3},
        {"bars": history[-4:]},
        {"bars": history, "ticker": "';--"},
    )
    late, horizon, short, name = what_if(served, template, *bodies)
    assert "newest" in problem(late, 422, "bars-invalid")["message"]
    assert "1, 5" in problem(horizon, 404, "unknown-horizon")["fix"]
    problem(short, 422, "not-enough-history")
    problem(name, 422, "bars-invalid")


def test_full_queue_says_when_to_return(served, template, history):
    import threading

    gate = threading.Event()

    async def go():
        async with served(template.with_(**{"serving.max_queue": 2})) as client:
            service = client.service
            await asyncio.to_thread(service.load_engine)
            real = service.batcher.run
            service.batcher.run = lambda requests: (gate.wait(), real(requests))[1]
            body = {"bars": history, "horizon": 1}
            first = asyncio.create_task(client.post("/v1/predict", json=body))
            while service.batcher.task is None or service.batcher.queue:
                await asyncio.sleep(0.01)
            rest = [asyncio.create_task(client.post("/v1/predict", json=body)) for _ in range(2)]
            while len(service.batcher.queue) < 2:
                await asyncio.sleep(0.01)
            full = await client.post("/v1/predict", json=body)
            read = await client.get("/v1/predictions/SIM00")  # reading goes on meanwhile
            gate.set()
            return full, read, [await first] + [await r for r in rest], (await client.get("/metrics")).text

    full, read, answers, metrics = asyncio.run(go())
    problem(full, 503, "queue-full")
    assert full.headers["retry-after"] == "1" and read.status_code == 200
    assert {r.status_code for r in answers} == {200} and len(
        {orjson.dumps(r.json()["data"]) for r in answers}
    ) == 1
    assert "stockpredict_whatif_batch_size_count 2\n" in metrics


def test_a_model_that_gives_nonsense_is_a_counted_503(served, template, history):
    async def go():
        async with served(template) as client:
            await asyncio.to_thread(client.service.load_engine)
            model = client.service.engine.model
            model.weights = {k: v * float("inf") for k, v in model.weights.items()}
            return await client.post("/v1/predict", json={"bars": history}), (
                await client.get("/metrics")
            ).text

    response, metrics = asyncio.run(go())
    problem(response, 503, "model-output-invalid")
    assert 'stockpredict_refusals_total{code="model-output-invalid"} 1\n' in metrics


def test_without_a_model_own_bars_are_refused_with_the_reason(served, settings, history):
    (settings.storage.registry_dir / "champion.json").unlink()
    (response,) = what_if(served, settings, {"bars": history})
    message = problem(response, 503, "not-ready")["message"]
    assert "champion.json is missing, although models were published. Run `stockpredict rollback`" in message


def test_models_and_history(served, settings):
    second = publish(settings, "ridge", 2, "weak")
    models = get(served, settings, "/v1/models").json()["data"]
    assert models["champion"]["artifact"] == second.name and [e["version"] for e in models["history"]] == [
        2,
        1,
    ]


def test_metrics_are_labelled_by_route_and_not_by_path(served, template):
    async def go():
        async with served(template) as client:
            for path in (
                "/v1/predictions/SIM00?horizon=1",
                "/v1/predictions/sim01",
                "/v1/predictions/NOPE",
                "/secret-path-1",
                "/reports/a",
                "/v1/models",
            ):
                await client.get(path)
            return (await client.get("/metrics")).text

    from prometheus_client.parser import text_string_to_metric_families

    families = {f.name: f for f in text_string_to_metric_families(asyncio.run(go()))}
    counted = {
        (s.labels["route"], s.labels["status"]): s.value
        for s in families["stockpredict_request_seconds"].samples
        if s.name.endswith("_count")
    }
    one = "/v1/predictions/{ticker}"
    assert counted == {
        (one, "200"): 2,
        (one, "404"): 1,
        ("unmatched", "404"): 1,
        ("/reports", "404"): 1,
        ("/v1/models", "200"): 1,
    }
    assert families["stockpredict_table_rows"].samples[0].value > 0


def test_an_unforeseen_failure_is_an_answer_with_an_id_and_no_trace(served, template, capsys):
    async def go():
        async with served(template) as client:
            client.service.health = lambda: 1 / 0
            return await client.get("/health", headers={"x-request-id": "find-me"})

    response = asyncio.run(go())
    problem(response, 500, "stockpredict-error")
    assert "ZeroDivision" not in response.text
    line = next(orjson.loads(x) for x in capsys.readouterr().err.splitlines() if "find-me" in x)
    assert line["level"] == "error" and "ZeroDivisionError" in line["exception"]


@pytest.mark.parametrize("level,lines", [("warning", 0), ("info", 2)])
def test_access_log_is_json_and_quiet_by_default(served, template, capsys, level, lines):
    headers = {"x-request-id": "r-1", "authorization": "Bearer secret"}
    get(
        served,
        template,
        "/v1/predictions/SIM00?horizon=1",
        "/v1/predictions/x%0d%0ay",
        headers=headers,
        log_level=level,
    )
    out = capsys.readouterr().err
    lines_logged = [orjson.loads(x) for x in out.splitlines()]
    assert len(lines_logged) == lines and "secret" not in out
    for line in lines_logged:
        assert line["event"] == "request" and line["request_id"] == "r-1" and line["ms"] >= 0


def test_reports_stay_in_their_folder(served, settings):
    reports = settings.storage.reports_dir
    (reports / "2026" / "run").mkdir(parents=True)
    (reports / "index.html").write_text("<h1>All reports</h1>")
    (reports / "2026" / "run" / "page.html").write_text("<script>alert(1)</script>")
    (reports / ".hidden").write_text("no")
    (reports / "leak").symlink_to(settings.storage.keys_dir)
    index, page, *refused = get(
        served,
        settings,
        "/reports/",
        "/reports/2026/run/page.html",
        "/reports/../home/keys/signing.key",
        "/reports/%2e%2e/home/keys/signing.key",
        "/reports/..%2fhome%2fkeys%2fsigning.key",
        "/reports/leak/signing.key",
        "/reports/.hidden",
        "/reports/%00",
        "/reports/" + "a" * 5000,
        "/reports/2026%5c..%5c..",
    )
    assert "All reports" in index.text and page.status_code == 200
    index_may, page_may = (r.headers["content-security-policy"] for r in (index, page))
    assert index_may.startswith("default-src 'none'") and page_may.startswith("default-src 'none'")
    assert "script-src" not in page_may
    (scripts,) = re.findall("script-src ([^;]*)", index_may)
    assert re.fullmatch("'sha256-[^ ]+'", scripts), "its own script and no other"
    for r in refused:
        assert problem(r, 404, "not-found")


def test_pages_are_complete_without_a_network(served, template):
    front, docs, page_css, docs_css, script = get(
        served, template, "/", "/docs", "/assets/page.css", "/assets/docs.css", "/assets/docs.js"
    )
    for page in (front, docs):
        assert page.headers["content-type"].startswith("text/html")
        links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert links and all(link.startswith(("/", "data:,")) for link in links)
        assert "<script>" not in page.text and " style=" not in page.text and " onclick" not in page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "SIM00" in front.text and "No evidence of skill" in front.text and "historical data" in front.text
    for asset in (page_css, docs_css, script):
        assert asset.status_code == 200 and "url(" not in asset.text and "http" not in asset.text


def test_a_browser_finds_the_icon_where_it_looks(served, template):
    icon = get(served, template, "/favicon.ico")
    assert (icon.status_code, icon.headers["content-type"]) == (200, "image/svg+xml") and icon.content


@pytest.mark.parametrize("name", ["swagger-ui.css", "swagger-ui-bundle.js"])
def test_swagger_ui_comes_from_this_server(served, template, name):
    asset = get(served, template, f"/assets/{name}")
    assert asset.status_code == 200 and len(asset.content) > 100_000
    assert "script-src 'self'" in asset.headers["content-security-policy"]


@pytest.mark.parametrize(
    "name", ["settings.ini", "..%2fapp.py", "base.html", "redoc.standalone.js", "page.js"]
)
def test_nothing_else_is_an_asset(served, template, name):
    problem(get(served, template, f"/assets/{name}"), 404, "not-found")


def proposed_requests(schema):
    "What the API page fills in, as (method, path, query, body)."
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parameters, query = operation.get("parameters", []), {}
            for parameter in parameters:
                if parameter["in"] == "path":
                    path = path.replace("{" + parameter["name"] + "}", str(parameter["example"]))
                elif "example" in parameter:
                    query[parameter["name"]] = parameter["example"]
            content = operation.get("requestBody", {}).get("content", {})
            yield method, path, query, content.get("application/json", {}).get("example")


def test_the_examples_follow_the_table(served, settings):
    async def go():
        async with served(settings) as client:
            with_table = (await client.get("/openapi.json")).json()
            client.service.table = None
            client.service.refresh_state = lambda: None
            return with_table, (await client.get("/openapi.json")).json()

    tickers = [next(proposed_requests(schema))[1] for schema in asyncio.run(go())]
    assert tickers == ["/v1/predictions/SIM00", "/v1/predictions/AAPL"]


def test_the_openapi_schema_is_whole(served, template):
    schema = get(served, template, "/openapi.json").json()
    assert schema["openapi"].startswith("3.1.")
    names = set(schema["components"]["schemas"])
    used = set(re.findall(r'"#/components/schemas/([^"]+)"', orjson.dumps(schema).decode()))
    assert used <= names and {"Prediction", "WhatIf", "WhatIfBar"} <= names
    assert all(op["summary"] and op["operationId"] for ops in schema["paths"].values() for op in ops.values())


def test_two_applications_do_not_mix(served, template, settings):
    publish(settings, "ridge", 2)
    refresh_answers(settings)

    async def go():
        async with served(template) as a, served(settings) as b:
            return [
                (await c.get("/v1/predictions/SIM00?horizon=1")).json()["data"]["model"]["name"]
                for c in (a, b)
            ], (await b.get("/metrics")).text

    names, metrics = asyncio.run(go())
    assert names == ["mean", "ridge"]
    assert re.search(r'_count.*route="/v1/predictions/{ticker}",status="200"} 1(.0)?$', metrics, re.M)

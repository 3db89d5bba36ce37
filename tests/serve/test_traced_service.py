"""A service with traces on and secrets around it: one trace a request, its id in every log, no leak."""

import json
import re
import shutil
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import patience
import pytest
from otlp import otlp_receiver
from served_desk import build_settings, service_process

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = "00-5bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
PLANTED = {
    "TIINGO_API_KEY": "planted-vendor-key-71c2",
    "AWS_SECRET_ACCESS_KEY": "planted+cloud/secret==",
    "DESK_ALERT_URL": "slack://planted-token-a/planted-token-b/planted-token-c",
}
IN_SETTINGS = "planted-redis-password"
SENT = {
    "key": "sp_0badc0de_planted-key-of-a-caller",
    "token": "eyJhbGciOiJFZERTQSJ9.eyJwbGFudGVkIjoxfQ.cGxhbnRlZA",
    "name": "planted-login-password",
}
SECRETS = [*PLANTED.values(), IN_SETTINGS, *SENT.values()]


@pytest.fixture(scope="module")
def traced(template, tmp_path_factory):
    "Reader and engine with every request logged and traced: port, receiver, folder."
    folder = tmp_path_factory.mktemp("traced")
    shutil.copytree(template.storage.home_dir, folder / "home")
    settings = build_settings(folder / "home")
    with otlp_receiver() as receiver, pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        changes = {
            "logs.level": "info",
            "traces.endpoint": receiver.url,
            "traces.ratio": 0.0,
            "serving.redis_url": f"redis://:{IN_SETTINGS}@127.0.0.1:1/0",
        }
        with service_process(settings, folder, **changes) as (process, port):
            patience.wait_until(lambda: ask(port, "/health/ready")[0] == 200, process)
            yield process, port, receiver, folder
        # the end of the service is part of what is read below


def ask(port, path, data=None, method=None, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method)
    try:
        with urlopen(request) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except HTTPError as refused:
        return refused.code, refused.read().decode(errors="replace")


def logged(folder, request_id):
    "The log lines of one request, by event."
    lines = (Path(folder) / "said.txt").read_text().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    return [event for event in events if event.get("request_id") == request_id]


def test_a_request_through_reader_engine_and_lake_is_one_trace(traced):
    process, port, receiver, _ = traced
    ask(port, "/v1/predictions/SIM00?as_of=2015-06-30", traceparent=CALLER, x_request_id="walk-1")
    patience.wait_until(lambda: receiver.named("engine") and receiver.named("lake read"), process)
    patience.wait_until(lambda: receiver.named("GET /v1/predictions/{ticker}"), process)
    [top] = receiver.named("GET /v1/predictions/{ticker}")
    assert (top.trace, top.parent, top.service) == (CALLER[3:35], CALLER[36:52], "stockpredict reader 1")
    assert top.attributes["request_id"] == "walk-1" and top.attributes["http.route"]
    below = receiver.named("lake read")[0]
    names = receiver.chain(below)
    assert names == ["lake read", "engine", "engine link", "GET /v1/predictions/{ticker}"]
    assert {span.trace for span in receiver.spans} == {CALLER[3:35]}
    assert below.service == receiver.named("engine")[0].service == "stockpredict engine"


def test_what_the_caller_does_not_trace_is_not_traced(traced):
    process, port, receiver, _ = traced
    before = len(receiver.spans)
    for header in (UNSAMPLED, "nonsense", CALLER[:-3]):
        assert ask(port, "/v1/predictions/SIM00?horizon=1", traceparent=header)[0] == 200
    ask(port, "/v1/predictions/SIM00?horizon=1", traceparent=CALLER.replace("4bf9", "6bf9"))
    patience.wait_until(lambda: len(receiver.spans) > before, process)
    assert [span.trace[:4] for span in receiver.spans[before:]] == ["6bf9"]


def test_a_bucket_of_the_latency_names_a_trace(traced):
    _, port, *_ = traced
    ask(port, "/v1/predictions/SIM00?horizon=1", traceparent=CALLER)
    _, text = ask(port, "/metrics", accept="application/openmetrics-text")
    shown = [line for line in text.splitlines() if f'# {{trace_id="{CALLER[3:35]}"}}' in line]
    assert shown and all("_bucket{" in line and 'le="' in line for line in shown)
    for line in shown:
        seconds, at = line.rpartition("} ")[2].split()
        assert float(seconds) >= 0 and float(at) > 1.7e9
    assert text.endswith("# EOF\n") and "trace_id" not in ask(port, "/metrics")[1]


def test_a_request_has_one_id_in_reader_and_engine(traced):
    process, port, _, folder = traced
    status, text = ask(port, "/v1/models", x_request_id="walk-2")
    assert status == 200 and json.loads(text)["metadata"]["request_id"] == "walk-2"
    patience.wait_until(lambda: logged(folder, "walk-2"), process)
    [line] = logged(folder, "walk-2")
    assert line["event"] == "request" and line["level"] == "info" and line["path"] == "/v1/models"
    assert list(line)[:3] == ["timestamp", "level", "event"]


def test_no_planted_secret_is_in_any_log_answer_metric_page_or_file(traced):
    process, port, receiver, folder = traced
    key, token, password = SENT.values()
    bearer = {"authorization": f"Bearer {key}"}
    form = f"grant_type=password&username=ada&password={password}".encode()
    json_body = json.dumps({"ticker": "SIM00", "bars": [{"date": password, "close": f"{key}"}]}).encode()
    answers = [
        ask(port, "/v1/predictions/SIM00", **bearer),
        ask(port, "/v1/predictions/SIM00", x_api_key=key, traceparent=CALLER),
        ask(port, f"/v1/predictions/SIM00?api_key={key}&token={token}", traceparent=CALLER),
        ask(port, f"/v1/predictions/{key}", x_request_id=token),
        ask(port, f"/t/{token}"),
        ask(port, "/v1/token", form, content_type="application/x-www-form-urlencoded"),
        ask(port, "/v1/predict", json_body, content_type="application/json", traceparent=CALLER),
        *(ask(port, path) for path in ("/", "/status", "/health", "/docs", "/metrics", "/openapi.json")),
        *(ask(port, path) for path in ("/runbooks", "/v1/jobs", "/v1/models", "/scoreboard")),
        ask(port, "/metrics", accept="application/openmetrics-text"),
    ]
    assert answers[0][0] == 401 and answers[2][0] in (400, 401)
    texts = [text for status, text in answers]
    # what a caller wrote into a path may be repeated to that caller, a key never
    shown = [(i, secret) for i, text in enumerate(texts) for secret in SECRETS if secret in text]
    assert shown == []
    process.terminate()
    patience.wait_until(lambda: process.poll() is not None, process)
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "served.ini"]
    assert any(path.suffix == ".jsonl" for path in files) and Path(folder, "said.txt").stat().st_size > 200
    raw = {path: path.read_bytes() for path in files}
    leaks = [(str(p), s) for p, content in raw.items() for s in SECRETS if s.encode() in content]
    spans = [(span.name, s) for span in receiver.spans for s in SECRETS if s in repr(span)]
    assert leaks == [] and spans == []
    printed = raw[Path(folder, "said.txt")].decode()
    assert not re.search(r"planted-(?!key|login)", printed)

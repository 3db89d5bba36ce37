"""The schema is true: Schemathesis finds nothing, every example works, and version 1 only grows."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import patience
import pytest
import uvicorn
from served_desk import build_settings, fill_lake, free_port, publish

from stockpredict.access.keys import KeyStore
from stockpredict.predict.answer_table import refresh_answers
from stockpredict.serve.app import create_app

HERE = Path(__file__).parent
SNAPSHOT = HERE / "v1.json"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A champion of a small market, in a service that asks every caller for a key."
    from stockpredict.sources.simulate import simulate
    from stockpredict.sources.source import source_id

    limits = {f"access.{kind}_per_minute": 0 for kind in ("requests", "asks", "changes", "total")}
    place = tmp_path_factory.mktemp("contract")
    settings = build_settings(place, **limits, **{"access.required": "always"})
    bars = simulate("realistic", tickers=6, sessions=120, seed=4).bars
    fill_lake(settings, bars.assign(source=source_id(settings)))
    publish(settings)
    refresh_answers(settings)
    _, key = KeyStore(settings.storage).create(["admin"])
    return settings, key


@pytest.fixture(scope="module")
def server(home):
    "The service on a port of its own, in a thread of this process."
    settings, key = home
    port = free_port()
    app = create_app(settings.with_(**{"serving.port": port}))
    config = uvicorn.Config(app, port=port, log_level="critical", access_log=False, ws="none")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    headers = {"authorization": f"Bearer {key}"}
    patience.wait_until(lambda: server.started and httpx.get(f"{url}/health/ready").status_code == 200)
    yield url, headers
    server.should_exit = True
    thread.join()


NOT_FUZZED = ("/v1/train", "/v1/stream")  # one starts a training for each request, the other never ends


def fill(path, parameters):
    "The path and the query of an operation's examples; `None` when a part of the path has none."
    query = {}
    for parameter in parameters:
        example = parameter.get("example", next(iter(parameter["schema"].get("examples", [])), None))
        if example is None and parameter["in"] == "path":
            return None, {}
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", str(example))
        elif parameter["in"] == "query" and example is not None:
            query[parameter["name"]] = example
    return path, query


def test_every_example_is_answered_as_documented(server):
    url, headers = server
    schema = httpx.get(f"{url}/openapi.json", headers=headers).json()
    tried = set()
    for template, operations in schema["paths"].items():
        for method, operation in operations.items():
            path, query = fill(template, operation.get("parameters", []))
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if template in NOT_FUZZED or path is None or (method != "get" and "example" not in body):
                continue
            response = httpx.request(
                method, url + path, params=query, json=body.get("example"), headers=headers, timeout=60
            )
            # one needs a second model, the other forecasts whose future has come
            if template not in ("/v1/experiments", "/v1/scoreboard"):
                assert response.status_code in (200, 201, 202), (template, response.text)
            documented = operation["responses"][str(response.status_code)]
            kind = response.headers["content-type"].partition(";")[0]
            assert kind in documented["content"], template
            tried.add((method, template))
    assert {("get", "/v1/predictions"), ("get", "/v1/predictions/{ticker}"), ("post", "/v1/predict")} <= tried


def test_the_answer_that_is_shown_is_the_answer(server):
    url, headers = server
    schema = httpx.get(f"{url}/openapi.json", headers=headers).json()
    operation = schema["paths"]["/v1/predictions/{ticker}"]["get"]
    path, query = fill("/v1/predictions/{ticker}", operation["parameters"])
    shown = operation["responses"]["200"]["content"]["application/json"]["example"]
    sent = httpx.get(url + path, params=query, headers=headers).json()
    assert shown["data"] == sent["data"] and shown.keys() == sent.keys()


def resolved(schema, node, seen=()):
    "A part of a schema without references, so that a change anywhere below is seen."
    if isinstance(node, list):
        return [resolved(schema, item, seen) for item in node]
    if not isinstance(node, dict):
        return node
    if (name := node.get("$ref", "").rpartition("/")[2]) and name not in seen:
        return resolved(schema, schema["components"]["schemas"][name], (*seen, name))
    dropped = ("description", "example", "examples", "title", "summary", "default")
    return {
        key: resolved(schema, value, seen)
        for key, value in sorted(node.items())
        if key not in dropped or (key not in ("example", "examples") and isinstance(value, dict))
    }


def contract(schema):
    "What callers of version 1 rely on: addresses, parameters, bodies, statuses and fields."
    kept = {}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if not path.startswith("/v1/"):
                continue
            parameters = {
                f"{p['in']} {p['name']}": {"required": p.get("required", False)}
                | resolved(schema, p["schema"])
                for p in operation.get("parameters", [])
            }
            body = operation.get("requestBody", {})
            answers = {
                status: {kind: answer_fields(schema, kind, media) for kind, media in content}
                for status, entry in sorted(operation["responses"].items())
                for content in [sorted(entry.get("content", {}).items())]
            }
            content = sorted(body.get("content", {}).items())
            kept[f"{method.upper()} {path}"] = {
                "parameters": {name: parameters[name] for name in sorted(parameters)},
                "body": {kind: fields(resolved(schema, media["schema"])) for kind, media in content},
                "body_required": body.get("required", False),
                "answers": answers,
            }
    return kept


def answer_fields(schema, kind, media):
    "The fields of an answer; all refusals have the same ones, so those are left out."
    return {} if kind == "application/problem+json" else fields(resolved(schema, media.get("schema", {})))


def fields(node, path=""):
    "Every field of a schema by its path, with its type and whether it is required."
    known = {}
    for way in ("anyOf", "oneOf", "allOf"):
        for option in node.get(way, []):
            known |= fields(option, path)
    if "items" in node:
        known |= fields(node["items"], f"{path}[]")
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        types = sorted({str(o.get("type")) for o in child.get("anyOf", [child])})
        known[here] = {"types": types, "required": name in node.get("required", [])}
        if "enum" in child:
            known[here]["enum"] = child["enum"]
        known |= fields(child, here)
    return known


def taken_away(old, new):
    "What version 1 had and has no more, as sentences; additions are allowed."
    losses = [f"{operation} is gone." for operation in old if operation not in new]
    for operation in old.keys() & new.keys():
        before, after = old[operation], new[operation]
        for name, shape in before["parameters"].items():
            if name not in after["parameters"]:
                losses.append(f"{operation} takes no {name} any more.")
            elif narrower(shape, after["parameters"][name]):
                losses.append(f"{operation} accepts less for {name} than before.")
        for name, shape in after["parameters"].items():
            if shape["required"] and not before["parameters"].get(name, {}).get("required"):
                losses.append(f"{operation} requires {name}, which it did not before.")
        if after["body_required"] and not before["body_required"]:
            losses.append(f"{operation} requires a body, which it did not before.")
        for kind, known in before["body"].items():
            now = after["body"].get(kind, {})
            losses += [f"{operation} takes no field {f} in its body any more." for f in known if f not in now]
            losses += [
                f"{operation} requires the field {f} in its body, which it did not before."
                for f, shape in now.items()
                if shape["required"] and not known.get(f, {}).get("required")
            ]
        for status, kinds in before["answers"].items():
            for kind, known in kinds.items():
                now = after["answers"].get(status, {}).get(kind)
                if now is None:
                    losses.append(f"{operation} answers {status} no more as {kind}.")
                    continue
                losses += [f"{operation} answers {status} without {f}." for f in known if f not in now]
                losses += [
                    f"{operation} gives {f} of {status} another type than before."
                    for f in known.keys() & now.keys()
                    if not set(now[f]["types"]) <= set(known[f]["types"])
                ]
                losses += [
                    f"{operation} promises {f} of {status} no more."
                    for f in known.keys() & now.keys()
                    if known[f]["required"] and not now[f]["required"]
                ]
    return sorted(losses)


LOWER, UPPER = ("minimum", "minLength", "exclusiveMinimum"), ("maximum", "maxLength", "exclusiveMaximum")


def narrower(old, new):
    "Does a parameter accept less than before?"
    known = [old, *old.get("anyOf", [])], [new, *new.get("anyOf", [])]
    limits = [{k: v for option in side for k, v in option.items()} for side in known]
    if any(limits[1].get(k, -1e99) > limits[0].get(k, -1e99) for k in LOWER):
        return True
    if any(limits[1].get(k, 1e99) < limits[0].get(k, 1e99) for k in UPPER):
        return True
    if "enum" in limits[1] and not set(map(str, limits[0].get("enum", ["?"]))) <= set(
        map(str, limits[1]["enum"])
    ):
        return True
    types = [{option.get("type") for option in side if "type" in option} for side in known]
    return not types[0] <= types[1] | {"null"}


def test_version_1_only_grows(server):
    """Nothing of the snapshot may be missing. When something was added on purpose, write it with
    `STOCKPREDICT_WRITE_SNAPSHOT=1 pytest tests/contract`; a removal needs a version 2."""
    url, headers = server
    new = contract(httpx.get(f"{url}/openapi.json", headers=headers).json())
    if os.environ.get("STOCKPREDICT_WRITE_SNAPSHOT"):
        lines = [f"{json.dumps(name)}: {json.dumps(new[name], sort_keys=True)}" for name in sorted(new)]
        SNAPSHOT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    losses = taken_away(json.loads(SNAPSHOT.read_text()), new)
    assert not losses, "\n".join(["Version 1 of the API lost something:", *losses])


def change(contract, *path, value=None, drop=False):
    copy = json.loads(json.dumps(contract))
    node = copy
    for key in path[:-1]:
        node = node[key]
    if drop:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return copy


ONE = "GET /v1/predictions/{ticker}"
MANY = "GET /v1/predictions"
ASK = "POST /v1/predict"
JSON = "application/json"


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ((ONE,), None, "is gone"),
        ((MANY, "parameters", "query tickers"), None, "takes no query tickers any more"),
        ((MANY, "parameters", "query limit", "required"), True, "requires query limit"),
        ((MANY, "parameters", "query limit", "anyOf", 0, "maximum"), 10, "accepts less for query limit"),
        ((MANY, "parameters", "query format", "enum"), ["json"], "accepts less for query format"),
        ((ONE, "answers", "200", JSON, "data.p_up"), None, "answers 200 without data.p_up"),
        ((ONE, "answers", "200", JSON, "data.p_up", "types"), ["string"], "another type than before"),
        ((ONE, "answers", "200", JSON, "data.p_up", "required"), False, "promises data.p_up of 200 no more"),
        ((ONE, "answers", "404", "application/problem+json"), None, "answers 404 no more"),
        ((ASK, "body", JSON, "bars"), None, "takes no field bars"),
        ((ASK, "body", JSON, "horizon", "required"), True, "requires the field horizon"),
    ],
)
def test_what_is_taken_away_is_named(path, value, sentence):
    snapshot = json.loads(SNAPSHOT.read_text())
    (loss, *_) = taken_away(snapshot, change(snapshot, *path, value=value, drop=value is None))
    assert sentence in loss and path[0] in loss


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("GET /v1/new",), {"parameters": {}, "body": {}, "body_required": False, "answers": {}}),
        ((MANY, "parameters", "query more"), {"required": False, "type": "string"}),
        ((MANY, "parameters", "query format", "enum"), ["json", "arrow", "parquet", "csv", "xlsx", None]),
        ((ONE, "answers", "200", JSON, "data.more"), {"types": ["string"], "required": False}),
        ((ONE, "answers", "418"), {"application/problem+json": {}}),
        ((ASK, "body", JSON, "more"), {"types": ["string"], "required": False}),
    ],
)
def test_what_is_added_is_allowed(path, value):
    snapshot = json.loads(SNAPSHOT.read_text())
    assert taken_away(snapshot, change(snapshot, *path, value=value)) == []


def test_schemathesis_finds_nothing(server, request, tmp_path):
    """All checks, stateful ones too: no 5xx, no undocumented status, type or body; mistakes are refused,
    what the schema allows is not; nothing is answered without a key. `--all-steps` tries more."""
    import schemathesis

    url, headers = server
    most = "150" if request.config.getoption("--all-steps") else "12"
    program = Path(sys.executable).with_name("schemathesis")
    command = [program, "--config-file", HERE / "schemathesis.toml", "run", f"{url}/openapi.json"]
    command += ["--checks", "all", "--max-examples", most, "--seed", "7", "--workers", "1", "--no-color"]
    command += ["-H", f"Authorization: {headers['authorization']}"]
    for path in NOT_FUZZED:
        command += ["--exclude-path", path]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=quiet)
    assert done.returncode == 0, schemathesis.__version__ + done.stdout[-12_000:] + done.stderr[-2000:]

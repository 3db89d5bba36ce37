"""Every table, file and address has a class, and the service answers each role as the class says."""

import ast
import asyncio
from pathlib import Path

import pandas as pd
import patience
import pytest
from served_desk import build_settings
from starlette.routing import Mount

import stockpredict
from stockpredict.access.keys import KeyStore
from stockpredict.access.permissions import OPEN, ROLES, TABLE
from stockpredict.alerts.alert_records import new_rule
from stockpredict.alerts.alert_store import AlertStore
from stockpredict.govern.classes import CLASSES, HOME_CLASSES, OWN, TABLE_CLASSES, class_problems
from stockpredict.govern.classes import clearance, home_part, route_classes
from stockpredict.govern.policy import HOME_RULES, LAKE_RULES, RULES
from stockpredict.lake.facts import FACT_TABLES
from stockpredict.lake.lake import BAR_TABLES
from stockpredict.lake.predictions import RECORD_TABLES
from stockpredict.serve.app import create_app
from stockpredict.serve.jobs import Job, JobStore

FILLED = {"ticker": "AAPL", "job_id": "train-20260101T000000-00000001", "version": "999", "name": "x"}
FILLED |= {"day": "2026-01-02", "run": "x", "experiment_id": "x", "alert_id": "a-none", "event_id": "e-none"}


def real_routes(app):
    for route in app.router.routes:
        methods = ["GET"] if isinstance(route, Mount) else getattr(route, "methods", None) or ["WEBSOCKET"]
        yield from ((method, route.path) for method in methods)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "A service that asks every caller for a key, and a key for each role."
    settings = build_settings(tmp_path_factory.mktemp("classes"), **{"access.required": "always"})
    keys = {role: KeyStore(settings.storage).create([role]) for role in ROLES}
    app = create_app(settings)
    return settings, app, {role: text for role, (_, text) in keys.items()}, keys


async def status_of(app, method, path, key, body=b"{}"):
    "The status of one answer; the rest of it is not waited for."
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    headers += [(b"authorization", f"Bearer {key}".encode())] if key else []
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": headers}
    scope |= {"query_string": b"", "client": ("10.0.0.7", 5000), "server": ("localhost", 80)}
    scope |= {"scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"}, "root_path": ""}
    events = [{"type": "http.request", "body": body if method != "GET" else b"", "more_body": False}]
    if method == "WEBSOCKET":
        scope |= {"type": "websocket", "scheme": "ws", "subprotocols": [], "extensions": {}}
        scope["extensions"] = {"websocket.http.response": {}}
        events = [{"type": "websocket.connect"}]
    answer = asyncio.get_running_loop().create_future()

    async def receive():
        if events:
            return events.pop(0)
        await asyncio.Event().wait()

    async def send(message):
        if answer.done():
            return
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            answer.set_result(message["status"])
        elif message["type"] in ("websocket.accept", "websocket.close"):
            answer.set_result(101 if message["type"] == "websocket.accept" else 403)

    task = asyncio.ensure_future(app(scope, receive, send))
    watch = patience.Watch(signs=lambda: (method, path))  # nothing else goes on here
    while not (task.done() or answer.done()):
        watch.look()
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    if not answer.done():
        await task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return answer.result()


# ---- everything has a class


def test_every_address_of_the_service_has_a_class_that_fits_its_permission(desk):
    _, app, _, _ = desk
    routes = set(real_routes(app))
    assert class_problems(routes) == []
    gone = set(route_classes()) - routes - set(TABLE)
    assert gone == set(), "classes of addresses that do not exist"


def test_every_table_of_the_lake_has_a_rule_and_a_class():
    tables = {*FACT_TABLES, *BAR_TABLES, *RECORD_TABLES}
    assert tables == set(LAKE_RULES) == set(TABLE_CLASSES)
    assert set(LAKE_RULES.values()) <= set(RULES) and set(TABLE_CLASSES.values()) <= set(CLASSES)


HOMES = ("home_dir", "home")  # names under which the home folder is joined with a part


def parts_in_source():
    "Parts of the home folder that the package joins, read from its source."
    for path in sorted(Path(stockpredict.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)):
                continue
            left, right = ast.unparse(node.left), node.right
            named = left.removesuffix(".absolute()").removesuffix(".resolve()").rsplit(".", 1)[-1] in HOMES
            named |= left in ("Path(home)", "Path(storage.home_dir)")
            if named and isinstance(right, ast.Constant) and isinstance(right.value, str):
                yield right.value, path.name


def test_every_part_of_the_home_folder_has_a_rule_and_a_class():
    parts = {part: where for part, where in parts_in_source() if home_part(Path(part))}
    assert len(parts) > 20, "the source names its parts"
    assert {part: where for part, where in parts.items() if part not in HOME_CLASSES} == {}
    assert set(HOME_RULES) == set(HOME_CLASSES)
    assert set(HOME_RULES.values()) <= set(RULES) and set(HOME_CLASSES.values()) <= set(CLASSES)


def test_the_files_of_a_served_desk_have_a_class(template):
    home = template.storage.home_dir
    parts = {home_part(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    reports = template.storage.reports_dir.name
    assert parts - {"", reports} <= set(HOME_CLASSES)


# ---- each role reads


def may_ask(role, method, template):
    "What the classes and permissions allow, without asking the service."
    kind, permissions = route_classes()[method, template], ROLES.get(role, frozenset())
    needs = TABLE[method, template]
    if kind.name == "public":
        return True
    assert needs in (OWN if kind.own else CLASSES[kind.name])
    if method in ("GET", "WEBSOCKET") and not kind.own:
        order = list(CLASSES)
        return order.index(clearance(permissions)) >= order.index(kind.name)
    return needs in permissions


@pytest.mark.parametrize("role", ["anonymous", *ROLES])
def test_the_service_answers_each_role_as_the_class_says(desk, role):
    _, app, keys, _ = desk

    async def ask_all():
        wrong = []
        for method, template in sorted(route_classes()):
            if (method, template) not in set(real_routes(app)):
                continue
            path = template.format(**FILLED)
            body = b'{"mode": 7, "unknown": true}'  # allowed changes are refused for what they ask
            status = await status_of(app, method, path, keys.get(role, ""), body)
            denied = status in (401, 403)
            if denied == may_ask(role, method, template) and not (template == "/v1/token" and status == 401):
                wrong.append((method, path, status))
        return wrong

    assert asyncio.run(ask_all()) == []


def test_owned_rows_are_seen_by_their_owner_and_by_who_operates(desk):
    settings, app, keys, entries = desk
    owner = f"key:{entries['analyst'][0].id}"
    job = Job(FILLED["job_id"], "batch", owner, "2026-01-01T00:00:00+00:00", "done")
    JobStore(settings.storage.home_dir / "jobs").write(job)
    rule = new_rule(owner, "price", ["AAPL"], {"above": 1})
    AlertStore(settings.storage).add([rule])

    async def seen(path):
        answers = {role: await status_of(app, "GET", path, key) for role, key in keys.items()}
        return {role for role, status in answers.items() if status == 200}

    operators = {role for role in ROLES if "operate" in ROLES[role]}
    assert asyncio.run(seen(f"/v1/jobs/{job.id}")) == {"analyst", *operators}
    assert "analyst" in (who := asyncio.run(seen(f"/v1/alerts/{rule.id}")))
    assert "viewer" not in who


def test_an_address_without_a_class_is_named():
    assert class_problems([("GET", "/v1/salaries")])[0].startswith("GET /v1/salaries has no class")
    assert clearance(()) == "public" and clearance(ROLES["admin"]) == "restricted"
    assert OPEN in CLASSES["public"] and pd.Series(TABLE_CLASSES).nunique() == 1

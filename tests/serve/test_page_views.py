"""Pages of a service: every ticker is reachable, the record is what was published, and a key opens them."""

import asyncio
import base64
import json
import re
import shutil
import sys
from datetime import UTC, datetime

import pytest

from stockpredict.access.keys import KeyStore
from stockpredict.ops.parts import Part
from stockpredict.ops.processes import down, up
from stockpredict.predict.answer_table import open_answers, table_signer
from stockpredict.predict.recent_closes import CLOSES_FILE, ClosesFile
from stockpredict.predict.table_archive import archive_table
from stockpredict.predict.table_format import pack_table
from stockpredict.serve.desk_state import read_desk, schedule_sentence

from served_desk import build_settings


@pytest.fixture(scope="module")
def history(template, tmp_path_factory):
    "A home in which forecasts were published on five sessions before the newest one."
    home = tmp_path_factory.mktemp("history") / "home"
    shutil.copytree(template.storage.home_dir, home)
    settings = build_settings(home)
    table, folder = open_answers(settings), settings.storage.serving_dir
    sessions = ClosesFile(folder).current().sessions
    assert sessions[-1] == table.header["decision_session"]
    for back in range(2, 7):
        bodies = {}
        for (ticker, horizon), body in table.rows.items():
            target = sessions[1 - back + horizon] if horizon + 1 < back else "2090-01-03"
            dates = {"decision_session": sessions[-back], "entry_session": sessions[1 - back]}
            answer = json.loads(bytes(body) + b"}") | dates | {"target_session": target}
            bodies[ticker, horizon] = json.dumps(answer).encode()[:-1]
        header = table.header | {"decision_session": sessions[-back], "key": f"v0-{back}"}
        published = datetime.fromisoformat(sessions[-back]).replace(hour=22, tzinfo=UTC)
        archive_table(pack_table(header, bodies, table_signer(settings)), header, folder, published)
    return settings


def pages(served, settings, *paths, **headers):
    "The responses for some paths."

    async def go():
        async with served(settings) as client:
            client.base_url = "http://127.0.0.1"
            return [await client.get(path, headers=headers) for path in paths]

    return asyncio.run(go())


def words(response):
    return " ".join(re.sub("<[^>]+>", " ", response.text).split())


def test_every_ticker_is_reachable_from_the_front_page(served, history):
    front, one, nothing, late = pages(served, history, "/", "/?q=sim03", "/?q=zzz", "/?page=99")
    tickers = set(open_answers(history).tickers)
    assert set(re.findall(r'href="/t/(\w+)"', front.text)) == tickers
    assert re.findall(r'href="/t/(\w+)"', one.text) == ["SIM03"]
    assert "No ticker contains zzz." in words(nothing) and late.status_code == 200
    assert "historical data, which ends here" in words(front) and "stale" not in words(front)


def test_the_record_holds_what_was_published_and_what_came(served, history):
    (response,) = pages(served, history, "/t/sim03")
    closes = dict(ClosesFile(history.storage.serving_dir).current().of("SIM03"))
    sessions = list(closes)
    rows = re.findall(r'<tr><th scope="row" class="date">(.*?)</tr>', response.text)
    assert [row[:10] for row in rows] == [sessions[-back] for back in range(2, 7)]  # not the newest
    came = [re.search(r'<td class="num">([+-][\d.]+%)</td><td class="\w+">(in|out)side', row) for row in rows]
    # the newest published forecast is still open; its target lies after the last close
    expected = [
        f"{closes[sessions[1 - back + 1]] / closes[sessions[1 - back]] - 1:+.2%}" for back in range(3, 7)
    ]
    assert [match and match[1] for match in came] == [None, *expected]
    assert "of 4 outcomes lie inside the 90 % range" in words(response)


def test_a_forged_file_of_closes_is_not_shown(served, history, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(history.storage.home_dir, home)
    settings = build_settings(home)
    path = settings.storage.serving_dir / CLOSES_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    (response,) = pages(served, settings, "/t/SIM03")
    assert response.status_code == 200 and 'class="known"' not in response.text
    assert 'class="known"' in pages(served, history, "/t/SIM03")[0].text


def test_an_unknown_ticker_is_a_page_with_near_names(served, history):
    unknown, strange, script = pages(served, history, "/t/SIM3", "/t/%00", "/t/<script>")
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert 'href="/t/SIM03"' in unknown.text and "code unknown-ticker" in words(unknown)
    assert strange.status_code == script.status_code == 404 and "<script>" not in script.text
    assert "default-src 'none'" in unknown.headers["content-security-policy"]


def test_a_browser_gets_a_page_where_nothing_is_and_a_program_gets_a_problem(served, history):
    paths = "/nowhere", "/reports/", "/reports/2026/page.html", "/v1/nowhere"
    in_browser = pages(served, history, *paths, accept="text/html,application/xhtml+xml,*/*;q=0.8")
    in_program = pages(served, history, *paths)
    assert {response.status_code for response in in_browser + in_program} == {404}
    kinds = [response.headers["content-type"].partition(";")[0] for response in in_browser]
    assert kinds == ["text/html"] * 3 + ["application/problem+json"]
    assert all(response.json()["error"]["code"] == "not-found" for response in in_program)
    assert "no reports yet" in words(in_browser[1])
    assert "default-src 'none'" in in_browser[1].headers["content-security-policy"]


def test_the_red_box_is_for_a_desk_that_was_started(tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    home = tmp_path / "home"
    settings = build_settings(home, **{"schedule.prefect_port": 1})
    quiet = read_desk(settings)
    assert schedule_sentence(quiet, settings) == (
        "No scheduler runs beside this service. To start one, run: stockpredict up",
        False,
    )
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    up([Part("schedule", command)], home)
    try:
        assert schedule_sentence(read_desk(settings), settings)[1]
    finally:
        down(home)
    assert not schedule_sentence(read_desk(settings), settings)[1]


def test_pages_hold_no_inline_script_or_style_and_have_a_tag(served, history):
    paths = "/", "/t/SIM03", "/models", "/status", "/docs"
    for response in pages(served, history, *paths):
        assert not re.search(r"<script>|<style|\sstyle=|\son\w+=|javascript:", response.text), response.url
        assert not re.search(r"unsafe-|\*", response.headers["content-security-policy"])
    first = pages(served, history, "/t/SIM03")[0]
    again = pages(served, history, "/t/SIM03", **{"if-none-match": first.headers["etag"]})[0]
    assert (first.status_code, again.status_code) == (200, 304)


def test_with_keys_a_browser_logs_in_with_the_key_as_password(served, history, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(history.storage.home_dir, home)
    settings = build_settings(home, **{"access.required": "always"})
    _, key = KeyStore(settings.storage).create(["viewer"], "a reader", 1)
    asked = pages(served, settings, "/", "/t/SIM03", accept="text/html")
    assert [r.status_code for r in asked] == [401, 401]
    assert "Basic" in ", ".join(asked[0].headers.get_list("www-authenticate"))
    password = base64.b64encode(f"anyone:{key}".encode()).decode()
    front, ticker, status = pages(
        served, settings, "/", "/t/SIM03", "/status", authorization=f"Basic {password}"
    )
    assert (front.status_code, ticker.status_code, status.status_code) == (200, 200, 200)
    assert "Authorization: Bearer $STOCKPREDICT_API_KEY" in ticker.text and key not in ticker.text
    assert "free mb" not in status.text  # details are for operators

"""The pages in a browser: no error on the console, no request elsewhere, every operation can be tried."""

import re
from pathlib import Path

import axe_core_python
import pytest
from tab import Tab

from served_desk import uvicorn_process


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Tab(tmp_path_factory.mktemp("browser") / "profile")
    yield browser
    browser.close()


def filled_board():
    "A scoreboard with every part of its page: parts, gap, corrections, a wide and a missing interval."
    import numpy as np
    import pandas as pd

    from stockpredict.core.calendar import get_calendar
    from stockpredict.scoreboard.scoreboard import board_lines, coverage_path, gap_lines, line_groups

    calendar, rng = get_calendar(), np.random.default_rng(2)
    days, rows = calendar.sessions("2024-01-02", "2024-03-28"), []
    parts = [("all", "all"), *(("volatility", p) for p in ("calm", "middle", "wild")), ("sector", "Energy")]
    for at in range(40):
        for slice_, part in parts:
            row = {
                "slice": slice_,
                "part": part,
                "role": "champion",
                "model": "ridge",
                "version": 1 + at // 20,
            }
            row |= {
                "artifact": f"a{at // 20}",
                "horizon": 1,
                "cells": 30,
                "decision_session": days[at].date(),
            }
            row |= {"target_session": days[at + 2].date(), "up": 0.5, "hit": rng.binomial(30, 0.5) / 30}
            row |= {"rank_ic": rng.normal(0, 0.1) if part != "Energy" else np.nan}
            row |= {
                f"inside_{s}": rng.binomial(30, 0.6 if s == 90 else s / 100) / 30 for s in (50, 80, 90, 95)
            }
            rows.append(row | {loss: rng.gamma(4, 0.002) for loss in ("pinball", "crps", "qlike")})
    scores = pd.DataFrame(rows)
    lines = board_lines(line_groups(scores), calendar)
    promised = {(2, "inside_90"): {"value": 0.9, "low": 0.89, "high": 0.91}}
    path = coverage_path(scores[scores.slice == "all"], calendar)
    board = {
        "verdict": "Over 40 sessions …",
        "pending": "",
        "until": "2024-03-01",
        "at": "2024-03-01T22:00:00+00:00",
    }
    board |= {"notes": ["2024-01-10, 1 ahead: Scored again: bars of SIM04 changed."], "path": {"1": path}}
    return board | {"lines": lines, "gap": gap_lines(lines, promised, 1)}


@pytest.fixture(scope="module")
def url(template, tmp_path_factory):
    "A server for all tests of this file."
    from stockpredict.core.files import write_json

    write_json(template.storage.serving_dir / "scoreboard.json", filled_board())
    with uvicorn_process(template, tmp_path_factory.mktemp("server")) as (_, url, _):
        yield url


@pytest.fixture(autouse=True)
def calm(browser):
    "Each test looks at its own events."
    browser.resize(1280, 900)
    browser.events.clear()


def only_from(url, requested):
    return all(address.startswith((url, "data:", "about:", "chrome:", "blob:")) for address in requested)


MISSING = ("/t/SIM0X", "/reports/")
PAGES = (
    "/",
    "/?q=sim0&page=2",
    "/scoreboard",
    "/t/SIM01",
    "/models",
    "/status",
    "/experiments",
    "/alerts",
    *MISSING,
    "/docs",
)
AXE = next(Path(axe_core_python.__file__).parent.rglob("axe.min.js"))
# Swagger UI puts its permalinks inside its buttons; we only colour it
SWAGGER = {"nested-interactive"}


def violations(browser):
    "What axe-core finds wrong on the page."
    browser.run(AXE.read_text() + ";0")
    report = "v => [v.id, v.nodes[0].html.slice(0, 120), v.nodes[0].failureSummary.slice(0, 120)]"
    return browser.run(f"axe.run().then(r => r.violations.map({report}))")


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_accessible_in_both_schemes_on_a_desk_and_on_a_phone(browser, url, path):
    for width, dark in ((1280, False), (390, True)):
        browser.resize(width, 900, dark)
        browser.open(url + path)
        if path == "/docs":
            browser.until("document.querySelectorAll('.opblock').length > 6")
        wrong = [v for v in violations(browser) if not (path == "/docs" and v[0] in SWAGGER)]
        assert wrong == [], (width, dark)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), (width, "scrolls sideways")
        fits = "[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)"
        assert browser.run(fits), (width, "a table is wider than the page")
        assert only_from(url, browser.requested())
        refused = "404" if path in MISSING else "none"
        assert [text for text in browser.errors() if refused not in text] == []


def test_the_front_page_finds_a_ticker_and_leads_to_its_page(browser, url):
    browser.open(url + "/")
    assert browser.run("document.querySelectorAll('.forecasts tbody tr').length") > 5
    assert browser.run("getComputedStyle(document.querySelector('h1')).fontSize") != "32px"  # styled
    browser.click("document.querySelector('#q')")
    browser.type("sim03")
    browser.click("document.querySelector('.search button')")
    browser.until("location.search === '?q=sim03'")
    browser.until("document.querySelectorAll('.forecasts tbody tr').length === 1")
    browser.click("document.querySelector('.forecasts a')")
    browser.until("location.pathname === '/t/SIM03' && document.readyState === 'complete'")
    words = browser.text()
    assert "Range of the price" in words and "curl -s 'http" in words and "Daily volatility" in words
    assert browser.run("document.querySelectorAll('svg.chart path.known').length") == 1
    assert browser.errors() == []


# a press while the page is still filling its form is lost: press again when nothing came for five seconds
PRESSED = """(block => {
    if (block.querySelector('.live-responses-table tbody .response-col_status')) return true
    const now = performance.now(), pressed = window['pressed %s']
    if (!pressed || now - pressed > 5000) {
        window['pressed %s'] = now
        block.querySelector('.execute').click()
    }
})(%s)"""


def execute(browser, operation):
    "Open one operation of the API page, press Execute, and return the status and body that the page shows."
    block = f"document.querySelector('#operations-{operation}')"
    browser.run(f"{block}.querySelector('.opblock-summary-control').click()")
    browser.until(f"Boolean({block}.querySelector('.execute'))")
    browser.until(PRESSED % (operation, operation, block))
    status = browser.run(
        f"{block}.querySelector('.live-responses-table tbody .response-col_status').innerText"
    )
    body = browser.run(f"{block}.querySelector('.live-responses-table .highlight-code')?.innerText || ''")
    return status.split()[0], body


# A browser must not start a training, wait for an endless stream, or change what is served.
ELSEWHERE = re.compile(
    "alert|scoreboard|train|stream|job|promote|retire|experiment|token|batch|report|explanation|model"
)


def test_operations_of_the_api_page_work_as_proposed(browser, url):
    browser.open(url + "/docs")
    browser.until("document.querySelectorAll('.opblock').length > 6")
    found_ids = "[...document.querySelectorAll('.opblock')].map(b => b.id.slice('operations-'.length))"
    ids = [name for name in browser.run(found_ids) if not ELSEWHERE.search(name)]
    assert {"forecasts-prediction", "forecasts-predictions", "forecasts-what_if"} <= set(ids)
    results = {operation: execute(browser, operation) for operation in ids}
    assert {operation: status for operation, (status, _) in results.items()} == dict.fromkeys(ids, "200")
    assert '"source": "caller"' in results["forecasts-what_if"][1]
    assert browser.errors() == [] and only_from(url, browser.requested())
    browser.click("document.querySelector('.btn.authorize')")
    browser.until("document.querySelectorAll('.modal-ux input').length > 0")


def test_the_api_page_explains_every_error_code_at_its_address(browser, url):
    "The `type` of a problem document leads to the line about its code."
    browser.open(url + "/docs#unknown-ticker")
    browser.until("Boolean(document.querySelector('tr:target'))")
    assert "unknown-ticker" in browser.run("document.querySelector('tr:target').innerText")
    browser.until("document.querySelectorAll('.opblock').length > 6 && scrollY > 0")
    assert browser.run("document.querySelectorAll('tr[id]').length") > 20


def test_the_reference_follows_the_scheme_of_the_reader_and_an_open_operation_can_be_read(browser, url):
    paper = []
    for dark in (False, True):
        browser.resize(1280, 900, dark)
        browser.open(url + "/status")
        paper.append(browser.run("getComputedStyle(document.body).backgroundColor"))
        browser.open(url + "/docs")
        browser.until("document.querySelectorAll('.opblock').length > 6")
        browser.click("document.querySelector('.opblock-summary-control')")
        browser.until("Boolean(document.querySelector('.opblock pre.microlight'))")
        for part in ("document.body", "document.querySelector('.swagger-ui')"):
            colour = browser.run(f"getComputedStyle({part}).backgroundColor")
            assert colour in (paper[-1], "rgba(0, 0, 0, 0)"), (part, dark)
        assert "color-contrast" not in [name for name, *_ in violations(browser)], dark
    assert paper[0] != paper[1]

"""The pages in a browser: no error on the console, no request elsewhere, every operation can be tried."""

import pytest
from tab import Tab

from .conftest import uvicorn_process


@pytest.fixture
def browser(tmp_path):
    browser = Tab(tmp_path / "profile")
    yield browser
    browser.close()


def only_from(url, requested):
    return all(address.startswith((url, "data:", "about:", "chrome:", "blob:")) for address in requested)


def test_the_front_page_is_styled_and_complete(browser, template, tmp_path):
    with uvicorn_process(template, tmp_path) as (_, url, _):
        browser.open(url + "/")
        assert browser.run("document.querySelectorAll('tbody tr').length") > 5
        assert browser.run("getComputedStyle(document.querySelector('h1')).fontSize") != "32px"  # styled
        assert browser.errors() == [] and only_from(url, browser.requested())


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


def test_every_operation_of_the_api_page_works_as_proposed(browser, template, tmp_path):
    with uvicorn_process(template, tmp_path) as (_, url, _):
        browser.open(url + "/docs")
        browser.until("document.querySelectorAll('.opblock').length == 7")
        ids = browser.run(
            "[...document.querySelectorAll('.opblock')].map(b => b.id.slice('operations-'.length))"
        )
        results = {operation: execute(browser, operation) for operation in ids}
        assert {operation: status for operation, (status, _) in results.items()} == dict.fromkeys(ids, "200")
        assert '"source": "caller"' in next(body for name, (_, body) in results.items() if "what_if" in name)
        assert browser.errors() == [] and only_from(url, browser.requested())


def test_the_api_page_explains_every_error_code_at_its_address(browser, template, tmp_path):
    "The `type` of a problem document leads to the line about its code."
    with uvicorn_process(template, tmp_path) as (_, url, _):
        browser.open(url + "/docs#unknown-ticker")
        browser.until("Boolean(document.querySelector('tr:target'))")
        assert "unknown-ticker" in browser.run("document.querySelector('tr:target').innerText")
        browser.until("document.querySelectorAll('.opblock').length == 7 && scrollY > 0")
        assert browser.run("document.querySelectorAll('tr[id]').length") > 20

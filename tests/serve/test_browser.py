"""The pages in a browser: no error on the console, no request elsewhere, every operation can be tried."""

import itertools
import json
import re
import shutil
import subprocess
import urllib.request

import patience
import pytest

from .conftest import uvicorn_process

chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
websockets = pytest.importorskip("websockets.sync.client")


class Browser:
    "One tab, driven through the DevTools protocol."

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [
                chromium,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                "--no-first-run",
                "about:blank",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        line = next(x for x in self.process.stderr if "DevTools listening" in x)
        port = re.search(r":(\d+)/", line)[1]
        tab = next(
            t
            for t in json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
            if t["type"] == "page"
        )
        self.socket = websockets.connect(tab["webSocketDebuggerUrl"], max_size=None)
        self.number = itertools.count(1)
        self.events = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        number = next(self.number)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                return message.get("result", message)
            self.events.append(message)

    def run(self, script):
        options = {"awaitPromise": True, "returnByValue": True}
        outcome = self.send("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in outcome, outcome
        return outcome["result"].get("value")

    def open(self, url):
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def until(self, script):
        patience.wait_until(lambda: self.run(f"Boolean({script})"), every=0.1)

    def of_kind(self, method):
        return [event["params"] for event in self.events if event.get("method") == method]

    def errors(self):
        entries = [params["entry"] for params in self.of_kind("Log.entryAdded")]
        logged = [entry["text"] for entry in entries if entry["level"] == "error"]
        thrown = [params["exceptionDetails"]["text"] for params in self.of_kind("Runtime.exceptionThrown")]
        printed = [params for params in self.of_kind("Runtime.consoleAPICalled") if params["type"] == "error"]
        return logged + thrown + printed

    def requested(self):
        return [params["request"]["url"] for params in self.of_kind("Network.requestWillBeSent")]

    def close(self):
        self.socket.close()
        self.process.terminate()
        patience.wait_until(lambda: self.process.poll() is not None, self.process)
        self.process.stderr.close()


@pytest.fixture
def browser(tmp_path):
    if not chromium:
        pytest.skip("There is no Chromium on this machine.")
    browser = Browser(tmp_path / "profile")
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
    browser.until(f"{block}.querySelector('.execute')")
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
        browser.until("document.querySelector('tr:target')")
        assert "unknown-ticker" in browser.run("document.querySelector('tr:target').innerText")
        browser.until("document.querySelectorAll('.opblock').length == 7 && scrollY > 0")
        assert browser.run("document.querySelectorAll('tr[id]').length") > 20

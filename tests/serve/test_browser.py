"""The pages in a real browser: no error on the console, no request elsewhere, and the forms really send."""

import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.request

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
            self.tell(f"{domain}.enable")

    def tell(self, method, **params):
        number = next(self.number)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            told = json.loads(self.socket.recv(timeout=30))
            if told.get("id") == number:
                return told.get("result", told)
            self.events.append(told)

    def run(self, script):
        told = self.tell("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def open(self, url):
        self.tell("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def until(self, script):
        end = time.monotonic() + 30
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.1)

    def complaints(self):
        bad = [
            e["params"]["entry"]["text"]
            for e in self.events
            if e.get("method") == "Log.entryAdded" and e["params"]["entry"]["level"] == "error"
        ]
        return bad + [
            e["params"]["exceptionDetails"]["text"]
            for e in self.events
            if e.get("method") == "Runtime.exceptionThrown"
        ]

    def asked(self):
        return [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        self.process.stderr.close()


@pytest.fixture
def browser(tmp_path):
    if not chromium:
        pytest.skip("There is no Chromium on this machine.")
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def test_pages_work_in_a_browser(browser, template, tmp_path):
    with uvicorn_process(template, tmp_path) as (_, url, _):
        browser.open(url + "/")
        assert browser.run("document.querySelectorAll('tbody tr').length") > 5
        assert (
            browser.run("getComputedStyle(document.querySelector('h1')).fontSize") != "32px"
        )  # the style sheet arrived
        browser.open(url + "/docs#what_if")
        browser.until("document.getElementById('what_if')?.open")
        cards = browser.run("[...document.querySelectorAll('details.card')].map(c => c.id)")
        for card in cards:
            browser.run(
                f"document.querySelector('#{card} button').closest('details').open = true; document.querySelector('#{card} button').click()"
            )
            browser.until(f"!document.querySelector('#{card} pre').hidden")
            assert browser.run(f"document.querySelector('#{card} .status').textContent").startswith(
                "200 in"
            ), card
        assert '"source": "caller"' in browser.run("document.querySelector('#what_if pre').textContent")
        assert len(cards) == 6 and browser.complaints() == []
        assert all(u.startswith((url, "data:", "about:", "chrome:")) for u in browser.asked())

"""One tab of a headless Chromium, driven through the DevTools protocol."""

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import urllib.request

import patience
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "about:blank",
)


def require_chromium():
    "Fail in CI and skip elsewhere when there is no browser."
    if not CHROMIUM:
        why = "No chromium on this machine: run .ci/services as root, or install it yourself."
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)


class Tab:
    "A browser with one tab; `close` ends it."

    def __init__(self, folder, *options):
        from websockets.sync.client import connect

        require_chromium()
        command = [CHROMIUM, f"--user-data-dir={folder}", *options, *OPTIONS]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = next(x for x in self.process.stderr if "DevTools listening" in x)
        address = f"http://127.0.0.1:{re.search(r':([0-9]+)/', line)[1]}/json"
        tabs = json.load(urllib.request.urlopen(address))
        page = next(t for t in tabs if t["type"] == "page")
        self.socket = connect(page["webSocketDebuggerUrl"], max_size=None, ping_interval=None)
        self.number, self.events = itertools.count(1), []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        "Send a command and return its result; what happens meanwhile is kept in `events`."
        number = next(self.number)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                return message.get("result", message)
            self.events.append(message)

    def run(self, script):
        "The value of a JavaScript expression."
        options = {"awaitPromise": True, "returnByValue": True}
        outcome = self.send("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in outcome, outcome
        return outcome["result"].get("value")

    def until(self, script):
        "Wait until an expression is true, and return its value; fails when the page's words stay the same."
        words = "document.body?.innerText"
        return patience.wait_until(
            lambda: self.run(script), self.process, every=0.25, signs=lambda: (script, self.run(words))
        )

    def open(self, url):
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def text(self):
        "The words on the screen."
        return self.run("document.body.innerText")

    def until_text(self, *words):
        "Wait until all of the words are on the screen."
        self.until(f"{json.dumps(words)}.every(w => document.body.innerText.includes(w))")
        return self.text()

    def click(self, script):
        "Click in the middle of the element that an expression names, once it is there."
        self.until(f"Boolean({script})")
        self.run(f"({script}).scrollIntoView({{block: 'center'}})")
        box = f"(() => {{const b = ({script}).getBoundingClientRect();"
        x, y = self.until(f"""(async () => {{
          const middle = () => {box} return [b.x + b.width / 2, b.y + b.height / 2]}})();
          const before = middle();
          await new Promise(done => setTimeout(done, 100));
          return String(before) === String(middle()) && before;  // it moves while the page is laid out anew
        }})()""")
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)  # a menu asks where the mouse is
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text):
        "Type into what has the focus."
        self.send("Input.insertText", text=text)

    def press(self, key, code, number, modifiers=0):
        "Press a key; modifiers: 2 = Ctrl, 8 = Shift."
        own = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, **own)

    def resize(self, width, height, dark=False):
        "The size of the screen, in the light or the dark scheme."
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def of_kind(self, method):
        "What the browser has told so far about one kind of event."
        return [event["params"] for event in self.events if event.get("method") == method]

    def errors(self):
        "Everything on the console that is an error."
        entries = [params["entry"] for params in self.of_kind("Log.entryAdded")]
        logged = [entry["text"] for entry in entries if entry["level"] == "error"]
        thrown = [params["exceptionDetails"]["text"] for params in self.of_kind("Runtime.exceptionThrown")]
        printed = [params for params in self.of_kind("Runtime.consoleAPICalled") if params["type"] == "error"]
        return logged + thrown + printed

    def requested(self):
        "Every address that was asked for."
        return [params["request"]["url"] for params in self.of_kind("Network.requestWillBeSent")]

    def picture(self, path):
        "Store what is on the screen as PNG."
        shot = self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        with contextlib.suppress(Exception):
            self.socket.close()
        self.process.terminate()
        self.process.wait()

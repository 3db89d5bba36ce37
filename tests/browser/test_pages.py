"""The pages as a browser shows them: no network, no console errors, the words that matter on the screen."""

import re
import socket
import subprocess
import sys

import patience
import pytest
from tab import CHROMIUM, require_chromium

OFFLINE = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    "Open an address and return the page after its scripts ran, with what it complained of."
    require_chromium()
    profile = tmp_path_factory.mktemp("chromium")

    def open_page(address: str):
        command = [
            CHROMIUM,
            *OFFLINE,
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--virtual-time-budget=8000",
            "--dump-dom",
            address,
        ]
        done = patience.run(command)
        complaints = [
            line
            for line in done.stderr.splitlines()
            if "CONSOLE" in line and re.search(r"error|refused|violat", line, re.I)
        ]
        return done.stdout, complaints

    return open_page


@pytest.fixture(scope="module")
def service(finished):
    "The prediction service on a spare port, over the finished run."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    child = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "stockpredict.cli.main",
            "serve",
            *finished["asked"],
            "--set",
            f"serving.port={port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base = f"http://127.0.0.1:{port}"
    patience.wait_until(lambda: patience.answers(f"{base}/health"), child)
    yield base
    child.terminate()
    patience.wait_until(lambda: child.poll() is not None, child)


def pages(finished):
    return sorted(finished["settings"].storage.reports_dir.rglob("*.html"))


def test_every_report_opens_offline_and_complains_of_nothing(finished_alone, browse):
    assert len(pages(finished_alone)) >= 6
    for page in pages(finished_alone):
        shown, complaints = browse(page.as_uri())
        assert "<h1" in shown and complaints == [], page.name


def test_no_report_refers_to_another_host(finished_alone):
    for page in pages(finished_alone):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(
            r"""(?:src|srcset)=["']?(https?:[^"' >]+)|"""
            r"""<link[^>]+href=["']?(https?:[^"' >]+)|url\((https?:[^)]+)\)""",
            text,
        )
        assert fetched == [], page.name
        assert page.stat().st_size < 5_000_000, page.name


def test_the_validation_report_says_what_a_sceptic_asks_for(finished_alone, browse):
    page = next(p for p in pages(finished_alone) if "validate" in str(p))
    words = re.sub(r"<[^>]+>", " ", browse(page.as_uri())[0])
    for wanted in (
        "Hold",
        "no evidence",
        "rank IC",
        "Self-test",
        "mean",
        "coverage",
        "Sharpe",
        "snapshot",
        "trials",
    ):
        assert wanted.lower() in words.lower(), wanted


@pytest.mark.parametrize(
    "path, words",
    [("/", ["stockpredict"]), ("/docs", ["/v1/predictions/{ticker}", "/v1/predict", "/health"])],
)
def test_the_service_pages_work_without_a_network(service, browse, path, words):
    shown, complaints = browse(service + path)
    assert complaints == [] and all(w in shown for w in words)


def test_the_catalogue_is_searched_in_the_browser_by_the_one_script_it_may_run(browse, tmp_path):
    from stockpredict.core.templates import template_text
    from stockpredict.ops.handbook import script_hash, write_handbook
    from stockpredict.serve.http import ALLOWED_SCRIPTS

    scripts = {"catalogue.html": "ops/handbook.js", "index.html": "ops/index.js"}
    assert ALLOWED_SCRIPTS == {
        page: f"script-src {script_hash(template_text(name))}" for page, name in scripts.items()
    }
    names = ["rsi_14", "atr_14", "bollinger_20", "vol_20"]
    page = write_handbook(tmp_path, names).as_uri()
    for fragment, shown_names in {
        "": names,
        "#atr_14": names,
        "#wilder%201978": ["rsi_14", "atr_14"],
        "#no%20such%20thing": [],
    }.items():
        shown, complaints = browse(page + fragment)
        cards = re.findall(r'<article class="card" id="([^"]+)"( hidden="")?', shown)
        assert complaints == [] and sorted(name for name, hidden in cards if not hidden) == sorted(
            shown_names
        ), fragment


def test_the_index_of_reports_is_searched_in_the_browser(browse, tmp_path):
    import json

    from stockpredict.ops.reports import write_index

    for day, model in (("2022-12-29", "ridge"), ("2022-12-30", "lightgbm")):
        folder = tmp_path / day / "r40"
        folder.mkdir(parents=True)
        facts = dict(name="r40_validate", as_of=day, started=f"{day}T22:00:00Z", status="complete", seconds=1)
        facts["result"] = {"model": model, "decision": "hold"}
        (folder / "result.json").write_text(json.dumps(facts))
    page = write_index(tmp_path).as_uri()
    for fragment, models in {"": ["lightgbm", "ridge"], "#hold%20ridge": ["ridge"], "#lstm": []}.items():
        shown, complaints = browse(page + fragment)
        rows = re.findall(r'<tr [^>]*data-model="(\w+)"[^>]*?( hidden="")?>', shown)
        assert complaints == [] and [model for model, hidden in rows if not hidden] == models, fragment
        assert f"{len(models)} of 2 runs" in shown

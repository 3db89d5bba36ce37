"""A retraining from Prefect's form to its verdict: submitted, followed to its end, and its report opened."""

import os
import re

import desk_form
import kill_points
import patience
import psutil
import pytest
from desk_form import ask
from live_redis import spare_port
from tab import Tab

from stockpredict.core.settings import load_settings
from stockpredict.ops.lifeline import marked
from stockpredict.ops.parts import PORTS, parts
from stockpredict.ops.pipeline import SMALL
from stockpredict.ops.processes import _purpose, down, up

WHY = "A whole retraining, with --all-steps; each run of the tests starts a short one in test_schedule."
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get(kill_points.ALL) != "1", reason=WHY),
]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    "Prefect, its schedules and the service of a small simulated market, with nothing trained yet."
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "INFO")  # the tests are quiet otherwise
    changes = SMALL | {"models.candidates": ["mean", "ridge"]}
    changes |= {"storage.home": str(tmp_path / "home"), "storage.reports": str(tmp_path / "reports")}
    changes |= {setting: spare_port() for setting in PORTS.values()}
    words = {k: ",".join(v) if isinstance(v, list) else str(v) for k, v in changes.items()}
    options = [word for k, v in words.items() for word in ("--set", f"{k}={v}")]
    settings = load_settings(overrides=changes)
    wanted = [part for part in parts(settings, options) if part.name in ("prefect", "schedule", "api")]
    home = settings.storage.home_dir
    try:
        ledger = up(wanted, home)
        alive = {name: psutil.Process(entry["pid"]) for name, entry in ledger.items()}
        yield f"http://127.0.0.1:{settings.schedule.prefect_port}", settings, alive
    finally:
        down(home)
    patience.wait_until(lambda: not marked(_purpose(home)))  # nothing outlives `down`


def test_a_run_is_started_from_the_form_and_its_report_has_the_verdict(desk, tmp_path):
    base, settings, alive = desk
    api = f"{base}/api"

    def deployed():
        return [d["id"] for d in ask(api, "deployments/filter") if d["name"] == "retrain"]

    [deployment] = patience.wait_until(deployed, *alive.values(), every=0.5)
    tab = Tab(tmp_path / "chromium")
    try:
        tab.resize(1280, 1400)
        overrides = desk_form.open_form(tab, base, deployment)
        assert overrides["storage.home"] == str(settings.storage.home_dir)
        run = desk_form.submit(tab, api, deployment, "by hand", overrides | {"simulated.seed": "2"})
        ended = desk_form.end_of(api, run, alive["prefect"], alive["schedule"])
        assert ended["state_name"] == "Completed"
        tab.open(f"{base}/runs/flow-run/{run}")
        tab.until_text("Completed", ended["name"])
        of_run = {"flow_run_id": {"any_": [run]}}
        logs = [line["message"] for line in ask(api, "logs/filter", logs=of_run, limit=200)]
        cells = [re.match(r"r40_validate: cell (\d+) of (\d+)", text) for text in logs]
        numbers = [(int(m[1]), int(m[2])) for m in cells if m]
        assert (1, numbers[0][1]) in numbers and max(numbers)[0] == numbers[0][1], logs
        [artifact] = ask(api, "artifacts/filter", artifacts=of_run | {"type": {"any_": ["markdown"]}})
        tab.open(f"{base}/artifacts/artifact/{artifact['id']}")
        link = tab.until("[...document.links].map(a => a.href).find(h => h.endsWith('/page.html'))")
        assert link.startswith(f"http://127.0.0.1:{settings.serving.port}/reports/")
        verdict = re.match(r"\*\*(.+?)\*\*", artifact["data"])[1]
        tab.open(link)
        words = tab.until_text("Overfitting and self-test")
        assert verdict in " ".join(words.split()), words[:2000]
    finally:
        tab.close()

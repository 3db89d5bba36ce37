"""The flows of the desk's day: their forms, their dates, their schedules, and the file that deploys them."""

import asyncio
import inspect
import json
import os
import re
import sys
from datetime import date, timedelta
from types import SimpleNamespace

import pandas as pd
import patience
import pytest
import time_machine
import yaml

from stockpredict.cli.flow_program import flow_program, load_flow, read_options
from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import CalendarError, FlowLocked, ParameterRefused
from stockpredict.core.settings import load_settings
from stockpredict.ops.deployments import deployments_text
from stockpredict.ops.desk_day import DESK_DAY, done_until, flow_lock, note_done
from stockpredict.ops.exchange_schedule import CalendarRule, calendar_rule, run_starts
from stockpredict.ops.flow_edge import DayResult, as_page, check_parameters, desk_flow, result_markdown
from stockpredict.ops.flow_server import checkout
from stockpredict.ops.run_kernel import CellProgress


@pytest.fixture(scope="module")
def flows():
    "Every flow, loaded from its file."
    before = dict(os.environ)
    loaded = {name: load_flow(name) for name in DESK_DAY}
    os.environ.clear()
    os.environ.update(before)
    return loaded


@pytest.fixture
def home(tmp_path):
    return {"storage.home": str(tmp_path / "home"), "storage.reports": str(tmp_path / "reports")}


@pytest.mark.parametrize("name", DESK_DAY)
def test_a_flow_is_a_story_of_at_most_120_lines(root, name):
    text = (root / "flows" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 120 and f"python flows/{name}.py" in text


@pytest.mark.parametrize("name", DESK_DAY)
def test_a_form_explains_each_parameter(flows, name):
    form = flows[name].parameters.properties
    assert [key for key, field in form.items() if len(field.get("description", "")) < 25] == []
    assert form["source"]["enum"] == ["as set", "sample", "files", "simulated", "vendors"]
    assert form["scheduled"]["default"] is False, "a run by hand is not asked whether it is time"
    days = [field for key, field in form.items() if key in ("as_of", "first", "last")]
    assert all({"type": "string", "format": "date"} in field["anyOf"] for field in days)
    assert flows[name].description == DESK_DAY[name].summary


def test_the_mode_is_a_choice(flows):
    assert flows["retrain"].parameters.properties["mode"]["enum"] == ["by calendar", "full", "incremental"]


@pytest.mark.parametrize("name", [flow.name for flow in DESK_DAY.values() if flow.dated])
def test_a_date_that_cannot_be_is_refused_before_any_work(flows, name, home, tmp_path):
    newest = get_calendar("XNYS").last_closed().date()
    for day, sentence in (
        (newest + timedelta(days=400), "lies in the future"),
        (date(2020, 3, 14), "is no session of XNYS"),
        (date(2009, 12, 31), "There are no data of 2009-12-31: the first session is 2010-01-01"),
    ):
        with pytest.raises(CalendarError, match=sentence):
            flows[name].fn(as_of=day, overrides=home)
    assert not (tmp_path / "home").exists()


def test_a_backfill_checks_its_days(flows, home):
    with pytest.raises(CalendarError, match="lies in the future"):
        flows["backfill"].fn(last=date.today() + timedelta(days=400), overrides=home)
    with pytest.raises(CalendarError, match="has no day"):
        flows["backfill"].fn(first=date(2020, 1, 3), last=date(2020, 1, 2), overrides=home)


def test_a_program_names_the_near_option_and_starts_nothing(flows, capsys, monkeypatch):
    monkeypatch.setattr("stockpredict.cli.flow_program.flow_server", None)  # would fail if it were called
    assert flow_program(flows["ingest"], ["--as-off", "2020-03-12"]) == 2
    assert "Did you mean --as-of?" in capsys.readouterr().err
    assert flow_program(flows["monitor"], ["--as-of", "2020-03-14"]) == 2
    assert "The sessions around it are 2020-03-13 and 2020-03-16." in capsys.readouterr().err
    assert flow_program(flows["maintain"], ["--set", "schedule.keep_day=3"]) == 2
    assert "Did you mean keep_days?" in capsys.readouterr().err
    with pytest.raises(ParameterRefused, match="mode is 'fast'"):
        check_parameters("retrain", inspect.signature(flows["retrain"].fn), {"mode": "fast"})
    given, serve = read_options(flows["backfill"], ["--first", "2020-01-02", "--tickers", "AAPL,MSFT"])
    assert given == {"first": date(2020, 1, 2), "tickers": ["AAPL", "MSFT"]} and not serve
    assert read_options(flows["ingest"], ["--no-page"])[0] == {"page": False}


def test_the_deployment_file_is_what_the_flows_and_the_calendar_say(flows, root):
    text = (root / "prefect.yaml").read_text()
    deployed = {d["name"]: d for d in yaml.safe_load(text)["deployments"]}
    assert list(deployed) == list(DESK_DAY)
    assert {p.stem for p in (root / "flows").glob("*.py")} == set(deployed)
    for name, one in deployed.items():
        path, function = one["entrypoint"].split(":")
        assert (root / path).exists() and function == name and one["description"] == flows[name].description
        assert one["tags"] == ["stockpredict", name]
        assert one["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        assert "parameters" not in one
        for schedule in one["schedules"]:
            given = check_parameters(name, inspect.signature(flows[name].fn), schedule["parameters"])
            assert given["scheduled"] is True
        assert bool(one["schedules"]) == bool(DESK_DAY[name].every)


def test_the_schedules_of_the_file_begin_after_each_close(root):
    "For the year that the file knows, Prefect expands each rule to the instants of the calendar."
    from prefect.server.schemas.schedules import RRuleSchedule

    settings = load_settings(path=root / "settings.ini", environ={})
    calendar = get_calendar(settings.data.calendar)
    for one in yaml.safe_load((root / "prefect.yaml").read_text())["deployments"]:
        for schedule in one["schedules"]:
            rule = CalendarRule(schedule["rrule"], schedule["timezone"])
            first = rule.first.tz_localize(rule.timezone)
            last = first + pd.Timedelta("300D")
            stored = RRuleSchedule(rrule=rule.rrule, timezone=rule.timezone)
            begins = asyncio.run(stored.get_dates(n=400, start=first, end=last))
            flow = DESK_DAY[one["name"]]
            truth = run_starts(calendar, flow.minutes(settings), first.date(), last.date(), flow.every)
            truth = [t for t in truth if first <= t <= last]
            assert [pd.Timestamp(t).tz_convert("UTC") for t in begins] == truth, one["name"]
            assert len(truth) > 40


@pytest.mark.parametrize("exchange", ["XLON", "XTKS", "XBOM", "XHKG"])
def test_prefect_reads_the_rule_of_any_exchange(exchange):
    from prefect.server.schemas.schedules import RRuleSchedule

    calendar = get_calendar(exchange)
    rule = calendar_rule(calendar, 90, first="2025-10-01")
    start, end = (pd.Timestamp(day).tz_localize(calendar.tz) for day in ("2025-10-01", "2026-09-30"))
    schedule = RRuleSchedule(rrule=rule.rrule, timezone=rule.timezone)
    begins = asyncio.run(schedule.get_dates(n=400, start=start, end=end))
    truth = run_starts(calendar, 90, "2025-10-01", "2026-09-29")
    assert [pd.Timestamp(t).tz_convert("UTC") for t in begins] == list(truth)


def test_another_exchange_gets_a_file_of_its_own():
    text = deployments_text(load_settings(overrides={"data.calendar": "XTKS"}), "2026-11-30")
    zones = {s["timezone"] for d in yaml.safe_load(text)["deployments"] for s in d["schedules"]}
    assert zones == {"Asia/Tokyo"}


def watching():
    "A flow named monitor that notes what it was asked to look at."
    seen = []

    def monitor(desk):
        "Look."
        seen.append((desk.session, desk.as_of))
        return desk.result("Seen.")

    return desk_flow(monitor), seen


def at(moment):
    return time_machine.travel(moment, tick=False)


def test_a_run_on_a_half_day_begins_after_the_half_days_close(home):
    "New York closes at 18:00 UTC on the day after Thanksgiving; the monitor is due 270 minutes later."
    flow, seen = watching()
    note_done(load_settings(overrides=home), "monitor", "2025-11-26")
    with at("2025-11-28T22:29Z"):
        early = flow.fn(overrides=home, scheduled=True)
    assert early.name == "Skipped" and early.message.startswith("closed: The session of 2025-11-26 is done")
    with at("2025-11-28T22:30Z"):
        flow.fn(overrides=home, scheduled=True)
        again = flow.fn(overrides=home, scheduled=True)
    assert seen == [("2025-11-28", "")] and again.name == "Skipped"


@pytest.mark.parametrize(
    ("policy", "days"),
    [
        ("newest", [("2025-11-28", "")]),
        ("each", [("2025-11-25", "2025-11-25"), ("2025-11-26", "2025-11-26"), ("2025-11-28", "")]),
        ("none", []),
    ],
)
def test_missed_sessions_follow_the_policy(home, policy, days):
    "The worker comes back on Saturday noon, after it has done Monday's session."
    flow, seen = watching()
    note_done(load_settings(overrides=home), "monitor", "2025-11-24")
    with at("2025-11-29T12:00Z"):
        flow.fn(overrides=home | {"schedule.catch_up": policy}, scheduled=True)
    assert seen == days
    done = done_until(load_settings(overrides=home), "monitor")
    assert done == ("2025-11-28" if days else "2025-11-24")


def test_a_story_that_fails_is_not_noted_as_done(home):
    def monitor(desk):
        "Fail."
        raise CalendarError("No.")

    with pytest.raises(CalendarError):
        desk_flow(monitor).fn(overrides=home)
    assert done_until(load_settings(overrides=home), "monitor") == ""


def test_overlapping_runs_of_a_flow_never_happen(home):
    flow, seen = watching()
    with flow_lock(load_settings(overrides=home), "monitor"):
        with pytest.raises(FlowLocked, match="The flow monitor is running here already"):
            flow.fn(overrides=home)
        busy = flow.fn(overrides=home, scheduled=True)
    assert (busy.name, busy.message.startswith("busy: ")) == ("Skipped", True)
    assert seen == []


def test_an_artifact_links_its_page_where_a_browser_can_follow_it(tmp_path):
    "From Prefect's page, which comes over http, a browser opens no file; the service serves the reports."
    changes = {"storage.reports": str(tmp_path), "serving.host": "0.0.0.0", "serving.port": "8123"}
    page = tmp_path / "2026-11-27" / "r40_validate a" / "page.html"
    result = DayResult("retrain", "2026-11-27", "Nothing is promoted.", {"decision": "hold"}, str(page))
    text = result_markdown(result, load_settings(overrides=changes))
    assert "](http://127.0.0.1:8123/reports/2026-11-27/r40_validate%20a/page.html)" in text
    assert f"`{page}`" in text and "file://" not in text
    result.page = "/elsewhere/page.html"
    text = result_markdown(result, load_settings(overrides=changes))
    assert text.endswith("The page: `/elsewhere/page.html`") and "](" not in text


def test_a_page_tells_in_the_log_of_its_run_which_cell_it_has_reached(monkeypatch, capsys):
    "The first cell and the last one, and one every few seconds between them."
    clock, sentences = iter(range(10)), []
    logger = SimpleNamespace(info=sentences.append)
    monkeypatch.setattr("stockpredict.ops.flow_edge.run_logger", lambda: logger)
    monkeypatch.setattr("stockpredict.ops.flow_edge.time", SimpleNamespace(monotonic=lambda: 2 * next(clock)))

    def write(name, on_cell):
        for number in range(1, 8):
            on_cell(CellProgress(number, 7, "Volatility" if number > 1 else ""))
        return name

    assert as_page(write, "r40_validate").fn("page.html") == "page.html"
    words = ["cell 1 of 7", *(f"cell {n} of 7, Volatility" for n in (4, 7))]
    assert sentences == [f"r40_validate: {text}" for text in words]
    assert "7 of 7" in capsys.readouterr().err


def test_waiting_threads_of_a_flow_do_not_spin():
    "OpenMP reads its policy when torch is loaded, and each flow imports the module that sets it first."
    for name in DESK_DAY:
        story = (checkout() / "flows" / f"{name}.py").read_text()
        first = next(line for line in story.splitlines() if line.startswith(("from stockp", "import stockp")))
        assert first == "from stockpredict.cli.flow_program import flow_program", name
    ask = "import stockpredict.cli.flow_program, sys, os\n"
    ask += "print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    bare = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    assert patience.run([sys.executable, "-c", ask], env=bare).stdout == "False PASSIVE\n"


def test_the_line_of_the_guide_on_reports_makes_a_task_that_writes_its_page():
    cells = json.loads((checkout() / "nbs" / "guides" / "add_a_report.ipynb").read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    [block] = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    flow = (checkout() / "flows" / "monitor.py").read_text()
    names = {}
    exec("\n".join(line for line in flow.splitlines() if line.startswith("from stockpredict.ops.")), names)
    pages = []

    def run(name, on_cell):
        "Stands for the papermill run, which tests/ops do."
        pages.append((name, callable(on_cell)))

    names["run"] = run
    exec(block, names)
    assert names["write_together"].task_run_name == "r70_together"  # in the graph of the run
    names["write_together"].fn("r70_together")
    assert pages == [("r70_together", True)]

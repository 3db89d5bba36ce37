"""The steps: once per question, one at a time, and never after a lie."""

import json
import subprocess
import sys

import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import FlowLocked, NotFound, RunError
from stockpredict.core.settings import load_settings
from stockpredict.ops import pipeline, work
from stockpredict.ops.exchange_schedule import newest_due
from stockpredict.ops.training_day import plan_training


@pytest.fixture
def settings(tmp_path):
    return load_settings(
        overrides=pipeline.SMALL
        | {"storage.home": str(tmp_path / "home"), "storage.reports": str(tmp_path / "reports")}
    )


def ingested(last="2022-12-30", fingerprint="abc"):
    return {"last": last, "fingerprint": fingerprint, "snapshot": 3, "source": "simulated"}


def test_the_same_question_has_the_same_folder_and_another_has_another(settings):
    first = work.open_work(settings, ingested())
    assert work.open_work(settings, ingested()) == first
    others = {
        work.open_work(settings, ingested(fingerprint="def")),
        work.open_work(settings.with_(**{"models.seed": 8}), ingested()),
        work.open_work(settings, ingested(), "2022-06-30"),
    }
    assert len(others | {first}) == 4


def test_the_folder_keeps_settings_but_no_secret(settings, monkeypatch):
    monkeypatch.setenv("STOCKPREDICT_SERVING__REDIS_URL", "redis://:hunter2@cache:6379")
    mine = load_settings(
        overrides=pipeline.SMALL
        | {"storage.home": settings.storage.home, "storage.reports": settings.storage.reports}
    )
    folder = work.open_work(mine, ingested())
    assert "hunter2" not in (work.Path(folder) / "work.json").read_text()
    read = work.load_work(folder).settings
    assert read.serving.redis_url == "redis://:hunter2@cache:6379" and read.hash == mine.hash
    assert read.storage.home_dir == mine.storage.home_dir


def test_a_study_of_the_past_is_known_as_one(settings):
    assert work.load_work(work.open_work(settings, ingested(), "2022-06-30")).past
    assert not work.load_work(work.open_work(settings, ingested(), "2022-12-30")).past
    assert not work.load_work(work.open_work(settings, ingested())).past


@pytest.mark.parametrize("text", ["", "{", "null"])
def test_a_step_whose_result_is_unreadable_is_done_again(settings, text):
    calls, folder = [], work.Path(work.open_work(settings, ingested()))

    @work.run_once
    def count(w):
        calls.append(w.day)
        return {"n": len(calls)}

    count(folder)
    (folder / "steps" / "count.json").write_text(text)
    assert count(folder) == {"n": 2} == count(folder)


def test_a_step_that_fails_leaves_nothing(settings):
    folder = work.Path(work.open_work(settings, ingested()))

    @work.run_once
    def broken(w):
        raise ValueError("no")

    with pytest.raises(ValueError):
        broken(folder)
    assert work.step_result(folder, "broken") is None


def test_a_page_that_was_deleted_is_written_anew(settings, tmp_path):
    folder = work.Path(work.open_work(settings, ingested()))
    page = tmp_path / "page.html"
    page.write_text("x")
    (folder / "steps").mkdir()
    (folder / "steps" / "r40_validate.json").write_text(json.dumps({"html": str(page)}))
    assert work.step_result(folder, "r40_validate")
    page.unlink()
    assert work.step_result(folder, "r40_validate") is None


def test_what_is_no_work_folder_is_said_to_be_none(settings, tmp_path):
    with pytest.raises(RunError, match="not a work folder"):
        work.load_work(tmp_path)
    with pytest.raises(NotFound, match="trained and judged"):
        work.newest_work(settings)


HOLD = """
import sys, time
from stockpredict.core.settings import load_settings
from stockpredict.ops.work import retrain_lock
with retrain_lock(load_settings(overrides={"storage.home": sys.argv[1]}), "the nightly run"):
    print("holder", flush=True); time.sleep(60)
"""


def test_a_second_run_is_refused_by_name_and_a_dead_holder_is_no_obstacle(settings):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, settings.storage.home], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline().strip() == "holder"
        with (
            pytest.raises(FlowLocked, match=rf"the nightly run .*process {holder.pid}"),
            work.retrain_lock(settings),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with work.retrain_lock(settings):
        pass


@pytest.mark.parametrize(
    "every, session, full",
    [
        ("daily", "2026-04-01", True),
        ("weekly", "2026-04-01", False),
        ("weekly", "2026-04-02", True),  # before Good Friday
        ("weekly", "2026-04-10", True),
        ("monthly", "2026-04-30", True),
        ("monthly", "2026-04-29", False),
        ("monthly", "2026-05-29", True),
        ("never", "2026-04-02", False),
    ],
)
def test_the_calendar_decides_when_it_is_time(settings, every, session, full):
    rhythm = settings.with_(**{"schedule.retrain": every, "schedule.incremental": False})
    plan = plan_training(rhythm, "by calendar", session)
    assert plan.mode == ("full" if full else "") and plan.reason
    assert plan_training(rhythm, "full", session).mode == "full"


@pytest.mark.parametrize(
    "now, session",
    [
        ("2026-04-01T15:00Z", "2026-03-31"),
        ("2026-04-01T22:00Z", "2026-04-01"),
        ("2026-04-04T22:00Z", "2026-04-02"),
    ],
)
def test_before_the_close_and_on_holidays_the_session_before_is_the_newest(now, session):
    assert f"{newest_due(get_calendar('XNYS'), 90, now):%Y-%m-%d}" == session

"""A few days of the desk under trouble, with the simulator of `benchmarks/simulated_days.py`."""

import importlib.util
import os
import shutil
import sys

import patience
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def simulator(root):
    "The script as a module."
    spec = importlib.util.spec_from_file_location("simulated_days", root / "benchmarks" / "simulated_days.py")
    module = importlib.util.module_from_spec(spec)
    before = dict(os.environ)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    os.environ.clear()
    os.environ.update(before)
    return module


def test_a_few_days_keep_every_promise(root, tmp_path):
    "Faults, kills, corrections and a repeated day; the days after the first cost about two CPU seconds each."
    script = root / "benchmarks" / "simulated_days.py"
    done = patience.run([sys.executable, "-W", "ignore", script, "--seed", "4", "--days", "8"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "0 broken" in done.stdout and " days" in done.stdout


def test_a_process_dies_before_the_operation_that_was_drawn(simulator, tmp_path):
    "The first, the third, and one that is never reached."

    def work(fatal):
        def action():
            simulator.KillPoints(fatal).install()
            for number in range(4):
                os.mkdir(tmp_path / f"{fatal}-{number}")

        return action

    assert [simulator.forked(work(n)) for n in (1, 3, 9)] == [-9, -9, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3-0", "3-1", "9-0", "9-1", "9-2", "9-3"]


def test_without_mlflow_a_day_trains_and_publishes_and_the_record_follows(simulator, tmp_path):
    "MLflow refuses on the first day; the monitor of the second evening brings the record."
    from stockpredict.ops import watch_day
    from stockpredict.train.champion import current_champion
    from stockpredict.train.mlflow_mirror import waiting_cards

    small, refused = (
        {"models.candidates": "mean reversal"},
        {"storage.mlflow_uri": f"http://{simulator.REFUSES}"},
    )
    with simulator.Desk(5, 2, tmp_path, calm=True) as desk:
        desk.today = f"{desk.sessions[simulator.HISTORY]:%Y-%m-%d}"
        desk.vendors.know_until(desk.today)
        away = desk.settings(**small, **refused)
        evening = simulator.CALENDAR.close(desk.sessions[simulator.HISTORY]) + simulator.pd.Timedelta(hours=2)
        for step in ("ingest", "retrain"):
            desk.attempt(away, step, evening, False)
        published = current_champion(away)
        assert published.mlflow == "pending" and waiting_cards(away)
        assert ["MLflow does not answer; 1 record waits for it."] == watch_day.watch_records(away)
        settings = desk.settings(**small)
        assert watch_day.watch_records(settings, as_of="2022-06-01") == [] and waiting_cards(settings)
        assert watch_day.watch_records(settings) == [] and not waiting_cards(settings)
        recorded = current_champion(settings)
        assert recorded.mlflow != "pending" and recorded.artifact == published.artifact


def test_what_is_wrong_is_found(simulator, tmp_path):
    "A lost bar, a wrong price, a bar that no vendor sent and one that was not stored."
    import pandas as pd

    desk = simulator.Desk(3, 4, tmp_path)
    session = desk.sessions[1]
    closes = desk.sessions[:2]
    bars = pd.DataFrame(
        {"ticker": "SIM0", "event_time": simulator.CALENDAR.closes(closes), "close": [10.0, 11.0]}
    )
    first, second = (f"{day:%Y-%m-%d}" for day in closes)
    desk.sent["SIM0"] = {first: 10.0, second: 11.0}
    desk.check_bars(bars, session, {})
    with pytest.raises(simulator.BrokenPromise, match="lost bars"):
        desk.check_bars(bars[:1], session, {})
    desk.stored = set()
    with pytest.raises(simulator.BrokenPromise, match="sent but not stored"):
        desk.check_bars(bars[:1], session, {})
    with pytest.raises(simulator.BrokenPromise, match="sent was 11"):
        desk.check_bars(bars.assign(close=[10.0, 11.5]), session, {})
    desk.sent["SIM0"].clear()
    desk.stored = set()
    desk.vendors.log = [("SIM0", {first: 10.0, second: 11.0}, ""), ("SIM0", {first: 10.0}, second)]
    desk.take_deliveries(True)  # asked again for all of it, the vendor contradicts itself on the second day
    assert desk.sent["SIM0"] == {first: 10.0} and desk.maybe["SIM0", second] == [11.0]
    desk.check_bars(bars[:1], session, {})
    desk.maybe[("SIM0", second)] = [11.5]  # a step that was killed may have stored it
    desk.check_bars(bars.assign(close=[10.0, 11.5]), session, {})
    shutil.rmtree(tmp_path, ignore_errors=True)

"""A run that is killed at any step boundary ends, when it is run again, where an undisturbed one ended."""

import json
import os
import signal
import sys
from pathlib import Path

import kill_points
import patience
import pytest

from stockpredict.core.errors import NotReady
from stockpredict.core.files import atomic_path
from stockpredict.core.settings import load_settings
from stockpredict.ops import upkeep_day
from stockpredict.ops.flow_server import flow_server
from stockpredict.ops.lifeline import marked
from stockpredict.ops.pipeline import predictions
from stockpredict.train.registry import registry_history

STEPS = ["features", "train", "self_test", "judge", "publish", "refresh"]


@pytest.mark.slow
def test_killed_at_a_step_it_ends_in_the_same_place(finished, self_tested, tmp_path):
    calm, steps = finished["settings"].storage.work_dir, kill_points.sample(STEPS, 1)
    self_tested(tmp_path / "home")
    done = patience.run(
        [sys.executable, Path(__file__).with_name("crash_child_pipeline.py"), tmp_path, *steps],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [signal.SIGKILL] * len(steps) + [0]
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    kept = {
        s: json.loads((calm / finished["report"]["work"] / "steps" / f"{s}.json").read_text())
        for s in ("train", "judge", "publish")
    }
    assert outcome["outcome"]["work"] == finished["report"]["work"]
    assert outcome["artifacts"] == kept["train"]["artifacts"]
    assert outcome["verdict"] == kept["judge"]
    assert outcome["outcome"]["published"] == kept["publish"]
    assert outcome["history"] == registry_history(finished["settings"]).event.tolist(), "published twice"
    assert outcome["table"] == json.loads(
        json.dumps(predictions(finished["settings"]).to_dict("records"), default=str)
    )


def test_what_is_served_is_what_the_verdict_names(finished):
    served = predictions(finished["settings"])
    assert set(served.model) == {finished["report"]["model"]} == {finished["report"]["published"]["model"]}


def test_without_its_server_a_run_goes_on_and_only_a_planner_stops(tmp_path, monkeypatch, capsys):
    "PREFECT_API_URL names an address that refuses."
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    refuses = "http://127.0.0.1:9/api"
    with temporary_settings({PREFECT_API_URL: refuses}):
        with pytest.raises(NotReady, match="does not answer"), flow_server(schedules=True):
            pass
        mine = [owner for owner in marked("flow").values() if owner and owner.pid == os.getpid()]
        assert not mine, "nothing was started for it"
        with flow_server() as api:
            assert api != refuses and patience.answers(f"{api}/health") and PREFECT_API_URL.value() == api
    shown = capsys.readouterr().err
    assert f"{refuses} does not answer" in shown and str(tmp_path / "prefect") in shown
    assert (tmp_path / "prefect" / "prefect.db").exists(), "the record of the run is kept"


def test_a_writer_that_is_killed_leaves_a_file_that_maintain_removes(tmp_path):
    "SIGKILL between the hidden name and the real one; a file of today is left alone."
    settings = load_settings(overrides={"storage.home": str(tmp_path / "home")}, environ={})
    place = settings.storage.serving_dir / "table.bin"
    if not (child := os.fork()):
        with atomic_path(place) as part:
            part.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    [half] = place.parent.iterdir()
    assert not place.exists() and upkeep_day.keep_home(settings, do_it=True)[0].items == () and half.exists()
    os.utime(half, (1, 1))
    assert upkeep_day.keep_home(settings)[0].items == (half.name,) and half.exists()
    assert upkeep_day.keep_home(settings, do_it=True)[0].items == (half.name,) and not half.exists()

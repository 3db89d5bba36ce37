"""A run that is killed at any step boundary ends, when it is run again, where an undisturbed one ended."""

import json
import signal
import sys
from pathlib import Path

import kill_points
import patience
import pytest

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

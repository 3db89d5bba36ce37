"""A run that is killed at any step boundary ends, when it is run again, where an undisturbed one ended."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stockpredict.ops.pipeline import predictions
from stockpredict.train.registry import history

STEPS = ["features", "train", "self_test", "judge", "publish", "refresh"]


@pytest.mark.slow
def test_killed_at_every_boundary_it_ends_in_the_same_place(finished, self_tested, tmp_path):
    calm = finished["settings"].storage.work_dir
    self_tested(tmp_path / "home")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("nursery.py"), tmp_path, *STEPS],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [signal.SIGKILL] * len(STEPS) + [0]
    said = json.loads((tmp_path / "outcome.json").read_text())
    kept = {
        s: json.loads((calm / finished["said"]["work"] / "steps" / f"{s}.json").read_text())
        for s in ("train", "judge", "publish")
    }
    assert said["outcome"]["work"] == finished["said"]["work"]
    assert said["artifacts"] == kept["train"]["artifacts"]
    assert said["verdict"] == kept["judge"]
    assert said["outcome"]["published"] == kept["publish"]
    assert said["history"] == history(finished["settings"]).event.tolist(), "published twice"
    assert said["table"] == json.loads(
        json.dumps(predictions(finished["settings"]).to_dict("records"), default=str)
    )


def test_what_is_served_is_what_the_verdict_names(finished):
    served = predictions(finished["settings"])
    assert set(served.model) == {finished["said"]["model"]} == {finished["said"]["published"]["model"]}

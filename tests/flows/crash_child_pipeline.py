"""Runs the pipeline in forked children that die where they are told to; prints what came of it as JSON.

python crash_child_pipeline.py HOME [step …]     one child per step, killed as that step begins; then one that
may finish
"""

import json
import os
import signal
import sys

from stockpredict.core.settings import load_settings
from stockpredict.ops.reports import quick_formats

quick_formats()

import great_expectations  # noqa: F401 - imported once, before the forks
import mlflow  # noqa: F401

from stockpredict.ingest import ingest  # noqa: F401
from stockpredict.ops import pipeline
from stockpredict.predict import answer_table as table  # noqa: F401
from stockpredict.train import gate, registry  # noqa: F401

home, *steps = sys.argv[1:]
settings = load_settings(
    overrides=pipeline.SMALL | {"storage.home": f"{home}/home", "storage.reports": f"{home}/reports"}
)


def child(last: str) -> int:
    "One run, in a process of its own, killed when the step `last` begins."
    if pid := os.fork():
        return os.waitpid(pid, 0)[1]

    def say(step):
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    outcome = pipeline.retrain(settings, pages=False, say=say)
    frame = pipeline.predictions(settings)
    trained = json.loads((outcome.work.dir / "steps" / "train.json").read_text())
    with open(f"{home}/outcome.json", "w") as f:
        json.dump(
            {
                "outcome": outcome.as_dict(),
                "artifacts": trained["artifacts"],
                "verdict": outcome.verdict,
                "history": registry.registry_history(settings).event.tolist(),
                "table": frame.to_dict("records"),
            },
            f,
            default=str,
        )
    os._exit(0)


if __name__ == "__main__":
    print(json.dumps([child(step) for step in [*steps, ""]]))

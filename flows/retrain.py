"""Retrain: market data in, a served prediction out, and a page that says whether to believe it.

    python flows/retrain.py                        the offline sample; no server, no set-up
    python flows/retrain.py --source simulated     a market whose truth is known
    python flows/retrain.py --source files --set data.files_path=bars.csv
    python flows/retrain.py --as-of 2020-03-12     a study of the past; nothing is published
    python flows/retrain.py --serve                stay, and retrain when the exchange has closed

Each step is one call of `stockpredict.ops.pipeline` and is done once per question, so a run that was killed
goes on where it stopped. The same steps run without Prefect: `stockpredict retrain`.
"""

import argparse
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads do not spin

from stockpredict.cli.console import split_changes
from stockpredict.core.errors import SourceUnavailable, StockpredictError
from stockpredict.core.progress import timed_step
from stockpredict.core.settings import load_settings
from stockpredict.ops import pipeline
from stockpredict.ops.flow_server import close_schedule, enter_run, flow_server, set_flow_environment
from stockpredict.ops.work import retrain_lock

set_flow_environment(serving="--serve" in sys.argv)

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.schedules import Cron
from prefect.states import Completed


def step(action, **more):
    "One step of the pipeline as a Prefect task: never cached, named, and shown on the console while it runs."
    long = action in (pipeline.train, pipeline.self_test)

    def shown(*arguments):
        name = arguments[1] if action is pipeline.page else action.__name__
        with timed_step(name, spin=not long):
            return action(*arguments, **({"quiet": False} if long else {}))

    return task(shown, name=action.__name__, cache_policy=NO_CACHE, **more)


def ingest(settings_path: str, overrides: dict, as_of: str) -> str:
    "Bring the lake up to date, and open the work folder of this question."
    settings = load_settings(settings_path or None, overrides)
    return pipeline.open_work(settings, pipeline.ingest_market(settings), as_of)


def source_was_away(task, run, state):
    "Try again only what may go better next time."
    return isinstance(state.result(raise_on_failure=False), SourceUnavailable)


ingest = step(ingest, retries=2, retry_delay_seconds=[30, 300], retry_condition_fn=source_was_away)
features, train, self_test = map(step, (pipeline.features, pipeline.train, pipeline.self_test))
judge, publish, refresh, page = map(step, (pipeline.judge, pipeline.publish, pipeline.refresh, pipeline.page))


@flow(name="retrain")
def retrain(settings_path: str = "", overrides: dict | None = None, as_of: str = "", scheduled: bool = False):
    "Ingest, look at the data, make features, train, test ourselves, judge, publish, answer, report."
    settings = load_settings(settings_path or None, overrides)
    enter_run()
    if scheduled and (why := pipeline.due(settings)):
        return Completed(message=f"closed: {why}", name="Skipped")
    with retrain_lock(settings, "the retrain flow"):
        work = ingest(settings_path, overrides or {}, as_of)
        data = page(work, "r10_ingest")
        features(work)
        inputs = page(work, "r20_features")
        train(work)
        trained = page(work, "r30_train")
        self_test(work)
        judge(work)
        publish(work)
        refresh(work)
        verdict = page(work, "r40_validate")
        answers = page(work, "r50_predict")
        return pipeline.outcome(work, [data, inputs, trained, verdict, answers])


def serve(settings_path: str, overrides: dict):
    "Stay, and wake after the close; the flow itself asks the calendar whether it is time."
    cron, zone = close_schedule(load_settings(settings_path or None, overrides))
    again = {"settings_path": settings_path, "overrides": overrides, "scheduled": True}
    retrain.serve(name="retrain", schedule=Cron(cron, timezone=zone), limit=1, parameters=again)


def arguments() -> argparse.Namespace:
    "What the command line asks for."
    ask = argparse.ArgumentParser(description="Retrain: market data in, a served prediction out.")
    ask.add_argument("--source", help="sample, files or simulated")
    change = {"metavar": "SECTION.KEY=VALUE", "help": "change one setting; may be repeated"}
    ask.add_argument("--set", action="append", default=[], **change)
    ask.add_argument("--as-of", default="", metavar="DATE", help="study the past: know nothing of later")
    ask.add_argument("--settings", default="", metavar="FILE", help="settings file; default ./settings.ini")
    ask.add_argument("--serve", action="store_true", help="stay, and retrain when the exchange has closed")
    return ask.parse_args()


def main():
    asked = arguments()
    try:
        overrides = split_changes(asked.set) | ({"data.source": asked.source} if asked.source else {})
        load_settings(asked.settings or None, overrides)  # a typing error needs no server to be noticed
        with flow_server(schedules=asked.serve):
            if asked.serve:
                return serve(asked.settings, overrides)
            done = retrain(asked.settings, overrides, asked.as_of)
        pipeline.show(done)
        return bool(done.failed)
    except StockpredictError as e:
        print(f"\n{e.problem}\n{e.fix}\n[{e.code}]", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

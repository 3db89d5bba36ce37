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
from datetime import date

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads do not spin

from stockpredict.cli.console import split_changes
from stockpredict.core.errors import FlowLocked, SourceUnavailable, StockpredictError
from stockpredict.core.progress import timed_step
from stockpredict.core.settings import load_settings
from stockpredict.ops import pipeline
from stockpredict.ops.flow_server import close_schedule, enter_run, flow_server, run_title
from stockpredict.ops.flow_server import set_flow_environment, show_verdict
from stockpredict.ops.work import retrain_lock

set_flow_environment(serving="--serve" in sys.argv)

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run
from prefect.schedules import Cron
from prefect.states import Completed


def step(action, **more):
    "One step of the pipeline as a Prefect task: never cached, named, and shown on the console while it runs."
    long = action in (pipeline.train, pipeline.self_test)

    def shown(*arguments):
        name = arguments[1] if action is pipeline.page else action.__name__
        with timed_step(name, spin=not long):
            return action(*arguments, **({"quiet": False} if long else {}))

    called = "{arguments[1]}" if action is pipeline.page else action.__name__.replace("_", " ")
    return task(shown, name=action.__name__, task_run_name=called, cache_policy=NO_CACHE, **more)


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


def title() -> str:
    "The name of the run: what, as of when, on which data."
    given = flow_run.parameters
    try:
        settings = load_settings(given["settings_path"] or None, given["overrides"])
    except StockpredictError:
        return "retrain"
    return run_title("retrain", settings, str(given["as_of"] or ""))


@flow(name="retrain", flow_run_name=title)
def retrain(
    settings_path: str = "",
    overrides: dict | None = None,
    as_of: date | None = None,
    scheduled: bool = False,
):
    """Market data in, a served prediction out, and a page that says whether to believe it.

    Args:
        settings_path: Settings file on the machine of the worker; empty for its settings.ini.
        overrides: Settings to change in this run, such as {"data.source": "simulated", "models.trials": 20}.
        as_of: Study the past and use only what was known on this date; nothing is published.
        scheduled: Ask the exchange calendar first, and skip the run on a day without a close.
    """
    settings, day = load_settings(settings_path or None, overrides), str(as_of or "")
    enter_run()
    if scheduled and (why := pipeline.due(settings)):
        return Completed(message=f"closed: {why}", name="Skipped")
    try:
        with retrain_lock(settings, "the retrain flow"):
            return story(settings_path, overrides or {}, day)
    except FlowLocked as e:
        if not (scheduled or deployment.id):
            raise  # somebody waits at a terminal
        return Completed(message=f"busy: {e.problem}", name="Skipped")


def story(settings_path: str, overrides: dict, as_of: str):
    "Ingest, look at the data, make features, train, test ourselves, judge, publish, answer, report."
    work = ingest(settings_path, overrides, as_of)
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
    done = pipeline.outcome(work, [data, inputs, trained, verdict, answers])
    show_verdict(done)
    return done


def serve(settings_path: str, overrides: dict):
    "Stay, and wake after the close; the flow itself asks the calendar whether it is time."
    cron, zone = close_schedule(load_settings(settings_path or None, overrides))
    schedule = Cron(cron, timezone=zone, parameters={"scheduled": True})  # a run by hand is not asked
    own = {"settings_path": settings_path, "overrides": overrides}
    words = retrain.description.partition("\n")[0]
    labels = {"description": words, "tags": ["stockpredict", "retrain"]}
    retrain.serve(name="retrain", schedule=schedule, limit=1, parameters=own, **labels)


def arguments() -> argparse.Namespace:
    "What the command line asks for."
    ask = argparse.ArgumentParser(description="Retrain: market data in, a served prediction out.")
    ask.add_argument("--source", help="sample, files or simulated")
    change = {"metavar": "SECTION.KEY=VALUE", "help": "change one setting; may be repeated"}
    ask.add_argument("--set", action="append", default=[], **change)
    past = {"metavar": "DATE", "help": "study the past: know nothing of later"}
    ask.add_argument("--as-of", type=date.fromisoformat, **past)
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
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on after the last finished step.", file=sys.stderr)
        return 130
    except StockpredictError as e:
        print(f"\n{e.problem}\n{e.fix}\n[{e.code}]", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

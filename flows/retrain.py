"""Retrain: market data in, a served prediction out, and a page that says whether to believe it.

    python flows/retrain.py                        the offline sample; no server, no set-up
    python flows/retrain.py --source simulated     a market whose truth is known
    python flows/retrain.py --source files --set data.files_path=bars.csv
    python flows/retrain.py --mode incremental     only what is served, on the newest data
    python flows/retrain.py --as-of 2020-03-12     a study of the past; nothing is published
    python flows/retrain.py --serve                stay, and retrain when the exchange has closed

Each step is one call of `stockpredict.ops.pipeline` and is done once per question, so a run that was killed
goes on where it stopped. The same steps run without Prefect: `stockpredict retrain`.
"""

import sys
from typing import Annotated, Literal

from pydantic import Field

from stockpredict.cli.flow_program import flow_program
from stockpredict.ops import pipeline
from stockpredict.ops.flow_edge import RETRY, DeskRun, as_page, as_step, desk_flow
from stockpredict.ops.training_day import ingest_sentence, plan_training, training_result, training_settings
from stockpredict.ops.work import load_work, open_work, retrain_lock
from stockpredict.train.champion import champion_or_none


def ingest(settings, as_of):
    "Bring the lake up to date, and open the work folder of this question."
    return open_work(settings, pipeline.ingest_market(settings), as_of)


ingest = as_step(ingest, **RETRY)
features, judge, publish, refresh = map(
    as_step, (pipeline.features, pipeline.judge, pipeline.publish, pipeline.refresh)
)
train = as_step(pipeline.train, spin=False, pieces=True)
self_test = as_step(pipeline.self_test, spin=False)


def page(work, name):
    "One page of the report, under its own name in the graph."
    return as_page(pipeline.page, name)(work, name)


Mode = Annotated[
    Literal["by calendar", "full", "incremental"],
    Field(
        description="full searches all candidates, incremental retrains what is served; 'by calendar' is "
        "full when [schedule] retrain is due, and incremental on the other sessions."
    ),
]


@desk_flow
def retrain(desk: DeskRun, mode: Mode = "full"):
    "Train, judge and publish models: market data in, a served prediction and a verdict out."
    plan = plan_training(desk.settings, mode, desk.session)
    if not plan.mode:
        return desk.skip(plan.reason)
    if plan.reason:
        desk.say(plan.reason)
    settings = training_settings(desk.settings, plan.mode, champion_or_none(desk.settings))
    with retrain_lock(settings, "the retrain flow"):
        return training_result(desk, story(desk, settings), plan.mode)


def story(desk: DeskRun, settings):
    "Ingest, make features, train, test ourselves, judge, publish, answer; then the pages about each of them."
    work = ingest(settings, desk.as_of)
    desk.say(ingest_sentence(load_work(work).ingested))
    features(work)
    train(work, quiet=False)
    self_test(work, quiet=False)
    judge(work)
    publish(work)
    refresh(work)
    pages = [page(work, name) for name in pipeline.PAGES]
    return pipeline.outcome(work, pages)


if __name__ == "__main__":
    sys.exit(flow_program(retrain, show=lambda result: pipeline.show(result.outcome)))

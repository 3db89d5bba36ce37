"""Validate: the validation report alone, of the newest judged work or as of any session.

    python flows/validate.py                       the newest judged work, its page written again
    python flows/validate.py --as-of 2020-03-12    trained and judged with what was known then

Nothing is published, whatever the verdict. With a date, models are trained on what was known at the end of
that session; finished steps of the same question are not repeated.
"""

import sys

from stockpredict.cli.flow_program import flow_program
from stockpredict.ops import pipeline, watch_day
from stockpredict.ops.flow_edge import DeskRun, as_page, as_step, desk_flow
from stockpredict.ops.runs import run
from stockpredict.ops.work import begin_work, load_work

open_question = as_step(begin_work, "open the question")
features, judge = as_step(pipeline.features), as_step(pipeline.judge)
train = as_step(pipeline.train, spin=False, pieces=True)
self_test = as_step(pipeline.self_test, spin=False)
write_page = as_page(run, "r40_validate")


@desk_flow
def validate(desk: DeskRun):
    "Write the validation report again, of the newest judged work or as of any session."
    work = judged_as_of(desk) if desk.as_of else watch_day.judged_work(desk.settings, needed=True)
    day = load_work(work).day
    page = write_page("r40_validate", {"workdir": work, "as_of": day}, settings=desk.settings, as_of=day)
    return watch_day.validate_result(desk, work, str(page.html))


def judged_as_of(desk: DeskRun):
    "Train and judge with what was known at the end of a session."
    work = open_question(desk.settings, desk.as_of)
    features(work)
    train(work, quiet=False)
    self_test(work, quiet=False)
    judge(work)
    return work


if __name__ == "__main__":
    sys.exit(flow_program(validate))

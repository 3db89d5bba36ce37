"""Predict: the table of predictions, computed again from the newest bars and the served model.

    python flows/predict.py                        nothing is trained, it takes seconds
    python flows/predict.py --no-page              only the table
    python flows/predict.py --serve                stay, and predict when the exchange has closed

The table is swapped in whole, and stays as it is when neither a bar nor the model has changed. Each table is
kept, so that `flows/monitor.py` can compare it with what came. Alert rules are evaluated on the new bars and
forecasts.
"""

import sys
from typing import Annotated

from pydantic import Field

from stockpredict.cli.flow_program import flow_program
from stockpredict.alerts.alert_rounds import send_round
from stockpredict.ops import alerts_day, watch_day
from stockpredict.ops.flow_edge import DeskRun, as_page, as_step, desk_flow
from stockpredict.ops.runs import run
from stockpredict.predict.answer_table import refresh_answers

WritePage = Annotated[bool, Field(description="Also write the page with all forecasts, r50_predict.")]

refresh = as_step(refresh_answers, "compute every prediction")
alerts_of = as_step(alerts_day.watch_alerts, "evaluate the alert rules")
send_of = as_step(send_round, "send alerts")
write_page = as_page(run, "r50_predict")


@desk_flow
def predict(desk: DeskRun, page: WritePage = True):
    "Compute the table of predictions again from the newest bars and the served model."
    report = refresh(desk.settings)
    problems = alerts_of(desk.settings, desk.session)
    problems += send_of(desk.settings)
    work = watch_day.judged_work(desk.settings) if page else ""
    shown = ""
    if work:
        values = {"workdir": work, "as_of": report.decision_session}
        shown = str(
            write_page("r50_predict", values, settings=desk.settings, as_of=report.decision_session).html
        )
    result = watch_day.predict_result(desk, report, shown)
    result.warnings += problems
    return result


if __name__ == "__main__":
    sys.exit(flow_program(predict))

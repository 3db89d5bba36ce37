"""Monitor: the age of data and predictions, the drift of the inputs, and how often intervals held.

    python flows/monitor.py                        the state of now
    python flows/monitor.py --as-of 2020-03-12     the state after this session closed
    python flows/monitor.py --serve                stay, and look when the exchange has closed

Drift of the inputs asks for a full retraining, which the next planned `retrain` then does. Challengers get
their scores of the day, and one that is worse than the champion is removed. Alert rules are evaluated, those
on drift and late data among them. What MLflow did not take when it was published is offered to it again. The
page is `r60_monitor`. What needs a look stands in the outcome, and the exit code is 1.
"""

import sys

from stockpredict.cli.flow_program import flow_program
from stockpredict.alerts.alert_rounds import send_round
from stockpredict.ops import alerts_day, watch_day
from stockpredict.ops.flow_edge import DeskRun, as_page, as_step, desk_flow
from stockpredict.ops.runs import run

state_of = as_step(watch_day.desk_state, "age and intervals")
drift_of = as_step(watch_day.watch_drift, "drift of the inputs")
experiments_of = as_step(watch_day.watch_experiments, "score the challengers")
scores_of = as_step(watch_day.watch_scores, "score the published forecasts")
records_of = as_step(watch_day.watch_records, "bring records to MLflow")
alerts_of = as_step(alerts_day.watch_alerts, "evaluate the alert rules")
send_of = as_step(send_round, "send alerts")
write_page = as_page(run, "r60_monitor")


@desk_flow
def monitor(desk: DeskRun):
    "Report the age of data and predictions, the drift of the inputs, and how often intervals held."
    scored = scores_of(desk.settings, desk.as_of)
    state = state_of(desk.settings, desk.as_of)
    state["warnings"] += drift_of(desk.settings, desk.as_of)
    state["warnings"] += experiments_of(desk.settings, desk.as_of)
    state["warnings"] += scored
    state["warnings"] += records_of(desk.settings, desk.as_of)
    state["warnings"] += alerts_of(desk.settings, desk.session, desk.as_of)
    state["warnings"] += send_of(desk.settings, desk.as_of)
    if not desk.as_of:
        watch_day.note_coverage(desk.settings, state["intervals"])
    values = {"workdir": watch_day.judged_work(desk.settings), "as_of": desk.as_of}
    page = write_page("r60_monitor", values, settings=desk.settings, as_of=desk.session)
    return watch_day.monitor_result(desk, state, str(page.html))


if __name__ == "__main__":
    sys.exit(flow_program(monitor))

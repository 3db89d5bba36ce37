"""Backfill: the history of many tickers, year by year, newest year first.

    python flows/backfill.py --source vendors --first 2010-01-04
    python flows/backfill.py --source vendors --first 2010-01-04 --tickers AAPL,MSFT
    python flows/backfill.py                       a source of whole files: one part

Each part, some tickers in one year, is a task of its own. A run that is stopped or killed goes on after the
last finished part when the same command runs again, and so does one whose vendor was away. Bars that are
stored already are compared and not stored twice.
"""

import sys
from datetime import date
from typing import Annotated

from pydantic import Field

from stockpredict.cli.flow_program import flow_program
from stockpredict.core.words import counted
from stockpredict.ops import ingest_day
from stockpredict.ops.flow_edge import DeskRun, desk_flow, share_out

First = Annotated[date | None, Field(description="First day to fetch, YYYY-MM-DD; empty for [data] start.")]
Last = Annotated[date | None, Field(description="Last day to fetch; empty for the newest closed session.")]
Tickers = Annotated[list[str] | None, Field(description="Tickers to fetch; empty for the whole universe.")]
Again = Annotated[bool, Field(description="Fetch finished parts again, to find corrections.")]


@desk_flow
def backfill(
    desk: DeskRun, first: First = None, last: Last = None, tickers: Tickers = None, again: Again = False
):
    "Fetch the history of many tickers year by year, newest year first, and go on where it stopped."
    plan = ingest_day.plan_backfill(desk.settings, first, last, tickers or ())
    left = list(plan.parts) if again else plan.left
    if not left:
        return desk.result(f"All {counted(len(plan.parts), 'part')} were fetched before.")
    desk.say(
        f"{counted(len(left), 'part')} of {len(plan.parts)}, {plan.parts[-1].first} to {plan.parts[0].last}."
    )

    def fetch(settings, part):
        report = ingest_day.ingest_part(settings, part, full=True)
        plan.finish(part)
        return report

    report = ingest_day.joined_reports(share_out(fetch, {str(part): part for part in left}, desk.settings))
    return ingest_day.ingest_result(
        desk, ingest_day.describe_ingest(desk.settings, report, {}), current=False
    )


if __name__ == "__main__":
    sys.exit(flow_program(backfill))

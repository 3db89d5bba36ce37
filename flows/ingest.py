"""Ingest: the bars and facts of the session that closed, checked and stored in the lake.

    python flows/ingest.py                         the offline sample; no server, no set-up
    python flows/ingest.py --source vendors --set data.universe=AAPL,MSFT
    python flows/ingest.py --as-of 2020-03-12      nothing after this session is asked for
    python flows/ingest.py --serve                 stay, and ingest when the exchange has closed

A universe of vendors is asked for in parts of `[sources] batch` tickers. Each part is a task of its own, is
stored whole or not at all, and is tried again when its vendor was away. `stockpredict ingest` does the same
without Prefect.
"""

import sys
from typing import Annotated

from pydantic import Field

from stockpredict.cli.flow_program import flow_program
from stockpredict.ops import ingest_day, pipeline
from stockpredict.ops.flow_edge import RETRY, DeskRun, as_page, as_step, desk_flow, share_out
from stockpredict.ops.work import open_work

WritePage = Annotated[bool, Field(description="Also write the page on the data, r10_ingest.")]

facts_step = as_step(pipeline.ingest_facts_step, "facts", **RETRY)
describe = as_step(ingest_day.describe_ingest, "state of the lake")
write_page = as_page(pipeline.page, "r10_ingest")


@desk_flow
def ingest(desk: DeskRun, page: WritePage = True):
    "Fetch the bars and facts of the session that closed, check them, and store them in the lake."
    settings = desk.settings
    parts = ingest_day.daily_parts(settings, desk.as_of)
    reports = share_out(
        ingest_day.ingest_part, {f"bars, {ingest_day.part_words(p.tickers)}": p for p in parts}, settings
    )
    report = describe(settings, ingest_day.joined_reports(reports), facts_step(settings))
    shown = write_page(open_work(settings, report, desk.as_of), "r10_ingest") if page else {}
    failed = [f"The page failed: {shown['error']}"] if shown.get("error") else []
    return ingest_day.ingest_result(desk, report, shown.get("html", ""), failed)


if __name__ == "__main__":
    sys.exit(flow_program(ingest))

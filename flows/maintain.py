"""Maintain: a backup made, small files merged, old versions of the lake expired, leftovers removed.

    python flows/maintain.py                       see what would be removed
    python flows/maintain.py --do-it               remove it
    python flows/maintain.py --serve               stay, and maintain after the last session of each week

Versions that the served model was trained on or that you pinned stay, and so does the newest work. Records
older than [retention] allows go; bars and facts only with market_nightly = yes, otherwise with
`stockpredict govern purge`. The audit log is verified, and a change in it is a warning of the run.
"""

import sys
from typing import Annotated

from pydantic import Field

from stockpredict.cli.flow_program import flow_program
from stockpredict.ops import upkeep_day
from stockpredict.ops.flow_edge import DeskRun, as_step, desk_flow

DoIt = Annotated[bool, Field(description="Remove; otherwise only report what would be removed.")]

backups = as_step(upkeep_day.keep_backups, "backup")
lake = as_step(upkeep_day.keep_lake, "lake")
work = as_step(upkeep_day.keep_work, "work folders")
reports = as_step(upkeep_day.keep_reports, "reports")
home = as_step(upkeep_day.keep_home, "leftovers")
policy = as_step(upkeep_day.keep_policy, "retention policy")
audit = as_step(upkeep_day.check_audit, "audit log")


@desk_flow
def maintain(desk: DeskRun, do_it: DoIt = False):
    "Make a backup, merge small files, expire old versions of the lake, and remove leftovers."
    settings = desk.settings
    done = [step(settings, do_it) for step in (backups, lake, work, reports, home, policy, audit)]
    return upkeep_day.maintain_result(desk, done, do_it)


if __name__ == "__main__":
    sys.exit(flow_program(maintain))

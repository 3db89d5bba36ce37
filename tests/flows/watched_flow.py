"""A flow with one step and one page, which tells the folder of its page; the secrets of the environment are
printed, displayed and raised on the way."""

import logging
import os
import sys
from pathlib import Path

import nbformat
from nbformat import v4

from stockpredict.cli.flow_program import flow_program
from stockpredict.core import traces
from stockpredict.ops.flow_edge import DayResult, as_page, as_step, desk_flow
from stockpredict.ops.runs import run

traces.WAIT = 3_600_000  # milliseconds: what arrives was sent by the run itself, not by the timer

CELLS = """
import logging, os
from stockpredict.core.settings import Settings
from stockpredict.lake.lake import Lake
key = os.environ["TIINGO_API_KEY"]
print("printed", key)
logging.getLogger("stockpredict.page").warning("logged %s", key)
---
from IPython.display import HTML, display
display(HTML(f"<b>displayed {key}</b>"))
with Lake(Settings().with_(**{"storage.home": home}).storage) as lake: tables = lake.table_names()
tables
---
from stockpredict.ops.runs import finish
finish({"headline": {"key": key}, "tables": len(tables)})
---
if fail: raise ConnectionError(f"cannot connect to redis://:{key}@cache")
"""


def write_page(folder):
    "The run notebook `r99_watched`."
    first = v4.new_code_cell('home: str = ""\nfail: bool = False')
    first.metadata["tags"] = ["parameters"]
    cells = [first, *(v4.new_code_cell(text.strip()) for text in CELLS.split("---"))]
    page = v4.new_notebook(cells=[v4.new_markdown_cell("# Watched\n\n> A page"), *cells])
    page.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(page, folder / "r99_watched.ipynb")


def fill_lake(settings):
    "Write some bars."
    from stockpredict.lake.lake import Lake
    from stockpredict.sources.simulate import simulate

    with Lake(settings.storage) as lake:
        lake.append(simulate("null", tickers=2, sessions=30, seed=1).bars)


def monitor(desk, fail: bool = False) -> DayResult:
    "One step and one page."
    key = os.environ["TIINGO_API_KEY"]
    desk.say(f"said {key}")
    as_step(fill_lake)(desk.settings)
    folder = Path.cwd() / "pages"
    folder.mkdir(exist_ok=True)
    write_page(folder)
    values = {"home": str(desk.settings.storage.home_dir.absolute()), "fail": fail}
    page = as_page(run, "r99_watched")("r99_watched", values, settings=desk.settings, folder=folder)
    logging.getLogger("stockpredict").warning("the flow logged %s", key)
    return desk.result(f"Done with {key}.", {"key": key}, page=str(page.html))


if __name__ == "__main__":
    sys.exit(flow_program(desk_flow(monitor), sys.argv[1:]))

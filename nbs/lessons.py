"""Run notebooks top to bottom, each in a process of its own: `python nbs/lessons.py [folder or notebook ...]`.

What one notebook registers can then never reach another, and the libraries are imported once for all of them.
"""

import importlib, multiprocessing, os, sys, time
from multiprocessing.connection import wait
from pathlib import Path

from nbdev.config import get_config
from nbdev.test import test_nb

HERE = Path(__file__).resolve().parent
LIBRARIES = (
    "duckdb",
    "exchange_calendars",
    "fastapi.testclient",
    "great_expectations.expectations",
    "lightgbm",
    "lightning",
    "matplotlib.pyplot",
    "numba",
    "optuna",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "torch",
    "typer.testing",
)
SLOW = 15  # seconds from which a notebook is named
MOST = 8  # at once, for memory's sake


def found(paths, here=HERE):
    "The notebooks that define or teach; those of `runs/` are templates that Papermill fills."
    places = [Path(path).resolve() for path in paths] or [here]
    books = {book for place in places for book in (place.rglob("*.ipynb") if place.is_dir() else [place])}
    return sorted(
        book for book in books if not {"runs", ".ipynb_checkpoints"} & set(book.relative_to(here).parts)
    )


def run(book):
    "One notebook, in the process at hand; its traceback goes to stderr."
    config = get_config(book.parent)
    held, _ = test_nb(
        book,
        skip_flags=config.tst_flags.split(),
        basepath=config.config_path,
        cell_timeout=int(config.cell_timeout),
    )
    sys.exit(0 if held else 1)


def run_all(books, at_once):
    "Seconds and exit status of each, as they end; a notebook that takes its process down has failed like any other."
    ahead, running = list(reversed(books)), {}
    while ahead or running:
        while ahead and len(running) < at_once:
            process = multiprocessing.get_context("fork").Process(target=run, args=(ahead[-1],))
            process.start()
            running[process.sentinel] = process, ahead.pop(), time.time()
        for ended in wait(list(running)):
            process, book, started = running.pop(ended)
            process.join()
            yield book, time.time() - started, process.exitcode


def main(paths):
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    for library in LIBRARIES:
        importlib.import_module(library)
    books, failed, started = found(paths), [], time.time()
    if not books:
        sys.exit("There is no notebook there. Name a folder or a notebook inside nbs/.")
    for book, seconds, status in run_all(books, min(MOST, os.cpu_count())):
        if status:
            failed.append(book.name)
        if seconds > SLOW:
            print(f"{book.name}: {seconds:.0f} s", flush=True)
    print(f"{len(books) - len(failed)} of {len(books)} notebooks hold, {time.time() - started:.0f} s")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])

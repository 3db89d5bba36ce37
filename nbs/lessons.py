"""Run the lessons of notebooks, each notebook in a process of its own: `python nbs/lessons.py [folder or
notebook ...]`.

A notebook that exports a module is replayed against that module: its exported cells are skipped, and each
brings the names that it defines from `stockpredict`. So one run proves that the lessons hold, that the export
is complete, and, with `--coverage`, how much of the package the lessons reach. `--top-to-bottom` runs the
exported cells too, as JupyterLab does. What one notebook registers never reaches another, and the libraries
are imported once for all.
"""

import argparse
import ast
import contextlib
import gc
import importlib
import io
import multiprocessing
import os
import re
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

from nbdev.config import get_config
from nbdev.test import nb_test_cells, test_nb

HERE = Path(__file__).resolve().parent
LIBRARIES = (  # without exchange_calendars: a process that has it builds calendars, others read the kept file
    "click",
    "duckdb",
    "fastapi.testclient",
    "filelock",
    "great_expectations.expectations",
    "httpx",
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
EXPORTED = re.compile(r"^#\|\s*export[is]?\b", re.M)
MAGIC = re.compile(r"\s*(?:%%?[a-z]|!)")
SLOW = 15  # seconds from which a notebook is named
MOST = 8  # at once, for memory's sake
MEASURED = "stockpredict"  # the package whose lines are counted
REACHED = 80  # per cent of the package that lessons must reach


def find_notebooks(paths, here=HERE):
    "The notebooks that define or teach; those of `runs/` are templates that Papermill fills."
    places = [Path(path).resolve() for path in paths] or [here]
    books = {book for place in places for book in (place.rglob("*.ipynb") if place.is_dir() else [place])}
    return sorted(b for b in books if not {"runs", ".ipynb_checkpoints"} & set(b.relative_to(here).parts))


def module_of(cells):
    "Name of the module that these cells are exported to, or None."
    names = [m[1] for c in cells for m in [re.search(r"^#\|\s*default_exp\s+(\S+)", c.source, re.M)] if m]
    return names[0] if names else None


def defined_names(source):
    "Names that a cell binds at its top level."
    scopes = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    names, ahead = set(), list(ast.parse(source).body)
    while ahead:
        node = ahead.pop()
        if isinstance(node, scopes):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        else:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            ahead += ast.iter_child_nodes(node)
    return names


def replay(book, cells, module_name):
    "Run the lessons with the exported module in place of the cells that define it."
    module = importlib.import_module(f"{get_config(book.parent).lib_path.name}.{module_name}")
    names = {"__name__": "__lesson__"}
    for cell in cells:
        if cell.cell_type != "code":
            continue
        source = "\n".join("pass" if MAGIC.match(line) else line for line in cell.source.split("\n"))
        if EXPORTED.search(source):
            names |= {k: getattr(module, k) for k in defined_names(source) if hasattr(module, k)}
        else:
            exec(compile(source, f"{book.name}[{cell.id}]", "exec"), names)


def run(book, top_to_bottom, coverage_file):
    "One notebook, in the process at hand; its traceback goes to stderr."
    config = get_config(book.parent)
    flags = config.tst_flags.split()
    meter = start_coverage(coverage_file) if coverage_file else None
    cells = nb_test_cells(book, skip_flags=flags)
    name = None if top_to_bottom else module_of(cells)
    if name:
        os.chdir(book.parent)
        os.environ["IN_TEST"] = "1"
        sys.path.insert(0, str(config.config_path))
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                replay(book, cells, name)
        except BaseException:
            print(printed.getvalue()[-2000:], file=sys.stderr)
            raise
    else:
        timeout = int(config.cell_timeout)
        passed, _ = test_nb(book, skip_flags=flags, basepath=config.config_path, cell_timeout=timeout)
        if not passed:
            sys.exit(1)
    if meter:
        meter.stop()
        meter.save()


def start_coverage(file):
    from coverage import Coverage

    meter = Coverage(data_file=file, data_suffix=str(os.getpid()), source=[MEASURED])
    meter.start()
    return meter


def run_all(books, at_once, top_to_bottom=False, coverage_file=None):
    """Seconds and exit status of each, as they end; a notebook that takes its process down has failed like
    any other."""
    ahead, running = list(reversed(books)), {}
    while ahead or running:
        while ahead and len(running) < at_once:
            work = (ahead[-1], top_to_bottom, coverage_file)
            process = multiprocessing.get_context("fork").Process(target=run, args=work)
            process.start()
            running[process.sentinel] = process, ahead.pop(), time.time()
        for ended in wait(list(running)):
            process, book, started = running.pop(ended)
            process.join()
            yield book, time.time() - started, process.exitcode


def report_coverage(file):
    "Print what the lessons reach; stop with a sentence when it is too little."
    from coverage import Coverage

    meter = Coverage(data_file=file, config_file=str(HERE.parent / "pyproject.toml"))
    meter.combine()
    share = meter.report(skip_covered=True, show_missing=False)
    if share < REACHED:
        sys.exit(f"The lessons reach {share:.0f} % of the package, wanted {REACHED} %. Add lessons.")


def load_libraries(counted):
    "What each notebook would load for itself, and DuckDB's extensions, whose signatures it would check."
    sys.path.insert(0, str(HERE.parent))
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    for library in LIBRARIES:
        importlib.import_module(library)
    if not counted:  # lines that ran before the count began would be missing from it
        from stockpredict.lake.connection import open_duckdb

        open_duckdb(["ducklake", "sqlite_scanner"]).close()
    gc.freeze()  # the collector need not look through the libraries in each process
    gc.set_threshold(20_000)  # objects; Python's own number is 700


def main(arguments):
    ask = argparse.ArgumentParser(description="Run the lessons of notebooks.")
    ask.add_argument("paths", nargs="*", help="folders or notebooks; all of nbs/ without any")
    ask.add_argument("--top-to-bottom", action="store_true", help="run the exported cells too")
    ask.add_argument("--coverage", action="store_true", help="say how much of the package the lessons reach")
    options = ask.parse_args(arguments)
    load_libraries(options.coverage)
    books, failed, started = find_notebooks(options.paths), [], time.time()
    if not books:
        sys.exit("There is no notebook there. Name a folder or a notebook inside nbs/.")
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/coverage" if options.coverage else None
        for book, seconds, status in run_all(books, min(MOST, os.cpu_count()), options.top_to_bottom, file):
            if status:
                failed.append(book.name)
            if seconds > SLOW:
                print(f"{book.name}: {seconds:.0f} s", flush=True)
        print(f"{len(books) - len(failed)} of {len(books)} notebooks hold, {time.time() - started:.0f} s")
        if failed:
            sys.exit(f"Failed: {', '.join(failed)}")
        if file:
            report_coverage(file)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Processes for tests that need one of their own, forked from a server that has loaded the libraries.

A new interpreter spends seconds on importing torch, pandas and DuckDB before it does anything. Here that is
paid once a test worker. What runs in the fork is the same command, with its own folder, environment, output
and exit status.
"""

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from functools import lru_cache
from multiprocessing import forkserver
from pathlib import Path

import patience

LIBRARIES = [  # without exchange_calendars: a process that has it builds calendars, others read the kept file
    "duckdb",
    "great_expectations.expectations",
    "lightgbm",
    "matplotlib",
    "numba",
    "pandas",
    "pyarrow.parquet",
    "rich.table",
    "scipy.stats",
    "torch",
    "typer.testing",
    "warm_lake",
]


@lru_cache(1)
def server():
    "The context of the fork server; its processes begin with the libraries loaded, and end with the tests."
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(LIBRARIES)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    try:
        forkserver.ensure_running()  # it finds `warm_lake`; the tests' own environment stays as it is
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return server


def _cli(words):
    "The command `stockpredict WORDS`."
    sys.argv = ["stockpredict", *words]
    from stockpredict.cli.main import main

    main()


def _script(words):
    "A Python file, or Python text, with its arguments."
    program, sys.argv = words[0], words
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    else:
        exec(compile(program, "<text>", "exec"), {"__name__": "__main__"})


def _work(what, words, cwd, env, out, err):
    "What the forked child does."
    gc.freeze()  # the libraries of the server stay; the collector need not look through them
    gc.set_threshold(20_000)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))
    sys.path[:0] = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place]
    from stockpredict.ops.lifeline import end_with_parent

    end_with_parent(os.getppid())  # the server ends with the test run, and this process with the server
    what(words)


def _run(what, words, cwd, env) -> subprocess.CompletedProcess:
    "A process of its own: exit status, standard output and standard error."
    words = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        place = str(cwd or Path.cwd())
        child = server().Process(
            target=_work, args=(what, words, place, dict(env or os.environ), str(out), str(err))
        )
        child.start()
        try:
            patience.wait_until(lambda: not child.is_alive(), child)
        except BaseException:
            child.kill()
            raise
        texts = [path.read_text() if path.exists() else "" for path in (out, err)]
        return subprocess.CompletedProcess(words, child.exitcode, *texts)


def stockpredict(*words, cwd=None, env=None) -> subprocess.CompletedProcess:
    "Run `stockpredict WORDS` as a process of its own."
    return _run(_cli, words, cwd, env)


def python(program, *words, cwd=None, env=None) -> subprocess.CompletedProcess:
    "Run a Python file or Python text with these arguments as a process of its own, with libraries loaded."
    return _run(_script, (program, *words), cwd, env)

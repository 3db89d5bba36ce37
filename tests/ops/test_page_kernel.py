"""A page's kernel: forked with its libraries, equal to a cold one, within limits, gone with its parent."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import nbformat.v4 as nbf
import patience
import psutil
import pytest

from stockpredict.ops import run_kernel
from stockpredict.ops.kernel_client import close_kernel_server, needed_libraries

WORK = """
import duckdb, numpy as np, pandas as pd, torch
import matplotlib.pyplot as plt
frame = pd.DataFrame({"x": np.random.default_rng(7).normal(size=400)})
torch.manual_seed(3)
net = torch.nn.Linear(8, 8)
numbers = [float(frame.x.rolling(20).std().sum()), float(net(torch.ones(64, 8)).sum().detach()),
           float((torch.arange(90_000.).reshape(300, 300) @ torch.ones(300, 300)).sum()),
           float(np.linalg.svd(np.outer(frame.x, frame.x[:50]) + np.eye(400, 50))[1].sum()),
           duckdb.sql("SELECT sum(x) FROM frame").fetchone()[0]]
print(numbers)
plt.plot(frame.x.cumsum());
"""
STATE = """
import os, random, sys, numpy as np
print([random.random(), np.random.rand(), os.getcwd(), os.environ.get("STOCKPREDICT_WORD"),
       os.getpgrp() == os.getpid(),
       'stockpredict.core.words' in sys.modules, 'torch' in sys.modules])
"""


def outputs(path):
    "What the code cells of an executed notebook show."
    cells = nbformat.read(path, 4).cells
    return [dict(o.get("data", {}), text=o.get("text")) for c in cells for o in c.get("outputs", [])]


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    "A function that executes cells -> what `execute_notebook` says, what they showed, the process."
    place, monitors, count = tmp_path_factory.mktemp("kernels"), [], iter(range(99))
    plain = run_kernel.RunMonitor

    def watched(*given, **options):
        monitors.append(plain(*given, **options))
        return monitors[-1]

    def run(*cells, timeout=1800, **options):
        name = f"r{next(count):02}"
        source, done = place / f"{name}.ipynb", place / f"{name}-done.ipynb"
        code = [nbf.new_code_cell("word: str = ''", metadata={"tags": ["parameters"]})]
        nbformat.write(nbf.new_notebook(cells=code + [nbf.new_code_cell(c) for c in cells]), source)
        answer = run_kernel.execute_notebook(source, done, {"word": "KO"}, timeout, place, **options)
        return SimpleNamespace(answer=answer, shown=outputs(done), process=monitors[-1].process)

    patch = pytest.MonkeyPatch()
    patch.setattr(run_kernel, "RunMonitor", watched)
    patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # what Jupyter sets
    yield run
    patch.undo()
    close_kernel_server()


def test_a_forked_kernel_computes_what_a_cold_one_does_to_the_last_bit(execute):
    warm, cold = execute(WORK), execute(WORK, warm=False)
    assert warm.answer[0] == cold.answer[0] == "complete", (warm.answer, cold.answer)
    assert [type(k.process).__name__ for k in (warm, cold)] == ["ForkedKernel", "Popen"]
    assert warm.shown == cold.shown and "image/png" in warm.shown[-1]
    assert warm.process.used["code"] == 0


def test_forks_share_libraries_and_nothing_else(execute, monkeypatch):
    monkeypatch.setenv("STOCKPREDICT_WORD", "x")
    first, second = execute(STATE), execute(STATE)
    one, two = (eval(k.shown[0]["text"]) for k in (first, second))
    assert one[0] != two[0] and one[1] != two[1], "random numbers come from the system, not from the server"
    assert one[2] == two[2] and one[3:6] == two[3:6] == ["x", True, False]
    assert one[6], "a library of an earlier page is there already"
    assert first.process.used["cpu"] < 1, "the libraries were imported before the fork"


def test_only_the_libraries_of_the_page_are_imported_for_it(tmp_path):
    book = nbf.new_notebook(cells=[nbf.new_code_cell("from stockpredict.ops.reports import table")])
    nbformat.write(book, tmp_path / "r01.ipynb")
    assert not {"torch", "duckdb", "great_expectations"} & set(needed_libraries(tmp_path / "r01.ipynb"))


@pytest.mark.parametrize(
    "cell, status, message",
    [
        ("print('x' * 10**9)", "failed", "printed without end"),
        ("from IPython.display import HTML\nHTML('x' * 200_000_000)", "failed", "printed without end"),
        ("while True: print('x' * 100_000)", "failed", "printed without end"),
        ("import time\ntime.sleep(600)", "timeout", "stopped after 15 s"),
        ("import os\nos.kill(os.getpid(), 9)", "failed", "SIGKILL: it was killed from outside"),
        ("import os\nos.abort()", "failed", "SIGABRT"),
        ("import os\nos._exit(3)", "failed", "exit status 3"),
        ("x = bytearray(10**10)", "failed", "more memory than the 2.0 GB"),
        ("import numpy\nnumpy.ones(10**10)", "failed", "more memory than the 2.0 GB"),
        ("import torch\ntorch.ones(10**10)", "failed", "more memory than the 2.0 GB"),
    ],
    ids="print display prints sleep kill abort exit memory numpy torch".split(),
)
def test_each_limit_has_its_sentence_and_the_page_shows_what_was_before(execute, cell, status, message):
    ended = execute(
        "print('before', word)",
        cell,
        "print('after')",
        timeout=15 if "sleep" in cell else 1800,  # a busy machine reaches the cell before
        memory=2 * 10**9,
    )
    assert ended.answer[0] == status and message in ended.answer[1], ended.answer
    shown = [o["text"] for o in ended.shown if o["text"]]
    assert "before KO\n" in shown and "after\n" not in shown
    assert sum(len(json.dumps(o)) for o in ended.shown) < 30_000_000
    assert ended.process.poll() is not None, "the kernel is gone"


def test_the_trace_of_a_fault_in_compiled_code_is_kept(execute):
    ended = execute("import ctypes\nctypes.string_at(0)")
    assert ended.answer[1] == "Its process died of SIGSEGV."
    assert ended.answer[3][0] == "Fatal Python error: Segmentation fault"


def test_progress_names_the_cell_and_a_broken_listener_costs_nothing(execute):
    steps = []

    def listen(step):
        steps.append(str(step))
        raise ValueError("the log is away")

    ended = execute("a = 1", "b = 2", on_cell=listen)
    assert ended.answer[0] == "complete" and steps == [f"cell {n} of 4" for n in (1, 2, 3, 4)]


def test_without_a_fork_the_page_starts_cold_and_says_why_once(execute, monkeypatch, capsys):
    monkeypatch.delattr(os, "pidfd_open")
    ended = [execute("print(1)") for _ in range(2)][-1]
    assert ended.answer[0] == "complete" and type(ended.process).__name__ == "Popen"
    printed = capsys.readouterr().err
    assert printed == "  Pages load their libraries anew, because this system has no process descriptors.\n"


PARENT = """
import sys
from stockpredict.ops.run_kernel import execute_notebook
execute_notebook(sys.argv[1], sys.argv[1] + ".done.ipynb", {}, 600, sys.argv[2])
"""


def test_nothing_outlives_a_parent_that_is_killed(tmp_path):
    note = tmp_path / "pids"
    code = (
        f"import os, subprocess, time\nchild = subprocess.Popen(['sleep', '600'])\nopen({str(note)!r}, 'w')"
    )
    code += ".write(f'{os.getpid()} {os.getppid()} {child.pid}')\ntime.sleep(600)"
    cells = [nbf.new_code_cell("a: int = 1", metadata={"tags": ["parameters"]}), nbf.new_code_cell(code)]
    nbformat.write(nbf.new_notebook(cells=cells), tmp_path / "r01.ipynb")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "r01.ipynb"), str(tmp_path)])
    patience.wait_until(lambda: note.exists() and len(note.read_text().split()) == 3, parent)
    family = [psutil.Process(int(pid)) for pid in note.read_text().split()]
    assert family[1].ppid() == parent.pid
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for process in family:
        patience.wait_until(lambda process=process: patience.is_gone(process.pid))

"""The second run: every lesson replayed against the generated module instead of the cells that define it.

It gives a coverage number, and it fails when a helper was never exported or an export is stale.
"""

import importlib
import os
from pathlib import Path

import pytest
from nbdev.test import nb_test_cells
from notebooks import EXPORT, plain, read_all

NBS = Path(__file__).resolve().parents[2] / "nbs"
REFERENCE = [nb for nb in read_all(NBS) if nb.default_exp]


@pytest.mark.parametrize("notebook", REFERENCE, ids=lambda nb: nb.name)
def test_lessons_hold_for_the_module(notebook, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.chdir(notebook.path.parent)
    monkeypatch.setenv("IN_TEST", "1")
    module = importlib.import_module(f"stockpredict.{notebook.default_exp}")
    names = {k: v for k, v in vars(module).items() if not k.startswith("__")} | {"__name__": "__lesson__"}
    for cell in nb_test_cells(notebook.path, skip_flags=["slow", "gpu", "net"]):
        if cell.cell_type != "code" or EXPORT.search(cell.source):
            continue
        exec(compile(plain(cell), f"{notebook.name}[{cell.id}]", "exec"), names)
    plt.close("all")
    assert os.getcwd() == str(notebook.path.parent)

"""`make notebooks`: each notebook in a process of its own, and none that fails is overlooked."""

import importlib.util
import json

import pytest


@pytest.fixture
def lessons(root):
    spec = importlib.util.spec_from_file_location("lessons", root / "nbs" / "lessons.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shelf(root, tmp_path):
    """Function that puts a notebook into a project of its own, in a folder that is named like that of the
    templates."""
    place = tmp_path / "runs" / "nbs"
    place.mkdir(parents=True)
    (place.parent / "pyproject.toml").write_text((root / "pyproject.toml").read_text())
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}

    def put(name, *codes):
        empty = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
        cells = [empty | {"id": f"c{i}", "source": [code]} for i, code in enumerate(codes)]
        book = place / name
        book.parent.mkdir(exist_ok=True)
        book.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
        return book

    return put


def test_one_that_fails_or_dies_is_named_and_what_one_registers_the_next_does_not_meet(lessons, shelf):
    leaves = "import fastcore; assert not hasattr(fastcore, 'left'); fastcore.left = True"
    codes = {
        "00_leaves": leaves,
        "01_finds": leaves,
        "02_wrong": "assert 1 == 2",
        "03_dies": "import os; os._exit(7)",
        "04_killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    }
    books = [shelf(f"{name}.ipynb", code) for name, code in codes.items()]
    assert [status for _, _, status in lessons.run_all(books, 1)] == [0, 0, 1, 7, -9]


def test_templates_are_left_out_wherever_the_project_stands_and_nothing_found_is_no_success(
    lessons, shelf, monkeypatch
):
    book = shelf("core/00_one.ipynb", "1")
    here = book.parents[1]
    shelf("runs/r10_one.ipynb", "1")
    assert lessons.find_notebooks([], here) == [book]
    monkeypatch.setattr(lessons, "LIBRARIES", ())
    monkeypatch.setattr(lessons, "find_notebooks", lambda paths: [])
    with pytest.raises(SystemExit, match="no notebook"):
        lessons.main(["nowhere"])


def test_a_module_is_tested_in_place_of_the_cells_that_define_it(lessons, shelf):
    module = "#| default_exp core.errors"
    exported = "#| export\ndef did_you_mean(word, names): return 'the cell'"
    books = [
        shelf("00_same.ipynb", module, exported, "assert did_you_mean('a', ['b']) != 'the cell'"),
        shelf("01_missing.ipynb", module, "#| exporti\ndef never_exported(): return 1", "never_exported()"),
        shelf("02_too_early.ipynb", module, "did_you_mean('a', ['b'])", exported),
    ]
    assert [status for _, _, status in lessons.run_all(books, 1)] == [0, 1, 1]
    assert [status for _, _, status in lessons.run_all(books, 1, top_to_bottom=True)] == [1, 0, 1]


def test_coverage_of_all_processes_is_added_up(lessons, shelf, tmp_path, capsys, monkeypatch):
    assert lessons.MEASURED == "stockpredict"
    monkeypatch.setattr(lessons, "MEASURED", "stockpredict.core")  # all modules take 4 s
    books = [shelf(f"{n}.ipynb", f"import stockpredict.core.{n}") for n in ("errors", "registry")]
    file = str(tmp_path / "coverage")
    assert [status for *_, status in lessons.run_all(books, 1, coverage_file=file)] == [0, 0]
    with pytest.raises(SystemExit, match="The lessons reach"):
        lessons.report_coverage(file)
    assert "registry.py" in capsys.readouterr().out

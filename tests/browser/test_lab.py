"""JupyterLab of a small checkout: prepared as `make lab` does it, it starts and merges notebooks by cells."""

import json
import os
import shutil
import subprocess
import sys

import patience
import psutil
import pytest
from live_redis import spare_port
from tab import Tab

from stockpredict.ops.lifeline import stop_processes

pytestmark = pytest.mark.slow
TOKEN = "abc"


def cell(kind, *lines, **more):
    own = {"execution_count": None, "outputs": []} if kind == "code" else {}
    number = f"{abs(hash(lines)):08x}"[:8]
    return {"cell_type": kind, "id": number, "metadata": {}, "source": "\n".join(lines), **own, **more}


@pytest.fixture(scope="module")
def lab(tmp_path_factory, root):
    "A small checkout with one notebook, prepared as `make lab` does it, and its JupyterLab."
    place = tmp_path_factory.mktemp("checkout")
    home = tmp_path_factory.mktemp("home")
    (place / "nbs").mkdir()
    shutil.copy(root / "nbs" / "lab.py", place / "nbs")
    project = (
        '[project]\nname = "small"\nversion = "1"\n[tool.nbdev]\njupyter_hooks = true\nlib_path = "small"\n'
    )
    (place / "pyproject.toml").write_text(project)
    shown = {"output_type": "execute_result", "execution_count": None, "metadata": {}}
    shown["data"] = {"text/plain": ["1"], "text/html": ["<b id='kept'>1</b>"]}
    cells = [
        cell("code", "#| default_exp windows"),
        cell("code", "#| export", "LENGTH = 10"),
        cell("code", "LENGTH * 2", outputs=[shown]),
    ]
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    book = place / "nbs" / "00_windows.ipynb"
    book.write_text(
        json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1)
    )
    shutil.copy(root / "nbs" / "index.ipynb", place / "nbs")
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", "-C", str(place), *words], check=True)
    env = {**os.environ, "HOME": str(home), "JUPYTER_TOKEN": TOKEN, "JUPYTER_RUNTIME_DIR": str(home / "run")}
    port = spare_port()
    words = [
        "--no-browser",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--LabApp.expose_app_in_browser=True",
    ]
    server = subprocess.Popen(
        [sys.executable, "nbs/lab.py", *words], cwd=place, env=env, stderr=subprocess.DEVNULL
    )
    base = f"http://127.0.0.1:{port}"
    patience.wait_until(lambda: patience.answers(f"{base}/api"), server)
    yield base, book
    stop_processes([psutil.Process(server.pid)])
    server.wait()


def test_a_notebook_opens_trusted_and_saved_runs_and_exports(lab, tmp_path):
    base, book = lab
    tab = Tab(tmp_path / "chromium")
    try:
        idle = "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"
        dirty = "Boolean(document.querySelector('.lm-TabBar-tab.jp-mod-dirty'))"
        tab.open(f"{base}/lab/tree/nbs/index.ipynb?token={TOKEN}")
        tab.until(idle)
        tab.open(f"{base}/lab/workspaces/edit/tree/nbs/{book.name}")
        tab.until(idle)
        tab.until("Boolean(document.querySelector('#kept'))")  # stored HTML is shown: it is trusted
        tab.click("document.querySelectorAll('.jp-Notebook .jp-CodeCell .cm-content')[1]")
        tab.press("a", "KeyA", 65, modifiers=2)
        tab.type("#| export\nLENGTH = 21")
        item = "[...document.querySelectorAll('.lm-MenuBar-itemLabel')].find(e => e.innerText === 'Run')"
        tab.click(item)
        tab.click("document.querySelector('.lm-Menu-item[data-command=\"runmenu:run-all\"]')")
        tab.until_text("42")
        tab.press("s", "KeyS", 83, modifiers=2)
        tab.until(f"!{dirty}")
    finally:
        tab.close()
    saved = json.loads(book.read_text())
    assert set(saved["metadata"]) == {"kernelspec"}, "the clean hook removed what JupyterLab added"
    assert "".join(saved["cells"][1]["source"]) == "#| export\nLENGTH = 21"
    export = [sys.executable, "-c", f"from nbdev.export import nb_export; nb_export('nbs/{book.name}')"]
    patience.run(export, cwd=book.parents[1], check=True)
    assert "LENGTH = 21" in (book.parents[1] / "small" / "windows.py").read_text()


def test_two_edits_of_one_notebook_are_merged_by_cells(lab):
    _, book = lab
    place = book.parents[1]

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return patience.run(["git", "-C", place, *who, *words])

    def change(index, text):
        content = json.loads(book.read_text())
        content["cells"][index]["source"] = text
        book.write_text(json.dumps(content, indent=1))
        git("commit", "-qam", text)

    git("checkout", "-q", ".")
    git("checkout", "-qb", "other")
    change(2, "LENGTH * 3")
    git("checkout", "-q", "-")
    change(1, "#| export\nLENGTH = 11")
    merged = git("merge", "-q", "other", "-m", "both")
    assert merged.returncode == 0, merged.stdout + merged.stderr
    sources = ["".join(c["source"]) for c in json.loads(book.read_text())["cells"]]
    assert sources[1:] == ["#| export\nLENGTH = 11", "LENGTH * 3"]

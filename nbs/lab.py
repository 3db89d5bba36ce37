"""`make lab`: JupyterLab on the notebooks, with everything set that a notebook in git needs.

    python nbs/lab.py              prepare, then start JupyterLab on nbs/index.ipynb
    python nbs/lab.py --prepare    prepare only; `make up` does that for its JupyterLab

Prepared are, in this environment and this checkout only, and again without harm:

- the kernel: it runs the Python of this environment, whatever `python` is on the PATH, and has the name that
  stands in the notebooks, so that opening one does not mark it unsaved
- the clean hook: metadata that only makes differences is removed when you save, as `nbdev-clean` does; what
  JupyterLab would add on opening is there already, for the same reason
- the merge driver: a conflict in a notebook is merged cell by cell, and a difference is shown by cells
- trust: pictures and tables that are stored in the notebooks of this checkout are shown
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOOK = """# Written by nbs/lab.py: notebooks are cleaned when saved, and completed when opened.
import platform

from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

LANGUAGE = {  # what the kernel says of itself; JupyterLab marks a notebook unsaved when it has to add it
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
    "version": platform.python_version(),
}


class Notebooks(AsyncLargeFileManager):
    async def get(self, *words, **options):
        model = await super().get(*words, **options)
        if model["type"] == "notebook" and model.get("content"):
            model["content"]["metadata"].setdefault("language_info", LANGUAGE)
        return model


def clean_notebook(**saved):
    try:
        from nbdev.clean import clean_jupyter
    except ModuleNotFoundError:
        return
    clean_jupyter(**saved)


c.ServerApp.contents_manager_class = Notebooks  # noqa: F821
c.ContentsManager.pre_save_hook = clean_notebook  # noqa: F821
"""
ATTRIBUTES = ("*.ipynb merge=jupyternotebook", "*.ipynb diff=jupyternotebook")


def write_if_new(path: Path, text: str) -> bool:
    "Write a file unless it has this content; says whether it was written."
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return True


def set_kernel(prefix: Path) -> bool:
    "Let the kernel `python3` of an environment run its own Python, under the name that the notebooks store."
    words = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": [sys.executable, *words], "display_name": "python3", "language": "python"}
    spec["metadata"] = {"debugger": True}
    return write_if_new(prefix / "share/jupyter/kernels/python3/kernel.json", json.dumps(spec, indent=1))


def set_clean_hook(prefix: Path) -> bool:
    "Clean notebooks when a Jupyter server of an environment saves them."
    return write_if_new(prefix / "etc/jupyter/jupyter_server_config.py", HOOK)


def git(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)


def set_merge_driver(prefix: Path) -> bool:
    "Merge and compare notebooks by cells in this checkout; False when it is not a checkout."
    place = git("rev-parse", "--git-path", "info/attributes")
    if place.returncode:
        return False
    driver = f"'{prefix / 'bin' / 'nbdev-merge'}' %O %A %B %P"
    git("config", "--local", "merge.jupyternotebook.name", "notebooks, cell by cell")
    git("config", "--local", "merge.jupyternotebook.driver", driver)
    git("config", "--local", "diff.jupyternotebook.command", str(prefix / "bin" / "nbdev-diff-driver"))
    path = ROOT / place.stdout.strip()
    known = path.read_text().splitlines() if path.exists() else []
    write_if_new(path, "\n".join([*known, *(line for line in ATTRIBUTES if line not in known)]) + "\n")
    return True


def trust_notebooks() -> int:
    "Sign the notebooks of this checkout that are not signed yet; how many."
    import nbformat
    from nbformat.sign import NotebookNotary

    notary, count = NotebookNotary(), 0
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        book = nbformat.read(path, as_version=4)
        if not notary.check_signature(book):
            notary.sign(book)
            count += 1
    return count


def prepare():
    prefix = Path(sys.prefix)
    set_kernel(prefix)
    set_clean_hook(prefix)
    if not set_merge_driver(prefix):
        print("This folder is no git checkout; the merge driver was left out.")
    if count := trust_notebooks():
        print(f"{count} notebooks are trusted now.")


def main():
    prepare()
    if "--prepare" in sys.argv[1:]:
        return
    words = ["lab", f"--ServerApp.root_dir={ROOT}", str(ROOT / "nbs" / "index.ipynb")]
    words += [word for word in sys.argv[1:] if word.startswith("--")]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        words.append("--allow-root")
    os.execv(sys.executable, [sys.executable, "-m", "jupyter", *words])


if __name__ == "__main__":
    main()

"""`make check`: what can be proven about a change in a minute. Run it while you edit; `make test` proves the
rest.

It lints, runs the laws of the house, runs the changed notebooks from top to bottom, and then the tests that
import the modules of those notebooks, the most specific ones first, until the time is used.
"""

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 55  # for everything
DEFINED = re.compile(r"^#\|\s*default_exp\s+(\S+)", re.M)


def git(*words):
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


def changed_files():
    "Paths that differ from the last commit, new ones included."
    names = {*git("diff", "--name-only", "HEAD"), *git("ls-files", "--others", "--exclude-standard")}
    return sorted(ROOT / name for name in names if (ROOT / name).is_file())


def module_of(book):
    "Dotted name of the module that a notebook exports, or None."
    for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]:
        if match := DEFINED.search("".join(cell["source"])):
            return f"stockpredict.{match[1]}"
    return None


def imported_modules(path):
    "Modules of the package that a Python file imports."
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stockpredict"):
            modules |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names if name.name.startswith("stockpredict")}
    return modules


def tests_of(modules, files):
    "Test files that changed or that import one of these modules; those that import least else come first."
    needs = {path: imported_modules(path) for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    near = [path for path in needs if path in files or needs[path] & modules]
    outside = [path for path in near if path.parent.name != "house"]
    return sorted(outside, key=lambda path: (path not in files, len(needs[path])))


def main():
    started = time.monotonic()
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    files = changed_files()
    books = [path for path in files if path.suffix == ".ipynb" and "runs" not in path.parts]
    modules = {name for book in books if (name := module_of(book))}
    tests = tests_of(modules, files)
    print(f"{len(books)} changed notebooks, {len(tests)} test files near them", flush=True)
    failed = []
    if subprocess.run([sys.executable, "-m", "ruff", "check", "-q", "."]).returncode:
        failed.append("lint")
    run_books = [sys.executable, "nbs/lessons.py", "--top-to-bottom", *map(str, books)]
    lessons = subprocess.Popen(run_books) if books else None
    laws = [sys.executable, "-m", "pytest", "-q", "--no-header", "tests/house/test_laws.py"]
    if subprocess.run(laws).returncode:
        failed.append("laws")
    if tests:
        left = max(5, SECONDS - (time.monotonic() - started))
        near = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--no-header",
            "-m",
            "not slow",
            f"--seconds={left:.0f}",
        ]
        if subprocess.run([*near, *map(str, tests)]).returncode not in (0, 5):
            failed.append("tests")
    if lessons and lessons.wait():
        failed.append("notebooks")
    print(f"{time.monotonic() - started:.0f} s")
    if failed:
        sys.exit(f"Not yet: {', '.join(failed)}. What failed is named above.")
    print("Checked. Before you commit: make prepare, then make test.")


if __name__ == "__main__":
    main()

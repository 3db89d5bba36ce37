"""What goes out: `make release-build`, `release-check`, `release-notes`, `release-publish`.

python deploy/release/package.py build [FOLDER]     # sdist, wheel and their SHA-256 sums
python deploy/release/package.py check [FOLDER]     # install the wheel with all it needs, and ask it
python deploy/release/package.py notes              # the section of this version in CHANGELOG.md
python deploy/release/package.py publish [--really] # a release on GitHub; else only what it would do
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOES_IN = ("stockpredict", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
GOES_IN += ("settings.ini", "constraints.txt")
HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", re.M)
ASK = """
import stockpredict as sp
assert len(sp.sample_prices("2022-01-01")) > 1000
assert len(sp.catalogue) > 1000
from stockpredict.serve.app import create_app
print("stockpredict", sp.__version__, "answers from", sp.__file__)
"""


def version() -> str:
    "The version, from the one place where it stands."
    text = (ROOT / "stockpredict" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.M)[1]


def sections(text: str) -> dict:
    "version -> its section of the changelog, newest first."
    parts = HEADING.split(text)
    return {parts[i]: parts[i + 2].split("\n[")[0].strip() for i in range(1, len(parts), 3)}


def notes() -> str:
    "What is new in this version."
    hits = sections((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    if version() not in hits:
        raise SystemExit(f"CHANGELOG.md has no section of {version()}. Write it, with the date.")
    return hits[version()]


def run(*command, **more) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def build(folder: Path) -> list:
    "Source distribution and wheel, built from a copy: nothing else gets in, and nothing is left behind."
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("stockpredict-*.tar.gz"), *folder.glob("stockpredict-*.whl")]:
        old.unlink()
    with tempfile.TemporaryDirectory() as place:
        source = Path(place)
        for name in GOES_IN:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            ignore = {"ignore": shutil.ignore_patterns("__pycache__")} if (ROOT / name).is_dir() else {}
            copy(ROOT / name, source / name, **ignore)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
    files = [*folder.glob("stockpredict-*.tar.gz"), *folder.glob("stockpredict-*.whl")]
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files]
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    return files


def empty_environment(folder: Path, *words) -> Path:
    "The Python of a new environment."
    run(sys.executable, "-m", "venv", *words, folder)
    return folder / "bin" / "python"


def ask(python: Path, question: str = ASK) -> str:
    "What the installed package says, in a folder and an environment that know nothing of the checkout."
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "STOCKPREDICT"))}
    with tempfile.TemporaryDirectory() as place:
        reply = run(python.with_name("stockpredict"), "--version", cwd=place, env=env)
        return reply + run(python, "-c", question, cwd=place, env=env)


def check(folder: Path) -> str:
    "Install the wheel with everything that it needs, look whether all fits, and ask it."
    wheel = next(file for file in build(folder) if file.suffix == ".whl")
    with tempfile.TemporaryDirectory() as place:
        python = empty_environment(Path(place) / "new")
        words = ("-q", "--disable-pip-version-check", "--no-compile")
        run(python, "-m", "pip", "install", *words, "-c", ROOT / "constraints.txt", wheel)
        run(python, "-m", "pip", "check")
        return ask(python)


def wheel_version(wheel: Path) -> str:
    "The version in the metadata of a wheel."
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return re.search(r"^Version: (.+)$", file.read(name).decode(), re.M)[1]


def publish(folder: Path, really: bool) -> str:
    "Make the release of the tag that is checked out."
    tag, files = f"v{version()}", sorted(str(file) for file in folder.iterdir() if file.is_file())
    if (given := os.environ.get("GITHUB_REF_NAME", tag)) != tag:
        raise SystemExit(f"The tag is {given} and the version {tag}. Tag the commit that has this version.")
    text = folder / "notes.md"
    command = [
        "gh",
        "release",
        "create",
        tag,
        *files,
        "--title",
        tag,
        "--verify-tag",
        "--notes-file",
        str(text),
    ]
    text.write_text(notes() + "\n", encoding="utf-8")
    return run(*command) if really else f"{' '.join(command)}\n\n{notes()}"


def main():
    ask_for = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask_for.add_argument("what", choices=("build", "check", "notes", "publish"))
    ask_for.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist")
    ask_for.add_argument("--really", action="store_true")
    args = ask_for.parse_args()
    answer = {
        "build": lambda: "\n".join(map(str, build(args.folder.resolve()))),
        "check": lambda: check(args.folder.resolve()),
        "notes": notes,
        "publish": lambda: publish(args.folder.resolve(), args.really),
    }
    print(answer[args.what]())


if __name__ == "__main__":
    main()

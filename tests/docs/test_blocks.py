"""The shell lines of blocks in the prose: each is run on a small home, or is listed here with the reason."""

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from served_desk import build_settings, fill_lake, publish
from typer.testing import CliRunner

from stockpredict.access.users import UserStore
from stockpredict.backup.sealed_files import KEY_VARIABLE, new_backup_key
from stockpredict.cli.main import app
from stockpredict.predict.answer_table import write_example
from stockpredict.sources.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
SHELL = (
    "stockpredict ",
    "make ",
    "curl ",
    "auth=",
    "python ",
    "pytest ",
    "kubectl ",
    "gh ",
    "sha256sum ",
    "useradd ",
    "git ",
    "mkdir ",
    "cp ",
    "sudo ",
    "systemctl ",
    "nginx ",
    "/opt/",
)
RUN = {  # line of the prose, and what its output says
    "stockpredict registry list": "mean",
    "stockpredict registry verify": "as they were signed",
    "stockpredict ingest dead-letters": "",
    "stockpredict lake asof SIM01 2026-03-12": "SIM01",
    "stockpredict keys create --role analyst": "It is shown only now",
    "stockpredict flow deployments --set data.calendar=XLON": "Europe/London",
    "stockpredict report prune --keep 200": "",
    "stockpredict backup list": "readable",
    "stockpredict backup restore --to look --only home/registry/": "",
    "stockpredict govern export-user anna > anna.json": "anna",
    "stockpredict govern erase-user anna --confirm anna": "erased:",
}
ELSEWHERE = {  # how a line begins, and why it is not run here
    "make run": "minutes of CPU; `make ci-smoke` and tests/ops run the path",
    "make test": "it would run itself",
    "make doctor": "tests/ops/test_doctor.py",
    "stockpredict compare": "tests/cli/test_comparison_command.py",
    "stockpredict report verify": "PAGE stands for a name; tests/ops/test_page_verified.py",
    "stockpredict report diff": "needs two validations; tests/ops/test_report_diff.py",
    "stockpredict report data": "executes a notebook; tests/ops/test_reports.py",
    "stockpredict fake-vendors": "runs until it is stopped; tests/faults/test_vendor_faults.py",
    "stockpredict quality matrix": "tests/cli/test_quality_commands.py",
    "stockpredict flow list": "needs a Prefect server; tests/flows/test_cli.py",
    "stockpredict try": "the feature is one of the guide's; tests/cli/test_feature_commands.py",
    "python flows/": "needs a Prefect server; tests/flows/test_desk_flows.py",
    "curl ": "needs a served desk; tests/serve ask the same addresses",
    "auth=": "belongs to the lines with curl",
    "pytest ": "it would run itself",
    "kubectl ": "needs a cluster; tests/deploy/test_kubernetes.py renders the overlays",
    "gh ": "needs a release on GitHub",
    "sha256sum ": "needs a release",
    "git clone": "changes the machine",
    **dict.fromkeys(
        ("useradd ", "mkdir /etc", "cp ", "sudo ", "systemctl ", "nginx "), "changes the machine"
    ),
    "/opt/stockpredict": "changes the machine",
}


def block_lines():
    "Lines that a reader types, from all blocks of a shell."
    paths = [ROOT / "README.md", *(ROOT / "deploy").rglob("*.md"), *(ROOT / "nbs").rglob("*.ipynb")]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if language in ("", "bash", "sh", "shell"):
                lines = (re.sub(r"\s+#.*", "", line).strip() for line in block.splitlines())
                yield from ((path.name, line) for line in lines if line.startswith(SHELL))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A home with a lake, a model, a table of answers, a user and a backup."
    place = tmp_path_factory.mktemp("blocks")
    settings = build_settings(place / "home")
    bars = simulate("realistic", tickers=12, sessions=150, seed=4).bars
    fill_lake(settings, bars)
    publish(settings)
    write_example(settings)
    UserStore(settings.storage, time_cost=1, memory_cost=64).create(
        "anna", ["viewer"], "copper lantern drifts"
    )
    (place / "settings.ini").write_text(
        f"[data]\nsource = simulated\n[storage]\nhome = {place / 'home'}\nreports = {place / 'reports'}\n"
        f"[backup]\ntarget = {place / 'backups'}\n"
    )
    return place


@pytest.fixture(scope="module")
def shell(home):
    "Function that runs a line as a reader types it, in the folder of the settings."
    environ = {KEY_VARIABLE: new_backup_key()}

    def run(line):
        words = shlex.split(line.partition(">")[0])[1:]
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(home)
            patched.setenv("STOCKPREDICT_SETTINGS", str(home / "settings.ini"))
            return CliRunner(env=environ).invoke(app, words)

    assert run("stockpredict backup create").exit_code == 0
    return run


def test_every_line_of_a_block_is_run_or_has_a_reason():
    lines = list(block_lines())
    listed = [
        (name, line) for name, line in lines if line not in RUN and not line.startswith(tuple(ELSEWHERE))
    ]
    assert listed == [] and len(lines) > 40
    assert set(RUN) <= {line for _, line in lines}  # a line that left the prose leaves this list
    unused = [start for start in ELSEWHERE if not any(line.startswith(start) for _, line in lines)]
    assert unused == []
    named = re.findall(r"tests/[\w/]+(?:\.py)?", " ".join(ELSEWHERE.values()))
    assert named and [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("line", RUN)
def test_a_line_of_the_prose_does_what_it_says(shell, line):
    result = shell(line)
    assert result.exit_code == 0, result.output
    assert RUN[line] in result.output


def python_blocks():
    "Name of the page and text of each block of Python in the guides; those of the README are lessons."
    for path in (ROOT / "nbs" / "guides").rglob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        yield from ((path.stem, b) for b in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))


def raw_prices(block):
    "Adjusted bars of another library become raw ones."
    frame = pd.DataFrame({"open": [5.0], "high": [6.0], "low": [4.5], "close": [5.5]})
    bars = frame.assign(volume=[200.0], factor=[0.5])
    exec(block, {"bars": bars})
    return bars.open[0] == 10 and bars.close[0] == 11 and bars.volume[0] == 100


PYTHON = {"migrate_from_qlib": raw_prices}
PYTHON_ELSEWHERE = {"add_a_report": "needs Prefect; tests/flows/test_desk_flows.py"}


def test_every_block_of_python_in_a_guide_is_run_or_has_a_reason():
    blocks = dict(python_blocks())
    assert len(blocks) == len(list(python_blocks())) and set(blocks) == {*PYTHON, *PYTHON_ELSEWHERE}
    assert all(PYTHON[page](blocks[page]) for page in PYTHON)
    assert all((ROOT / reason.split("; ")[1]).exists() for reason in PYTHON_ELSEWHERE.values())

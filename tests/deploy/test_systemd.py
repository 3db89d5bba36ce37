"""The units of `deploy/systemd`: what they start exists, they may do little, and systemd accepts them."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from program_words import is_read, parse

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
PROGRAM = "/opt/stockpredict/.venv/bin/stockpredict"
HARDENED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectControlGroups": "yes",
    "ProtectClock": "yes",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "SystemCallArchitectures": "native",
    "CapabilityBoundingSet": "",
    "UMask": "0077",
    "User": "stockpredict",
}


def read_unit(path):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(path)
    return unit


def commands_of(path):
    "The words of every command that a unit starts, without the program."
    lines = re.findall(r"^ExecStart=(.*)$", path.read_text(), re.M)
    for program, *words in map(str.split, lines):
        assert program == PROGRAM
        yield words


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_the_units_name_commands_and_options_that_exist(path):
    matches = list(commands_of(path))
    assert matches
    for words in matches:
        parse(["stockpredict", *words])


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_the_units_set_variables_that_somebody_reads(path):
    from stockpredict.core.settings import load_settings

    pairs = re.findall(r"^Environment=(\w+)=(.*)$", path.read_text(), re.M)
    assert ("STOCKPREDICT_SETTINGS", "/etc/stockpredict/settings.ini") in pairs
    load_settings(None, environ={k: v for k, v in pairs if "__" in k})  # an unknown setting is refused
    assert [k for k, _ in pairs if "__" not in k and not is_read(k)] == []


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_the_units_may_do_little(path):
    service = read_unit(path)["Service"]
    assert {name: service.get(name) for name in HARDENED} == HARDENED
    if "flow" in service["ExecStart"]:  # the folder of the flows, where Prefect would write, is read-only
        lines = path.read_text().splitlines()
        assert f"Environment=PREFECT_HOME={service['ReadWritePaths']}/.prefect" in lines
    again = service.get("Restart"), read_unit(path)["Unit"].get("StartLimitIntervalSec")
    assert service["Type"] == "oneshot" or again == ("always", "0")  # no number of crashes ends it for good


def test_every_unit_is_started_by_the_target_or_by_a_timer():
    wanted = read_unit(UNITS / "stockpredict.target")["Unit"]["Wants"].split()
    for path in SERVICES:
        assert (path.name in wanted) != path.with_suffix(".timer").exists()
        if path.name in wanted:
            assert read_unit(path)["Unit"]["PartOf"] == "stockpredict.target"
    for path in UNITS.glob("*.timer"):
        starter = read_unit(path)["Install"]["WantedBy"]
        assert starter == "timers.target" or (starter == "stockpredict.target" and path.name in wanted)


def test_systemd_accepts_the_units(tmp_path):
    if not shutil.which("systemd-analyze"):
        why = "systemd-analyze is not installed"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    for path in UNITS.iterdir():
        program = Path(sys.executable).with_name("stockpredict")  # so that it is there to be looked at
        (tmp_path / path.name).write_text(path.read_text().replace(PROGRAM, str(program)))
    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for file in tmp_path.glob("*.service"):  # 100 is a service that may do everything
        judged = ["systemd-analyze", "security", "--offline=yes", "--threshold=25", "--no-pager", str(file)]
        done = subprocess.run(judged, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-200:]

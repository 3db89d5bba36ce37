"""`stockpredict report verify` computes the numbers of a real validation page again, and names one that was
changed."""

import json
import shutil

import pytest
from stockpredict.cli.console import SettingsOptions
from stockpredict.cli.main import app
from stockpredict.ops.reports import latest_report
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def page(finished):
    "The folder of the page that `stockpredict retrain` wrote."
    reports = finished["settings"].storage.reports_dir
    return reports / latest_report(reports, "r40_validate")["folder"]


def verify(finished, *words, code):
    "What the command prints."
    done = CliRunner().invoke(app, ["report", "verify", *words, *finished["asked"]], obj=SettingsOptions())
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.stdout


def test_a_page_that_was_not_touched_is_verified(finished, page):
    recorded = json.loads((page / "result.json").read_text())["result"]["numbers"]
    printed = verify(finished, str(page / "page.html"), code=0)
    assert printed.split() == [f"{len(recorded):,}", "numbers", "checked."] and len(recorded) > 20


def test_a_number_changed_by_one_percent_is_named(finished, page, tmp_path):
    copy = shutil.copytree(page, tmp_path / "page")
    whole = json.loads((copy / "result.json").read_text())
    numbers = whole["result"]["numbers"]
    name = sorted(k for k, v in numbers.items() if abs(v) > 1e-3)[0]
    numbers[name] *= 1.01
    (copy / "result.json").write_text(json.dumps(whole))
    answer = json.loads(verify(finished, str(copy / "page.html"), "--json", code=1))
    assert answer["ok"] is False and answer["checked"] == len(numbers)
    assert [d.startswith(f"{name}: the page says") for d in answer["differences"]] == [True]
    assert f"{name}: the page says" in " ".join(verify(finished, str(copy), code=1).split())

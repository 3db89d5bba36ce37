"""`stockpredict report verify` computes the numbers of a real validation page again, and names one that was
changed."""

import json
import re
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


SECTIONS = """Verdict, Lineage, Data health, Skill, Portfolio, Overfitting and self-test, Probability,
Volatility, Explanation, Drift, Champion and challenger, Limits"""


def test_the_page_has_the_twelve_sections_is_small_and_needs_no_network(page):
    html = (page / "page.html").read_text()
    heads = [h.strip() for h in re.findall(r"<h2 id=.s\d+.>(.*?)</h2>", html)]
    assert heads == [s.strip() for s in SECTIONS.split(",")]
    assert len(html) < 5_000_000 and not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", html)
    assert re.search(r'class="word">\s*Direction: [a-z ]+\. Volatility: [a-z ]+\. Intervals: [a-z ]+\.', html)
    assert "No sector is known in this lake" in html and "model confidence set" in html
    assert "exact contributions in 2 folds" in html and "of the test months" in html
    assert "Trained without them, the rank IC on 2 parts of the names" in html


def test_every_figure_has_its_numbers_beside_the_page(page):
    html = (page / "page.html").read_text()
    links = re.findall(r'href="(figure-\d+\.json)"', html)
    assert len(links) == html.count("data:image/png") == len(list(page.glob("figure-*.json"))) > 14
    for name in links:
        twin = json.loads((page / name).read_text())
        assert twin["run"] == page.name and twin["snapshot"] and twin["cell"] and twin["title"]
        assert any(s for a in twin["axes"] for s in a["series"]), name


def test_drift_explanation_and_shift_are_among_the_recorded_numbers(page):
    recorded = json.loads((page / "result.json").read_text())["result"]["numbers"]
    kinds = {name.partition("/")[0] for name in recorded}
    assert kinds >= {"skill", "volatility", "intervals", "coverage", "risk"}
    assert kinds >= {"months", "drift", "explanation", "shift"}
    assert kinds >= {"groups", "set of direction", "set of volatility", "paths", "dependence", "portfolio"}
    shares = [v for name, v in recorded.items() if re.fullmatch("explanation/.*/share", name)]
    assert sum(shares) == pytest.approx(1)


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


def test_exposure_scenarios_capacity_and_trials_are_on_the_page_and_recorded(page):
    html, result = (page / "page.html").read_text(), json.loads((page / "result.json").read_text())
    recorded = result["result"]["numbers"]
    for name in ("beta on the market", "2008, by beta", "rate shock, by beta", "worst month of the sample"):
        assert name in html, name
    assert recorded["stress/2008, by beta/value"] == pytest.approx(
        -0.38 * recorded["exposure/beta on the market/value"], abs=1e-6
    )
    assert recorded["trials/independent/value"] <= recorded["trials/models tried/value"]
    assert "of them independent" in html and "account of 1,000,000" in html

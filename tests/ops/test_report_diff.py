"""The diff of two runs names what differs and nothing else, and trusts no text of a result."""

import json

import pytest

from stockpredict.core.errors import NotFound
from stockpredict.ops.report_diff import numbers_diff, write_diff
from stockpredict.ops.reports import finished_runs

EVIL = "<script>alert('x')</script>"


def run_folder(root, name, **result):
    folder = root / "2022-12-30" / name
    folder.mkdir(parents=True)
    facts = dict(name="r40_validate", run_id=name, started=name, status="complete", result=result)
    (folder / "result.json").write_text(json.dumps(facts))


def test_changes_come_by_their_size_and_missing_numbers_last(tmp_path):
    run_folder(tmp_path, "r40-a", numbers={"a": 1.0, "b": 100.0, "c": 5.0, "same": 2.0, "zero": 0.0})
    run_folder(tmp_path, "r40-b", numbers={"a": 1.5, "b": 101.0, "d": 5.0, "same": 2.0, "zero": 0.0})
    after, before = finished_runs(tmp_path)
    shown = numbers_diff(before, after)
    assert shown.number.tolist() == ["a", "b", "c", "d"] and shown.change[:2].tolist() == [0.5, 1.0]


def test_the_page_escapes_everything_and_runs_nothing(tmp_path):
    run_folder(tmp_path, "r40-a", decision="hold", sentence=EVIL, lineage={EVIL: EVIL}, numbers={EVIL: 1})
    run_folder(tmp_path, "r40-b", decision="promote", heads={EVIL: {"decision": EVIL}}, numbers={})
    page = write_diff(tmp_path, "r40-a", "r40-b").read_text()
    assert "<script" not in page and "script-src" not in page and "1 of 1 numbers differ" in page
    assert "hold" in page and "promote" in page and len(finished_runs(tmp_path)) == 2


@pytest.mark.parametrize("name", ["../../etc/passwd", "r40", "", "r40-a\0"])
def test_a_name_that_is_no_run_is_refused_with_the_newest(tmp_path, name):
    run_folder(tmp_path, "r40-a")
    with pytest.raises(NotFound, match="Newest: r40-a"):
        write_diff(tmp_path, name, "r40-a")


def figure(title, png):
    "A cell that shows a figure."
    data = {"image/png": png, "application/vnd.stockpredict.figure+json": {"title": title}}
    return {"outputs": [{"data": data}]}


def test_only_figures_that_differ_are_shown_and_results_without_recorded_numbers_are_compared(tmp_path):
    for name, tickers, png in (("r10-a", 16, "AAAA"), ("r10-b", 17, "BBBB")):
        run_folder(tmp_path, name, headline={"tickers": tickers, "period": "2015"}, stored=True)
        cells = [figure("By year", png), figure("Folds", "CCCC")]
        (tmp_path / "2022-12-30" / name / "notebook.ipynb").write_text(json.dumps({"cells": cells}))
    page = write_diff(tmp_path, "r10-a", "r10-b").read_text()
    assert "1 of 1 numbers differ" in page and "headline tickers" in page
    assert "base64,AAAA" in page and "base64,BBBB" in page
    assert "base64,CCCC" not in page and "The same on both pages: Folds." in page


def test_settings_that_differ_are_named_one_by_one_without_braces(tmp_path):
    for name, seed in (("r10-a", 7), ("r10-b", 8)):
        run_folder(tmp_path, name)
        file = tmp_path / "2022-12-30" / name / "result.json"
        overrides = {"models.seed": seed, "models.candidates": ["mean"]}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"parameters": {"overrides": overrides}}))
    page = write_diff(tmp_path, "r10-a", "r10-b").read_text().split("<main")[1]
    assert 'models.seed</td><td class="text">7</td><td class="text">8' in page and "{" not in page

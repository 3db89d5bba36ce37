"""The feature commands: what a search finds, in which order, what the study says, how little it costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stockpredict.catalogue import finder
from stockpredict.catalogue.feature import FEATURES, feature_table
from stockpredict.cli.main import app
from stockpredict.core.matching import best_matches


@pytest.fixture
def shell(tmp_path):
    def run(*words, code=0):
        line = [*words, "--set", f"storage.home={tmp_path}/home"]
        done = CliRunner().invoke(app, line)
        assert done.exit_code == code or done.exception is not None, done.output
        return str(done.exception) if done.exception and not done.stdout else done.stdout

    return run


def names_of(shell, *words) -> list[str]:
    return [r["name"] for r in json.loads(shell("features", *words, "--json"))]


def test_rsi_finds_the_relative_strength_index_and_not_corsi_or_dispersion(shell):
    names = names_of(shell, "rsi")
    assert names[:3] == ["rsi_2", "rsi_7", "rsi_14"]
    for name in names:
        f = FEATURES[name]
        words = f"{f.name} {f.group} {f.formula} {f.source}".lower()
        assert any(w.startswith("rsi") for w in words.replace("_", " ").replace("(", " ").split()), name


def test_all_words_of_a_phrase_must_occur_in_any_order(shell):
    names = names_of(shell, "wilder", "volatility")
    assert names and sorted(names) == sorted(names_of(shell, "volatility wilder"))
    for name in names:
        text = f"{FEATURES[name].group} {FEATURES[name].source} {FEATURES[name].formula}".lower()
        assert "wilder" in text and "volatil" in text + name
    assert names_of(shell) == names_of(shell, "") and len(names_of(shell)) == len(FEATURES)
    assert names_of(shell, "search", "rsi") == names_of(shell, "rsi") == best_matches("rsi", texts())


def texts():
    rows = feature_table().reset_index().to_dict("records")
    return {r["name"]: [r[k] for k in ("name", "group", "formula", "source")] for r in rows}


def test_the_rows_in_the_file_are_those_of_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    want = feature_table().reset_index().to_dict("records")
    assert finder.feature_rows() == want
    (file,) = (tmp_path / "stockpredict").glob("features-*.json")
    assert finder.feature_rows() == want
    file.write_text("[]")
    assert finder.feature_rows() == want, "an empty file is written anew"
    file.write_text("{no json")
    assert finder.feature_rows() == want


def test_a_search_imports_neither_torch_nor_numba(tmp_path):
    finder.feature_rows()
    code = (
        "import sys; from stockpredict.catalogue.finder import find_features;"
        "print(find_features('rsi')[0]['name'], sorted({'torch', 'numba', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "rsi_2 []", done.stderr


def test_the_study_measures_from_the_shell_and_says_on_what(shell):
    rows = json.loads(shell("features", "study", "reversal_5", "mom_21", "--ahead", "1", "--json"))
    assert {r["feature"] for r in rows} == {"reversal_5", "mom_21"} and {r["ahead"] for r in rows} == {1}
    for r in rows:
        assert r["from"] < r["ic"] < r["to"] and r["verdict"]
    shown = shell("features", "study", "mom_21", "--until", "2014-12-31")
    assert "up to 2014-12-31" in shown and "the bundled sample" in shown
    assert "Did you mean" in shell("features", "study", "mom_2", code=2)


def test_a_page_about_features_needs_no_model_and_one_about_a_model_says_so(tmp_path):
    "Asked for before any training, the page of features said that nothing had been trained."
    changes = {
        "data.source": "simulated",
        "simulated.tickers": 8,
        "simulated.sessions": 420,
        "features.names": "ret_1 mom_21 rsi_14",
        "validation.first_train": 300,
        "storage.home": tmp_path / "home",
        "storage.reports": tmp_path / "reports",
    }
    words = [w for k, v in changes.items() for w in ("--set", f"{k}={v}")]
    refused = CliRunner().invoke(app, ["report", "run", "r40_validate", *words])
    assert "shows a trained model" in str(refused.exception) and "retrain" in str(refused.exception)
    done = CliRunner().invoke(app, ["report", "run", "r20_features", *words])
    assert done.exit_code == 0, done.exception
    page = Path(done.stdout.strip().splitlines()[-1])
    html = page.read_text()
    assert "within stocks" in html and "Traceback" not in html and "3 features" in html.replace("</b>", "")

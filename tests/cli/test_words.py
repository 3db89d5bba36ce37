"""What a person reads: words instead of numbers of tables, singular and plural, and a sentence for a disk."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

from stockpredict.cli.main import app, main
from stockpredict.core.errors import FolderUnavailable
from stockpredict.core.words import counted


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("words")
    changes = {
        "storage.home": place / "home",
        "storage.reports": place / "reports",
        "data.source": "simulated",
        "simulated.tickers": 2,
        "simulated.sessions": 40,
        "data.start": "2000-01-01",
    }
    options = [word for k, v in changes.items() for word in ("--set", f"{k}={v}")]
    assert CliRunner().invoke(app, ["ingest", *options]).exit_code == 0
    return options


def test_versions_say_what_changed_with_the_names_of_tables(home):
    for line in (["lake", "snapshots"], ["lake", "expire", "--days", "0"]):
        text = CliRunner().invoke(app, [*line, *home]).stdout
        assert "tables_" not in text and " UTC" in text
        assert "created adjustments, bars" in text, text
    rows = json.loads(CliRunner().invoke(app, ["lake", "snapshots", "--json", *home]).stdout)
    assert rows[0]["changes"].startswith("rows added to ") and "bars" in rows[0]["changes"]


def test_a_number_has_the_word_that_fits():
    assert [counted(n, "ticker is", "tickers are") for n in (0, 1, 2)] == [
        "0 tickers are",
        "1 ticker is",
        "2 tickers are",
    ]


def test_a_reports_folder_that_cannot_be_written_is_a_sentence(home, tmp_path):
    (tmp_path / "file").write_text("")
    asked = [*home, "--set", f"storage.reports={tmp_path / 'file' / 'reports'}"]
    for line in (["report", "data"], ["report", "features"], ["report"]):
        done = CliRunner().invoke(app, [*line, *asked])
        assert isinstance(done.exception, FolderUnavailable), (line, done.exception)
        assert "[storage] reports" in done.exception.fix, line


def test_a_read_only_reports_folder_is_a_sentence(home, tmp_path, capsys, monkeypatch):
    """A real read-only mount, because root may write where the rights forbid it."""
    place = tmp_path / "reports"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("Mounting a read-only folder needs the rights of root.")
    try:
        monkeypatch.setattr(
            "sys.argv", ["stockpredict", "report", *home, "--set", f"storage.reports={place}"]
        )
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    printed = capsys.readouterr().err
    assert end.value.code == 2 and "it is read-only" in printed and "[folder-unavailable]" in printed


def test_an_ingest_says_at_once_that_bars_look_weekly(tmp_path):
    days = pd.date_range("2021-01-08", periods=60, freq="W-WED")
    table = pd.concat([pd.DataFrame(dict(ticker=t, date=days, close=100.0)) for t in ("M&M", "AAA")])
    table.to_csv(tmp_path / "weekly.csv", index=False)
    changes = {"storage.home": tmp_path / "home", "data.source": "files", "data.start": "2000-01-01"}
    changes["data.files_path"] = tmp_path / "weekly.csv"
    options = [word for k, v in changes.items() for word in ("--set", f"{k}={v}")]
    text = CliRunner().invoke(app, ["ingest", *options]).stdout
    assert "120 new" in text and text.count("look like weekly bars") == 1 and "For example: AAA, M&M." in text
    report = json.loads(CliRunner().invoke(app, ["ingest", "--full", "--json", *options]).stdout)
    assert "weekly" in report["remarks"][0] and "checks" not in report


@pytest.mark.parametrize(
    ("ticker", "words"),
    [
        ("NOPE", "NOPE is not in the universe."),
        ("ÄÖ", "'ÄÖ' is not a ticker: its Ä is U+00C4."),
        ("", "No model has been published yet."),
    ],
)
def test_a_prediction_that_cannot_be_given_is_told_in_words_of_the_shell(template, tmp_path, ticker, words):
    ini = tmp_path / "settings.ini"
    ini.write_text((template if ticker else template.with_(**{"storage.home": str(tmp_path)})).to_ini())
    command = [sys.executable, "-m", "stockpredict.cli.main", "predict", ticker or "SIM00"]
    done = subprocess.run([*command, "--settings", str(ini)], capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert done.returncode != 0 and words in text, text
    assert not any(other in text for other in ("GET ", "/v1/", "\\u", "\\x", "Traceback"))
    codes = [line for line in text.splitlines() if line.startswith("[")]
    assert len(codes) == 1 and text.count(codes[0]) == 1, "the code stands once, on a line of its own"

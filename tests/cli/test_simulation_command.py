"A few sessions of a simulated desk: a change is found, answered and mailed, and all figures agree."

import json
import signal
import subprocess
import sys

import patience
import pytest
from typer.testing import CliRunner

from stockpredict.testing.mail_server import read_mail

pytestmark = pytest.mark.slow
SESSIONS, TICKERS = 4, 16
SMALL = {
    "--sessions": f"{SESSIONS}",
    "--tickers": f"{TICKERS}",
    "--drift": "2",
    "--swing": "10",
    "--seed": "25",
    "--last": "2026-11-27",
}
CHANGES = {
    "models.candidates": "mean",
    "features.names": "gap_1",
    "validation.horizons": "1",
    "storage.mlflow_uri": "http://127.0.0.1:9",  # no server answers there, and nothing here depends on it
}
WORDS = ["simulate-desk", "--json", *(word for option in SMALL.items() for word in option)]
WORDS += [word for name, value in CHANGES.items() for word in ("--set", f"{name}={value}")]
COMMAND = [sys.executable, "-W", "ignore", "-m", "stockpredict.cli.main", *WORDS]


def stopped_early(home):
    "Begin the quarter in a process of its own, and end it with Ctrl-C when its first session is done."
    with subprocess.Popen([*COMMAND, "--home", home], stderr=subprocess.PIPE, text=True) as process:
        try:
            patience.wait_until(lambda: sessions_in(home), process)
            process.send_signal(signal.SIGINT)
            text = patience.communicate(process)[1]
        finally:
            process.kill()
    return process.returncode, text


def sessions_in(home):
    note = home / "quarter.json"
    return json.loads(note.read_text())["days"] if note.exists() else []


@pytest.fixture(scope="module")
def quarter(tmp_path_factory):
    "A small quarter that was stopped once and then went on."
    from stockpredict.cli.main import app

    home = tmp_path_factory.mktemp("simulated") / "desk"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped = stopped_early(home)
    finally:
        signal.signal(signal.SIGINT, before)
    kept = len(sessions_in(home))
    done = CliRunner().invoke(app, [*WORDS, "--home", str(home)])
    return home, stopped, kept, done


def test_ctrl_c_ends_with_a_sentence_and_the_same_command_goes_on(quarter):
    home, (code, text), kept, done = quarter
    assert code == 130 and f"Stopped after session {kept} of {SESSIONS}. The same command goes on." in text
    assert "Traceback" not in text and 1 <= kept < SESSIONS
    assert done.exit_code == 0, done.output[-4000:]
    days = [day["session"] for day in sessions_in(home)]
    assert len(days) == len(set(days)) == SESSIONS and days[-1] == "2026-11-27"


def test_the_planted_change_is_found_answered_and_mailed(quarter):
    home, _, _, done = quarter
    events = json.loads(done.stdout)["events"]
    what = {event["what"]: event for event in events if event["number"] > 1}
    assert what["change"]["number"] == 2
    assert 2 < what["drift"]["number"] <= SESSIONS and "distribution" in what["drift"]["sentence"]
    assert what["training"]["number"] == what["drift"]["number"] + 1
    assert what["training"]["sentence"].startswith("Asked for after ")
    mails = [read_mail(file) for file in sorted((home / "mail").glob("*.eml"))]
    critical = [mail for mail in mails if "[critical]" in mail["Subject"]]
    assert critical and "inputs of the served model have changed" in critical[0]["Subject"]


def test_page_metrics_and_lake_agree_with_forecasts_and_bars(quarter):
    result = json.loads(quarter[3].stdout)
    assert result["agree"] and len(result["figures"]) >= 6
    for row in result["figures"]:
        assert row["lake"] == row["document"] == row["page"] == row["metrics"]
        assert not row["measure"].startswith("inside_") or row["counted"] == row["lake"]
    assert result["numbers"]["sessions"] == SESSIONS
    tables = SESSIONS + 1  # one a session, and another one on the day of the second training
    assert result["numbers"]["published forecasts"] == tables * TICKERS


def test_the_first_ctrl_c_is_noted_and_the_second_ends():
    from stockpredict.ops.simulated_quarter import noted_interrupt

    handler = signal.getsignal(signal.SIGINT)
    with noted_interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == handler


def test_another_quarter_is_refused_in_the_same_folder(quarter):
    from stockpredict.core.errors import ParameterRefused
    from stockpredict.ops.simulated_quarter import Quarter, open_quarter

    with pytest.raises(ParameterRefused, match="seed is 25, not 2"):
        open_quarter(quarter[0], Quarter(2, SESSIONS, TICKERS, 2, 10.0))

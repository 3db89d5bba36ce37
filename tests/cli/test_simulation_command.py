"A few sessions of a simulated desk: a change is found, answered and mailed, and all figures agree."

import json
import os
import signal
import subprocess
import sys
import time

import patience
import pytest

from stockpredict.testing.mail_server import read_mail

pytestmark = pytest.mark.slow
SMALL = {
    "--sessions": "10",
    "--tickers": "8",
    "--drift": "2",
    "--swing": "9",
    "--seed": "1",
    "--last": "2026-11-27",
    "--set": "models.candidates=mean",
}
COMMAND = [sys.executable, "-W", "ignore", "-m", "stockpredict.cli.main", "simulate-desk", "--json"]
WORDS = [*COMMAND, *(word for option in SMALL.items() for word in option)]


def stopped_after_two(home):
    "Begin the quarter, and end it with Ctrl-C when two sessions are done."
    process = subprocess.Popen([*WORDS, "--home", home], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(sessions_in(home)) < 2:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    return process.wait(), process.stderr.read()


def sessions_in(home):
    note = home / "quarter.json"
    return json.loads(note.read_text())["days"] if note.exists() else []


@pytest.fixture(scope="module")
def quarter(tmp_path_factory):
    "A small quarter that was stopped once and then went on."
    home = tmp_path_factory.mktemp("simulated") / "desk"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped = stopped_after_two(home)
    finally:
        signal.signal(signal.SIGINT, before)
    kept = len(sessions_in(home))
    done = patience.run([*WORDS, "--home", home], env=dict(os.environ))
    return home, stopped, kept, done


def test_ctrl_c_ends_with_a_sentence_and_the_same_command_goes_on(quarter):
    home, (code, text), kept, done = quarter
    assert code == 130 and f"Stopped after session {kept} of 10. The same command goes on." in text
    assert "Traceback" not in text and 2 <= kept < 10
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    days = [day["session"] for day in sessions_in(home)]
    assert len(days) == len(set(days)) == 10 and days[-1] == "2026-11-27"


def test_the_planted_change_is_found_answered_and_mailed(quarter):
    home, _, _, done = quarter
    events = json.loads(done.stdout)["events"]
    what = {event["what"]: event for event in events if event["number"] > 1}
    assert what["change"]["number"] == 2
    assert 2 < what["drift"]["number"] <= 10 and "distribution" in what["drift"]["sentence"]
    assert what["training"]["number"] == what["drift"]["number"] + 1
    assert what["training"]["sentence"].startswith("Asked for after ")
    mails = [read_mail(file) for file in sorted((home / "mail").glob("*.eml"))]
    critical = [mail for mail in mails if "[critical]" in mail["Subject"]]
    assert critical and "inputs of the served model have changed" in critical[0]["Subject"]


def test_page_metrics_and_lake_agree_with_forecasts_and_bars(quarter):
    result = json.loads(quarter[3].stdout)
    assert result["agree"] and len(result["figures"]) >= 6
    for row in result["figures"]:
        assert row["lake"] == row["page"] == row["metrics"]
        assert not row["measure"].startswith("inside_") or row["counted"] == row["lake"]
    assert result["numbers"]["sessions"] == 10
    tables = 10 + 1  # one a session, and another one on the day of the second training
    assert result["numbers"]["published forecasts"] == tables * 8 * 2


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

    with pytest.raises(ParameterRefused, match="seed is 1, not 2"):
        open_quarter(quarter[0], Quarter(2, 10, 8, 2, 9.0))

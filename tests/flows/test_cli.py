"""The command line: quick, plain, and never a traceback."""

import json
import re
import subprocess
import sys

import patience
import pytest
import warm

from stockpredict.core.errors import StockpredictError

CLI = [sys.executable, "-m", "stockpredict.cli.main"]


def ask(*words, cwd=None, env=None):
    return warm.stockpredict(*words, cwd=cwd, env=env)


def test_help_is_there_at_once_and_loads_nothing_heavy(tmp_path):
    code = (
        "import sys, time; sys.argv = ['stockpredict', '--help']\nfrom stockpredict.cli.main import "
        "app\ntry: app()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'pydantic', 'prefect', 'mlflow') if m in "
        "sys.modules], time.process_time())"
    )
    report = patience.run([sys.executable, "-c", code], cwd=tmp_path)
    heavy, seconds = report.stdout.strip().splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]" and float(seconds) < 1, report.stdout
    assert "retrain" in report.stdout and "doctor" in report.stdout


@pytest.mark.parametrize(
    "words, report",
    [
        (["settings", "check", "--set", "data.sorce=x"], "Did you mean source?"),
        (["settings", "check", "--set", "data.source"], "section.key=value"),
        (["predict", "AAPL"], "stockpredict"),
        (["lake"], "stockpredict ingest"),
        (["models"], "stockpredict"),
        (["report", "path"], "stockpredict retrain"),
        (["report", "run", "r99_nothing"], "r40_validate"),
        (["settings", "check", "--settings", "absent.ini"], "absent.ini"),
        (["retrain", "--source", "nowhere"], "simulated"),
        (["validate"], "stockpredict ingest"),
    ],
)
def test_every_refusal_is_a_sentence_with_a_next_step(tmp_path, words, report):
    done = ask(
        *words,
        *([] if words[:1] == ["report"] else ["--set", f"storage.home={tmp_path / 'home'}"]),
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert report in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr


def test_settings_round_trip(tmp_path):
    shown = ask("settings", "show", "--set", "models.seed=99", cwd=tmp_path)
    (tmp_path / "settings.ini").write_text(shown.stdout)
    again = ask("settings", "show", cwd=tmp_path)
    assert again.stdout == shown.stdout and "seed = 99" in again.stdout


def test_doctor_finds_a_new_house_healthy_and_incomplete(tmp_path):
    done = ask("doctor", "--json", "--set", f"storage.home={tmp_path / 'home'}", cwd=tmp_path)
    report = json.loads(done.stdout)
    states = {f["name"]: f["state"] for f in report["findings"]}
    assert done.returncode == 0 and report["healthy"], done.stdout
    assert (
        states["lake"] == states["champion"] == states["table"] == "warn"
        and states["redis"] == "off"
        and states["packages"] == "ok"
    )
    assert all(f["fix"] for f in report["findings"] if f["state"] in ("warn", "fail"))
    assert not (tmp_path / "home").exists(), "the doctor changes nothing"


# ---- data: most commands in this process, as typed


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A small simulated lake, and a function that types a command at it: (exit code, what it printed, the
    refusal)."""
    import shlex

    from typer.testing import CliRunner

    from stockpredict.cli.main import app
    from stockpredict.sources.simulate import sample_bars

    place = tmp_path_factory.mktemp("desk")
    changes = {
        "storage.home": place / "home",
        "data.source": "simulated",
        "simulated.tickers": 4,
        "simulated.sessions": 60,
        "data.start": "2000-01-01",
        "stream.block_ms": 20,
        "stream.wait": 20,
    }
    asked = [w for k, v in changes.items() for w in ("--set", f"{k}={v}")]

    def typed(line, *more, home=asked, code=0):
        first, *rest = [*shlex.split(line), *map(str, more)]
        done = CliRunner().invoke(app, [first, *home, *rest], env={"COLUMNS": "250"})
        if done.exception is not None and not isinstance(done.exception, SystemExit | StockpredictError):
            raise done.exception
        assert isinstance(done.exception, StockpredictError) if code == 2 else done.exit_code == code, (
            line,
            done.output,
            done.exception,
        )
        return str(done.exception) if code == 2 else done.stdout

    shown = (
        sample_bars(tickers=2, sessions=20)
        .assign(date=lambda b: b.event_time.dt.strftime("%Y-%m-%d"))
        .drop(columns=["event_time", "known_at", "source"])
    )
    shown.to_csv(place / "good.csv", index=False)
    shown.assign(close=-1.0).to_csv(place / "bad.csv", index=False)
    typed.place, typed.asked = place, asked
    report = json.loads(typed("ingest --json"))
    assert report["rows_new"] > 200 and report["tickers"] == 4
    return typed


def test_ingest_again_brings_nothing_and_no_request_waits(desk):
    assert "0 new and 0 corrected bars from simulated-" in desk("ingest")
    assert json.loads(desk("ingest --full --json"))["rows_new"] == 0
    assert (
        "Nothing is waiting" in desk("ingest dead-letters")
        and json.loads(desk("ingest dead-letters --json")) == []  # the older name
    )


@pytest.mark.parametrize(
    "line, report",
    [
        ("lake", "fingerprint"),
        ("lake status", "fingerprint"),
        ("lake snapshots", "snapshot"),
        ("lake pins", "No version is pinned"),
        ("lake verify", "as they were written"),
        ("lake compact --dry-run", ""),
        ("lake expire", "Nothing to do"),
        ("lake expire --dry-run", "Nothing to do"),
        ("lake clean", ""),
        ("lake retain", "nothing was changed"),
        ("lake storage", "bars"),
        ("lake asof SIM0 2030-01-01 --last 2", "SIM0"),
        ("lake asof sim0 2030-01-01 --raw", "SIM0"),
        ('lake sql "SELECT count(*) AS n FROM bars"', "n"),
        ('lake sql "SELECT 1 WHERE false"', "no rows"),
        ("lake facts macro", "Nothing is known in macro"),
        ("quality", "quarantined"),
        ("quality flags SIM0", ""),
        ("quality quarantine", "No row is in quarantine"),
        ("stream bars", "holds no such bars"),
        ("stream dead-letters", "Every message could be read"),
        ("stream", "keeps 0 of at most"),
    ],
)
def test_every_look_answers_in_words_and_in_data(desk, line, report):
    answer = desk(line)
    assert report in answer and "\x1b" not in answer
    json.loads(desk(line, "--json"))


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("lake asof SIM9 2030-01-01", "holds no ticker SIM9. Did you mean SIM"),
        ("lake asof ZZZZZ 2030-01-01", "holds no ticker ZZZZZ. Available: SIM0, SIM1, SIM2, SIM3."),
        ("lake asof SIM0 1999-01-01", "nothing was known of SIM0; its first bar was known on 20"),
    ],
)
def test_a_question_without_an_answer_is_a_failure_with_what_is_near(desk, line, sentence):
    assert sentence in desk(line, code=2) and sentence in desk(line, "--json", code=2)


def test_progress_names_steps_in_words_and_times_with_their_zone(tmp_path):
    words = [
        "--set",
        f"storage.home={tmp_path}",
        "--set",
        "data.source=simulated",
        "--set",
        "data.start=2000-01-01",
    ]
    words += ["--set", "simulated.tickers=2", "--set", "simulated.sessions=40"]
    done = ask("ingest", *words, cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and len(lines) > 5
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d UTC  [a-z ]+", line) for line in lines), lines
    assert not {"sealed", "settled", "begun", "diary"} & set(done.stderr.split())
    shown = ask("lake", "asof", "SIM0", "2030-01-01", *words, cwd=tmp_path).stdout
    assert shown.count(" UTC") >= 10, shown


def test_a_search_for_features_finds_some_or_says_what_is_near(desk):
    assert {r["group"] for r in json.loads(desk("features wilder --group oscillator --json"))} == {
        "oscillator"
    } and "rsi_14" in desk("features rsi_1")
    for line, report in (
        ("features boolinger", "Did you mean bollinger"),
        ("features rsi_15 --json", "rsi_14"),
        ("features zzqqxx", "attention, calendar"),
        ("features --group volatlity", "Did you mean volatility?"),
        ("features bollinger --group macro", "occurs in stretch, volatility"),
    ):
        refused = desk(line, code=2)
        near = "stockpredict features" in refused or "leave --group away" in refused
        assert report in refused and near, (
            line,
            refused,
        )


def test_a_version_can_be_named_kept_and_let_go(desk):
    number = json.loads(desk("lake pin before-the-split --reason 'to look again' --json"))["snapshot"]
    pin = json.loads(desk("lake pins --json"))[0]
    assert (pin["name"], pin["snapshot"], pin["reason"]) == ("before-the-split", number, "to look again")
    assert "before-the-split" in desk("lake pins") and number not in [
        r["snapshot"] for r in json.loads(desk("lake expire --days 0 --dry-run --json"))
    ]
    assert "no longer pinned" in desk("lake unpin before-the-split")
    assert "never-there" in desk("lake unpin never-there", code=2)


def test_upkeep_says_first_and_does_on_demand(desk):
    before = json.loads(desk("lake snapshots --last 1000 --json"))
    would = json.loads(desk("lake expire --days 0 --json"))
    assert would and len(json.loads(desk("lake snapshots --last 1000 --json"))) == len(before)
    assert "nothing was changed" in desk("lake expire --days 0")
    assert "versions expire." in desk("lake expire --days 0 --do-it") and "Nothing to do" in desk(
        "lake expire --days 0"
    )
    json.loads(desk("lake compact --json"))
    json.loads(desk("lake clean --grace 0D --do-it --json"))
    assert "as they were written" in desk("lake verify")


def test_what_was_known_before_a_restatement_and_after(desk, tmp_path):
    import pandas as pd

    home = [
        *desk.asked,
        "--set",
        f"storage.home={tmp_path / 'home'}",
        "--set",
        "data.source=files",
        "--set",
        f"data.files_path={tmp_path / 'bars.csv'}",
    ]
    sent = pd.read_csv(desk.place / "good.csv")
    sent.to_csv(tmp_path / "bars.csv", index=False)
    desk("ingest", home=home)
    ticker, day = sent.ticker.iloc[0], sent.date[sent.ticker == sent.ticker.iloc[0]].iloc[-1]
    last = (sent.ticker == ticker) & (sent.date == day)
    sent.assign(volume=sent.volume.where(~last, 77.0)).to_csv(tmp_path / "bars.csv", index=False)
    desk("ingest", home=home)

    def known(when):
        return json.loads(desk(f"lake asof {ticker} {when} --last 1 --json", home=home))[0]["volume"]

    assert known("2020-01-01") == sent.volume[last].item() and known("2099-01-01") == 77.0


def test_a_file_is_judged_before_it_is_ingested(desk):
    assert "0 quarantined" in desk("quality", desk.place / "good.csv")
    assert "Refused" in desk("quality", desk.place / "bad.csv", code=1)
    report = json.loads(desk("quality check", desk.place / "bad.csv", "--json", code=1))
    assert (
        report["refused"]
        and {c["rule"]: c["failed"] for c in report["checks"]}["price impossible"] == report["rows"]
    )
    assert "no file or folder" in desk("quality nowhere.csv", code=2)


@pytest.mark.slow
def test_the_gate_is_measured_from_the_shell(desk):
    rows = json.loads(desk("quality matrix --each 1 --tickers 30 --json"))
    assert len(rows) > 10


def test_live_from_publish_to_lake(desk, tmp_path):
    home = [*desk.asked, "--set", f"storage.home={tmp_path / 'home'}"]
    sent = json.loads(desk("stream publish", desk.place / "good.csv", "--json", home=home))
    did = json.loads(desk("stream consume --idle 0.1 --json", home=home))
    assert did["lake_new"] == sent["sent"] == sent["offset"]
    assert json.loads(desk("stream consume --from 1 --json", home=home))["lake_same"] == sent["sent"]
    played = json.loads(desk("stream replay --speed 0 --each 5 --json", home=home))
    did = json.loads(desk("stream consume --idle 0.1 --json", home=home))
    assert (
        played["trades"] == did["messages"] and did["lake_new"] == played["tickers"] and did["letters"] == 0
    )
    bars = json.loads(desk("stream bars --json", home=home))
    assert {b["ticker"] for b in bars} >= {"SIM0"} and not any(b["provisional"] for b in bars)
    assert "SIM0" in desk("stream bars SIM0 --span 1m", home=home)
    report = json.loads(desk("stream status --json", home=home))
    assert (
        report["groups"][0]["unread"] == report["groups"][0]["pending"] == report["letters"] == 0
        and report["freshness_s"] > 0
    )
    assert "Event to readable in the lake" in desk("stream status", home=home) and json.loads(
        desk("stream dead-letters --again --json", home=home)
    ) == {"sent": 0}
    assert "There is no span 'minutes'" in desk("stream bars --span minutes", home=home, code=2)


ATTACKS = [
    "'; DROP TABLE bars; --",
    "../../../etc/passwd",
    "A\x1b[2J\x1b]0;owned\x07",
    "[bold red]X[/]",
    "\u202eLPAA",
    "A" * 10_000,
    "${HOME}",
    "$(id)",
]


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_a_ticker_that_attacks_does_nothing(desk, attack):
    from stockpredict.cli.console import clear

    rows = json.loads(desk('lake sql "SELECT count(*) AS n FROM bars" --json'))[0]["n"]
    for report in (desk("lake asof", attack, "2030-01-01", code=2), desk("quality flags", attack, code=2)):
        assert "is not a ticker" in report and clear(report) == report and len(report) < 400
    assert "holds no such bars" in desk("stream bars", attack)
    assert json.loads(desk('lake sql "SELECT count(*) AS n FROM bars" --json'))[0]["n"] == rows


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE bars",
        "DELETE FROM bars",
        "SELECT 1; DROP TABLE bars",
        "COPY bars TO 'x.csv'",
        "INSTALL httpfs",
        "SELEC 1",
    ],
)
def test_a_query_can_only_ask(desk, query):
    assert "Only one SELECT" in (report := desk("lake sql", query, code=2)) or "The query failed" in report


def test_what_came_from_outside_cannot_act_on_the_terminal(desk, tmp_path, capsys):
    from stockpredict.cli.console import grid, out
    from stockpredict.stream.queue import Stream
    from stockpredict.core.settings import Settings

    home = [*desk.asked, "--set", f"storage.home={tmp_path / 'home'}"]
    with Stream(Settings().with_(**{"storage.home": str(tmp_path / "home")})) as s:
        s.publish([b'{"ticker": "A\x1b[2J\x07", "span": "[red]day"}'])
    desk("stream consume --idle 0.1", home=home)
    for line in ("stream dead-letters", "stream status"):
        answer = desk(line, home=home)
        assert "\x1b" not in answer and "\x07" not in answer
    import pandas as pd

    out(grid(pd.DataFrame({"a\x1b[1m": ["\x1b[2J", "[red]b"]})))
    report = capsys.readouterr().out
    assert "\x1b" not in report and "[red]b" in report and r"\x1b[2J" in report


def test_a_refusal_shows_control_characters_instead_of_obeying_them(tmp_path):
    done = ask("lake", "--set", f"storage.home={tmp_path / 'home'}", "asof", "A\x1b[2J", "2020-01-01")
    assert (
        done.returncode == 2
        and "\x1b" not in done.stderr
        and "is not a ticker" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_serve_says_that_a_port_is_taken(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = ask("serve", "--port", taken.getsockname()[1], "--set", f"storage.home={tmp_path / 'home'}")
    assert done.returncode == 2 and "cannot listen on" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_ingest_from_vendors_that_fail_letters_and_replay(desk, tmp_path):
    """Fake vendors as their own program: everything fails, the requests wait, the vendors recover, the
    replay fetches them."""
    import socket
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = subprocess.Popen(
        [
            *CLI,
            "fake-vendors",
            "--port",
            str(port),
            "--faults",
            "hangup:1000",
            "--tickers",
            "4",
            "--sessions",
            "80",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert f"http://127.0.0.1:{port}" in child.stdout.readline()
        line = child.stdout.readline()
        names = next(w for w in line.split() if w.startswith("data.universe=")).partition("=")[2]
        start = next(w for w in line.split() if w.startswith("data.start=")).partition("=")[2]
        changes = {
            "storage.home": tmp_path / "home",
            "data.source": "vendors",
            "sources.base_urls": f"all=http://127.0.0.1:{port}",
            "data.universe": names,
            "data.start": start,
            "sources.retries": 0,
            "sources.chain": "tiingo",
            "sources.budgets": "tiingo=50/10000",
        }
        home = [w for k, v in changes.items() for w in ("--set", f"{k}={v}")]
        assert "No vendor answered" in desk("ingest", home=home, code=2)
        waiting = json.loads(desk("ingest dead-letters --json", home=home))
        assert {w["ticker"] for w in waiting} == set(names.split(",")) and waiting[0]["ticker"] in desk(
            "ingest dead-letters", home=home
        )
        urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}/admin/reset", b"", method="POST"), timeout=10
        ).close()
        report = json.loads(desk("ingest --replay --json", home=home))
        assert (
            report["rows_new"] > 100
            and report["letters"] == 0
            and "Nothing is waiting" in desk("ingest dead-letters", home=home)
        )
    finally:
        child.terminate()
        child.wait()


@pytest.mark.slow
def test_after_a_retrain_everything_answers(finished):
    asked, place = finished["asked"], finished["place"]
    frame = json.loads(ask("predict", "--json", *asked).stdout)
    assert {r["horizon"] for r in frame} == {1, 5} and all(
        0 <= r["p_up"] <= 1 and r["q5"] < r["q50"] < r["q95"] for r in frame
    )
    assert frame[0]["decision_session"] < frame[0]["entry_session"] < frame[0]["target_session"]
    one = ask("predict", frame[0]["ticker"].lower(), "--for", "next", *asked)
    assert frame[0]["ticker"] in one.stdout and "Decided at the close of" in one.stdout
    assert json.loads(ask("lake", "--json", *asked).stdout)["tickers"] == 16
    assert json.loads(ask("models", "--json", *asked).stdout)["version"] == 1
    assert "snapshot" in ask("lake", *asked, "snapshots").stdout
    assert ask("lake", *asked, "status", "--json").stdout == ask("lake", *asked, "--json").stdout
    assert (
        "baseline" in ask("models", *asked, "history").stdout
        or "promote" in ask("models", *asked, "history").stdout
    )
    path = ask("report", *asked, "path").stdout.strip()
    assert path.startswith(str(place)) and path.endswith("page.html")


@pytest.mark.slow
def test_the_doctor_sees_damage(finished_alone, tmp_path):
    import shutil

    shutil.copytree(finished_alone["place"] / "home", tmp_path / "home")
    table = tmp_path / "home" / "serving" / "table.bin"
    raw = bytearray(table.read_bytes())
    raw[len(raw) // 2] ^= 1
    table.write_bytes(raw)
    for model in (tmp_path / "home" / "registry").rglob("manifest.json"):
        model.write_text(model.read_text().replace("horizons", "horizon"))
    asked = [a.replace(str(finished_alone["place"]), str(tmp_path)) for a in finished_alone["asked"]]
    done = ask("doctor", "--json", *asked)
    states = {f["name"]: f for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert (
        states["champion"]["state"] == "fail"
        and states["table"]["state"] == "fail"
        and states["lake"]["state"] == "ok"
    )
    assert states["table"]["fix"] and states["champion"]["fix"]


@pytest.mark.slow
def test_the_same_question_again_changes_nothing(finished_alone):
    again = ask("retrain", "--json", *finished_alone["asked"])
    report = json.loads(again.stdout)
    assert report == finished_alone["report"]


@pytest.mark.slow
def test_a_study_of_the_past_publishes_nothing(finished_alone):
    last = finished_alone["report"]["as_of"]
    day = f"{int(last[:4])}-{'06' if last[5:7] > '06' else '01'}-01"
    champion = finished_alone["settings"].storage.registry_dir / "champion.json"
    before = champion.read_text()
    done = ask("retrain", "--no-pages", "--json", "--as-of", day, *finished_alone["asked"])
    report = json.loads(done.stdout)
    assert report["published"]["version"] is None and report["as_of"] <= day
    assert champion.read_text() == before

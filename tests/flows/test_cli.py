"""The command line: quick, plain, and never a traceback."""
import json
import subprocess
import sys
import time

import pytest

CLI = [sys.executable, "-m", "stockpredict.cli"]


def ask(*words, cwd=None, env=None):
    return subprocess.run([*CLI, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def test_help_is_there_at_once_and_loads_nothing_heavy(tmp_path):
    code = "import sys, time; sys.argv = ['stockpredict', '--help']\nfrom stockpredict.cli import app\ntry: app()\nexcept SystemExit: pass\n" \
           "print([m for m in ('torch', 'numpy', 'pandas', 'pydantic', 'prefect', 'mlflow') if m in sys.modules], time.process_time())"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    heavy, seconds = said.stdout.strip().splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]" and float(seconds) < 1, said.stdout
    assert "retrain" in said.stdout and "doctor" in said.stdout


@pytest.mark.parametrize("words, said", [
    (["settings", "check", "--set", "data.sorce=x"], "Did you mean source?"), (["settings", "check", "--set", "data.source"], "section.key=value"),
    (["predict", "AAPL"], "stockpredict"), (["lake"], "stockpredict ingest"), (["models"], "stockpredict"),
    (["report", "path"], "stockpredict retrain"),
    (["report", "run", "r99_nothing"], "r40_validate"), (["settings", "check", "--settings", "absent.ini"], "absent.ini"),
    (["retrain", "--source", "nowhere"], "simulated"), (["validate"], "stockpredict ingest"),
])
def test_every_refusal_is_a_sentence_with_a_next_step(tmp_path, words, said):
    done = ask(*words, *([] if words[:1] == ["report"] else ["--set", f"storage.home={tmp_path / 'home'}"]), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr


def test_settings_round_trip(tmp_path):
    shown = ask("settings", "show", "--set", "models.seed=99", cwd=tmp_path)
    (tmp_path / "settings.ini").write_text(shown.stdout)
    again = ask("settings", "show", cwd=tmp_path)
    assert again.stdout == shown.stdout and "seed = 99" in again.stdout


def test_doctor_finds_a_new_house_healthy_and_incomplete(tmp_path):
    done = ask("doctor", "--json", "--set", f"storage.home={tmp_path / 'home'}", cwd=tmp_path)
    said = json.loads(done.stdout)
    states = {f["name"]: f["state"] for f in said["findings"]}
    assert done.returncode == 0 and said["healthy"], done.stdout
    assert states["lake"] == states["champion"] == states["table"] == "warn" and states["redis"] == "off" and states["packages"] == "ok"
    assert all(f["fix"] for f in said["findings"] if f["state"] in ("warn", "fail"))
    assert not (tmp_path / "home").exists(), "the doctor changes nothing"


@pytest.mark.slow
def test_after_a_retrain_everything_answers(finished):
    asked, place = finished["asked"], finished["place"]
    frame = json.loads(ask("predict", "--json", *asked).stdout)
    assert {r["horizon"] for r in frame} == {1, 5} and all(0 <= r["p_up"] <= 1 and r["q5"] < r["q50"] < r["q95"] for r in frame)
    assert frame[0]["decision_session"] < frame[0]["entry_session"] < frame[0]["target_session"]
    one = ask("predict", frame[0]["ticker"].lower(), "--for", "next", *asked)
    assert frame[0]["ticker"] in one.stdout and "Decided at the close of" in one.stdout
    assert json.loads(ask("lake", "--json", *asked).stdout)["tickers"] == 16
    assert json.loads(ask("models", "--json", *asked).stdout)["version"] == 1
    assert "snapshot" in ask("lake", *asked, "snapshots").stdout
    assert ask("lake", *asked, "status", "--json").stdout == ask("lake", *asked, "--json").stdout
    assert "baseline" in ask("models", *asked, "history").stdout or "promote" in ask("models", *asked, "history").stdout
    path = ask("report", *asked, "path").stdout.strip()
    assert path.startswith(str(place)) and path.endswith("page.html")


@pytest.mark.slow
def test_the_doctor_sees_damage(finished, tmp_path):
    import shutil
    shutil.copytree(finished["place"] / "home", tmp_path / "home")
    table = tmp_path / "home" / "serving" / "table.bin"
    raw = bytearray(table.read_bytes())
    raw[len(raw) // 2] ^= 1
    table.write_bytes(raw)
    for model in (tmp_path / "home" / "registry").rglob("manifest.json"): model.write_text(model.read_text().replace("horizons", "horizon"))
    asked = [a.replace(str(finished["place"]), str(tmp_path)) for a in finished["asked"]]
    done = ask("doctor", "--json", *asked)
    states = {f["name"]: f for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert states["champion"]["state"] == "fail" and states["table"]["state"] == "fail" and states["lake"]["state"] == "ok"
    assert states["table"]["fix"] and states["champion"]["fix"]


@pytest.mark.slow
def test_the_same_question_again_costs_seconds_and_changes_nothing(finished):
    started = time.monotonic()
    again = ask("retrain", "--json", *finished["asked"])
    said = json.loads(again.stdout)
    assert said == finished["said"]
    assert time.monotonic() - started < 120


@pytest.mark.slow
def test_a_study_of_the_past_publishes_nothing(finished):
    last = finished["said"]["as_of"]
    day = f"{int(last[:4])}-{'06' if last[5:7] > '06' else '01'}-01"
    champion = finished["settings"].storage.registry_dir / "champion.json"
    before = champion.read_text()
    done = ask("retrain", "--no-pages", "--json", "--as-of", day, *finished["asked"])
    said = json.loads(done.stdout)
    assert said["published"]["version"] is None and said["as_of"] <= day
    assert champion.read_text() == before

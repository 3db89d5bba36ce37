"""The registry from the shell: what is published, what differs, what was changed, and switching back."""

import json

import pytest
import small_study
from stockpredict.cli.main import app
from stockpredict.train.gate import decide
from stockpredict.train.head_gates import head_verdict
from stockpredict.train.registry import publish_model
from typer.testing import CliRunner

HERE = small_study.SMALL | {"storage.mlflow_uri": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def shell(trained, tmp_path_factory):
    "A registry with two versions, and the command line on it."
    home = tmp_path_factory.mktemp("shell") / "home"
    settings, study = small_study.copy_of(trained, home)
    settings = small_study.settings_at(home, **HERE)
    publish_model(settings, study, decide(study))
    v = decide(study)
    sentence = "Volatility by reversal."
    v.heads["volatility"] = head_verdict("promote", "reversal", "strong", sentence, "volatility")
    v.numbers["parts"] = dict(direction="mean", volatility="reversal", shape="mean")
    publish_model(settings, study, v)

    def run(*words, code=0):
        changes = [w for k, x in {**HERE, "storage.home": home}.items() for w in ("--set", f"{k}={x}")]
        from stockpredict.cli.console import SettingsOptions

        done = CliRunner().invoke(app, [*words, *changes], obj=SettingsOptions())
        assert done.exit_code == code, done.output + repr(done.exception)
        return done.stdout

    run.settings = settings
    return run


def test_the_list_names_the_served_version_and_its_heads(shell):
    rows = json.loads(shell("registry", "list", "--json"))
    versions = [(r["version"], r["served"], r["model"]) for r in rows]
    assert versions == [(1, False, "mean"), (2, True, "composed")]
    assert rows[1]["volatility"] == "reversal (strong)" and rows[1]["direction"] == "mean (none)"
    assert "composed" in shell("registry", "list")


def test_show_says_what_is_served_and_where_it_comes_from(shell):
    served = json.loads(shell("registry", "show", "--json"))
    assert served["version"] == 2 and served["heads"]["volatility"]["evidence"] == "strong"
    assert served["features"] == ["ret_1", "mom_5", "vol_20"] and served["manifest"]["horizons"] == [1, 5]
    assert json.loads(shell("registry", "show", "1", "--json"))["model"] == "mean"
    assert "Volatility by reversal." in shell("registry", "show")
    shell("registry", "show", "9", code=1)


def test_diff_names_what_differs_and_nothing_else(shell):
    rows = json.loads(shell("registry", "diff", "1", "2", "--json"))
    fields = {r["field"] for r in rows}
    assert {"model", "version", "artifact", "heads.volatility.model"} <= fields and "skill" not in fields
    assert "the same" in shell("registry", "diff", "1", "1")


def test_promote_rollback_and_history_switch_and_remember(shell):
    back = json.loads(shell("registry", "rollback", "--why", "drill", "--json"))
    assert back["version"] == 1 and json.loads(shell("registry", "show", "--json"))["version"] == 1
    shell("registry", "promote", "2", code=1)  # it was rolled back
    words = ("registry", "promote", "2", "--override", "the drill is over", "--json")
    assert json.loads(shell(*words))["version"] == 2
    events = json.loads(shell("registry", "history", "--json"))
    assert [e["event"] for e in events] == ["promote", "rollback", "promote", "baseline"]
    assert "was rolled back: drill. Overridden: the drill is over" in events[0]["why"]
    assert events[1]["why"] == "drill"
    assert json.loads(shell("registry", "verify", "--json")) == {"ok": True, "problems": []}
    assert json.loads(shell("registry", "rollback", "--to", "1", "--json"))["version"] == 1


def test_verify_names_a_changed_artifact_and_a_missing_line(shell):
    folder = shell.settings.storage.registry_dir
    history = folder / "history.jsonl"
    intact = history.read_text()
    history.write_text("".join(intact.splitlines(keepends=True)[:-1]))
    state = next(folder.glob("versions/*/state.json"))
    content = state.read_bytes()
    state.write_bytes(content.replace(b"ret_1", b"ret_2"))
    problems = json.loads(shell("registry", "verify", "--json", code=1))["problems"]
    assert any("removed at the end" in p for p in problems)
    assert any(state.parent.name[:12] in p for p in problems)
    history.write_text(intact)
    state.write_bytes(content)
    assert "as they were signed" in shell("registry", "verify")

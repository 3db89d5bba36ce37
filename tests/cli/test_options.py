"""No option of the command line is ignored: the whole tree of commands is walked."""

import json

import pytest
import typer
from typer.testing import CliRunner

from stockpredict.cli.main import app
from stockpredict.core.errors import SettingsError


def paths(command, path=()):
    "Every command, as the words that reach it; groups that are commands themselves included."
    parts = getattr(command, "commands", {})
    if path and (not parts or command.invoke_without_command):
        yield path, command
    for name, part in parts.items():
        yield from paths(part, (*path, name))


TREE = list(paths(typer.main.get_command(app)))
TYPED = {path: [p for p in command.params if p.param_type_name == "argument"] for path, command in TREE}


def line(path, extra, at):
    "A command line: the words of the command with `extra` at a place, and something for each argument."
    words = [*path]
    words[at:at] = extra
    return words + ["x"] * sum(a.required for a in TYPED[path])


def test_the_tree_is_the_whole_command():
    names = {" ".join(path) for path, _ in TREE}
    some = {"lake", "lake sql", "report data", "ingest dead-letters", "up", "doctor", "features search"}
    assert some <= names
    assert len(names) > 45


@pytest.mark.parametrize("path", [path for path, _ in TREE], ids=" ".join)
def test_wrong_settings_are_refused_wherever_they_stand(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for extra, sentence in (
        (["--set", "data.sorce=x"], "Did you mean source?"),
        (["--set=data.sorce=x"], "Did you mean source?"),
        (["--set", "data.source"], "section.key=value"),
        (["--settings", "absent.ini"], "absent.ini"),
    ):
        for at in range(len(path) + 1):
            words = line(path, extra, at)
            done = CliRunner().invoke(app, words)
            if path == ("doctor",) and done.exit_code == 1 and not isinstance(done.exception, SettingsError):
                assert sentence in done.output.replace("\n", " "), words
            else:
                assert isinstance(done.exception, SettingsError) and sentence in str(done.exception), words
    assert not list(tmp_path.iterdir()), "a refused command writes nothing"


@pytest.mark.parametrize("path", [path for path, _ in TREE if len(path) > 1], ids=" ".join)
def test_an_option_of_the_group_is_handed_on_or_refused(path, monkeypatch):
    """Before a subcommand stands each option of its group: the subcommand receives it, or the line is
    refused with its name."""
    tree = typer.main.get_command(app)
    group = tree.commands[path[0]]
    command, received = group.commands[path[1]], {}
    monkeypatch.setattr(type(command), "invoke", lambda self, ctx: received.update(ctx.params))
    for option in (p for p in group.params if p.param_type_name == "option" and p.name != "help"):
        received.clear()
        words = [path[0], max(option.opts, key=len), *([] if option.is_flag else ["3"]), path[1]]
        done = CliRunner().invoke(app, words + ["x"] * sum(a.required for a in TYPED[path]))
        if option.name in {p.name for p in command.params}:
            assert received[option.name] in (True, 3, "3"), (words, done.output)
        else:
            assert done.exit_code == 2 and "has no such option" in done.output and not received, words


def test_a_change_reaches_the_command_from_every_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["--set", "models.seed=99", "settings", "show"],
        ["settings", "--set", "models.seed=99", "show"],
        ["settings", "show", "--set=models.seed=99"],
        ["--set", "models.seed=1", "settings", "show", "--set", "models.seed=99"],
    ):
        assert "\nseed = 99" in CliRunner().invoke(app, words).stdout, words


def test_a_report_about_a_file_is_about_this_file(tmp_path, monkeypatch):
    """`report --set X data` once ignored X and ingested the sample into the working folder."""
    asked = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "stockpredict.ops.runs.run", lambda name, parameters, settings: asked.update(parameters)
    )
    for words in (
        ["report", "--set", "data.source=files", "--set", "data.files_path=mine.csv", "data"],
        ["report", "data", "--set", "data.source=files", "--set", "data.files_path=mine.csv"],
    ):
        asked.clear()
        CliRunner().invoke(app, words)
        assert asked["overrides"]["data.files_path"] == "mine.csv", words
    assert not list(tmp_path.iterdir())


def test_a_lake_is_asked_with_settings_after_the_subcommand(tmp_path):
    home = ["--set", f"storage.home={tmp_path}", "--set", "data.source=simulated"]
    home += [
        "--set",
        "simulated.tickers=2",
        "--set",
        "simulated.sessions=40",
        "--set",
        "data.start=2000-01-01",
    ]
    assert CliRunner().invoke(app, ["ingest", *home]).exit_code == 0
    for words in (
        ["lake", "sql", "SELECT count(*) AS n FROM bars", "--json", *home],
        ["lake", "--json", *home, "sql", "SELECT count(*) AS n FROM bars"],
        [*home, "lake", "sql", "SELECT count(*) AS n FROM bars", "--json"],
    ):
        done = CliRunner().invoke(app, words)
        assert json.loads(done.stdout) == [{"n": 80}], (words, done.exception)

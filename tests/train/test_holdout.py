"""Each look at the final period is written down, counted and cannot be taken back."""

import json

import numpy as np
import pytest

from stockpredict.train import signed_log

from stockpredict.core.errors import EvaluateError, NotEnoughSessions, SettingsError
from stockpredict.core.settings import load_settings
from stockpredict.models.dataset import sample_dataset
from stockpredict.train.champion import append_event, history_problems, write_champion
from stockpredict.train.holdout import HoldoutVault, holdout_looks, holdout_sentence, open_vault
from stockpredict.train.holdout import read_looks, research_panel


@pytest.fixture(scope="module")
def panel():
    return sample_dataset("null", tickers=6, sessions=120, names=("ret_1",)).panel


@pytest.fixture
def vault(tmp_path, panel):
    settings = load_settings(overrides={"storage.home": str(tmp_path)}, environ={})
    return HoldoutVault(settings, f"{panel.sessions[100]:%Y-%m-%d}")


def log(vault):
    return vault.settings.storage.registry_dir / "holdout.jsonl"


def test_research_ends_before_the_holdout_and_leaves_no_trace(vault, panel):
    assert len(vault.research(panel)) == 100 and vault.research(panel).sessions[-1] < panel.sessions[100]
    assert read_looks(vault.settings) == [] and "No look" in holdout_sentence(vault.settings)


def test_every_look_is_written_before_the_bars_are_given(vault, panel):
    for k in range(3):
        bars, held_out = vault.look(panel, why=f"look {k}", who="ana")
    assert len(bars) == 120 and held_out == slice(100, 120)
    looks = holdout_looks(vault.settings)
    assert list(looks.why) == ["look 0", "look 1", "look 2"] and set(looks.who) == {"ana"}
    assert set(looks.settings) == {vault.settings.hash} and (looks.first == vault.first).all()
    assert "looked at 3 times, last by ana" in holdout_sentence(vault.settings)
    assert "no longer a test" in holdout_sentence(vault.settings)
    later = str(np.datetime64(looks["last"].iloc[0]) + 1)
    assert len(holdout_looks(vault.settings, later)) == 0


TOUCHED = ["changed", "first removed", "last removed", "inserted", "forged", "end gone"]


@pytest.mark.parametrize("how", TOUCHED)
def test_a_log_that_was_touched_is_not_counted(vault, panel, how):
    for k in range(3):
        vault.look(panel, why=f"look {k}")
    path, lines = log(vault), log(vault).read_bytes().splitlines(keepends=True)
    other = json.loads(lines[1]) | dict(who="nobody")
    changes = {
        "changed": [lines[0], lines[1].replace(b"look 1", b"look 9"), lines[2]],
        "first removed": lines[1:],
        "last removed": lines[:2],
        "inserted": [lines[0], lines[0], *lines[1:]],
        "forged": [lines[0], json.dumps(other).encode() + b"\n", lines[2]],
        "end gone": lines,
    }
    path.write_bytes(b"".join(changes[how]))
    if how == "end gone":
        path.with_suffix(".end").unlink()
    with pytest.raises(EvaluateError, match="was changed"):
        read_looks(vault.settings)
    assert "counts as used" in holdout_sentence(vault.settings)
    with pytest.raises(EvaluateError, match="was changed"):
        vault.look(panel, why="again")


def test_a_log_cut_to_one_line_without_its_end_is_not_a_young_one(vault, panel):
    for k in range(2):
        vault.look(panel, why=f"look {k}")
    path = log(vault)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    path.with_suffix(".end").unlink()
    with pytest.raises(EvaluateError, match="its end is not recorded"):
        read_looks(vault.settings)


def test_a_crash_after_the_first_line_counts_it(vault, panel, monkeypatch):
    "Killed between the line and its end: the end still says that there is none."
    vault.look(panel, why="first")
    path = log(vault)
    first = path.read_bytes()
    path.unlink()
    path.with_suffix(".end").unlink()
    (vault.settings.storage.keys_dir / "logs.json").unlink()
    append = signed_log._sign_end

    def killed(settings, path, end):
        if end["lines"]:
            raise KeyboardInterrupt
        append(settings, path, end)

    monkeypatch.setattr(signed_log, "_sign_end", killed)
    with pytest.raises(KeyboardInterrupt):
        vault.look(panel, why="first")
    assert len(path.read_bytes().splitlines()) == len(first.splitlines()) == 1
    monkeypatch.undo()
    assert len(read_looks(vault.settings)) == 1


def test_a_crash_after_the_line_leaves_a_log_that_counts_it(vault, panel):
    vault.look(panel, why="first")
    end = log(vault).with_suffix(".end").read_bytes()
    vault.look(panel, why="second")
    log(vault).with_suffix(".end").write_bytes(end)
    assert len(read_looks(vault.settings)) == 2
    vault.look(panel, why="third")
    assert len(read_looks(vault.settings)) == 3


def test_a_look_that_cannot_be_written_gives_nothing(vault, panel, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stockpredict.train.holdout.append_look", full)
    with pytest.raises(OSError):
        vault.look(panel, why="no room")


def test_nonsense_is_refused(vault, panel):
    with pytest.raises(EvaluateError, match="none was given"):
        vault.look(panel, why="")
    with pytest.raises(EvaluateError, match="no date"):
        HoldoutVault(vault.settings, "soon")
    with pytest.raises(NotEnoughSessions):
        HoldoutVault(vault.settings, "2099-01-01").research(panel)


def pointer(version):
    return dict(version=version, artifact="5d0c3a1b77aa", model="mean", skill="none", decision="hold") | dict(
        promoted_at="2024-03-01T06:00:00+00:00"
    )


@pytest.mark.parametrize("anchor_too", [False, True])
@pytest.mark.parametrize("name", ["holdout", "history"])
def test_a_log_that_was_deleted_as_a_whole_is_noticed(vault, panel, name, anchor_too):
    settings = vault.settings
    folder = settings.storage.registry_dir
    for k in range(2):
        vault.look(panel, why=f"look {k}")
        append_event(settings, {"event": "hold", "version": k})
    write_champion(settings, pointer(1))
    assert history_problems(settings) == [] and len(read_looks(settings)) == 2
    for suffix in ("jsonl", "end"):
        (folder / f"{name}.{suffix}").unlink()
    if anchor_too:  # the signed pointer still knows
        (settings.storage.keys_dir / "logs.json").unlink()
    if name == "history":
        assert history_problems(settings) == ["The file history.jsonl with 2 lines is missing."]
        return
    with pytest.raises(EvaluateError, match="with 2 lines is missing"):
        read_looks(settings)
    assert "counts as used" in holdout_sentence(settings)
    with pytest.raises(EvaluateError, match="was changed"):
        vault.look(panel, why="as if it were the first")


def test_older_files_put_back_are_noticed(vault, panel):
    vault.look(panel, why="first")
    files = [log(vault), log(vault).with_suffix(".end")]
    older = [f.read_bytes() for f in files]
    vault.look(panel, why="second")
    for f, content in zip(files, older, strict=True):
        f.write_bytes(content)
    with pytest.raises(EvaluateError, match="has 1 of 2 lines"):
        read_looks(vault.settings)


@pytest.mark.parametrize("holdout, kept", [(0, 120), (20, 100), (0.25, 90)])
def test_the_setting_holds_sessions_out_and_they_stay_out(vault, panel, holdout, kept):
    settings = vault.settings.with_(**{"validation.holdout": holdout})
    assert len(research_panel(settings, panel.first(120))) == kept
    if holdout:
        assert open_vault(settings, panel).first == f"{panel.sessions[kept]:%Y-%m-%d}"
        assert len(research_panel(settings, panel.first(kept + 5))) == kept, "the first session stays"
        assert len(research_panel(settings, panel.first(kept - 5))) == kept - 5, "a study of the past"
        assert "are held out" in holdout_sentence(settings) and read_looks(settings) == []


def test_a_look_at_the_holdout_of_the_settings_is_counted(vault, panel):
    settings = vault.settings.with_(**{"validation.holdout": 20})
    _, held_out = open_vault(settings, panel).look(panel, why="final test")
    assert held_out == slice(100, 120) and [look["why"] for look in read_looks(settings)] == ["final test"]


@pytest.mark.parametrize("value", ["-1", "1.5", "soon"])
def test_a_holdout_that_is_no_length_is_refused(value):
    with pytest.raises(SettingsError, match="holdout"):
        load_settings(overrides={"validation.holdout": value}, environ={})

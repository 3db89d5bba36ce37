"""Evidence cannot be edited: pointer and history are signed; a lost key is named with advice that helps."""

import json
import os
import resource
import shutil
from contextlib import contextmanager

import pytest
import small_study
from stockpredict.core.errors import ArtifactRejected, FolderUnavailable
from stockpredict.models.artifact import ensure_keys
from stockpredict.predict.engine import champion_pointer
from stockpredict.serve.service import promotion_history
from stockpredict.train.champion import current_champion, read_events
from stockpredict.train.experiment import run_experiment
from stockpredict.train.gate import decide
from stockpredict.train.registry import publish_model, registry_history, rollback


@pytest.fixture
def published(trained, tmp_path, monkeypatch):
    "A registry that serves the historical mean, without evidence."
    small_study.without_mlflow(monkeypatch)
    settings, study = small_study.copy_of(trained, tmp_path / "home")
    publish_model(settings, study, decide(study))
    return settings, study


def edit(settings, name, **changes):
    "Change fields in a file of the registry as a text editor does."
    path = settings.storage.registry_dir / name
    lines = [json.loads(path.read_text())] if name.endswith("json") else None
    if lines is None:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1] |= changes
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")


@pytest.mark.parametrize("change", [{"skill": "strong"}, {"wording": "sure"}, {"reasons": ["p = 1e-9"]}])
def test_an_edited_pointer_is_refused_by_every_reader(published, change):
    settings, _ = published
    edit(settings, "champion.json", **change)
    for read in (current_champion, champion_pointer):
        with pytest.raises(ArtifactRejected, match="changed after it was signed"):
            read(settings)
    assert promotion_history(settings)["champion"] is None
    assert rollback(settings).skill == "none" and champion_pointer(settings).skill == "none"


def test_a_claim_without_a_signature_counts_as_none(published):
    settings, _ = published
    path = settings.storage.registry_dir / "champion.json"
    entry = json.loads(path.read_text()) | dict(skill="strong", wording="sure")
    path.write_text(json.dumps({k: v for k, v in entry.items() if k not in ("key", "signature")}))
    champion = current_champion(settings)
    assert champion.skill == "none" and champion.wording == "no signed evidence of skill"
    assert champion_pointer(settings).skill == "none"


def test_an_edited_or_added_line_of_the_history_is_not_believed(published):
    settings, _ = published
    before = registry_history(settings)
    path = settings.storage.registry_dir / "history.jsonl"
    genuine = path.read_text()
    forged = json.loads(genuine.splitlines()[0]) | dict(event="promote", skill="strong")
    forged["entry"]["skill"] = "strong"
    for line in (forged, {k: v for k, v in forged.items() if k != "signature"}):
        path.write_text(genuine + json.dumps(line) + "\n")
        assert registry_history(settings).equals(before) and len(promotion_history(settings)["history"]) == 1
    edit(settings, "history.jsonl", why="because")
    assert read_events(settings)[:1] != [] and all(e["why"] != "because" for e in read_events(settings))


def test_a_history_of_an_earlier_version_can_still_be_rolled_back_to(published):
    settings, _ = published
    path = settings.storage.registry_dir / "history.jsonl"
    event = json.loads(path.read_text())
    event["entry"]["skill"] = event["skill"] = "strong"
    path.write_text(json.dumps({k: v for k, v in event.items() if k not in ("key", "signature")}) + "\n")
    (settings.storage.registry_dir / "champion.json").write_text("{")
    assert rollback(settings).skill == "none"


def test_a_lost_key_is_named_and_the_advice_helps(published):
    settings, study = published
    keys = settings.storage.keys_dir
    (keys / "signing.key").unlink()
    with pytest.raises(ArtifactRejected, match=r"signing\.key is lost") as caught:
        ensure_keys(keys)
    assert not (keys / "signing.key").exists() and "remove signing.pub" in caught.value.fix
    (keys / "signing.pub").unlink()
    study = run_experiment(settings, study.workdir)
    with pytest.raises(ArtifactRejected, match=r"signed by the key .* does not trust"):
        current_champion(settings)
    champion = publish_model(settings, study, decide(study))
    assert champion == current_champion(settings) and champion.model == "mean"


def test_keys_that_do_not_belong_together_are_named(tmp_path):
    ensure_keys(tmp_path / "a")
    ensure_keys(tmp_path / "b")
    (tmp_path / "a" / "signing.pub").write_bytes((tmp_path / "b" / "signing.pub").read_bytes())
    with pytest.raises(ArtifactRejected, match="do not belong together"):
        ensure_keys(tmp_path / "a")


def everything_refuses(settings, study, error, match):
    "Reading, publishing and the history end in one named error with a next step."
    for act in (
        lambda: current_champion(settings),
        lambda: champion_pointer(settings),
        lambda: publish_model(settings, study, decide(study)),
    ):
        with pytest.raises(error, match=match) as caught:
            act()
        assert caught.value.fix


def test_a_registry_that_is_gone_is_not_taken_for_a_new_one(published):
    settings, study = published
    before, registry = current_champion(settings), settings.storage.registry_dir
    registry.rename(registry.with_name("elsewhere"))
    everything_refuses(settings, study, FolderUnavailable, "The registry is gone")
    assert not list(registry.rglob("*.json")), "no baseline takes the place of the champion"
    shutil.rmtree(registry)
    registry.with_name("elsewhere").rename(registry)
    assert current_champion(settings) == before == publish_model(settings, study, decide(study))


def test_a_removed_pointer_is_not_taken_for_a_new_registry(published):
    settings, study = published
    before = current_champion(settings)
    (settings.storage.registry_dir / "champion.json").unlink()
    everything_refuses(settings, study, ArtifactRejected, "champion.json is missing, although models")
    assert rollback(settings).artifact == before.artifact == current_champion(settings).artifact


def test_a_file_in_place_of_the_registry_is_named(published):
    settings, study = published
    registry = settings.storage.registry_dir
    registry.rename(registry.with_name("elsewhere"))
    registry.write_text("")
    everything_refuses(settings, study, FolderUnavailable, "The registry cannot be read|file is in the place")
    with pytest.raises(FolderUnavailable):
        rollback(settings)


@contextmanager
def without_rights(folder):
    "A block in which this process may not read the folder, not even as root."
    mode, root = folder.stat().st_mode, os.geteuid() == 0
    folder.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(mode)


def test_a_registry_without_the_right_to_read_it_is_named(published):
    settings, study = published
    before, verdict = current_champion(settings), decide(study)
    with without_rights(settings.storage.registry_dir):
        for act in (current_champion, champion_pointer, registry_history, rollback, promotion_history):
            with pytest.raises(FolderUnavailable, match=r"Permission denied|no right") as caught:
                act(settings)
            assert caught.value.fix
        with pytest.raises(FolderUnavailable, match="no right"):
            publish_model(settings, study, verdict)
    assert current_champion(settings) == before and len(registry_history(settings)) == 1


def test_a_copy_that_does_not_fit_keeps_the_champion(published):
    settings, study = published
    before, verdict = current_champion(settings), decide(study)
    registry, limits = settings.storage.registry_dir, resource.getrlimit(resource.RLIMIT_FSIZE)
    shutil.rmtree(registry / "versions")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(FolderUnavailable, match=r"cannot be copied .*File too large") as caught:
            publish_model(settings, study, verdict)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "space" in caught.value.fix and not list((registry / "versions").glob("*"))
    assert current_champion(settings) == before == publish_model(settings, study, verdict)


def test_an_mlflow_that_refuses_is_pending(trained, tmp_path, caplog):
    settings, study = small_study.copy_of(trained, tmp_path / "home")
    settings = settings.with_(**{"storage.mlflow_uri": "http://127.0.0.1:9"})  # no server listens there
    champion = publish_model(settings, study, decide(study))
    assert champion.mlflow == "pending" and current_champion(settings) == champion
    assert "1 publication waits in the outbox" in caplog.text

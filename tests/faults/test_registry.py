"""Publishing under attack: kills, tampering, a dead MLflow, and the way back."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import warm
import pytest
from stockpredict.core.errors import ArtifactRejected, FlowLocked, NoChampion
from stockpredict.core.settings import load_settings
from stockpredict.ingest.ingest import ingest
from stockpredict.models.artifact import load_artifact, public_key
from stockpredict.train import mlflow_mirror
from stockpredict.train.gate import decide
from stockpredict.train.champion import current_champion, champion_or_none
from stockpredict.train.signed_log import registry_lock
from stockpredict.train.registry import registry_history, publish_model, sync_mlflow
from stockpredict.train.registry import rollback
from stockpredict.train.experiment import Experiment, run_experiment

SMALL = {
    "data.source": "simulated",
    "simulated.kind": "planted",
    "simulated.tickers": 20,
    "simulated.sessions": 520,
    "models.trials": 0,
    "models.candidates": "reversal ridge",
    "features.names": "ret_1 mom_5 vol_20",
    "validation.first_train": 200,
    "validation.folds": 2,
    "storage.mlflow_uri": "http://127.0.0.1:9",
}  # no server listens there


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A home with keys and data, and two experiments, the second on newer data."
    place = tmp_path_factory.mktemp("base")
    settings = load_settings(overrides={**SMALL, "storage.home": str(place / "home")}, environ={})
    ingest(settings)
    for name, as_of in (("old", "2016-10-31"), ("new", None)):
        run_experiment(settings, place / name, as_of)
    return place


@pytest.fixture
def settings(base, tmp_path):
    "An empty registry with the keys that signed the experiments."
    fresh = load_settings(overrides={**SMALL, "storage.home": str(tmp_path)}, environ={})
    subprocess.run(["cp", "-r", base / "home" / "keys", tmp_path / "keys"], check=True)
    return fresh


@pytest.fixture(autouse=True)
def mlflow_unreachable(monkeypatch):
    "MLflow is out of reach at once, unless a test wants it."

    def client(settings):
        raise ConnectionError("MLflow is not there")

    monkeypatch.setattr(mlflow_mirror, "mlflow_client", client)


@pytest.fixture(scope="module")
def old(base):
    return Experiment.load(base / "old")


@pytest.fixture(scope="module")
def new(base):
    return Experiment.load(base / "new")


@pytest.fixture(scope="module")
def verdicts(old, new):
    "Verdicts that promote, whatever the small sample says."
    return {id(s): replace(decide(s), decision="promote", skill="strong", model="ridge") for s in (old, new)}


def events(settings):
    return list(registry_history(settings).event)


def verified_champion(settings):
    "The champion, loaded with signature and hashes checked."
    now = current_champion(settings)
    loaded = load_artifact(
        settings.storage.registry_dir / "versions" / now.artifact, public_key(settings.storage.keys_dir)
    )
    assert loaded.hash == now.artifact and loaded.model.name == now.model
    return now


CHILD = """
import json, os, signal, sys
from stockpredict.core.settings import load_settings
from stockpredict.train.gate import Verdict
from stockpredict.train.registry import publish_model
from stockpredict.train.experiment import Experiment
overrides, work, verdict, at = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
publish_model(load_settings(overrides=overrides, environ={}), Experiment.load(work),
        Verdict.from_json(open(verdict).read()),
        on_step=lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == at else None)
"""


@pytest.mark.parametrize("at", ["stored", "outbox", "pointed", "remembered"])
def test_a_kill_leaves_the_old_champion_or_the_new_one(settings, base, old, new, verdicts, tmp_path, at):
    first = publish_model(settings, old, verdicts[id(old)])
    (tmp_path / "verdict.json").write_text(verdicts[id(new)].to_json())
    how = [
        json.dumps({**SMALL, "storage.home": str(tmp_path)}),
        str(base / "new"),
        str(tmp_path / "verdict.json"),
        at,
    ]
    done = warm.python(CHILD, *how)
    assert done.returncode == -signal.SIGKILL, done.stderr
    between = verified_champion(settings)
    swapped = at in ("pointed", "remembered")
    assert (between.artifact == first.artifact) != swapped and between.version == 1 + swapped
    second = publish_model(settings, new, verdicts[id(new)])
    assert verified_champion(settings) == second and (second.version, second.previous, second.model) == (
        2,
        first.artifact,
        "ridge",
    )
    assert events(settings) == ["promote", "promote"] and list(registry_history(settings).version) == [1, 2]
    assert {p.name for p in (settings.storage.registry_dir / "versions").iterdir()} == {
        first.artifact,
        second.artifact,
    }
    assert len(list((settings.storage.registry_dir / "outbox").glob("*.json"))) == 2, (
        "MLflow will record both, once"
    )


def test_an_incomplete_copy_is_removed(settings, old, verdicts):
    part = settings.storage.registry_dir / "versions" / ".abc.1234"
    part.mkdir(parents=True)
    (part / "weights.safetensors").write_bytes(b"half")
    publish_model(settings, old, verdicts[id(old)])
    assert not part.exists() and verified_champion(settings)


def test_publishing_again_is_one_version(settings, old, verdicts):
    first = publish_model(settings, old, verdicts[id(old)])
    before = {
        p: p.read_bytes()
        for p in settings.storage.registry_dir.rglob("*")
        if p.is_file() and p.name != ".lock"
    }
    assert publish_model(settings, old, verdicts[id(old)]) == first == current_champion(settings)
    assert before == {
        p: p.read_bytes()
        for p in settings.storage.registry_dir.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def copy_of(study, tmp_path):
    subprocess.run(["cp", "-r", study.workdir, tmp_path / "copy"], check=True)
    return Experiment.load(tmp_path / "copy")


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "add", "manifest", "swap"])
def test_a_tampered_artifact_is_not_published(settings, old, new, verdicts, tmp_path, harm):
    first = publish_model(settings, old, verdicts[id(old)])
    theirs = copy_of(new, tmp_path)
    folder = theirs.candidates["ridge"].folder / "artifact"
    weights = folder / "weights.safetensors"
    if harm == "flip":
        weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    if harm == "truncate":
        weights.write_bytes(weights.read_bytes()[:-8])
    if harm == "remove":
        weights.unlink()
    if harm == "add":
        (folder / "model.pkl").write_bytes(b"\x80\x04.")
    if harm == "manifest":
        (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace('"ridge"', '"zero"')
        )
    if harm == "swap":  # a signed artifact, but not the one that was judged
        subprocess.run(["rm", "-r", folder], check=True)
        subprocess.run(["cp", "-r", theirs.candidates["reversal"].folder / "artifact", folder], check=True)
    with pytest.raises(ArtifactRejected):
        publish_model(settings, theirs, verdicts[id(new)])
    assert verified_champion(settings) == first and events(settings) == ["promote"]
    assert {p.name for p in (settings.storage.registry_dir / "versions").iterdir()} == {first.artifact}


def test_an_artifact_of_another_installation_is_refused(settings, old, verdicts):
    from stockpredict.models.artifact import ensure_keys

    subprocess.run(["rm", "-r", settings.storage.keys_dir], check=True)
    ensure_keys(settings.storage.keys_dir)
    with pytest.raises(ArtifactRejected):
        publish_model(settings, old, verdicts[id(old)])
    assert champion_or_none(settings) is None


@pytest.mark.parametrize(
    "pointer",
    [
        "",
        "{",
        "[]",
        '{"version": 1}',
        '"x"',
        *(
            json.dumps(
                dict(version=1, artifact=a, model="ridge", skill="strong", decision="promote", promoted_at="")
            )
            for a in ("../../../etc", "/etc/passwd", "ABC", "a" * 65, "a/b", "")
        ),
    ],
)
def test_an_invalid_pointer_is_refused_and_repaired_by_a_rollback(settings, old, verdicts, pointer):
    first = publish_model(settings, old, verdicts[id(old)])
    (settings.storage.registry_dir / "champion.json").write_text(pointer)
    with pytest.raises(ArtifactRejected, match="rollback"):
        current_champion(settings)
    with pytest.raises(ArtifactRejected):
        publish_model(settings, old, verdicts[id(old)])
    back = rollback(settings)
    assert back.artifact == first.artifact and verified_champion(settings) == back


def test_an_unknown_artifact_is_not_served_by_a_rollback(settings, old, new, verdicts):
    first, second = (
        publish_model(settings, old, verdicts[id(old)]),
        publish_model(settings, new, verdicts[id(new)]),
    )
    for f in (settings.storage.registry_dir / "versions" / first.artifact).iterdir():
        f.unlink()
    with pytest.raises(ArtifactRejected):
        rollback(settings)
    assert verified_champion(settings) == second and events(settings) == ["promote", "promote"]


def test_rollback_is_verified_and_recorded(settings, old, new, verdicts):
    first, second = (
        publish_model(settings, old, verdicts[id(old)]),
        publish_model(settings, new, verdicts[id(new)]),
    )
    back = rollback(settings, why="odd on Mondays")
    assert (back.artifact, back.version, back.decision, back.model) == (
        first.artifact,
        1,
        "rollback",
        first.model,
    ) and verified_champion(settings) == back
    assert publish_model(settings, new, verdicts[id(new)]).artifact == first.artifact, (
        "a machine does not overrule the person who rolled back"
    )
    assert (
        events(settings) == ["promote", "promote", "rollback", "hold"]
        and registry_history(settings).why[2] == "odd on Mondays"
    )
    with pytest.raises(NoChampion):
        rollback(settings)
    assert rollback(settings, version=2).artifact == second.artifact
    with pytest.raises(NoChampion, match="no version 7"):
        rollback(settings, version=7)


def test_an_empty_registry_is_explained(settings):
    with pytest.raises(NoChampion):
        current_champion(settings)
    with pytest.raises(NoChampion):
        rollback(settings)
    assert len(registry_history(settings)) == 0 and champion_or_none(settings) is None


def test_an_incomplete_line_of_the_history_is_skipped(settings, old, new, verdicts):
    publish_model(settings, old, verdicts[id(old)])
    with open(settings.storage.registry_dir / "history.jsonl", "a") as f:
        f.write('{"event": "pro')
    assert events(settings) == ["promote"]
    assert publish_model(settings, new, verdicts[id(new)]).version == 2 and events(settings) == [
        "promote",
        "promote",
    ]


def test_hold_without_a_champion_serves_the_mean_without_evidence(settings, old, new):
    verdict = replace(decide(old), decision="hold", skill="none", model="mean")
    now = publish_model(settings, old, verdict)
    assert (
        (now.model, now.skill, now.decision) == ("mean", "none", "hold")
        and "no evidence of skill" in now.wording
        and verified_champion(settings) == now
    )
    assert events(settings) == ["baseline"]
    later = publish_model(settings, new, replace(decide(new), decision="hold", skill="weak", model="mean"))
    assert later.version == 2 and later.skill == "none", (
        "a baseline is renewed with newer data, and claims no more than before"
    )


@pytest.mark.parametrize("decision", ["hold", "suspected-leak"])
def test_a_verdict_other_than_promote_keeps_the_champion(settings, old, new, verdicts, decision):
    first = publish_model(settings, old, verdicts[id(old)])
    verdict = replace(decide(new), decision=decision, model="ridge")
    assert publish_model(settings, new, verdict) == first and publish_model(settings, new, verdict) == first
    assert events(settings) == ["promote", "hold"], "recorded once"


def test_a_suspected_leak_does_not_renew_a_baseline(settings, old, new):
    now = publish_model(settings, old, replace(decide(old), decision="hold", skill="none", model="mean"))
    assert publish_model(settings, new, replace(decide(new), decision="suspected-leak")) == now


def test_a_promoted_model_replaces_the_baseline(settings, old, new, verdicts):
    publish_model(settings, old, replace(decide(old), decision="hold", skill="none", model="mean"))
    now = publish_model(settings, new, verdicts[id(new)])
    assert (now.model, now.skill, now.version) == ("ridge", "strong", 2)


def test_one_publisher_at_a_time(settings):
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with registry_lock(settings):
            inside.set()
            leave.wait()

    other = threading.Thread(target=hold)
    other.start()
    inside.wait()
    try:
        with pytest.raises(FlowLocked, match="publishing"), registry_lock(settings, wait=0.1):
            pass
    finally:
        leave.set()
        other.join()
    with registry_lock(settings, wait=0.1):
        pass


def test_without_mlflow_a_publication_is_pending_and_recorded_later(
    settings, old, new, verdicts, tmp_path, monkeypatch
):
    first, second = (
        publish_model(settings, old, verdicts[id(old)]),
        publish_model(settings, new, verdicts[id(new)]),
    )
    assert (
        first.mlflow == second.mlflow == "pending"
        and not sync_mlflow(settings)
        and verified_champion(settings) == second
    )
    monkeypatch.undo()
    mine = settings.with_(**{"storage.mlflow_uri": f"sqlite:///{tmp_path / 'mlflow.db'}"})

    calls = []

    def dies(settings, client, experiment_id, card):
        if calls:
            raise ConnectionError("the server went away")
        calls.append(record(settings, client, experiment_id, card))
        return calls[-1]

    record = mlflow_mirror.record_publication
    monkeypatch.setattr(mlflow_mirror, "record_publication", dies)
    assert not sync_mlflow(mine), "half of it is not all of it"
    monkeypatch.setattr(mlflow_mirror, "record_publication", record)
    assert sync_mlflow(mine) and sync_mlflow(mine)
    now = current_champion(mine)
    client, experiment_id = mlflow_mirror.mlflow_client(mine)
    runs = client.search_runs([experiment_id])
    assert (
        len(runs) == 2
        and now.mlflow in {r.info.run_id for r in runs}
        and {r.info.status for r in runs} == {"FINISHED"}
    )
    assert replace(now, mlflow="pending") == second
    served, other = (client.get_model_version_by_alias("stockpredict", a) for a in ("champion", "challenger"))
    assert served.tags["artifact"] == second.artifact and other.tags["artifact"] == first.artifact
    run = client.get_run(now.mlflow)
    row = next(r for r in verdicts[id(new)].numbers["table"] if r["model"] == "ridge" and r["horizon"] == 1)
    assert (
        run.data.metrics["ridge/ic_h1"] == row["ic"]
        and run.data.params["validation.folds"] == "2"
        and run.data.tags["bars"] == new.lineage["bars"]
    )
    copied = {f.path for f in client.list_artifacts(now.mlflow, "model")}
    assert copied == {
        f"model/{p.name}" for p in (mine.storage.registry_dir / "versions" / now.artifact).iterdir()
    }

    rollback(mine)
    assert sync_mlflow(mine)
    assert client.get_model_version_by_alias("stockpredict", "champion").tags["artifact"] == first.artifact
    assert client.get_model_version_by_alias("stockpredict", "challenger").tags["artifact"] == second.artifact
    assert len(client.search_runs([experiment_id])) == 2 and current_champion(mine).mlflow != "pending"


def test_reading_and_rolling_back_never_import_mlflow(settings, old, new, verdicts, tmp_path):
    publish_model(settings, old, verdicts[id(old)])
    publish_model(settings, new, verdicts[id(new)])
    code = (
        "import sys, json; from stockpredict.core.settings import load_settings; "
        "from stockpredict.train.champion import current_champion; "
        "from stockpredict.train.registry import registry_history, rollback; "
        "s = load_settings(overrides=json.loads(sys.argv[1]), environ={}); "
        "current_champion(s); registry_history(s); rollback(s); "
        "heavy = 'mlflow optuna lightning prefect great_expectations papermill'.split(); "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps({**SMALL, "storage.home": str(tmp_path)})],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]" and current_champion(settings).version == 1


def test_no_secret_and_no_path_reaches_mlflow(settings, old, verdicts):
    card = mlflow_mirror.publication_card(
        settings.with_(**{"serving.redis_url": "redis://:hunter2@host"}),
        old,
        verdicts[id(old)],
        old.candidates["ridge"],
    )
    text = json.dumps(card)
    assert (
        "hunter2" not in text
        and str(settings.storage.home_dir) not in text
        and not any(k.startswith(("storage", "serving")) for k in card["params"])
    )


def test_the_registry_is_written_for_its_owner_and_readers(settings, old, verdicts):
    publish_model(settings, old, verdicts[id(old)])
    path = Path(settings.storage.registry_dir) / "champion.json"
    assert (
        os.access(path, os.R_OK)
        and json.loads(path.read_text())["artifact"] == current_champion(settings).artifact
    )


def test_an_older_experiment_does_not_replace_a_newer_champion(settings, old, new, verdicts):
    newest = publish_model(settings, new, verdicts[id(new)])
    assert publish_model(settings, old, verdicts[id(old)]) == newest
    history = registry_history(settings)
    assert list(history.event) == ["promote", "hold"] and "older experiment" in history.why[1]


def test_there_is_no_version_zero(settings, old, verdicts):
    publish_model(settings, old, verdicts[id(old)])
    with pytest.raises(NoChampion, match="no version 0"):
        rollback(settings, version=0)

"""One champion for each head: composing, comparing, rolling back, and a history that cannot be thinned."""

import json
import time
from dataclasses import replace

import pytest
import small_study
import torch
from stockpredict.core.errors import ArtifactRejected
from stockpredict.models.artifact import load_artifact, public_key
from stockpredict.predict.engine import champion_pointer
from stockpredict.train import mlflow_mirror
from stockpredict.train.champion import current_champion, history_problems
from stockpredict.train.signed_log import sign_entry
from stockpredict.train.gate import Verdict, decide
from stockpredict.train.head_gates import head_verdict
from stockpredict.train.judge import SelfTest, compare_with_champion, judge_experiment
from stockpredict.train.registry import load_version, publish_model, registry_history, rollback, sync_mlflow
from stockpredict.train.serving_parts import CHAMPION, settle_heads

PASSED = SelfTest(True, [])


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    small_study.without_mlflow(monkeypatch)
    return small_study.copy_of(trained, tmp_path / "home")


def promoting(study, champion=None, **models):
    "The verdict on the study, with these heads promoted as if their evidence were strong."
    v = decide(study, champion=champion)
    for head, name in models.items():
        v.heads[head] = head_verdict("promote", name, "strong", f"{head} by {name}.", f"{head} by {name}")
    v.heads, v.numbers["parts"] = settle_heads(study, v.heads["direction"], v.heads["volatility"], champion)
    for head, name in models.items():  # the intervals of so few sessions may refuse it
        v.heads[head] = v.heads[head] | dict(decision="promote", model=name, evidence="strong")
        v.numbers["parts"][head] = name
    if "volatility" in models:
        v.numbers["parts"]["shape"] = models["volatility"]
    v.decision = v.heads["direction"]["decision"]
    v.model = models.get("direction", v.model)
    return v


def test_a_promoted_volatility_keeps_the_direction_that_reigns(place):
    settings, study = place
    publish_model(settings, study, decide(study))
    served = publish_model(settings, study, promoting(study, volatility="ridge"))
    assert (served.model, served.version, served.decision, served.skill) == ("composed", 2, "promote", "none")
    heads = {h: (v["model"], v["evidence"], v["since"]) for h, v in served.heads.items()}
    assert heads["direction"] == ("mean", "none", 1) and heads["volatility"] == ("ridge", "strong", 2)
    parts = load_version(settings, served.artifact).model.parts
    assert [parts[p].name for p in ("direction", "volatility")] == ["mean", "ridge"]
    assert champion_pointer(settings).artifact == served.artifact
    assert registry_history(settings).event.tolist() == ["baseline", "promote"]


def test_a_promoted_direction_keeps_the_volatility_that_reigns_as_it_was_fitted(place):
    settings, study = place
    first = publish_model(settings, study, promoting(study, volatility="ridge"))
    study.rival = replace(study.candidates["ridge"], model="composed")
    v = promoting(study, first, direction="reversal")
    assert v.numbers["parts"] == dict(direction="reversal", volatility=CHAMPION, shape=CHAMPION)
    second = publish_model(settings, study, v)
    assert {h: v["model"] for h, v in second.heads.items()}["volatility"] == "ridge"
    assert [second.heads[h]["since"] for h in ("direction", "volatility")] == [2, 1]
    old, new = (load_version(settings, c.artifact).model.parts for c in (first, second))
    assert new["direction"].name == "reversal"
    for name, weights in old["volatility"].weights.items():
        assert torch.equal(weights, new["volatility"].weights[name])


def test_publishing_again_changes_nothing(place):
    settings, study = place
    v = promoting(study, volatility="ridge")
    first, again = (publish_model(settings, study, v) for _ in range(2))
    assert again == first and len(registry_history(settings)) == 1


def test_rollback_restores_every_head_in_less_than_five_seconds_of_cpu(place):
    settings, study = place
    first = publish_model(settings, study, promoting(study, volatility="ridge"))
    publish_model(settings, study, promoting(study, direction="reversal"))
    begun = time.process_time()
    back = rollback(settings)
    assert time.process_time() - begun < 5
    assert (back.artifact, back.heads, back.decision) == (first.artifact, first.heads, "rollback")
    assert history_problems(settings) == []


def test_mlflow_names_the_champion_of_each_head_and_follows_a_rollback(trained, tmp_path):
    "With a real SQLite store: a volatility is promoted, then a direction, then the direction is taken back."
    settings, study = small_study.copy_of(trained, tmp_path / "home")
    settings = settings.with_(**{"storage.mlflow_uri": f"sqlite:///{tmp_path / 'mlflow.db'}"})
    first = publish_model(settings, study, promoting(study, volatility="ridge"))
    study.rival = replace(study.candidates["ridge"], model="composed")
    second = publish_model(settings, study, promoting(study, first, direction="reversal"))
    client, _ = mlflow_mirror.mlflow_client(settings)

    def named():
        heads = ("champion", "champion-direction", "champion-volatility")
        return [client.get_model_version_by_alias("stockpredict", a).tags["artifact"] for a in heads]

    assert named() == [second.artifact, second.artifact, first.artifact]
    page = tmp_path / "page.html"
    page.write_text("<p>Promote.</p>")
    mlflow_mirror.queue_report(settings, study.lineage, page)
    rollback(settings)
    assert sync_mlflow(settings) and not mlflow_mirror.waiting_cards(settings)
    assert named() == [first.artifact] * 3
    run = client.get_model_version_by_alias("stockpredict", "challenger").run_id
    assert [f.path for f in client.list_artifacts(run, "report")] == ["report/page.html"]
    assert client.get_run(run).data.params["validation.folds"] == "2"


def test_a_part_of_other_features_is_not_composed_and_the_history_says_why(place):
    settings, study = place
    first = publish_model(settings, study, promoting(study, volatility="ridge"))
    study.rival = replace(study.candidates["ridge"], model="composed")
    v = promoting(study, first, direction="reversal")
    study.features = [*study.features, "rsi_14"]
    del study.candidates["ridge"]
    assert publish_model(settings, study, v) == first
    assert "reads other features" in registry_history(settings).why.iloc[-1]


def test_an_entry_of_an_earlier_version_stays_valid(place):
    settings, study = place
    publish_model(settings, study, decide(study))
    path = settings.storage.registry_dir / "champion.json"
    entry = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("heads", "key", "signature")}
    path.write_text(json.dumps(sign_entry(settings, entry)))
    assert current_champion(settings).heads == {} and current_champion(settings).model == "mean"
    served = publish_model(settings, study, promoting(study, current_champion(settings), volatility="ridge"))
    assert served.heads["direction"]["model"] == "mean"


def test_a_verdict_of_an_earlier_version_stays_readable(place):
    settings, study = place
    old = json.loads(decide(study).to_json())
    del old["heads"], old["numbers"]["parts"]
    verdict = Verdict.from_json(json.dumps(old))
    assert verdict.heads == {} and "Hold" in repr(verdict)
    assert publish_model(settings, study, verdict).heads == {}


@pytest.mark.parametrize("word", ["evidence", "wording"])
def test_an_edited_head_is_refused(place, word):
    settings, study = place
    publish_model(settings, study, promoting(study, volatility="ridge"))
    path = settings.storage.registry_dir / "champion.json"
    entry = json.loads(path.read_text())
    entry["heads"]["direction"][word] = "strong"
    path.write_text(json.dumps(entry))
    with pytest.raises(ArtifactRejected, match="changed after it was signed"):
        current_champion(settings)


def test_an_unsigned_claim_about_a_head_counts_as_none(place):
    settings, study = place
    publish_model(settings, study, promoting(study, volatility="ridge"))
    path = settings.storage.registry_dir / "champion.json"
    entry = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("key", "signature")}
    path.write_text(json.dumps(entry))
    assert current_champion(settings).heads == {}


def test_a_leak_or_a_failed_self_test_holds_all_heads(place):
    _, study = place
    v = judge_experiment(study, SelfTest(False, []))
    assert {h["decision"] for k, h in v.heads.items() if k != "intervals"} == {"hold"}
    leaking = decide(study)
    assert set(leaking.heads) == {"direction", "volatility", "intervals"}


@pytest.mark.parametrize("head", ["direction", "volatility", "intervals"])
def test_the_comparison_with_the_champion_shows_both_tests(place, head):
    _, study = place
    study.rival = study.candidates["mean"]
    parts = dict.fromkeys(("direction", "volatility", "shape"), "ridge")
    worse, sentence, numbers = compare_with_champion(study, "ridge", study.rival, head, parts)
    assert "read every day" in sentence and numbers["anytime_low"] <= numbers["low"] + 1e-9
    assert 0 <= numbers["anytime_p_worse"] <= 1 and worse == (numbers["p_worse"] < 0.05)


def test_a_thinned_or_reordered_history_is_named(place):
    settings, study = place
    for models in (dict(volatility="ridge"), dict(direction="reversal"), dict(direction="ridge")):
        publish_model(settings, study, promoting(study, **models))
    path = settings.storage.registry_dir / "history.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert history_problems(settings) == [] and len(lines) == 3
    cases = {
        "Line 2 does not follow line 1": [lines[0], lines[2]],
        "Line 1 is not the first that was written": [lines[1], lines[0], lines[2]],
        "1 of 3 lines were removed at the end": lines[:2],
        "Line 2 was changed": [lines[0], lines[1].replace('"version": 2', '"version": 9'), lines[2]],
    }
    for problem, changed in cases.items():
        path.write_text("".join(changed))
        assert any(problem in line for line in history_problems(settings)), problem


def test_the_artifact_of_the_composition_is_signed_and_its_forecast_that_of_the_parts(place):
    settings, study = place
    served = publish_model(settings, study, promoting(study, volatility="ridge"))
    folder = settings.storage.registry_dir / "versions" / served.artifact
    loaded = load_artifact(folder, public_key(settings.storage.keys_dir))
    assert loaded.manifest["model"]["name"] == "composed" and loaded.hash == served.artifact
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactRejected):
        load_artifact(folder, public_key(settings.storage.keys_dir))

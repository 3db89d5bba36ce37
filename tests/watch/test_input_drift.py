"""Drift of the served model's inputs, from the lake to the retraining that answers it."""

import pytest

import small_study
from stockpredict.lake.lake import Lake
from stockpredict.ops import watch_day
from stockpredict.ops.training_day import plan_training
from stockpredict.sources.simulate import simulate
from stockpredict.sources.source import source_id
from stockpredict.train.experiment import run_experiment
from stockpredict.train.gate import decide
from stockpredict.train.registry import publish_model
from stockpredict.watch.input_drift import ask_for_training, champion_features, close_request, input_drift
from stockpredict.watch.input_drift import open_request

FEATURES = ("ret_1", "mom_5", "vol_20", "volume_change_10")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A model trained on 700 sessions; its settings, and the bars of the 100 sessions after them."
    bars = simulate(kind="null", tickers=12, sessions=800, seed=4).bars
    days = [f"{day:%Y-%m-%d}" for day in sorted(bars.event_time.unique())]
    settings = small_study.settings_at(
        tmp_path_factory.mktemp("drift") / "home",
        **{"features.names": " ".join(FEATURES), "models.candidates": "ridge", "validation.first_train": 400},
    )
    bars["source"] = source_id(settings)
    with pytest.MonkeyPatch.context() as patch:
        small_study.without_mlflow(patch)
        with Lake(settings.storage) as lake:
            lake.append(bars[bars.event_time.dt.strftime("%Y-%m-%d") <= days[699]])
        study = run_experiment(settings, settings.storage.home_dir / "work" / "one")
        publish_model(settings, study, decide(study))
    return settings, bars[bars.event_time.dt.strftime("%Y-%m-%d") > days[699]], days


def test_an_unchanged_market_asks_for_nothing_and_a_changed_unit_asks_once(served):
    settings, later, days = served
    assert input_drift(settings).sessions_since == 0
    with Lake(settings.storage) as lake:
        lake.append(later[later.event_time.dt.strftime("%Y-%m-%d") <= days[759]])
    calm = input_drift(settings)
    assert (calm.changed, calm.sessions_since) == (False, 60), calm.sentence
    assert watch_day.watch_drift(settings) == [] and open_request(settings) is None
    fault = later[later.event_time.dt.strftime("%Y-%m-%d") > days[759]].copy()
    fault["volume"] *= 100
    with Lake(settings.storage) as lake:
        lake.append(fault[fault.event_time.dt.strftime("%Y-%m-%d") <= days[765]])
    [sentence] = watch_day.watch_drift(settings)
    assert "volume_change_10" in sentence and sentence.endswith("A full retraining is asked for.")
    assert watch_day.watch_drift(settings)[0].endswith("was asked for already.")
    asked = open_request(settings)
    session = days[765]
    assert asked["session"] == session
    plan = plan_training(settings.with_(**{"schedule.retrain": "monthly"}), "by calendar", "2017-06-14")
    assert plan.mode == "full" and asked["reason"] in plan.reason
    assert plan_training(settings, "incremental", "2017-06-14").mode == "incremental", "asked by hand"
    study = input_drift(settings, days[680])
    assert not study.changed and study.session == days[680]
    close_request(settings, session)
    assert open_request(settings) is None and not ask_for_training(settings, session, "again")


def test_the_features_are_those_of_the_signed_manifest(served):
    from stockpredict.train.champion import current_champion

    settings = served[0]
    champion = current_champion(settings)
    assert set(champion_features(settings, champion)) <= set(FEATURES)
    manifest = settings.storage.registry_dir / "versions" / champion.artifact / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b"ret_1", b"ret_2"))
    try:
        drift = input_drift(settings)
    finally:
        manifest.write_bytes(content)
    assert not drift.changed and drift.sentence.startswith("Drift cannot be judged")

"""The incremental run continues what is served: in the test of the walk-forward and in the final fit."""

import copy
import shutil
from types import SimpleNamespace

import pytest
from small_study import settings_at
from stockpredict.ingest.ingest import ingest
from stockpredict.models.artifact import ensure_keys, load_artifact
from stockpredict.models.net_model import NetModel
from stockpredict.ops.training_day import training_settings
from stockpredict.train.engines import one_thread
from stockpredict.train.experiment import Experiment, run_experiment
from stockpredict.train.warm_start import served_bases

MORE = {
    "models.candidates": "mlp",
    "models.epochs": 1,
    "simulated.tickers": 8,
    "simulated.sessions": 360,
    "validation.horizons": "1",
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A full run on a small market, and its network in the registry as what is served."
    home = tmp_path_factory.mktemp("home")
    settings = settings_at(home, **MORE)
    ingest(settings)
    study = run_experiment(settings, home / "full", quiet=True)
    versions = settings.storage.registry_dir / "versions"
    versions.mkdir(parents=True)
    network = study.candidates["mlp"]
    shutil.copytree(network.folder / "artifact", versions / network.artifact)
    lineage = {"tried": {"models": study.trials + 20, "independent": 9}}
    champion = SimpleNamespace(
        model="mlp", params=network.params, artifact=network.artifact, heads={}, lineage=lineage
    )
    return SimpleNamespace(settings=settings, study=study, champion=champion, home=home)


def weights(settings, candidate):
    "The weights of a candidate's artifact."
    return load_artifact(candidate.folder / "artifact", ensure_keys(settings.storage.keys_dir).public).model


def test_the_daily_run_continues_the_network_that_is_served(served, monkeypatch):
    daily = training_settings(served.settings, "incremental", served.champion)
    fits, updates, data = [], [], []
    fit, update = NetModel.fit, NetModel.update
    monkeypatch.setattr(NetModel, "fit", lambda s, d, *a, **k: fits.append(d.stop) or fit(s, d, *a, **k))

    def noted(self, window, *a, **k):
        updates.append(window.stop)
        data.append(window)
        return update(self, window, *a, **k)

    monkeypatch.setattr(NetModel, "update", noted)
    study = run_experiment(daily, served.home / "daily", champion=served.champion, quiet=True)
    folds = study.folds
    assert fits == [folds[0].train_stop + folds[0].reach], "the first window is fitted"
    assert updates == [folds[1].train_stop + folds[1].reach, len(study.sessions)], "the rest goes on"
    assert study.lineage["continued"] == {"mlp": served.champion.artifact}
    assert study.trials == served.champion.lineage["tried"]["models"], "what the search tried still counts"
    assert study.trials > len(study.candidates)
    new, old = study.candidates["mlp"], served.study.candidates["mlp"]
    assert new.params == old.params and not len(new.ledger) and new.artifact != old.artifact
    base = weights(served.settings, old)
    monkeypatch.undo()
    with one_thread():  # as the run does: with several, sums are in another order
        again = copy.deepcopy(base).update(data[-1])
    after = weights(served.settings, new)
    assert all(again.weights[k].equal(after.weights[k]) for k in after.weights)
    assert any(not base.weights[k].equal(after.weights[k]) for k in base.weights)
    read = Experiment.load(served.home / "daily")
    assert read.lineage["continued"] == study.lineage["continued"]


def test_what_cannot_go_on_is_fitted_anew(served):
    warm = served.settings.with_(**{"models.warm_start": True})
    names, horizons = served.study.features, served.study.horizons
    assert set(served_bases(warm, served.champion, names, horizons)) == {"mlp"}
    assert served_bases(served.settings, served.champion, names, horizons) == {}, "a full run is full"
    assert served_bases(warm, served.champion, names[1:], horizons) == {}, "other features"
    assert served_bases(warm, served.champion, names, (1, 5)) == {}, "other horizons"
    assert served_bases(warm, None, names, horizons) == {}

"""A small experiment that several files publish from: simulated bars, two candidates, two folds."""

import shutil
from pathlib import Path

from stockpredict.core.settings import Settings, load_settings
from stockpredict.ingest.ingest import ingest
from stockpredict.train import mlflow_mirror
from stockpredict.train.experiment import Experiment, run_experiment

SMALL = {
    "data.source": "simulated",
    "simulated.tickers": 12,
    "simulated.sessions": 420,
    "models.trials": 0,
    "models.candidates": "reversal ridge",
    "features.names": "ret_1 mom_5 vol_20",
    "validation.first_train": 200,
    "validation.folds": 2,
}
STUDY = Path("work") / "one"  # where the experiment lies below its home


def settings_at(home: Path, **more) -> Settings:
    "The settings of the small study with its home here."
    return load_settings(overrides={**SMALL, **more, "storage.home": str(home)}, environ={})


def train(home: Path):
    "Bars, keys and the experiment, below an empty home."
    settings = settings_at(home)
    ingest(settings)
    run_experiment(settings, home / STUDY)


def copy_of(home: Path, place: Path) -> tuple[Settings, Experiment]:
    "Settings and experiment of a copy, which a test may change."
    shutil.copytree(home, place)
    return settings_at(place), Experiment.load(place / STUDY)


def without_mlflow(monkeypatch):
    "No server answers where MLflow should be."

    def client(settings):
        raise ConnectionError("MLflow is not there")

    monkeypatch.setattr(mlflow_mirror, "mlflow_client", client)

"""Skill on names and in eras left out: a signal survives, a memory of names does not, and no label of
the left-out side reaches the training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stockpredict.core.settings import load_settings
from stockpredict.evaluate.index_splits import leave_era_out, leave_names_out
from stockpredict.models.contract import make_model
from stockpredict.models.dataset import sample_dataset
from stockpredict.train.universe_shift import fit_ranking, ranking, shift_sentences, training_part
from stockpredict.train.universe_shift import universe_shift

SETTINGS = load_settings(
    overrides={"validation.first_train": 260, "validation.folds": 2, "validation.horizons": "1 5"}, environ={}
)


@pytest.fixture(scope="module")
def data():
    return sample_dataset("planted", tickers=24, sessions=480, rank_ic=0.15, names=("ret_1", "mom_5"))


def test_no_label_of_the_left_out_side_can_be_trained_on(data):
    tickers = list(data.inputs.tickers)
    folds = leave_era_out(480, 5, eras=4) + leave_names_out(tickers, range(260), range(270, 480), 6)
    for fold in folds:
        part = training_part(data, fold)
        rows = part.y.isfinite().any(-1).numpy()
        assert rows.any() and not rows[np.setdiff1d(np.arange(len(rows)), fold.train)].any()
        scrambled = replace(data, y=data.y.clone())
        scrambled.y[fold.test] = 9.0
        if fold.test_names:
            scrambled.y[:, [tickers.index(n) for n in fold.test_names]] = 9.0
            assert not rows[:, [tickers.index(n) for n in fold.test_names]].any()
        again = training_part(scrambled, fold)
        assert torch.equal(again.y.nan_to_num(-1), part.y.nan_to_num(-1))


@pytest.mark.parametrize("name, params", [("mlp", {"epochs": 1}), ("zero", {})])
def test_scores_alone_are_those_of_the_whole_fit(data, name, params):
    "A network has no fit of its score alone, and a baseline changes its intervals afterwards."
    window = data.window(0, 300)
    whole = make_model(name, SETTINGS, **params).fit(window).predict(data.inputs, 300).score[..., 0]
    alone = ranking(fit_ranking(SETTINGS, window, name, params), data.inputs, 300, 480)
    assert np.isfinite(alone).any() and np.array_equal(alone, whole.numpy(), equal_nan=True)


def test_a_signal_survives_and_a_memory_of_names_does_not(data):
    table = universe_shift(SETTINGS, data, "ridge")
    assert len(table) == 8 and (table.value > 0).all() and len(shift_sentences(table)) == 2
    drift = torch.linspace(-0.004, 0.004, 24)
    steady = replace(data, y=data.y + drift[None, :, None])
    known = universe_shift(SETTINGS, steady, "mean", dict(prior=1.0)).set_index("left_out").value
    names = known.filter(like="group")
    assert known.filter(like="era").min() > 0.05 and (names.isna() | (names.abs() < 0.03)).all()

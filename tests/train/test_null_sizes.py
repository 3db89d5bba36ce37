"""Two hundred markets without anything to forecast: tests of forecast errors reject as often as stated."""

import numpy as np
import pandas as pd
import pytest
import torch
from stockpredict.core.settings import load_settings
from stockpredict.evaluate.splits import Fold
from stockpredict.models.forecast import LEVELS, Forecast
from stockpredict.train.experiment import Experiment
from stockpredict.train.skill_table import error_numbers, interval_numbers
from stockpredict.train.walk_forward import Candidate

MARKETS, TRAIN, TEST, NAMES = 200, 250, 250, 12
SETTINGS = load_settings(overrides={"validation.horizons": "1"}, environ={})
DAYS = pd.date_range("2020-01-01", periods=TRAIN + TEST, freq="B")
Z = torch.special.ndtri(torch.tensor(LEVELS, dtype=torch.float64))


def forecast(centre, width):
    "Normal distributions around a centre `[T, N]`."
    centre = torch.from_numpy(np.ascontiguousarray(centre))[..., None]
    sigma = torch.full_like(centre, width)
    q = centre[..., None] + sigma[..., None] * Z
    return Forecast(LEVELS, q, 0.5 + 0 * sigma, sigma, DAYS[TRAIN:], [*map(str, range(NAMES))], (1,))


def null_market(seed):
    "Returns with a common factor, fat tails and volatility clusters, and a regression on a useless feature."
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(TRAIN + TEST, NAMES))
    level = np.exp(0.3 * np.cumsum(rng.normal(size=(TRAIN + TEST, 1)), 0) / np.sqrt(20))
    level /= level.mean()
    shocks = rng.standard_t(6, (TRAIN + TEST, NAMES)) + rng.standard_t(6, (TRAIN + TEST, 1))
    y = 0.01 * level * shocks
    past = y[:TRAIN]
    slope = (x[:TRAIN] * (past - past.mean())).mean()
    width = float(past.std())
    candidates = {
        "mean": Candidate("mean", {}, forecast(np.broadcast_to(past.mean(0), (TEST, NAMES)), width)),
        "ridge": Candidate("ridge", {}, forecast(past.mean() + slope * x[TRAIN:], width)),
    }
    fold = [Fold(TRAIN - 2, TRAIN, TRAIN + TEST, 2)]
    reference = forecast(np.full((TEST, NAMES), past.mean()), width)
    names, close = [*map(str, range(NAMES))], np.cumprod(1 + y, 0)
    parts = (DAYS, names, ["x"], fold, y[..., None], close, pd.DataFrame(), candidates)
    return Experiment(SETTINGS, {}, *parts, reference=reference)


@pytest.fixture(scope="module")
def p_values():
    rows = []
    for seed in range(MARKETS):
        study = null_market(seed)
        rows.append(error_numbers(study, "ridge", 1) | interval_numbers(study, "ridge", 1))
    return pd.DataFrame(rows)


def test_clark_west_rejects_as_often_as_it_states(p_values):
    "Against the mean of each stock 35 to 40 % of these markets were rejected at 5 %."
    assert 0.03 <= (p_values.cw_p < 0.05).mean() <= 0.08


def test_diebold_mariano_does_not_reject_more_often_than_it_states(p_values):
    "A larger model is worse by the noise of its estimates, so this test is cautious."
    assert (p_values.dm_p < 0.05).mean() <= 0.08


def test_both_find_a_market_that_can_be_forecast():
    study = null_market(1)
    truth = study.benchmark.median[..., 0] + torch.from_numpy(0.3 * study.y[study.tested, :, 0])
    study.candidates["ridge"] = Candidate("ridge", {}, forecast(truth.numpy(), 0.02))
    assert error_numbers(study, "ridge", 1)["cw_p"] < 1e-6
    assert interval_numbers(study, "ridge", 1)["dm_p"] < 0.01


def test_the_mean_of_each_stock_makes_no_claim(p_values):
    numbers = error_numbers(null_market(3), "mean", 1) | interval_numbers(null_market(3), "mean", 1)
    assert numbers["cw_p"] == numbers["dm_p"] == 1 and numbers["r2_os"] < 0.005

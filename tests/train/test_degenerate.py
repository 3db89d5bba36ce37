"""Degenerate candidates, markets and numbers end in a verdict or in a sentence, never in a crash."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stockpredict.core.errors import EvaluateError, FeatureError, ModelOutputInvalid, NotEnoughHistory
from stockpredict.core.errors import NotEnoughSessions
from stockpredict.core.settings import load_settings
from stockpredict.evaluate import risk
from stockpredict.models.contract import make_model
from stockpredict.models.dataset import sample_dataset
from stockpredict.train.gate import decide
from stockpredict.train.judge import SelfTest, judge_experiment
from stockpredict.train.known_markets import add_canary, simulated_experiment

FEW = {
    "features.names": "ret_1 mom_5 vol_20",
    "models.trials": 0,
    "models.candidates": "reversal",
    "validation.first_train": 200,
    "validation.folds": 2,
    "validation.horizons": "1",
}


def study(tickers=12, alter=None, **more):
    settings = load_settings(overrides={**FEW, **more}, environ={})
    return simulated_experiment(settings, "null", 1, tickers, 420, alter=alter)


@pytest.mark.parametrize("candidates", ["zero", "zero reversal"])
def test_zero_is_a_candidate_like_any_other(candidates):
    verdict = decide(study(**{"models.candidates": candidates}))
    assert verdict.decision == "hold" and verdict.model == "mean"
    row = next(r for r in verdict.numbers["table"] if r["model"] == "zero")
    assert row["turnover"] == 0 and row["net_sharpe"] is None and row["skill"] == "none"
    assert 0.8 < row["cover90"] < 0.97
    assert "NaN" not in verdict.to_json()


@pytest.mark.parametrize("tickers", [1, 2])
def test_a_market_too_small_to_rank_is_held(tickers):
    verdict = decide(study(tickers))
    assert verdict.decision == "hold" and verdict.skill == "none" and verdict.model == "mean"


def test_one_ticker_with_too_few_outcomes_says_how_many():
    with pytest.raises(NotEnoughSessions, match=r"\d+ outcomes of 1 tickers in \d+ sessions"):
        study(1, **{"models.candidates": "ridge"})


@pytest.mark.parametrize("value, error", [(0.0, EvaluateError), (0.01, EvaluateError), (math.nan, None)])
def test_a_target_that_does_not_move_is_named(value, error):
    def alter(data):
        return replace(data, y=torch.where(data.y.isfinite(), value, data.y))

    with pytest.raises(error or NotEnoughHistory, match="nothing to forecast" if error else "no outcome"):
        study(alter=alter)


@pytest.mark.parametrize("name", ["reversal", "ridge", "lightgbm", "lstm"])
def test_a_feature_with_holes_is_named(name):
    data = sample_dataset(tickers=8, sessions=300)
    x = data.inputs.x.clone()
    x[50, 3, 1] = math.nan
    params = dict(epochs=1, sequence=5) if name == "lstm" else {}
    with pytest.raises(FeatureError, match="mom_5 is not finite"):
        make_model(name, **params).fit(replace(data, inputs=replace(data.inputs, x=x)))


def test_an_exploding_loss_is_named():
    data = sample_dataset(tickers=8, sessions=300)
    with pytest.raises(ModelOutputInvalid, match="loss was not finite"):
        make_model("lstm", epochs=1, sequence=5, rate=1e20).fit(data)


def test_counts_of_hits_are_defined_without_hits_and_with_holes():
    assert all(np.isnan(v) for k, v in risk.kupiec([], 0.05).items() if k != "n")
    hits = np.r_[np.arange(200) % 20 == 0].astype(float)
    holes = np.insert(hits, [0, 50, 120], math.nan)
    assert risk.kupiec(holes, 0.05) == risk.kupiec(hits, 0.05) and risk.kupiec(hits, 0.05)["n"] == 200
    assert np.isnan(risk.christoffersen([])["p"]) and np.isnan(risk.christoffersen([1, math.nan, 0])["p"])
    assert risk.christoffersen(np.r_[hits, math.nan]) == risk.christoffersen(hits)
    with pytest.raises(EvaluateError, match="can not be tested"):
        risk.kupiec(hits, 0.0)


def test_wealth_does_not_fall_below_zero():
    assert risk.drawdown([0.1, -1.5, 3.0]).tolist() == [0, 1, 1] and risk.max_drawdown([-2, 0.5]) == 1
    assert risk.max_drawdown([]) == 0


def test_an_override_in_the_settings_is_reachable_and_printed():
    def alter(data):
        return add_canary(data, 0.3)

    more = {"models.candidates": "ridge", "costs.bps": 0}
    passed = SelfTest(True, [])
    assert judge_experiment(study(alter=alter, **more), passed).decision == "suspected-leak"
    blank = judge_experiment(study(alter=alter, **more, **{"gate.override": "  "}), passed)
    assert blank.decision == "suspected-leak"
    verdict = judge_experiment(study(alter=alter, **more, **{"gate.override": "A drill, ticket 12."}), passed)
    assert verdict.decision == "promote" and verdict.numbers["alarms"]
    assert "Overridden with this reason: A drill, ticket 12." in repr(verdict)

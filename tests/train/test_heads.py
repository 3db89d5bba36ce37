"""Volatility and intervals are judged apart: known winners, a constant market, leaks, and old files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from stockpredict.core.settings import load_settings
from stockpredict.models.contract import models
from stockpredict.train.head_gates import judge_intervals, judge_volatility, volatility_evidence
from stockpredict.train.interval_skill import coverage_skill, interval_skill
from stockpredict.train.known_markets import simulated_experiment
from stockpredict.train.skill_table import one_day_returns
from stockpredict.train.volatility_skill import CONSTANT, EWMA, loss_gap, volatility_losses, volatility_skill
from stockpredict.train.walk_forward import Candidate

SMALL = {
    "features.names": "ret_1 mom_5 vol_20",
    "models.trials": 0,
    "models.candidates": "reversal",
    "validation.first_train": 400,
    "validation.folds": 2,
    "validation.horizons": "1 5",
}


def market(kind="null", seed=4):
    settings = load_settings(overrides=SMALL, environ={})
    return simulated_experiment(settings, kind, tickers=30, seed=seed)


@pytest.fixture(scope="module")
def study():
    return market()


def with_volatility(study, sigma, name="log_har"):
    "The study with one more candidate, whose daily volatility is given and whose intervals follow it."
    base = study.candidates["mean"].forecast
    root = torch.tensor(study.horizons, dtype=torch.float32).sqrt()
    volatility = torch.where(base.available[..., None], torch.tensor(sigma).float()[..., None] * root, np.nan)
    quantiles = base.quantiles * (volatility / base.volatility)[..., None]
    forecast = replace(base, volatility=volatility, quantiles=quantiles, score=base.score, model=name)
    return replace(study, candidates=study.candidates | {name: Candidate(name, {}, forecast)})


def reverting(study):
    "EWMA on its way back to each stock's mean, as GARCH has it: the truth of this market, nearly."
    common = study.common_volatility()
    return (0.8 * common[EWMA] ** 2 + 0.2 * common[CONSTANT] ** 2) ** 0.5


def by_ranges(study, sessions=20):
    "Volatility from the ranges of the last sessions, as a forecast made at each close."
    ranges = study.realised(1)["ranges"]  # only for its scale
    scale = np.nanmean(ranges) / np.nanmean(study.ranges[study.tested])
    daily = pd.DataFrame(scale * study.ranges).ewm(halflife=sessions / 2, min_periods=5).mean()
    return (daily**0.5).to_numpy()[study.tested]


def test_realised_variance_is_the_sum_over_the_sessions_of_the_label(study):
    squares, d = one_day_returns(study.close) ** 2, study.settings.validation.entry_delay
    got, y = study.realised(5)["squared returns"], study.outcome(5)
    start = study.tested.start
    for t, k in ((0, 0), (17, 3), (200, 11)):
        days = squares[start + t + d + 1 : start + t + d + 6, k]
        expected = np.nan if np.isnan(y[t, k]) or np.isnan(days).any() else days.sum()
        np.testing.assert_allclose(got[t, k], expected, rtol=1e-9)
    assert np.isnan(got[np.isnan(y)]).all()


def test_common_volatility_knows_nothing_after_its_session(study):
    later = replace(study, close=study.close.copy())
    later.close[study.tested.start + 100 :] *= np.random.default_rng(1).uniform(0.5, 2, later.close[0].shape)
    for name, values in study.common_volatility().items():
        np.testing.assert_array_equal(values[:100], later.common_volatility()[name][:100])


def test_a_gap_of_losses_is_that_of_statsmodels_up_to_its_scale(study):
    losses = volatility_losses(study, 1, "ranges")
    a, b = losses[CONSTANT], losses[EWMA]
    both = np.isfinite(a) & np.isfinite(b)
    d = np.array([(x - y)[k].mean() for x, y, k in zip(a, b, both, strict=True) if k.any()])
    gap = loss_gap(a, b, 1)
    assert gap.value * b[both].mean() == pytest.approx(d.mean(), rel=1e-9) and gap.n == len(d)


def test_a_volatility_that_reverts_is_promoted_and_its_intervals_hold(study):
    better = with_volatility(study, reverting(study))
    table = volatility_skill(better)
    v = judge_volatility(better, table)
    assert (v["decision"], v["model"], v["evidence"]) == ("promote", "log_har", "strong")
    assert "better than EWMA" in v["sentence"] and "better than a constant" in v["sentence"]
    plain = study.candidates["mean"].forecast.quantiles  # a width that returns to the usual one
    forecast = replace(better.candidates["log_har"].forecast, quantiles=plain)
    intervals = judge_intervals(better, forecast, "log_har")
    assert intervals["decision"] == "promote", intervals["sentence"]
    assert "90 % interval of log_har held" in intervals["sentence"]
    stopped = judge_volatility(better, table, suspected=True)
    assert (stopped["decision"], stopped["evidence"]) == ("suspected-leak", "none")


def test_a_volatility_worse_than_a_classic_is_held_and_the_classic_is_named(study):
    good = with_volatility(study, reverting(study), "har")
    both = with_volatility(good, by_ranges(study, 40))
    lines = volatility_evidence(both, volatility_skill(both))
    assert lines.worse_than["log_har"] == "har" and lines.worse_than["har"] == ""


@pytest.mark.parametrize("name, judged", [("ridge", False), ("lightgbm", False), ("garch", True)])
def test_only_models_that_name_the_head_are_judged(study, name, judged):
    "A ridge regression passes on the volatility of its inputs: however good, it is not its own."
    claimed = with_volatility(study, reverting(study), name)
    table = volatility_skill(claimed)
    assert (name in set(table.model)) == judged == ("volatility" in models.meta(name)["heads"])
    assert (judge_volatility(claimed, table)["decision"] == "promote") == judged


def test_a_model_of_complexity_0_claims_no_volatility(study):
    claimed = with_volatility(study, reverting(study), "ewma")
    table = volatility_skill(claimed)
    assert "ewma" in set(table.model) and judge_volatility(claimed, table)["decision"] == "hold"


def test_nobody_is_promoted_where_volatility_stands_still():
    still = market("steady", 7)
    for sessions in (10, 60):
        claimed = with_volatility(still, by_ranges(still, sessions))
        v = judge_volatility(claimed, volatility_skill(claimed))
        assert v["decision"] == "hold" and "constant" in v["sentence"]
        assert f"; the best was {v['model']}, QLIKE" in v["sentence"]


def test_a_volatility_that_is_better_by_one_proxy_only_is_not_believed(study):
    "Ranges of the session itself would be praised by ranges; squared returns have to agree."
    table = volatility_skill(with_volatility(study, reverting(study)))
    assert volatility_evidence(study, table).evidence["log_har"] == "strong"
    other = (table.model == "log_har") & (table.proxy == "squared returns")
    table.loc[other, "over_ewma_p"] = 0.999
    assert volatility_evidence(study, table).evidence["log_har"] == "none"


def test_narrow_and_lopsided_intervals_are_refused(study):
    plain = study.candidates["mean"].forecast
    for factor in (0.85, 1.25):
        v = judge_intervals(study, replace(plain, quantiles=factor * plain.quantiles), "x")
        assert v["decision"] == "hold" and "interval held" in v["sentence"]
    assert judge_intervals(study, plain, "mean")["decision"] == "promote"


def test_intervals_of_which_little_is_known_are_no_strong_evidence(study, monkeypatch):
    plain = study.candidates["mean"].forecast
    v = judge_intervals(study, plain, "mean")
    line = next(r for r in v["numbers"]["coverage"] if r["share"] == 0.9)
    reach = max(0.9 - line["low"], line["high"] - 0.9)
    monkeypatch.setattr("stockpredict.train.head_gates.MOST_OFF_THIRD", 0.05)  # only the band decides here
    for limit, word in ((1.01 * reach, "strong"), (0.99 * reach, "weak")):
        monkeypatch.setattr("stockpredict.train.head_gates.WIDEST", limit)
        v = judge_intervals(study, plain, "mean")
        assert (v["decision"], v["evidence"]) == ("promote", word)


def test_intervals_whose_misses_come_in_runs_are_no_strong_evidence(study, monkeypatch):
    "The coverage is right, and the width swings with an arbitrary month: the word falls to weak."
    plain = study.candidates["mean"].forecast
    monkeypatch.setattr("stockpredict.train.head_gates.MOST_OFF_THIRD", 0.05)
    monkeypatch.setattr("stockpredict.train.head_gates.WIDEST", 0.2)
    v = judge_intervals(study, plain, "mean")
    assert v["evidence"] == "strong" and v["numbers"]["runs"]["p"] > 0.01
    assert "misses in runs: p" in v["sentence"]
    month = (torch.arange(len(plain.sessions)) // 21) % 2
    swing = torch.where(month == 0, 0.75, 1.35)[:, None, None, None]
    v = judge_intervals(study, replace(plain, quantiles=swing * plain.quantiles), "mean, by month")
    assert v["numbers"]["runs"]["p"] < 0.01
    assert v["evidence"] in ("weak", "none") and ("runs" in v["sentence"] or "not hold" in v["sentence"])


def test_tables_cover_every_candidate_group_and_horizon(study):
    coverage = coverage_skill(study)
    assert set(coverage.share) == {0.5, 0.8, 0.9, 0.95}
    assert {"all", "calm", "middle", "wild"} < set(coverage.group)
    assert set(zip(coverage.model, coverage.horizon, strict=True)) == {
        (m, h) for m in study.candidates for h in (1, 5)
    }
    losses = interval_skill(study).set_index(["model", "horizon"])
    assert (losses.crps > 0).all() and abs(losses.pinball_saved).max() < 0.02


def test_candidates_that_share_a_volatility_count_once(study):
    assert study.volatilities() == ({}, {}), "neither baseline has a volatility of its own"
    sigma = reverting(study)
    both = with_volatility(with_volatility(study, sigma), sigma, "har")
    different, shared = both.volatilities()
    assert list(different) == ["har"] and shared == {"log_har": "har"}
    assert set(volatility_skill(both).shared) == {"log_har", ""}


def test_without_highs_and_lows_squared_returns_decide(study):
    closes_only = replace(study, ranges=None)
    better = with_volatility(closes_only, reverting(closes_only))
    table = volatility_skill(better)
    assert set(table.proxy) == {"squared returns"}
    assert judge_volatility(better, table)["model"] == "log_har"

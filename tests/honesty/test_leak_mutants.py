"""Leaks that are slow, weak or hidden in the rows, from raw bars to the verdict: flagged or held.
Honest changes stay clean, and a signal that lasts one session is no leak."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stockpredict.core.settings import load_settings
from stockpredict.evaluate.labels import forward_returns
from stockpredict.evaluate.sample_checks import attrition_alarms, known_returns, selection_alarms
from stockpredict.evaluate.sample_checks import twin_sessions
from stockpredict.models.dataset import Dataset
from stockpredict.train.experiment import compare_candidates
from stockpredict.train.gate import decide
from stockpredict.train.leak_checks import leak_alarms
from stockpredict.train.leak_mutants import HONEST, LEAKS, add_column, blurred, mutant_experiment, mutated
from stockpredict.train.leak_mutants import simulated_panel
from stockpredict.train.refits import audit_data
from stockpredict.train.skill_table import skill_table

HELD = ("outcomes shifted by two sessions", "outcomes smoothed over the neighbours")
FEW = {
    "features.names": "ret_1 mom_5 vol_20",
    "models.trials": 0,
    "models.candidates": "ridge",
    "validation.first_train": 300,
    "validation.folds": 2,
    "validation.horizons": "1",
    "costs.bps": 0,
}


def settings(**more):
    return load_settings(overrides={**FEW, **more}, environ={})


@pytest.fixture(scope="module", params=[3, 4])
def market(request):
    return simulated_panel(tickers=30, sessions=420, seed=request.param)


def pipeline(panel):
    return Dataset.from_panel(panel, ("ret_1", "mom_5", "vol_20"), (1, 5))


def audit_of(market, make, whole=True):
    data = make(market)
    close = market.select(data.inputs.tickers).close.values.numpy()
    how = dict(make=make, panel=market) if whole else {}
    return audit_data(data, close, slice(250, 420), **how)


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_flagged_or_held(market, name):
    audit = audit_of(market, mutated(name, pipeline))
    assert not audit.proven and (audit.doubts if name in HELD else audit.alarms)


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_change_is_proven(market, name):
    assert audit_of(market, mutated(name, pipeline)).proven


@pytest.mark.parametrize("strength", [0.1, 0.01])
def test_a_leak_is_flagged_at_every_strength(market, strength):
    for name in ("next 20 sessions", "log price z-scored over all time", "target mean by stock"):
        assert audit_of(market, mutated(name, pipeline, strength)).alarms


@pytest.mark.parametrize("name", ["next 5 sessions", "scaler over the whole sample", "target mean by stock"])
def test_data_that_cannot_be_made_again_are_held(market, name):
    "The finished data set alone, without the function that made it."
    audit = audit_of(market, mutated(name, pipeline), whole=False)
    assert audit.doubts and not audit.alarms and not audit.proven


def test_a_function_that_holds_the_future_proves_nothing(market):
    future = forward_returns(market.close.values, 1).nan_to_num(0.0)

    def own(data):
        return add_column(data, future[: len(data.inputs.sessions)])

    def make(panel):
        return own(pipeline(panel))

    data, close = make(market), market.close.values.numpy()
    audit = audit_data(data, close, slice(250, 420), make, own=own, panel=market)
    assert "holds an array" in audit.doubts[0] and not audit.proven


def test_a_table_joined_by_ticker_is_noticed(market):
    means = dict(zip(market.tickers, forward_returns(market.close.values, 1).nanmean(0).tolist()))

    def make(panel):
        column = torch.tensor([means.get(name, 0.0) for name in panel.tickers])
        return add_column(pipeline(panel), column.expand(len(panel), -1))

    audit = audit_of(market, make)
    assert "With other names of the stocks" in audit.doubts[0] and not audit.alarms


def study_with(leaking, panel, **more):
    small = settings(**more)

    def honest(bars):
        return Dataset.from_panel(bars, ("ret_1", "mom_5", "vol_20"), (1,))

    def make(bars):
        return leaking(bars, honest(bars))

    how = dict(make=make, panel=panel)
    return compare_candidates(small, make(panel), panel.close.values.numpy(), audit=how)


def test_a_weak_leak_is_stopped_by_the_gate_and_named():
    study = mutant_experiment(settings(), "next 5 sessions", 7, 0.15, tickers=30, sessions=700)
    verdict = decide(study)
    assert verdict.decision == "suspected-leak" and verdict.model == "mean"
    assert "the feature extra has other values" in verdict.reasons[0]
    assert verdict.numbers["audit"]["alarms"] and "NaN" not in verdict.to_json()


def test_the_same_leak_without_a_pipeline_is_held_and_can_be_overridden():
    study = mutant_experiment(settings(), "next 1 sessions", 7, 0.08, False, tickers=40, sessions=700)
    assert skill_table(study).skill[1] == "strong"
    verdict = decide(study)
    assert verdict.decision == "hold" and "extra was added to the data by hand" in verdict.reasons[0]
    assert "could not be made again" in verdict.reasons[-1]
    assert decide(study, "known to the desk, ticket 4").decision == "promote"


def news_market(seed, tickers=30, sessions=700, size=0.07):
    "Bars whose returns two sessions later follow a signal that is published with the bars."
    from stockpredict.catalogue.point_in_time import attach_fields

    panel = simulated_panel("null", seed, tickers, sessions)
    draw = torch.Generator().manual_seed(seed)
    signal = torch.randn(panel.present.shape, generator=draw)
    push = torch.zeros_like(signal)
    push[2:] = size * 0.015 * signal[:-2]
    growth = (1 + push).cumprod(0)
    fields = {k: x * growth if k in ("open", "high", "low", "close") else x for k, x in panel._fields.items()}
    fields.pop("money", None)
    moved = type(panel)(fields, panel.sessions, panel.tickers)
    out = attach_fields(moved, dict(news=signal.numpy()))
    out.dated = frozenset({"news"})  # as `with_facts` marks what it joined from the lake
    return out


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_news_of_one_session_is_no_leak(seed):
    "An honest signal with edges was called a leak in five of six runs."
    panel = news_market(seed)
    study = study_with(lambda bars, data: add_column(data, bars._fields["news"] / 8, "news"), panel)
    table = skill_table(study)
    assert study.audit.proven and leak_alarms(study, table) == []
    assert decide(study).decision == "promote"
    by_hand = replace(study, audit=replace(study.audit, doubts=["added by hand"]))
    assert decide(by_hand).decision == "hold" and leak_alarms(by_hand, table) == []


def test_a_field_without_a_date_is_held_whatever_it_knows():
    panel = news_market(1)
    panel.__dict__.pop("dated")
    study = study_with(lambda bars, data: add_column(data, bars._fields["news"] / 8, "news"), panel)
    verdict = decide(study)
    assert verdict.decision == "hold" and "news were attached to the bars by hand" in verdict.reasons[0]


def test_edges_count_where_the_data_leak_or_the_forecast_is_another():
    panel = news_market(1)
    study = study_with(lambda bars, data: add_column(data, bars._fields["news"] / 8, "news"), panel)
    table = skill_table(study)
    for audit in (None, replace(study.audit, forecasts={})):
        assert {a["check"] for a in leak_alarms(replace(study, audit=audit), table)} == {"edges"}
    without_delay = study.settings.with_(**{"validation.entry_delay": 0})
    assert study.audit.proven and decide(replace(study, settings=without_delay)).decision != "promote"


def test_the_audit_is_stored_with_the_experiment(tmp_path):
    study = mutant_experiment(settings(), "one more feature of the past", 3, tickers=12, sessions=420)
    assert study.audit.proven and set(study.audit.forecasts) == {"mean", "ridge"}
    for candidate in study.candidates.values():
        assert study.audit.vouches(candidate.model, candidate.forecast)


def test_random_choices_are_not_flagged():
    "Rows and stocks left out at random, whole sessions, one sector: twenty draws without an alarm."
    for seed in range(20):
        rng = np.random.default_rng(seed)
        common = 0.01 * rng.standard_t(4, (400, 1))
        r = common + 0.015 * rng.standard_t(4, (400, 30)) * np.exp(rng.normal(0, 0.4, 30))
        close = 50 * np.cumprod(1 + np.clip(r, -0.3, 0.3), axis=0)
        y = known_returns(close, (1, 5))
        some = rng.random((400, 30, 1)) > 0.05
        days = np.ones((400, 1, 1), bool)
        days[100:160] = False
        for kept in (some, days, rng.random((1, 30, 1)) > 0.2):
            assert attrition_alarms(np.isfinite(y) & kept, y, (1, 5)) == []
        assert selection_alarms(close[:, :15], close[:, 15:]) == []
        assert not twin_sessions(y[..., 0], slice(200, 400), 2).any()


def test_a_nan_column_of_closes_and_few_stocks_do_no_harm():
    close = np.full((80, 3), np.nan)
    y = known_returns(close, (1, 5))
    assert attrition_alarms(np.isfinite(y), y, (1, 5)) == []
    assert selection_alarms(close, close) == [] and not twin_sessions(y[..., 0], slice(40, 80), 2).any()
    assert math.isnan(float(blurred(torch.zeros(3, 2)).sum())) is False

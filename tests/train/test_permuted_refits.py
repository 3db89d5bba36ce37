"""Refits of the whole pipeline on permuted bars: honest skill vanishes, that of a leak stays."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stockpredict.core.settings import load_settings
from stockpredict.models.contract import models
from stockpredict.models.dataset import Dataset
from stockpredict.train.experiment import compare_candidates
from stockpredict.train.gate import decide
from stockpredict.train.leak_mutants import simulated_panel
from stockpredict.train.permuted_refits import log_moves, permuted_alarms, permuted_panel, session_order

QUICK = {
    "features.names": "ret_1 mom_5 vol_20",
    "models.trials": 0,
    "models.candidates": "ridge",
    "validation.first_train": 250,
    "validation.folds": 2,
    "validation.horizons": "1",
    "costs.bps": 0,
}
SESSIONS = 460


def settings():
    return load_settings(overrides=QUICK, environ={})


@pytest.fixture(scope="module")
def planted():
    return simulated_panel("planted", seed=2, tickers=30, sessions=SESSIONS)


def honest(panel):
    return Dataset.from_panel(panel, ("ret_1", "mom_5", "vol_20"), (1,))


def leave_behind(shelf: dict):
    "An honest pipeline that leaves its bars where a model finds them."

    def make(panel):
        if len(panel) == SESSIONS:
            shelf["moves"] = panel.close.values.log().diff(dim=0).nan_to_num(0.0)
            shelf["place"] = {s: i for i, s in enumerate(panel.sessions)}
        return honest(panel)

    return make


def peeking(shelf: dict, real):
    "Forecasts of the model, with what was left behind added: the same however the inputs are cut."

    def predict(self, inputs, start=0, stop=None):
        f = real(self, inputs, start, stop)
        at = torch.tensor([shelf["place"][s] + 1 for s in f.sessions]).clip(max=SESSIONS - 2)
        return replace(f, score=f.score + 3 * shelf["moves"][at][..., None])

    return predict


def test_bars_keep_their_moves_and_lose_their_direction(planted):
    other = permuted_panel(planted, seed=3)
    assert other.tickers == planted.tickers and (other.sessions == planted.sessions).all()
    fields = ("open", "high", "low", "close")
    a, b = ({k: p._fields[k].double().numpy() for k in fields} for p in (planted, other))
    order, sign = session_order(SESSIONS, 3)
    old, new = log_moves(a)[0]["close"], log_moves(b)[0]["close"]
    assert torch.equal(other.present, planted.present), "each ticker on the dates of its bars"
    both = np.isfinite(new) & np.isfinite(old[order])
    assert both.mean() > 0.9
    both &= np.isfinite(new).cumsum(0) > 1  # a first bar has no close before it
    assert np.abs(new - sign[:, None] * old[order])[both].max() < 1e-4  # prices are float32
    inside = other.present.numpy()
    assert (b["high"] >= np.maximum(b["open"], b["close"]) * (1 - 1e-6))[inside].all()
    assert (b["low"] <= np.minimum(b["open"], b["close"]) * (1 + 1e-6))[inside].all()
    assert not np.array_equal(*(session_order(SESSIONS, s)[0] for s in (1, 2)))
    again = permuted_panel(planted, seed=3)
    assert torch.equal(other.close.values.nan_to_num(0), again.close.values.nan_to_num(0))


def test_facts_stay_on_their_dates(planted):
    from stockpredict.algebra.panel import Panel

    fact = torch.arange(SESSIONS)[:, None].expand(SESSIONS, len(planted.tickers)).float()
    panel = Panel(planted._fields | {"sector": fact}, planted.sessions, planted.tickers)
    assert torch.equal(permuted_panel(panel, 1)._fields["sector"], fact)


def test_planted_skill_vanishes_and_a_peeking_candidate_is_caught(planted, monkeypatch):
    close = planted.close.values.numpy()
    study = compare_candidates(settings(), honest(planted), close, audit=dict(make=honest, panel=planted))
    assert study.audit.proven, "an honest pipeline with real skill was suspected"
    shelf, ridge = {}, models["ridge"]
    monkeypatch.setattr(ridge, "predict", peeking(shelf, ridge.predict))
    make = leave_behind(shelf)
    study = compare_candidates(settings(), make(planted), close, audit=dict(make=make, panel=planted))
    assert [a["check"] for a in study.audit.alarms] == ["permuted refit"], "the data are honest"
    assert "not in the past" in study.audit.alarms[0]["sentence"] and study.audit.alarms[0]["value"] > 0.1
    assert decide(study).decision == "suspected-leak"


def test_a_pipeline_that_cannot_be_repeated_leaves_a_doubt(planted):
    def stubborn(panel):
        raise ValueError("only these bars")

    alarms, doubts = permuted_alarms(settings(), stubborn, planted, {"ridge": {}})
    assert not alarms and "only these bars" in doubts[0]
    assert permuted_alarms(settings(), stubborn, planted, {}) == ([], [])

"""Contributions add up to the score, and agree with an independent library."""

import sys

import numpy as np
import pytest
import torch
from stockpredict.core.errors import ModelError, UnknownTicker
from stockpredict.models.contract import models
from stockpredict.models.explain import explain, group_importance
from zoo import ALL, STOP

SCORED = [n for n in ALL if hasattr(models[n], "score")]


@pytest.mark.parametrize("name", SCORED)
def test_contributions_and_the_constant_are_the_score(name, fitted, data):
    m = fitted(name)
    why = explain(m, data.inputs, data.inputs.sessions[STOP + 10], horizon=5)
    score = m.score(data.inputs, STOP + 10, STOP + 11)[0, :, 1].numpy()
    at = [data.inputs.tickers.index(t) for t in why.answer.index]
    assert len(at) == int(data.inputs.usable[STOP + 10].sum())
    assert np.abs(why.answer - score[at]).max() < 1e-5
    assert np.abs(why.contributions.sum(axis=1) + why.base - why.answer).max() < 1e-9
    if "exact" in why.method or "gradients" in why.method:
        spread = why.base.max() - why.base.min()
        assert spread < 1e-5 + 0.02 * why.answer.abs().max(), "the constant is the same for every ticker"


@pytest.mark.parametrize("name", ["lightgbm", "xgboost"])
def test_trees_agree_with_shap(name, fitted, data):
    shap = pytest.importorskip("shap")
    m, x = fitted(name), data.inputs.x[STOP].numpy()
    theirs = shap.TreeExplainer(m.boosters["h1"]).shap_values(x)
    ours = explain(m, data.inputs, STOP).contributions
    at = [data.inputs.tickers.index(t) for t in ours.index]
    assert np.abs(ours.to_numpy() - theirs[at]).max() < 1e-5


@pytest.mark.parametrize("name", ["ridge", "lstm", "cross_attention"])
def test_lime_agrees_with_exact_values_where_the_model_is_linear(name, fitted, data):
    pytest.importorskip("lime", reason="pip install stockpredict[lime]")
    m, tickers = fitted(name), data.inputs.tickers[2:3]
    why = explain(m, data.inputs, STOP, tickers=tickers, how="lime")
    again = explain(m, data.inputs, STOP, tickers=tickers, how="lime")
    assert why.contributions.equals(again.contributions) and "LIME" in why.method
    assert np.abs(why.contributions.sum(axis=1) + why.base - why.answer).max() < 1e-12
    if name == "ridge":
        exact = explain(m, data.inputs, STOP, tickers=tickers).contributions
        slope = m.weights["coef"][:, 0].numpy()
        shift = (data.inputs.x[STOP].double().mean(0) - m.weights["centre"]).numpy()
        gap = why.contributions + slope * shift - exact
        assert np.abs(gap.to_numpy()).max() < 0.02 * exact.abs().to_numpy().max()
    else:
        assert why.contributions.abs().to_numpy().max() > 0


def test_without_the_package_lime_says_what_to_install(fitted, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "lime.lime_tabular", None)
    with pytest.raises(ModelError, match="need a package that is not installed") as error:
        explain(fitted("ridge"), data.inputs, STOP, how="lime")
    assert 'pip install "stockpredict[lime]"' in error.value.fix


def test_a_linear_contribution_is_coefficient_times_feature(fitted, data):
    m = fitted("ridge")
    why = explain(m, data.inputs, STOP, tickers=[data.inputs.tickers[2]])
    expected = m.weights["coef"][:, 0] * (data.inputs.x[STOP, 2] - m.weights["centre"])
    assert np.abs(why.contributions.iloc[0].to_numpy() - expected.numpy()).max() < 1e-12
    plain = why.as_dict(data.inputs.tickers[2], most=2)
    total = plain["base"] + plain["rest"] + sum(p["contribution"] for p in plain["contributions"])
    assert total == pytest.approx(plain["score"])


def test_what_cannot_be_explained_is_named(fitted, data):
    with pytest.raises(ModelError, match="no session"):
        explain(fitted("ridge"), data.inputs, "1990-01-01")
    with pytest.raises(UnknownTicker, match="NOPE"):
        explain(fitted("ridge"), data.inputs, tickers=["NOPE"])
    with pytest.raises(ModelError, match="no score"):
        explain(fitted("ewma"), data.inputs)


def test_the_group_that_pays_is_the_important_one(fitted, data):
    later = data.window(STOP, 520)
    table = group_importance(fitted("ridge"), later, {"paid": ["mom_5"], "idle": ["vol_20", "ret_1"]})
    assert table.index[0] == "paid" and table.loss["paid"] > 3 * abs(table.loss["idle"])
    again = group_importance(fitted("ridge"), later, {"paid": ["mom_5"], "idle": ["vol_20", "ret_1"]})
    assert torch.equal(torch.tensor(table.to_numpy()), torch.tensor(again.to_numpy()))

"""Tests that count every candidate: sizes, powers, and the published formulas done the slow way."""

from itertools import combinations

import numpy as np
import pytest

from stockpredict.core.errors import EvaluateError, NotEnoughSessions
from stockpredict.evaluate import overfitting as o
from stockpredict.evaluate.forecast_comparison import compare_losses, loss_table


def losses(seed, better=0.0, n=250, candidates=6):
    rng = np.random.default_rng(seed)
    common = rng.standard_t(5, n)
    out = {f"m{k}": (common + 0.5 * rng.normal(size=n)) ** 2 for k in range(candidates)}
    out["m0"] = (common * (1 - better) + 0.5 * rng.normal(size=n)) ** 2
    out["benchmark"] = (common + 0.5 * rng.normal(size=n)) ** 2
    return out


def test_spa_stepm_and_the_confidence_set_are_archs():
    from arch.bootstrap import MCS, SPA, StepM

    data = losses(1, better=0.3)
    ours = compare_losses(data, "benchmark", draws=300, seed=5)
    table = loss_table(data)
    others = table.drop(columns="benchmark")
    options = dict(block_size=round(250 ** (1 / 3)), reps=300, seed=5)
    spa, step = SPA(table.benchmark, others, **options), StepM(table.benchmark, others, **options)
    mcs = MCS(table[["benchmark", *others]], size=0.1, method="max", **options)
    for test in (spa, step, mcs):
        test.compute()
    assert ours.attrs["spa"] == spa.pvalues.to_dict()
    assert set(ours.index[ours.beats.astype(bool)]) == set(step.superior_models)
    assert set(ours.index[ours.in_mcs.astype(bool)]) == set(mcs.included)


def test_many_candidates_have_the_size_of_one_and_a_better_one_is_found():
    "20 markets here; `python benchmarks/tests_of_skill.py --only comparison` draws 300."
    null = [compare_losses(losses(s), "benchmark", draws=100) for s in range(20)]
    assert sum(t.attrs["spa"]["consistent"] < 0.05 for t in null) <= 4
    assert sum(bool(t.beats.any()) for t in null) <= 4
    assert sum(bool(t.in_mcs["benchmark"]) for t in null) >= 16
    real = [compare_losses(losses(s, better=0.35), "benchmark", draws=100) for s in range(8)]
    assert sum(bool(t.beats["m0"]) for t in real) >= 7 and not any(bool(t.in_mcs["benchmark"]) for t in real)


def test_sessions_that_one_candidate_lacks_are_left_out_for_all():
    data = losses(2)
    data["m3"][:40] = np.nan
    assert len(loss_table(data)) == 210
    same = compare_losses({"a": data["m1"], "b": data["m1"]}, "a")
    assert not same.beats.any() and same.in_mcs.all() and same.attrs["spa"] == {}
    with pytest.raises(NotEnoughSessions, match="share 30"):
        loss_table({k: v[:70] for k, v in data.items()})
    with pytest.raises(EvaluateError, match="two forecasts"):
        loss_table({"alone": data["m1"]})
    with pytest.raises(EvaluateError, match="no loss of 'x'"):
        compare_losses(data, "x")


def test_pbo_is_the_published_recipe():
    rng = np.random.default_rng(3)
    r = 0.01 * rng.normal(size=(123, 7))
    ours = o.overfit_probability(r, blocks=6)
    parts = np.split(r[3:], 6)
    logits = []
    for pick in combinations(range(6), 3):
        a = np.concatenate([parts[k] for k in pick])
        b = np.concatenate([parts[k] for k in range(6) if k not in pick])
        best = int((a.mean(0) / a.std(0)).argmax())
        ratio = b.mean(0) / b.std(0)
        rank = (np.argsort(np.argsort(ratio))[best] + 1) / (7 + 1)
        logits.append(np.log(rank / (1 - rank)))
    np.testing.assert_allclose(ours.logits, logits, atol=1e-12)
    logits = np.array(logits)
    assert ours.pbo == pytest.approx(np.mean(np.where(np.abs(logits) < 1e-12, 0.5, logits < 0)))
    assert ours.splits == 20 and "PBO" in repr(ours)


def test_pbo_tells_luck_from_skill():
    rng = np.random.default_rng(4)
    noise = [o.overfit_probability(0.01 * rng.normal(size=(400, 20)), 8).pbo for _ in range(40)]
    assert 0.4 < np.mean(noise) < 0.62
    skill = 0.01 * rng.normal(size=(400, 20))
    skill[:, 3] += 0.003
    assert o.overfit_probability(skill, 8).pbo < 0.02
    twins = np.repeat(0.01 * rng.normal(size=(400, 1)), 5, axis=1)
    assert o.overfit_probability(twins, 8).pbo == 0.5, "identical tries are neither"
    with pytest.raises(EvaluateError, match="even number"):
        o.overfit_probability(skill, 7)
    with pytest.raises(NotEnoughSessions):
        o.overfit_probability(skill[:30], 16)


def test_the_minimum_length_is_where_luck_reaches_the_target():
    "After so many years the best of N worthless strategies has, on average, about the target."
    rng = np.random.default_rng(5)
    years = o.minimum_backtest_years(20, target=1.0)
    n = round(252 * years)
    best = [(r.mean(0) / r.std(0)).max() * 252**0.5 for r in rng.normal(size=(200, n, 20))]
    assert np.mean(best) == pytest.approx(1, abs=0.05)
    assert o.minimum_backtest_years(20, 2.0) == pytest.approx(years / 4)
    assert o.minimum_backtest_years(1) == 0
    with pytest.raises(EvaluateError, match="target"):
        o.minimum_backtest_years(10, 0)


@pytest.mark.parametrize("ideas, copies", [(1, 12), (4, 10), (15, 1)])
def test_correlated_trials_count_once(ideas, copies):
    rng = np.random.default_rng(ideas)
    base = rng.normal(0.02, 1, (600, ideas))
    tries = np.repeat(base, copies, axis=1) + 0.5 * rng.normal(size=(600, ideas * copies))
    count, ratios = o.effective_trials(0.01 * tries)
    assert count == ideas == len(ratios)
    shuffled, _ = o.effective_trials(0.01 * tries[:, rng.permutation(tries.shape[1])])
    assert shuffled == count


def test_trials_that_never_trade_and_gaps_are_defined():
    rng = np.random.default_rng(8)
    r = rng.normal(size=(200, 5))
    r[:, 2] = 0
    r[3] = np.nan
    count, ratios = o.effective_trials(r)
    assert count == 4 and np.isfinite(ratios).all()
    assert o.effective_trials(np.zeros((50, 3)))[0] == 0
    pair = np.c_[r[:, 0], r[:, 0] + 0.1 * r[:, 1]]
    assert o.effective_trials(pair)[0] == 1 and o.effective_trials(r[:, :2])[0] == 2

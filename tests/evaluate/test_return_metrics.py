"""Return metrics against skfolio and hand-made loops, their intervals and the tail tests by simulation."""

import numpy as np
import pytest

from stockpredict.core.errors import EvaluateError, NotEnoughSessions
from stockpredict.evaluate.return_metrics import block_length, path_metrics, return_metrics, tail_test


def fund(seed=0, n=500):
    return 0.0005 + 0.01 * np.random.default_rng(seed).standard_t(5, n)


def test_they_are_skfolios():
    "skfolio's maximum drawdown compounds when asked to, its semideviation is over all periods, as ours."
    from skfolio import measures as m

    r = fund()
    ours = {k: float(v) for k, v in path_metrics(r).items()}
    down = np.asarray(m.semi_deviation(r, min_acceptable_return=0.0))
    down *= np.sqrt((len(r) - 1) / len(r))  # theirs divides by n - 1, Sortino and Price by n
    assert ours["Sortino"] == pytest.approx(float(r.mean() / down * 252**0.5), rel=1e-9)
    assert ours["volatility a year"] == pytest.approx(float(m.standard_deviation(r)) * 252**0.5, rel=1e-9)
    ranked = np.sort(r)  # the quantile is the 25th worst of 500; skfolio takes the 26th
    assert ours["VaR 5%"] == pytest.approx(-ranked[24], rel=1e-12)
    assert float(m.value_at_risk(r, beta=0.95)) == pytest.approx(-ranked[25], rel=1e-12)
    odd = r[:490]  # where n x level is no whole number, both take the same
    theirs = float(m.value_at_risk(odd, beta=0.95))
    assert float(path_metrics(odd)["VaR 5%"]) == pytest.approx(theirs, rel=1e-9)
    assert ours["expected shortfall 5%"] == pytest.approx(float(m.cvar(r, beta=0.95)), rel=1e-9)
    drawdowns = m.get_drawdowns(r, compounded=True)
    assert ours["maximum drawdown"] == pytest.approx(-float(np.min(drawdowns)), rel=1e-9)


def test_by_hand():
    r = np.array([0.10, -0.20, 0.05, 0.00, -0.10, 0.30])
    m = {k: float(v) for k, v in path_metrics(r, target=0.01, level=0.2, periods=6).items()}
    wealth = np.cumprod(1 + r)
    assert m["return a year (geometric)"] == pytest.approx(wealth[-1] - 1)
    fall = 1 - wealth[4] / wealth[0]
    assert m["maximum drawdown"] == pytest.approx(fall) and m["Calmar"] == pytest.approx(
        (wealth[-1] - 1) / fall
    )
    assert m["profit factor"] == pytest.approx(0.45 / 0.30)
    down = np.sqrt((0.21**2 + 0.01**2 + 0.11**2) / 6)
    assert m["Sortino"] == pytest.approx((r.mean() - 0.01) / down * 6**0.5)
    assert m["VaR 20%"] == pytest.approx(0.10) and m["expected shortfall 20%"] == pytest.approx(0.15)
    assert m["share of gains"] == 0.5


def test_degenerate_series_are_defined():
    flat = return_metrics(np.zeros(50))
    assert flat.value["return a year (geometric)"] == 0 and np.isnan(flat.value["Sharpe"])
    ruin = return_metrics(np.r_[np.full(30, 0.01), -1.5, np.full(30, 0.01)], draws=200)
    assert ruin.value["return a year (geometric)"] == -1 and ruin.value["maximum drawdown"] == 1
    never = return_metrics(np.full(40, 0.001) + 1e-5 * np.arange(40))
    assert np.isnan(never.value["profit factor"]) and np.isnan(never.value["Sortino"])
    with pytest.raises(NotEnoughSessions):
        return_metrics([0.1] * 19 + [np.nan] * 30)
    with pytest.raises(EvaluateError, match="tail"):
        return_metrics(fund(), level=0.7)


def test_intervals_cover_and_are_reproducible():
    "60 funds; nominal 95 %."
    covered = {"Sharpe": 0, "volatility a year": 0, "Sortino": 0}
    truth = path_metrics(fund(99, 400_000))
    for seed in range(60):
        table = return_metrics(fund(seed, 400), draws=300)
        for name in covered:
            covered[name] += table.low[name] <= truth[name] <= table.high[name]
    assert all(count >= 51 for count in covered.values()), covered
    again = return_metrics(fund(3), seed=4)
    assert again.equals(return_metrics(fund(3), seed=4)) and not again.equals(return_metrics(fund(3), seed=5))


def test_blocks_are_longer_where_volatility_clusters():
    rng = np.random.default_rng(2)
    level = np.repeat(rng.choice([0.005, 0.02], 20), 50)
    assert block_length(level * rng.normal(size=1000)) > 1.3 * block_length(0.01 * rng.normal(size=1000))


def test_the_tail_test_has_size_and_power():
    rng = np.random.default_rng(3)
    right, small, rows = [], [], []
    for _ in range(120):
        r = 0.01 * rng.normal(size=1000)
        edge, beyond = np.full(1000, 0.01 * 1.6449), np.full(1000, 0.01 * 2.0627)
        right.append(tail_test(r, edge, beyond, draws=300))
        small.append(tail_test(r, edge, 0.8 * beyond, draws=300)["shortfall p"])
        rows.append(tail_test(np.repeat(r[::5], 5), edge)["joint p"])
    assert np.mean([x["shortfall p"] < 0.05 for x in right]) < 0.12
    assert np.mean([x["joint p"] < 0.05 for x in right]) < 0.12
    assert np.mean(np.array(small) < 0.05) > 0.9 and np.mean(np.array(rows) < 0.05) > 0.95
    assert right[0]["shortfall gap"] == pytest.approx(0, abs=0.15)


def test_tail_tests_without_hits_or_data_are_defined():
    none = tail_test(np.zeros(100), np.full(100, 0.01), np.full(100, 0.02))
    assert none["rate"] == 0 and np.isnan(none["shortfall gap"]) and none["kupiec p"] < 0.05
    empty = tail_test([], [])
    assert np.isnan(empty["rate"]) and np.isnan(empty["joint p"])

"""Exposures against statsmodels, attributions that add up, and stress losses of known books."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import EvaluateError, NotEnoughSessions
from stockpredict.evaluate.attribution import SCENARIOS, brinson, exposures, factor_attribution, replay_crisis
from stockpredict.evaluate.attribution import stress_losses

DAYS = pd.bdate_range("2015-01-02", periods=800)


def book(seed=0, alpha=0.0, n=800):
    rng = np.random.default_rng(seed)
    factors = pd.DataFrame(0.01 * rng.standard_t(6, (n, 2)), DAYS[:n], ["market", "rates"])
    rest = np.convolve(0.002 * rng.normal(size=n + 4), np.ones(5) / 5**0.5, "valid")
    return alpha + 0.9 * factors.market - 0.3 * factors.rates + rest, factors


@pytest.mark.parametrize("lags", [0, 7])
def test_exposures_are_statsmodels(lags):
    import statsmodels.api as sm

    r, factors = book()
    fit = sm.OLS(r, sm.add_constant(factors)).fit(
        cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": False}
    )
    ours = exposures(r, factors, lags=lags)
    assert ours.value.tolist() == pytest.approx([252 * fit.params["const"], *fit.params[1:]], rel=1e-9)
    np.testing.assert_allclose(ours.t, fit.tvalues, rtol=1e-8)
    assert ours.attrs["r2"] == pytest.approx(fit.rsquared, rel=1e-9)


def test_intervals_of_betas_cover():
    hits = []
    for seed in range(100):
        t = exposures(*book(seed))
        hits.append((t.low <= [0, 0.9, -0.3]) & ([0, 0.9, -0.3] <= t.high))
    assert (np.mean(hits, axis=0) > 0.87).all()
    estimate = exposures(*book(1, alpha=0.001)).loc["alpha a year"]
    assert estimate.low > 0 and estimate.value == pytest.approx(0.252, abs=0.08)


def test_the_parts_add_up_and_gaps_are_left_out():
    r, factors = book(2, alpha=0.0003)
    r.iloc[10:20] = np.nan
    parts = factor_attribution(r, factors)
    assert parts.drop("total").sum() == pytest.approx(parts["total"], abs=1e-12)
    assert parts["total"] == pytest.approx(252 * r.mean())


def test_brinson_adds_up_for_any_weights_and_is_the_published_split():
    rng = np.random.default_rng(3)
    groups = ["a"] * 4 + ["b"] * 3 + ["c"]
    w, r = rng.normal(size=(40, 8)), 0.02 * rng.normal(size=(40, 8))
    b = np.abs(rng.normal(size=(40, 8)))
    b[:, 7] = 0  # the benchmark does not hold group c
    b /= b.sum(1, keepdims=True)
    table = brinson(w, b, r, groups)
    assert table.total.sum() == pytest.approx(((w - b) * r).sum(), abs=1e-12)
    w = np.abs(w) / np.abs(w).sum(1, keepdims=True)
    table, mine = brinson(w, b, r, groups), np.array(groups) == "a"
    wp, wb = w[:, mine].sum(1), b[:, mine].sum(1)
    rp, rb = (w * r)[:, mine].sum(1) / wp, (b * r)[:, mine].sum(1) / wb
    total = (b * r).sum(1)
    assert table.allocation["a"] == pytest.approx(((wp - wb) * (rb - total)).sum())
    assert table.selection["a"] == pytest.approx((wb * (rp - rb)).sum())
    assert table.interaction["a"] == pytest.approx(((wp - wb) * (rp - rb)).sum())
    assert "cash" not in table.index and "cash" in brinson(0.5 * w, b, r, groups).index
    with pytest.raises(EvaluateError, match="one group a ticker"):
        brinson(w, b, r, groups[:3])


def test_stress_is_beta_times_shock_and_names_what_is_missing():
    table = exposures(*book(4))
    stressed = stress_losses(table)
    assert set(stressed.index) == set(SCENARIOS)
    shock = SCENARIOS["2008"]
    expected = table.value["market"] * shock["market"] + table.value["rates"] * shock["rates"]
    assert stressed.value["2008"] == pytest.approx(expected)
    assert stressed.low["2008"] < expected < stressed.high["2008"]
    assert stress_losses(table, widen=1.5).value["2008"] == pytest.approx(1.5 * expected)
    only = stress_losses(exposures(*[x if i == 0 else x[["market"]] for i, x in enumerate(book(4))]))
    assert only.without["2008"] == "rates"
    with pytest.raises(EvaluateError, match="no exposure"):
        stress_losses(table, {"oil": {"oil": -0.5}})


def test_a_replay_is_the_books_path_and_states_what_it_covers():
    rng = np.random.default_rng(5)
    r = pd.DataFrame(0.02 * rng.normal(size=(800, 3)), DAYS, ["A", "B", "C"])
    w = pd.Series({"A": 0.5, "C": -0.5})
    window = r.loc["2016-01-01":"2016-03-31"]
    ours, path = replay_crisis(w, r, "2016-01-01", "2016-03-31"), 0.5 * window.A - 0.5 * window.C
    assert ours["return"] == pytest.approx((1 + path).prod() - 1) and ours.covered == 1
    assert ours["worst session"] == pytest.approx(path.min())
    young = replay_crisis(pd.Series({"A": 0.5, "NEW": 0.5}), r, "2016-01-01", "2016-03-31")
    assert young.covered == 0.5 and young["return"] == pytest.approx((1 + window.A).prod() - 1)
    with pytest.raises(NotEnoughSessions):
        replay_crisis(w, r, "1987-10-01", "1987-10-31")
    with pytest.raises(NotEnoughSessions, match="cannot carry"):
        exposures(*[x.iloc[:25] for x in book()])

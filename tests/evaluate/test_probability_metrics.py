"""Scores of intervals, densities, probabilities and variances against independent libraries."""

import sys
from unittest.mock import patch

import numpy as np
import pytest
from scipy import stats

from stockpredict.core.errors import EvaluateError
from stockpredict.evaluate import metrics, risk
from stockpredict.evaluate import probability_metrics as pm

rng = np.random.default_rng(0)
Y = rng.normal(size=(60, 7))


@pytest.fixture(scope="module")
def oracle():
    "scoringrules with its NumPy backend; with numba in sight it compiles for five seconds when imported."
    with patch.dict(sys.modules, numba=None):
        return pytest.importorskip("scoringrules")


def test_interval_score_is_scoringrules(oracle):
    low, high = -1 - 0.3 * rng.random(Y.shape), 0.8 + 0.3 * rng.random(Y.shape)
    for nominal in (0.5, 0.9):
        expected = oracle.interval_score(Y, low, high, 1 - nominal, backend="numpy")
        np.testing.assert_allclose(pm.interval_score(low, high, Y, nominal), expected, rtol=1e-12)


def test_interval_score_is_the_pinball_loss_of_both_ends():
    "2/alpha times the two pinball losses (Gneiting and Raftery 2007, section 6.2)."
    q = np.stack([-1.3 + 0 * Y, 1.1 + 0 * Y], -1)
    both = metrics.pinball(q, [0.05, 0.95], Y).sum(-1) * 2 / 0.1
    np.testing.assert_allclose(pm.interval_score(q[..., 0], q[..., 1], Y, 0.9), both, rtol=1e-12)


def test_crps_on_midpoint_levels_is_scoringrules_elsewhere_weights_differ(oracle):
    """scoringrules weighs all levels alike; we weigh each by the levels it stands for (midpoint rule).
    On levels (i - 1/2)/n both are the same number."""
    levels = (np.arange(20) + 0.5) / 20
    q = stats.norm.ppf(levels) + np.zeros((*Y.shape, 1))
    expected = oracle.crps_quantile(Y, q, levels, backend="numpy")
    np.testing.assert_allclose(metrics.crps_from_quantiles(q, levels, Y), expected, rtol=1e-9)
    five = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    q5 = stats.norm.ppf(five) + np.zeros((*Y.shape, 1))
    ours, theirs = (
        metrics.crps_from_quantiles(q5, five, Y),
        oracle.crps_quantile(Y, q5, five, backend="numpy"),
    )
    assert np.abs(ours - theirs).max() > 1e-3
    weights = np.diff([0, 0.15, 0.375, 0.625, 0.85, 1])
    np.testing.assert_allclose(ours, 2 * metrics.pinball(q5, five, Y) @ weights, rtol=1e-12)


def test_log_score_is_scoringrules_and_scipy(oracle):
    mean, sd = 0.1 + 0 * Y, 0.5 + rng.random(Y.shape)
    expected = oracle.logs_normal(Y, mean, sd, backend="numpy")
    np.testing.assert_allclose(pm.log_score(mean, sd, Y), expected, rtol=1e-9)
    scale = sd * np.sqrt(3 / 5)
    expected = -stats.t.logpdf(Y, 5, mean, scale)
    np.testing.assert_allclose(pm.log_score(mean, sd, Y, df=5), expected, rtol=1e-9)
    with pytest.raises(EvaluateError, match="variance"):
        pm.log_score(0, 1, Y, df=1.5)


def test_log_loss_is_sklearns_and_tests_against_the_base_rate():
    from sklearn.metrics import log_loss

    p = rng.uniform(0.05, 0.95, Y.shape)
    assert pm.log_loss(p, Y).value == pytest.approx(log_loss((Y > 0).ravel(), p.ravel()), rel=1e-9)
    base = (Y > 0).mean()
    assert pm.log_loss(np.full(Y.shape, base), Y).t == pytest.approx(0, abs=1e-6)
    certain = pm.log_loss((Y < 0).astype(float), Y)
    assert np.isfinite(certain.value) and certain.value > 30, "a certain forecast that is wrong has a number"


def test_the_brier_score_is_the_sum_of_its_parts():
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss

    p = rng.choice([0.3, 0.5, 0.7], size=(400, 5))
    y = np.where(rng.random(p.shape) < 0.5 + 0.5 * (p - 0.5), 1.0, -1.0)
    parts = pm.brier_parts(p, y)
    assert parts.brier == pytest.approx(brier_score_loss((y > 0).ravel(), p.ravel()), rel=1e-9)
    assert parts.brier == pytest.approx(parts.reliability - parts.resolution + parts.uncertainty, abs=1e-12)
    assert parts.within == pytest.approx(0, abs=1e-12)
    scattered = pm.brier_parts(np.clip(p + 0.1 * rng.random(p.shape), 0, 1), y, bins=5)
    assert abs(scattered.within) > 1e-6
    x = rng.random(5000)
    up = (rng.random(5000) < x**1.3).astype(float)
    observed, stated = calibration_curve(up, x, n_bins=10, strategy="quantile")
    ece = pm.brier_parts(x, 2 * up - 1).ece
    assert ece == pytest.approx(np.mean(np.abs(observed - stated)), rel=1e-9), "groups of equal size"
    assert np.isnan(pm.brier_parts([np.nan], [1.0])).all()


def test_variance_proxies_are_the_published_formulas_and_right_on_average():
    o, h, low, c = 100.0, 104.0, 99.0, 102.0
    prices = ([97.0, o], [98.0, h], [96.0, low], [97.5, c])
    p = {k: v[1] for k, v in pm.variance_proxies(*prices).items()}
    gap = np.log(o / 97.5) ** 2
    assert p["squared return"] == pytest.approx(np.log(c / 97.5) ** 2)
    assert p["Parkinson"] - gap == pytest.approx(np.log(h / low) ** 2 / 4 / np.log(2))
    garman = 0.5 * np.log(h / low) ** 2 - (2 * np.log(2) - 1) * np.log(c / o) ** 2
    assert p["Garman-Klass"] - gap == pytest.approx(garman)
    rogers = np.log(h / c) * np.log(h / o) + np.log(low / c) * np.log(low / o)
    assert p["Rogers-Satchell"] - gap == pytest.approx(rogers)
    gen = np.random.default_rng(1)
    path = np.cumsum(gen.normal(0, 0.02 / 2000**0.5, (1500, 2000)), 1)
    day = np.c_[np.zeros(1500), path]
    start = np.r_[0, np.cumsum(path[:-1, -1])][:, None]
    price = np.exp(day + start)
    proxies = pm.variance_proxies(price[:, 0], price.max(1), price.min(1), price[:, -1])
    for name, v in proxies.items():
        assert np.isnan(v[0]) and np.nanmean(v) / 0.0004 == pytest.approx(1, abs=0.09), name


def test_a_range_ranks_like_the_squared_return_with_less_noise():
    gen = np.random.default_rng(2)
    variance = 1e-4 * np.exp(0.5 * gen.normal(size=(400, 10)))
    square, quiet = (
        variance * gen.normal(size=variance.shape) ** 2,
        variance * gen.gamma(10, 0.1, variance.shape),
    )
    forecasts = {"truth": variance**0.5, "flat": np.full(variance.shape, variance.mean() ** 0.5)}
    a = risk.volatility_table(forecasts, square**0.5, "flat")
    b = risk.volatility_table(forecasts, square**0.5, "flat", realised=quiet)
    assert a.qlike.idxmin() == b.qlike.idxmin() == "truth"
    skill_a, skill_b = a.skill["truth"], b.skill["truth"]
    assert skill_b.t > skill_a.t > 2

"""Portfolios from past returns only, against closed forms and skfolio; prices in one currency as known."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import ColumnsUnmapped, EvaluateError, NotEnoughSessions
from stockpredict.evaluate.execution import TradingCosts, run_portfolio
from stockpredict.evaluate.portfolio import METHODS, in_currency, known_rates, optimal_weights, solve


def market(seed=0, sessions=260, names=5):
    rng = np.random.default_rng(seed)
    sd = np.linspace(0.008, 0.025, names)
    r = sd * (0.5 * rng.normal(size=(sessions, 1)) + 0.85 * rng.normal(size=(sessions, names)))
    return pd.DataFrame(r, pd.bdate_range("2020-01-02", periods=sessions), list("ABCDEFGH")[:names])


@pytest.mark.parametrize("method", METHODS)
def test_the_future_of_returns_and_forecasts_does_not_change_a_weight(method):
    r = market()
    view = 0.001 * market(9) / market(9).std() if method == "mean_variance" else None
    options = dict(method=method, window=100, rebalance=40, max_weight=0.6)
    base = optimal_weights(r, forecast=view, **options)
    late, other = r.copy(), None if view is None else view.copy()
    late.iloc[201:] = 0.05 * np.random.default_rng(1).normal(size=late.iloc[201:].shape)
    if view is not None:
        other.iloc[201:] *= -5
    again = optimal_weights(late, forecast=other, **options)
    pd.testing.assert_frame_equal(base.iloc[:201], again.iloc[:201])
    assert not base.iloc[:100].any().any() and (np.abs(base.iloc[100:].sum(axis=1) - 1) < 1e-9).all()
    assert not np.allclose(base.iloc[221], again.iloc[221])
    assert (base.iloc[[100, 140, 180]].max(axis=1) < 0.6 + 1e-4).all()


def test_minimum_variance_is_the_closed_form_where_no_limit_binds():
    from skfolio.moments import LedoitWolf

    r = market(3).to_numpy()[:, :3]
    covariance = LedoitWolf().fit(r).covariance_
    exact = np.linalg.solve(covariance, np.ones(3))
    exact /= exact.sum()
    assert (exact > 0).all()
    np.testing.assert_allclose(
        solve(r, "minimum_variance", np.zeros(3)), exact, atol=1e-3
    )  # solver tolerance


def test_risk_parity_shares_the_variance_and_cvar_has_the_least_shortfall():
    from skfolio.moments import LedoitWolf
    from skfolio.measures import cvar

    r = market(4).to_numpy()
    w, covariance = solve(r, "risk_parity", np.zeros(5)), LedoitWolf().fit(r).covariance_
    shares = w * (covariance @ w) / (w @ covariance @ w)
    np.testing.assert_allclose(shares, 0.2, atol=1e-3)
    best = solve(r, "cvar", np.zeros(5))
    rng = np.random.default_rng(0)
    others = rng.dirichlet(np.ones(5), 200)
    assert cvar(r @ best) <= min(cvar(r @ w) for w in others) + 1e-6


def test_limits_hold_and_a_forecast_moves_the_weights():
    r = market(5)
    current = np.full(5, 0.2)
    w = solve(r.to_numpy(), "minimum_variance", current, max_turnover=0.1)
    assert np.abs(w - current).sum() <= 0.1 + 1e-4 and w.sum() == pytest.approx(1)
    liked = solve(r.to_numpy(), "mean_variance", current, forecast=np.array([0, 0, 0, 0, 0.003]))
    plain = solve(r.to_numpy(), "mean_variance", current, forecast=np.zeros(5))
    assert liked[4] > plain[4] + 0.2
    weights = optimal_weights(r, "cvar", window=100, rebalance=20, max_turnover=0.15)
    drifted = weights.shift() * (1 + r)
    drifted = drifted.div(drifted.sum(axis=1), axis=0)
    trades = (weights - drifted).abs().sum(axis=1).iloc[101:]
    assert trades.max() < 0.15 + 1e-3 and (trades[np.arange(len(trades)) % 20 != 19] < 1e-9).all()


def test_names_with_gaps_wait_and_are_closed():
    r = market(6)
    r.iloc[:150, 0] = np.nan  # listed late
    r.iloc[170:, 4] = np.nan  # delisted
    w = optimal_weights(r, "minimum_variance", window=60, rebalance=10, max_turnover=0.05)
    assert not w.A.iloc[:210].any() and w.A.iloc[-1] > 0 and w.E.iloc[160] > 0 and not w.E.iloc[185:].any()
    assert (np.abs(w.iloc[60:].sum(axis=1) - 1) < 1e-9).all()
    run = run_portfolio(w.to_numpy(), r.to_numpy(), TradingCosts(2), sessions=r.index)
    assert np.isfinite(run.daily.to_numpy()).all()


@pytest.mark.parametrize(
    "options, error, word",
    [
        (dict(method="kelly"), EvaluateError, "risk_parity"),
        (dict(window=5), EvaluateError, "at least 20"),
        (dict(window=400), NotEnoughSessions, "no window of 400"),
        (dict(method="risk_parity", max_turnover=0.1), EvaluateError, "no room"),
        (dict(window=100, max_weight=0.1), EvaluateError, "whole capital"),
    ],
)
def test_what_cannot_be_solved_is_refused(options, error, word):
    with pytest.raises(error, match=word):
        optimal_weights(market(), **options)


DAYS = pd.DatetimeIndex(["2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05"])


def rates(lag_hours):
    closes = get_calendar("XNYS").closes(DAYS)
    return pd.DataFrame(
        dict(
            currency="GBP",
            event_time=closes,
            known_at=closes + pd.Timedelta(hours=lag_hours),
            close=[1.1, 1.2, 1.3, 1.4],
        )
    )


def test_a_rate_is_used_from_when_it_is_known():
    prices = pd.DataFrame({"X": [10.0] * 4, "Y": [5.0] * 4}, DAYS)
    where = {"X": "GBP", "Y": "USD"}
    at_once, later = in_currency(prices, rates(0), where), in_currency(prices, rates(1), where)
    assert at_once.X.tolist() == pytest.approx([11, 12, 13, 14]) and at_once.Y.tolist() == [5] * 4
    assert np.isnan(later.X.iloc[0]) and later.X.tolist()[1:] == pytest.approx([11, 12, 13])
    late = rates(0)
    late.loc[3, "close"] = 99
    pd.testing.assert_frame_equal(in_currency(prices, late, where).iloc[:3], at_once.iloc[:3])


def test_corrections_and_old_rates():
    table = rates(0)
    fixed = pd.DataFrame(
        dict(currency="GBP", event_time=table.event_time[1], known_at=table.event_time[2], close=[7.0])
    )
    moments = pd.DatetimeIndex(table.event_time)
    both = pd.concat([table.iloc[:2], fixed])
    assert known_rates(both, moments, 5).tolist() == [1.1, 1.2, 7.0, 7.0], "corrected once that is known"
    old = pd.concat([table, fixed.assign(event_time=table.event_time[0])])
    assert known_rates(old, moments, 5).tolist() == [1.1, 1.2, 1.3, 1.4], (
        "an old day's correction is not news"
    )
    assert np.isnan(known_rates(table, moments + pd.Timedelta(days=30), 5)).all()
    assert np.isnan(known_rates(table.iloc[:0], moments, 5)).all()


def test_unusable_rates_are_named():
    prices = pd.DataFrame({"X": [10.0] * 4}, DAYS)
    with pytest.raises(EvaluateError, match="not stated"):
        in_currency(prices, rates(0), {})
    with pytest.raises(EvaluateError, match="no usable rate from JPY"):
        in_currency(prices, rates(0), {"X": "JPY"})
    with pytest.raises(EvaluateError, match="above zero"):
        in_currency(prices, rates(0).assign(close=-1.0), {"X": "GBP"})
    with pytest.raises(ColumnsUnmapped, match="known_at"):
        in_currency(prices, rates(0).drop(columns="known_at"), {"X": "GBP"})

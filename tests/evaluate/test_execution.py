"""Strategies and the account: two engines agree to the cent, and every cost is what its formula says."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import EvaluateError
from stockpredict.evaluate import execution, strategies
from stockpredict.evaluate.backtest import backtest
from stockpredict.evaluate.event_backtest import run_events
from stockpredict.evaluate.execution import TradingCosts, run_portfolio

TOUGH = dict(impact=0.8, borrow=0.03, participation=0.08, delisting_return=-0.4)


def market(seed, sessions=160, names=11):
    "Prices with halts, delistings, late starts and crashes; their returns, traded values and a score."
    rng = np.random.default_rng(seed)
    r = 0.03 * rng.standard_t(4, (sessions, names))
    r = np.clip(r, -0.7, None)
    halted = rng.random(r.shape) < 0.02
    halted |= np.vstack([halted[:1], halted[:-1]])
    r[halted] = np.nan
    r[sessions // 2 :, 3] = np.nan  # delisted
    r[: sessions // 3, 5] = np.nan  # listed late
    r[:, 7] = np.nan  # never traded
    prices = 50 * np.cumprod(1 + np.nan_to_num(r), 0)
    prices[np.isnan(r)] = np.nan
    returns = pd.DataFrame(prices).apply(lambda c: c.dropna().pct_change().reindex(c.index)).to_numpy()
    volume = 1e7 * np.exp(rng.normal(size=r.shape))
    volume[rng.random(r.shape) < 0.01] = 0
    score = rng.normal(size=r.shape)
    score[rng.random(r.shape) < 0.1] = np.nan
    return prices, returns, volume, score


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("costs", [TradingCosts(), TradingCosts(2, 4, **TOUGH)], ids=["flat", "all"])
def test_the_event_driven_engine_has_the_same_wealth_to_the_cent(seed, costs):
    prices, returns, volume, score = market(seed)
    kind = strategies.KINDS[seed % 5]
    weights = strategies.portfolio_weights(score, kind, horizon=1 + seed % 3)
    options = dict(costs=costs, dollar_volume=volume, delay=seed % 3, capital=1e7)
    slow, fast = run_events(weights, prices, **options), run_portfolio(weights, returns, **options)
    assert np.abs(np.array(slow.wealth) - fast.daily.wealth.to_numpy()).max() < 0.01
    assert abs(slow.wealth[-1] / 1e7 - 1) > 1e-3 and len(slow.journal) > 300
    paid = sum(cost for *_, cost in slow.journal)
    money = fast.daily[["commission", "spread", "impact"]].sum(axis=1) * np.r_[1e7, slow.wealth[:-1]]
    assert money.sum() == pytest.approx(paid, rel=1e-9)


@pytest.mark.parametrize("delay, horizon", [(0, 1), (1, 1), (2, 5)])
def test_without_compounding_it_is_the_plain_backtest(delay, horizon):
    _, returns, _, score = market(3)
    plain = backtest(score, returns, bps=7, delay=delay, horizon=horizon, delisting_return=-0.2)
    weights = strategies.portfolio_weights(score, horizon=horizon)
    costs = TradingCosts(7, delisting_return=-0.2)
    ours = run_portfolio(weights, returns, costs, delay=delay, compound=False)
    at = plain.gross.index[0]
    for name in ("gross", "turnover", "net"):
        mine = ours.daily[name].loc[at:]
        np.testing.assert_allclose(mine, getattr(plain, name), atol=1e-13)
    np.testing.assert_allclose(ours.weights.loc[at:], plain.weights, atol=1e-13)


def test_wealth_is_the_product_of_its_net_returns_and_costs_add_up():
    _, returns, volume, score = market(1)
    run = run_portfolio(
        strategies.portfolio_weights(score), returns, TradingCosts(2, 4, **TOUGH), dollar_volume=volume
    )
    d = run.daily
    np.testing.assert_allclose(1e6 * (1 + d.net).cumprod(), d.wealth, rtol=1e-12)
    np.testing.assert_allclose(d.gross - d.commission - d.spread - d.impact - d.borrow, d.net, atol=1e-15)
    assert (d[["commission", "spread", "impact", "borrow", "unfilled"]].sum() > 0).all()
    assert run.break_even == pytest.approx(1e4 * d.gross.sum() / d.turnover.sum())
    assert "geometric" in repr(run) and "break-even" in repr(run)


def test_the_future_of_weights_returns_and_volumes_does_not_matter():
    _, returns, volume, score = market(2)
    costs = TradingCosts(2, 4, **TOUGH)
    weights = strategies.portfolio_weights(score)
    base = run_portfolio(weights, returns, costs, dollar_volume=volume).daily.iloc[:90]
    late = [x.copy() for x in (weights, returns, volume)]
    late[0][90:] *= -1
    late[1][95:] *= 1.5
    late[2][90:] *= 9
    other = run_portfolio(late[0], late[1], costs, dollar_volume=late[2]).daily.iloc[:90]
    pd.testing.assert_frame_equal(base, other)


def test_impact_is_the_square_root_law_and_uses_past_averages_only():
    r = np.array([[np.nan], [0.02], [-0.02], [0.01]])
    volume = np.array([[5e5], [1e6], [1e6], [9e9]])
    weights = np.array([[0.0], [0.0], [0.5], [0.5]])
    costs = TradingCosts(0, impact=1.0, memory=10)
    d = run_portfolio(weights, r, costs, dollar_volume=volume, delay=1, capital=1e6).daily
    order = 0.5e6
    variance = 0.02**2  # two sessions of the same size, before the fill at session 3
    expected = order * np.sqrt(variance * order / 1e6)
    assert d.impact[3] * 1e6 == pytest.approx(expected) and d.turnover[3] == pytest.approx(0.5)
    assert not d.impact[:3].any()


def test_a_volume_limit_fills_in_parts_and_an_unknown_volume_not_at_all():
    r = np.zeros((8, 2))
    r[0] = np.nan
    volume = np.tile([1e6, np.nan], (8, 1))
    run = run_portfolio(
        np.tile([0.5, 0.5], (8, 1)), r, TradingCosts(0, participation=0.1), dollar_volume=volume, capital=1e6
    )
    assert run.weights[0].tolist() == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5])
    assert not run.weights[1].any()
    with pytest.raises(EvaluateError, match="traded value"):
        run_portfolio(np.ones((8, 2)), r, TradingCosts(impact=1))


def test_borrow_is_paid_on_shorts_also_while_halted():
    r = np.array([[np.nan, np.nan], [0, 0], [0, np.nan], [0, 0.0]])
    weights = np.tile([0.5, -0.5], (4, 1))
    d = run_portfolio(weights, r, TradingCosts(0, borrow=0.252), delay=0, compound=False).daily
    assert d.borrow.tolist() == pytest.approx([0, 0, 0.0005, 0.0005])
    one = TradingCosts(0, borrow=np.array([0.1, 0.252]))
    assert run_portfolio(weights, r, one, delay=0, compound=False).daily.borrow.tolist() == d.borrow.tolist()


def test_whole_fills_have_the_bits_of_fills_without_limits():
    "An account without impact and limits takes a loop of its own; the general one gives the same bits."
    _, r, _, score = market(4)
    weights = strategies.portfolio_weights(score)
    filled = execution.fill_whole, execution.fill_session
    books = [np.linspace(-50, 50, r.shape[1]) for _ in filled]
    for t in range(len(r)):
        want, half, none = weights[t], np.full(r.shape[1], 3e-4), np.zeros(1)
        sums = filled[0](books[0], want, 1e3, r[t], half)
        assert sums == filled[1](books[1], want, 1e3, r[t], (0.0, np.inf, False), half, none, none, none)
        assert np.array_equal(*books)


def test_wealth_never_falls_below_zero():
    r = np.array([[0.0], [0.1], [-0.5], [0.9]])
    run = run_portfolio(np.full((4, 1), 3.0), r, TradingCosts(0), delay=0)
    assert run.daily.wealth.tolist()[2:] == [0, 0] and run.net.tolist()[2:] == [-1, 0]
    assert not run.weights.iloc[2:].any().any() and np.isfinite(run.daily.to_numpy()).all()
    slow = run_events(np.full((4, 1), 3.0), 100 * np.cumprod(1 + r, 0), TradingCosts(0), delay=1)
    assert min(slow.wealth) >= 0


@pytest.mark.parametrize("kind", strategies.KINDS)
def test_weights_of_a_session_depend_on_its_scores_and_add_up(kind):
    score = market(4)[3]
    w = strategies.portfolio_weights(score, kind)
    other = score.copy()
    other[80:] = 1 / other[80:]
    np.testing.assert_array_equal(w[:80], strategies.portfolio_weights(other, kind)[:80])
    gross, total = np.abs(w).sum(1), w.sum(1)
    np.testing.assert_allclose(gross, 1)
    np.testing.assert_allclose(total, 1 if kind == "long_only" else 0, atol=1e-12)
    assert not w[np.isnan(score)].any()
    assert not strategies.portfolio_weights(np.full((2, 5), np.nan), kind).any()


def test_the_ends_are_the_highest_and_lowest():
    score = market(5)[3]
    w = strategies.portfolio_weights(score, "long_short", share=0.3)
    for row, s in zip(w, score, strict=True):
        known = np.flatnonzero(np.isfinite(s))
        n = min(max(round(len(known) * 0.3), 1), len(known) // 2)
        order = known[np.argsort(s[known])]
        assert set(np.flatnonzero(row > 0)) == set(order[-n:])
        assert set(np.flatnonzero(row < 0)) == set(order[:n])


def test_scaling_to_a_volatility_reads_the_past_and_reaches_it():
    rng = np.random.default_rng(0)
    r = np.repeat([0.005, 0.03], 400)[:, None] * rng.normal(size=(800, 30))
    w = strategies.portfolio_weights(rng.normal(size=r.shape))
    scaled = strategies.scale_to_volatility(w, r, annual=0.08, most=50)
    realised = [252**0.5 * (scaled[a:b] * r[a + 1 : b + 1]).sum(1).std() for a, b in ((100, 399), (500, 799))]
    assert realised == pytest.approx([0.08, 0.08], rel=0.15)
    other = r.copy()
    other[600:] *= 7
    changed = strategies.scale_to_volatility(w, other, annual=0.08, most=50)
    np.testing.assert_array_equal(changed[:600], scaled[:600])


def test_a_grid_is_what_single_runs_are():
    _, returns, _, score = market(6)
    grid = dict(kind=["rank", "long_only"], horizon=[1, 3], delay=[1, 2], bps=[0.0, 9.0])
    table, nets = execution.run_grid(score, returns, grid)
    assert len(table) == 16 == nets.shape[1]
    row = table.iloc[13]
    weights = strategies.portfolio_weights(score, row["kind"], horizon=int(row.horizon))
    alone = run_portfolio(weights, returns, TradingCosts(row.bps), delay=int(row.delay))
    np.testing.assert_allclose(nets[13], alone.net, atol=1e-15)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: strategies.portfolio_weights(np.ones((3, 2)), "best"), "long_only"),
        (lambda: strategies.portfolio_weights(np.ones((3, 2)), share=0), "share"),
        (lambda: TradingCosts(bps=-1), "negative"),
        (lambda: TradingCosts(delisting_return=-1.2), "more than everything"),
        (lambda: run_portfolio(np.ones((3, 2)), np.ones((3, 3))), "grid"),
        (lambda: run_portfolio(np.ones((3, 2)), np.ones((3, 2)), capital=0), "capital"),
        (lambda: run_portfolio(np.full((3, 2), np.inf), np.ones((3, 2))), "infinite"),
        (lambda: run_portfolio(np.ones((3, 2)), np.full((3, 2), np.inf)), "return is infinite"),
        (lambda: execution.run_grid(np.ones((3, 2)), np.ones((3, 2)), {}), "no combination"),
        (lambda: execution.run_grid(np.ones((3, 2)), np.ones((3, 2)), dict(lag=[1])), "lag"),
        (lambda: run_events(np.ones((3, 2)), np.zeros((3, 2))), "above zero"),
    ],
)
def test_what_cannot_be_traded_is_refused_with_a_reason(call, word):
    with pytest.raises(EvaluateError, match=word):
        call()


def test_a_table_of_predictions_is_traded_in_one_call():
    from stockpredict.evaluate.backtest import close_returns, session_grid
    from stockpredict.sources.simulate import sample_bars

    bars = sample_bars()
    returns = close_returns(bars)
    table = returns.stack().rename("score").rename_axis(["session", "ticker"]).reset_index()
    costs = TradingCosts(1, 2, impact=0.5, participation=0.05)
    ours = execution.run_frame(table, bars, costs, kind="decile", horizon=3, capital=1e8)
    volume = session_grid(bars.assign(close=bars.close * bars.volume, adj_close=bars.close * bars.volume))
    weights = strategies.portfolio_weights(returns.to_numpy(), "decile", horizon=3)
    arrays = run_portfolio(weights, returns.to_numpy(), costs, dollar_volume=volume.to_numpy(), capital=1e8)
    np.testing.assert_allclose(ours.net, arrays.net, atol=1e-15)
    assert ours.daily.impact.sum() > 0 and list(ours.weights) == list(returns)
    with pytest.raises(EvaluateError, match="two scores"):
        execution.run_frame(pd.concat([table, table.head(1)]), bars)

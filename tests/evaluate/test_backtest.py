"""The backtest against an independent day-by-day ledger, and against every way to flatter it."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import CalendarError, ColumnsUnmapped, EvaluateError, NotEnoughSessions
from stockpredict.core.errors import UnknownTicker
from stockpredict.sources.simulate import sample_bars, simulate
from stockpredict.evaluate.backtest import Backtest, annual_sharpe, backtest, backtest_frame, close_returns
from stockpredict.evaluate.backtest import cost_delay_surface, rank_weights
from stockpredict.evaluate.labels import make_labels
from stockpredict.algebra.panel import Panel


def world(seed=0, sessions=300, names=12, missing=0.0):
    rng = np.random.default_rng(seed)
    score, r = rng.normal(size=(sessions, names)), 0.02 * rng.normal(size=(sessions, names))
    r[rng.random(r.shape) < missing] = np.nan
    r[0] = np.nan
    score[rng.random(r.shape) < missing] = np.nan
    return score, r


def ledger(score, r, bps, delay, horizon):
    "The same rules kept the slow way: share counts in dictionaries, one name at a time."
    T, N = score.shape

    def target(t):
        out = dict.fromkeys(range(N), 0.0)
        for back in range(horizon):
            s = t - delay - back
            if s < 0:
                continue
            known = [i for i in range(N) if np.isfinite(score[s, i])]
            ranks = pd.Series({i: score[s, i] for i in known}).rank() if known else pd.Series(dtype=float)
            ranks = ranks - ranks.mean() if len(ranks) else ranks
            if len(ranks) and ranks.abs().sum() > 0:
                for i in known:
                    out[i] += ranks[i] / ranks.abs().sum() / horizon
        return out

    last = [max((t for t in range(T) if np.isfinite(r[t, i])), default=-1) for i in range(N)]
    book, gross, cost = dict.fromkeys(range(N), 0.0), [], []
    for t in range(T):
        want, earned, traded = target(t), 0.0, 0.0
        for i in range(N):
            if np.isfinite(r[t, i]):
                earned += book[i] * r[t, i]
                traded += abs(want[i] - book[i] * (1 + r[t, i]))
                book[i] = want[i]
            elif t > last[i] and book[i]:
                traded += abs(book[i])
                book[i] = 0.0
        gross.append(earned)
        cost.append(traded * bps / 1e4)
    return np.array(gross), np.array(cost)


@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize("delay, horizon", [(0, 1), (1, 1), (2, 1), (1, 5), (0, 3)])
def test_it_keeps_the_same_books_as_a_ledger(delay, horizon, missing):
    score, r = world(3, sessions=120, missing=missing)
    if missing:
        r[80:, 4] = np.nan  # delisted
    ours = backtest(score, r, bps=7, delay=delay, horizon=horizon)
    gross, cost = ledger(score, r, 7, delay, horizon)
    at = len(r) - len(ours.gross)
    assert not gross[:at].any() and not cost[:at].any()
    np.testing.assert_allclose(ours.gross, gross[at:], atol=1e-14)
    np.testing.assert_allclose(ours.net, (gross - cost)[at:], atol=1e-14)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 15))
def test_weights_are_neutral_with_gross_one(seed, names):
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(20, names)).round(1)
    score[rng.random(score.shape) < 0.3] = np.nan
    w = rank_weights(score)
    assert np.abs(w.sum(1)).max() < 1e-12
    gross = np.abs(w).sum(1)
    assert (np.isclose(gross, 1) | (gross == 0)).all() and (w[np.isnan(score)] == 0).all()
    for row, s in zip(w, score, strict=True):
        known = np.isfinite(s)
        assert (np.diff(row[known][np.argsort(s[known], kind="stable")]) >= -1e-12).all()


def test_a_score_that_says_nothing_holds_nothing():
    assert (
        not rank_weights(np.ones((3, 6))).any() and not rank_weights(np.array([[1.0] + [np.nan] * 5])).any()
    )
    with pytest.raises(NotEnoughSessions):
        backtest(np.ones((50, 6)), np.zeros((50, 6)))


def test_what_it_earns_is_the_label():
    "Filled at the close of t+1 and held one session: the one-session label with one session of delay."
    panel = Panel.from_bars(sample_bars())
    close = panel.close.values.double().numpy()
    rng = np.random.default_rng(2)
    score = rng.normal(size=close.shape)
    complete = np.isfinite(close).all(1)
    returns = pd.DataFrame(close).pct_change(fill_method=None).to_numpy()
    y = make_labels(panel, [1])[1].double().numpy()
    expected = np.nansum(rank_weights(score) * y, 1)
    result = backtest(score, returns, sessions=panel.sessions)
    checked = 0
    for t in range(len(close) - 2):
        if complete[t : t + 3].all():
            assert result.gross[panel.sessions[t + 2]] == pytest.approx(expected[t], abs=1e-6)
            checked += 1
    assert checked > 200


def test_the_future_of_the_score_does_not_matter():
    score, r = world(1)
    base = backtest(score, r)
    other = score.copy()
    other[200:] = np.random.default_rng(9).normal(size=other[200:].shape)
    again = backtest(other, r)  # session 200 is filled at 201, earns from 202
    pd.testing.assert_series_equal(base.net.loc[:200], again.net.loc[:200])
    assert (
        base.gross[201] == again.gross[201]
        and base.gross[202] != again.gross[202]
        and base.net[201] != again.net[201]
    )
    late = r.copy()
    late[250:] *= 2
    pd.testing.assert_frame_equal(backtest(score, r).weights[:250], backtest(score, late).weights[:250])


def test_scale_and_order_of_names_do_not_matter():
    score, r = world(2, missing=0.05)
    shuffle = np.random.default_rng(1).permutation(score.shape[1])
    base = backtest(score, r).net
    np.testing.assert_allclose(base, backtest(np.exp(score), r).net)
    np.testing.assert_allclose(base, backtest(score[:, shuffle], r[:, shuffle]).net)
    np.testing.assert_allclose(backtest(score, r, bps=0).net, -backtest(-score, r, bps=0).net)


def test_costs_are_linear_and_patience_is_cheaper():
    score, r = world(4)
    runs = {c: backtest(score, r, bps=c) for c in (0, 5, 10)}
    np.testing.assert_allclose(runs[10].gross - runs[10].net, 2 * (runs[5].gross - runs[5].net))
    pd.testing.assert_series_equal(runs[0].net, runs[0].gross, check_names=False)
    pd.testing.assert_series_equal(runs[0].with_costs(5).net, runs[5].net)
    assert backtest(score, r, horizon=5).turnover[10:].mean() < 0.5 * runs[5].turnover.mean()


def test_a_halted_name_waits_and_then_takes_the_whole_gap():
    r = np.zeros((8, 3))
    r[3:5, 0] = np.nan
    r[5, 0] = -0.5  # halted two sessions, opens at half
    score = np.tile([3.0, 2, 1], (8, 1))
    score[2:] = [1.0, 2, 3]  # wants out during the halt
    result = backtest(score, r, bps=0)
    assert result.weights.iloc[:, 0].tolist()[:2] == [0.5, 0.5] and (result.weights.loc[3:4, 0] == 0.5).all()
    assert result.gross[5] == pytest.approx(-0.25) and result.weights.loc[5, 0] == -0.5


def test_a_delisted_name_is_closed_once_and_its_last_return_can_be_set():
    r = np.zeros((8, 3))
    r[4:, 0] = np.nan
    score = np.tile([3.0, 2, 1], (8, 1))
    kind, strict = backtest(score, r, bps=10), backtest(score, r, bps=10, delisting_return=-0.3)
    assert (
        kind.gross.sum() == 0 and strict.gross[4] == pytest.approx(-0.15) and strict.gross.drop(4).sum() == 0
    )
    assert (
        (kind.weights.loc[4:, 0] == 0).all()
        and kind.turnover[4] == pytest.approx(0.5)
        and kind.turnover[5:].sum() == 0
    )


def test_same_bar_fills_show_in_a_market_of_bounce():
    "The mutant: filling at the close that made the score turns bounce into a fortune."
    rng = np.random.default_rng(5)
    printed = np.exp(np.cumsum(0.015 * rng.normal(size=(600, 40)), 0)) * (
        1 + 0.005 * rng.choice([-1, 1], (600, 40))
    )
    moves = np.vstack([np.full(40, np.nan), printed[1:] / printed[:-1] - 1])
    at_once, honest = (annual_sharpe(backtest(-moves, moves, bps=0, delay=d).gross) for d in (0, 1))
    assert at_once.value > 5 and at_once.p < 1e-4 and honest.p > 0.01
    surface = cost_delay_surface(-moves, moves, bps=(0, 5), delays=(0, 1, 2))
    assert (
        surface.loc[0, 0] > 5 > 2 > surface.loc[0, [1, 2]].abs().max()
        and (surface.loc[5] < surface.loc[0]).all()
    )


def test_a_planted_market_pays_and_a_null_market_does_not():
    ratios = {}
    for kind in ("planted", "null"):
        market = simulate(kind, tickers=40, sessions=700, rank_ic=0.1, seed=3)
        returns = close_returns(market.bars)
        momentum = (1 + returns.fillna(0)).rolling(5).apply(np.prod, raw=True)
        ratios[kind] = annual_sharpe(backtest(-momentum.to_numpy(), returns.to_numpy(), bps=0).gross)
    assert ratios["planted"].t > 5 and abs(ratios["null"].t) < 3


def test_the_interval_of_the_sharpe_ratio_covers():
    rng = np.random.default_rng(1)
    hits = sum(
        e.low < 0.05 * 252**0.5 < e.high
        for e in (annual_sharpe(rng.normal(0.0005, 0.01, 500)) for _ in range(300))
    )
    assert 275 <= hits <= 296


# --- frames
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bars():
    return sample_bars()


@pytest.fixture(scope="module")
def mine(bars):
    returns = close_returns(bars)
    rng = np.random.default_rng(0)
    return (
        returns.stack()
        .rename("score")
        .rename_axis(["session", "ticker"])
        .reset_index()
        .assign(score=lambda d: rng.normal(size=len(d)))
    )


def test_a_frame_gives_what_arrays_give(bars, mine):
    returns = close_returns(bars)
    score = mine.pivot(index="session", columns="ticker", values="score").reindex_like(returns)
    ours = backtest_frame(mine, bars, bps=3, horizon=2)
    arrays = backtest(score.to_numpy(), returns.to_numpy(), bps=3, horizon=2)
    np.testing.assert_allclose(ours.net, arrays.net)
    assert list(ours.weights.columns) == list(returns.columns)
    shuffled = backtest_frame(
        mine.sample(frac=1, random_state=1), bars.sample(frac=1, random_state=2), bps=3, horizon=2
    )
    pd.testing.assert_series_equal(ours.net, shuffled.net)


def test_text_dates_and_event_times_mean_the_same_sessions(bars, mine):
    base = backtest_frame(mine, bars).net
    text = mine.assign(session=mine.session.dt.strftime("%Y-%m-%d"))
    timed = mine.assign(event_time=get_calendar().closes(mine.session)).drop(columns="session")
    pd.testing.assert_series_equal(base, backtest_frame(text, bars).net)
    pd.testing.assert_series_equal(base, backtest_frame(timed, bars).net)


def test_returns_span_gaps_and_follow_adjusted_closes(bars):
    name = bars.ticker.iloc[0]
    rows = bars[bars.ticker == name].sort_values("event_time").reset_index(drop=True)
    holes = rows.drop(index=[10, 11])
    r, close = close_returns(holes)[name], rows.close.to_numpy()
    assert r.iloc[10:12].isna().all() and r.iloc[12] == pytest.approx(close[12] / close[9] - 1)
    split = rows.assign(adj_close=rows.close, close=np.where(rows.index < 50, rows.close * 2, rows.close))
    pd.testing.assert_series_equal(close_returns(split)[name], close_returns(rows)[name])


@pytest.mark.parametrize(
    "spoil, error, word",
    [
        (lambda d: d.drop(columns="score"), ColumnsUnmapped, "score"),
        (lambda d: d.drop(columns="session"), ColumnsUnmapped, "session"),
        (lambda d: d.assign(ticker=d.ticker + "X"), UnknownTicker, "X"),
        (lambda d: pd.concat([d, d.head(1)]), EvaluateError, "two scores"),
        (lambda d: d.assign(session=d.session + pd.Timedelta(days=4000)), EvaluateError, "no session"),
    ],
)
def test_unusable_predictions_are_refused_by_name(bars, mine, spoil, error, word):
    with pytest.raises(error, match=word):
        backtest_frame(spoil(mine), bars)


def test_a_moment_is_no_session_and_a_zone_is_asked_for(bars, mine):
    naive = get_calendar().closes(mine.session).tz_localize(None)
    for spoiled, word in [
        (mine.assign(session=mine.session.dt.tz_localize("UTC")), "time zone or a time of day"),
        (mine.assign(session=mine.session + pd.Timedelta(hours=16)), "time zone or a time of day"),
        (mine.drop(columns="session").assign(event_time=naive), "no time zone"),
        (mine.drop(columns="session").assign(event_time=naive.astype(str)), "no time zone"),
        (mine.assign(made_at=naive), "no time zone"),
    ]:
        with pytest.raises(CalendarError, match=word):
            backtest_frame(spoiled, bars)
    local = mine.drop(columns="session").assign(
        event_time=get_calendar().closes(mine.session).tz_convert("America/New_York").astype(str)
    )
    pd.testing.assert_series_equal(backtest_frame(mine, bars).net, backtest_frame(local, bars).net)


def test_a_score_made_after_its_fill_is_refused(bars, mine):
    "The stamp decides, not the date the row carries."
    closes = get_calendar().closes(mine.session)
    base = backtest_frame(mine, bars).net
    pd.testing.assert_series_equal(base, backtest_frame(mine.assign(made_at=closes), bars).net)
    pd.testing.assert_series_equal(
        backtest_frame(mine, bars, delay=0).net,
        backtest_frame(mine.assign(made_at=closes), bars, delay=0).net,
    )
    late = mine.assign(made_at=closes + pd.Timedelta(days=5))
    with pytest.raises(EvaluateError, match="made after their fill"):
        backtest_frame(late, bars)
    with pytest.raises(EvaluateError, match="made after their fill"):
        backtest_frame(mine.assign(made_at=closes + pd.Timedelta(minutes=1)), bars, delay=0)
    backtest_frame(late, bars, delay=6)
    with pytest.raises(EvaluateError, match="not a number"):
        backtest_frame(mine.assign(score="high"), bars)


def test_an_event_time_on_a_closed_day_is_refused(bars, mine):
    sunday = mine.head(3).drop(columns="session").assign(event_time=pd.Timestamp("2019-01-06T15:00Z"))
    with pytest.raises(CalendarError, match="2019-01-06"):
        backtest_frame(sunday, bars)
    with pytest.raises(CalendarError, match="someday"):
        backtest_frame(mine.assign(session="someday"), bars)


def test_it_prints_and_draws(bars, mine):
    import matplotlib

    matplotlib.use("agg")
    result = backtest_frame(mine, bars)
    assert "filled 1 later" in repr(result) and "Sharpe" in repr(result) and "<table" in result._repr_html_()
    assert list(result.summary().columns) == ["gross", "net"] and len(result.plot()) == 2


@pytest.mark.parametrize("bad", [dict(delay=-1), dict(horizon=0), dict(bps=-1)])
def test_nonsense_is_refused(bad):
    with pytest.raises(EvaluateError):
        backtest(*world(), **bad)
    with pytest.raises(EvaluateError):
        backtest(np.ones((5, 3)), np.ones((4, 3)))


def test_mean_and_compound_return_are_named_apart():
    "A book that gains and loses a half in turn: 0 % on average, nearly all lost when compounded."
    r = pd.Series([0.5, -0.5] * 126)
    book = Backtest(r, 0 * r, pd.DataFrame(np.ones((252, 2))), 0.0, 1, 1)
    table = book.summary()["net"]
    assert table["mean return a year"] == 0
    assert table["compound return a year"] == pytest.approx(0.75**126 - 1)
    assert "return -100.0% a year (geometric), +0.0% (mean)" in repr(book)
    ruined = Backtest(pd.Series([0.1, -1.2, 0.5]), 0 * r[:3], pd.DataFrame(np.ones((3, 2))), 0.0, 1, 1)
    assert ruined.equity.net.tolist() == pytest.approx([1.1, 0, 0])
    assert ruined.summary()["net"]["compound return a year"] == -1


def test_one_bad_price_does_not_decide_the_backtest_of_a_frame(bars, mine):
    "A price of 32-bit floats a hundred times too high, for one session."
    spoiled = bars.copy()
    prices = [c for c in ("open", "high", "low", "close", "adj_close") if c in bars]
    spoiled[prices] = spoiled[prices].astype("float32")
    at = spoiled.index[spoiled.ticker == spoiled.ticker.iloc[0]][80]
    spoiled.loc[at, prices] *= 100
    result = backtest_frame(mine, spoiled)
    assert result.gross.abs().max() < 0.1 and "cannot be trusted" in repr(result)
    assert int(result.notes[0].split()[0]) < 10, "few returns are concerned, whatever the type of the prices"
    assert result.with_costs(9).notes == result.notes
    assert "cannot be trusted" not in repr(backtest_frame(mine, bars))


def test_scores_that_are_the_outcome_are_a_suspected_leak():
    market = sample_bars(8)
    knows = close_returns(market).shift(-2).stack().rename("score").reset_index()
    knows.columns = ["session", "ticker", "score"]
    text = repr(backtest_frame(knows, market))
    assert "Suspected leak" in text and "made_at" in text
    assert "Suspected leak" not in repr(backtest_frame(knows, market, delay=2))


def test_frames_without_rows_tickers_or_numbers_and_doubled_bars_are_named(bars, mine):
    for table, prices, word in [
        (mine.head(0), bars, "no rows"),
        (mine.assign(ticker=[None, *mine.ticker[1:]]), bars, "no ticker"),
        (mine.assign(score=np.nan), bars, "finite number"),
        (mine, pd.concat([bars, bars.head(1)]), "two bars"),
    ]:
        with pytest.raises(EvaluateError, match=word):
            backtest_frame(table, prices)

"""Splits and dividends in columns, adjusted closes that were not published, genuine falls that must stay."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.quality.corporate_actions import ALL_DETECTORS
from stockpredict.quality.gate import inspect_bars
from stockpredict.quality.moves import measure_moves
from stockpredict.quality.scan import find_flags, usable_bars
from stockpredict.sources.bars import PRICES, tidy_bars
from stockpredict.sources.simulate import simulate
from stockpredict.testing.corruption import add_dividends

NOW = pd.Timestamp("2026-09-01", tz="UTC")
DAYS = get_calendar().sessions("2019-01-02", "2019-03-29")


def one_stock(close, ticker="AAA", **columns):
    "Daily bars of one ticker from its closes, with a range of one per cent and ordinary volumes."
    rng = np.random.default_rng(3)
    close = np.asarray(close, float)
    before = np.append(close[0], close[:-1])
    frame = pd.DataFrame({"ticker": ticker, "date": DAYS[: len(close)], "close": close})
    frame["open"] = np.where(np.abs(close / before - 1) < 0.1, before, close)
    frame["high"] = frame[["open", "close"]].max(axis=1) * 1.005
    frame["low"] = frame[["open", "close"]].min(axis=1) * 0.995
    frame["volume"] = rng.integers(900_000, 1_100_000, len(close)).astype(float)
    return tidy_bars(frame.assign(**columns), source="x")


def quiet_path(n=60, seed=1):
    return 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.008, n)))


def flags_of(bars):
    return find_flags(bars, detectors=ALL_DETECTORS)


@pytest.fixture(scope="module")
def market():
    market = simulate("null", tickers=12, sessions=300, seed=2)
    bars = add_dividends(market.bars.sort_values(["ticker", "event_time"], ignore_index=True))
    days = get_calendar().day_of(bars.event_time).strftime("%Y-%m-%d")
    for split in market.truth["splits"]:
        at = (bars.ticker == split["ticker"]) & (days == str(split["session"])[:10])
        bars.loc[at, "split"] = split["ratio"]
    return bars


def at_bar(bars, k, ticker=None):
    ticker = ticker or bars.ticker.iloc[0]
    return bars.index[bars.ticker == ticker][k]


def test_a_dividend_without_adjusted_closes_is_a_return_of_zero():
    close = np.array([100.0] * 30 + [95.0] * 10)
    dividend = np.where(np.arange(40) == 30, 5.0, 0.0)
    m = measure_moves(one_stock(close, dividend=dividend))
    assert abs(m.move[30]) < 1e-12
    assert measure_moves(one_stock(close)).move[30] == pytest.approx(np.log(0.95))


@pytest.mark.parametrize("ratio", [2.0, 1.5, 20.0, 100.0, 0.1, 0.01, 2.27])
def test_a_stated_split_that_the_closes_followed_is_no_error(ratio):
    path = quiet_path()
    close = np.where(np.arange(60) < 30, path, path / ratio)
    split = np.where(np.arange(60) == 30, ratio, 0.0)
    bars = one_stock(close, split=split)
    bars["volume"] = np.where(np.arange(60) < 30, bars.volume, bars.volume * ratio)
    assert flags_of(bars).empty, flags_of(bars)[["flag", "event_time"]]
    flagged = not flags_of(bars.assign(split=0.0)).empty
    assert flagged or ratio == 1.5, "and without the column a large one is flagged"


def test_a_split_that_the_vendor_divided_already_is_no_error_either():
    split = np.where(np.arange(60) == 30, 2.0, 0.0)
    bars = one_stock(quiet_path(), split=split)
    assert flags_of(bars).empty and np.abs(measure_moves(bars).move[1:]).max() < 0.1


def test_a_split_stated_on_the_wrong_day_is_still_found():
    path = quiet_path()
    close = np.where(np.arange(60) < 30, path, path / 2)
    bars = one_stock(close, split=np.where(np.arange(60) == 33, 2.0, 0.0))
    assert "split misplaced" in set(flags_of(bars).flag)


@pytest.mark.parametrize("part", ["all", "newest", "oldest", "middle", "every other"])
def test_an_empty_adjusted_close_was_not_published(market, part):
    "A fallback to a vendor that does not adjust, or a folder that mixes files, loses no ticker."
    at = market.groupby("ticker").cumcount()
    empty = {
        "all": at >= 0,
        "newest": at >= 200,
        "oldest": at < 100,
        "middle": (at > 100) & (at < 150),
        "every other": at % 2 == 0,
    }[part]
    bars = market.assign(adj_close=market.adj_close.mask(empty), known_at=market.event_time)
    result = inspect_bars(bars, now=NOW)
    assert not len(result.bad) and result.usable.all(), result.flags.flag.value_counts()
    assert np.isfinite(measure_moves(bars).move[measure_moves(bars).position > 0]).all()


def test_a_ticker_with_and_one_without_adjusted_closes_share_a_table(market):
    first = market[market.ticker == market.ticker.iloc[0]]
    bars = pd.concat([first.drop(columns=["adj_close"]).assign(ticker="ZZZ"), market], ignore_index=True)
    assert usable_bars(bars, flags_of(bars)).all()


def test_a_wrong_adjusted_close_is_still_found(market):
    at = at_bar(market, 100)
    for value in (0.0, -1.0, -np.inf, np.inf):
        bars = market.assign(adj_close=market.adj_close.where(market.index != at, value))
        assert "adjusted impossible" in set(flags_of(bars).flag), value


def test_profit_warnings_are_no_missing_splits():
    "Falls of 20 to 33 % overnight with two to four times the volume; hardly any is taken for a split."
    rng = np.random.default_rng(5)
    called = []
    for seed in range(1, 4):
        bars = simulate("realistic", tickers=60, sessions=300, seed=seed).bars
        bars = bars.sort_values(["ticker", "event_time"], ignore_index=True)
        where = []
        for _, rows in bars.groupby("ticker"):
            if len(rows) > 120:
                at = int(rng.choice(rows.index[40:-40]))
                fall = rng.uniform(0.20, 0.33)
                bars.loc[rows.index[rows.index < at], [*PRICES, "adj_close"]] /= 1 - fall
                bars.loc[at, "volume"] *= rng.uniform(2, 4)
                where.append(at)
        flags = flags_of(bars)
        wrong = flags[~flags.usable & flags.flag.isin(["split missing", "step unexplained"])]
        keys = pd.MultiIndex.from_frame(bars.loc[where, ["ticker", "event_time"]])
        called += list(keys.isin(pd.MultiIndex.from_frame(wrong[["ticker", "event_time"]])))
    assert len(called) > 120 and np.mean(called) < 0.06, f"{np.mean(called):.1%} of {len(called)}"


def test_an_unexplained_special_dividend_is_not_usable_and_a_stated_one_is():
    path = quiet_path()
    close = np.where(np.arange(60) < 30, path, path * 0.18)
    bars = one_stock(close)
    flags = flags_of(bars)
    assert not usable_bars(bars, flags)[30] and "step unexplained" in set(flags.flag)
    paid = np.where(np.arange(60) == 30, path[29] * 0.82, 0.0)
    bars = one_stock(close, dividend=paid)
    assert usable_bars(bars, flags_of(bars)).all(), flags_of(bars)[["flag", "event_time"]]


def test_a_crash_in_a_rush_of_trading_stays_usable():
    path = quiet_path()
    bars = one_stock(np.where(np.arange(60) < 30, path, path * 0.18))
    bars["volume"] = bars.volume * np.where(np.arange(60) == 30, 15, 1)
    assert usable_bars(bars, flags_of(bars)).all()


def test_dividends_a_hundred_times_too_small_are_seen_although_the_adjusted_close_agrees():
    "Eleven quarterly dividends of 0.014 on a price near 80, with ex-day falls of 1.4."
    days = get_calendar().sessions("2017-01-03", "2019-12-31")
    rng = np.random.default_rng(11)
    n = len(days)
    ex_days = np.arange(40, n, 64)[:11]
    night = rng.normal(0, 0.006, n)
    night[ex_days] -= 1.4 / 80
    close = 80 * np.exp(np.cumsum(night + rng.normal(0, 0.008, n) + 1.4 / 80 * 11 / n))
    opened = np.append(80, close[:-1]) * np.exp(night)
    frame = pd.DataFrame({"ticker": "AAA", "date": days, "open": opened, "close": close, "volume": 1e6})
    frame["high"] = frame[["open", "close"]].max(axis=1) * 1.003
    frame["low"] = frame[["open", "close"]].min(axis=1) * 0.997
    for size, expected in ((0.014, 11), (1.4, 0)):
        dividend = np.zeros(n)
        dividend[ex_days] = size
        left = np.log1p(-dividend / np.append(np.nan, close[:-1]))
        later = np.nan_to_num(left)[::-1].cumsum()[::-1] - np.nan_to_num(left)
        bars = tidy_bars(
            frame.assign(
                dividend=dividend, adj_close=close * np.exp(later), volume=rng.lognormal(14, 0.3, n)
            ),
            source="x",
        )
        assert (flags_of(bars).flag == "dividend scale").sum() == expected
        alone = bars.drop(columns="adj_close")
        assert (flags_of(alone).flag == "dividend scale").sum() == expected

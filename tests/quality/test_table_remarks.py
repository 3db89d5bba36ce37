"""Remarks about whole tables: unannounced closures and special sessions, weekly bars, copies."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import BatchRefused
from stockpredict.quality.gate import inspect_bars
from stockpredict.sources.bars import tidy_bars
from stockpredict.sources.simulate import simulate

NOW = pd.Timestamp("2026-09-01", tz="UTC")


@pytest.fixture(scope="module")
def market():
    bars = simulate("null", tickers=20, sessions=260, seed=3).bars
    return bars.sort_values(["ticker", "event_time"], ignore_index=True)


def remark_of(result, rule):
    return result.table().loc[rule]


def days_of(bars, exchange="XNYS"):
    return get_calendar(exchange).day_of(bars.event_time)


def test_a_session_on_which_nobody_traded_is_said_once_and_is_no_gap(market):
    day = days_of(market)[100]
    bars = market[days_of(market) != day].reset_index(drop=True)
    before = inspect_bars(market, now=NOW)
    result = inspect_bars(bars, now=NOW)
    row = remark_of(result, "no trades")
    assert row.failed == 1 and row.examples == [str(day.date())]
    assert (result.flags.flag == "gap").sum() == (before.flags.flag == "gap").sum()
    assert remark_of(before, "no trades").failed == 0


def test_a_session_that_one_ticker_lacks_is_still_a_gap(market):
    day = days_of(market)[100]
    ticker = market.ticker.iloc[0]
    bars = market[(days_of(market) != day) | (market.ticker != ticker)].reset_index(drop=True)
    flags = inspect_bars(bars, now=NOW).flags
    assert (flags[flags.flag == "gap"].ticker == ticker).sum() == 1


def test_two_tickers_are_no_market(market):
    few = market[market.ticker.isin(market.ticker.unique()[:2])]
    day = days_of(few)[100]
    bars = few[days_of(few) != day].reset_index(drop=True)
    result = inspect_bars(bars, now=NOW)
    assert remark_of(result, "no trades").failed == 0 and (result.flags.flag == "gap").sum() >= 2


def test_typhoons_in_hong_kong_are_no_missing_data():
    calendar = get_calendar("XHKG")
    days = calendar.sessions("2023-08-01", "2023-10-31")
    rng = np.random.default_rng(1)
    frames = []
    for k in range(6):
        close = 50 * np.exp(np.cumsum(rng.normal(0, 0.01, len(days))))
        frames.append(pd.DataFrame(dict(ticker=f"{k + 1:04}.HK", date=days, close=close, volume=1e6)))
    result = inspect_bars(tidy_bars(pd.concat(frames), source="x", calendar="XHKG"), "XHKG", now=NOW)
    assert not len(result.bad) and "gap" not in set(result.flags.flag)
    assert remark_of(result, "no trades").failed == 0, "the known corrections hold these two days"


def test_a_special_session_that_the_calendar_lacks_is_named_with_its_remedy():
    plain, special = "XBOM", "XBOM; +2024-03-02 09:15-12:30 disaster recovery test"
    days = get_calendar(special).sessions("2024-02-01", "2024-03-28")
    frames = [
        pd.DataFrame(dict(ticker=t, date=days, close=100 + np.arange(len(days)) / 10, volume=1e5))
        for t in ("RELIANCE", "TCS", "M&M", "INFY")
    ]
    frame = pd.concat(frames)
    result = inspect_bars(tidy_bars(frame, source="x", calendar=plain), plain, now=NOW)
    row = remark_of(result, "traded on a closed day")
    assert row.examples == ["2024-03-02"] and "+2024-03-02" in row.sentence
    with pytest.raises(BatchRefused, match=r"calendar = XBOM; \+2024-03-02"):
        result.raise_if_refused()
    with_it = inspect_bars(tidy_bars(frame, source="x", calendar=special), special, now=NOW)
    assert not len(with_it.bad) and remark_of(with_it, "traded on a closed day").failed == 0


@pytest.mark.parametrize("rule, word", [("W-FRI", "week"), ("ME", "month")])
def test_weekly_and_monthly_bars_are_named_once(market, rule, word):
    long = simulate("null", tickers=5, sessions=1500, seed=1).bars
    per = long.assign(day=get_calendar().day_of(long.event_time)).set_index("day")
    groups = per.groupby("ticker").resample(rule).close.last().dropna().reset_index()
    day = [get_calendar().sessions("2010-01-01", d)[-1] for d in groups.day]
    bars = tidy_bars(groups.assign(day=day), source="x")
    result = inspect_bars(bars, now=NOW)
    assert remark_of(result, f"looks {word}ly").failed == 5
    assert "gap" not in set(result.flags.flag) and f"look like {word}ly bars" in result._repr_html_()
    off = groups.assign(day=groups.day + pd.Timedelta("1D" if word == "week" else "0D"))  # a Saturday
    off = off[[not get_calendar().is_session(d) for d in off.day]] if word == "week" else off
    with pytest.raises(BatchRefused, match=f"look like {word}ly bars"):
        inspect_bars(tidy_bars(off, source="x"), now=NOW).raise_if_refused()


def copies_of_the_last_day(market, **changes):
    last = market[market.event_time == market.event_time.max()]
    return pd.concat([market, last.assign(**changes)], ignore_index=True), last


def test_copies_with_the_same_close_keep_the_close_and_set_the_volume_aside(market):
    bars, last = copies_of_the_last_day(market, volume=lambda b: b.volume * 0.6)
    result = inspect_bars(bars, now=NOW, limit=0.001)
    assert not result.refused and result.faulty == 0
    good = result.good[result.good.event_time == market.event_time.max()].reset_index(drop=True)
    assert good.ticker.tolist() == last.ticker.tolist() and good.close.tolist() == last.close.tolist()
    assert good.volume.isna().all() and good.open.tolist() == last.open.tolist()
    assert set(result.bad.reason) == {"copies disagree"} and len(result.bad) == 2 * len(last)
    assert set(result.bad.volume) == set(last.volume) | set(last.volume * 0.6)
    assert len(result.good) == len(market)


def test_a_batch_of_nothing_but_such_copies_is_not_refused(market):
    last = market[market.event_time == market.event_time.max()]
    twice = pd.concat([last, last.assign(volume=1.0)], ignore_index=True)
    result = inspect_bars(twice, now=NOW).raise_if_refused()
    assert result.good.close.tolist() == last.close.tolist()


def test_copies_with_different_closes_are_both_set_aside(market):
    bars, last = copies_of_the_last_day(market, close=lambda b: b.open, volume=1.0)
    result = inspect_bars(bars, now=NOW)
    assert set(result.bad.reason) == {"conflicting duplicate"} and len(result.bad) == 2 * len(last)


def test_three_copies_agree_only_if_all_do(market):
    one = market[:1]
    trio = pd.concat(
        [market, one.assign(volume=1.0), one.assign(close=one.close * 1.0001)], ignore_index=True
    )
    result = inspect_bars(trio, now=NOW)
    assert result.bad.reason.tolist() == ["conflicting duplicate"] * 3


def test_the_sentence_says_why_a_small_batch_above_the_limit_is_accepted(market):
    bars = market[:79].copy()
    bars.loc[[3, 4], "close"] = 0.0
    sentence = inspect_bars(bars, now=NOW).summary()
    assert "2.53% faulty, limit 2.00%; 2 bad rows are accepted in a batch of any size" in sentence
    assert "1 row," in inspect_bars(market[:1], now=NOW).summary()

"""The bars table: tickers, columns, times, numbers."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import BarsInvalid, ColumnsUnmapped
from stockpredict.quality.gate import inspect_bars
from stockpredict.sources.bars import (
    BAR_COLUMNS,
    canonical_ticker,
    empty_bars,
    parse_numbers,
    tidy_bars,
    wide,
)

# ---- calendar


@pytest.fixture(scope="module")
def nyse():
    return get_calendar("XNYS")


# ---- bars


@pytest.mark.parametrize(
    "raw, form",
    [
        ("aapl", "AAPL"),
        (" BRK.B\n", "BRK-B"),
        ("brk-b", "BRK-B"),
        ("BMW.DE", "BMW.DE"),
        ("VOD.L", "VOD.L"),
        ("^GSPC", "^GSPC"),
        ("EURUSD=X", "EURUSD=X"),
        ("M&M", "M&M"),
        ("j&kbank", "J&KBANK"),
        ("0700.HK", "0700.HK"),
        ("A" * 16, "A" * 16),
    ],
)
def test_tickers_have_one_form(raw, form):
    assert canonical_ticker(raw) == form == canonical_ticker(form)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "  ",
        "АAPL",
        "ＡＡＰＬ",
        "ıbm",
        "ſo",
        "A" * 17,
        "A" * 10_000,
        "A B",
        "../etc",
        "..",
        "-",
        "a;b",
        "A\x00",
        "A\nB",
        "☃",
        None,
        7,
        float("nan"),
        "BRK/B",
    ],
)
def test_what_is_no_ticker_is_refused_briefly(raw):
    with pytest.raises(BarsInvalid) as e:
        canonical_ticker(raw)
    assert len(str(e.value)) < 300 and str(e.value).isprintable()


@given(st.text(max_size=20))
def test_a_ticker_is_canonical_or_refused(raw):
    try:
        form = canonical_ticker(raw)
    except BarsInvalid:
        return
    assert canonical_ticker(form) == form and 1 <= len(form) <= 16 and form.isascii() and "/" not in form


VENDOR = pd.DataFrame(
    dict(
        ticker=["KO", "KO", "PEP"], date=["2019-07-02", "2019-07-03", "2019-07-03"], close=[51.0, 52.0, 134.0]
    )
)


def test_empty_bars_and_types():
    assert list(empty_bars().columns) == BAR_COLUMNS and len(empty_bars()) == 0
    assert (tidy_bars(VENDOR, source="x").dtypes == empty_bars().dtypes).all()
    assert len(tidy_bars(VENDOR.iloc[:0], source="x")) == 0


@pytest.mark.parametrize(
    "names",
    [
        dict(ticker="Symbol", date="Date", close="Close"),
        dict(ticker="SYMBOL", date="datetime", close="CLOSE"),
        dict(ticker="Ticker", date="Timestamp", close="c"),
        dict(ticker="Name", date="date", close="close"),
        dict(ticker="sym", date="Event Time", close="Close Price"),
    ],
)
def test_common_column_names_are_recognised(names):
    assert tidy_bars(VENDOR.rename(columns=names), source="x").equals(tidy_bars(VENDOR, source="x"))


DATES = ["2019-07-02", "2019-07-03", "2019-07-03"]


@pytest.mark.parametrize(
    "dates",
    [
        DATES,
        pd.to_datetime(DATES),
        pd.to_datetime(DATES).date,
        pd.to_datetime(DATES).tz_localize("UTC"),
        pd.to_datetime(DATES).tz_localize("America/New_York"),
        pd.to_datetime(["2019-07-02T20:00Z", "2019-07-03T17:00Z", "2019-07-03T20:00Z"]),
        ["2019-07-02T00:00:00-04:00", "2019-07-03", "2019-07-03T17:00:00Z"],
        [20190702, 20190703, 20190703],
        [pd.Timestamp("2019-07-02"), pd.Timestamp("2019-07-03"), "2019-07-03"],
        ["2019-07-02 00:00:00", "2019-07-03 16:00:00", "2019-07-03"],
    ],
    ids=range(10),
)
def test_times_in_every_common_form_mean_the_same_sessions(dates):
    assert tidy_bars(VENDOR.assign(date=dates), source="x").equals(tidy_bars(VENDOR, source="x"))


def test_the_index_may_hold_the_dates():
    assert tidy_bars(VENDOR.set_index("date"), source="x").equals(tidy_bars(VENDOR, source="x"))
    assert tidy_bars(VENDOR.set_index(["ticker", "date"]), source="x").equals(tidy_bars(VENDOR, source="x"))
    stamped = VENDOR[["ticker", "close"]].set_index(pd.DatetimeIndex(VENDOR.date, name="Date"))
    assert tidy_bars(stamped, source="x").equals(tidy_bars(VENDOR, source="x"))


def test_nothing_is_invented_and_no_row_is_lost(nyse):
    one = VENDOR.iloc[:1]
    odd = pd.concat(
        [VENDOR, one, one.assign(date="2019-07-06"), one.assign(date="soon"), one.assign(close="abc")]
    )
    bars = tidy_bars(odd.assign(open=[None, "50.5", "", "nan", "x", None, 1]), source="x", lag_minutes=15)
    assert len(bars) == 7 and bars.high.isna().all() and bars.duplicated(["ticker", "event_time"]).sum() == 2
    assert (
        bars.event_time.isna().sum() == 1
        and np.isneginf(bars.close).sum() == 1
        and np.isneginf(bars.open).sum() == 1
    )
    assert str(bars.event_time[bars.event_time.dt.day == 6].iloc[0]) == "2019-07-06 20:00:00+00:00"
    assert ((bars.known_at - bars.event_time).dropna() == pd.Timedelta("15min")).all()


def test_a_time_stated_before_the_close_is_kept_and_set_aside_by_the_gate():
    bars = tidy_bars(
        VENDOR.assign(known_at=["2019-07-02", "2019-07-05T08:00Z", None]), source="x", lag_minutes=15
    )
    assert [str(t) for t in bars.known_at] == [
        "2019-07-02 20:15:00+00:00",  # the bar's own day states nothing: the lag holds
        "2019-07-05 08:00:00+00:00",
        "2019-07-03 17:15:00+00:00",
    ]
    assert bars.stated.tolist() == [False, True, False]
    early = bars.assign(known_at=bars.event_time - pd.Timedelta("1min"), stated=True)
    assert inspect_bars(early, now="2024-01-01T00:00Z").bad.reason.str.contains("known too early").all()


@pytest.mark.parametrize(
    "frame, columns, part",
    [
        (VENDOR.rename(columns=dict(close="clsoe")), {}, "did you mean clsoe"),
        (VENDOR.drop(columns="ticker"), {}, "nothing looks like 'ticker'"),
        (VENDOR, dict(close="Clse"), "'Clse' is not among them"),
        (VENDOR, dict(clse="close"), "did you mean close"),
        (pd.DataFrame(dict(a=[1])), {}, "nothing looks like 'close'"),
    ],
)
def test_columns_that_cannot_be_placed_are_refused(frame, columns, part):
    with pytest.raises(ColumnsUnmapped, match=part):
        tidy_bars(frame, source="x", columns=columns)


@pytest.mark.parametrize(
    "change, part",
    [
        (dict(date=["03.07.2019"] * 3), "cannot be read as dates"),
        (dict(close=["1,5"] * 3), "are not numbers"),
        (dict(ticker=["KO", "K O", "<b>"]), "2 of 3 values of the ticker column"),
    ],
)
def test_a_wrong_column_is_refused_as_a_whole(change, part):
    with pytest.raises(BarsInvalid, match=part):
        tidy_bars(VENDOR.assign(**change), source="x")


def test_an_explicit_mapping_goes_first():
    both = VENDOR.assign(last=[1.0, 2.0, 3.0], name="Coca Cola")
    assert tidy_bars(both, source="x", columns=dict(close="last")).close.tolist() == [1.0, 2.0, 3.0]


def test_tidying_is_idempotent_and_wide_shows_it():
    bars = tidy_bars(VENDOR.assign(adj_close=VENDOR.close / 2), source="x", lag_minutes=15)
    again = tidy_bars(bars, source="x", lag_minutes=0)
    assert again.drop(columns="stated").equals(bars) and "adj_close" in bars
    assert again.stated.all(), "its times are now those of the table"
    assert wide(bars).shape == (2, 2) and np.isnan(wide(bars).loc["2019-07-02", "PEP"])


def test_numbers_tell_absent_from_unreadable():
    assert parse_numbers([1, "2.5", " 3 ", "", None, "-", "null"], "close").tolist()[:3] == [1, 2.5, 3]
    assert parse_numbers([1, 2, "x"], "close").tolist() == [1, 2, -np.inf]


def test_malformed_tickers_are_set_aside_by_row_and_the_rest_is_stored():
    days = get_calendar().sessions("2019-07-01", "2019-07-31")
    names = ["KO", "M&M", "PEP", "K O", None, "0700.HK", 7.0]
    frame = pd.concat([pd.DataFrame(dict(ticker=[n] * len(days), date=days, close=10.0)) for n in names])
    bars = tidy_bars(frame, source="x")
    result = inspect_bars(bars, limit=0.5, now=pd.Timestamp("2024-01-01", tz="UTC"))
    assert len(bars) == len(frame) and set(result.bad.reason) == {"ticker malformed"}
    assert sorted(result.good.ticker.unique()) == ["0700.HK", "KO", "M&M", "PEP"]
    assert len(result.bad) == 3 * len(days)
    assert tidy_bars(result.good, source="x").ticker.equals(result.good.ticker)


@pytest.mark.parametrize(
    "stamp, day",
    [
        ("2022-10-27 00:00+01:00", "2022-10-27"),
        ("2022-10-27T00:00:00+01:00", "2022-10-27"),
        ("2022-10-27 00:00:00.000+0900", "2022-10-27"),
        ("2022-10-27T00:00:00-08:00", "2022-10-27"),
        ("2022-10-27T00:00:00Z", "2022-10-27"),
        ("2022-10-27T20:00:00Z", "2022-10-27"),
        ("2022-10-26T21:00:00-04:00", "2022-10-26"),
        ("2022-10-26T23:30:00+01:00", "2022-10-26"),
    ],
)
def test_midnight_in_any_zone_is_a_date(stamp, day):
    frame = pd.DataFrame(dict(ticker="KO", date=[stamp, "2022-10-25"], close=1.0))
    days = get_calendar().day_of(tidy_bars(frame, source="x").event_time)
    assert days[-1] == pd.Timestamp(day)
    typed = frame.iloc[:1].assign(date=pd.to_datetime([stamp]))
    assert get_calendar().day_of(tidy_bars(typed, source="x").event_time)[0] == pd.Timestamp(day)


@pytest.mark.parametrize("zone", ["Europe/London", "Asia/Tokyo", "America/New_York", "UTC"])
@pytest.mark.parametrize("exchange", ["XNYS", "XTKS", "XLON", "XASX"])
def test_midnights_of_a_year_are_their_dates(zone, exchange):
    calendar = get_calendar(exchange)
    days = calendar.sessions("2022-01-01", "2022-12-31")
    stamps = days.tz_localize(zone)
    assert (calendar.day_of(stamps) == days).all()
    text = pd.Series(stamps).map(lambda x: x.isoformat())
    frame = pd.DataFrame(dict(ticker="KO", date=text, close=1.0))
    assert (calendar.day_of(tidy_bars(frame, source="x", calendar=calendar).event_time) == days).all()


def test_a_table_of_minutes_is_named_and_not_called_duplicates():
    minutes = pd.date_range("2019-07-01 09:30", "2019-07-01 16:00", freq="5min")
    frame = pd.DataFrame(dict(ticker="KO", date=minutes.astype(str), close=51.0))
    for times in (frame.date, minutes, minutes.tz_localize("America/New_York")):
        with pytest.raises(BarsInvalid, match="these look like intraday bars"):
            tidy_bars(frame.assign(date=times), source="x")
    twice = pd.concat([VENDOR] * 4, ignore_index=True)
    assert len(tidy_bars(twice, source="x")) == 12, "copies of a day are no minutes"

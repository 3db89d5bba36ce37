"""The calendar against its source, known days, walking and refusals."""

import pickle

import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import CalendarError

# ---- calendar


@pytest.fixture(scope="module")
def nyse():
    return get_calendar("XNYS")


def test_calendar_agrees_with_its_source(nyse):
    import exchange_calendars as xc

    source = xc.get_calendar("XNYS", start="1990-01-01")
    days = nyse.sessions("1995-01-01", "2025-12-31")
    expected = source.closes.loc[days[0] : days[-1]]
    assert (nyse.closes(days) == pd.DatetimeIndex(expected)).all() and len(days) == len(expected)
    assert nyse.closes(days).dtype == "datetime64[us, UTC]" and days.dtype == "datetime64[us]"


def test_known_days(nyse):
    assert (
        not nyse.is_session("2001-09-12")
        and not nyse.is_session("2025-01-09")
        and nyse.is_session("2024-02-29")
    )
    assert str(nyse.close("2019-07-03")) == "2019-07-03 17:00:00+00:00"
    assert (
        str(nyse.close("2020-03-06")) == "2020-03-06 21:00:00+00:00"
        and str(nyse.close("2020-03-09")) == "2020-03-09 20:00:00+00:00"
    )
    assert nyse.sessions()[0] == pd.Timestamp("1990-01-02")


def test_every_close_and_every_date_finds_its_session(nyse):
    days = nyse.sessions("2000-01-01", "2025-12-31")
    for times in (
        nyse.closes(days),
        days,
        days.tz_localize("UTC"),
        days.tz_localize("America/New_York"),
        nyse.closes(days) - pd.Timedelta("1h"),
    ):
        assert (nyse.session_of(times) == days).all()
    every = pd.date_range("2019-01-01", "2019-12-31").as_unit("us")
    assert (nyse.session_of(every).notna() == every.isin(days)).all()
    assert (
        nyse.event_times(every)[every.isin(days)] == nyse.closes(every[every.isin(days)])
    ).all() and nyse.event_times(every).notna().all()
    assert (nyse.day_of(nyse.event_times(every)) == every).all()


def test_walking_and_age(nyse):
    days = nyse.sessions("2019-01-01", "2019-12-31")
    assert (
        all(nyse.offset(days[0], n) == day for n, day in enumerate(days))
        and nyse.offset(days[9], -9) == days[0]
    )
    for day in days[[10, 40, 120]]:
        close = nyse.close(day)
        assert nyse.last_closed(close) == day and nyse.last_closed(close - pd.Timedelta("1s")) == nyse.offset(
            day, -1
        )
        assert nyse.age(days[0], close) == list(days).index(day)
    assert nyse.age("2019-11-27", "2019-12-02T12:00") == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.close("2020-07-04"),
        lambda c: c.closes(["2020-07-06", "1980-01-02"]),
        lambda c: c.offset("2020-07-06", 10_000),
        lambda c: c.age("2020-07-04"),
        lambda c: c.last_closed("1970-01-01"),
        lambda c: c.last_closed("2150-01-01"),
        lambda c: c.sessions(pd.NaT),
        lambda c: get_calendar("NOPE"),
    ],
)
def test_what_is_no_session_is_refused(nyse, call):
    with pytest.raises(CalendarError):
        call(nyse)


def test_calendars_are_shared_and_pickle_small(nyse):
    assert pickle.loads(pickle.dumps(nyse)) is nyse and len(pickle.dumps(nyse)) < 200
    assert get_calendar("XLON").tz == "Europe/London"

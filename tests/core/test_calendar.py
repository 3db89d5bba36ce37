"""The calendar against its source, known days, walking and refusals."""

import pickle

import pandas as pd
import pytest
from kill_points import sample

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import CalendarError, CalendarUnavailable, SettingsError, UnknownCalendar
from stockpredict.core.exchange_hours import KNOWN_CORRECTIONS, parse_special_day
from stockpredict.core.settings import Settings, load_settings

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
    assert nyse.sessions("1989-12-30")[0] == pd.Timestamp("1990-01-02")


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
        lambda c: c.closes(["2020-07-06", "1880-01-02"]),
        lambda c: c.offset("2020-07-06", 10_000),
        lambda c: c.age("2020-07-04"),
        lambda c: c.last_closed("1870-01-01"),
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


# ---- how far back, and what the library gets wrong


@pytest.mark.parametrize(
    "name, first",
    [
        ("XBOM", "1997-01-01"),
        ("XSHG", "1990-12-03"),
        ("XTKS", "1997-01-06"),
        ("XHKG", "1960-01-01"),
        ("XSAU", "2021-01-03"),
        ("XNYS", "1885-01-01"),
    ],
)
def test_a_calendar_begins_with_its_own_record_whatever_day_it_is(name, first):
    import time_machine

    assert get_calendar(name).sessions()[0] == pd.Timestamp(first)
    with time_machine.travel("2026-03-02", tick=False):
        get_calendar.cache_clear()
        assert get_calendar(name).sessions()[0] == pd.Timestamp(first)
    get_calendar.cache_clear()


def test_no_bar_since_1927_is_refused_for_its_day(shared, nyse):
    days = pd.DatetimeIndex(pd.read_parquet(shared / "sp500_index_close_1927_2026.parquet").date)
    assert len(days) > 24_000 and nyse.session_of(days).notna().all()
    since = nyse.sessions("1970-01-01", days[-1])
    assert not len(since.difference(days)), "and since 1970 no session is missing from the data"


@pytest.mark.parametrize("name", ["XTAE", "ASEX", "XBEL", "XBSE", "XCYS"])
def test_a_calendar_that_breaks_in_the_library_ends_in_a_sentence(name):
    with pytest.raises(CalendarUnavailable, match=f"cannot build the calendar {name}") as e:
        get_calendar(name)
    assert e.value.code == "calendar-unavailable" and e.value.fix


def test_an_unknown_calendar_has_its_own_code():
    with pytest.raises(UnknownCalendar, match="Did you mean XNZE or XNYS") as e:
        get_calendar("XNYZ")
    assert (e.value.code, e.value.status) == ("calendar-unknown", 404)


@pytest.mark.slow
def test_every_other_calendar_of_the_library_can_be_had():
    "Ten of them in each run, all with --all-steps."
    import exchange_calendars as xc

    names = set(xc.get_calendar_names(include_aliases=False)) - {"XTAE", "ASEX", "XBEL", "XBSE", "XCYS"}
    for name in sample(sorted(names), 10):
        calendar = get_calendar(name)
        assert len(calendar.sessions()) > 1_500
        assert (calendar.closes(calendar.sessions()) > calendar._opens).all()


def test_every_known_correction_holds():
    for name, texts in KNOWN_CORRECTIONS.items():
        calendar = get_calendar(name)
        for special in map(parse_special_day, texts):
            assert calendar.is_session(special.day) == special.is_open, (name, special)
    hong_kong = get_calendar("XHKG")
    assert hong_kong.offset("2023-08-31", 1) == pd.Timestamp("2023-09-04")
    assert len(hong_kong.sessions("2023-09-01", "2023-09-30")) == 19
    opened = hong_kong._opens[hong_kong._at(["2020-08-19"])][0].tz_convert("Asia/Hong_Kong")
    assert f"{opened:%H:%M}" == "13:30"


def test_weekday_periods_that_the_library_ignores_are_applied():
    "Under pandas 3 the library forgets its own Saturdays: Bombay 2024, Korea until 1998, Moscow."
    assert get_calendar("XBOM").is_session("2024-01-20") and get_calendar("XBOM").is_session("2025-02-01")
    assert get_calendar("XKRX").is_session("1998-12-05") and not get_calendar("XKRX").is_session("1998-12-12")
    assert len(get_calendar("XMOS").sessions("2024-01-01", "2025-12-31").day_of_week.unique()) > 5


SPECIAL = "XBOM; +2024-03-02 09:15-12:30 disaster recovery test; -2024-07-10 a closure of its own"


def test_special_days_are_sessions_and_closures():
    plain, special = get_calendar("XBOM"), get_calendar(SPECIAL)
    assert special.is_session("2024-03-02") and not plain.is_session("2024-03-02")
    assert not special.is_session("2024-07-10") and plain.is_session("2024-07-10")
    assert str(special.close("2024-03-02")) == "2024-03-02 07:00:00+00:00"
    assert special.offset("2024-03-01", 1) == pd.Timestamp("2024-03-02")
    assert len(special.sessions()) == len(plain.sessions())
    assert pickle.loads(pickle.dumps(special)) is special and special.name == "XBOM"


def test_special_days_come_from_the_settings(tmp_path):
    settings = Settings().with_(**{"data.calendar": SPECIAL})
    assert get_calendar(settings.data.calendar).is_session("2024-03-02")
    file = tmp_path / "mine.ini"
    file.write_text(settings.to_ini())
    assert load_settings(file, environ={}).data.calendar == SPECIAL
    assert settings.hash != Settings().with_(**{"data.calendar": "XBOM"}).hash


@pytest.mark.parametrize(
    "text",
    [
        "XBOM; 2024-03-02 no sign",
        "XBOM; +2024-03-02",
        "XBOM; +2024-03-02 09:15-12:30",
        "XBOM; +2024-02-30 no such day",
        "XBOM; +2024-03-02 12:30-09:15 backwards",
        "XBOM; -2024-03-02 09:15-12:30 a closure has no hours",
    ],
)
def test_a_special_day_that_says_too_little_is_refused(text):
    with pytest.raises(SettingsError, match="special day"):
        get_calendar(text)


def test_the_settings_refuse_a_special_day_without_a_reason():
    with pytest.raises(SettingsError, match="with a reason"):
        Settings().with_(**{"data.calendar": "XBOM; +2024-03-02"})


# ---- kept hours


@pytest.fixture
def kept_folder(monkeypatch, tmp_path):
    from stockpredict.core import kept_hours

    monkeypatch.setattr(kept_hours, "hours_folders", lambda: [tmp_path / "closed" / "file", tmp_path / "own"])
    (tmp_path / "closed").write_text("a file in the place of a folder")
    return tmp_path / "own"


def asked_again(text, monkeypatch, refused=True):
    "The hours as a process gives them that has not loaded the library; it may not be asked if `refused`."
    import sys

    from stockpredict.core import exchange_hours, kept_hours

    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "exchange_calendars", raising=False)
        if refused:
            patch.setattr(exchange_hours, "exchange_hours", lambda text: pytest.fail("built again"))
        return kept_hours.kept_hours(text)


def test_kept_hours_are_those_of_the_library_and_survive_no_change(kept_folder, monkeypatch):
    from stockpredict.core import exchange_hours, kept_hours

    text = "XBOM; +2024-11-01 18:00-19:00 Muhurat trading"
    built, zone = asked_again(text, monkeypatch, refused=False)
    (file,) = kept_folder.iterdir()
    kept, kept_zone = asked_again(text, monkeypatch)
    assert zone == kept_zone and (kept.index == built.index).all()
    assert (kept.opens == built.opens).all() and (kept.closes == built.closes).all()
    with pytest.raises(pytest.fail.Exception, match="built again"):
        asked_again("XBOM", monkeypatch)  # other special days are another calendar
    whole = file.read_bytes()
    flipped = whole[:-1000] + bytes([whole[-1000] ^ 4]) + whole[-999:]
    for damaged in (whole[:-8], flipped, b"", b"{}\n", b"[1]\n", whole[1:]):
        file.write_bytes(damaged)
        with pytest.raises(pytest.fail.Exception, match="built again"):
            asked_again(text, monkeypatch)
    file.write_bytes(whole)
    for now in (kept_hours.time.time() + 31 * 86400, 0.0):  # a month later, and a clock that was set back
        with monkeypatch.context() as patch:
            patch.setattr(kept_hours.time, "time", lambda now=now: now)
            with pytest.raises(pytest.fail.Exception, match="built again"):
                asked_again(text, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(kept_hours, "_version", lambda package: "another")
        with pytest.raises(pytest.fail.Exception, match="built again"):
            asked_again(text, monkeypatch)
    assert exchange_hours.exchange_hours(text)[0].closes.equals(built.closes)


def test_a_process_that_loaded_the_library_asks_it(kept_folder):
    import exchange_calendars  # noqa: F401

    from stockpredict.core.kept_hours import kept_hours

    assert len(kept_hours("XHKG")[0]) and not kept_folder.exists()

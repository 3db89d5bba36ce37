"The core floor and the bars table: settings, registry, errors, calendar, bars."

import copy
import functools
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockpredict.core import errors
from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import BarsInvalid, CalendarError, ColumnsUnmapped, NameTaken, RegistryError
from stockpredict.core.errors import SettingsError, StockpredictError, UnknownName, all_errors, did_you_mean
from stockpredict.core.errors import near
from stockpredict.core.registry import Registry, load_all
from stockpredict.core.sections import parse_pairs
from stockpredict.core.settings import Settings, load_settings
from stockpredict.sources.bars import (
    BAR_COLUMNS,
    canonical_ticker,
    empty_bars,
    parse_numbers,
    tidy_bars,
    wide,
)


def problems(**kw):
    with pytest.raises(SettingsError) as e:
        load_settings(**({"environ": {}} | kw))
    return e.value.context["problems"]


# ---- settings


def test_settings_ini_is_what_the_defaults_write(root):
    assert (root / "settings.ini").read_text() == Settings().to_ini()
    assert load_settings(root / "settings.ini", environ={}).model_dump() == Settings().model_dump()


def test_every_setting_has_a_sentence():
    for section in Settings.model_fields.values():
        for key, field in section.annotation.model_fields.items():
            assert field.description and field.description.endswith("."), key


def test_the_default_file_may_be_absent_but_a_named_one_may_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).model_dump() == Settings().model_dump()
    for named in (dict(path="nowhere.ini"), dict(environ={"STOCKPREDICT_SETTINGS": "nowhere.ini"})):
        with pytest.raises(SettingsError, match=r"nowhere\.ini cannot be read"):
            load_settings(**({"environ": {}} | named))


def test_later_layers_win(tmp_path):
    file = tmp_path / "mine.ini"
    file.write_text("[gate]\nalpha = .02\nnull_seeds = 3\n[serving]\nport = 81 # inline\n")
    env = {
        "STOCKPREDICT_GATE__ALPHA": ".03",
        "STOCKPREDICT_SERVING__PORT": "82",
        "STOCKPREDICT_SHARED": "x",
        "HOME": "y",
    }
    s = load_settings(file, {"serving.port": 83}, env)
    assert (s.gate.alpha, s.gate.null_seeds, s.serving.port) == (0.03, 3, 83)
    assert load_settings(None, environ={"STOCKPREDICT_SETTINGS": str(file)}).serving.port == 81


def test_all_problems_of_all_places_come_together(tmp_path):
    file = tmp_path / "bad.ini"
    file.write_text("[dta]\nsource = x\n[gate]\nalpa = 1\n[serving]\nport = 0\ndevice = gpu\n")
    env = {
        "STOCKPREDICT_SIMULATED__KIND": "magic",
        "STOCKPREDICT_PORT": "1",
        "STOCKPREDICT_COSTS__BPS": "nan",
    }
    result = problems(
        path=file,
        environ=env,
        overrides={"data.universe": "AAPL aapl", "nonsense": 1, "validation.folds": "two"},
    )
    for part in (
        "[dta]",
        "Did you mean [data]?",
        "Did you mean alpha?",
        "from 1 to 65535",
        "cuda:1",
        "null, planted, realistic",
        "STOCKPREDICT_PORT is no setting",
        "'nonsense' is no setting",
        "'two'",
        "bps",
    ):
        assert any(part in p for p in result), (part, result)
    assert len(result) == 9


@pytest.mark.parametrize(
    "override, part",
    [
        ({"validation.horizons": "5 1"}, "ascending"),
        ({"validation.horizons": "1 1"}, "ascending"),
        ({"validation.horizons": "0 1"}, "positive"),
        ({"validation.horizons": ""}, "horizons"),
        ({"validation.horizons": "1 60", "validation.first_train": 40}, "first_train"),
        ({"data.universe": "KO,PEP,ko"}, "KO"),
        ({"data.start": "2020-01-02", "data.end": "2019-01-01"}, "after end"),
        ({"data.start": "01/02/2020"}, "YYYY-MM-DD"),
        ({"data.source": "files"}, "files_path"),
        ({"models.candidates": "mean mean"}, "repeats mean"),
        ({"data.files_columns": "Symbol"}, "pairs"),
        ({"simulated.rank_ic": "inf"}, "from 0 to 0.3"),
        ({"simulated.tickers": 2.5}, "whole number"),
    ],
)
def test_values_that_do_not_fit_are_refused(override, part):
    result = problems(overrides=override)
    assert len(result) == 1 and part in result[0], result


def test_broken_files_are_refused_in_a_sentence(tmp_path):
    for name, text in {
        "nohead": b"a = 1\n",
        "twice": b"[data]\nsource=a\nsource=b\n",
        "latin": "[data]\nsource = caf\xe9".encode("latin-1"),
    }.items():
        file = tmp_path / f"{name}.ini"
        file.write_bytes(text)
        with pytest.raises(SettingsError, match=f"{name}.ini"):
            load_settings(file, environ={})
    with pytest.raises(SettingsError):
        load_settings(tmp_path, environ={})
    bom = tmp_path / "bom.ini"
    bom.write_bytes(b"\xef\xbb\xbf[serving]\r\nport = 81\r\n")
    assert load_settings(bom, environ={}).serving.port == 81
    default = tmp_path / "default.ini"
    default.write_text("[DEFAULT]\nport = 1\n")
    assert "no section [default]" in problems(path=default)[0]


def test_to_ini_reads_back(tmp_path):
    s = Settings().with_(
        **{
            "data.universe": ["KO", "BRK-B"],
            "data.files_columns": {"ticker": "Symbol", "close": "Adj Close"},
            "data.end": "2020-01-01",
        }
    )
    (tmp_path / "s.ini").write_text(s.to_ini())
    assert load_settings(tmp_path / "s.ini", environ={}).model_dump() == s.model_dump()


def test_settings_are_frozen_and_variations_are_checked():
    s = Settings()
    with pytest.raises(Exception, match="frozen"):
        s.gate.alpha = 0.5
    with pytest.raises(SettingsError, match="Did you mean alpha"):
        s.with_(**{"gate.alfa": 1})
    assert s.with_(**{"gate.alpha": 0.05}).gate.alpha == 0.05 and s.gate.alpha == 0.01


def test_hash_names_what_can_change_a_result():
    s = Settings()
    same = {
        "storage.home": "x",
        "serving.port": 1,
        "schedule.retrain": "daily",
        "data.files_path": "y",
        "storage.catalog": "postgres:x",
    }
    assert s.with_(**same).hash == s.hash and len(s.hash) == 12
    other = {
        "costs.bps": 6,
        "models.seed": 8,
        "data.universe": "KO",
        "simulated.seed": 2,
        "gate.alpha": 0.02,
        "validation.folds": 6,
        "features.normalise": "none",
    }
    assert len({s.with_(**{k: v}).hash for k, v in other.items()} | {s.hash}) == len(other) + 1


def test_relative_places_start_at_the_settings_file(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[storage]\nhome = kept\n")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    s = load_settings("../settings.ini", environ={})
    assert s.storage.lake_dir.resolve() == tmp_path / "kept/lake"
    for twin in (s.with_(**{"gate.alpha": 0.02}), pickle.loads(pickle.dumps(s)), copy.deepcopy(s)):
        assert twin.storage.keys_dir == s.storage.keys_dir
    monkeypatch.chdir(tmp_path)
    assert str(load_settings(environ={}).storage.lake_dir) == "kept/lake"
    assert s.with_(**{"storage.home": "/elsewhere"}).storage.home_dir.as_posix() == "/elsewhere"


def test_pairs_keep_spaces_in_values():
    assert parse_pairs("a=Adj Close, b=x") == {"a": "Adj Close", "b": "x"} and parse_pairs("") == {}


@pytest.mark.parametrize(
    "module, unwanted", [("settings", "pandas"), ("errors", "pydantic"), ("calendar", "exchange_calendars")]
)
def test_core_modules_import_little(module, unwanted):
    code = f"import sys, stockpredict.core.{module}; sys.exit('{unwanted}' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- errors


def test_codes_are_stable():
    codes = {row["code"] for row in all_errors()}
    assert codes >= {
        "settings-invalid",
        "unknown-name",
        "name-taken",
        "not-a-session",
        "source-unavailable",
        "file-missing",
        "columns-unmapped",
        "bars-invalid",
        "batch-refused",
        "unknown-ticker",
        "empty-universe",
        "lake-locked",
        "lake-unavailable",
        "feature-sees-future",
        "not-enough-history",
        "not-enough-sessions",
        "unknown-horizon",
        "model-not-fitted",
        "model-output-invalid",
        "artifact-rejected",
        "no-champion",
        "parameter-refused",
        "run-failed",
        "run-timeout",
        "flow-locked",
        "request-invalid",
        "not-ready",
        "queue-full",
        "not-found",
    }
    assert len(codes) == len(all_errors())


@pytest.mark.parametrize("row", all_errors(), ids=lambda r: r["name"])
def test_every_error_survives_pickling_and_tells_its_code(row):
    e = pickle.loads(pickle.dumps(getattr(errors, row["name"])("A problem.", "A fix.", ticker="KO")))
    assert isinstance(e, StockpredictError) and str(e) == f"A problem. A fix. [{row['code']}]"
    assert (
        e.as_dict()["context"] == {"ticker": "KO"}
        and row["when"].endswith(".")
        and 400 <= row["status"] < 600
    )


def test_near_matches():
    assert near("HORIZON", ["horizons", "folds"]) == ["horizons"] and near("zzz", ["a"]) == []
    assert "20 more" not in did_you_mean("zzz", ["a"]) and "and 8 more" in did_you_mean(
        "zzz", [f"k{i}" for i in range(20)]
    )


# ---- registry


def test_registry_refuses_two_different_parts_under_one_name():
    r = Registry("thing")

    def a():
        return 1

    def b():
        return 2

    assert r.register("x")(a) is a
    with pytest.raises(NameTaken, match="'x' is taken"):
        r.register("x")(b)
    assert r["x"] is a


def test_the_same_definition_may_come_again_and_the_newer_one_counts():
    def created(module):
        def part():
            return module

        part.__module__ = module
        return part

    r = Registry("thing")
    r.add("x", created("__main__"))
    newer = created("stockpredict.somewhere")
    r.add("x", newer)
    assert r["x"] is newer
    with pytest.raises(NameTaken):
        r.add("x", created("stockpredict.elsewhere"))
    r.add("p", functools.partial(newer))
    r.add("p", functools.partial(newer))
    assert r.names() == ["p", "x"] and "x" in r and "y" not in r and dict(r.items())["x"] is newer


def test_a_registry_loads_its_package_when_asked(tmp_path, monkeypatch):
    pack = tmp_path / "lazyparts"
    pack.mkdir()
    (pack / "__init__.py").write_text(
        "from stockpredict.core.registry import Registry\nparts = Registry('part', 'lazyparts')\n"
    )
    (pack / "one.py").write_text("from lazyparts import parts\n@parts.register('one')\ndef one(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import lazyparts

    assert "lazyparts.one" not in sys.modules
    assert lazyparts.parts["one"]() == 1 and len(lazyparts.parts) == 1
    with pytest.raises(UnknownName, match="Did you mean one"):
        lazyparts.parts["onee"]
    (pack / "two.py").write_text("import no_such_library\n")
    with pytest.raises(RegistryError, match=r"lazyparts\.two could not be imported.*no_such_library"):
        load_all("lazyparts")


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
    assert len(str(e.value)) < 300 and str(e.value).isascii()


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


def test_a_bar_cannot_be_known_before_its_close():
    bars = tidy_bars(
        VENDOR.assign(known_at=["2019-07-02", "2019-07-05T08:00Z", None]), source="x", lag_minutes=15
    )
    assert [str(t) for t in bars.known_at] == [
        "2019-07-02 20:00:00+00:00",
        "2019-07-05 08:00:00+00:00",
        "2019-07-03 17:15:00+00:00",
    ]


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
        (dict(ticker=["KO", "K O", "<b>"]), "2 values of the ticker column"),
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
    assert again.equals(bars) and "adj_close" in bars
    assert wide(bars).shape == (2, 2) and np.isnan(wide(bars).loc["2019-07-02", "PEP"])


def test_numbers_tell_absent_from_unreadable():
    assert parse_numbers([1, "2.5", " 3 ", "", None, "-", "null"], "close").tolist()[:3] == [1, 2.5, 3]
    assert parse_numbers([1, 2, "x"], "close").tolist() == [1, 2, -np.inf]

"""What the gate finds and what it misses, held to what was measured; and the genuine events it must leave
alone."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.sources.bars import tidy_bars
from stockpredict.testing.corruption import CORRUPTIONS
from stockpredict.quality.scan import find_flags
from stockpredict.testing.detector_benchmark import measure_detection, recorded_cases
from stockpredict.quality.gate import inspect_bars

NOW = pd.Timestamp("2026-09-01", tz="UTC")

# Of ten injected errors each in the market of seed 1; measured: all ten, but nine of the shifted dates and
# eight of the splits left out.
FLOORS = {name: 9 for name in CORRUPTIONS} | {
    "dates off by one": 7,
    "split left out": 7,
    "reverse split left out": 8,
}
MISSED = {"small error of the close"}  # it cannot be told from a close, and the table has to say so


@pytest.fixture(scope="module")
def measured():
    return measure_detection(each=10, tickers=100, sessions=500, seed=1)


@pytest.mark.parametrize("name", [n for n in CORRUPTIONS if n not in MISSED])
def test_recall_and_precision_hold_their_floors(measured, name):
    row = measured.table.loc[name]
    assert row.events == 10 and row.found >= FLOORS[name], f"{row.found} of {row.events} found"
    assert row.precision >= 0.9, f"{row.alarms - row.right} of {row.alarms} findings on healthy bars"


def test_what_cannot_be_found_is_reported_as_missed(measured):
    assert measured.table.found["small error of the close"] <= 3, "if this is found now, tell the notebook"


def test_healthy_bars_are_left_alone(measured):
    assert measured.matrix.loc["healthy bar"].sum() <= 10 and measured.healthy <= 5
    assert measured.bars > 35_000


def test_the_count_can_fail(monkeypatch):
    "A detector that sees nothing shows in the table; so does one that sees everything."
    from stockpredict.quality import detectors as detect

    spike = next(d for d in detect.DETECTORS if d.name == "spike")
    small = dict(each=3, tickers=60, sessions=400, seed=2)
    honest = measure_detection(**small).table.loc["price spike"]
    object.__setattr__(spike, "detect", lambda m: np.zeros(len(m.close), bool))
    try:
        blind = measure_detection(**small).table.loc["price spike"]
        object.__setattr__(spike, "detect", lambda m: m.position > 0)
        shrill = measure_detection(**small).table.loc["price spike"]
    finally:
        object.__setattr__(spike, "detect", detect.spike)
    assert honest.recall == 1 and blind.recall == 0 and shrill.recall == 1 and shrill.precision < 0.1


# ---- recorded data


@pytest.fixture(scope="module")
def cases(shared):
    return recorded_cases(shared / "quality_cases")


def test_every_recorded_vendor_error_is_found_in_its_own_family(cases):
    bad = cases[cases.bad]
    assert len(bad) == 27 and bad.found.astype(bool).sum() == 27, bad.index[~bad.found.astype(bool)].tolist()


def test_tables_that_look_bad_and_are_right_raise_nothing_of_the_family(cases):
    assert cases.false_alarms[~cases.bad].tolist() == [""] * 5


def test_mended_tables_are_quiet_but_for_three_known_ones(cases):
    """ALPHA trades at one or two euros rounded to whole ones; SAND's mended file still takes its dividend
    out twice; SPM's fall of 20 June 2022 is a rights issue that neither file worked in."""
    loud = cases.index[cases.bad & (cases.false_alarms != "")]
    assert set(loud) <= {"ALPHA-PA-1d-bad-stock-split", "SAND-1d-bad-div", "SPM-MI-1d-bad-stock-split"}


def judged(path, names=None):
    frame = pd.read_parquet(path)
    frame = frame[frame.ticker.isin(names)] if names else frame
    bars = tidy_bars(
        frame.rename(columns={"as_of": "known_at"}) if "as_of" in frame else frame, source="recorded"
    )
    return bars, inspect_bars(bars, now=NOW, limit=0.9)


def said_of(quality, ticker, day):
    f = quality.flags
    return set(f.flag[(f.ticker == ticker) & (f.event_time.dt.strftime("%Y-%m-%d") == day)])


GENUINE = {
    ("AMD", "2016-04-22"): 0.52,
    ("DXC", "2016-05-25"): 0.42,
    ("PCG", "2019-01-14"): -0.52,
    ("PCG", "2019-01-24"): 0.75,
    ("PCG", "2018-11-15"): -0.31,
}


def test_genuine_events_of_2015_to_2020_are_kept_and_tradable(shared):
    _, quality = judged(
        shared / "us_daily_2015_2020.parquet",
        ["AMD", "DXC", "PCG", "AAPL", "MSFT", "JPM", "XOM", "KO", "CBS", "BHF", "ACN"],
    )
    good = quality.good.assign(usable=quality.usable, move=quality.good.groupby("ticker").close.pct_change())
    good["day"] = good.event_time.dt.strftime("%Y-%m-%d")
    for (ticker, day), move in GENUINE.items():
        row = good[(good.ticker == ticker) & (good.day == day)].iloc[0]
        assert abs(row.move - move) < 0.01 and row.usable, f"{ticker} {day}: {said_of(quality, ticker, day)}"
    assert "CBS" in set(quality.bad.ticker), "the bar of zeros is out"
    assert not good[(good.ticker == "BHF") & (good.day < "2017-07-17")].usable.all(), (
        "the junk before the listing is not traded"
    )


def test_dividends_that_yahoo_took_out_twice_are_found_in_its_own_history(shared):
    """Accenture paid 1.02 dollars once, on 8 April 2015; the adjusted close of this download takes it out
    on 2 April as well."""
    _, quality = judged(shared / "us_daily_2015_2020.parquet", ["ACN", "KO", "XOM", "MSFT"])
    assert "paid again" in said_of(quality, "ACN", "2015-04-02") & said_of(quality, "ACN", "2015-04-08")


def test_the_crashes_of_2008_and_2020_are_kept(shared):
    _, raw = judged(shared / "us_daily_raw_unadjusted_1998_2021.parquet")
    crash = raw.flags.event_time.between("2008-09-01", "2008-11-30") | raw.flags.event_time.between(
        "2020-02-20", "2020-04-15"
    )
    f = raw.flags[~raw.flags.usable & crash]
    assert len(raw.bad) == 0 and set(f.flag) <= {"untraded"}, f.to_string()
    for day in (
        "2008-09-12",
        "2008-09-15",
        "2008-09-17",
        "2008-09-19",
    ):  # down by 31, 58 and 48 per cent, up by 77
        assert said_of(raw, "AIG", day) <= {"jump", "outlier"}, day
    _, index = judged(shared / "us_index_daily_2016_2026.parquet")
    assert len(index.bad) == 0 and index.flags[index.flags.event_time.dt.year == 2020].usable.all()


def test_splits_in_unadjusted_prices_are_found(shared):
    """Twelve well-known ones; AIG's of July 2009 is none of them, since the price fell by a fifth on the
    same day."""
    _, raw = judged(shared / "us_daily_raw_unadjusted_1998_2021.parquet")
    splits = [
        ("AAPL", "2000-06-21"),
        ("AAPL", "2005-02-28"),
        ("AAPL", "2014-06-09"),
        ("AAPL", "2020-08-31"),
        ("BAC", "2004-08-30"),
        ("EEM", "2005-06-09"),
        ("EEM", "2008-07-24"),
        ("GOOG", "2014-04-03"),
        ("IBM", "1999-05-27"),
        ("IWM", "2005-06-09"),
        ("QQQ", "2000-03-20"),
        ("USO", "2020-04-29"),
    ]
    result = [s for s in splits if "split missing" in said_of(raw, *s)]
    assert len(result) >= 10, sorted(set(splits) - set(result))
    assert "split missing" not in said_of(raw, "AAPL", "2000-09-29"), (
        "the profit warning halved Apple, with eleven times the money"
    )


def test_penny_stocks_and_every_listed_security_of_2016_stay(shared):
    frame = pd.read_parquet(shared / "us_daily_all_2016.parquet", columns=["ticker"])
    some = sorted(frame.ticker.unique())[::8]
    bars, quality = judged(shared / "us_daily_all_2016.parquet", some)
    assert len(quality.bad) < 1e-4 * len(bars) and quality.usable.mean() > 0.95
    doubtful = quality.flags[
        quality.flags.flag.isin(
            ["split missing", "spike", "unit changed", "adjustment unmatched", "days shifted"]
        )
    ]
    assert len(doubtful) < 1e-3 * len(bars), "doubts about prices concern fewer than one bar in a thousand"
    assert find_flags(bars[:0]).empty

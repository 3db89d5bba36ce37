"""Intraday bars have the detectors of daily ones: wrong units, lost bars, frozen sessions, and a matrix."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.quality.intraday_detectors import find_intraday_flags
from stockpredict.quality.intraday_gate import inspect_intraday
from stockpredict.sources.bars import PRICES
from stockpredict.sources.intraday_simulation import simulate_intraday
from stockpredict.sources.simulate import sample_bars
from stockpredict.sources.vendor_intraday import tidy_intraday
from stockpredict.testing.detector_benchmark import INTRADAY_ERRORS, measure_intraday_detection

NOW = "2030-01-01T00:00Z"


@pytest.fixture(scope="module")
def clean():
    return tidy_intraday(simulate_intraday(sample_bars(tickers=3, sessions=10)), "x", stamps="end")


def flags_after(clean, change):
    "Flags of the first ticker after a change of its bars."
    bars = clean.copy()
    own = bars.index[bars.ticker == bars.ticker.iloc[0]]
    bars = change(bars, own)
    flags = inspect_intraday(bars.reset_index(drop=True), now=NOW).flags
    assert set(flags.ticker) <= {clean.ticker.iloc[0]}
    return flags.flag.value_counts().to_dict()


def scaled(rows):
    def change(bars, own):
        bars.loc[own[rows], PRICES] *= 100
        return bars

    return change


def test_a_bar_times_100_is_flagged(clean):
    counts = flags_after(clean, scaled(slice(100, 101)))
    assert counts["unit error"] == 1 and counts["unit changed"] == 2


def test_48_bars_times_100_are_flagged(clean):
    counts = flags_after(clean, scaled(slice(600, 648)))
    assert counts["unit error"] == 48


@pytest.mark.parametrize("start", [100, 77, 155])
def test_three_missing_bars_are_one_gap(clean, start):
    assert flags_after(clean, lambda bars, own: bars.drop(index=own[start : start + 3])) == {"gap": 1}


def test_a_night_is_no_gap(clean):
    assert find_intraday_flags(clean).empty


def test_a_frozen_session_is_flagged_and_ten_equal_closes_are_not(clean):
    def freeze(n):
        def change(bars, own):
            bars.loc[own[156 : 156 + n], PRICES] = bars.close[own[155]]
            return bars

        return change

    assert flags_after(clean, freeze(78))["frozen session"] == 78
    assert "frozen session" not in flags_after(clean, freeze(10))


def test_every_interval_is_judged_on_its_own_grid(clean):
    half_hours = tidy_intraday(
        simulate_intraday(sample_bars(tickers=3, sessions=10), "30min"), "x", "30min", stamps="end"
    )
    both = pd.concat([clean, half_hours], ignore_index=True)
    result = inspect_intraday(both, now=NOW)
    assert not len(result.bad) and result.flags.empty


def test_copies_with_the_same_close_become_one_bar(clean):
    twice = pd.concat([clean, clean.iloc[[40]].assign(volume=1.0)], ignore_index=True)
    result = inspect_intraday(twice, now=NOW)
    assert len(result.good) == len(clean) and result.faulty == 0 and len(result.bad) == 2
    assert result.good.volume.isna().sum() == 1 and np.isfinite(result.good.close).all()


def test_a_flag_is_not_known_before_its_evidence(clean):
    bars = clean.copy()
    own = bars.index[bars.ticker == bars.ticker.iloc[0]]
    bars.loc[own[156:234], PRICES] = bars.close[own[155]]
    flags = find_intraday_flags(bars)
    frozen = flags[flags.flag == "frozen session"].sort_values("event_time")
    assert (frozen.known_at >= bars.known_at[own[155 + 38]]).all()


def test_the_matrix_of_intraday_errors_holds_its_floors():
    measured = measure_intraday_detection(each=10, seed=1)
    row = measured.table
    certain = [name for name in INTRADAY_ERRORS if name != "small error of the close"]
    assert len(certain) >= 18 and (row.found[certain] >= 8).all(), row.found[certain]
    assert row.found.sum() / row.events.sum() >= 0.93
    assert measured.matrix.loc["healthy bar"].sum() <= 10 and measured.healthy <= 8


def test_real_five_minute_bars_are_left_alone(shared):
    frame = pd.read_parquet(shared / "intraday_5m_us.parquet")
    frame = frame.rename(columns={"timestamp": "time"})[["ticker", "time", *PRICES, "volume"]]
    bars = tidy_intraday(frame, "x", "5min")
    flags = find_intraday_flags(bars)
    assert len(bars) > 190_000 and flags.usable.all() and len(flags) <= 10, flags.flag.value_counts()

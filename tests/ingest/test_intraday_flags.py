"""Flags of intraday bars in the lake: judged with the stored bars, versioned, withdrawn, read as of a day."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from stockpredict.cli.main import app
from stockpredict.core.settings import Settings
from stockpredict.ingest.intraday import add_intraday
from stockpredict.lake.lake import Lake
from stockpredict.quality.intraday_detectors import find_intraday_flags
from stockpredict.sources.bars import PRICES
from stockpredict.sources.intraday_simulation import simulate_intraday
from stockpredict.sources.simulate import sample_bars
from stockpredict.sources.vendor_intraday import tidy_intraday

MONDAY = "2024-01-08T00:00Z"


@pytest.fixture(scope="module")
def clean():
    return simulate_intraday(sample_bars(tickers=3, sessions=5), "30min")


@pytest.fixture
def settings(tmp_path):
    return Settings().with_(**{"storage.home": str(tmp_path)})


def store(settings, bars, now=MONDAY):
    return add_intraday(bars, "mine", "30min", settings, stamps="end", now=now)


def stored_flags(settings, **how):
    with Lake(settings.storage, read_only=True) as lake:
        return lake.intraday_flags(every="30min", source="mine", **how)


def damaged(bars):
    "A bar of the first ticker in another unit, and three bars of the second one missing."
    one, two = sorted(bars.ticker.unique())[:2]
    bars = bars.copy()
    own = bars.index[bars.ticker == one]
    bars.loc[own[30], PRICES] *= 100
    return bars.drop(index=bars.index[bars.ticker == two][40:43])


def key(flags):
    return set(zip(flags.ticker, flags.event_time, flags.flag, strict=True))


@pytest.mark.parametrize("portions", [1, 2, 5, 20])
def test_whatever_the_portions_the_flags_are_those_of_all_bars(clean, settings, portions):
    bars = damaged(clean).sort_values(["event_time", "ticker"])
    ends = bars.event_time.unique()
    for k in range(portions):
        part = ends[k * len(ends) // portions : (k + 1) * len(ends) // portions]
        store(settings, bars[bars.event_time.isin(part)], now=part[-1] + pd.Timedelta(minutes=5))
    whole = find_intraday_flags(tidy_intraday(bars, "mine", "30min", stamps="end"))
    assert key(stored_flags(settings)) == key(whole) and {"unit error", "gap"} <= set(whole.flag)


def test_a_correction_withdraws_the_flags_and_an_earlier_view_keeps_them(clean, settings):
    store(settings, damaged(clean))
    before = stored_flags(settings)
    assert store(settings, damaged(clean), "2024-01-09T00:00Z").rows_new == 0
    assert key(stored_flags(settings)) == key(before), "the same again changes nothing"
    store(settings, clean, "2024-01-10T00:00Z")
    assert stored_flags(settings).empty and len(before) > 3
    assert key(stored_flags(settings, as_of="2024-01-09T12:00Z")) == key(before)
    assert stored_flags(settings, withdrawn=True).withdrawn.all()


def test_a_flag_about_bars_that_came_late_is_known_from_their_receipt(clean, settings):
    hurt = damaged(clean)
    first = hurt.event_time <= hurt.event_time.unique()[12]
    store(settings, hurt[first])
    store(settings, hurt[~first], "2024-03-01T00:00Z")
    flags = stored_flags(settings)
    assert len(flags) and (flags.known_at >= pd.Timestamp("2024-03-01T00:00Z")).all()
    assert stored_flags(settings, as_of="2024-02-01").empty


def test_the_command_shows_them_and_judges_older_lakes_again(clean, settings):
    store(settings, damaged(clean))
    before = stored_flags(settings)
    options = ["--set", f"storage.home={settings.storage.home}", "--json"]

    def command(*words):
        result = CliRunner().invoke(app, ["quality", "flags", "--every", "30min", *words, *options])
        assert result.exit_code == 0, result.output
        return {(row["ticker"], row["flag"]) for row in json.loads(result.stdout)}

    expected = set(zip(before.ticker, before.flag, strict=True))
    assert command() == expected and command(before.ticker[0].lower()) == {
        pair for pair in expected if pair[0] == before.ticker[0]
    }
    with Lake(settings.storage) as lake, lake.writer():
        lake.con.execute("DELETE FROM lake.intraday_flags")  # as a lake of an earlier release has it
    assert command() == set() and command("--again") == expected
    assert key(stored_flags(settings)) == key(before)

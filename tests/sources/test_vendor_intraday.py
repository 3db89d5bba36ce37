"""Intraday vendors: recorded answers, the contract, times of any kind."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import BarsInvalid
from stockpredict.quality.intraday_gate import inspect_intraday
from stockpredict.sources.bars import parse_instants
from stockpredict.sources.intraday_simulation import simulate_intraday
from stockpredict.sources.simulate import sample_bars
from stockpredict.sources.vendor_intraday import (
    IntradayChain,
    intraday_vendors,
    tidy_intraday,
)
from stockpredict.testing.vendor_contract import check_vendor_adapter
from stockpredict.testing.vendor_replies import vendor_histories

CAL = get_calendar()


def test_recorded_answers_become_bars_that_end_when_they_were_over(shared):
    place = shared / "api_fixtures"
    result = tidy_intraday(
        intraday_vendors["tiingo"]()
        .read((place / "tiingo/intraday_price.json").read_bytes(), "GOOGL")
        .assign(ticker="GOOGL"),
        "t",
        "30min",
        zone="UTC",
    )
    assert (
        len(result) == 13
        and str(result.event_time[0]) == "2018-01-02 15:00:00+00:00"
        and result.event_time.iloc[-1] == CAL.close("2018-01-02")
    )
    assert result.close[0] == 1061.91 and result.volume.isna().all()
    assert len(inspect_intraday(result).good) == 13
    body = (place / "alphavantage/time_series__TIME_SERIES_INTRADAY_3dbdcdc7.csv").read_bytes()
    evening = tidy_intraday(
        intraday_vendors["alphavantage"]().read(body, "IBM").assign(ticker="IBM"), "a", "5min"
    )
    judged = inspect_intraday(evening, limit=1)
    assert len(evening) == 100 and str(evening.event_time.max()) == "2026-05-16 00:00:00+00:00"
    assert set(judged.bad.reason) == {"no session"} and judged.good.event_time.max() <= CAL.close(
        "2026-05-15"
    ), "what traded in the evening is no session"


@pytest.mark.parametrize("name", ["tiingo", "alphavantage"])
def test_an_intraday_vendor_passes_the_checks_of_every_vendor(name):
    bars = sample_bars(tickers=1, sessions=150)

    def served(month):
        history = vendor_histories(month)[month.ticker.iloc[0]].tail(22)
        return simulate_intraday(history.assign(ticker=month.ticker.iloc[0]), "30min").close

    report = check_vendor_adapter(name, bars, make_source=lambda s: IntradayChain(s, "30min"), served=served)
    assert report.passed.all(), report[~report.passed][["check", "problem"]].to_string()


def test_times_of_any_kind_are_read_or_refused_with_a_sentence():
    same = pd.Timestamp("2024-11-04T14:30Z")
    for values in (
        ["2024-11-04T09:30:00-05:00"],
        [pd.Timestamp("2024-11-04 09:30")],
        [same],
        ["2024-11-04 09:30"],
        ["2024-11-04T14:30:00.000Z"],
    ):
        assert parse_instants(values, "America/New_York")[0] == same
    assert parse_instants(
        pd.Series(["2024-11-03 01:30", "2024-11-04 09:30"]), "America/New_York"
    ).isna().tolist() == [True, False], "an hour that came twice"
    mixed = parse_instants(
        ["2024-07-01T09:30:00-04:00", "2024-12-02T09:30:00-05:00", "2024-12-02 09:30"], "America/New_York"
    )
    assert mixed.dt.hour.tolist() == [13, 14, 14]
    for wrong in ([1719840600], [1.5, np.nan], ["", ""], [None, None], ["noon", "later"], [pd.NaT, "x"]):
        with pytest.raises(BarsInvalid):
            tidy_intraday(pd.DataFrame(dict(ticker="A", time=wrong, close=1.0)), "x")
    with pytest.raises(BarsInvalid, match="not a length"):
        tidy_intraday(pd.DataFrame(dict(ticker=["A"], time=["2024-07-01 10:00"], close=[1.0])), "x", "7min")

"""Dividends and splits of vendors, and impossible times."""

import datetime as dt
import json

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import BarsInvalid, StockpredictError
from stockpredict.core.settings import Settings
from stockpredict.lake.lake import Lake
from stockpredict.quality.corporate_actions import ALL_DETECTORS
from stockpredict.quality.scan import find_flags
from stockpredict.sources.bars import OPTIONAL_COLUMNS, tidy_bars
from stockpredict.sources.simulate import simulate
from stockpredict.sources.vendors import vendors


def read(shared, name, pattern, ticker):
    "The bars of the first recorded answer whose address matches."
    rows = json.loads((shared / "api_fixtures/manifest.json").read_text())
    row = next(r for r in rows if all(p in str(r.get("url")) for p in pattern))
    body = (shared / "api_fixtures" / row["file"]).read_bytes()
    return tidy_bars(
        vendors[name]().read(body, ticker).assign(ticker=ticker), source="vendors", lag_minutes=15
    )


@pytest.mark.parametrize(
    "name, pattern, ticker, column",
    [
        ("alphavantage_adjusted", ["TIME_SERIES_DAILY_ADJUSTED"], "IBM", "dividend"),
        ("yahoo", ["chart/MSFT?"], "MSFT", "dividend"),
        ("yahoo", ["chart/NVDA"], "NVDA", "split"),
        ("tiingo", ["tiingo/daily/GOOGL/prices", "csv"], "GOOGL", "split"),
    ],
)
def test_real_answers_keep_what_was_paid_and_the_factors_agree_with_it(
    shared, tmp_path, name, pattern, ticker, column
):
    try:
        bars = read(shared, name, pattern, ticker)
    except StopIteration:
        pytest.skip(f"No answer about {ticker} was recorded from {name} with this address.")
    assert {"dividend", "split"} <= set(bars) and set(bars.columns[9:]) <= set(OPTIONAL_COLUMNS)
    events = bars[(bars.dividend > 0) | ((bars.split > 0) & (bars.split != 1))]
    with Lake(Settings().with_(**{"storage.home": str(tmp_path)}).storage) as lake:
        lake.append(bars, now="2026-06-01T00:00Z")
        factors = lake.rows("SELECT event_time, factor FROM lake.adjustments").set_index("event_time").factor
    before = bars.close.shift()
    for e in events.itertuples():
        if e.Index == 0:
            continue
        expected = (1 - e.dividend / before[e.Index]) / (e.split if e.split > 0 else 1.0)
        assert factors.get(e.event_time, 1.0) == pytest.approx(expected, abs=2e-3), e
    assert not set(find_flags(bars, detectors=ALL_DETECTORS).flag) & {
        "dividend left out",
        "dividend times 100",
        "adjusted twice",
        "adjusted wrongly",
    }


def test_optional_columns_of_any_name_are_kept_and_none_is_made_up():
    frame = pd.DataFrame(
        {
            "Date": ["2024-07-01", "2024-07-02"],
            "Symbol": "A",
            "Close": [10.0, 9.0],
            "Dividends": [0, 0.5],
            "Stock Splits": [0, 0],
            "Capital Gains": ["", "0.1"],
        }
    )
    bars = tidy_bars(frame, source="x")
    assert (
        bars.dividend.tolist() == [0, 0.5]
        and bars.split.tolist() == [0, 0]
        and np.isnan(bars.capital_gain[0])
        and bars.capital_gain[1] == 0.1
    )
    assert not set(OPTIONAL_COLUMNS) & set(tidy_bars(frame[["Date", "Symbol", "Close"]], source="x"))


def test_a_simulated_market_with_payments_raises_no_doubt_about_them():
    bars = simulate("realistic", tickers=20, sessions=400, seed=5).bars
    reply = tidy_bars(bars, source="x")
    flags = find_flags(reply, detectors=ALL_DETECTORS)
    assert {"dividend", "split"} & set(reply) == {"dividend", "split"} & set(bars) and (
        flags.flag == "dividend left out"
    ).sum() == 0


BAD = dict(
    nan=[np.nan] * 3,
    none=[None] * 3,
    empty=[""] * 3,
    epoch=[1719840600] * 3,
    part=[1719840600.5, 2, 3.0],
    far=["99999-01-01"] * 3,
    bool=[True, False, True],
    thing=[object()] * 3,
    lists=[[1], [2], [3]],
    span=pd.to_timedelta([1, 2, 3], unit="D"),
    zone=["2024-07-01T09:30:00+25:00"] * 3,
    leap=["2023-02-29"] * 3,
    inf=[np.inf, -np.inf, np.nan],
    nul=["2024\0"] * 3,
    missing=pd.array(["2024-07-01", None, None], dtype="string"),
)
FINE = dict(
    mixed=[pd.Timestamp("2024-07-01", tz="UTC"), pd.Timestamp("2024-07-02", tz="Asia/Tokyo"), "2024-07-03"],
    edge=["9999-12-31", "0001-01-01", "2024-07-01"],
    days=[dt.date(2024, 7, 1), dt.date(1, 1, 1), dt.date(9999, 12, 31)],
    period=pd.period_range("2024-07-01", periods=3),
    kind=pd.Categorical(["2024-07-01"] * 3),
    nat=pd.to_datetime(["2024-07-01", None, None]),
    number=[20240701, 20240702, 20240703],
)


@pytest.mark.parametrize("column", ["date", "known_at"])
def test_a_column_of_times_is_read_or_refused_with_a_sentence(column):
    for name, values in (BAD | FINE).items():
        frame = pd.DataFrame(dict(ticker="A", close=[1.0, 2.0, 3.0], date="2024-07-01")).assign(
            **{column: pd.Series(values)}
        )
        try:
            reply = len(tidy_bars(frame, source="x")) == 3
        except StockpredictError as e:
            reply = str(e) if isinstance(e, BarsInvalid) and e.fix.endswith((".", ")")) else e
        assert reply is True or (isinstance(reply, str) and reply), f"{column}, {name}: {reply!r}"
        if column == "date" and name in BAD:
            assert isinstance(reply, str) and "time column" in reply, name
        if name in FINE and (column == "date" or name != "number"):
            assert reply is True, f"{column}, {name}: {reply}"

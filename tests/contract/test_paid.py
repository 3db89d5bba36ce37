"""Dividends and splits of vendors, impossible times, and dead letters that expire."""

import datetime as dt
import json

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import BarsInvalid, StockpredictError, UnknownTicker
from stockpredict.core.settings import Settings
from stockpredict.quality.corporate_actions import ALL_DETECTORS
from stockpredict.lake.adjustments import split_factors
from stockpredict.sources.bars import OPTIONAL_COLUMNS, tidy_bars
from stockpredict.quality.scan import find_flags
from stockpredict.ingest.ingest import drop_dead_letters, ingest
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars, simulate
from stockpredict.testing.fake_vendors import FakeVendors
from stockpredict.sources.vendor_chain import dead_letters, vendor_ledger
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


def test_a_named_split_becomes_a_factor_only_when_the_price_followed_it(tmp_path):
    bars = sample_bars(tickers=3, sessions=60).assign(split=0.0)
    name, at = bars.ticker.iloc[0], bars.index[bars.ticker == bars.ticker.iloc[0]][30]
    later = (bars.ticker == name) & (bars.index >= at)
    raw = bars.copy()
    raw.loc[at, "split"] = 4.0
    raw.loc[later, ["open", "high", "low", "close"]] /= 4
    divided = bars.copy()
    divided.loc[at, "split"] = 4.0
    assert (
        split_factors(raw).factor.tolist() == [0.25]
        and not len(split_factors(divided))
        and not len(split_factors(bars[:0]))
    )
    with Lake(Settings().with_(**{"storage.home": str(tmp_path)}).storage) as lake:
        lake.append(raw, now="2024-01-01T00:00Z")
        whole = lake.bars(name).close
        assert np.allclose(whole, bars[bars.ticker == name].close / 4)
        lake.append(divided.assign(source="other"), now="2024-01-01T00:00Z")
        assert np.allclose(lake.bars(name, source="other").close, bars[bars.ticker == name].close)


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


def test_letters_that_nobody_waits_for_are_marked_and_thrown_away(tmp_path):
    s = Settings().with_(**{"storage.home": str(tmp_path), "data.universe": ["AAA"]})
    now = f"{pd.Timestamp.now('UTC'):%Y-%m-%dT%H:%M:%S}"
    for source, ticker, at in (
        ("vendors", "AAA", now),
        ("vendors", "OLD", now),
        ("vendors-5min", "BBB", now),
        ("vendors-5min", "CCC", "2020-01-01T00:00:00"),
    ):
        vendor_ledger(s).put(source, ticker, "2020-01-02", [dict(reason="timeout")], at)
    assert dead_letters(s).set_index("ticker").wanted.to_dict() == dict(
        AAA=True, OLD=False, BBB=True, CCC=False
    )
    assert (
        drop_dead_letters(s) == ["CCC", "OLD"]
        and drop_dead_letters(s) == []
        and drop_dead_letters(s, ["AAA"]) == ["AAA"]
    )
    with pytest.raises(UnknownTicker, match="No dead letter is about ZZZ"):
        drop_dead_letters(s, ["ZZZ"])
    assert dead_letters(s).ticker.tolist() == ["BBB"]


def test_a_vendor_that_divides_its_past_by_a_split_tells_the_same_history(tmp_path):
    "FMP sends older prices divided by later splits; day by day the lake has raw prices and one factor."
    bars = sample_bars(tickers=2, sessions=60)
    days, name = sorted(bars.event_time.unique()), bars.ticker.iloc[-1]
    whole = bars.assign(adj_close=bars.close)
    old = (whole.ticker == name) & (whole.event_time < days[50])
    whole.loc[old, ["open", "high", "low", "close"]] *= 3
    s = Settings().with_(
        **{
            "storage.home": str(tmp_path),
            "data.source": "vendors",
            "data.universe": sorted(bars.ticker.unique()),
            "data.start": "2019-01-01",
            "sources.chain": "fmp",
            "sources.retries": 0,
        }
    )
    for n in (49, 50, 52, 59):
        with FakeVendors(whole[whole.event_time <= days[n]]) as shop:
            here = s.with_(
                **{
                    "sources.base_urls": f"all={shop.url}",
                    "sources.budgets": "fmp=500/5000",
                    "data.end": f"{days[n]:%Y-%m-%d}",
                }
            )
            report = ingest(here, days[n] + pd.Timedelta("1h"))
            assert report.rewritten == [] and report.rows_corrected == 0 and not report.failed, n
    with Lake(s.storage, read_only=True) as lake:
        raw, one = lake.bars(name, adjusted=False), lake.bars(name)
        assert lake.rows("SELECT factor FROM lake.adjustments").factor.round(6).tolist() == [round(1 / 3, 6)]
    want = whole[whole.ticker == name].close.round(2).to_numpy()
    assert len(raw) == len(want) and np.abs(raw.close.to_numpy() - want).max() < 0.02, (
        raw.close.to_numpy() - want
    )
    assert np.allclose(one.close, bars[bars.ticker == name].close, rtol=2e-3)

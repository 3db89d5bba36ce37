"""Minute bars: the gate, the table in the lake, real five-minute bars, the command."""

import json

import numpy as np
import pandas as pd
import pytest
import warm

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import (
    BatchRefused,
    DataError,
    EmptyUniverse,
    LakeUnavailable,
    SourceUnavailable,
    UnknownTicker,
)
from stockpredict.core.settings import Settings
from stockpredict.ingest.ingest import drop_dead_letters
from stockpredict.ingest.intraday import add_intraday, ingest_intraday, load_intraday
from stockpredict.lake.lake import Lake
from stockpredict.quality.intraday_gate import inspect_intraday
from stockpredict.sources.intraday_simulation import simulate_intraday
from stockpredict.sources.simulate import sample_bars
from stockpredict.sources.vendor_chain import dead_letters
from stockpredict.sources.vendor_intraday import (
    INTRADAY_COLUMNS,
    fetch_intraday,
    tidy_intraday,
)
from stockpredict.testing.fake_vendors import FakeVendors, recent_market

CAL = get_calendar()


@pytest.fixture(scope="module")
def market():
    return recent_market(tickers=2, sessions=30)


def settings_for(place, shop=None, **more):
    return Settings().with_(
        **(
            {
                "storage.home": str(place),
                "sources.retries": 1,
                "sources.budgets": "tiingo=900/900 alphavantage=900/900",
            }
            | ({"sources.base_urls": f"all={shop.url}"} if shop else {})
            | more
        )
    )


def test_real_five_minute_bars_pass_and_come_back_to_the_last_digit(shared, tmp_path):
    raw = pd.read_parquet(shared / "intraday_5m_us.parquet")
    raw = raw[raw.timestamp.astype("str").str[:7].isin(["2024-07", "2024-11"])].reset_index(drop=True)
    s = settings_for(tmp_path)
    report = add_intraday(raw, "ibkr", "5min", s)
    back = load_intraday(s, ["AAPL", "SPY"], "2024-07-03", "2024-07-03")
    assert (
        report.rows_new == len(raw)
        and report.rows_quarantined == 0
        and list(back.columns) == INTRADAY_COLUMNS
    )
    assert back.groupby("ticker").size().tolist() == [42, 42] and back.event_time.max() == CAL.close(
        "2024-07-03"
    )
    assert (back.known_at >= back.event_time).all()
    mine = raw[raw.ticker == "AAPL"].close.to_numpy()
    assert np.array_equal(load_intraday(s, "AAPL").close.to_numpy(), mine) and add_intraday(
        raw[::-1], "ibkr", "5min", s
    ).rows_same == len(raw)


def test_the_gate_knows_hours_half_days_weekends_the_future_and_second_opinions():
    bars = tidy_intraday(simulate_intraday(sample_bars(tickers=2, sessions=6)), "x", stamps="end")
    bad = {"close": -1.0, "high": 0.0, "volume": -5.0, "event_time": pd.Timestamp("2019-06-08T15:00Z")}
    for k, (column, value) in enumerate(bad.items()):
        hurt = bars.copy()
        hurt.loc[10 * k, column] = value
        if column == "event_time":
            hurt.loc[10 * k, "known_at"] = value
        result = inspect_intraday(hurt)
        assert len(result.bad) == 1 and len(result.good) == len(bars) - 1, column
    now = bars.event_time.sort_values().iloc[len(bars) // 2]
    assert (
        inspect_intraday(bars, now=now).good.event_time.max() == now
        and not inspect_intraday(bars, now=now).refused
    )
    early = bars.assign(known_at=bars.event_time - pd.Timedelta("1s"))
    assert inspect_intraday(early).refused and len(inspect_intraday(bars[:0]).good) == 0
    with pytest.raises(BatchRefused, match="Nothing of this batch was stored"):
        inspect_intraday(bars.assign(close=0.0)).raise_if_refused()


def test_a_correction_is_a_version_and_the_past_stays(tmp_path):
    mine, s = simulate_intraday(sample_bars(tickers=1, sessions=3), "30min"), settings_for(tmp_path)
    add_intraday(mine, "m", "30min", s, stamps="end", now="2024-01-01T00:00Z")
    mine.loc[4, "close"] = (mine.high[4] + mine.low[4]) / 2
    done = add_intraday(mine, "m", "30min", s, stamps="end", now="2024-01-02T00:00Z")
    then, now = (load_intraday(s, every="30min", as_of=t) for t in ("2024-01-01", None))
    assert (
        done.rows_corrected == 1
        and (then.close != now.close).sum() == 1
        and len(load_intraday(s, every="5min")) == 0
    )
    with Lake(s.storage, read_only=True) as lake:
        assert lake.facts("intraday", versions=True).known_at.max() == pd.Timestamp("2024-01-02T00:00Z")


def test_only_what_is_missing_is_asked_for_and_what_failed_waits(market, tmp_path):
    names = sorted(market.ticker.unique())
    evening = market.event_time.max() + pd.Timedelta(hours=3)  # no session runs, whatever the clock says
    with FakeVendors(market) as shop:
        s = settings_for(tmp_path, shop, **{"data.universe": names})
        shop.fault("bad-symbol", 9, ticker=names[1])
        first = ingest_intraday(s, every="30min", now=evening)
        assert first.vendors == {"tiingo": 1} and [f["reason"] for f in first.failed] == ["bad-symbol"]
        assert set(dead_letters(s).source) == {"vendors-standin-30min"}
        shop.faults.clear()
        second, third = (ingest_intraday(s, every="30min", now=evening) for _ in range(2))
        assert (
            second.rows_new == first.rows_new
            and second.requests == 1
            and third.requests == 0
            and not len(dead_letters(s))
        )
        shop.fault("500", 99)
        with pytest.raises(SourceUnavailable, match="No vendor answered"):
            ingest_intraday(s, every="15min", now=evening)
        assert len(load_intraday(s, every="30min")) == first.rows_new * 2 and not len(
            load_intraday(s, every="15min")
        )
        assert drop_dead_letters(s, [names[0]]) == [names[0]] and dead_letters(s).ticker.tolist() == [
            names[1]
        ]
        with pytest.raises(UnknownTicker, match="No dead letter"):
            drop_dead_letters(s, ["ZZZ"])


def test_what_cannot_be_done_is_said(tmp_path):
    s = settings_for(tmp_path)
    with pytest.raises(LakeUnavailable):
        load_intraday(s, "AAPL")
    with pytest.raises(EmptyUniverse, match="No ticker"):
        ingest_intraday(s)
    with pytest.raises(SourceUnavailable, match="sells intraday"):
        fetch_intraday(s.with_(**{"sources.chain": "yahoo"}), ["AAPL"], "2024-01-02")
    with pytest.raises(DataError):
        add_intraday(
            pd.DataFrame(dict(ticker=["'; DROP TABLE x; --"], time=["2024-07-01 10:00"], close=[1.0])),
            "m",
            "5min",
            s,
        )


def test_the_command_brings_minutes_and_throws_letters_away(market, tmp_path):
    name = sorted(market.ticker.unique())[0]

    def run(*words):
        out = warm.stockpredict(*words, cwd=tmp_path)
        assert out.returncode == 0, out.stderr[-2000:]
        return out.stdout

    with FakeVendors(market) as shop:
        asked = [
            x
            for k, v in {"storage.home": tmp_path, "sources.base_urls": f"all={shop.url}"}.items()
            for x in ("--set", f"{k}={v}")
        ]
        output = json.loads(
            run("ingest", *asked, "intraday", name, "--every", "30min", "--days", "3", "--json")
        )
    assert 39 >= output["rows_new"] >= 21 and output["interval"] == "30min"

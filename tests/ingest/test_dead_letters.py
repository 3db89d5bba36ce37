"""Dead letters expire, and a vendor that divides its past by a split has one history."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import UnknownTicker
from stockpredict.core.settings import Settings
from stockpredict.ingest.ingest import drop_dead_letters, ingest
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars
from stockpredict.sources.vendor_chain import dead_letters, vendor_ledger
from stockpredict.testing.fake_vendors import FakeVendors


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

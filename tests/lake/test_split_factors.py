"""Stated splits become factors only where the price followed them."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.settings import Settings
from stockpredict.lake.adjustments import batch_factors, split_factors
from stockpredict.lake.lake import Lake
from stockpredict.sources.bars import tidy_bars
from stockpredict.sources.simulate import sample_bars


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


def test_a_dividend_column_without_adjusted_closes_becomes_a_factor():
    days = pd.date_range("2024-01-02 21:00", periods=3, tz="UTC")
    bars = pd.DataFrame({"ticker": "A", "event_time": days, "known_at": days, "source": "x"})
    bars = bars.assign(close=[100.0, 95.0, 96.0], dividend=[0.0, 5.0, 0.0])
    assert batch_factors(bars).factor.tolist() == [0.95]
    assert not len(batch_factors(bars.assign(dividend=0.0)))
    pence = batch_factors(bars.assign(dividend=[0.0, 500.0, 0.0]))
    assert not len(pence), "a payment above the price is no payment; the gate flags it"


def test_empty_adjusted_closes_leave_the_payments_to_the_columns():
    days = pd.date_range("2024-01-02 21:00", periods=5, tz="UTC")
    bars = pd.DataFrame({"ticker": "A", "event_time": days, "known_at": days, "source": "x"})
    bars = bars.assign(
        close=[100.0, 99.0, 95.0, 47.5, 48.0], dividend=[0, 1.0, 4.0, 0, 0], split=[0, 0, 0, 2.0, 0]
    )
    bars["adj_close"] = [98.01, 98.01, np.nan, np.nan, np.nan]
    factors = batch_factors(bars)
    assert factors.factor.tolist() == pytest.approx([0.99, 95 / 99, 0.5])
    assert factors.event_time.tolist() == days[1:4].tolist()


def test_a_dividend_column_adjusts_what_the_lake_returns(tmp_path):
    days = get_calendar().closes(get_calendar().sessions("2024-01-02", "2024-01-05"))
    bars = pd.DataFrame(
        dict(ticker="KO", date=days, close=[99.0, 100.0, 95.0, 96.0], dividend=[0, 0, 5.0, 0])
    )
    with Lake(Settings().with_(**{"storage.home": str(tmp_path)}).storage) as lake:
        lake.append(tidy_bars(bars, source="x"), now="2024-02-01T00:00Z")
        close = lake.bars("KO").close
        assert close.pct_change().iloc[2] == pytest.approx(0)
        assert lake.bars("KO", adjusted=False).close.tolist() == bars.close.tolist()

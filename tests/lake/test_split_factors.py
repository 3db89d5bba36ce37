"""Stated splits become factors only where the price followed them."""

import numpy as np

from stockpredict.core.settings import Settings
from stockpredict.lake.adjustments import split_factors
from stockpredict.lake.lake import Lake
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

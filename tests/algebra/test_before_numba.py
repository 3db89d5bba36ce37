"""A process that has not imported numba gives the same values as one that has."""

import torch

from stockpredict.algebra import numba_kernels, series_output
from stockpredict.catalogue.feature import FEATURES, SETS, compute
from stockpredict.catalogue.warm_up import trial_markets


def test_values_before_and_after_numba_is_imported_are_the_same_to_the_last_bit(monkeypatch):
    some = (*SETS["core"], *SETS["ohlcv"], *SETS["market"], *SETS["technical"][::4], *SETS["alpha158"][::5])
    names = [n for n in some if FEATURES[n].lookback <= 130]
    assert len(names) > 100
    with_gaps, full, _ = trial_markets(130)
    markets = [with_gaps.last(200), full.last(200)]
    after = [compute(m, names) for m in markets]
    for module in (numba_kernels, series_output):
        monkeypatch.setattr(module, "numba_pays", lambda values: False)
    for market, loops in zip(markets, after):
        for name, x in compute(market, names).items():
            assert torch.equal(x.nan_to_num(9e9), loops[name].nan_to_num(9e9)), name

"""Labels that touch an untrusted bar are blank; all others keep their value to the last bit."""

import pytest
import torch

from stockpredict.sources.simulate import simulate
from stockpredict.evaluate.label_mask import untrusted_bars, mask_untrusted
from stockpredict.evaluate.labels import make_labels
from stockpredict.algebra.panel import Panel


@pytest.fixture(scope="module")
def bars():
    return simulate("null", tickers=5, sessions=160, seed=8).bars


@pytest.mark.parametrize("delay", [0, 1, 2])
@pytest.mark.parametrize("seed", [1, 2])
def test_it_agrees_with_a_loop_over_every_bar_on_the_way(bars, delay, seed):
    labels = make_labels(Panel.from_bars(bars), (1, 3, 10), entry_delay=delay)
    wrong = torch.rand(labels.y.shape[:2], generator=torch.Generator().manual_seed(seed)) < 0.03
    want = labels.y.clone()
    for t in range(want.shape[0]):
        for n in range(want.shape[1]):
            for k, h in enumerate(labels.horizons):
                if wrong[t + delay : t + delay + h + 1, n].any():
                    want[t, n, k] = float("nan")
    masked = mask_untrusted(labels.y, wrong, labels.horizons, delay)
    assert torch.equal(masked.nan_to_num(9.0), want.nan_to_num(9.0))
    assert torch.equal(masked.isnan(), want.isnan())
    assert wrong.any() and masked.isnan().sum() > labels.y.isnan().sum()


def test_a_healthy_market_loses_next_to_nothing(bars):
    assert untrusted_bars(Panel.from_bars(bars)).float().mean() < 0.002


@pytest.mark.parametrize("factor", [100, 0.01, 20])
def test_a_wild_price_is_not_learned_from(bars, factor):
    hurt = bars.copy()
    at = hurt.index[hurt.ticker == hurt.ticker.unique()[2]][90]
    hurt.loc[at, ["open", "high", "low", "close"]] *= factor
    panel = Panel.from_bars(hurt)
    labels = make_labels(panel, (1, 5))
    masked = mask_untrusted(labels.y, untrusted_bars(panel), labels.horizons)
    assert labels.y.nan_to_num().abs().max() > 5 and masked.nan_to_num().abs().max() < 1


def test_a_panel_without_bars_or_volume_has_no_doubts(bars):
    closes = bars[["ticker", "event_time", "close"]]
    assert untrusted_bars(Panel.from_bars(closes)).shape == (160, 5)

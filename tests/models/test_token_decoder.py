"""The token decoder: its bins see the training part only, and it finds what persistence cannot."""

import numpy as np
import pandas as pd
import pytest
import torch
from stockpredict.algebra.panel import Panel
from stockpredict.models.contract import make_model
from stockpredict.models.dataset import Dataset
from stockpredict.models.token_decoder import BINS, PARTS, RETURN_SHARES, bar_values, to_tokens
from zoo import new

TINY = dict(sequence=6, hidden=16, layers=1, rows=6000, seed=1)


def wide_days(plant: float, tickers=24, sessions=400, seed=0) -> Dataset:
    "After a session with a wide range the stock rises two sessions later, after a narrow one it falls."
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.01, 0.03, tickers)
    wide = rng.random((sessions, tickers)) < 0.5
    r = rng.normal(size=(sessions, tickers))
    r[2:] += plant * np.where(wide[:-2], 1.0, -1.0)
    close = 100 * np.exp(np.cumsum(r * sigma, 0))
    last = np.vstack([close[:1], close[:-1]])
    top, bottom = np.maximum(close, last), np.minimum(close, last)
    stretch = np.where(wide, 1.5, 0.2) * sigma
    open_ = last * np.exp(0.1 * stretch * rng.normal(size=close.shape))
    fields = dict(open=open_, high=top * np.exp(stretch), low=bottom * np.exp(-stretch), close=close)
    fields["volume"] = rng.lognormal(14, 0.3, close.shape)
    tensors = {k: torch.tensor(v, dtype=torch.float32) for k, v in fields.items()}
    days = pd.bdate_range("2018-01-01", periods=sessions)
    panel = Panel(tensors, days, [f"S{i:02d}" for i in range(tickers)])
    return Dataset.from_panel(panel, ["ret_1", "mom_5"], (1, 5))


def mean_ic(model, data, start):
    "Mean rank IC of the score after `start`, and its standard error."
    f = model.predict(data.inputs, start).validate()
    y = pd.DataFrame(data.y[start:, :, 0].numpy(), f.sessions, f.tickers)
    ranks = f.frame("score", 1).where(y.notna()).rank(axis=1)
    ic = ranks.corrwith(y.rank(axis=1), axis=1).dropna()
    return ic.mean(), ic.std() / len(ic) ** 0.5


@pytest.fixture(scope="module")
def planted():
    return wide_days(0.5)


@pytest.fixture(scope="module")
def learned(planted):
    return make_model("token_decoder", epochs=4, rate=0.005, **TINY).fit(planted.window(0, 320))


def test_structure_is_found_that_persistence_cannot_see(planted, learned):
    ic, se = mean_ic(learned, planted, 320)
    rule, rule_se = mean_ic(make_model("persistence").fit(planted.window(0, 320)), planted, 320)
    assert ic > 0.12 and ic > 4 * se, f"token decoder {ic:.3f}, standard error {se:.3f}"
    assert abs(rule) < 4 * rule_se and ic > rule + 0.1


def test_nothing_is_found_where_there_is_nothing():
    data = wide_days(0.0)
    m = make_model("token_decoder", epochs=2, **TINY).fit(data.window(0, 320))
    ic, se = mean_ic(m, data, 320)
    assert abs(ic) < 4 * se


def test_the_90_percent_interval_holds(planted, learned):
    f, y = learned.predict(planted.inputs, 320), planted.y[320:]
    low, high = f.interval(0.9)
    known = f.available[..., None] & y.isfinite()
    inside = ((y >= low) & (y <= high))[known].float().mean().item()
    assert abs(inside - 0.9) < 0.03, f"{inside:.3f}"


def test_the_edges_are_quantiles_of_the_training_part_and_of_nothing_else(planted, learned):
    past = planted.window(0, 320)
    first, check = past.split()
    values = bar_values(planted.inputs.bars)[: first.stop]
    rows = [r.numpy() for r in first.rows(TINY["sequence"])]
    relative, edges = first.relative(), learned.weights
    for k, part in enumerate(PARTS):
        x = values[(*rows, k)]
        share = [(x[np.isfinite(x)] < e).mean() for e in edges["net.edges"][k].numpy()]
        gap = np.abs(np.array(share) - np.arange(1, BINS) / BINS).max()
        assert gap < 0.02, f"{part}: equal rounded values share a bin, and no more than that"
    y = relative[rows[0], rows[1], 0].numpy()
    share = [(y[np.isfinite(y)] < e).mean() for e in edges["net.returns"][0].numpy()]
    assert np.abs(np.array(share) - RETURN_SHARES.numpy()).max() < 1e-3
    quick = dict(epochs=1, **(TINY | dict(rows=500)))
    base = make_model("token_decoder", **quick).fit(past)
    other = wide_days(0.5)
    moved = other.inputs.bars.other_future(first.stop - 1, 7)
    other.inputs.bars.prices.copy_(moved.prices)
    other.y[check.start :] = 0.01
    again = make_model("token_decoder", **quick).fit(other.window(0, 320))
    for name in ("edges", "returns", "sizes", "ends", "centres", "squares"):
        assert torch.equal(base.weights[f"net.{name}"], again.weights[f"net.{name}"]), name


def test_an_update_keeps_the_meaning_of_the_tokens(planted):
    m = make_model("token_decoder", epochs=1, **(TINY | dict(rows=500))).fit(planted.window(0, 250))
    edges, place = m.weights["net.edges"].clone(), m.weights["net.embed.weight"].clone()
    m.update(planted.window(0, 320))
    assert torch.equal(edges, m.weights["net.edges"])
    assert not torch.equal(place, m.weights["net.embed.weight"])


def test_a_missing_bar_and_missing_volume_have_a_token_of_their_own(data):
    values = torch.tensor([[0.5, float("nan")], [-9.0, 9.0]])
    edges = torch.tensor([[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])
    assert to_tokens(values, edges).tolist() == [[2, 4], [0, 3]]
    bars = data.inputs.bars
    bare = type(bars)(bars.prices[:4], bars.broken, bars.tickers, bars.ahead)
    assert np.isnan(bar_values(bare)[..., 4]).all() and np.isfinite(bar_values(bare)[60:, :, 0]).any()


def test_it_is_small_and_reads_no_feature(fitted, data):
    m = fitted("token_decoder")
    assert sum(p.numel() for p in make_default(data).net.parameters()) < 100_000
    assert m.feature_count() is None and m.heads == ("direction", "volatility", "shape")


def make_default(data):
    "The decoder as it comes, not trained."
    m = new("token_decoder", **{"hidden": 32, "layers": 2, "sequence": 32})
    m.names, m.horizons = list(data.inputs.names), data.horizons
    m.net = m.new_net()
    return m

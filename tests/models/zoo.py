"""Small versions of every model, and comparisons of forecasts, for the tests of models."""

from dataclasses import replace

import torch

from stockpredict.models.contract import make_model, models
from stockpredict.models.dataset import Dataset
from stockpredict.models.forecast import Forecast

NAMES = ("ret_1", "mom_5", "mom_21", "mom_252_21", "vol_20", "rsi_14")
NET = dict(epochs=2, hidden=8, rows=2000)
WINDOW = dict(sequence=10, **NET)
SMALL = dict(  # quick to fit, everything else as it comes
    lightgbm=dict(rounds=20),
    xgboost=dict(rounds=20),
    lightgbm_volatility=dict(rounds=20),
    forest=dict(trees=20, rows=4000),
    double_ensemble=dict(rounds=10, boosters=2, rows=1000),
    mlp=NET,
    tabm=dict(members=4, **NET),
    cross_attention=dict(NET, sequence=4),
    token_decoder=dict(NET, sequence=10, layers=1),
    stack=dict(options=dict(lightgbm=dict(rounds=10))),
    **dict.fromkeys(("lstm", "gru", "tcn", "transformer"), WINDOW),
)
PRETRAINED = [n for n in models.names() if models[n].kind == "foundation"]  # need weights of their own
ALL = [n for n in models.names() if n not in PRETRAINED]
STOP = 460


def new(name, **params):
    return make_model(name, **{**SMALL.get(name, {}), **params})


def same(a: Forecast, b: Forecast, tolerance=0.0):
    "The same rows with the same numbers."
    assert torch.equal(a.available, b.available)
    for part in ("quantiles", "p_up", "volatility", "score"):
        gap = (getattr(a, part)[a.available] - getattr(b, part)[b.available]).abs()
        assert gap.max().item() <= tolerance if gap.numel() else True, f"{part} differs by {gap.max().item()}"


def same_state(a, b):
    (heads, weights, texts) = zip(a.state(), b.state(), strict=True)
    assert heads[0] == heads[1] and texts[0] == texts[1] and weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def scrambled(data: Dataset, stop: int) -> Dataset:
    "The same dataset with another world from `stop` on, labels that end there included."
    g, i, y = torch.Generator().manual_seed(99), data.inputs, data.y.clone()
    x, present, vol = i.x.clone(), i.present.clone(), i.volatility.clone()
    x[stop:] = torch.rand(x[stop:].shape, generator=g) * 100
    present[stop:] = torch.rand(present[stop:].shape, generator=g) > 0.5
    vol[stop:] = torch.rand(vol[stop:].shape, generator=g)
    for j, h in enumerate(data.horizons):
        first = stop - data.entry_delay - h
        y[first:, :, j] = torch.randn(y[first:, :, j].shape, generator=g)
    bars = i.bars and i.bars.other_future(stop - 1, 99)
    return Dataset(replace(i, x=x, present=present, volatility=vol, bars=bars), y, data.horizons)


def some_tickers(inputs, order):
    "The inputs of some tickers, by position."
    names, bars = [inputs.tickers[k] for k in order], inputs.bars
    parts = {k: getattr(inputs, k) for k in ("x", "present", "volatility", "sectors")}
    parts = {k: v[:, order] for k, v in parts.items() if v is not None}
    return replace(inputs, **parts, tickers=names, bars=bars and bars.select(names))


def reordered(data: Dataset) -> Dataset:
    "The same dataset with its tickers in another order."
    order = torch.randperm(len(data.inputs.tickers), generator=torch.Generator().manual_seed(4)).tolist()
    return Dataset(some_tickers(data.inputs, order), data.y[:, order], data.horizons)


def is_net(name):
    return models[name].kind == "net"


def rounding(name):
    "What a batch of another size may change: nothing but in a net, whose sums are split differently."
    return 1e-6 if is_net(name) else 0.0

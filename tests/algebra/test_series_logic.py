"""Conditions of series: right values on every path, and no silent choice of one side."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.core.errors import BarsInvalid, FeatureError, UnknownName
from stockpredict.catalogue.feature import Feature, compute, feature_values, resolve_names
from stockpredict.catalogue.latest import latest
from stockpredict.algebra.panel import Panel

NAN = math.nan


def panel(gaps=True, device="cpu"):
    noise = torch.Generator().manual_seed(2)
    close = 40 * (0.02 * torch.randn(220, 6, generator=noise)).cumsum(0).exp()
    if gaps:
        close[50:60, 1], close[:90, 2], close[200:, 3] = NAN, NAN, NAN
    fields = {"close": close, "volume": (10 + torch.randn(220, 6, generator=noise)).exp()}
    return Panel(fields, pd.bdate_range("2020-01-01", periods=220), list("ABCDEF")).to(device)


def both(b):
    return (b.close > b.close.mean(20)) & (b.volume > b.volume.mean(5))


def either(b):
    return (b.close > b.close.mean(20)) | (b.volume > b.volume.mean(5))


def one_of_them(b):
    return (b.close > b.close.mean(20)) ^ (b.volume > b.volume.mean(5))


def neither(b):
    return ~(b.close > b.close.mean(20)) & ~(b.volume > b.volume.mean(5))


def with_a_number(b):
    return 1 & (b.close > b.close.mean(20)) | 0


OPS = {
    both: lambda p, q: p & q,
    either: lambda p, q: p | q,
    one_of_them: lambda p, q: p ^ q,
    neither: lambda p, q: ~p & ~q,
    with_a_number: lambda p, q: p,
}


def by_pandas(market, op):
    "Bars of each ticker together, undefined where any part is."
    out = np.full(market.present.shape, NAN)
    for j in range(len(market.tickers)):
        here = market.present[:, j].numpy()
        c = pd.Series(market.close.values[:, j].numpy()[here].astype(float))
        v = pd.Series(market.volume.values[:, j].numpy()[here].astype(float))
        p, q = c > c.rolling(20).mean(), v > v.rolling(5).mean()
        out[here, j] = op(p, q).astype(float).where(c.rolling(20).mean().notna())
    return out


@pytest.mark.parametrize("function", OPS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("gaps", [True, False])
def test_conditions_equal_pandas_in_batch_and_for_the_newest_rows(function, gaps):
    market, want = panel(gaps), by_pandas(panel(gaps), OPS[function])
    f = Feature(function)
    got = compute(market, [f])[f.name].numpy()
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(feature_values(f, market).numpy(), want)
    np.testing.assert_array_equal(latest(market, [f], 9)[f].numpy(), want[-9:])
    assert f.recipe is not None and f.lookback == 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("function", OPS, ids=lambda f: f.__name__)
def test_conditions_are_the_same_on_a_gpu(function):
    here, there = function(panel()).values, function(panel(device="cuda")).values.cpu()
    torch.testing.assert_close(here, there, rtol=0, atol=0, equal_nan=True)


def test_a_condition_is_undefined_where_a_part_is():
    b = panel()
    yes, unknown = b.close > 0, b.close.mean(300) > 0
    for x in (yes & unknown, yes | unknown, unknown | yes, ~unknown, yes ^ unknown):
        assert x.values.isnan().all()
    choice = (yes & (b.close > 0)).where(b.close, 0.0).values
    torch.testing.assert_close(choice, b.close.values, equal_nan=True)


SILENT = {
    "and": lambda a, b: (a > b) and (b > 0),
    "or": lambda a, b: (a > b) or (b > 0),
    "not": lambda a, b: not (a > b),
    "if": lambda a, b: a if a > b else b,
    "chained": lambda a, b: 0 < a < b,
    "max": lambda a, b: max(a, b),
    "bool": lambda a, b: bool(a),
    "any": lambda a, b: any([a > b]),
    "while": lambda a, b: next(x for x in (a, b) if x > 1),
}


@pytest.mark.parametrize("how", SILENT)
def test_a_truth_value_is_refused_and_names_what_to_use(how):
    b = panel()
    with pytest.raises(FeatureError) as e:
        SILENT[how](b.close, b.volume)
    assert all(word in str(e.value) for word in ("&", "|", "~", ".where(")) or "taken apart" in str(e.value)


@pytest.mark.parametrize(
    "what, words",
    [
        (lambda b: b.close == b.volume, "(a - b).abs()"),
        (lambda b: b.close != 3, "(a - b).abs()"),
        (lambda b: b.close.rolling(20).mean(), "mean(20)"),
        (lambda b: b.close.shift(1), "lag(n)"),
        (lambda b: b.close.shift(-1), "no way to look ahead"),
        (lambda b: b.close.fillna(0), "stay undefined"),
        (lambda b: b.close.meann(3), "mean"),
        (lambda b: b.close.mean(), "not possible"),
        (lambda b: b.close.mean("20"), "not possible"),
        (lambda b: b.close.mean(2.5), "not possible"),
        (lambda b: b.close.lag(-1), "no way to look ahead"),
        (lambda b: b.close * np.ones(6), "cannot be combined with a ndarray"),
        (lambda b: b.close + b.close.frame(), "cannot be combined with a DataFrame"),
        (lambda b: b.close.clip(b.close.mean(5)), "maximum"),
        (lambda b: b.close % 2, "whole powers"),
        (lambda b: float(b.close), "one number"),
        (lambda b: [x for x in b.close], "taken apart"),
        (lambda b: b.close[0], "taken apart"),
        (lambda b: b.closes, "close"),
        (lambda b: b.until("2020-13-45"), "YYYY-MM-DD"),
        (lambda b: b.until(20200101), "YYYY-MM-DD"),
        (lambda b: Panel.from_bars(b.close.frame()), "wide.rename_axis"),
        (lambda b: compute(b.close.frame(), ["mom_21"]), "Panel.from_bars"),
        (lambda b: compute(b, ["ADX"]), "Choose a window: adx_14"),
        (lambda b: compute(b, [14]), "by its name"),
    ],
)
def test_a_mistake_ends_in_our_sentence(what, words):
    with pytest.raises((FeatureError, BarsInvalid, UnknownName)) as e:
        what(panel())
    assert words in str(e.value) and e.value.code


def test_series_work_as_keys_and_answer_hasattr():
    b = panel()
    assert {b.close: 1}[b.close] == 1 and b.close in [b.volume, b.close][1:]
    assert (
        not hasattr(b.close, "rolling") and hasattr(b.close, "lag") and resolve_names("mom_21") == ["mom_21"]
    )


def test_an_empty_list_of_features_is_answered_by_us():
    from stockpredict.catalogue.cards import sample_panel
    from stockpredict import features

    panel = sample_panel().first(40)
    for ask in (lambda: compute(panel, []), lambda: features([]), lambda: features(names=[])):
        with pytest.raises(FeatureError, match=r"There is no feature|No ticker was asked for") as e:
            ask()
        assert e.value.code == "feature-error" and e.value.fix.startswith("Name ")

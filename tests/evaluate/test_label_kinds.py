"""Excess, residual, volatility and barrier labels by loops over every cell; none is known early."""

import math

import numpy as np
import pytest
import torch

from stockpredict.core.errors import EvaluateError
from stockpredict.algebra.panel import Panel
from stockpredict.evaluate.index_splits import purge
from stockpredict.evaluate.label_kinds import LABEL_KINDS, VARIANCES, daily_variance, excess_returns
from stockpredict.evaluate.label_kinds import labels_by_kind, past_beta, realised_volatility, residual_returns
from stockpredict.evaluate.label_kinds import triple_barrier, uniqueness
from stockpredict.evaluate.labels import forward_returns
from stockpredict.models.dataset import Dataset
from stockpredict.sources.simulate import simulate


@pytest.fixture(scope="module")
def panel():
    return Panel.from_bars(simulate("null", tickers=8, sessions=330, seed=5).bars)


@pytest.fixture(scope="module")
def bars(panel):
    return {k: getattr(panel, k).values.double().numpy() for k in ("open", "high", "low", "close")}


def test_excess_and_residual_are_their_definitions(panel, bars):
    close, y = bars["close"], forward_returns(panel.close.values, 5).double().numpy()
    r = np.full_like(close, np.nan)
    last = np.full(close.shape[1], np.nan)
    for t in range(len(close)):  # from the previous bar, whenever that was
        r[t] = close[t] / last - 1
        last = np.where(np.isnan(close[t]), last, close[t])
    market = np.nanmean(r, axis=1)
    beta, sector = past_beta(panel, 60), torch.tensor([0, 0, 1, 1, 2, 2, -1, -1])
    rest = residual_returns(torch.from_numpy(y), beta, sector).numpy()
    full = ~np.isnan(close).any(0)
    assert full.sum() >= 3
    for t in (100, 200, 310):
        np.testing.assert_allclose(excess_returns(torch.from_numpy(y))[t], y[t] - np.nanmean(y[t]), atol=1e-9)
        for n in np.flatnonzero(full):
            a, m = r[t - 59 : t + 1, n], market[t - 59 : t + 1]
            b = np.cov(a, m)[0, 1] / np.var(m, ddof=1)
            assert float(beta[t, n]) == pytest.approx(b, rel=2e-3)
        plain = y[t] - beta[t].double().numpy() * np.nanmean(y[t])
        for s in (0, 1, 2):
            mine = sector.numpy() == s
            np.testing.assert_allclose(rest[t, mine], plain[mine] - np.nanmean(plain[mine]), atol=1e-7)
        np.testing.assert_allclose(rest[t, 6:], plain[6:], atol=1e-7)


@pytest.mark.parametrize("by", VARIANCES)
@pytest.mark.parametrize("horizon, delay", [(1, 1), (5, 1), (3, 0)])
def test_realised_volatility_is_the_mean_over_the_window(panel, bars, by, horizon, delay):
    o, h, low, c = (np.log(bars[k]) for k in ("open", "high", "low", "close"))

    def variance(t, n):
        if by == "squared":
            return (c[t, n] - c[t - 1, n]) ** 2
        span = (h[t, n] - low[t, n]) ** 2
        inside = span / (4 * math.log(2))
        if by == "garman-klass":
            inside = span / 2 - (2 * math.log(2) - 1) * (c[t, n] - o[t, n]) ** 2
        return (o[t, n] - c[t - 1, n]) ** 2 + inside

    ours = realised_volatility(panel, horizon, delay, by).numpy()
    for t in (0, 77, 200):
        for n in range(8):
            want = math.sqrt(np.mean([variance(t + delay + k, n) for k in range(1, horizon + 1)]))
            assert ours[t, n] == pytest.approx(want, rel=1e-4, nan_ok=True)
    assert np.isnan(ours[-delay - horizon :]).all()


def test_the_variances_agree_where_nothing_but_noise_moves():
    "On a random walk of 400 steps a session all three estimate one variance, the ranges with less noise."
    rng = np.random.default_rng(1)
    steps = 0.01 / 20 * rng.standard_normal((1500, 400, 2))
    path = np.exp(np.cumsum(steps.reshape(-1, 2), 0)).reshape(1500, 400, 2)
    before = np.concatenate([np.ones((1, 2)), path[:-1, -1]])
    seen = np.concatenate([before[:, None], path], 1)
    fields = dict(open=before, high=seen.max(1), low=seen.min(1), close=path[:, -1])
    import pandas as pd

    days = pd.bdate_range("2000-01-03", periods=1500)
    market = Panel({k: torch.from_numpy(x) for k, x in fields.items()}, days, ["A", "B"])
    values = {by: daily_variance(market, by)[1:].numpy() for by in VARIANCES}
    for x in values.values():
        assert x.mean() == pytest.approx(1e-4, rel=0.12)
    noise = {by: x.std() for by, x in values.items()}
    assert noise["garman-klass"] < noise["parkinson"] < 0.6 * noise["squared"]


@pytest.mark.parametrize("delay, horizon, up, down", [(1, 8, 1.0, 1.0), (0, 5, 0.5, 2.0), (2, 12, 3.0, 0.7)])
def test_the_triple_barrier_is_its_definition(panel, bars, delay, horizon, up, down):
    close, sigma = bars["close"], 0.015
    vol = torch.full(close.shape, sigma)
    labels = triple_barrier(panel.close.values, vol, horizon, delay, up, down)
    outcome, side, end = (x.numpy() for x in labels)
    unit = sigma * math.sqrt(horizon)

    def one(t, n):
        if t + delay >= len(close) or math.isnan(close[t + delay, n]):
            return math.nan, 0, None
        touch = 0
        for k in range(1, horizon + 1):
            if t + delay + k >= len(close):
                return math.nan, 0, None
            move = close[t + delay + k, n] / close[t + delay, n] - 1
            if touch or k == horizon:
                return move, touch, t + delay + k
            if math.isnan(move):
                return math.nan, 0, None
            touch = 1 if move >= up * unit else -1 if move <= -down * unit else 0
        return math.nan, 0, None

    for t in range(0, len(close), 7):
        for n in range(8):
            want, barrier, at = one(t, n)
            assert outcome[t, n] == pytest.approx(want, rel=1e-4, abs=1e-6, nan_ok=True), (t, n)
            if not math.isnan(want):
                assert (side[t, n], end[t, n]) == (barrier, at)
    assert {-1, 0, 1} <= set(side[np.isfinite(outcome)].tolist())


def test_uniqueness_is_its_definition_and_the_ends_purge(panel):
    vol = torch.full(panel.present.shape, 0.015)
    outcome, _, end = triple_barrier(panel.close.values, vol, 8, 1, 0.8, 0.8)
    known = outcome.isfinite()
    weight = uniqueness(known, end).numpy()
    spans = [(t + 2, int(end[t, 0])) for t in range(len(panel)) if known[t, 0]]
    open_in = {s: sum(a <= s <= b for a, b in spans) for s in range(len(panel))}
    for t in range(0, len(panel), 11):
        if known[t, 0]:
            a, b = t + 2, int(end[t, 0])
            assert weight[t, 0] == pytest.approx(np.mean([1 / open_in[s] for s in range(a, b + 1)]), rel=1e-5)
    assert (weight[~known.numpy()] == 0).all()
    ends, test = end.amax(1).numpy(), np.arange(150, 180)
    train = purge(np.setdiff1d(np.arange(len(panel)), test), test, 9, 3, ends)
    assert all(ends[t] < 150 or t > ends[test].max() + 3 for t in train)


@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_a_label_knows_its_own_window_and_the_past_only(panel, kind):
    labels = labels_by_kind(panel, [1, 5], kind=kind)
    cut = labels_by_kind(panel.first(290), [1, 5], kind=kind)
    for k, h in enumerate((1, 5)):
        n = 290 - 1 - h
        same = torch.allclose(cut.y[:n, :, k], labels.y[:n, :, k], rtol=1e-5, atol=1e-7, equal_nan=True)
        assert same or kind == "barrier"  # a barrier may be touched before the horizon, and is known then
        assert cut.y[n + h :, :, k].isnan().all()
    known = cut.y.isfinite() & labels.y[:290].isfinite()
    assert torch.allclose(cut.y[known], labels.y[:290][known], rtol=1e-5, atol=1e-7)


def test_a_dataset_can_have_labels_of_every_kind(panel):
    for kind in LABEL_KINDS:
        data = Dataset.from_panel(panel, ("ret_1", "vol_20"), (1, 5), labels=kind)
        want = labels_by_kind(panel, [1, 5], kind=kind).y[:300]
        assert torch.equal(data.y[:300].nan_to_num(9), want.nan_to_num(9))
    with pytest.raises(EvaluateError, match="no label called"):
        Dataset.from_panel(panel, ("ret_1",), (1,), labels="alpha")

"""Alpha158 and Alpha360 equal Qlib's documented formulas, written anew in pandas and NumPy in double
precision."""

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.features.alpha158 import WINDOWS, alpha_names
from stockpredict.catalogue.feature import SETS, compute, FEATURES
from stockpredict.algebra.panel import Panel


def ticks(sessions: int = 260, tickers: int = 4) -> dict[str, np.ndarray]:
    """Prices on a grid of whole cents, with flat days, equal highs and days without a range, so that ties
    happen."""
    noise = np.random.default_rng(4)
    close = np.round(20 * np.exp(np.cumsum(0.01 * noise.standard_normal((sessions, tickers)), axis=0)), 1)
    open_ = np.round(close * np.exp(0.01 * noise.standard_normal((sessions, tickers))), 1)
    high = np.round(np.maximum(open_, close) + np.abs(0.1 * noise.standard_normal((sessions, tickers))), 1)
    low = np.round(np.minimum(open_, close) - np.abs(0.1 * noise.standard_normal((sessions, tickers))), 1)
    flat = noise.random((sessions, tickers)) < 0.02
    for x in (open_, high, low):
        x[flat] = close[flat]
    volume = np.round(np.exp(11 + noise.standard_normal((sessions, tickers))))
    return dict(open=open_, high=high, low=low, close=close, volume=volume)


X = ticks()
OPEN, H, L, C, V = (pd.DataFrame(X[k]) for k in ("open", "high", "low", "close", "volume"))
W, TINY = (H + L + C) / 3, 1e-12


def panel(dtype) -> Panel:
    return Panel(
        {k: torch.from_numpy(v).to(dtype) for k, v in X.items()},
        pd.bdate_range("2020-01-01", periods=len(C)),
        list("ABCD"),
    )


def framed(x: np.ndarray) -> pd.DataFrame:
    "Rows for full windows, with undefined ones above."
    return pd.DataFrame(np.vstack([np.full((len(C) - len(x), x.shape[1]), np.nan), x]))


def lines(x: pd.DataFrame, n: int):
    "Slope, R squared and last residual of the least-squares line through each window."
    w, k = np.lib.stride_tricks.sliding_window_view(x.to_numpy(), n, axis=0), np.arange(1.0, n + 1)
    k = k - k.mean()
    level = w.mean(-1, keepdims=True)
    slope = (w * k).sum(-1) / (k * k).sum()
    left = w - (level + slope[..., None] * k)
    with np.errstate(all="ignore"):
        share = 1 - (left**2).sum(-1) / ((w - level) ** 2).sum(-1)
    return framed(slope), framed(share), framed(left[..., -1])


def place(x: pd.DataFrame, n: int, pick) -> pd.DataFrame:
    "Where in the window the extreme stands, from 1; the first of several."
    return framed(pick(np.lib.stride_tricks.sliding_window_view(x.to_numpy(), n, axis=0), -1) + 1.0)


def candles() -> dict:
    top, bottom, width = np.maximum(OPEN, C), np.minimum(OPEN, C), H - L + TINY
    return {
        "KMID": (C - OPEN) / OPEN,
        "KLEN": (H - L) / OPEN,
        "KMID2": (C - OPEN) / width,
        "KUP": (H - top) / OPEN,
        "KUP2": (H - top) / width,
        "KLOW": (bottom - L) / OPEN,
        "KLOW2": (bottom - L) / width,
        "KSFT": (2 * C - H - L) / OPEN,
        "KSFT2": (2 * C - H - L) / width,
        "OPEN0": OPEN / C,
        "HIGH0": H / C,
        "LOW0": L / C,
        "VWAP0": W / C,
    }


def up_down(x: pd.DataFrame, n: int):
    move = x - x.shift(1)
    every = move.abs().rolling(n).sum() + TINY
    return move.clip(lower=0).rolling(n).sum() / every, (-move).clip(lower=0).rolling(n).sum() / every


def windows(n: int) -> dict:
    before, prior = C.shift(1), V.shift(1)
    higher = (C > before).astype(float).where(before.notna())
    lower = (C < before).astype(float).where(before.notna())
    (rise, fall), (more, less) = up_down(C, n), up_down(V, n)
    weighted = (C / before - 1).abs() * V
    highest, lowest = place(H, n, np.argmax), place(L, n, np.argmin)
    slope, share, left = lines(C, n)
    top, bottom = H.rolling(n).max(), L.rolling(n).min()
    return {
        "ROC": C.shift(n) / C,
        "MA": C.rolling(n).mean() / C,
        "STD": C.rolling(n).std() / C,
        "BETA": slope / C,
        "RSQR": share,
        "RESI": left / C,
        "MAX": top / C,
        "MIN": bottom / C,
        "QTLU": C.rolling(n).quantile(0.8) / C,
        "QTLD": C.rolling(n).quantile(0.2) / C,
        "RANK": C.rolling(n).rank(pct=True),
        "RSV": (C - bottom) / (top - bottom + TINY),
        "IMAX": highest / n,
        "IMIN": lowest / n,
        "IMXD": (highest - lowest) / n,
        "CORR": C.rolling(n).corr(np.log(V + 1)),
        "CORD": (C / before).rolling(n).corr(np.log(V / prior + 1)),
        "CNTP": higher.rolling(n).mean(),
        "CNTN": lower.rolling(n).mean(),
        "CNTD": higher.rolling(n).mean() - lower.rolling(n).mean(),
        "SUMP": rise,
        "SUMN": fall,
        "SUMD": rise - fall,
        "VMA": V.rolling(n).mean() / (V + TINY),
        "VSTD": V.rolling(n).std() / (V + TINY),
        "WVMA": weighted.rolling(n).std() / (weighted.rolling(n).mean() + TINY),
        "VSUMP": more,
        "VSUMN": less,
        "VSUMD": more - less,
    }


ALPHA158 = {**candles(), **{f"{name}{n}": x for n in WINDOWS for name, x in windows(n).items()}}
ALPHA360 = {
    f"{name}{n}": x.shift(n) / (V + TINY if name == "VOLUME" else C)
    for name, x in dict(CLOSE=C, OPEN=OPEN, HIGH=H, LOW=L, VWAP=W, VOLUME=V).items()
    for n in range(59, -1, -1)
}


@pytest.mark.parametrize("dtype, exact", [(torch.float64, 1e-7), (torch.float32, 1e-3)])
@pytest.mark.parametrize("which, wanted", [("alpha158", ALPHA158), ("alpha360", ALPHA360)])
def test_every_value_equals_the_documented_formula(which, wanted, dtype, exact):
    names, got = alpha_names(which), compute(panel(dtype), which)
    assert set(names) == set(wanted) and len(names) == int(which[-3:])
    wrong = {}
    for name, ours in names.items():
        want, have = wanted[name].to_numpy(), got[ours].double().numpy()
        finite = np.isfinite(want)
        if not np.array_equal(finite, np.isfinite(have)):
            wrong[name] = f"undefined elsewhere: {(finite != np.isfinite(have)).sum()} values"
        else:
            gap = np.abs(have - want)[finite].max() / max(1.0, np.abs(want[finite]).max())
            if not gap < exact:
                wrong[name] = f"off by {gap:.2g}"
    assert wrong == {}


def test_the_data_contain_ties():
    "The older of two equal highs counts; without ties that would go untested."
    tied = H.rolling(20).apply(lambda w: (w == w.max()).sum(), raw=True)
    assert (tied > 1).mean().mean() > 0.05 and ((H == L).sum() > 0).all()


def test_the_order_is_the_one_networks_were_trained_on():
    assert list(alpha_names("alpha360")) == list(ALPHA360)
    flat = list(alpha_names("alpha158"))
    assert flat[:13] == "KMID KLEN KMID2 KUP KUP2 KLOW KLOW2 KSFT KSFT2 OPEN0 HIGH0 LOW0 VWAP0".split()
    assert flat[13:18] == [f"ROC{n}" for n in WINDOWS] and flat[-1] == "VSUMD60"


def test_the_sets_stay_apart_from_what_models_are_trained_on_by_default():
    alpha = set(SETS["alpha158"]) | set(SETS["alpha360"])
    assert len(alpha) == 158 + 360 - 4 and not alpha & (
        set(SETS["core"]) | set(SETS["ohlcv"]) | set(SETS["market"])
    )
    assert alpha <= set(SETS["all"])
    assert all(FEATURES[name].lookback <= 61 for name in alpha)

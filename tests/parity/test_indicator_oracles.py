"""Trend, momentum, volatility and money flow: every feature against TA-Lib or an independent formula in
double precision."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from test_feature_oracles import each, hard_numbers, market

from stockpredict.core.errors import FeatureError
from stockpredict.algebra import window_statistics
from stockpredict.catalogue.feature import FEATURES, fill_features, empty_tensor
from stockpredict.algebra.panel import FIELDS, Panel

MODULES = {"trend", "momentum", "volatility", "money_flow"}
MINE = [
    n
    for n, f in FEATURES.items()
    if "technical" in f.sets and f.func.__module__.rpartition(".")[2] in MODULES | {"price", "volume"}
]
PANEL = market(1000)
o, h, lo, c, v = (pd.DataFrame(PANEL._fields[k].numpy()) for k in FIELDS)
r, lr, past = c.pct_change(), np.log(c).diff(), c.shift(1)
tr = np.maximum(h - lo, np.maximum((h - past).abs(), (lo - past).abs())).where(past.notna())
tp, half, night, day = (h + lo + c) / 3, (h + lo) / 2, np.log(o / past), np.log(c / o)
clv, signed = (2 * c - h - lo) / (h - lo), np.sign(c.diff()) * v


def all_of(panel: Panel, names: list = MINE) -> dict:
    "Values of many features, their shared steps computed once."
    out = {FEATURES[n]: empty_tensor(panel._fields["close"]) for n in names}
    fill_features(panel, out)
    return {f.name: x for f, x in out.items()}


def ema(x, n):
    return x.ewm(span=n, min_periods=n).mean()


def wil(x, n):
    return x.ewm(alpha=1 / n, min_periods=n).mean()


def fade(x, d):
    return x.ewm(alpha=1 - d, min_periods=1).mean()


def mean(x, n):
    return x.rolling(n).mean()


def top(x, n):
    return x.rolling(n).max()


def low(x, n):
    return x.rolling(n).min()


def corr(x, y, n):
    return x.apply(lambda s: s.rolling(n).corr(y[s.name])).clip(-1, 1)


def place(x, a, b, n):
    return (x - low(b, n)) / (top(a, n) - low(b, n))


def strength(x, n):
    return 100 * wil(x.clip(lower=0), n) / (wil(x.clip(lower=0), n) + wil((-x).clip(lower=0), n))


def middle(n):
    return (top(h, n) + low(lo, n)) / 2


def over(x: pd.DataFrame, n: int, f) -> pd.DataFrame:
    "A function of each window, oldest bar first, along the last axis."
    windows = np.lib.stride_tricks.sliding_window_view(x.to_numpy(), n, axis=0)
    with np.errstate(all="ignore"):
        out = np.array(f(windows), dtype=float)
    out[np.isnan(windows).any(-1)] = np.nan
    return pd.DataFrame(np.vstack([np.full((n - 1, x.shape[1]), np.nan), out]))


def wma(x, n):
    return over(x, n, lambda w: w @ np.arange(1, n + 1) * 2 / (n * (n + 1)))


def line(x, n, ask):
    t = np.arange(n) - (n - 1) / 2

    def f(w):
        slope, level = w @ t / (t @ t), w.mean(-1)
        error = w - level[..., None] - slope[..., None] * t
        rest, whole = (error**2).sum(-1), ((w - level[..., None]) ** 2).sum(-1)
        return dict(
            slope=slope,
            share=1 - rest / whole,
            ahead=level + slope * (n + 1) / 2,
            z=error[..., -1] / np.sqrt(rest / (n - 2)),
            t=slope / np.sqrt(rest / (n - 2) / (t @ t)),
        )[ask]

    return over(x, n, f)


def slope_of_total(x, n):
    return line(x.fillna(0).cumsum(), n, "slope").where(x.shift(n - 2).notna())


def ta(name, *args, pick=None, **kwargs):
    "A TA-Lib function of every ticker; `pick` chooses one of several outputs."
    import talib

    def f(*columns):
        got = getattr(talib, name)(*columns, *(a for a in args if not isinstance(a, pd.DataFrame)), **kwargs)
        return got if pick is None else got[pick]

    return pd.DataFrame(each(f, *(a.to_numpy() for a in args if isinstance(a, pd.DataFrame))))


def bands(n):
    return (
        ta("BBANDS", c, n, 2, 2, pick=0),
        ta("BBANDS", c, n, 2, 2, pick=1),
        ta("BBANDS", c, n, 2, 2, pick=2),
    )


def di(n, side=0):
    return ta(("PLUS_DI", "MINUS_DI")[side], h, lo, c, n)


def cloud():
    return ((middle(9) + middle(26)) / 2).shift(26), middle(52).shift(26)


def beyond(a, b):
    return (c - np.maximum(a, b)).clip(lower=0) - (np.minimum(a, b) - c).clip(lower=0) + 0 * a * b


def t3(n):
    e = [c]
    for _ in range(6):
        e.append(ema(e[-1], n))

    def gd(x, deep):
        return 1.7 * e[deep] - 0.7 * e[deep + 1]

    return sum(math.comb(3, k) * 1.7 ** (3 - k) * (-0.7) ** k * e[3 + k] for k in range(4))


def kst():
    return 100 * sum(
        w * mean(c.pct_change(k), n) for w, k, n in ((1, 10, 10), (2, 15, 10), (3, 20, 10), (4, 30, 15))
    )


def cta(fast, slow):
    y = (wil(c, fast) - wil(c, slow)) / c.rolling(63).std()
    z = y / y.rolling(252).std()
    return z * np.exp(-(z**2) / 4) / 0.89


def runs(n):
    "Days in a row, counted by walking."
    out, move = np.full(c.shape, np.nan), c.diff().to_numpy()
    for t in range(n, len(c)):
        for j in range(c.shape[1]):
            side, k = np.sign(move[t, j]), 0
            while k < n and np.sign(move[t - k, j]) == side and side:
                k += 1
            out[t, j] = side * k
    return pd.DataFrame(out)


def fall(w):
    return (1 - w / np.maximum.accumulate(w, -1)).max(-1)


def ratio(q, n):
    "Lo and MacKinlay's ratio of unbiased variances, one window at a time."

    def f(w):
        one = np.diff(w, axis=-1)
        mu = one.mean(-1, keepdims=True)
        many, m = w[..., q:] - w[..., :-q], q * (n - q + 1) * (1 - q / n)
        return ((many - q * mu) ** 2).sum(-1) / m / one.var(-1, ddof=1)

    return over(np.log(c), n + 1, f)


def self_corr(x, k, n):
    def f(w):
        now, then = w[..., k:], w[..., :-k]
        return ((now * then).mean(-1) - now.mean(-1) * then.mean(-1)) / now.var(-1)

    return over(x, n + k, f)


TREND = {
    "sma_ratio": lambda n: c / ta("SMA", c, n) - 1,
    "ema_ratio": lambda n: c / ta("EMA", c, n) - 1,
    "trend": lambda n: line(np.log(c), n, "slope"),
    "wma_ratio": lambda n: c / ta("WMA", c, n) - 1,
    "triangular_ratio": lambda n: c / ta("TRIMA", c, n) - 1,
    "dema_ratio": lambda n: c / ta("DEMA", c, n) - 1,
    "tema_ratio": lambda n: c / ta("TEMA", c, n) - 1,
    "hull_ratio": lambda n: c / ta("HMA", c, n) - 1,
    "zlema_ratio": lambda n: c / ema(2 * c - c.shift((n - 1) // 2), n) - 1,
    "t3_ratio": lambda n: c / t3(n) - 1,
    "sma_cross": lambda a, b: ta("SMA", c, a) / ta("SMA", c, b) - 1,
    "ema_cross": lambda a, b: ta("EMA", c, a) / ta("EMA", c, b) - 1,
    "macd_line": lambda a, b: ta("MACD", c, a, b, 9, pick=0) / c,
    "macd_signal": lambda a, b, k: ta("MACD", c, a, b, k, pick=1) / c,
    "macd": lambda a, b, k: ta("MACD", c, a, b, k, pick=2) / c,
    "apo": lambda a, b: ta("APO", c, a, b, 0) / c,
    "ppo": lambda a, b: ta("PPO", c, a, b, 1),
    "ppo_hist": lambda a, b, k: ta("PPO", c, a, b, 1) - ema(ta("PPO", c, a, b, 1), k),
    "sma_slope": lambda n, k: ta("ROCP", mean(c, n), k),
    "above_sma": lambda n, k: mean((c > mean(c, n)).astype(float).where(mean(c, n).notna()), k),
    "ribbon": lambda: (
        sum(np.sign(mean(c, a) - mean(c, b)) for a, b in ((5, 10), (10, 20), (20, 50), (50, 100), (100, 200)))
        / 5
    ),
    "plus_di": lambda n: di(n),
    "minus_di": lambda n: di(n, 1),
    "dx": lambda n: ta("DX", h, lo, c, n),
    "adx": lambda n: ta("ADX", h, lo, c, n),
    "adxr": lambda n: ta("ADXR", h, lo, c, n),
    "vortex_up": lambda n: ta("VORTEX", h, lo, c, n, pick=0),
    "vortex_down": lambda n: ta("VORTEX", h, lo, c, n, pick=1),
    "aroon_up": lambda n: ta("AROON", h, lo, n, pick=1),
    "aroon_down": lambda n: ta("AROON", h, lo, n, pick=0),
    "walk_up": lambda n: (h - lo.shift(n)) / (tr.rolling(n).sum() / n**0.5),
    "walk_down": lambda n: (h.shift(n) - lo) / (tr.rolling(n).sum() / n**0.5),
    "higher_highs": lambda n: (
        (h.diff() > 0).rolling(n).mean().where(h.shift(n).notna()) - (lo.diff() < 0).rolling(n).mean()
    ),
    "ichimoku_line": lambda n: c / ta("MIDPRICE", h, lo, n) - 1,
    "ichimoku_cross": lambda: ta("MIDPRICE", h, lo, 9) / ta("MIDPRICE", h, lo, 26) - 1,
    "ichimoku_cloud": lambda: beyond(*cloud()) / c,
    "ichimoku_thickness": lambda: (cloud()[0] - cloud()[1]) / c,
    "alligator": lambda: (wil(half, 5).shift(3) - wil(half, 13).shift(8)) / c,
    "donchian_place": lambda n: (
        (c - ta("DONCHIAN", h, lo, n, pick=2))
        / (ta("DONCHIAN", h, lo, n, pick=0) - ta("DONCHIAN", h, lo, n, pick=2))
    ),
    "donchian_width": lambda n: (ta("DONCHIAN", h, lo, n, pick=0) - ta("DONCHIAN", h, lo, n, pick=2)) / c,
    "keltner_place": lambda n: (c - ema(c, n)) / (2 * ta("ATR", h, lo, c, 10)),
    "chandelier_long": lambda n: (c - (top(h, n) - 3 * ta("ATR", h, lo, c, n))) / c,
    "chandelier_short": lambda n: (low(lo, n) + 3 * ta("ATR", h, lo, c, n) - c) / c,
    "line_share": lambda n: line(np.log(c), n, "share"),
    "line_stretch": lambda n: line(np.log(c), n, "z"),
    "line_t": lambda n: line(np.log(c), n, "t"),
    "clenow": lambda n: (np.exp(252 * line(np.log(c), n, "slope")) - 1) * line(np.log(c), n, "share"),
    "line_forecast": lambda n: ta("TSF", c, n) / c - 1,
    "efficiency": lambda n: ta("ER", c, n),
    "vhf": lambda n: ta("VHF", c, n),
    "choppiness": lambda n: 100 * np.log10(tr.rolling(n).sum() / (top(h, n) - low(lo, n))) / np.log10(n),
    "fractal_dimension": lambda n: np.log2(
        ((k := top(h, n // 2) - low(lo, n // 2)) + k.shift(n // 2)) / (n / 2) / ((top(h, n) - low(lo, n)) / n)
    ),
    "trix": lambda n: ta("TRIX", c, n),
    "coppock": lambda a, b, n: ta("COPPOCK", c, n, a, b),
    "kst": lambda: kst(),
    "kst_hist": lambda: kst() - mean(kst(), 9),
    "dpo": lambda n: ta("DPO", c, n) / c,
    "mass": lambda n: ta("MASSI", h, lo, 9, n),
    "qstick": lambda n: ta("QSTICK", o, c, n) / c,
}

MOMENTUM = {
    "ret": lambda n: ta("ROCP", c, n),
    "mom": lambda n, k=0: c.shift(k) / c.shift(n) - 1,
    "reversal": lambda n: -c.pct_change(n) / (r.rolling(20).std() * n**0.5),
    "log_ret": lambda n: np.log(c / c.shift(n)),
    "acceleration": lambda n: c / c.shift(n) - c.shift(n) / c.shift(2 * n),
    "rising_months": lambda n: (
        sum(
            (c.shift(21 * k) > c.shift(21 * k + 21)).astype(float).where(c.shift(21 * k + 21).notna())
            for k in range(n)
        )
        / n
    ),
    "discreteness": lambda n, k: (
        np.sign(c.shift(k) / c.shift(n) - 1)
        * ((r < 0).rolling(n - k).mean() - (r > 0).rolling(n - k).mean()).shift(k)
    ),
    "up_share": lambda n: (r > 0).rolling(n).mean().where(c.shift(n).notna()),
    "sharpe": lambda n: mean(r, n) / r.rolling(n).std(),
    "lottery": lambda n, m: over(r, n, lambda w: np.sort(w, -1)[..., -m:].mean(-1)),
    "min_ret": lambda n: low(r, n),
    "max_ret": lambda n: top(r, n),
    "rise": lambda n: c / low(c, n) - 1,
    "drawdown": lambda n: c / top(c, n) - 1,
    "range": lambda n: place(c, c, c, n),
    "since_high": lambda n: over(h, n, lambda w: n - 1 - w.argmax(-1)) / n,
    "since_low": lambda n: over(lo, n, lambda w: n - 1 - w.argmin(-1)) / n,
    "night_return": lambda n: night.rolling(n).sum(),
    "day_return": lambda n: np.log(c / c.shift(n)) - night.rolling(n).sum(),
    "tug_of_war": lambda n: ((night > 0) & (day < 0)).rolling(n).mean().where(c.shift(n).notna()),
    "night_day": lambda n: corr(night, day, n),
    "rsi": lambda n: ta("RSI", c, n),
    "row": lambda n: runs(n),
    "ret_rank": lambda n: (r.rolling(n).rank() - 0.5) / n,
    "rmi": lambda n, k: strength(c.diff(k), n),
    "imi": lambda n: ta("IMI", o, c, n),
    "demarker": lambda n: (k := mean(h.diff().clip(lower=0), n)) / (k + mean((-lo.diff()).clip(lower=0), n)),
    "tsi": lambda a, b: ta("TSI", c, a, b),
    "tii": lambda n, k: 100 * (x := c - mean(c, n)).clip(lower=0).rolling(k).sum() / x.abs().rolling(k).sum(),
    "slow_k": lambda n, k: ta("STOCH", h, lo, c, n, k, 0, 3, 0, pick=0),
    "slow_d": lambda n, k, d: ta("STOCH", h, lo, c, n, k, 0, d, 0, pick=1),
    "kdj_j": lambda n: ta("KDJ", h, lo, c, n, pick=2),
    "stoch_rsi": lambda n: ta("STOCHRSI", c, n, n, 3, 0, pick=0),
    "fisher": lambda n: fade(
        2 * np.arctanh(fade(2 * place(half, half, half, n) - 1, 0.67).clip(-0.999, 0.999)), 0.5
    ),
    "cci": lambda n: ta("CCI", h, lo, c, n),
    "ultimate": lambda a, b, k: ta("ULTOSC", h, lo, c, a, b, k),
    "awesome": lambda: ta("AO", h, lo) / c,
    "accelerator": lambda: ta("AC", h, lo) / c,
    "bull_power": lambda n: ta("ERI", h, lo, c, n, pick=0) / c,
    "bear_power": lambda n: ta("ERI", h, lo, c, n, pick=1) / c,
    "vigour": lambda n: _four(c - o).rolling(n).sum() / _four(h - lo).rolling(n).sum(),
    "balance_of_power": lambda n: mean(ta("BOP", o, h, lo, c), n),
    "close_place": lambda n: mean(clv, n),
    "upper_shadow": lambda n: mean((h - np.maximum(o, c)) / (h - lo), n),
    "lower_shadow": lambda n: mean((np.minimum(o, c) - lo) / (h - lo), n),
    "heikin_ashi": lambda: 1 - ta("HA", o, h, lo, c, pick=0) / ta("HA", o, h, lo, c, pick=3),
    "pivot": lambda n: c / ((top(h, n) + low(lo, n) + c) / 3).shift(1) - 1,
    "cta": cta,
}


def _four(x):
    return (x + 2 * x.shift(1) + 2 * x.shift(2) + x.shift(3)) / 6


def log_range():
    return np.log(h / lo)


VOLATILITY = {
    "vol": lambda n: r.rolling(n).std(),
    "atr": lambda n: ta("ATR", h, lo, c, n) / c,
    "parkinson": lambda n: (mean(log_range() ** 2, n) / (4 * math.log(2))) ** 0.5,
    "garman_klass": lambda n: mean(0.5 * log_range() ** 2 - (2 * math.log(2) - 1) * day**2, n) ** 0.5,
    "skew": lambda n: r.rolling(n).skew(),
    "downside_vol": lambda n: mean(r.clip(upper=0) ** 2, n) ** 0.5,
    "upside_vol": lambda n: mean(r.clip(lower=0) ** 2, n) ** 0.5,
    "ewma_vol": lambda p: (r**2).ewm(alpha=1 - p / 100, min_periods=20).mean() ** 0.5,
    "vol_ratio": lambda a, b: np.log(r.rolling(a).std() / r.rolling(b).std()),
    "vol_slope": lambda n, k: line(np.log(r.rolling(n).std()), k, "slope"),
    "vol_of_vol": lambda n, k: (x := r.rolling(n).std()).rolling(k).std() / mean(x, k),
    "vol_z": lambda n, k: ((x := r.rolling(n).std()) - mean(x, k)) / x.rolling(k).std(),
    "day_range": lambda n: ta("ADR", h, lo, n) / c,
    "range_expansion": lambda n: tr / ta("ATR", h, lo, c, n).shift(1),
    "range_rank": lambda n: (log_range().rolling(n).rank() - 0.5) / n,
    "atr_ratio": lambda a, b: ta("ATR", h, lo, c, a) / ta("ATR", h, lo, c, b),
    "chaikin_vol": lambda n: ta("CVI", h, lo, n, n),
    "bounce": lambda n: np.log((mean(log_range() ** 2, n) / (4 * math.log(2))) ** 0.5 / lr.rolling(n).std()),
    "range_side": lambda n: ((h - o) - (o - lo)).rolling(n).sum() / (h - lo).rolling(n).sum(),
    "bollinger": lambda n: (c - bands(n)[1]) / (bands(n)[0] - bands(n)[1]),
    "band_width": lambda n: (bands(n)[0] - bands(n)[2]) / bands(n)[1],
    "squeeze": lambda n, k: low(x := (bands(n)[0] - bands(n)[2]) / bands(n)[1], k) / x,
    "squeeze_keltner": lambda n: (bands(n)[0] - bands(n)[1]) / (1.5 * mean(tr, n)),
    "signed_variation": lambda n: (
        ((r.clip(lower=0) ** 2).rolling(n).sum() - (r.clip(upper=0) ** 2).rolling(n).sum())
        / (r**2).rolling(n).sum()
    ),
    "jump_share": lambda n: 1 - math.pi / 2 * mean(r.abs() * r.abs().shift(1), n) / mean(r**2, n),
    "relative_vol": lambda n: ta("RVI", c, n, 10),
    "leverage_effect": lambda n: corr(r.shift(1), r**2, n),
    "night_vol": lambda n: night.rolling(n).std(),
    "day_vol": lambda n: day.rolling(n).std(),
    "night_part": lambda n: night.rolling(n).var() / (night.rolling(n).var() + day.rolling(n).var()),
    "value_at_risk": lambda n: -r.rolling(n).quantile(0.05),
    "shortfall": lambda n, m: -over(r, n, lambda w: np.sort(w, -1)[..., :m].mean(-1)),
    "tail_weight": lambda n: -r.rolling(n).quantile(0.05) / r.rolling(n).std(),
    "tail_ratio": lambda n: np.log(r.rolling(n).quantile(0.95) / -r.rolling(n).quantile(0.05)),
    "quartile_vol": lambda n: (r.rolling(n).quantile(0.75) - r.rolling(n).quantile(0.25)) / 1.349,
    "kurtosis": lambda n: r.rolling(n).kurt(),
    "outliers": lambda n: (
        (r.abs() > 2 * r.rolling(n).std().shift(1)).rolling(n).mean().where(c.shift(2 * n).notna())
    ),
    "since_shock": lambda n: over(r.abs(), n, lambda w: n - 1 - w.argmax(-1)) / n,
    "worst_fall": lambda n: over(c, n, fall),
    "ulcer": lambda n: mean((100 * (c / top(c, n) - 1)) ** 2, n) ** 0.5,
    "pain": lambda n: mean(1 - c / top(c, n), n),
    "variance_ratio": ratio,
    "hurst": lambda n: np.log(mean(np.log(c).diff(16).abs(), n) / mean(lr.abs(), n)) / math.log(16),
    "autocorr_at": lambda k, n: self_corr(r, k, n),
    "clustering": lambda k, n: self_corr(r**2, k, n),
}


def cost():
    return r.abs() / (c * v / 1e6)


def index(name, n):
    return np.log(ta(name, c, v)).diff(n)


FLOW = {
    "obv_share": lambda n: ta("OBV", c, v).diff(n) / v.rolling(n).sum(),
    "obv_distance": lambda n: ((x := ta("OBV", c, v)) - mean(x, n)) / v.rolling(n).sum(),
    "pvt_slope": lambda n: line(ta("PVT", c, v), n, "slope") / mean(v, n),
    "flow_return": lambda n: ta("PVT", c, v).diff(n) / v.rolling(n).sum(),
    "volume_zone": lambda n: 100 * ema(signed, n) / ema(v, n),
    "up_volume": lambda n: (
        (x := v.where(r > 0, 0).where(r.notna()).rolling(n).sum()) / (x + v.where(r < 0, 0).rolling(n).sum())
    ),
    "cmf": lambda n: ta("CMF", h, lo, c, v, n),
    "money_flow": lambda n: ta("MFI", h, lo, c, v, n),
    "ad_slope": lambda n: line(ta("AD", h, lo, c, v), n, "slope") / mean(v, n),
    "chaikin_oscillator": lambda a, b: ta("ADOSC", h, lo, c, v, a, b) / mean(v, b),
    "twiggs": lambda n: wil((2 * c - np.maximum(h, past) - np.minimum(lo, past)) / tr * v, n) / wil(v, n),
    "williams_ad": lambda n: ta("WAD", h, lo, c).diff(n) / tr.rolling(n).sum(),
    "force": lambda n: ta("EFI", c, v, n) / (c * mean(v, 20)),
    "ease": lambda n: mean(half.diff() * (h - lo) / v, n) * mean(v, n) / c**2,
    "klinger": lambda a, b: (ema(x := np.sign(tp.diff()) * v, a) - ema(x, b)) / mean(v, 60),
    "nvi": lambda n: index("NVI", n),
    "pvi": lambda n: index("PVI", n),
    "vwap_distance": lambda n: c / ((tp * v).rolling(n).sum() / v.rolling(n).sum()) - 1,
    "vwma_gap": lambda n: ta("VWMA", c, v, n) / mean(c, n) - 1,
    "crowd_vol": lambda n: np.log(((r**2 * v).rolling(n).sum() / v.rolling(n).sum() / mean(r**2, n)) ** 0.5),
    "volume_ratio": lambda n: np.log(v / mean(v, n)),
    "volume_trend": lambda a, b: np.log(mean(v, a) / mean(v, b)),
    "volume_z": lambda n: (v - mean(v, n)) / v.rolling(n).std(),
    "volume_rank": lambda n: (v.rolling(n).rank() - 0.5) / n,
    "volume_change": lambda n: np.log(v).diff(n),
    "volume_slope": lambda n: line(v, n, "slope") / mean(v, n),
    "pvo": lambda a, b: ta("PVO", v, a, b, 1),
    "volume_peak": lambda n: top(v, n) / v.rolling(n).sum(),
    "since_peak": lambda n: over(v, n, lambda w: n - 1 - w.argmax(-1)) / n,
    "volume_skew": lambda n: v.rolling(n).skew(),
    "amihud": lambda n: np.log(mean(cost(), n)),
    "amihud_change": lambda a, b: np.log(mean(cost(), a) / mean(cost(), b)),
    "amihud_down": lambda n: (
        cost().where(r < 0, 0).where(r.notna()).rolling(n).sum() / cost().rolling(n).sum()
    ),
    "dollar_volume": lambda n: np.log(mean(c * v, n)),
    "volume_cv": lambda n: v.rolling(n).std() / mean(v, n),
    "zero_share": lambda n: (c.diff() == 0).rolling(n).mean().where(c.shift(n).notna()),
    "facilitation": lambda n: np.log((x := (h - lo) / v) / mean(x, n)),
    "size_volume": lambda n: corr(r.abs(), v, n),
    "return_volume": lambda n: corr(r, np.log(v), n),
    "return_volume_change": lambda n: corr(r, np.log(v).diff(), n),
}

ORACLES = TREND | MOMENTUM | VOLATILITY | FLOW
LATE = 520  # TA-Lib starts recursions with another value, or fills its first bars; by then this has faded
ROUGH = {
    "cta": 5e-4,
    "fisher": 5e-4,
}  # what our exponential means forget, a millionth, is magnified by dividing or bending


def test_every_feature_equals_its_oracle():
    pytest.importorskip(
        "talib", reason="TA-Lib is an oracle of the development set-up; install the extra 'dev'."
    )
    got, wrong = all_of(PANEL), []
    for name, x in got.items():
        f, x = FEATURES[name], x.numpy()
        want = ORACLES[f.func.__name__.rstrip("_")](*f.args).to_numpy()
        first = [np.isfinite(a).all(1).argmax() for a in (x, want)]
        scale = np.nanstd(want[LATE:])
        gap = np.abs(x - want)[LATE:].max() / (scale or 1)
        if not gap < ROUGH.get(f.func.__name__, 5e-5):
            wrong.append(f"{name}: off by {gap:.1e} deviations")
        if not (f.func.__name__ == "zero_share" or scale > 0):
            wrong.append(f"{name}: the oracle says nothing")
        if first[0] > max(first[1], f.lookback):
            wrong.append(f"{name}: starts at bar {first[0]}, the oracle at {first[1]}")
    assert wrong == []
    assert {FEATURES[n].func.__name__.rstrip("_") for n in MINE} == set(ORACLES), (
        "an oracle without a feature"
    )
    assert len(MINE) >= 150


def hard_market(sessions: int = 700) -> Panel:
    """Columns: 0 and 1 never move, 2 is not traded, 3 has no range, 4 has halts and holes, 5 publishes no
    volume, 6 grows evenly."""
    x = {k: t.clone() for k, t in market(sessions, 7, torch.float32)._fields.items()}
    for k in FIELDS[:4]:
        x[k][:, 0], x[k][:, 1] = 100.1, 3.7
        x[k][:, 3] = market(sessions, 7, torch.float32)._fields["close"][:, 3]
        x[k][:, 6] = 10 * (0.01 * torch.arange(sessions)).exp()
    x["volume"][:, 0] = 12345.0
    x["volume"][:, 1] = 12345.0
    x["volume"][:, 2] = 0.0
    x["volume"][:, 5] = math.nan
    for t in x.values():
        t[:90, 4] = math.nan
        t[300:317, 4] = math.nan
        t[-3:-1, 4] = math.nan
    x["volume"][400:402, 4] = math.nan
    return Panel(x, pd.bdate_range("2018-01-01", periods=sessions), list("ABCDEFG"))


STILL = {
    "aroon_up": 100.0,
    "aroon_down": 100.0,
    "range_rank": 0.5,
    "ret_rank": 0.5,
    "volume_rank": 0.5,
    "zero_share": 1.0,
}


def test_bad_markets_give_a_defined_value_or_none():
    panel, wrong = hard_market(), []
    for name, x in all_of(panel).items():
        f = FEATURES[name]
        kind, reads_volume = f.func.__name__.rstrip("_"), "volume" in f.fields
        if x.isinf().any() or not x[~panel.present].isnan().all():
            wrong.append(f"{name}: infinite, or a value without a bar")
        expected = {"volume_peak": 1 / f.args[0] if f.args else 0}.get(kind, STILL.get(kind, 0.0))
        for i in (0, 1):
            values = x[:, i][~x[:, i].isnan()]
            if kind in ("dollar_volume", "amihud") or torch.allclose(
                values, torch.full_like(values, expected), atol=1e-5
            ):
                continue
            wrong.append(f"{name}: {values[-1]} of prices that never move")
        if reads_volume:
            idle = x[:, 2][~x[:, 2].isnan()]
            if kind not in ("volume_rank",) and idle.abs().sum() > 0:
                wrong.append(f"{name}: {idle[-1]} without any trading")
            if not x[:, 5].isnan().all():
                wrong.append(f"{name}: a value without a volume")
        if kind in ("autocorr_at", "clustering", "kurtosis", "stoch_rsi") and x[400:, 6].isfinite().any():
            wrong.append(f"{name}: rounding taken for movement")
        if x[:, 4].isnan().all():
            wrong.append(f"{name}: halts make it disappear")
    assert wrong == []


def test_nothing_depends_on_the_unit_of_prices_or_volumes():
    "Except the three that measure money."
    panel = market(700, 3)
    other = Panel(
        {k: x * (11 if k == "volume" else 7) for k, x in panel._fields.items()}, panel.sessions, panel.tickers
    )
    a, b = all_of(panel), all_of(other)
    far = {
        n
        for n in MINE
        if not torch.allclose(
            a[n], b[n], rtol=1e-6, atol=1e-9 * float(a[n][~a[n].isnan()].abs().max()), equal_nan=True
        )
    }
    assert {FEATURES[n].func.__name__ for n in far} == {"dollar_volume", "amihud"}


# --- the further window statistics of a series

W = np.array([0.5, -0.2, 0.0, 0.3, 1.0])
KERNELS = {
    "rolling_weighted_sum": (
        lambda n: (np.resize(W, n),),
        lambda n: lambda w: w[..., ::-1] @ np.resize(W, n),
    ),
    "rolling_deviation": (lambda n: (n,), lambda n: lambda w: np.abs(w - w.mean(-1, keepdims=True)).mean(-1)),
    "rolling_fall": (lambda n: (n,), lambda n: lambda w: (np.maximum.accumulate(w, -1) - w).max(-1)),
    "rolling_lowest_mean": (
        lambda n: (n, min(n, 3)),
        lambda n: lambda w: np.sort(w, -1)[..., : min(n, 3)].mean(-1),
    ),
    "rolling_kurt": (
        lambda n: (max(n, 4),),
        lambda n: (
            lambda w: pd.DataFrame(w.reshape(-1, w.shape[-1])).kurt(axis=1).to_numpy().reshape(w.shape[:-1])
        ),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_window_statistic_equals_numpy_and_its_loop_equals_its_tensors(name):
    "And the loop gives the same bits from any start and beside any other ticker."
    kernel, x = getattr(window_statistics, name), hard_numbers()
    x[80, 12] = x[90, 13] = 40.0
    tensors = kernel.__wrapped__
    for n in (1, 2, 4, 7, 20, 33, 64):
        args, width = KERNELS[name][0](n), max(n, 4) if name == "rolling_kurt" else n
        out, wide = kernel(x, *args), tensors(x.double(), *args)
        want = over(pd.DataFrame(x.double().numpy()), width, KERNELS[name][1](width)).to_numpy()
        moved = (
            torch.from_numpy(
                over(
                    pd.DataFrame(x.double().numpy()), width, lambda w: w.std(-1) > 0.01 * np.abs(w).mean(-1)
                ).to_numpy(copy=True)
            )
            > 0
        )
        known = moved if name == "rolling_kurt" else torch.from_numpy(np.isfinite(want))
        assert torch.equal(out.isnan(), wide.isnan()), n
        np.testing.assert_allclose(wide[known], want[known], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            out.double()[known], wide[known], rtol=2e-4 if name == "rolling_kurt" else 2e-5, atol=2e-5
        )
        for start in (1, 17, 64):
            part = kernel(x[start:, 3:20], *args)
            assert torch.equal(
                part[width - 1 :].nan_to_num(-9.0), out[start + width - 1 :, 3:20].nan_to_num(-9.0)
            )
    assert kernel(x[:3], *KERNELS[name][0](5)).isnan().all()


def test_an_impossible_window_is_refused():
    close = PANEL.close
    for wrong in (
        lambda: close.deviation(0),
        lambda: close.fall(1.5),
        lambda: close.kurt(3),
        lambda: close.lowest(5, 6),
        lambda: close.weigh([]),
        lambda: close.weigh([math.nan]),
        lambda: close.deviation(True),
    ):
        with pytest.raises(FeatureError):
            wrong()

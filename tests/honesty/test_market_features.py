"""Calendar, regime, relative and microstructure features equal the same formulas written with pandas in
float64."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from stockpredict.core.calendar import get_calendar
from stockpredict.features.calendar import session_timetables
from stockpredict.catalogue.feature import SETS, Feature, FEATURES, proof_panel, prove, feature_values
from stockpredict.catalogue.point_in_time import attach_fields
from stockpredict.features.membership import group_mean
from stockpredict.algebra.panel import FIELDS, Panel, equal_with_nan

SESSIONS, TICKERS = 420, 8


def draw(constant=False) -> Panel:
    "A market without gaps on real sessions, with a common factor, quiet days and days without trading."
    rng = np.random.default_rng(21)
    days = get_calendar().sessions("2017-01-03")[:SESSIONS]
    factor = 0.011 * rng.standard_t(4, (SESSIONS, 1))
    move = 0.0004 + rng.uniform(0.5, 1.5, TICKERS) * factor + 0.013 * rng.standard_t(4, (SESSIONS, TICKERS))
    move[rng.random((SESSIONS, TICKERS)) < 0.02] = 0.0
    close = 40 * np.exp(np.cumsum(move.clip(-0.2, 0.2), 0))
    open_ = np.vstack([close[:1], close[:-1]]) * np.exp(0.004 * rng.standard_normal(close.shape))
    high, low = (
        f(open_, close) * np.exp(s * 0.004 * np.abs(rng.standard_normal(close.shape)))
        for f, s in ((np.maximum, 1), (np.minimum, -1))
    )
    volume = np.round(np.exp(12 + 0.6 * rng.standard_normal(close.shape) + 10 * np.abs(move)))
    if constant:
        open_, high, low, close, volume = (np.full(close.shape, v) for v in (40.0, 40.0, 40.0, 40.0, 0.0))
    x = dict(open=open_, high=high, low=low, close=close, volume=volume)
    return Panel(
        {k: torch.from_numpy(v).float() for k, v in x.items()}, days, [f"T{i}" for i in range(TICKERS)]
    )


PANEL = draw()
OPEN, H, L, C, V = (pd.DataFrame(PANEL._fields[k].double().numpy(), index=PANEL.sessions) for k in FIELDS)
R = C.pct_change()
M = R.mean(axis=1, skipna=True)
DAYS, MONEY, TYPICAL = PANEL.sessions, C * V, (H + L + C) / 3
ALL = get_calendar().sessions()


def roll(x, n, f):
    return x.rolling(n).apply(f, raw=True)


def mean(x, n):
    return x.rolling(n).mean()


def std(x, n):
    return x.rolling(n).std()


def year(x):
    return ((x - mean(x, 252)) / std(x, 252)).clip(-3, 3) / 6


def bound(x, most=3.0):
    return x.clip(-most, most) / (2 * most)


def flag(x):
    return pd.Series(np.where(np.asarray(x), 0.5, -0.5), index=DAYS)


def frame(f):
    return pd.DataFrame({i: f(R[i], i) for i in R})


def windows(f, n, *columns):  # f of arrays of the last n rows, for every row
    data = np.column_stack([np.asarray(c, float) for c in columns])
    out = np.full(len(data), np.nan)
    for t in range(n - 1, len(data)):
        part = data[t - n + 1 : t + 1]
        if np.isfinite(part).all():
            out[t] = f(*part.T)
    return pd.Series(out, index=DAYS)


def ols(y, *x):
    return np.linalg.lstsq(np.column_stack([*x, np.ones(len(y))]), y, rcond=None)[0]


def r2(y, *x):
    return 1 - np.var(y - np.column_stack([*x, np.ones(len(y))]) @ ols(y, *x)) / np.var(y)


def path(r):
    return np.concatenate([np.cumsum(np.log1p(r))])


def filter_rule(r, share, back):
    p, state, since = path(r), 0, 0
    high = low = p[0]
    for k, v in enumerate(p[1:], 1):
        if state <= 0 and v - low >= np.log1p(share):
            state, since, high, low = 1, k, v, v
        elif state >= 0 and high - v >= -np.log1p(-share):
            state, since, high, low = -1, k, v, v
        else:
            high, low = max(high, v), min(low, v)
    return (state / 2, (len(p) - 1 - since) / len(p) - 0.5)[back]


def coskew(y, x):
    e, d = y - np.column_stack([x, np.ones(len(x))]) @ ols(y, x), x - x.mean()
    return np.mean(e * d * d) / (np.sqrt(np.mean(e * e)) * np.mean(d * d))


def conditional(y, x, keep):
    return ols(y[keep], x[keep])[0]


def residual(r):
    return r - (r.rolling(60).cov(M) / M.rolling(60).var()).where(r.notna()).shift(1) * M


def corr(a, b, n):
    return a.rolling(n).corr(b)


def storms(x):
    return (x < (mean(x, 60) - std(x, 60)).shift(1)).astype(float).where(std(x, 60).shift(1).notna())


def ranks(x):
    return (x.rank(axis=1) - 0.5).div(x.notna().sum(axis=1), axis=0) - 0.5


def ewm(x, n):
    return x.ewm(span=n, adjust=True, min_periods=n).mean()


def profile(p, w, c, bins=0):
    if not bins:
        return (w * (p < c) + 0.5 * w * (p == c)).sum() / w.sum()
    heap, edges = np.histogram(p, bins, weights=w)
    return (edges[heap.argmax()] + edges[heap.argmax() + 1]) / 2 / c - 1


def place(p, w):
    middle = np.average(p, weights=w)
    return (p[-1] - middle) / np.average((p - middle) ** 2, weights=w) ** 0.5


def left(period):  # sessions of the real calendar left in the period
    of, last = ALL.to_period(period).asi8, DAYS.to_period(period).asi8
    return np.array([((day < ALL) & (of == mine)).sum() for day, mine in zip(DAYS, last)])


def gone(period):
    of, first = ALL.to_period(period).asi8, DAYS.to_period(period).asi8
    return np.array([((day > ALL) & (of == mine)).sum() for day, mine in zip(DAYS, first)])


FRIDAY = DAYS + pd.to_timedelta(4 - DAYS.day_of_week, unit="D")
FIRST = FRIDAY.to_period("M").start_time
THIRD = FIRST + pd.to_timedelta((4 - FIRST.day_of_week) % 7 + 14, unit="D")
NEXT, LAST = ALL[ALL.searchsorted(DAYS, "right")], ALL[ALL.searchsorted(DAYS) - 1]
HOLIDAY = np.array([len(pd.bdate_range(a, b)) for a, b in zip(DAYS, NEXT)]) > 2
AFTER = np.array([len(pd.bdate_range(a, b)) for a, b in zip(LAST, DAYS)]) > 2

CALENDAR = {
    **{f"weekday_{n}": lambda n=n: flag(DAYS.day_of_week == n) for n in range(5)},
    "rest_before": lambda: pd.Series((np.minimum((DAYS - LAST).days, 4) - 1) / 3 - 0.5, index=DAYS),
    "rest_after": lambda: pd.Series((np.minimum((NEXT - DAYS).days, 4) - 1) / 3 - 0.5, index=DAYS),
    "turn_of_month": lambda: flag((left("M") == 0) | (gone("M") < 3)),
    "first_half": lambda: flag((left("M") == 0) | (gone("M") < 8)),
    "month_left": lambda: pd.Series(left("M") / 22 - 0.5, index=DAYS),
    "month_gone": lambda: pd.Series(gone("M") / 22 - 0.5, index=DAYS),
    "quarter_left": lambda: pd.Series(left("Q") / 64 - 0.5, index=DAYS),
    "quarter_end": lambda: flag(left("Q") < 5),
    "january": lambda: flag(DAYS.month == 1),
    "december": lambda: flag(DAYS.month == 12),
    "halloween": lambda: flag(np.isin(DAYS.month, [11, 12, 1, 2, 3, 4])),
    "santa": lambda: flag((left("Y") < 5) | (gone("Y") < 2)),
    "year_wave_0": lambda: pd.Series(np.sin(2 * np.pi * DAYS.day_of_year / 365.25) / 2, index=DAYS),
    "president_year_1": lambda: flag(DAYS.year == 2017),
    "president_year_2": lambda: flag(DAYS.year == 2018),
    "moon": lambda: pd.Series(
        np.cos(2 * np.pi * (DAYS - pd.Timestamp("2000-01-05 21:14")) / pd.Timedelta("29.530588D")) / 2,
        index=DAYS,
    ),
    "clock_change": lambda: flag(np.isin(DAYS, pd.to_datetime(["2017-03-13", "2017-11-06", "2018-03-12"]))),
    "pre_holiday": lambda: flag(HOLIDAY),
    "post_holiday": lambda: flag(AFTER),
    "expiry_week": lambda: flag(FRIDAY == THIRD),
    "witching_week": lambda: flag((FRIDAY == THIRD) & (FRIDAY.month % 3 == 0)),
    "after_expiry": lambda: flag(FRIDAY - pd.Timedelta("7D") == THIRD),
    "same_season_252_21": lambda: C.shift(231) / C.shift(252) - 1,
    "same_weekday_4": lambda: (R.shift(4) + R.shift(9) + R.shift(14) + R.shift(19)) / 4,
    "turn_premium_252": lambda: (
        lambda turn: frame(
            lambda r, i: windows(
                lambda x, d: (x[d > 0].mean() - x[d < 0].mean()) / x.std(ddof=1), 252, r, turn
            )
        )
    )(CALENDAR["turn_of_month"]()),
}


def avg(n):
    return (M.rolling(n).var() / R.rolling(n).var().mean(axis=1)).clip(0, 1)


def share(x, of):
    return x.astype(float).where(of.notna()).mean(axis=1)  # of the stocks for which it is defined


NET = share(R > 0, R) - share(R < 0, R)
LOUD = MONEY.where(R.notna())
REGIMES = {
    "market_trend_63": lambda: bound(mean(M, 63) / std(M, 63) * 63**0.5),
    "market_average_50": lambda: bound(
        windows(lambda r: path(r)[-1] - path(r).mean(), 50, M) / (std(M, 50) * 50**0.5), 1.5
    ),
    "market_drawdown_63": lambda: windows(lambda r: np.exp(path(r)[-1] - path(r).max()) - 1, 63, M),
    "market_cycle_10": lambda: windows(lambda r: filter_rule(r, 0.1, 0), 252, M),
    "market_cycle_age_10": lambda: windows(lambda r: filter_rule(r, 0.1, 1), 252, M),
    "market_vol_rank_20": lambda: windows(
        lambda s: ((s < s[-1]).sum() + 0.5 * (s == s[-1]).sum()) / 252 - 0.5, 252, std(M, 20)
    ),
    "market_vol_jump_5_60": lambda: bound(np.log(std(M, 5) / std(M, 60)), 1.5),
    "market_vol_of_vol_60": lambda: year(std(np.log(std(M, 20)).diff(), 60)),
    "market_downside_60": lambda: windows(lambda r: (r[r < 0] ** 2).sum() / (r**2).sum() - 0.5, 60, M),
    "market_skew_60": lambda: bound(M.rolling(60).skew()),
    "market_autocorr_60": lambda: corr(M, M.shift(1), 60) / 2,
    "market_variance_ratio_5_126": lambda: bound(
        M.rolling(5).sum().rolling(126).var() / (5 * M.rolling(126).var()) - 1, 1.0
    ),
    "avg_corr_60": lambda: avg(60) - 0.5,
    "avg_corr_change_60": lambda: avg(60).diff(60),
    "avg_variance_20": lambda: year(np.log(R.rolling(20).var().mean(axis=1))),
    "absorption_60": lambda: (
        (frame(lambda r, i: corr(r, M, 60) ** 2) * R.rolling(60).var()).mean(axis=1)
        / R.rolling(60).var().mean(axis=1)
        - 0.5
    ),
    "turbulence_60": lambda: year(
        np.log((((R - mean(R, 60).shift(1)) / std(R, 60).shift(1)) ** 2).mean(axis=1))
    ),
    "return_spread_21": lambda: year(C.pct_change(21).std(axis=1, ddof=0)),
    "herding_60": lambda: corr(R.sub(M, axis=0).abs().mean(axis=1), M.abs(), 60) / 2,
    "avg_skew_60": lambda: bound(R.rolling(60).skew().mean(axis=1), 1.5),
    "breadth_50": lambda: share(C > mean(C, 50), mean(C, 50)) - 0.5,
    "advance_decline_10": lambda: mean(NET, 10) / 2,
    "mcclellan": lambda: ewm(NET, 19) - ewm(NET, 39),
    "breadth_thrust_10": lambda: ewm(share(R > 0, R) / (share(R > 0, R) + share(R < 0, R)), 10) - 0.5,
    "new_highs_60": lambda: (
        (share(C >= C.rolling(60).max(), mean(C, 60)) - share(C <= C.rolling(60).min(), mean(C, 60))) / 2
    ),
    "bear_share_20": lambda: share(C <= 0.8 * C.rolling(252).max(), mean(C, 252)) - 0.5,
    "trin_10": lambda: bound(
        np.log(
            (share(R > 0, R).rolling(10).sum() / share(R < 0, R).rolling(10).sum())
            / (LOUD[R > 0].sum(axis=1).rolling(10).sum() / LOUD[R < 0].sum(axis=1).rolling(10).sum())
        ).where(M.rolling(10).mean().notna()),
        1.5,
    ),
    "up_money_10": lambda: (
        (LOUD[R > 0].sum(axis=1).rolling(10).sum() / LOUD[R != 0].sum(axis=1).rolling(10).sum()).where(
            mean(M, 10).notna()
        )
        - 0.5
    ),
    "money_lead_20": lambda: (lambda w: bound(mean(w, 20) / std(w, 20) * 20**0.5))(
        (R * mean(MONEY, 20).shift(1)).mean(axis=1) / mean(MONEY, 20).shift(1).mean(axis=1) - M
    ),
    "market_illiquidity_20": lambda: year(np.log(mean((R.abs() / MONEY).mean(axis=1), 20))),
    "market_volume_20": lambda: year(mean((V / mean(V, 20)).mean(axis=1), 20)),
    "stock_cycle_252_20": lambda: frame(
        lambda r, i: windows(
            lambda c: (
                lambda up, down: (
                    (1 if c[::-1].argmin() < c[::-1].argmax() else -1) if up and down else up * 1 - down * 1
                )
            )(c[-1] >= 1.2 * c.min(), c[-1] <= 0.8 * c.max()),
            252,
            C[i],
        )
    ),
    "trend_age_50_60": lambda: frame(
        lambda r, i: windows(
            lambda a: (
                (1 if a[-1] else -1) * (lambda k: (k.argmax() if k.any() else 60) / 60)(np.diff(a)[::-1] != 0)
            ),
            61,
            (C[i] > mean(C[i], 50)).astype(float).where(mean(C[i], 50).notna()),
        )
    ),
    "vol_regime_20": lambda: year(np.log(std(R, 20))),
}

LATE = M.shift(1)
CROSS = {
    "beta_120": lambda: frame(lambda r, i: r.rolling(120).cov(M) / M.where(r.notna()).rolling(120).var()),
    "corr_market_252": lambda: frame(lambda r, i: corr(r, M, 252)),
    "idio_vol_20": lambda: frame(lambda r, i: std(r, 20) * (1 - corr(r, M, 20) ** 2) ** 0.5),
    "residual_mom_126": lambda: frame(lambda r, i: mean(residual(r), 126) / std(residual(r), 126)),
    "rank_change_5": lambda: ranks(C.pct_change(63)).diff(5),
    "down_beta_60": lambda: frame(lambda r, i: windows(lambda y, x: conditional(y, x, x < 0), 60, r, M)),
    "up_beta_252": lambda: frame(lambda r, i: windows(lambda y, x: conditional(y, x, x > 0), 252, r, M)),
    "beta_asymmetry_252": lambda: frame(
        lambda r, i: windows(lambda y, x: conditional(y, x, x < 0) - conditional(y, x, x > 0), 252, r, M)
    ),
    **{
        f"semibeta_60_{s}": lambda s=s: frame(
            lambda r, i: windows(
                lambda y, x: (
                    abs((y * x)[((y < 0) == (s[0] == "n")) & ((x < 0) == (s[1] == "n"))].sum())
                    / (x * x).sum()
                ),
                60,
                r,
                M,
            )
        )
        for s in ("nn", "pp", "np", "pn")
    },
    "tail_beta_252": lambda: frame(
        lambda r, i: (storms(M) * r).rolling(252).sum() / (storms(M) * M).rolling(252).sum()
    ),
    "crash_share_120": lambda: frame(
        lambda r, i: (storms(M) * storms(r)).rolling(120).sum() / storms(M).rolling(120).sum()
    ),
    "coskew_60": lambda: frame(lambda r, i: windows(coskew, 60, r, M)),
    "dimson_beta_252": lambda: frame(
        lambda r, i: windows(lambda y, a, b: ols(y, a, b)[:2].sum(), 252, r, M, LATE)
    ),
    "price_delay_252": lambda: frame(
        lambda r, i: windows(lambda y, a, b: np.clip(1 - r2(y, a) / r2(y, a, b), 0, 1), 252, r, M, LATE)
    ),
    "lag_beta_60": lambda: frame(lambda r, i: windows(lambda y, b: ols(y, b)[0], 60, r, LATE)),
    "lag_response_60": lambda: frame(
        lambda r, i: windows(lambda y, b: ols(y, b)[0], 60, r, LATE) * M / std(r, 60)
    ),
    "synchronicity_60": lambda: frame(lambda r, i: np.log(corr(r, M, 60) ** 2 / (1 - corr(r, M, 60) ** 2))),
    "beta_change_20_120": lambda: frame(
        lambda r, i: r.rolling(20).cov(M) / M.rolling(20).var() - r.rolling(120).cov(M) / M.rolling(120).var()
    ),
    "beta_unrest_20_120": lambda: frame(lambda r, i: std(r.rolling(20).cov(M) / M.rolling(20).var(), 120)),
    "corr_change_20_120": lambda: frame(lambda r, i: corr(r, M, 20) - corr(r, M, 120)),
    "bab_beta_252": lambda: frame(
        lambda r, i: corr(np.log(C[i]).diff(3), np.log1p(M).rolling(3).sum(), 252) * std(r, 120) / std(M, 120)
    ),
    "vol_corr_120": lambda: frame(lambda r, i: corr(r, np.log(std(M, 20)).diff(), 120)),
    "volume_comove_60": lambda: frame(
        lambda r, i: corr(np.log1p(V[i]).diff(), np.log1p(V).diff().mean(axis=1), 60)
    ),
    "residual_reversal_5": lambda: frame(
        lambda r, i: -residual(r).rolling(5).sum() / (std(residual(r), 60) * 5**0.5)
    ),
    "idio_skew_60": lambda: frame(lambda r, i: residual(r).rolling(60).skew()),
    "info_ratio_63": lambda: frame(lambda r, i: mean(r - M, 63) / std(r - M, 63) * 63**0.5),
    "beat_share_20": lambda: frame(lambda r, i: mean((r > M).astype(float).where(r.notna()), 20)),
    "rank_return_21": lambda: ranks(C.pct_change(21)),
    "rank_vol_20": lambda: ranks(std(R, 20)),
    "rank_money_20": lambda: ranks(mean(MONEY, 20)),
    "rank_volume_20": lambda: ranks(V / mean(V, 20)),
    "rank_vol_change_21": lambda: ranks(std(R, 20)).diff(21),
    "rank_money_change_5": lambda: ranks(mean(MONEY, 20)).diff(5),
    "rank_mean_20": lambda: mean(ranks(R), 20),
    "rank_noise_20": lambda: std(ranks(R), 20),
    "winner_share_20": lambda: mean(
        ((ranks(R) > 0.3).astype(float) - (ranks(R) < -0.3)).where(R.notna()), 20
    ),
}

LOGS, MIDDLE = np.log(C), (np.log(H) + np.log(L)) / 2
Z = (R / std(R, 60)).clip(-6, 6)
SIDE = pd.DataFrame(2 * norm.cdf(Z) - 1, index=DAYS)
AHEAD = R.sub(M, axis=0)
PUSH, ECHO = (np.sign(AHEAD) * V / mean(V, 20)).shift(1), (R * np.log((V + 1) / (mean(V, 20) + 1))).shift(1)


def corwin(n):
    past, k = C.shift(1), 3 - 2 * 2**0.5
    shift = np.maximum(L - past, 0) - np.maximum(past - H, 0)  # overnight, as in the paper
    top, low = H - shift, L - shift
    b = np.log(top / low) ** 2 + np.log(H / L).shift(1) ** 2
    g = np.log(np.maximum(top, H.shift(1)) / np.minimum(low, L.shift(1))) ** 2
    a = ((2 * b) ** 0.5 - b**0.5) / k - (g / k) ** 0.5
    return mean((2 * (np.exp(a) - 1) / (1 + np.exp(a))).clip(lower=0), n)


TRADING = {
    "roll_spread_120": lambda: frame(
        lambda r, i: (
            2 * np.sqrt(-windows(lambda a, b: np.cov(a, b, ddof=0)[0, 1], 120, r, r.shift(1)).clip(upper=0))
        )
    ),
    "corwin_schultz_120": lambda: corwin(120),
    "spread_change_10_60": lambda: corwin(10) - corwin(60),
    "chl_spread_60": lambda: (
        2 * np.sqrt(mean((LOGS - MIDDLE).shift(1) * (LOGS.shift(1) - MIDDLE), 60).clip(lower=0))
    ),
    "fht_spread_120": lambda: (
        2 * std(R, 120) * norm.ppf((1 + mean((R == 0).astype(float).where(R.notna()), 120)) / 2)
    ),
    "kyle_lambda_20": lambda: np.log(
        (R.abs() * (MONEY / 1e6) ** 0.5).rolling(20).sum() / (MONEY / 1e6).rolling(20).sum()
    ),
    "invariance_60": lambda: np.log(R.rolling(60).var() / mean(MONEY / 1e6, 60)) / 3,
    "volume_reversal_60": lambda: frame(
        lambda r, i: windows(lambda y, a, b: ols(y, a, b)[1], 60, AHEAD[i], r.shift(1), PUSH[i]) / std(r, 60)
    ),
    "volume_continuation_60": lambda: frame(
        lambda r, i: windows(lambda y, a, b: ols(y, a, b)[1], 60, r, r.shift(1), ECHO[i])
    ),
    "bulk_imbalance_20": lambda: (V * SIDE).rolling(20).sum() / V.rolling(20).sum(),
    "vpin_50": lambda: (V * SIDE.abs()).rolling(50).sum() / V.rolling(50).sum(),
    "volume_focus_20": lambda: 20 * (V**2).rolling(20).sum() / V.rolling(20).sum() ** 2 - 1,
    "range_elasticity_60": lambda: frame(
        lambda r, i: windows(lambda y, x: ols(y, x)[0] / y.mean(), 60, np.log(H[i] / L[i]), np.log1p(V[i]))
    ),
    "sign_run_20": lambda: mean(np.sign(R) * np.sign(R).shift(1), 20),
    "volume_below_60": lambda: frame(
        lambda r, i: windows(lambda p, w, c: profile(p, w, c[-1]), 60, TYPICAL[i], V[i], C[i])
    ),
    "point_of_control_20": lambda: frame(
        lambda r, i: windows(lambda p, w, c: profile(p, w, c[-1], 12), 20, TYPICAL[i], V[i], C[i])
    ),
    "profile_place_20": lambda: frame(lambda r, i: windows(place, 20, TYPICAL[i], V[i])),
}

KIND = pd.DataFrame(np.tile(np.arange(TICKERS) % 3, (SESSIONS, 1)), index=DAYS)
KIND.iloc[200:, 5], KIND.iloc[:40, 1] = 0, np.nan


def peers(x):
    out = pd.DataFrame(np.nan, index=x.index, columns=x.columns)
    for k in range(3):
        each = np.repeat(x.where(KIND == k).mean(axis=1).to_numpy()[:, None], TICKERS, 1)
        out = out.where(~((KIND == k) & x.notna()), each)
    return out


def rsi(n):
    move = C.diff()
    up, down = (
        x.ewm(alpha=1 / n, adjust=True, min_periods=n).mean().where(move.notna())
        for x in (move.clip(lower=0), -move.clip(upper=0))
    )
    return 100 * up / (up + down)


SECTORS = {
    "sector_mom_5": lambda: C.pct_change(5) - peers(C.pct_change(5)),
    "sector_vol_20": lambda: np.log(std(R, 20) / peers(std(R, 20))),
    "sector_reversal_5": lambda: (lambda x: -x.rolling(5).sum() / (std(x, 60) * 5**0.5))(R - peers(R)),
    "sector_beta_gap_60": lambda: (lambda b: b - peers(b))(
        frame(lambda r, i: r.rolling(60).cov(M) / M.rolling(60).var())
    ),
    "sector_trend_50": lambda: (lambda x: x - peers(x))(C / mean(C, 50) - 1),
    "sector_rsi_14": lambda: (rsi(14) - peers(rsi(14))) / 100,
    "sector_volume_20": lambda: (lambda x: x - peers(x))(np.log((V + 1) / (mean(V, 20) + 1))),
    "group_mom_21": lambda: peers(C.pct_change(21)),
    "group_lead_1": lambda: (peers(R) - R) / std(R, 60),
    "group_breadth_50": lambda: peers((C > mean(C, 50)).astype(float).where(mean(C, 50).notna())),
    "group_spread_21": lambda: peers((C.pct_change(21) - peers(C.pct_change(21))) ** 2) ** 0.5,
    "sector_corr_60": lambda: (lambda p: frame(lambda r, i: corr(r, p[i], 60)))(peers(R)),
    "sector_share_60": lambda: (lambda p: frame(lambda r, i: corr(r, p[i], 60) ** 2 - corr(r, M, 60) ** 2))(
        peers(R)
    ),
}
FAMILIES = dict(calendar=CALENDAR, regimes=REGIMES, cross=CROSS, trading=TRADING, sectors=SECTORS)


def difference(name, panel, theirs) -> str | None:
    "What is wrong with a feature beside its formula; None = nothing."
    ours, theirs = feature_values(FEATURES[name], panel).numpy().astype(float), theirs.to_numpy(float)
    theirs = theirs if theirs.ndim == 2 else np.repeat(theirs[:, None], TICKERS, 1)
    theirs = np.where(np.isfinite(theirs), theirs, np.nan)
    both = np.isfinite(ours) & np.isfinite(theirs)
    if not both.any():
        return f"{name}: defined nowhere in both"
    limit = (0.02 if name.startswith(("bulk", "vpin")) else 2e-3) * max(
        np.std(theirs[both]), 1e-9
    )  # these two approximate the normal distribution
    far = np.mean(np.abs(ours - theirs)[both] > limit)
    alone = (np.isfinite(ours) != np.isfinite(theirs)).mean()
    return (
        f"{name}: {far:.2%} of the values differ, {alone:.2%} defined in one only"
        if far > 0.002 or alone > 0.003
        else None
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_the_formulas_in_float64(family):
    """The same cells are defined, and their values agree to a small part of the feature's own spread; a
    formula a bar late or 5 % larger is refused."""
    panel, wrong, blind = attach_fields(PANEL, dict(sector=KIND.to_numpy())), [], []
    for name, formula in FAMILIES[family].items():
        theirs = formula()
        wrong += filter(None, [difference(name, panel, theirs)])
        blind += [
            name
            for other in (theirs.shift(1), theirs * 1.05 + 0.01 * np.nanstd(theirs))
            if not difference(name, panel, other)
        ]
    assert wrong == [] and blind == []


def test_every_function_of_these_notebooks_has_its_formula():
    """A function that joins the catalogue from here needs an oracle above (those of short bars have their
    own file)."""
    homes = {"calendar", "regime", "relative", "microstructure", "sector"}
    ours = {f.func.__name__ for n, f in FEATURES.items() if f.func.__module__.rpartition(".")[2] in homes}
    tested = {FEATURES[n].func.__name__ for family in FAMILIES.values() for n in family}
    assert len(ours) >= 90 and ours - tested == set()


MINE = [
    n
    for n, f in FEATURES.items()
    if f.func.__module__.rpartition(".")[2] in {"calendar", "regime", "relative", "microstructure", "sector"}
]


def test_no_value_is_infinite_and_a_market_that_never_moves_is_defined_or_empty():
    still = attach_fields(draw(constant=True), dict(sector=KIND.to_numpy()))
    holes = attach_fields(proof_panel(480), dict(sector=np.tile([0.0, 0.0, 1.0, 1.0, 1.0, 0.0], (480, 1))))
    for panel in (still, holes):
        for name in MINE:
            assert not feature_values(FEATURES[name], panel).isinf().any(), name
    dates = [n for n in SETS["context"] if FEATURES[n].group == "calendar"]
    assert not any(feature_values(FEATURES[n], still).isnan().any() for n in dates)


def test_context_is_the_same_for_every_ticker_and_on_one_scale():
    for name in SETS["context"]:
        x = feature_values(FEATURES[name], PANEL)
        assert not FEATURES[name].across and x.nan_to_num(0.0).abs().max() <= 1.0, name
        assert equal_with_nan(x, x[:, :1].expand_as(x)), name


def test_an_unannounced_closure_is_not_foreseen():
    past, announced = session_timetables()
    assert {"2001-09-11", "2012-10-29", "2018-12-05"} <= set(
        announced.difference(past).strftime("%Y-%m-%d")
    ) and past.isin(announced).all()
    days = pd.to_datetime(
        ["2001-09-10", "2001-09-17", "2012-10-26", "2018-12-04", "2018-12-06", "2019-07-03"]
    )
    panel = Panel({"close": torch.ones(len(days), 1)}, days, ["A"])
    before, after = (
        feature_values(FEATURES[n], panel)[:, 0].tolist() for n in ("pre_holiday", "post_holiday")
    )
    assert before == [-0.5, -0.5, -0.5, -0.5, -0.5, 0.5] and after == [-0.5, 0.5, -0.5, -0.5, 0.5, -0.5]
    assert feature_values(FEATURES["rest_after"], panel)[0, 0] == -0.5, "a session was due the next morning"


def test_outside_the_calendar_nothing_is_known():
    panel = Panel({"close": torch.ones(2, 1)}, pd.to_datetime(["1875-03-04", "2090-03-06"]), ["A"])
    assert feature_values(FEATURES["turn_of_month"], panel).isnan().all()


def next_session_of_the_panel(b):
    "The leak: a holiday seen in the panel's own next session."
    ahead = np.r_[np.diff(b.sessions.to_numpy()).astype("m8[D]").astype(float), 1.0]
    return b.close * 0 + type(b.close)(
        torch.from_numpy(ahead).float()[:, None].expand(b.present.shape), b.grid, fields={"close"}
    )


def test_a_holiday_read_from_the_panel_itself_is_caught():
    from stockpredict.core.errors import SeesFuture

    with pytest.raises(SeesFuture):
        prove(Feature(next_session_of_the_panel, group="mutant"))


def test_sector_features_pass_the_leak_check_on_changing_sectors():
    hard = proof_panel(640)
    moving = np.tile([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], (640, 1))
    moving[300:, 2], moving[:20, 4], moving[600:, 0] = 1.0, math.nan, 1.0
    panel = attach_fields(hard, dict(sector=moving))
    for name in (n for n in SETS["facts"] if "sector" in FEATURES[n].fields):
        f = Feature(FEATURES[name].func, FEATURES[name].args, group="again")
        assert prove(f, panel).proven == 640 and not feature_values(f, panel).isnan().all()


def test_the_mean_of_a_group_does_not_depend_on_the_order_of_its_members():
    panel = attach_fields(PANEL, dict(sector=KIND.to_numpy()))
    order = [6, 1, 4, 0, 7, 2, 5, 3]
    turned = panel.select([panel.tickers[i] for i in order])

    def mean_of(p):
        return group_mean(p.returns, type(p.close)(p._fields["sector"], p.grid, fields={"sector"})).values

    assert equal_with_nan(mean_of(panel)[:, order], mean_of(turned))

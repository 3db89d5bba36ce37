"""Features equal independent implementations: TA-Lib, pandas, float64, the GPU."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.algebra import kernels
from stockpredict.features import relative as cross, microstructure
from stockpredict.algebra import numba_kernels, numba_moments, latest_kernels, order_statistics
from stockpredict.catalogue.feature import compute, FEATURES, fill_features, empty_tensor
from stockpredict.algebra.panel import Panel, equal_with_nan


def market(sessions: int = 900, tickers: int = 4, dtype=torch.float64, seed: int = 2) -> Panel:
    "A market without gaps."
    noise = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(sessions, tickers, generator=noise, dtype=torch.float64)

    close = 60 * (0.015 * draw()).cumsum(0).exp()
    open_ = close * (0.006 * draw()).exp()
    x = dict(
        open=open_,
        high=torch.maximum(open_, close) * (0.004 * draw().abs()).exp(),
        low=torch.minimum(open_, close) / (0.004 * draw().abs()).exp(),
        close=close,
        volume=(12 + draw()).exp().round(),
    )
    return Panel(
        {k: v.to(dtype) for k, v in x.items()},
        pd.bdate_range("2018-01-01", periods=sessions),
        [f"T{i}" for i in range(tickers)],
    )


PANEL = market()
OPEN, H, L, C, V = (PANEL._fields[k].numpy() for k in ("open", "high", "low", "close", "volume"))
FRAME, RET = pd.DataFrame(C), pd.DataFrame(C).pct_change()
MARKET = RET.mean(axis=1)


def each(f, *arrays) -> np.ndarray:
    "A one-dimensional indicator for every ticker."
    return np.column_stack([f(*(np.ascontiguousarray(a[:, i]) for a in arrays)) for i in range(C.shape[1])])


def talib_oracles() -> dict:
    import talib

    return {
        "rsi_14": (each(lambda c: talib.RSI(c, 14), C), 300),
        "macd": (each(lambda c: talib.MACD(c, 12, 26, 9)[2], C) / C, 400),
        "atr_14": (each(lambda h, lo, c: talib.ATR(h, lo, c, 14), H, L, C) / C, 300),
        "bollinger_20": (
            each(
                lambda c: (
                    (c - talib.BBANDS(c, 20, 2, 2)[1])
                    / (talib.BBANDS(c, 20, 2, 2)[0] - talib.BBANDS(c, 20, 2, 2)[1])
                ),
                C,
            ),
            19,
        ),
        "stochastic_14": (each(lambda h, lo, c: talib.STOCHF(h, lo, c, 14, 1)[0], H, L, C), 14),
        "obv_slope_20": (
            each(lambda c, v: talib.LINEARREG_SLOPE(talib.OBV(c, v), 20) / talib.SMA(v, 20), C, V),
            30,
        ),
        "money_flow_14": (each(lambda h, lo, c, v: talib.MFI(h, lo, c, v, 14), H, L, C, V), 14),
        "mom_21": (each(lambda c: talib.ROCP(c, 21), C), 21),
        "sma_ratio_50": (each(lambda c: c / talib.SMA(c, 50) - 1, C), 49),
        "ema_ratio_20": (each(lambda c: c / talib.EMA(c, 20) - 1, C), 300),
        "trend_20": (each(lambda c: talib.LINEARREG_SLOPE(np.log(c), 20), C), 19),
        "williams_20": (each(lambda h, lo, c: talib.WILLR(h, lo, c, 20), H, L, C), 19),
        "aroon_20": (each(lambda h, lo: talib.AROONOSC(h, lo, 20), H, L), 20),
        "range_20": (each(lambda c: (c - talib.MIN(c, 20)) / (talib.MAX(c, 20) - talib.MIN(c, 20)), C), 19),
    }


@pytest.mark.parametrize(
    "name",
    [
        "rsi_14",
        "macd",
        "atr_14",
        "bollinger_20",
        "stochastic_14",
        "obv_slope_20",
        "money_flow_14",
        "mom_21",
        "sma_ratio_50",
        "ema_ratio_20",
        "trend_20",
        "range_20",
        "williams_20",
        "aroon_20",
    ],
)
def test_talib_agrees(name):
    "TA-Lib seeds its exponential averages differently; once that has faded, both are the same."
    pytest.importorskip(
        "talib", reason="TA-Lib is an oracle of the development set-up; install the extra 'dev'."
    )
    want, start = talib_oracles()[name]
    got = compute(PANEL, [name])[name].numpy()
    scale = np.nanstd(want[start:])
    assert np.isfinite(got[start:]).all()
    np.testing.assert_allclose(got[start:], want[start:], rtol=2e-5, atol=2e-5 * scale)


def no_intercept(n):
    def residuals(r):
        beta = (RET[r.name].rolling(60).cov(MARKET) / MARKET.rolling(60).var()).shift(1)
        return r - beta * MARKET

    own = RET.apply(residuals)
    return own.rolling(n).mean() / own.rolling(n).std()


def logs(a, b):
    return np.log(pd.DataFrame(a / b))


def drift_free():
    return logs(H, OPEN) * logs(H, C) + logs(L, OPEN) * logs(L, C)


def yang_zhang(n):
    k = 0.34 / (1.34 + (n + 1) / (n - 1))
    night = np.log(pd.DataFrame(OPEN) / FRAME.shift(1))
    return (
        night.rolling(n).var() + k * logs(C, OPEN).rolling(n).var() + (1 - k) * drift_free().rolling(n).mean()
    ).pow(0.5)


def corwin_schultz(n):
    "Equations 14 and 18 of the paper, and its adjustment for what happened overnight."
    high, low, past = pd.DataFrame(H), pd.DataFrame(L), pd.DataFrame(C).shift(1)
    up, down = low > past, high < past
    gap = (low - past).where(up, (high - past).where(down, 0.0)).where(past.notna())
    second_high, second_low = high - gap, low - gap
    beta = logs(second_high, second_low) ** 2 + logs(H, L).shift(1) ** 2
    top, bottom = np.maximum(second_high, high.shift(1)), np.minimum(second_low, low.shift(1))
    gamma = np.log(top / bottom) ** 2
    alpha = (np.sqrt(2 * beta) - np.sqrt(beta)) / (3 - 2 * 2**0.5) - np.sqrt(gamma / (3 - 2 * 2**0.5))
    return (2 * np.tanh(alpha / 2)).clip(lower=0).rolling(n).mean()


PANDAS = {
    "rogers_satchell_20": lambda: drift_free().rolling(20).mean().pow(0.5),
    "yang_zhang_20": lambda: yang_zhang(20),
    "corwin_schultz_20": lambda: corwin_schultz(20),
    "roll_spread_60": lambda: (
        2 * (-RET.apply(lambda r: r.rolling(60).cov(r.shift(1), ddof=0))).clip(lower=0).pow(0.5)
    ),
    "cmo_20": lambda: 100 * FRAME.diff().rolling(20).sum() / FRAME.diff().abs().rolling(20).sum(),
    "ret_1": lambda: RET,
    "mom_63": lambda: FRAME.pct_change(63),
    "mom_252_21": lambda: FRAME.shift(21) / FRAME.shift(252) - 1,
    "reversal_5": lambda: -FRAME.pct_change(5) / (RET.rolling(20).std() * 5**0.5),
    "vol_60": lambda: RET.rolling(60).std(),
    "downside_vol_20": lambda: RET.clip(upper=0).pow(2).rolling(20).mean().pow(0.5),
    "skew_60": lambda: RET.rolling(60).skew(),
    "autocorr_20": lambda: RET.apply(lambda r: r.rolling(20).corr(r.shift(1))),
    "max_ret_21": lambda: RET.rolling(21).max(),
    "drawdown_252": lambda: FRAME / FRAME.rolling(252).max() - 1,
    "zscore_60": lambda: (FRAME - FRAME.rolling(60).mean()) / FRAME.rolling(60).std(),
    "parkinson_20": lambda: (
        (np.log(pd.DataFrame(H / L)) ** 2).rolling(20).mean().pow(0.5) / np.sqrt(4 * np.log(2))
    ),
    "garman_klass_20": lambda: (
        (0.5 * np.log(pd.DataFrame(H / L)) ** 2 - (2 * np.log(2) - 1) * np.log(pd.DataFrame(C / OPEN)) ** 2)
        .rolling(20)
        .mean()
        .pow(0.5)
    ),
    "gap_1": lambda: pd.DataFrame(OPEN) / FRAME.shift(1) - 1,
    "intraday_1": lambda: pd.DataFrame(C / OPEN - 1),
    "volume_ratio_20": lambda: np.log(pd.DataFrame(V) / pd.DataFrame(V).rolling(20).mean()),
    "amihud_20": lambda: np.log((RET.abs() / (FRAME * V / 1e6)).rolling(20).mean()),
    "cmf_20": lambda: (
        pd.DataFrame((2 * C - H - L) / (H - L) * V).rolling(20).sum() / pd.DataFrame(V).rolling(20).sum()
    ),
    "vwap_distance_20": lambda: (
        FRAME / (pd.DataFrame((H + L + C) / 3 * V).rolling(20).sum() / pd.DataFrame(V).rolling(20).sum()) - 1
    ),
    "beta_60": lambda: RET.apply(lambda r: r.rolling(60).cov(MARKET)).div(MARKET.rolling(60).var(), axis=0),
    "corr_market_60": lambda: RET.apply(lambda r: r.rolling(60).corr(MARKET)),
    "idio_vol_60": lambda: (
        RET.rolling(60).std() * (1 - RET.apply(lambda r: r.rolling(60).corr(MARKET)) ** 2).pow(0.5)
    ),
    "residual_mom_63": lambda: no_intercept(63),
    "rank_change_21": lambda: ((m := FRAME.pct_change(63).rank(axis=1)) - m.shift(21)) / 4,
}


@pytest.mark.parametrize("name", PANDAS)
def test_pandas_in_double_precision_agrees(name):
    want = PANDAS[name]().to_numpy()
    got = compute(PANEL, [name])[name].numpy()
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=f"{name} is undefined elsewhere")
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10 * max(1, np.nanmax(np.abs(want))))


def test_every_feature_has_an_oracle_or_a_twin_that_has():
    twins = {
        "mom_5": "mom_63",
        "vol_20": "vol_60",
        "sma_ratio_20": "sma_ratio_50",
        "sma_ratio_200": "sma_ratio_50",
    }
    own_test = {"market_vol_20", "dispersion_20"}
    talib = {
        "rsi_14",
        "macd",
        "atr_14",
        "bollinger_20",
        "stochastic_14",
        "obv_slope_20",
        "money_flow_14",
        "mom_21",
        "sma_ratio_50",
        "ema_ratio_20",
        "trend_20",
        "range_20",
    }
    families = {
        "rogers_satchell",
        "yang_zhang",
        "corwin_schultz",
        "roll_spread",
        "cmo",
        "williams",
        "aroon",
    }  # one window each is tested above
    for n in FEATURES.names():
        if n.rpartition("_")[0] in families:
            twins[n] = n
    here = (
        ".price",
        ".volume",
        ".market",
        ".range",
    )  # the other notebooks have files of their own, and what they list again too
    mine = {
        n
        for n, f in FEATURES.items()
        if f.func.__module__.endswith(here) and (not f.sets or f.func.__module__.endswith(".range"))
    }
    assert len(mine) > 60 and mine <= talib | set(PANDAS) | set(twins) | own_test


def test_the_market_state_features_equal_pandas():
    def year(x):
        return ((x - x.rolling(252).mean()) / x.rolling(252).std()).clip(-3, 3) / 6

    got = compute(PANEL, ["market_vol_20", "dispersion_20"])
    np.testing.assert_allclose(
        got["market_vol_20"][:, 0].numpy(), year(MARKET.rolling(20).std()), rtol=1e-6, atol=1e-9
    )
    np.testing.assert_allclose(
        got["dispersion_20"][:, 2].numpy(),
        year(RET.std(axis=1, ddof=0).rolling(20).mean()),
        rtol=1e-6,
        atol=1e-9,
    )


def test_single_precision_is_precise_enough():
    "float32 panels, the default, against float64 ones: the error is far below what a rank notices."
    elsewhere = ("alpha_", "alpha101_")  # the published families; ranks of ranks flip more often
    names = [
        n for n, f in FEATURES.items() if not n.startswith(elsewhere) and all(PANEL.has(x) for x in f.fields)
    ]
    single, wrong = Panel({k: v.float() for k, v in PANEL._fields.items()}, PANEL.sessions, PANEL.tickers), []
    wide, narrow = (
        {f: empty_tensor(p._fields["close"]) for f in map(FEATURES.__getitem__, names)}
        for p in (PANEL, single)
    )
    fill_features(PANEL, wide), fill_features(single, narrow)
    for name in names:
        a, b = wide[FEATURES[name]], narrow[FEATURES[name]].double()
        if not torch.equal(a.isnan(), b.isnan()):
            wrong.append(f"{name} is undefined elsewhere")
        most = (
            (a - b).abs().nan_to_num(0.0).quantile(0.99 if "rank" in name else 0.999)
        )  # rounding may turn two neighbours in a ranking
        if most > (2e-3 if name.startswith("chl_spread") else 2e-4) * a[~a.isnan()].std():
            wrong.append(f"{name} loses precision")  # a root of differences
    assert wrong == []


# --- kernels


def test_windows_of_every_length_equal_a_loop():
    x = torch.randn(70, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(70, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fx, fy = pd.DataFrame(x.numpy()), pd.DataFrame(y.numpy())
    for n in range(1, 71):
        roll = fx.rolling(n)
        pairs = [
            (kernels.rolling_sum(x, n), roll.sum()),
            (kernels.rolling_extreme(x, n), roll.max()),
            (kernels.rolling_extreme(x, n, False), roll.min()),
            (kernels.rolling_rank(x, n), (roll.rank() - 0.5) / n),
            (kernels.rolling_age(x, n), roll.apply(lambda w: len(w) - 1 - np.argmax(w), raw=True)),
            (kernels.rolling_age(x, n, False), roll.apply(lambda w: len(w) - 1 - np.argmin(w), raw=True)),
        ]
        if n > 1:
            pairs += [
                (kernels.rolling_var(x, n), roll.var()),
                (kernels.rolling_cov(x, y, n), roll.cov(fy, ddof=0)),
                (
                    kernels.rolling_slope(x, n),
                    roll.apply(lambda w: np.polyfit(np.arange(len(w)), w, 1)[0], raw=True),
                ),
            ]
            line = np.arange(n) - (n - 1) / 2
            pairs += [
                (
                    kernels.rolling_rsquare(x, n),
                    roll.apply(lambda w, line=line: np.corrcoef(w, line)[0, 1] ** 2, raw=True),
                ),
                (
                    kernels.rolling_residual(x, n),
                    roll.apply(
                        lambda w, line=line: w[-1] - w.mean() - (w @ line) / (line @ line) * line[-1],
                        raw=True,
                    ),
                ),
            ]
        if n > 2:
            pairs += [(kernels.rolling_skew(x, n), roll.skew())]
        pairs += [(kernels.rolling_quantile(x, n, q), roll.quantile(q)) for q in (0.0, 0.2, 0.5, 1.0)]
        for got, want in pairs:
            np.testing.assert_allclose(got.numpy(), want.to_numpy(), rtol=1e-7, atol=1e-9)


LOOPS = {
    "rolling_sum": (),
    "rolling_mean": (),
    "rolling_var": (),
    "rolling_std": (),
    "rolling_skew": (),
    "rolling_slope": (),
    "rolling_rsquare": (),
    "rolling_residual": (),
    "rolling_rank": (),
    "rolling_cov": "y",
    "rolling_corr": "y",
    "rolling_beta": "y",
    "rolling_extreme": (False,),
    "rolling_age": (True, True),
    "rolling_quantile": (0.8,),
}


def hard_numbers(rows: int = 150, columns: int = 37) -> torch.Tensor:
    "Trends, ties, a still column, holes, infinities and a late start, in single precision."
    noise = torch.Generator().manual_seed(3)
    x = 50 + torch.randn(rows, columns, generator=noise).cumsum(0)
    x[:, 5:9] = x[:, 5:9].round()
    x[:, 9] = 100.1
    x[:60, 10] = math.nan
    x[70:75, 11] = math.nan
    x[80, 12] = math.inf
    x[90, 13] = -math.inf
    return x


@pytest.mark.parametrize("n", [3, 4, 7, 20, 33, 64, 200])
@pytest.mark.parametrize("name", LOOPS)
def test_a_compiled_loop_equals_the_tensor_operations(name, n):
    """Against the tensors in double precision; and bit for bit from any start, beside any other ticker, and
    in another order."""
    x = hard_numbers()
    y = hard_numbers().flip(0).contiguous() + 3
    args = (y,) if LOOPS[name] == "y" else ()
    rest = () if args else LOOPS[name]
    loop = getattr(numba_moments, name, None) or getattr(order_statistics, name)
    out = loop(x, *args, n, *rest)
    wide = getattr(kernels, name)(x.double(), *(a.double() for a in args), n, *rest)
    still = torch.zeros_like(x, dtype=torch.bool)
    for a in (x, *args):
        if n <= len(a):
            still |= kernels.rolling_var(a.double(), n) < 1e-9
    if name in ("rolling_rsquare", "rolling_corr", "rolling_beta", "rolling_skew"):
        out, wide = (o.masked_fill(still, 0.0) for o in (out, wide))
    known = wide.isfinite() & out.isfinite()
    assert torch.equal(out.isnan() | out.isinf(), wide.isnan() | wide.isinf())
    if n <= len(x):
        torch.testing.assert_close(
            out.double()[known], wide[known], rtol=2e-5, atol=2e-5 * float(wide[known].abs().mean())
        )
    whole = loop(x, *args, n, *rest)
    for start in (1, 17, 64):
        for columns in (slice(0, 1), slice(3, 20), slice(36, 37)):
            part = loop(x[start:, columns], *(a[start:, columns] for a in args), n, *rest)
            assert torch.equal(
                part[n - 1 :].nan_to_num(-9.0), whole[start + n - 1 :, columns].nan_to_num(-9.0)
            )
    assert torch.equal(
        loop(x.flip(1), *(a.flip(1) for a in args), n, *rest).nan_to_num(-9.0), whole.flip(1).nan_to_num(-9.0)
    )


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_sums_of_the_market_are_computed_once_without_a_difference(hole):
    """A further ticker that sees another market forces the general path; the others' values are the same to
    the last bit."""
    x = hard_numbers()
    market = hard_numbers()[:, :1].flip(0) + 3
    market[90], more = hole, hard_numbers()[:, 1:2]
    everyone, apart = market.expand_as(x).contiguous(), torch.cat([market.expand_as(x), more], 1)
    assert numba_moments.same_for_all(everyone.numpy()) and not numba_moments.same_for_all(apart.numpy())
    for loop in (numba_moments.rolling_cov, numba_moments.rolling_corr, numba_moments.rolling_beta):
        for n in (4, 20, 61, 150):
            assert equal_with_nan(loop(x, everyone, n), loop(torch.cat([x, more], 1), apart, n)[:, :-1]), (
                loop.__name__,
                n,
            )
    late = torch.cat([torch.full_like(market[:1], math.nan), market[:-1]])
    fell = (market < 50).float() + 0 * market
    asked = {
        0: (cross._selected_products, fell, x, market),
        1: (cross._powers, x, market),
        2: (microstructure._weights, x, fell),
        3: (cross.two_factor_products, x, market, late),
        4: (cross.two_factor_products, x, market, late),
        5: (cross.two_factor_products, x, late, market),
    }
    for ask, (parts, *series) in asked.items():
        table = np.stack(latest_kernels.trace_products(parts, len(series)), 1)
        short = np.stack([s.expand_as(x).numpy() for s in series])
        long = np.concatenate([short, np.stack([(more + k).numpy() for k in range(len(series))])], 2)
        for n in (20, 61):
            assert equal_with_nan(
                *(
                    torch.from_numpy(v)
                    for v in (
                        cross.evaluate_products(short, table, n, ask),
                        cross.evaluate_products(long, table, n, ask)[:, :-1],
                    )
                )
            ), ask


def test_compiled_averages_and_ranks_equal_the_tensor_operations():
    x = hard_numbers()
    x[x.isinf()] = 40.0
    for decay, least in ((0.5, 1), (0.9, 5), (0.94, 20), (0.99, 50)):
        out, wide = numba_moments.exp_mean(x, decay, least), kernels.exp_mean(x.double(), decay, least)
        assert torch.equal(out.isnan(), wide.isnan())
        torch.testing.assert_close(out.double(), wide, rtol=1e-5, atol=1e-6, equal_nan=True)
        n = kernels.exp_memory(decay)
        if n < 150:
            assert torch.equal(
                numba_moments.exp_mean(x[150 - n :], decay, least)[-1].nan_to_num(-9.0),
                out[-1].nan_to_num(-9.0),
            )
    x[3] = math.nan
    x[4] = -x[4]
    x[5, :9] = 0.0
    x[5, :4] *= -1
    assert torch.equal(
        order_statistics.rank_across(x).nan_to_num(-9.0), kernels.rank_across(x).nan_to_num(-9.0)
    )
    assert torch.equal(numba_kernels.mean_across(x).nan_to_num(-9.0), kernels.mean_across(x).nan_to_num(-9.0))
    mean = kernels.mean_across(x)
    assert torch.equal(
        numba_kernels.spread_across(x)[1].nan_to_num(-9.0),
        kernels.sqrt(kernels.mean_across((x - mean) ** 2)).nan_to_num(-9.0),
    )


def test_exponential_averages_equal_pandas_and_both_weight_paths_agree():
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for n in (2, 5, 14, 60):
        decay = 1 - 2 / (n + 1)
        np.testing.assert_allclose(
            kernels.exp_mean(x, decay, n),
            pd.DataFrame(x.numpy()).ewm(span=n, min_periods=n).mean(),
            atol=2e-5,
        )
    holes = x.float().clone()
    holes[200:230, 1] = math.nan
    holes[:50, 2] = math.nan
    mixed, alone = kernels.exp_mean(holes, 0.9, 5), kernels.exp_mean(holes[:, [0, 2, 3]], 0.9, 5)
    assert torch.equal(mixed[:, [0, 2, 3]].nan_to_num(-9.0), alone.nan_to_num(-9.0)), (
        "a hole in one ticker changed another"
    )
    want = pd.DataFrame(holes.double().numpy())[1].ewm(alpha=0.1, ignore_na=False).mean()
    np.testing.assert_allclose(mixed[300:, 1], want[300:], atol=1e-5)


def test_cross_sections_equal_pandas_with_ties_and_absences():
    x = torch.randint(0, 12, (200, 15), generator=torch.Generator().manual_seed(0)).float()
    x[torch.rand(200, 15, generator=torch.Generator().manual_seed(1)) < 0.2] = math.nan
    x[7] = math.nan
    x[8, 1:] = math.nan
    frame = pd.DataFrame(x.double().numpy())
    rank = (frame.rank(axis=1).sub(0.5)).div(frame.notna().sum(axis=1), axis=0) - 0.5
    np.testing.assert_allclose(kernels.rank_across(x), rank, atol=1e-6)
    np.testing.assert_allclose(kernels.mean_across(x)[:, 0], frame.mean(axis=1), rtol=1e-10)
    big = (
        torch.randn(50, 300, generator=torch.Generator().manual_seed(2))
        * 10.0 ** torch.randint(-30, 30, (50, 1)).float()
    )
    np.testing.assert_allclose(kernels.sum_across(big)[:, 0], big.double().sum(1), rtol=1e-9, atol=0)


def test_blocks_change_nothing(monkeypatch):
    names = FEATURES.names()
    panel = market(400, 7, torch.float32)
    whole = compute(panel, names)
    monkeypatch.setattr(kernels, "BLOCK_VALUES", 800)
    small = compute(Panel(panel._fields, panel.sessions, panel.tickers), names)
    for name in names:
        assert torch.equal(whole[name].nan_to_num(-9.0), small[name].nan_to_num(-9.0)), name


def test_logarithms_do_not_depend_on_where_a_value_stands():
    "Bitwise equality of batch and latest bar needs elementwise functions that treat every position alike."
    x = torch.rand(999, 173, generator=torch.Generator().manual_seed(0)) * 100 + 0.01
    for f in (torch.log, torch.exp, torch.sqrt, torch.tanh, torch.log1p):
        y = -x if f is torch.exp else x
        full = f(y)
        for a, b, c in ((0, 1, 0), (998, 999, 3), (5, 12, 7), (100, 900, 1)):
            assert torch.equal(f(y[a:b, c:].contiguous()), full[a:b, c:])


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="There is no CUDA device here; GPU parity runs where one is."
)
def test_the_gpu_agrees():
    panel = market(600, 40, torch.float32)
    for name in FEATURES.names():
        a, b = compute(panel, [name])[name], compute(panel.to("cuda"), [name])[name].cpu()
        assert torch.equal(a.isnan(), b.isnan()), name
        torch.testing.assert_close(
            a, b, rtol=1e-4, atol=1e-5, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )

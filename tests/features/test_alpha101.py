"""Alpha101 equals the paper's formulas, written anew in NumPy in double precision: every value on a small
market with halts and a listing, and every formula passes the proof that it does not look ahead.

A rank turns a difference in the last bit into a whole place. Where values are equal in exact arithmetic, such
as sums of two ranks, rounding decides who comes first, and two correct programs may part. So each formula is
also evaluated with ties joined and with values moved by a hundred-millionth. A value is right when it is one
of these, or, in the few cells left, when it lies between the lowest and the highest place of its ties."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.algebra.panel import Panel
from stockpredict.catalogue.feature import FEATURES, SETS, Feature, compute, prove
from stockpredict.catalogue.feature import empty_tensor, fill_features
from stockpredict.core.errors import FeatureError, NotEnoughHistory, SeesFuture
from stockpredict.features import formula_language

NAN = math.nan
TICKERS, SESSIONS = 12, 300
EXACT = 1e-6  # of a value, or of 1 where it is smaller
NUDGE = 1e-8  # relative: by so much the values are moved before they are compared


# --- a market


def market() -> dict[str, np.ndarray]:
    "Prices in cents, days without a range, halts, a listing in the middle, a change of sector, none at all."
    rng, shape = np.random.default_rng(8), (SESSIONS, TICKERS)
    walk = np.cumsum(0.02 * rng.standard_normal(shape), axis=0)
    close = 30 * np.exp(walk + 0.4 * rng.standard_normal(TICKERS))
    open_ = close * np.exp(0.01 * rng.standard_normal(shape))
    high = np.maximum(open_, close) * np.exp(0.008 * np.abs(rng.standard_normal(shape)))
    low = np.minimum(open_, close) * np.exp(-0.008 * np.abs(rng.standard_normal(shape)))
    x = {k: np.round(v, 2) for k, v in dict(open=open_, high=high, low=low, close=close).items()}
    flat = rng.random(shape) < 0.01
    for k in ("open", "high", "low"):
        x[k][flat] = x["close"][flat]
    x["volume"] = np.round(np.exp(12 + 0.5 * rng.standard_normal(shape)))
    gone = np.zeros(shape, bool)
    gone[200:206, 3], gone[281, 5], gone[:140, 9] = True, True, True
    for k in x:
        x[k][gone] = NAN
    sector = np.tile(np.arange(TICKERS) % 3 + 1.0, (SESSIONS, 1))
    industry = sector * 10 + (np.arange(TICKERS) // 3) % 2
    sector[260:, 4], industry[260:, 4], sector[:, 11], industry[:, 11] = 3.0, 30.0, NAN, NAN
    shares = np.tile(np.exp(rng.standard_normal(TICKERS)) * 1e6, (SESSIONS, 1))
    facts = dict(sector=sector, industry=industry, shares_outstanding=shares, raw_close=2 * x["close"])
    return {k: v.astype(np.float32).astype(float) for k, v in {**x, **facts}.items()}


X = market()
HERE = ~np.isnan(X["close"])


def panel(dtype, without=()) -> Panel:
    fields = {k: torch.from_numpy(v).to(dtype) for k, v in X.items() if k not in without}
    days = pd.bdate_range("2020-01-01", periods=SESSIONS)
    return Panel(fields, days, [f"T{i:02d}" for i in range(TICKERS)])


# --- the paper's language, in double precision


class Value(np.ndarray):
    "Numbers of sessions and tickers; a comparison is 1 or 0, undefined where one side is."

    def __lt__(self, other):
        a, b = np.asarray(nudged(self)), np.asarray(other)
        margin = MODE["nudge"] * np.abs(b) * dict(joined=-1, lowest=-1, highest=1).get(MODE["ties"], 0)
        return value(np.where(np.isnan(a) | np.isnan(b), NAN, (a < b + margin).astype(float)))

    def __gt__(self, other):
        return value(np.broadcast_to(other, self.shape)) < self

    def __pow__(self, other):  # in NumPy 1 to the power of an undefined number is 1
        return value(np.asarray(self) ** np.asarray(other) + 0 * np.asarray(other))


MODE = {"ties": "plain", "calls": 0, "nudge": NUDGE}  # "plain" | one of LOOSE | a seed


def value(x) -> Value:
    return np.asarray(x, float).view(Value)


def nudged(x):
    "The values, moved a little where a seed is set, each time by another draw."
    if not isinstance(MODE["ties"], int):
        return x
    MODE["calls"] += 1
    noise = np.random.default_rng([MODE["ties"], MODE["calls"]]).standard_normal(np.shape(x))
    x = np.where(np.isfinite(x), x, NAN)
    return value(x + MODE["nudge"] * np.nanmean(np.abs(x)) * noise)


ORDER = np.argsort(~HERE, axis=0, kind="stable")  # each ticker's bars first
COUNT = HERE.sum(0)


def windows(x, d) -> np.ndarray:
    "`[bar, ticker, place]`: the last `d` bars of each bar, undefined while there are fewer."
    d, bars = math.floor(d), np.take_along_axis(np.asarray(x), ORDER, 0)
    bars = np.where(np.arange(SESSIONS)[:, None] < COUNT, bars, NAN)
    padded = np.vstack([np.full((d - 1, TICKERS), NAN), bars])
    return np.lib.stride_tricks.sliding_window_view(padded, d, axis=0)


def by_session(x) -> Value:
    out = np.full((SESSIONS, TICKERS), NAN)
    np.put_along_axis(out, ORDER, x, 0)
    return value(np.where(HERE, np.where(np.isfinite(out), out, NAN), NAN))


def over(statistic):
    "A function of windows as an operator, undefined where a window holds an undefined value."

    def operator(x, d):
        w = windows(x, d)
        return by_session(np.where(np.isnan(w).any(-1), NAN, statistic(w)))

    return operator


LOOSE = ("joined", "lowest", "highest")  # almost equal values: equal, or this one first, or last


def equal(a, b):
    size = np.nanmax(np.abs(b), axis=-1, keepdims=True, initial=0)
    return np.abs(a - b) <= (MODE["nudge"] * size if MODE["ties"] in LOOSE else 0.0)


def place(x, among, published=False):
    "Mean place of `x` among the last axis of `among`, from 1; equal published values always share it."
    near = equal(x[..., None], among)
    below, count = ((among < x[..., None]) & ~near).sum(-1), near.sum(-1)
    middle = (count + 1) / 2
    return below + (middle if published else dict(lowest=1.0, highest=count).get(MODE["ties"], middle))


def rank(x):
    published = any(x is LANGUAGE[k] for k in PUBLISHED)
    x = np.where(np.isfinite(x), nudged(x), NAN)
    places = place(x, np.repeat(x[:, None, :], TICKERS, 1), published)
    return value(np.where(np.isnan(x), NAN, places / (~np.isnan(x)).sum(1, keepdims=True)))


def ts_rank(x, d):
    w = windows(nudged(x), d)
    return by_session(np.where(np.isnan(w).any(-1), NAN, place(w[..., -1], w) / math.floor(d)))


def first_of(w, best):
    near = equal(w, best[..., None])
    if MODE["ties"] == "highest":
        return w.shape[-1] - near[..., ::-1].argmax(-1) + 0.0
    return near.argmax(-1) + 1.0


ts_max, ts_min = over(lambda w: w.max(-1)), over(lambda w: w.min(-1))
ts_sum, product = over(lambda w: w.sum(-1)), over(lambda w: w.prod(-1))
stddev = over(lambda w: w.std(-1, ddof=1))


def ts_argmax(x, d):
    return over(lambda w: first_of(w, w.max(-1)))(nudged(x), d)


def ts_argmin(x, d):
    return over(lambda w: first_of(w, w.min(-1)))(nudged(x), d)


def decay_linear(x, d):
    weights = np.arange(1.0, math.floor(d) + 1)
    return over(lambda w: w @ (weights / weights.sum()))(x, d)


def delay(x, d):
    w = windows(x, math.floor(d) + 1)
    return by_session(w[..., 0])


def delta(x, d):
    return value(x - delay(x, d))


def still(a, b):
    there = ~np.isnan(a + b).any(-1)
    return there & ((a.max(-1) == a.min(-1)) | (b.max(-1) == b.min(-1)))


def covariance(x, y, d):
    a, b = windows(x, d), windows(y, d)
    both = ((a - a.mean(-1, keepdims=True)) * (b - b.mean(-1, keepdims=True))).sum(-1) / (math.floor(d) - 1)
    return by_session(np.where(still(a, b), 0.0, both))


def correlation(x, y, d):
    a, b = windows(x, d), windows(y, d)
    size = [np.sqrt(((w - w.mean(-1, keepdims=True)) ** 2).mean(-1)) for w in (a, b)]
    both = ((a - a.mean(-1, keepdims=True)) * (b - b.mean(-1, keepdims=True))).mean(-1)
    r = np.clip(both / (size[0] * size[1]), -1, 1)
    return by_session(np.where(still(a, b), 0.0, np.round(r) if math.floor(d) == 2 else r))


def scale(x):
    return value(x / np.nansum(np.abs(x), axis=1, keepdims=True))


def indneutralize(x, group):
    x = np.where(np.isfinite(x), x, NAN)
    out = np.full(x.shape, NAN)
    for g in np.unique(group[~np.isnan(group)]):
        mine = (group == g) & ~np.isnan(x)
        count = mine.sum(1, keepdims=True)
        mean = np.where(mine, x, 0).sum(1, keepdims=True) / np.maximum(count, 1)
        out = np.where(mine, np.where(count > 1, x - mean, 0.0), out)
    return value(out)


def where(condition, yes, no):
    return value(np.where(np.isnan(condition), NAN, np.where(condition > 0.5, yes, no)))


def sign(x):
    return value(np.sign(x))


def log(x):
    return value(np.log(x))


def signedpower(x, a):
    return value(np.sign(x) * np.abs(x) ** a)


def both_ways(pick):
    return lambda x, y: value(pick(np.asarray(x), np.asarray(y)))


smaller, larger = both_ways(np.minimum), both_ways(np.maximum)
LANGUAGE = {k: v for k, v in globals().items() if callable(v)} | {"sum": ts_sum, "abs": np.abs}
PUBLISHED = ("open", "high", "low", "close", "volume", "vwap")
LANGUAGE |= {k: value(X[k]) for k in PUBLISHED[:-1]}
LANGUAGE["vwap"] = value((X["high"] + X["low"] + X["close"]) / 3)
LANGUAGE["cap"] = value(X["shares_outstanding"] * X["raw_close"])
LANGUAGE["returns"] = value(LANGUAGE["close"] / delay(LANGUAGE["close"], 1) - 1)
DAYS = (5, 10, 15, 20, 30, 40, 50, 60, 81, 120, 150, 180)
LANGUAGE |= {f"adv{d}": ts_sum(X["volume"], d) / d for d in DAYS}
LANGUAGE |= dict(sector=X["sector"], industry=X["industry"], subindustry=X["industry"])

# The paper's appendix, a formula a line, with its fractions of bars; `c ? a : b` is written where(c, a, b),
# and `x^y` is x ** y.
PAPER = Path(__file__).with_name("alpha101_formulas.txt").read_text().splitlines()
NUMBERS = range(1, 102)
CODE = {n: compile(line, f"formula {n}", "eval") for n, line in zip(NUMBERS, PAPER, strict=True)}


def by_paper(n: int, ties="plain", nudge: float = NUDGE) -> np.ndarray:
    MODE.update(ties=ties, calls=0, nudge=nudge)
    with np.errstate(all="ignore"):
        x = np.broadcast_to(np.asarray(eval(CODE[n], dict(LANGUAGE))), (SESSIONS, TICKERS))
    MODE.update(ties="plain")
    return np.where(HERE & np.isfinite(x), x, NAN)


# --- comparison


def feature_of(n: int) -> Feature:
    return FEATURES[f"alpha101_{n:03d}"]


def values_of(func, market: Panel) -> np.ndarray:
    f = Feature(getattr(func, "func", func), group="again")
    out = {f: empty_tensor(market._fields["close"])}
    fill_features(market, out)
    return out[f].double().numpy()


def wrong_share(n: int, have: np.ndarray, exact: float = EXACT, nudge: float = NUDGE) -> float:
    """The share of values that are none of those the formula allows, or undefined in one of the two only.
    The last resort is the range between the formula with the lowest and with the highest place for ties."""
    want = by_paper(n)
    defined = np.isfinite(want) | np.isfinite(have)
    if not defined.any():
        return 1.0
    margin = exact * np.maximum(1, np.abs(want))
    left = defined & ~(np.abs(have - want) <= margin)
    for ties in ("joined", 1, 2):
        if left.any():
            left &= ~(np.abs(have - by_paper(n, ties, nudge)) <= margin)
    if left.any():
        ends = np.stack([by_paper(n, ties, nudge) for ties in ("lowest", "highest")])
        left &= ~((have >= ends.min(0) - margin) & (have <= ends.max(0) + margin))
    return float(left.sum() / defined.sum())


@pytest.fixture(scope="module")
def double() -> dict:
    return {n: x.numpy() for n, x in zip(NUMBERS, compute(panel(torch.float64), "alpha101").values())}


@pytest.fixture(scope="module")
def single() -> dict:
    values = compute(panel(torch.float32), "alpha101").values()
    return {n: x.double().numpy() for n, x in zip(NUMBERS, values)}


# --- the tests


def test_the_set_is_complete_and_stays_apart():
    assert SETS["alpha101"] == [f"alpha101_{n:03d}" for n in NUMBERS]
    others = {name for k in ("core", "ohlcv", "market", "alpha158", "facts") for name in SETS[k]}
    assert not others & set(SETS["alpha101"]) and set(SETS["alpha101"]) <= set(SETS["all"])


def test_the_steady_ones_compare_no_levels_across_companies():
    "They stay when one company's prices and volumes are divided, as a later split does with its past."
    split = {k: v.copy() for k, v in X.items()}
    for k in ("open", "high", "low", "close"):
        split[k][:, 2] *= 0.25
    split["volume"][:, 2] *= 4
    fields = {k: torch.from_numpy(v) for k, v in split.items()}
    before, grid = panel(torch.float64), panel(torch.float64)
    a, b = (
        compute(market, "alpha101_steady") for market in (before, Panel(fields, grid.sessions, grid.tickers))
    )
    assert len(a) == 20
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-7, equal_nan=True)


def known_at(t: int, split_at: int, whole: bool) -> Panel:
    """The market as a reader at session `t` sees it, who adjusts by the payments known to him: some companies
    split at `split_at`, and their shares are multiplied. With `whole`, later bars are there too."""
    fields = {k: v.copy() for k, v in X.items()}
    for ticker, factor in ((1, 0.25), (2, 0.5), (4, 0.125), (6, 4.0)):
        if split_at <= t:  # he knows it: the past is on the new scale
            for k in ("open", "high", "low", "close"):
                fields[k][:split_at, ticker] *= factor
            fields["volume"][:split_at, ticker] /= factor
    end = SESSIONS if whole else t + 1
    grid, fields = panel(torch.float64), {k: torch.from_numpy(v[:end]) for k, v in fields.items()}
    return Panel(fields, grid.sessions[:end], grid.tickers)


def test_every_value_is_what_its_day_knew():
    """Of all 101: the value of a session, computed from what was known then, is that of the batch with the
    prices of that day. With the prices of a later day, whose splits have rewritten the past, the 20 steady
    ones are still the same, and all others are not."""
    t, later = SESSIONS - 30, SESSIONS - 10
    lived = compute(known_at(t, later, whole=False), "alpha101")
    batch = compute(known_at(t, later, whole=True), "alpha101")
    today = compute(known_at(SESSIONS - 1, later, whole=True), "alpha101")

    def equal(a, b):
        return torch.allclose(a, b, rtol=1e-6, atol=1e-7, equal_nan=True)

    assert [n for n in lived if not equal(lived[n][t], batch[n][t])] == []
    steady = [n for n in lived if equal(batch[n][: later - 1], today[n][: later - 1])]
    assert steady == SETS["alpha101_steady"]


def test_every_value_is_the_papers(double):
    """In double precision, within a millionth of the value (or of 1), in at least 99 of 100 cells; 97 where
    the position of the largest of nearly equal correlations counts."""
    wrong = {n: share for n in NUMBERS if (share := wrong_share(n, double[n])) > 0}
    too_many = {n for n, share in wrong.items() if share > (0.03 if n in (96, 98) else 0.01)}
    assert not too_many and len(wrong) < 10, wrong
    assert all(np.array_equal(np.isfinite(by_paper(n)), np.isfinite(double[n])) for n in NUMBERS)


def test_the_compiled_loops_give_the_same(single):
    "In single precision, within a thousandth, in at least 97 of 100 cells; nearly all formulas in all."
    wrong = {n: share for n in NUMBERS if (share := wrong_share(n, single[n], 1e-3, 1e-5)) > 0}
    assert max(wrong.values(), default=0) <= 0.03 and len(wrong) < 15, wrong


def test_the_market_asks_the_hard_questions(double):
    "Ties, days without a range, halts and a young ticker are there, and every formula has values."
    assert (X["high"] == X["low"]).sum() > 10 and (~HERE[:, 3]).sum() == 6
    assert {n for n in NUMBERS if np.isfinite(double[n]).mean() < 0.005} == set()
    assert np.isfinite(double[101][140:, 9]).all() and np.isnan(double[101][:140, 9]).all()


def test_each_passes_the_proof_that_it_does_not_look_ahead():
    for n in NUMBERS:
        f = feature_of(n)
        assert (f if f.proven else prove(f)).proven >= f.lookback
    assert max(feature_of(n).lookback for n in NUMBERS) == 252


def test_without_facts_those_that_need_them_are_undefined():
    "No sector, no value: the whole market as one group would be another feature under the same name."
    need = {n: feature_of(n).fields - set(X.keys() - {"sector", "industry"}) for n in NUMBERS}
    neutral = {n for n in NUMBERS if need[n]}
    assert neutral == {48, 58, 59, 63, 67, 69, 70, 76, 79, 80, 82, 87, 89, 90, 91, 93, 97, 100}
    got = compute(panel(torch.float32, without=("sector", "industry", "shares_outstanding")), "alpha101")
    missing = {n for n, x in zip(NUMBERS, got.values()) if bool(x.isnan().all())}
    assert missing == neutral | {56}


# --- mutants: an operator that does something else is noticed


def shifted(f):
    return lambda x, *rest: ahead(f(x, *rest))


def ahead(x):  # tomorrow's value
    later = torch.cat([x.values[1:], torch.full_like(x.values[:1], NAN)])
    return type(x)(later, x.grid, x.lookback, x.crossings, x.fields)


def over_all_time(x):
    v = x.values
    places = torch.tensor(pd.DataFrame(v.numpy()).rank(pct=True).to_numpy())
    return type(x)(places.to(v), x.grid, x.lookback, x.crossings, x.fields)


L = formula_language
MUTANTS = {
    "rank over all time": ("rank", over_all_time, 3),
    "rank from the middle of a step": ("rank", lambda x: x.xrank() + 0.5, 42),
    "ts_rank a bar longer": ("ts_rank", lambda x, d: L.ts_rank(x, d + 1), 35),
    "ts_argmax counted from the newest": ("ts_argmax", lambda x, d: x.argmax(d), 60),
    "ts_argmin counted from the newest": ("ts_argmin", lambda x, d: x.argmin(d), 100),
    "ts_min a bar shorter": ("ts_min", lambda x, d: x.min(d - 1), 52),
    "ts_max of the whole past": ("ts_max", lambda x, d: x.max(d + 5), 11),
    "delta with the next bar": ("delta", shifted(L.delta), 12),
    "delay by one more": ("delay", lambda x, d: x.lag(d + 1), 20),
    "correlation a bar longer": ("correlation", lambda x, y, d: x.corr(y, d + 1), 6),
    "correlation with tomorrow": ("correlation", lambda x, y, d: x.corr(ahead(y), d), 44),
    "covariance without its sign": ("covariance", lambda x, y, d: x.cov(y, d).abs(), 16),
    "decay_linear backwards": ("decay_linear", lambda x, d: x.weigh([k + 1 for k in range(d)]), 57),
    "sum a bar longer": ("ts_sum", lambda x, d: x.sum(d + 1), 30),
    "stddev a bar longer": ("stddev", lambda x, d: x.std(d + 1), 34),
    "scale to two": ("scale", lambda x: x.xscale(2.0), 28),
    "product of a bar more": ("product", lambda x, d: x.product(d + 1), 29),
    "group taken from the market": ("indneutralize", lambda x, group: x.xdemean(), 58),
    "adv in money": ("adv", lambda bars, d: bars.money.mean(d), 43),
    "vwap is the close": ("vwap", lambda bars: bars.close, 41),
    "size without market value": ("cap", lambda bars: bars.money, 56),
    "blend the other way": ("blend", lambda x, y, w: L.blend(x, y, 1 - w), 66 + 7),
}
SEEING = {"rank over all time", "delta with the next bar", "correlation with tomorrow"}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name, monkeypatch):
    operator, mutant, n = MUTANTS[name]
    func = feature_of(n).func
    monkeypatch.setitem(func.__globals__, operator, mutant)
    assert wrong_share(n, values_of(func, panel(torch.float64))) > 0.05
    if name in SEEING:
        with pytest.raises((SeesFuture, NotEnoughHistory, FeatureError)):
            prove(Feature(func, group="again"))

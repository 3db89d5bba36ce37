"""No feature sees the future; one that tries is named."""

import math
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.core.errors import FeatureError, NotEnoughHistory, SeesFuture
from stockpredict.core.registry import Registry
from stockpredict.catalogue.cards import card
from stockpredict.catalogue.feature import (
    SETS,
    Feature,
    compute,
    defined_features,
    feature,
    FEATURES,
    fill_features,
)
from stockpredict.catalogue.feature import proof_panel, prove, resolve_names, search_features, feature_table
from stockpredict.catalogue.design_matrix import Spec, make_inputs
from stockpredict.algebra.panel import FIELDS, Panel, Series, equal_with_nan, scramble_future


def random_panel(
    seed: int, sessions: int = 620, tickers: int = 9, gaps: bool = True, dtype=torch.float32, also=()
) -> Panel:
    """A market with fat tails and, if wanted, halts of all lengths, late listings, a delisting, missing
    volumes, and facts beside the bars."""
    noise = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(sessions, tickers, generator=noise, dtype=torch.float64)

    close = 40 * (0.012 * draw() / (draw().abs() + 0.5)).cumsum(0).clamp(-3, 3).exp()
    open_ = close * (0.006 * draw()).exp()
    x = dict(
        open=open_,
        high=torch.maximum(open_, close) * (0.004 * draw().abs()).exp(),
        low=torch.minimum(open_, close) / (0.004 * draw().abs()).exp(),
        close=close,
        volume=(12 + draw()).exp().round(),
    )
    for k in ("open", "high", "low", "close"):
        x[k][-320:-317, 2] = x["close"][-320:, 2][0]
    if gaps:
        absent = torch.rand(sessions, tickers, generator=noise) < 0.01
        absent[100:117, 1] = True
        absent[:250, 3] = True
        absent[500:, 4] = True
        absent[-3:-1, 5] = True
        hole = torch.rand(sessions, tickers, generator=noise) < 0.02
        x["volume"][hole] = math.nan
        for v in x.values():
            v[absent] = math.nan
    for k in sorted(set(also) - set(FIELDS)):
        news = (
            torch.where(torch.rand(sessions, 1, generator=noise) < 0.2, torch.arange(sessions)[:, None], 0)
            .cummax(0)
            .values
        )
        x[k] = (0.3 * draw()).exp().mul(10).round().gather(0, news.expand(-1, tickers))
        x[k][:9] = math.nan
        x[k][300:320, 7] = math.nan
    return Panel(
        {k: v.to(dtype) for k, v in x.items()},
        pd.bdate_range("2018-01-01", periods=sessions),
        [f"T{i}" for i in range(tickers)],
    )


NAMES = FEATURES.names()
BESIDE = frozenset().union(*(FEATURES[n].fields for n in NAMES)) - set(FIELDS)
# what models are trained on by default is examined member by member; of every other function its longest
# window, and of the
# families of Alpha158 and Alpha360 the shortest and the longest member; the rest passes the automatic proof
# below
LONGEST = {FEATURES[n].func: n for n in sorted(NAMES, key=lambda n: FEATURES[n].lookback)}
ALPHA = {n for n in NAMES if any(s.startswith("alpha") for s in FEATURES[n].sets)}
THOROUGH = [
    n
    for n in NAMES
    if (
        FEATURES[n].args in ((), (0,), (5,), (59,), (60,)) and "alpha101" not in FEATURES[n].sets
        if n in ALPHA
        else not FEATURES[n].sets or n in LONGEST.values()
    )
]

EACH = list(
    {f.func: n for n, f in reversed(FEATURES.items())}.values()
)  # every function with one of its windows, where each feature alone was examined already


def test_there_is_a_catalogue_to_prove():
    assert len(NAMES) >= 40 and len(SETS["core"]) >= 20 and set(SETS["all"]) == set(NAMES)
    assert set().union(*(SETS[s] for s in SETS if s != "all")) == set(NAMES)
    for s in ("core", "ohlcv", "market"):
        assert not any(FEATURES[n].sets for n in SETS[s])
    assert len(BESIDE) >= 12 and {n for n in NAMES if FEATURES[n].fields & BESIDE} == (
        set(SETS["facts"]) | {n for n in SETS["alpha101"] if FEATURES[n].fields & BESIDE}
    ), "the set has exactly the features that need facts"
    assert all(FEATURES[n].fields == {"close"} for n in SETS["core"])


@lru_cache
def stage(gaps: bool, also: frozenset) -> tuple:
    """A market, what it might have become after some sessions, and what was known of it at others; built
    once for all features."""
    panel = random_panel(3, gaps=gaps, also=also)
    futures = [
        (t, other) for t in (251, 349, 512) for other in (panel.first(t + 1), scramble_future(panel, t))
    ]
    return panel, futures, [panel.first(stop) for stop in (116, 300, 501, len(panel) - 1, len(panel))]


@pytest.mark.parametrize("name", THOROUGH)
def test_every_feature_is_causal_and_its_look_back_suffices(name):
    "Cut off, scrambled and truncated, at listings, halts, holes and at random sessions of a larger market."
    f, defined = FEATURES[name], False
    prove(f)
    for gaps in (True, False):
        panel, futures, pasts = stage(gaps, f.fields & BESIDE)
        whole = f(panel).values
        defined |= not whole.isnan().all()
        for t, other in futures:
            assert equal_with_nan(whole[: t + 1], f(other).values[: t + 1]), (
                f"{name} sees what follows row {t}"
            )
        for past in pasts:
            short = f(past.tail(f.lookback, f.crossings)).values
            assert equal_with_nan(short[-1], whole[len(past) - 1]), (
                f"{name}: the tail of {f.lookback} bars gives another value at row {len(past) - 1}"
            )
    assert defined, f"{name} is never defined, the proof would be empty"


@lru_cache
def alone(also: frozenset) -> tuple:
    "A market with gaps, and four of its tickers each on its own, written without the gaps."
    panel = random_panel(5, also=also)

    def only(i):
        rows = panel.present[:, i]
        return Panel(
            {k: v[rows][:, i : i + 1] for k, v in panel._fields.items()},
            panel.sessions[rows.numpy()],
            [panel.tickers[i]],
        )

    return panel, {i: only(i) for i in (0, 1, 3, 4)}


@pytest.mark.parametrize("name", THOROUGH)
def test_a_halt_is_not_a_bar(name):
    "On its own, a ticker with gaps has the same values as its bars written without the gaps."
    f = FEATURES[name]
    panel, single = alone(f.fields & BESIDE)
    out = f(panel).values
    assert out[~panel.present].isnan().all(), "a value where there was no bar"
    if f.crossings:
        return
    for i, other in single.items():
        assert equal_with_nan(f(other).values[:, 0], out[panel.present[:, i], i])


# --- leaks: each of these is a mistake seen in published notebooks


def raw(bars):
    return bars.close.values


def back(x, bars):
    return Series(x, bars.grid, fields={"close"})


def pandas_of(bars, f):
    return back(torch.from_numpy(np.array(f(bars.close.frame()), dtype=np.float32)), bars)


def volume_of(bars, f):
    return Series(
        torch.from_numpy(np.array(f(bars.volume.frame()), dtype=np.float32)), bars.grid, fields={"volume"}
    )


MUTANTS = {
    "centred rolling mean": lambda b: pandas_of(
        b, lambda c: c / c.rolling(21, center=True, min_periods=1).mean()
    ),
    "back-filled warm-up": lambda b: pandas_of(b, lambda c: c.rolling(20).mean().bfill()),
    "back-filled returns": lambda b: pandas_of(b, lambda c: c.pct_change().bfill()),
    "future-filled missing volume": lambda b: volume_of(b, lambda v: v.bfill()),
    "interpolated missing volume": lambda b: volume_of(b, lambda v: v.interpolate(limit_direction="both")),
    "full-sample z-score": lambda b: back((raw(b) - raw(b).nanmean(0)) / raw(b).nan_to_num(0.0).std(0), b),
    "full-sample min-max": lambda b: pandas_of(b, lambda c: (c - c.min()) / (c.max() - c.min())),
    "full-sample winsorising": lambda b: pandas_of(
        b, lambda c: c.pct_change().clip(c.pct_change().quantile(0.01), c.pct_change().quantile(0.99), axis=1)
    ),
    "whole-panel scaler": lambda b: b.returns / float(np.nanstd(raw(b).numpy())),
    "negative shift": lambda b: pandas_of(b, lambda c: c.shift(-1) / c - 1),
    "rolled tensor": lambda b: back(raw(b).roll(-1, 0), b),
    "indexed one row ahead": lambda b: back(torch.cat([raw(b)[1:], raw(b)[-1:]]), b),
    "target as feature": lambda b: back(
        torch.cat([raw(b)[5:] / raw(b)[:-5] - 1, torch.full_like(raw(b)[:5], math.nan)]), b
    ),
    "half of tomorrow": lambda b: b.returns + back(raw(b).roll(-1, 0), b).pct_change() * 0.5,
    "rank over all time": lambda b: pandas_of(b, lambda c: c.rank(pct=True)),
    "time reversed average": lambda b: pandas_of(b, lambda c: c[::-1].ewm(span=10).mean()[::-1]),
    "two-sided smoother": lambda b: back(
        torch.nn.functional.avg_pool1d(raw(b).nan_to_num(0.0).T[None], 5, 1, 2)[0].T.contiguous(), b
    ),
    "last price of the panel": lambda b: b.close / back(raw(b)[-1:].nan_to_num(1.0).expand_as(raw(b)), b),
    "knows who survives": lambda b: back(b.present[-1:].float().expand_as(raw(b)), b) + 0 * b.close,
    "knows how long history is": lambda b: b.close * 0 + len(b),
    "expanding mean, no look-back": lambda b: pandas_of(b, lambda c: c.expanding().mean()),
    "counts from the first bar": lambda b: (
        back(torch.arange(len(b), dtype=torch.float32)[:, None].expand_as(raw(b)), b) + 0 * b.close
    ),
    "window longer than declared": lambda b: pandas_of(b, lambda c: c.rolling(30, min_periods=1).mean()),
}


@pytest.fixture
def mutant(request):
    "A leaking feature, registered like an honest one, and taken out afterwards."
    f = Feature(MUTANTS[request.param], group="mutant")
    f.func.__name__ = "mutant_" + request.param.replace(" ", "_").replace(",", "").replace("-", "_")
    f.func.__doc__ = request.param
    FEATURES.add(f.name, f)
    yield f
    FEATURES._parts.pop(f.name)
    FEATURES._meta.pop(f.name)


@pytest.mark.parametrize("mutant", MUTANTS, indirect=True)
def test_a_leak_reaches_neither_values_nor_a_model(mutant):
    with pytest.raises((SeesFuture, NotEnoughHistory)):
        prove(mutant)
    catalogue = Registry("feature")
    with pytest.raises((SeesFuture, NotEnoughHistory)):
        feature(group="mutant", into=catalogue)(mutant.func)
    assert not catalogue.names()
    panel = random_panel(1, sessions=300)
    for door in (
        lambda: compute(panel, [mutant.name]),
        lambda: defined_features(panel, [mutant.name]),
        lambda: make_inputs(panel, Spec([mutant.name])),
    ):
        with pytest.raises((SeesFuture, NotEnoughHistory)):
            door()
    assert not mutant.proven


def test_the_members_that_are_not_examined_above_pass_the_automatic_proof():
    for name in set(NAMES) - set(THOROUGH):
        assert prove(FEATURES[name]).proven


def neighbours(b):
    return Series(b.volume.values.roll(1, 1), b.grid, fields={"volume"})


def first_in_the_list(b):
    return b.returns.xrank() + Series(b.close.values[:, :1].nan_to_num(1.0).expand_as(b.close.values), b.grid)


def counted_columns(b):
    return b.close * len(b.tickers)


@pytest.mark.parametrize("peek", [neighbours, first_in_the_list, counted_columns])
def test_a_feature_may_not_depend_on_who_stands_beside(peek):
    """A comparison of tickers that hides from the count of crossings would give other values for a part of
    the market."""
    with pytest.raises(FeatureError, match=r"other tickers|order of the tickers"):
        prove(Feature(peek, group="mutant"))


def test_honest_twins_of_the_mutants_pass():
    "The guard is not simply always red."
    for honest in (
        lambda b: b.close / b.close.mean(21),
        lambda b: b.volume.lag(1),
        lambda b: b.returns.xz(),
        lambda b: b.close.rank(20),
        lambda b: b.low.quantile(9, 0.3),
        lambda b: b.close.residual(9),
        lambda b: b.high.argmax(9, True),
        lambda b: b.close.rsquare(9),
    ):
        assert prove(Feature(honest, group="honest")).proven


def test_a_leak_that_waits_for_a_long_history_is_caught_there():
    "The hard market is short; a feature that behaves on it and peeks on real data meets the proof again."
    patient = Feature(
        lambda b: b.close / (back(raw(b).roll(-1, 0), b) if len(b) > 1000 else b.close), group="mutant"
    )
    assert prove(patient).proven
    panel = random_panel(1, sessions=1400, gaps=False)
    with pytest.raises(SeesFuture):
        compute(panel, [patient])
    with pytest.raises(SeesFuture):
        make_inputs(panel, Spec([patient]))


def test_features_of_facts_are_proven_with_facts_and_empty_without():
    "The hard market of their proof has every field they ask for, and the values are not all undefined."
    for name in SETS["facts"]:
        f = FEATURES[name]
        market = proof_panel(640, f.fields - set(FIELDS))
        assert not f(market).values.isnan().all(), f"{name} is never defined, the proof would be empty"
        assert prove(f).proven >= 160
        plain = Panel(
            {k: v for k, v in market._fields.items() if k in FIELDS}, market.sessions, market.tickers
        )
        assert f(plain).values.isnan().all(), f"{name} has a value without its fact"
    assert (
        set(search_features("rates").index) <= set(NAMES)
        and feature_table("facts").fields["earnings_yield"] == "eps_diluted, raw_close"
    )


def test_there_is_no_word_for_tomorrow():
    panel = proof_panel(160)
    for n in (0, -1, 1.5, True, "5"):
        with pytest.raises((FeatureError, TypeError, ValueError)):
            panel.close.lag(n)
        with pytest.raises((FeatureError, TypeError, ValueError)):
            panel.close.mean(n)
    assert not hasattr(Series, "lead") and not hasattr(Series, "shift")


def test_reading_values_cannot_change_a_panel():
    panel = random_panel(1, sessions=200, gaps=False)
    before = panel.close.values
    panel.close.values.zero_()
    panel.returns.values.zero_()
    panel.close.mean(3).values.zero_()
    assert (
        equal_with_nan(panel.close.values, before) and not (panel.returns.values.nan_to_num(1.0) == 0).all()
    )


def test_a_feature_must_stay_on_its_panel():
    other = random_panel(2, sessions=160)
    with pytest.raises(FeatureError):
        prove(Feature(lambda b: other.close, group="foreign"))
    with pytest.raises(FeatureError):
        prove(Feature(lambda b: b.close.values, group="tensor"))
    with pytest.raises(FeatureError):
        random_panel(1, sessions=160).close + other.close


# --- the model's input


def same_inputs(a, b) -> bool:
    return (
        torch.equal(a.x, b.x)
        and torch.equal(a.present, b.present)
        and equal_with_nan(a.volatility, b.volatility)
    )


@pytest.mark.parametrize("normalise", ["rank", "zscore", "none"])
@pytest.mark.parametrize("gaps", [True, False])
def test_inputs_of_the_tail_equal_those_of_the_whole(normalise, gaps):
    spec, panel = Spec(EACH, normalise), random_panel(7, gaps=gaps, also=BESIDE)
    whole = make_inputs(panel, spec)
    assert whole.x.isfinite().all() and whole.x.dtype == torch.float32
    for stop in (320, 500, len(panel)):
        live = make_inputs(spec.tail(panel.first(stop)), spec).last(1)
        assert torch.equal(live.x[0], whole.x[stop - 1])
        assert equal_with_nan(live.volatility[0], whole.volatility[stop - 1])


def test_inputs_do_not_depend_on_the_future_threads_or_the_order_of_tickers():
    spec, panel = Spec(EACH), random_panel(8, also=BESIDE)
    whole = make_inputs(panel, spec)
    for other in (panel.first(401), scramble_future(panel, 400)):
        assert same_inputs(make_inputs(other, spec).until(401), whole.until(401))
    order = [3, 0, 8, 5, 1, 2, 7, 4, 6]
    shuffled = make_inputs(panel.select([panel.tickers[i] for i in order]), spec)
    assert torch.equal(shuffled.x, whole.x[:, order]) and equal_with_nan(
        shuffled.volatility, whole.volatility[:, order]
    )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert same_inputs(make_inputs(panel, spec), whole)
    finally:
        torch.set_num_threads(threads)


def test_somebody_who_is_not_there_changes_nothing():
    spec, panel = Spec(EACH), random_panel(9, sessions=400, also=BESIDE)
    whole = make_inputs(panel, spec)
    wider = {k: torch.cat([v, torch.full_like(v[:, :3], math.nan)], 1) for k, v in panel._fields.items()}
    more = make_inputs(Panel(wider, panel.sessions, [*panel.tickers, "X", "Y", "Z"]), spec)
    assert (
        torch.equal(more.x[:, :9], whole.x) and (more.x[:, 9:] == 0).all() and not more.present[:, 9:].any()
    )


def test_ranks_are_centred_and_the_absent_are_neutral():
    panel = random_panel(4)
    inputs = make_inputs(panel, Spec(["mom_5", "vol_20"]))
    assert inputs.x.abs().max() < 0.5 and (inputs.x[~panel.present] == 0).all()
    assert inputs.x[300:].sum(1).abs().max() < 1e-5, "ranks of a session add up to nothing"
    z = make_inputs(panel, Spec(["mom_5"], "zscore"))
    assert z.x.abs().max() <= 5


def test_a_source_of_closes_only_leaves_the_rest_empty():
    full = random_panel(6)
    panel = Panel({"close": full._fields["close"]}, full.sessions, full.tickers)
    result = compute(panel, "all")
    for name in NAMES:
        assert result[name].isnan().all() == bool(FEATURES[name].fields - {"close"})
    assert set(defined_features(panel, "all")) == {n for n in NAMES if FEATURES[n].fields == {"close"}}
    inputs = make_inputs(panel, Spec(["rsi_14", "atr_14"]))
    assert inputs.coverage[0] > 0.8 and inputs.coverage[1] == 0 and (inputs.x[:, :, 1] == 0).all()


def test_a_young_market_covers_only_short_windows():
    panel = random_panel(6, sessions=100, gaps=False)
    names = defined_features(panel, ["ret_1", "mom_252_21", "sma_ratio_200", "vol_20"])
    assert names == ["ret_1", "vol_20"]


def test_a_spec_is_data():
    a, b = Spec(["core"]), Spec(list(SETS["core"]))
    assert a == b and a.hash == b.hash and a.names == tuple(resolve_names("core"))
    assert Spec(["rsi_14", "vol_20"]).hash != Spec(["vol_20", "rsi_14"]).hash
    assert Spec(["rsi_14"], "zscore").hash != Spec(["rsi_14"]).hash
    with pytest.raises(FeatureError):
        Spec([])


# the sets Alpha158 and Alpha360 are literal; what they share with the textbooks keeps both names
BOTH = {
    ("cmo", "alpha_sump"),
    ("cmo", "alpha_sumn"),
    ("cmo", "alpha_sumd"),
    ("williams", "alpha_rsv"),
    ("intraday", "alpha_kmid"),
}


def twins(values: dict) -> set:
    """Pairs of names, of which one is a multiple of the other plus a constant, and names of what never
    changes."""
    names, x = list(values), torch.stack([v.flatten() for v in values.values()]).double()
    x = (x - x.nanmean(1, keepdim=True)).nan_to_num(0.0)
    size = x.square().sum(1, keepdim=True).sqrt()
    x /= size
    alike = (x @ x.T).abs_().triu(1) > 1 - 1e-7
    return {(names[i], names[j]) for i, j in alike.nonzero().tolist()} | {
        (n,) for n, s in zip(names, size[:, 0].tolist(), strict=True) if s == 0
    }


def test_no_feature_is_another_one_under_a_second_name():
    panel = random_panel(3, 1100, 8, gaps=False, also=BESIDE)
    tide = (0.4 * torch.sin(torch.arange(1100) // 5 / 12.0)).exp()[
        :, None
    ]  # the market has cycles, and a halt of prices stays one
    panel = Panel(
        {k: v * tide if k in ("open", "high", "low", "close") else v for k, v in panel._fields.items()},
        panel.sessions,
        panel.tickers,
    )
    values = {f: torch.empty_like(panel._fields["close"]) for _, f in FEATURES.items()}
    fill_features(panel, values)
    values = {f.name: x for f, x in values.items()}
    planted = {
        "falling": 50 - 3 * values["rsi_14"],
        "copy": values["dollar_volume_252"].clone(),
        "still": 0 * values["vol_20"] + 2,
    }
    pairs = twins(values | planted)
    assert not [n for n, x in values.items() if x.isnan().all()], "what is never defined cannot be compared"
    assert {("rsi_14", "falling"), ("dollar_volume_252", "copy"), ("still",)} <= pairs, (
        "the planted ones are not found"
    )

    def family(name):
        return FEATURES[name].func.__name__

    double = {pair for pair in pairs if not set(pair) & set(planted) and not set(pair) <= ALPHA}
    assert {
        pair
        for pair in double
        if len(pair) == 1 or not {tuple(map(family, pair)), tuple(map(family, pair[::-1]))} & BOTH
    } == set()
    assert {tuple(sorted(map(family, pair))) for pair in double} == {tuple(sorted(pair)) for pair in BOTH}, (
        "an exception that is none"
    )


def test_the_catalogue_explains_every_feature():
    rows = feature_table()
    assert list(rows.index) == NAMES
    assert (
        (rows.formula.str.len() > 8).all()
        and (rows.group != "").all()
        and (rows.source != "").all()
        and (rows.look_back >= 1).all()
    )


def test_the_catalogue_can_be_searched_and_shows_cards():
    rows = search_features("VOLATILITY")
    assert "vol_20" in rows.index and "alpha_std_5" in rows.index and "ret_1" not in rows.index
    assert (
        search_features("Wilder").source.str.contains("Wilder").any()
        and search_features("no such (word").empty
    )
    html = card(FEATURES["amihud_20"])
    assert "Amihud (2002)" in html and "21 bars" in html and "close, volume" in html
    assert "<script>" not in card(Feature(lambda b: b.close, group="<script>"))


def test_a_panel_refuses_what_it_cannot_mean():
    from stockpredict.core.errors import BarsInvalid, UnknownTicker

    bar = pd.DataFrame(
        {"ticker": ["A"], "event_time": pd.to_datetime(["2024-01-02 21:00"], utc=True), "close": [1.0]}
    )
    with pytest.raises(NotEnoughHistory):
        Panel.from_bars(bar[:0])
    with pytest.raises(BarsInvalid):
        Panel.from_bars(pd.concat([bar, bar]))
    with pytest.raises(UnknownTicker):
        Panel.from_bars(bar).select(["B"])
    one = Panel.from_bars(bar)
    assert len(one) == 1 and one.sessions[0] == pd.Timestamp("2024-01-02") and not one.has("volume")
    result = compute(one, "all")
    assert all(
        result[n].isnan().all() for n in NAMES if FEATURES[n].lookback > 1 or FEATURES[n].fields != {"close"}
    )


def test_a_field_without_a_close_does_not_count():
    x = {k: torch.arange(1.0, 11.0)[:, None].repeat(1, 2) for k in FIELDS}
    x["close"][4, 0] = math.nan
    panel = Panel(x, pd.bdate_range("2024-01-01", periods=10), ["A", "B"])
    assert panel.volume.values[4, 0].isnan() and panel.volume.lag(1).values[5, 0] == 4.0

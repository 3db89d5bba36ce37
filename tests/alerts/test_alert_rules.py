"""Alert rules against a plain reference, rule by rule and session by session, on random markets."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpredict.alerts.alert_records import AlertRule
from stockpredict.alerts.alert_session import free_to_ring
from stockpredict.alerts.evaluation import pair_rules, rule_lines
from stockpredict.alerts.market_view import MONTH, YEAR, MarketView
from stockpredict.alerts.ring_history import ring_history
from stockpredict.alerts.strategy import STRATEGIES, complete_parameters

NAN = math.nan
TICKERS = ("AAA", "BBB", "CCC")
LEVELS = ("0.025", "0.05", "0.1", "0.25", "0.75", "0.9", "0.95", "0.975")


def random_market(seed, sessions=50, late=True):
    "A market with holes, splits, forecasts of two horizons, and readings of the desk."
    rng = np.random.default_rng(seed)
    traded = np.round(100 * np.exp(np.cumsum(rng.normal(0, 0.03, (sessions, 3)), 0)), 2)
    close = traded.copy()
    if seed % 3 == 0:  # a split of two for one: older traded prices are twice the adjusted ones
        traded[:20, 0] *= 2
    holes = rng.random((sessions, 3)) < 0.1
    traded[holes], close[holes] = NAN, NAN
    forecasts = {}
    for horizon in (1, 3):
        names = {
            "p_up": rng.uniform(0.3, 0.7, (sessions, 3)),
            "daily": rng.uniform(0.01, 0.04, (sessions, 3)),
        }
        width = rng.uniform(0.01, 0.08, (sessions, 3))
        names |= {f"q{level}": (float(level) - 0.5) * 2 * width for level in LEVELS}
        unpublished = rng.random(sessions) < 0.15
        forecasts[horizon] = {k: np.where(unpublished[:, None], NAN, v) for k, v in names.items()}
    desk = {
        "drift": rng.integers(0, 4, sessions).astype(float),
        "rolled_back": rng.integers(0, 2, sessions) * 1.0,
    }
    desk["data_late"] = rng.integers(0, 4, sessions).astype(float)
    desk["drift"][rng.random(sessions) < 0.2] = NAN
    days = np.datetime64("2026-01-05") + np.arange(sessions)
    return MarketView(days, TICKERS, {"open": close, "close": close, "traded": traded}, forecasts, desk)


# --- the reference: one rule, one ticker, one session at a time, in plain Python ---------------------------


def last_known(column, row):
    for at in range(row, -1, -1):
        if not math.isnan(column[at]):
            return column[at]
    return NAN


def published(view, name, horizon, row, column):
    if row < 0 or horizon not in view.forecasts:
        return NAN
    return float(view.forecasts[horizon][name][row, column])


def monthly(view, row, column):
    moves = []
    for at in range(row - MONTH + 1, row + 1):
        if at < 1:
            return NAN
        a, b = (
            last_known(view.bars["close"][:, column], at - 1),
            last_known(view.bars["close"][:, column], at),
        )
        moves.append(math.log(b / a))
    if any(math.isnan(m) for m in moves):
        return NAN
    return math.sqrt(sum(m * m for m in moves) / MONTH)


def plain_excess(view, kind, p, row, column):
    "How far the condition of one rule holds on one session."
    close = view.bars["close"][:, column] if column >= 0 else np.full(len(view), NAN)
    now = float(close[row])
    sided = {"above": 1, "below": -1, "up": 1, "down": -1}
    if kind == "price":
        traded = view.bars["traded"][:, column]
        screen = traded[row] * (0.5 if _split_after(view, row, column) else 1.0)
        return sided[p["direction"]] * (screen / p["level"] - 1) * 100
    if kind in ("move", "sigma_move"):
        back = p.get("sessions", 1)
        move = now / last_known(close, row - back) - 1 if row >= back else NAN
        size = move * 100
        if kind == "sigma_move":
            size = move / published(view, "daily", p["horizon"], row - 1, column)
        size = abs(size) if p["direction"] == "either" else sided[p["direction"]] * size
        return size - (p["percent"] if kind == "move" else p["times"])
    if kind == "interval_left":
        h, tail = p["horizon"], {50: "0.25", 80: "0.1", 90: "0.05", 95: "0.025"}[p["level"]]
        head = {"0.25": "0.75", "0.1": "0.9", "0.05": "0.95", "0.025": "0.975"}[tail]
        entry = last_known(close, row - h) if row >= h else NAN
        came, decided = now / entry - 1, row - h - view.delay
        low, high = (published(view, f"q{q}", h, decided, column) for q in (tail, head))
        return max(low - came, came - high) if not math.isnan(low + came) else NAN
    if kind == "p_up":
        return sided[p["direction"]] * (published(view, "p_up", p["horizon"], row, column) - p["level"])
    if kind == "volatility_regime":
        past = (
            [monthly(view, at, column) for at in range(row - YEAR + 1, row + 1)] if row >= YEAR - 1 else [NAN]
        )
        if math.isnan(now) or any(math.isnan(v) for v in past):
            return NAN
        rank = sum(v <= past[-1] for v in past) / YEAR
        return rank - p["share"] if p["direction"] == "high" else (1 - p["share"]) - rank
    if kind == "data_late" and column >= 0:
        seen = [at for at in range(row + 1) if not math.isnan(close[at])]
        return (row - seen[-1] if seen else float(view.desk["data_late"][row])) - p["sessions"]
    if kind == "data_late":
        return float(view.desk["data_late"][row]) - p["sessions"]
    return float(view.desk[kind][row]) - p.get("measures", 1)


def _split_after(view, row, column):
    traded, close = view.bars["traded"][row, column], view.bars["close"][row, column]
    return traded > 1.5 * close


def plain_rings(view, kind, params, column, every, cooldown):
    "The sessions on which one rule rings, with a state that is carried from session to session."
    rang, armed, last = [], False, None
    for row in range(len(view)):
        excess = plain_excess(view, kind, params, row, column)
        if math.isnan(excess):
            continue
        rings = excess >= 0 and (armed or every or not STRATEGIES[kind].edge)
        if excess >= 0:
            armed = False
        elif excess < -params.get("band", 0):
            armed = True
        if rings and (last is None or row - last > cooldown):
            rang.append(row)
            last = row
    return rang


number = st.integers(0, 10**6)
RULES = {
    "price": st.fixed_dictionaries(
        {
            "level": st.floats(80, 125),
            "direction": st.sampled_from(["above", "below"]),
            "band": st.floats(0, 4),
        }
    ),
    "move": st.fixed_dictionaries(
        {
            "percent": st.floats(0.5, 6),
            "direction": st.sampled_from(["either", "up", "down"]),
            "sessions": st.integers(1, 5),
        }
    ),
    "sigma_move": st.fixed_dictionaries(
        {
            "times": st.floats(0.3, 3),
            "direction": st.sampled_from(["either", "up", "down"]),
            "horizon": st.sampled_from([1, 3, 9]),
        }
    ),
    "interval_left": st.fixed_dictionaries(
        {"level": st.sampled_from([50, 80, 90, 95]), "horizon": st.sampled_from([1, 3])}
    ),
    "p_up": st.fixed_dictionaries(
        {
            "level": st.floats(0.35, 0.65),
            "direction": st.sampled_from(["above", "below"]),
            "horizon": st.sampled_from([1, 3]),
            "band": st.floats(0, 0.1),
        }
    ),
    "drift": st.fixed_dictionaries({"measures": st.integers(1, 3), "band": st.sampled_from([0.0, 1.0])}),
    "rolled_back": st.just({}),
    "data_late": st.fixed_dictionaries({"sessions": st.integers(1, 3), "band": st.sampled_from([0.0, 1.0])}),
}


@pytest.mark.parametrize("kind", RULES)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_rings_are_those_of_a_rule_that_is_watched_by_hand(kind, data):
    view = random_market(data.draw(number))
    rules = []
    for place in range(4):
        tickers = () if STRATEGIES[kind].scope == "desk" else TICKERS
        if kind == "data_late" and place == 0:
            tickers = ()
        params = data.draw(RULES[kind])
        every, cooldown = data.draw(st.booleans()), data.draw(st.integers(0, 6))
        rules.append(AlertRule(f"r-{place}", "u", tickers, kind, params, every=every, cooldown=cooldown))
    pairs = pair_rules(rule_lines(rules), kind, view)
    last, rings = np.full(len(pairs), -1), {place: [] for place in range(len(pairs))}
    for row in range(len(view)):
        places, _ = pairs.rings(view, row)
        for place in places[pairs.cooled(places, row, last[places])]:
            rings[int(place)].append(row)
            last[place] = row
    for place in range(len(pairs)):
        rule, column = rules[pairs.rule[place]], int(pairs.columns[place])
        assert rings[place] == plain_rings(view, kind, rule.params, column, rule.every, rule.cooldown)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_regime_is_that_of_a_year_counted_by_hand(seed):
    view = random_market(seed, sessions=YEAR + MONTH + 30)
    rules = [
        AlertRule(f"r-{d}", "u", TICKERS, "volatility_regime", {"share": 0.7, "direction": d, "band": 0.05})
        for d in ("high", "low")
    ]
    pairs = pair_rules(rule_lines(rules), "volatility_regime", view)
    rows = range(YEAR + MONTH - 3, len(view), 7)
    for row in rows:
        excess, _ = pairs.judge(view, row, np.arange(len(pairs)))
        for place, value in enumerate(excess):
            rule, column = rules[pairs.rule[place]], int(pairs.columns[place])
            expected = plain_excess(view, "volatility_regime", rule.params, row, column)
            assert (math.isnan(value) and math.isnan(expected)) or abs(value - expected) < 1e-12
    assert np.isfinite(pairs.judge(view, len(view) - 2, np.arange(len(pairs)))[0]).any()


@pytest.mark.parametrize("kind", RULES)
def test_a_rule_sees_nothing_after_its_session(kind):
    "Everything after a session is scrambled, and the rings up to it stay."
    view, cut = random_market(7), 30
    rng = np.random.default_rng(0)

    def scrambled(values):
        values = values.copy()
        values[cut + 1 :] = np.where(rng.random(values[cut + 1 :].shape) < 0.2, NAN, rng.uniform(0.1, 200))
        return values

    bars = {name: scrambled(values) for name, values in view.bars.items()}
    bars["traded"] = bars["open"] = bars["close"]  # a scrambled adjustment would be a split of the unit
    plain = view.bars | {"traded": view.bars["close"]}
    forecasts = {h: {k: scrambled(v) for k, v in names.items()} for h, names in view.forecasts.items()}
    desk = {name: scrambled(values) for name, values in view.desk.items()}
    before = MarketView(view.sessions, TICKERS, plain, view.forecasts, view.desk)
    after = MarketView(view.sessions, TICKERS, bars, forecasts, desk)
    usual = {"price": {"level": 100}, "move": {"percent": 2}, "sigma_move": {"times": 1}}
    usual |= {"p_up": {"level": 0.5}, "data_late": {"sessions": 1}}
    params = complete_parameters(STRATEGIES[kind], usual.get(kind, {}))
    tickers = () if STRATEGIES[kind].scope == "desk" else TICKERS
    rule, day = AlertRule("r-1", "u", tickers, kind, params, cooldown=1), str(view.sessions[cut])
    seen, other = (
        [ring for ring in ring_history(rule, market, sessions=50).rings if ring[0] <= day]
        for market in (before, after)
    )
    assert seen == other and seen


def test_rules_about_the_desk_ring_in_a_view_without_tickers():
    market, nothing = random_market(1), np.empty((50, 0))
    bars = {name: nothing for name in market.bars}
    view = MarketView(market.sessions, (), bars, {}, market.desk)
    params = complete_parameters(STRATEGIES["data_late"], {})
    rule = AlertRule("r-1", "u", (), "data_late", params, cooldown=1)
    rings = ring_history(rule, view, sessions=50).rings
    assert rings and rings == ring_history(rule, market, sessions=50).rings


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_rings_that_are_let_through_are_apart(rows, cooldown):
    "In whatever order sessions are found, two stored rings are further apart than the cooldown."
    stored = []
    for row in rows:
        free_to_ring(stored, row, cooldown)
    assert stored == sorted(set(stored))
    assert all(b - a > cooldown for a, b in itertools.pairwise(stored))
    assert not rows or stored
    assert all(min(abs(row - s) for s in stored) <= cooldown for row in rows)

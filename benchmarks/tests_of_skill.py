"""Sizes and powers of the tests behind a verdict, by simulation: share of p-values below 5 %.

    python benchmarks/tests_of_skill.py [--only coverage runs ic direction loss nested comparison tail]
                                        [--markets 300] [--sessions 500]

Each row is a test, a market without skill (size, wanted .03 to .08) and one with some (power). Markets have
fat tails, GARCH volatility and a common factor where that matters. Small draws stand in the tests.
`--sessions` is the length of the tests of coverage and of runs, printed for other markets too.
"""

import argparse
import itertools
import time

import numpy as np

from stockpredict.evaluate import metrics as m
from stockpredict.evaluate.forecast_comparison import compare_losses
from stockpredict.evaluate.hit_runs import interval_runs
from stockpredict.evaluate.return_metrics import tail_test


def garch(rng, sessions, names, reaction=0.08, memory=0.90, fat=True):
    "Returns with one persistent variance and fat tails, `[session, name]`."
    variance, out = 1.0, np.empty((sessions + 200, names))
    for t in range(len(out)):
        shock = rng.standard_t(6, names) / np.sqrt(1.5) if fat else rng.standard_normal(names)
        out[t] = np.sqrt(variance) * shock
        variance = 1 - reaction - memory + reaction * np.mean(out[t] ** 2) + memory * variance
    return out[200:]


def coverage(rng, skill):
    "Sessions of ten names; without skill the interval is right, with it a fifth too narrow."
    y = garch(rng, SESSIONS, 10)
    edge = EDGE * (0.8 if skill else 1)
    return m.interval_coverage(np.full(y.shape, -edge), np.full(y.shape, edge), y).p


def many_markets(rng, markets, names, reaction, memory):
    "Returns of many markets at once, `[session, market, name]`, each with one persistent variance."
    variance, out = np.ones(markets), np.empty((SESSIONS + 400, markets, names))
    for t in range(len(out)):
        out[t] = np.sqrt(variance)[:, None] * rng.standard_normal((markets, names))
        variance = 1 - reaction - memory + reaction * np.mean(out[t] ** 2, 1) + memory * variance
    return out[300:]


def followed(y):
    "Sizes of returns in units of an exponentially weighted volatility, known two sessions before."
    variance, out = np.ones(y.shape[1]), np.full(y.shape, np.nan)
    for t in range(len(y) - 2):
        variance = 0.94 * variance + 0.06 * np.mean(y[t] ** 2, 1)
        out[t + 2] = np.abs(y[t + 2]) / np.sqrt(variance)[:, None]
    return out[100:]


def other_markets(markets: int):
    "Print sizes of the coverage test in markets of other kinds, and power against a fifth too narrow."
    kinds = {
        "independent": (0, 0),
        "GARCH (.08, .90)": (0.08, 0.90),
        "GARCH (.05, .94)": (0.05, 0.94),
        "GARCH (.09, .905)": (0.09, 0.905),
    }
    sizes = {"constant": lambda y: np.abs(y[100:]), "following EWMA": followed}
    for (kind, terms), (form, size), names in itertools.product(kinds.items(), sizes.items(), (10, 1)):
        rng = np.random.default_rng(5)
        edge = np.nanquantile(size(many_markets(rng, 300, names, *terms)), 0.9)
        z = size(many_markets(rng, markets, names, *terms))
        inside = [(z <= edge * width).sum(2).T for width in (1, 0.8)]
        count = np.full(len(z), names)
        p = [np.array([m.slow_ratio(x, count, 0.9).p for x in part]) for part in inside]
        size5, power = (np.mean(v < 0.05) for v in p)
        title = f"{kind}, {names} names, {form} intervals, {len(z)} sessions"
        print(f"  {title}: size {size5:.3f}, power {power:.2f}", flush=True)


def ic(rng, skill):
    "Two years of forty names, labels of five sessions, a persistent score."
    shocks, score = rng.normal(size=(504, 40)), np.zeros((504, 40))
    for t in range(1, 504):
        score[t] = 0.9 * score[t - 1] + shocks[t]
    moves = garch(rng, 508, 40) + 0.03 * skill * np.vstack([score, score[-4:]])
    y = np.lib.stride_tricks.sliding_window_view(moves, 5, axis=0).sum(-1)
    return m.ic_summary(m.rank_ic(score, y), 5).p_greater


def direction(rng, skill):
    "Pesaran and Timmermann on a panel with a common factor."
    score, market = rng.normal(size=(500, 20)), garch(rng, 500, 1)
    return m.pesaran_timmermann(score, market + garch(rng, 500, 20) + 0.05 * skill * score).p


def loss(rng, skill):
    "Diebold and Mariano (Harvey, Leybourne, Newbold): two forecasts of equal error, or not."
    y = garch(rng, 500, 10)
    a, b = (0.4 * rng.normal(size=y.shape) for _ in range(2))
    return m.diebold_mariano((y - a) ** 2, (y - b * (1.25 if skill else 1)) ** 2).p


def nested(rng, skill):
    "Clark and West: a slope estimated on an expanding window against zero."
    x = rng.normal(size=601)
    y = np.r_[0, 0.12 * skill * x[:-1]] + garch(rng, 601, 1)[:, 0]
    past = np.cumsum(x[:-1] * y[1:]) / np.cumsum(x[:-1] ** 2)
    return m.clark_west(past[100:-1] * x[101:-1], y[102:]).p


def comparison(rng, skill):
    "Hansen's SPA: six candidates against a benchmark."
    common, n = garch(rng, 300, 1)[:, 0], 300
    data = {f"m{k}": (common + 0.5 * rng.normal(size=n)) ** 2 for k in range(7)}
    data["m0"] = (common * (0.75 if skill else 1) + 0.5 * rng.normal(size=n)) ** 2
    return compare_losses(data, "m6", draws=300).attrs["spa"]["consistent"]


def tail(rng, skill):
    "Kupiec and Christoffersen jointly; with skill the value at risk ignores the volatility."
    variance, r = np.repeat(rng.choice([0.2, 1.8], 40), 25), rng.normal(size=1000)
    stated = np.full(1000, 1.6449) if skill else 1.6449 * np.sqrt(variance)
    return tail_test(np.sqrt(variance) * r, stated)["joint p"]


def decided_in(rng, sessions, names, terms):
    "Returns with fat tails and a common factor, and the variance known when each was decided."
    variance, out, known = 1.0, np.empty((sessions + 302, names)), np.empty(sessions + 302)
    for t in range(len(out)):
        z = rng.standard_t(6, names + 1) / np.sqrt(1.5)
        known[t], out[t] = variance, np.sqrt(variance) * (0.55 * z[0] + 0.835 * z[1:])
        variance = 1 - sum(terms) + terms[0] * np.mean(out[t] ** 2) + terms[1] * variance
    return out[302:], known[301:-1]  # decided with the variance of the session between


def right_edges(rng, names, terms):
    "The 5 and 95 % quantile of a return in two sessions, as a function of the variance in one."
    grid, draws = np.exp(np.linspace(-3, 3.7, 40)), 20_000
    first, z = (rng.standard_t(6, (draws, names + 1)) / np.sqrt(1.5) for _ in range(2))
    move = np.mean((0.55 * first[:, :1] + 0.835 * first[:, 1:]) ** 2, 1)
    last = 0.55 * z[:, 0] + 0.835 * z[:, 1]
    variance = 1 - sum(terms) + (terms[0] * move[:, None] + terms[1]) * grid
    quantiles = np.quantile(np.sqrt(variance) * last[:, None], [0.05, 0.95], axis=0)
    return lambda known: [np.interp(np.log(known), np.log(grid), q)[:, None] for q in quantiles]


EDGES = {}  # of `right_edges`, by names and terms


def runs(rng, skill, names=20, terms=(0.08, 0.9)):
    "Runs of misses: intervals that are right at each decision; with skill they ignore the volatility."
    if (names, terms) not in EDGES:
        EDGES[names, terms] = right_edges(np.random.default_rng(0), names, terms)
    y, known = decided_in(rng, SESSIONS, names, terms)
    low, high = (np.quantile(y, p) for p in (0.05, 0.95)) if skill else EDGES[names, terms](known)
    return interval_runs(low + 0 * y, high + 0 * y, y, 2)["p"]


def other_runs(markets: int):
    "Print size and power of the test of runs in markets of other kinds."
    for names, terms in itertools.product((1, 20, 60), ((0.08, 0.9), (0.05, 0.94), (0.1, 0.8))):
        rng = np.random.default_rng(9)
        p = np.array([[runs(rng, s, names, terms) for s in (0, 1)] for _ in range(markets)])
        size5, power = (p < 0.05).mean(0)
        title = f"{names} names, GARCH {terms}, {SESSIONS} sessions"
        print(f"  {title}: size {size5:.3f}, power {power:.2f}", flush=True)


SESSIONS = 500  # of the tests of coverage and of runs
EDGE = float(np.quantile(np.abs(garch(np.random.default_rng(0), 40_000, 10)), 0.9))
OTHERS = {"coverage": other_markets, "runs": other_runs}
TESTS = {f.__name__: f for f in (coverage, runs, ic, direction, loss, nested, comparison, tail)}


def main():
    global SESSIONS
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(TESTS), default=list(TESTS))
    parser.add_argument("--markets", type=int, default=300)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    arguments = parser.parse_args()
    SESSIONS = arguments.sessions
    print(f"{'test':<12} {'size':>6} {'power':>6}   over {arguments.markets} markets each, at 5 %")
    for name in arguments.only:
        begin, rng = time.process_time(), np.random.default_rng(7)
        shares = [np.mean([TESTS[name](rng, s) < 0.05 for _ in range(arguments.markets)]) for s in (0, 1)]
        spent = time.process_time() - begin
        print(
            f"{name:<12} {shares[0]:>6.3f} {shares[1]:>6.2f}   {TESTS[name].__doc__} ({spent:.0f} s CPU)",
            flush=True,
        )
        if name in OTHERS:
            OTHERS[name](arguments.markets)


if __name__ == "__main__":
    main()

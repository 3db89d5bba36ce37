"""Runs of misses: only what a decision could know counts against an interval."""

import numpy as np
import pytest
from stockpredict.core.errors import EvaluateError
from stockpredict.evaluate.hit_runs import interval_runs, runs_of_market, runs_of_names
from stockpredict.evaluate.risk import christoffersen


def market(rng, sessions, names=20, reaction=0.1, memory=0.88):
    "Outcomes decided two sessions before, and the volatility that was expected for them."
    variance, out, known = 1.0, np.empty((sessions + 202, names)), np.empty(sessions + 202)
    for t in range(len(out)):
        z = 0.6 * rng.normal() + 0.8 * rng.normal(size=names)
        known[t], out[t] = variance, np.sqrt(variance) * z
        variance = 1 - reaction - memory + reaction * np.mean(out[t] ** 2) + memory * variance
    last = 1 - reaction - memory + (reaction + memory) * known[201:-1]
    return out[202:], np.sqrt(last)[:, None]


def p_of(y, scale, lag=2):
    edge = 1.645 * scale + 0 * y
    return interval_runs(-edge, edge, y, lag)["p"]


def test_right_intervals_have_no_runs_and_constant_ones_have():
    """Of right intervals 3 to 8 % are refused at 5 % (`benchmarks/tests_of_skill.py --only runs` draws more
    markets, of more kinds); with the lag of one session, not known yet at the decision, more are."""
    rng = np.random.default_rng(3)
    right, constant = [], []
    for _ in range(120):
        y, scale = market(rng, 500)
        right.append(p_of(y, scale))
        constant.append(p_of(y, np.ones_like(scale)))
    assert 0.0 < np.mean(np.array(right) < 0.05) <= 0.09
    assert np.mean(np.array(constant) < 0.05) > 0.4


def test_what_was_not_known_yet_is_nobodys_fault():
    "Volatility that lasts two sessions: neighbouring misses come together, and those two apart do not."
    rng = np.random.default_rng(1)
    shock = np.exp(0.8 * rng.normal(size=3002))
    y = np.sqrt(shock[1:] * shock[:-1])[:, None] * rng.normal(size=(3001, 30))
    edge = np.quantile(np.abs(y), 0.9)
    miss = (np.abs(y) > edge).astype(float)
    assert runs_of_names(miss, 1).p < 1e-4 and runs_of_names(miss, 2).p > 0.01
    assert np.mean([christoffersen(m, 1)["p"] < 0.05 for m in miss.T]) > 0.4
    assert np.mean([christoffersen(m, 2)["p"] < 0.05 for m in miss.T]) <= 0.2


@pytest.mark.parametrize("lag", [1, 2, 6])
def test_only_misses_that_were_known_are_read(lag):
    "A miss counts for the sessions from `lag` sessions after it on, and for no earlier one."
    one = np.zeros((200, 1))
    one[[50, 50 + lag]] = 1
    assert runs_of_names(one, lag).value > 0.4 > 0 > runs_of_names(one, lag + 1).value
    assert runs_of_market(one, lag).value > 0
    one[50 + lag], one[50 + lag - 1] = 0, 1  # a session too early to know
    assert runs_of_market(one, lag).value < 0


def test_christoffersen_at_a_lag_is_that_of_every_lagth_pair():
    hits = (np.random.default_rng(2).random(400) < 0.1).astype(float)
    hits[7] = np.nan
    pairs = np.column_stack([hits[:-3], hits[3:], np.full(397, np.nan)]).ravel()
    assert christoffersen(hits, 3) == christoffersen(pairs)
    assert np.isnan(christoffersen(np.zeros(2), 5)["p"])


def test_degenerate_misses_have_an_answer():
    y = np.random.default_rng(0).normal(size=(100, 5))
    never = interval_runs(y - 1, y + 1, y, 2)
    assert never["p"] == 1.0
    assert np.isnan(interval_runs(y[:20], y[:20], y[:20], 2)["p"])
    holes = np.where(np.arange(100)[:, None] % 2 == 0, np.nan, y)
    assert 0 <= interval_runs(holes - 1, holes + 0.5, holes * 0 + y, 2)["p"] <= 1
    with pytest.raises(EvaluateError, match="future"):
        interval_runs(y, y, y, 0)

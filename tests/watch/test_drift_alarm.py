"""The drift alarm: how often it rings in quiet years, and what it finds."""

import importlib.util

import numpy as np
import pytest

from stockpredict.core.errors import EvaluateError, NotEnoughSessions
from stockpredict.watch.drift_alarm import WINDOW, fit_drift_rule
from stockpredict.watch.session_profile import load_profile, save_profile, session_profile


@pytest.fixture(scope="module")
def bench(root):
    "The benchmark, of which these tests draw a few years."
    spec = importlib.util.spec_from_file_location("drift_benchmark", root / "benchmarks" / "drift.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def market(bench, seed):
    return bench.simulate(kind="realistic", tickers=30, sessions=bench.CUT + 252, seed=seed).bars


def test_quiet_years_ring_no_more_than_stated(bench):
    "Stated: 0.6 a year; eight years of a Poisson count of 4.8 exceed 11 once in 200 times."
    alarms = 0
    for seed in range(300, 308):
        rule, year = bench.watched(*bench.features(market(bench, seed)))
        alarms += bench.episodes(rule.alarms(year))
    assert rule.alarms_a_year == pytest.approx(0.6) and alarms <= 11


@pytest.mark.parametrize("change", ["one feature frozen", "volume times 100", "a sixth of the tickers gone"])
def test_a_fault_of_the_data_is_found_within_a_week(bench, change):
    bars = market(bench, 501)
    start = np.sort(bars.event_time.unique())[bench.CUT + bench.PLANT]
    rule, year = bench.watched(*bench.CHANGES[change](bars, start))
    alarms = rule.alarms(year)
    assert not alarms[: bench.PLANT].any() and alarms[bench.PLANT : bench.PLANT + 5].any()
    part = year.sessions(slice(0, bench.PLANT + 5 + WINDOW - 1))
    assert rule.sentence(part).startswith("Changed in the last 21 sessions")


def test_a_window_does_not_depend_on_the_sessions_after_it():
    draw = np.random.default_rng(1)
    there, values = np.ones((600, 20), bool), draw.normal(size=(600, 20))
    usual = session_profile({"a": values}, there)
    rule, later = fit_drift_rule(usual), session_profile({"a": values[:100] + 1}, there[:100], like=usual)
    whole, cut = rule.p_values(later), rule.p_values(later.sessions(slice(0, 60)))
    assert np.array_equal(whole[: len(cut)], cut)


def test_missing_values_and_tickers_without_bars_are_told_apart():
    draw = np.random.default_rng(2)
    values, there = draw.normal(size=(600, 40)), np.ones((600, 40), bool)
    usual = session_profile({"a": values}, there)
    rule = fit_drift_rule(usual)
    holes, absent = values[:21].copy(), there[:21].copy()
    holes[-1, :30] = np.nan
    absent[-1, :30] = False
    kinds = {}
    for name, (v, p) in {"holes": (holes, there[:21]), "absent": (values[:21], absent)}.items():
        table = rule.findings(session_profile({"a": v}, p, like=usual))
        kinds[name] = set(table.measure[table.adjusted <= rule.share])
    assert kinds["holes"] == {"missing"} and kinds["absent"] == {"tickers"}


def test_short_histories_other_features_and_damaged_files_are_named(tmp_path):
    draw = np.random.default_rng(3)
    values, there = draw.normal(size=(520, 10)), np.ones((520, 10), bool)
    usual = session_profile({"a": values}, there, {"a": 252})
    with pytest.raises(NotEnoughSessions, match="300 sessions are too few"):
        fit_drift_rule(usual.sessions(slice(0, 300)))
    with pytest.raises(EvaluateError, match="other features"):
        session_profile({"b": values}, there, like=usual)
    save_profile(usual, tmp_path / "profile.npz")
    again = load_profile(tmp_path / "profile.npz")
    assert np.array_equal(again.counts, usual.counts) and again.lookbacks.tolist() == [252]
    content = (tmp_path / "profile.npz").read_bytes()
    (tmp_path / "profile.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(EvaluateError, match="cannot be read"):
        load_profile(tmp_path / "profile.npz")

"""The quality gate, its detectors and its comparisons."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import BarsInvalid, FileMissing, ParameterRefused
from stockpredict.quality.corporate_actions import ACTIONS, ALL_DETECTORS, payments
from stockpredict.quality.reconcile import EXPECTATIONS, absent_sessions, agreement_by_ticker, compare_sources
from stockpredict.quality.reconcile import completeness, corrections
from stockpredict.quality.reconcile import disagreements, failed_expectations, freshness
from stockpredict.quality.reconcile import summarise_restatements, restatements
from stockpredict.testing.corruption import CORRUPTIONS, corrupt, healthy_market, add_dividends
from stockpredict.quality.detectors import DETECTORS
from stockpredict.quality.scan import FLAGS, find_flags
from stockpredict.quality.moves import SPLIT_RATIOS, measure_moves, nearest_split_ratio
from stockpredict.quality.moves import trailing_mean
from stockpredict.quality.scan import usable_bars
from stockpredict.testing.detector_benchmark import recorded_case, recorded_cases
from stockpredict.quality.gate import (
    CONFLICT,
    RULES,
    FAST_CHECKS,
    Rule,
    duplicate_keys,
    failing_rows,
    is_sorted,
    inspect_bars,
)
from stockpredict.quality.gate import with_rule_columns, suspects
from stockpredict.sources.simulate import sample_bars

NOW = pd.Timestamp("2022-01-01", tz="UTC")
CAL = get_calendar()
MONEY = ["open", "high", "low", "close", "adj_close"]


@pytest.fixture(scope="module")
def market():
    return healthy_market(tickers=25, sessions=250, seed=4)


# ---- the fast check before the judge


def wild(rows=3_000, seed=0):
    "Bars with every kind of nonsense strewn in."
    rng = np.random.default_rng(seed)
    bars = pd.concat([sample_bars(seed=s) for s in (1, 2, 3)], ignore_index=True).head(rows)
    for column in ("open", "high", "low", "close", "volume"):
        for value in (0.0, -1.0, np.nan, np.inf, -np.inf, 1e15, 1e16, 1e12, 2e12, 1e-300):
            bars.loc[rng.integers(0, len(bars), 5), column] = value
    for ticker in ("", "aaa", "';DROP", "A" * 17, "ΑΑΑ", "BRK.B", "A\n", "^GSPC"):
        bars.loc[rng.integers(0, len(bars), 3), "ticker"] = ticker
    bars.loc[rng.integers(0, len(bars), 5), "ticker"] = None
    bars.loc[rng.integers(0, len(bars), 9), "event_time"] = pd.NaT
    bars.loc[rng.integers(0, len(bars), 9), "known_at"] = pd.NaT
    bars.loc[rng.integers(0, len(bars), 9), "known_at"] = pd.Timestamp("2099-01-01", tz="UTC")
    bars.loc[rng.integers(0, len(bars), 9), "event_time"] += pd.Timedelta(hours=1)
    bars.loc[rng.integers(0, len(bars), 3), ["event_time", "known_at"]] = pd.Timestamp("2022-06-01 20:00Z")
    return pd.concat(
        [bars, bars.sample(50, random_state=seed), bars.sample(50, random_state=seed + 1).assign(close=1.0)],
        ignore_index=True,
    )


def test_the_fast_check_never_changes_the_verdict_of_great_expectations():
    table = with_rule_columns(wild(), CAL, NOW)
    for rules in (RULES, [CONFLICT]):
        quick, thorough = failing_rows(table, rules, whole=0), failing_rows(table, rules, whole=len(table))
        assert {k: v.tolist() for k, v in quick.items()} == {k: v.tolist() for k, v in thorough.items()}
        assert all(len(v) for v in thorough.values()), "every rule is exercised"


def library_alone(table, rules):
    "What Great Expectations says with its own classes, asked once for everything, in a project of its own."
    import great_expectations as gx

    asset = gx.get_context(mode="ephemeral").data_sources.add_pandas("own").add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    failing = {}
    for rule in rules:
        rows = failing.setdefault(rule.name, set())
        for kind, arguments in rule.expect:
            answer = batch.validate(getattr(gx.expectations, kind)(**arguments), result_format="COMPLETE")
            rows |= set(answer.result["unexpected_index_list"])
    return {name: sorted(rows) for name, rows in failing.items()}


def test_asked_in_two_steps_the_library_finds_the_rows_that_it_finds_at_once():
    table = with_rule_columns(wild(900, seed=5), CAL, NOW)
    for rules in (RULES, [CONFLICT]):
        failing = {name: rows.tolist() for name, rows in failing_rows(table, rules).items()}
        assert failing == library_alone(table, rules) and any(failing.values())


def test_threads_that_inspect_at_once_see_their_own_tables():
    table = with_rule_columns(sample_bars().head(60), CAL, NOW + pd.Timedelta(days=4000))
    bad = [[3], [5, 9], [], [20, 21, 22]] * 3
    tables = [table.assign(volume=table.volume.where(~table.index.isin(rows), -1.0)) for rows in bad]
    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda t: failing_rows(t, RULES)["volume impossible"].tolist(), tables))
    assert seen == bad


def test_every_kind_of_expectation_in_use_has_a_fast_check_and_one_without_is_checked_whole():
    assert {kind for r in [*RULES, CONFLICT] for kind, _ in r.expect} <= set(FAST_CHECKS)
    other = Rule(
        "short",
        "The name is too long.",
        [("ExpectColumnValueLengthsToBeBetween", dict(column="ticker", max_value=3))],
    )
    table = sample_bars().assign(ticker=lambda f: f.ticker.where(f.index != 9, "LONG"))
    assert suspects(table, [other]).all() and failing_rows(table, [other], whole=0)["short"].tolist() == [9]


def test_a_fast_check_that_clears_too_much_stops_the_batch(monkeypatch):
    monkeypatch.setitem(FAST_CHECKS, "ExpectColumnValuesToBeBetween", lambda f, a: np.ones(len(f), bool))
    table = with_rule_columns(sample_bars().assign(volume=-1.0), CAL, NOW)
    with pytest.raises(BarsInvalid, match="cleared rows that fail"):
        failing_rows(table, RULES, whole=0)


def test_order_and_crowding_are_seen_without_sorting(market):
    mixed = market.sample(frac=1, random_state=1)
    assert (
        is_sorted(market)
        and not is_sorted(mixed)
        and is_sorted(market[:0])
        and not duplicate_keys(mixed).any()
    )
    twice = pd.concat([market, market.iloc[[5, 9]]])
    assert (
        duplicate_keys(twice).sum() == 4
        and duplicate_keys(twice.sort_values(["ticker", "event_time"])).sum() == 4
    )
    a, b = inspect_bars(market, now=NOW), inspect_bars(mixed, now=NOW)
    assert a.good.equals(b.good) and a.flags.equals(b.flags) and a.checks == b.checks


# ---- flags


def test_the_catalogue_is_complete_and_speaks_in_sentences():
    names = [d.name for d in ALL_DETECTORS]
    assert len(set(names)) == len(names) == len(DETECTORS) + len(ACTIONS) and all(
        d.sentence.endswith(".") and d.detect.__doc__ for d in ALL_DETECTORS
    )
    assert set(names) <= set(inspect_bars(sample_bars(), now=NOW).table().index), (
        "each detector is a row of the report"
    )


def test_flags_reach_the_reader_and_say_whether_a_return_may_be_used(market):
    t = market.index[market.ticker == market.ticker[0]][100]
    damaged = market.copy()
    damaged.loc[t, MONEY] *= 100
    quality = inspect_bars(damaged, now=NOW)
    assert list(quality.flags.columns) == FLAGS and len(quality.good) == len(market) and not quality.refused
    mine = quality.flags[
        (quality.flags.ticker == market.ticker[0]) & (quality.flags.event_time == market.event_time[t])
    ]
    assert {"unit changed", "unit error", "spike", "jump"} <= set(mine.flag) and mine.set_index(
        "flag"
    ).usable["jump"]
    assert not quality.usable[t] and quality.usable.sum() >= len(market) - 2
    assert json.dumps(quality.checks) and quality.table().failed["unit changed"] == 2


def test_a_healthy_market_and_an_empty_one_raise_nothing(market):
    assert find_flags(market, detectors=ALL_DETECTORS).query("not usable").empty
    empty = find_flags(market[:0])
    assert list(empty.columns) == FLAGS and len(empty) == 0 and usable_bars(market, empty).all()
    one = market[:1]
    assert find_flags(one, detectors=ALL_DETECTORS).empty and inspect_bars(one, now=NOW).flags.empty


@pytest.mark.parametrize("detector", ALL_DETECTORS, ids=lambda d: d.name)
def test_a_detector_looks_at_prices_in_any_currency_and_at_tickers_in_any_order(market, detector):
    "Prices times eight, dividends too, and tickers renamed to run backwards: the same bars are flagged."
    damaged, _ = corrupt(
        market,
        [f.name for f in CORRUPTIONS.values() if detector.name in f.signs] or ["price spike"],
        each=2,
        seed=3,
    )
    damaged = (
        damaged[(damaged.close > 2) & (damaged.volume > 0)]
        .drop_duplicates(["ticker", "event_time"])
        .reset_index(drop=True)
    )

    def renamed(tickers):
        return "Z" + (999 - tickers.str[3:].astype(int)).astype(str)

    again = damaged.assign(
        **{c: damaged[c] * 8 for c in [*MONEY, "dividend", "capital_gain"]}, ticker=renamed(damaged.ticker)
    )
    plain, other = (find_flags(b, detectors=[detector]) for b in (damaged, again))
    assert sorted(zip(renamed(plain.ticker), plain.event_time)) == sorted(zip(other.ticker, other.event_time))


def test_flags_are_about_the_batch_but_judged_with_the_stored_bars(market):
    days = sorted(market.event_time.unique())
    old, batch = market[market.event_time < days[-3]], market[market.event_time >= days[-3]].copy()
    hit = batch.index[batch.event_time == days[-3]][0]
    batch.loc[batch.ticker == batch.ticker[hit], MONEY] /= 100
    stored = old.drop(columns=["adj_close", "dividend", "split", "capital_gain"])
    flags = inspect_bars(batch, now=NOW, stored=stored).flags
    assert set(flags.event_time) <= set(batch.event_time)
    assert ("unit changed", batch.event_time[hit]) in set(
        zip(flags.flag[flags.ticker == batch.ticker[hit]], flags.event_time)
    )
    assert (flags.flag == "unit error").sum() == 3, (
        "the held level is the usual one, and all three new bars are off it"
    )
    assert inspect_bars(batch, now=NOW).flags.empty, "by itself the batch looks fine"


def test_a_split_that_the_adjusted_close_knows_is_no_flag_beside_stored_bars(market):
    days = sorted(market.event_time.unique())
    old, batch = market[market.event_time < days[-5]], market[market.event_time >= days[-5]].copy()
    name = batch.ticker.iloc[0]
    before = (batch.ticker == name) & (batch.event_time < days[-1])
    batch.loc[(batch.ticker == name) & ~before, ["open", "high", "low", "close"]] /= 4
    batch.loc[(batch.ticker == name) & ~before, "volume"] *= 4
    batch.loc[batch.ticker == name, "adj_close"] = batch.close.where(~before, batch.close / 4)
    stored = old.drop(columns=["adj_close", "dividend", "split", "capital_gain"])
    assert inspect_bars(batch.drop(columns="dividend"), now=NOW, stored=stored).flags.empty


def test_means_over_the_bars_before_never_reach_into_another_ticker(market):
    values = np.random.default_rng(0).normal(size=len(market))
    values[::17] = np.nan
    place = market.groupby("ticker").cumcount().to_numpy()
    wanted = (
        pd.Series(values)
        .groupby(market.ticker)
        .transform(lambda v: v.rolling(20, min_periods=5).mean().shift())
        .to_numpy()
    )
    few = (
        pd.Series(values)
        .groupby(market.ticker)
        .transform(lambda v: v.rolling(20, min_periods=1).count().shift())
        .to_numpy()
    )
    mine = trailing_mean(values, place)
    assert np.allclose(mine[few >= 5], wanted[few >= 5]) and np.isnan(mine[(few < 5) | (place == 0)]).all()


def test_ratios_of_splits_are_recognised_both_ways():
    ratio, off = nearest_split_ratio(np.concatenate([-np.log(SPLIT_RATIOS), np.log(SPLIT_RATIOS)]))
    assert np.allclose(ratio, np.concatenate([SPLIT_RATIOS, 1 / SPLIT_RATIOS])) and off.max() < 1e-12


def test_payments_are_the_dividends_that_were_paid(market):
    paid = payments(measure_moves(market))
    stated = market.dividend.to_numpy()[paid.at]
    assert (stated > 0).sum() == (market.dividend > 0).sum() and np.allclose(
        paid.applied[stated > 0], paid.stated[stated > 0]
    )
    alone = payments(measure_moves(market.drop(columns="adj_close")))
    assert len(alone.at) == (market.dividend > 0).sum() and np.allclose(alone.applied, alone.stated)
    neither = measure_moves(market.drop(columns=["adj_close", "dividend"]))
    assert len(payments(neither).at) == 0


# ---- the corruption library


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_each_fault_hurts_what_it_says_and_nothing_else(market, name):
    damaged, events = corrupt(market, [name], each=2, seed=7)
    again, same = corrupt(market, [name], each=2, seed=7)
    assert damaged.equals(again) and events.equals(same) and set(events.fault) == {name}
    untouched = market[~market.ticker.isin(events.ticker)]
    assert (
        damaged[~damaged.ticker.isin(events.ticker)]
        .reset_index(drop=True)
        .equals(untouched.reset_index(drop=True))
    )
    assert not damaged.equals(market) and not market.equals(corrupt(market, [name], each=2, seed=8)[0])


def test_the_damage_library_refuses_what_it_cannot_do(market):
    with pytest.raises(ParameterRefused, match="too small"):
        corrupt(market, each=500)
    with pytest.raises(ParameterRefused, match="price spike"):
        corrupt(market, ["price spik"])


def test_added_dividends_leave_total_returns_alone():
    bars = sample_bars().assign(adj_close=lambda b: b.close)
    paying = add_dividends(bars)
    assert np.allclose(paying.adj_close, bars.adj_close) and (paying.dividend > 0).sum() > 10
    before, same = paying.close.shift(), paying.ticker.eq(paying.ticker.shift())
    total = (paying.close + paying.dividend) / before
    assert np.allclose(
        total[same], (bars.close / bars.close.shift())[same], atol=2e-3
    )  # y times the move of the day apart


# ---- comparisons


def test_three_sources_vote_and_two_do_not():
    bars = sample_bars()
    wrong = bars.assign(close=bars.close.where(bars.index != 100, bars.close * 1.01))
    two, three = compare_sources(dict(a=bars, b=wrong)), compare_sources(dict(a=bars, b=wrong, c=bars))
    assert (
        two.verdict.value_counts().to_dict() == dict(agreed=len(bars) - 1, undecided=1)
        and two.consensus.isna().sum() == 1
    )
    lost = three[three.verdict == "outvoted"]
    assert (
        lost.outvoted.tolist() == ["b"]
        and np.isclose(lost.consensus.item(), bars.close[100])
        and abs(lost.apart.item() - 100) < 1
    )
    assert (
        disagreements(two).usable.tolist() == [False]
        and "which is right is unknown" in disagreements(two).sentence[0]
    )
    assert "b was outvoted" in disagreements(three).sentence[0]
    assert (
        compare_sources(dict(a=bars, b=wrong), tolerance=101).verdict.eq("agreed").all()
        and disagreements(compare_sources(dict(a=bars, b=bars))).empty
    )
    apart = compare_sources(
        dict(a=bars, b=wrong, c=bars.assign(close=bars.close * 1.02 ** (bars.index == 100)))
    )
    assert apart[apart.apart > 20].verdict.tolist() == ["undecided"], "three opinions are no majority"
    rule = failed_expectations(
        agreement_by_ticker(two).assign(share=lambda t: t.undecided / t.shared), "agreement"
    )
    assert rule.empty, "one close in three hundred is within the suite"


def test_a_constant_scale_between_sources_is_no_disagreement():
    bars = sample_bars()
    half = bars.assign(close=bars.close.where(bars.ticker != "AAA", bars.close / 7))
    assert compare_sources(dict(a=bars, b=half)).verdict.eq("agreed").all()
    step = bars.assign(close=bars.close / np.where(bars.event_time < bars.event_time.median(), 4, 1))
    assert compare_sources(dict(a=bars, b=step)).verdict.value_counts(normalize=True)["agreed"] > 0.95, (
        "up to the edge of the step"
    )


def test_versions_of_a_bar_are_corrections_and_rescaling_is_told_from_them():
    bars = sample_bars()
    halved = bars.assign(close=bars.close / 2)
    report = summarise_restatements(restatements(bars, halved), bars.ticker.value_counts())
    assert set(report.what) == {"rescaled by one factor"} and np.allclose(report.typical, -0.5)
    other = bars.assign(close=bars.close * np.random.default_rng(0).uniform(0.5, 1.5, len(bars)))
    assert set(summarise_restatements(restatements(bars, other), bars.ticker.value_counts()).what) == {
        "another history"
    }
    assert summarise_restatements(restatements(bars, bars)).empty and corrections(bars).empty
    later = bars.iloc[[3]].assign(close=1.0, known_at=bars.known_at[3] + pd.Timedelta(days=1))
    report = corrections(pd.concat([bars, later]))
    assert len(report) == 1 and report.held.item() == bars.close[3] and report.now.item() == 1.0


def test_completeness_and_freshness_follow_the_calendar_of_the_exchange():
    bars = sample_bars(tickers=2, sessions=60)
    there = bars.drop(index=[10, 11, 12])
    table = completeness(there)
    full = completeness(bars)
    assert table.missing.sum() - full.missing.sum() == 3 and table.longest_hole["AAA"] >= 3
    assert set(failed_expectations(table, "completeness").rule) == {"incomplete"} and set(
        failed_expectations(table, "completeness").ticker
    ) == {"AAA"}
    last = bars.event_time.max()
    assert (
        freshness(bars, now=last).age.max() <= 1
        and (freshness(bars, now=last + pd.Timedelta(days=30)).state == "silent").all()
    )
    assert freshness(bars[bars.event_time == last], now=last).age.eq(0).all()
    with pytest.raises(ParameterRefused, match="completeness"):
        failed_expectations(table, "completenes")
    assert (
        set(EXPECTATIONS) == {"completeness", "freshness", "agreement"}
        and len(absent_sessions(bars, bars.event_time.min(), last)) == 0
    )


# ---- recorded cases


def test_reading_a_recorded_case_says_what_is_missing(tmp_path):
    with pytest.raises(FileMissing):
        recorded_case(tmp_path / "no.csv")
    with pytest.raises(FileMissing):
        recorded_cases(tmp_path)


def test_recorded_dates_keep_their_instant_and_run_forward(tmp_path):
    (tmp_path / "X-1d-bad-div.csv").write_text(
        "Date,Open,High,Low,Close,Adj Close,Volume,Dividends,Stock Splits\n"
        "2023-05-31 00:00:00+10:00,1,1,1,1,1,5,0,0\n2023-05-30 00:00:00+10:00,2,2,2,2,2,5,0,0\n"
        "2023-05-29 00:00:00+10:00,,,,,,5,0,0\n"
    )
    bars = recorded_case(tmp_path / "X-1d-bad-div.csv")
    assert (
        bars.close.tolist() == [2.0, 1.0]
        and str(bars.event_time[0]) == "2023-05-29 14:00:00+00:00"
        and bars.ticker[0] == "X"
    )


def test_the_gate_takes_the_columns_that_a_vendor_adds(market):
    quality = inspect_bars(market, now=NOW)
    assert {"dividend", "split", "capital_gain"} <= set(quality.good) and quality.good.equals(market)

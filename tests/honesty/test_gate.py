"""The gate on known markets: no skill without signal, the planted signal promoted, every leak stopped."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stockpredict.core.calendar import get_calendar
from stockpredict.core.settings import load_settings
from stockpredict.sources.simulate import simulate
from stockpredict.evaluate.metrics import hac_mean
from stockpredict.algebra.panel import Panel
from stockpredict.models.dataset import Dataset
from stockpredict.train.judge import SelfTest
from stockpredict.train.gate import Verdict, choose_model, decide
from stockpredict.train.leak_checks import leading_candidate, leak_alarms
from stockpredict.train.known_markets import add_canary
from stockpredict.train.skill_table import skill_table
from stockpredict.train.judge import judge_experiment, run_self_test, self_test_settings, judge_market
from stockpredict.train.known_markets import simulated_experiment
from stockpredict.train.walk_forward import Candidate, make_folds
from stockpredict.train.experiment import compare_candidates
from stockpredict.train.training_data import covered_spec

FEW = {
    "features.names": "ret_1 mom_5 mom_21 mom_252_21 vol_20 rsi_14 sma_ratio_20",
    "models.trials": 0,
    "models.candidates": "reversal momentum ridge",
    "validation.first_train": 400,
    "validation.folds": 2,
}
PASSED = SelfTest(True, [])


def settings(**more):
    return load_settings(overrides={**FEW, **more}, environ={})


def study_of(bars, small, alter=None):
    panel = Panel.from_bars(bars, get_calendar())
    spec = covered_spec(small, panel, make_folds(small, len(panel))[0].train_stop)
    data = Dataset.from_panel(panel, spec, small.validation.horizons, small.validation.entry_delay)
    return compare_candidates(small, alter(data) if alter else data, panel.close.values.numpy())


def checks(study):
    return {a["check"] for a in leak_alarms(study, skill_table(study))}


@pytest.fixture(scope="module")
def null():
    return simulated_experiment(settings(), "null", 1, 40)


@pytest.fixture(scope="module")
def planted():
    return simulated_experiment(settings(), "planted", 1, 60)


NULLS = range(11, 23)


@pytest.fixture(scope="module")
def nulls():
    "Twelve markets without any signal, each judged."
    small = settings(**{"validation.horizons": "1"})
    return [decide(simulated_experiment(small, "null", seed, 40)) for seed in NULLS]


def test_no_null_market_is_promoted(nulls):
    "At alpha = 0.01 per market, one promotion in twelve would have probability 0.11, two 0.006."
    assert sum(v.decision != "hold" for v in nulls) <= 1 and sum(v.skill != "none" for v in nulls) <= 3
    assert all("none is promoted" in v.reasons[-1] for v in nulls if v.decision == "hold")


def test_null_skill_is_centred_on_zero(nulls):
    ridge = np.array([next(r["ic"] for r in v.numbers["table"] if r["model"] == "ridge") for v in nulls])
    assert (
        abs(ridge.mean()) < 3 * ridge.std(ddof=1) / math.sqrt(len(ridge)) and 0.002 < ridge.std(ddof=1) < 0.02
    )


def test_null_p_values_are_uniform(nulls):
    from scipy.stats import kstest

    p = [
        r["ic_p"]
        for v in nulls
        for r in v.numbers["table"]
        if r["model"] in ("reversal", "ridge", "momentum")
    ]
    assert kstest(p, "uniform").pvalue > 0.001 and min(p) > 0.0005


def test_the_planted_signal_is_promoted_and_its_interval_contains_the_truth(planted):
    v = judge_experiment(planted, PASSED)
    assert (v.decision, v.skill, v.model) == ("promote", "strong", "reversal") and not v.numbers["alarms"]
    row = next(r for r in v.numbers["table"] if r["model"] == "reversal" and r["horizon"] == 1)
    assert row["ic_low"] < 0.05 < row["ic_high"] and row["p_adjusted"] < 0.01


@pytest.mark.parametrize("seed", [2, 3])
def test_the_learning_model_recovers_most_of_the_planted_signal(seed):
    v = judge_experiment(
        simulated_experiment(settings(**{"models.candidates": "ridge"}), "planted", seed, 60), PASSED
    )
    row = next(r for r in v.numbers["table"] if r["model"] == "ridge" and r["horizon"] == 1)
    assert (
        v.decision == "promote"
        and v.model == "ridge"
        and row["ic"] > 0.7 * 0.05
        and row["ic_low"] < 0.05 < row["ic_high"]
    )


def test_an_honest_planted_market_raises_no_alarm(planted):
    table = skill_table(planted)
    assert leak_alarms(planted, table) == [] and table.net_sharpe.max() < 6


@pytest.mark.parametrize(
    "share, expected",
    [
        (1.0, {"rank IC", "hit rate", "R²", "single feature", "Sharpe ratio", "edges"}),
        (0.3, {"rank IC", "single feature", "Sharpe ratio", "edges"}),
        (0.12, {"single feature", "edges"}),
        (0.06, {"edges"}),
    ],
)
def test_a_feature_that_knows_the_outcome_is_a_suspected_leak(share, expected):
    small = settings(**{"models.candidates": "ridge"})
    study = simulated_experiment(small, "null", 5, 40, 1100, alter=lambda data: add_canary(data, share))
    v = judge_experiment(study, PASSED)
    assert v.decision == "suspected-leak" and v.skill == "none" and v.model == "mean"
    assert expected <= checks(study)
    if "single feature" in expected:
        assert any("canary" in r for r in v.reasons), "the feature is named"


def test_a_canary_in_a_market_with_a_real_signal_is_stopped_too():
    v = decide(simulated_experiment(settings(), "planted", 5, 40, alter=lambda data: add_canary(data, 0.3)))
    assert v.decision == "suspected-leak"


def test_a_feature_shifted_by_one_session_is_a_suspected_leak():
    "Target off by one: the label is a return that has happened."

    def alter(data):
        y = torch.full_like(data.y, math.nan)
        y[2:] = data.y[:-2]
        return replace(data, y=y)

    assert decide(simulated_experiment(settings(), "null", 6, 30, alter=alter)).decision == "suspected-leak"


def bounce(bars, size, seed=0):
    "Closes at bid or ask by the toss of a coin."
    side = np.random.default_rng(seed).choice([-1, 1], len(bars)) * size / 2
    return bars.assign(close=bars.close * (1 + side))[["ticker", "event_time", "known_at", "close", "source"]]


@pytest.fixture(scope="module")
def bounced():
    return bounce(simulate("null", 40, 900, seed=8).bars, 0.006)


@pytest.mark.parametrize("size, sure", [(0.004, False), (0.012, True)])
def test_a_fill_at_the_price_of_the_decision_is_a_suspected_leak(size, sure):
    bars = bounce(simulate("null", 40, 900, seed=8).bars, size)
    study = study_of(
        bars,
        settings(
            **{"validation.entry_delay": 0, "models.candidates": "reversal ridge", "validation.horizons": "1"}
        ),
    )
    assert (
        decide(study).decision == "suspected-leak" and "edges" in checks(study)
        if sure
        else decide(study).decision != "promote"
    )


def test_the_same_bounce_filled_one_session_later_is_not_promoted(bounced):
    assert decide(study_of(bounced, settings(**{"models.candidates": "reversal ridge"}))).decision == "hold"


def test_shuffled_labels_leave_no_skill():
    "Labels exchanged between stocks within each session: the same market, and nothing to learn."

    def alter(data):
        order, y = np.random.default_rng(3), data.y.clone()
        for t in range(len(y)):
            known = torch.where(y[t].isfinite().all(-1))[0]
            y[t, known] = y[t, known[torch.from_numpy(order.permutation(len(known)))]]
        return replace(data, y=y)

    v = decide(simulated_experiment(settings(), "planted", 1, 40, alter=alter))
    assert (v.decision, v.skill) == ("hold", "none")


def test_features_of_other_days_leave_no_skill():
    "Rows of features exchanged between sessions, far enough apart to know nothing of each other."

    def alter(data):
        return replace(data, inputs=replace(data.inputs, x=data.inputs.x.roll(60, 0)))

    v = decide(simulated_experiment(settings(), "planted", 1, 40, alter=alter))
    assert (v.decision, v.skill) == ("hold", "none")


def test_a_signal_that_ends_with_the_training_years_is_not_promoted():
    "A decoy: planted until the first test, gone after it."

    def alter(data):
        y, end = data.y.clone(), 430
        y[end:] = market_labels[end:]
        return replace(data, y=y)

    panel = Panel.from_bars(simulate("null", 40, 900, seed=1).bars, get_calendar())
    small = settings()
    market_labels = Dataset.from_panel(panel, covered_spec(small, panel, 400), small.validation.horizons).y
    assert decide(simulated_experiment(small, "planted", 1, 40, alter=alter)).decision == "hold"


def survivors(seed, spread, sessions=900):
    "A market without signal in which every stock has a drift of its own."
    bars = simulate("null", 40, sessions, seed=seed).bars.sort_values(["ticker", "event_time"])
    drift = np.random.default_rng(2).normal(0, spread, bars.ticker.nunique())[bars.ticker.factorize()[0]]
    growth = np.exp(drift * bars.groupby("ticker").cumcount())
    return bars.assign(**{k: bars[k] * growth for k in ("open", "high", "low", "close")})


def test_survivorship_bias_is_not_skill():
    "A model that learned who is who is no better than the historical mean."
    study = study_of(survivors(4, 0.0015), settings())
    table = skill_table(study).query("horizon == 1").set_index("model")
    assert table.ic_p["mean"] < 0.01 and table.ic_p[["momentum", "ridge"]].min() < 0.02, "they look skilful"
    assert decide(study).decision != "promote" and (table.skill != "strong").all()


def test_skill_that_never_fades_is_a_suspected_leak():
    "The rank of each stock over the whole sample, constant in time: information from the future."

    def alter(data):
        i, best = data.inputs, data.y[..., 0].nanmean(0)
        known = (best.argsort().argsort().float() / len(best) - 0.5).expand(len(i.sessions), -1)
        share = torch.cat([i.coverage, torch.ones(1)])
        return replace(
            data,
            inputs=replace(
                i, x=torch.cat([i.x, known[..., None]], -1), names=(*i.names, "insider"), coverage=share
            ),
        )

    study = study_of(survivors(7, 0.001, 1200), settings(**{"models.candidates": "ridge"}), alter)
    assert decide(study).decision == "suspected-leak"
    assert {"no fading"} <= checks(study) <= {"no fading", "Sharpe ratio"}


def test_better_on_unseen_days_than_on_seen_ones_is_a_suspected_leak(planted):
    odd = replace(
        planted,
        candidates={
            **planted.candidates,
            "ridge": replace(planted.candidates["ridge"], in_sample=dict(value=-0.05, se=0.01, n=400)),
        },
    )
    alone = replace(odd, candidates={k: odd.candidates[k] for k in ("mean", "ridge")})
    assert checks(alone) == {"unseen beats seen"}
    assert checks(replace(alone, candidates={k: planted.candidates[k] for k in ("mean", "ridge")})) == set()


def test_many_worthless_candidates_are_corrected_for(null):
    "The best of thirty random scores passes an uncorrected test at 5 % four times out of five."
    honest, draw = null.candidates["reversal"].forecast, torch.Generator().manual_seed(5)
    lucky = {
        f"random{k}": Candidate(
            "reversal", {}, replace(honest, score=torch.randn(honest.score.shape, generator=draw))
        )
        for k in range(30)
    }
    table = skill_table(replace(null, candidates={"mean": null.candidates["mean"], **lucky})).query(
        "horizon == 1"
    )
    assert table.ic_p.min() < 0.1 and (table.skill == "none").all()
    assert table.p_adjusted[1:].min() == pytest.approx(min(1, 30 * table.ic_p[1:].min()))
    assert table.dsr.max() < 0.95


def test_the_simplest_model_that_is_not_beaten_is_chosen(planted):
    table = skill_table(planted)
    first = table[table.horizon == 1]
    name, best, gap = choose_model(planted, first)
    assert name == "reversal" and gap.p_greater >= 0.05
    noise = torch.randn(
        planted.candidates["reversal"].forecast.score.shape, generator=torch.Generator().manual_seed(1)
    )
    known = planted.candidates["reversal"]
    tired = replace(known, forecast=replace(known.forecast, score=known.forecast.score + 0.4 * noise))
    worse = replace(planted, candidates={**planted.candidates, "reversal": tired})
    again = skill_table(worse)
    name, best, _ = choose_model(worse, again[again.horizon == 1])
    assert again.set_index(["model", "horizon"]).skill["reversal", 1] != "none" and name == best == "ridge", (
        "simple, but beaten"
    )


def test_every_candidate_that_can_be_served_is_examined(planted):
    "The leader is honest; the simpler one that would be served in its place knows a little of the outcome."
    known, outcome = planted.candidates["reversal"], torch.from_numpy(planted.outcome())
    noise = torch.randn(known.forecast.score.shape, generator=torch.Generator().manual_seed(2))
    mean, sd = outcome.nanmean(1, keepdim=True), float(np.nanstd(outcome))
    leak = noise + 0.04 * ((outcome - mean) / sd)[..., None]
    leak = torch.where(known.forecast.score.isnan(), float("nan"), leak.float())
    honest = Candidate("ridge", {}, replace(known.forecast, model="ridge"))
    leaking = replace(known, forecast=replace(known.forecast, score=leak))
    both = replace(
        planted,
        settings=planted.settings.with_(**{"costs.bps": 0}),
        candidates=dict(mean=planted.candidates["mean"], reversal=leaking, ridge=honest),
    )
    table = skill_table(both)
    assert leading_candidate(both, table).model == "ridge"
    assert choose_model(both, table[table.horizon == 1])[0] == "reversal"
    verdict = decide(both)
    assert verdict.decision == "suspected-leak" and verdict.model == "mean"
    assert [a["check"] for a in verdict.numbers["alarms"]] == ["edges"]
    assert "reversal knows the sessions of its label" in verdict.reasons[0]


def test_nothing_is_promoted_without_a_self_test_that_passed(planted):
    failed = SelfTest(
        False,
        [
            dict(
                market="null",
                seed=1,
                expected="hold",
                decision="promote",
                ok=False,
                model="ridge",
                ic=0.1,
                low=0.05,
                high=0.15,
                alarms=[],
            )
        ],
    )
    for tested, word in ((None, "No self-test was run"), (failed, "The self-test failed")):
        v = judge_experiment(planted, tested)
        assert v.decision == "hold" and v.model == "mean" and word in v.reasons[0]
    assert "expected hold" in judge_experiment(planted, failed).reasons[0]


def test_an_alarm_can_be_overridden_only_with_a_reason_that_stays_visible():
    study = simulated_experiment(
        settings(**{"models.candidates": "ridge"}),
        "null",
        5,
        40,
        900,
        alter=lambda data: add_canary(data, 0.3),
    )
    assert judge_experiment(study, PASSED).decision == "suspected-leak"
    v = judge_experiment(study, PASSED, override="The feature is a drill, see ticket 12.")
    assert (
        v.decision == "promote"
        and "ticket 12" in " ".join(v.reasons)
        and v.numbers["override"]
        and v.numbers["alarms"]
    )


def test_a_champion_that_is_better_on_the_same_days_stays(planted, null):
    known = planted.candidates["reversal"]
    noise = torch.randn(known.forecast.score.shape, generator=torch.Generator().manual_seed(1))
    drowned = replace(known, forecast=replace(known.forecast, score=known.forecast.score + 0.4 * noise))
    rivals = replace(
        planted,
        settings=planted.settings.with_(**{"costs.bps": 0}),
        candidates={"mean": planted.candidates["mean"], "reversal": drowned},
        rival=known,
    )
    v = judge_experiment(rivals, PASSED, champion=known)
    assert (
        v.decision == "hold"
        and v.skill == "strong"
        and v.model == "reversal"
        and v.numbers["champion"]["p_worse"] < 0.05
    )
    equal = judge_experiment(
        replace(planted, rival=planted.candidates["ridge"]), PASSED, champion=planted.candidates["ridge"]
    )
    assert equal.decision == "promote" and equal.numbers["champion"]["sessions"] > 400
    assert judge_experiment(planted, PASSED, champion=known).decision == "promote", (
        "a champion that could not be tried has no say"
    )
    nothing = judge_experiment(null, PASSED, champion=known)
    assert nothing.decision == "hold" and nothing.model == "reversal" and "stays" in nothing.reasons[-1]


def test_a_verdict_survives_json_and_shows_itself(planted, null):
    for v in (
        judge_experiment(planted, PASSED),
        judge_experiment(null, PASSED),
        judge_experiment(planted, None),
    ):
        assert Verdict.from_json(v.to_json()) == v and "NaN" not in v.to_json()
        assert v.decision.split("-")[0].capitalize() in repr(v) and "<li>" in v._repr_html_()
        assert v.plot() is not None
    assert "&lt;script&gt;" in replace(judge_experiment(null, PASSED), reasons=["<script>"])._repr_html_()


def test_every_number_of_the_table_has_its_uncertainty(planted):
    table = skill_table(planted)
    assert len(table) == len(planted.candidates) * 2
    mean = table[table.model == "mean"]
    assert (mean.r2_os.abs() < 0.01).all() and (mean.pinball_skill.abs() < 0.01).all()
    assert (mean.skill == "none").all() and (mean[["p_adjusted", "cw_p", "dm_p"]] == 1).all().all()
    assert (
        (table.ic_low < table.ic)
        & (table.ic < table.ic_high)
        & (table.net_low < table.net_sharpe)
        & (table.net_sharpe < table.net_high)
    ).all()
    assert (
        (table.net_sharpe < table.gross_sharpe).all()
        and table.cover90.between(0.86, 0.94).all()
        and table.cover50.between(0.45, 0.55).all()
    )
    r = table.query("model == 'ridge' and horizon == 1").iloc[0]
    ic = hac_mean(planted.daily_ic("ridge"))
    assert r.ic == ic.value and r.p_adjusted == min(1, 3 * r.ic_p) and r.ic_p == ic.p_greater


def test_costs_and_delay_reach_the_portfolio(planted):
    free = planted.portfolio("reversal").with_costs(0)
    assert free.net.mean() > planted.portfolio("reversal").net.mean()
    assert (
        planted.portfolio("reversal", delay=20).gross.mean() < planted.portfolio("reversal").gross.mean() / 2
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.mark.slow
def test_the_self_test_passes_with_the_shipped_settings_and_is_stored(home, monkeypatch):
    shipped = load_settings(overrides={"storage.home": str(home)}, environ={})
    tested = run_self_test(shipped)
    directions = [m for m in tested.markets if m["head"] == "direction"]
    assert {m["market"] for m in tested.markets} >= {"steady"} and tested.passed
    assert [m["expected"] for m in directions] == [
        "hold",
        "hold",
        "promote",
        "suspected-leak",
        "suspected-leak",
    ]
    known = tested.markets[2]
    assert known["low"] < 0.05 < known["high"]
    monkeypatch.setattr(
        "stockpredict.train.judge.judge_market",
        lambda *a, **k: pytest.fail("it was remembered, but ran again"),
    )
    assert run_self_test(shipped) == tested == SelfTest.from_json(tested.to_json())
    assert (
        run_self_test(shipped.with_(**{"data.source": "simulated", "data.universe": "SIM00 SIM01"})) == tested
    ), "no market of the self-test is the user's"


@pytest.mark.parametrize(
    "more",
    [
        {"validation.horizons": "20", "validation.entry_delay": 7},
        {"features.names": "mom_252_21 vol_20", "features.normalise": "zscore"},
    ],
)
def test_the_self_test_fits_other_settings_too(home, more):
    tested = run_self_test(
        load_settings(
            overrides={**FEW, **more, "storage.home": str(home / "other"), "gate.null_seeds": 1}, environ={}
        )
    )
    assert tested.passed, repr(tested)


def test_a_gate_without_alarms_fails_the_self_test(home, monkeypatch):
    quick = load_settings(
        overrides={**FEW, "storage.home": str(home / "blind"), "gate.null_seeds": 1}, environ={}
    )
    monkeypatch.setattr("stockpredict.train.gate.leak_alarms", lambda *a: [])
    tested = run_self_test(quick)
    of_direction = [m["ok"] for m in tested.markets if m["head"] == "direction"]
    assert not tested.passed and of_direction == [True, True, False, False]


def test_a_gate_that_promotes_null_markets_fails_the_self_test(home, monkeypatch):
    quick = load_settings(
        overrides={**FEW, "storage.home": str(home / "keen"), "gate.null_seeds": 1}, environ={}
    )
    monkeypatch.setattr(
        "stockpredict.train.judge.judge_market",
        lambda s, name, kind, seed, expected, share=None, head="direction": dict(
            market=name,
            seed=seed,
            expected=expected,
            decision="promote",
            ok=expected == "promote",
            model="ridge",
            ic=0.1,
            low=0.05,
            high=0.15,
            alarms=[],
        ),
    )
    tested = run_self_test(quick)
    assert not tested.passed and sum(m["market"] == "null" for m in tested.markets) == 7, (
        "one alarm is followed by six more markets"
    )


def test_one_unlucky_null_market_in_seven_is_forgiven(home, monkeypatch):
    quick = load_settings(
        overrides={**FEW, "storage.home": str(home / "unlucky"), "gate.null_seeds": 1}, environ={}
    )
    monkeypatch.setattr(
        "stockpredict.train.judge.judge_market",
        lambda s, name, kind, seed, expected, share=None, head="direction": dict(
            market=name,
            seed=seed,
            expected=expected,
            decision="promote" if seed == 101 and name == "null" else expected,
            ok=not (seed == 101 and name == "null"),
            model="ridge",
            ic=0.1,
            low=0.05,
            high=0.15,
            alarms=[],
        ),
    )
    assert run_self_test(quick).passed


def test_a_leaking_feature_of_the_user_shows_in_the_self_test(home):
    "A leaking pipeline promotes nothing: the blurred canary through `judge_market`."
    line = judge_market(self_test_settings(settings()), "blurred", "null", 5, "suspected-leak", 0.3)
    assert line["ok"] and "single feature" in line["alarms"]


@pytest.mark.parametrize("bps, decision", [(5, "promote"), (30, "hold")])
def test_a_ranking_that_does_not_earn_its_costs_is_not_promoted(planted, bps, decision):
    "Models with net Sharpe ratios of -2.2 to -1.0 were promoted."
    study = replace(planted, settings=planted.settings.with_(**{"costs.bps": bps}))
    verdict = decide(study)
    first = skill_table(study).query("horizon == 1").set_index("model")
    row = first.loc["reversal"]
    assert (verdict.decision, verdict.skill, row.skill) == (decision, "strong", "strong")
    assert (row.net_bound > 0) == (decision == "promote")
    assert row.net_bound == pytest.approx(row.net_sharpe - 1.645 * row.net_se)
    assert 10 < row.break_even < 30 and any("breaks even at" in r for r in verdict.reasons)
    net = study.portfolio("reversal", 1).with_costs(row.break_even).net
    assert abs(net.mean()) < 1e-12
    if decision == "hold":
        assert "does not surely earn its costs" in verdict.reasons[-1] and verdict.model == "mean"


def test_the_self_test_knows_the_gate_whatever_the_costs_of_the_user(home):
    line = judge_market(
        self_test_settings(settings(**{"costs.bps": 50})), "planted", "planted", 201, "promote"
    )
    assert line["ok"], line

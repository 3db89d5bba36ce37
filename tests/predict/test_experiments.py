"""Champion and challenger: who gets which model, what the days say, and the way back."""

import asyncio
import math

import numpy as np
import pandas as pd
import pytest
from stockpredict.access.permissions import ROLES, Caller
from stockpredict.predict.answer_table import refresh_answers
from stockpredict.serve.canary import GUARD_LIMIT, guard_evidence, refresh_canary
from stockpredict.predict.experiment_scores import PairedSession, evaluate_experiments, judge_sessions
from stockpredict.predict.experiment_scores import store_verdict
from stockpredict.predict.experiments import (
    ExperimentRefused,
    ModelExperiment,
    all_experiments,
    assignment,
    experiment_card,
    experiment_path,
    experiment_state,
    start_experiment,
    stop_experiment,
)
from stockpredict.train.champion import read_champion_entry

from served_desk import build_settings, fill_lake, publish

SHADOW = ModelExperiment("exp-20261130T150000-5f3a9c01", "a" * 64, "b" * 64, (2, 1), "5f" * 32)


def days(rng, gain=0.0, coverage=0.9, count=250, tickers=60):
    "Paired sessions of a challenger with this true difference and coverage."
    differences = np.clip(rng.normal(gain, 0.1, count), -1, 1)
    shares = rng.binomial(tickers, coverage, count) / tickers
    return [
        PairedSession(f"{n}", tickers, d, c) for n, (d, c) in enumerate(zip(differences, shares, strict=True))
    ]


def test_equal_challengers_are_hardly_ever_called_different():
    "A draw of benchmarks/experiments.py: at most 5 % of 200, here at most 5 of 40 (chance of more: 1 %)."
    rng = np.random.default_rng(7)
    decisions = [judge_sessions(SHADOW, days(rng)).decision for _ in range(40)]
    assert sum(d != "running" for d in decisions) <= 5


@pytest.mark.parametrize(
    ("gain", "coverage", "decision"), [(-0.06, 0.9, "worse"), (0.06, 0.9, "better"), (0.0, 0.6, "coverage")]
)
def test_planted_challengers_are_told_apart(gain, coverage, decision):
    rng = np.random.default_rng(8)
    assert {judge_sessions(SHADOW, days(rng, gain, coverage)).decision for _ in range(4)} == {decision}


def test_the_evidence_of_guardrails_holds_at_every_look():
    "Of sound challengers with exactly the allowed error rate, hardly one is ever removed; a bad one soon is."
    rng = np.random.default_rng(9)
    errors = rng.random((300, 500)) < 0.01
    looks = range(4, 500, 5)
    ever = [max(guard_evidence(int(row[: n + 1].sum()), n + 1, 0.01) for n in looks) for row in errors]
    assert np.mean(np.array(ever) > math.log(100)) <= 0.02
    assert guard_evidence(20, 100, 0.01) > GUARD_LIMIT > guard_evidence(2, 100, 0.01)


def test_the_place_of_a_caller_is_fixed_spread_evenly_and_kept_when_the_share_grows():
    places = np.array([assignment(SHADOW.key, f"key:{n}") for n in range(3000)])
    assert assignment(SHADOW.key, "key:7") == 0.4978015461674351  # for every process and version
    assert abs((places < 0.1).mean() - 0.1) < 0.02 and np.histogram(places, 10, (0, 1))[0].min() > 240
    other = np.array([assignment("a0" * 32, f"key:{n}") for n in range(3000)])
    assert abs(np.corrcoef(places, other)[0, 1]) < 0.06  # another experiment draws anew


@pytest.fixture(scope="module")
def desk(tmp_path_factory, market):
    "A champion and a challenger in the registry, and bars that arrive one session after the other."
    settings = build_settings(tmp_path_factory.mktemp("desk"))
    last = sorted(market.event_time.unique())[-5:]
    fill_lake(settings, market[market.event_time < last[0]])
    challenger = publish(settings, "mean", 1).name
    publish(settings, "ewma", 2)
    refresh_answers(settings)
    return settings, challenger, [market[market.event_time == t] for t in last]


def test_an_experiment_from_its_start_to_its_scores(desk, served):
    settings, challenger, coming = desk
    with pytest.raises(ExperimentRefused, match="is the champion itself"):
        start_experiment(settings, read_champion_entry(settings)["artifact"], "local")
    experiment = start_experiment(settings, challenger, "local", "mean against ewma")
    with pytest.raises(ExperimentRefused, match="with this challenger is running"):
        start_experiment(settings, challenger, "local")
    for bars in coming:
        fill_lake(settings, bars)
        refresh_answers(settings)
    [card] = evaluate_experiments(settings)
    # a table a session; entry one session later, target one more: the last two have no outcome yet
    assert card["scores"]["sessions"] == len(coming) - 2 and card["state"] == "running"
    gap = card["scores"]["difference"]
    assert gap["low"] <= gap["value"] <= gap["high"] and -1 <= gap["low"] and gap["high"] <= 1
    decided = [day["decided"] for day in card["scores"]["daily"]]
    assert decided == sorted(set(decided))
    assert experiment_card(settings, experiment).get("key") is None


def test_scores_are_those_of_a_hand_computation(desk):
    "One session again from the table and the lake, with the formulas written out."
    import orjson
    from stockpredict.lake.lake import Lake
    from stockpredict.predict.experiment_scores import counted_tables
    from stockpredict.sources.bars import wide

    settings, challenger, _ = desk
    [experiment] = all_experiments(settings)
    with Lake(settings.storage, read_only=True) as lake:
        closes = wide(lake.bars(), calendar=settings.data.calendar)
    table, losses = (
        next(t for t in counted_tables(settings, experiment.started) if challenger in t.beside),
        [],
    )
    for rows in (table.rows, table.beside[challenger]):
        mine = []
        for (ticker, horizon), body in rows.items():
            a = orjson.loads(body + b"}")
            if horizon == 1 and ticker in closes:
                y = (
                    closes.at[pd.Timestamp(a["target_session"]), ticker]
                    / closes.at[pd.Timestamp(a["entry_session"]), ticker]
                    - 1
                )
                if y == y:
                    mine.append(
                        np.mean(
                            [
                                max(float(p) * (y - q), (float(p) - 1) * (y - q))
                                for p, q in a["quantiles"].items()
                            ]
                        )
                    )
        losses.append(np.mean(mine))
    champion, other = losses
    [day] = [
        d
        for d in experiment_state(settings, experiment)["scores"]["daily"]
        if d["decided"] == table.header["decision_session"]
    ]
    assert day["difference"] == pytest.approx((champion - other) / (champion + other), rel=1e-9)


def test_a_forged_record_answers_nobody_and_a_forged_end_brings_the_champion_back(desk):
    settings, *_ = desk
    [experiment] = all_experiments(settings)
    path = experiment_path(settings, experiment.id)
    intact = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(intact.replace('"ramp": []', '"ramp": [1.0]'))
    assert all_experiments(settings) == []
    path.write_text(intact)
    experiment_path(settings, experiment.id, ".end").write_text("{torn")
    assert experiment_state(settings, experiment)["state"] == "stopped"
    experiment_path(settings, experiment.id, ".end").unlink()


def test_a_canary_answers_its_callers_alone_and_the_way_back_is_open(desk, served):
    settings, challenger, _ = desk
    for experiment in all_experiments(settings):
        stop_experiment(settings, experiment.id, "next", "local")
    experiment = start_experiment(settings, challenger, "local", ramp=(0.5,))
    refresh_answers(settings)
    callers = [Caller(f"key:{n}", "key", ROLES["analyst"]) for n in range(12)]
    inside = {c.id for c in callers if assignment(experiment.key, c.id) < 0.5}
    assert 0 < len(inside) < 12

    async def models(client, path):
        seen = {}
        for caller in callers:
            client.service.door.caller_of = lambda scope, who=caller: who
            answer = await client.get(path)
            data = answer.json()["data"]
            data = data[0] if isinstance(data, list) else data
            seen[caller.id] = data["model"]["artifact"], answer.headers.get("etag")
        return seen

    async def go():
        async with served(settings) as client:
            client.service.refresh_state()
            refresh_canary(client.service)
            for path in (
                "/v1/predictions/SIM00?horizon=1",
                "/v1/predictions?limit=2",
                "/v1/predictions/sim01",
            ):
                seen = await models(client, path)
                assert {who for who, (artifact, _) in seen.items() if artifact == challenger} == inside, path
                tags = {who: tag for who, (_, tag) in seen.items()}
                assert not {tags[who] for who in inside} & {tags[who] for who in tags if who not in inside}
            path, who = "/v1/predictions/SIM00?horizon=1", next(c for c in callers if c.id in inside)
            client.service.door.caller_of = lambda scope: who
            tag = (await client.get(path)).headers["etag"]
            assert (await client.get(path, headers={"if-none-match": tag})).status_code == 304
            stop_experiment(settings, experiment.id, "enough", "local")
            refresh_canary(client.service)
            back = await client.get(path, headers={"if-none-match": tag})
            assert back.status_code == 200 and back.json()["data"]["model"]["artifact"] != challenger

    asyncio.run(go())


def end_all(settings):
    "End every experiment that runs."
    for experiment in all_experiments(settings):
        if not experiment_path(settings, experiment.id, ".end").exists():
            stop_experiment(settings, experiment.id, "next", "local")


def test_a_canary_with_errors_is_rolled_back(desk, served):
    settings, challenger, _ = desk
    end_all(settings)
    experiment = start_experiment(settings, challenger, "local", ramp=(1.0,))

    async def go():
        async with served(settings) as client:
            client.service.refresh_state()
            refresh_canary(client.service)
            client.service.reads.view_of = None  # the challenger's answers fail
            client.service.door.caller_of = lambda scope: Caller("key:1", "key", ROLES["analyst"])
            statuses = [(await client.get("/v1/predictions/SIM00")).status_code for _ in range(12)]
            refresh_canary(client.service)
            return statuses, client.service.canary

    statuses, canary = asyncio.run(go())
    assert statuses == [500] * 12 and canary is None
    state = experiment_state(settings, experiment)
    assert state["state"] == "rolled back" and "12 times in 12 answers" in state["reason"]


def test_a_slow_canary_is_rolled_back(desk, served, monkeypatch):
    settings, challenger, _ = desk
    end_all(settings)
    experiment = start_experiment(settings, challenger, "local", ramp=(1.0,))
    monkeypatch.setattr("stockpredict.serve.canary.SLOW", -1.0)  # every answer takes longer

    async def go():
        async with served(settings) as client:
            client.service.refresh_state()
            refresh_canary(client.service)
            client.service.door.caller_of = lambda scope: Caller("key:1", "key", ROLES["analyst"])
            answers = [await client.get("/v1/predictions/SIM00?horizon=1") for _ in range(12)]
            refresh_canary(client.service)
            back = await client.get("/v1/predictions/SIM00?horizon=1")
            return [a.json()["data"]["model"]["artifact"] for a in (*answers, back)]

    *during, after = asyncio.run(go())
    assert during == [challenger] * 12 and after == read_champion_entry(settings)["artifact"]
    state = experiment_state(settings, experiment)
    assert state["state"] == "rolled back" and "12 times in 12 answers" in state["reason"]


def test_a_challenger_whose_intervals_hold_too_little_is_rolled_back(desk):
    settings, challenger, _ = desk
    end_all(settings)
    experiment = start_experiment(settings, challenger, "local", ramp=(0.5,))
    sound, wide = (days(np.random.default_rng(3), coverage=share) for share in (0.9, 0.6))
    store_verdict(settings, experiment, sound, judge_sessions(experiment, sound))
    assert experiment_state(settings, experiment)["state"] == "running"
    store_verdict(settings, experiment, wide, judge_sessions(experiment, wide))
    state = experiment_state(settings, experiment)
    assert (state["state"], state["share"]) == ("rolled back", 0) and "held 60%" in state["reason"]


def test_routes_by_role_and_their_refusals(desk, served):
    settings, challenger, _ = desk
    [experiment, *_] = all_experiments(settings)
    body = {"challenger": "f" * 64}
    routes = [("GET", "/v1/experiments", None), ("GET", f"/v1/experiments/{experiment.id}", None)]
    routes += [("GET", "/experiments", None), ("POST", "/v1/experiments", body)]
    routes += [("DELETE", f"/v1/experiments/{experiment.id}", None)]

    async def go():
        seen = {}
        async with served(settings) as client:
            for role in ROLES:
                client.service.door.caller_of = lambda scope, r=role: Caller("key:1", "key", ROLES[r])
                answers = [await client.request(m, p, json=b) for m, p, b in routes]
                seen[role] = [a.status_code for a in answers]
            refused = [
                await client.post("/v1/experiments", json=b)
                for b in (
                    {},
                    {"challenger": "2", "ramp": [0.5, 0.1]},
                    {"challenger": "../x"},
                    {"challenger": "2", "hed": 1},
                )
            ]
            own = await client.post(
                "/v1/experiments", json={"challenger": read_champion_entry(settings)["artifact"]}
            )
            gone = await client.get("/v1/experiments/exp-20260101T000000-00000000")
            started = await client.post("/v1/experiments", json={"challenger": challenger, "why": "again"})
            listed = await client.get("/v1/experiments?limit=1")
            return seen, refused, own, gone, started, listed

    seen, refused, own, gone, started, listed = asyncio.run(go())
    assert seen == {
        "viewer": [403] * 5,
        "analyst": [403] * 5,
        "trainer": [200, 200, 200, 403, 403],
        "operator": [200, 200, 200, 404, 200],
        "admin": [200, 200, 200, 404, 200],
    }
    assert [a.status_code for a in refused] == [422] * 4
    assert (own.status_code, gone.status_code, started.status_code) == (409, 404, 201)
    assert started.headers["location"].endswith(started.json()["data"]["id"])
    assert listed.json()["metadata"]["next_cursor"] == listed.json()["data"][0]["id"]
    assert experiment.key not in listed.text + started.text
    assert (started.json()["data"]["by"], started.json()["data"]["ended_by"]) == ("key:1", "")

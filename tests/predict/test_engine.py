"""The engine: only what was signed, only finite numbers, the same numbers as the full history."""

import asyncio
import copy
import json
import shutil
import threading
from dataclasses import replace

import pandas as pd
import pytest
import torch

from stockpredict.core.errors import ArtifactRejected, BarsInvalid, ModelOutputInvalid, NoChampion
from stockpredict.core.errors import NotEnoughHistory, QueueFull, ServeError, UnknownHorizon
from stockpredict.predict.batcher import Batcher
from stockpredict.predict.engine import Engine, champion_pointer, parse_pointer
from stockpredict.predict.schemas import ModelCard, WhatIf
from stockpredict.predict.what_if import join_universe, predict_bars

from served_desk import own_bars, point, publish


@pytest.fixture(scope="module")
def engine(template):
    return Engine(template)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"version":1}',
        '{"version":"x","artifact":"aaaaaaaa"}',
        '{"version":1,"artifact":"../../../etc"}',
        '{"version":1,"artifact":"/etc"}',
        '{"version":1,"artifact":"AAAAAAAA"}',
        '{"version":1,"artifact":"aaaaaaaa","skill":"superb"}',
        '{"version":1,"artifact":"aaaaaaaa\\u0000"}',
        "\x80\x04.",
    ],
)
def test_a_pointer_that_is_not_ours_is_refused(settings, entry):
    (settings.storage.registry_dir / "champion.json").write_text(entry, encoding="latin1")
    with pytest.raises(ArtifactRejected):
        champion_pointer(settings)


def test_the_answer_names_the_verdict_of_each_head(engine):
    volatility = {"model": "har", "evidence": "strong", "wording": "Volatility by har, 3 % below EWMA."}
    entry = {"version": 1, "artifact": "aaaaaaaa", "heads": {"volatility": volatility}}
    pointer, asked = parse_pointer(entry), copy.copy(engine)
    asked.pointer = replace(engine.pointer, heads=pointer.heads)
    newest = engine.window().panel.sessions[-1]
    card = ModelCard(**asked._common_fields(newest, newest, 1, "abc")["model"])
    assert card.heads["volatility"].evidence == "strong" and "3 % below" in card.heads["volatility"].verdict
    assert engine.window().common["model"]["heads"] == {}  # a pointer of an earlier version has none


def test_the_daily_volatility_is_the_one_that_was_forecast(engine):
    "A volatility model may say something else than the volatility of the inputs."
    window = engine.window()
    plain = engine.forward(window.inputs)
    for factor in (1.0, 2.0):
        forecast = replace(plain, volatility=factor * plain.volatility)
        for p in engine.to_predictions(window, forecast):
            n, j = plain.tickers.index(p["ticker"]), plain.horizons.index(p["horizon"])
            sigma = factor * float(plain.volatility[0, n, j])
            assert p["volatility"]["horizon"] == pytest.approx(sigma, rel=1e-3)
            assert p["volatility"]["daily"] == pytest.approx(sigma / p["horizon"] ** 0.5, rel=1e-3)


@pytest.mark.parametrize("heads", [{"volatility": {"model": "har"}}, {"volatility": 1}, ["volatility"]])
def test_a_pointer_with_broken_heads_is_none(heads):
    assert parse_pointer({"version": 1, "artifact": "aaaaaaaa", "heads": heads}) is None


def test_no_champion_says_what_to_run(settings):
    (settings.storage.registry_dir / "champion.json").unlink()
    with pytest.raises(ArtifactRejected, match=r"champion\.json is missing.*stockpredict rollback"):
        Engine(settings)
    (settings.storage.keys_dir / "logs.json").unlink()  # nothing was ever published here
    with pytest.raises(NoChampion, match="stockpredict train"):
        Engine(settings)


def test_an_unknown_artifact_is_refused(settings):
    point(settings, "ab" * 32, 9)
    with pytest.raises(ArtifactRejected):
        Engine(settings)


def damage_signature(place, settings):
    (place / "signature.json").write_text("{}")


def damage_weights(place, settings):
    (place / "weights.safetensors").write_bytes((place / "weights.safetensors").read_bytes()[:-4])


def add_pickle(place, settings):
    (place / "model.pkl").write_bytes(b"\x80\x04.")


def swap_for_an_older_one(place, settings):
    "A genuine, signed artifact in the folder of another."
    older = champion_of(settings)
    shutil.rmtree(place)
    shutil.copytree(older, place)


def sign_with_another_key(place, settings):
    from stockpredict.models.artifact import ensure_keys

    seal = json.loads((place / "signature.json").read_text())
    seal["signature"] = (
        ensure_keys(settings.storage.home_dir / "foreign")
        .private.sign((place / "manifest.json").read_bytes())
        .hex()
    )
    (place / "signature.json").write_text(json.dumps(seal))


def champion_of(settings):
    versions = settings.storage.registry_dir / "versions"
    lines = (settings.storage.registry_dir / "history.jsonl").read_text().splitlines()
    return versions / json.loads(lines[0])["artifact"]


@pytest.mark.parametrize(
    "attack", [damage_signature, damage_weights, add_pickle, swap_for_an_older_one, sign_with_another_key]
)
def test_the_last_good_model_stays_when_a_new_one_is_refused(settings, attack):
    engine = Engine(settings)
    before = engine.predict_universe().predictions
    place = publish(settings, "ridge", 2)
    attack(place, settings)
    assert engine.reload() is False
    assert engine.stale_model and ("refused" in engine.reason or "another artifact" in engine.reason)
    assert engine.predict_universe().predictions == before
    publish_again = publish(settings, "ridge", 3, seed=1)
    assert (
        engine.reload() is True and not engine.stale_model and engine.pointer.artifact == publish_again.name
    )


def test_without_the_public_key_nothing_is_loaded(settings):
    (settings.storage.keys_dir / "signing.pub").unlink()
    with pytest.raises(ArtifactRejected, match="public key"):
        Engine(settings)


def test_the_newest_bars_give_what_the_full_history_gives(settings):
    "Also with halts, a long look-back and features that compare tickers."
    from stockpredict.lake.lake import Lake
    from stockpredict.catalogue.design_matrix import make_inputs
    from stockpredict.algebra.panel import Panel

    publish(settings, "ridge", 2, features=("core",))
    engine = Engine(settings)
    with Lake(settings.storage, read_only=True) as lake:
        full = make_inputs(Panel.from_bars(lake.bars(), engine.calendar), engine.spec)
    window = engine.window()
    at = [full.tickers.index(t) for t in window.inputs.tickers]
    assert len(window.inputs) < len(full)
    assert torch.equal(window.inputs.x[-1], full.x[-1, at])
    assert torch.equal(window.inputs.volatility[-1].nan_to_num(-1), full.volatility[-1, at].nan_to_num(-1))


def test_own_bars_that_equal_the_lakes_give_the_stored_answer(engine):
    stored = {(p["ticker"], p["horizon"]): p for p in engine.predict_universe().predictions}
    for ticker in ("SIM00", "SIM03"):
        (predictions,) = predict_bars(engine, [WhatIf(ticker=ticker.lower(), bars=own_bars(engine, ticker))])
        assert [p | {"source": "lake"} for p in predictions] == [stored[ticker, h] for h in (1, 5)]


def test_the_callers_money_is_close_times_volume_as_sent(settings):
    "Peers keep the money of their published prices; the bars of a ticker give the numbers of that ticker."
    publish(settings, "ridge", 2, features=("ret_1", "amihud_20", "rank_money_20"))
    engine = Engine(settings)
    window, bars = engine.window(), own_bars(engine, "SIM03")
    n = window.inputs.tickers.index("SIM03")
    assert "money" in window.panel._fields, "nothing was adjusted in this market, the test is empty"

    def mine(bars):
        return join_universe(engine, window, WhatIf(ticker="SIM03", bars=bars)).inputs.x[-1, 0]

    torch.testing.assert_close(mine(bars), window.inputs.x[-1, n])
    busier = mine([b | {"volume": 1e3 * b["volume"]} for b in bars])
    there = window.inputs.x[-1]
    assert busier[0] == there[n, 0], "the return is the same"
    assert busier[1] == there[:, 1].min() < there[n, 1] and busier[2] == there[:, 2].max() > there[n, 2], (
        "the least illiquid, the most traded"
    )


def test_an_answer_does_not_depend_on_other_requests(engine):
    requests = [WhatIf(ticker=f"MINE{i}", bars=own_bars(engine, f"SIM0{i}")[-200 + i :]) for i in range(4)]
    together = predict_bars(engine, requests)
    assert together == [predict_bars(engine, [request])[0] for request in requests]


def test_order_of_bars_does_not_matter(engine):
    bars = own_bars(engine, "SIM01")
    a, b = predict_bars(engine, [WhatIf(bars=bars), WhatIf(bars=bars[::-1])])
    assert a == b


def bad_requests(bars):
    import datetime

    last = bars[-1]
    yield "newest", bars[:-1]
    yield "not sessions", [*bars, {"date": datetime.date(2016, 7, 4), "close": 1.0}]
    yield "twice", [*bars, last]
    yield "low and high", [*bars[:-1], last | {"high": last["close"] * 0.5}]
    yield "newest", [*bars, {"date": datetime.date(2016, 7, 8), "close": 1.0}]


def test_impossible_histories_are_refused_with_the_reason(engine):
    for word, bars in bad_requests(own_bars(engine, "SIM01")):
        (refusal,) = predict_bars(engine, [WhatIf(bars=bars)])
        assert isinstance(refusal, BarsInvalid) and word in refusal.problem, (word, refusal)


def test_one_refusal_does_not_spoil_the_batch(engine):
    bars = own_bars(engine, "SIM01")
    answers = predict_bars(
        engine,
        [
            WhatIf(bars=bars),
            WhatIf(bars=bars[:-1]),
            WhatIf(bars=bars, horizon=7),
            WhatIf(bars=bars[-5:]),
            WhatIf(bars=bars),
        ],
    )
    assert [type(t) for t in answers[1:4]] == [BarsInvalid, UnknownHorizon, NotEnoughHistory]
    assert answers[0] == answers[4]


def test_a_number_that_is_not_finite_is_an_error(settings):
    engine = Engine(settings)
    engine.model.weights = {k: v * float("nan") for k, v in engine.model.weights.items()}
    with pytest.raises(ModelOutputInvalid):
        engine.predict_universe()
    (refusal,) = predict_bars(engine, [WhatIf(bars=own_bars(engine, "SIM01"))])
    assert isinstance(refusal, ModelOutputInvalid)


def test_without_its_gpu_the_engine_computes_on_the_cpu(settings, monkeypatch):
    engine = Engine(settings)
    expected = engine.predict_universe().predictions
    engine.device, real = "cuda", type(engine.model).predict

    def failing(self, inputs, start=0, stop=None):
        if self.device == "cuda":
            raise RuntimeError("CUDA error: out of memory")
        return real(self, inputs, start, stop)

    monkeypatch.setattr(type(engine.model), "predict", failing)
    monkeypatch.setattr(
        type(engine.model), "to", lambda self, device: setattr(self, "device", device) or self
    )
    monkeypatch.setattr("stockpredict.catalogue.design_matrix.Inputs.to", lambda self, device: self)
    assert engine.predict_universe().predictions == expected and engine.device == "cpu"


def test_a_model_that_fails_is_a_refusal(settings, monkeypatch):
    engine = Engine(settings)

    def failing(*args):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(type(engine.model), "predict", failing)
    with pytest.raises(ModelOutputInvalid, match="shape mismatch"):
        engine.predict_universe()


@pytest.mark.gpu
def test_gpu_and_cpu_agree(settings):
    if not torch.cuda.is_available():
        pytest.skip("There is no GPU here.")
    publish(settings, "ridge", 2)
    on = {
        device: Engine(settings.with_(**{"serving.device": device})).predict_universe().frame()
        for device in ("cpu", "cuda")
    }
    numbers = on["cpu"].select_dtypes("number").columns
    pd.testing.assert_frame_equal(on["cpu"][numbers], on["cuda"][numbers], atol=1e-5)


def test_a_batch_is_what_was_waiting(run):
    gate, seen = threading.Event(), []

    def work(requests):
        seen.append(list(requests))
        gate.wait()
        return [request * 10 for request in requests]

    async def go():
        batcher = Batcher(work, limit=5, most=3)
        first = asyncio.create_task(batcher.submit(0))
        while not seen:
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(batcher.submit(i)) for i in range(1, 6)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull) as full:
            await batcher.submit(9)
        assert full.value.status == 503 and full.value.context["retry_after"] > 0
        rest[1].cancel()
        gate.set()
        answers = [await first] + [await r for i, r in enumerate(rest) if i != 1]
        return answers

    assert run(go()) == [0, 10, 30, 40, 50]
    assert seen == [[0], [1, 3, 4], [5]], "a caller that went away takes no place in a batch"


def test_requests_of_neighbouring_turns_are_one_batch_and_a_lone_one_waits_for_nobody(run):
    async def staggered():
        batcher, waiting = Batcher(lambda requests: requests), []
        for request in range(5):
            waiting.append(asyncio.create_task(batcher.submit(request)))
            await asyncio.sleep(0)
        return await asyncio.gather(*waiting), list(batcher.batches)

    async def alone():
        batcher = Batcher(lambda requests: requests)
        turns, task = 0, asyncio.create_task(batcher.submit(1))
        while batcher.task is None or not batcher.batches:
            turns += 1
            await asyncio.sleep(0)
        return await task, batcher.enough

    assert run(staggered()) == ([0, 1, 2, 3, 4], [5]) and run(alone()) == (1, None)


def test_callers_that_return_are_waited_for_and_never_longer_than_a_share_of_the_batch(run):
    "The gate holds the first batch; its callers return in turns of the loop that bring nothing else."
    seen, gate = [], threading.Event()

    def work(requests):
        seen.append(len(requests))
        gate.wait()
        return requests

    async def go():
        batcher = Batcher(work)
        first = [asyncio.create_task(batcher.submit(i)) for i in range(4)]
        while not seen:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.5)
        gate.set()
        await asyncio.gather(*first)
        again = []
        for i in range(4):
            again.append(asyncio.create_task(batcher.submit(i)))
            for _ in range(8):  # more quiet turns than a batch without callers would wait
                await asyncio.sleep(0)
        await asyncio.gather(*again)
        return await batcher.submit(9)  # no other request comes: it ends all the same

    assert run(go()) == 9 and seen == [4, 4, 1]


def test_a_crash_in_a_batch_reaches_every_caller_and_the_next_batch_runs(run):
    def work(requests):
        if "bad" in requests:
            raise ValueError("boom")
        return requests

    async def go():
        batcher = Batcher(work)
        results = await asyncio.gather(*(batcher.submit(a) for a in ("bad", "x")), return_exceptions=True)
        return [type(t).__name__ for t in results], await batcher.submit("good")

    failed, good = run(go())
    assert "ValueError" in failed and good == "good"


def test_callers_that_went_away_leave_their_place(run):
    gate, seen = threading.Event(), []

    def work(requests):
        seen.append(list(requests))
        gate.wait()
        return requests

    async def go():
        batcher = Batcher(work, limit=3, most=2)
        first = asyncio.create_task(batcher.submit(0))
        while not seen:
            await asyncio.sleep(0.001)
        gone = [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3)]
        await asyncio.sleep(0.01)
        for task in gone:
            task.cancel()
        await asyncio.sleep(0.01)
        late = [asyncio.create_task(batcher.submit(i)) for i in (4, 5, 6)]
        await asyncio.sleep(0.01)
        gate.set()
        return [await task for task in (first, *late)]

    assert run(go()) == [0, 4, 5, 6] and seen == [[0], [4, 5], [6]]


def test_no_caller_waits_for_ever(run):
    "A function that loses a result, and a loop that is stopped."

    async def go():
        short = await asyncio.gather(Batcher(lambda r: r[1:]).submit(1), return_exceptions=True)
        gate = threading.Event()
        batcher = Batcher(lambda r: gate.wait() and r)
        waiting = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.01)
        batcher.task.cancel()
        stopped = await asyncio.gather(waiting, return_exceptions=True)
        batcher = Batcher(lambda r: gate.wait() and r, most=1)
        queued = [asyncio.create_task(batcher.submit(i)) for i in (1, 2)]  # one is computed, one waits
        await asyncio.sleep(0.01)
        batcher.task.cancel()
        left = await asyncio.gather(*queued, return_exceptions=True)
        gate.set()
        return type(short[0]), type(stopped[0]), {type(error) for error in left}

    assert run(go()) == (ServeError, QueueFull, {QueueFull})

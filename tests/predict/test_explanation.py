"""Contributions add up to the answer that is served, and a batch gives the numbers of the served table."""

import asyncio
import io
import math
import os

import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import ipc, parquet

from stockpredict.core.errors import NoExplanation, NotReady
from stockpredict.predict.engine import Engine
from stockpredict.predict.explanation import direction_model

from served_desk import publish

FEATURES = ("ret_1", "mom_5", "mom_21", "vol_20")


@pytest.mark.parametrize("name", ["mean", "ridge", "lightgbm", "mlp"])
def test_base_contributions_and_groups_add_up_to_the_answer(settings, name):
    publish(settings, name, 2, features=FEATURES)
    engine = Engine(settings)
    for answer in engine.predict_universe().predictions[:6]:
        why = engine.explain_answer(answer)
        for lines in (why["contributions"], why["groups"]):
            total = why["base"] + math.fsum(line["contribution"] for line in lines)
            assert total == pytest.approx(answer["expected"], abs=1e-12)
        assert {line["feature"] for line in why["contributions"]} == set(FEATURES)
        assert why["sentence"].startswith(f"The median return of {answer['ticker']}")


def test_the_base_is_that_of_the_model_and_not_a_remainder(settings):
    "In units of each ticker's volatility the base of a linear model is its drift and its median residual."
    publish(settings, "ridge", 2, features=FEATURES)
    engine = Engine(settings)
    model, volatility = engine.model, engine.window().inputs.volatility[-1]
    for answer in engine.predict_universe().predictions[::2]:
        n = engine.window().inputs.tickers.index(answer["ticker"])
        base = engine.explain_answer(answer)["base"] / float(volatility[n])
        assert abs(base - float(model.weights["drift"][0])) < 0.1


def test_raw_values_are_those_of_the_formulas(settings):
    publish(settings, "ridge", 2, features=FEATURES)
    engine = Engine(settings)
    answer = engine.predict_universe().predictions[0]
    bars = engine.window().bars.query("ticker == @answer['ticker']")
    why = {line["feature"]: line for line in engine.explain_answer(answer)["contributions"]}
    closes = bars.close.to_numpy()
    assert why["ret_1"]["value"] == pytest.approx(closes[-1] / closes[-2] - 1, rel=1e-3)
    assert why["mom_5"]["group"] == "momentum" and -0.5 <= why["mom_5"]["scaled"] <= 0.5


def test_what_cannot_be_explained_is_named(settings, template):
    publish(settings, "ewma", 2)
    engine = Engine(settings)
    with pytest.raises(NoExplanation, match="not made of features"):
        direction_model(engine.model)
    with pytest.raises(NotReady, match="Newer bars"):
        Engine(template).explain_answer(engine.predict_universe().predictions[0])


def write_bars(path, frame):
    "A file of bars in the format of its ending."
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        kind = ipc.new_file if path.suffix == ".arrow" else ipc.new_stream
        with kind(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("ending", ["parquet", "arrow", "arrows"])
def test_a_market_is_the_same_from_every_format_of_file(template, tmp_path, ending):
    "Dates as days instead of text, and the file and the stream of Arrow, as the media types promise."
    from stockpredict.predict import batch_forecasts  # noqa: F401  adds `panel_of_file` to the engine

    engine = Engine(template)
    bars = engine.window().bars
    day = engine.calendar.session_of(bars.event_time)
    table = bars[["ticker", "open", "high", "low", "close", "volume"]]
    text = write_bars(tmp_path / "bars.csv", table.assign(date=day.strftime("%Y-%m-%d")))
    other = write_bars(tmp_path / f"bars.{ending}", table.assign(date=day.date))
    market, same = engine.panel_of_file(text), engine.panel_of_file(other)
    assert same.tickers == market.tickers and list(same.sessions) == list(market.sessions)
    for field in market._fields:
        assert torch.equal(same._fields[field].nan_to_num(-9), market._fields[field].nan_to_num(-9))


def test_explanation_and_batch_over_http(served, run, settings):
    "The same numbers as the table; a batch of a file is a job with a file at its end."
    from stockpredict.predict.answer_table import refresh_answers

    publish(settings, "ridge", 2, features=FEATURES)
    refresh_answers(settings)
    engine = Engine(settings)
    bars = engine.window().bars
    sessions = engine.calendar.session_of(bars.event_time).strftime("%Y-%m-%d")
    table = bars.assign(date=sessions)[["ticker", "date", "open", "high", "low", "close", "volume"]]
    tickers = [t for t in engine.window().inputs.tickers if t in engine.window().closes]
    file = table[table.ticker.isin(tickers)].to_csv(index=False).encode()

    async def go():
        async with served(settings) as client:
            path = "/v1/predictions/sim01/explanation?horizon=5"
            why = await client.get(path)
            again = await client.get(path, headers={"if-none-match": why.headers["etag"]})
            stored = await client.get("/v1/predictions?horizon=5")
            kinds = {"text/xml": b"<xml/>", "application/json": b'{"first": 5}', "text/csv": file}
            answers = [
                await client.post("/v1/batch", content=body, headers={"content-type": kind})
                for kind, body in kinds.items()
            ]
            job = answers[-1].json()["data"]
            early = await client.get(f"/v1/batch/{job['id']}")
            while job["state"] == "running":
                await asyncio.sleep(0.3)
                job = (await client.get(f"/v1/jobs/{job['id']}")).json()["data"]
            result = await client.get(f"/v1/batch/{job['id']}")
            (file_of_job,) = (settings.storage.home_dir / "batches").glob("*.parquet")
            os.utime(file_of_job, (0, 0))  # older than the days of the settings
            await client.post("/v1/batch", content=b"{", headers={"content-type": "application/json"})
            removed = await client.get(f"/v1/batch/{job['id']}")
            return why, again, stored, answers, early, job, result, removed

    why, again, stored, answers, early, job, result, removed = run(go())
    assert removed.status_code == 404 and "was removed" in removed.json()["error"]["message"]
    data, served_answers = why.json()["data"], {p["ticker"]: p for p in stored.json()["data"]}
    total = data["base"] + math.fsum(line["contribution"] for line in data["contributions"])
    assert total == pytest.approx(served_answers["SIM01"]["expected"], abs=1e-9)
    assert again.status_code == 304 and early.status_code == 404
    assert [a.status_code for a in answers] == [415, 422, 202]
    assert job["state"] == "done", job
    rows = pd.read_parquet(io.BytesIO(result.content)).query("horizon == 5").set_index("ticker")
    assert set(rows.index) == set(served_answers)
    for ticker, answer in served_answers.items():
        assert rows.q50[ticker] == pytest.approx(answer["quantiles"]["0.5"], abs=2e-5)
    assert not list((settings.storage.home_dir / "batches").glob("*.bars")), "the upload stays"

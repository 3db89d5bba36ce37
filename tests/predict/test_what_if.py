"""What-if: the quick way gives the tensors of the whole market, callers are apart, a bad one fails alone."""

import numpy as np
import orjson
import pytest
import torch

from stockpredict.algebra.panel import Panel
from stockpredict.catalogue.design_matrix import Spec, make_inputs
from stockpredict.catalogue.feature import as_features
from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import ModelOutputInvalid, RequestInvalid
from stockpredict.predict.caller_features import market_rows
from stockpredict.predict.caller_requests import asked_of
from stockpredict.predict.engine import Engine
from stockpredict.predict.schemas import WhatIf, parse_request
from stockpredict.predict.what_if import join_universe, predict_bars
from stockpredict.sources.simulate import simulate

from served_desk import publish

SETS = ("core", "ohlcv", "market", "alpha158", "alpha101_steady", "context")


@pytest.fixture(scope="module")
def panel():
    "Twenty tickers: one halted for ten sessions, one listed late."
    bars = simulate("realistic", tickers=20, sessions=420, seed=4).bars
    days = bars.event_time.drop_duplicates().sort_values()
    halted = (bars.ticker == "SIM05") & bars.event_time.isin(days.iloc[-40:-30])
    young = (bars.ticker == "SIM07") & (bars.event_time < days.iloc[-100])
    return Panel.from_bars(bars[~halted & ~young], get_calendar())


def callers_on(panel):
    "Other prices for three tickers of the panel, two new tickers, one of them with a gap of its own."
    noise, columns = torch.Generator().manual_seed(1), []
    for k, name in enumerate(("SIM03", "SIM05", "SIM07", "SIM11", "SIM11")):
        n = panel.tickers.index(name)
        path = (1 + 0.01 * torch.randn(len(panel), generator=noise)).cumprod(0)
        prices = {f: x[:, n] * (1 if f in ("volume", "money") else path) for f, x in panel._fields.items()}
        if k == 4:
            prices = {
                f: x.index_fill(0, torch.arange(-60, -50) % len(x), torch.nan) for f, x in prices.items()
            }
        columns.append(prices)
    names = ["SIM03", "SIM05", "SIM07", "NEW", "GAP"]
    return Panel({f: torch.stack([c[f] for c in columns], 1) for f in panel._fields}, panel.sessions, names)


def with_caller(panel, callers, j):
    "The whole market with one caller in it, and his column."
    name = callers.tickers[j]
    n = panel.tickers.index(name) if name in panel.tickers else len(panel.tickers)
    fields = {
        f: torch.cat([x[:, :n], callers._fields[f][:, j : j + 1], x[:, n + 1 :]], 1)
        for f, x in panel._fields.items()
    }
    return Panel(
        fields, panel.sessions, panel.tickers if name in panel.tickers else [*panel.tickers, name]
    ), n


@pytest.mark.parametrize(("names", "how"), [(SETS, "rank"), (("core",), "zscore"), (("core",), "none")])
def test_one_column_equals_the_whole_market_to_the_last_bit(panel, names, how):
    """A feature that compares tickers once, its ranking included, has the bits of the whole computation.

    Twice is a rank of values that are themselves measured against the market, such as betas: the other
    tickers' values are the stored ones, whose market does not hold the caller's returns. With N tickers the
    market moves by 1/N of the caller's own move, which exchanges neighbours: two places for the set core."""
    available = set(panel._fields) | {"money"}
    spec = Spec(tuple(f.name for f in as_features(list(names)) if f.fields <= available), how)
    features, market, callers = as_features(list(spec.names)), market_rows(panel, spec, 2), callers_on(panel)
    slots = np.array([market.slots.get(name, len(market.slots)) for name in callers.tickers])
    values = market.caller_values(callers, slots)
    x = market.scaled_values(values, slots)
    once = torch.tensor([f.crossings + (f.across and how != "none") <= 1 for f in features])
    assert once.sum() > 0.7 * len(features)
    for j in range(len(callers.tickers)):
        whole, n = with_caller(panel, callers, j)
        full = make_inputs(whole, spec, 2)
        odd = [f.name for f, same in zip(features, (x[:, j] == full.x[:, n]).all(0)) if not same]
        assert not [name for name, o in zip(spec.names, once) if o and name in odd], callers.tickers[j]
        assert torch.equal(values[-1][:, j].nan_to_num(-1), full.volatility[:, n].nan_to_num(-1))
        twice = (x[:, j] - full.x[:, n])[:, ~once].abs()
        core = [f in as_features(["core"]) for f, o in zip(features, once) if not o]
        assert once.all() or twice.mean() < 0.05
        assert how != "rank" or twice[:, core].max() <= 2 / len(panel.tickers) + 0.01
        alone = market.caller_values(callers.select([callers.tickers[j]]), slots[j : j + 1])
        assert torch.equal(alone[:, :, 0].nan_to_num(-9), values[:, :, j].nan_to_num(-9)), (
            "sees another caller"
        )


def test_the_bars_of_a_ticker_give_its_own_values_in_every_feature(panel):
    available = set(panel._fields) | {"money"}
    spec = Spec(tuple(f.name for f in as_features(list(SETS)) if f.fields <= available))
    market, names = market_rows(panel, spec, 2), ["SIM00", "SIM05", "SIM07"]
    slots = np.array([market.slots[name] for name in names])
    x = market.scaled_values(market.caller_values(panel.select(names), slots), slots)
    at = [panel.tickers.index(name) for name in names]
    assert torch.equal(x, make_inputs(panel, spec, 2).x[:, at])


@pytest.fixture(scope="module")
def engine(template):
    return Engine(template)


def body_of(engine, ticker, factor=1.0, **more):
    "JSON of a request with sixty closes of a ticker."
    rows = engine.window().bars[engine.window().bars.ticker == ticker].iloc[-60:]
    days = engine.calendar.session_of(rows.event_time).strftime("%Y-%m-%d")
    bars = [{"date": d, "close": round(c * factor, 4)} for d, c in zip(days, rows.close, strict=True)]
    return {"ticker": ticker, "bars": bars, "horizon": 1} | more


def test_the_two_ways_to_read_a_request_agree(engine):
    full = body_of(engine, "SIM01")
    first = full["bars"][0]
    odd = [
        full | {"bars": [first | {"close": "1.5"}, *full["bars"][1:]]},
        full | {"bars": [first | {"close": True}, *full["bars"][1:]]},
        full | {"bars": [first | {"close": -1}, *full["bars"][1:]]},
        full | {"bars": [first | {"klose": 1}, *full["bars"][1:]]},
        full | {"bars": [first | {"date": 1672099200}, *full["bars"][1:]]},
        full | {"bars": [first | {"date": "2016-01-04T00:00:00"}, *full["bars"][1:]]},
        full | {"bars": first},
        full | {"bars": []},
        full | {"horizon": "1"},
        full | {"horizon": 1.5},
        full | {"ticker": 7},
        full | {"ticker": ""},
        full | {"more": 1},
        [],
        "text",
    ]
    for request in odd:
        raw = orjson.dumps(request)
        assert engine.quick_request(raw) is None
        with pytest.raises(RequestInvalid):
            parse_request(raw)
    whole = {"open": first["close"], "volume": 0, "high": None}
    for request in (full, full | {"horizon": None}, full | {"bars": [first | whole, *full["bars"][1:]]}):
        raw = orjson.dumps(request)
        quick, slow = engine.quick_request(raw), asked_of(engine, engine.window().session, parse_request(raw))
        assert quick.ticker == slow.ticker and quick.horizon == slow.horizon
        assert (quick.days == slow.days).all() and np.array_equal(quick.prices, slow.prices, equal_nan=True)


def test_a_series_that_breaks_the_model_fails_alone(engine, monkeypatch):
    "The batch is divided until the request that fails stands alone."
    requests = [engine.quick_request(orjson.dumps(body_of(engine, f"SIM0{i}"))) for i in range(4)]
    expected, real = predict_bars(engine, requests), type(engine).forward

    def failing(self, inputs, *by):
        if "SIM02" in inputs.tickers:
            raise ModelOutputInvalid("impossible", "")
        return real(self, inputs, *by)

    monkeypatch.setattr(type(engine), "forward", failing)
    answers = predict_bars(engine, requests)
    assert isinstance(answers[2], ModelOutputInvalid)
    assert [answers[i] for i in (0, 1, 3)] == [expected[i] for i in (0, 1, 3)]


def test_a_model_that_reads_across_tickers_sees_one_caller_at_a_time(engine, monkeypatch):
    "Callers of one batch would otherwise be each other's market."
    requests = [engine.quick_request(orjson.dumps(body_of(engine, f"SIM0{i}", 1.1))) for i in range(3)]
    seen, real = [], type(engine).forward

    def watching(self, inputs, *by):
        seen.append(list(inputs.tickers))
        return real(self, inputs, *by)

    monkeypatch.setattr(type(engine), "forward", watching)
    monkeypatch.setattr(engine.model, "reads_across", True, raising=False)
    answers = predict_bars(engine, requests)
    assert [a[0]["ticker"] for a in answers] == ["SIM00", "SIM01", "SIM02"]
    assert seen == [engine.window().inputs.tickers] * 3


def test_a_request_computes_no_proof_and_not_the_whole_market(engine, monkeypatch):
    engine.warm_callers()
    for place in (
        "catalogue.feature.ensure_proven",
        "catalogue.latest.ensure_proven",
        "predict.engine.make_inputs",
    ):
        monkeypatch.setattr(f"stockpredict.{place}", lambda *args: pytest.fail("computed in a request"))
    (answer,) = predict_bars(engine, [engine.quick_request(orjson.dumps(body_of(engine, "SIM01")))])
    assert answer[0]["ticker"] == "SIM01"


def test_a_feature_without_steps_takes_the_plain_way(settings, monkeypatch):
    publish(settings, "ridge", 2)
    engine = Engine(settings)
    asked = engine.quick_request(orjson.dumps(body_of(engine, "SIM01", 1.05)))
    quick = predict_bars(engine, [asked])
    engine.universe = None
    monkeypatch.setattr("stockpredict.predict.caller_features.planned_features", lambda *args: None)
    assert predict_bars(engine, [asked]) == quick and engine.universe.kept["callers"] is None
    request = WhatIf.model_validate(body_of(engine, "SIM01", 1.05), strict=False)
    joined = join_universe(engine, engine.window(), request)
    assert torch.equal(join_universe(engine, engine.window(), asked).inputs.x, joined.inputs.x)

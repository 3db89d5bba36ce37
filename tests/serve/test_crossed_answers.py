"""Mixed concurrent requests, cancellations and disconnects among them: each gets its own right answer."""

import asyncio
import runpy
from pathlib import Path

import pytest

from served_desk import publish


@pytest.fixture(scope="module")
def crossed():
    "2,000 requests here; `python benchmarks/crossed_answers.py` makes a million."
    return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "crossed_answers.py"))


def test_no_answer_is_crossed_empty_or_lost(crossed, settings, capsys):
    from stockpredict.predict.answer_table import refresh_answers
    from stockpredict.serve.app import create_app

    publish(settings, "ridge", 2)
    refresh_answers(settings)
    app = create_app(settings)
    app.state.service.load_engine()
    pool, stored = crossed["pool_of"](app.state.service.engine, 40), crossed["stored_answers"](settings)
    results = asyncio.run(crossed["bulk"](app, range(2000), 64, pool, stored, 0.3))
    assert sum(results.values()) == 2000 and set(results) <= {"right", "gone"}, results
    assert 5 <= results["gone"] <= 60
    batches = app.state.service.batcher.batches
    assert sum(batches) > 400 and max(batches) > 4, "what-if requests were computed together"
    assert "unexpected error" not in capsys.readouterr().err, "a caller that goes away is no error"


def test_a_crossed_answer_would_be_noticed(crossed):
    "The check itself: the answer of another request, of another history, or of no request."
    pool = [
        {"ticker": "A", "days": ["2016-01-04"], "closes": pytest.importorskip("numpy").array([10.0])}
        | {"answer": {"ticker": "A", "quantiles": {"0.5": 0.01}}}
    ]
    _, answer, close = crossed["scaled_request"](pool, 3)
    right = {"ticker": "A", "last_close": float(f"{close:.8g}"), "quantiles": {"0.5": 0.010002}}
    right |= {"source": "caller"}
    assert crossed["is_right"](right, answer, close)
    for other in ({"last_close": 10.0}, {"ticker": "B"}, {"quantiles": {"0.5": 0.0101}}, {"source": "lake"}):
        assert not crossed["is_right"](right | other, answer, close)

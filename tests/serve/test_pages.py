"""The front page shows the evidence of each head in words, also for tables written before heads."""

import re

from stockpredict.serve.pages import front_page

QUANTILES = {"0.05": -0.02, "0.25": -0.01, "0.5": 0.0, "0.75": 0.01, "0.95": 0.02}
PREDICTION = dict(
    ticker="KO",
    quantiles=QUANTILES,
    last_close=62.1,
    p_up=0.5,
    volatility={"daily": 0.012},
    horizon=1,
    entry_session="2026-11-30",
    target_session="2026-12-01",
)
HEADS = {
    "intervals": {"model": "mean", "evidence": "strong", "verdict": "The 90 % interval held 90.2 %."},
    "direction": {"model": "mean", "evidence": "none", "verdict": "No direction <p = 0.41>."},
}


def text_of(**model):
    "The words of the page for a served model."
    model = dict(name="mean", version=3, skill="none", verdict="No evidence.") | model
    header = dict(
        model=model,
        decision_session="2026-11-27",
        tickers=1,
        horizons=[1],
        snapshot=7,
        fingerprint="19548f091933",
    )
    html = front_page(header, [PREDICTION], 0, False).decode()
    return " ".join(re.sub("<[^>]+>", " ", html).split())


def test_each_head_is_shown_with_its_evidence_and_numbers():
    text = text_of(heads=HEADS)
    first = text.index("direction, by mean: no evidence No direction &lt;p = 0.41&gt;.")
    assert first < text.index("intervals, by mean: strong evidence The 90 % interval held 90.2 %.")


def test_a_table_of_an_earlier_version_shows_its_one_verdict():
    assert "No evidence." in text_of() and ", by mean:" not in text_of()

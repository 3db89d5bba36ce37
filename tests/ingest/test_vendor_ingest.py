"""Ingest from vendors: fallbacks, second opinions, and only what is missing is asked for."""

import pandas as pd
import pytest

from stockpredict.ingest.ingest import ingest, load_bars
from stockpredict.ingest.plan import cut_plan
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars
from stockpredict.sources.bars import tidy_bars
from stockpredict.sources.vendor_chain import VendorChain, consensus, vendor_answers

NOW = "2020-03-11T12:00Z"


@pytest.fixture(scope="module")
def market():
    return sample_bars()


def test_a_fallback_continues_one_history(two_vendors, standin):
    s = two_vendors()
    assert ingest(s.with_(**{"data.end": "2020-02-28"}), NOW).vendors == {"yahoo": 2}
    standin.fault("500", 99, vendor="yahoo")
    later = ingest(s, NOW)
    assert (
        later.vendors == {"tiingo": 2}
        and later.rows_corrected == 0
        and later.rows_new == 14
        and later.failed == []
    )
    assert later.troubles == {"yahoo: server-error": 2}, "a failure that cost nothing is told all the same"
    assert vendor_answers(s).vendor.tolist() == ["yahoo", "yahoo", "tiingo", "tiingo"]
    assert load_bars(s).groupby("ticker").size().to_dict() == {"AAA": 296, "BBB": 299}


def test_the_report_says_which_bars_were_not_requested_again(two_vendors):
    s = two_vendors()
    assert ingest(s.with_(**{"data.end": "2020-02-28"}), NOW).compared_from == ""
    assert ingest(s, NOW).compared_from == "2020-02-21", "five sessions before the newest stored bar"
    assert ingest(s, NOW, full=True).compared_from == ""


def test_second_opinions_are_compared(two_vendors, standin):
    standin.fault("hundred", vendor="yahoo", ticker="AAA")
    s = VendorChain(two_vendors(sources__opinions=3, sources__chain=["yahoo", "tiingo", "fmp"]))
    bars = s.fetch(["AAA", "BBB"], "2019-05-01", "2019-05-31")
    assert (
        {d["used"] for d in s.differ} == {"tiingo"}
        and {d["ticker"] for d in s.differ} == {"AAA"}
        and len(s.differ) == 22
    )
    plain = VendorChain(two_vendors(sources__chain=["tiingo"])).fetch(
        ["AAA", "BBB"], "2019-05-01", "2019-05-31"
    )
    pd.testing.assert_frame_equal(bars[["ticker", "close"]], plain[["ticker", "close"]])

    def frame(closes):
        return tidy_bars(
            pd.DataFrame(dict(ticker="A", date=["2020-01-02", "2020-01-03"], close=closes)), source="x"
        )

    kept, differ = consensus({"a": frame([1.0, 2.0]), "b": frame([1.0, 3.0])}, 0.01)
    assert kept.close.tolist() == [1, 2] and differ == [dict(session="2020-01-03", used="a", a=2, b=3)], (
        "with two, the earlier in the chain"
    )


# ---- only what is missing


def ranges(standin):
    "What was asked for: ticker, first day, last day."
    rows = standin.request_log()
    return [(r.ticker, r.query["startDate"], r.query["endDate"]) for r in rows.itertuples()]


def test_only_what_is_missing_is_asked_for(two_vendors, standin):
    s = two_vendors(sources__chain=["tiingo"], data__end="2020-03-04")
    first = ingest(s, "2020-03-05T12:00Z")
    assert (first.requests, ranges(standin)) == (
        2,
        [("AAA", "2019-01-01", "2020-03-04"), ("BBB", "2019-01-01", "2020-03-04")],
    )
    standin.requests.clear()
    again = ingest(s, "2020-03-05T18:00Z")
    assert (again.requests, len(standin.requests), again.fingerprint) == (0, 0, first.fingerprint), (
        "nothing has closed since"
    )
    more = s.with_(**{"data.end": "", "data.universe": ["AAA", "BBB", "CCC"]})
    weekend = ingest(more.with_(**{"data.end": "2020-03-06"}), "2020-03-07T12:00Z")
    assert sorted(t for t, *_ in ranges(standin)) == ["AAA", "BBB", "CCC"] and weekend.rows_new == 2 * 2 + 297
    assert {t: a for t, a, _ in ranges(standin)} == {
        "AAA": "2020-02-26",
        "BBB": "2020-02-26",
        "CCC": "2019-01-01",
    }, "five sessions of overlap"
    standin.requests.clear()
    sunday = ingest(more.with_(**{"data.end": "2020-03-08"}), "2020-03-08T12:00Z")
    assert (sunday.requests, sunday.missing) == (0, []), "the exchange has not opened since"


def test_a_backfill_goes_on_where_it_was_stopped(two_vendors, standin):
    s = two_vendors(data__universe=["AAA", "BBB", "CCC", "DDD"], sources__batch=1, sources__at_once=1)
    seen = []

    def power_cut(step):
        seen.append(step)
        if seen.count("settled") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(s, NOW, on_step=power_cut)
    assert [x for x in seen if ": " in x] == ["AAA: yahoo", "BBB: yahoo"], "progress comes through on_step"
    standin.requests.clear()
    rest = ingest(s, NOW)
    assert (
        standin.request_log().ticker.tolist() == ["CCC", "DDD"] and rest.tickers == 4 and rest.missing == []
    )
    with Lake(s.storage, read_only=True) as lake:
        assert lake.verify() == rest.fingerprint


def test_an_interrupted_earlier_start_leaves_no_hole(two_vendors, standin):
    late = two_vendors(data__start="2019-09-03", sources__batch=1)
    ingest(late, NOW)
    early = two_vendors(sources__batch=1)

    def power_cut(step):
        if step == "settled":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(early, NOW, on_step=power_cut)
    ingest(early, NOW)
    assert load_bars(early).groupby("ticker").event_time.min().dt.strftime("%Y-%m-%d").to_dict() == {
        "AAA": "2019-01-02",
        "BBB": "2019-01-02",
    }


def test_portions_keep_every_ticker_once():
    asks = [("2020-01-02", ["AAA", "DDD"]), ("2024-05-06", ["BBB", "CCC"])]
    cut = cut_plan(asks, 3)
    assert [sum(len(t) for _, t in p) for p in cut] == [3, 1] and cut_plan([], 3) == [[]]
    assert sorted((t, d) for p in cut for d, ts in p for t in ts) == sorted(
        (t, d) for d, ts in asks for t in ts
    )

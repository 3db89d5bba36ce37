"What vendors do to us on a bad day, and what we promise then: cases 1 to 9 and 18 to 22."

import resource
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pandas as pd
import pytest
from vendor_clock import Clock

from stockpredict.core.errors import BarsInvalid, BatchRefused, SchemaDrift, SourceUnavailable
from stockpredict.ingest.ingest import ingest, load_bars
from stockpredict.lake.lake import Lake
from stockpredict.quality.gate import inspect_bars
from stockpredict.sources.simulate import sample_bars
from stockpredict.testing.fake_vendors import FakeVendors
from stockpredict.sources.vendor_chain import VendorChain, dead_letters
from stockpredict.sources.vendors import vendors

NOW = "2020-03-11T12:00Z"
START, END = "2020-01-02", "2020-03-10"


@pytest.fixture(scope="module")
def market():
    return sample_bars(4)


@pytest.fixture
def given(from_standin):
    return from_standin(
        {
            "data.universe": ["AAA", "BBB", "CCC"],
            "data.start": START,
            "data.end": END,
            "sources.chain": ["tiingo"],
            "sources.retries": 2,
            "sources.deadline": 5,
        }
    )


def quick(settings):
    "A source whose pauses cost no time; what it slept is noted."
    source = VendorChain(settings)
    source.client.clock = clock = Clock()
    source.client.sleep = clock.sleep
    return source, clock


def fetched(source, tickers=("AAA",)):
    return source.fetch(list(tickers), START, END)


def reason(source, ticker="AAA"):
    return source.failed[ticker]["failures"][-1]["reason"]


def truth(market, ticker="AAA"):
    rows = market[
        (market.ticker == ticker) & (market.event_time >= START) & (market.event_time < "2020-03-11")
    ]
    return rows.close.round(2).to_numpy()


# ---- 1: too many requests


@pytest.mark.parametrize("wait, expected", [(20, 20), ("date", 20), (None, 0.5)])
def test_case_1_told_to_wait_all_requests_wait(given, standin, market, wait, expected):
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True) if wait == "date" else wait
    standin.fault("429", wait=at)
    source, clock = quick(given(sources__deadline=60, sources__at_once=3))
    assert len(fetched(source, ["AAA", "BBB", "CCC"])) == 3 * len(truth(market))
    assert standin.request_log().fault.tolist() == ["429", "", "", ""], (
        "one refusal, then every request comes back once: no storm"
    )
    longest = max(clock.slept)
    if wait is None:
        assert 0.25 <= longest <= expected
    else:
        assert expected - 1.5 <= longest <= expected * 1.1, "at least as long as told, at most a tenth longer"


def test_case_1_a_wait_beyond_the_deadline_is_not_waited_for(given, standin):
    standin.fault("429", 1, wait=3600)
    source, clock = quick(given(sources__at_once=1))
    assert (
        not len(fetched(source, ["AAA", "BBB", "CCC"]))
        and len(standin.requests) == 1
        and sum(clock.slept) < 5
    )
    assert {reason(source, t) for t in ("AAA", "BBB", "CCC")} == {"throttled"}


# ---- 2: server errors


@pytest.mark.parametrize("status", [500, 502, 503])
def test_case_2_a_burst_is_ridden_out(given, standin, market, status):
    standin.fault("500", 2, status=status)
    source, _ = quick(given())
    assert np.allclose(fetched(source).close, truth(market)) and len(standin.requests) == 3


def test_case_2_the_breaker_opens_at_five_and_the_second_vendor_answers(given, standin, market):
    standin.fault("500", 99, vendor="yahoo")
    source, clock = quick(given(sources__chain=["yahoo", "tiingo"], sources__at_once=1, sources__retries=1))
    assert len(fetched(source, ["AAA", "BBB", "CCC"])) == 3 * len(truth(market)) and source.failed == {}
    assert (standin.request_log().vendor == "yahoo").sum() == 5, "two, two, and the fifth opens the breaker"
    fetched(source, ["AAA"])
    assert (standin.request_log().vendor == "yahoo").sum() == 5
    assert {f.reason for f in source.failures} == {"server-error", "breaker-open"} and all(
        f.when and f.url for f in source.failures
    ), "each is on record"
    clock.now += 60
    standin.faults.clear()
    fetched(source, ["AAA"])
    assert source.answered["AAA"]["vendor"] == "yahoo", "half-open: one probe closes the breaker"


# ---- 3: slow answers


@pytest.mark.parametrize("fault", [dict(kind="drip", wait=0.02), dict(kind="drip", wait=5)])
def test_case_3_a_slow_drip_is_cut_off_at_the_deadline(given, standin, fault):
    standin.fault(fault.pop("kind"), 9, **fault)
    s = given(sources__deadline=0.6, data__universe=["AAA"])
    with pytest.raises(SourceUnavailable, match=r"took longer|did not answer"):
        ingest(s, NOW)
    [letter] = dead_letters(s).to_dict("records")
    assert (letter["ticker"], letter["reason"], letter["start"], letter["times"]) == (
        "AAA",
        "timeout",
        START,
        1,
    )


# ---- 4: broken connections


@pytest.mark.parametrize("fault", ["reset", "hangup"])
def test_case_4_half_an_answer_is_none(given, standin, market, fault):
    standin.fault(fault)
    source, _ = quick(given())
    assert np.allclose(fetched(source).close, truth(market)) and standin.request_log().fault.tolist() == [
        fault,
        "",
    ]
    standin.fault(fault, 9)
    assert not len(fetched(source, ["BBB"])) and reason(source, "BBB") == "cut-off"


# ---- 5: refusals that look like answers


@pytest.mark.parametrize("vendor", ["alphavantage", "fmp", "tiingo", "yahoo"])
@pytest.mark.parametrize("fault", ["throttled", "bad-key", "bad-symbol"])
def test_case_5_a_polite_refusal_is_not_an_empty_table(given, standin, vendor, fault):
    standin.fault(fault, 9)
    source, _ = quick(given(sources__chain=[vendor]))
    assert not len(fetched(source))
    allowed = {
        ("yahoo", "throttled"): {"throttled"},
        ("fmp", "bad-symbol"): {"empty"},
        ("yahoo", "bad-key"): {"bad-key"},
    }
    assert reason(source) in allowed.get((vendor, fault), {fault})
    assert len(standin.requests) == (3 if fault == "throttled" else 1), (
        "only what may pass is asked for again"
    )


# ---- 6 and 7: things that are no data


def test_case_6_a_web_page_is_kept_as_evidence(given, standin):
    standin.fault("html", 9)
    source, _ = quick(given())
    assert not len(fetched(source)) and reason(source) == "not-data"
    assert "We will be back soon" in source.failed["AAA"]["failures"][0]["evidence"]


@pytest.mark.parametrize("vendor", ["yahoo", "tiingo", "fmp", "alphavantage"])
@pytest.mark.parametrize("fault", ["truncated", "garbage", "deep"])
def test_case_7_garbage_is_asked_for_again_and_then_refused(given, standin, market, vendor, fault):
    standin.fault(fault)
    source, _ = quick(given(sources__chain=[vendor]))
    assert np.allclose(fetched(source).close, truth(market), rtol=1e-6)
    standin.fault(fault, 9)
    assert not len(fetched(source, ["BBB"])) and reason(source, "BBB") in (
        "unreadable",
        "refused",
        "cut-off",
    ), source.failed


@pytest.mark.parametrize("vendor", ["yahoo", "tiingo", "fmp", "alphavantage"])
@pytest.mark.parametrize("fault", ["bom", "semicolons", "strings"])
def test_case_7_other_dialects_are_understood(given, standin, market, vendor, fault):
    standin.fault(fault)
    source, _ = quick(given(sources__chain=[vendor]))
    assert np.allclose(
        fetched(source).close, truth(market), rtol=1e-6
    ) and standin.request_log().fault.tolist() == [fault]


@pytest.mark.parametrize("vendor", ["yahoo", "tiingo", "fmp", "alphavantage"])
@pytest.mark.parametrize(
    "fault, why", [("nan", "no close"), ("infinity", "price impossible"), ("negative", "price impossible")]
)
def test_case_7_one_bad_row_has_a_reason_of_its_own(given, standin, market, vendor, fault, why):
    standin.fault(fault)
    source, _ = quick(given(sources__chain=[vendor], data__end="2020-03-11"))
    bars = source.fetch(["AAA"], START, "2020-03-11")
    assert len(bars) == len(truth(market)) + 1 and np.allclose(bars.close[:-1], truth(market), rtol=1e-6)
    last = bars.close.iloc[-1]
    assert np.isnan(last) if why == "no close" else not (np.isfinite(last) and last > 0)


def test_case_7_rows_with_reasons_reach_the_quarantine(given, standin):
    standin.fault("negative", ticker="AAA").fault("infinity", ticker="BBB").fault("nan", ticker="CCC")
    s = given(data__end="2020-03-11", data__quarantine_limit=0.05)
    report = ingest(s, "2020-03-12T12:00Z")
    assert report.rows_quarantined == 3 and report.missing == ["AAA", "BBB", "CCC"]
    with Lake(s.storage, read_only=True) as lake:
        result = lake.sql("SELECT ticker, reason FROM quarantine ORDER BY 1").set_index("ticker").reason
    assert (
        result["AAA"].startswith("price impossible")
        and result["BBB"].startswith("price impossible")
        and "no close" in result["CCC"]
    )


def test_a_rotten_ticker_does_not_keep_the_others_out(given, standin):
    "One ticker of three whose every row is impossible is refused by itself."
    plain = FakeVendors.answer

    def rotten(self, path, query, wish=""):
        status, headers, body, fault = plain(self, path, query, wish)
        return status, headers, body.replace(b",1", b",-1") if "/BBB/" in path else body, fault

    with pytest.MonkeyPatch.context() as m:
        m.setattr(FakeVendors, "answer", rotten)
        report = ingest(given(), NOW)
        assert (
            report.tickers == 2
            and report.failed[0]["ticker"] == "BBB"
            and report.failed[0]["reason"] == "bad-rows"
        )
        with pytest.raises(BatchRefused):
            ingest(given(data__universe=["BBB"]), NOW)
    healed = ingest(given(), NOW, replay=True)
    assert healed.tickers == 3 and healed.dead_letters == 0


# ---- 8 and 9: days that are not there, days that are not over


def test_case_8_nothing_on_a_trading_day_is_an_alarm_and_on_a_holiday_it_is_not(given, standin):
    standin.fault("empty", 9, ticker="BBB")
    s = given()
    report = ingest(s, NOW)
    assert (
        report.missing == ["BBB"]
        and [(f["ticker"], f["reason"]) for f in report.failed] == [("BBB", "empty")]
        and report.dead_letters == 1
    )
    assert "47 sessions" in report.failed[0]["sentence"]
    source, _ = quick(s)
    assert (
        not len(source.fetch(["BBB"], "2020-01-18", "2020-01-20"))
        and source.failed == {}
        and source.requests == 0
    ), "a weekend and Martin Luther King Day"
    standin.faults.clear()
    standin.fault("behind", ticker="BBB")
    behind = ingest(given(data__end="2020-03-11"), "2020-03-12T12:00Z")
    assert behind.missing == ["BBB"] and behind.dead_letters == 0, (
        "a vendor that is a day late has answered, yet the day is missing"
    )


def test_case_9_a_session_that_is_still_open_is_no_bar_yet(given, standin, market):
    s, noon = given(data__end=""), "2020-03-11T16:00Z"
    during = ingest(s, noon)
    assert during.rows_quarantined == 3 and during.missing == [] and during.last_session == "2020-03-10"
    assert load_bars(s).event_time.max() < pd.Timestamp(noon)
    after = ingest(s, "2020-03-11T20:30Z")
    assert after.last_session == "2020-03-11" and after.rows_new == 3 and after.rows_quarantined == 0


# ---- 18 to 22


@pytest.mark.parametrize(
    "bad", ["';DROP TABLE bars", "ＡＡＡ", "A" * 10_000, "../../etc", "AAA\r\nHost: x", "A A", ""]
)
def test_case_18_what_is_no_ticker_is_never_sent(given, standin, bad):
    with pytest.raises(BarsInvalid, match="is not a ticker"):
        VendorChain(given()).fetch([bad], START, END)
    assert standin.requests == []


def test_case_18_every_vendor_has_its_spelling():
    path = {
        name: vendors[name]().ask("BRK-B", START, END).public
        for name in ("yahoo", "tiingo", "fmp", "alphavantage")
    }
    assert (
        "/chart/BRK-B?" in path["yahoo"]
        and "/daily/BRK-B/" in path["tiingo"]
        and "symbol=BRK-B" in path["fmp"]
        and "symbol=BRK.B" in path["alphavantage"]
    )
    assert "/chart/%5EGSPC?" in vendors["yahoo"]().ask("^GSPC", START, END).public


@pytest.mark.parametrize("vendor", ["yahoo", "fmp"])
def test_case_18_an_answer_about_somebody_else_is_refused(given, standin, vendor):
    standin.fault("other", 9)
    source, _ = quick(given(sources__chain=[vendor]))
    assert (
        not len(fetched(source))
        and reason(source) == "drift"
        and "was asked for AAA" in source.failed["AAA"]["failures"][0]["sentence"]
    )


def test_case_19_a_history_a_hundred_times_dearer_is_set_aside(given, standin, market):
    s = given(data__end="2020-03-03")
    before = ingest(s, "2020-03-04T12:00Z")
    standin.fault("hundred", 1, ticker="AAA")
    report = ingest(given(), NOW)
    assert [(f["ticker"], f["reason"]) for f in report.failed] == [
        ("AAA", "rescaled")
    ] and report.rewritten == []
    assert report.cached == report.missing == ["AAA"]
    close = load_bars(s, ["AAA"], end=END).close
    assert close.max() < 2 * truth(market).max() and len(load_bars(given(), ["BBB"])) == len(truth(market))
    with Lake(s.storage, read_only=True) as lake:
        assert set(lake.sql("SELECT reason FROM quarantine").reason) == {"rescaled"}
    healed = ingest(given(), NOW, replay=True)
    assert (
        np.allclose(load_bars(given(), ["AAA"]).close, truth(market))
        and healed.dead_letters == 0
        and before.rows_new > 0
    )


@pytest.mark.parametrize("vendor", ["yahoo", "tiingo", "fmp", "alphavantage"])
def test_case_20_a_renamed_column_stops_with_the_difference(given, standin, vendor):
    standin.fault("renamed", 9)
    source, _ = quick(given(sources__chain=[vendor]))
    assert not len(fetched(source)) and reason(source) == "drift" and len(standin.requests) == 1
    reply = source.failed["AAA"]["failures"][0]["sentence"]
    assert "lost close" in reply and "closing" in reply


def test_case_20_drift_everywhere_is_a_hard_stop_and_what_is_held_stays(given, standin):
    kept_rows = ingest(given(data__end="2020-03-03"), "2020-03-04T12:00Z")
    standin.fault("renamed", 99)
    with pytest.raises(SchemaDrift, match=r"has lost close; new in it: closing.*The stored bars stay"):
        ingest(given(), NOW)
    with Lake(given().storage, read_only=True) as lake:
        assert lake.fingerprint() == kept_rows.fingerprint
    assert set(dead_letters(given()).reason) == {"drift"}


@pytest.mark.parametrize("fault", ["oversized", "bomb"])
def test_case_21_memory_stays_bounded(given, standin, fault):
    "In a process of its own that may not grow: 400 MB are offered, 2 MB are allowed."
    standin.fault(fault, 9, mb=400)
    code = """
import resource, sys
from stockpredict.core.settings import Settings
from stockpredict.sources.vendor_chain import VendorChain
s = VendorChain(Settings().with_(**{"storage.home": sys.argv[2], "data.universe": ["AAA"],
    "sources.chain": ["tiingo"], "sources.base_urls": "all=" + sys.argv[1],
                                "sources.max_mb": 2}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
s.fetch(["AAA"], "2020-01-02", "2020-03-10")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(s.failed["AAA"]["failures"][0]["reason"], grown // 1024)
"""
    home = given().storage.home
    output = subprocess.run(
        [sys.executable, "-c", code, standin.url, home], capture_output=True, text=True, check=True
    ).stdout.split()
    assert output[0] == "too-large" and int(output[1]) < 40, output
    assert resource.RUSAGE_SELF == 0 and len(standin.requests) == 1, (
        "asked once: it would not be smaller the next time"
    )


def test_case_22_two_vendors_who_disagree_are_reported_and_the_earlier_counts(given, standin, market):
    standin.fault("hundred", 9, vendor="tiingo", ticker="BBB")
    report = ingest(given(sources__chain=["yahoo", "tiingo"], sources__opinions=2), NOW)
    assert (
        {d["ticker"] for d in report.disagreements} == {"BBB"}
        and len(report.disagreements) == len(truth(market))
        and report.vendors == {"yahoo+tiingo": 3}
    )
    assert np.allclose(load_bars(given(), ["BBB"]).close, truth(market, "BBB"))


# ---- whatever happens, it ends in the same place


def calm(given, tmp_path, **more):
    "The lake that an undisturbed ingest makes."
    return ingest(given(storage__home=str(tmp_path / "calm"), **more), NOW).fingerprint


def test_a_bad_day_and_a_replay_end_where_a_good_day_does(given, standin, tmp_path):
    four = dict(data__universe=["AAA", "BBB", "CCC", "DDD"])
    for kind, times in (
        ("429", 3),
        ("500", 3),
        ("reset", 2),
        ("html", 2),
        ("truncated", 2),
        ("garbage", 2),
        ("empty", 1),
        ("throttled", 2),
    ):
        standin.fault(kind, times, share=0.7, wait=0.01 if kind == "429" else None)
    s = given(sources__retries=0, sources__batch=2, **four)
    try:
        first = ingest(s, NOW)
    except SourceUnavailable:
        first = None
    waiting = len(dead_letters(s))
    assert waiting and (first is None or first.dead_letters == waiting)
    standin.faults.clear()
    last = ingest(s, NOW, replay=True)
    assert last.dead_letters == 0 == len(dead_letters(s)) and last.missing == []
    assert last.fingerprint == calm(given, tmp_path, **four)


def test_every_request_failed_once_in_turn_converges(given, standin, tmp_path):
    "The k-th request fails for every k until there is none; a replay brings the rest."
    more = dict(sources__retries=0, sources__at_once=1, data__universe=["AAA", "BBB"])
    healed, k = [], 0
    while True:
        s, plain, seen = given(storage__home=str(tmp_path / f"k{k}"), **more), FakeVendors._next_fault, []

        def kth(self, vendor, ticker, plain=plain, seen=seen, k=k):
            seen.append(ticker)
            if len(seen) == k + 1:
                self.fault("reset")
            return plain(self, vendor, ticker)

        with pytest.MonkeyPatch.context() as m:
            m.setattr(FakeVendors, "_next_fault", kth)
            report = ingest(s, NOW)
        if not report.failed:
            break
        assert report.dead_letters == 1 and report.missing == [seen[k]]
        healed.append(ingest(s, NOW, replay=True).fingerprint)
        assert healed[-1] != report.fingerprint
        k += 1
    assert healed == [report.fingerprint] * 2, "the last round was undisturbed"


def test_with_nobody_there_the_lake_is_the_last_resort_and_says_so(given, standin):
    kept_rows = ingest(given(data__end="2020-03-03"), "2020-03-04T12:00Z")
    standin.fault("500", 99)
    report = ingest(given(sources__retries=0), NOW)
    assert (
        report.cached == report.missing == ["AAA", "BBB", "CCC"]
        and report.dead_letters == 3
        and report.last_session == "2020-03-03"
    )
    assert report.fingerprint == kept_rows.fingerprint and len(load_bars(given(), ["AAA"])) > 0
    again = ingest(given(sources__retries=0), NOW)
    assert dead_letters(given()).times.tolist() == [2, 2, 2] and again.dead_letters == 3, (
        "one letter a ticker"
    )
    standin.faults.clear()
    assert ingest(given(), NOW).dead_letters == 0, "a plain ingest works the queue off too"


def test_provisional_and_bad_rows_of_a_vendor_pass_the_same_gate_as_files(given, standin):
    source, _ = quick(given())
    quality = inspect_bars(fetched(source, ["AAA", "BBB"]), now="2020-03-06T16:00Z")
    assert quality.faulty == 0 and set(quality.bad.reason) == {"not closed yet"} and len(quality.bad) == 2 * 3

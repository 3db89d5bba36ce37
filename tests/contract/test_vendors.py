"""Vendors: every recorded answer is read or refused with a reason, the chain is one source, only what is
missing is asked for, and no key is ever shown."""

import json
import logging
import re
import subprocess
import sys
from datetime import UTC, datetime
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import EmptyUniverse, ParameterRefused, PortTaken, SettingsError, UnknownName
from stockpredict.core.errors import VendorFailed, VendorThrottled
from stockpredict.core.http import (
    VendorRequest,
    CircuitBreaker,
    RequestBudget,
    VendorFailure,
    ApiKey,
    RequestLedger,
    VendorClient,
    backoff,
    parse_retry_after,
)
from stockpredict.core.http import run_async, check_answer
from stockpredict.core.settings import Settings
from stockpredict.sources.bars import tidy_bars
from stockpredict.ingest.ingest import ingest, load_bars
from stockpredict.ingest.plan import cut_plan
from stockpredict.lake.lake import Lake
from stockpredict.testing.vendor_contract import VENDOR_CHECKS, check_vendor_adapter
from stockpredict.sources.simulate import sample_bars, simulate
from stockpredict.testing.fake_vendors import FakeVendors, recent_market
from stockpredict.testing.vendor_replies import vendor_histories, infer_splits
from stockpredict.sources.vendor_facts import (
    fetch_fundamentals,
    fetch_macro,
    fetch_news,
    read_actions,
    parse_macro,
    read_news,
)
from stockpredict.sources.vendor_facts import read_reported, read_statements
from stockpredict.sources.vendor_chain import VendorChain, vendor_answers, consensus, dead_letters
from stockpredict.sources.vendors import vendors

NOW = "2020-03-11T12:00Z"
CALENDAR = get_calendar()


@pytest.fixture(scope="module")
def market():
    return sample_bars()


@pytest.fixture
def given(from_standin):
    return from_standin(
        {
            "data.universe": ["AAA", "BBB"],
            "data.start": "2019-01-01",
            "data.end": "2020-03-10",
            "sources.chain": ["yahoo", "tiingo"],
            "sources.retries": 0,
        }
    )


# ---- every recorded answer


def recorded(shared, provider, pattern):
    "Manifest rows whose address matches, with their bytes and their ticker."
    folder = shared / "api_fixtures"
    for row in json.loads((folder / "manifest.json").read_text()):
        url = urlsplit(row.get("url") or "")
        if row["provider"] == provider and re.search(pattern, unquote(url.path) + "?" + url.query):
            query = {k: v[0] for k, v in parse_qs(url.query).items()}
            findings = re.search(r"/(?:chart|daily)/([^/?]+)", unquote(url.path))
            yield (
                row["file"],
                (folder / row["file"]).read_bytes(),
                findings[1] if findings else query.get("symbol", ""),
                query,
            )


def outcome(name, body, ticker):
    "The table an adapter makes of a payload, or its reason against it."
    try:
        return vendors[name]().read(body, ticker)
    except VendorFailed as e:
        return e.context["reason"]


def test_every_yahoo_chart_is_read(shared):
    read = 0
    for file, body, ticker, query in recorded(shared, "yahoo", "/v8/finance/chart/"):
        findings, sent = outcome("yahoo", body, ticker), json.loads(body)["chart"]["result"][0]
        if query["interval"] != "1d":
            assert findings == "drift", file
            continue
        zone = sent["meta"]["exchangeTimezoneName"]
        days = [pd.Timestamp(t, unit="s", tz=zone).strftime("%Y-%m-%d") for t in sent["timestamp"]]
        assert findings.date.dt.strftime("%Y-%m-%d").tolist() == days, file
        theirs = np.array(sent["indicators"]["quote"][0]["close"], float)
        splits = (sent.get("events") or {}).get("splits", {}).values()
        raw = [
            c * np.prod([s["numerator"] / s["denominator"] for s in splits if s["date"] > t] or [1])
            for c, t in zip(theirs, sent["timestamp"])
        ]
        assert np.allclose(findings.close, raw, rtol=1e-6), file
        bars = tidy_bars(findings.assign(ticker=ticker), source="x")
        assert np.allclose(bars.adj_close, sent["indicators"]["adjclose"][0]["adjclose"]), file
        read += 1
    assert read >= 40


def test_a_split_is_undone_and_its_factor_stays(shared):
    "NVDA split four for one on 2021-07-20: raw prices fall, adjusted ones do not."
    body = next(b for f, b, *_ in recorded(shared, "yahoo", "/v8/finance/chart/NVDA") if "split" in f)
    findings = outcome("yahoo", body, "NVDA").set_index("date")
    ratio = findings.close["2021-07-20"] / findings.close["2021-07-19"]
    adjusted = findings.adj_close["2021-07-20"] / findings.adj_close["2021-07-19"]
    assert 0.22 < ratio < 0.28 and 0.9 < adjusted < 1.1
    sent = json.loads(body)["chart"]["result"][0]
    before = sum(t < 1626787800 for t in sent["timestamp"])
    assert np.allclose(
        findings.volume.iloc[:before] * 4, sent["indicators"]["quote"][0]["volume"][:before], rtol=1e-6
    )


def test_tiingo_says_the_same_in_both_forms(shared):
    kinds, frames = {}, {}
    for file, body, ticker, query in recorded(shared, "tiingo", r"/tiingo/daily/[^/]+/prices"):
        findings = outcome("tiingo", body, ticker)
        kinds[file] = findings if isinstance(findings, str) else len(findings)
        if query.get("startDate") and query.get("resampleFreq") == "daily":
            frames.setdefault((ticker, query["startDate"]), []).append(findings)
    assert [f for f, k in kinds.items() if k == "drift"] == [
        f"tiingo/ticker_price_with_{x}.json" for x in ("multiple_columns", "volume_column")
    ]
    assert all(k == "drift" or k > 0 for k in kinds.values()) and len(kinds) >= 16
    for same in frames.values():
        for other in same[1:]:
            a, b = (tidy_bars(f.assign(ticker="GOOGL"), source="x") for f in (same[0], other))
            pd.testing.assert_frame_equal(a, b)
    assert all(len(same) > 1 for same in frames.values())


def test_alpha_vantage_daily_in_both_forms(shared):
    daily = {
        f: outcome("alphavantage", b, t)
        for f, b, t, _ in recorded(shared, "alphavantage", "TIME_SERIES_DAILY")
    }
    plain, adjusted = (
        next(v for k, v in daily.items() if ("ADJUSTED" in k) == want) for want in (False, True)
    )
    assert len(plain) == len(adjusted) == 100 and "adj_close" not in plain
    a, b = (tidy_bars(f.assign(ticker="IBM"), source="x") for f in (plain, adjusted))
    pd.testing.assert_frame_equal(a, b[a.columns], rtol=1e-6)
    rows = {
        r.timestamp: {
            "1. open": r.open,
            "2. high": r.high,
            "3. low": r.low,
            "4. close": r.close,
            "5. volume": r.volume,
        }
        for r in plain.rename(columns={"date": "timestamp"}).itertuples()
    }
    as_json = outcome(
        "alphavantage", json.dumps({"Meta Data": {}, "Time Series (Daily)": rows}).encode(), "IBM"
    )
    pd.testing.assert_frame_equal(tidy_bars(as_json.assign(ticker="IBM"), source="x"), a)
    assert [
        outcome("alphavantage", b, "IBM")
        for _, b, *_ in recorded(shared, "alphavantage", "TIME_SERIES_INTRADAY")
    ] == ["drift"]
    mock = (shared / "api_fixtures/alphavantage/py_mock_time_series.json").read_bytes()
    assert outcome("alphavantage", mock, "MSFT") == "drift"


def test_fmp_agrees_with_the_price_file(shared):
    [(_, body, _, _)] = recorded(shared, "fmp", "historical-price-eod/full")
    findings = tidy_bars(outcome("fmp", body, "AAPL").assign(ticker="AAPL"), source="x")
    assert len(findings) == 5
    kept_rows = pd.read_parquet(shared / "us_daily_2016_2026_recent.parquet").query("ticker == 'AAPL'")
    kept_rows = kept_rows.assign(day=pd.to_datetime(kept_rows.date)).set_index("day").close.astype(float)
    assert np.allclose(findings.close, kept_rows[CALENDAR.day_of(findings.event_time)], rtol=2e-3)
    [(_, light, _, _)] = recorded(shared, "fmp", "historical-price-eod/light")
    with pytest.raises(VendorFailed, match=r"has lost open, high, low, close; new in it: price"):
        vendors["fmp"]().read(light, "AAPL")


def test_recorded_errors_have_reasons(shared):
    folder, reply = shared / "api_fixtures", {}
    for row in json.loads((folder / "manifest.json").read_text()):
        if row.get("status") == 200:
            continue
        with pytest.raises(VendorFailed) as e:
            check_answer(row["provider"], row["status"], (folder / row["file"]).read_bytes())
        assert e.value.context["evidence"] and str(row["status"]) in str(e.value)
        reply.setdefault(row["status"], set()).add(e.value.context["reason"])
    assert reply == {404: {"bad-symbol"}, 400: {"refused"}, 403: {"plan"}}


def test_recorded_answers_travel_through_the_stand_in(shared, tmp_path):
    with FakeVendors(folder=shared / "api_fixtures") as recordings:

        def ask(vendor, ticker, start, end):
            s = Settings().with_(
                **{
                    "storage.home": str(tmp_path / vendor),
                    "data.source": "vendors",
                    "data.universe": [ticker],
                    "sources.chain": [vendor],
                    "sources.base_urls": f"all={recordings.url}",
                    "sources.retries": 0,
                }
            )
            source = VendorChain(s)
            return source.fetch([ticker], start, end), source

        bars, source = ask("yahoo", "AAPL", "2020-08-31", "2020-11-06")
        assert (
            len(bars) == 49 and bars.adj_close.notna().all() and source.answered["AAPL"]["vendor"] == "yahoo"
        )
        assert len(ask("tiingo", "GOOGL", "2018-01-05", "2018-01-19")[0]) == 10
        assert len(ask("fmp", "AAPL", "2024-02-22", "2024-02-28")[0]) == 5
        assert len(ask("alphavantage", "IBM", "2026-01-02", "2026-05-15")[0]) == 93
        for vendor, why in (
            ("fmp", "empty"),
            ("yahoo", "bad-symbol"),
            ("tiingo", "bad-symbol"),
            ("alphavantage", "bad-symbol"),
        ):
            nobody, source = ask(vendor, "ZZZZ", "2024-02-22", "2024-02-28")
            assert len(nobody) == 0 and source.failed["ZZZZ"]["failures"][0]["reason"] == why


# ---- one source


def test_the_chain_is_a_source_like_any_other(given, standin):
    s = VendorChain(given())
    bars = s.fetch(["BBB", "AAA"], "2019-05-01", "2019-06-28")
    assert bars.ticker.drop_duplicates().tolist() == ["AAA", "BBB"], (
        "in the order of tickers, whoever answered first"
    )
    assert (
        set(bars.source) == {"vendors-standin"}
        and VendorChain(given(sources__base_urls="tiingo=https://my.proxy")).id == "vendors"
    )
    with pytest.raises(EmptyUniverse, match=r"\[data\] universe"):
        VendorChain(given(data__universe=[])).tickers()
    with pytest.raises(UnknownName, match="Did you mean yahoo"):
        VendorChain(given(sources__chain=["yaho"]))


@pytest.mark.parametrize("vendor", ["yahoo", "tiingo", "fmp", "alphavantage", "alphavantage_adjusted"])
def test_the_stand_in_and_the_adapters_agree(tmp_path, vendor):
    "The same market from every vendor, splits included."
    market = recent_market(12, 90, seed=4)
    shelf = vendor_histories(market)
    split = next(t for t, g in shelf.items() if g.later.max() != 1)
    with FakeVendors(market) as s:
        source = VendorChain(
            Settings().with_(
                **{
                    "storage.home": str(tmp_path),
                    "data.source": "vendors",
                    "data.universe": [split],
                    "sources.chain": [vendor],
                    "sources.base_urls": f"all={s.url}",
                }
            )
        )
        bars = source.fetch([split], "2019-01-02")
    expected = shelf[split]
    restated = vendor == "fmp"  # whose splits are not in the answer
    assert np.allclose(bars.close, expected.close / (expected.later if restated else 1), rtol=1e-6)
    assert np.allclose(bars.volume, expected.volume * (expected.later if restated else 1), rtol=1e-6)
    if "adj_close" in bars:
        assert np.allclose(bars.adj_close, expected.adj_close, rtol=1e-6)
    assert ("adj_close" in bars) == (vendor in ("yahoo", "tiingo", "alphavantage_adjusted"))


def test_splits_are_found_where_the_simulation_put_them():
    created = simulate("realistic", 40, 200, seed=5)
    findings = {
        (t, str(CALENDAR.day_of([at])[0].date()), round(r, 6))
        for t, b in created.bars.groupby("ticker")
        for at, r in infer_splits(b.reset_index(drop=True)).items()
    }
    assert (
        findings == {(x["ticker"], x["session"], x["ratio"]) for x in created.truth["splits"]}
        and len(findings) >= 4
    )


def test_a_fallback_continues_one_history(given, standin):
    s = given()
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


def test_second_opinions_are_compared(given, standin):
    standin.fault("hundred", vendor="yahoo", ticker="AAA")
    s = VendorChain(given(sources__opinions=3, sources__chain=["yahoo", "tiingo", "fmp"]))
    bars = s.fetch(["AAA", "BBB"], "2019-05-01", "2019-05-31")
    assert (
        {d["used"] for d in s.differ} == {"tiingo"}
        and {d["ticker"] for d in s.differ} == {"AAA"}
        and len(s.differ) == 22
    )
    plain = VendorChain(given(sources__chain=["tiingo"])).fetch(["AAA", "BBB"], "2019-05-01", "2019-05-31")
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


def test_only_what_is_missing_is_asked_for(given, standin):
    s = given(sources__chain=["tiingo"], data__end="2020-03-04")
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


def test_a_backfill_goes_on_where_it_was_stopped(given, standin):
    s = given(data__universe=["AAA", "BBB", "CCC", "DDD"], sources__batch=1, sources__at_once=1)
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


def test_an_interrupted_earlier_start_leaves_no_hole(given, standin):
    late = given(data__start="2019-09-03", sources__batch=1)
    ingest(late, NOW)
    early = given(sources__batch=1)

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


# ---- budgets and politeness, on a clock of our own


class Clock:
    "Time that passes only when somebody sleeps."

    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def polite(tmp_path, clock, **more):
    plain = dict(clock=clock, sleep=clock.sleep, deadline=1000.0, budgets={"tiingo": RequestBudget(1, 1000)})
    return VendorClient(RequestLedger(tmp_path / "ledger.sqlite"), **plain | more)


def prices(standin, ticker="AAA"):
    return VendorRequest(
        "tiingo",
        f"{standin.url}/tiingo/daily/{ticker}/prices",
        (("format", "csv"), ("startDate", "2019-06-03"), ("endDate", "2019-06-04")),
    )


async def several(client, asks):
    async with client.session():
        return [await client.get(a) for a in asks]


def test_the_budget_a_second_is_kept(tmp_path, standin):
    clock = Clock()
    run_async(several(polite(tmp_path, clock), [prices(standin)] * 5))
    assert clock.slept == [1.0] * 4


def test_the_budget_a_day_survives_a_restart(tmp_path, standin):
    day = [datetime(2026, 1, 5, 23, 59, tzinfo=UTC)]

    def make():
        return polite(tmp_path, Clock(), budgets={"tiingo": RequestBudget(100, 3)}, today=lambda: day[0])

    run_async(several(make(), [prices(standin)] * 2))
    with pytest.raises(VendorThrottled, match="Today's 3 requests to tiingo are spent") as e:
        run_async(several(make(), [prices(standin)] * 2))
    assert e.value.context["reason"] == "budget-spent" and len(standin.requests) == 3
    day[0] = datetime(2026, 1, 6, 0, 1, tzinfo=UTC)
    assert len(run_async(several(make(), [prices(standin)] * 3))) == 3
    assert RequestLedger(tmp_path / "ledger.sqlite").spent("2026-01-05") == {"tiingo": 3}


def test_two_processes_share_one_budget(tmp_path):
    code = (
        "import sys; from stockpredict.core.http import RequestLedger; l = RequestLedger(sys.argv[1]); "
        "print(sum(l.spend('x', 50, 'd') for _ in range(40)))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "l.sqlite")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert sum(int(p.communicate(timeout=60)[0]) for p in both) == 50


def test_pauses_grow_and_are_drawn_by_chance():
    class Half:
        def random(self):
            return 0.5

    assert [backoff(n, Half()) for n in (1, 2, 3, 20)] == [0.375, 0.75, 1.5, 22.5]
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT", datetime(2015, 10, 21, 7, 27, tzinfo=UTC)) == 60
    assert (
        parse_retry_after("-3", datetime.now(UTC))
        is parse_retry_after("soon", datetime.now(UTC))
        is parse_retry_after(None, datetime.now(UTC))
        is None
    )


def test_a_breaker_opens_rests_and_probes_once():
    clock = Clock()
    b = CircuitBreaker(clock=clock)
    for _ in range(4):
        assert b.allow()
        b.report(False)
    assert b.state == "closed"
    b.report(None)
    assert b.failures == 4, "a throttle says nothing about health"
    b.report(False)
    assert b.state == "open" and not b.allow()
    clock.now = 60
    assert b.state == "half-open" and [b.allow(), b.allow()] == [True, False]
    b.report(False)
    assert b.state == "open"
    clock.now = 121
    assert b.allow()
    b.report(True)
    assert b.state == "closed" and b.allow()


# ---- keys


@pytest.mark.parametrize("place", [dict(param="apikey"), dict(header="Authorization", form="Token {}")])
@pytest.mark.parametrize("fault", ["html", "500", "reset", "bad-key", ""])
def test_a_key_is_sent_and_never_shown(tmp_path, standin, monkeypatch, caplog, place, fault):
    secret = "s3cr/t+key=="
    monkeypatch.setenv("TIINGO_API_KEY", secret)
    caplog.set_level(logging.DEBUG)
    if fault:
        standin.fault(fault, 9)
    sent = []
    plain = FakeVendors.answer
    monkeypatch.setattr(
        FakeVendors,
        "answer",
        lambda self, path, query, wish="": sent.append(query) or plain(self, path, query, wish),
    )
    ask, client = prices(standin), polite(tmp_path, Clock(), retries=1)
    ask = VendorRequest(ask.vendor, ask.url, ask.params, ApiKey("TIINGO_API_KEY", **place))

    def echo(body):
        raise VendorFailed(
            f"They say: your key {secret} is wrong.",
            reason="refused",
            vendor="tiingo",
            evidence=f"key={secret}",
        )

    try:
        run_async(several_read(client, ask, echo))
    except VendorFailed as e:
        reply = f"{e!r} {e} {e.as_dict()} {VendorFailure.of(e)} {e.__cause__} {e.__context__}"
    assert sent and ("param" not in place or sent[0]["apikey"] == secret)
    shown = (
        reply
        + caplog.text
        + repr(ask)
        + (tmp_path / "ledger.sqlite").read_bytes().decode("latin-1")
        + repr(standin.requests)
    )
    for form in (secret, "s3cr%2Ft%2Bkey%3D%3D", "s3cr/t%2Bkey%3D%3D"):
        assert form not in shown
    if not fault:
        assert "[key]" in reply and "HTTP Request" in caplog.text


async def several_read(client, ask, read):
    async with client.session():
        return await client.get(ask, read)


def test_a_missing_key_costs_no_request(tmp_path, monkeypatch):
    monkeypatch.delenv("FMP_API_KEY", raising=False)
    s = VendorChain(
        Settings().with_(
            **{"storage.home": str(tmp_path), "data.universe": ["AAA"], "sources.chain": ["fmp"]}
        )
    )
    assert len(s.fetch(["AAA"], "2020-01-02", "2020-01-10")) == 0 and s.requests == 0
    assert (
        s.failed["AAA"]["failures"][0]["reason"] == "bad-key"
        and "FMP_API_KEY is not set" in s.failed["AAA"]["failures"][0]["sentence"]
    )


# ---- settings and the stand-in itself


def test_settings_of_sources_are_checked():
    for key, value, reply in [
        ("sources.chain", ["yahoo", "yahoo"], "chain repeats yahoo"),
        ("sources.base_urls", "all=ftp://x", "http:// or https://"),
        ("sources.budgets", "yahoo=many", "such as 1/25"),
        ("sources.deadline", 0, "above 0"),
    ]:
        with pytest.raises(SettingsError, match=reply):
            Settings().with_(**{key: value})
    same = Settings().with_(**{"sources.retries": 9, "sources.base_urls": "all=http://127.0.0.1:1"})
    assert same.hash == Settings().hash != Settings().with_(**{"sources.chain": ["tiingo"]}).hash


def test_the_stand_in_takes_orders_over_http_and_remembers(standin):
    url = f"{standin.url}/tiingo/daily/AAA/prices?format=csv&startDate=2019-06-03&endDate=2019-06-04"
    assert (
        httpx.post(
            f"{standin.url}/admin/faults",
            json=[dict(kind="429", times=1, wait=7), dict(kind="html", vendor="fmp")],
        ).status_code
        == 200
    )
    first, second = httpx.get(url), httpx.get(url)
    assert (first.status_code, first.headers["retry-after"], second.status_code) == (429, "7", 200) and len(
        second.text.splitlines()
    ) == 3
    assert (
        httpx.get(url, headers={"X-Fault": "html"}).text.startswith("<!DOCTYPE")
        and "<" not in httpx.get(url + "&token=secret").text
    )
    assert httpx.get(url + "&fault=nonsense").status_code == 400
    reply = httpx.get(f"{standin.url}/admin/requests").json()
    assert [r["fault"] for r in reply] == [
        "429",
        "",
        "html",
        "",
    ] and "secret" not in str(reply)
    assert httpx.post(f"{standin.url}/admin/reset").json() == [] and standin.requests == []
    with pytest.raises(ParameterRefused, match="Did you mean"):
        standin.fault("htlm")
    with pytest.raises(PortTaken):
        FakeVendors(port=standin.port).start()


def test_chance_is_seeded(market):
    few = market.tail(3)

    def drawn(seed):
        s = FakeVendors(few, seed=seed).fault("500", 99, share=0.3)
        return [s.answer("/tiingo/daily/EEE/prices", {})[0] for _ in range(40)]

    assert drawn(1) == drawn(1) != drawn(2) and 3 < drawn(1).count(500) < 25


def test_a_newcomer_starts_it_from_a_shell():
    options = ["--port", "0", "--tickers", "5", "--sessions", "30", "--fault", "429:1:tiingo"]
    p = subprocess.Popen(
        [sys.executable, "-u", "-m", "stockpredict.testing.fake_vendors", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        reply = p.stdout.readline() + p.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", reply)[0]
        assert "stockpredict ingest --set data.source=vendors" in reply
        assert "SIM0,SIM1,SIM2,SIM3,SIM4" in reply
        ask = f"{url}/tiingo/daily/SIM0/prices?format=csv"
        assert [httpx.get(ask).status_code for _ in range(2)] == [429, 200]
        assert httpx.get(ask).text.strip().splitlines()[-1].startswith(str(CALENDAR.last_closed().date()))
    finally:
        p.kill()
        p.wait()


def test_dead_letters_are_a_frame_even_when_there_are_none(tmp_path):
    s = Settings().with_(**{"storage.home": str(tmp_path / "h")})
    assert list(dead_letters(s).columns) == [
        "source",
        "ticker",
        "start",
        "reason",
        "times",
        "first",
        "last",
        "failures",
        "wanted",
    ] and not len(dead_letters(s))
    assert list(vendor_answers(s).columns)[:3] == ["source", "ticker", "vendor"]


# ---- macro, fundamentals, news, corporate actions


def fixture(shared, part):
    "The recorded answer whose file name holds a part."
    [path] = [p for p in sorted((shared / "api_fixtures").rglob("*")) if part in p.name]
    return path.read_bytes()


def test_every_version_of_gdp_is_known_when_it_appeared(shared):
    body = fixture(shared, "test_series__test_get_series_asof_date_json")
    sent, findings = pd.DataFrame(json.loads(body)["observations"]), parse_macro(body, "GDP")
    assert len(findings) == len(sent) == 2902 and findings.value.isna().sum() == (sent.value == ".").sum() > 0
    assert (findings.known_at > findings.event_time).all(), "nobody knew a quarter on its first day"
    for day in ("1999-06-30", "2008-11-15", "2018-12-31"):
        theirs = sent[(sent.realtime_start <= day) & (sent.realtime_end >= day)].set_index("date").value
        ours = (
            findings[findings.known_at <= pd.Timestamp(day, tz="UTC") + pd.Timedelta(hours=30)]
            .groupby("event_time")
            .tail(1)
            .set_index("event_time")
            .value
        )
        ours.index = ours.index.strftime("%Y-%m-%d")
        pd.testing.assert_series_equal(
            ours.dropna().astype(float),
            pd.to_numeric(theirs[theirs != "."]).loc[ours.dropna().index],
            check_names=False,
        )
    today = parse_macro(fixture(shared, "test_series_collection__test_remove_series__2"), "CPILFESL")
    assert set(today.known_at) == {pd.Timestamp("2024-10-11 05:00", tz="UTC")}, (
        "without vintages: known on the day it was asked for, not before"
    )
    first = parse_macro(fixture(shared, "test_series__test_get_series_initial_release_json"), "GDP")
    assert len(first) == 132 and first.event_time.is_unique


def test_every_other_answer_of_fred_is_refused_as_no_series(shared):
    refused = 0
    for path in sorted((shared / "api_fixtures" / "fred").glob("*.json")):
        if b'"observations"' in path.read_bytes()[:600]:
            continue
        with pytest.raises(VendorFailed, match="no observations"):
            parse_macro(path.read_bytes(), "X")
        refused += 1
    assert refused >= 20


@pytest.mark.parametrize("part", ["INCOME_STATEMENT", "BALANCE_SHEET", "CASH_FLOW"])
def test_figures_are_known_when_they_were_reported(shared, part):
    heard = pd.Timestamp("2026-05-17T12:00Z")
    reported = read_reported(fixture(shared, "fundamental__EARNINGS_d56c999e"))
    body = fixture(shared, f"fundamental__{part}_")
    findings, sent = read_statements(body, "IBM", heard, reported), json.loads(body)
    assert len(findings[findings.form == "quarter"].event_time.unique()) == len(sent["quarterlyReports"])
    assert (findings.known_at > findings.event_time).all() and (findings.known_at <= heard).all()
    december = findings[(findings.event_time == "2025-12-31T00:00Z") & (findings.form == "year")]
    assert set(december.known_at) == {pd.Timestamp("2026-01-29 05:00", tz="UTC")}, (
        "reported on 2026-01-28 in New York"
    )
    row = sent["annualReports"][0]
    known = {
        k: float(v)
        for k, v in row.items()
        if k not in ("fiscalDateEnding", "reportedCurrency") and v != "None"
    }
    assert (
        findings[(findings.form == "year") & (findings.event_time == row["fiscalDateEnding"] + "T00:00Z")]
        .set_index("item")
        .value.to_dict()
        == known
    )
    assert set(read_statements(body, "IBM", heard).known_at) == {heard}, (
        "without a report date: known when heard"
    )


def test_headlines_are_known_when_they_were_found(shared):
    vantage = read_news("alphavantage", fixture(shared, "NEWS_SENTIMENT"))
    feed = json.loads(fixture(shared, "NEWS_SENTIMENT"))["feed"]
    named = {t["ticker"] for r in feed for t in r["ticker_sentiment"] if ":" not in t["ticker"]}
    assert set(vantage.ticker) == {t.replace(".", "-") if t[-2:-1] == "." else t for t in named}
    assert vantage.hash.nunique() == len({r["title"] + r["source"] for r in feed})
    tiingo = read_news("tiingo", fixture(shared, "news_empty_sources"))
    assert tiingo.ticker.tolist() == ["DEFI", "GOOG", "GOOGL"] and (
        tiingo.known_at - tiingo.event_time
    ).min() > pd.Timedelta("1h")
    assert len(read_news("fmp", fixture(shared, "news__stock__symbols=AAPL"))) >= 1
    assert len(read_news("tiingo", (shared / "api_fixtures/tiingo/news.json").read_bytes())) >= 6
    for part in ("news_bulk.json", "news_bulk_file_ids.json"):
        with pytest.raises(VendorFailed) as e:
            read_news("tiingo", fixture(shared, part))
        assert e.value.context["reason"] == "plan"


def test_splits_and_dividends_of_four_vendors(shared):
    paid = read_actions("alphavantage", fixture(shared, "fundamental__DIVIDENDS"), "IBM")
    assert len(paid) == len(fixture(shared, "fundamental__DIVIDENDS").splitlines()) - 1
    last = paid.iloc[-1]
    assert (str(last.event_time.date()), last.value, last.known_at) == (
        "2026-05-08",
        1.69,
        pd.Timestamp("2026-04-23 04:00", tz="UTC"),
    )
    assert read_actions("alphavantage", fixture(shared, "fundamental__SPLITS"), "IBM").value.tolist() == [
        2.0,
        1.046,
    ]
    msft = read_actions("yahoo", fixture(shared, "historical-via-chart-MSFT-dividends"), "MSFT")
    assert msft.event_time.dt.strftime("%Y-%m-%d").tolist() == [
        "2021-02-17",
        "2021-05-19",
        "2021-08-18",
        "2021-11-17",
    ]
    assert msft.value.tolist() == [0.56, 0.56, 0.56, 0.62]
    nvda = read_actions("yahoo", fixture(shared, "historical-via-chart-NVDA-split"), "NVDA")
    assert [(r.kind, r.value, str(r.event_time.date())) for r in nvda.itertuples()] == [
        ("split", 4.0, "2021-07-20")
    ]
    assert len(read_actions("tiingo", fixture(shared, "ticker_price_pandas_daily_csv"), "GOOGL")) == 0
    assert set(read_actions("fmp", fixture(shared, "dividends__symbol=AAPL"), "AAPL").kind) == {"dividend"}


def test_tables_are_asked_for_politely_and_fit_the_lake(shared, tmp_path, monkeypatch):
    monkeypatch.delenv("FRED_API_KEY", raising=False)
    with FakeVendors(folder=shared / "api_fixtures") as recordings:
        s = Settings().with_(
            **{
                "storage.home": str(tmp_path / "h"),
                "sources.base_urls": f"all={recordings.url}",
                "sources.retries": 0,
            }
        )
        gdp = fetch_macro(s, "GDP")
        output = fetch_fundamentals(s, "IBM", ("BALANCE_SHEET",), now=pd.Timestamp("2026-05-17T12:00Z"))
        reply = fetch_news(s, "AAPL", "alphavantage")
        recordings.fault("throttled")
        with pytest.raises(VendorFailed) as e:
            fetch_fundamentals(s, "IBM")
        assert e.value.context["reason"] == "throttled"
        assert {r["vendor"] for r in recordings.requests} == {"fred", "alphavantage"}
    with Lake(s.storage) as lake:
        for table, frame in (("macro", gdp), ("fundamentals", output), ("news", reply)):
            assert lake.add(table, frame, source="x").rows_new > 0
            assert lake.add(table, frame, source="x").rows_new == 0, "said before, not stored again"
    with pytest.raises(VendorFailed, match="FRED_API_KEY is not set"):
        fetch_macro(s.with_(**{"sources.base_urls": {}}), "GDP")


# ---- the checks of an adapter


@pytest.mark.parametrize("vendor", ["yahoo", "tiingo", "fmp", "alphavantage"])
def test_every_adapter_passes_all_checks(vendor, market):
    report = check_vendor_adapter(vendor, market[market.ticker == "AAA"])
    assert report[~report.passed].to_dict("records") == [] and len(report) == len(VENDOR_CHECKS) + 6


def test_the_guide_adds_a_vendor_in_under_forty_lines(root):
    cells = [
        "".join(c["source"])
        for c in json.loads((root / "nbs/guides/add_a_source.ipynb").read_text())["cells"]
        if c["cell_type"] == "code"
    ]
    adapter, teaching = (next(c for c in cells if mark in c) for mark in ("@vendor", "def teach"))
    assert (
        sum(
            bool(line.strip())
            for line in (adapter + "\n" + teaching.split("with FakeVendors")[0]).splitlines()
        )
        < 40
    )
    until_checked = cells[: 1 + next(i for i, c in enumerate(cells) if "check_vendor_adapter(" in c)]
    code = "import matplotlib; matplotlib.use('agg')\n" + "\n".join(until_checked)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=root / "nbs" / "guides"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{len(VENDOR_CHECKS) + 6} of {len(VENDOR_CHECKS) + 6} checks passed" in done.stdout

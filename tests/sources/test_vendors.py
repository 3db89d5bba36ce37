"""Vendors: every recorded answer is read or refused with a reason, and the chain is one source."""

import json
import re
import sys
from urllib.parse import parse_qs, unquote, urlsplit

import patience
import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import (
    EmptyUniverse,
    SettingsError,
    UnknownName,
    VendorFailed,
)
from stockpredict.core.http import (
    check_answer,
)
from stockpredict.core.settings import Settings
from stockpredict.sources.bars import tidy_bars
from stockpredict.sources.simulate import sample_bars, simulate
from stockpredict.sources.vendor_chain import VendorChain, dead_letters, vendor_answers
from stockpredict.sources.vendors import vendors
from stockpredict.testing.fake_vendors import FakeVendors, recent_market
from stockpredict.testing.vendor_contract import VENDOR_CHECKS
from stockpredict.testing.vendor_replies import infer_splits, vendor_histories

CALENDAR = get_calendar()


@pytest.fixture(scope="module")
def market():
    return sample_bars()


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


def test_the_chain_is_a_source_like_any_other(two_vendors, standin):
    s = VendorChain(two_vendors())
    bars = s.fetch(["BBB", "AAA"], "2019-05-01", "2019-06-28")
    assert bars.ticker.drop_duplicates().tolist() == ["AAA", "BBB"], (
        "in the order of tickers, whichever vendor answered first"
    )
    assert (
        set(bars.source) == {"vendors-standin"}
        and VendorChain(two_vendors(sources__base_urls="tiingo=https://my.proxy")).id == "vendors"
    )
    with pytest.raises(EmptyUniverse, match=r"\[data\] universe"):
        VendorChain(two_vendors(data__universe=[])).tickers()
    with pytest.raises(UnknownName, match="Did you mean yahoo"):
        VendorChain(two_vendors(sources__chain=["yaho"]))


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
    done = patience.run([sys.executable, "-c", code], cwd=root / "nbs" / "guides")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{len(VENDOR_CHECKS) + 6} of {len(VENDOR_CHECKS) + 6} checks passed" in done.stdout

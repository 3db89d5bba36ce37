"""Macro series, company figures, headlines and corporate actions of vendors."""

import json

import pandas as pd
import pytest

from stockpredict.core.errors import (
    VendorFailed,
)
from stockpredict.core.settings import Settings
from stockpredict.lake.lake import Lake
from stockpredict.sources.vendor_facts import (
    fetch_fundamentals,
    fetch_macro,
    fetch_news,
    parse_macro,
    read_actions,
    read_news,
    read_reported,
    read_statements,
)
from stockpredict.testing.fake_vendors import FakeVendors

# ---- macro, fundamentals, news, corporate actions


def fixture(shared, part):
    "The recorded answer whose file name holds a part."
    [path] = [p for p in sorted((shared / "api_fixtures").rglob("*")) if part in p.name]
    return path.read_bytes()


def test_every_version_of_gdp_is_known_when_it_appeared(shared):
    body = fixture(shared, "test_series__test_get_series_asof_date_json")
    sent, findings = pd.DataFrame(json.loads(body)["observations"]), parse_macro(body, "GDP")
    assert len(findings) == len(sent) == 2902 and findings.value.isna().sum() == (sent.value == ".").sum() > 0
    assert (findings.known_at > findings.event_time).all(), "no quarter was known on its first day"
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

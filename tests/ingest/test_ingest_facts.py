"""Facts: asks only for what is missing, stores when each was known, and failures stay apart."""

import json

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import DataError
from stockpredict.core.settings import load_settings
from stockpredict.ingest.facts import due_requests, fact_freshness, fact_requests, ingest_due_facts
from stockpredict.ingest.facts import ingest_facts, member_changes, request_log, scheduled_requests
from stockpredict.lake.lake import Lake
from stockpredict.lake.reference_files import read_sectors
from stockpredict.sources.simulate import simulate
from stockpredict.testing.fake_vendors import FakeVendors
from stockpredict.sources.vendor_facts import fetch_constituents, read_constituents

MORNING, EVENING, NEXT = "2024-03-04T14:00Z", "2024-03-04T23:00Z", "2024-03-05T23:00Z"


class Vendors:
    "What the vendors would say; a test changes it between two runs."

    def __init__(self):
        self.vintages = [("2024-02-29", "2024-03-01", 4.2), ("2024-03-01", "2024-03-04", 4.3)]
        self.members = [
            ("AAA", "Energy", "Oil", "2020-01-02"),
            ("BBB", "Technology", "Chips", "2021-06-01"),
            ("CCC", "Energy", "Gas", ""),
        ]

    def fred(self, series, goods, query):
        since = query.get("realtime_start", "")
        rows = [
            dict(date=d, realtime_start=max(k, since), realtime_end="9999-12-31", value=str(v))
            for d, k, v in self.vintages
        ]
        return 200, json.dumps(dict(count=len(rows), observations=rows))

    def fmp(self, ticker, goods, query):
        rows = [
            dict(
                symbol=t, name=t, sector=s, subSector=i, headQuarter="", dateFirstAdded=d, cik="", founded=""
            )
            for t, s, i, d in self.members
        ]
        return 200, json.dumps(rows)

    def news(self, ticker, goods, query):
        return 200, json.dumps(
            [
                dict(
                    title=f"{ticker} beats estimates",
                    source="paper",
                    url="http://x",
                    publishedDate="2024-03-04T12:00:00Z",
                    crawlDate="2024-03-04T13:30:00Z",
                    tickers=[ticker.lower()],
                )
            ]
        )


@pytest.fixture
def world(tmp_path):
    vendors = Vendors()
    with FakeVendors() as fake:
        fake.teach("fred", r"/fred/series/observations", vendors.fred, lambda q: q["series_id"])
        fake.teach("fmp", r"/stable/sp500-constituent", vendors.fmp, lambda q: "SP500")
        fake.teach("tiingo", r"/tiingo/news", vendors.news, lambda q: q["tickers"])
        settings = load_settings(
            environ={},
            overrides={
                "storage.home": str(tmp_path),
                "sources.base_urls": {"all": fake.url},
                "sources.retries": 0,
                "sources.deadline": 5.0,
                "sources.budgets": {v: "1000/100000" for v in ("fred", "fmp", "tiingo")},
                "data.universe": ["AAA", "BBB"],
                "facts.macro": ["DGS10"],
                "facts.news": True,
                "facts.members": ["sp500"],
            },
        )
        with Lake(settings.storage) as lake:
            lake.append(simulate("null", tickers=3, sessions=30, seed=1).bars)
        yield settings, fake, vendors


def stored(settings, table, as_of=None, **where):
    with Lake(settings.storage, read_only=True) as lake:
        return lake.facts(table, as_of, **where)


def test_nothing_is_asked_by_default(tmp_path):
    bare = load_settings(environ={}, overrides={"storage.home": str(tmp_path)})
    assert (
        scheduled_requests(bare) == []
        and ingest_due_facts(bare).empty
        and fact_freshness(bare).empty
        and not (tmp_path / "facts.json").exists()
    )


def test_a_second_run_asks_for_nothing_and_the_next_day_only_for_what_has_grown_old(world):
    settings, fake, _ = world
    first = ingest_due_facts(settings, now=EVENING)
    assert len(first) == 5 and (first.reason == "").all() and (first.rows_new > 0).all()
    asked = len(fake.request_log())
    assert ingest_due_facts(settings, now="2024-03-04T23:30Z").empty and len(fake.request_log()) == asked
    again = ingest_due_facts(settings, now=NEXT)
    assert set(again.table) == {"macro", "news"} and again.rows_new.sum() == 0, (
        "lists of members are good for a week"
    )
    query = fake.request_log().query("vendor == 'fred'")["query"].tolist()
    assert query[0]["realtime_start"] == "1776-07-04" and query[1]["realtime_start"] == "2024-03-03", (
        "only vintages since the newest stored one"
    )


def test_every_fact_counts_from_when_it_was_known_and_revisions_stay_apart(world):
    settings, _, vendors = world
    ingest_due_facts(settings, now="2024-03-05T14:00Z")
    assert stored(settings, "macro", "2024-03-04T23:00Z").value.tolist() == [4.2], (
        "Monday's figure is out when Monday is over"
    )
    vendors.vintages.append(("2024-02-29", "2024-03-06", 4.25))
    done = ingest_due_facts(settings, now="2024-03-07T14:00Z").set_index("table")
    assert done.rows_revised["macro"] == 1 and done.rows_new["macro"] == 0
    assert stored(settings, "macro").value.tolist() == [4.25, 4.3] and stored(
        settings, "macro", "2024-03-06T12:00Z"
    ).value.tolist() == [4.2, 4.3]
    news = stored(settings, "news", ticker="AAA")
    assert str(news.known_at.item()) == "2024-03-04 13:30:00+00:00", (
        "known when it was found, not when it was dated"
    )


def test_members_come_and_go_as_it_was_learned(world):
    settings, _, vendors = world
    ingest_due_facts(settings, now=EVENING)
    with Lake(settings.storage, read_only=True) as lake:
        assert lake.members("sp500", "2024-03-05") == ["AAA", "BBB", "CCC"] and lake.members(
            "sp500", "2020-06-01"
        ) == ["AAA"]
    vendors.members = [
        vendors.members[0],
        ("BBB", "Technology", "Software", "2021-06-01"),
        ("DDD", "Utilities", "Water", "2024-03-11"),
    ]
    done = ingest_due_facts(settings, now="2024-03-13T23:00Z").set_index("table")
    assert done.rows_new["members"] == 1 and done.rows_revised["members"] == 1
    with Lake(settings.storage, read_only=True) as lake:
        assert lake.members("sp500", "2024-03-14") == ["AAA", "BBB", "DDD"]
        assert lake.members("sp500", "2024-03-14", as_of="2024-03-12") == ["AAA", "BBB", "CCC", "DDD"], (
            "that CCC had gone was learned on the 13th"
        )
    sectors = stored(settings, "sectors", ticker="BBB")
    assert (
        sectors.industry.tolist() == ["Chips", "Software"] and (sectors.known_at == sectors.event_time).all()
    )
    assert len(stored(settings, "sectors", ticker="AAA")) == 1, "what has not changed is not stored again"


def test_a_list_that_lost_most_members_is_refused(world):
    settings, _, vendors = world
    ingest_due_facts(settings, now=EVENING)
    vendors.members = vendors.members[:1]
    done = ingest_due_facts(settings, now="2024-03-13T23:00Z").set_index("table")
    assert done.reason["members"] == "drift" and "refused" in done.sentence["members"]
    with Lake(settings.storage, read_only=True) as lake:
        assert len(lake.members("sp500", "2024-03-14")) == 3
    with pytest.raises(DataError, match="names 1 members where 3"):
        member_changes(settings, "sp500")


def test_a_vendor_that_fails_spoils_nothing_and_is_asked_again_at_once(world):
    settings, fake, vendors = world
    ingest_due_facts(settings, now=EVENING)
    fake.fault("500", 50, vendor="fred")
    vendors.vintages.append(("2024-03-04", "2024-03-05", 4.4))
    done = ingest_due_facts(settings, now="2024-03-06T14:00Z").set_index("table")
    assert done.reason["macro"] != "" and done.reason["news"].tolist() == ["", ""], "the others are through"
    assert stored(settings, "macro").value.tolist() == [4.2, 4.3], "stored facts stay"
    freshness = fact_freshness(settings).set_index("table")
    assert (
        freshness.failing["macro"] == 1
        and freshness.sentence["macro"]
        and freshness.failing["news"] == 0
        and freshness.rows["macro"] == 2
    )
    fake.faults.clear()
    healed = ingest_due_facts(settings, now="2024-03-06T14:05Z")
    assert (
        healed.table.tolist() == ["macro"]
        and healed.rows_new.item() == 1
        and fact_freshness(settings).failing.sum() == 0
    )


def test_a_vendor_that_refuses_the_key_is_left_alone(world):
    settings, fake, _ = world
    fake.fault("bad-key", 50, vendor="tiingo")
    done = ingest_due_facts(settings, now=EVENING)
    assert (done.table == "news").sum() == 1 and done[done.table == "news"].reason.item() == "bad-key", (
        "one refusal is enough for a run"
    )
    log = request_log(settings)
    assert set(log) >= {"macro:DGS10", "news:AAA"} and "news:BBB" not in log


def test_a_run_sends_no_more_than_it_may_and_goes_on_where_it_stopped(world):
    settings, _, _ = world
    few = settings.with_(**{"facts.at_most": 2})
    done = [ingest_due_facts(few, now=EVENING) for _ in range(4)]
    assert [len(d) for d in done] == [2, 2, 1, 0]
    assert due_requests(scheduled_requests(few), {}, pd.Timestamp(EVENING))[0].table == "macro"


def test_a_page_of_notes_that_is_damaged_costs_only_asking_again(world):
    settings, _, _ = world
    ingest_due_facts(settings, now=EVENING)
    (settings.storage.home_dir / "facts.json").write_text("{half")
    again = ingest_due_facts(settings, now=EVENING)
    assert len(again) == 5 and again.rows_new.sum() == 0 and np.isfinite(again.rows_same).all()


def test_the_scheduled_ingest_gathers_facts_and_stands_when_all_of_their_vendors_fall(world):
    from stockpredict.ops.pipeline import ingest_market
    from stockpredict.ops.work import open_work

    settings, fake, _ = world
    mine = settings.with_(
        **{
            "data.source": "simulated",
            "data.universe": [],
            "simulated.tickers": 3,
            "simulated.sessions": 40,
            "data.start": "1990-01-01",
            "features.names": ["ret_1", "term_spread"],
        }
    )
    first = ingest_market(mine)
    assert (
        {r["table"] for r in first["facts"]} == {"macro", "news", "members", "sectors"}
        and first["facts_mark"]
        and first["rows_new"] > 0
    )
    fake.fault("500", 500)
    (mine.storage.home_dir / "facts.json").unlink()
    again = ingest_market(mine)
    assert (
        all(r["reason"] for r in again["facts"])
        and again["facts_mark"] == first["facts_mark"]
        and again["fingerprint"] == first["fingerprint"]
    )
    assert open_work(mine, first) == open_work(mine, again)
    with Lake(mine.storage) as lake:
        lake.add(
            "macro", stored(mine, "macro").assign(value=9.0, known_at=pd.Timestamp("2025-01-01", tz="UTC"))
        )
    newer = ingest_market(mine)
    assert newer["facts_mark"] != first["facts_mark"] and open_work(mine, newer) != open_work(mine, first), (
        "other facts are another question"
    )
    plain = ingest_market(
        mine.with_(
            **{"features.names": ["ret_1"], "facts.macro": [], "facts.news": False, "facts.members": []}
        )
    )
    assert "facts" not in plain and "facts_mark" not in plain


def test_requests_of_your_own_and_lists_that_no_vendor_sells(world):
    settings, _, _ = world
    requests = fact_requests(settings, ["A"], ["B"], ["C"])
    assert [r.table for r in requests] == ["macro", "fundamentals", "news"]
    with pytest.raises(DataError, match="nikkei"):
        fetch_constituents(settings, "nikkei")
    options = {"facts.members": ["nikkei"], "facts.macro": [], "facts.news": False}
    done = ingest_facts(settings, scheduled_requests(settings.with_(**options)))
    assert (done.reason != "").all() and "No vendor lists" in done.sentence[0]


@pytest.mark.parametrize("index", ["sp500", "nasdaq", "dowjones"])
def test_recorded_lists_of_members_are_read(shared, index):
    freshness = read_constituents(
        (shared / "api_fixtures" / "fmp" / f"{index}-constituent__excerpt.json").read_bytes()
    )
    assert (
        len(freshness) >= 2
        and freshness.ticker.is_unique
        and freshness.sector.notna().all()
        and str(freshness.event_time.dt.tz) == "UTC"
    )
    if index == "sp500":
        assert str(freshness.set_index("ticker").event_time["ARES"].date()) == "2025-12-11"


def test_sectors_from_a_file_count_from_their_day(world, tmp_path):
    settings, _, _ = world
    (file := tmp_path / "sectors.csv").write_text(
        "ticker,sector,industry,valid_from\nAAA,Technology,Internet,2012-05-18\nAAA,Communication,Media,2018-09-24\n"
    )
    with Lake(settings.storage) as lake:
        assert lake.add("sectors", read_sectors(file)).rows_new == 2
    assert (
        stored(settings, "sectors", "2018-09-01").sector.tolist() == ["Technology"]
        and len(stored(settings, "sectors")) == 2
    )

"Facts with two times: versions, spells, and the oddities of recorded reference files."

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stockpredict.core.errors import ColumnsUnmapped, DataError, FileMissing, LakeUnavailable, UnknownTicker
from stockpredict.core.settings import Settings
from stockpredict.sources.bars import tidy_bars
from stockpredict.lake.facts import FACT_TABLES, fact_table
from stockpredict.lake.reference_facts import spells_as_known
from stockpredict.lake.lake import Lake
from stockpredict.quality.gate import inspect_bars
from stockpredict.lake.reference_files import publication_times, read_archive, read_factors, read_headlines
from stockpredict.lake.reference_files import (
    read_macro,
    read_members,
    read_reports,
    read_spells,
    read_reference_table,
)

COUNT = itertools.count()


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    with Lake(Settings().with_(**{"storage.home": str(tmp_path_factory.mktemp("facts"))}).storage) as lake:
        yield lake


def day(text):
    return pd.Timestamp(text, tz="UTC")


def gdp(series, *notices):
    return pd.DataFrame(
        [dict(series=series, event_time=day("2020-01-01"), known_at=day(k), value=v) for k, v in notices]
    )


# ---- the mechanism


def test_a_fact_needs_to_say_when_it_could_be_known(lake):
    bare = gdp("NEEDS", ("2020-05-01", 1.0)).drop(columns="known_at")
    with pytest.raises(DataError, match="A reference date is no release date"):
        lake.add("macro", bare)
    with pytest.raises(DataError, match="1 of 2 rows"):
        lake.add("macro", gdp("NEEDS", ("2020-05-01", 1.0), (None, 2.0)))
    assert lake.add("macro", bare, lag="30D").rows_new == 1
    assert (
        lake.macro("NEEDS", as_of="2020-01-30").empty
        and lake.macro("NEEDS", as_of="2020-01-31").NEEDS.item() == 1.0
    )
    with pytest.raises(DataError, match="lack event_time"):
        lake.add("macro", bare.drop(columns="event_time"), known_at="2020-01-01")
    with pytest.raises(DataError, match="have no series"):
        lake.add("macro", bare.assign(series=None), lag="1D")
    with pytest.raises(DataError, match="Did you mean macro"):
        lake.add("marco", bare)
    with pytest.raises(DataError, match="cannot be searched by value"):
        lake.facts("macro", value=1)


def test_what_was_said_before_is_not_stored_again(lake):
    notices = gdp("AGAIN", ("2020-02-01", 1.0), ("2020-03-01", 1.0), ("2020-04-01", 2.0), ("2020-05-01", 1.0))
    done = lake.add("macro", notices)
    assert (done.rows_new, done.rows_revised, done.rows_same) == (3, 0, 1), (
        "March said what February said; May takes April back"
    )
    at = lake.snapshot()
    for again in (notices, notices.iloc[::-1], notices.iloc[[2]], pd.concat([notices, notices])):
        assert lake.add("macro", again).rows_same == len(again)
    assert lake.snapshot() == at, "no commit for nothing"
    assert lake.facts("macro", versions=True, series="AGAIN").value.tolist() == [1.0, 2.0, 1.0]


def test_one_moment_two_values_the_later_line_wins_and_a_contradiction_is_a_correction(lake):
    both = gdp("TWICE", ("2020-02-01", 1.0), ("2020-02-01", 2.0))
    assert lake.add("macro", both).rows_new == 2 and lake.macro("TWICE").TWICE.item() == 2.0
    assert lake.add("macro", both).rows_same == 2
    done = lake.add("macro", gdp("TWICE", ("2020-02-01", 3.0)), now="2020-06-01")
    assert (
        done.rows_revised == 1
        and lake.macro("TWICE").TWICE.item() == 3.0
        and lake.macro("TWICE", as_of="2020-05-31").TWICE.item() == 2.0
    )


def test_two_sources_keep_histories_of_their_own(lake):
    lake.add("macro", gdp("SOURCES", ("2020-02-01", 1.0)), source="a")
    assert lake.add("macro", gdp("SOURCES", ("2020-03-01", 1.0)), source="b").rows_new == 1
    lake.add("macro", gdp("SOURCES", ("2020-04-01", 5.0)), source="b")
    assert lake.facts("macro", series="SOURCES").value.tolist() == [5.0] and lake.facts(
        "macro", series="SOURCES", source="a"
    ).value.tolist() == [1.0]


def test_absent_values_are_null_and_types_are_kept(lake):
    frame = pd.DataFrame(
        dict(
            ticker=["A"],
            item=["revenues"],
            form=["10-K"],
            event_time=["2020-01-01"],
            value=[np.nan],
            amended=[None],
        )
    )
    assert (
        lake.add("fundamentals", frame, lag="0D").rows_new == 1
        and lake.add("fundamentals", frame, lag="0D").rows_same == 1
    )
    assert (
        lake.sql("SELECT count(*) AS n FROM fundamentals WHERE value IS NULL AND amended IS NULL").n[0] == 1
    )


def test_names_of_tables_cannot_smuggle_sql(lake):
    for name in ("x; DROP TABLE bars", "Upper", "a b", "1a"):
        with pytest.raises(DataError, match="cannot name a table"):
            fact_table(name, "a VARCHAR", "b DOUBLE", "")
    with pytest.raises(DataError, match="another table"):
        fact_table("macro", "a VARCHAR", "b DOUBLE", "")
    evil = "'; DROP TABLE macro; --"
    lake.add("macro", gdp(evil, ("2020-02-01", 1.0)))
    assert lake.facts("macro", series=evil).value.tolist() == [1.0] and "macro" in lake.table_names()
    with pytest.raises(UnknownTicker):
        lake.resolve(evil, "2020-01-01")


def test_a_table_of_ones_own(lake):
    fact_table("ratings_test", "ticker VARCHAR, event_time", "grade VARCHAR", "A grade.")
    try:
        assert lake.facts("ratings_test").empty and list(lake.facts("ratings_test").columns) == list(
            FACT_TABLES["ratings_test"].columns
        )
        lake.add(
            "ratings_test",
            pd.DataFrame(dict(ticker=["A"], event_time=["2020-01-01"], grade=["AAA"])),
            known_at="2020-01-02",
        )
        assert (
            lake.facts("ratings_test", as_of="2020-01-01").empty
            and lake.facts("ratings_test").grade.item() == "AAA"
        )
    finally:
        del FACT_TABLES["ratings_test"]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6), st.integers(1, 3)), min_size=1, max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_any_vintages_in_the_order_they_became_known_agree_with_a_dictionary(lake, batches):
    "The model: per month, the value of the last line with a time up to the moment asked about."
    name, reported = f"model{next(COUNT)}", []
    for i, batch in enumerate(batches):
        lines = sorted([(m, i * 10 + k, v) for m, k, v in batch], key=lambda x: x[1])
        reported += lines
        rows = [
            dict(
                series=name,
                event_time=day(f"2020-0{m + 1}-01"),
                known_at=day("2021-01-01") + pd.Timedelta(days=k),
                value=v,
            )
            for m, k, v in lines
        ]
        lake.add("macro", pd.DataFrame(rows))
    for asked in (2, 5, 14, 30):
        expected = {m: v for m, k, v in sorted(reported, key=lambda x: x[1]) if k <= asked}
        result = lake.facts(
            "macro", as_of=str((day("2021-01-01") + pd.Timedelta(days=asked)).date()), series=name
        )
        assert {t.month - 1: v for t, v in zip(result.event_time, result.value, strict=True)} == expected


def test_a_kill_at_any_step_of_adding_leaves_all_or_nothing(lake):
    for i, step in enumerate(["facts staged", "facts begun", "facts written"]):

        def fail(name, step=step):
            if name == step:
                raise KeyboardInterrupt

        lake.step = fail
        with pytest.raises(KeyboardInterrupt):
            lake.add("macro", gdp(f"KILL{i}", ("2020-02-01", 1.0)))
        lake.step = lambda name: None
        assert (
            lake.facts("macro", series=f"KILL{i}").empty
            and lake.add("macro", gdp(f"KILL{i}", ("2020-02-01", 1.0))).rows_new == 1
        )


def test_snapshots_of_facts_and_a_reader_before_the_first(tmp_path):
    s = Settings().with_(**{"storage.home": str(tmp_path)}).storage
    with Lake(s) as lake:
        empty = lake.snapshot()
        one, two = (lake.add("macro", gdp("S", (f"2020-0{m}-01", m))).snapshot for m in (2, 3))
        assert lake.facts("macro", snapshot=empty).empty and [
            lake.facts("macro", snapshot=n).value.item() for n in (one, two)
        ] == [2, 3]
        assert lake.pin("here", one) == one and lake.facts("macro", snapshot="here").value.item() == 2
        with pytest.raises(LakeUnavailable, match="snapshots"):
            lake.facts("macro", snapshot=10**6)
        with pytest.raises(DataError, match="no snapshot"):
            lake.pin("x", 10**6)
        with Lake(s, read_only=True) as reader, pytest.raises(LakeUnavailable, match="opened for reading"):
            reader.add("macro", gdp("S", ("2020-04-01", 4)))


# ---- files


def test_files_and_columns_that_are_not_there(tmp_path):
    with pytest.raises(FileMissing, match=r"nothing\.csv"):
        read_reference_table(tmp_path / "nothing.csv", {})
    with pytest.raises(ColumnsUnmapped, match="no column 'start_date'"):
        read_members(pd.DataFrame(dict(ticker=["A"])), "x")
    with pytest.raises(ColumnsUnmapped, match="no series 'CP'"):
        read_macro(pd.DataFrame(dict(date=["2020-01-01"], CPI=[1.0])), dict(CP="1D"))


def test_spells_learn_their_end_when_it_comes(lake):
    lake.add(
        "members",
        spells_as_known(
            pd.DataFrame(
                dict(
                    index_name="tiny",
                    ticker=["A", "B"],
                    event_time=["2020-01-01"] * 2,
                    until=["2020-06-01", None],
                )
            )
        ),
    )
    assert lake.members("tiny", "2020-05-31") == ["A", "B"] and lake.members("tiny", "2020-06-01") == ["B"]
    assert lake.members("tiny", "2020-07-01", as_of="2020-05-01") == ["A", "B"], (
        "in May it was not known that A would leave"
    )
    with pytest.raises(DataError, match="Did you mean tiny"):
        lake.members("tinny", "2020-01-01")


@pytest.fixture(scope="module")
def raw(shared, tmp_path_factory):
    "A lake with the raw trade prices of 21 tickers, the map file and the factor file."
    path = shared / "us_daily_raw_unadjusted_1998_2021.parquet"
    files = pd.read_parquet(path)
    with Lake(Settings().with_(**{"storage.home": str(tmp_path_factory.mktemp("raw"))}).storage) as lake:
        spells = read_spells(shared / "reference" / "lean_map_files.csv")
        failed = spells_as_known(
            pd.DataFrame(
                dict(
                    security="WASHINGTON MUTUAL", ticker="WM", event_time=["1998-01-02"], until=["2008-09-29"]
                )
            )
        )
        lake.add("spells", pd.concat([spells, failed]), source="maps")
        factors = read_factors(shared / "reference" / "lean_factor_files.csv", "raw", spells)
        lake.append(
            tidy_bars(files, source="raw").dropna(subset="event_time"),
            now="2024-01-01T12:00Z",
            factors=factors,
        )
        yield lake


def test_one_company_through_three_tickers_and_the_failed_one_kept_apart(raw):
    waste, bank = raw.history("WM", adjusted=False), raw.history("WASHINGTON MUTUAL", adjusted=False)
    assert waste.ticker.unique().tolist() == ["UW", "WMI", "WM"]
    assert waste.event_time.is_monotonic_increasing and waste.event_time.is_unique
    assert [str(waste[waste.ticker == t].event_time.max().date()) for t in ("UW", "WMI")] == [
        "1998-07-16",
        "2009-08-04",
    ]
    assert len(waste) == 5849 and waste.close.pct_change().abs().max() < 0.45, "no cliff of 17,762 %"
    assert (
        str(bank.event_time.max().date()) == "2008-09-26"
        and bank.close.iloc[-1] == 0.16
        and len(bank) + len(waste) == sum(len(raw.bars(t, adjusted=False)) for t in ("UW", "WMI", "WM"))
    )
    assert [raw.resolve("WM", d) for d in ("2005-01-03", "2015-01-02")] == ["WASHINGTON MUTUAL", "WM"]
    assert raw.resolve("WMI", "2005-01-03") == raw.resolve("UW", "1998-03-02") == "WM"
    with pytest.raises(UnknownTicker, match="WASHINGTON MUTUAL"):
        raw.resolve("WM", "2009-01-15")
    assert raw.history("WASHINGTON MUTUAL").close.equals(bank.close), (
        "the dividends of a later bearer do not touch it"
    )
    assert raw.history("WM", as_of="2005-06-01").ticker.unique().tolist() == ["UW", "WMI"]


def test_factor_files_are_reproduced_by_adjusting_as_of_a_day(raw, shared):
    """Every price of every security equals price times the file's products, to a billionth; and seen from
    a day, only what had happened counts."""
    file, compared = pd.read_csv(shared / "reference" / "lean_factor_files.csv"), 0
    published = raw.sql("SELECT ticker, event_time, close FROM bars")
    ids = set(raw.securities().security)
    for security, rows in file.groupby("ticker"):
        if security not in ids:
            continue
        ours = raw.history(security)
        raw_bars = ours[["ticker", "event_time"]].merge(published, how="left")
        rows = rows.sort_values("date")
        product = (rows.price_factor * rows.split_factor).to_numpy()
        at = np.searchsorted(
            rows.date.to_numpy(), raw_bars.event_time.dt.strftime("%Y%m%d").astype(int).to_numpy()
        )
        theirs = raw_bars.close * product[np.minimum(at, len(product) - 1)] / product[-1]
        np.testing.assert_allclose(ours.close, theirs, rtol=1e-9)
        compared += len(ours)
    assert compared > 60_000
    before = raw.history("AAPL", end="2020-08-28", as_of="2020-08-28")
    assert before.close.iloc[-1] == pytest.approx(499.23)
    assert raw.history("AAPL", end="2020-08-28").close.iloc[-1] == pytest.approx(
        499.23 * 0.25 * 0.996788, rel=1e-5
    )
    over = dict(start="2020-08-28", end="2020-08-31")
    assert abs(raw.history("AAPL", **over).close.pct_change().iloc[-1]) < 0.05
    assert abs(raw.history("AAPL", adjusted=False, **over).close.pct_change().iloc[-1]) > 0.7


def test_index_members_include_those_that_failed_later(shared, lake):
    lake.add("members", read_members(shared / "reference" / "sp500_membership_start_end.csv", "sp500"))
    crisis = lake.members("sp500", "2008-08-29")
    assert (
        {"LEHMQ", "WAMUQ", "WM", "AIG"} <= set(crisis)
        and 480 < len(crisis) < 520
        and not {"LEHMQ", "WAMUQ"} & set(lake.members("sp500", "2008-10-15"))
    )
    assert lake.members("sp500", "2008-08-29", as_of="2008-08-29") == crisis, (
        "hindsight changes nothing about the day itself"
    )
    assert "META" not in crisis and len(lake.members("sp500", "2025-07-09")) == 503
    assert (
        "AAL" in lake.members("sp500", "1996-06-03")
        and "AAL" not in lake.members("sp500", "2010-06-01")
        and "AAL" in lake.members("sp500", "2020-06-01")
    )


def test_archives_restate_are_resent_and_may_be_empty(shared, tmp_path):
    feed = shared / "raw_daily_feed"
    with Lake(Settings().with_(**{"storage.home": str(tmp_path)}).storage) as lake:
        stored = [read_archive(feed / f"{d}.tar.gz") for d in ("20160509", "20160510", "20160511")]
        for i, (bars, reports) in enumerate(stored):
            good = inspect_bars(bars, now="2016-06-01T00:00Z").raise_if_refused().good if i == 0 else bars
            done = lake.append(good, now=f"2016-05-{12 + i}T00:00Z")
            assert done.rows_new > 6000 and lake.append(good, now="2016-05-20T00:00Z").batch == "", (
                "an archive sent again changes nothing"
            )
            assert lake.add("fundamentals", reports).rows_new > 1000
        assert len(lake.bars("MSG", adjusted=False)) == 4, "listed twice with the same numbers, kept once"
        events = lake.sql("SELECT ticker, factor, known_at FROM adjustments")
        assert len(events) > 80 and events.factor.between(0.5, 1).mean() > 0.9
        restated = stored[1][0].query("adj_close < close * .99").ticker.iloc[0]
        published, seen = lake.bars(restated, adjusted=False), lake.bars(restated)
        assert (
            published.close.iloc[0] > seen.close.iloc[0]
            and lake.bars(restated, as_of="2016-05-09").close.tolist() == published.close[:2].tolist()
        )
        assert [len(x) for x in read_archive(feed / "20161117.tar.gz")] == [0, 0]
        bars, reports = read_archive(feed / "20161128.tar.gz")
        assert len(bars) > 10_000 and len(reports) == 0
        (broken := tmp_path / "20160512.tar.gz").write_bytes((feed / "20160511.tar.gz").read_bytes()[:5000])
        with pytest.raises(DataError, match="cut off"):
            read_archive(broken)


def test_restated_sessions_reproduce_a_vendors_adjustment(shared, tmp_path):
    """Sessions as first published, plus the restated copies, give the returns of another vendor's adjusted
    close."""
    names = ["AAPL", "MSFT", "JNJ", "KO", "XOM", "T"]
    first = pd.read_parquet(shared / "us_daily_all_2016.parquet", filters=[("ticker", "in", names)])
    events = pd.read_parquet(
        shared / "us_adjustment_events_2015_2017.parquet", filters=[("ticker", "in", names)]
    )
    sent = pd.concat(
        [
            first,
            events[
                events.as_of.astype(str).str.startswith("2016") & (events.date.astype(str) >= "2016-01-04")
            ],
        ]
    ).drop_duplicates()
    sent = sent.assign(
        known_at=pd.to_datetime(sent.as_of.astype(str), utc=True) + pd.Timedelta(hours=21, minutes=30)
    ).drop(columns="as_of")
    with Lake(Settings().with_(**{"storage.home": str(tmp_path)}).storage) as lake:
        done = lake.append(
            inspect_bars(tidy_bars(sent, source="archive"), limit=0.05, now="2017-06-01T00:00Z").good,
            now="2017-06-01T00:00Z",
        )
        assert done.adjustments >= 4 * len(names) - 3
        ours = (
            lake.bars()
            .assign(day=lambda b: b.event_time.dt.strftime("%Y-%m-%d"))
            .set_index(["ticker", "day"])
            .close
        )
    other = pd.read_parquet(shared / "us_daily_2015_2020.parquet", filters=[("ticker", "in", names)])
    theirs = other.assign(day=other.date.astype(str)).set_index(["ticker", "day"]).adj_close.astype(float)
    both = pd.concat([ours, theirs], axis=1, keys=["ours", "theirs"]).dropna().sort_index()
    gap = (both.ours / both.theirs).groupby("ticker").pct_change().abs()
    assert len(both) > 1400 and gap.quantile(0.99) < 1e-3


def test_reports_are_published_again_and_amended(shared, lake):
    wide = pd.read_parquet(shared / "us_fundamentals_2016.parquet")
    wide = wide[wide.ticker.isin(["DE", "GMCR", "AAPL", "MSFT", "0", "CAG"]) | wide.doc_type.eq("doc_type")]
    rows = read_reports(wide)
    done = lake.add("fundamentals", rows, source="edgar")
    assert done.rows_same > 0 and lake.add("fundamentals", rows, source="edgar").rows_same == len(rows)
    assert not lake.fundamentals(items="fiscal_year").size and set(
        lake.facts("fundamentals", source="edgar").form
    ) == {"10-K", "10-Q"}
    assert (rows.known_at > rows.event_time).all(), "a quarter is not known before it is over"
    assert lake.fundamentals("DE", "revenues", as_of="2016-01-31").empty
    assert lake.fundamentals("DE", "revenues", as_of="2016-02-02").query(
        "amended"
    ).value.item() == pytest.approx(2.886280e10)


def test_reference_dates_are_not_release_dates(shared, lake):
    path = shared / "macro" / "fred_inflation.parquet"
    wide = pd.read_parquet(path)[["date", "CPI"]].dropna()
    with pytest.raises(DataError, match="reference date is no release date"):
        lake.add("macro", wide.rename(columns=dict(date="event_time", CPI="value")).assign(series="CPI"))
    with pytest.raises(TypeError):
        read_macro(path)
    lake.add("macro", read_macro(path, dict(CPI="45D", T10YIE="1D")), source="fred")
    seen = lake.macro(["CPI", "T10YIE"], as_of="2020-03-20", start="2020-01-01")
    assert (
        str(seen.CPI.dropna().index.max().date()) == "2020-02-01"
        and str(seen.T10YIE.dropna().index.max().date()) == "2020-03-19"
    )
    assert lake.macro("CPI").CPI.notna().sum() == len(wide)


def test_headlines_are_known_when_their_day_is_over_and_repeats_are_one(shared, lake):
    path = shared / "news" / "google_news_headlines_2022_2023.parquet"
    rows = read_headlines(path, publisher="publisher")
    assert len(pd.read_parquet(path)) - len(rows) == 3375
    lake.add("news", rows, source="google")
    day_of = lake.news("AAPL", start="2022-01-03", end="2022-01-04")
    assert (day_of.known_at - day_of.event_time >= pd.Timedelta(hours=23)).all()
    assert (
        lake.news("AAPL", as_of="2022-01-03T21:00Z").empty
        and len(lake.news("AAPL", as_of="2022-01-04T06:00Z")) > 3
    )
    odd = shared / "news" / "nasdaq_headlines_raw_dates.parquet"
    with pytest.raises(DataError, match="at which it was read"):
        read_headlines(odd, date="date_text", headline="headline", url="url")
    dated = read_headlines(odd, date="date_text", headline="headline", url="url", scraped="2024-01-29T12:00Z")
    assert (
        dated.event_time.max() <= day("2024-01-29T12:00")
        and dated.known_at.notna().all()
        and 3000 < len(dated) < 4697
    )


def test_undated_headlines_are_refused():
    for text in ("soon", "", "nan"):
        with pytest.raises(DataError):
            publication_times([text])
    hours, days = publication_times(["3 HOURS AGO", "2 days ago"], scraped="2024-01-26T12:00Z").itertuples(
        index=False
    )
    assert hours.event_time == hours.known_at == day(
        "2024-01-26T09:00"
    ) and days.known_at - days.event_time == pd.Timedelta(days=1)

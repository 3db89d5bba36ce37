"The lake: newest known wins, as-of, adjustment, snapshots, fingerprints, and what researchers may ask."

import itertools
import os
import sys
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stockpredict.core.errors import BarsInvalid, DataError, LakeUnavailable
from stockpredict.core.settings import Settings
from stockpredict.sources.bars import BAR_COLUMNS, as_bars
from stockpredict.lake.adjustments import FACTOR_NOISE, adjust, price_factors, is_split
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars
from stockpredict.lake.connection import extension_path
from stockpredict.lake.store import moment

COUNT = itertools.count()
DAY = pd.Timedelta(days=1)
T0 = pd.Timestamp("2020-01-02 21:00", tz="UTC")
LAG = pd.Timedelta(minutes=15)


@pytest.fixture(scope="module", autouse=True)
def several_threads():
    "The other test files run with one thread; here DuckDB divides its queries."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Settings().with_(**{"storage.home": str(tmp_path_factory.mktemp("home"))}).storage


@pytest.fixture(scope="module")
def lake(home):
    with Lake(home) as lake:
        yield lake


def rows(source, *values, ticker="AAA"):
    "Bars from (day number, close) or (day number, close, hours until known)."
    events = [T0 + v[0] * DAY for v in values]
    known = [
        e + (pd.Timedelta(hours=v[2]) if len(v) > 2 else LAG) for e, v in zip(events, values, strict=True)
    ]
    return as_bars(
        dict(
            ticker=[ticker] * len(values),
            event_time=events,
            known_at=known,
            close=[float(v[1]) for v in values],
            source=source,
        )
    )


def closes(lake, source, **how):
    return lake.bars(source=source, **how).close.tolist()


def test_the_frame_is_a_bars_table(lake):
    lake.append(sample_bars().assign(source="shape"), now="2024-01-01")
    bars = lake.bars(source="shape")
    assert list(bars.columns) == BAR_COLUMNS and bars.dtypes.equals(sample_bars()[BAR_COLUMNS].dtypes)
    assert (
        bars.equals(bars.sort_values(["ticker", "event_time"], ignore_index=True))
        and not bars.duplicated(["ticker", "event_time"]).any()
    )
    pd.testing.assert_frame_equal(
        bars.drop(columns="source"), sample_bars()[BAR_COLUMNS].drop(columns="source")
    )


def test_what_was_not_published_stays_absent(lake):
    lake.append(rows("closes", (0, 1), (1, 2)), now="2024-01-01")
    assert lake.bars(source="closes")[["open", "high", "low", "volume"]].isna().all(None)
    assert lake.append(rows("closes", (0, 1), (1, 2)), now="2024-01-02").rows_same == 2, (
        "absent equals absent"
    )
    assert (
        lake.rows("SELECT count(*) AS n FROM lake.bars WHERE source = 'closes' AND isnan(volume)").n[0] == 0
    ), "absent is NULL, not NaN"


def test_filters(lake):
    bars = sample_bars().assign(source="filters")
    lake.append(bars, now="2024-01-01")
    some = lake.bars(["BBB", "AAA"], "2019-03-01", "2019-03-29", source="filters")
    days = some.event_time.dt.strftime("%Y-%m-%d")
    assert set(some.ticker) == {"AAA", "BBB"} and days.min() == "2019-03-01" and days.max() == "2019-03-29", (
        "both ends belong to it"
    )
    assert lake.bars("AAA", source="filters").equals(lake.bars(["AAA"], source="filters"))
    assert (
        len(lake.bars([], source="filters")) == 0
        and len(lake.bars(["'; DROP TABLE bars; --"], source="filters")) == 0
    )
    assert lake.tickers("filters") == sorted(bars.ticker.unique())
    assert lake.sessions("filters").equals(
        pd.DatetimeIndex(sorted(bars.event_time.dt.tz_localize(None).dt.normalize().unique()), name="session")
    )


def test_newest_known_wins_and_the_past_stays(lake):
    s = "versions"
    lake.append(rows(s, (0, 10), (1, 11)), now="2020-02-01")
    done = lake.append(rows(s, (0, 10.5), (1, 11), (2, 12)), now="2020-03-01")
    assert (done.rows_new, done.rows_corrected, done.rows_same) == (1, 1, 1)
    assert closes(lake, s) == [10.5, 11, 12]
    assert done.rows_late == 1 and closes(lake, s, as_of="2020-02-15") == [10, 11]
    assert closes(lake, s, as_of="2020-03-01") == [10.5, 11, 12], "a day means its end"
    assert closes(lake, s, as_of=pd.Timestamp("2020-03-01 00:00Z")) == [10.5, 11, 12]
    assert closes(lake, s, as_of=pd.Timestamp("2020-02-29 23:59Z")) == [10, 11]
    assert closes(lake, s, as_of=T0) == [] and closes(lake, s, as_of=T0 + LAG) == [10]


def test_what_a_source_said_last_wins_even_when_it_takes_a_correction_back(lake):
    s = "back"
    for month, close in enumerate([10, 10.5, 10, 10.5], start=2):
        lake.append(rows(s, (0, close)), now=f"2020-0{month}-01")
    assert [closes(lake, s, as_of=f"2020-0{m}-02") for m in (2, 3, 4, 5)] == [[10], [10.5], [10], [10.5]]


def test_versions_that_state_their_own_time_are_kept_and_never_rewrite_the_past(lake):
    s = "stated"
    lake.append(rows(s, (0, 10, 1), (0, 12, 72)).assign(stated=True), now="2020-02-01")
    old = rows(s, (0, 10, 1)).assign(stated=True)
    assert lake.append(old, now="2020-02-02").batch == "", "an old archive sent again is no correction"
    newer = lake.append(rows(s, (0, 13, 96)).assign(stated=True), now="2020-02-02")
    assert (newer.rows_corrected, closes(lake, s)) == (1, [13])
    seen = [closes(lake, s, as_of=T0 + pd.Timedelta(hours=h)) for h in (0, 2, 50, 80, 100)]
    assert seen == [[], [10], [10], [12], [13]]
    older = lake.append(rows(s, (0, 11, 48)).assign(stated=True), now="2020-02-03")
    assert (older.rows_corrected, closes(lake, s)) == (1, [11]), "what was received last stands"
    assert [closes(lake, s, as_of=T0 + pd.Timedelta(hours=h)) for h in (0, 2, 50, 80, 100)] == seen
    assert closes(lake, s, as_of=pd.Timestamp("2020-02-02 23:59Z")) == [13]


def test_a_correction_is_never_known_before_what_it_corrects(lake):
    s = "clock"
    lake.append(rows(s, (0, 10, 100)), now="2020-02-01")
    lake.append(rows(s, (0, 11, 100)), now="2019-01-01")  # a clock that stands wrong
    assert closes(lake, s) == [11] and closes(lake, s, as_of=T0 + pd.Timedelta(hours=100)) == [10]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_sequence_of_batches_agrees_with_a_dictionary(lake, data):
    "The model: for each bar, a list of (time from which it holds, value)."
    s = f"model{next(COUNT)}"
    stored, moments = {}, []
    for i in range(data.draw(st.integers(1, 3))):
        batch = data.draw(
            st.dictionaries(
                st.tuples(st.sampled_from("AB"), st.integers(0, 2)), st.integers(1, 3), min_size=1
            )
        )
        now = pd.Timestamp("2020-06-01", tz="UTC") + i * DAY
        new, corrected, fresh, at_receipt = 0, 0, [], set()
        first = {ticker: min(d for t, d in stored if t == ticker) for ticker, _ in stored}
        for key, value in batch.items():
            if key not in stored:
                stored[key] = [(T0 + key[1] * DAY + LAG, value)]
                fresh.append(key)
                new += 1
            elif stored[key][-1][1] != value:
                stored[key].append((now, value))
                at_receipt.add(key[0])
                corrected += 1
        follows = [k for k in fresh if k[0] in first and k[1] > first[k[0]]]
        at_receipt |= {ticker for ticker, _ in follows}  # months later: late, and what came with it too
        for key in follows:
            if key[0] in at_receipt:
                stored[key] = [(now, stored[key][0][1])]
        frame = pd.concat([rows(s, (d, v), ticker=t) for (t, d), v in batch.items()])
        done = lake.append(frame, now=now)
        assert (done.rows_new, done.rows_corrected, done.rows_same) == (
            new,
            corrected,
            len(batch) - new - corrected,
        )
        assert lake.append(frame.iloc[::-1], now=now).batch == ""
        moments.append((now, done))
    for at, _ in [(T0 + DAY + LAG, None), *moments]:
        seen = {k: [v for since, v in vs if since <= at] for k, vs in stored.items()}
        expected = {k: v[-1] for k, v in seen.items() if v}
        result = lake.bars(source=s, as_of=at)
        assert {
            (t, (e - T0).days): c
            for t, e, c in zip(result.ticker, result.event_time, result.close, strict=True)
        } == expected
    for _, done in moments:
        assert lake.fingerprint(done.snapshot, s) == done.fingerprint


# ---- adjustment


def adjusted_rows(s, raw, ratio):
    bars = rows(s, *[(i, c) for i, c in enumerate(raw)])
    return bars.assign(volume=100.0, adj_close=np.asarray(raw) * ratio)


def test_factors_of_splits_and_dividends_and_what_they_do(lake):
    s, raw = "split", [100, 102, 51, 52, 51.5]
    ratio = [0.495, 0.495, 0.99, 0.99, 1.0]
    done = lake.append(adjusted_rows(s, raw, ratio), now="2024-01-01")
    events = lake.rows("SELECT * FROM lake.adjustments WHERE source = $s ORDER BY event_time", s=s)
    assert (
        done.adjustments == 2
        and events.factor.round(6).tolist() == [0.5, 0.99]
        and events.event_time.tolist() == [T0 + 2 * DAY, T0 + 4 * DAY]
    )
    assert (events.known_at == events.event_time + LAG).all()
    assert np.allclose(closes(lake, s), np.multiply(raw, ratio)) and closes(lake, s, adjusted=False) == raw
    assert lake.bars(source=s).volume.tolist() == [200, 200, 100, 100, 100], (
        "a split doubles the shares, a dividend does not"
    )
    for known, expected in (
        (1, [100, 102]),
        (2, [50, 51, 51]),
        (3, [50, 51, 51, 52]),
        (4, np.multiply(raw, ratio)),
    ):
        assert np.allclose(closes(lake, s, as_of=T0 + known * DAY + LAG), expected)
    assert np.allclose(closes(lake, s, start=T0 + DAY, end=T0 + DAY), [102 * 0.495]), (
        "later events count although their bars are not asked for"
    )


def test_rounding_is_no_dividend_and_a_revoked_split_is_taken_back(lake):
    s, raw = "revoked", [100.0, 101, 102, 103]
    lake.append(adjusted_rows(s, raw, [0.5, 0.5 * (1 + FACTOR_NOISE / 2), 1, 1]), now="2024-01-01")
    assert np.allclose(closes(lake, s), [50, 50.5, 102, 103], rtol=FACTOR_NOISE)
    done = lake.append(adjusted_rows(s, raw, 1.0), now="2024-02-01")
    assert done.adjustments == 1 and closes(lake, s) == raw
    assert np.allclose(closes(lake, s, as_of="2024-01-15"), [50, 50.5, 102, 103], rtol=FACTOR_NOISE)
    assert lake.append(adjusted_rows(s, raw, 1.0), now="2024-03-01").batch == ""


def test_a_vendor_that_rescales_its_adjusted_closes_changes_nothing(lake):
    s, raw = "rescaled", [10.0, 11, 12]
    lake.append(adjusted_rows(s, raw, [0.9, 1, 1]), now="2024-01-01")
    assert lake.append(adjusted_rows(s, raw, np.multiply([0.9, 1, 1], 0.25)), now="2024-01-02").batch == ""


def test_adjustment_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    bars = sample_bars()
    factors = pd.DataFrame(
        dict(
            ticker=rng.choice(["AAA", "CCC", "EEE", "NOT"], 40),
            event_time=rng.choice(bars.event_time.unique(), 40),
        )
    )
    factors = (
        factors.drop_duplicates()
        .sort_values(["ticker", "event_time"], ignore_index=True)
        .assign(factor=lambda f: rng.choice([0.5, 2.0, 0.97, 0.25], len(f)))
    )
    factors["event_time"] = factors.event_time.astype(bars.event_time.dtype)
    built = adjust(bars, factors)
    for i in rng.choice(len(bars), 200, replace=False):
        later = factors[(factors.ticker == bars.ticker[i]) & (factors.event_time > bars.event_time[i])].factor
        assert np.isclose(built.close[i], bars.close[i] * later.prod()) and np.isclose(
            built.low[i], bars.low[i] * later.prod()
        )
        assert np.isclose(built.volume[i], bars.volume[i] / later[later != 0.97].prod())


def test_which_factors_are_splits():
    assert is_split([0.5, 1 / 3, 2 / 3, 0.25, 0.1, 1 / 7, 2, 3, 10, 1 / 50]).all()
    assert not is_split([1, 0.99, 0.9, 0.8, 0.75, 0.7, 0.6, 0.45, 1.1]).any()


def test_archives_that_restate_only_the_session_before_an_event():
    bars = rows("x", (0, 100, 1), (0, 100, 25), (1, 50, 1), (1, 50, 25), (2, 49, 1), (3, 48, 1)).assign(
        adj_close=[100, 50, 50, 49.5, 49, 48.0]
    )
    result = price_factors(bars.sample(frac=1, random_state=0)).sort_values("event_time")
    assert np.allclose(result.factor, [0.5, 0.99, 1.0]) and result.event_time.tolist() == [
        T0 + i * DAY for i in (1, 2, 3)
    ]


def test_broken_ratios_make_no_factors():
    bars = adjusted_rows("x", [10.0, 10, 10, 10], [1, np.nan, 1, 0])
    assert price_factors(bars).query("factor != 1").empty
    assert price_factors(bars[:0]).empty


# ---- versions of the lake, fingerprints


def test_snapshots_are_frozen_and_compaction_keeps_them(home):
    with Lake(home) as lake:
        done = [lake.append(rows("frozen", (i, i + 1)), now="2024-01-01") for i in range(6)]
        seen = [lake.bars(source="frozen", snapshot=d.snapshot) for d in done]
        assert [len(x) for x in seen] == [1, 2, 3, 4, 5, 6]
        mark = lake.fingerprint(source="frozen")
        lake.compact()
        for d, x in zip(done, seen, strict=True):
            pd.testing.assert_frame_equal(lake.bars(source="frozen", snapshot=d.snapshot), x)
        assert lake.fingerprint(source="frozen") == mark
        with pytest.raises(LakeUnavailable, match=r"snapshot|version"):
            lake.bars(snapshot=10**6)


def test_fingerprint_knows_content_only(tmp_path):
    bars = sample_bars(tickers=3, sessions=40)
    marks = set()
    for i in range(2):
        s = Settings().with_(**{"storage.home": str(tmp_path / str(i))}).storage
        with Lake(s) as lake:
            parts = [bars] if i == 0 else [bars.iloc[::-2], bars.sample(frac=0.5, random_state=1), bars]
            for part in parts:
                lake.append(part, now="2024-01-01", backfill=True)
            marks.add(lake.fingerprint())
            assert lake.verify() == lake.fingerprint()
    assert len(marks) == 1
    with Lake(s) as lake:
        changed = bars.copy()
        changed.loc[3, "volume"] += 1
        assert lake.append(changed, now="2024-02-01").fingerprint not in marks
        assert lake.append(bars, now="2024-03-01").fingerprint not in marks, (
            "the same values known at another time are not the same history"
        )


def test_readers_get_the_source_that_was_ingested_last(tmp_path):
    s = Settings().with_(**{"storage.home": str(tmp_path)}).storage
    with Lake(s) as lake:
        assert (
            lake.source() == ""
            and len(lake.bars()) == 0
            and lake.tickers() == []
            and len(lake.sessions()) == 0
            and len(lake.fingerprint()) == 16
        )
        one = lake.append(rows("one", (0, 1)), now="2024-01-01")
        two = lake.append(rows("two", (0, 2)), now="2024-01-01")
        assert (
            lake.source(),
            closes(lake, None),
            closes(lake, "one"),
            closes(lake, None, snapshot=one.snapshot),
        ) == ("two", [2], [1], [1])
        assert lake.source_names() == ["one", "two"] and lake.fingerprint() == two.fingerprint
        assert lake.append(rows("one", (0, 1)), now="2024-01-01").batch and lake.source() == "one"
        with pytest.raises(BarsInvalid, match="one source"):
            lake.append(pd.concat([rows("one", (0, 1)), rows("two", (0, 2))]))


# ---- asking


def test_researchers_may_ask_and_cannot_change(home, lake):
    lake.append(rows("asked", (0, 1), (1, 2)), now="2024-01-01")
    assert lake.sql("SELECT sum(close) AS total FROM bars WHERE source = $s", s="asked").total[0] == 3
    for query in (
        "DELETE FROM bars",
        "INSERT INTO bars SELECT * FROM bars",
        "DROP TABLE bars",
        "ATTACH 'x.db'",
        "COPY bars TO 'bars.csv'",
        "SELECT 1; DELETE FROM bars",
        "CALL ducklake_expire_snapshots('lake', older_than => now())",
        "SET threads = 1",
        "",
    ):
        with pytest.raises(DataError):
            lake.sql(query)
            pytest.fail(query)
    with pytest.raises(DataError, match="The query failed"):
        lake.sql("SELECT nothing FROM nowhere")
    with pytest.raises(DataError, match="The query failed"):
        lake.sql("SELEC")
    with Lake(home, read_only=True) as reader:
        with pytest.raises(LakeUnavailable, match="opened for reading"):
            reader.append(rows("asked", (2, 3)))
        with pytest.raises(LakeUnavailable, match="read-only"):
            reader.rows("DELETE FROM lake.bars")
    assert closes(lake, "asked") == [1, 2]


def test_moments():
    at = pd.Timestamp
    assert moment("2020-03-12") == at("2020-03-12 00:00Z") and moment("2020-03-12", late=True) == at(
        "2020-03-12 23:59:59.999999Z"
    )
    assert (
        moment(date(2020, 3, 12), late=True)
        == moment(at("2020-03-12"), late=True)
        == moment(np.datetime64("2020-03-12"), late=True)
    )
    assert (
        moment("2020-03-12T21:15", late=True) == moment("2020-03-12T16:15-05:00") == at("2020-03-12 21:15Z")
    )
    assert moment(None) < moment("1900-01-01") < moment("", late=True)
    with pytest.raises(DataError, match="not a date"):
        moment("tomorrow-ish")


def test_duckdb_uses_as_many_threads_as_the_environment_says(home, lake, monkeypatch):
    threads = "SELECT current_setting('threads') AS n"
    assert lake.rows(threads).n[0] == min(2, os.cpu_count())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Lake(home, read_only=True) as alone:
        assert alone.rows(threads).n[0] == 1


def test_extensions_come_from_wheels_only(monkeypatch):
    assert extension_path("ducklake").exists()
    with pytest.raises(LakeUnavailable, match="pip install duckdb-extension-no-such"):
        extension_path("no_such")


def test_opening_a_lake_imports_nothing_heavy():
    import subprocess

    heavy = (
        "great_expectations skfolio arch torch mlflow lightning optuna prefect papermill lightgbm "
        "sklearn matplotlib statsmodels"
    ).split()
    code = f"import sys, stockpredict.ingest.ingest; print([m for m in {heavy!r} if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


# ---- upkeep


def test_a_pinned_snapshot_survives_expiry_and_purge_and_the_rest_stays_true(tmp_path):
    bars = sample_bars(tickers=2, sessions=60)
    cut = np.sort(bars.event_time.unique())[-30]
    with Lake(Settings().with_(**{"storage.home": str(tmp_path)}).storage) as lake:
        first = lake.append(bars[bars.event_time < cut], now="2024-01-01")
        lake.append(bars, now="2024-01-02")
        lake.pin("run-1", first.snapshot)
        asked = lake.retain(dict(bars=1), now=cut + pd.DateOffset(years=1))
        assert asked.rows.tolist() == [(bars.event_time < cut).sum()] and len(lake.bars()) == len(bars), (
            "a dry run only says"
        )
        lake.retain(dict(bars=1), now=cut + pd.DateOffset(years=1), dry_run=False)
        assert (
            len(lake.bars()) == (bars.event_time >= cut).sum()
            and lake.verify() == lake.recorded_fingerprint() == lake.fingerprint()
        )
        lake.upkeep(days=0, grace="0s", dry_run=False)
        assert (
            lake.fingerprint("run-1") == first.fingerprint
            and len(lake.bars(snapshot="run-1")) == (bars.event_time < cut).sum()
        )
        with pytest.raises(LakeUnavailable, match=r"lake\.snapshots"):
            lake.bars(snapshot=first.snapshot + 1)
        assert lake.append(bars[bars.event_time >= cut], now="2024-02-01").batch == "" and lake.verify()
        with pytest.raises(DataError, match="no table tickers"):
            lake.retain(dict(tickers=1))


def test_the_diary_carries_what_reading_everything_finds(lake):
    """Corrections, late versions, new bars and factors: the carried sums equal the recomputed ones after
    every batch."""
    rng, s = np.random.default_rng(3), "carried"
    for i in range(6):
        days = rng.integers(0, 6, 5)
        batch = pd.concat(
            [
                rows(s, *[(int(d), int(rng.integers(1, 4)), int(rng.integers(1, 90))) for d in days[:3]]),
                adjusted_rows(s, [float(rng.integers(5, 9))] * 3, rng.choice([0.5, 1.0], 3)),
            ]
        ).drop_duplicates(["ticker", "event_time", "known_at"])
        done = lake.append(batch, now=f"2024-03-0{i + 1}")
        assert lake.recorded_fingerprint(s) == lake.fingerprint(
            source=s
        ) and done.fingerprint == lake.recorded_fingerprint(s)


def test_a_lake_of_an_earlier_version_gains_its_new_columns(tmp_path):
    bars, s = sample_bars(tickers=2, sessions=30), Settings().with_(**{"storage.home": str(tmp_path)}).storage
    with Lake(s) as lake:
        lake.append(bars, now="2024-01-01")
        for table, column in (("bars", "revised"), ("ingests", "sums")):
            lake.con.execute(f"ALTER TABLE lake.{table} DROP COLUMN {column}")
    with Lake(s) as lake:
        changed = bars.assign(close=bars.close * 2, high=bars.high * 2)
        assert (
            lake.append(changed, now="2024-01-02").rows_corrected == len(bars)
            and lake.verify() == lake.recorded_fingerprint()
        )
        assert (
            lake.bars().close.tolist() == changed.close.tolist()
            and lake.bars(as_of="2024-01-01").close.tolist() == bars.close.tolist()
        )

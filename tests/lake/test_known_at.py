"""What was known when: batches with corrections, changing lags, late bars and stated times, against a plain
reference; and each fault of the kind by itself."""

import os
import runpy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import DataError
from stockpredict.core.settings import Settings
from stockpredict.ingest.ingest import ingest
from stockpredict.ingest.intraday import add_intraday, load_intraday
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars

ROOT = Path(__file__).resolve().parents[2]
CALENDAR = get_calendar()
SESSIONS = CALENDAR.sessions("2024-01-02", "2024-01-24")
CLOSES = [CALENDAR.close(day) for day in SESSIONS]


def test_random_corrections_lags_and_stamps_agree_with_a_plain_reference():
    "A few cases here, 400 with --all-steps; `python benchmarks/known_at.py` draws 2,000."
    check_cases = runpy.run_path(str(ROOT / "benchmarks/known_at.py"))["check_cases"]
    cases = 400 if os.environ.get("TESTS_ALL_STEPS") == "1" else 8
    seed = os.environ.get("TESTS_KILL_SEED", "0")
    bars, versions, quarantined, _ = check_cases(cases, seed, together=40, smallest=8)
    assert versions > bars > 0 and quarantined > 0


# ---- each fault by itself


def settings_for(tmp_path, lag=15, **more):
    return Settings().with_(
        **{
            "storage.home": str(tmp_path / "home"),
            "data.source": "files",
            "data.files_path": str(tmp_path / "bars.csv"),
            "data.start": "2024-01-02",
            "data.lake_bars_lag_minutes": lag,
            **more,
        }
    )


def deliver(tmp_path, closes, **columns):
    days = [str(day.date()) for day in SESSIONS[: len(closes)]]
    rows = pd.DataFrame(dict(ticker="AAA", date=days, close=closes, **columns))
    rows.to_csv(tmp_path / "bars.csv", index=False)


NINE = [100.0, 101, 102, 103, 104, 105, 106, 107, 108]
JANUARY, MARCH = "2024-01-13T12:00Z", "2026-03-01T12:00Z"


def view(s, as_of=None):
    with Lake(s.storage, read_only=True) as lake:
        return lake.bars(source="files", as_of=as_of).close.tolist()


@pytest.mark.parametrize(
    "lag, stamps",
    [
        (5, (None, None)),
        (60, (None, None)),
        (5, ("stated", None)),
        (15, (None, "stated")),
        (60, ("stated", "stated")),
    ],
)
def test_a_correction_appears_now_and_not_in_the_past(tmp_path, lag, stamps):
    "Nine bars with a lag of 15 minutes; the last close becomes 150 and the lag another one."
    first, second = (
        {"known_at": [f"{c + pd.Timedelta(minutes=m):%Y-%m-%dT%H:%M:%SZ}" for c in CLOSES[:9]]}
        if kind
        else {}
        for kind, m in zip(stamps, (15, 15 if lag == 60 else lag), strict=True)
    )
    deliver(tmp_path, NINE, **first)
    ingest(settings_for(tmp_path), JANUARY)
    minutes = [CLOSES[8] + pd.Timedelta(minutes=m) for m in (4, 6, 14, 16, 61)]  # around each lag
    moments = ("2024-01-10", "2024-01-12", "2024-06-01", *minutes)
    before = {at: view(settings_for(tmp_path), at) for at in moments}
    assert before[minutes[0]] == NINE[:8] and before[minutes[-1]] == NINE
    deliver(tmp_path, [*NINE[:8], 150.0], **second)
    s = settings_for(tmp_path, lag)
    report = ingest(s, MARCH)
    assert report.rows_corrected == 1
    assert view(s) == [*NINE[:8], 150.0], "the newest stands"
    for at, seen in before.items():
        assert view(s, at) == seen, f"the view of {at} has changed"
    assert view(s, MARCH) == [*NINE[:8], 150.0] and view(s, "2026-03-01T11:59Z") == NINE


def test_a_bar_that_comes_late_is_known_from_its_receipt(tmp_path):
    deliver(tmp_path, NINE)
    first = ingest(settings_for(tmp_path), JANUARY)
    deliver(tmp_path, [*NINE, 109.0])
    s = settings_for(tmp_path)
    report = ingest(s, "2024-02-20T12:00Z")
    assert (report.rows_new, report.rows_late, first.rows_late) == (1, 1, 0)
    assert view(s, "2024-01-20") == NINE and view(s, "2024-02-20T12:00Z") == [*NINE, 109.0]
    assert report.genuine_since == "2024-01-13"


def test_a_bar_that_comes_with_the_next_run_is_on_time(tmp_path):
    deliver(tmp_path, NINE)
    ingest(settings_for(tmp_path), JANUARY)
    deliver(tmp_path, [*NINE, 109.0])
    s = settings_for(tmp_path)
    assert ingest(s, CLOSES[9] + pd.Timedelta(hours=10)).rows_late == 0
    assert view(s, CLOSES[9] + pd.Timedelta(minutes=15)) == [*NINE, 109.0]


def test_a_split_worked_into_the_past_gives_no_view_that_nobody_saw(tmp_path):
    "The vendor halves its whole history together with a new session."
    deliver(tmp_path, NINE)
    ingest(settings_for(tmp_path), JANUARY)
    deliver(tmp_path, [x / 2 for x in [*NINE, 109.0]])
    s = settings_for(tmp_path)
    now = CLOSES[9] + pd.Timedelta(hours=2)
    assert ingest(s, now).rewritten == ["AAA"]
    for at in pd.date_range(CLOSES[9] - pd.Timedelta(hours=1), now + pd.Timedelta(hours=1), freq="10min"):
        assert view(s, at) in (NINE, [x / 2 for x in [*NINE, 109.0]]), at


def test_a_dividend_entered_later_does_not_change_what_was_known(tmp_path):
    deliver(tmp_path, NINE, adj_close=NINE)
    ingest(settings_for(tmp_path), JANUARY)
    deliver(tmp_path, NINE, adj_close=[*(x * 0.98 for x in NINE[:6]), *NINE[6:]])
    s = settings_for(tmp_path)
    assert ingest(s, MARCH, full=True).adjustments == 1
    assert view(s, "2024-01-20") == NINE and np.allclose(view(s)[:6], [x * 0.98 for x in NINE[:6]])


@pytest.mark.parametrize(
    "stamp, reason",
    [("2030-01-01T00:00Z", "known after receipt"), ("2024-01-12T15:00Z", "known too early")],
)
def test_an_impossible_time_is_quarantined_and_counted(tmp_path, stamp, reason):
    stamps = [*(f"{c:%Y-%m-%dT%H:%M:%SZ}" for c in CLOSES[:8]), stamp]
    deliver(tmp_path, NINE, known_at=stamps)
    s = settings_for(tmp_path, **{"data.quarantine_limit": 0.2})
    report = ingest(s, JANUARY)
    assert report.rows_quarantined == 1 and view(s) == NINE[:8]
    assert {c["rule"]: c["failed"] for c in report.checks}[reason] == 1
    with Lake(s.storage, read_only=True) as lake:
        assert lake.sql("SELECT reason FROM quarantine").reason.tolist() == [reason]


def test_history_before_the_first_bar_and_a_new_ticker_are_a_backfill(tmp_path):
    "They keep the lag, because these days were not ingested before."
    deliver(tmp_path, NINE)
    s = settings_for(tmp_path, **{"data.start": "2024-01-08"})
    ingest(s, JANUARY)
    rows = pd.read_csv(tmp_path / "bars.csv")
    pd.concat([rows, rows.assign(ticker="BBB")]).to_csv(tmp_path / "bars.csv", index=False)
    report = ingest(settings_for(tmp_path), MARCH)
    assert report.rows_new == 4 + 9 and report.rows_late == 0
    with Lake(s.storage, read_only=True) as lake:
        assert len(lake.bars("AAA", as_of="2024-01-12")) == 9


# ---- facts and intraday bars


def test_a_revision_under_another_lag_counts_from_its_receipt(tmp_path):
    "The kind of the bars, among facts: the assumed lag of today must not date a revision of tomorrow."
    rows = pd.DataFrame(dict(series="GDP", event_time="2020-01-01", value=[1.0]))
    with Lake(settings_for(tmp_path).storage) as lake:
        lake.add("macro", rows, lag="45D", now="2020-03-01")
        done = lake.add("macro", rows.assign(value=2.0), lag="30D", now="2021-01-01")
        assert done.rows_revised == 1 and lake.macro("GDP").GDP.item() == 2.0
        assert lake.macro("GDP", as_of="2020-12-31").GDP.item() == 1.0
        assert lake.macro("GDP", as_of="2020-02-10").empty
        assert lake.add("macro", rows.assign(value=2.0), lag="60D", now="2021-02-01").rows_same == 1
        with pytest.raises(DataError, match="become known after they were received, such as 2030-01-01"):
            lake.add("macro", rows.assign(value=3.0), known_at="2030-01-01")


def test_intraday_bars_follow_the_same_rules(tmp_path):
    minutes = pd.date_range("2024-01-16 14:30Z", periods=4, freq="5min")
    bars = pd.DataFrame(dict(ticker="AAA", time=minutes, close=[10.0, 11, 12, 13]))
    s = settings_for(tmp_path)
    add_intraday(bars[:3], "mine", settings=s, lag_minutes=15, now="2024-01-16T23:00Z")
    second = bars.assign(close=[10.0, 50.0, 12, 13])
    report = add_intraday(second, "mine", settings=s, lag_minutes=5, now="2024-02-20T12:00Z")
    assert (report.rows_new, report.rows_corrected) == (1, 1)
    seen = [load_intraday(s, "AAA", as_of=at).close.tolist() for at in ("2024-01-20", "2024-02-20T12:00Z")]
    assert seen == [[10.0, 11, 12], [10.0, 50, 12, 13]]


@pytest.mark.parametrize("split", [[0, 8], [0, 3, 8], [0, 5, 6, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
def test_messages_delivered_twice_in_any_batches_leave_the_lake_as_it_is(tmp_path, split):
    "Six bars, of which two are corrected within the same second; then every message comes again."
    bars = sample_bars(tickers=2, sessions=3)
    newer = bars.tail(2).assign(volume=lambda f: f.volume + 1)
    messages = pd.concat([bars, newer], ignore_index=True)
    messages["known_at"] = messages.known_at + pd.to_timedelta([0] * 6 + [1, 1], unit="h")
    sent = pd.Timestamp("2024-06-03T12:00Z") + pd.to_timedelta(np.arange(8), unit="ms")
    messages = messages.assign(stated=True, received=sent)
    with Lake(Settings().with_(**{"storage.home": str(tmp_path)}).storage) as lake:
        for first, last in pairwise(split):
            lake.append(messages[first:last], now="2024-06-03T12:01Z", stream=True)
        fingerprint, shown = lake.fingerprint(), lake.bars()
        for first, last in pairwise(split):
            again = lake.append(messages[first:last], now="2024-06-03T13:00Z", stream=True)
            assert (again.rows_new, again.rows_corrected) == (0, 0)
        assert lake.fingerprint() == fingerprint and lake.bars().equals(shown)
    assert sorted(shown.volume) == sorted([*bars.volume[:4], *newer.volume])

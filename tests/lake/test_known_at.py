"""What was known when: batches with corrections, changing lags, late bars and stated times, against a plain
reference; and each fault of the kind by itself.

    python tests/lake/test_known_at.py 400        400 cases of five batches, as a command
"""

import os
import random
import sys
import tempfile
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import DataError
from stockpredict.core.settings import Settings
from stockpredict.ingest.ingest import ingest
from stockpredict.ingest.intraday import add_intraday, load_intraday
from stockpredict.lake.known_at import due_times
from stockpredict.lake.lake import Lake
from stockpredict.quality.gate import RULES, suspects, with_rule_columns
from stockpredict.sources.bars import as_bars, tidy_bars
from stockpredict.sources.simulate import sample_bars

CALENDAR = get_calendar()
SESSIONS = CALENDAR.sessions("2024-01-02", "2024-01-24")
CLOSES = [CALENDAR.close(day) for day in SESSIONS]
TICK = pd.Timedelta(microseconds=1)


class Reference:
    "What was known when, by the rules of the notebook, with a list of versions for each bar."

    def __init__(self):
        self.versions = {}  # (ticker, session) -> [(known, value, stated)], in the order of receipt
        self.quarantined = 0

    def receive(self, rows, now):
        "A batch of (ticker, session, value, stamp or None, lag)."
        first = {}
        for ticker, day in self.versions:
            first[ticker] = min(day, first.get(ticker, day))
        bars = {}
        for ticker, day, value, stamp, lag in rows:
            close = CLOSES[day]
            if close > now or (stamp is not None and not close <= stamp <= now):
                self.quarantined += 1
                continue
            known = close + lag if stamp is None else stamp
            bars.setdefault((ticker, day), []).append((known, value, stamp is not None, lag))
        new, at_receipt = [], set()
        for (ticker, day), sent in bars.items():
            sent.sort(key=lambda version: version[0])
            follows = ticker in first and day > first[ticker]
            if (ticker, day) in self.versions:
                if self._correct((ticker, day), sent, now):
                    at_receipt.add(ticker)
                continue
            for place, (known, value, stated, lag) in enumerate(sent):
                if place and value == sent[place - 1][1]:
                    continue
                new.append((ticker, day, place, known, value, stated, follows))
                if follows and not stated and now > CLOSES[day + 1] + lag:
                    at_receipt.add(ticker)
        for ticker, day, place, known, value, stated, follows in new:
            if ticker in at_receipt and follows and not stated:
                known = max(known, now + place * TICK)
            self.versions.setdefault((ticker, day), []).append((known, value, stated))

    def _correct(self, bar, sent, now):
        "Add the versions of a stored bar; whether one counts from the receipt."
        stored = self.versions[bar]
        newest = stored[-1]
        value_now = newest[1]
        for known, value, stated, _ in sent[:-1] if len(sent) > 1 else []:
            if stated and known > newest[0] and value != value_now:
                stored.append((known, value, True))
                value_now = value
        known, value, stated, _ = sent[-1]
        if stated and known > newest[0]:
            if value != value_now:
                stored.append((known, value, True))
            return False
        same_archive = newest[2] and any((k, v) == (known, value) for k, v, _ in stored)
        if value == newest[1] or same_archive:
            return False
        stored.append((max(now, stored[-1][0] + TICK), value, False))
        return True

    def view(self, at=None):
        "Bar -> value, as it was known at a moment."
        seen = {bar: [v for k, v, _ in vs if at is None or k <= at] for bar, vs in self.versions.items()}
        return {bar: values[-1] for bar, values in seen.items() if values}

    def current(self, source):
        "The newest versions as bars that state their times."
        last = [(t, d, *versions[-1]) for (t, d), versions in sorted(self.versions.items())]
        return as_bars(
            dict(
                ticker=[x[0] for x in last],
                event_time=[CLOSES[x[1]] for x in last],
                known_at=[x[2] for x in last],
                close=[x[3] for x in last],
                source=source,
                stated=True,
            )
        )


def received(lake, source, **how):
    bars = lake.bars(source=source, **how)
    days = {close: day for day, close in enumerate(CLOSES)}
    return {(t, days[e]): c for t, e, c in zip(bars.ticker, bars.event_time, bars.close, strict=True)}


def batch(rng, now, truth, lag):
    "Rows as a source may send them: resent, corrected, stamped rightly, too early, too late, or not at all."
    rows = []
    stamped = rng.random() < 0.4
    for ticker in "AB":
        days = [day for day in range(len(SESSIONS) - 1) if CLOSES[day] <= now + pd.Timedelta(days=1)]
        for day in rng.sample(days, min(len(days), rng.randint(0, 5))):
            bar = (ticker, day)
            if bar not in truth or rng.random() < 0.25:
                truth[bar] = float(rng.randint(90, 110))
            stamp = None
            if stamped and rng.random() < 0.8:
                span = (now - CLOSES[day]) * rng.choice([-0.2, -0.01, 0, 0.3, 0.6, 0.9, 1, 1.0001, 3])
                stamp = (CLOSES[day] + span).floor("us")
            rows.append((ticker, day, truth[bar], stamp, lag))
    return rows


def store(lake, source, rows, now, lag):
    "One batch on its whole way: tidied, judged by the fast checks of the gate, stored."
    frame = pd.DataFrame(
        dict(
            ticker=[r[0] for r in rows],
            date=[str(SESSIONS[r[1]].date()) for r in rows],
            close=[r[2] for r in rows],
        )
    )
    if any(r[3] is not None for r in rows):
        frame["known_at"] = [r[3].isoformat() if r[3] is not None else "" for r in rows]
    bars = tidy_bars(frame, source=source, lag_minutes=lag.total_seconds() / 60)
    wrong = suspects(with_rule_columns(bars, CALENDAR, now), RULES)
    good, bad = bars[~wrong].reset_index(drop=True), bars[wrong].assign(reason="impossible")
    due = due_times(good.event_time, CALENDAR, lag)
    lake.append(good, bad, now, due=due)
    assert lake.append(good, bad, now, due=due).batch == "", "the same again changes nothing"


def check_case(lake, twin, source, seed):
    "Five random batches; after each, views of random days, the present and the fingerprint agree."
    rng = random.Random(seed)
    reference, truth, past = Reference(), {}, []
    now = CLOSES[rng.randint(2, 6)] + pd.Timedelta(minutes=rng.choice([5, 90]))
    for number in range(5):
        lag = pd.Timedelta(minutes=rng.choice([0, 5, 15, 60, 600]))
        rows = batch(rng, now, truth, lag)
        if rows:
            store(lake, source, rows, now, lag)
            reference.receive(rows, now)
            assert lake.recorded_fingerprint(source) == lake.fingerprint(source=source), (seed, number)
            assert received(lake, source) == reference.view(), (seed, number)
        sessions = rng.sample(CLOSES, 2)
        for at in [now, *(close + pd.Timedelta(minutes=rng.choice([-1, 10, 700])) for close in sessions)]:
            assert received(lake, source, as_of=at) == reference.view(at), (seed, number, at)
        for at, seen in past:
            if not any(row[3] is not None for row in rows):
                later = received(lake, source, as_of=at)
                same = {bar: later[bar] for bar in seen} == seen
                assert same, (seed, number, "an earlier view changed", at)
        past = [(at, received(lake, source, as_of=at)) for at in [*(at for at, _ in past), now][-3:]]
        now += pd.Timedelta(hours=rng.choice([1, 20, 30, 100, 240]))
    if reference.versions:
        expected = twin.append(reference.current(source), now=now, backfill=True).fingerprint
        assert lake.fingerprint(source=source) == expected, seed
    return len(reference.versions), sum(map(len, reference.versions.values())), reference.quarantined


def check_cases(count, seed):
    "How many bars, versions and quarantined rows the cases had."
    totals = np.zeros(3, int)
    for block in range(0, count, 25):
        with tempfile.TemporaryDirectory() as home:
            lakes = [
                Lake(Settings().with_(**{"storage.home": f"{home}/{name}"}).storage)
                for name in ("one", "two")
            ]
            for case in range(block, min(block + 25, count)):
                totals += check_case(*lakes, f"case{case}", f"{seed} {case}")
            for lake in lakes:
                lake.close()
    return totals


def test_random_corrections_lags_and_stamps_agree_with_a_plain_reference():
    cases = 60 if os.environ.get("TESTS_ALL_STEPS") == "1" else 3
    bars, versions, quarantined = check_cases(cases, os.environ.get("TESTS_KILL_SEED", "0"))
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
    before = {at: view(settings_for(tmp_path), at) for at in ("2024-01-10", "2024-01-12", "2024-06-01")}
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
    "They keep the lag, because nobody had looked at these days."
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


if __name__ == "__main__":
    total = check_cases(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "0")
    print("{} bars, {} versions, {} quarantined rows: every view as in the reference".format(*total))


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

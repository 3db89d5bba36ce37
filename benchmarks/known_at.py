"""What was known when: random corrections, lags, late and early stamps against a plain-Python reference.

    python benchmarks/known_at.py [--cases 2000] [--seed 0] [--together 40]

A case is two tickers and five batches, each with a lag of its own: bars resent, corrected, stamped rightly,
too early, after the receipt, or not at all. Cases of one bundle share the moments of receipt and are stored
together. After every batch the views of random days, the earlier views, the present and the fingerprint have
to agree with a list of versions in plain Python. The first difference ends the command with its seed.

With seed 0 all 2,000 cases agreed: 55 bundles, 25,951 bars, 29,086 versions, 10,737 rows quarantined. So did
2,000 with seed 905: 26,582 bars, 29,785 versions, 10,096 rows quarantined, 413 CPU seconds on a busy machine.
And 2,000 with seed 20261201: 26,725 bars, 29,688 versions, 10,444 rows quarantined, 221 CPU seconds.
With seed 1 400 did: 15 bundles, 5,541 bars, 6,127 versions, 1,915 rows quarantined.
"""

import argparse
import os
import random
import tempfile
from contextlib import ExitStack

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd

from stockpredict.core.calendar import get_calendar
from stockpredict.core.settings import Settings
from stockpredict.lake.known_at import due_times
from stockpredict.lake.lake import Lake
from stockpredict.quality.gate import RULES, suspects, with_rule_columns
from stockpredict.sources.bars import as_bars, tidy_bars

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
    "Bar -> close, as a view of the lake shows it."
    bars = lake.bars(source=source, **how)
    days = {close: day for day, close in enumerate(CLOSES)}
    return {(t, days[e]): c for t, e, c in zip(bars.ticker, bars.event_time, bars.close, strict=True)}


def batch(rng, now, truth, tickers):
    "Rows as a source may send them: resent, corrected, stamped rightly, too early, too late, or not at all."
    rows, lag = [], pd.Timedelta(minutes=rng.choice([0, 5, 15, 60, 600]))
    stamped = rng.random() < 0.4
    for ticker in tickers:
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


def tidied(rows, source):
    "The rows of one case as bars, tidied under the lag of the case, with the moment each is due."
    lag = rows[0][4]
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
    return bars.assign(due=due_times(bars.event_time, CALENDAR, lag))


def store(lake, source, cases, now):
    "The batches of all cases on their whole way: tidied, judged by the fast checks of the gate, stored."
    bars = pd.concat([tidied(rows, source) for rows in cases], ignore_index=True)
    bars = bars.sort_values(["ticker", "event_time", "known_at"], kind="stable", ignore_index=True)
    due = bars.pop("due")
    wrong = suspects(with_rule_columns(bars, CALENDAR, now), RULES)
    good, bad = bars[~wrong].reset_index(drop=True), bars[wrong].assign(reason="impossible")
    due = due[~wrong].reset_index(drop=True)
    lake.append(good, bad, now, due=due)
    assert lake.append(good, bad, now, due=due).batch == "", "the same again changes nothing"


def check_views(lake, source, reference, rng, now, past, stamped):
    "The present, the fingerprint, views of random days, and that earlier views stand; the views to keep."
    assert lake.recorded_fingerprint(source) == lake.fingerprint(source=source), "fingerprint"
    assert received(lake, source) == reference.view(), "present"
    shown, days = {}, rng.sample(CLOSES, 2)
    for at in [now, *(close + pd.Timedelta(minutes=rng.choice([-1, 10, 700])) for close in days)]:
        shown[at] = received(lake, source, as_of=at)
        assert shown[at] == reference.view(at), f"view of {at}"
    for at, seen in past:
        shown[at] = later = received(lake, source, as_of=at)
        same = all(later.get(bar) == value for bar, value in seen.items() if bar[0] not in stamped)
        assert same, f"an earlier view changed, of {at}"
    return [(at, shown[at]) for at in [*(at for at, _ in past), now][-3:]]


def check_bundle(lake, twin, source, seed, cases):
    "Five batches of some cases; how many bars, versions and quarantined rows they had."
    rng = random.Random(seed)
    reference, truth, past = Reference(), {}, []
    pairs = [(f"A{k:04d}", f"B{k:04d}") for k in range(cases)]
    now = CLOSES[rng.randint(2, 6)] + pd.Timedelta(minutes=rng.choice([5, 90]))
    for number in range(5):
        sent = [rows for pair in pairs if (rows := batch(rng, now, truth, pair))]
        if sent:
            stamped = {row[0] for rows in sent for row in rows if row[3] is not None}
            store(lake, source, sent, now)
            for rows in sent:
                reference.receive(rows, now)
            try:
                past = check_views(lake, source, reference, rng, now, past, stamped)
            except AssertionError as e:
                raise AssertionError(f"{e}: seed {seed!r}, {cases} cases together, batch {number}") from e
        now += pd.Timedelta(hours=rng.choice([1, 20, 30, 100, 240]))
    if reference.versions:
        expected = twin.append(reference.current(source), now=now, backfill=True).fingerprint
        assert lake.fingerprint(source=source) == expected, seed
    return len(reference.versions), sum(map(len, reference.versions.values())), reference.quarantined


def check_cases(count, seed, together, progress=lambda x: x, smallest=1):
    "Bars, versions and quarantined rows of so many cases, and in how many bundles they came."
    totals, left, sizes = [0, 0, 0], count, []
    while left:  # bundles of 1, 2, 4 ... cases, then as many as may come together
        size = min(left, together, smallest * 2 ** min(len(sizes), 10))
        sizes.append(size)
        left -= size
    for place, size in enumerate(progress(sizes)):
        with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
            lakes = [
                Lake(Settings().with_(**{"storage.home": f"{home}/{x}"}).storage) for x in ("one", "two")
            ]
            for lake in lakes:
                stack.enter_context(lake)
            done = check_bundle(*lakes, f"bundle{place}", f"{seed} {place}", size)
            totals = [a + b for a, b in zip(totals, done, strict=True)]
    return *totals, len(sizes)


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--cases", type=int, default=2000)
    ask.add_argument("--seed", default="0")
    ask.add_argument("--together", type=int, default=40, help="most cases that are stored together")
    args = ask.parse_args()
    from tqdm import tqdm

    bars, versions, refused, bundles = check_cases(
        args.cases, args.seed, args.together, lambda x: tqdm(x, disable=None)
    )
    print(
        f"{args.cases:,} cases in {bundles} bundles: {bars:,} bars, {versions:,} versions, {refused:,} rows "
        "quarantined; every view, the present and every hash as in the reference"
    )


if __name__ == "__main__":
    main()

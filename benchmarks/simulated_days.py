"""The desk's days under trouble: vendor faults, kills, outages and lost days drawn from a seed.

    python benchmarks/simulated_days.py [--seed 17] [--days 250] [--seeds 1] [--trouble 3]

A small market is sold by a local server that answers like two vendors. Every session the desk ingests,
predicts, retrains at the end of a week, monitors and cleans up, each step called as its flow calls it, with
the clock moved to the minute of its schedule. A seed decides which answers of the vendors are wrong, which
prices are corrected later, which steps are killed with SIGKILL (in a forked process, before the n-th file
operation or step of the lake), on which days MLflow or Redis is away, on which days nothing runs at all, and
which days are repeated. Each night every promise is checked against plain Python:

- no acknowledged bar is lost, and the lake holds what the vendors sent, whatever process was killed;
- what was known at the end of an earlier day reads the same for ever;
- the table is never newer than the lake, tells its age as the calendar does, and is of the served model;
- the served model verifies, and no experiment is published twice;
- no lock, note, open run, half folder or temporary file stays, and the number of files is bounded;
- the same day again changes nothing.

The first broken promise of a seed is printed with its day; the same command finds it again. `--trouble 4`
makes trouble four times as frequent. DuckLake's own clock does not move: versions do not expire here.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")  # no connection survives into a fork

import pandas as pd

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import StockpredictError
from stockpredict.core.settings import load_settings
from stockpredict.lake.lake import Lake
from stockpredict.ops import pipeline, watch_day
from stockpredict.ops.simulated_desk import DAY_STEPS, SIMULATED_DESK, moved_clock
from stockpredict.ops.work import retrain_lock
from stockpredict.predict.answer_table import TABLE_FILE, AnswerTable
from stockpredict.sources.simulate import simulate
from stockpredict.sources.vendor_chain import dead_letters
from stockpredict.testing.growing_vendors import GrowingVendors
from stockpredict.train.champion import current_champion, read_events
from stockpredict.train.registry import load_version

CALENDAR = get_calendar("XNYS")
FIRST_DAY, HISTORY = "2022-01-03", 220  # sessions before the first simulated day
REFUSES = "127.0.0.1:9"  # no server listens there
CHANGES = SIMULATED_DESK | {"data.start": FIRST_DAY, "validation.first_train": 170}
WHOLE = ("", "bom", "strings", "behind")  # answers that are read as they are
LOST = ("429", "500", "throttled", "html", "truncated", "garbage", "hangup", "reset", "empty", "bad-symbol")
BAD_ROW = ("negative", "infinity", "nan")  # the newest row is refused, the others are stored


class BrokenPromise(AssertionError):
    "What an invariant found."


class Vendors(GrowingVendors):
    "Two vendors that know the market up to the moved clock, correct prices later, and are logged."

    def __init__(self, bars, seed):
        super().__init__(bars, seed)
        self.log = []

    def answer(self, path, query, fault=""):
        status, headers, body, active = super().answer(path, query, fault)
        entry = self.requests[-1]
        kind, history = entry["fault"], self.histories.get(entry["ticker"])
        if history is not None and kind in (*WHOLE, *BAD_ROW):
            first = query.get("startDate") or query.get("from") or ""
            last = query.get("endDate") or query.get("to") or "9"
            whole = history[:-1] if kind in ("behind", *BAD_ROW) else history
            rows = whole[whole.day.between(first, last)]
            refused = history.day.iloc[-1] if kind in BAD_ROW else ""
            self.log.append((entry["ticker"], dict(zip(rows.day, rows.close, strict=True)), refused))
        return status, headers, body, active


def digest(frame) -> str:
    "Content of a table of bars."
    rows = pd.util.hash_pandas_object(frame.drop(columns=["source"], errors="ignore"), index=False)
    return hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()[:16]


class KillPoints:
    "Counts the file operations and the steps of the lake in this process, and dies before the n-th."

    CALLS = ("replace", "link", "rename", "unlink", "fsync", "mkdir", "rmdir")

    def __init__(self, fatal: int):
        self.fatal, self.seen = fatal, 0

    def pass_by(self, *_):
        self.seen += 1
        if self.seen == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self):
        "Watch this process; it is a fork, so nothing is put back."
        for name in self.CALLS:
            setattr(os, name, self._watched(getattr(os, name)))
        plain, own = Lake.__init__, self

        def opened(lake, *arguments, on_step=None, **options):
            plain(lake, *arguments, on_step=on_step, **options)
            lake.step = own.pass_by

        Lake.__init__ = opened

    def _watched(self, plain):
        def call(*arguments, **options):
            self.pass_by()
            return plain(*arguments, **options)

        return call


def forked(action) -> int:
    "The exit code of an action in a fork of its own: 0, 1 for an error of ours, 3 for another, -9 if killed."
    sys.stdout.flush()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 3
    try:
        action()
        code = 0
    except StockpredictError:
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Desk:
    "One seed: its market, its home, its troubles and what must hold."

    def __init__(self, seed: int, days: int, home: Path, calm: bool = False, often: float = 1):
        self.draw, self.home, self.calm = random.Random(seed), Path(home), calm
        self.seed, self.count, self.often = seed, Counter(), often
        length = HISTORY + max(days, 250) + 10  # a seed has one market, however many days are asked for
        sessions = CALENDAR.sessions(FIRST_DAY, CALENDAR.offset(pd.Timestamp(FIRST_DAY), length))
        bars = simulate("realistic", 4, len(sessions), seed=seed, start=FIRST_DAY).bars
        self.sessions, self.days = sessions, days
        self.vendors = Vendors(bars, seed)
        self.tickers = sorted(self.vendors.full)
        self.sent = {ticker: {} for ticker in self.tickers}  # the plain reference: day -> close
        self.maybe = {}  # (ticker, day) -> closes sent to a step that was killed or refused
        self.stored, self.views = set(), {}  # keys of acknowledged bars; end of a day -> digest of the view
        self.retrains = self.draw.choice(["weekly", "monthly", "monthly"])

    def settings(self, **more):
        "The settings of today; what is away today has an address that refuses."
        changes = CHANGES | {
            "storage.home": str(self.home / "home"),
            "storage.reports": str(self.home / "reports"),
            "data.universe": self.tickers,
            "sources.base_urls": f"all={self.vendors.url}",
        }
        return load_settings(overrides=changes | more, environ={})

    def __enter__(self):
        self.vendors.start()
        return self

    def __exit__(self, *_):
        self.vendors.stop()

    # ---- a day

    def trouble(self, day) -> dict:
        "What goes wrong today."
        draw = self.draw

        def roll():
            return draw.random() / self.often

        t = dict(faults=[], kills=[], away={}, corrections=[], repeat=roll() < 0.1)
        if roll() < 0.3:
            for _ in range(draw.randint(1, 4)):
                kind = draw.choice([*LOST, *BAD_ROW, *WHOLE[1:]])
                where = dict(ticker=draw.choice(["", *self.tickers]), vendor=draw.choice(["", "tiingo"]))
                t["faults"].append(dict(kind=kind, times=draw.choice([1, 1, 2, 8]), **where))
        if roll() < 0.15:
            t["kills"] = [
                (draw.choice(list(STEPS)), draw.randint(1, 45)) for _ in range(draw.choice([1, 1, 2]))
            ]
        if roll() < 0.05:
            t["away"]["storage.mlflow_uri"] = f"http://{REFUSES}"
        if roll() < 0.03:
            t["away"]["serving.redis_url"] = f"redis://{REFUSES}"
        if roll() < 0.06:
            back = draw.choice([1, 2, 3, 40])
            factor = 1 + draw.choice([-1, 1]) * draw.uniform(0.002, 0.01)
            t["corrections"].append((draw.choice(self.tickers), max(0, day - back), factor))
        t["lost"] = roll() < 0.02
        if self.calm:
            t |= dict(kills=[], away={}, lost=False, repeat=False)
        return t

    def run_day(self, number: int):
        "One session: trouble, the flows, the night's checks."
        day = HISTORY + number
        session, close = self.sessions[day], CALENDAR.closes(self.sessions[day : day + 1])[0]
        t = self.trouble(day)
        if number == 0:
            t |= dict(lost=False, faults=[])
        for ticker, at, factor in t["corrections"]:
            self.vendors.correct(ticker, f"{self.sessions[at]:%Y-%m-%d}", factor)
        self.vendors.know_until(f"{session:%Y-%m-%d}")
        self.count["faults"] += len(t["faults"])
        self.count["corrections"] += len(t["corrections"])
        self.count["outages"] += len(t["away"])
        self.vendors.faults.clear()
        for fault in t["faults"]:
            self.vendors.fault(**fault)
        if t["lost"]:
            self.count["lost days"] += 1
            return
        settings, self.today = self.settings(**t["away"]), f"{session:%Y-%m-%d}"
        for order, step in enumerate(STEPS):
            if not (number == 0 or self.is_due(step, day)):
                continue
            now = close + pd.Timedelta(minutes=90 + 30 * order)
            for fatal in [n for name, n in t["kills"] if name == step]:
                self.killed(settings, step, now, fatal)
            self.attempt(settings, step, now, bool(t["faults"]))
        if t["repeat"] and not t["faults"]:
            self.again(settings, close + pd.Timedelta(hours=6), day)
        with moved_clock(close + pd.Timedelta(hours=8)):
            self.check_night(settings, day, t)
        self.count["days"] += 1

    def is_due(self, step, day) -> bool:
        "Whether the step has its time today: the last session of a week or a month."
        today, after = self.sessions[day], self.sessions[day + 1]
        if step == "retrain" and self.retrains == "monthly":
            return today.month != after.month
        return step not in ("retrain", "maintain") or today.isocalendar()[:2] != after.isocalendar()[:2]

    def killed(self, settings, step, now, fatal):
        "Let a fork do the step and die; whatever it left is what the next one finds."

        def action():
            KillPoints(fatal).install()
            with moved_clock(now):
                STEPS[step](settings, self.today)

        code = forked(action)
        self.take_deliveries(code == 0)
        if code == 3:
            raise BrokenPromise(f"{step}, killed at {fatal}, ended with an error that is none of ours")
        self.count["kills" if code == -signal.SIGKILL else "kills that came too late"] += 1

    def attempt(self, settings, step, now, excused: bool):
        "The step as its flow does it; a failure is excused by a fault of the vendors only."
        with moved_clock(now):
            try:
                STEPS[step](settings, self.today)
                self.take_deliveries(True)
            except StockpredictError as e:
                self.take_deliveries(False)
                if not excused:
                    raise BrokenPromise(f"{step} failed without a fault: {e}") from e
                self.count[f"{step} refused: {e.code}"] += 1

    def take_deliveries(self, acknowledged: bool):
        "What the vendors sent to a step: it must be stored, or may be where the step did not end well."
        sent = {ticker: {} for ticker in self.tickers}
        for ticker, rows, refused in self.vendors.log:
            sent[ticker].update(rows)
            sent[ticker].pop(refused, None)  # the last word of the vendors on that day is a row to refuse
            for day, close in rows.items():
                self.maybe.setdefault((ticker, day), []).append(close)
        for ticker, rows in sent.items() if acknowledged else ():
            self.sent[ticker].update(rows)
        self.vendors.log.clear()

    def again(self, settings, now, day):
        "The same day once more: nothing may change."
        before = self.state(settings)
        for step in STEPS:
            if self.is_due(step, day):
                self.attempt(settings, step, now, False)
        after = self.state(settings)
        if before != after:
            raise BrokenPromise(f"the same day again changed {[k for k in before if before[k] != after[k]]}")
        self.count["repeated days"] += 1

    def state(self, settings) -> dict:
        "Everything that a repetition must leave as it is."
        storage = settings.storage
        with Lake(storage, read_only=True) as lake:
            state = {"fingerprint": lake.fingerprint(), "bars": digest(lake.bars(adjusted=False))}
        table = AnswerTable.open(storage.serving_dir / TABLE_FILE)
        answers = [json.loads(body + b"}") for _, body in sorted(table.rows.items())]
        # compaction gives the same content another number
        state["table"] = [{k: v for k, v in answer.items() if k != "snapshot"} for answer in answers]
        state["history"] = [(e["event"], e["artifact"]) for e in read_events(settings)]
        state["work"] = sorted(
            (p.parents[1].name, hashlib.sha256(p.read_bytes()).hexdigest()[:12])
            for p in storage.work_dir.glob("*/steps/*.json")
            if p.stem in ("train", "judge", "publish")
        )
        return state

    # ---- the night

    def check_night(self, settings, day, t):
        "Every promise, against plain Python."
        self.vendors.requests.clear()
        storage, session = settings.storage, self.sessions[day]
        with Lake(storage, read_only=True) as lake:
            bars = lake.bars(adjusted=False)
            self.check_bars(bars, session, t)
            self.check_views(lake, bars)
            last = {k: v for k, v in zip(bars.ticker, bars.event_time, strict=True)}
            snapshot = lake.snapshot()
        self.check_letters(settings, session, last, t)
        self.check_table(settings, bars, snapshot, t)
        self.check_registry(settings)
        self.check_disk(settings, t)

    def expect(self, truth, sentence):
        if not truth:
            raise BrokenPromise(sentence)

    def check_bars(self, bars, session, t):
        "The lake against what was sent."
        days = CALENDAR.day_of(bars.event_time).strftime("%Y-%m-%d")
        keys = set(zip(bars.ticker, days, strict=True))
        self.expect(self.stored <= keys, f"lost bars: {sorted(self.stored - keys)[:3]}")
        self.stored = keys
        self.expect(days.max() <= f"{session:%Y-%m-%d}", f"a bar of {days.max()} is from the future")
        for ticker, day, close in zip(bars.ticker, days, bars.close, strict=True):
            sent = self.sent[ticker].get(day)
            if sent is None or abs(sent - close) >= 0.006:
                perhaps = [x for x in self.maybe.get((ticker, day), []) if abs(x - close) < 0.006]
                self.expect(perhaps, f"{ticker} {day}: the lake has {close}, sent was {sent}")
                self.sent[ticker][day] = perhaps[-1]
        missing = {(k, d) for k, rows in self.sent.items() for d in rows} - keys
        self.expect(not missing, f"sent but not stored: {sorted(missing)[:3]}")
        self.maybe.clear()

    def check_views(self, lake, bars):
        "What was known at the end of earlier days."
        now = pd.Timestamp.now("UTC")
        for at in self.draw.sample(sorted(self.views), min(1, len(self.views))):
            view = digest(lake.bars(as_of=at, adjusted=False))
            self.expect(view == self.views[at], f"what was known on {at} reads otherwise than on that day")
        self.expect(bars.known_at.max() <= now, "a bar is known from the future")
        self.views[now] = digest(lake.bars(as_of=now, adjusted=False))

    def check_letters(self, settings, session, last, t):
        "A ticker without the newest session waits as a dead letter, or its vendors have no such bar."
        close = CALENDAR.close(session)
        waiting = set(dead_letters(settings).ticker)
        self.expect(waiting <= set(self.tickers), f"letters of {waiting}")
        for ticker in self.tickers:
            has = self.vendors.histories[ticker].day.iloc[-1] == f"{session:%Y-%m-%d}"
            current = last.get(ticker) == close
            self.expect(
                current or not has or t["faults"], f"{ticker} lacks {session:%Y-%m-%d} without a fault"
            )
        if not t["faults"]:
            self.expect(not waiting, f"letters stay after a day without a fault: {sorted(waiting)}")

    def check_table(self, settings, bars, snapshot, t):
        "The served table."
        table = AnswerTable.open(settings.storage.serving_dir / TABLE_FILE)
        h, now = table.header, pd.Timestamp.now("UTC")
        newest = f"{CALENDAR.day_of(bars.event_time).max():%Y-%m-%d}"
        self.expect(h["decision_session"] <= newest, f"the table of {h['decision_session']} knows the future")
        self.expect(h["snapshot"] <= snapshot, "the table names a version that the lake does not have")
        self.expect(pd.Timestamp(h["data_as_of"]) <= now, "the table's data are from the future")
        closes = CALENDAR.closes(self.sessions)
        decided = CALENDAR.close(pd.Timestamp(h["decision_session"]))
        for at in (now, now + pd.Timedelta(days=self.draw.randint(0, 9))):
            age = int(((closes > decided) & (closes <= at)).sum())
            shown = table.age(at.timestamp())
            self.expect(shown == age, f"the table says {shown} sessions at {at}, the calendar {age}")
        if not t["faults"]:
            champion = current_champion(settings)
            artifact = h["model"]["artifact"]
            self.expect(
                h["decision_session"] == newest, f"the table is of {h['decision_session']}, not {newest}"
            )
            self.expect(artifact == champion.artifact, "the table is of another model than the champion")
        for body in table.rows.values():
            answer = json.loads(body + b"}")
            sent = self.sent[answer["ticker"]].get(h["decision_session"])
            self.expect(abs(answer["last_close"] - sent) < 0.011, f"{answer['ticker']}: wrong last close")

    def check_registry(self, settings):
        "The champion and the history."
        champion, events = current_champion(settings), read_events(settings)
        load_version(settings, champion.artifact)
        published = Counter(e["artifact"] for e in events if e["event"] in ("promote", "baseline"))
        held_back = Counter(e["case"] for e in events if e["event"] == "hold")
        twice = [k for k, n in (published | held_back).items() if n > 1]
        self.expect(not twice, f"published or decided twice: {twice}")
        last = [e for e in events if e["event"] != "hold"][-1]
        self.expect(last["artifact"] == champion.artifact, "the history names another champion")

    def check_disk(self, settings, t):
        "Nothing half done stays for long, and the number of files is bounded."
        home = settings.storage.home_dir
        with retrain_lock(settings):
            pass  # it is free
        self.expect(not (home / "retrain.json").exists(), "a finished run is still noted as running")
        paths, now = list(home.rglob("*")), time.time()
        for path in paths:  # the disk does not know of the moved clock
            if path.stat().st_mtime > now:
                os.utime(path, (now, now))
        files = [p for p in paths if p.is_file()]
        half = [p for p in files if p.name.startswith(".") and p.name.endswith((".tmp", ".part"))]
        old = [p for p in half if now - p.stat().st_mtime > 9 * 86_400]
        self.expect(not old, f"left by a killed step: {[str(p.relative_to(home)) for p in old[:3]]}")
        work = list(settings.storage.work_dir.glob("*/work.json"))
        self.expect(len(work) <= 12, f"{len(work)} work folders stay")
        self.most_files = max(getattr(self, "most_files", 0), len(files))

    def finish(self):
        "The last look: every view of every night."
        settings = self.settings()
        with moved_clock(CALENDAR.close(self.sessions[-1])):
            with Lake(settings.storage, read_only=True) as lake:
                lake.check_files()
                for at, view in self.views.items():
                    shown = digest(lake.bars(as_of=at, adjusted=False))
                    self.expect(shown == view, f"what was known on {at} reads otherwise at the end")

    def run(self, say=lambda line: None):
        "All days; the first broken promise is raised with its day."
        for number in range(self.days):
            try:
                self.run_day(number)
            except Exception as e:
                day = f"{self.sessions[HISTORY + number]:%Y-%m-%d}"
                kind = (
                    ""
                    if isinstance(e, BrokenPromise)
                    else f"{traceback.format_exc()[-1500:]}\n{type(e).__name__}: "
                )
                raise BrokenPromise(f"seed {self.seed}, day {number + 1} ({day}): {kind}{e}") from e
            if number % 50 == 49:
                say(f"seed {self.seed}: {number + 1} days")
        self.finish()
        return self


# ---- the steps of the simulated desk; training is due when the seed says so, and nothing is scored


def retrain_step(settings, session):
    pipeline.retrain(settings, pages=False)


def monitor_step(settings, session):
    watch_day.desk_state(settings)


STEPS = DAY_STEPS | {"retrain": retrain_step, "monitor": monitor_step}


@contextmanager
def place(keep: str, seed: int):
    "A folder for one seed, removed afterwards unless it is to be kept."
    if keep:
        folder = Path(keep) / str(seed)
        shutil.rmtree(folder, ignore_errors=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="stockpredict-days-") as folder:
        yield Path(folder)


def main():
    ask = argparse.ArgumentParser(description="Simulated days of the desk.")
    ask.add_argument("--seed", type=int, default=1)
    ask.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    ask.add_argument("--days", type=int, default=250)
    ask.add_argument("--trouble", type=float, default=1, help="how much more often something goes wrong")
    ask.add_argument("--calm", action="store_true", help="the same market and vendors, and no kills")
    ask.add_argument("--keep", default="", help="keep the homes in this folder")
    asked = ask.parse_args()
    logging.disable(logging.WARNING)
    broken, total = [], Counter()
    for seed in range(asked.seed, asked.seed + asked.seeds):
        began = time.process_time() + os.times().children_user + os.times().children_system
        with (
            place(asked.keep, seed) as folder,
            Desk(seed, asked.days, folder, calm=asked.calm, often=asked.trouble) as desk,
        ):
            try:
                desk.run(lambda line: print(line, flush=True))
            except BrokenPromise as e:
                broken.append(str(e))
                print(f"BROKEN  {e}", flush=True)
        times = os.times()
        spent = time.process_time() + times.children_user + times.children_system - began
        total += desk.count
        rate = 60 * desk.count["days"] / max(spent, 1e-9)
        counts = ", ".join(f"{n} {what}" for what, n in sorted(desk.count.items()))
        most = getattr(desk, "most_files", 0)
        print(
            f"seed {seed}: {counts}; at most {most} files; {spent:.0f} CPU s, {rate:.0f} days a minute",
            flush=True,
        )
    print(
        f"all: {', '.join(f'{n} {what}' for what, n in sorted(total.items()))}; {len(broken)} broken",
        flush=True,
    )
    return len(broken)


if __name__ == "__main__":
    sys.exit(main())

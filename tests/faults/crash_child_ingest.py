"""Forks children that ingest and are killed, and reports what they left behind, one JSON line each.

Run as a script: `crash_child_ingest.py HOME INBOX`. Everything slow is done once, before the first fork; no
database is open then, so each child opens its own, as a fresh process would.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kill_points import sample

from stockpredict.core.settings import Settings
from stockpredict.ingest.ingest import ingest
from stockpredict.lake.lake import Lake

NOW = ["2024-01-01T12:00Z", "2024-01-02T12:00Z"]


def settings(home, inbox):
    return Settings().with_(
        **{
            "storage.home": str(home),
            "data.source": "files",
            "data.files_path": str(inbox),
            "data.start": "2019-01-01",
            "data.quarantine_limit": 0.2,
        }
    )


def in_child(work):
    "Run `work` in a forked process: (exit code, seconds); the code is -9 when it was killed."
    began, pid = time.monotonic(), os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as e:
            print(repr(e), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), time.monotonic() - began


def killed_at(k):
    "A callback that kills its own process at the k-th step, without warning, and prints the step's name."
    seen = []

    def step(name):
        seen.append(name)
        if len(seen) == k:
            os.write(1, (json.dumps({"step": name}) + "\n").encode())
            os.kill(os.getpid(), signal.SIGKILL)

    return step


def look(s):
    "What a reader finds that opens the lake first, before any repair."
    if not (s.storage.lake_dir / "catalog.sqlite").exists():
        return {"rows": 0}
    try:
        lake = Lake(s.storage, read_only=True)
    except Exception as e:
        return {"rows": 0, "refused": type(e).__name__}
    with lake:
        count = {
            t: int(lake.rows(f"SELECT count(*) AS n FROM lake.{t}").n[0])
            for t in ("bars", "adjustments", "quarantine", "ingests")
        }
        return {"rows": count["bars"], **count, "fingerprint": lake.fingerprint()}


def tell(**facts):
    os.write(1, (json.dumps(facts) + "\n").encode())


def main(home, inbox, phase):
    """Phase 0: the first batch, into nothing; killed at every step there is. Phase 1: a second batch with
    news and a correction, into a lake that exists; killed at every step from the gate on, and at odd
    moments."""
    home, inbox, phase = Path(home), Path(inbox), int(phase)
    batches = [inbox / "first", inbox / "second"]
    ingest(
        settings(home / "warm", batches[0]), NOW[0]
    )  # the children inherit calendars, expectations and verified extensions
    seed = home / "seed"
    if phase:
        in_child(lambda: ingest(settings(seed, batches[0]), NOW[0]))

    def fresh(name):
        place = home / name
        if phase:
            shutil.copytree(seed, place)
        return settings(place, batches[phase])

    s, steps = fresh("calm"), home / "steps"
    before = look_in_child(s)
    _, usual = in_child(
        lambda: ingest(s, NOW[phase], on_step=lambda name: steps.open("a").write(name + "\n"))
    )
    names = steps.read_text().split("\n")[:-1]
    tell(calm=look_in_child(s), before=before, steps=names)
    for k in sample(range(names.index("inspected") + 1 if phase else 1, len(names) + 2), 3):
        s = fresh(f"k{k}")
        code, _ = in_child(lambda s=s, k=k: ingest(s, NOW[phase], on_step=killed_at(k)))
        report(s, NOW[phase], code, k=k)
    for i in sample(range(3 * phase), 1):
        s = fresh(f"t{i}")
        report(
            s, NOW[phase], killed_after(lambda s=s: ingest(s, NOW[phase]), usual * (0.5 + 0.2 * i)), waited=i
        )


def killed_after(work, seconds):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def report(s, now, code, **facts):
    after = look_in_child(s)
    again, _ = in_child(lambda: ingest(s, now))
    tell(**facts, code=code, after=after, again=again, healed=look_in_child(s))


def look_in_child(s):
    "Every look is a process of its own, as a reader's would be."
    read, write = os.pipe()
    code, _ = in_child(lambda: os.write(write, json.dumps(look(s)).encode()))
    os.close(write)
    with os.fdopen(read) as f:
        text = f.read()
    return json.loads(text) if code == 0 else {"broken": code}


if __name__ == "__main__":
    main(*sys.argv[1:])

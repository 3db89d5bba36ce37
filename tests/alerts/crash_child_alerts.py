"""Forks senders that are killed at one step after the other, and reports what a later sender had left to do.

Run as a script: `crash_child_alerts.py FOLDER HOST:PORT`, where a webhook listens.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_delivery import NOON, ring, rule_of

from stockpredict.alerts.channels import add_channel
from stockpredict.alerts.outbox import Outbox
from stockpredict.alerts.sending import send_due
from stockpredict.core.settings import Settings

folder, place = Path(sys.argv[1]), sys.argv[2]


def prepared(k):
    "A home with two rules: one that rings by itself, one whose events come as a digest."
    home = folder / f"home{k}"
    settings = Settings().with_(**{"storage.home": str(home), "alerts.allow_hosts": place})
    add_channel(settings, "desk", f"http://{place}/taken/home{k}")
    outbox = Outbox(settings.storage)
    events = ring(outbox, rule_of(outbox, channels=["desk"]), 1, 2)
    events += ring(outbox, rule_of(outbox, channels=["desk"], delivery={"digest": True}), 1, 2, 3)
    return settings, events


def killed_at(k, settings):
    "Send in a child that is killed at its k-th step; the step's name, or nothing when it came to its end."
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        seen = []

        def step(name):
            seen.append(name)
            if len(seen) == k:
                os.write(writer, name.encode())
                os.kill(os.getpid(), signal.SIGKILL)

        send_due(settings, NOON, outbox=Outbox(settings.storage, step))
        os._exit(0)
    os.close(writer)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(reader) as pipe:
        name = pipe.read()
    assert status == (-signal.SIGKILL if name else 0), status
    return name


for k in range(1, 100):
    settings, events = prepared(k)
    step = killed_at(k, settings)
    if not step:
        break
    report = send_due(settings, NOON + 60)
    line = {"step": step, "home": f"home{k}", "events": events, "waiting": report.waiting}
    print(json.dumps(line), flush=True)

"""Which of the places where a process can be killed are tried in this run.

All of them are tried with `--all-steps`. Otherwise each run draws a few by a seed of its own, which the
header of the test run prints: `pytest --kill-seed 123` draws the same ones again.
"""

import os
import random
import signal
import sys

ALL, SEED = "TESTS_ALL_STEPS", "TESTS_KILL_SEED"
STEPS = ("os.rename", "os.mkdir", "os.remove", "open", "sqlite3.connect", "os.rmdir", "os.link")


def sample(points: list, most: int) -> list:
    "At most `most` of these points, in their order; with `--all-steps` all of them."
    points = list(points)
    if os.environ.get(ALL) == "1" or len(points) <= most:
        return points
    draw = random.Random(f"{os.environ.get(SEED, '0')} {points}")
    kept = set(draw.sample(range(len(points)), most))
    return [point for place, point in enumerate(points) if place in kept]


def in_fork(work, at=0):
    "Do something in a forked child, killed at its step `at`; the number of steps, or 0 when it was killed."
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        count = [0]

        def step(event, args):
            if event in STEPS:
                count[0] += 1
                if count[0] == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(step)
            work()
            os.write(write, str(count[0]).encode())
        finally:
            os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    counted = os.read(read, 20)
    os.close(read)
    return int(counted or 0) if not os.WIFSIGNALED(status) else 0

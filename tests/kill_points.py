"""Which of the places where a process can be killed are tried in this run.

All of them are tried with `--all-steps`. Otherwise each run draws a few by a seed of its own, which the
header of the test run prints: `pytest --kill-seed 123` draws the same ones again.
"""

import os
import random

ALL, SEED = "TESTS_ALL_STEPS", "TESTS_KILL_SEED"


def sample(points: list, most: int) -> list:
    "At most `most` of these points, in their order; with `--all-steps` all of them."
    points = list(points)
    if os.environ.get(ALL) == "1" or len(points) <= most:
        return points
    draw = random.Random(f"{os.environ.get(SEED, '0')} {points}")
    kept = set(draw.sample(range(len(points)), most))
    return [point for place, point in enumerate(points) if place in kept]

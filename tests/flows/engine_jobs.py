"""What workers of the engine tests do; they import this file, so it loads little."""

import os
import signal
import time
from pathlib import Path

import torch

from stockpredict.core.errors import ModelError


def process_and_sum(shared, column):
    "Which process it was, with how many threads, and a number."
    return os.getpid(), torch.get_num_threads(), float(shared["x"][:, column].sum())


def die_once(shared, column):
    "The first time that column 1 is asked for, the worker is killed."
    mark = Path(shared["folder"], "died")
    if column == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return column


def always_die(shared, column):
    "Column 1 kills every worker."
    if column == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return column


def refuse(shared, column):
    "An error of ours, with its context; the worker leaves its number."
    Path(shared["folder"], str(os.getpid())).touch()
    raise ModelError("This model cannot be fitted.", "Use another.", column=column)


def wait(shared, column):
    "A job that does not end by itself; the worker leaves its number."
    Path(shared["folder"], str(os.getpid())).touch()
    while True:
        time.sleep(0.1)

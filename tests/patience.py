"""Waiting in tests without a limit in seconds, which a busy machine reaches without anything being wrong.

A wait ends when the awaited thing happened, when a process that should bring it about has died, or when these
processes stand still: not one clock tick of CPU time and not one byte read or written by any of them in ten
minutes. Where a process ticks without doing anything, such as a browser or a server, the test names other
`signs` that change while something goes on.
"""

import ctypes
import signal
import subprocess
import sys
import time
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil

STILL = 600  # seconds without any sign of life


def signs_of_life(pids) -> tuple:
    "CPU time and bytes of some processes and everything they started."
    signs = []
    for pid in pids:
        try:
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            continue
        for process in family:
            try:
                moved = process.io_counters()[2:4] if hasattr(process, "io_counters") else ()
                signs.append((process.pid, process.cpu_times()[:2], *moved))
            except psutil.Error:
                continue
    return tuple(signs)


class Standstill(AssertionError):
    "Nothing happens any more."


class Watch:
    "Raises `Standstill` when some processes show no sign of life for `STILL` seconds between two looks."

    def __init__(self, *pids, signs=None):
        self.read = signs or (lambda: signs_of_life(pids))
        self.pids, self.signs, self.since, self.looked = pids or signs, (), time.monotonic(), 0.0

    def look(self):
        now = time.monotonic()
        if not self.pids or now < self.looked + 1:
            return
        signs, self.looked = self.read(), now
        if signs != self.signs:
            self.signs, self.since = signs, now
        elif now - self.since > STILL:
            raise Standstill(f"Processes {self.pids} did nothing for {STILL} s: {str(signs)[-2000:]}")


def wait_until(condition, *processes, every=0.05, signs=None):
    "What `condition` returns, as soon as it is true; fails when one of the processes has ended before."
    watch = Watch(*(p.pid for p in processes if hasattr(p, "pid")), signs=signs)
    while not (result := condition()):
        ended = [p for p in processes if has_ended(p)]
        if ended and not (result := condition()):
            raise AssertionError(f"{ended[0]} ended before it happened")
        if result:
            break
        watch.look()
        time.sleep(every)
    return result


def has_ended(process) -> bool:
    "Whether a process of subprocess, multiprocessing or psutil, or a thread, is over."
    if hasattr(process, "poll"):
        return process.poll() is not None
    if hasattr(process, "is_alive"):
        return not process.is_alive()
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def communicate(child: subprocess.Popen) -> tuple:
    "What a child printed until it ended; a child that stands still is killed."
    watch = Watch(child.pid)
    while True:
        try:
            return child.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            try:
                watch.look()
            except Standstill:
                child.kill()
                out, err = child.communicate()
                raise Standstill(f"{child.args} did nothing for {STILL} s.\n{out}\n{err}"[-6000:]) from None


def run(command, **options) -> subprocess.CompletedProcess:
    "`subprocess.run` with captured text, which ends a child that stands still instead of a slow one."
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    check = options.pop("check", False)
    with subprocess.Popen([str(word) for word in command], **options) as child:
        try:
            out, err = communicate(child)
        except BaseException:
            child.kill()
            raise
        done = subprocess.CompletedProcess(command, child.returncode, out, err)
        if check:
            done.check_returncode()
        return done


def answers(url: str) -> bool:
    "Whether an HTTP server answers at `url`, whatever it says."
    try:
        urlopen(url, timeout=30).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True


def cpu_seconds(pid: int) -> float:
    "CPU time of a process and of everything it started; on a busy machine it does not grow by waiting."
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(sum(p.cpu_times()[:2]) for p in family)


def is_gone(pid: int) -> bool:
    "Whether no process of this number is running."
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def die_with_parent():
    "For `preexec_fn`: on Linux a child is killed when the thread that started it ends."
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

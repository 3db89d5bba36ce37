"""Machine code of the loops: found again by what a loop is, compiled again when it changes or is damaged,
and never compiled once a service has started."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import warm

from stockpredict.algebra import loop_cache
from stockpredict.algebra.numba_kernels import ALL_LOOPS, compiled
from stockpredict.algebra.panel import Panel
from stockpredict.catalogue.design_matrix import Spec, make_inputs
from stockpredict.catalogue.feature import FEATURES, SETS, compute
from stockpredict.catalogue.latest import latest
from stockpredict.catalogue.warm_up import load_loops, loaded_signatures

LOOP = """
from stockpredict.algebra.numba_kernels import compiled

FACTOR = {factor}

@compiled
def inner(x):
    return {inner}

@compiled
def outer(x):
    s = 0.0
    for i in range(len(x)):
        s += FACTOR * inner(x[i])
    return s
"""
ASK = """
import sys, json, numpy as np
sys.path.insert(0, {folder!r})
import loops
from stockpredict.algebra import loop_cache
value = loops.outer(np.arange(4.0))
print(json.dumps([value, loop_cache.COMPILED]))
"""


def ask(folder: Path, cache: Path, **loop) -> tuple[float, list]:
    "What a process answers that finds the loops in `folder`, and what it had to compile."
    folder.mkdir(exist_ok=True)
    (folder / "loops.py").write_text(LOOP.format(**dict(factor=2.0, inner="x + 1") | loop))
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    done = warm.python(ASK.format(folder=str(folder)), env=env)
    assert done.returncode == 0, done.stderr
    value, names = json.loads(done.stdout)
    return value, names


def test_a_loop_is_found_again_elsewhere_and_compiled_again_when_it_or_what_it_uses_changes(tmp_path):
    "Numba's own cache kept the old code when a called loop or a constant changed, and lost all on reinstall."
    cache = tmp_path / "cache"
    assert ask(tmp_path / "a", cache) == (20.0, ["inner", "outer"])
    assert ask(tmp_path / "a", cache) == (20.0, [])
    shutil.rmtree(tmp_path / "a")
    assert ask(tmp_path / "reinstalled", cache) == (20.0, []), "the same code in another place"
    assert ask(tmp_path / "a", cache, factor=3.0)[0] == 30.0, "a constant changed"
    assert ask(tmp_path / "a", cache, inner="x - 1")[0] == 4.0, "a loop that it calls changed"
    assert ask(tmp_path / "a", cache) == (20.0, []), "the first is still there"
    for file in (cache / "stockpredict").glob("*.nbc"):
        file.write_bytes(file.read_bytes()[:-40] + b"\0" * 40)
    value, names = ask(tmp_path / "a", cache)
    assert value == 20.0 and "outer" in names, "damaged machine code is compiled again"
    for file in (cache / "stockpredict").glob("*.nbi"):
        file.write_bytes(b"no index at all")
    assert ask(tmp_path / "a", cache)[0] == 20.0


@pytest.mark.parametrize("obstacle", ["a file", "closed"])
def test_where_nothing_can_be_stored_the_answer_is_the_same(tmp_path, obstacle):
    cache = tmp_path / "cache"
    if obstacle == "a file":
        cache.write_text("")
    else:
        (cache / "stockpredict").mkdir(parents=True)
        (cache / "stockpredict").chmod(0o500)
    assert ask(tmp_path / "a", cache)[0] == 20.0


def test_identities_differ_between_all_loops_and_do_not_depend_on_the_process():
    compute(market(3, 300), ["rsi_14", "down_beta_60", "volume_below_20"])
    marks = {x.identity: x.func.__qualname__ for x in ALL_LOOPS}
    assert len(marks) == len(ALL_LOOPS) > 40
    ask_one = (
        "from stockpredict.algebra.numba_moments import exponential_means as f;"
        "import sys, stockpredict as sp; from stockpredict.catalogue.feature import compute;"
        "compute(sp.Panel.from_bars(sp.sample_prices(tickers=['AAPL'])), 'rsi_14');"
        "print('numba' in sys.modules, f.identity)"
    )
    done = subprocess.run([sys.executable, "-c", ask_one], capture_output=True, text=True, check=True)
    waited, mark = done.stdout.split()
    assert waited == "False", "the first feature of a process must not wait for numba"
    assert marks[mark] == "exponential_means"


def market(tickers: int, sessions: int, holes: bool = False, seed: int = 0) -> Panel:
    noise = np.random.default_rng(seed)
    close = 40 * np.exp(np.cumsum(0.02 * noise.standard_normal((sessions, tickers)), 0))
    spread = np.exp(np.abs(0.01 * noise.standard_normal((sessions, tickers))))
    volume = np.exp(12 + noise.standard_normal((sessions, tickers))).round()
    x = dict(open=close, high=close * spread, low=close / spread, close=close, volume=volume)
    if holes:
        gone = noise.random((sessions, tickers)) < 0.03
        gone[: sessions // 2, 0] = True
        x = {k: np.where(gone, np.nan, v) for k, v in x.items()}
    names = [f"T{i:04d}" for i in range(tickers)]
    dates = pd.bdate_range("2015-01-01", periods=sessions)
    return Panel({k: torch.from_numpy(v).float() for k, v in x.items()}, dates, names)


def test_after_the_start_nothing_is_compiled_or_loaded_whatever_market_comes():
    names = [n for n in SETS["all"] if FEATURES[n].fields <= {"open", "high", "low", "close", "volume"}]
    load_loops(names, (1, 5))
    signatures, done = loaded_signatures(), len(loop_cache.COMPILED)
    markets = [market(40, 900), market(1, 700), market(7, 650, True), market(2, 60), market(3500, 320, True)]
    for panel in markets:
        some = names if len(panel.tickers) < 100 else names[::25]
        latest(panel, some)
        latest(panel, some, 5)
        compute(panel, some[::7])
        for how in ("rank", "zscore", "none"):
            make_inputs(panel, Spec(tuple(some[::9]), how), 5)
    assert loaded_signatures() == signatures and len(loop_cache.COMPILED) == done
    assert sum(len(x.loop.signatures) for x in ALL_LOOPS if "loop" in x.__dict__) == signatures


def test_a_loop_of_a_notebook_has_no_file_and_is_compiled_in_memory():
    space = {"compiled": compiled}
    exec(compile("@compiled\ndef plus_one(x):\n    return x + 1\n", "<cell>", "exec"), space)
    before = len(loop_cache.COMPILED)
    assert space["plus_one"](2.0) == 3.0 and space["plus_one"] not in ALL_LOOPS
    assert len(loop_cache.COMPILED) == before

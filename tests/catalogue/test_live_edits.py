"""Edits in a live kernel: the store hands out the values of the code as it is now, never those of before."""

import json
import os
import subprocess
import sys
from textwrap import dedent

import pytest
import warm
from jupyter_client.manager import start_new_kernel

SETUP = """
import os, sys, importlib, functools
os.environ["OMP_NUM_THREADS"] = "1"
sys.dont_write_bytecode = True
sys.path.insert(0, {folder!r})
from pathlib import Path
import numpy as np, pandas as pd, torch
from stockpredict.core.settings import load_settings
from stockpredict.core.registry import Registry
from stockpredict.lake.lake import Lake
from stockpredict.sources.source import make_source
from stockpredict.catalogue.feature import Feature, feature, FEATURES, feature_values
from stockpredict.catalogue.feature_store import FeatureStore
from stockpredict.algebra.panel import Series

settings = load_settings(environ={{}}, overrides={{
    "data.source": "simulated", "simulated.kind": "realistic", "simulated.tickers": 5,
    "simulated.sessions": 150, "data.start": "2000-01-01", "storage.home": {folder!r} + "/home"}})
source = make_source(settings)
with Lake(settings.storage) as lake:
    lake.append(source.fetch(source.tickers()))

def check(store, feature):
    "Are the stored values those of the function as it is now, and what is their sum?"
    got = store.frame()
    panel = store.panel(store.lake.snapshot())
    want = feature_values(Feature(feature), panel).numpy()
    mine = got.pivot(index="event_time", columns="ticker", values=store.names[0]).to_numpy()
    print("same" if np.array_equal(mine, want, equal_nan=True) else "STALE", float(np.nansum(want)),
          store.key.startswith("unstored"))

def by_numpy(bars, op):
    x = bars.close.values
    before = torch.cat([torch.full_like(x[:1], np.nan), x[:-1]])
    return Series(op(x, before), bars.grid, lookback=2, fields={{"close"}})
"""

# name -> what the notebook defines first, the edit, and the function that the feature is
EDITS = {
    "the method": (
        "def f(bars):\n 'f'\n return bars.close.mean(5)",
        "def f(bars):\n 'f'\n return bars.close.max(5)",
    ),
    "a helper": (
        "def h(x): return x.mean(5)\ndef f(bars):\n 'f'\n return h(bars.close)",
        "def h(x): return x.max(7)",
    ),
    "an entry of a dict": (
        "P = dict(n=5)\ndef f(bars):\n 'f'\n return bars.close.mean(P['n'])",
        "P['n'] = 9",
    ),
    "a module that was imported": (
        "import helper\ndef f(bars):\n 'f'\n return helper.smooth(bars.close)",
        "Path(helper.__file__).write_text('def smooth(x): return x.max(4)')\nimportlib.reload(helper)",
    ),
    "a constant of a module": (
        "import helper\ndef f(bars):\n 'f'\n return bars.close.mean(helper.SPAN)",
        "helper.SPAN = 8",
    ),
    "a helper's module, two imports deep": (
        "import outer\ndef f(bars):\n 'f'\n return outer.smoother(bars.close)",
        "outer.helper.SPAN = 8",
    ),
    "a module imported inside": (
        "def f(bars):\n 'f'\n import helper\n return bars.close.mean(helper.SPAN)\nimport helper",
        "helper.SPAN = 8",
    ),
    "a default argument": (
        "def h(x, n=5): return x.mean(n)\ndef f(bars):\n 'f'\n return h(bars.close)",
        "h.__defaults__ = (9,)",
    ),
    "a class attribute": (
        "class P: n = 5\ndef f(bars):\n 'f'\n return bars.close.mean(P.n)",
        "P.n = 9",
    ),
    "the state of an object": (
        "class P:\n def __init__(s, n): s.n = n\np = P(5)\ndef f(bars):\n 'f'\n return bars.close.mean(p.n)",
        "p.n = 9",
    ),
    "a partial function": (
        "def h(n, x): return x.mean(n)\ng = functools.partial(h, 5)\n"
        "def f(bars):\n 'f'\n return g(bars.close)",
        "g = functools.partial(h, 9)",
    ),
    "a closure": (
        "def make(n):\n def h(x):\n  def inner(y): return y.mean(n)\n  return inner(x)\n return h\n"
        "h = make(5)\ndef f(bars):\n 'f'\n return h(bars.close)",
        "h = make(9)",
    ),
    "a step of one's own under the same name": (
        "def step(x): return 3 * x\ndef f(bars):\n 'f'\n return bars.close._back(step, 0, name='mine')",
        "def step(x): return 2 * x",
    ),
    "a helper of a feature without a graph": (
        "def h(a, b): return a / b - 1\ndef f(bars):\n 'f'\n return by_numpy(bars, h)",
        "def h(a, b): return b / a - 1",
    ),
    "what cannot be compared": (
        "modules = [importlib.import_module('helper')]\ndef f(bars):\n 'f'\n"
        " return by_numpy(bars, lambda a, b: a * modules[0].SPAN)",
        "helper.SPAN = 2",
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "Runs a cell in a kernel and returns what it printed."
    folder = tmp_path_factory.mktemp("live")
    (folder / "helper.py").write_text("SPAN = 5\ndef smooth(x): return x.mean(SPAN)\n")
    (folder / "outer.py").write_text("import helper\ndef smoother(x): return x.mean(helper.SPAN)\n")
    manager, client = start_new_kernel(cwd=str(folder), env={**os.environ, "OMP_NUM_THREADS": "1"})

    def cell(code):
        printed, problems = [], []

        def hear(message):
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                printed.append(content["text"])
            if message["msg_type"] == "error":
                problems.append("\n".join(content["traceback"]))

        client.execute_interactive(code, output_hook=hear, timeout=300)
        assert not problems, problems[0]
        return "".join(printed)

    cell(SETUP.format(folder=str(folder)))
    yield cell
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.kill_points(7)  # some of them in each run, all with --all-steps
@pytest.mark.parametrize("what", EDITS)
def test_an_edit_is_seen_by_the_next_read(run, what):
    before, edit = EDITS[what]
    run("import helper; Path(helper.__file__).write_text('SPAN = 5\\ndef smooth(x): return x.mean(SPAN)\\n')")
    run("importlib.reload(helper)")
    run(before)
    run("store = FeatureStore(settings, [Feature(f)]); check(store, f)")
    first = run("check(store, f)").split()
    run("FEATURES._parts['f'] = Feature(f); store = FeatureStore(settings, ['f'])")
    again = run("check(store, f)").split()
    run(edit)
    run("FEATURES._parts['f'] = FEATURES._parts['f'] if FEATURES._parts['f'].func is f else Feature(f)")
    same_store = run("check(store, f)").split()
    new_store = run("check(FeatureStore(settings, ['f']), f)").split()
    assert first[0] == again[0] == same_store[0] == new_store[0] == "same"
    assert first[1] != new_store[1], "the edit changed nothing, the test is empty"
    assert (new_store[2] == "True") == (what == "what cannot be compared")


def test_an_unchanged_feature_is_read_and_not_computed_again(run):
    run("def f(bars):\n 'f'\n return bars.close.mean(6)")
    run("FeatureStore(settings, [Feature(f)]).materialise()")
    run("def f(bars):\n 'f'\n # a comment\n return bars.close.mean(6)")
    assert run("print(FeatureStore(settings, [Feature(f)]).materialise().loaded)").strip() == "0"


IDENTITY = """
import json, sys
from stockpredict.catalogue.feature import Feature, as_features
from stockpredict.catalogue.code_fingerprint import code_fingerprint, feature_identity
from stockpredict.algebra.live_code import CodeWalk
walk, chosen = CodeWalk(), as_features("all")
WORDS = {"momentum", "value", "size", "quality"}
def f(bars):
    "a set and a frozenset have no order"
    return bars.close.mean(len(WORDS & {"value", "size"}) + 3) * ("size" in {"a", "size", "b"})
own = feature_identity(Feature(f), walk)
print(json.dumps([code_fingerprint(chosen), own, [feature_identity(x, walk) for x in chosen]]))
"""


def test_identities_are_equal_in_every_process():
    def identities(seed):
        env = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", IDENTITY]
        return json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)

    one, two = identities("1"), identities("77")
    assert one == two
    assert one[0] and one[1] and None not in one[2] and len(set(one[2])) == len(one[2]) > 1000


def test_a_changed_engine_file_means_that_nothing_is_stored(tmp_path):
    code = """
    import os
    from stockpredict.catalogue import code_fingerprint as c
    from stockpredict.catalogue.feature import as_features
    chosen = as_features(["mom_21"])
    assert c.code_fingerprint(chosen)
    path = next(iter(c._engine_files()))
    c._engine_files()[path] -= 1  # as if the file had been saved again, unchanged
    assert c.code_fingerprint(chosen)
    c._LOADED = "another text"
    print(c.code_fingerprint(chosen))
    """
    out = warm.python(dedent(code))
    assert out.stdout.strip() == "None", out.stderr

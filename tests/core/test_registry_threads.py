"""A registry asked by several threads."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from stockpredict.core import registry as registry_module
from stockpredict.core.registry import Registry

THREADS = 4


@pytest.fixture
def slow_registry(tmp_path, monkeypatch):
    "A registry whose package takes a moment to import, and asks for its list while it is imported."
    package = tmp_path / "slow_forecasts"
    package.mkdir()
    (package / "__init__.py").touch()
    lines = ["import time", "from stockpredict.core.registry import slow", "time.sleep(0.05)"]
    lines += ["slow.names()", "slow.add('late', len)"]
    (package / "late.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    slow = Registry("forecast", package="slow_forecasts")
    monkeypatch.setattr(registry_module, "slow", slow, raising=False)
    return slow


def test_threads_that_ask_first_all_see_the_whole_list(slow_registry):
    start = Barrier(THREADS)

    def ask(_):
        start.wait()
        return slow_registry.names()

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(ask, range(THREADS))) == THREADS * [["late"]]

"""A rolling restart, a switch and a rollback behind nginx; `benchmarks/rolling.py` does it for long."""

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

import patience
import psutil
import pytest
from load_script import load_script

from nginx_edge import nginx_program
from served_desk import accepts, build_settings, service_process

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "rolling.py"


@pytest.fixture
def rolling(monkeypatch):
    "The module of the benchmark."
    monkeypatch.setattr(sys, "path", [*sys.path])
    return load_script(BENCHMARK)


def test_no_request_fails_while_replicas_restart_and_groups_change(rolling, template, tmp_path):
    if not nginx_program():
        why = "nginx is not installed; run .ci/services"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    from stockpredict.access.audit_search import verify_audit

    shutil.copytree(template.storage.home_dir, tmp_path / "home", ignore=shutil.ignore_patterns("audit"))
    settings = build_settings(tmp_path / "home")
    load = {"replicas": 2, "clients": 4, "seconds": 0.5, "pause": 0.2, "small": True}
    callers, took = asyncio.run(rolling.rehearse(settings, tmp_path, **load))
    assert callers.failures == []
    assert [phase for phase in rolling.PHASES if not callers.seen[phase, "right"]] == []
    log = (tmp_path / "edge" / "access.log").read_text()
    asked = re.findall(r'" 200 127\.0\.0\.1:(\d+)', log)
    assert len(set(asked)) == 2 and set(took) == set(rolling.PHASES[1:])
    audited = verify_audit(settings)  # replicas have no private key, so their lines are whole and not signed
    assert audited["ok"] and audited["lines"], audited


def test_a_service_listens_when_it_is_ready_and_no_longer_than_it_is_told(settings, tmp_path):
    "In between it would keep a proxy waiting that could have asked another replica."
    with service_process(settings, tmp_path, **{"serving.engine": 0}) as (process, port):
        readers = [p.cmdline()[-1] for p in psutil.Process(process.pid).children()]
        assert readers == ["reader 1"]
        with socket.create_connection(("127.0.0.1", port)) as asking:
            head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            asking.sendall(head + b"Content-Length: 2\r\n\r\n")
            process.send_signal(signal.SIGTERM)
            patience.wait_until(lambda: not accepts(port), process)
            assert process.poll() is None  # it waits for the rest of the request
            asking.sendall(b"{}")
            answer = b""
            while piece := asking.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 503 ")
        patience.wait_until(lambda: process.poll() is not None)
        assert process.returncode == 0

"""Parent, readers and engine: memory, metrics, restarts and replacement under load."""

import asyncio
import importlib.util
import json
import re
import signal
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import patience
import psutil
import pytest

from served_desk import publish, service_process

READER_HAS_NOT = ("torch", "pandas", "numpy", "duckdb", "mlflow", "pyarrow", "scipy")


def serving_load():
    "The load of `benchmarks/serving_load.py`, of which a small draw runs here."
    path = Path(__file__).parents[2] / "benchmarks" / "serving_load.py"
    spec = importlib.util.spec_from_file_location("serving_load", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(port, path, data=None):
    headers = {"content-type": "application/json"} if data else {}
    with urlopen(Request(f"http://127.0.0.1:{port}{path}", data, headers)) as answer:
        return answer.read()


def child(process, role):
    "The living process with a role, or `None`."
    for one in psutil.Process(process.pid).children():
        try:
            if one.cmdline()[-1:] == [role]:
                return one
        except psutil.Error:
            continue  # it has just ended
    return None


def test_a_reader_answers_without_the_libraries_of_models(template, tmp_path):
    "Also the front page, health, metrics and the schema; the imports are those of a reader process."
    ini = tmp_path / "settings.ini"
    ini.write_text(template.to_ini())
    code = f"""
import asyncio, httpx, sys
from stockpredict.core.settings import load_settings
from stockpredict.serve.engine_link import EngineLink
from stockpredict.serve.server import create_app, run_child
app = create_app(load_settings({str(ini)!r}, environ={{}}), link=EngineLink(""))
async def go():
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as c:
        paths = "/v1/predictions/SIM00?horizon=1 /v1/predictions /health /metrics / /openapi.json"
        answers = [await c.get(path) for path in paths.split()] + [await c.post("/v1/predict")]
        return [answer.status_code for answer in answers]
async def round():
    async with app.router.lifespan_context(app): await asyncio.sleep(0.2)
asyncio.run(round())
print(asyncio.run(go()), [m for m in {READER_HAS_NOT} if m in sys.modules])
"""
    done = patience.run([sys.executable, "-c", code])
    expected = "[200, 200, 200, 200, 200, 200, 503] []"
    assert done.stdout.split("\n")[-2:-1] == [expected], done.stdout + done.stderr


def test_a_reader_needs_less_than_150_mb(whole_service):
    process, port, _ = whole_service
    read(port, "/v1/predictions/SIM00")
    patience.wait_until(lambda: child(process, "reader 1"), process)
    assert child(process, "reader 1").memory_info().rss < 150 << 20


def test_a_what_if_goes_through_the_reader_to_the_engine(whole_service):
    process, port, settings = whole_service
    question = serving_load().example_question(settings)
    answer = json.loads(read(port, "/v1/predict", question))["data"]
    stored = json.loads(read(port, f"/v1/predictions/{answer['ticker']}?horizon=1"))["data"]
    assert answer["source"] == "caller" and answer["model"] == stored["model"]
    patience.wait_until(lambda: model_state(port) == "ok", process)


def model_state(port):
    return json.loads(read(port, "/health"))["components"]["model"]["status"]


def counted(port, route) -> float:
    "Requests of a route, over all processes and answers."
    text = read(port, "/metrics").decode()
    label = re.escape(f'route="{route}"')
    counts = re.findall(rf"request_seconds_count{{[^}}]*{label}[^}}]*}} (\S+)", text)
    return sum(map(float, counts))


def test_metrics_are_the_whole_and_survive_a_killed_reader(whole_service):
    process, port, _ = whole_service
    before = counted(port, "/v1/predictions/{ticker}")
    for _ in range(20):
        read(port, "/v1/predictions/SIM00?horizon=1")
    assert counted(port, "/v1/predictions/{ticker}") == before + 20
    lines = [len(read(port, "/metrics").splitlines()) for _ in range(3)]
    assert lines[1] == lines[2]  # as many for a million requests
    victim = child(process, "reader 1")
    victim.kill()
    patience.wait_until(lambda: (new := child(process, "reader 1")) and new.pid != victim.pid, process)
    for _ in range(5):
        read(port, "/v1/predictions/SIM00?horizon=1")
    text = read(port, "/metrics").decode()
    assert counted(port, "/v1/predictions/{ticker}") == before + 25
    assert re.findall(r'resident_bytes{process="(.*)"}', text) == ["engine", "reader 1"]


def test_nothing_is_wrong_or_lost_while_models_and_processes_change(whole_service):
    "A new model, a rolling restart and two kills under load; `benchmarks/serving_load.py` does it for long."
    from stockpredict.predict.answer_table import refresh_answers

    load, (process, port, settings) = serving_load(), whole_service

    def publish_second():
        publish(settings, version=2, features=("ret_1", "vol_20"))
        refresh_answers(settings)
        return load.expected_answers(settings)

    hammer = load.Hammer(port, load.expected_answers(settings), load.example_question(settings), 0.02)
    patience.wait_until(lambda: model_state(port) == "ok", process)
    seen = asyncio.run(load.story(hammer, process, publish_second, 4, 0.5, say=lambda line: None))
    unexpected = {key: n for key, n in seen.items() if key[1] != "right" and key != (load.PHASES[4], "reset")}
    assert unexpected == {}, hammer.failures[:3]
    assert all(seen[phase, "right"] > 0 for phase in load.PHASES)
    output = Path(psutil.Process(process.pid).cwd()) / "said.txt"
    assert "Exception in callback" not in output.read_text()
    assert seen[load.PHASES[4], "reset"] <= 4  # one for each client at most: it asked again and was answered


def test_settings_that_cannot_be_read_leave_the_running_service_alone(whole_service):
    process, port, _ = whole_service
    ini = Path(psutil.Process(process.pid).cwd()) / "served.ini"
    text, reader = ini.read_text(), child(process, "reader 1").pid
    ini.write_text(text.replace("max_headers = 100", "max_headers = many"))
    process.send_signal(signal.SIGHUP)
    output = ini.with_name("said.txt")
    patience.wait_until(lambda: "The settings were not taken over" in output.read_text(), process)
    assert json.loads(read(port, "/v1/predictions/SIM00?horizon=1"))["success"]
    ini.write_text(text)
    assert child(process, "reader 1").pid == reader and process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_parent_stops_its_children_and_a_dead_parent_does_too(template, tmp_path, number):
    with service_process(template, tmp_path, **{"serving.engine": 0}) as (process, port):
        patience.wait_until(lambda: child(process, "reader 1"), process)
        read(port, "/v1/predictions/SIM00")
        reader = child(process, "reader 1")
        process.send_signal(number)
        patience.wait_until(lambda: process.poll() is not None)
        patience.wait_until(lambda: not reader.is_running() or reader.status() == psutil.STATUS_ZOMBIE)

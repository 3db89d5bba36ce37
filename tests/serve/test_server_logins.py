"""Passwords of MLflow and Prefect reach these servers; no setting, message, process list or log has one."""

import base64
import json
import logging
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import patience
import pytest
from typer.testing import CliRunner

from stockpredict.cli.flow_commands import flows
from stockpredict.cli.console import SettingsOptions
from stockpredict.core.errors import NotReady, SettingsError
from stockpredict.core.scrubbing import scrub
from stockpredict.core.settings import load_settings
from stockpredict.ops.flow_server import flow_server, spare_port
from stockpredict.serve.desk_state import ask_prefect, prefect_api, prefect_request, read_prefect
from stockpredict.serve.training import call_prefect, deployment_words, find_deployment
from stockpredict.train.mlflow_mirror import mlflow_client, outbox_dir
from stockpredict.train.registry import sync_mlflow

PASSWORD = "tulip@harbour/9:x"  # has a meaning in an address, so it must be encoded there
ENCODED = "tulip%40harbour%2F9%3Ax"
BASIC = f"Basic {base64.b64encode(f'desk:{PASSWORD}'.encode()).decode()}"


class Runs(BaseHTTPRequestHandler):
    "The one answer of MLflow's REST API that a client asks for first, behind a password."

    def do_GET(self):
        allowed = self.headers.get("Authorization") == BASIC
        experiment = {"experiment_id": "7", "name": "stockpredict", "tags": []}
        body = json.dumps({"experiment": experiment} if allowed else {"message": "who are you?"}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *words):
        pass


@pytest.fixture
def runs_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Runs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def tracking(home, place, user="desk"):
    uri = f"http://{user}:${{RUNS_PASSWORD}}@{place}"
    return load_settings(overrides={"storage.home": str(home), "storage.mlflow_uri": uri})


def test_the_client_of_mlflow_has_the_password_and_no_setting_has_it(runs_server, tmp_path, monkeypatch):
    settings = tracking(tmp_path, f"127.0.0.1:{runs_server}")
    with pytest.raises(NotReady, match=r"\[storage\] mlflow_uri names the secret RUNS_PASSWORD"):
        mlflow_client(settings)
    monkeypatch.setenv("RUNS_PASSWORD", PASSWORD)
    client, experiment = mlflow_client(settings)
    assert experiment == "7" and ENCODED in client.tracking_uri
    assert "${RUNS_PASSWORD}" in settings.storage.tracking_uri
    assert PASSWORD not in settings.model_dump_json() and ENCODED not in settings.model_dump_json()
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "RUNS_PASSWORD").write_text(PASSWORD)
    (secrets / "RUNS_PASSWORD").chmod(0o600)
    monkeypatch.delenv("RUNS_PASSWORD")
    assert mlflow_client(settings.with_(**{"secrets.provider": f"file:{secrets}"}))[1] == "7"


@pytest.mark.parametrize("user", ["d", "desk", "a-user-with-a-name-that-is-nearly-as-long-as-it-may-be"])
def test_a_warning_about_mlflow_has_no_part_of_the_password(user, tmp_path, monkeypatch, caplog):
    "The text is cut after 80 characters; a password that is cut in two is no longer known to the log."
    long = "Xylophone-" * 9
    monkeypatch.setenv("RUNS_PASSWORD", long)
    settings = tracking(tmp_path / "home", "127.0.0.1:9", user)
    outbox_dir(settings).mkdir(parents=True, exist_ok=True)
    (outbox_dir(settings) / "one.json").write_text(json.dumps({"case": "one"}))
    with caplog.at_level(logging.WARNING):
        assert sync_mlflow(settings) is False
    assert "MLflow does not answer, 1 publication waits" in caplog.text and "Xylo" not in caplog.text


# --- Prefect


@pytest.fixture(scope="module")
def locked_prefect(tmp_path_factory):
    "A Prefect server that asks for a password."
    place, port = tmp_path_factory.mktemp("prefect"), spare_port()
    own = {"PREFECT_HOME": str(place), "PREFECT_SERVER_API_AUTH_STRING": f"desk:{PASSWORD}"}
    own |= {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
    }
    words = ["--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(port)]
    env = {k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *words, "--log-level", "error"],
            env=env | own,
            stdout=log,
            stderr=log,
            preexec_fn=patience.die_with_parent,
        )
    try:
        patience.wait_until(lambda: patience.answers(f"http://127.0.0.1:{port}/api/health"), server)
        yield f"127.0.0.1:{port}/api"
    finally:
        server.terminate()
        server.wait()


def test_a_locked_prefect_is_asked_with_the_password_of_the_environment(locked_prefect, monkeypatch):
    clean = f"http://{locked_prefect}"
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", clean)
    assert read_prefect(prefect_api(load_settings())) == {"scheduler": False}
    for login in ("${FLOWS_PASSWORD}", ENCODED):
        monkeypatch.setenv("FLOWS_PASSWORD", PASSWORD)
        monkeypatch.setenv("PREFECT_API_URL", f"http://desk:{login}@{locked_prefect}")
        assert prefect_api(load_settings()) == clean
        assert read_prefect(clean) == {"scheduler": True, "planned": [], "runs": []}
        assert call_prefect(f"{clean}/admin/version")
    monkeypatch.setenv("PREFECT_API_URL", clean)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", f"desk:{PASSWORD}")
    assert ask_prefect(clean, "deployments") == []
    assert scrub(f"desk says {PASSWORD}") == "desk says ***"


def test_messages_and_processes_have_the_address_without_its_password(locked_prefect, monkeypatch):
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", f"http://desk:{ENCODED}@{locked_prefect}")
    started = CliRunner().invoke(flows, ["start", "nothing"], obj=SettingsOptions())
    assert "There is no deployment called 'nothing' on http://127.0.0.1:" in str(started.exception)
    texts = [str(started.exception), started.output]
    with pytest.raises(NotReady) as refused:
        call_prefect(f"{prefect_api(load_settings())}/flow_runs/none", pauses=())
    texts += [str(refused.value), *deployment_words(load_settings(), prefect_api(load_settings()), "id", {})]
    monkeypatch.setenv("PREFECT_API_URL", f"http://desk:{ENCODED}@127.0.0.1/api")  # no port: no valid address
    assert read_prefect(prefect_api(load_settings())) == {"scheduler": False}
    assert find_deployment(load_settings()) == ("", "")
    gone = CliRunner().invoke(flows, ["start", "nothing"], obj=SettingsOptions())
    texts += [str(gone.exception), gone.output]
    assert "No Prefect server answered on http://127.0.0.1/api" in texts[-2]
    assert not any("tulip" in text or "desk:" in text for text in texts)


def test_flows_use_a_locked_server_through_prefects_own_client(locked_prefect, monkeypatch, tmp_path):
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("FLOWS_PASSWORD", PASSWORD)
    given = f"http://desk:${{FLOWS_PASSWORD}}@{locked_prefect}"
    with temporary_settings({PREFECT_API_URL: given}), flow_server() as api:
        assert api == f"http://{locked_prefect}"
        with get_client(sync_client=True) as client:
            assert client.read_flows() == []


def test_a_password_goes_to_its_own_server_alone(monkeypatch):
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    monkeypatch.setenv("PREFECT_API_URL", f"http://desk:{ENCODED}@127.0.0.1:4200/api")
    asked = prefect_request("http://127.0.0.1:4200/api/health")
    assert asked.get_header("Authorization") == BASIC and "Authorization" not in asked.headers
    assert prefect_request("http://127.0.0.1:4201/api/health").get_header("Authorization") is None
    monkeypatch.setenv("PREFECT_API_URL", "http://${HOST}/api")
    with pytest.raises(SettingsError, match="names a secret where no password stands"):
        prefect_api(load_settings())

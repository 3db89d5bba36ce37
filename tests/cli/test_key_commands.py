"""Keys from the shell: a newcomer has a key and a prediction with two commands, and nothing starts open."""

import json
import shlex

import httpx
import pytest
from stockpredict.access.keys import KeyStore
from stockpredict.cli.main import app
from stockpredict.core.settings import load_settings
from stockpredict.predict.answer_table import write_example
from stockpredict.serve.app import create_app
from typer.testing import CliRunner


@pytest.fixture
def shell(tmp_path):
    def run(*words, code=0):
        done = CliRunner().invoke(app, [*words, "--set", f"storage.home={tmp_path}"])
        assert done.exit_code == code, done.output + repr(done.exception)
        return done.stdout

    run.settings = load_settings(
        None, {"storage.home": str(tmp_path), "access.required": "always"}, environ={}
    )
    return run


async def get(app, url, headers):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        return await client.get(url, headers=headers)


def test_the_printed_curl_line_works_as_it_stands(shell):
    import asyncio

    write_example(shell.settings)
    printed = shell("keys", "create", "--note", "newcomer")
    line = next(line for line in printed.splitlines() if line.strip().startswith("curl"))
    _, _, header, url = shlex.split(line)
    name, _, value = header.partition(": ")
    answer = asyncio.run(get(create_app(shell.settings), url, {name: value}))
    assert answer.status_code == 200 and answer.json()["data"][0]["ticker"] == "AAPL"
    assert asyncio.run(get(create_app(shell.settings), url, {})).status_code == 401
    assert (
        f"  export STOCKPREDICT_API_KEY={value.split()[1]}" in printed.splitlines()
    )  # the README's lines use it


def test_a_key_goes_through_its_whole_life(shell):
    first = json.loads(
        shell("keys", "create", "--role", "viewer", "--role", "train", "--days", "0", "--json")
    )
    assert first["grants"] == ["viewer", "train"] and first["expires"] == "never"
    second = json.loads(shell("keys", "rotate", first["id"], "--json"))
    assert second["key"] != first["key"] and second["grants"] == first["grants"]
    assert "revoked" in shell("keys", "revoke", first["id"])
    rows = {row["id"]: row for row in json.loads(shell("keys", "list", "--json"))}
    assert {rows[k["id"]]["state"] for k in (first, second)} == {"revoked", "live"}
    everything = shell("keys", "list")
    for key in (first["key"], second["key"]):
        assert key.split("_", 2)[2] not in everything + json.dumps(rows, default=str)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["create", "--role", "viewr"], "Did you mean viewer?"),
        (["revoke", "deadbeef"], "There is no key 'deadbeef'."),
        (["rotate", "deadbeef"], "There is no key 'deadbeef'."),
    ],
)
def test_a_mistake_is_a_sentence(shell, words, says):
    done = CliRunner().invoke(app, ["keys", *words, "--set", f"storage.home={shell.settings.storage.home}"])
    assert done.exit_code != 0 and says in str(done.exception or done.output)
    assert KeyStore(shell.settings.storage).entries() == {}


def test_a_reachable_address_needs_a_key_before_it_is_served(shell, monkeypatch):
    import stockpredict.serve.workers as workers

    started = []
    for step in ("listening_socket", "create_app", "Parent"):
        monkeypatch.setattr(workers, step, lambda *words, step=step, **options: started.append(step))
    words = ["serve", "--host", "0.0.0.0", "--set", f"storage.home={shell.settings.storage.home}"]
    for readers in ("0", "2"):
        refused = CliRunner().invoke(app, [*words, "--readers", readers])
        assert refused.exit_code != 0 and "stockpredict keys create" in str(refused.exception)
    assert started == []
    shell("keys", "create")
    CliRunner().invoke(app, [*words, "--readers", "2"])
    assert started == ["Parent"]

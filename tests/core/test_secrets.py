"""Secrets from files and from a stand-in of Vault's key-value API: refusals, versions, rotation, timeouts."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import redis
from live_redis import Server, live_settings

from stockpredict.backup.backups import backup_keys
from stockpredict.backup.sealed_files import KEY_VARIABLE, new_backup_key, read_backup_keys
from stockpredict.core.errors import NotReady, SettingsError, StreamUnavailable
from stockpredict.core.http import ApiKey, VendorClient, VendorRequest, run_async
from stockpredict.core.redis import open_redis
from stockpredict.core.request_limits import RequestLedger
from stockpredict.core.scrubbing import scrub
from stockpredict.core.secrets import FileSecrets, VaultSecrets, read_secret, secret_provider
from stockpredict.core.settings import load_settings
from stockpredict.ops.doctor import checks
from stockpredict.predict.answer_table import connect_redis
from stockpredict.sources.vendor_chain import VendorChain
from stockpredict.sources.simulate import sample_bars
from stockpredict.stream.queue import Stream
from stockpredict.testing.fake_vendors import FakeVendors

TOKEN = "hvs.standin-token-1"


class Vault(ThreadingHTTPServer):
    "One entry of a KV v2 store, with its versions."

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.versions, self.sealed, self.silent, self.asked = [], False, threading.Event(), 0
        self.silent.set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        path, _, query = self.path.partition("?")
        self.server.silent.wait()
        versions, number = self.server.versions, int(query.partition("=")[2] or 0)
        wanted = versions[(number or len(versions)) - 1] if len(versions) >= (number or 1) else None
        if self.server.sealed:
            return self.answer(503, {"errors": ["Vault is sealed"]})
        if self.headers.get("X-Vault-Token") != TOKEN:
            return self.answer(403, {"errors": ["permission denied"]})
        if path != "/v1/secret/data/desk/main" or wanted is None:
            return self.answer(404, {"errors": []})
        metadata = {"version": number or len(versions), "destroyed": False}
        self.answer(200, {"data": {"data": wanted, "metadata": metadata}})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def market():
    "What the stand-in of the vendors sells."
    return sample_bars()


@pytest.fixture
def vault(monkeypatch):
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    with Vault() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.silent.set()
        server.shutdown()


def place(vault):
    return f"{vault.url}/secret/desk/main"


def test_a_field_of_the_newest_or_of_a_named_version(vault):
    vault.versions = [{"FRED_API_KEY": "first-value"}, {"FRED_API_KEY": "second-value"}]
    assert VaultSecrets(place(vault)).read("FRED_API_KEY") == "second-value"
    assert VaultSecrets(place(vault), version=1).read("FRED_API_KEY") == "first-value"
    assert VaultSecrets(place(vault)).read("TIINGO_API_KEY") == ""


def test_a_rotated_secret_arrives_when_the_minute_is_over(vault):
    vault.versions, now = [{"FRED_API_KEY": "first-value"}], [0.0]
    secrets = VaultSecrets(place(vault), clock=lambda: now[0])
    assert [secrets.read("FRED_API_KEY") for _ in range(20)] == ["first-value"] * 20 and vault.asked == 1
    vault.versions.append({"FRED_API_KEY": "second-value"})
    now[0] = 59.9
    assert secrets.read("FRED_API_KEY") == "first-value"
    now[0] = 60.0
    assert secrets.read("FRED_API_KEY") == "second-value" and vault.asked == 2


@pytest.mark.parametrize(
    "harm, sentence",
    [
        (lambda v, env: env("VAULT_TOKEN", "hvs.wrong"), "refuses this token"),
        (lambda v, env: v.versions.clear(), "no such entry"),
        (lambda v, env: setattr(v, "sealed", True), "sealed"),
        (lambda v, env: v.silent.clear(), "does not answer: ReadTimeout"),
        (lambda v, env: v.versions.append(["no", "fields"]), "no entry"),
    ],
)
def test_every_refusal_is_a_sentence_and_no_old_value(vault, monkeypatch, harm, sentence):
    vault.versions, now = [{"FRED_API_KEY": "first-value"}], [0.0]
    secrets = VaultSecrets(place(vault), timeout=0.5, clock=lambda: now[0])
    assert secrets.read("FRED_API_KEY") == "first-value"
    harm(vault, monkeypatch.setenv)
    now[0] = 61.0
    for _ in range(2):
        with pytest.raises(NotReady, match=sentence) as refused:
            secrets.read("FRED_API_KEY")
    assert TOKEN not in str(refused.value) and "hvs" not in str(refused.value)


def test_nobody_listens_and_no_token(vault, monkeypatch, tmp_path):
    with pytest.raises(NotReady, match="ConnectError"):
        VaultSecrets("http://127.0.0.1:1/secret/desk").read("FRED_API_KEY")
    monkeypatch.delenv("VAULT_TOKEN")
    with pytest.raises(NotReady, match="no token"):
        VaultSecrets(place(vault)).read("FRED_API_KEY")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(tmp_path / "token"))
    vault.versions = [{"FRED_API_KEY": "first-value"}]
    assert VaultSecrets(place(vault)).read("FRED_API_KEY") == "first-value"


def test_files_of_a_folder(tmp_path):
    (tmp_path / "FRED_API_KEY").write_text("file-value\n")
    os.chmod(tmp_path / "FRED_API_KEY", 0o640)
    assert FileSecrets(tmp_path).read("FRED_API_KEY") == "file-value"
    os.chmod(tmp_path / "FRED_API_KEY", 0o666)
    with pytest.raises(NotReady, match="Others may write"):
        FileSecrets(tmp_path).read("FRED_API_KEY")
    for name in ("../FRED_API_KEY", "a/b", "", "X" * 101):
        with pytest.raises(NotReady, match="no name of a secret"):
            read_secret(f"file:{tmp_path}", name)


def test_the_key_of_backups_comes_from_each_provider_and_is_masked(vault, tmp_path):
    texts = [new_backup_key(), new_backup_key()]
    vault.versions = [{KEY_VARIABLE: texts[0]}]
    (tmp_path / KEY_VARIABLE).write_text(texts[1])
    os.chmod(tmp_path / KEY_VARIABLE, 0o600)
    for provider, text in zip((f"vault:{place(vault)}", f"file:{tmp_path}"), texts, strict=True):
        changes = {"storage.home": str(tmp_path / "home"), "secrets.provider": provider}
        settings = load_settings(None, changes, environ={})
        assert str(backup_keys(settings, {})) == str(read_backup_keys(text))
        assert text not in scrub(f"the key is {text}")
    with pytest.raises(SettingsError, match="provider"):
        load_settings(None, {"secrets.provider": "vault:https://name:word@vault.example/secret"}, environ={})


def test_the_key_of_a_vendor_comes_from_the_provider_and_goes_into_the_request(
    vault, tmp_path, standin, monkeypatch
):
    monkeypatch.delenv("TIINGO_API_KEY", raising=False)
    text, asked, plain = "vendor-key-of-the-vault", [], FakeVendors.answer
    vault.versions = [{"TIINGO_API_KEY": text}]

    def noted(self, path, query, wish=""):
        asked.append(query)
        return plain(self, path, query, wish)

    monkeypatch.setattr(FakeVendors, "answer", noted)
    days = (("format", "csv"), ("startDate", "2019-06-03"), ("endDate", "2019-06-04"))
    key = ApiKey("TIINGO_API_KEY", param="token")
    request = VendorRequest("tiingo", f"{standin.url}/tiingo/daily/AAA/prices", days, key)

    async def ask(provider):
        async with VendorClient(RequestLedger(tmp_path / "ledger"), provider=provider).session() as client:
            return await client.get(request)

    assert run_async(ask(f"vault:{place(vault)}"))
    assert asked[0]["token"] == text and text not in scrub(f"the key is {text}")
    assert run_async(ask("environment")) and "token" not in asked[1]
    changes = {"secrets.provider": f"vault:{place(vault)}", "storage.home": str(tmp_path / "home")}
    chain = VendorChain(load_settings(None, changes, environ={}))
    assert key.value(chain.client.provider) == text


@pytest.fixture
def locked_redis(tmp_path):
    "A Redis with one user, whose password changes in the test."
    server = Server(tmp_path / "redis", on_port=True).start()
    admin = redis.Redis.from_url(server.url)
    admin.acl_setuser("desk", enabled=True, passwords=["+tulip@harbour/9"], keys=["*"], commands=["+@all"])
    yield server, admin
    server.kill()


@pytest.mark.parametrize("kind", ["environment", "file", "vault"])
def test_the_password_of_redis_comes_from_each_provider_and_is_shown_nowhere(
    locked_redis, vault, monkeypatch, tmp_path, caplog, kind
):
    server, admin = locked_redis
    providers = {"environment": kind, "file": f"file:{tmp_path}", "vault": f"vault:{place(vault)}"}

    def keep(password):
        vault.versions.append({"DESK_REDIS": password})
        (tmp_path / "DESK_REDIS").write_text(password)
        os.chmod(tmp_path / "DESK_REDIS", 0o600)
        if kind == "environment":
            monkeypatch.setenv("DESK_REDIS", password)

    keep("tulip@harbour/9")
    url = f"redis://desk:${{DESK_REDIS}}@127.0.0.1:{server.port}/0"
    changes = {f"{section}.redis_url": url for section in ("serving", "store", "stream")}
    settings = live_settings(tmp_path / "home", **changes, **{"secrets.provider": providers[kind]})
    client = connect_redis(settings)
    assert client.ping() and "answers" in checks["redis"](settings)
    with Stream(settings) as stream:
        assert stream.where == f"127.0.0.1:{server.port}/0"
    admin.execute_command("ACL", "SETUSER", "desk", "<tulip@harbour/9", ">lantern#drift/7")
    admin.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(StreamUnavailable, match="refused us") as refused:
        Stream(settings)
    keep("lantern#drift/7")
    if kind == "vault":
        secret_provider(providers[kind])._until = 0.0  # a minute later
    client.connection_pool.disconnect()
    assert client.ping()
    shown = [settings.to_ini(), str(settings), repr(client), client.connection_pool, refused.value]
    shown += [refused.value.fix, caplog.text, scrub("lantern#drift/7 and tulip@harbour/9")]
    assert not any(word in str(text) for text in shown for word in ("tulip@", "lantern#", "tulip%40"))


def test_a_missing_password_of_redis_is_a_server_that_is_away(locked_redis, monkeypatch):
    monkeypatch.delenv("DESK_REDIS", raising=False)
    url = f"redis://desk:${{DESK_REDIS}}@127.0.0.1:{locked_redis[0].port}/0"
    with pytest.raises(redis.ConnectionError, match="redis_url names the secret DESK_REDIS"):
        open_redis(url, 5, setting="[serving] redis_url").ping()


def test_two_files_without_a_section_storage_have_a_folder_each(tmp_path):
    read = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.ini").write_text(f"[secrets]\nprovider = file:/{name}\n")
        read.append(load_settings(tmp_path / name / "settings.ini", environ={}).storage)
    assert [s.home_dir.parent.name for s in read] == ["first", "second"]
    assert [s._provider for s in read] == ["file:/first", "file:/second"]

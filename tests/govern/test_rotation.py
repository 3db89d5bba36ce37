"""Keys are exchanged while the service answers: no request of a caller with a good key is refused."""

import asyncio
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import kill_points
import pytest
from served_desk import build_settings, fill_lake, publish
from typer.testing import CliRunner

from stockpredict.access.keys import KeyStore
from stockpredict.access.sessions import Sessions
from stockpredict.access.tokens import ACCESS_SECONDS, SKEW, SigningRing, Tokens
from stockpredict.access.audit_search import verify_audit
from stockpredict.access.users import UserStore
from stockpredict.cli.main import app as commands
from stockpredict.core.errors import ArtifactRejected
from stockpredict.models.artifact_files import ensure_keys, key_id, read_artifact_files, verify_artifact_files
from stockpredict.models.trusted_keys import read_trusted_keys, render_trusted_keys
from stockpredict.predict.answer_table import example_table, open_answers, table_signer, write_example
from stockpredict.predict.answer_table import write_table
from stockpredict.predict.engine import champion_pointer, load_champion
from stockpredict.predict.key_rotation import rotate_key
from stockpredict.serve.app import create_app
from stockpredict.sources.simulate import sample_bars
from stockpredict.train.champion import history_problems, read_events
from stockpredict.train.registry_view import registry_problems

LOOK = 0.6  # seconds after which a change of a key file counts everywhere


def test_an_api_key_and_the_signing_key_are_exchanged_without_a_refusal(tmp_path):
    settings = build_settings(tmp_path, **{"access.required": "always"})
    store = KeyStore(settings.storage)
    old, old_text = store.create(["viewer"])
    users = UserStore(settings.storage, time_cost=1, memory_cost=64)
    ring, sessions = SigningRing(settings.storage), Sessions(settings.storage, users)
    user = users.create("anna", ["viewer"], "copper lantern drifts")
    sid, _ = sessions.begin(user)
    old_token = Tokens(users, ring, sessions.lives).issue(user, sid)
    app = create_app(settings)

    async def talk():
        transport, statuses = httpx.ASGITransport(app), {}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

            async def ask(name, key, times=10):
                for _ in range(times):
                    answer = await client.get("/v1/me", headers={"Authorization": f"Bearer {key}"})
                    statuses.setdefault(name, set()).add(answer.status_code)

            await ask("old key", old_text)
            await ask("old token", old_token)
            _, new_text = store.rotate(old.id)
            ring.rotate()
            new_token = Tokens(users, SigningRing(settings.storage), sessions.lives).issue(user, sid)
            await asyncio.sleep(LOOK)
            callers = {
                "new key": new_text,
                "old key": old_text,
                "new token": new_token,
                "old token": old_token,
            }
            for _ in range(5):
                await asyncio.gather(*(ask(name, key, 4) for name, key in callers.items()))
            store.revoke(old.id)
            await asyncio.sleep(LOOK)
            await ask("old key, revoked", old_text)
            await ask("new key", new_text)
            return statuses

    statuses = asyncio.run(talk())
    assert statuses.pop("old key, revoked") == {401}
    assert statuses == {key: {200} for key in ("old key", "old token", "new key", "new token")}


def test_the_old_signing_key_ends_when_its_last_token_has(tmp_path):
    settings, now = build_settings(tmp_path), [1_000.0]
    ring = SigningRing(settings.storage, clock=lambda: now[0])
    first = ring.content()["active"]
    second = ring.rotate()
    assert ring.verifying_key(first) and ring.verifying_key(second)
    now[0] += ACCESS_SECONDS + SKEW + 1
    assert ring.verifying_key(first) is None and ring.verifying_key(second)


def retire_now(settings):
    "Let the days pass for which the key before is accepted."
    folder = settings.storage.keys_dir
    first, *others = read_trusted_keys(folder).keys
    over = [replace(key, not_after=datetime.now(UTC) - timedelta(seconds=1)) for key in others]
    (folder / "signing.pub").write_bytes(render_trusted_keys((first, *over)))


def test_the_key_of_models_and_tables_is_rotated_while_a_service_answers(tmp_path):
    settings = build_settings(tmp_path)
    write_example(settings)
    old_table = example_table(table_signer(settings))
    settings_file = tmp_path / "settings.ini"
    settings_file.write_text(f"[storage]\nhome = {tmp_path}\n")
    app, statuses = create_app(settings), {}

    async def talk():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

            async def ask(step, times=5):
                for _ in range(times):
                    answer = await client.get("/v1/predictions/AAPL")
                    statuses.setdefault(step, set()).add(answer.status_code)
                open_answers(settings)  # a service that starts now would accept the table
                await asyncio.sleep(LOOK)

            await ask("before")
            arguments = ["--settings", str(settings_file), "registry", "rotate-key"]
            prepared = await asyncio.to_thread(
                CliRunner().invoke, commands, [*arguments, "--prepare", "--json"]
            )
            await ask("prepared")
            rotated = await asyncio.to_thread(CliRunner().invoke, commands, [*arguments, "--json"])
            await ask("rotated")
            write_table(old_table, settings.storage.serving_dir)  # by a process that has not looked yet
            await ask("a table of the old key")
            write_table(example_table(table_signer(settings)), settings.storage.serving_dir)
            retire_now(settings)
            await ask("retired")
            return json.loads(prepared.output)["next"], json.loads(rotated.output)

    coming, done = asyncio.run(talk())
    assert done["key"] == coming and done["signed_again"] >= 1
    assert len(statuses) == 5 and set.union(*statuses.values()) == {200}
    open_answers(settings)
    write_table(old_table, settings.storage.serving_dir)
    with pytest.raises(ArtifactRejected, match="not signed by our key"):
        open_answers(settings)
    assert verify_audit(settings)["ok"]


def test_the_registry_is_signed_again_and_what_is_not_is_refused_with_a_sentence(tmp_path):
    settings = build_settings(tmp_path)
    fill_lake(settings, sample_bars(tickers=4, sessions=90))
    places = [publish(settings, version=1, seed=1), publish(settings, version=2, seed=2)]
    seal = (places[0] / "signature.json").read_bytes()
    first = key_id(ensure_keys(settings.storage.keys_dir).public)
    done = rotate_key(settings, days=7)
    assert done.retired == first and done.signed_again >= 5  # pointer, end, length, two models
    retire_now(settings)
    assert load_champion(settings, champion_pointer(settings)).hash == places[1].name
    assert len(read_events(settings)) == 2 and not history_problems(settings)
    assert not registry_problems(settings)
    (places[0] / "signature.json").write_bytes(seal)  # an old copy comes back
    trusted = read_trusted_keys(settings.storage.keys_dir)
    with pytest.raises(ArtifactRejected, match=f"its key {first} was retired on"):
        verify_artifact_files(read_artifact_files(places[0]), trusted)
    again = rotate_key(settings, days=7)
    assert again.retired == done.key and again.signed_again == done.signed_again - 1
    with pytest.raises(ArtifactRejected, match="was retired on"):
        verify_artifact_files(read_artifact_files(places[0]), read_trusted_keys(settings.storage.keys_dir))


def test_a_rotation_that_was_killed_leaves_everything_readable_and_is_finished_by_the_next(tmp_path):
    settings = build_settings(tmp_path / "home")
    fill_lake(settings, sample_bars(tickers=4, sessions=90))
    publish(settings)
    write_example(settings)
    shutil.copytree(tmp_path / "home", tmp_path / "whole")
    steps = kill_points.in_fork(lambda: rotate_key(settings))
    assert steps > 10
    for at in kill_points.sample(range(1, steps + 1), 6):
        shutil.rmtree(tmp_path / "home")
        shutil.copytree(tmp_path / "whole", tmp_path / "home")
        assert kill_points.in_fork(lambda: rotate_key(settings), at) == 0
        for _ in ("after the kill", "after the next rotation"):
            open_answers(settings)
            assert load_champion(settings, champion_pointer(settings)) and not registry_problems(settings)
            rotate_key(settings, days=7)
        retire_now(settings)
        open_answers(settings)
        assert load_champion(settings, champion_pointer(settings)) and not registry_problems(settings)

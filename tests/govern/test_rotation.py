"""Keys are exchanged while the service answers: no request of a caller with a good key is refused."""

import asyncio

import httpx
from served_desk import build_settings

from stockpredict.access.keys import KeyStore
from stockpredict.access.sessions import Sessions
from stockpredict.access.tokens import ACCESS_SECONDS, SKEW, SigningRing, Tokens
from stockpredict.access.users import UserStore
from stockpredict.serve.app import create_app

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

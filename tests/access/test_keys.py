"""API keys: a damaged file grants no access, a revoked key ends, and an attacker learns nothing by asking."""

import concurrent.futures as cf
import json
import os

import pytest

from stockpredict.access import keys
from stockpredict.access.keys import DAY, KeyStore, KeyVerifier
from stockpredict.access.private_files import digest_of
from stockpredict.core.errors import KeyExpired, KeyInvalid, KeysUnreadable, RequestInvalid
from stockpredict.core.sections import Storage


@pytest.fixture
def storage(tmp_path):
    return Storage(home=str(tmp_path))


@pytest.fixture
def store(storage):
    return KeyStore(storage)


def test_a_flipped_bit_never_grants_anything(store, storage):
    store.create(["viewer"], "dashboard")
    store.create(["trainer", "promote"], "nightly", days=None)
    raw, entries = store.path.read_bytes(), store.entries()
    refused = 0
    for place in range(len(raw)):
        store.path.write_bytes(raw[:place] + bytes([raw[place] ^ (1 << place % 8)]) + raw[place + 1 :])
        try:
            assert KeyStore(storage).entries() == entries
        except KeysUnreadable:
            refused += 1
    assert refused > 0.8 * len(raw)  # the rest is white space between values


def test_a_file_that_was_cut_lets_nobody_in(store, storage):
    store.create(["viewer"])
    raw = store.path.read_bytes()
    for length in range(len(raw)):
        store.path.write_bytes(raw[:length])
        with pytest.raises(KeysUnreadable):
            KeyStore(storage).entries()


@pytest.mark.parametrize(
    "change",
    [
        {"grants": ["admin", "root"]},
        {"expires_at": ""},
        {"expires_at": float("nan")},
        {"expires_at": True},
        {"revoked_at": "no"},
        {"hash": None},
        {"superuser": True},
    ],
)
def test_a_value_of_the_wrong_kind_lets_nobody_in_even_under_a_right_digest(store, storage, change):
    entry, _ = store.create(["viewer"])
    outer = json.loads(store.path.read_text())
    outer["content"][entry.id] |= change
    outer["digest"] = digest_of(outer["content"])
    store.path.write_text(json.dumps(outer))
    with pytest.raises(KeysUnreadable):
        KeyStore(storage).entries()


def test_a_folder_in_the_place_of_the_file_and_a_file_that_others_may_write(store):
    _, text = store.create(["viewer"])
    store.path.chmod(0o666)
    verifier = KeyVerifier(store, every=0.0)
    with pytest.raises(KeysUnreadable):
        verifier(text.encode(), {})
    assert "Others may write" in verifier.health()["reason"]
    store.path.chmod(0o600)
    assert verifier(text.encode(), {}).kind == "key" and verifier.health() == {"status": "ok"}
    store.path.unlink()
    store.path.mkdir()
    with pytest.raises(KeysUnreadable):
        verifier(text.encode(), {})


def test_only_the_owner_may_read(store):
    store.create(["viewer"])
    assert store.path.stat().st_mode & 0o777 == 0o600 and store.path.parent.stat().st_mode & 0o777 == 0o700


def test_every_verifier_sees_a_revocation_at_its_next_look(store):
    entry, text = store.create(["viewer"])
    workers = [KeyVerifier(store, every=0.0) for _ in range(3)]
    assert {worker(text.encode(), {}).id for worker in workers} == {f"key:{entry.id}"}
    store.revoke(entry.id)
    for worker in workers:
        with pytest.raises(KeyInvalid):
            worker(text.encode(), {})
    assert KeyVerifier(store).every <= 0.5  # a revocation reaches every process within a second


def test_a_key_that_was_recognised_still_expires(store, monkeypatch):
    clock = [1_800_000_000.0]
    monkeypatch.setattr(keys.time, "time", lambda: clock[0])
    _, text = store.create(["viewer"], days=1)
    verifier = KeyVerifier(store)
    assert verifier(text.encode(), {}).kind == "key"
    clock[0] += DAY
    for _ in range(2):
        with pytest.raises(KeyExpired):
            verifier(text.encode(), {})
    with pytest.raises(KeyInvalid):  # who lacks the secret does not hear that the key existed
        verifier(text.encode()[:-1], {})


def test_two_keys_live_during_a_rotation_and_never_three(store):
    now = 1_800_000_000.0
    first, _ = store.create(["analyst"], "desk", days=100, now=now)
    second, _ = store.rotate(first.id, grace_days=7, now=now + 90 * DAY)
    assert second.grants == first.grants and second.expires_at == now + 190 * DAY
    assert [e.id for e in store.live(now + 96 * DAY)] == [first.id, second.id]
    assert [e.id for e in store.live(now + 97 * DAY)] == [second.id]
    third, _ = store.rotate(second.id, grace_days=7, now=now + 91 * DAY)
    assert [e.id for e in store.live(now + 92 * DAY)] == [second.id, third.id]
    with pytest.raises(KeyInvalid, match="replaced"):
        store.rotate(second.id, now=now + 92 * DAY)


def test_a_rotation_never_lengthens_the_life_of_the_old_key(store):
    now = 1_800_000_000.0
    first, _ = store.create(["viewer"], days=10, now=now)
    store.rotate(first.id, grace_days=30, now=now + 9 * DAY)
    assert store.entries()[first.id].expires_at == now + 10 * DAY


STRANGERS = {
    "unknown id": b"sp_00000000_" + b"x" * 43,
    "cut off": None,
    "wrong secret": None,
    "revoked": None,
    "no secret": b"sp_00000000_",
    "no id": b"sp__x",
    "bytes": b"sp_\xff\xfe_\x00\r\n",
    "five megabytes": b"sp_" + b"a" * 5_000_000,
    "five megabytes of secret": b"sp_00000000_" + b"a" * 5_000_000,
}


@pytest.mark.parametrize("name", STRANGERS)
def test_every_stranger_costs_the_same_steps_and_gets_the_same_answer(store, monkeypatch, name):
    _, text = store.create(["viewer"])
    gone, old = store.create(["viewer"])
    store.revoke(gone.id)
    own = {"cut off": text[:-1], "wrong secret": text[:12] + "y" * 43, "revoked": old}
    credential = own[name].encode() if name in own else STRANGERS[name]
    steps, hash_secret, compare = [], keys.hash_secret, keys.compare_digest
    monkeypatch.setattr(
        keys, "hash_secret", lambda i, s: steps.append(("hash", len(s) <= 200)) or hash_secret(i, s)
    )
    monkeypatch.setattr(
        keys, "compare_digest", lambda a, b: steps.append(("compare", len(a), len(b))) or compare(a, b)
    )
    verifier = KeyVerifier(store)
    with pytest.raises(KeyInvalid) as refusal:
        verifier(credential, {})
    assert steps == [("hash", True), ("compare", 64, 64)]
    assert refusal.value.as_dict() == keys.unknown_key().as_dict()
    assert verifier.recognised == {}  # strangers leave nothing behind


def test_keys_that_are_created_at_the_same_time_all_exist(store):
    with cf.ThreadPoolExecutor(4) as pool:
        created = list(pool.map(lambda i: store.create(["viewer"], str(i)), range(12)))
    assert set(store.entries()) == {entry.id for entry, _ in created}
    assert len({text for _, text in created}) == 12


def test_the_secret_stands_nowhere_on_the_disk(store):
    _, text = store.create(["viewer"])
    KeyVerifier(store)(text.encode(), {})
    secret = text.split("_", 2)[2].encode()
    files = [path for path in store.path.parent.rglob("*") if path.is_file()]
    assert files and not any(secret in path.read_bytes() for path in files)


def test_a_key_without_any_permission_is_not_created(store):
    with pytest.raises(RequestInvalid):
        store.create([])
    assert not store.path.exists()


def test_uses_are_noted_about_once_an_hour_and_a_full_disk_stops_nobody(store, monkeypatch):
    clock = [1_800_000_000.0]
    monkeypatch.setattr(keys.time, "time", lambda: clock[0])
    entry, text = store.create(["viewer"])
    verifier = KeyVerifier(store, every=0.0)
    for seconds, noted in ((0, 0), (1800, 0), (1801, 3601)):
        clock[0] += seconds
        verifier(text.encode(), {})
        assert store.last_used(entry.id) == 1_800_000_000.0 + noted

    def full(*words, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "utime", full)
    clock[0] += 4000
    assert verifier(text.encode(), {}).kind == "key"

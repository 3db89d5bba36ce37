"""Users, pauses, tokens and sessions: attacks on each, with the same work counted instead of a clock."""

import base64
import json
import os
import threading

import jwt
import pytest

from stockpredict.access import private_files
from stockpredict.access.lockout import KNOWN_DAYS, LoginAttempts, LoginBlocked, login_pause
from stockpredict.access.login import Login, LoginRefused
from stockpredict.access.sessions import MOST_SESSIONS, RefreshInvalid
from stockpredict.access.tokens import (
    ACCESS_SECONDS,
    AUDIENCE,
    MOST_VERIFIED,
    SKEW,
    TokenExpired,
    TokenInvalid,
)
from stockpredict.access.private_files import AccessUnreadable
from stockpredict.access.users import COSTS, UserStore
from stockpredict.core.errors import FolderUnavailable, RequestInvalid
from stockpredict.core.settings import load_settings

CHEAP = {"memory_cost": 64, "time_cost": 1, "parallelism": 1}  # the tests are about everything but the costs
WORDS = "copper lantern drifts"


class Clock:
    "A clock that the test sets."

    def __init__(self, now=1_796_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def storage(tmp_path):
    return load_settings(None, {"storage.home": str(tmp_path)}, environ={}).storage


@pytest.fixture
def login(storage, clock, monkeypatch):
    monkeypatch.setattr(private_files, "LOOK_AGAIN", 0.0)
    login = Login(storage, clock, **CHEAP)
    login.users.create("anna", ["analyst"], WORDS)
    login.users.create("root", ["admin"], "seven quiet harbours")
    return login


def refused(login, token):
    "Is a token refused with a 401?"
    try:
        return login.tokens.caller_of(token if isinstance(token, bytes) else token.encode()) is None
    except (TokenInvalid, TokenExpired) as error:
        assert error.status == 401
        return True


def part(content):
    text = content if isinstance(content, str) else json.dumps(content)
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=")


@pytest.fixture
def pair(login):
    return login.by_password("anna", WORDS, "10.0.0.7")


@pytest.fixture
def signed(login, pair):
    "A function that signs changed claims with the live key, as an insider of the library could not."
    claims = jwt.decode(pair["access_token"], options={"verify_signature": False})
    kid = login.ring.content()["active"]
    private = login.ring.ring()[kid][0]

    def sign(key=private, algorithm="EdDSA", headers=None, drop=(), **changed):
        content = {k: v for k, v in (claims | changed).items() if k not in drop}
        own = {"kid": kid, "typ": "at+jwt"} | (headers or {})
        return jwt.encode(content, key, algorithm, headers=own)

    sign.claims, sign.kid, sign.private = claims, kid, private
    return sign


def test_a_token_of_ours_is_accepted_and_says_nothing_about_permissions(login, pair, signed):
    assert login.tokens.caller_of(pair["access_token"].encode()).permissions == {"read", "ask"}
    assert not {"role", "roles", "scope", "permissions"} & set(signed.claims)
    assert not refused(login, signed())


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "HS256", "HS512", "RS256", "ES256", "eddsa", "", None, 7]
)
def test_no_other_algorithm_is_accepted(login, pair, alg):
    _, body, signature = pair["access_token"].encode().split(b".")
    header = {"alg": alg, "kid": login.ring.content()["active"], "typ": "at+jwt"}
    for sent in (b"", b"A" * 86, signature):
        assert refused(login, part(header) + b"." + body + b"." + sent)


def test_the_public_key_is_no_shared_secret(login, signed):
    from cryptography.hazmat.primitives import serialization as ser

    public = signed.private.public_key()
    pem = public.public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
    import hashlib
    import hmac

    for secret in (public.public_bytes_raw(), pem, public.public_bytes_raw().hex().encode(), b""):
        for alg in ("HS256", "EdDSA"):
            content = part({"alg": alg, "kid": signed.kid, "typ": "at+jwt"}) + b"." + part(signed.claims)
            for digest in (hashlib.sha256, hashlib.sha512):
                mac = hmac.new(secret, content, digest).digest()
                forged = content + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")
                assert refused(login, forged)


@pytest.mark.parametrize(
    "kid",
    [
        "../../../dev/null",
        "/etc/passwd",
        "' OR '1'='1",
        "active",
        "",
        "\0",
        "a" * 300,
        None,
        0,
        ["x"],
        {"a": "b"},
        True,
    ],
)
def test_the_name_of_a_key_is_looked_up_and_nothing_else(login, pair, signed, kid, monkeypatch):
    body, signature = pair["access_token"].encode().split(b".")[1:]
    touched = []
    monkeypatch.setattr(os, "open", lambda *a, **k: touched.append(a))
    assert refused(
        login, part({"alg": "EdDSA", "kid": kid, "typ": "at+jwt"}) + b"." + body + b"." + signature
    )
    assert not touched


def test_headers_that_bring_a_key_are_refused_even_with_a_good_signature(login, signed):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    own = Ed25519PrivateKey.generate()
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": part(own.public_key().public_bytes_raw().hex()).decode()}
    extra = {"jwk": jwk, "jku": "https://evil.example/keys", "x5u": "https://evil.example/c", "x5c": ["MII"]}
    extra |= {"crit": ["exp"], "b64": False, "zip": "DEF", "cty": "JWT"}
    for name, value in extra.items():
        for key in (own, signed.private):
            assert refused(login, signed(key=key, headers={name: value})), name


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": "another"},
        {"aud": [AUDIENCE]},
        {"aud": [AUDIENCE, "another"]},
        {"iss": "stockpredict/other"},
        {"iss": ""},
        {"sub": "nobody"},
        {"sub": "root"},  # a user who exists, with the session of another
        {"sub": None},
        {"sub": ["anna"]},
        {"gen": 99},
        {"sid": "0" * 32},
        {"sid": None},
        {"exp": 1e300},
        {"exp": "9999999999"},
        {"nbf": 9_999_999_999},
        {"iat": 9_999_999_999, "exp": 9_999_999_999 + 60},
        {"exp": 1_796_000_000 + 86_400},
        {"exp": 1_795_000_000},
        {"nbf": True},
    ],
)
def test_wrong_claims_are_refused_although_they_are_signed(login, signed, changed):
    assert refused(login, signed(**changed))


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "iat", "nbf", "exp", "jti", "gen", "sid"])
def test_no_claim_may_be_missing(login, signed, name):
    assert refused(login, signed(drop=[name]))


def test_every_byte_of_a_token_counts(login, pair):
    token = pair["access_token"].encode()
    for k in range(0, len(token), 3):
        other = b"B" if token[k : k + 1] == b"A" else b"A"
        assert refused(login, token[:k] + other + token[k + 1 :]), k
    for more in (token + b"=", token + b"\n", b" " + token, token + b".x", token.replace(b".", b"..", 1)):
        assert refused(login, more)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 250 + "]" * 40,
        '{"alg":' * 40 + "1" + "}" * 40,
        '{"alg":"EdDSA","alg":"none","kid":"x","typ":"at+jwt"}',
        '{"alg":{"alg":"EdDSA"},"kid":"x","typ":"at+jwt"}',
        '["EdDSA"]',
        '"EdDSA"',
        "null",
        "{}",
        "\ufeff{}",
        "NaN",
        "1e999",
    ],
)
def test_nested_twin_and_foreign_json_is_refused_before_the_signature(login, pair, text):
    _, body, signature = pair["access_token"].encode().split(b".")
    assert refused(login, part(text) + b"." + body + b"." + signature)
    assert refused(
        login, part({"alg": "EdDSA", "kid": "x", "typ": "at+jwt"}) + b"." + part(text) + b"." + signature
    )


def test_a_huge_token_is_refused_without_being_parsed(login, monkeypatch):
    monkeypatch.setattr(json, "loads", lambda *a, **k: pytest.fail("parsed"))
    for token in (b"A" * 10_000_000, b"a." + b"A" * 5_000_000 + b".b", b"." * 1_000_000):
        try:
            assert login.tokens.caller_of(token) is None
        except TokenInvalid:
            pass


def test_times_are_held_within_the_skew(login, pair, clock):
    token = pair["access_token"].encode()
    for seconds, fails in (
        (ACCESS_SECONDS + SKEW - 1, False),
        (ACCESS_SECONDS + SKEW + 1, True),
        (-SKEW - 1, True),
    ):
        clock.now = 1_796_000_000.0 + seconds
        assert refused(login, token) is fails, seconds


def test_a_changed_user_is_refused_at_once_although_the_token_was_verified_before(login, pair):
    token = pair["access_token"].encode()
    assert not refused(login, token)
    login.users.change("anna", grants=["viewer"])
    assert refused(login, token)
    token = login.by_password("anna", WORDS, "10.0.0.7")["access_token"].encode()
    assert login.tokens.caller_of(token).permissions == {"read"}
    login.users.change("anna", disabled=True)
    assert refused(login, token)
    with pytest.raises(LoginRefused):
        login.by_password("anna", WORDS, "10.0.0.7")


def test_a_change_in_another_process_takes_effect_within_the_stated_bound(storage, clock, monkeypatch):
    here, there = Login(storage, clock, **CHEAP), Login(storage, clock, **CHEAP)
    there.users.create("anna", ["analyst"], WORDS)
    token = here.by_password("anna", WORDS, "10.0.0.7")["access_token"].encode()
    assert not refused(here, token)
    there.users.change("anna", disabled=True)
    monkeypatch.setattr(private_files.time, "monotonic", lambda t=private_files.time.monotonic: t() + 0.51)
    assert refused(here, token)


def test_two_keys_live_during_a_rotation_and_the_old_one_ends(login, pair, clock):
    token, first = pair["access_token"].encode(), login.ring.content()["active"]
    second = login.ring.rotate()
    newer = login.by_password("anna", WORDS, "10.0.0.7")["access_token"].encode()
    assert jwt.get_unverified_header(newer)["kid"] == second != first
    assert not refused(login, token) and not refused(login, newer)
    login.ring.rotate()
    assert refused(login, token) and not refused(login, newer)  # at most two are live
    assert len(login.ring.content()["keys"]) == 2
    clock.now += ACCESS_SECONDS + SKEW + 1
    assert login.ring.verifying_key(second) is None


def test_the_memory_of_verified_tokens_is_bounded(login, pair):
    login.tokens._verified = {i: {} for i in range(MOST_VERIFIED)}
    assert not refused(login, pair["access_token"])
    assert len(login.tokens._verified) == 1


def test_a_used_refresh_token_ends_its_session_and_the_access_tokens_with_it(login, pair):
    second = login.by_refresh(pair["refresh_token"])
    assert not refused(login, second["access_token"])
    with pytest.raises(RefreshInvalid):
        login.by_refresh(pair["refresh_token"])
    assert refused(login, pair["access_token"]) and refused(login, second["access_token"])
    with pytest.raises(RefreshInvalid):
        login.by_refresh(second["refresh_token"])


def test_one_of_many_exchanges_at_the_same_moment_succeeds_and_the_rest_end_the_session(login, pair):
    results = []

    def exchange():
        try:
            results.append(login.by_refresh(pair["refresh_token"]))
        except RefreshInvalid:
            results.append(None)

    threads = [threading.Thread(target=exchange) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([r for r in results if r]) == 1
    assert not login.sessions.file.read()


@pytest.mark.parametrize(
    "text", ["", "spr_", "spr_" + "0" * 32 + "_" + "A" * 43, "x" * 5000, "spr_\n", "../x"]
)
def test_wrong_refresh_tokens_are_one_refusal_and_write_nothing(login, pair, text):
    before = login.sessions.file.path.stat().st_mtime_ns
    with pytest.raises(RefreshInvalid):
        login.by_refresh(text)
    assert login.sessions.file.path.stat().st_mtime_ns == before


def test_no_secret_is_on_the_disk(login, pair):
    texts = [path.read_text() for path in login.users.file.path.parent.iterdir() if path.is_file()]
    disk = "".join(texts)
    for secret in (WORDS, pair["refresh_token"].split("_")[-1], pair["access_token"].split(".")[-1]):
        assert secret not in disk
    assert "$argon2id$v=19$m=" in disk
    for path in login.users.file.path.parent.glob("*.json"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_sessions_of_a_user_are_bounded(login):
    user = login.users.users()["anna"]
    for _ in range(MOST_SESSIONS + 5):
        login.sessions.begin(user)
    assert len(login.sessions.file.read()) == MOST_SESSIONS


def test_the_same_work_for_every_name(login):
    login.users.create("bert", ["viewer"], "seven quiet harbours")
    login.users.change("bert", disabled=True)
    answers, verify = set(), []
    hasher = login.users.hasher
    real, login.users._hasher = hasher, type("Counting", (), {})()
    login.users._hasher.verify = lambda h, p: verify.append(h.split("$")[3]) or real.verify(h, p)
    login.users._hasher.hash, login.users._hasher.check_needs_rehash = real.hash, real.check_needs_rehash
    for name, words in (
        ("anna", "wrong"),
        ("zora", "wrong"),
        ("bert", "seven quiet harbours"),
        ("'; --", "x"),
        ("", ""),
    ):
        count = len(verify)
        with pytest.raises(LoginRefused) as error:
            login.by_password(name, words, f"10.0.{len(name)}.{len(words)}")
        answers.add(str(error.value))
        assert len(verify) == count + 1, name
    assert len(answers) == 1
    assert len(set(verify)) == 1  # memory, passes and lanes are the same too


def test_the_parameters_are_those_of_the_standard():
    assert COSTS == {"time_cost": 3, "memory_cost": 65_536, "parallelism": 4}


def test_an_old_hash_is_renewed_at_the_next_login_and_a_changed_password_is_not_overwritten(storage):
    old = UserStore(storage, **CHEAP)
    user = old.create("anna", ["viewer"], WORDS)
    new = UserStore(storage, **CHEAP | {"memory_cost": 128})
    assert new.check("anna", WORDS) and "m=128" in new.users()["anna"].hash
    new.change("anna", password="another copper lantern")
    new._renew(user, WORDS)
    assert new.check("anna", "another copper lantern") and not new.check("anna", WORDS)


def test_weak_passwords_and_odd_names_are_refused(storage):
    users = UserStore(storage, **CHEAP)
    for words in ("short", "a" * 11, "aaaabbbbcccc", "my-anna-words", "x" * 300, "            "):
        with pytest.raises(RequestInvalid):
            users.create("anna", ["viewer"], words)
    for name in ("", "-anna", "an\nna", "a" * 40, "аnna", "anna;drop", "an na", "../anna", "anna\0"):
        with pytest.raises(RequestInvalid):
            users.create(name, ["viewer"], WORDS)
    with pytest.raises(RequestInvalid):
        users.create("anna", ["god"], WORDS)
    assert users.users() == {}


def test_a_damaged_file_lets_nobody_in(login, pair):
    path = login.users.file.path
    good = path.read_text()
    for bad in (good.replace("analyst", "admin"), good[:-5], "", "[]", "{}", good.replace("1,", "2,", 1)):
        path.write_text(bad)
        login.users.file._stamp = None
        with pytest.raises(AccessUnreadable) as error:
            login.tokens.caller_of(pair["access_token"].encode())
        assert error.value.status == 503
        with pytest.raises(AccessUnreadable):
            login.users.check("anna", WORDS)


def test_rights_that_change_while_the_service_runs_and_a_lost_folder_let_nobody_in(login, pair):
    path, token = login.users.file.path, pair["access_token"].encode()
    assert not refused(login, token)
    path.chmod(0o666)
    with pytest.raises(AccessUnreadable, match="Others may write"):
        login.tokens.caller_of(token)
    path.chmod(0o600)
    assert not refused(login, token)
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.write_text("a file in the place of the folder")
    with pytest.raises(AccessUnreadable, match="cannot be read") as error:
        login.users.check("anna", WORDS)
    assert error.value.status == 503


def guesses(attempts, n, name="anna", address="203.0.113.9"):
    "How many attempts are looked at."
    looked = 0
    for _ in range(n):
        try:
            attempts.begin(name, address)
            looked += 1
        except LoginBlocked as error:
            assert error.status == 429 and 1 <= error.context["retry_after"] <= 901
    return looked


def test_a_guesser_is_slowed_and_the_owner_is_not_locked_out(storage, clock):
    attempts = LoginAttempts(storage, clock=clock)
    attempts.begin("anna", "10.0.0.7")
    attempts.succeed("anna", "10.0.0.7")
    total = 0
    for _ in range(6 * 60):  # six hours, one burst of guesses a minute from a thousand addresses
        clock.now += 60
        total += guesses(attempts, 2, address=f"198.51.{total % 250}.{total % 99}")
        if total % 50 == 0:
            attempts.begin("anna", "10.0.0.7")  # Anna at her desk
            attempts.succeed("anna", "10.0.0.7")
    assert total < 90  # about one in five minutes
    assert guesses(attempts, 100, address="10.0.0.7") == 5


@pytest.mark.parametrize("spell", [" {}".format, "{}\t".format, str.upper, str.title, "\u3000{}".format])
def test_another_spelling_of_a_name_is_no_new_guess(storage, clock, spell):
    attempts = LoginAttempts(storage, clock=clock)
    assert guesses(attempts, 100, address="198.51.100.1") == 5
    assert guesses(attempts, 100, name=spell("anna"), address="198.51.100.2") == 0
    wide = "".join(chr(ord(letter) + 0xFEE0) for letter in "anna")
    assert guesses(attempts, 100, name=wide, address="198.51.100.3") == 0
    attempts = LoginAttempts(storage, clock=clock)
    attempts.succeed(spell("anna"), "10.0.0.7")
    assert guesses(attempts, 1, address="10.0.0.7") == 1  # her own desk, however she spelt her name there


def test_the_first_login_from_a_new_place_waits_at_most_five_minutes(storage, clock):
    attempts = LoginAttempts(storage, clock=clock)
    guesses(attempts, 500)
    clock.now += 300
    assert guesses(attempts, 1, address="192.0.2.5") == 1
    assert max(login_pause(kind, 10_000) for kind in ("user", "known")) == 300


def test_many_names_from_one_address_and_an_own_account_do_not_help(storage, clock):
    attempts = LoginAttempts(storage, clock=clock)
    looked = 0
    for k in range(200):
        looked += guesses(attempts, 1, name=f"name{k}")
        if guesses(attempts, 1, name="mallory"):
            attempts.succeed("mallory", "203.0.113.9")
    assert looked <= 21
    network = [guesses(attempts, 1, name=f"other{k}", address=f"2001:db8::{k:x}") for k in range(60)]
    assert sum(network) == 20  # one network of IPv6 is one address


def test_attempts_at_the_same_moment_are_all_counted(storage, clock):
    attempts = [LoginAttempts(storage, clock=clock) for _ in range(4)]
    looked = []
    threads = [threading.Thread(target=lambda a=a: looked.append(guesses(a, 5))) for a in attempts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(looked) == 5


def test_a_clock_that_jumps_and_an_old_login_are_handled(storage, clock):
    attempts = LoginAttempts(storage, clock=clock)
    guesses(attempts, 100)
    clock.now -= 86_400
    with pytest.raises(LoginBlocked) as error:
        attempts.begin("anna", "203.0.113.9")
    assert error.value.context["retry_after"] <= 301
    attempts.succeed("anna", "10.0.0.9")
    clock.now += (KNOWN_DAYS + 1) * 86_400
    guesses(attempts, 100)
    assert guesses(attempts, 1, address="10.0.0.9") == 0  # no longer known


def test_a_password_typed_into_the_field_of_the_name_is_not_stored(storage, clock):
    attempts = LoginAttempts(storage, clock=clock)
    attempts.begin(WORDS, "203.0.113.9")
    assert WORDS not in attempts.file.path.read_text() and "203.0.113" not in attempts.file.path.read_text()


def test_attempts_that_cannot_be_counted_are_refused(storage, clock, monkeypatch):
    import errno

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(storage.home_dir))

    attempts = LoginAttempts(storage, clock=clock)
    monkeypatch.setattr(private_files, "atomic_write", full)
    with pytest.raises(FolderUnavailable):
        attempts.begin("anna", "203.0.113.9")

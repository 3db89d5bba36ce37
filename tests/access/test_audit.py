"""The audit log: every edit is found where it lies, a killed writer loses its last batch of reads at most,
and a full disk stops changes and not reads."""

import asyncio
import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote, unquote_plus

import orjson
import pytest

from stockpredict.access import audit_chain, audit_log
from stockpredict.access.audit_chain import AuditChain, audit_segments, length_path, segment_path
from stockpredict.access.audit_lines import OWN_HASH, PLAIN_NAMES, SECRET_SHAPE
from stockpredict.access.audit_lines import close_line, parse_line, scrub_query, without_secrets
from stockpredict.access.audit_log import AuditedRoute, AuditFull, AuditLog, is_change
from stockpredict.access.audit_search import search_audit, verify_audit
from stockpredict.access.permissions import Caller
from stockpredict.core.scrubbing import SHAPES, scrub
from stockpredict.core.settings import load_settings

ANNA = Caller("user:anna", "user", frozenset({"read", "admin"}))
ROUTE = "/v1/predictions/{ticker}"


@pytest.fixture(scope="module")
def signed_home(tmp_path_factory):
    "A home with a pair of keys."
    from cryptography.hazmat.primitives import serialization as ser
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    settings, key = home(tmp_path_factory.mktemp("signed")), Ed25519PrivateKey.generate()
    folder = settings.storage.keys_dir
    folder.mkdir(parents=True)
    pem = ser.Encoding.PEM
    (folder / "signing.key").write_bytes(key.private_bytes(pem, ser.PrivateFormat.PKCS8, ser.NoEncryption()))
    public = key.public_key().public_bytes(pem, ser.PublicFormat.SubjectPublicKeyInfo)
    (folder / "signing.pub").write_bytes(public)
    return settings


@pytest.fixture
def settings(signed_home, tmp_path):
    "A home with keys and no log."
    import shutil

    shutil.copytree(signed_home.storage.keys_dir, tmp_path / "keys")
    return home(tmp_path)


def home(folder):
    return load_settings(None, {"storage.home": str(folder)}, environ={})


def audit_dir(settings):
    return settings.storage.home_dir / "audit"


def scope(**more):
    base = {"type": "http", "method": "GET", "path": "/v1/predictions/AAPL", "query_string": b"horizon=5"}
    return base | {"request_id": b"r-1", "client": ("10.0.0.7", 5000), "caller": ANNA} | more


def chain_of(settings, **more):
    return AuditChain(audit_dir(settings), settings.storage.keys_dir, **more)


def filled(settings, segments=3, batches=4):
    "Several sealed segments of changes and reads, as the bytes of each file."
    days = iter(f"2026-11-{day:02d}" for day in range(1, 29))
    for _ in range(segments):
        day = next(days)
        chain = chain_of(settings, today=lambda day=day: day)
        for k in range(batches):
            change = {"kind": "change", "at": f"{day}T0{k}:00:00.000+00:00", "who": "user:anna"}
            read = [
                1_796_000_000.5 + k,
                "key:7f",
                "10.0.0.7",
                "GET",
                ROUTE,
                "/v1/predictions/AAPL",
                "",
                200,
                "r",
            ]
            chain.append([change, {"kind": "reads", "at": day, "reads": [read] * 3}])
        chain.close()
    return {path: path.read_bytes() for _, path in audit_segments(audit_dir(settings))["w00"]}


def restore(files):
    for path, content in files.items():
        path.write_bytes(content)


def first_problem(settings):
    report = verify_audit(settings)
    assert report["ok"] == (not report["problems"])
    return report["problems"][0] if report["problems"] else None


def test_every_changed_byte_is_found_in_its_file_and_line(settings):
    files, draw = filled(settings), random.Random(7)
    assert first_problem(settings) is None
    for _ in range(150):
        path = draw.choice(list(files))
        content, k = files[path], draw.randrange(len(files[path]))
        line = content[:k].count(b"\n") + 1
        new = draw.choice([b for b in range(256) if b != content[k]])
        path.write_bytes(content[:k] + bytes([new]) + content[k + 1 :])
        problem = first_problem(settings)
        assert problem and problem["file"] == path.name, (path.name, k, new)
        assert problem["line"] in ({line} if content[k] != 10 else {line, line + 1}), (problem, line, k)
        path.write_bytes(content)
    assert first_problem(settings) is None


@pytest.mark.parametrize("how", ["delete", "swap", "repeat", "insert"])
def test_every_moved_line_is_found(settings, how):
    files, draw = filled(settings, segments=2, batches=3), random.Random(how)
    for path, content in files.items():
        lines = content.splitlines(keepends=True)
        for i in range(len(lines)):
            j = draw.choice([x for x in range(len(lines)) if x != i])
            changed = list(lines)
            if how == "delete":
                del changed[i]
            elif how == "swap":
                changed[i], changed[j] = changed[j], changed[i]
            elif how == "repeat":
                changed.insert(i + 1, lines[i])
            else:
                changed.insert(
                    i, close_line(b'{"n":%d,"before":"%b","kind":"change"' % (i + 1, b"0" * 64))[0]
                )
            path.write_bytes(b"".join(changed))
            problem = first_problem(settings)
            assert problem, (how, path.name, i)
            near = {i + 1, i + 2} if how != "swap" else {min(i, j) + 1}
            at_end = how == "delete" and i == len(lines) - 1
            assert at_end or (problem["file"] == path.name and problem["line"] in near), (how, i, problem)
        path.write_bytes(content)


def test_a_line_with_a_fresh_hash_is_found_and_so_is_a_chain_that_was_rewritten_to_its_end(settings):
    files = filled(settings)
    path = list(files)[1]
    lines = files[path].splitlines()
    body = OWN_HASH.sub(b"", lines[1]).replace(b"user:anna", b"user:bert")
    lines[1] = close_line(body)[0].strip()
    path.write_bytes(b"\n".join([*lines, b""]))
    assert first_problem(settings) | {"problem": ""} == {"file": path.name, "line": 2, "problem": ""}
    for i in range(2, len(lines)):  # all hashes are computed again; the signature of the next mark cannot be
        before = parse_line(lines[i - 1])["hash"].encode()
        body = OWN_HASH.sub(b"", lines[i])
        start = body.index(b'"before":"') + 10
        lines[i] = close_line(body[:start] + before + body[start + 64 :])[0].strip()
    path.write_bytes(b"\n".join([*lines, b""]))
    problem = first_problem(settings)
    assert "signature" in problem["problem"] and parse_line(lines[problem["line"] - 1])["kind"] == "mark"


def test_marks_without_a_signature_do_not_follow_signed_ones(settings):
    filled(settings, segments=1)
    chain = chain_of(settings, today=lambda: "2026-11-01")
    chain.claim()
    chain.signer = (None, "")
    chain.append([{"kind": "change", "who": "user:eve"}])
    chain.close()
    assert "no signature" in first_problem(settings)["problem"]


def test_every_cut_is_found(settings):
    files, draw = filled(settings, segments=2), random.Random(3)
    for path, content in files.items():
        for k in {0, 1, len(content) - 1, *(draw.randrange(len(content)) for _ in range(30))}:
            path.write_bytes(content[:k])
            problem = first_problem(settings)
            assert problem, (path.name, k)
            assert problem["line"] in {content[:k].count(b"\n") + 1, 1}, (k, problem)
        path.write_bytes(content)


def test_deleted_files_deleted_chains_and_deleted_notes_are_found(settings):
    files = filled(settings)
    for gone in ([0], [1], [2], [0, 1, 2]):
        for k in gone:
            list(files)[k].unlink()
        assert first_problem(settings), gone
        restore(files)
    length_path(settings.storage.keys_dir, "w00").unlink()
    assert "note of its length" in first_problem(settings)["problem"]


def test_a_chain_that_was_cut_while_no_process_looked_stays_broken_for_good(settings):
    path, content = list(filled(settings).items())[-1]
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]))
    chain = chain_of(settings)
    chain.append([{"kind": "change", "who": "user:eve"}])
    chain.close()
    assert first_problem(settings)
    assert segment_path(audit_dir(settings), "w00", 4).exists()


def test_old_files_go_with_a_line_and_an_invented_line_does_not_excuse_a_missing_file(settings):
    files = filled(settings)
    oldest = next(iter(files))
    os.utime(oldest, (time.time() - 500 * 86_400,) * 2)
    chain = chain_of(settings)
    assert chain.prune(400) == [oldest.name]
    chain.close()
    assert first_problem(settings) is None
    newest = audit_segments(audit_dir(settings))["w00"][-1][1]
    gone = b'{"n":9,"before":"","kind":"pruned","slot":"w00","segment":2,"last":99,"last_hash":"%b"' % (
        b"0" * 64
    )
    newest.write_bytes(newest.read_bytes() + close_line(gone)[0])
    list(files)[1].unlink()
    assert first_problem(settings)


CHILD = """
import os, sys, time
from stockpredict.access.audit_log import audit_log, change_line
from stockpredict.access.permissions import Caller
from stockpredict.core.settings import load_settings
settings = load_settings(None, {"storage.home": sys.argv[1]}, environ={})
log, who = audit_log(settings), Caller("user:anna", "user", frozenset())
scope = {"type": "http", "method": "POST", "path": "/v1/train", "client": ("10.0.0.7", 1)}
i = 0
while True:
    i += 1
    for _ in range(50):
        log.note(scope | {"caller": who, "request_id": b"read-%d" % i}, "/v1/predictions/{ticker}", 200)
    line = change_line("change", scope | {"caller": who, "request_id": b"change-%d" % i}, "/v1/train", 202)
    log.submit(line).result(60)
    print(i, flush=True)
"""


def test_two_writers_that_are_killed_lose_no_change_and_the_next_process_goes_on(settings):
    command = [sys.executable, "-c", CHILD, str(settings.storage.home_dir)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    acknowledged = []
    for child in children:
        acknowledged.append([child.stdout.readline() for _ in range(8)])
        assert verify_audit(settings)["ok"]  # also while they write
    for child in children:
        child.kill()
        rest = child.stdout.read().splitlines()
        acknowledged[children.index(child)] += rest
        child.wait()
    assert sorted(audit_segments(audit_dir(settings))) == ["w00", "w01"]
    report = verify_audit(settings)
    assert report["ok"], report
    changes = [entry["request"] for entry in search_audit(settings, kind="change")]
    for lines in acknowledged:
        assert {f"change-{int(i)}" for i in lines} <= set(changes)
    assert len(changes) >= sum(map(len, acknowledged))
    log = audit_log.audit_log(settings)
    log.submit({"kind": "change", "at": "2026-11-30T10:00:00.000+00:00", "who": "user:bert"}).result(60)
    log.close()
    assert sorted(audit_segments(audit_dir(settings))) == ["w00", "w01"]
    assert verify_audit(settings)["ok"]


class FullDisk:
    "A disk with room for so many bytes, at the lowest layer that the log calls."

    def __init__(self, monkeypatch, room):
        self.room, self.write, self.fallocate = room, os.write, os.posix_fallocate
        monkeypatch.setattr(audit_chain.os, "write", self.limited)
        monkeypatch.setattr(audit_chain.os, "posix_fallocate", self.reserve)

    def limited(self, handle, data):
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.write(handle, bytes(data)[: self.room])
        self.room -= written
        return written

    def reserve(self, handle, start, size):
        if self.room < size:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.fallocate(handle, start, size)


def test_a_full_disk_refuses_changes_keeps_reads_and_counts_what_was_lost(settings, monkeypatch):
    log = AuditLog(audit_dir(settings), settings.storage.keys_dir, limit=20)
    log.require_writable()
    log.submit({"kind": "change", "who": "user:anna", "request": "first"}).result(60)
    disk = FullDisk(monkeypatch, room=100)
    late = log.submit({"kind": "change", "who": "user:anna", "request": "late"})
    assert isinstance(late.exception(60), AuditFull) and late.exception().status == 507
    with pytest.raises(AuditFull, match="the disk is full"):
        log.require_writable()
    for _ in range(50):
        log.note(scope(), ROUTE, 200)
    assert log.health()["status"] == "trouble" and "disk is full" in log.health()["reason"]
    assert (len(log.reads), log.health()["lost_reads"]) == (20, 30)
    assert verify_audit(settings)["ok"]  # half a batch was never left behind
    disk.room = 10**9
    log.drain()
    log.require_writable()
    assert log.health() == {"waiting": 0, "lost_reads": 30, "status": "ok"}
    entries = list(search_audit(settings))
    assert [e["request"] for e in entries if e["kind"] == "change"] == ["first", "late"]
    assert [e["reads"] for e in entries if e["kind"] == "lost"] == [30]
    assert sum(e["kind"] == "read" for e in entries) == 20
    assert verify_audit(settings)["ok"]


def test_a_change_that_began_before_the_disk_was_full_is_recorded_in_the_reserved_space(
    settings, monkeypatch
):
    log = AuditLog(audit_dir(settings), settings.storage.keys_dir)
    log.require_writable()
    disk = FullDisk(monkeypatch, room=0)
    release = log.chain.release

    def freed():
        release()
        disk.room = audit_chain.RESERVE_BYTES

    log.chain.release = freed
    assert log.submit({"kind": "change", "who": "user:anna", "request": "under way"}).result(60) is None
    with pytest.raises(AuditFull):
        log.require_writable()
    assert [e["request"] for e in search_audit(settings, kind="change")] == ["under way"]


def ask(app, **more):
    "Send a request through an application; the messages that come back."
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope(method="POST", path="/v1/train", **more), None, send))
    return sent


def test_a_change_is_on_the_disk_before_it_runs_and_before_it_is_answered(settings, monkeypatch):
    log = AuditLog(audit_dir(settings), settings.storage.keys_dir)
    seen = []

    def recorded():
        return [(e["kind"], e["status"]) for e in search_audit(settings, path="/v1/train")]

    async def train(scope, receive, send):
        seen.append(recorded())
        scope["audit_detail"] = {"job": "j-17", "token": "sp_live_8f3a21c9d2"}

        async def look(message):
            await send(message)
            seen.append(recorded())

        await look({"type": "http.response.start", "status": 202, "headers": []})

    ask(AuditedRoute(train, "/v1/train", log))
    assert seen == [[("asked", None)], [("asked", None), ("change", 202)]]
    assert next(search_audit(settings, kind="change"))["detail"] == {"job": "j-17", "token": "***"}
    log.drain()
    FullDisk(monkeypatch, room=0)
    log.problem = "the disk is full"
    with pytest.raises(AuditFull):
        ask(AuditedRoute(train, "/v1/train", log))
    assert len(seen) == 2  # the route did not run


def test_a_what_if_is_a_read_and_every_other_post_is_a_change():
    assert not is_change("POST", "/v1/predict")
    assert all(is_change(m, "/v1/brand-new") for m in ("POST", "PUT", "PATCH", "DELETE"))
    assert not is_change("GET", "/v1/brand-new")


def test_a_forked_child_writes_a_chain_of_its_own(settings):
    log = AuditLog(audit_dir(settings), settings.storage.keys_dir)
    log.submit({"kind": "change", "who": "user:anna", "request": "parent"}).result(60)
    child = os.fork()
    if child == 0:
        try:
            log.submit({"kind": "change", "who": "user:anna", "request": "child"}).result(60)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    log.submit({"kind": "change", "who": "user:anna", "request": "parent again"}).result(60)
    log.close()
    assert sorted(audit_segments(audit_dir(settings))) == ["w00", "w01"]
    assert verify_audit(settings)["ok"]
    assert len(list(search_audit(settings, kind="change"))) == 3


def test_a_machine_with_the_public_key_alone_writes_a_chain_that_says_so(settings):
    (settings.storage.keys_dir / "signing.key").unlink()
    filled(settings, segments=1)
    report = verify_audit(settings)
    assert report["ok"] and "no signature" in report["remarks"][0]


def test_segments_are_sealed_by_size_and_the_chain_goes_on(settings):
    chain = chain_of(settings, limit=2_000)
    for k in range(30):
        chain.append([{"kind": "change", "who": "user:anna", "request": str(k)}])
    chain.close()
    assert len(audit_segments(audit_dir(settings))["w00"]) > 3
    assert verify_audit(settings)["ok"]
    assert [e["request"] for e in search_audit(settings)] == [str(k) for k in range(30)]


@pytest.mark.parametrize(
    "text",
    [
        "sp_live_9f8e7d6c5b4a39281706",
        "spr_A1b2C3d4E5f6G7h8I9j0",
        "eyJhbGciOiJFZERTQSIsImtpZCI6ImsxIn0.eyJzdWIiOiJ1c2VyOjEifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ",
        "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5zA7b",
    ],
)
def test_no_secret_reaches_the_disk_by_path_query_or_request_id(settings, text):
    log = AuditLog(audit_dir(settings), settings.storage.keys_dir)
    for name in ("api_key", "tickers", "token", text):
        log.note(scope(query_string=f"{name}={text}".encode()), ROUTE, 200)
    encoded = "".join(f"%{ord(c):02x}" for c in text)
    log.note(scope(query_string=f"tickers={encoded}".encode()), ROUTE, 200)
    log.note(scope(path=f"/v1/predictions/{text}", request_id=text.encode()[:64]), ROUTE, 404)
    log.close()
    disk = b"".join(path.read_bytes() for path in Path(audit_dir(settings)).glob("*.jsonl"))
    assert text.encode() not in disk and encoded.encode() not in disk
    assert verify_audit(settings)["ok"]
    assert text not in without_secrets(text) + scrub_query(text.encode())


PIECES = """
    sp_ spr_abcdefgh eyJhbG.ciO eyJ AAPL brk.b . - _ , %2C %41 + %73p_ = & tickers= cursor= as_of= x= page=
    é * : ~ / ? @ :// http api secret ' " ;
"""
PIECES = [*PIECES.split(), "9" * 39, "9" * 40, " ", "bearer 12345678a", "\x00", "\u2028"]


def test_looking_for_hints_first_changes_nothing_that_is_scrubbed():
    draw, changed = random.Random(3), 0
    for _ in range(20_000):
        text = plain = "".join(draw.choices(PIECES, k=draw.randrange(1, 12)))
        for shape, mask in SHAPES:
            plain = shape.sub(mask, plain)
        assert scrub(text) == plain
        assert without_secrets(text) == SECRET_SHAPE.sub("***", plain)[:200]
        changed += plain != text
        query, parts = text.encode("latin-1", "ignore"), []
        for part in query.decode("latin-1").split("&"):
            name, equals, value = part.partition("=")
            name, value = unquote_plus(name), quote(without_secrets(unquote_plus(value)), safe=",.-*:")
            value = value if name in PLAIN_NAMES else "***"
            parts.append(quote(without_secrets(name), safe="*") + equals + value * bool(equals))
        assert scrub_query(query) == "&".join(parts)[:200] * bool(query)
    assert 5_000 < changed < 19_000


def test_control_characters_and_line_ends_in_a_path_stay_inside_their_line(settings):
    log = AuditLog(audit_dir(settings), settings.storage.keys_dir)
    log.note(scope(path='/v1/predictions/A"}\n{"n":1\u2028\x00', query_string=b"tickers=\n\xff"), ROUTE, 404)
    log.close()
    assert verify_audit(settings)["ok"]
    assert next(search_audit(settings))["status"] == 404


def test_refused_callers_are_counted_and_fill_no_disk(settings):
    log = AuditLog(audit_dir(settings), settings.storage.keys_dir)
    log._active = True
    for k in range(5_000):
        log.note(
            scope(caller=Caller("nobody", "nobody", frozenset()), request_id=b"%d" % k), "unmatched", 401
        )
    log.drain()
    log.close()
    entry = next(search_audit(settings, kind="refused"))
    assert entry["count"] == {"nobody 10.0.0.7 401": 5_000}
    assert sum(p.stat().st_size for p in audit_dir(settings).glob("*.jsonl")) < 3_000


def test_refusals_of_more_callers_than_a_line_names_are_still_counted(settings):
    log = AuditLog(audit_dir(settings), settings.storage.keys_dir)
    log._active = True
    for k in range(audit_log.MOST_REFUSED + 40):
        log.note(scope(client=(f"2001:db8::{k:x}", 1)), "unmatched", 401)
    log.close()
    entry = next(search_audit(settings, kind="refused"))
    assert len(entry["count"]) == audit_log.MOST_REFUSED + 1 and entry["count"]["others"] == 40


def test_a_long_address_does_not_grow_what_waits_for_the_disk(settings):
    log = AuditLog(audit_dir(settings), settings.storage.keys_dir)
    log._active = True
    log.note(scope(path="/" + "x" * 20_000, query_string=b"tickers=" + b"A" * 20_000), ROUTE, 404)
    assert sum(len(part) for part in log.reads[0] if isinstance(part, str | bytes)) < 4_000
    log.close()
    assert verify_audit(settings)["ok"]


def test_orjson_and_the_standard_parser_read_a_line_alike(settings):
    import json

    filled(settings, segments=1, batches=1)
    for raw in segment_path(audit_dir(settings), "w00", 1).read_bytes().splitlines():
        assert json.loads(raw) == orjson.loads(raw)

"""One key, one execution: in one process, in two, after a crash and after a day."""

import asyncio
import os
import time

import pytest
from fastapi import Request

from stockpredict.core.errors import FolderUnavailable, QueueFull
from stockpredict.serve.http import RawResponse
from stockpredict.serve.idempotency import (
    KEEP_ANSWERS,
    IdempotencyReused,
    OutcomeUnknown,
    answer_once,
    record_path,
)


class Caller:
    def __init__(self, id):
        self.id = id


def post(path="/v1/train", caller=None, query=b""):
    scope = {"type": "http", "method": "POST", "path": path, "query_string": query, "headers": []}
    more = {"caller": Caller(caller)} if caller else {}
    return Request(scope | {"server": ("service", 80)} | more)


class Work:
    "Counts its executions in a file, so that several processes can share the count."

    def __init__(self, folder, pause=0.0, error=None):
        self.file, self.pause, self.error = folder / "count", pause, error

    async def __call__(self):
        with self.file.open("a") as f:
            f.write("x")
        await asyncio.sleep(self.pause)
        if self.error:
            raise self.error
        return RawResponse(202, [(b"location", b"/v1/jobs/7")], b'{"job":%d}' % self.count)

    @property
    def count(self):
        return len(self.file.read_text()) if self.file.exists() else 0


def send(folder, work, key="k", body=b"{}", request=None):
    return asyncio.run(answer_once(folder / "once", request or post(), key, body, work))


def test_the_same_request_again_gets_the_first_answer(tmp_path):
    work = Work(tmp_path)
    first, again = send(tmp_path, work), send(tmp_path, work)
    assert work.count == 1 and first.body == again.body == b'{"job":1}'
    assert first.status_code == again.status_code == 202
    assert dict(again.raw_headers)[b"location"] == b"/v1/jobs/7"
    assert b"idempotency-replayed" not in dict(first.raw_headers)
    assert dict(again.raw_headers)[b"idempotency-replayed"] == b"true"


@pytest.mark.parametrize(
    "other", [{"body": b'{"a":1}'}, {"request": post("/v1/jobs")}, {"request": post(query=b"x=1")}]
)
def test_a_key_with_another_request_is_refused(tmp_path, other):
    work = Work(tmp_path)
    send(tmp_path, work)
    with pytest.raises(IdempotencyReused) as refused:
        send(tmp_path, work, **other)
    assert refused.value.status == 422 and work.count == 1


def test_keys_of_two_callers_are_two_keys(tmp_path):
    work = Work(tmp_path)
    answers = [send(tmp_path, work, request=post(caller=c)).body for c in ("anna", "ben", "anna")]
    assert work.count == 2 and answers == [b'{"job":1}', b'{"job":2}', b'{"job":1}']


def test_no_key_runs_each_time(tmp_path):
    work = Work(tmp_path)
    assert [send(tmp_path, work, None).body for _ in range(2)] == [b'{"job":1}', b'{"job":2}']
    assert not (tmp_path / "once").exists()


def test_requests_at_the_same_time_run_once(tmp_path):
    work = Work(tmp_path, 0.05)

    async def burst():
        requests = [answer_once(tmp_path / "once", post(), "k", b"{}", work) for _ in range(20)]
        return await asyncio.gather(*requests)

    assert {a.body for a in asyncio.run(burst())} == {b'{"job":1}'} and work.count == 1


def test_two_processes_run_once(tmp_path):
    work, children = Work(tmp_path, 0.3), []
    for _ in range(2):
        if not (child := os.fork()):
            try:
                os._exit(0 if send(tmp_path, work).body == b'{"job":1}' else 1)
            finally:
                os._exit(2)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0] and work.count == 1


def test_after_a_kill_the_outcome_is_unknown_and_nothing_runs_again(tmp_path):
    work = Work(tmp_path, 60)
    if not (child := os.fork()):
        send(tmp_path, work)
        os._exit(0)
    while not work.count:
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    work.pause = 0
    with pytest.raises(OutcomeUnknown) as refused:
        send(tmp_path, work)
    assert refused.value.status == 409 and work.count == 1
    assert send(tmp_path, work, "new-key").status_code == 202


def test_a_caller_who_hangs_up_does_not_stop_the_work(tmp_path):
    work = Work(tmp_path, 0.05)

    async def hang_up():
        task = asyncio.create_task(answer_once(tmp_path / "once", post(), "k", b"{}", work))
        await asyncio.sleep(0.02)
        task.cancel()
        return await answer_once(tmp_path / "once", post(), "k", b"{}", work)

    assert asyncio.run(hang_up()).body == b'{"job":1}' and work.count == 1


def test_a_refusal_leaves_the_key_free(tmp_path):
    with pytest.raises(QueueFull):
        send(tmp_path, Work(tmp_path, error=QueueFull("Full.")))
    assert send(tmp_path, Work(tmp_path)).status_code == 202


@pytest.mark.parametrize("content", [b"", b"{cut", b'{"request": 1}', b"[]", b"null"])
def test_a_damaged_record_is_an_unknown_outcome(tmp_path, content):
    work = Work(tmp_path)
    send(tmp_path, work)
    record_path(tmp_path / "once", "local", "k").write_bytes(content)
    with pytest.raises(OutcomeUnknown):
        send(tmp_path, work)
    assert work.count == 1


def test_a_day_later_the_key_is_free_and_the_files_are_gone(tmp_path):
    work = Work(tmp_path)
    send(tmp_path, work)
    past = time.time() - KEEP_ANSWERS - 60
    for path in (tmp_path / "once").iterdir():
        os.utime(path, (past, past))
    assert send(tmp_path, work, "other").body == b'{"job":2}'
    assert not record_path(tmp_path / "once", "local", "k").exists()
    assert send(tmp_path, work).body == b'{"job":3}'


def test_records_are_for_the_service_alone(tmp_path):
    send(tmp_path, Work(tmp_path))
    assert record_path(tmp_path / "once", "local", "k").stat().st_mode & 0o777 == 0o600


def test_where_nothing_can_be_noted_nothing_is_started(tmp_path):
    (tmp_path / "once").write_text("in the way")
    work = Work(tmp_path)
    with pytest.raises(FolderUnavailable, match="cannot be written"):
        send(tmp_path, work)
    assert work.count == 0

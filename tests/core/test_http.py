"""HTTP: budgets, pauses, the circuit breaker, and keys that are never shown."""

import logging
import subprocess
import sys
from datetime import UTC, datetime

import patience
import pytest
from vendor_clock import Clock

from stockpredict.core.errors import (
    VendorFailed,
    VendorThrottled,
)
from stockpredict.core.http import (
    ApiKey,
    CircuitBreaker,
    RequestBudget,
    RequestLedger,
    VendorClient,
    VendorFailure,
    VendorRequest,
    backoff,
    parse_retry_after,
    run_async,
)
from stockpredict.core.settings import Settings
from stockpredict.sources.vendor_chain import VendorChain
from stockpredict.sources.simulate import sample_bars
from stockpredict.testing.fake_vendors import FakeVendors

# ---- budgets and politeness, on a clock of our own


@pytest.fixture(scope="module")
def market():
    return sample_bars()


def polite(tmp_path, clock, **more):
    plain = dict(clock=clock, sleep=clock.sleep, deadline=1000.0, budgets={"tiingo": RequestBudget(1, 1000)})
    return VendorClient(RequestLedger(tmp_path / "ledger.sqlite"), **plain | more)


def prices(standin, ticker="AAA"):
    return VendorRequest(
        "tiingo",
        f"{standin.url}/tiingo/daily/{ticker}/prices",
        (("format", "csv"), ("startDate", "2019-06-03"), ("endDate", "2019-06-04")),
    )


async def several(client, asks):
    async with client.session():
        return [await client.get(a) for a in asks]


def test_the_budget_a_second_is_kept(tmp_path, standin):
    clock = Clock()
    run_async(several(polite(tmp_path, clock), [prices(standin)] * 5))
    assert clock.slept == [1.0] * 4


def test_the_budget_a_day_survives_a_restart(tmp_path, standin):
    day = [datetime(2026, 1, 5, 23, 59, tzinfo=UTC)]

    def make():
        return polite(tmp_path, Clock(), budgets={"tiingo": RequestBudget(100, 3)}, today=lambda: day[0])

    run_async(several(make(), [prices(standin)] * 2))
    with pytest.raises(VendorThrottled, match="Today's 3 requests to tiingo are spent") as e:
        run_async(several(make(), [prices(standin)] * 2))
    assert e.value.context["reason"] == "budget-spent" and len(standin.requests) == 3
    day[0] = datetime(2026, 1, 6, 0, 1, tzinfo=UTC)
    assert len(run_async(several(make(), [prices(standin)] * 3))) == 3
    assert RequestLedger(tmp_path / "ledger.sqlite").spent("2026-01-05") == {"tiingo": 3}


def test_two_processes_share_one_budget(tmp_path):
    code = (
        "import sys; from stockpredict.core.http import RequestLedger; l = RequestLedger(sys.argv[1]); "
        "print(sum(l.spend('x', 50, 'd') for _ in range(40)))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "l.sqlite")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert sum(int(patience.communicate(p)[0]) for p in both) == 50


def test_pauses_grow_and_are_drawn_by_chance():
    class Half:
        def random(self):
            return 0.5

    assert [backoff(n, Half()) for n in (1, 2, 3, 20)] == [0.375, 0.75, 1.5, 22.5]
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT", datetime(2015, 10, 21, 7, 27, tzinfo=UTC)) == 60
    assert (
        parse_retry_after("-3", datetime.now(UTC))
        is parse_retry_after("soon", datetime.now(UTC))
        is parse_retry_after(None, datetime.now(UTC))
        is None
    )


def test_a_breaker_opens_rests_and_probes_once():
    clock = Clock()
    b = CircuitBreaker(clock=clock)
    for _ in range(4):
        assert b.allow()
        b.report(False)
    assert b.state == "closed"
    b.report(None)
    assert b.failures == 4, "a throttle says nothing about health"
    b.report(False)
    assert b.state == "open" and not b.allow()
    clock.now = 60
    assert b.state == "half-open" and [b.allow(), b.allow()] == [True, False]
    b.report(False)
    assert b.state == "open"
    clock.now = 121
    assert b.allow()
    b.report(True)
    assert b.state == "closed" and b.allow()


# ---- keys


async def several_read(client, ask, read):
    async with client.session():
        return await client.get(ask, read)


@pytest.mark.parametrize("place", [dict(param="apikey"), dict(header="Authorization", form="Token {}")])
@pytest.mark.parametrize("fault", ["html", "500", "reset", "bad-key", ""])
def test_a_key_is_sent_and_never_shown(tmp_path, standin, monkeypatch, caplog, place, fault):
    secret = "s3cr/t+key=="
    monkeypatch.setenv("TIINGO_API_KEY", secret)
    caplog.set_level(logging.DEBUG)
    if fault:
        standin.fault(fault, 9)
    sent = []
    plain = FakeVendors.answer
    monkeypatch.setattr(
        FakeVendors,
        "answer",
        lambda self, path, query, wish="": sent.append(query) or plain(self, path, query, wish),
    )
    ask, client = prices(standin), polite(tmp_path, Clock(), retries=1)
    ask = VendorRequest(ask.vendor, ask.url, ask.params, ApiKey("TIINGO_API_KEY", **place))

    def echo(body):
        raise VendorFailed(
            f"They say: your key {secret} is wrong.",
            reason="refused",
            vendor="tiingo",
            evidence=f"key={secret}",
        )

    try:
        run_async(several_read(client, ask, echo))
    except VendorFailed as e:
        reply = f"{e!r} {e} {e.as_dict()} {VendorFailure.of(e)} {e.__cause__} {e.__context__}"
    assert sent and ("param" not in place or sent[0]["apikey"] == secret)
    shown = (
        reply
        + caplog.text
        + repr(ask)
        + (tmp_path / "ledger.sqlite").read_bytes().decode("latin-1")
        + repr(standin.requests)
    )
    for form in (secret, "s3cr%2Ft%2Bkey%3D%3D", "s3cr/t%2Bkey%3D%3D"):
        assert form not in shown
    if not fault:
        assert "***" in reply and "HTTP Request" in caplog.text


def test_a_missing_key_costs_no_request(tmp_path, monkeypatch):
    monkeypatch.delenv("FMP_API_KEY", raising=False)
    s = VendorChain(
        Settings().with_(
            **{"storage.home": str(tmp_path), "data.universe": ["AAA"], "sources.chain": ["fmp"]}
        )
    )
    assert len(s.fetch(["AAA"], "2020-01-02", "2020-01-10")) == 0 and s.requests == 0
    assert (
        s.failed["AAA"]["failures"][0]["reason"] == "bad-key"
        and "FMP_API_KEY is not set" in s.failed["AAA"]["failures"][0]["sentence"]
    )


def test_the_result_of_a_coroutine_is_never_printed():
    "Python prints the task of `asyncio.run` when its handler of Ctrl-C goes, tables of bars and all."

    class Costly:
        def __repr__(self):
            raise AssertionError("printed")

    async def work():
        return Costly()

    assert type(run_async(work())).__name__ == "Costly"

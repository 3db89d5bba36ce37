"""The fake vendors: orders over HTTP, seeded chance, started from a shell."""

import re
import subprocess
import sys

import httpx
import pytest

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import ParameterRefused, PortTaken
from stockpredict.sources.simulate import sample_bars
from stockpredict.testing.fake_vendors import FakeVendors

CALENDAR = get_calendar()


@pytest.fixture(scope="module")
def market():
    return sample_bars()


def test_the_stand_in_takes_orders_over_http_and_remembers(standin):
    url = f"{standin.url}/tiingo/daily/AAA/prices?format=csv&startDate=2019-06-03&endDate=2019-06-04"
    assert (
        httpx.post(
            f"{standin.url}/admin/faults",
            json=[dict(kind="429", times=1, wait=7), dict(kind="html", vendor="fmp")],
        ).status_code
        == 200
    )
    first, second = httpx.get(url), httpx.get(url)
    assert (first.status_code, first.headers["retry-after"], second.status_code) == (429, "7", 200) and len(
        second.text.splitlines()
    ) == 3
    assert (
        httpx.get(url, headers={"X-Fault": "html"}).text.startswith("<!DOCTYPE")
        and "<" not in httpx.get(url + "&token=secret").text
    )
    assert httpx.get(url + "&fault=nonsense").status_code == 400
    reply = httpx.get(f"{standin.url}/admin/requests").json()
    assert [r["fault"] for r in reply] == [
        "429",
        "",
        "html",
        "",
    ] and "secret" not in str(reply)
    assert httpx.post(f"{standin.url}/admin/reset").json() == [] and standin.requests == []
    with pytest.raises(ParameterRefused, match="Did you mean"):
        standin.fault("htlm")
    with pytest.raises(PortTaken):
        FakeVendors(port=standin.port).start()


def test_chance_is_seeded(market):
    few = market.tail(3)

    def drawn(seed):
        s = FakeVendors(few, seed=seed).fault("500", 99, share=0.3)
        return [s.answer("/tiingo/daily/EEE/prices", {})[0] for _ in range(40)]

    assert drawn(1) == drawn(1) != drawn(2) and 3 < drawn(1).count(500) < 25


def test_a_newcomer_starts_it_from_a_shell():
    options = ["--port", "0", "--tickers", "5", "--sessions", "30", "--fault", "429:1:tiingo"]
    p = subprocess.Popen(
        [sys.executable, "-u", "-m", "stockpredict.testing.fake_vendors", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        reply = p.stdout.readline() + p.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", reply)[0]
        assert "stockpredict ingest --set data.source=vendors" in reply
        assert "SIM0,SIM1,SIM2,SIM3,SIM4" in reply
        ask = f"{url}/tiingo/daily/SIM0/prices?format=csv"
        assert [httpx.get(ask).status_code for _ in range(2)] == [429, 200]
        assert httpx.get(ask).text.strip().splitlines()[-1].startswith(str(CALENDAR.last_closed().date()))
    finally:
        p.kill()
        p.wait()

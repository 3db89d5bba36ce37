"""What Prometheus is told about the live path, over HTTP, by a consumer in a process of its own and by the
service."""

import asyncio
import json
import re
import signal
import time
import urllib.request
from pathlib import Path

import httpx
import pandas as pd
import patience
import pytest
from live_redis import consumer_process, live_settings
from prometheus_client.parser import text_string_to_metric_families

from stockpredict.stream.consumer import MERGE_ABOVE, Consumer, consume
from stockpredict.stream.messages import encode_messages, publish_rows
from stockpredict.lake.lake import Lake
from stockpredict.quality.gate import RULES
from stockpredict.sources.simulate import sample_bars
from stockpredict.stream.queue import Stream
from stockpredict.stream.monitor import serve_metrics, stream_status, live_vitals
from stockpredict.serve.app import create_app

GUIDE = Path(__file__).parents[2] / "nbs" / "guides" / "operate.ipynb"


@pytest.fixture
def settings(tmp_path, server):
    return live_settings(tmp_path / "home", server.url)


def scrape(port):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def served(settings):
    async def go():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(settings)), base_url="http://localhost"
        ) as c:
            return (await c.get("/metrics")).text

    return asyncio.run(go())


def test_a_consumer_in_its_own_process_is_scraped_and_counts_what_it_did(settings, server):
    bars = sample_bars(tickers=3, sessions=20)
    child = consumer_process(settings, "--metrics-port", "0")
    try:
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/metrics", child.stderr.readline())[1])
        publish_rows(settings, bars)
        publish_rows(settings, bars.tail(1).assign(close=-1.0))
        with Stream(settings) as s:
            s.publish([b"nonsense"])
        stored = ("stockpredict_stream_messages_total",)
        patience.wait_until(lambda: scrape(port).get(stored, 0) >= len(bars) + 2, child, every=0.2)
        notices = scrape(port)
        assert (
            notices["stockpredict_stream_rows_total", "lake", "new"] == len(bars)
            and notices["stockpredict_stream_quarantined_total",] == 1
        )
        assert (
            notices["stockpredict_stream_letters_total",] == 1
            and notices["stockpredict_stream_redelivered_total",] == 0
        )
        assert (
            notices["stockpredict_stream_pending", "lake"]
            == notices["stockpredict_stream_unread", "lake"]
            == 0
            and notices["stockpredict_stream_up",] == 1
        )
        age = time.time() - bars.event_time.max().timestamp()
        assert notices["stockpredict_stream_newest_age_seconds", "lake"] == pytest.approx(age, abs=60)
        first, _ = notices["stockpredict_stream_newest_age_seconds", "message"], time.sleep(1.2)
        assert scrape(port)["stockpredict_stream_newest_age_seconds", "message"] > first + 1, (
            "nothing came, so it grows older"
        )
        server.kill()
        notices = scrape(port)
        assert notices["stockpredict_stream_up",] == 0 and notices[
            "stockpredict_stream_rows_total", "lake", "new"
        ] == len(bars)
        server.start()
        child.send_signal(signal.SIGTERM)
        out, err = patience.communicate(child)
        assert child.returncode == 0 and json.loads(out)["lake_new"] == len(bars), err
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def test_the_service_tells_how_old_the_live_data_are_and_nothing_where_there_is_no_stream(settings):
    assert "stockpredict_data_age_seconds{" not in served(settings) and live_vitals(settings.storage) == {}
    bars = sample_bars(tickers=1, sessions=5)
    publish_rows(settings, bars)
    consume(settings, idle=0.05)
    notices = served(settings)
    age = float(re.search(r'stockpredict_data_age_seconds\{place="lake"\} (\S+)', notices)[1])
    assert age == pytest.approx(time.time() - bars.event_time.max().timestamp(), abs=60)
    assert 'stockpredict_data_age_seconds{place="message"}' in notices


def test_every_metric_of_the_alert_rules_in_the_guide_exists(settings):
    "A rule on a name that is not exported would never fire."
    publish_rows(settings, sample_bars(tickers=1, sessions=5))
    with Consumer(settings) as c, serve_metrics(settings, c.did, 0) as port:
        c.go(idle=0.05)
        names = {name for name, *_ in scrape(port)} | set(
            re.findall(r"^(stockpredict_\w+)", served(settings), re.M)
        )
    cells = json.loads(GUIDE.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    rules = "\n".join(re.findall(r"```yaml\n(.*?)```", text, re.S))
    asked = set(re.findall(r"stockpredict_\w+", "\n".join(re.findall(r"expr: (.*)", rules))))
    assert len(asked) >= 4 and asked <= names, asked - names


def test_messages_acknowledged_while_the_status_is_asked_for_no_longer_wait(settings, monkeypatch):
    publish_rows(settings, sample_bars(tickers=1, sessions=5))
    with Consumer(settings) as c:
        c.stream.join()
        c.stream.take(c.name)
    state = Stream.state

    def overtaken(self):
        lines = state(self)
        if lines["groups"][0]["pending"]:
            consume(settings, idle=0.05)
        return lines

    monkeypatch.setattr(Stream, "state", overtaken)
    assert stream_status(settings)["groups"][0]["pending"] == 5 and stream_status(settings)["waiting_s"] == 0


def test_what_was_taken_again_is_counted(settings):
    publish_rows(settings, sample_bars(tickers=1, sessions=5))
    with Consumer(settings) as c:
        c.stream.join()
        c.stream.take(c.name)
    assert consume(settings, idle=0.05).redelivered == 5


def test_small_files_are_merged_and_no_version_is_lost(settings, monkeypatch):
    monkeypatch.setattr("stockpredict.stream.consumer.MERGE_ABOVE", 5)
    bars = sample_bars(tickers=1, sessions=12)
    with Consumer(settings) as c:
        for k in range(len(bars)):
            publish_rows(settings, bars.iloc[[k]])
            c.go(idle=0.0)
        before, versions = c.lake.fingerprint(), c.lake.snapshots()
        middle = c.lake.bars(snapshot=int(versions.snapshot.iloc[-5]))
        assert (
            c.did.merged == 0
            and c.tidy()
            and c.did.merged == 1
            and c.did.files < 5 < MERGE_ABOVE
            and not c.tidy()
        )
        assert c.lake.fingerprint() == before == c.lake.verify()
        pd.testing.assert_frame_equal(c.lake.bars(snapshot=int(versions.snapshot.iloc[-5])), middle)
        with Lake(settings.storage) as other, other.writer():
            c._merged_files = -10
            assert c.tidy() is False, "another writer is active"


def test_the_quick_look_and_great_expectations_are_compared_after_the_fact(settings, monkeypatch):
    "A quick look that passes what it must not is noticed, said and counted."
    lines, bars = [], sample_bars(tickers=2, sessions=10)
    publish_rows(settings, bars)
    with Consumer(settings, tell=lines.append) as c:
        c.go(idle=0.05)
        assert len(c._cleared) and c.audit() == 0 and c.did.unsound == 0 and not c._cleared
        monkeypatch.setattr(
            "stockpredict.stream.consumer.suspects",
            lambda table, rules: pd.Series(False, table.index).to_numpy(),
        )
        wrong = bars.tail(1).assign(high=lambda f: f.close / 2)
        with Stream(settings) as s:
            s.publish(encode_messages(wrong.assign(source="liar")))
        c.go(idle=0.05)
        assert c.audit() == 1 and c.did.unsound == 1 and "range broken" in lines[0] and RULES

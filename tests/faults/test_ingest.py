"Ingest under kill -9, two writers, readers beside a writer, full disks, damaged files and bad deliveries."

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import patience
import warm
import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import BarsInvalid, BatchRefused, ColumnsUnmapped, EmptyUniverse, LakeLocked
from stockpredict.core.errors import LakeUnavailable, UnknownTicker
from stockpredict.core.settings import Settings
from stockpredict.ingest.ingest import ingest, load_bars
from stockpredict.ingest.plan import fetch_plan
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars

NOW = "2024-01-01T12:00Z"


@pytest.fixture(scope="module")
def market():
    return sample_bars(tickers=4, sessions=120)


def deliver(bars, folder, adj_close=True):
    "A vendor's file with these bars."
    folder.mkdir(parents=True, exist_ok=True)
    shown = bars.assign(date=bars.event_time.dt.strftime("%Y-%m-%d")).drop(
        columns=["event_time", "known_at", "source"]
    )
    if adj_close and "adj_close" not in shown:
        shown["adj_close"] = shown.close
    shown.to_csv(folder / "bars.csv", index=False)
    return folder


def settings_for(tmp_path, **more):
    return Settings().with_(
        **(
            {
                "storage.home": str(tmp_path / "home"),
                "data.source": "files",
                "data.files_path": str(tmp_path / "inbox"),
                "data.start": "2019-01-01",
            }
            | more
        )
    )


def state(s):
    with Lake(s.storage, read_only=True) as lake:
        return (
            lake.fingerprint(),
            lake.snapshot(),
            *(
                int(lake.rows(f"SELECT count(*) AS n FROM lake.{t}").n[0])
                for t in ("bars", "quarantine", "ingests")
            ),
        )


# ---- kill -9


def two_deliveries(inbox, market):
    """The first ends ten sessions early and has a bad row. The second has a split, a correction in the
    overlap and another bad row."""
    cut = np.sort(market.event_time.unique())[-10]
    ticker = market.ticker.iloc[-1]
    first = market[market.event_time < cut].copy()
    first.loc[first.index[5], "close"] = -1.0
    second = market.copy()
    old = second.ticker.eq(ticker) & (second.event_time < np.sort(market.event_time.unique())[-4])
    second["adj_close"] = second.close * np.where(old, 0.5, 1.0)
    recent = second.index[second.event_time.eq(np.sort(market.event_time.unique())[-12])]
    second.loc[recent[0], "volume"] += 100
    second.loc[second.index[-1], "high"] = 0.0
    return deliver(first, inbox / "first"), deliver(second, inbox / "second")


@pytest.mark.slow
@pytest.mark.parametrize("phase", [0, 1], ids=["into nothing", "into a lake"])
def test_killed_at_every_step_it_is_before_or_after_and_heals(tmp_path, market, phase):
    two_deliveries(tmp_path / "inbox", market)
    env = os.environ | {"OMP_NUM_THREADS": "1", "GX_ANALYTICS_ENABLED": "false"}
    script = Path(__file__).with_name("crash_child_ingest.py")
    out = warm.python(script, tmp_path, tmp_path / "inbox", phase, env=env)
    assert out.returncode == 0, out.stderr[-3000:]
    lines = [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]
    calm, before, steps = (lines[0][k] for k in ("calm", "before", "steps"))
    ends = [x for x in lines if "code" in x]
    killed = steps[steps.index("inspected") if phase else 0 :]
    assert {
        "begun",
        "bars written",
        "adjustments written",
        "quarantine written",
        "diary written",
        "committed",
    } <= set(killed)
    tried = [x["k"] for x in ends if "k" in x]
    assert len(tried) >= 3
    assert [x["step"] for x in lines if "step" in x] == [steps[k - 1] for k in tried if k <= len(steps)]
    assert [x["code"] for x in ends if "k" in x] == [-9 if k <= len(steps) else 0 for k in tried]
    assert (calm["ingests"], calm["quarantine"], calm["adjustments"]) == (
        (1, 1, 0) if phase == 0 else (2, 2, 1)
    )
    for x in ends:
        after = {k: v for k, v in x["after"].items() if k != "refused"}
        nothing = after.get("rows") == 0 and not after.get("ingests")
        assert after in (calm, before) or (phase == 0 and nothing), x
        assert x["again"] == 0 and x["healed"] == calm, x


def test_an_interrupted_write_leaves_the_session_usable(tmp_path, market):
    "The same lake object goes on after an exception inside the transaction."
    s = settings_for(tmp_path)

    def fail(name):
        if name == "quarantine written":
            raise KeyboardInterrupt

    lake = Lake(s.storage, on_step=fail)
    with pytest.raises(KeyboardInterrupt):
        lake.append(market, now=NOW)
    lake.step = lambda name: None
    assert lake.source_names() == [] and lake.append(market, now=NOW).rows_new == len(market)
    lake.close()


# ---- two writers


def hold(home, seconds, ready):
    with Lake(Settings().with_(**{"storage.home": home}).storage) as lake, lake.writer():
        ready.set()
        time.sleep(seconds)


def test_a_second_writer_is_told_who_is_first_and_a_crash_frees_the_lock(tmp_path, market):
    deliver(market, tmp_path / "inbox")
    s, spawn = settings_for(tmp_path), warm.server()
    ready = spawn.Event()
    holder = spawn.Process(target=hold, args=(s.storage.home, 300, ready))
    holder.start()
    patience.wait_until(ready.is_set, holder)
    with pytest.raises(LakeLocked, match=f"Process {holder.pid} has been writing to the lake since") as e:
        ingest(s, NOW)
    assert e.value.context["pid"] == holder.pid and "since" in e.value.context
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (s.storage.lake_dir / "writer.json").exists(), "the note of the dead stays, and does not matter"
    assert ingest(s, NOW).rows_new == len(market)


def test_who_waits_gets_the_lock(tmp_path, market):
    deliver(market, tmp_path / "inbox")
    s, spawn = settings_for(tmp_path), warm.server()
    ready = spawn.Event()
    holder = spawn.Process(target=hold, args=(s.storage.home, 1, ready))
    holder.start()
    patience.wait_until(ready.is_set, holder)
    assert ingest(s, NOW, wait=120).rows_new == len(market)
    holder.join()
    assert not (s.storage.lake_dir / "writer.json").exists()


# ---- readers beside a writer


def write_days(home, days, sign):
    bars = sample_bars(tickers=4, sessions=120)
    sessions = np.sort(bars.event_time.unique())[-days:]
    with Lake(Settings().with_(**{"storage.home": home}).storage) as lake:
        for day in sessions:
            sign.acquire()
            lake.append(bars[bars.event_time == day], now="2024-01-02T00:00Z")


def test_readers_are_never_blocked_and_never_see_half_a_batch(tmp_path, market):
    "Each batch is written while a read is under way: the reader gives the sign and reads on."
    s, spawn, days = settings_for(tmp_path), warm.server(), 12
    sessions = np.sort(market.event_time.unique())
    with Lake(s.storage) as lake:
        lake.append(market[market.event_time < sessions[-days]], now=NOW)
    allowed = {int((market.event_time <= t).sum()) for t in sessions[-days - 1 :]}
    sign = spawn.Semaphore(0)
    writer = spawn.Process(target=write_days, args=(s.storage.home, days, sign))
    writer.start()
    seen = set()
    with Lake(s.storage, read_only=True) as lake:
        while writer.is_alive():
            if sign.get_value() == 0:
                sign.release()
            seen.add(len(lake.bars(adjusted=False)))
        assert writer.exitcode == 0
        seen.add(len(lake.bars()))
    assert seen <= allowed and len(market) in seen and len(seen) > 2


# ---- disk and files


def write_on_a_full_disk(home, report):
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Lake(Settings().with_(**{"storage.home": home}).storage) as lake:
            lake.append(sample_bars(tickers=40, sessions=400), now="2024-01-02T00:00Z")
    except LakeUnavailable as e:
        report.put((e.code, str(e)))
    except BaseException as e:
        report.put(("other", repr(e)))
    else:
        report.put(("stored", ""))


def test_a_full_disk_is_a_clean_refusal(tmp_path, market):
    s, spawn = settings_for(tmp_path), warm.server()
    with Lake(s.storage) as lake:
        lake.append(market, now=NOW)
    before, report = state(s), spawn.Queue()
    child = spawn.Process(target=write_on_a_full_disk, args=(s.storage.home, report))
    child.start()
    patience.wait_until(lambda: not report.empty(), child)
    code, sentence = report.get()
    child.join()
    assert (
        code == "lake-unavailable"
        and "Nothing of the batch was stored" in sentence
        and "disk space" in sentence
    )
    assert state(s) == before
    with Lake(s.storage) as lake:
        assert lake.append(sample_bars(tickers=40, sessions=50).assign(source="more"), now=NOW).rows_new


def newest_file(s):
    return max((s.storage.lake_dir / "data").rglob("bars/*.parquet"), key=lambda p: p.stat().st_mtime_ns)


def test_a_damaged_file_is_named_and_the_version_before_it_still_reads(tmp_path, market):
    s, cut = settings_for(tmp_path), np.sort(market.event_time.unique())[-10]
    with Lake(s.storage) as lake:
        first = lake.append(market[market.event_time < cut], now=NOW)
        lake.append(market, now=NOW)
        assert lake.verify() == lake.fingerprint()
    broken = newest_file(s)
    broken.write_bytes(broken.read_bytes()[:-20])
    with Lake(s.storage, read_only=True) as lake:
        with pytest.raises(LakeUnavailable, match=broken.name):
            lake.bars()
        assert len(lake.bars(snapshot=first.snapshot)) == (market.event_time < cut).sum()
        assert lake.fingerprint(first.snapshot) == first.fingerprint


def test_a_silently_altered_file_does_not_pass_verification(tmp_path, market):
    s = settings_for(tmp_path)
    with Lake(s.storage) as lake:
        lake.append(market, now=NOW)
    path = newest_file(s)
    import duckdb

    with duckdb.connect() as con:  # the same rows, one close changed, in a file of its own making
        con.execute(f"CREATE TABLE t AS FROM '{path}'")
        con.execute("UPDATE t SET close = close + 0.01 WHERE rowid = 7")
        con.execute(f"COPY t TO '{path}' (FORMAT parquet)")
    with (
        Lake(s.storage, read_only=True) as lake,
        pytest.raises(LakeUnavailable, match=r"not what was written|cannot be read"),
    ):
        lake.verify()


def test_30_of_two_copies_the_truncated_one_is_refused_and_the_whole_one_reads(tmp_path, market):
    s = settings_for(tmp_path)
    with Lake(s.storage) as lake:
        mark = lake.append(market, now=NOW).fingerprint
    whole, cut = (
        s.with_(**{"storage.home": str(shutil.copytree(tmp_path / "home", tmp_path / name))})
        for name in ("whole", "cut")
    )
    path = newest_file(cut)
    path.write_bytes(path.read_bytes()[:-100])
    with Lake(cut.storage, read_only=True) as lake, pytest.raises(LakeUnavailable, match=path.name):
        lake.verify()
    with Lake(whole.storage, read_only=True) as lake:
        lake.verify()
        assert lake.fingerprint() == mark


def test_a_lake_that_was_moved_still_reads(tmp_path, market):
    s = settings_for(tmp_path)
    with Lake(s.storage) as lake:
        mark = lake.append(market, now=NOW).fingerprint
    (tmp_path / "home").rename(tmp_path / "elsewhere")
    moved = s.with_(**{"storage.home": str(tmp_path / "elsewhere")})
    with Lake(moved.storage) as lake:
        assert lake.verify() == mark
        assert lake.append(market.assign(close=market.close * 2), now=NOW).rows_corrected == len(market)


@pytest.mark.parametrize("damage", ["empty", "garbage"])
def test_a_broken_catalog_is_a_sentence(tmp_path, market, damage):
    s = settings_for(tmp_path)
    with Lake(s.storage) as lake:
        lake.append(market, now=NOW)
    (s.storage.lake_dir / "catalog.sqlite").write_bytes(b"" if damage == "empty" else b"not a database" * 100)
    with pytest.raises(LakeUnavailable):
        Lake(s.storage, read_only=True)


# ---- deliveries


def test_a_refused_batch_changes_nothing(tmp_path, market):
    s = settings_for(tmp_path)
    deliver(market, tmp_path / "inbox")
    ingest(s, NOW)
    before = state(s)
    for broken in (
        market.assign(close=0.0),
        market.assign(high=market.low * 0.5),
        market.assign(volume=-1.0),
    ):
        deliver(broken, tmp_path / "inbox")
        with pytest.raises(BatchRefused, match="Nothing of this batch was stored") as e:
            ingest(s, "2024-01-05T12:00Z", full=True)
        assert e.value.context["faulty"] == len(market)
    assert state(s) == before


@pytest.mark.parametrize(
    "text, error",
    [
        ("", BarsInvalid),
        ("<html><body>Bad gateway</body></html>", ColumnsUnmapped),
        ('{"Note": "25 requests per day"}', ColumnsUnmapped),
        ("ticker,date,close\nAAA,not a date,1\nAAA,neither,2\n", BarsInvalid),
        ("ticker,date,price_eod\nAAA,2019-01-02,1\n", ColumnsUnmapped),
        ('ticker,date,close\nAAA,2019-01-02\n"AAA', BarsInvalid),
        ("ticker,date,close\n';DROP TABLE bars,2019-01-02,1\n", BarsInvalid),
        (f"ticker,date,close\n{'A' * 10_000},2019-01-02,1\n", BarsInvalid),
    ],
)
def test_garbage_is_refused_in_a_sentence_and_the_lake_stays(tmp_path, market, text, error):
    s = settings_for(tmp_path)
    with Lake(s.storage) as lake:
        lake.append(market.assign(source="files"), now=NOW, asked_from="2019-01-01")
    before = state(s)
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "bars.csv").write_text(text)
    with pytest.raises(error) as e:
        ingest(s, NOW)
    assert e.value.fix and len(str(e.value)) < 1500
    assert state(s) == before


def test_bad_rows_go_to_quarantine_once_with_their_reason(tmp_path, market):
    s = settings_for(tmp_path, **{"data.quarantine_limit": 0.05})
    bad = market.astype({"close": object})
    bad.loc[bad.index[10], "close"] = "1.2.3"
    bad.loc[bad.index[20], "close"] = "inf"
    bad.loc[bad.index[30], "close"] = ""
    bad = pd.concat([bad, bad.iloc[[-1]].assign(close="0")])  # a broken copy of a bar in the overlap
    bad.loc[bad.index[40], "low"] = bad.high[bad.index[40]] * 2
    deliver(bad, tmp_path / "inbox")
    first, again = ingest(s, NOW), ingest(s, "2024-01-02T12:00Z", full=True)
    assert (first.rows_quarantined, again.rows_quarantined, again.batch) == (5, 0, "")
    assert ingest(s, "2024-01-02T12:00Z").rewritten == [], "a bad row does not rewrite the past"
    with Lake(s.storage, read_only=True) as lake:
        reasons = (
            lake.sql("SELECT reason, count(*) AS n FROM quarantine GROUP BY reason ORDER BY reason")
            .set_index("reason")
            .n.to_dict()
        )
        assert reasons == {"no close": 1, "price impossible; range broken": 3, "range broken": 1}
        assert np.isfinite(lake.bars().close).all()
    deliver(market, tmp_path / "inbox")  # the vendor mends its file
    assert ingest(s, "2024-01-03T12:00Z", full=True).rows_new == 4


def test_unknown_tickers_and_empty_universes_touch_nothing(tmp_path, market):
    deliver(market, tmp_path / "inbox")
    s = settings_for(tmp_path, **{"data.universe": ["AAA", "AAAB"]})
    with pytest.raises(UnknownTicker, match=r"AAAB.*Did you mean AAA"):
        ingest(s, NOW)
    assert not (tmp_path / "home").exists()
    (tmp_path / "inbox" / "bars.csv").write_text("ticker,date,close\n")
    with pytest.raises(EmptyUniverse):
        ingest(settings_for(tmp_path), NOW)
    deliver(market, tmp_path / "inbox")
    with pytest.raises(EmptyUniverse, match="no bar of the 4 requested tickers"):
        ingest(settings_for(tmp_path, **{"data.start": "2024-01-01"}), NOW)
    with pytest.raises(LakeUnavailable, match="stockpredict ingest"):
        load_bars(settings_for(tmp_path))


def test_day_by_day_and_at_once_end_in_the_same_lake(tmp_path, market):
    """An incremental ingest loses nothing: new bars, a dividend on a first new session, late bars,
    a new listing."""
    sessions, ticker = np.sort(market.event_time.unique()), market.ticker.iloc[0]
    whole = market.assign(
        adj_close=market.close
        * np.where(market.ticker.eq(ticker) & (market.event_time < sessions[-8]), 0.98, 1.0)
    )
    late = whole.ticker.eq(market.ticker.iloc[-1]) & (whole.event_time > sessions[-20])
    s = settings_for(tmp_path)
    for stop in (-30, -9, -8, -3):
        sent = whole[(whole.event_time <= sessions[stop]) & ~(late & (stop < -3))]
        factor = np.where(
            sent.ticker.eq(ticker) & (stop < -8), 0.98, 1.0
        )  # a vendor rescales all it ever lines when the dividend is paid
        deliver(sent.assign(adj_close=sent.adj_close / factor), tmp_path / "inbox")
        ingest(s, NOW)
    deliver(whole, tmp_path / "inbox")
    last = ingest(s, NOW)
    assert last.rows_fetched < 4 * 12 and last.rewritten == []
    once = settings_for(tmp_path, **{"storage.home": str(tmp_path / "once")})
    ingest(once, NOW)
    shown = ["ticker", "event_time", "open", "high", "low", "close", "volume"]
    pd.testing.assert_frame_equal(load_bars(once)[shown], load_bars(s)[shown])
    assert last.adjustments == 0
    with Lake(s.storage, read_only=True) as lake:
        assert np.allclose(lake.sql("SELECT factor FROM adjustments").factor, [0.98])
        asks = fetch_plan(lake, s, "files", ["AAA", "NEW"])
        assert asks[0] == ("2019-01-01", ["NEW"]) and asks[1][1] == ["AAA"] and asks[1][0] > "2019-05"


def test_an_earlier_start_fetches_the_earlier_history(tmp_path, market):
    deliver(market, tmp_path / "inbox")
    middle = str(pd.Timestamp(np.sort(market.event_time.unique())[60]).date())
    assert ingest(settings_for(tmp_path, **{"data.start": middle}), NOW).rows_new < len(market)
    s = settings_for(tmp_path)
    ingest(s, NOW)
    assert len(load_bars(s)) == len(market)
    assert ingest(s, NOW).rows_fetched < 40


def test_a_vendor_that_rescales_its_past_leaves_no_cliff(tmp_path, market):
    "After a split many vendors restate every close; the last few sessions alone would not fit the rest."
    sessions = np.sort(market.event_time.unique())
    s = settings_for(tmp_path)
    deliver(market[market.event_time <= sessions[-5]], tmp_path / "inbox")
    ingest(s, NOW)
    split = market.ticker.eq("AAA")
    halved = market.assign(
        **{c: market[c] * np.where(split, 0.5, 1.0) for c in ("open", "high", "low", "close")}
    )
    deliver(halved, tmp_path / "inbox")
    report = ingest(s, "2024-01-02T12:00Z")
    assert (
        report.rewritten == ["AAA"]
        and report.rows_corrected == (split & (market.event_time <= sessions[-5])).sum()
    )
    close = load_bars(s, ["AAA"]).close
    assert np.allclose(close, halved[split].close) and close.pct_change().abs().max() < 0.2
    before = load_bars(s, ["AAA"], end=sessions[-5], as_of="2024-01-01T18:00Z")
    assert np.allclose(before.close, market[split & (market.event_time <= sessions[-5])].close), (
        "seen from before, nothing has changed"
    )


def test_an_open_session_waits_and_comes_complete_the_next_day(tmp_path, market):
    s = settings_for(tmp_path)
    deliver(market, tmp_path / "inbox")
    noon = market.event_time.max() - pd.Timedelta(hours=3)
    during = ingest(s, noon)
    assert during.rows_quarantined == (market.event_time > noon).sum() and "not closed yet" in [
        c["rule"] for c in during.checks if c["failed"]
    ]
    assert load_bars(s).event_time.max() < noon
    assert ingest(s, noon + pd.Timedelta(days=1)).rows_new == during.rows_quarantined
    assert len(load_bars(s)) == len(market)


def test_two_sources_in_one_lake_never_mix(tmp_path, market):
    deliver(market, tmp_path / "inbox")
    files = settings_for(tmp_path)
    simulated = files.with_(
        **{
            "data.source": "simulated",
            "simulated.tickers": 5,
            "simulated.sessions": 60,
            "data.start": "2015-01-01",
        }
    )
    other = simulated.with_(**{"simulated.seed": 2})
    for s in (files, simulated, other):
        ingest(s, NOW)
    with pytest.raises(UnknownTicker):
        load_bars(files, ["SIM0"])
    assert set(load_bars(files).ticker) == set(market.ticker) and set(load_bars(simulated).ticker) == {
        f"SIM{i}" for i in range(5)
    }
    assert not np.allclose(load_bars(simulated).close.mean(), load_bars(other).close.mean())
    assert ingest(files, NOW).rows_new == 0
    with Lake(files.storage, read_only=True) as lake:
        assert lake.source() == "files", "the last one asked is the one shown"


def test_the_shared_market_goes_in_whole(shared, tmp_path):
    "482 companies, six years: known bad rows are out, genuine events in, adjusted closes the vendor's."
    path = shared / "us_daily_2015_2020.parquet"
    s = settings_for(tmp_path, **{"data.files_path": str(path), "data.start": "2015-01-01"})
    began = time.process_time()
    report = ingest(s, NOW)
    assert time.process_time() - began < 60
    sent = pd.read_parquet(path)
    assert (report.rows_fetched, report.rows_new, report.rows_quarantined, report.tickers) == (
        len(sent),
        len(sent) - 8 + 2,  # two pairs of copies agree on the close, which stays
        8,
        482,
    )
    with Lake(s.storage, read_only=True) as lake:
        bad = lake.sql(
            "SELECT ticker || ' ' || strftime(event_time, '%Y-%m-%d') AS bar, reason "
            "FROM quarantine ORDER BY 1"
        )
        assert set(map(tuple, bad.to_numpy())) == {
            ("CBOE 2020-01-10", "range broken"),
            ("CBS 2019-12-04", "price impossible"),
            ("DIS 2020-01-10", "range broken"),
            ("DXC 2018-06-01", "range broken"),
            ("STI 2019-12-06", "copies disagree"),
            ("VIAB 2019-12-04", "copies disagree"),
        }
        bars = lake.bars()
    assert (
        len(bars[(bars.ticker == "CBS") & (bars.event_time.dt.strftime("%Y-%m-%d") == "2019-12-04")]) == 1
    ), "the sound copy stays"
    for ticker, day, close in (("STI", "2019-12-06", 70.129997), ("VIAB", "2019-12-04", 24.219999)):
        agreed = bars[(bars.ticker == ticker) & (bars.event_time.dt.strftime("%Y-%m-%d") == day)]
        assert (len(agreed), agreed.close.round(6).tolist()) == (1, [close]), "what the copies agree on"
        assert agreed.volume.isna().all(), "what they contradict each other in"
    move = bars.close.groupby(bars.ticker).pct_change()
    assert {"AMD", "BHF"} <= set(bars.ticker[move.abs() > 0.4]), "jumps are news"
    theirs = sent.assign(day=pd.to_datetime(sent.date)).set_index(["ticker", "day"]).adj_close.astype(float)
    ours = (
        bars.assign(day=bars.event_time.dt.tz_localize(None).dt.normalize())
        .set_index(["ticker", "day"])
        .close
    )
    both = pd.concat(
        [theirs[~theirs.index.duplicated(keep=False)], ours], axis=1, keys=["theirs", "ours"]
    ).dropna()
    last = both.groupby("ticker").tail(1).reset_index("day", drop=True)
    ratio = both.ours / both.theirs / both.index.get_level_values("ticker").map(last.ours / last.theirs)
    assert (ratio - 1).abs().quantile(0.999) < 2e-3

"""The feature store: it equals the batch, and it never hands out a wrong value, whatever Redis does."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import patience
import pytest
import torch
from live_redis import Server

from stockpredict.core.errors import FeatureError, LakeUnavailable, UnknownName, UnknownTicker
from stockpredict.core.settings import load_settings
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import simulate
from stockpredict.sources.source import make_source
from stockpredict.catalogue import online_store
from stockpredict.catalogue.feature import compute
from stockpredict.catalogue.online_store import OnlineStore, fresh_until, unseal
from stockpredict.algebra.panel import Panel, equal_with_nan
from stockpredict.catalogue.feature_store import FeatureStore, read_features

NAMES = ["mom_21", "vol_20", "rsi_14", "rank_change_21", "volume_ratio_20", "dispersion_20"]
MONEY = ["amihud_20", "dollar_volume_20", "rank_money_20", "kyle_lambda_20", "money_lead_20", "up_money_10"]
MARKET = {
    "data.source": "simulated",
    "simulated.kind": "realistic",
    "simulated.tickers": 24,
    "simulated.sessions": 460,
    "data.start": "2000-01-01",
}


@pytest.fixture(scope="module")
def whole():
    "All bars of the market, and its sessions."
    source = make_source(load_settings(environ={}, overrides=MARKET))
    return source.fetch(source.tickers())


def cut(bars, a, b):
    days = np.sort(bars.event_time.unique())
    return bars[
        (bars.event_time >= days[a])
        & (bars.event_time < (days[b] if b < len(days) else days[-1] + pd.Timedelta("1D")))
    ]


@pytest.fixture(scope="module")
def template(whole, tmp_path_factory):
    "A lake with all but the last sixty sessions."
    home = tmp_path_factory.mktemp("template")
    settings = load_settings(environ={}, overrides=MARKET | {"storage.home": str(home)})
    with Lake(settings.storage) as lake:
        lake.append(cut(whole, 0, 400))
    return home


@pytest.fixture
def settings(template, tmp_path):
    shutil.copytree(template, tmp_path / "home")
    return load_settings(environ={}, overrides=MARKET | {"storage.home": str(tmp_path / "home")})


def append(settings, bars):
    with Lake(settings.storage) as lake:
        return lake.append(bars)


def batch(store, folder):
    "The same set on the newest snapshot, computed from nothing."
    other = FeatureStore(store.settings, store.names)
    other.folder = folder / f"batch{time.time_ns()}"
    done = other.materialise()
    assert done.kept == 0
    return other.frame()


def equal(a, b):
    "Same rows, same bits."
    assert list(a.columns) == list(b.columns) and len(a) == len(b)
    for c in a.columns:
        if a[c].dtype == "float32":
            assert np.array_equal(a[c].to_numpy().view("i4"), b[c].to_numpy().view("i4")), c
        else:
            assert (a[c] == b[c]).all(), c


# --- on disk


def test_new_sessions_cost_new_sessions_and_equal_the_batch(settings, whole, tmp_path):
    with FeatureStore(settings, NAMES) as store:
        store.materialise()
        for a, b in ((400, 401), (401, 402), (402, 415)):
            append(settings, cut(whole, a, b))
            done = store.materialise()
            assert done.sessions == b and done.rows - done.kept == len(cut(whole, a, b)), (
                "old rows were computed again"
            )
            assert done.loaded < 330 < b, "more bars were read than the look-back needs"
        equal(store.frame(), batch(store, tmp_path))
        assert store.materialise().since == ""


def test_a_correction_is_computed_again_from_its_session_on(settings, whole, tmp_path):
    with FeatureStore(settings, NAMES) as store:
        before = store.frame()
        old = cut(whole, 350, 351).iloc[[3]]
        append(
            settings,
            old.assign(
                close=old.close * 0.95, low=old.low * 0.95, known_at=old.known_at + pd.Timedelta("40D")
            ),
        )
        done = store.materialise()
        assert pd.Timestamp(done.since) == store.calendar.day_of(old.event_time)[0] and done.kept == len(
            cut(whole, 0, 350)
        )
        now = store.frame()
        equal(now, batch(store, tmp_path))
        early = now.event_time < old.event_time.iloc[0]
        equal(
            now[early].reset_index(drop=True),
            before[before.event_time < old.event_time.iloc[0]].reset_index(drop=True),
        )
        assert not now[~early][NAMES].equals(before[~early][NAMES]), (
            "the correction changed nothing, the test is empty"
        )


def test_a_dividend_leaves_the_past_as_it_is(settings, whole, tmp_path):
    "A payment on the newest session rewrites no older value, and the new ones see through it."
    bars = cut(whole, 400, 401)
    paid = bars.ticker.iloc[0]
    previous = cut(whole, 399, 400)
    both = pd.concat([previous, bars]).assign(adj_close=lambda f: f.close)
    both.loc[(both.ticker == paid) & (both.event_time == previous.event_time.iloc[0]), "adj_close"] *= 0.9
    both.loc[
        (both.ticker == paid) & (both.event_time == bars.event_time.iloc[0]),
        ["open", "high", "low", "close", "adj_close"],
    ] *= 0.9
    with FeatureStore(settings, NAMES + MONEY) as store:
        before = store.frame()
        assert append(settings, both).adjustments >= 1
        done = store.materialise()
        assert done.rows - done.kept == len(bars), "a dividend made old rows be computed again"
        now = store.frame()
        equal(now, batch(store, tmp_path))
        equal(now[now.event_time <= previous.event_time.iloc[0]].reset_index(drop=True), before)
        panel = store.panel(store.lake.snapshot())
        learned = Panel.from_bars(store.lake.bars(source=store.source), store.calendar)
        assert equal_with_nan(panel.money.values, learned.money.values), (
            "the store and the training know another money"
        )
        product = (learned.close * learned.volume).values
        assert not torch.allclose(product[:-1, 0], learned.money.values[:-1, 0], rtol=1e-3), (
            "nothing was paid, the test is empty"
        )
        kept = now.set_index(["event_time", "ticker"])[MONEY].unstack()
        for name, x in compute(learned, MONEY).items():
            np.testing.assert_allclose(
                kept[name][learned.tickers].to_numpy(), x.numpy(), rtol=1e-5, atol=1e-6, err_msg=name
            )
        plain = panel.close.frame()[paid]
        assert plain.iloc[-1] / plain.iloc[-2] == pytest.approx(
            bars.close.iloc[0] / previous[previous.ticker == paid].close.iloc[0], rel=1e-3
        )


def test_halts_listings_and_newcomers(settings, whole, tmp_path):
    "A ticker that pauses across the seam, one that comes back, one that is new."
    gone, new = whole.ticker.unique()[[1, 2]]
    with FeatureStore(settings, NAMES) as store:
        store.materialise()
        append(settings, cut(whole, 400, 405)[lambda f: f.ticker != gone])
        store.materialise()
        first = cut(whole, 405, 408)
        append(settings, pd.concat([first, first[first.ticker == new].assign(ticker="NEWBORN")]))
        done = store.materialise()
        assert done.kept > 0
        equal(store.frame(), batch(store, tmp_path))
        assert set(store.newest().index) == {*whole.ticker.unique(), "NEWBORN"}


def test_an_older_snapshot_stays_readable(settings, whole):
    with FeatureStore(settings, NAMES) as store:
        n, before = store.materialise().snapshot, store.frame()
        append(settings, cut(whole, 400, 402))
        assert len(store.frame()) > len(before)
        equal(store.frame(snapshot=n), before)


def test_a_damaged_manifest_or_a_lost_part_is_computed_again(settings):
    with FeatureStore(settings, NAMES) as store:
        right, n = store.frame(), store.lake.snapshot()
        (store.folder / f"{n}.json").write_text('{"parts": [')
        equal(store.frame(), right)
        (store.folder / store.manifest(n)["parts"][0]["file"]).unlink()
        equal(store.frame(), right)


def test_a_flipped_bit_in_any_file_of_the_store_is_never_read_as_a_value(settings):
    with FeatureStore(settings, NAMES) as store:
        right, rng = store.frame(), np.random.default_rng(0)
        for kind in ("2*.parquet", "presence-*.npz", "*.json"):
            path = max(store.folder.glob(kind), key=lambda p: p.stat().st_mtime_ns)
            content = bytearray(path.read_bytes())
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            path.write_bytes(content)
            equal(store.frame(), right)
        assert store.manifest(store.lake.snapshot())["rows"] == len(right)


def test_a_store_of_an_earlier_release_without_digests_is_read(settings):
    with FeatureStore(settings, NAMES) as store:
        right, n = store.frame(), store.lake.snapshot()
        old = store.manifest(n)
        old.pop("presence_digest")
        for part in old["parts"]:
            part.pop("sha256")
        (store.folder / f"{n}.json").write_text(json.dumps(old))
        assert store.manifest(n) == old and store.materialise().kept == len(right)
        equal(store.frame(), right)


def test_a_write_that_dies_shows_nothing(settings, monkeypatch):
    with FeatureStore(settings, NAMES) as store:
        monkeypatch.setattr(
            "stockpredict.catalogue.part_files._save_arrays",
            lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()),
        )
        with pytest.raises(KeyboardInterrupt):
            store.materialise()
        assert store.snapshots() == []
        monkeypatch.undo()
        assert len(store.frame()) and store.snapshots()


def test_other_code_other_features_other_dates_other_folder(settings, monkeypatch):
    key = FeatureStore(settings, NAMES).key
    assert FeatureStore(settings, NAMES).key == key
    assert FeatureStore(settings, NAMES[::-1]).key != key
    assert FeatureStore(settings.with_(**{"data.start": "2015-01-01"}), NAMES).key != key
    assert FeatureStore(settings.with_(**{"storage.reports": "elsewhere"}), NAMES).key == key
    monkeypatch.setattr("stockpredict.catalogue.code_fingerprint.np.__version__", "0")
    assert FeatureStore(settings, NAMES).key != key


def test_one_line(settings, whole):
    got = read_features(["SIM02", "SIM01"], "2016-01-04", "2016-01-29", names=["rsi_14"], settings=settings)
    assert list(got.columns) == ["ticker", "event_time", "known_at", "rsi_14"] and set(got.ticker) == {
        "SIM01",
        "SIM02",
    }
    assert (
        got.event_time.between("2016-01-04", "2016-01-30").all()
        and (got.known_at - got.event_time == pd.Timedelta("15min")).all()
    )
    with pytest.raises(UnknownTicker, match="Did you mean"):
        read_features("SIM1", names=["rsi_14"], settings=settings)
    with pytest.raises(UnknownName, match="rsi_14"):
        read_features(names=["rsi_15"], settings=settings)
    with pytest.raises(FeatureError, match="after the end"):
        read_features(None, "2016-02-01", "2016-01-01", ["rsi_14"], settings)
    assert len(read_features("SIM01", "1999-01-01", "1999-02-01", ["rsi_14"], settings)) == 0
    with pytest.raises(LakeUnavailable):
        read_features(settings=settings.with_(**{"storage.home": settings.storage.home + "-none"}))


# --- Redis


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path, on_port=True).start()
    yield server
    server.kill()


@pytest.fixture
def live(settings, server):
    return settings.with_(**{"store.redis_url": server.url, "store.timeout_ms": 1000})


@pytest.fixture
def online(live):
    with OnlineStore(FeatureStore(live, NAMES)) as o:
        yield o


def truth(settings):
    with FeatureStore(settings, NAMES) as store:
        return store.newest()


def right(value, table):
    "The value, or a failed assertion."
    want = table.loc[value.ticker]
    assert np.array_equal(value.values, want[NAMES].to_numpy("f4"), equal_nan=True)
    return value


def test_a_miss_is_computed_and_filled_for_all_readers(online, server, live):
    table = truth(live)
    assert right(online.get("SIM03"), table).origin == "computed"
    assert all(right(online.get(t), table).origin == "redis" for t in table.index)
    assert online.counts == dict(redis=len(table), memory=0, computed=1, refused=0)
    got = online.latest()
    assert np.array_equal(got[NAMES].to_numpy("f4"), table[NAMES].to_numpy("f4"), equal_nan=True)
    with OnlineStore(FeatureStore(live, NAMES)) as other:
        assert right(other.get("SIM03"), table).origin == "redis"
    with pytest.raises(UnknownTicker):
        online.get("NOBODY")


def test_nonsense_and_swapped_values_are_refused(online, server, live):
    table = truth(live)
    online.latest()
    snapshot = online.snapshot()

    def key(t):
        return online.key(snapshot, t)

    other = server.client.get(key("SIM05"))
    for bad in (
        b"",
        b"garbage",
        other[:-1],
        other + b"\0",
        bytes([other[0] ^ 1]) + other[1:],
        other[:-4] + b"\0\0\xc0\x7f",
        other,
    ):
        server.client.set(key("SIM04"), bad)
        right(online.get("SIM04"), table)
    server.client.delete(key("SIM04"))
    server.client.lpush(key("SIM04"), "a list")
    right(online.get("SIM04"), table)
    assert online.counts["refused"] == 7 and not online.problem
    forged = online_store.seal(b"not our secret", key("SIM04"), "2016-01-04", 9e9, np.ones(len(NAMES), "f4"))
    assert unseal(online.secret, key("SIM04"), forged, len(NAMES)) is None


@pytest.mark.parametrize("how", ["kill", "flush", "refuse writes"])
def test_losing_redis_changes_no_answer(online, server, live, how):
    table = truth(live)
    online.get("SIM01")
    if how == "kill":
        server.kill()
    if how == "flush":
        server.client.flushall()
    if how == "refuse writes":
        server.client.flushall()
        server.client.config_set("maxmemory", "1")
    assert {right(online.get(t), table).origin for t in table.index[:10]} <= {"memory", "redis"}
    with OnlineStore(FeatureStore(live, NAMES)) as fresh:
        right(fresh.get("SIM02"), table)


def test_a_redis_that_hangs_costs_one_timeout(settings):
    table = truth(settings)
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen(200)
        hung = settings.with_(
            **{"store.redis_url": f"redis://127.0.0.1:{trap.getsockname()[1]}/0", "store.timeout_ms": 50}
        )
        with OnlineStore(FeatureStore(hung, NAMES), pause=60.0) as o:
            right(o.get("SIM01"), table)
            for _ in range(200):
                right(o.get("SIM02"), table)
            trap.setblocking(False)
            tried = 0
            with contextlib.suppress(BlockingIOError):
                while trap.accept():
                    tried += 1
            assert 1 <= tried < 10, "each reader waited for a server that does not answer"
            assert o.problem


def test_redis_is_taken_up_again_when_it_comes_back(live, server):
    with OnlineStore(FeatureStore(live, NAMES), pause=0.05) as o:
        server.kill()
        o.get("SIM01")
        server.start()
        time.sleep(0.1)
        assert o.get("SIM01").origin == "memory"
        assert server.client.dbsize() > 20 and o.get("SIM01").origin == "redis"


def test_a_hundred_concurrent_misses_are_one_computation(online, server, live, monkeypatch):
    table, calls, newest = truth(live), [], FeatureStore.newest

    def counted(self, snapshot=None):
        calls.append(1)
        time.sleep(0.2)
        return newest(self, snapshot)

    monkeypatch.setattr(FeatureStore, "newest", counted)
    tickers, gate = [table.index[i % len(table)] for i in range(100)], threading.Barrier(100)

    def ask(t):
        gate.wait()
        return online.get(t)

    with ThreadPoolExecutor(100) as pool:
        got = list(pool.map(ask, tickers))
    assert len(calls) == 1
    for v in got:
        right(v, table)


PROCESS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stockpredict.core.settings import load_settings
from stockpredict.catalogue.online_store import OnlineStore
from stockpredict.catalogue.feature_store import FeatureStore
home, url, names, market = eval(sys.argv[1])
changes = {"storage.home": home, "store.redis_url": url, "store.timeout_ms": 5000}
settings = load_settings(environ={}, overrides=market | changes)
newest = FeatureStore.newest
def counted(self, snapshot=None):
    with open(Path(home) / "calls", "a") as f: f.write("1")
    return newest(self, snapshot)
FeatureStore.newest = counted
with OnlineStore(FeatureStore(settings, names)) as o:
    print("ready", flush=True); sys.stdin.readline()
    with ThreadPoolExecutor(34) as pool: got = list(pool.map(lambda i: o.get(f"SIM{i % 20:02d}"), range(34)))
    print(len(got), len({v.values.tobytes() for v in got}), flush=True)
"""


def test_two_processes_share_one_computation(live, server):
    arguments = repr((live.storage.home, server.url, NAMES, MARKET))
    run = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]
    for p in run:
        assert p.stdout.readline() == "ready\n"
    for p in run:
        p.stdin.write("go\n")
        p.stdin.flush()
    out = [patience.communicate(p)[0].splitlines()[-1].split() for p in run]
    assert [o[0] for o in out] == ["34"] * 2 and len({o[1] for o in out}) == 1
    assert (live.storage.home_dir / "calls").read_text() == "1"


def test_a_dead_lock_holder_holds_up_nobody_for_long(online, server, live):
    table = truth(live)
    server.client.set(online.key(online.snapshot(), "") + "lock", "a process that died", px=400)
    began = time.monotonic()
    assert right(online.get("SIM01"), table).origin == "computed"
    assert time.monotonic() - began > 0.3


def test_a_new_session_is_seen_and_the_old_value_is_not(live, server, whole):
    with OnlineStore(FeatureStore(live, NAMES), every=0.0) as o:
        old = o.get("SIM01")
        append(live, cut(whole, 400, 401))
        new = o.get("SIM01")
    assert new.session > old.session and new.snapshot > old.snapshot
    right(new, truth(live))


def test_values_live_until_the_next_session_can_be_known(live, server):
    day = pd.Timestamp(truth(live).attrs["session"])
    store = FeatureStore(live, NAMES)
    until = fresh_until(store.calendar, day, 15)
    assert until == store.calendar.close(store.calendar.offset(day, 1)).timestamp() + 900
    for now, word in ((until - 1, "ok"), (until, "stale")):
        with OnlineStore(FeatureStore(live, NAMES), clock=lambda now=now: now) as o:
            assert o.get("SIM01").freshness == word
    server.client.flushall()
    with OnlineStore(FeatureStore(live, NAMES), clock=lambda: until - 7200) as o:
        o.get("SIM01")
        assert 7195 <= server.client.ttl(o.key(o.snapshot(), "SIM01")) <= 7201
    # a Friday's value outlives the weekend; the day before Thanksgiving, the next close is a half-day's
    assert (
        fresh_until(store.calendar, "2019-11-27", 0) == pd.Timestamp("2019-11-29 18:00", tz="UTC").timestamp()
    )
    assert (
        fresh_until(store.calendar, "2019-11-22", 0) == pd.Timestamp("2019-11-25 21:00", tz="UTC").timestamp()
    )


def test_a_ticker_without_a_bar_is_missing_and_says_so(live, server, whole):
    append(live, cut(whole, 400, 401)[lambda f: f.ticker != "SIM01"])
    with OnlineStore(FeatureStore(live, NAMES), clock=lambda: 0.0) as o:
        for _ in range(2):
            assert (v := o.get("SIM01")).freshness == "missing" and np.isnan(v.values).all()
        assert v.origin == "redis" and o.latest(["SIM01", "SIM02"]).freshness.tolist() == ["missing", "ok"]


def test_the_embedded_server_serves_as_well(settings):
    table = truth(settings)
    with OnlineStore(FeatureStore(settings, NAMES)) as a, OnlineStore(FeatureStore(settings, NAMES)) as b:
        assert (
            right(a.get("SIM01"), table).origin == "computed"
            and right(b.get("SIM01"), table).origin == "redis"
        )


def test_a_zipf_load_is_answered_from_redis(online, server, live):
    table = truth(live)
    asked = np.random.default_rng(3).zipf(1.2, 600).clip(max=len(table)) - 1
    for i in asked:
        right(online.get(table.index[i]), table)
    assert online.counts["redis"] / len(asked) > 0.99


def test_the_simulation_itself(whole):
    "The market has what the tests above speak of: halts, late listings, several splits."
    present = simulate("realistic", tickers=24, sessions=460).bars.groupby("ticker").size()
    assert present.nunique() > 1 and len(whole.ticker.unique()) == 24


# --- facts, and keeping it small

FACTS = ["mom_21", "rate_change_21", "leverage", "news_count_5", "vix_change_5", "membership_age"]


def facts(settings, start, end, seed):
    "Rates, reports, headlines and a membership that became known between two days."
    rng = np.random.default_rng(seed)
    days = pd.date_range(start, end, freq="D", tz="UTC") + pd.Timedelta("20h")
    n = len(days)
    table = {
        "macro": pd.concat(
            [
                pd.DataFrame(
                    dict(
                        series=s,
                        event_time=days - pd.Timedelta("1D"),
                        known_at=days,
                        value=rng.lognormal(1, 0.1, n),
                    )
                )
                for s in ("DGS10", "DGS2", "VIXCLS")
            ]
        ),
        "news": pd.DataFrame(
            dict(
                ticker=[f"SIM{i:02d}" for i in rng.integers(0, 24, n)],
                hash=[f"{start}{i}" for i in range(n)],
                event_time=days,
                known_at=days,
                headline="Acme beats estimates",
            )
        ),
        "fundamentals": pd.concat(
            [
                pd.DataFrame(
                    dict(
                        ticker=[f"SIM{i:02d}" for i in range(24)],
                        item=item,
                        form="10-Q",
                        known_at=days[0],
                        event_time=days[0] - pd.Timedelta("40D"),
                        value=rng.lognormal(level, 0.1, 24),
                    )
                )
                for item, level in (("assets", 4), ("equity", 3))
            ]
        ),
        "members": pd.DataFrame(
            dict(
                index_name="sp500",
                ticker=[f"SIM{seed:02d}"],
                event_time=days[0],
                until=pd.NaT,
                known_at=days[0],
            )
        ),
    }
    with Lake(settings.storage) as lake:
        for name, frame in table.items():
            lake.add(name, frame)


def test_features_of_facts_are_kept_and_extended(settings, whole, tmp_path):
    last = cut(whole, 399, 400).event_time.iloc[0]
    facts(settings, "2015-01-01", last.date(), 1)
    with FeatureStore(settings, FACTS) as store:
        first = store.frame()
        assert all(first[n].notna().any() for n in FACTS), "a feature is never defined, the test is empty"
        append(settings, cut(whole, 400, 402))
        done = store.materialise()
        assert done.rows - done.kept == len(cut(whole, 400, 402))
        facts(settings, str(cut(whole, 401, 402).event_time.iloc[0].date()), "2017-03-01", 2)
        done = store.materialise()
        assert done.kept >= len(cut(whole, 0, 400)), (
            "facts of the last day made old sessions be computed again"
        )
        append(settings, cut(whole, 402, 405))
        store.materialise()
        equal(store.frame(), batch(store, tmp_path))
        before = store.frame()
        n = store.lake.snapshot()
        facts(settings, "2018-01-01", "2018-01-03", 3)
        assert store.lake.snapshot() > n and store.materialise().loaded == 0
        equal(store.frame(), before)
    with FeatureStore(settings.with_(**{"data.index": "nasdaq"}), FACTS) as other:
        assert other.key != store.key and other.frame().membership_age.isna().all(), (
            "no stock joined that index"
        )


def test_small_parts_are_joined_and_old_snapshots_forgotten(settings, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("stockpredict.catalogue.feature_store.MAX_PARTS", 4)
    with FeatureStore(settings, ["mom_21", "vol_20"]) as store:
        store.materialise()
        for a in range(400, 406):
            append(settings, cut(whole, a, a + 1))
            store.materialise()
        manifest = store.manifest(store.snapshots()[-1])
        assert len(manifest["parts"]) <= 5 and sum(p["rows"] for p in manifest["parts"]) >= manifest["rows"]
        equal(store.frame(), batch(store, tmp_path))
        early = store.snapshots()[0]
        equal(
            store.frame(snapshot=early),
            store.frame()
            .query("event_time <= @last", local_dict={"last": cut(whole, 399, 400).event_time.iloc[0]})
            .reset_index(drop=True),
        )
        right = store.frame()
        assert store.prune(1) > 5 and store.snapshots() == [manifest["snapshot"]]
        equal(store.frame(), right)

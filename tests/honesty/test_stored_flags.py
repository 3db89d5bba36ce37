"""Flags are facts of the lake: known from their own time on, corrected by later rows, stored with the bars
or not at all."""

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.core.errors import LakeUnavailable
from stockpredict.core.settings import Settings
from stockpredict.quality.corporate_actions import ALL_DETECTORS
from stockpredict.quality.scan import find_flags
from stockpredict.ingest.frames import add_frame
from stockpredict.ingest.ingest import ingest, load_bars
from stockpredict.lake.lake import Lake
from stockpredict.ingest.rescan import rescan_flags, stored_flags
from stockpredict.sources.simulate import sample_bars
from stockpredict.evaluate.label_mask import untrusted_bars
from stockpredict.algebra.panel import Panel

MONEY = ["open", "high", "low", "close"]
KEY = ["ticker", "event_time", "flag"]


@pytest.fixture(scope="module")
def market():
    return sample_bars(tickers=12, sessions=120)


def keys(flags):
    return set(map(tuple, flags[KEY].itertuples(index=False)))


def settings_for(place, **more):
    return Settings().with_(
        **(
            {
                "storage.home": str(place / "home"),
                "data.source": "files",
                "data.files_path": str(place / "inbox"),
                "data.start": "2017-01-01",
            }
            | more
        )
    )


def deliver(bars, place):
    (place / "inbox").mkdir(parents=True, exist_ok=True)
    shown = bars.assign(date=bars.event_time.dt.strftime("%Y-%m-%d")).drop(
        columns=["event_time", "known_at", "source"]
    )
    shown.assign(adj_close=shown.close).to_csv(place / "inbox" / "bars.csv", index=False)


def with_spike(market, at=90):
    hurt = market.copy()
    row = hurt.index[hurt.ticker == hurt.ticker.iloc[0]][at]
    hurt.loc[row, MONEY] *= 2.2
    return hurt, hurt.event_time[row]


def test_a_spike_is_known_only_when_the_next_bar_is(market, tmp_path):
    hurt, day = with_spike(market)
    deliver(hurt, tmp_path)
    s = settings_for(tmp_path)
    ingest(s, "2024-01-01T12:00Z")
    mine, after = hurt[hurt.ticker == hurt.ticker.iloc[0]], hurt.event_time[hurt.event_time > day].min()
    with Lake(s.storage, read_only=True) as lake:
        seen = [
            set(lake.flags(mine.ticker.iloc[0], as_of=t, start=day, end=day).flag)
            for t in (after - pd.Timedelta("1h"), after + pd.Timedelta("1h"))
        ]
        known = lake.bars(mine.ticker.iloc[0], after, after).known_at[0]
        flag = lake.flags(mine.ticker.iloc[0]).set_index("flag").loc["spike"]
    assert (
        "spike" not in seen[0]
        and "spike" in seen[1]
        and flag.known_at == known
        and not flag.usable
        and abs(flag.move - 1.2) < 0.3
    )


def test_day_by_day_finds_what_a_search_through_everything_finds_and_never_before_its_time(market, tmp_path):
    hurt, day = with_spike(market, 100)
    still = hurt.index[hurt.ticker == hurt.ticker.unique()[3]][95:112]
    hurt.loc[still, MONEY] = hurt.close[still[0]]
    s, days = settings_for(tmp_path), sorted(hurt.event_time.unique())
    hurt, last = hurt.assign(source="files", adj_close=hurt.close), -1
    with Lake(s.storage) as lake:
        for n in (90, *range(99, 104), *range(106, 119, 3), 119):
            batch = (
                hurt[(hurt.event_time <= days[n]) & (hurt.event_time > days[max(last - 3, 0)])]
                if last >= 0
                else hurt[hurt.event_time <= days[n]]
            )
            kept_rows = (
                lake.bars(source="files", end=batch.event_time.min() - pd.Timedelta("1h"))
                if last >= 0
                else None
            )
            now, last = days[n] + pd.Timedelta("1h"), n
            lake.append(
                batch,
                now=now,
                flags=find_flags(batch, stored=kept_rows, detectors=ALL_DETECTORS, before=True),
            )
        stored = lake.flags()
        history = lake.facts("flags", versions=True)
        raw = lake.bars(adjusted=False)
        assert lake.flags_complete() and (history.known_at >= history.event_time).all()
        for t in (days[100], days[101], days[110]):
            could = find_flags(
                raw[raw.event_time <= t].assign(adj_close=lambda b: b.close), detectors=ALL_DETECTORS
            )
            result = lake.flags(as_of=t + pd.Timedelta("2h"))
            assert keys(result[~result.usable.astype(bool)]) <= keys(could), (
                "no doubt is known before the bars that show it"
            )
        n = rescan_flags(lake, "files")
        again = lake.flags()

    def bad(f):
        return keys(
            f[
                ~f.usable
                & f.flag.isin(
                    ["spike", "frozen", "split missing", "repeated bar", "untraded", "unit changed"]
                )
            ]
        )

    assert bad(stored) == bad(again) and len(bad(again)) >= 10 and n < 20
    provisional = history[(history.event_time == day) & (history.ticker == hurt.ticker.iloc[0])]
    assert "spike" in set(provisional.flag)


def test_a_corrected_bar_loses_its_flag_and_the_past_keeps_it(market, tmp_path):
    hurt, _day = with_spike(market, 114)
    s, name = settings_for(tmp_path), hurt.ticker.iloc[0]
    deliver(hurt, tmp_path)
    ingest(s, "2024-01-01T12:00Z")
    deliver(market, tmp_path)
    report = ingest(s, "2024-02-01T12:00Z")
    with Lake(s.storage, read_only=True) as lake:
        then, now = (lake.flags(name, as_of=t) for t in ("2024-01-15", None))
        versions = lake.facts("flags", versions=True, ticker=name)
        assert lake.flags(name, withdrawn=True).withdrawn.any() and report.rows_corrected == 1
    assert not then.usable.all() and now.usable.all()
    assert (versions[versions.withdrawn].known_at == pd.Timestamp("2024-02-01T12:00Z")).all()
    panel = Panel.from_bars(load_bars(s))
    assert (
        not untrusted_bars(panel, flags=stored_flags(s)).any()
        and untrusted_bars(panel, flags=stored_flags(s, as_of="2024-01-15")).any()
    )


def test_a_batch_of_one_ticker_takes_nothing_back(market, tmp_path):
    hurt, _day = with_spike(market, 114)
    s = settings_for(tmp_path)
    deliver(hurt, tmp_path)
    ingest(s, "2024-01-01T12:00Z")
    before = stored_flags(s)
    ingest(s.with_(**{"data.universe": [hurt.ticker.iloc[0]]}), "2024-01-02T12:00Z", full=True)
    pd.testing.assert_frame_equal(before, stored_flags(s))


def test_a_snapshot_keeps_its_flags_and_labels_use_those(market, tmp_path):
    s = settings_for(tmp_path)
    deliver(market, tmp_path)
    first = ingest(s, "2024-01-01T12:00Z").snapshot
    with Lake(s.storage) as lake:
        day = market.event_time[50:51]
        odd = pd.DataFrame(
            dict(
                ticker=market.ticker.iloc[0],
                event_time=day,
                known_at=day,
                flag="spike",
                usable=False,
                move=0.5,
                sentence="Somebody said so.",
                withdrawn=False,
                source="files",
            )
        )
        lake.add("flags", odd)
        second = lake.snapshot()
    panel = Panel.from_bars(load_bars(s))
    got = [untrusted_bars(panel, flags=stored_flags(s, snapshot=n)) for n in (first, second)]
    assert torch.equal(
        got[1].nonzero() - got[0].nonzero() if got[0].any() else got[1].nonzero(), torch.tensor([[50, 0]])
    )


def test_bars_that_nobody_judged_are_searched_once_and_then_read(market, tmp_path):
    hurt, _day = with_spike(market)
    s = settings_for(tmp_path)
    with Lake(s.storage) as lake:
        lake.append(hurt.assign(source="files"), now="2024-01-01T12:00Z", asked_from="2017-01-01")
    assert stored_flags(s) is None
    deliver(hurt, tmp_path)
    ingest(s, "2024-01-02T12:00Z")
    assert "spike" in set(stored_flags(s).flag), "an ingest searches what was not searched before"
    with Lake(s.storage) as lake:
        lake.con.execute("ALTER TABLE lake.ingests DROP COLUMN flags")
    assert stored_flags(s) is None, "a lake from before flags were kept"
    with Lake(s.storage) as lake:
        assert rescan_flags(lake, "files") == 0 and lake.flags_complete()
    assert "spike" in set(stored_flags(s).flag)


@pytest.mark.parametrize("step", ["flags written", "diary written"])
def test_bars_and_flags_come_together_or_not_at_all(market, tmp_path, step):
    hurt, _day = with_spike(market)
    s = settings_for(tmp_path)
    deliver(hurt, tmp_path)

    def fail(name):
        if name == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(s, "2024-01-01T12:00Z", on_step=fail)
    with Lake(s.storage, read_only=True) as lake:
        assert lake.source_names() == [] and not lake.has_table("flags")
    ingest(s, "2024-01-01T12:00Z")
    assert len(stored_flags(s)) and stored_flags(s).known_at.notna().all()


def test_the_search_that_fails_changes_nothing(market, tmp_path):
    hurt, _day = with_spike(market)
    s = settings_for(tmp_path)

    def fail(name):
        if name == "flags written":
            raise KeyboardInterrupt

    with Lake(s.storage) as lake:
        lake.append(hurt.assign(source="files"), now="2024-01-01T12:00Z")
        lake.step = fail
        with pytest.raises(KeyboardInterrupt):
            rescan_flags(lake, "files")
    with Lake(s.storage) as lake:
        assert (
            not lake.flags_complete("files")
            and len(lake.flags(source="files")) == 0
            and rescan_flags(lake, "files") > 0
        )
    with Lake(s.storage, read_only=True) as lake, pytest.raises(LakeUnavailable, match="opened for reading"):
        rescan_flags(lake, "files")


def test_a_frame_of_ones_own_is_judged_too(market, tmp_path):
    hurt, _day = with_spike(market)
    s = settings_for(tmp_path)
    add_frame(hurt[["ticker", "event_time", "close"]], "mine", s, now="2024-01-01T12:00Z")
    with Lake(s.storage, read_only=True) as lake:
        assert lake.flags_complete("mine") and {"spike"} <= set(lake.flags(source="mine").flag)


def test_flags_of_real_bars_are_the_same_read_or_searched(shared, tmp_path):
    "Six years of some large companies, BHF's junk among them."
    raw = pd.read_parquet(shared / "us_daily_2015_2020.parquet")
    some = raw[raw.ticker.isin(["BHF", "AAPL", "SCG", "CBS", "MSFT", "KO", "XOM"])]
    s = settings_for(tmp_path, **{"data.quarantine_limit": 0.2})
    report = add_frame(some.rename(columns=dict(date="Date")), "mine", s, now="2024-01-01T12:00Z")
    with Lake(s.storage) as lake:
        bars = lake.bars(source="mine", adjusted=False)
        stored = lake.flags(source="mine")
        assert report.rows_new == len(bars) and (stored.known_at >= stored.event_time).all()
        whole = find_flags(bars.assign(adj_close=lake.bars(source="mine").close), detectors=ALL_DETECTORS)

        def local(f):
            return keys(
                f[f.flag.isin(["jump", "gap", "symbol reused", "untraded", "frozen", "unit changed"])]
            )

        assert (
            local(stored) == local(whole)
            and np.isfinite(stored.move).mean() > 0.9
            and not stored[stored.ticker == "BHF"].usable.all()
        )

"""A lake is opened once, where a command or a step begins, and handed on."""

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import VendorThrottled
from stockpredict.core.settings import Settings
from stockpredict.ingest.facts import FactRequest, fact_freshness, fact_requests, ingest_due_facts
from stockpredict.ingest.ingest import load_bars
from stockpredict.ingest.intraday import add_intraday, load_intraday
from stockpredict.ingest.rescan import stored_flags
from stockpredict.lake.lake import Lake, use_lake
from stockpredict.lake.store import VersionedStore
from stockpredict.ops.work import begin_work, lake_state, load_work
from stockpredict.sources.intraday_simulation import simulate_intraday
from stockpredict.sources.simulate import sample_bars
from stockpredict.sources.source import source_id
from stockpredict.train.refits import left_out_closes
from stockpredict.train.training_data import training_panel


@pytest.fixture
def settings(tmp_path):
    "A home with one source of the settings, one that was ingested after it, and a macro series."
    home = Settings().with_(**{"storage.home": str(tmp_path), "data.source": "simulated", "data.end": ""})
    bars = sample_bars(tickers=4, sessions=60)
    with Lake(home.storage) as lake:
        lake.append(bars.assign(source=source_id(home)), now="2024-01-01T12:00Z")
        lake.append(bars[:40].assign(source="my-prices"), now="2024-01-02T12:00Z")
        lake.add("macro", macro("DGS10"), source="fred")
    return home


def macro(series):
    "Two monthly values of a series."
    months = pd.to_datetime(["2024-01-01", "2024-02-01"], utc=True)
    return pd.DataFrame({"series": series, "event_time": months, "known_at": months, "value": [4.0, 4.1]})


@pytest.fixture
def opened(monkeypatch):
    "Counts how often a lake is really opened."
    count, connect = [], VersionedStore._open

    def counting(self):
        count.append(self.read_only)
        return connect(self)

    monkeypatch.setattr(VersionedStore, "_open", counting)
    return count


def test_a_lake_that_is_handed_over_is_the_same_and_stays_open(settings):
    with Lake(settings.storage, read_only=True) as lake:
        with use_lake(lake, settings.storage) as same:
            assert same is lake
        assert lake.con is not None and lake.snapshot() > 0
    with use_lake(None, settings.storage) as own:
        assert own.read_only
    assert own.con is None


def test_training_data_and_flags_read_one_open_lake(settings, opened):
    named = settings.with_(**{"features.names": ["ret_1", "term_spread"]})
    panel, snapshot = training_panel(named)
    assert opened == [True], "bars, facts and the snapshot come from one opening"
    with Lake(named.storage, read_only=True) as lake:
        again, same = training_panel(named, lake=lake)
        flags = stored_flags(named, lake=lake)
        bars = load_bars(named, lake=lake)
        state = lake_state(named, lake)
    assert opened == [True, True] and same == snapshot and len(again) == len(panel) == 60
    pd.testing.assert_frame_equal(bars, load_bars(named))
    assert (flags is None) == (stored_flags(named) is None) and state == lake_state(named)


def test_stocks_that_the_universe_leaves_out_are_read_from_the_open_lake(tmp_path, opened):
    twelve = sample_bars(tickers=12, sessions=30)
    names = sorted(twelve.ticker.unique())
    home = {"storage.home": str(tmp_path), "data.source": "simulated", "data.universe": names[:3]}
    few = Settings().with_(**home, **{"data.end": ""})
    with Lake(few.storage) as lake:
        lake.append(twelve.assign(source=source_id(few)), now="2024-01-01T12:00Z")
    opened.clear()
    with Lake(few.storage, read_only=True) as lake:
        panel, snapshot = training_panel(few, lake=lake)
        others = left_out_closes(few, panel, None, snapshot, lake)
    assert opened == [True] and others.shape == (30, 9)
    right = twelve[~twelve.ticker.isin(names[:3])].pivot(index="event_time", columns="ticker", values="close")
    assert np.allclose(others, right.to_numpy())


def test_due_facts_open_the_lake_once_and_without_its_lock(settings, opened):
    def while_another_writes(series):
        with Lake(settings.storage) as other, other.writer():  # another writes meanwhile
            other.add("macro", macro(f"{series} of another"), source="fred")
        return macro(series)

    series = ("A", "B", "C")
    requests = [FactRequest("macro", s, lambda s=s: while_another_writes(s), "fred") for s in series]
    rows = ingest_due_facts(settings, requests, "2024-03-01T12:00Z")
    assert rows.rows_new.tolist() == [2, 2, 2] and (rows.reason == "").all()
    assert len(opened) == 1 + 3, "one lake for the run, and the three of the other process"
    opened.clear()
    freshness = fact_freshness(settings).set_index("table")
    assert opened == [True] and freshness.rows["macro"] == 14
    opened.clear()
    assert not len(ingest_due_facts(settings, requests, "2024-03-01T13:00Z"))
    assert opened == [], "nothing is due, so no lake is opened"


def test_facts_of_a_new_home_need_no_lake_to_ask_for(tmp_path):
    new = Settings().with_(**{"storage.home": str(tmp_path)})
    assert not new.storage.lake_exists and not len(fact_freshness(new))
    assert [r.about for r in fact_requests(new, ["DGS10"])] == ["DGS10"]

    def refused():
        raise VendorThrottled("The vendor refuses more requests.", "Wait an hour.", reason="throttled")

    rows = ingest_due_facts(new, [FactRequest("macro", "DGS10", refused, "fred")], "2024-03-01T12:00Z")
    assert rows.reason.tolist() == ["throttled"]


def test_intraday_bars_are_read_from_a_lake_that_is_open(settings, opened):
    bars = simulate_intraday(sample_bars(tickers=1, sessions=2))
    began = bars.assign(event_time=bars.event_time - pd.Timedelta("5min"))
    report = add_intraday(began, "minutes", settings=settings, now="2024-01-01T12:00Z")
    opened.clear()
    with Lake(settings.storage, read_only=True) as lake:
        stored = load_intraday(settings, source="minutes", lake=lake)
    assert opened == [True] and len(stored) == report.rows_new == len(bars)


def test_the_state_of_the_lake_is_that_of_the_settings_source(settings):
    own = lake_state(settings)
    assert (own["source"], own["sessions"], own["tickers"]) == (source_id(settings), 60, 4)
    with Lake(settings.storage, read_only=True) as lake:
        assert lake.source() == "my-prices", "another source was ingested last"
        assert own["fingerprint"] == lake.fingerprint(source=own["source"]) != lake.fingerprint()
    question = begin_work(settings)
    assert load_work(question).ingested == own
    with Lake(settings.storage) as lake:
        lake.append(sample_bars(tickers=4, sessions=61).assign(source="my-prices"), now="2024-01-03T12:00Z")
    assert begin_work(settings) == question, "bars of another source are no news for this question"


def test_a_source_without_bars_shows_the_newest_one(settings):
    other = settings.with_(**{"data.source": "indices"})
    assert lake_state(other)["source"] == "my-prices"

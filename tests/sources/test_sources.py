"""Sources: real prices without a network, files in every usual form, simulated markets."""

import gzip
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from stockpredict.core.errors import (
    BarsInvalid,
    ColumnsUnmapped,
    EmptyUniverse,
    FileMissing,
    UnknownName,
    UnknownTicker,
)
from stockpredict.core.settings import Settings
from stockpredict.quality.gate import inspect_bars
from stockpredict.sources.bars import BAR_COLUMNS
from stockpredict.sources.simulate import sample_bars, simulate
from stockpredict.sources.source import Source, make_source, sources, universe
from stockpredict.testing.fake_vendors import FakeVendors

NOW = pd.Timestamp("2024-01-01", tz="UTC")


def given(**overrides):
    return make_source(Settings().with_(**{k.replace("__", "."): v for k, v in overrides.items()}))


def files(path, **more):
    return given(data__source="files", data__files_path=str(path), **more)


# ---- what every source promises


@pytest.mark.parametrize("name", ["sample", "indices", "files", "simulated", "vendors"])
def test_every_source_keeps_the_contract(tmp_path, name, request):
    sample_bars().drop(columns=["source", "known_at"]).to_csv(tmp_path / "bars.csv", index=False)
    more = dict(simulated__tickers=4, simulated__sessions=60)
    if name == "vendors":
        standin = FakeVendors(sample_bars()).start()
        request.addfinalizer(standin.stop)
        more = dict(
            data__universe=["BBB", "AAA"],
            storage__home=str(tmp_path / "home"),
            sources__base_urls=f"all={standin.url}",
            sources__budgets="yahoo=500/500",
        )
    s = given(data__source=name, data__files_path=str(tmp_path), **more)
    assert isinstance(s, Source) and s.label.endswith((".", "?")) and len(s.label) > 40 and s.id
    tickers = s.tickers()
    assert tickers == sorted(set(tickers)) and tickers
    bars = s.fetch(tickers[:2])
    days = bars.event_time.dt.strftime("%Y-%m-%d")
    assert (
        list(bars.columns[:9]) == BAR_COLUMNS
        and set(bars.ticker) == set(tickers[:2])
        and set(bars.source) == {s.id}
    )
    assert (bars.known_at >= bars.event_time + pd.Timedelta(minutes=15)).all()
    middle = sorted(days)[len(days) // 2]
    some = s.fetch(tickers[:2], middle, middle)
    assert set(some.event_time.dt.strftime("%Y-%m-%d")) == {middle}
    assert len(s.fetch(tickers, "2060-01-01")) == 0 and len(s.fetch([])) == 0
    quality = inspect_bars(s.fetch(tickers), s.calendar, now=NOW)
    assert quality.faulty == 0 and not quality.refused


def test_the_sample_is_what_the_library_ships(monkeypatch):
    from skfolio.datasets import load_sp500_dataset

    theirs, ours = load_sp500_dataset(), given(data__source="sample").bars()
    assert ours.ticker.nunique() == 20 and len(ours) == theirs.size
    wide = ours.pivot(index="event_time", columns="ticker", values="close")
    assert (
        wide.index.tz_convert("America/New_York").strftime("%Y-%m-%d") == theirs.index.strftime("%Y-%m-%d")
    ).all()
    assert np.array_equal(wide.to_numpy(), theirs[wide.columns].to_numpy())
    assert ours[["open", "high", "low", "volume"]].isna().all(None)
    assert "survivors" in given(data__source="sample").label


def test_indices_have_full_bars():
    bars = given(data__source="indices").bars()
    assert bars.ticker.unique().tolist() == ["IXIC", "SPX"] and bars[
        ["open", "high", "low", "close", "volume"]
    ].notna().all(None)
    spx = bars[bars.ticker == "SPX"].set_index(bars.event_time[bars.ticker == "SPX"].dt.strftime("%Y-%m-%d"))
    assert spx.close["2008-10-13"] == pytest.approx(1003.35, abs=0.01)


def test_no_source_touches_the_network_or_a_heavy_library():
    code = """
import socket, sys
def refuse(*a, **k): raise AssertionError('network')
socket.socket.connect = refuse
from stockpredict.core.settings import Settings
from stockpredict.sources.source import make_source
for name in ('sample', 'indices', 'simulated'):
    make_source(Settings().with_(**{'data.source': name, 'simulated.sessions': 30})).bars()
heavy = ('skfolio', 'arch', 'sklearn', 'matplotlib', 'great_expectations', 'torch')
print([m for m in heavy if m in sys.modules])
"""
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_a_simulated_market_is_its_settings():
    one = given(
        data__source="simulated", simulated__kind="realistic", simulated__tickers=6, simulated__sessions=90
    )
    created = simulate("realistic", 6, 90, one.settings.simulated.rank_ic, 1).bars
    pd.testing.assert_frame_equal(
        one.bars().drop(columns=["source", "stated"]),
        created.drop(columns="source").sort_values(["ticker", "event_time"], ignore_index=True),
    )
    ids = {
        given(data__source="simulated", **more).id
        for more in ({}, {"simulated__seed": 2}, {"simulated__kind": "planted"}, {"simulated__tickers": 61})
    }
    assert len(ids) == 4 and one.id.startswith("simulated-realistic-")


def test_unknown_sources_and_tickers_get_near_ones():
    with pytest.raises(UnknownName, match="Did you mean sample"):
        given(data__source="smaple")
    with pytest.raises(UnknownTicker, match=r"APPL.*Did you mean AAPL"):
        universe(Settings().with_(**{"data.universe": ["MSFT", "APPL"]}))
    with pytest.raises(BarsInvalid, match="is not a ticker"):
        universe(Settings().with_(**{"data.universe": ["'; DROP"]}))
    assert universe(Settings().with_(**{"data.universe": ["xom", "AAPL"]})) == ["XOM", "AAPL"]
    assert universe(Settings()) == given(data__source="sample").tickers()
    assert {"sample", "indices", "files", "simulated", "vendors"} <= set(sources)


# ---- files


def table(**more):
    frame = pd.DataFrame(
        dict(
            Symbol=["AAA", "AAA", "BBB"],
            Date=["2020-01-02", "2020-01-03", "2020-01-03"],
            Open=[1.0, 2, 3],
            High=[2.0, 3, 4],
            Low=[0.5, 1, 2],
            Close=[1.5, 2, 3],
            Volume=[10, 20, 30],
        )
    )
    return frame.assign(**more)


def plain(bars):
    return bars.drop(columns=["source"]).reset_index(drop=True)


def test_the_same_table_in_every_form_is_the_same_bars(tmp_path):
    t = table()
    t.to_csv(tmp_path / "a.csv", index=False)
    expected = plain(files(tmp_path / "a.csv").bars())
    assert len(expected) == 3 and expected.event_time[0] == pd.Timestamp("2020-01-02 21:00Z")
    (tmp_path / "bom.csv").write_text("\ufeff" + t.to_csv(index=False), encoding="utf-8")
    t.to_csv(tmp_path / "semi.csv", index=False, sep=";")
    t.to_csv(tmp_path / "tab.csv", index=False, sep="\t")
    gzip.open(tmp_path / "zip.csv.gz", "wt").write(t.to_csv(index=False))
    t.to_parquet(tmp_path / "text.parquet", index=False)
    t.assign(Date=pd.to_datetime(t.Date).dt.date).to_parquet(tmp_path / "date.parquet", index=False)
    t.assign(Date=pd.to_datetime(t.Date)).set_index("Date").to_parquet(tmp_path / "index.parquet")
    t.assign(Date=pd.to_datetime(t.Date)).set_index(["Symbol", "Date"]).to_parquet(tmp_path / "two.parquet")
    t.assign(Date=[f"{d}T16:00:00-05:00" for d in t.Date]).to_csv(tmp_path / "zoned.csv", index=False)
    t.sample(frac=1, random_state=1).to_csv(tmp_path / "mixed.csv", index=False)
    for p in sorted(tmp_path.iterdir()):
        pd.testing.assert_frame_equal(plain(files(p).bars()), expected, obj=p.name)


def test_a_folder_of_one_file_a_ticker(tmp_path):
    for name, part in table().groupby("Symbol"):
        part.drop(columns="Symbol").to_csv(tmp_path / f"{name.lower()}.csv", index=False)
    table().query("Symbol == 'AAA'").assign(Symbol="ZZZ").to_parquet(tmp_path / "column-wins.parquet")
    (tmp_path / ".hidden.csv").write_text("x")
    (tmp_path / "readme.txt").write_text("x")
    bars = files(tmp_path).bars()
    assert bars.groupby("ticker").size().to_dict() == {"AAA": 2, "BBB": 1, "ZZZ": 2}


def test_columns_under_other_names(tmp_path):
    t = table().rename(columns=dict(Symbol="Paper", Date="Dag", Close="Slot"))
    t.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ColumnsUnmapped, match="files_columns"):
        files(tmp_path / "a.csv").bars()
    mapped = {"ticker": "Paper", "event_time": "Dag", "close": "Slot"}
    assert files(tmp_path / "a.csv", data__files_columns=mapped).bars().close.tolist() == [1.5, 2, 3]
    with pytest.raises(ColumnsUnmapped, match="did you mean Slot"):
        files(tmp_path / "a.csv", data__files_columns=mapped | {"close": "Slott"}).bars()


def test_tickers_that_look_like_something_else(tmp_path):
    names = ["NA", "TRUE", "0700", "NAN", "1E5", "brk.b", " aapl "]
    pd.DataFrame(dict(ticker=names, date="2020-01-02", close=["1", "2", "3", "4", "5", "N/A", "6"])).to_csv(
        tmp_path / "a.csv", index=False
    )
    bars = files(tmp_path / "a.csv").bars().set_index("ticker").close
    assert sorted(bars.index) == sorted(["NA", "TRUE", "0700", "NAN", "1E5", "BRK-B", "AAPL"]) and np.isnan(
        bars["BRK-B"]
    )


def test_when_a_row_says_when_it_was_known(tmp_path):
    t = pd.DataFrame(
        dict(
            ticker="AAA",
            date=["2020-01-02", "2020-01-02", "2020-01-03"],
            close=[1.0, 1.1, 2.0],
            as_of=["2020-01-02", "2020-01-03", "2020-01-06T08:00:00-05:00"],
        )
    )
    t.to_csv(tmp_path / "a.csv", index=False)
    known = files(tmp_path / "a.csv").bars().known_at.tolist()
    assert known == [
        pd.Timestamp(x) for x in ("2020-01-02 21:15Z", "2020-01-03 21:15Z", "2020-01-06 13:00Z")
    ], "a day means after that day's close"
    t.rename(columns=dict(as_of="seen")).to_parquet(tmp_path / "b.parquet")
    assert (
        files(tmp_path / "b.parquet", data__files_columns={"known_at": "seen"}).bars().known_at.tolist()
        == known
    )
    t.assign(as_of=pd.to_datetime(t.date).dt.date).to_parquet(tmp_path / "c.parquet")
    assert files(tmp_path / "c.parquet").bars().known_at[2] == pd.Timestamp("2020-01-03 21:15Z")
    t.assign(as_of="").to_csv(tmp_path / "d.csv", index=False)
    assert files(tmp_path / "d.csv", data__lake_bars_lag_minutes=60).bars().known_at[0] == pd.Timestamp(
        "2020-01-02 22:00Z"
    )


def test_what_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(FileMissing, match="files_path"):
        files(tmp_path / "none.csv").bars()
    with pytest.raises(FileMissing, match="no CSV or Parquet"):
        files(tmp_path).bars()
    table().to_parquet(tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    for name, body in (
        ("cut.parquet", whole[:-30]),
        ("text.parquet", b"<html>"),
        ("empty.parquet", b""),
        ("wrong.csv.gz", b"no gzip"),
    ):
        (tmp_path / name).write_bytes(body)
        with pytest.raises(BarsInvalid, match=name):
            files(tmp_path / name).bars()
        with pytest.raises(BarsInvalid, match=name):
            files(tmp_path).bars()
        (tmp_path / name).unlink()
    (tmp_path / "data.xlsx").write_bytes(b"x")
    with pytest.raises(BarsInvalid, match="neither CSV nor Parquet"):
        files(tmp_path / "data.xlsx").bars()
    (tmp_path / "header.csv").write_text("ticker,date,close\n")
    with pytest.raises(EmptyUniverse):
        universe(files(tmp_path / "header.csv").settings)


def test_rows_outside_the_days_of_the_settings_are_counted(tmp_path):
    table().to_csv(tmp_path / "a.csv", index=False)
    source = files(tmp_path / "a.csv", data__start="2020-01-03")
    sentences = []
    source.collect([("2020-01-03", source.tickers())], on_step=sentences.append)
    early = (table().Date < "2020-01-03").sum()
    assert early and sentences == [
        f"{early} before [data] start 2020-01-03 of {len(table())} rows are not used."
    ]
    sentences.clear()
    source = files(tmp_path / "a.csv", data__start="2000-01-03")
    source.collect([("2000-01-03", source.tickers())], on_step=sentences.append)
    assert sentences == []


def test_rows_with_a_malformed_ticker_reach_the_gate_once(tmp_path):
    odd = pd.concat([table(), table().tail(2).assign(Symbol="K O")], ignore_index=True)
    odd.to_csv(tmp_path / "a.csv", index=False)
    source = files(tmp_path / "a.csv", data__start="2000-01-03")
    tickers = source.tickers()
    assert "?'K O'" not in tickers
    bars = source.collect([("2000-01-03", tickers[:1]), ("2000-01-03", tickers[1:])])
    assert len(bars) == len(odd)
    assert (inspect_bars(bars, limit=1, now=NOW).bad.reason == "ticker malformed").sum() == 2

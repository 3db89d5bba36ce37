"""The same market through SQLite and a folder, and through PostgreSQL, S3 and Dask; a folder in parts."""

import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from live_postgres import postgres_programs

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import scale

from stockpredict.core.errors import BarsInvalid, BatchRefused
from stockpredict.core.settings import Settings
from stockpredict.ingest.ingest import ingest, load_bars
from stockpredict.lake.lake import Lake
from stockpredict.sources.simulate import sample_bars
from stockpredict.sources.source import Files


def test_a_market_through_postgres_s3_and_dask_ends_in_the_same_hashes(tmp_path, monkeypatch):
    if postgres_programs() is None and not os.environ.get("CI"):
        pytest.skip("PostgreSQL's programs are not installed; .ci/services installs them.")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "")  # put back after the test
    own = {"validation.first_train": 300, "features.names": ["ret_1", "mom_5"]}
    (local, shared), same = scale.compare(tmp_path, 12, 2, own, scale.do_step)
    assert same
    assert set(scale.identity(local)) == set(scale.identity(shared)) and all(scale.identity(local).values())
    assert next(row["answers"] for row in shared["steps"] if row["step"] == "predict") > 0
    assert local["bytes"]["lake"] > 0 and not list(
        (tmp_path / "distributed").rglob("*/lake/data/**/*.parquet")
    )


@pytest.fixture
def folder(tmp_path):
    bars = sample_bars(tickers=12, sessions=60).rename(columns={"event_time": "date"})
    place = tmp_path / "bars"
    place.mkdir()
    for number, names in enumerate(("S000 S001 S002", "S003 S004", "S005 S006 S007 S008", "S009 S010 S011")):
        rows = bars[bars.ticker.isin(names.split())]
        rows[["ticker", "date", "open", "high", "low", "close", "volume"]].to_parquet(
            place / f"{number}.parquet"
        )
    return place


def test_a_large_folder_is_ingested_in_parts_with_the_same_fingerprint(folder, tmp_path, monkeypatch):
    def filled(name, most):
        monkeypatch.setattr(Files, "most_rows", most)
        changes = {"storage.home": str(tmp_path / name), "data.source": "files"}
        settings = Settings().with_(**changes, **{"data.files_path": str(folder)})
        return settings, ingest(settings, now="2020-01-01T12:00Z")

    whole, together = filled("whole", 10**6)
    parts, apart = filled("parts", 300)
    with Lake(parts.storage, read_only=True) as lake:
        batches = lake.sql("SELECT count(*) AS n FROM ingests").n[0]
    assert batches > 1
    assert (apart.rows_new, apart.fingerprint) == (together.rows_new, together.fingerprint)
    pd.testing.assert_frame_equal(load_bars(parts), load_bars(whole))
    again = ingest(parts, now="2020-01-02T12:00Z")
    assert (again.rows_new, again.batch, again.fingerprint) == (0, "", apart.fingerprint)


def test_what_is_gone_from_one_part_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Files, "most_rows", 300)
    changes = {"storage.home": str(tmp_path / "home"), "data.source": "files", "data.files_path": str(folder)}
    settings = Settings().with_(**changes)
    ingest(settings, now="2020-01-01T12:00Z")
    rows = pd.read_parquet(folder / "2.parquet")
    rows[rows.ticker != "S006"].to_parquet(folder / "2.parquet")
    report = ingest(settings, now="2020-01-02T12:00Z")
    assert [row["ticker"] for row in report.no_longer_sent] == ["S006"]


def test_a_bad_file_in_a_later_part_leaves_the_earlier_parts_and_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Files, "most_rows", 300)
    changes = {"storage.home": str(tmp_path / "home"), "data.source": "files", "data.files_path": str(folder)}
    settings = Settings().with_(**changes)
    file = folder / "3.parquet"
    intact, rows = file.read_bytes(), pd.read_parquet(file)
    rows.assign(close=-1.0).to_parquet(file)
    with pytest.raises(BatchRefused, match=r"What came before it is stored: [\d,]+ bars \(b000001") as e:
        ingest(settings, now="2020-01-01T12:00Z")
    stored = load_bars(settings)
    assert f"{len(stored):,} bars" in e.value.fix and not set(rows.ticker) & set(stored.ticker)
    with Lake(settings.storage, read_only=True) as lake:
        version = lake.snapshot()
        assert lake.sql("SELECT sum(rows_new) AS n FROM ingests").n[0] == len(stored)
    with pytest.raises(BatchRefused, match="Nothing of this batch was stored") as e:
        ingest(settings, now="2020-01-01T12:00Z")
    assert "What came before" not in e.value.fix  # nothing new came before it this time
    with Lake(settings.storage, read_only=True) as lake:
        assert lake.snapshot() == version
    file.write_bytes(intact)
    report = ingest(settings, now="2020-01-01T12:00Z")
    monkeypatch.setattr(Files, "most_rows", 10**6)
    whole = ingest(settings.with_(**{"storage.home": str(tmp_path / "whole")}), now="2020-01-01T12:00Z")
    assert (report.rows_new, report.fingerprint) == (whole.rows_new - len(stored), whole.fingerprint)


def test_a_file_that_was_cut_is_named_whether_the_folder_is_large_or_not(folder, tmp_path, monkeypatch):
    changes = {"storage.home": str(tmp_path / "home"), "data.source": "files", "data.files_path": str(folder)}
    file = folder / "1.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    for most in (300, 10**6):
        monkeypatch.setattr(Files, "most_rows", most)
        with pytest.raises(BarsInvalid, match=r"1\.parquet cannot be read"):
            ingest(Settings().with_(**changes), now="2020-01-01T12:00Z")

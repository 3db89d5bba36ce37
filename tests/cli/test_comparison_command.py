"""`stockpredict compare` from a file of bars to a table with a hash, and its refusals."""

import hashlib
import json
from pathlib import Path

import pytest
from stockpredict.cli.console import SettingsOptions
from stockpredict.cli.main import app
from stockpredict.core.errors import StockpredictError
from stockpredict.sources.simulate import sample_bars
from stockpredict.train.comparison import FILES, read_comparison
from typer.testing import CliRunner

SMALL = {
    "features.names": "ret_1 vol_20",
    "validation.first_train": 200,
    "validation.folds": 2,
    "validation.horizons": "1",
}
MODELS = ["mean", "zero", "ewma", "log_har", "ridge"]


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    "A file of simulated bars, with the columns that a vendor gives."
    frame = sample_bars(tickers=8, sessions=360, seed=3)
    place = tmp_path_factory.mktemp("bars") / "bars.csv"
    frame.to_csv(place, index=False)
    return place


def compare(folder, data, *more):
    "The command, with a folder of its own."
    changes = [w for k, x in SMALL.items() for w in ("--set", f"{k}={x}")]
    words = ["compare", "--data", str(data), "--out", str(folder), "--models", ",".join(MODELS), "--json"]
    return CliRunner().invoke(app, [*words, *more, *changes], obj=SettingsOptions())


@pytest.fixture(scope="module")
def printed(bars, tmp_path_factory):
    "The folder of a comparison, and what the command printed."
    folder = tmp_path_factory.mktemp("first")
    done = compare(folder, bars)
    assert done.exit_code == 0, done.output + repr(done.exception)
    return folder, json.loads(done.stdout)


def test_every_head_stands_in_the_table_with_intervals_and_p_values(printed):
    folder, answer = printed
    table = read_comparison(folder)
    assert len(answer["table"]) == len(table) > 0
    assert set(table["head"]) == {"direction", "volatility", "intervals"}
    for head, part in table.groupby("head"):
        judged = part[part.low.notna() & part.p.notna()]
        assert len(judged), head
        assert judged.value.between(judged.low, judged.high).all(), head
        assert judged.p.between(0, 1).all(), head
    assert {"mean", "ridge"} <= set(table[table["head"] == "direction"].model)
    assert {"ewma", "log_har"} <= set(table[table["head"] == "volatility"].model)
    assert table[table.value.isna()].p.isna().all()  # without a value there was no test
    ranks = table[table.measure == "rank IC"]
    assert (ranks.p.isna() == (ranks.against == "0, claims nothing")).all()
    gaps = table[table.measure.str.startswith("QLIKE gap")]
    assert "EWMA 0.94" in set(gaps.against) and not (gaps.model == gaps.against).any()


def test_the_printed_hash_is_that_of_the_files_and_comes_again(printed, bars, tmp_path):
    folder, answer = printed
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]
    lines = [f"{digest}  {name}" for digest, name in zip(digests, FILES, strict=True)]
    assert (folder / "comparison.sha256").read_text().splitlines() == lines
    assert answer["sha256"] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    again = compare(tmp_path, bars)
    assert json.loads(again.stdout)["sha256"] == answer["sha256"]
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("part", ["path", "calendar"])
def test_a_wrong_path_or_calendar_ends_in_a_sentence_with_a_next_step(bars, tmp_path, part):
    missing = bars.parent / "absent.csv"
    data, more = (missing, []) if part == "path" else (bars, ["--calendar", "XNOPE"])
    done = compare(tmp_path, data, *more)
    assert done.exit_code != 0 and isinstance(done.exception, StockpredictError), repr(done.exception)
    error = done.exception
    assert ("absent.csv" if part == "path" else "XNOPE") in str(error) and error.code and error.fix
    assert not (tmp_path / "comparison.sha256").exists()


def test_the_recorded_comparison_on_real_stocks_is_whole_and_says_what_its_page_says():
    "benchmarks/results/comparison: volatility against every rival, and coverage by tercile; 0.1 CPU s."
    table = read_comparison(Path(__file__).parents[2] / "benchmarks" / "results" / "comparison")
    t = table[(table.horizon == 1) & (table.model == "log_har")].set_index(["measure", "against"])
    for proxy in ("squared returns", "ranges"):
        for rival in ("EWMA 0.94", "garch", "har"):
            gap = t.loc[(f"QLIKE gap by {proxy}", rival)]
            assert gap.high < 0 and gap.p < 0.001, (proxy, rival)
    assert abs(t.loc[("90% held, all", "stated")].value - 0.9) < 0.01
    for third in ("calm", "middle", "wild"):
        assert abs(t.loc[(f"90% held, {third}", "stated")].value - 0.9) < 0.02, third
    ranks = table[(table.measure == "rank IC") & (table.model != "mean")]
    assert ranks[["low", "high"]].notna().all(axis=None) and (ranks.p > 0.05).all()

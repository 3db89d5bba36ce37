"""The whole path on markets whose answer is known, and on real prices: one command each."""

import json

import pandas as pd
import pytest
import warm

from stockpredict.ops.pipeline import SMALL


def retrain(root, place, **changes):
    "What `stockpredict retrain --json` says in a home of its own."
    changes = (
        SMALL | {"storage.home": str(place / "home"), "storage.reports": str(place / "reports")} | changes
    )
    asked = [
        x for k, v in changes.items() for x in ("--set", f"{k}={','.join(v) if isinstance(v, list) else v}")
    ]
    done = warm.stockpredict("retrain", "--json", "--no-pages", *asked, cwd=root)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout)


def verdict(place):
    return json.loads(next((place / "home" / "work").glob("*/steps/judge.json")).read_text())


@pytest.mark.parametrize("kind, decision", [("null", "hold"), ("planted", "promote")])
def test_the_flow_finds_what_is_there_and_nothing_else(root, tmp_path, self_tested, kind, decision):
    self_tested(tmp_path / "home")
    retrain(
        root,
        tmp_path,
        **{
            "simulated.kind": kind,
            "simulated.tickers": 60,
            "simulated.sessions": 1500,
            "validation.first_train": 600,
        },
    )
    report = verdict(tmp_path)
    assert report["decision"] == decision, report["reasons"]
    if kind == "planted":
        row = next(
            r for r in report["numbers"]["table"] if r["model"] == report["model"] and r["horizon"] == 1
        )
        assert row["ic_low"] <= 0.05 <= row["ic_high"]


def test_real_prices_from_a_file(root, tmp_path, shared, self_tested):
    self_tested(tmp_path / "home")
    whole = pd.read_parquet(shared / "us_daily_2015_2020.parquet")
    names = [
        "AAPL",
        "AMZN",
        "BA",
        "CAT",
        "CBS",
        "CVX",
        "DIS",
        "GE",
        "IBM",
        "JNJ",
        "JPM",
        "KO",
        "MSFT",
        "PFE",
        "WMT",
        "XOM",
    ]
    whole[whole.ticker.isin(names)].to_parquet(tmp_path / "prices.parquet")
    retrain(
        root,
        tmp_path,
        **{
            "data.source": "files",
            "data.files_path": str(tmp_path / "prices.parquet"),
            "validation.first_train": 600,
        },
    )
    report = verdict(tmp_path)
    assert report["decision"] == "hold" and report["model"] == "mean"
    bad = json.loads(next((tmp_path / "home" / "work").glob("*/work.json")).read_text())["ingested"]
    assert bad["tickers"] == len(names) and bad["rows_quarantined"] >= 1

"""`stockpredict quality` and `stockpredict quality flags` say the same about the same bars."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from stockpredict.cli.main import app
from stockpredict.core.settings import Settings
from stockpredict.ingest.ingest import ingest
from stockpredict.sources.simulate import sample_bars

PRICES = ["open", "high", "low", "close"]


def agreement(settings):
    "Remarks of the check and stored flags, each as rule -> number of bars."
    options = [w for name, value in settings.items() for w in ("--set", f"{name}={value}")]

    def printed(*words):
        result = CliRunner().invoke(app, ["quality", *words, *options, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    checks = printed()["checks"]
    remarks = {c["rule"]: c["failed"] for c in checks if c["severity"] == "warning" and c["failed"]}
    return remarks, dict(Counter(row["flag"] for row in printed("flags")))


@pytest.mark.parametrize("kind, seed", [("null", 1), ("realistic", 4)])
def test_a_split_that_the_lake_knows_is_no_jump(tmp_path, kind, seed):
    "Each of these markets has splits, which the source works into its adjusted closes."
    settings = {
        "storage.home": str(tmp_path),
        "data.source": "simulated",
        "simulated.kind": kind,
        "simulated.tickers": 4,
        "simulated.sessions": 60,
        "simulated.seed": seed,
    }
    assert ingest(Settings().with_(**settings)).adjustments > 0
    remarks, flags = agreement(settings)
    assert remarks == flags and not {"jump", "split missing"} & set(flags)


def test_errors_are_seen_by_both(tmp_path):
    "A close in another unit, an unstated split, and a missing bar."
    bars = sample_bars(tickers=5, sessions=80).assign(adj_close=lambda b: b.close)
    names = sorted(bars.ticker.unique())
    days = bars.event_time.sort_values().unique()
    bars.loc[(bars.ticker == names[0]) & (bars.event_time == days[40]), [*PRICES, "adj_close"]] *= 100
    bars.loc[(bars.ticker == names[1]) & (bars.event_time < days[50]), [*PRICES, "adj_close"]] *= 2
    bars = bars[~((bars.ticker == names[2]) & (bars.event_time == days[30]))]
    bars.drop(columns=["known_at", "source"]).to_csv(tmp_path / "bars.csv", index=False)
    settings = {
        "storage.home": str(tmp_path / "home"),
        "data.source": "files",
        "data.files_path": str(tmp_path / "bars.csv"),
    }
    ingest(Settings().with_(**settings))
    remarks, flags = agreement(settings)
    assert remarks == flags and {"jump", "split missing", "gap"} <= set(flags)

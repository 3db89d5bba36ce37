"""Every run notebook through Papermill: on a finished work, and on its own tiny defaults."""

import json
import re
from pathlib import Path

import pytest

from stockpredict.ops import runs

NAMES = sorted(p.stem for p in (Path(__file__).resolve().parents[2] / "nbs" / "runs").glob("r*.ipynb"))
COMMON = {"settings_path": "str", "overrides": "dict", "workdir": "str", "as_of": "str"}

PAGES_OF_RETRAIN = [name for name in NAMES if name != "r60_monitor"]  # the page of a flow of its own


def test_there_are_run_notebooks_and_the_story_names_them():
    from stockpredict.ops.pipeline import STORY

    assert [s for s in STORY if isinstance(s, str)] == PAGES_OF_RETRAIN


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_are_typed_explained_and_common(name):
    matches = runs.notebook_parameters(runs.run_notebook_path(name))
    assert {k: matches[k].kind for k in COMMON} == COMMON
    assert [p.name for p in matches.values() if not p.doc] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES_OF_RETRAIN)
def test_the_page_of_a_finished_work_is_whole(finished, name):
    page = next(p for p in finished["report"]["pages"] if p["name"] == name)
    assert page["error"] == ""
    html = Path(page["html"]).read_text()
    output = json.loads(Path(page["html"]).with_name("result.json").read_text())
    assert output["status"] == "complete" and output["result"]["headline"]
    assert len(html) < 5_000_000
    assert not re.search(r"<script|<iframe|(?:src|href)=[\"']?(?:https?:)?//", html)
    assert "Traceback" not in html and "Warning:" not in html
    assert html.count("<h2") >= 2 and "<img" in html


@pytest.mark.slow
def test_the_page_of_the_data_names_source_calendar_and_period(finished):
    from stockpredict.ingest.ingest import load_bars

    page = next(p for p in finished["report"]["pages"] if p["name"] == "r10_ingest")
    result = json.loads(Path(page["html"]).with_name("result.json").read_text())["result"]
    days = load_bars(finished["settings"]).event_time
    period = f"{days.min():%Y-%m-%d} to {days.max():%Y-%m-%d}"
    expected = {"source": result["lineage"]["source"], "calendar": "XNYS", "period": period}
    assert expected["source"].startswith(finished["settings"].data.source)
    assert {name: result["headline"][name] for name in expected} == expected
    assert [word for word in expected.values() if word not in result["sentence"]] == []


@pytest.mark.slow
def test_every_page_says_what_it_came_from_and_those_of_the_served_model_are_kept(finished):
    from stockpredict.ops.report_retention import runs_of_served_model

    pages = {p["name"]: Path(p["html"]) for p in finished["report"]["pages"]}
    for name, html in pages.items():
        foot = html.read_text().split('<footer class="lineage">')[1]
        shown = dict(re.findall("<dt>([^<]*)</dt><dd>([^<]*)</dd>", foot))
        assert {"run id", "commit", "lake snapshot", "settings", "seed", "source"} <= set(shown), name
        assert shown["run id"] == html.parent.name and "{" not in foot
    served = runs_of_served_model(finished["settings"])
    assert {n for n, p in pages.items() if "/".join(p.parts[-3:-1]) in served} == {
        "r30_train",
        "r40_validate",
    }


@pytest.mark.slow
def test_the_validation_report_shows_what_a_sceptic_looks_for(finished):
    page = next(p for p in finished["report"]["pages"] if p["name"] == "r40_validate")
    html = Path(page["html"]).read_text()
    asked = [
        "95 % interval",
        "p corr.",
        "majority",
        "R² OS",
        "p (CW)",
        "pinball skill",
        "p (DM)",
        "90 % held",
        "net Sharpe",
        "DSR",
        "models tried",
        "mean",
        "QLIKE",
        "missed more often",
        "quarantined",
        "planted",
        "commit",
        "seed",
        "settings",
        finished["report"]["sentence"],
    ]
    assert [word for word in asked if word not in html] == []


@pytest.mark.slow
def test_a_page_where_nothing_was_ever_done_makes_its_own_small_work(tmp_path):
    from stockpredict.core.settings import load_settings

    mine = load_settings(
        overrides={"storage.home": str(tmp_path / "home"), "storage.reports": str(tmp_path / "reports")}
    )
    done = runs.run("r50_predict", settings=mine, as_of="2022-12-30")
    assert done.result["headline"]["tickers"] == 16 and not (tmp_path / "home").exists()


@pytest.mark.slow
def test_without_a_work_folder_it_takes_the_newest_and_says_the_same_on_a_new_page(finished_alone):
    page = next(p for p in finished_alone["report"]["pages"] if p["name"] == "r50_predict")
    first = json.loads(Path(page["html"]).with_name("result.json").read_text())
    again = runs.run(
        "r50_predict", settings=finished_alone["settings"], as_of=finished_alone["report"]["as_of"]
    )
    assert again.result == first["result"] and again.dir.name != first["run_id"]


def test_the_map_of_the_data_holds_the_least_complete_tickers():
    "With 45 tickers five are left out, and they are among those that miss nothing."
    import random
    from types import SimpleNamespace

    import nbformat
    import pandas as pd

    from stockpredict.core.calendar import get_calendar
    from stockpredict.quality.reconcile import completeness
    from stockpredict.sources.bars import wide
    from stockpredict.sources.simulate import sample_bars

    bars = max((own for _, own in sample_bars(tickers=6, sessions=90).groupby("ticker")), key=len)[:60]
    rng, missing, parts = random.Random(3), {}, []
    for number in range(45):
        missing[f"T{number:02d}"] = gone = 0 if number % 4 == 0 else rng.randint(1, 20)
        kept = sorted({0, 59, *rng.sample(range(1, 59), 58 - gone)})  # the first and the last stay
        parts.append(bars.iloc[kept].assign(ticker=f"T{number:02d}"))
    bars, calendar, shown = pd.concat(parts, ignore_index=True), get_calendar(), []
    cells = nbformat.read(runs.run_notebook_path("r10_ingest"), 4).cells
    source = next(cell.source for cell in cells if "coverage_map" in cell.source)
    table = completeness(bars, calendar)
    names = dict(complete=table, tickers=sorted(missing), bars=bars, calendar=calendar, wide=wide)
    names |= dict(sessions=calendar.sessions(bars.event_time.min(), bars.event_time.max()))
    names |= dict(display=lambda *_: None, bullets=list, table=lambda *_: None)
    exec(source, names | dict(plots=SimpleNamespace(coverage_map=lambda *a, **k: shown.append((a[2], k)))))
    [(tickers, words)] = shown
    assert tickers[0] == max(missing, key=missing.get) and len(set(tickers)) == 40
    assert all(missing[t] == 0 for t in set(missing) - set(tickers))
    assert [missing[t] for t in tickers] == sorted(missing.values(), reverse=True)[:40]
    assert "the 40 least complete of 45 tickers" in words["title"]

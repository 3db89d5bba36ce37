"""The live record from published tables to page, JSON, CSV and command, and its honesty on the way."""

import asyncio
import io
import json
import re
import shutil
from html.parser import HTMLParser

import httpx
import numpy as np
import orjson
import pandas as pd
import pytest
from scipy.stats import norm

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import LakeLocked
from stockpredict.core.settings import load_settings
from stockpredict.evaluate.metrics import crps_from_quantiles, interval_coverage, pinball, rank_ic
from stockpredict.lake.lake import Lake
from stockpredict.models.artifact import ensure_keys
from stockpredict.predict.answer_table import table_signer, table_verifier
from stockpredict.predict.published_rows import note_archived
from stockpredict.predict.table_archive import archive_table
from stockpredict.predict.table_format import pack_table
from stockpredict.scoreboard.scoreboard import draw_scoreboard, read_scoreboard, update_scoreboard
from stockpredict.scoreboard.scoring import newest_scores, score_published, tables_in_time
from stockpredict.scoreboard.session_scores import outcome_hash
from stockpredict.sources.bars import wide
from stockpredict.train.champion import append_event

CALENDAR = get_calendar()
DAYS = CALENDAR.sessions("2024-01-02", "2024-06-28")
TICKERS = [f"SIM{i:02d}" for i in range(12)]
LEVELS = [0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975]
PUBLISHED = 32  # sessions with a table
NARROW_FROM = 12  # session from which version 2 states half the width


def market(seed=6):
    "Returns with known standard deviations, so that a forecaster can be exactly right."
    rng = np.random.default_rng(seed)
    sd = np.linspace(0.008, 0.03, len(TICKERS))
    closes = 50 * np.exp((rng.normal(size=(len(DAYS), len(TICKERS))) * sd).cumsum(0))
    frame = pd.DataFrame({"ticker": np.tile(TICKERS, len(DAYS)), "close": closes.ravel()})
    frame["event_time"] = np.repeat(CALENDAR.closes(DAYS), len(TICKERS))
    frame = frame.assign(open=frame.close, high=frame.close * 1.01, low=frame.close * 0.99, volume=1e6)
    return frame.assign(known_at=frame.event_time + pd.Timedelta(minutes=20), source="simulated"), sd


BARS, SD = market()


def bars_of(first, last):
    day = CALENDAR.day_of(BARS.event_time)
    return BARS[(day >= DAYS[first]) & (day <= DAYS[last])]


def table_of(settings, at, version, width):
    "The signed table of one session, as a publisher packs it."
    day, model = DAYS[at], {"name": "naive", "version": version, "artifact": f"a{version}" * 6}
    dates = {"decision_session": str(day.date()), "entry_session": str(DAYS[at + 1].date())}
    dates |= {"data_as_of": f"{CALENDAR.close(day):%Y-%m-%dT%H:%M:%SZ}", "snapshot": 2}
    rng, bodies = np.random.default_rng(at), {}
    for ticker, sd in zip(TICKERS, SD.tolist()):
        for h in (1, 5):
            spread = sd * h**0.5
            answer = {
                "ticker": ticker,
                "horizon": h,
                "target_session": str(DAYS[at + 1 + h].date()),
                "model": model,
            }
            answer |= {
                "quantiles": {f"{q:g}": float(spread * width * norm.ppf(q)) for q in LEVELS},
                "p_up": 0.51,
            } | dates
            answer |= {"expected": rng.normal(0, 1e-3), "volatility": {"daily": sd, "horizon": spread}}
            bodies[ticker, h] = orjson.dumps(answer)[:-1]
    header = {"key": f"v{version}-{day:%Y%m%d}", "built_at": "", "model": model} | dates
    return pack_table(header, bodies, table_signer(settings)), header


def archive(settings, at, version=1, width=1.0, minutes=60):
    raw, header = table_of(settings, at, version, width)
    evening = (CALENDAR.close(DAYS[at]) + pd.Timedelta(minutes=minutes)).to_pydatetime()
    archive_table(raw, header, settings.storage.serving_dir, evening)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "Forty published evenings of two versions, all scored; version 2 states intervals of half the width."
    home = tmp_path_factory.mktemp("desk")
    settings = load_settings(None, {"storage.home": str(home), "data.source": "simulated"}, environ={})
    ensure_keys(settings.storage.keys_dir)
    with Lake(settings.storage) as lake:
        lake.append(bars_of(0, PUBLISHED + 6))
        sectors = pd.DataFrame({"ticker": TICKERS[:10], "sector": ["Energy", "Utilities"] * 5})
        lake.add(
            "sectors", sectors.assign(event_time=pd.Timestamp("2020-01-01", tz="UTC")), known_at="2020-01-02"
        )
    for at in range(PUBLISHED):
        archive(settings, at, *((1, 1.0) if at < NARROW_FROM else (2, 0.5)))
    heads = {"intervals": {"decision": "promote", "numbers": {"value": 0.9, "low": 0.89, "high": 0.91}}}
    for version in (1, 2):
        entry = {"version": version, "artifact": f"a{version}" * 6, "model": "naive", "decision": "promote"}
        append_event(
            settings, {"event": "promote", "artifact": entry["artifact"], "entry": entry | {"heads": heads}}
        )
    report = score_published(settings)
    assert (report.scored, report.again) == (2 * PUBLISHED, 0)
    update_scoreboard(settings)
    return settings


@pytest.fixture
def desk(built, tmp_path):
    "A copy that a test may break."
    shutil.copytree(built.storage.home_dir, tmp_path / "home")
    return built.with_(**{"storage.home": str(tmp_path / "home")})


def lines_of(board, **where):
    return [line for line in board["lines"] if all(line[k] == v for k, v in where.items())]


def scores_of(settings):
    with Lake(settings.storage, read_only=True) as lake:
        return lake.scores()


def test_a_score_is_the_plain_metric_of_the_published_numbers_and_of_what_came(built):
    scores, at = scores_of(built), 7
    day = DAYS[at].date()
    closes = wide(bars_of(0, PUBLISHED + 6))
    for h in (1, 5):
        y = (closes.loc[DAYS[at + 1 + h]] / closes.loc[DAYS[at + 1]] - 1)[TICKERS].to_numpy()
        q = np.outer(SD * h**0.5, norm.ppf(LEVELS))
        expected = np.random.default_rng(at).normal(0, 1e-3, 24).reshape(12, 2)[:, 0 if h == 1 else 1]
        mine = scores[(pd.to_datetime(scores.decision_session).dt.date == day) & (scores.horizon == h)]
        row = mine[mine.slice == "all"].iloc[0]
        assert row.cells == 12 and row.pinball == pytest.approx(pinball(q, LEVELS, y).mean(), rel=1e-12)
        assert row.crps == pytest.approx(crps_from_quantiles(q, LEVELS, y).mean(), rel=1e-12)
        assert row.rank_ic == pytest.approx(rank_ic(expected[None], y[None]).iloc[0], rel=1e-12)
        assert row.inside_90 == interval_coverage(q[None, :, 1], q[None, :, 7], y[None], 0.9).value
        assert row.hit == row.up == (y > 0).mean()  # it always says up
        thirds = mine[mine.slice == "volatility"].set_index("part").cells
        assert thirds.to_dict() == {"calm": 4, "middle": 4, "wild": 4}
        known = mine[mine.slice == "sector"].set_index("part").cells
        assert known.to_dict() == {"Energy": 5, "Utilities": 5, "unknown": 2}


class Numbers(HTMLParser):
    "The digits of every cell of the first table, by measure."

    def __init__(self):
        super().__init__()
        self.rows, self.measure = {}, None

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        if tag == "tr":
            self.measure = facts.get("data-measure")
        if tag == "data" and self.measure:
            self.rows.setdefault(self.measure, []).append(facts["value"])


def answers(settings):
    "Page, JSON and CSV of the service."
    from stockpredict.serve.app import create_app

    async def ask():
        transport = httpx.ASGITransport(create_app(settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            urls = ("/scoreboard?version=2&horizon=5", "/v1/scoreboard?version=2&horizon=5")
            page, data = [await client.get(url) for url in urls]
            text = await client.get(urls[1], headers={"accept": "text/csv"})
            wrong = [
                await client.get(f"/v1/scoreboard{q}")
                for q in ("?version=77", "?format=parquet", "?colour=red")
            ]
            more = [await client.get("/scoreboard?version=77"), await client.head("/v1/scoreboard")]
            again = await client.get(urls[1], headers={"if-none-match": data.headers["etag"]})
            front = await client.get("/")
            return page, data, text, wrong, more, again, front

    return asyncio.run(ask())


def run_command(settings, *words):
    from typer.testing import CliRunner

    from stockpredict.cli.main import app

    options = ["--set", f"storage.home={settings.storage.home_dir}", "--set", "data.source=simulated"]
    result = CliRunner().invoke(app, [*options, "scoreboard", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_page_json_csv_command_and_lake_agree_to_the_last_digit(built):
    page, data, text, wrong, more, again, front = answers(built)
    fresh = draw_scoreboard(built)
    want = {x["measure"]: x for x in lines_of(fresh, version=2, horizon=5, slice="all", role="champion")}
    assert len(want) == 11
    served = lines_of(data.json()["data"], slice="all")
    assert {x["measure"]: x for x in served} == want
    csv = pd.read_csv(io.StringIO(text.text))
    assert text.headers["content-type"].startswith("text/csv") and text.headers["vary"] == "accept"
    for row in csv[csv.slice == "all"].itertuples():
        for key in ("value", "low", "high"):
            value = getattr(row, key)
            assert want[row.measure][key] == (None if value != value else value)
    numbers = Numbers()
    numbers.feed(page.text)
    for measure, line in want.items():
        digits = [line["value"], *([line["low"], line["high"]] if line["low"] is not None else [])]
        assert numbers.rows[measure] == [repr(v) for v in digits]
    printed = run_command(built, "--version", "2", "--horizon", "5", "--csv")
    assert printed == text.text
    whole = json.loads(run_command(built, "--version", "2", "--horizon", "5", "--json"))
    assert {x["measure"]: x for x in lines_of(whole, slice="all")} == want
    table = run_command(built, "--version", "2", "--horizon", "1")
    assert "inside the 90 % interval" in table and fresh["verdict"] in re.sub(r"\s+", " ", table)
    assert [r.status_code for r in wrong] == [404, 406, 422]
    assert "Scored: 0, 1, 2." in wrong[0].text and again.status_code == 304
    assert [r.status_code for r in more] == [404, 200] and 'href="/scoreboard"' in front.text
    assert fresh["verdict"] in page.text and "Backtest beside live" in page.text


def test_a_planted_fault_is_found_and_a_right_model_is_left_alone(built):
    board = read_scoreboard(built)
    words = {
        (x["version"], x["measure"]): x["word"]
        for x in lines_of(board, horizon=1, slice="all", role="champion")
        if x["word"]
    }
    assert all(words[1, f"inside_{share}"] in ("as stated", "open") for share in (50, 80, 90, 95))
    assert words[2, "inside_80"] == words[2, "inside_90"] == words[2, "inside_95"] == "too narrow"
    gap = {x["version"]: x for x in board["gap"]}
    assert gap[1]["inside"] and not gap[2]["inside"] and gap[2]["gap"] < -0.2
    assert (gap[2]["validated_value"], gap[2]["sessions"]) == (0.9, PUBLISHED - NARROW_FROM)
    [line] = lines_of(board, version=0, horizon=1, slice="all", measure="inside_90")
    assert line["sessions"] == PUBLISHED and board["path"]["1"][-1]["mean"] == line["value"]
    assert {x["part"] for x in lines_of(board, version=0, slice="sector")} == {
        "Energy",
        "Utilities",
        "unknown",
    }


def test_a_second_run_does_nothing_and_new_sessions_are_scored_once(desk):
    before = scores_of(desk)
    assert str(score_published(desk)) == "0 forecast tables scored."
    pd.testing.assert_frame_equal(scores_of(desk), before)
    archive(desk, PUBLISHED, 2)
    with Lake(desk.storage) as lake:
        lake.append(bars_of(PUBLISHED + 7, PUBLISHED + 7))
    report = score_published(desk)
    assert (report.scored, report.again) == (2, 0)  # both horizons end by this session
    assert len(scores_of(desk)) == len(before) + 2 * 7


def test_a_corrected_bar_is_scored_again_with_a_note_and_nothing_is_rewritten(desk):
    before, at = scores_of(desk), 12
    bar = bars_of(at, at)[lambda b: b.ticker == "SIM04"]
    fixed = bar.assign(close=bar.close * 1.05, high=bar.high * 1.1, known_at=pd.Timestamp.now("UTC"))
    with Lake(desk.storage) as lake:
        lake.append(fixed)
    report = score_published(desk)
    # entry one session before; targets one and six sessions before
    assert (report.scored, report.again) == (0, 4)
    after = scores_of(desk)
    kept = after.merge(before[["content", "horizon", "slice", "part", "scored_at"]])
    pd.testing.assert_frame_equal(kept[before.columns], before)
    assert all("SIM04" in note and "stays in the lake" in note for note in report.notes)
    assert len(newest_scores(after)) == len(before)
    board = update_scoreboard(desk)
    assert len(board["notes"]) == 4 and board["notes"][0].startswith("2024-01-1")
    assert score_published(desk).again == 0
    again = newest_scores(after)[lambda s: (s.note != "") & (s.slice == "all") & (s.horizon == 1)]
    closes = wide(pd.concat([bars_of(0, at + 2), fixed]))
    came = closes.pct_change().loc[DAYS[at] : DAYS[at + 1]]  # the corrected bar is the target, then the entry
    assert (pd.to_datetime(again.target_session) == came.index).all()
    assert again.up.tolist() == (came > 0).mean(axis=1).tolist()
    assert again.outcomes.tolist() == [outcome_hash(came.columns, y) for y in came.to_numpy()]


def test_when_the_version_of_the_last_scoring_has_expired_everything_is_looked_at_again(desk):
    with Lake(desk.storage) as lake:
        bar = bars_of(3, 3)[lambda b: b.ticker == "SIM00"]
        lake.append(bar.assign(close=bar.close * 0.9, low=bar.low * 0.8, known_at=pd.Timestamp.now("UTC")))
        lake.expire(days=-1, dry_run=False)
    report = score_published(desk)
    assert report.scored == 0 and report.again > 0


def test_a_kill_leaves_all_scores_of_a_run_or_none(desk):
    archive(desk, PUBLISHED, 2)
    with Lake(desk.storage) as lake:
        lake.append(bars_of(PUBLISHED + 7, PUBLISHED + 7))
    before = len(scores_of(desk))

    class Killed(BaseException):
        pass

    def step(name):
        if name == stop:
            raise Killed

    for stop in ("record begun", "scores written"):  # noqa: B007
        with pytest.raises(Killed):
            score_published(desk, on_step=step)
        assert len(scores_of(desk)) == before
    with Lake(desk.storage) as other, other.writer(), pytest.raises(LakeLocked):
        score_published(desk, wait=0)
    assert score_published(desk).scored == 2


def test_tables_that_came_late_do_not_count_and_of_several_the_last_in_time_does(desk):
    archive(desk, 5, 3, minutes=90)  # replaces the table of an hour after the close
    archive(desk, 6, 3, minutes=60 * 24 * 9)  # nine days later: its outcome has begun
    note_archived(desk, table_verifier(desk))
    with Lake(desk.storage, read_only=True) as lake:
        noted = lake.publications()
    counting = tables_in_time(noted, CALENDAR).set_index("decision_session").version
    counting.index = pd.to_datetime(counting.index)
    assert (counting[DAYS[5]], counting[DAYS[6]], len(counting)) == (3, 1, PUBLISHED)
    last = tables_in_time(noted, CALENDAR, historical=True).set_index("decision_session").version
    assert last.iloc[6] == 3  # a market of the past has no clock


def test_a_version_without_live_history_says_when_it_will_have_one(desk):
    at = PUBLISHED + 5
    archive(desk, at, 9)
    score_published(desk)
    board = update_scoreboard(desk)
    day = DAYS[at + 2].date()
    want = f"No forecast of naive version 9 has come true yet. The first will at the close of {day}."
    assert board["pending"] == want and not lines_of(board, version=9)


def test_a_desk_without_forecasts_and_one_without_sectors_have_a_board(tmp_path):
    settings = load_settings(None, {"storage.home": str(tmp_path), "data.source": "simulated"}, environ={})
    assert score_published(settings).scored == 0
    assert "Nothing has been published yet" in update_scoreboard(settings)["pending"]
    ensure_keys(settings.storage.keys_dir)
    with Lake(settings.storage) as lake:
        lake.append(bars_of(0, 8))
    archive(settings, 0), archive(settings, 1)
    assert score_published(settings).scored == 4
    board = update_scoreboard(settings)
    assert {x["slice"] for x in board["lines"]} == {"all", "volatility"}
    [loss] = lines_of(board, version=0, horizon=1, slice="all", measure="pinball")
    assert loss["value"] > 0 and loss["low"] is None  # two sessions give no asymptotic interval
    assert board["verdict"].startswith("Over 2 sessions")

"Bars that the source no longer sends: reported, kept until they are retracted, and what that changes."

import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from stockpredict.cli.main import app
from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import DataError, FileMissing, LakeUnavailable, UnknownTicker
from stockpredict.core.settings import Settings
from stockpredict.ingest.ingest import ingest
from stockpredict.lake import received_files, retract  # noqa: F401  (give the lake their methods)
from stockpredict.lake.connection import connect
from stockpredict.lake.lake import Lake
from stockpredict.sources.bars import BAR_COLUMNS

DAYS = [str(day.date()) for day in get_calendar().sessions("2024-01-02", "2024-01-24")]
JANUARY, LATER = "2024-01-17T12:00Z", "2024-01-20T12:00Z"
TICKERS = ("AAA", "BBB", "CCC")
TEN = pd.DataFrame(
    [
        dict(ticker=t, date=d, close=100.0 * k + i)
        for k, t in enumerate(TICKERS, 1)
        for i, d in enumerate(DAYS[:10])
    ]
)


class Ground:
    "A lake over one file of bars."

    def __init__(self, place, **more):
        self.place = place
        self.changes = {
            "storage.home": str(place / "home"),
            "data.source": "files",
            "data.files_path": str(place / "bars.csv"),
            "data.start": "2024-01-02",
            **more,
        }
        self.settings = Settings().with_(**self.changes)

    def copy(self, place):
        shutil.copytree(self.place, place, dirs_exist_ok=True)
        return Ground(place)

    def ingest(self, rows, now, **how):
        rows.to_csv(self.place / "bars.csv", index=False)
        return ingest(self.settings, now, **how)

    def view(self, as_of=None, **how):
        with Lake(self.settings.storage, read_only=True) as lake:
            return lake.bars(source="files", as_of=as_of, **how)

    def state(self):
        "Everything that a write would change."
        with Lake(self.settings.storage, read_only=True) as lake:
            return (
                lake.snapshot(),
                lake.fingerprint(source="files"),
                len(lake.sql("FROM quarantine")),
                lake.verify(),
            )

    def lake(self):
        return Lake(self.settings.storage)

    def command(self, *words):
        options = [word for k, v in self.changes.items() for word in ("--set", f"{k}={v}")]
        return CliRunner().invoke(app, [*words, *options])


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    "A lake that its tests do not change."
    ground = Ground(tmp_path_factory.mktemp("quiet"))
    ground.ingest(TEN, JANUARY)
    return ground


@pytest.fixture
def ground(quiet, tmp_path):
    "A copy of the quiet lake, to be changed."
    return quiet.copy(tmp_path)


@pytest.fixture(scope="module")
def two_batches(quiet, tmp_path_factory):
    "The quiet lake with a second batch, one session more."
    ground = quiet.copy(tmp_path_factory.mktemp("two"))
    more = pd.DataFrame([dict(ticker=t, date=DAYS[10], close=5.0) for t in TICKERS])
    ground.ingest(pd.concat([TEN, more]), "2024-01-18T12:00Z")
    return ground


def same(one, two):
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def same_values(one, two):
    "The same bars, perhaps known at another time, or with the published prices beside the adjusted ones."
    columns = [c for c in BAR_COLUMNS if c != "known_at"]
    same(one[columns], two[columns])


def lost_row(rows, ticker="AAA", day=DAYS[8]):
    return rows[~((rows.ticker == ticker) & (rows.date == day))]


# ---- reported, and kept


def test_a_row_and_a_ticker_that_are_no_longer_sent_are_reported_and_stay(ground):
    before = ground.view()
    report = ground.ingest(lost_row(TEN[TEN.ticker != "CCC"]), LATER)
    assert report.no_longer_sent == [
        {"ticker": "AAA", "bars": 1, "first": DAYS[8], "last": DAYS[8]},
        {"ticker": "CCC", "bars": 10, "first": DAYS[0], "last": DAYS[9]},
    ]
    assert (report.rows_new, report.rows_corrected, report.rows_quarantined) == (0, 0, 0)
    same(ground.view(), before)
    with ground.lake() as lake:
        lake.retract("CCC", now=LATER)
        lake.retract("AAA", DAYS[8], DAYS[8], now=LATER)
    again = ground.ingest(lost_row(TEN[TEN.ticker != "CCC"]), "2024-01-21T12:00Z", full=True)
    assert (again.no_longer_sent, again.tickers, again.rows_corrected) == ([], 2, 0)


def test_a_row_far_back_is_reported_by_the_daily_run(ground):
    "A file has always been sent whole, so every stored bar is compared."
    rows = lost_row(TEN, day=DAYS[1])
    gone = [{"ticker": "AAA", "bars": 1, "first": DAYS[1], "last": DAYS[1]}]
    for full in (False, True):
        report = ground.ingest(rows, LATER, full=full)
        assert (report.no_longer_sent, report.compared_from) == (gone, "")
    with ground.lake() as lake:
        lake.retract("AAA", DAYS[1], DAYS[1], now=LATER)
    assert ground.ingest(rows, LATER).no_longer_sent == []
    assert ground.ingest(lost_row(rows, day=DAYS[2]), LATER).no_longer_sent[0]["first"] == DAYS[2]


def test_a_row_moved_to_another_day_is_reported(ground):
    "As many rows as before; the day that is new to the lake lies before the overlap."
    ground.ingest(lost_row(TEN, day=DAYS[2]), JANUARY)  # the lake has this day already
    moved = TEN.assign(date=TEN.date.mask((TEN.ticker == "AAA") & (TEN.date == DAYS[1]), "2024-01-06"))
    (gone,) = ground.ingest(moved, LATER).no_longer_sent
    assert (gone["ticker"], gone["first"], gone["last"]) == ("AAA", DAYS[1], DAYS[1])


def test_tickers_that_were_not_asked_for_are_not_reported(ground, tmp_path):
    ground = Ground(tmp_path, **{"data.universe": ["AAA", "BBB"]})
    assert ground.ingest(TEN, LATER, full=True).no_longer_sent == []


def test_the_command_names_them_with_the_next_step_and_the_genuine_past(ground):
    lost_row(TEN[TEN.ticker != "CCC"]).to_csv(ground.place / "bars.csv", index=False)
    text = " ".join(ground.command("ingest").stdout.split())
    assert "11 stored bars of 2 tickers are no longer sent, such as AAA" in text
    assert f"such as AAA {DAYS[8]} to {DAYS[8]}" in text and "`stockpredict lake retract AAA`" in text
    assert "Views of days before 2024-01-17 show a backfill, later ones what you received." in text
    report = json.loads(ground.command("ingest", "--json").stdout)
    assert report["genuine_since"] == "2024-01-17" and len(report["no_longer_sent"]) == 2


# ---- retracted from the shell

HOW = [
    (["BBB"], {("BBB", day) for day in DAYS[:11]}),
    (
        ["bbb", "AAA", "--start", DAYS[2], "--end", DAYS[3]],
        {(t, d) for t in ("AAA", "BBB") for d in DAYS[2:4]},
    ),
    (["--batch", "b000002"], {(t, DAYS[10]) for t in TICKERS}),
    (["CCC", "--batch", "b000002"], {("CCC", DAYS[10])}),
]


def bars_of(frame):
    return set(zip(frame.ticker, frame.event_time.dt.strftime("%Y-%m-%d"), strict=True))


@pytest.mark.parametrize("words, gone", HOW, ids=["ticker", "period", "batch", "ticker of a batch"])
def test_a_retraction_changes_the_present_and_no_earlier_view(two_batches, tmp_path, words, gone):
    ground = two_batches.copy(tmp_path)
    moments = ("2024-01-05", "2024-01-17", "2024-01-18T12:00Z", LATER)
    now, views, state = ground.view(), {at: ground.view(at) for at in moments}, ground.state()
    version = ground.view(snapshot=state[0])
    dry = ground.command("lake", "retract", *words)
    assert dry.exit_code == 0 and "would be retracted with --do-it; nothing was changed" in dry.stdout
    assert ground.state() == state and json.loads(ground.command("lake", "retract", *words, "--json").stdout)[
        "rows"
    ] == len(gone)
    done = ground.command("lake", "retract", *words, "--reason", "wrong market", "--do-it")
    assert done.exit_code == 0 and "Batch b000003 retracts" in done.stdout
    assert bars_of(now) - bars_of(ground.view()) == gone and bars_of(ground.view()) <= bars_of(now)
    for at, seen in views.items():
        same(ground.view(at), seen)
    same(ground.view(snapshot=state[0]), version)
    after = ground.state()
    assert after[1] != state[1] and after[0] > state[0] and after[2] == state[2] + len(gone)
    with ground.lake() as lake:
        assert lake.sql("SELECT DISTINCT reason FROM quarantine").reason.tolist() == [
            "retracted: wrong market"
        ]
        assert set(lake.tickers("files")) == {ticker for ticker, _ in bars_of(now) - gone}
    twice = ground.command("lake", "retract", *words, "--do-it")
    assert twice.exit_code == 0 and "so nothing was changed." in " ".join(twice.stdout.split())
    assert ground.state() == after, "a second time there is nothing to take back"


def test_what_the_source_sends_again_comes_back_as_a_new_version(ground):
    before = ground.view()
    with ground.lake() as lake:
        lake.retract("BBB", now=LATER)
    assert set(ground.view().ticker) == {"AAA", "CCC"}
    report = ground.ingest(TEN, "2024-01-21T12:00Z")
    assert (report.rows_new, report.rows_corrected, report.tickers) == (0, 10, 3), (
        "all ten, not the newest few"
    )
    back = ground.view()
    same_values(back, before)
    assert (back.known_at[back.ticker == "BBB"] == pd.Timestamp("2024-01-21T12:00Z")).all()
    same(ground.view("2024-01-19"), before)
    assert set(ground.view("2024-01-20T18:00Z").ticker) == {"AAA", "CCC"}
    with ground.lake() as lake:
        assert lake.verify() == report.fingerprint
        gone = lake.retract(batch=report.batch, now="2024-01-22T12:00Z")
        assert (gone.rows, lake.tickers()) == (10, ["AAA", "CCC"])
    assert ground.ingest(TEN, "2024-01-23T12:00Z").rows_corrected == 10


def test_a_batch_of_corrections_returns_the_versions_before_and_their_factors(tmp_path):
    "The vendor sends a split that never took place, with prices of its own, and takes it back."
    ground = Ground(tmp_path)
    ground.ingest(TEN.assign(adj_close=TEN.close), JANUARY)
    before = ground.view()
    split = TEN.assign(adj_close=TEN.close.where(TEN.date > DAYS[4], TEN.close / 2))
    wrong = split.assign(close=split.close.where(split.date != DAYS[6], split.close + 1))
    report = ground.ingest(wrong, "2024-01-18T12:00Z", full=True)
    assert report.rows_corrected == 3 and report.adjustments >= 3
    changed = ground.view()
    assert (changed.close[:4] < 60).all()
    with ground.lake() as lake:
        assert lake.retract(batch=report.batch, now=LATER).rows == 3
        lake.verify()
    same_values(ground.view(), before)
    same(ground.view("2024-01-18T12:00Z"), changed)
    same_values(ground.view(JANUARY), before)


def test_a_batch_that_brought_only_factors_is_taken_back(tmp_path):
    "A dividend that the vendor worked into the adjusted close of two tickers by mistake."
    ground = Ground(tmp_path)
    sent = TEN.assign(adj_close=TEN.close)
    ground.ingest(sent, JANUARY)
    before = ground.view()
    paid = sent.ticker.isin(["AAA", "BBB"]) & (sent.date < DAYS[5])
    report = ground.ingest(sent.assign(adj_close=sent.close.where(~paid, sent.close * 0.9)), LATER, full=True)
    assert (report.rows_corrected, report.adjustments) == (0, 2)
    after = ground.view()
    assert (after.close != before.close).sum() == 10
    text = " ".join(ground.command("lake", "retract", "--batch", report.batch).stdout.split())
    assert "0 bars and 2 price factors of AAA, BBB would be retracted" in text
    with ground.lake() as lake:
        one = lake.retract("AAA", batch=report.batch, now="2024-01-21")
        assert (one.rows, one.factors, one.tickers) == (0, 1, ["AAA"])
        two = lake.retract(batch=report.batch, now="2024-01-22")
        assert (two.factors, two.tickers) == (1, ["BBB"]) and lake.verify() == two.fingerprint
        assert lake.retract(batch=report.batch, now="2024-01-23").batch == ""
    same_values(ground.view(), before)
    same(ground.view("2024-01-20T13:00Z"), after)


@pytest.mark.parametrize("moved", [False, True], ids=["in the folder", "moved away"])
def test_a_file_is_taken_back_by_its_name(tmp_path, moved):
    "Two files came with one ingest; the second has a new session and corrects an older one."
    (tmp_path / "in").mkdir()
    ground = Ground(tmp_path, **{"data.files_path": str(tmp_path / "in")})

    def deliver(rows, name, now):
        rows.to_csv(tmp_path / "in" / name, index=False)
        return ingest(ground.settings, now)

    deliver(TEN, "first.csv", JANUARY)
    good = pd.DataFrame([dict(ticker=t, date=DAYS[10], close=55.0) for t in TICKERS])
    good.to_csv(tmp_path / "in" / "good.csv", index=False)
    expected = ingest(ground.settings, LATER) and ground.view()
    bad = pd.DataFrame(dict(ticker=["AAA", "BBB"], date=DAYS[11], close=[7.0, 8.0]))
    report = deliver(bad, "bad.csv", "2024-01-21T12:00Z")
    assert report.rows_new == 2
    name = "bad.csv"
    if moved:
        (tmp_path / "in" / name).rename(tmp_path / name)
        name = str(tmp_path / name)
    dry = ground.command("lake", "retract", "--file", name)
    assert "2 bars of AAA, BBB would be retracted" in dry.stdout and dry.exit_code == 0
    done = ground.command("lake", "retract", "--file", name, "--do-it", "--json")
    assert json.loads(done.stdout)["rows"] == 2
    same(ground.view(), expected)
    assert "No bar that the lake shows now" in ground.command("lake", "retract", "--file", name).stdout
    again = ingest(ground.settings, "2024-01-22T12:00Z")
    assert again.rows_new + again.rows_corrected == (0 if moved else 2), "a file that stays comes again"


def test_a_file_that_is_gone_is_taken_back_by_its_name_or_digest(tmp_path):
    "Three files in one ingest; two share a bar, one is corrected later under the same name."
    (tmp_path / "in").mkdir()
    ground = Ground(tmp_path, **{"data.files_path": str(tmp_path / "in")})

    def deliver(now, **files):
        for name, rows in files.items():
            rows.to_csv(tmp_path / "in" / f"{name}.csv", index=False)
        return ingest(ground.settings, now)

    mine = {t: TEN[TEN.ticker == t] for t in TICKERS}
    deliver(JANUARY, a=mine["AAA"], b=pd.concat([mine["BBB"], mine["AAA"][:2]]), c=mine["CCC"])
    before = ground.view()
    slip = mine["BBB"].close.where(TEN.date != DAYS[8], 207.0)
    deliver("2024-01-18T12:00Z", b=mine["BBB"].assign(close=slip))
    with ground.lake() as lake:
        record = lake.received_files()
    assert [Path(p).name for p in record.path] == ["a.csv", "b.csv", "c.csv", "b.csv"]
    assert record.sha256.nunique() == 4 and record.batch.tolist() == ["b000001"] * 3 + ["b000002"]
    digest = hashlib.sha256((tmp_path / "in" / "c.csv").read_bytes()).hexdigest()
    for name in ("b.csv", "c.csv"):
        (tmp_path / "in" / name).unlink()
    dry = ground.command("lake", "retract", "--file", record.path[3], "--json")
    assert json.loads(dry.stdout)["rows"] == 10, "all deliveries of the name"
    done = ground.command("lake", "retract", "--file", digest[:12], "--do-it", "--json")
    assert (json.loads(done.stdout)["rows"], json.loads(done.stdout)["tickers"]) == (10, ["CCC"])
    assert set(ground.view().ticker) == {"AAA", "BBB"} and len(ground.view("2024-01-19")) == 30
    ground.command("lake", "retract", "--file", "b.csv", "--do-it")
    left = ground.view()
    assert left.ticker.value_counts().to_dict() == {"AAA": 10, "BBB": 1}, "a correction returns to the first"
    assert left.close[left.ticker == "BBB"].item() == before.close[18]
    wrong = ground.command("lake", "retract", "--file", "d.csv")
    assert isinstance(wrong.exception, FileMissing) and "b.csv" in wrong.exception.fix
    again = deliver("2024-02-01T12:00Z")
    assert again.rows_new + again.rows_corrected == 0 and again.tickers == 2


def test_a_bar_that_a_file_corrected_returns_to_the_version_before(ground, tmp_path):
    before = ground.view()
    ground.ingest(TEN.assign(close=TEN.close.where(TEN.date != DAYS[8], 1.0)), LATER)
    TEN[TEN.date == DAYS[8]].assign(close=1.0).to_csv(tmp_path / "slip.csv", index=False)
    result = ground.command("lake", "retract", "--file", str(tmp_path / "slip.csv"), "--do-it", "--json")
    assert json.loads(result.stdout)["rows"] == 3
    same_values(ground.view(), before)
    absent = ground.command("lake", "retract", "--file", "nowhere.csv")
    assert absent.exit_code == 1 or "no file or folder" in str(absent.exception)


def test_a_bar_of_a_split_takes_its_factor_along_and_brings_it_back(tmp_path):
    ground = Ground(tmp_path)
    split = TEN.assign(adj_close=TEN.close.where(TEN.date > DAYS[4], TEN.close / 2))
    ground.ingest(split, JANUARY)
    before = ground.view()
    with ground.lake() as lake:
        lake.retract("AAA", DAYS[5], DAYS[5], now=LATER)
    mine = ground.view().query("ticker == 'AAA'")
    assert mine.close.tolist() == [100.0 + i for i in range(10) if i != 5], "no factor without its bar"
    ground.ingest(split, "2024-01-21T12:00Z", full=True)
    same_values(ground.view(), before)


@pytest.mark.parametrize(
    "words, error, near",
    [
        (["AAA", "BBC"], UnknownTicker, "Did you mean BBB"),
        (["--batch", "b00001"], DataError, "Did you mean b000001"),
        (["AAA", "--batch", "b000077"], DataError, "b000001"),
        (["--start", DAYS[3]], DataError, "Name tickers, a batch or a file"),
        (["AAA", "--start", "soon"], DataError, "2020-03-12"),
    ],
)
def test_what_is_unknown_is_refused_with_the_names_that_come_near(quiet, words, error, near):
    state = quiet.state()
    for how in ([], ["--do-it"]):
        done = quiet.command("lake", "retract", *words, *how)
        assert isinstance(done.exception, error) and near in done.exception.fix, done.exception
    assert quiet.state() == state


def test_a_dry_run_needs_no_lock_and_makes_no_lake(ground, tmp_path):
    with ground.lake() as lake, lake.writer():
        assert "10 bars of AAA would be retracted" in ground.command("lake", "retract", "AAA").stdout
    empty = Ground(tmp_path / "none")
    done = empty.command("lake", "retract", "AAA")
    assert isinstance(done.exception, LakeUnavailable) and not (tmp_path / "none" / "home" / "lake").exists()


def test_a_retraction_that_is_interrupted_leaves_nothing(ground):
    state = ground.state()
    for at in ("retraction begun", "retraction written"):

        def fail(step, at=at):
            if step == at:
                raise KeyboardInterrupt

        with Lake(ground.settings.storage, on_step=fail) as lake, pytest.raises(KeyboardInterrupt):
            lake.retract("AAA")
        assert ground.state() == state
    with ground.lake() as lake:
        assert lake.retract("AAA").rows == 10


# ---- from which day on the past is genuine


def test_the_past_is_genuine_from_the_first_batch_with_a_bar(ground):
    more = pd.DataFrame([dict(ticker="NEW", date=d, close=7.0) for d in DAYS[:10]])
    report = ground.ingest(pd.concat([TEN, more]), LATER)
    assert report.genuine_since == "2024-01-17"
    with ground.lake() as lake:
        lake.retract("AAA", now="2024-01-21")
        assert [lake.genuine_since(tickers=[t]) for t in ("AAA", "NEW")] == [
            pd.Timestamp(JANUARY),
            pd.Timestamp(LATER),
        ]
        assert lake.genuine_since(tickers=["AAA", "NEW"]) == lake.genuine_since() == pd.Timestamp(JANUARY)
        assert lake.genuine_since("nobody") is None and lake.genuine_since(tickers=["NOPE"]) is None


# ---- lakes of earlier releases


def earlier_release(ground, *columns):
    "Drop columns that an earlier release did not have yet."
    with connect(ground.settings.storage) as con:
        for table, column in columns:
            con.execute(f"ALTER TABLE lake.{table} DROP COLUMN {column}")


@pytest.fixture
def old(tmp_path):
    "A lake of an earlier release with a correction, and its views."
    ground = Ground(tmp_path)
    ground.ingest(TEN, JANUARY)
    corrected = TEN.assign(close=TEN.close.where(TEN.date != DAYS[8], TEN.close + 5))
    ground.ingest(corrected, "2024-01-18T12:00Z")
    ground.corrected = corrected
    earlier_release(ground, ("bars", "batch"))
    return ground


def test_an_old_lake_reads_the_same_and_ingests_on(old):
    expected = old.corrected.close.tolist()
    bars, snapshot = old.view(), old.state()[0]
    assert bars.close.tolist() == expected, "read before anything writes"
    assert old.view(JANUARY).close.tolist() == TEN.close.tolist()
    more = pd.DataFrame([dict(ticker="AAA", date=DAYS[10], close=9.0)])
    rows = pd.concat([old.corrected.assign(close=lambda f: f.close.where(f.close != 100, 50)), more])
    report = old.ingest(rows, LATER, full=True)
    assert (report.rows_new, report.rows_corrected, report.genuine_since) == (1, 1, "2024-01-17")
    same(old.view(snapshot=snapshot), bars)
    same(old.view("2024-01-19"), bars)
    assert old.view(JANUARY).close.tolist() == TEN.close.tolist()
    assert sorted(old.view().close) == sorted(rows.close)
    with Lake(old.settings.storage, read_only=True) as lake:
        assert lake.verify() == report.fingerprint
        for number in range(2, snapshot + 1):
            assert len(lake.bars(source="files", snapshot=number)) in (0, 30)


OLDER = [("bars", "batch"), ("bars", "revised"), ("ingests", "sums"), ("ingests", "flags")]
OLDER += [("bars", "file"), ("ingests", "files")]


def test_a_lake_of_an_early_release_is_read_before_and_after_a_writer_opens_it(old):
    "Readers never wait for a writer, also for versions from before the columns came."
    expected, views = old.view(), {at: old.view(at) for at in (JANUARY, "2024-01-18T12:00Z", LATER)}
    mark, snapshot = old.state()[1], old.state()[0]
    earlier_release(old, *OLDER[1:])
    with Lake(old.settings.storage, read_only=True) as lake:
        assert [lake.lacks(*column) for column in OLDER] == [True] * 6
        assert lake.verify() == lake.fingerprint() == mark == lake.recorded_fingerprint()
        assert not lake.flags_complete("files") and lake.retract("AAA", dry_run=True).rows == 10
        assert len(lake.bars("AAA", source="files", snapshot=lake.snapshot())) == 10
    same_values(old.view(), expected)
    for at, view in views.items():
        same_values(old.view(at), view)
    for words in (["lake", "status"], ["lake", "snapshots"], ["quality"]):
        assert old.command(*words).exit_code == 0, words
    alone = Lake(old.settings.storage, read_only=True)  # stays open while a writer adds the columns
    early = alone.snapshot()
    report = old.ingest(old.corrected.assign(close=old.corrected.close.replace(100, 50)), LATER)
    with alone:
        same_values(alone.bars(source="files", as_of="2024-01-19"), expected)
        assert alone.verify() == report.fingerprint
        for number in (early, snapshot):
            same_values(alone.bars(source="files", snapshot=number), expected)
            assert alone.fingerprint(number, "files") == mark


def test_what_an_old_lake_stored_is_not_lost_by_a_retraction(old):
    "A correction that is taken back returns to the version of the earlier release."
    before = old.view()
    worse = old.corrected.assign(close=old.corrected.close.where(old.corrected.date != DAYS[9], 1.0))
    report = old.ingest(worse, LATER)
    with old.lake() as lake:
        with pytest.raises(DataError, match="did not note which bars it brought"):
            lake.retract(batch="b000002", dry_run=True)
        assert lake.retract(batch=report.batch, now="2024-01-21").rows == 3
        lake.verify()
    same_values(old.view(), before)
    with old.lake() as lake:
        assert lake.retract("AAA", now="2024-01-22").rows == 10 and lake.tickers() == ["BBB", "CCC"]


def test_the_past_of_an_old_lake_is_never_genuine_too_early(old):
    "Nothing tells which batch brought a bar, so the last batch with new bars counts."
    with Lake(old.settings.storage, read_only=True) as lake:
        assert lake.genuine_since(tickers=["AAA"]) == lake.genuine_since() == pd.Timestamp(JANUARY)
        assert lake.retract("AAA", dry_run=True).rows == 10
        with pytest.raises(DataError, match="did not note which bars it brought"):
            lake.retract(batch="b000001", dry_run=True)
    more = pd.DataFrame([dict(ticker="NEW", date=d, close=7.0) for d in DAYS[:10]])
    old.ingest(pd.concat([old.corrected, more]), LATER)
    with old.lake() as lake:
        days = [lake.genuine_since(tickers=[t]) for t in ("AAA", "NEW")]
    assert days == [pd.Timestamp(JANUARY), pd.Timestamp(LATER)]

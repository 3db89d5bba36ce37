"""The folder of reports: dates, a full disk, pins, pruning, the feed, and a folder that was moved."""

import contextlib
import json
import os
import re
import resource
import shutil
import uuid
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urljoin

import nbformat
import nbformat.v4 as nbf
import pytest
from stockpredict.cli.console import SettingsOptions
from stockpredict.cli.main import app
from stockpredict.core.errors import FolderUnavailable, NotEnoughHistory, ParameterRefused
from stockpredict.core.settings import load_settings
from stockpredict.ops import report_retention, reports, runs, work
from stockpredict.ops.report_feed import ATOM, write_feed
from typer.testing import CliRunner

FINISH = "from stockpredict.ops.runs import finish\nprint('x' * size)\nfinish({'headline': {'size': size}, "
FINISH += "'numbers': {'size': size}, 'lineage': {'source': 'sample', 'snapshot': 3}})"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    place = tmp_path_factory.mktemp("site")
    folders = {"storage.home": f"{place}/home", "storage.reports": f"{place}/reports"}
    return load_settings(overrides=folders)


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    "A folder with a notebook that prints so many characters."
    place = tmp_path_factory.mktemp("templates")
    code = [nbf.new_code_cell("size: int = 1", metadata={"tags": ["parameters"]}), nbf.new_code_cell(FINISH)]
    cells = [nbf.new_markdown_cell("# Sizes"), *code]
    nbformat.write(nbf.new_notebook(cells=cells), place / "r01_size.ipynb")
    return place


@pytest.fixture(scope="module")
def write(settings, templates):
    "A function that runs it, on one kernel server for all."

    def run(size=1, **more):
        return runs.run("r01_size", {"size": size}, **{"settings": settings, "folder": templates} | more)

    return run


def files(settings):
    "Every file of the reports with its content."
    place = settings.storage.reports_dir
    return {p.relative_to(place): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


@contextlib.contextmanager
def small_files(most):
    "A file system on which no file of this process can become larger."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_page_names_its_lineage_and_links_to_the_changes_since_the_run_before(write, settings):
    first, second = write(1, as_of="2022-12-29"), write(2, as_of="2022-12-30")
    page, before = second.html.read_text(), first.html.read_text()
    foot = dict(re.findall("<dt>([^<]*)</dt><dd>([^<]*)</dd>", page[page.index('<footer class="lineage"') :]))
    assert {"run id", "commit", "lake snapshot", "settings", "seed", "started", "seconds"} <= set(foot)
    assert (foot["run id"], foot["lake snapshot"], foot["seed"]) == (second.dir.name, "3", "7")
    [link] = re.findall('href="(../../diff-[^"]*)"', page)
    assert "diff-" not in before, "nothing came before the first"
    diff = (second.dir / link).resolve().read_text()
    assert "1 of 1 numbers differ" in diff and first.dir.name in diff


def test_a_disk_that_fills_leaves_everything_as_it_was(write, settings):
    write()
    before = files(settings)
    with small_files(40_000), pytest.raises(FolderUnavailable) as refused:
        write(200_000)
    assert "disk is full" in refused.value.problem and "[storage] reports" in refused.value.fix
    assert files(settings) == before and not list(settings.storage.reports_dir.rglob(".*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root can mount a file system of three megabytes.")
def test_a_file_system_that_is_really_full_is_named(write, settings, tmp_path):
    if os.system(f"mount -t tmpfs -o size=3m tmpfs {tmp_path} 2>/dev/null"):
        pytest.skip("This machine does not let root mount a file system.")
    try:
        mine = settings.with_(**{"storage.reports": str(tmp_path)})
        (tmp_path / "ballast").write_bytes(bytes(2_900_000))
        (tmp_path / "index.html").write_text("as it was")
        with pytest.raises(FolderUnavailable, match="disk is full"):
            write(900_000, settings=mine)
        assert (tmp_path / "index.html").read_text() == "as it was"
        assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["ballast", "index.html"]
    finally:
        os.system(f"umount {tmp_path}")


@pytest.mark.parametrize("day", ["yesterday", "2022-13-45", "../../etc", "2022-12-30T25", "20221230x"])
def test_what_is_no_date_never_becomes_a_folder(write, settings, day):
    before = files(settings)
    with pytest.raises(ParameterRefused, match="is no date"):
        write(as_of=day)
    assert files(settings) == before


def test_a_day_that_has_not_come_is_refused_and_a_holiday_is_the_session_before(write, settings):
    tomorrow = f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}"
    with pytest.raises(ParameterRefused, match="lies in the future"):
        write(as_of=tomorrow)
    lake = {"first": "2015-01-02", "last": "2022-12-30", "fingerprint": "abc", "snapshot": 3}
    with pytest.raises(ParameterRefused, match="lies in the future"):
        work.open_work(settings, lake, tomorrow)
    with pytest.raises(NotEnoughHistory, match="begin on 2015-01-02, so nothing was known on 1999-12-31"):
        work.open_work(settings, lake, "1999-12-31")
    assert not settings.storage.work_dir.exists()
    folder = work.open_work(settings, lake, "2022-12-25")  # a Sunday, and Christmas
    assert (work.load_work(folder).day, work.load_work(folder).as_of) == ("2022-12-23", "2022-12-25")
    shutil.rmtree(settings.storage.work_dir)


def test_settings_that_change_between_plan_and_run_do_not_reach_the_run(settings, tmp_path, monkeypatch):
    lake = {"first": "2015-01-02", "last": "2022-12-30", "fingerprint": "abc", "snapshot": 3}
    planned = settings.with_(**{"models.seed": 11})
    folder = work.open_work(planned, lake)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.ini").write_text("[models]\nseed = 12\n[costs]\nbps = 99\n")
    assert work.load_work(folder).settings.hash == planned.hash
    shutil.rmtree(settings.storage.work_dir)


def test_the_feed_is_valid_atom_with_relative_links_and_keeps_its_identity(write, settings, tmp_path):
    write()
    place = settings.storage.reports_dir
    root = ET.parse(place / "feed.xml").getroot()
    names = [e.tag for e in root]
    assert all(names.count(f"{{{ATOM}}}{n}") == 1 for n in ("id", "title", "updated", "author"))
    entries = root.findall(f"{{{ATOM}}}entry")
    assert len(entries) == len(reports.finished_runs(place)) > 2
    ids = [e.find(f"{{{ATOM}}}id").text for e in entries]
    assert len({*ids}) == len(ids) and all(uuid.UUID(i) for i in [*ids, root.find(f"{{{ATOM}}}id").text])
    for entry in entries:
        datetime.fromisoformat(entry.find(f"{{{ATOM}}}updated").text)
        link = entry.find(f"{{{ATOM}}}link").get("href")
        assert not link.startswith(("/", "http")) and (place / link).is_file()
    copied = shutil.copytree(place, tmp_path / "moved")
    assert write_feed(copied).read_bytes() == (place / "feed.xml").read_bytes()
    index = (copied / "index.html").read_text()
    assert '<link rel="alternate" type="application/atom+xml"' in index
    links = re.findall('href="([^"#]+)"', index)
    assert links and [x for x in links if not (copied / x).exists() and not x.startswith("data:")] == []


def test_every_link_of_the_site_leads_to_a_file_when_a_bucket_serves_it(write, settings):
    """A bucket has keys, no folders: no index is looked up, and a slash at the end leads to nothing.

    From the index on, each link of each page is followed below a prefix of the bucket.
    """
    write(1), write(2)
    prefix = "https://bucket.example/desk/reports/"
    keys = {prefix + quote(str(path)): content for path, content in files(settings).items()}
    waiting, pages = [prefix + "index.html"], set()
    while waiting:
        pages.add(page := waiting.pop())
        links = re.findall(r"""\s(?:href|src)=["']([^"'#][^"']*)""", keys[page].decode())
        targets = {urljoin(page, link).partition("#")[0] for link in links if not link.startswith("data:")}
        assert targets <= keys.keys(), (page, targets - keys.keys())
        waiting += [t for t in targets if t.endswith(".html") and t not in pages and t not in waiting]
    names = {page.rsplit("/", 1)[1] for page in pages}
    assert {"index.html", "page.html"} < names and any(name.startswith("diff-") for name in names)


def test_pruning_keeps_the_newest_the_pinned_and_the_report_of_the_served_model(settings, monkeypatch):
    place = settings.storage.reports_dir
    days = [r["folder"] for r in reports.finished_runs(place)]
    assert len(days) > 3
    pinned, served = days[-1], days[-2]
    command = ["--set", f"storage.reports={place}", "--set", f"storage.home={settings.storage.home_dir}"]

    def ask(*words):
        done = CliRunner().invoke(app, ["report", *words, *command], obj=SettingsOptions())
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done.stdout

    assert ask("pin", pinned.split("/")[1]) == f"{pinned} is pinned.\n"
    monkeypatch.setattr(report_retention, "runs_of_served_model", lambda settings: {served})
    before = files(settings)
    assert "would be removed" in ask("prune", "--keep", "1", "--dry-run") and files(settings) == before
    pruned = json.loads(ask("prune", "--keep", "1", "--json"))
    assert pruned["removed"] == days[1:-2] and pruned["bytes"] > 0
    assert pruned["kept"] == {pinned: "pinned", served: "of the served model"}
    assert [r["folder"] for r in reports.finished_runs(place)] == [days[0], served, pinned]
    gone = [d.split("/")[1] for d in pruned["removed"]]
    assert not [f for f in files(settings) if any(g in str(f) for g in gone)], "with their differences"
    index = (place / "index.html").read_text()
    assert not [g for g in gone if g in index] and index.count('class="pin"') == 1
    assert ask("pin", pinned, "--remove") == f"{pinned} is no longer pinned.\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_retention, "runs_of_served_model", lambda settings: set())
        assert json.loads(ask("prune", "--keep", "1", "--json"))["removed"] == [served, pinned]
    shutil.rmtree(place / days[0])
    missing = CliRunner().invoke(app, ["report", "path", "r01_size", *command], obj=SettingsOptions())
    assert missing.exit_code != 0

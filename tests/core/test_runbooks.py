"""Each code and each alert has a page that says something, names only what exists, and is linked."""

import re

import pytest
import yaml

from stockpredict.core.runbooks import LEVELS, all_runbooks, by_topic, marked_up, runbook_of, runbook_text
from stockpredict.core.settings import Settings

PAGES = all_runbooks()


@pytest.fixture(scope="module")
def source(root):
    return "\n".join(path.read_text() for path in (root / "stockpredict").rglob("*.py"))


@pytest.fixture(scope="module")
def alerts(root):
    rules = yaml.safe_load((root / "deploy/monitoring/rules/alerts.yml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]


def test_every_code_and_every_alert_has_a_page_and_no_page_is_an_orphan(source, alerts):
    codes = set(re.findall(r'code, status = "([a-z0-9-]+)"', source))
    names = {rule["alert"] for rule in alerts}
    assert set(PAGES) == codes | names
    assert {name for name, page in PAGES.items() if page.is_alert} == names
    assert sorted(page.name for own in by_topic().values() for page in own) == sorted(PAGES)


def test_an_alert_leads_to_its_page_and_has_its_level(alerts):
    wrong = [
        rule["alert"]
        for rule in alerts
        if rule["annotations"]["runbook_url"] != f"runbooks/{rule['alert']}"
        or rule["labels"]["severity"] != PAGES[rule["alert"]].level
    ]
    assert wrong == []


def test_no_page_is_an_empty_form(root):
    assert set(LEVELS) == {"P1", "P2", "P3", "P4"}
    for name, page in PAGES.items():
        assert page.level in LEVELS and page.means.endswith(".") and len(page.means.split()) >= 5, name
        assert page.look and page.do and all(step[-1] in ".?" for step in page.do), name
        places = re.findall("`[^`]+`|/[a-z][a-z/]+", " ".join(page.look))
        assert places, f"{name} names no command, file, page or metric to look at"
    means = [page.means for page in PAGES.values()]
    assert len(set(means)) == len(means)


def quoted(page):
    "What stands in backticks on a page."
    return re.findall("`([^`]+)`", " ".join([page.means, page.about, *page.look, *page.do]))


def command_names(app, words=()):
    "All commands of a program of typer, with their groups."
    names = set()
    for command in app.registered_commands:
        names.add((*words, command.name or command.callback.__name__.rstrip("_").replace("_", "-")))
    for group in app.registered_groups:
        own = (*words, group.name)
        names |= {own} | command_names(group.typer_instance, own)
    return names


def test_every_command_that_a_page_names_exists():
    from stockpredict.cli.main import app

    known, unknown = command_names(app), []
    groups = {name[0] for name in known if len(name) > 1}
    for name, page in PAGES.items():
        for line in quoted(page):
            if not line.startswith("stockpredict ") or line == "stockpredict settings check":
                continue
            words = tuple(w for w in line.split()[1:] if not w.startswith("-"))
            wanted = words[:2] if words[0] in groups and len(words) > 1 and words[1].islower() else words[:1]
            if wanted not in known:
                unknown.append((name, line))
    assert unknown == []


def test_every_setting_and_metric_that_a_page_names_exists(source, root):
    settings = Settings().model_dump()
    files = [p for p in (root / "deploy/monitoring").rglob("*.*") if p.is_file() and p.suffix != ".pyc"]
    monitoring = [p.read_text() for p in files]
    known = "\n".join([source, *monitoring, (root / "nbs/guides/operate.ipynb").read_text()])
    words, quoted_words = set(re.findall(r"\w+", known)), set(re.findall(r"[\"'](\w+)", known))
    unknown = []
    for name, page in PAGES.items():
        for text in quoted(page):
            if match := re.match(r"\[(\w+)\] (\w+)", text):
                if match[2] not in settings.get(match[1], {}):
                    unknown.append((name, text))
            if re.fullmatch(r"stockpredict_\w+", text):
                short = text.removeprefix("stockpredict_")
                if text not in words and short not in quoted_words:
                    unknown.append((name, text))
            if text.startswith("stockpredict:") and f"record: {text}" not in known:
                unknown.append((name, text))
    assert unknown == []


def test_each_page_of_the_service_is_reached_without_a_key_and_its_links_lead_somewhere(tmp_path):
    from fastapi.testclient import TestClient

    from stockpredict.core.settings import load_settings
    from stockpredict.serve.app import create_app

    settings = load_settings(
        None, {"storage.home": str(tmp_path / "home"), "access.required": "always"}, environ={}
    )
    reader = TestClient(create_app(settings), base_url="http://localhost")
    index = reader.get("/runbooks")
    assert index.status_code == 200 and not re.search(r'(?:src|href)="(?:https?:)?//', index.text)
    links = {name for name in re.findall('href="/runbooks/([^"#]+)"', index.text)}
    assert links == set(PAGES)
    for name in PAGES:
        page = reader.get(f"/runbooks/{name}")
        assert page.status_code == 200 and page.text.count("<h2") == 4, name
        assert set(re.findall('href="/runbooks/([^"#]+)"', page.text)) <= links, name
        assert not re.search(r'(?:src|href)="(?:https?:)?//', page.text)
    refused = reader.get("/v1/predictions/AAPL").json()["error"]
    assert refused["type"] == "/runbooks/key-missing" and reader.get(refused["type"]).status_code == 200
    assert reader.get("/runbooks/nothing").status_code == 404


def test_text_and_index_name_what_is_needed():
    text = runbook_text(runbook_of("DataLate"))
    assert [part for part in ("Look here", "Do this", "Escalate", "P2:") if part not in text] == []
    assert marked_up("see lake-locked") == 'see <a href="/runbooks/lake-locked">lake-locked</a>'
    assert marked_up("`a<b`") == "<code>a&lt;b</code>"

"""The documentation: nothing is missing, every link leads somewhere, every command in it exists, and
the pages are accessible, without a network."""

import ast
import re
import shutil
import sys
from pathlib import Path

import axe_core_python
import pytest
from tab import Tab

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy" / "docs"))

import build_site
import check_site
import doc_api
import doc_diagrams
import doc_notebooks
import doc_reference

FEW = """index install tour tutorial/first_prediction guides/restore explanation/honest_skill
explanation/architecture reference/settings reference/core/errors reference/evaluate/metrics
decisions/007-lake-of-snapshots""".split()  # pages of the site that a test builds
LOOKED_AT = "index tutorial/first_prediction explanation/architecture reference/core/errors".split()
AXE = next(Path(axe_core_python.__file__).parent.rglob("axe.min.js"))


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    "All pages as Markdown, with the navigation."
    docs = tmp_path_factory.mktemp("pages") / "docs"
    docs.mkdir()
    return docs, build_site.collect(docs)


@pytest.fixture(scope="module")
def site(collected, tmp_path_factory):
    "A site of a few pages, of every kind one."
    docs, _ = collected
    work = tmp_path_factory.mktemp("site")
    shutil.copytree(docs / "img", work / "docs" / "img")
    for own in ("site.css", "site.js"):
        shutil.copy(docs / own, work / "docs")
    for page in FEW:
        (work / "docs" / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(docs / f"{page}.md", work / "docs" / f"{page}.md")
    build_site.render(work, work / "out", [f"{page}.md" for page in FEW])
    return work / "out"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    tab = Tab(tmp_path_factory.mktemp("browser") / "profile")
    yield tab
    tab.close()


def text_of(collected, page):
    return (collected[0] / page).read_text(encoding="utf-8")


# ---- what is there


def test_every_page_is_in_the_navigation_and_every_link_of_a_page_leads_somewhere(collected):
    docs, nav = collected

    def leaves(item):
        if isinstance(item, str):
            return [item]
        parts = item.values() if isinstance(item, dict) else item
        return [leaf for part in parts for leaf in leaves(part)]

    listed = leaves(nav)
    assert len(listed) == len(set(listed))
    assert {str(p.relative_to(docs)) for p in docs.rglob("*.md")} == set(listed)
    assert check_site.broken_in_markdown(docs) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "a.md").write_text(
        "# A\n\n[good](b.md#there) [gone](c.md) [late](b.md#not-there) `[code](d.md)`\n"
    )
    (tmp_path / "b.md").write_text("# B\n\n## There\n")
    wrong = check_site.broken_in_markdown(tmp_path)
    assert [line.split()[1] for line in wrong] == ["c.md", "b.md#not-there"]


def test_a_link_of_a_finished_page_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="b.html#there">1</a><a href="b.html#no">2</a><a href="#top">3</a>'
        '<img src="gone.png"><a href="https://ok.example">4</a>'
    )
    (tmp_path / "b.html").write_text('<h2 id="there"></h2>')
    wrong = check_site.broken_links(tmp_path)
    assert sorted(line.split()[1] for line in wrong) == ["b.html#no", "gone.png"]
    assert check_site.external_links(tmp_path) == ["https://ok.example"]


def test_the_front_page_leads_in_one_step_to_install_first_prediction_and_trust(collected):
    front = text_of(collected, "index.md")
    for page in ("install.md", "tutorial/first_prediction.md", "explanation/honest_skill.md"):
        assert f"]({page})" in front
    assert "interval" in text_of(collected, "explanation/honest_skill.md").split("```")[0]


def test_every_public_name_has_an_anchor_with_its_signature(collected):
    absent = []
    for floor in doc_diagrams.floors(ROOT):
        for module in sorted((ROOT / "stockpredict" / floor).glob("*.py")):
            if module.stem == "__init__":
                continue
            text = text_of(collected, f"reference/{floor}/{module.stem}.md")
            names = doc_api.public_names(module.read_text(encoding="utf-8"))
            absent += [f"{floor}.{module.stem}.{n}" for n in names if f"{{ #{n} " not in text]
    assert absent == []


def test_every_command_route_setting_code_metric_and_alert_is_in_the_reference(collected):
    from stockpredict.core.runbooks import all_runbooks
    from stockpredict.core.settings import Settings

    anchors = {
        name: check_site.page_anchors(text_of(collected, f"reference/{name}.md"))
        for name in ("cli", "rest", "settings", "errors", "alerts", "metrics")
    }
    paths = [path for path, command in doc_reference.commands() if not command.hidden]
    assert len(paths) > 60
    assert {re.sub(r"[^a-z0-9]+", "-", path) for path in paths} <= anchors["cli"]
    routes = [(m, path) for path, own in doc_reference.openapi()["paths"].items() for m in own]
    wanted = {re.sub(r"[^a-z0-9]+", "-", f"{m}-{path}".lower()).strip("-") for m, path in routes}
    assert len(wanted) > 30 and wanted <= anchors["rest"]
    sections = Settings.model_fields.items()
    keys = {f"{name}.{key}" for name, field in sections for key in field.annotation.model_fields}
    assert keys <= anchors["settings"]
    books = all_runbooks().values()
    assert {book.name for book in books if not book.is_alert} <= anchors["errors"]
    assert {book.name for book in books if book.is_alert} <= anchors["alerts"]
    assert sum(a.startswith("stockpredict_") for a in anchors["metrics"]) > 40


def test_a_signature_keeps_defaults_comments_and_the_place_of_a_method():
    source = """
class Box:
    "A box."

@patch
def grow(
    self: Box,
    by: float = 1.5,  # factor
    *,
    quiet: bool = False,
) -> "Box":  # a new one
    "Larger."
    # not part of it
"""
    entry = doc_api.entries(source)[1]
    assert entry.name == "Box.grow"
    assert entry.signature == "def Box.grow(by: float = 1.5, *, quiet: bool = False) -> 'Box'"
    assert (entry.arguments[0].text, entry.returns, entry.text) == ("factor", "a new one", "Larger.")


def test_drawings_show_all_floors_flows_and_tables(collected):
    text = text_of(collected, "explanation/architecture.md")
    for floor in doc_diagrams.floors(ROOT):
        assert f">{floor} · " in text
    steps = doc_diagrams.flow_steps(ROOT)
    assert set(steps) == {p.stem for p in (ROOT / "flows").glob("*.py")}
    assert all(own for _, own in steps.values())
    assert {"bars", "predictions", "scores", "fundamentals"} <= set(doc_diagrams.lake_tables())


def test_decisions_score_their_options_and_say_when_to_choose_again():
    folder = ROOT / "nbs" / "guides" / "adr"
    for page in sorted(folder.glob("0*.md")):
        text = page.read_text(encoding="utf-8")
        for part in ("Chosen", "Why", "Options", "What follows", "Choose again if"):
            assert f"**{part}" in text, f"{page.name}: {part}"
        assert "**Options**" in text and re.search(r"\| [0-3]\b", text), page.name
        assert f"({page.name})" in (folder / "README.md").read_text(encoding="utf-8"), page.name


def test_each_subject_of_the_specification_has_a_decision():
    index = (ROOT / "nbs" / "guides" / "adr" / "README.md").read_text(encoding="utf-8")
    by_subject = next(line for line in index.splitlines() if line.startswith("By subject:"))
    decided = re.findall(r"([A-Za-z ]+?) \[\d+\]\((0[\w-]+\.md)\)", by_subject.removeprefix("By subject:"))
    subjects = "feature store, API framework, orchestration, ML framework, tracking, monitoring, deployment"
    assert {name.strip() for name, _ in decided} == {*subjects.split(", "), "storage"}
    assert len({page for _, page in decided}) == len(decided) == 8


# ---- code in the texts


def prose():
    "Every text with its name: Markdown files, and the prose of notebooks."
    for path in build_site.sources():
        if path.suffix == ".md":
            yield path, path.read_text(encoding="utf-8")
        else:
            cells = doc_notebooks.read(path)
            yield path, "\n\n".join(c["source"] for c in cells if c["cell_type"] == "markdown")
    yield from ((p, p.read_text(encoding="utf-8")) for p in [ROOT / "README.md"])
    yield from ((p, p.read_text(encoding="utf-8")) for p in (ROOT / "deploy" / "docs" / "pages").glob("*.md"))


def shell_lines(text):
    "What a reader would type: lines of blocks without a language or of a shell, and spans in the prose."
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        if language in ("", "bash", "sh", "shell"):
            yield from (line.strip().removeprefix("$ ") for line in block.splitlines())
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    yield from re.findall(r"`((?:stockpredict|make) [^`\n]+)`", rest)


def wrong_command(line, tree):
    "What is wrong with one line of the shell, or an empty text."
    words = re.sub(r"\s+#.*|[|>&;].*|\(.*|--settings \S+", "", line).split()
    command, parent = tree, None
    for n, word in enumerate(words[1:]):
        if hasattr(command, "commands") and word in command.commands:
            command, parent = command.commands[word], command
        elif hasattr(command, "commands") and re.fullmatch(r"[a-z][a-z-]+", word) and parent is None:
            return f"no command {word!r} in {line!r}"
        else:
            words = words[n + 1 :]
            break
    below = [p for own in getattr(command, "commands", {}).values() for p in own.params]  # `features WORD`
    known = {
        o for p in [*below, *command.params, *(parent or tree).params] for o in [*p.opts, *p.secondary_opts]
    }
    given = [word.split("=")[0] for word in words if word.startswith("--")]
    unknown = [option for option in given if option not in known | {"--help", "--set", "--settings"}]
    return f"{unknown} in {line!r}" if unknown else ""


def test_every_command_in_a_text_exists_with_its_options():
    import typer

    from stockpredict.cli.main import app

    tree = typer.main.get_command(app)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    wrong, seen = [], 0
    for path, text in prose():
        for line in shell_lines(text):
            if line.startswith("stockpredict "):
                problem = wrong_command(line, tree)
            elif line.startswith("make "):
                goals = re.sub(r'\s+#.*|[A-Z]+=("[^"]*"|\S*)|(?<=\s)-\S+', "", line).split()[1:]
                strange = [g.strip(",.") for g in goals if g.strip(",.") not in targets]
                problem = f"no target {strange} in {line!r}" if strange else ""
            else:
                continue
            seen += 1
            wrong += [f"{path.name}: {problem}"] if problem else []
    assert wrong == [] and seen > 150


def test_a_command_that_does_not_exist_is_found():
    import typer

    from stockpredict.cli.main import app

    tree = typer.main.get_command(app)
    assert wrong_command("stockpredict bakcup create", tree)
    assert wrong_command("stockpredict backup create --fast", tree)
    assert not wrong_command("stockpredict backup restore --to look  # a new folder", tree)


def test_python_in_texts_is_a_lesson_or_at_least_python():
    cells = doc_notebooks.read(ROOT / "nbs" / "index.ipynb")
    lessons = {doc_notebooks.FLAGS.sub("", c["source"]).strip() for c in cells if c["cell_type"] == "code"}
    readme = re.findall(r"^```python\n(.*?)\n```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert readme and set(readme) <= lessons  # which `make notebooks` runs
    for path, text in prose():
        for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
            ast.parse(block, filename=str(path))


# ---- the finished pages


def test_pages_fetch_nothing_from_elsewhere(site):
    assert len(list(site.rglob("*.html"))) > len(FEW)
    assert check_site.fetched_from_elsewhere(site) == []


def test_a_page_that_fetches_from_elsewhere_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<link href="https://fonts.example/f.css"><a href="https://ok.example">x</a>'
    )
    (tmp_path / "s.css").write_text("@import url(https://fonts.example/g.css);")
    assert len(check_site.fetched_from_elsewhere(tmp_path)) == 2


# colours that are still fading from one theme to the other have another contrast
AT_REST = "document.getAnimations().every(a => a.playState !== 'running')"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_are_accessible(site, browser, width, dark):
    browser.resize(width, 844, dark)
    for page in LOOKED_AT:
        browser.open((site / f"{page}.html").as_uri())
        wide = browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{page} scrolls sideways"
        browser.until(AT_REST)
        browser.run(AXE.read_text(encoding="utf-8") + "; true")
        report = "v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.target + ' ' + n.any.map(a => a.message))"
        assert browser.run(f"axe.run().then(r => r.violations.map({report}))") == [], page
        assert [url for url in browser.requested() if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_picture_of_the_front_page_is_not_enlarged_and_shows_the_verdict(site, browser, width):
    browser.resize(width, 844)
    browser.open((site / "index.html").as_uri())
    picture = "document.querySelector('img.peek')"
    browser.until(f"{picture}.naturalHeight > 0")
    sizes = "i.clientWidth, i.clientHeight, i.naturalWidth, i.naturalHeight"
    sizes = f"[{sizes}, getComputedStyle(i).objectPosition]"
    wide, high, own_width, own_height, position = browser.run(f"(i => {sizes})({picture})")
    scale = wide / own_width
    hidden = own_height - high / scale
    top = hidden * float(position.split()[1].rstrip("%")) / 100
    assert scale <= 1 and hidden >= 0
    assert top <= 490 and top + high / scale >= 800  # the verdict's lines in report.png


def test_the_search_works_from_the_folder_and_by_keyboard(site, browser):
    browser.resize(1280, 844)
    browser.open((site / "index.html").as_uri())
    browser.press("k", "KeyK", 75, 2)
    search = "document.activeElement?.shadowRoot"  # the search is a part of its own above the page
    browser.until(f"Boolean({search})")
    browser.type("rank_ic")
    browser.until(f"Boolean({search}?.querySelector('a[href*=metrics]'))")
    assert browser.errors() == []


def test_formulas_are_typeset_and_money_and_code_are_not():
    text = doc_notebooks.typeset(r"Costs $5 or $6; `$\rho$`; $\rho_t$ and $$a = \frac{1}{2}$$")
    assert text.startswith(r"Costs $5 or $6; `$\rho$`; <math") and text.count("<math") == 2
    assert 'display="block"' in text and "<mfrac>" in text
    formulas = [p for p in (ROOT / "nbs").rglob("*.ipynb") if "scale" not in p.stem]
    markdown = (c["source"] for p in formulas for c in doc_notebooks.read(p) if c["cell_type"] == "markdown")
    left = [t for source in markdown if "$\\" in (t := re.sub(r"`[^`]*`", "", doc_notebooks.typeset(source)))]
    assert left == []

"""The documentation site: `make docs`, or `python deploy/docs/build_site.py`.

Pages are collected as Markdown in `_proc/docs`, from the stored outputs of the notebooks, from the texts in
`nbs/guides` and from the program itself. Zensical turns them into `_docs`. Nothing is fetched, neither at the
build nor by a reader.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import check_site
import doc_api
import doc_diagrams
import doc_notebooks
import doc_reference

TUTORIAL = ("first_prediction",)
EXPLANATION = ("no_leaks",)  # beside everything in nbs/guides/explanation
ORDER = (
    "add_a_feature add_a_model add_a_source add_an_alert add_a_report catalogue serve operate monitoring "
    "restore governance release scale migrate_from_qlib migrate_from_notebooks"
).split()  # guides that are not named here follow by name
READ_FIRST = "honest_skill no_leaks bitemporal_data what_65_percent_accuracy_would_mean".split()
FACE = """# The names of `stockpredict`

`import stockpredict as sp` offers these, and loads each when you first use it.
"""


def place_of(path: Path) -> str:
    "Where a file of the repository stands in the site."
    parts = path.relative_to(ROOT).with_suffix(".md").parts
    name = re.sub(r"^\d\d_", "", parts[-1])
    if parts[0] == "deploy":
        return f"guides/deploy/{parts[1]}.md"
    if parts == ("nbs", "index.md"):
        return "tour.md"
    if parts[1] != "guides":
        return f"reference/{'/'.join(parts[1:-1])}/{name}"
    if parts[2] == "adr":
        return "decisions/index.md" if parts[-1] == "README.md" else f"decisions/{parts[-1]}"
    if parts[2] == "explanation" or path.stem in EXPLANATION:
        return f"explanation/{name}"
    return f"tutorial/{name}" if path.stem in TUTORIAL else f"guides/{name}"


def sources(root: Path = ROOT) -> list[Path]:
    "Every file that becomes a page."
    books = [p for p in (root / "nbs").rglob("*.ipynb") if not {"runs", ".ipynb_checkpoints"} & set(p.parts)]
    texts = [*(root / "nbs" / "guides").rglob("*.md"), *(root / "deploy").glob("*/README.md")]
    return sorted(books + texts)


def places() -> dict[str, str]:
    "Path in the repository -> page, pictures and folders included."
    result = {str(p.relative_to(ROOT)): place_of(p) for p in sources()}
    result |= {str(p.relative_to(ROOT)): f"img/{p.name}" for p in (ROOT / "nbs" / "images").glob("*")}
    result |= {f"nbs/{floor}": f"reference/{floor}/index.md" for floor in doc_diagrams.floors(ROOT)}
    result |= {"nbs/guides": "guides/index.md", "settings.ini": "reference/settings.md"}
    result |= {"README.md": "tour.md", "nbs/guides/adr": "decisions/index.md"}
    return result


def face_page(homes: dict[str, str]) -> str:
    "What `import stockpredict as sp` offers, with a link to each."
    source = (ROOT / "stockpredict" / "__init__.py").read_text(encoding="utf-8")
    home = re.search(r"^HOMES = (\{.*?^\})", source, re.M | re.S)
    rows = []
    modules = ast.literal_eval(home[1])
    for name in doc_api.public_names(source):
        if name in modules:
            entry = homes[f"{modules[name]}.{name}"]
            floor, module = modules[name].split(".")
            link = f"{floor}/{module}.md#{name}"
            rows.append([f"[`{name}`]({link})", doc_api.cell_text(entry.text.split("\n")[0])])
        else:
            rows.append([f"[`{name}`]({name}/index.md)", "the folder, which can be called and searched"])
    return FACE + "\n" + doc_api.table(["name", ""], rows)


def module_entries() -> dict[str, list[doc_api.Entry]]:
    "floor.module -> its public definitions and constants."
    result = {}
    for floor in doc_diagrams.floors(ROOT):
        for path in sorted((ROOT / "stockpredict" / floor).glob("*.py")):
            if path.stem == "__init__":
                continue
            source = path.read_text(encoding="utf-8")
            own = doc_api.entries(source)
            known = {entry.name for entry in own}
            names = [n for n in doc_api.public_names(source) if n not in known]
            result[f"{floor}.{path.stem}"] = own + doc_api.constants(source, names)
    return result


def api_pages(modules: dict, titles: dict[str, tuple[str, str]]) -> dict[str, str]:
    "The index of all names, and an index for each folder."
    homes = {f"{module}.{e.name}": e for module, own in modules.items() for e in own}
    pages, floors = {}, doc_diagrams.floors(ROOT)
    folders = []
    for floor in floors:
        rows, names = [], []
        for module, own in modules.items():
            if module.split(".")[0] != floor:
                continue
            page = f"{module.split('.')[1]}.md"
            title, about = titles.get(f"reference/{floor}/{page}", (module, ""))
            rows.append([f"[{doc_api.cell_text(title)}]({page})", doc_api.cell_text(about)])
            names += [f"[`{e.name}`]({page}#{e.name})" for e in own if e.kind != "method"]
        text = f"# {floor}\n\n{doc_api.table(['module', ''], rows)}\n\n## Names\n\n{' · '.join(names)}\n"
        pages[f"reference/{floor}/index.md"] = text
        folders.append(
            [f"[{floor}]({floor}/index.md)", "; ".join(r[0].split("]")[0][1:] for r in rows[:4]) + " …"]
        )
    face = face_page(homes)
    pages["reference/api.md"] = (
        f"{face}\n\n## Folders, from bottom to top\n\n"
        "A folder imports only from the folders above it in this table.\n\n"
        f"{doc_api.table(['folder', 'begins with'], folders)}\n"
    )
    return pages


def with_constants(text: str, entries: list[doc_api.Entry]) -> str:
    "A module's page with the names that its cells do not define by `def` or `class`."
    absent = [e for e in entries if f"{{ #{e.name} " not in text]
    if not absent:
        return text
    return text + "\n\n## Other names\n\n" + "\n\n".join(doc_api.entry_markdown(e) for e in absent) + "\n"


def listing(title: str, about: str, pages: list[str], titles: dict, folder: str) -> str:
    "An index of pages with their sentences."
    lines = []
    for page in pages:
        name, text = titles[page]
        link = os.path.relpath(page, folder)
        lines.append(f"- [{name}]({link})" + (f": {text[:1].lower() + text[1:]}" if text else ""))
    return f"# {title}\n\n{about}\n\n" + "\n".join(lines) + "\n"


def in_order(pages: list[str], order: list[str]) -> list[str]:
    "Pages in the order of a list of names, then the others."
    rank = {name: n for n, name in enumerate(order)}
    return sorted(pages, key=lambda p: ("/deploy/" in p, rank.get(Path(p).stem, len(rank)), p))


def text_of(name: str) -> str:
    "One of the pages that are written by hand."
    return (HERE / "pages" / f"{name}.md").read_text(encoding="utf-8")


def collect(out: Path) -> list:
    "Write all pages into a folder; the navigation is returned."
    links = doc_notebooks.Links(places())
    converter = doc_notebooks.Converter(out, links)
    modules, titles, pages = module_entries(), {}, {}
    for path in sources():
        page, name = place_of(path), str(path.relative_to(ROOT))
        if path.suffix == ".ipynb":
            titles[page] = doc_notebooks.title_of(doc_notebooks.read(path))
            pages[page] = converter.page(path, name, page)
        else:
            text = path.read_text(encoding="utf-8")
            title = re.search(r"^# (.+)$", text, re.M)[1]
            titles[page] = (title + (f" (deploy/{path.parent.name})" if "/deploy/" in page else ""), "")
            pages[page] = links.rewrite(text, name, page)
    for module, own in modules.items():
        page = f"reference/{module.replace('.', '/')}.md"
        if page in pages:
            pages[page] = with_constants(pages[page], own)
        else:
            pages[page] = f"# {module}\n\n" + "\n\n".join(doc_api.entry_markdown(e) for e in own) + "\n"
    pages |= api_pages(modules, titles)
    pages |= {page: write() for page, write in doc_reference.PAGES.items()}
    pages["explanation/architecture.md"] = doc_diagrams.architecture_page(text_of("architecture"), ROOT)
    nav = navigation(pages, titles, modules)
    for name in ("index", "install", "reference"):
        target = "reference/index.md" if name == "reference" else f"{name}.md"
        pages[target] = text_of(name)
    for page, text in pages.items():
        (out / page).parent.mkdir(parents=True, exist_ok=True)
        (out / page).write_text(text, encoding="utf-8")
    for picture in (ROOT / "nbs" / "images").glob("*"):
        shutil.copy(picture, out / "img" / picture.name)
    for own in ("site.css", "site.js"):
        shutil.copy(HERE / own, out / own)
    return nav


def navigation(pages: dict, titles: dict, modules: dict) -> list:
    "The tree of pages; it also writes the index pages of guides, explanation and decisions."
    guides = in_order([p for p in pages if p.startswith("guides/")], ORDER)
    thoughts = in_order([p for p in pages if p.startswith("explanation/") and p in titles], READ_FIRST)
    decisions = sorted(p for p in pages if p.startswith("decisions/0"))
    titles["explanation/architecture.md"] = (
        "Architecture, drawn from the code",
        "Folders, flows and tables.",
    )
    thoughts.append("explanation/architecture.md")
    pages["guides/index.md"] = listing(
        "Guides",
        "Each answers one question, runs offline, and takes about ten minutes.",
        guides,
        titles,
        "guides",
    )
    pages["explanation/index.md"] = listing(
        "Explanation",
        "Why it is built as it is, and what its numbers mean.",
        thoughts,
        titles,
        "explanation",
    )
    floors = [
        {
            floor: [f"reference/{floor}/index.md"]
            + [f"reference/{m.replace('.', '/')}.md" for m in modules if m.split(".")[0] == floor]
        }
        for floor in doc_diagrams.floors(ROOT)
    ]
    floors = [{k: [p for p in v if p in pages] for k, v in floor.items()} for floor in floors]
    named = [{"Commands": "reference/cli.md"}, {"REST API": "reference/rest.md"}]
    named += [{"Settings": "reference/settings.md"}, {"Error codes": "reference/errors.md"}]
    named += [{"Metrics": "reference/metrics.md"}, {"Alerts": "reference/alerts.md"}]
    tutorial = [{"Install": "install.md"}, "tutorial/first_prediction.md", {"Tour": "tour.md"}]
    return [
        {"Start": "index.md"},
        {"Tutorial": [p for p in tutorial if isinstance(p, dict) or p in pages]},
        {"Guides": ["guides/index.md", *({titles[p][0]: p} if "/deploy/" in p else p for p in guides)]},
        {"Reference": ["reference/index.md", *named, {"Python": ["reference/api.md", *floors]}]},
        {"Explanation": ["explanation/index.md", *thoughts]},
        {"Decisions": ["decisions/index.md", *decisions]},
    ]


def configuration(nav: list) -> dict:
    "What Zensical reads; no font, script or picture comes from another host."
    light, dark = ("default", "slate"), ("Dark", "Light")
    return {
        "site_name": "stockpredict",
        "docs_dir": "docs",
        "site_dir": "site",
        "use_directory_urls": False,
        "theme": {
            "variant": "modern",
            "font": False,
            "features": [
                "navigation.tabs",
                "navigation.indexes",
                "navigation.prune",
                "navigation.top",
                "navigation.footer",
                "search.highlight",
                "content.code.copy",
                "toc.follow",
            ],
            "palette": [
                {"scheme": scheme, "media": f"(prefers-color-scheme: {media})"}
                | {"toggle": {"icon": "lucide/sun-moon", "name": f"{name} colours"}}
                for scheme, media, name in zip(light, ("light", "dark"), dark, strict=True)
            ],
        },
        "extra_css": ["site.css"],
        "extra_javascript": ["site.js"],
        "plugins": [{"search": {}}, {"offline": {}}],
        "extra": {"generator": False},
        "markdown_extensions": [
            "admonition",
            "attr_list",
            "def_list",
            "md_in_html",
            "tables",
            {"toc": {"permalink": "¶", "permalink_title": "Link to this section", "toc_depth": 3}},
            {"pymdownx.highlight": {"pygments_lang_class": True}},
            "pymdownx.inlinehilite",
            "pymdownx.superfences",
            "pymdownx.details",
        ],
        "nav": nav,
    }


SHIM = "https://unpkg.com/iframe-worker/shim"


def use_own_shim(site: Path):
    "The one script that the offline plugin takes from another host comes from this folder instead."
    shutil.copy(HERE / "vendor" / "iframe-worker-shim.js", site / "assets")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        depth = "../" * (len(page.relative_to(site).parts) - 1)
        page.write_text(text.replace(SHIM, f"{depth}assets/iframe-worker-shim.js"), encoding="utf-8")


def render(work: Path, site: Path, nav: list):
    "Turn the collected pages of a work folder into a site."
    file = work / "mkdocs.yml"  # JSON is YAML
    file.write_text(json.dumps(configuration(nav), indent=1), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--config-file", str(file)]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if done.returncode or not (work / "site" / "index.html").exists():
        sys.exit(f"The site was not built.\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    use_own_shim(work / "site")
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(work / "site", site)


def build(work: Path, site: Path) -> float:
    "Collect and render; seconds that it took."
    started = time.monotonic()
    shutil.rmtree(work, ignore_errors=True)
    (work / "docs").mkdir(parents=True)
    nav = collect(work / "docs")
    render(work, site, nav)
    return time.monotonic() - started


def main(arguments):
    ask = argparse.ArgumentParser(description="Build the documentation site.")
    ask.add_argument("--work", type=Path, default=ROOT / "_proc", help="folder for the collected pages")
    ask.add_argument("--site", type=Path, default=ROOT / "_docs", help="folder for the finished site")
    options = ask.parse_args(arguments)
    seconds = build(options.work.resolve(), options.site.resolve())
    problems = check_site.broken_links(options.site) + check_site.fetched_from_elsewhere(options.site)
    pages = len(list(options.site.rglob("*.html")))
    elsewhere = len(check_site.external_links(options.site))
    print(f"{pages} pages in {seconds:.0f} s; {elsewhere} addresses outside, which are not followed here")
    if problems:
        sys.exit("\n".join([*problems[:40], f"{len(problems)} problems."]))
    print(f"Open {os.path.relpath(options.site / 'index.html')}, from the folder or from any web server.")


if __name__ == "__main__":
    main(sys.argv[1:])

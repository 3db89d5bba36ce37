"""What must hold of a finished site: every link and anchor leads somewhere, and nothing is fetched from
elsewhere."""

import functools
import html
import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown.extensions.toc import slugify

TAG = re.compile(r"<(\w+)\b([^>]*)>")
ATTRIBUTE = re.compile(r"""\b(href|src|srcset|id|name)=(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
FETCHED = re.compile(
    r"""@import\s+(?:url\()?["']?(https?:[^"')]+)|url\(["']?(https?:[^"')]+)|"""
    r"""\b(?:fetch|import|importScripts)\(["'](https?:[^"']+)"""
)


@functools.cache
def anchors_and_links(page: Path) -> tuple[frozenset[str], tuple[tuple[str, str], ...]]:
    "Anchors of a page, and its (tag, address) pairs."
    inside = r"""<script\b(?![^>]*\bsrc=).*?</script>|<!--.*?-->|\bsrcdoc="[^"]*\""""
    text = re.sub(inside, "", page.read_text("utf-8"), flags=re.S)
    anchors, links = set(), []
    for tag, inside in TAG.findall(text):
        for kind, *values in ATTRIBUTE.findall(inside):
            value = html.unescape(next((v for v in values if v), ""))
            if kind in ("id", "name"):
                anchors.add(value)
            elif tag != "base":
                links.append((tag.lower(), value))
    return frozenset(anchors), tuple(links)


def broken_links(site: Path) -> list[str]:
    "A sentence for each internal link whose page or anchor is absent."
    site, wrong = site.resolve(), []
    for page in sorted(site.rglob("*.html")):
        for _, address in set(anchors_and_links(page)[1]):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or page.name == "404.html":
                continue
            path = unquote(parts.path)
            target = Path(os.path.normpath(page.parent / path)) if path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                wrong.append(f"{page.relative_to(site)}: {address} leads nowhere.")
            elif parts.fragment and target.suffix == ".html":
                names = anchors_and_links(target)[0]
                if unquote(parts.fragment) not in names and not parts.fragment.startswith("__"):
                    wrong.append(f"{page.relative_to(site)}: {address} has no such anchor.")
    return wrong


def page_anchors(text: str) -> set[str]:
    "Anchors of a page of Markdown."
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    anchors = set(re.findall(r'\bid="([^"]+)"', prose))
    for heading in re.findall(r"^#+ (.+)$", prose, re.M):
        own = re.search(r"\{[^}]*#(\S+)[^}]*\}\s*$", heading)
        anchors.add(own[1] if own else slugify(re.sub(r"[`*]|\]\([^)]*\)", "", heading), "-"))
    return anchors


def broken_in_markdown(docs: Path) -> list[str]:
    "A sentence for each link between collected pages that leads nowhere."
    texts = {page: page.read_text("utf-8") for page in sorted(docs.rglob("*.md"))}
    anchors, wrong = {page: page_anchors(text) for page, text in texts.items()}, []
    for page, text in texts.items():
        prose = re.sub(r"^```.*?^```|(?<!\[)`[^`\n]+`(?!\])", "", text, flags=re.M | re.S)
        for address in re.findall(r"\]\(([^)\s]+)\)", prose):
            path, _, anchor = address.partition("#")
            if re.match(r"[a-z]+:", address):
                continue
            target = Path(os.path.normpath(page.parent / path)) if path else page
            if not target.exists():
                wrong.append(f"{page.relative_to(docs)}: {address} leads nowhere.")
            elif anchor and target in anchors and anchor not in anchors[target]:
                wrong.append(f"{page.relative_to(docs)}: {address} has no such anchor.")
    return wrong


def external_links(site: Path) -> list[str]:
    "Addresses outside the site that a reader may follow."
    result = {
        address
        for page in site.rglob("*.html")
        for tag, address in anchors_and_links(page)[1]
        if tag == "a" and urlsplit(address).scheme in ("http", "https")
    }
    return sorted(result)


def fetched_from_elsewhere(site: Path) -> list[str]:
    "A sentence for each address on another host that a page loads by itself."
    wrong = []
    for page in sorted(site.rglob("*.html")):
        for tag, address in anchors_and_links(page)[1]:
            if tag != "a" and (urlsplit(address).scheme in ("http", "https") or address.startswith("//")):
                wrong.append(f"{page.relative_to(site)}: <{tag}> loads {address}.")
    for file in [*site.rglob("*.css"), *(site / "assets").rglob("*.html")]:
        for groups in FETCHED.findall(file.read_text("utf-8")):
            wrong.append(f"{file.relative_to(site)} loads {next(filter(None, groups))}.")
    return wrong


if __name__ == "__main__":
    place = Path(sys.argv[1])
    problems = broken_links(place) + fetched_from_elsewhere(place)
    print("\n".join(problems[:60]))
    print(f"{len(problems)} problems; {len(external_links(place))} addresses elsewhere")
    sys.exit(bool(problems))

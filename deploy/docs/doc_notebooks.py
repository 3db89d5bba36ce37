"""A notebook as one page of Markdown, from its stored outputs: nothing is run."""

import ast
import base64
import hashlib
import itertools
import json
import posixpath
import re
from pathlib import Path

from doc_api import entries, entry_markdown
from latex2mathml.converter import convert

FLAGS = re.compile(r"^#\|.*\n?", re.M)
EXPORTED = re.compile(r"^#\|\s*export[is]?\b", re.M)
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp)\b", re.M)
LINK = re.compile(
    r"(?P<code>^```.*?^```|(?<!\[)`[^`\n]+`(?!\]))|(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s]+)\)",
    re.M | re.S,
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MATH = re.compile(  # a formula has a command, an index, a power or an equation: "$5 or $6" is money
    r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$(?=[^\s$])([^$\n]*?[\\^_=][^$\n]*?)(?<=\S)\$", re.S
)


def typeset(text: str) -> str:
    "Markdown with its formulas as MathML, which a browser sets without a script."

    def change(match):
        code, block, inline = match.groups()
        if code:
            return code
        return convert(" ".join((block or inline).split()), display="block" if block else "inline")

    return MATH.sub(change, text)


def read(path: Path) -> list[dict]:
    "The cells of a notebook."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


def title_of(cells: list[dict]) -> tuple[str, str]:
    "Title and sentence below it."
    text = next((c["source"] for c in cells if c["cell_type"] == "markdown"), "")
    title = re.search(r"^# (.+)$", text, re.M)
    about = re.search(r"^> (.+)$", text, re.M)
    return (title[1].strip() if title else ""), (about[1].strip() if about else "")


def is_code(cell: dict) -> bool:
    return cell["cell_type"] == "code"


class Links:
    "Where each file of the repository stands in the site."

    def __init__(self, places: dict[str, str]):
        self.places = places  # path from the root of the repository -> page

    def rewrite(self, text: str, source: str, page: str) -> str:
        "Links between files become links between pages."

        def change(match):
            _, mark, words, target = match.groups()
            if match["code"] or re.match(r"[a-z]+:|#", target):
                return match[0]
            path, _, anchor = target.partition("#")
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
            place = self.places.get(path) or self.places.get(f"{path}/README.md")
            if place is None:
                return words  # a file without a page
            link = posixpath.relpath(place, posixpath.dirname(page) or ".")
            return f"{mark}[{words}]({link}{'#' + anchor if anchor else ''})"

        return LINK.sub(change, text)


def _alt(source, heading):
    "What a picture shows: the title that its cell gives it, else the heading above."
    texts = []
    for node in ast.walk(ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        titles = [k.value for k in node.keywords if k.arg in ("title", "suptitle")]
        titles += node.args[:1] if name in ("set_title", "suptitle", "plot") else []
        titles += node.args[1:2] if name == "flow_chart" else []
        texts += [t.value for t in titles if isinstance(t, ast.Constant) and isinstance(t.value, str)]
    return "; ".join(dict.fromkeys(t.replace("\n", " ") for t in texts)) or f"Figure: {heading}"


class Converter:
    "Turns notebooks into pages, and their pictures into files."

    def __init__(self, out: Path, links: Links):
        self.out, self.links = out, links
        (out / "img").mkdir(parents=True, exist_ok=True)

    def picture(self, data: str, meta: dict, alt: str, page: str) -> str:
        raw = base64.b64decode(data)
        name = f"img/{hashlib.sha256(raw).hexdigest()[:16]}.png"
        (self.out / name).write_bytes(raw)
        link = posixpath.relpath(name, posixpath.dirname(page) or ".")
        width = meta.get("image/png", {}).get("width")
        size = f' width="{width}"' if width else ""
        alt = alt.replace('"', "'").replace("<", "&lt;")
        return f'<img src="{link}" alt="{alt}"{size} loading="lazy">'

    def output(self, out: dict, alt: str, page: str) -> str:
        "One stored output, or an empty text."
        data = {k: v if isinstance(v, dict) else "".join(v) for k, v in out.get("data", {}).items()}
        if "image/png" in data:
            picture = self.picture(data["image/png"], out.get("metadata", {}), alt, page)
            return f'<div class="output">{picture}</div>'
        shown = data.get("text/html") or data.get("image/svg+xml")
        if shown:
            shown = re.sub(r"<(style|script)\b.*?</\1>", "", shown, flags=re.S)
            shown = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|</?(html|body|head)\b[^>]*>", "", shown, flags=re.S)
            shown = re.sub(r"""\s(href|src|action)=(["'])(?!#|data:).*?\2""", "", shown)  # of another server
            shown = re.sub(r'(<table\b[^>]*?) border="\d+"', r"\1", re.sub(r"\n\s*\n+", "\n", shown.strip()))
            return f'<div class="output" tabindex="0" role="region" aria-label="Output">\n{shown}\n</div>'
        if data.get("text/markdown"):
            return data["text/markdown"]
        text = COLOUR.sub("", data.get("text/plain") or "".join(out.get("text", ""))).rstrip()
        return f"```{{ .text .answer }}\n{text}\n```" if text else ""

    def code(self, cell: dict, heading: str, page: str) -> list[str]:
        "The blocks of one code cell."
        source = FLAGS.sub("", cell["source"]).strip("\n")
        if EXPORTED.search(cell["source"]):
            return self.exported(source)
        if not source or HIDDEN.search(cell["source"]):
            return []
        shown = re.sub(r";$", "", source)
        blocks = [f"```python\n{shown}\n```"]
        return blocks + [
            b for o in cell["outputs"] for b in [self.output(o, _alt(source, heading), page)] if b
        ]

    def exported(self, source: str) -> list[str]:
        "Public definitions of a cell of the package."
        return [entry_markdown(entry) for entry in entries(source)]

    def page(self, path: Path, source: str, page: str) -> str:
        "A whole notebook; `source` is its path in the repository, `page` its place in the site."
        blocks, heading, module = [], "", ""
        for cell in read(path):
            exported_to = re.search(r"^#\|\s*default_exp\s+(\S+)", cell["source"], re.M)
            module = exported_to[1] if exported_to else module
            if cell["cell_type"] == "markdown":
                headings = re.findall(r"^#+ (.+)$", cell["source"], re.M)
                heading = headings[-1] if headings else heading
                blocks.append(typeset(self.links.rewrite(cell["source"], source, page)))
            elif is_code(cell):
                blocks += self.code(cell, heading, page)
        if module:
            where = f"`stockpredict.{module}`, defined and tested in `{source}`"
            blocks.append(f'<p class="place" markdown>Module {where}</p>')
        text, number = "\n\n".join(blocks) + "\n", itertools.count(1)
        return re.sub(r'(?<=aria-label="Output)(?=">)', lambda _: f" {next(number)}", text)

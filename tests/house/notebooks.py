"""Reading the notebooks of a tree, for the laws of the house."""

import ast
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

EXPORT = re.compile(r"^#\|\s*export[is]?\b", re.M)
MAGIC = re.compile(r"\s*(?:%%?[a-z]|!)")
NUMBERED = re.compile(r"^(\d\d)_(\w+)$")


@dataclass
class NotebookFile:
    "One notebook of `nbs/`, as the laws see it."

    path: Path
    nbs: Path
    cells: list = field(repr=False, default_factory=list)

    @classmethod
    def read(cls, path: Path, nbs: Path) -> "NotebookFile":
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, nbs, raw["cells"])

    @property
    def name(self) -> str:
        return str(self.path.relative_to(self.nbs))

    @property
    def folder(self) -> str:
        parent = str(self.path.parent.relative_to(self.nbs))
        return "" if parent == "." else parent

    @property
    def number(self) -> str | None:
        result = NUMBERED.match(self.path.stem)
        return result[1] if result else None

    @property
    def default_exp(self) -> str | None:
        result = [
            m[1]
            for c in self.code()
            for m in [re.search(r"^#\|\s*default_exp\s+(\S+)", source(c), re.M)]
            if m
        ]
        return result[0] if len(result) == 1 else None if not result else "twice"

    def code(self) -> list:
        return [c for c in self.cells if c["cell_type"] == "code"]

    def exported(self) -> list:
        return [c for c in self.code() if EXPORT.search(source(c))]

    def imports(self, package: str = "stockpredict") -> set[str]:
        """Every module of the package that this notebook imports, at any depth of nesting; lessons may
        draw, and use test doubles."""
        aids = (f"{package}.testing", f"{package}.core.figures")
        lessons = modules([c for c in self.code() if not EXPORT.search(source(c))], package)
        return modules(self.exported(), package) | {m for m in lessons if not m.startswith(aids)}


def modules(cells: list, package: str) -> set[str]:
    "Every module of the package that these cells import, and every name they take from one."
    result = set()
    for cell in cells:
        for node in ast.walk(ast.parse(plain(cell))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
                result |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
            if isinstance(node, ast.Import):
                result |= {a.name for a in node.names if a.name.split(".")[0] == package}
    return result


def source(cell) -> str:
    return "".join(cell["source"])


def plain(cell) -> str:
    "The cell's Python without shell escapes and magics."
    return "\n".join("pass" if MAGIC.match(line) else line for line in source(cell).split("\n"))


def read_all(nbs: Path) -> list[NotebookFile]:
    paths = sorted(
        p for p in nbs.rglob("*.ipynb") if not any(s.startswith((".", "_")) for s in p.relative_to(nbs).parts)
    )
    return [NotebookFile.read(p, nbs) for p in paths]


def floors(root: Path) -> list[str]:
    "The folders of the house from bottom to top, as `pyproject.toml` lists them."
    return tomllib.loads((root / "pyproject.toml").read_text())["tool"]["stockpredict"]["floors"]


def places(notebooks, order: list[str]) -> dict[str, tuple[int, str]]:
    "Module name of each numbered notebook, with its floor and its number there."
    return {
        f"stockpredict.{nb.default_exp}": (order.index(nb.folder), nb.number)
        for nb in notebooks
        if nb.default_exp and nb.number is not None
    }


def upward_imports(notebooks, order: list[str]) -> list[str]:
    "One sentence for every import that does not go down."
    place = places(notebooks, order)
    return [
        f"{nb.name} imports {module}; a notebook imports only from lower floors, or lower numbers of its own."
        for nb in notebooks
        if nb.default_exp and nb.number is not None
        for own in [f"stockpredict.{nb.default_exp}"]
        for module in sorted(nb.imports())
        if module in place and module != own and place[module] >= place[own]
    ]

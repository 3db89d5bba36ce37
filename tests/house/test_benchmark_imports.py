"""Benchmarks run seldom: a name that moved must not break one unseen."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def module_file(module: str) -> Path:
    "Where the code of a module of the package stands."
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def names_of(file: Path) -> set[str]:
    "What a module offers at its top level."
    names = set()
    for node in ast.parse(file.read_text()).body:
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(part.name)
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                names.add(part.id)
            elif isinstance(part, ast.Import | ast.ImportFrom):
                names |= {(alias.asname or alias.name).split(".")[0] for alias in part.names}
    return names


def missing_imports(text: str) -> list[str]:
    "Names that a script imports from the package and that are not there."
    gone = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("stockpredict."):
            continue
        file = module_file(node.module)
        names = names_of(file) if file.exists() else set()
        if file.name == "__init__.py":
            names |= {path.stem for path in file.parent.iterdir()}
        gone += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in names]
    return gone


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(script):
    assert missing_imports(script.read_text()) == []


def test_a_name_that_moved_is_seen():
    wrong = "from stockpredict.core.sections import Alerts\nfrom stockpredict.no.such import x"
    assert missing_imports(wrong) == ["stockpredict.core.sections.Alerts", "stockpredict.no.such.x"]
    assert missing_imports("from stockpredict.core import sections") == []

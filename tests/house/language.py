"""What the language of the house asks of a notebook, as functions that return sentences."""

import ast
import functools
import importlib.metadata
import re
import tomllib

from notebooks import EXPORT, NotebookFile, plain, source

# Names that do not say what is in them.
EMPTY_NAMES = {"said", "told", "made", "held", "found"}
# Words of an older plan; each has a better one.
OLD_NAMES = {
    "with_needs",
    "Wish",
    "wishes",
    "Letters",
    "letters",
    "without_doubt",
    "keeps_promises",
    "keep_house",
    "Front",
    "Patient",
    "wounds",
    "wound",
}
RIDDLES = re.compile(
    r"nobody pays|a shop that one|in haste and with delay|whoever lets|Is the ruler straight|is well again|"
    r"what somebody still|Known are:|Served is|Damaged is|It is no JSON|stands in it\b|What moved will it|"
    r"\bwounds?\b",
)
PUBLIC = re.compile(r"^#\|\s*exports?\b", re.M)  # `exporti` keeps a name out of `__all__`


def names(text: str) -> set[str]:
    "Names that a piece of Python gives to things; attributes and keyword arguments belong to other code."
    given = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name):
            given.add(node.id)
        elif isinstance(node, ast.arg):
            given.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            given.add(node.name)
        elif isinstance(node, ast.alias) and node.asname:
            given.add(node.asname)
    return given


def definitions(cell) -> list:
    "Functions and classes that a cell defines at its top level."
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [n for n in ast.parse(plain(cell)).body if isinstance(n, kinds)]


def crowded_cells(nb: NotebookFile) -> list[str]:
    """Exported cells that define more than one idea; a family of formulas and a tree of errors may stand
    together."""
    most = 4 if nb.folder == "features" else 2
    return [
        f"{nb.name} [{c['id']}]: {n} definitions in one exported cell, wall {most}"
        for c in nb.exported()
        if (n := sum(1 for d in definitions(c) if not _bare_class(d))) > most
    ]


def _bare_class(definition) -> bool:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(definition, ast.ClassDef) and not any(isinstance(n, kinds) for n in definition.body)


def silent_arguments(nb: NotebookFile) -> list[str]:
    "Arguments of public functions without a comment beside them or above them."
    missing = []
    for c in nb.exported():
        if not PUBLIC.search(source(c)):
            continue
        lines = plain(c).split("\n")
        for f in [m for d in definitions(c) for m in ([d] if not isinstance(d, ast.ClassDef) else d.body)]:
            if not isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if f.name.startswith("_") and f.name != "__init__":
                continue
            missing += [
                f"{nb.name} [{c['id']}]: {f.name}({a.arg}) has no docment"
                for a in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
                if a.arg not in ("self", "cls") and not documented(a, lines)
            ]
    return missing


def documented(arg: ast.arg, lines: list[str]) -> bool:
    "Has this argument a comment on its line, on the line its default ends, or directly above?"
    here, above = lines[arg.lineno - 1], lines[arg.lineno - 2].strip() if arg.lineno > 1 else ""
    follows = "\n".join(lines[arg.lineno - 1 : arg.lineno + 6])
    closed = re.search(r",[^\S\n]*#", follows) if "(" in here or "[" in here or "{" in here else None
    return "#" in here or above.startswith("#") or bool(closed)


def empty_names(nb: NotebookFile) -> list[str]:
    return [
        f"{nb.name} [{c['id']}]: {', '.join(sorted(bad))} does not say what is in it"
        for c in nb.code()
        if (bad := names(plain(c)) & (EMPTY_NAMES | OLD_NAMES))
    ]


def riddles(nb: NotebookFile) -> list[str]:
    return [f"{nb.name} [{c['id']}]: {m[0]!r}" for c in nb.cells for m in RIDDLES.finditer(source(c))]


def lessons_per_export(nb: NotebookFile) -> float:
    return sum(1 for c in nb.code() if not EXPORT.search(source(c))) / max(1, len(nb.exported()))


def public_names(nb: NotebookFile) -> list[str]:
    "What a notebook puts into `__all__`."
    return [
        t.id if isinstance(t, ast.Name) else t.name
        for c in nb.exported()
        if PUBLIC.search(source(c))
        for n in ast.parse(plain(c)).body
        for t in (n.targets if isinstance(n, ast.Assign) else [n])
        if isinstance(t, ast.Name | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not (t.id if isinstance(t, ast.Name) else t.name).startswith("_")
        and not any("patch" in ast.unparse(d) for d in getattr(t, "decorator_list", []))
    ]


def is_patch(definition) -> bool:
    "Is this a method that is added to a class defined elsewhere?"
    return any("patch" in ast.unparse(decorator) for decorator in definition.decorator_list)


# Declared although nothing here imports them, each with the reason.
NEEDED_BY_OTHERS = {
    "duckdb-extensions": "the folder in which the wheels of the extensions below are found",
    "duckdb-extension-ducklake": "an extension that DuckDB loads",
    "duckdb-extension-sqlite-scanner": "an extension that DuckDB loads",
    "duckdb-extension-postgres-scanner": "an extension that DuckDB loads",
    "duckdb-extension-httpfs": "an extension that DuckDB loads",
    "pytz": "DuckDB needs it to return times with a zone",
    "ipykernel": "the process in which Papermill runs a notebook",
    "uvloop": "uvicorn takes it when it is there",
    "httptools": "uvicorn takes it when it is there",
    "websockets": "uvicorn speaks WebSocket with it",
    "jsonschema": "held below the version that builds a grammar at import",
    "scipy": "numba and the statistics of numpy need it",
    "sqlalchemy": "held below the version that breaks Prefect's scheduler",
    "arch": "its bundled index data are the source `indices`",
    "skfolio": "its bundled prices are the source `sample`",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared_packages(pyproject) -> set[str]:
    "Distributions that the package needs at run time."
    lines = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}


def optional_packages(pyproject) -> set[str]:
    "Distributions of the extras that a user installs for one purpose."
    extras = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
    lines = [line for name, lines in extras.items() if name != "dev" for line in lines]
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}


LOADERS = ("find_spec", "import_module", "files")  # they name a package without importing it


def imported_packages(tree) -> set[str]:
    "Top-level packages that a module imports, at any depth of nesting."
    packages = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            packages.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(LOADERS):
            packages |= {str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return packages - {"stockpredict"}


@functools.cache
def packages_installed() -> dict:
    "Distributions by the package they bring; asked once, because it reads the record of each."
    return importlib.metadata.packages_distributions()


def providers(packages: set[str]) -> set[str]:
    "Distributions that bring these packages; the standard library brings none."
    homes = packages_installed()
    return {normal(name) for package in packages for name in homes.get(package, [])}


def required(names: set[str]) -> set[str]:
    "These distributions and what they ask for, one step down."
    more = set(names)
    for name in names:
        for line in importlib.metadata.requires(name) or []:
            more.add(normal(re.match(r"[\w.-]+", line)[0]))
    return more

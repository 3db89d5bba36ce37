"""The laws of the house: where things live, how large they grow, what they may import."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks import EXPORT, NotebookFile, floors, plain, read_all, source, upward_imports

# A notebook on this list stands beyond a wall until the date beside it.
BEYOND_THE_WALL: dict[str, str] = {
    "testing/06_fake_vendors.ipynb": "2026-12-01",
}


def reference(notebooks):
    return [nb for nb in notebooks if nb.default_exp]


def runs(notebooks):
    return [nb for nb in notebooks if nb.folder == "runs"]


def test_a_notebook_imports_only_from_below(notebooks, root):
    assert upward_imports(notebooks, floors(root)) == []


def test_every_folder_has_its_floor(notebooks, root):
    assert sorted({nb.folder for nb in notebooks if nb.default_exp}) == sorted(floors(root))


def write_notebook(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    body = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": {},
            "outputs": [],
            "execution_count": None,
            "source": c,
        }
        for i, c in enumerate(cells)
    ]
    path.write_text(json.dumps({"cells": body, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


@pytest.mark.parametrize(
    "line",
    [
        "from stockpredict.serve.app import create_app",
        "import stockpredict.serve.app",
        "from stockpredict.serve import app",
        "def later():\n    from stockpredict.serve.app import create_app",
    ],
)
def test_an_upward_import_is_found(tmp_path, line):
    write_notebook(tmp_path / "core" / "30_low.ipynb", "#| default_exp core.low", f"#| export\n{line}")
    write_notebook(
        tmp_path / "serve" / "20_app.ipynb",
        "#| default_exp serve.app",
        "#| export\nfrom stockpredict.core.low import later",
    )
    result = upward_imports(read_all(tmp_path), ["core", "serve"])
    assert len(result) == 1 and "core/30_low.ipynb imports stockpredict.serve.app" in result[0]


def test_an_import_from_a_higher_number_of_the_same_folder_is_found(tmp_path):
    write_notebook(
        tmp_path / "core" / "00_low.ipynb", "#| default_exp core.low", "from stockpredict.core.high import x"
    )
    write_notebook(tmp_path / "core" / "10_high.ipynb", "#| default_exp core.high", "#| export\nx = 1")
    assert len(upward_imports(read_all(tmp_path), ["core"])) == 1


def test_one_module_per_notebook_of_the_same_name_in_the_same_folder(notebooks):
    wrong = [
        f"{nb.name} exports {nb.default_exp}"
        for nb in notebooks
        if nb.number is not None
        and nb.default_exp
        != ".".join(filter(None, [nb.folder.replace("/", "."), nb.path.stem.partition("_")[2]]))
    ]
    assert wrong == []


def test_numbers_are_unique_in_their_folder(notebooks):
    taken = [(nb.folder, nb.number) for nb in notebooks if nb.number is not None]
    assert len(taken) == len(set(taken))


def test_no_module_without_its_notebook(notebooks, root):
    born = {nb.default_exp.replace(".", "/") + ".py" for nb in reference(notebooks)}
    here = {
        str(p.relative_to(root / "stockpredict"))
        for p in (root / "stockpredict").rglob("*.py")
        if p.name not in ("__init__.py", "_modidx.py")
    }
    assert here - born == set(), "stale modules: delete them or give them a notebook"
    assert born - here == set(), "never exported: run nbdev-export"


def test_modules_are_what_the_notebooks_say(root, tmp_path):
    "The committed package equals a fresh export into an empty copy of the tree."
    for name in ("nbs", "pyproject.toml"):
        subprocess.run(["cp", "-r", root / name, tmp_path / name], check=True)
    (tmp_path / "stockpredict").mkdir()
    (tmp_path / "stockpredict" / "__init__.py").write_text(
        (root / "stockpredict" / "__init__.py").read_text()
    )
    subprocess.run(
        [Path(sys.executable).with_name("nbdev-export")], cwd=tmp_path, check=True, capture_output=True
    )
    fresh = {
        str(p.relative_to(tmp_path)): p.read_text()
        for p in (tmp_path / "stockpredict").rglob("*.py")
        if p.stat().st_size
    }
    here = {k: (root / k).read_text() if (root / k).exists() else "missing" for k in fresh}
    different = sorted(k for k in fresh if fresh[k].strip() != here[k].strip())
    assert different == [], "run nbdev-export and commit what it writes"


def test_notebooks_are_clean(root, tmp_path):
    "nbdev-clean has nothing to do: no execution counts, no stray metadata."
    for name in ("nbs", "pyproject.toml"):
        subprocess.run(["cp", "-r", root / name, tmp_path / name], check=True)
    (tmp_path / "stockpredict").mkdir()
    (tmp_path / "stockpredict" / "__init__.py").write_text('__version__ = "0"')
    subprocess.run(
        [Path(sys.executable).with_name("nbdev-clean")], cwd=tmp_path, check=True, capture_output=True
    )
    dirty = [
        str(p.relative_to(root))
        for p in (root / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
        and p.read_bytes() != (tmp_path / p.relative_to(root)).read_bytes()
    ]
    assert dirty == [], "run nbdev-clean"


def test_run_notebooks_have_a_parameters_cell_and_no_definitions(notebooks):
    wrong = []
    for nb in runs(notebooks):
        tagged = [c for c in nb.code() if "parameters" in c["metadata"].get("tags", [])]
        if len(tagged) != 1:
            wrong.append(f"{nb.name}: {len(tagged)} cells tagged parameters, wanted one")
        if len(nb.cells) > 25:
            wrong.append(f"{nb.name}: {len(nb.cells)} cells, wall 25")
        if any(c.get("outputs") for c in nb.code()):
            wrong.append(f"{nb.name}: has outputs; the executed copy in reports/ is the record")
        defined = [
            n.name
            for c in nb.code()
            for n in ast.walk(ast.parse(plain(c)))
            if isinstance(n, ast.FunctionDef | ast.ClassDef)
        ]
        if defined:
            wrong.append(f"{nb.name}: defines {defined}; definitions belong in the package")
    assert runs(notebooks) and wrong == []


BRACKETS = re.compile(r"[\s()\[\]{},:]*")  # what the formatter puts on a line of its own is not read


def lines(cells) -> int:
    return sum(
        1
        for c in cells
        for line in source(c).split("\n")
        if not BRACKETS.fullmatch(line) and not line.startswith("#|")
    )


def words(nb: NotebookFile) -> int:
    return sum(len(source(c).split()) for c in nb.cells if c["cell_type"] == "markdown")


def test_sizes_stay_readable(notebooks):
    wrong = []
    for nb in reference(notebooks):
        if nb.name in BEYOND_THE_WALL:
            continue
        longest = max((lines([c]) for c in nb.exported()), default=0)
        size = lines(nb.exported())
        if size > 400:
            wrong.append(f"{nb.name}: {size} exported lines, wall 400")
        if longest > 35:
            wrong.append(f"{nb.name}: an exported cell of {longest} lines, wall 35")
        if len(nb.cells) > 120:
            wrong.append(f"{nb.name}: {len(nb.cells)} cells, wall 120")
        if words(nb) < 1.5 * size:
            wrong.append(f"{nb.name}: {words(nb)} words for {size} exported lines, wanted 1.5 a line")
        if nb.path.stat().st_size > 300_000:
            wrong.append(f"{nb.name}: {nb.path.stat().st_size // 1000} KB, wall 300")
    assert wrong == []


def test_the_picture_comes_first(notebooks):
    "Each reference notebook shows a figure within its first ten cells."

    def drawn(cell):
        return any(
            "image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {})
            for o in cell.get("outputs", [])
        )

    assert [nb.name for nb in reference(notebooks) if not any(drawn(c) for c in nb.cells[:10])] == []


def test_no_stored_output_shows_a_warning(notebooks):
    "A deprecation is mended where it is used, not shown to the reader."
    warned = [
        f"{nb.name} [{cell['id']}]"
        for nb in notebooks
        for cell in nb.cells
        for output in cell.get("outputs", [])
        if re.search(r"\d: \w*Warning: ", "".join(output.get("text", [])))
    ]
    assert warned == []


def test_every_notebook_opens_with_a_title_and_one_sentence(notebooks):
    def opens(nb):
        first = next((source(c) for c in nb.cells if c["cell_type"] == "markdown"), "")
        return first.startswith("# ") and "\n> " in first

    assert [nb.name for nb in notebooks if not opens(nb)] == []


def test_imports_stand_alone_in_their_cells(notebooks):
    "Documentation builds run import cells in an empty namespace."
    wrong = []
    for nb in reference(notebooks):
        for cell in nb.code():
            kinds = {isinstance(n, ast.Import | ast.ImportFrom) for n in ast.parse(plain(cell)).body}
            if kinds == {True, False} and EXPORT.search(source(cell)):
                wrong.append(f"{nb.name} [{cell['id']}]")
    assert wrong == []


def test_expected_failures_are_really_expected(notebooks):
    "`expect_fail` is a context manager: called on its own it checks nothing."
    idle = [
        f"{nb.name} [{c['id']}]"
        for nb in notebooks
        for c in nb.code()
        for n in ast.walk(ast.parse(plain(c)))
        if isinstance(n, ast.Expr)
        and isinstance(n.value, ast.Call)
        and ast.unparse(n.value.func) == "expect_fail"
    ]
    assert idle == [], "write: with expect_fail(contains='…'): call()"


def test_no_cell_is_switched_off(notebooks):
    assert [
        nb.name for nb in notebooks for c in nb.code() if re.search(r"^#\|\s*eval:\s*false", source(c), re.M)
    ] == []


def test_no_machine_path_in_any_notebook(notebooks, root):
    path = re.compile(r"/(?:home|Users|root|work)/[\w.-]+|/tmp/\w+")
    result = [
        nb.name
        for nb in notebooks
        for c in nb.cells
        if path.search(json.dumps(c.get("outputs", [])) + source(c))
    ]
    assert result == []


def definitions(root):
    for p in sorted((root / "stockpredict").rglob("*.py")):
        if p.name != "_modidx.py":
            yield p.relative_to(root), ast.parse(p.read_text())


def test_every_public_function_says_what_it_does(root):
    silent = []
    for path, tree in definitions(root):
        for n in tree.body:
            if (
                isinstance(n, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
                and not n.name.startswith("_")
                and not ast.get_docstring(n)
            ):
                silent.append(f"{path}:{n.lineno} {n.name}")
    assert silent == []


def test_errors_are_our_own(root):
    "A bare built-in error has no code and no next step."
    bare = []
    for path, tree in definitions(root):
        for n in ast.walk(tree):
            name = (
                getattr(getattr(n.exc, "func", n.exc), "id", "") if isinstance(n, ast.Raise) and n.exc else ""
            )
            if name in {"ValueError", "RuntimeError", "Exception", "KeyError", "TypeError", "OSError"}:
                bare.append(f"{path}:{n.lineno} {name}")
    assert bare == []


def test_nothing_is_unpickled(root):
    "No module imports or calls anything that turns bytes into code."
    pickling, result = {"pickle", "joblib", "cloudpickle", "dill"}, []
    for path, tree in definitions(root):
        for n in ast.walk(tree):
            if isinstance(n, ast.Import):
                names = {a.name.split(".")[0] for a in n.names}
            elif isinstance(n, ast.ImportFrom):
                names = {(n.module or "").split(".")[0]}
            elif isinstance(n, ast.Call):
                names = {"pickle"} if ast.unparse(n.func) == "torch.load" else set()
            else:
                continue
            if names & pickling:
                result.append(f"{path}:{n.lineno}")
    assert result == []


def test_links_lead_somewhere(root):
    pages = {p: p.read_text() for p in [root / "README.md", *root.glob("nbs/**/*.md")]}
    for path in root.glob("nbs/**/*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        pages[path] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    lost = [
        f"{path.relative_to(root)}: {target}"
        for path, text in pages.items()
        for target in re.findall(r"\]\((?!https?:|mailto:)([^)#\s<]+)", text)
        if not (path.parent / target).exists()
    ]
    assert lost == []


def test_readme_is_the_index_notebook(root):
    created = subprocess.run(
        [sys.executable, root / "nbs" / "readme.py", "--stdout"], capture_output=True, text=True, check=True
    ).stdout
    assert created == (root / "README.md").read_text(), "run make readme"

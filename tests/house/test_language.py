"""The language of the house: names with one meaning, cells with one idea, arguments that are explained."""

import ast
import collections

import language
import pytest
from notebooks import EXPORT, floors, plain

MOST_PUBLIC_NAMES = 300  # outside the families of features


def reference(notebooks):
    return [nb for nb in notebooks if nb.default_exp]


def test_no_exported_name_means_two_things(notebooks):
    """A function or class stands in one module; methods, registered features and commands have their own
    spaces."""
    homes = collections.defaultdict(list)
    for nb in reference(notebooks):
        if nb.folder in ("features", "cli"):
            continue
        for definition in (d for cell in nb.exported() for d in language.definitions(cell)):
            if not definition.name.startswith("_") and not language.is_patch(definition):
                homes[definition.name].append(nb.name)
    assert {name: books for name, books in homes.items() if len(set(books)) > 1} == {}


def test_public_names_are_few(notebooks):
    names = [
        name for nb in reference(notebooks) if nb.folder != "features" for name in language.public_names(nb)
    ]
    assert len(names) < MOST_PUBLIC_NAMES


@pytest.mark.parametrize("law", [language.crowded_cells, language.empty_names, language.riddles])
def test_notebooks_speak_plainly(notebooks, law):
    assert [sentence for nb in notebooks for sentence in law(nb)] == []


def test_every_argument_of_a_public_function_is_explained(notebooks):
    books = [nb for nb in reference(notebooks) if nb.folder != "features"]
    assert [sentence for nb in books for sentence in language.silent_arguments(nb)] == []


def test_tests_and_scripts_speak_plainly(root):
    scripts = [p for folder in ("tests", "benchmarks", "flows", "nbs") for p in (root / folder).rglob("*.py")]
    forbidden = language.EMPTY_NAMES | language.OLD_NAMES
    wrong = {str(p.relative_to(root)): language.names(p.read_text()) & forbidden for p in scripts}
    assert {path: sorted(names) for path, names in wrong.items() if names} == {}


def test_no_folder_holds_more_than_its_share(notebooks, root):
    "A floor with more than 15 % of the code is two floors."
    lines = collections.Counter()
    for nb in reference(notebooks):
        lines[nb.folder] += sum(len(plain(cell).split("\n")) for cell in nb.exported())
    assert {folder for folder in floors(root) if lines[folder] > 0.15 * lines.total()} == set()


def test_what_is_declared_is_imported_and_what_is_imported_is_declared(root):
    declared = language.declared_packages(root / "pyproject.toml")
    paths = [p for folder in ("stockpredict", "flows", "nbs") for p in (root / folder).rglob("*.py")]
    imported = set().union(*(language.imported_packages(ast.parse(path.read_text())) for path in paths))
    unused = declared - language.providers(imported) - set(language.NEEDED_BY_OTHERS)
    assert unused == set(), "declared, and imported nowhere"
    homes = {package: language.providers({package}) for package in imported}
    known = language.required(declared) | {"nbdev", "fastcore", "coverage"}
    known |= language.optional_packages(root / "pyproject.toml")
    strange = {package for package, names in homes.items() if names and not names & known}
    assert strange == set(), "imported, and neither declared nor needed by what is declared"


def test_an_empty_name_is_found_and_an_attribute_is_not():
    assert language.names("found = re.search(x).group(1)") & language.EMPTY_NAMES == {"found"}
    assert language.names("a.found()") & language.EMPTY_NAMES == set()
    assert EXPORT.search("#| exporti\nx = 1")

"""Every line of the controls mapping names a module and a test that exist."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from stockpredict.govern.controls import CONTROLS

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.question)
def test_the_module_and_the_test_exist(control):
    assert find_spec(f"stockpredict.{control.where}")
    file, _, name = control.shown_by.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

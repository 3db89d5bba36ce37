"""A test waits for events, not for seconds: a limit that a busy machine reaches fails without a fault."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
WAITS = {"run", "communicate", "wait", "join", "recv", "check_output", "check_call"}


def limits(source: str) -> list[str]:
    "Waits with a limit in seconds, and upper bounds of elapsed seconds."
    return [text for node in ast.walk(ast.parse(source)) if (text := limited(node))]


def limited(node) -> str:
    "The text of a node that limits a wait; empty for any other."
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WAITS:
        owner = ast.unparse(node.func.value)
        seconds = [a for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, int | float)]
        named = [k for k in node.keywords if k.arg == "timeout"]
        if (named and owner != "runs") or (seconds and node.func.attr in ("wait", "join")):
            return ast.unparse(node)
    if isinstance(node, ast.Compare) and isinstance(node.ops[-1], ast.Lt | ast.LtE):
        if "time.monotonic()" in ast.unparse(node.left) or "perf_counter()" in ast.unparse(node.left):
            return ast.unparse(node)
    return ""


def test_no_test_has_a_limit_in_seconds():
    wrong = {
        path.relative_to(TESTS).as_posix(): bad
        for path in TESTS.rglob("*.py")
        if path.name not in ("patience.py", "conftest.py") and (bad := limits(path.read_text()))
    }
    assert wrong == {}, "use `patience.run`, `patience.communicate` or `patience.wait_until`"


def test_the_law_sees_a_limit():
    for source in (
        "subprocess.run(c, timeout=540)",
        "child.wait(30)",
        "thread.join(20)",
        "assert time.monotonic() - began < 10",
    ):
        assert limits(source), source
    for source in ("patience.run(c)", "child.wait()", "', '.join(names)", "assert time.monotonic() - b > 1"):
        assert not limits(source), source

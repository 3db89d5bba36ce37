"""What a person reads: one code in each message, letters as they were typed, commands that exist."""

import re

import pytest

from stockpredict.core.errors import BarsInvalid, NotReady, StockpredictError, UnknownTicker
from stockpredict.core.tickers import canonical_ticker
from stockpredict.predict.answer_table import AnswerTable, example_table


def test_an_error_in_an_error_shows_one_code():
    inner = NotReady("The table of answers is damaged.", "Run `stockpredict predict`.")
    for outer in (
        NotReady(f"The shared table was refused: {inner}".rstrip(".") + "."),
        NotReady(f"There is no verified model: {inner}", "See `model` in /health."),
        BarsInvalid(f"Twice: {NotReady(f'once: {inner}')}"),
    ):
        assert re.findall(r"\[[a-z-]+\]", str(outer)) == [f"[{outer.code}]"]
        assert str(outer).endswith(f"[{outer.code}]") and ".." not in str(outer)
    assert "[serving]" in str(NotReady("Set [serving] port.")) and "[a-b]" in str(NotReady("Use [a-b]."))


@pytest.mark.parametrize("typed", ["ÄÖ", "日経", "АAPL"])
def test_a_refused_ticker_is_shown_as_it_was_typed(typed):
    with pytest.raises(BarsInvalid) as refused:
        canonical_ticker(typed)
    assert typed in refused.value.problem and "\\x" not in str(refused.value)
    assert f"U+{next(ord(c) for c in typed if not c.isascii()):04X}" in refused.value.problem


def test_what_cannot_be_printed_stays_escaped():
    for typed in ("A\x1b[2J", "A\u202eB", "A\nB", "A\u200bB"):
        with pytest.raises(BarsInvalid) as refused:
            canonical_ticker(typed)
        assert str(refused.value).isprintable()


def test_an_unknown_ticker_speaks_to_the_command_line_and_to_the_api():
    with pytest.raises(UnknownTicker) as refused:
        AnswerTable(example_table()).get("QQQQQQ")
    assert "GET /" not in str(refused.value) and "Leave the ticker out" in refused.value.fix


def test_messages_name_commands_that_exist(root):
    "Each `stockpredict …` in an error leads to a command."
    from typer.main import get_command

    from stockpredict.cli.main import app

    commands = get_command(app).commands
    words = re.compile(r"`stockpredict ([a-z][a-z-]+)(?: ([a-z][a-z-]+))?[` .,]")
    strange = set()
    for path in (root / "stockpredict").rglob("*.py"):
        for first, second in words.findall(path.read_text()):
            group = getattr(commands.get(first), "commands", None)
            if first not in commands or (group and second and second not in group):
                strange.add(f"{path.name}: stockpredict {first} {second}".strip())
    assert strange == set()


def test_the_base_of_all_errors_keeps_plain_brackets():
    assert StockpredictError("A list [1, 2].").problem == "A list [1, 2]."

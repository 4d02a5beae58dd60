"""What a terminal gets: texts of others are shown, and never obeyed."""

import logging
import sys

import pytest
from rich.progress import Progress

from orchestrator.commands import terminal as display
from orchestrator.commands.printing.progress import _Words
from orchestrator.commands.printing.tables import table
from orchestrator.commands.terminal import LogLines, note_damaged, print_log, print_traceback, shortened, visible

BAD = "\x1b[2J\x9b31m\u202e[bold]x[/] :smile:"
SHOWN = r"\x1b[2J\x9b31m\u202e[bold]x[/] :smile:"


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both consoles write to what pytest reads."""
    monkeypatch.setattr(display, "out", display._Terminal(stderr=False, width=200))
    monkeypatch.setattr(display, "err", display._Terminal(stderr=True, width=200))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc", "a\nb\\rc"),
        ("\x00\x07\x1b\x7f\x85\x9b", r"\x00\x07\x1b\x7f\x85\x9b"),
        ("\u202a\u202e\u2066\u2069\u200f\u061c\u2028\ufeff", r"\u202a\u202e\u2066\u2069\u200f\u061c\u2028\ufeff"),
        ("\ud800 \U000e0041", r"\ud800 \U000e0041"),
        ("naïve 日本 👩\u200d🔬 – ·", "naïve 日本 👩\u200d🔬 – ·"),
    ],
)
def test_what_would_control_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_lines_tables_logs_and_tracebacks_are_text_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    display.out.print(BAD)
    table((BAD, "n"), [(f"{BAD}\nrow", 1)], title=BAD)
    print_log(f"{BAD}\n")
    note_damaged([BAD])
    LogLines().emit(logging.makeLogRecord({"msg": "%s", "args": (BAD,)}))
    try:
        raise ValueError(BAD)
    except ValueError:
        print_traceback(*sys.exc_info())  # type: ignore[arg-type]
    found = capsys.readouterr()
    assert found.out.count(SHOWN) == 5 and rf"{SHOWN}\nrow" in found.out
    assert found.err.count(SHOWN) == 3 and f"damaged: {SHOWN}" in found.err
    assert not set(found.out + found.err) & set("\x1b\x9b\u202e")


def test_the_words_of_a_progress_bar_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(_Words("{task.description}"), console=display.err)
    bar.add_task(BAD)
    display.err.print(bar.get_renderable())
    assert SHOWN in capsys.readouterr().err


def test_a_long_line_keeps_its_beginning_and_its_end() -> None:
    assert shortened("a\nb") == "a\nb"
    assert shortened("begin" + "x" * 5000 + "end.\nnext", most=20) == "beginxxxxx … xxxxxxend.\nnext"

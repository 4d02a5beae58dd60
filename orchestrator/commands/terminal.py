"""What commands print with: two consoles, JSON, notes and next steps; more is in `printing/`."""

import dataclasses
import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from cluster.process.typed import typed

PIPE_WIDTH = 200  # what is not read on a terminal should not be folded for one

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, DEL, and C1, of which some begin a sequence
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # turn the direction of what follows
    "\u2028\u2029\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"  # line ends, marks, halves, hidden tags
)


def visible(text: str) -> str:
    r"""Return a text as a terminal may show it: what would control the terminal becomes its escape, ``\x1b``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def shortened(text: str, *, most: int = 2000) -> str:
    """Return a text whose lines have at most so many characters; the cure at the end of a message stays."""
    kept = [(line[: most // 2] + " … " + line[-most // 2 :]) if len(line) > most else line for line in text.split("\n")]
    return "\n".join(kept)


class _Terminal(Console):
    """A console that takes a text for nothing but text."""

    def __init__(self, *, stderr: bool, width: int | None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return what is printed of a text; rich calls it for whatever is not styled already."""
        return super().render_str(visible(text), **settings)


out = _Terminal(stderr=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
"""Results."""
err = _Terminal(stderr=True, width=None if sys.stderr.isatty() else PIPE_WIDTH)
"""Progress, notes and errors: data on stdout stays clean."""
_kept: list[TextIO] = []
"""The true stdout, where something else stands in its place."""


class LogLines(logging.Handler):
    """Shows what modules log, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        err.print(self.format(record))


def print_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Show an error that nobody expected; stands in for ``sys.excepthook``."""
    err.print("".join(traceback.format_exception(kind, error, where)).rstrip())


def print_log(text: str) -> None:
    """Print a part of a log on stdout, as it came but for what would control the terminal."""
    sys.stdout.write(visible(text))
    sys.stdout.flush()


@contextmanager
def stdout_kept_for_json() -> Iterator[None]:
    """Let stdout hold what `emit` prints and nothing else: Ray tells on it which of its processes has died."""
    _kept.append(sys.stdout)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = _kept.pop()


def emit(value: Any, *, as_json: bool, show: Callable[[], None]) -> None:
    """Print ``value`` as one JSON object, or call ``show``."""
    if as_json:
        stdout = _kept[-1] if _kept else sys.stdout
        stdout.write(json.dumps(plain(value), allow_nan=False, indent=None) + "\n")
        stdout.flush()
    else:
        show()


def plain(value: Any) -> Any:
    """What JSON can hold: records become objects; NaN and infinity become null."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.repr})
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def note_damaged(lines: Sequence[str]) -> None:
    """Name what could not be listed, beside what could."""
    for line in lines:
        err.print(f"damaged: {line}", style="yellow")


def note(text: str) -> None:
    """A line for the person, not part of the result."""
    err.print(text, style="dim")


def next_steps(*commands: tuple[str, ...]) -> None:
    """The closing lines: what one would type next.

    Args:
        commands: The words of each, without ``orchestrator``; see `cluster.process.typed.typed`.
    """
    print_next([typed(*words) for words in commands])


def print_next(lines: Sequence[str]) -> None:
    """The closing lines, of commands as `cluster.process.typed.typed` has written them."""
    out.print("\nNext:")
    for line in lines:
        out.print(f"  {line}", style="bold")

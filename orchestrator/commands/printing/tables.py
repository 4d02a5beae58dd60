"""Tables that fit the terminal: whole columns are left out and named, and no name or number is ever cut or folded."""

from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from rich.cells import cell_len

from orchestrator.commands import terminal
from orchestrator.reporting.words import number

GAP = 2  # spaces between columns
LEAST_PROSE = 20  # cells: a column of text is folded to no less, if it can be folded at all


class FittedTable(NamedTuple):
    """A table as it will be printed."""

    header: str
    lines: list[str]
    left_out: list[str]
    """Names of the columns that had no room."""
    whole_width: int
    """Cells that a terminal must have for all columns."""


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    title: str | None = None,
    least: Sequence[str] = (),
    prose: Collection[str] = (),
    ids: Collection[str] = (),
) -> None:
    """Print rows; columns for which the terminal has no room are left out whole, and named.

    Args:
        columns: Their names. The first one always stays.
        rows: A cell for each column. A column of numbers is aligned to the right.
        title: A line above.
        least: The columns that may be left out first, in this order. After them those on the right are.
        prose: Columns of text, which may be folded between words.
        ids: Columns whose numbers name something, so that their digits are not grouped.
    """
    out = terminal.out
    width = out.width if out.is_terminal else None
    found = layout(columns, rows, width=width, least=least, prose=prose, ids=ids)
    if title:
        out.print(title, style="italic")
    out.print(found.header, style="bold")
    for line in found.lines:
        out.print(line)
    if found.left_out:
        names = ", ".join(found.left_out)
        terminal.note(f"left out: {names}. Shown with --json, or on a terminal of {found.whole_width} columns.")


def layout(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    width: int | None,
    least: Sequence[str] = (),
    prose: Collection[str] = (),
    ids: Collection[str] = (),
) -> FittedTable:
    """Decide what is printed of a table.

    Args:
        columns: See `table`.
        rows: See `table`.
        width: Cells of the terminal; ``None``: as many as it takes.
        least: See `table`.
        prose: See `table`.
        ids: See `table`.
    """
    cells = [[_cell(value, is_id=name in ids) for name, value in zip(columns, row, strict=True)] for row in rows]
    full = [max(cell_len(text) for text in (name, *column)) for name, *column in zip(columns, *cells, strict=True)]
    needed = [
        _least_width((name, *column)) if name in prose else full[i]
        for i, (name, *column) in enumerate(zip(columns, *cells, strict=True))
    ]
    shown = list(range(len(columns)))
    for i in _first_to_go(columns, least):
        if width is None or _total(needed[j] for j in shown) <= width:
            break
        shown.remove(i)
    chosen = full if width is None else _shared_out(full, needed, shown, width)
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    lines = [line for row in cells for line in _lines(row, shown, chosen, right)]
    header = " " * GAP
    header = header.join(_padded(columns[i], chosen[i], right=right[i]) for i in shown).rstrip()
    left_out = [name for i, name in enumerate(columns) if i not in shown]
    return FittedTable(header, lines, left_out, _total(needed))


def _cell(value: Any, *, is_id: bool) -> str:
    text = str(value) if is_id and value is not None else number(value)
    return terminal.visible(text).replace("\n", "\\n")  # a name must not make a row of its own


def _least_width(texts: Sequence[str]) -> int:
    longest_word = max(cell_len(word) for text in texts for word in (text.split(" ") or [""]))
    return min(max(longest_word, LEAST_PROSE), max(cell_len(text) for text in texts))


def _first_to_go(columns: Sequence[str], least: Sequence[str]) -> Iterator[int]:
    """Yield the columns in the order in which they may be left out: all but the first one."""
    named = [columns.index(name) for name in least if name in columns[1:]]
    yield from named
    yield from (i for i in reversed(range(1, len(columns))) if i not in named)


def _shared_out(full: Sequence[int], needed: Sequence[int], shown: Sequence[int], width: int) -> list[int]:
    """Give what is left of the width to the columns that are folded, from the left."""
    chosen, left = list(needed), width - _total(needed[i] for i in shown)
    for i in shown:
        more = max(0, min(left, full[i] - needed[i]))
        chosen[i] += more
        left -= more
    return chosen


def _total(widths: Iterator[int] | Sequence[int]) -> int:
    found = list(widths)
    return sum(found) + GAP * (len(found) - 1)


def _lines(row: Sequence[str], shown: Sequence[int], widths: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    """Yield the lines of a row: one, but for the texts that are folded."""
    folded = [_folded(row[i], widths[i]) for i in shown]
    for parts in zip_longest(*folded, fillvalue=""):
        padded = [_padded(part, widths[i], right=right[i]) for i, part in zip(shown, parts, strict=True)]
        yield (" " * GAP).join(padded).rstrip()


def _folded(text: str, width: int) -> list[str]:
    """Break a text between its words; a word that is longer than a line stays whole."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cell_len(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _padded(text: str, width: int, *, right: bool) -> str:
    spaces = " " * max(0, width - cell_len(text))
    return spaces + text if right else text + spaces

"""How a delimited file is written: with which delimiter, and what a quote means in it."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from cluster.errors import ConfigError
from orchestrator.data.sources.delimited.blocks import Content
from orchestrator.data.sources.delimited.encoding import BOM

Quotes = Literal["fields", "letters"]

DELIMITERS: Mapping[str, str] = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", "::": "double colons"}
QUOTING: Mapping[Quotes, Literal[0, 3]] = {"fields": csv.QUOTE_MINIMAL, "letters": csv.QUOTE_NONE}
HEAD_BYTES = 2**20

_LOOKED_AT = 100  # rows that must agree on a delimiter
_QUOTE, _LF, _CR = b'"\n\r'


# ---- delimiter


def fields_of(lines: Iterable[str], *, delimiter: str, quotes: Quotes = "fields", strict: bool = False) -> Any:
    """Return a reader of the rows' fields, which may exceed the 128 KiB that the csv module allows by itself."""
    csv.field_size_limit(2**31 - 1)
    return csv.reader(lines, delimiter=delimiter, quoting=QUOTING[quotes], strict=strict)


def split_rows(lines: Iterable[str], delimiter: str, *, quotes: Quotes = "fields") -> Iterator[list[str]]:
    """Yield the fields of every row; none of an empty one."""
    if delimiter == "::":
        return (line.split("::") if (line := whole.rstrip("\r\n")) else [] for whole in lines)
    rows: Iterator[list[str]] = fields_of(lines, delimiter=delimiter, quotes=quotes)
    return rows


def head_rows(content: bytes, delimiter: str, *, count: int) -> list[list[str]]:
    """Return the fields of the first rows that are not empty, of what may be no table at all."""
    head = content[:HEAD_BYTES].removeprefix(BOM)
    text = io.StringIO(head.decode(errors="replace"), newline="")
    quotes: Quotes = "fields"
    if delimiter == "\t" and not _every_quote_is_closed(head, "\t"):
        quotes = "letters"
    rows = list(islice((fields for fields in split_rows(text, delimiter, quotes=quotes) if fields), count + 1))
    is_cut = len(content) > HEAD_BYTES and len(rows) <= count and len(rows) > 1
    return rows[:-1] if is_cut else rows[:count]


def find_delimiter(content: bytes, place: object) -> str:
    """Return the delimiter that cuts every row at the head of a file into as many fields as the first.

    Raises:
        ConfigError: if there is none, or several would do.
    """
    rows_of = {delimiter: head_rows(content, delimiter, count=_LOOKED_AT) for delimiter in DELIMITERS}
    wide = {delimiter: rows for delimiter, rows in rows_of.items() if rows and len(rows[0]) > 1}
    even = {delimiter: rows for delimiter, rows in wide.items() if len({len(row) for row in rows}) == 1}
    if "::" in even:
        return "::"
    if len(even) > 1 and len(next(iter(even.values()))) > 1:
        raise ConfigError(
            f"{place} must be cut into fields in one way, got {' and '.join(DELIMITERS[d] for d in even)} that all "
            f"would do. Say which with {cure_of_delimiter(even)}."
        )
    found = even or wide
    if not found:
        raise ConfigError(
            f"{place} must have two columns or more, separated by {', '.join(DELIMITERS.values())}, got "
            f"{' '.join(rows_of[','][0] if rows_of[','] else [])[:80]!r}."
        )
    return max(found, key=lambda delimiter: len(found[delimiter][0]))


def cure_of_delimiter(delimiters: Mapping[str, object]) -> str:
    """Return what a person types to choose a delimiter."""
    words = ["tab" if delimiter == "\t" else delimiter for delimiter in delimiters]
    return " or ".join(f"--option 'delimiter=\"{word}\"'" for word in words)


# ---- quotes


class Quoting(NamedTuple):
    """What quotes mean in a file."""

    quotes: Quotes
    spans_lines: bool
    """Whether a quoted field holds a line end."""


def quoting_of(content: Content, delimiter: str, chosen: Quotes | None, encoding: str = "utf-8") -> Quoting:
    """Return whether quotes enclose fields, or are letters.

    In tab-separated files, a quote is a letter unless every field that begins with one ends with one. In others, a
    field that begins with a quote must end with one.

    Raises:
        ConfigError: if a quote is not closed, or if both readings would do and differ in the number of rows.
    """
    if chosen == "letters" or delimiter == "::" or not any(b'"' in block for block in content.blocks()):
        return Quoting("letters", spans_lines=False)
    if all(_every_quote_is_closed(block, delimiter) for block in content.blocks()):
        return Quoting("fields", spans_lines=False)
    fields = _read_as_fields(content.lines(encoding), delimiter)
    letters = _read_as_letters(content.lines(encoding), delimiter)
    if chosen is None and fields.is_table and letters.is_table and fields.rows < letters.rows:
        raise _unclear(content, fields, letters)
    if chosen is None and delimiter == "\t" and (fields.fault or (letters.is_table and not letters.is_closed)):
        return Quoting("letters", spans_lines=False)
    if fields.fault:
        cure = "Read quotes as letters with --option quotes=letters" if letters.is_table else "Double it"
        raise ConfigError(
            f"a field in {content} that begins with a quote must end with one, got {fields.fault} in row {fields.row}. "
            f"{cure}, or close it."
        )
    return Quoting("fields", spans_lines=fields.rows < letters.rows)


@dataclass(frozen=True)
class _Reading:
    """What a file is when its quotes are read in one way."""

    rows: int
    widths: frozenset[int]
    is_closed: bool = True
    """Whether every field that begins with a quote ends with one."""
    fault: str = ""
    row: int = 0
    """Line at which the first field that goes over a line end, or the fault, is."""

    @property
    def is_table(self) -> bool:
        return not self.fault and len(self.widths) == 1


def _read_as_fields(lines: Iterable[str], delimiter: str) -> _Reading:
    reader = fields_of(lines, delimiter=delimiter, strict=True)
    rows, widths, before, spanning = 0, set(), 0, 0
    try:
        for fields in reader:
            if fields:
                rows += 1
                widths.add(len(fields))
            if not spanning and reader.line_num > before + 1:
                spanning = before + 1
            before = reader.line_num
    except csv.Error as error:
        return _Reading(rows, frozenset(widths), fault=str(error), row=before + 1)
    return _Reading(rows, frozenset(widths), row=spanning)


def _read_as_letters(lines: Iterable[str], delimiter: str) -> _Reading:
    rows, widths, is_closed = 0, set(), True
    for line in filter(None, (line.rstrip("\r\n") for line in lines)):
        rows += 1
        widths.add(line.count(delimiter) + 1)
        if is_closed and '"' in line:
            quoted = (field for field in line.split(delimiter) if field.startswith('"'))
            is_closed = all(len(field) > 1 and field.endswith('"') for field in quoted)
    return _Reading(rows, frozenset(widths), is_closed=is_closed)


def _unclear(place: object, fields: _Reading, letters: _Reading) -> ConfigError:
    return ConfigError(
        f"{place} must say what its quotes mean, got a field that begins with a quote in row {fields.row} and goes "
        f"over the end of the line: {fields.rows} rows if quotes enclose fields, {letters.rows} if they are letters. "
        "Say which with --option quotes=letters or --option quotes=fields."
    )


def _every_quote_is_closed(content: bytes, delimiter: str) -> bool:
    """Whether all quotes are in pairs, at the beginning and at the end of a field, on one line."""
    data = np.frombuffer(content, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    if not len(quotes):
        return True
    if len(quotes) % 2:
        return False
    ends = (ord(delimiter[0]), _LF, _CR)
    opening, closing = quotes[0::2], quotes[1::2]
    before = np.where(opening == 0, _LF, data[opening - 1])
    after = np.where(closing == len(data) - 1, _LF, data[np.minimum(closing + 1, len(data) - 1)])
    if not (np.isin(before, ends).all() and np.isin(after, ends).all()):
        return False
    breaks = np.flatnonzero((data == _LF) | (data == _CR) | ((data == ends[0]) if delimiter == "\t" else False))
    return bool((np.searchsorted(breaks, opening) == np.searchsorted(breaks, closing)).all())

"""Makes columns of text of delimited files, at the speed of pyarrow, and looks for the row of whatever it refuses."""

import io
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
from pyarrow import csv as arrow_csv

from cluster.errors import ConfigError
from models.features import MOST_COLUMNS
from models.preparing.rows import Notation, number_of
from orchestrator.data.sources.delimited.blocks import BLOCK_BYTES, Content
from orchestrator.data.sources.delimited.dialect import (
    DELIMITERS,
    HEAD_BYTES,
    Quoting,
    fields_of,
    head_rows,
    split_rows,
)
from orchestrator.data.sources.prepared import UNNAMED

_ROW_BYTES = 16 * 2**20  # a row may be as long as this
_LET_GO_S = 10.0  # a block is worked through in a tenth of a second


class Form(NamedTuple):
    """How a file is written."""

    delimiter: str
    quoting: Quoting
    encoding: str
    names: Sequence[str] | None
    """Names of its columns, if the first row does not hold them."""
    may_lack_names: bool


def parsed(
    content: Content, form: Form, *, types: Mapping[str, pa.DataType], only: Sequence[str] | None
) -> Iterator[pa.Table]:
    """Yield the rows of a file, some at a time.

    Args:
        content: of the file.
        form: how it is written.
        types: of columns that shall be something else than `pa.string()`.
        only: the columns that are read; default: all.

    Raises:
        ConfigError: if it is no table; names the row.
    """
    names, skip = form.names, 0
    for block in _whole_rows(content, form):
        if names is None:
            names, skip = _names(content, block, form)  # the first row
        data = block if form.encoding == "utf-8" else block.decode(form.encoding).encode()
        del block
        yield _table(content, data, form, names, skip=skip, types=types, only=only or names)
        skip = 0


def names_of(content: Content, form: Form) -> Sequence[str]:
    """Return the names of all columns of a file."""
    return form.names or _names(content, next(content.blocks()), form)[0]


def lines(content: Content, form: Form) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a delimited file that are not empty, with their numbers, counted from 1; slowly."""
    rows = split_rows(content.lines(form.encoding), form.delimiter, quotes=form.quoting.quotes)
    for row, fields in enumerate(rows, start=1):
        if fields:
            yield row, fields


def _whole_rows(content: Content, form: Form) -> Iterator[bytes]:
    """Yield the bytes of a file, cut where rows end: fields may go over the ends of lines."""
    if not form.quoting.spans_lines:
        yield from content.blocks()
        return
    taken = io.StringIO(newline="")

    def noted() -> Iterator[str]:
        for line in content.lines(form.encoding):
            taken.write(line)
            yield line

    for _ in split_rows(noted(), form.delimiter, quotes=form.quoting.quotes):
        if taken.tell() > BLOCK_BYTES:
            yield taken.getvalue().encode(form.encoding)
            taken.seek(0)
            taken.truncate()
    if taken.tell():
        yield taken.getvalue().encode(form.encoding)


def _table(
    content: Content,
    data: bytes,
    form: Form,
    names: Sequence[str],
    *,
    skip: int,
    types: Mapping[str, pa.DataType],
    only: Sequence[str],
) -> pa.Table:
    columns = {name: types.get(name, pa.string()) for name in only}
    raw_names = list(names)
    if form.delimiter == "::":  # for pyarrow, an empty column lies between every two
        raw_names = [part for name in names for part in (name, f"\0{name}")][:-1]
    references = sys.getrefcount(data)
    try:
        return arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(column_names=raw_names, skip_rows=skip, block_size=_ROW_BYTES),
            parse_options=arrow_csv.ParseOptions(
                delimiter=form.delimiter[0],
                quote_char='"' if form.quoting.quotes == "fields" else False,
                newlines_in_values=form.quoting.spans_lines,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=columns, null_values=[""], include_columns=list(only)
            ),
        )
    except pa.ArrowInvalid as error:
        ends = time.monotonic() + _LET_GO_S
        while sys.getrefcount(data) > references and time.monotonic() < ends:
            time.sleep(0.001)  # a thread of Arrow's still has the bytes: at the interpreter's end it would abort it
        raise _fault(content, form, len(names), error) from error


def _names(content: Content, block: bytes, form: Form) -> tuple[list[str], int]:
    """Return the names of the columns, and how many lines they take."""
    names, skip = _header(block, form)
    if form.may_lack_names:
        names = [*names, *([""] if _has_trailing_delimiter(block, form, len(names)) else [])]
        names = [name or f"{UNNAMED}{place}" for place, name in enumerate(names, start=1)]
    _check_header(names, content)
    return names, skip


def _header(content: bytes, form: Form) -> tuple[list[str], int]:
    """Return the names of the columns, and the lines up to the end of that row."""
    text = io.StringIO(content[:HEAD_BYTES].decode(form.encoding, errors="replace"), newline="")
    reader = fields_of(text, delimiter=form.delimiter[0], quotes=form.quoting.quotes)
    names = next(fields for fields in reader if fields)
    return [name.strip() for name in names[:: len(form.delimiter)]], reader.line_num


def _has_trailing_delimiter(content: bytes, form: Form, width: int) -> bool:
    """Whether the rows end with a delimiter that the header does not end with."""
    row = [*head_rows(content, form.delimiter, count=2), []][1]
    return len(row) == width + 1 and not row[-1].strip()


def _check_header(names: Sequence[str], file: object) -> None:
    if len(names) > MOST_COLUMNS:
        raise ConfigError(
            f"{file} must have at most {MOST_COLUMNS:,} columns, got {len(names):,} or more. What has more is sparse: "
            "write it as `label column:value ...`, the format svmlight."
        )
    counts = Counter(names)
    numbers = [name for name in names if number_of(name, Notation()) is not None]
    if numbers:
        raise ConfigError(
            f"{file} must begin with a header, the names of its columns, got {','.join(names)[:80]!r}, with the number "
            f"{numbers[0]}. Add a header."
        )
    for place, name in enumerate(names, start=1):
        if not name or not name.isprintable():
            raise ConfigError(
                f"{file} must begin with a name for each column, got {name!r} for column {place}. Rename it, or "
                "remove the column."
            )
        if counts[name] > 1:
            raise ConfigError(f"{file} must name each column once, got {name!r} {counts[name]} times. Rename one.")


def _fault(content: Content, form: Form, width: int, error: pa.ArrowInvalid) -> ConfigError:
    """Look for what pyarrow refused, row by row."""
    words = DELIMITERS[form.delimiter]
    for row, fields in lines(content, form):
        if len(fields) != width:
            found = f"{content} must have {width} fields, separated by {words}, got {len(fields)} in row {row}."
            cure = f" Enclose fields that hold {words} in quotes" if len(fields) > width else ""
            if len(fields) == width + 1:
                cure += ", or if each row begins with its name, as R writes them, name that column in the header"
            return ConfigError(f"{found}{cure}{'.' if cure else ''}")
    return ConfigError(f"{content} must be a table with {words} between its fields, got {error}.")

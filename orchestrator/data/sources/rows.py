"""Delimited text files: columns read at the speed of pyarrow, and the row of whatever is wrong in them."""

import io
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from cluster.errors import ConfigError
from models.features import MOST_COLUMNS, CategoricalFeature
from orchestrator.data.columns import Array
from orchestrator.data.order import Ints
from orchestrator.data.sources.delimited.dialect import (
    BOM,
    DELIMITERS,
    HEAD_BYTES,
    Quotes,
    Quoting,
    decoded,
    fields_of,
    find_delimiter,
    head_rows,
    quoting_of,
    split_rows,
)
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import UNNAMED
from orchestrator.data.sources.splitting import consecutive

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
LARGEST = float(np.finfo(np.float32).max)  # numbers are stored in 32 bits
_BLOCK_BYTES = 16 * 2**20  # a row may be as long as this
_LET_GO_S = 10.0  # a block is worked through in a tenth of a second


class TextFile(Protocol):
    """A file to read; as text, the place that an error names."""

    def read(self) -> bytes:
        """Return the content."""

    def head(self) -> bytes:
        """Return the beginning of the content."""


@dataclass(frozen=True, eq=False)
class Delimited:
    """The rows of one file, or of one file for each split; every field is text."""

    files: Mapping[str, TextFile]
    """By split."""
    counts: Mapping[str, int]
    """Rows of each."""
    delimiter: str
    has_header: bool
    table: pa.Table
    quotes: Mapping[str, Quotes]
    """What quotes mean in each file."""
    encoding: str
    """That all files are in."""
    unnamed: tuple[str, ...] = ()
    """Columns without a name in the header, under that of their place; see `UNNAMED`."""
    all_names: tuple[str, ...] = ()
    """Names of all columns of the first file, those that were left out since included."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def names(self) -> list[str]:
        """Names of the columns, in their order."""
        return list(self.table.column_names)

    @property
    def place(self) -> str:
        """The files, as an error names them."""
        return " and ".join(map(str, self.files.values()))

    @property
    def rows(self) -> dict[str, Ints]:
        """The rows of each file."""
        return consecutive(self.counts)

    def where(self, index: int) -> tuple[str, int]:
        """Return the file of a row, and its number in it, counted from 1 with the header and empty rows."""
        for split, file in self.files.items():
            if index < self.counts[split]:
                rows = lines(file, delimiter=self.delimiter, quotes=self.quotes[split], encoding=self.encoding)
                found = (row for row, _ in rows)
                return str(file), next(islice(found, index + self.has_header, None))
            index -= self.counts[split]
        raise IndexError(index)

    def trimmed(self, name: str) -> pa.ChunkedArray:
        """Return a column as text, without the blanks around it; an empty field is an empty text."""
        return pc.utf8_trim_whitespace(self.table.column(name))

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column as text, without the blanks around it.

        Raises:
            ConfigError: if a field is empty.
        """
        values = self.trimmed(name)
        empty = pc.equal(values, "").to_numpy()
        if empty.any():
            file, row = self.where(int(empty.argmax()))
            raise ConfigError(
                f"{name} in {file} must be given, got nothing in row {row}. Fill it in, or remove the row."
            )
        return values

    def numbers(self, name: str) -> Array:
        """Return a column as finite numbers, [N] float64.

        Raises:
            ConfigError: if a field is not a number, or does not fit 32 bits.
        """
        values = self.trimmed(name)
        numbers, _ = as_numbers(values)
        wrong = ~(np.abs(numbers) <= LARGEST)
        if wrong.any():
            index = int(wrong.argmax())
            file, row = self.where(index)
            raise ConfigError(
                f"{name} in {file} must be a finite number in 32 bits, got {values[index].as_py()!r} in row {row}."
            )
        return numbers


def read_delimited(
    files: Mapping[str, TextFile],
    *,
    options: SourceOptions | None = None,
    delimiter: str | None = None,
    names: Sequence[str] | None = None,
    types: Mapping[str, pa.DataType] | None = None,
    may_lack_names: bool = False,
) -> Delimited:
    """Read files that have the same columns.

    Args:
        files: one, or one for each split.
        options: what the person says about delimiter and quotes.
        delimiter: one of `DELIMITERS`; found out from the first rows when left out.
        names: of the columns; without them the first row is a header.
        types: of columns that shall be something else than `pa.string()`.
        may_lack_names: whether the header may leave columns without a name.

    Raises:
        ConfigError: if a file is empty, no text or not rectangular, or the files differ in their columns.
    """
    options = options or SourceOptions()
    contents, encoding = decoded({split: text_content(file) for split, file in files.items()}, files)
    first = next(iter(files))
    delimiter = delimiter or options.delimiter or sniff(contents[first], files[first])
    tables: dict[str, pa.Table] = {}
    quotes: dict[str, Quotes] = {}
    for split, file in files.items():
        content = contents.pop(split)
        quoting = quoting_of(content, delimiter, file, options.quotes)
        quotes[split] = quoting.quotes
        tables[split] = _read_table(
            file, content, _Form(delimiter, quoting, encoding, names, may_lack_names), types or {}
        )
        require_rows(tables[split].num_rows, file)
        if set(tables[split].column_names) != set(tables[first].column_names):
            raise ConfigError(
                f"{file} must have the columns of {files[first]}, {','.join(tables[first].column_names)!r}, got "
                f"{','.join(tables[split].column_names)!r}."
            )
    columns = tables[first].column_names
    return Delimited(
        files=files,
        counts={split: table.num_rows for split, table in tables.items()},
        delimiter=delimiter,
        has_header=names is None,
        table=pa.concat_tables([table.select(columns) for table in tables.values()]),
        quotes=quotes,
        encoding=encoding,
        unnamed=tuple(name for name in columns if name.startswith(UNNAMED)),
        all_names=tuple(columns),
    )


def first_rows(content: bytes, *, delimiter: str) -> tuple[list[str], list[str]]:
    """Return the fields of the first two rows that are not empty, of what may be no table at all."""
    first, second = [*head_rows(content, delimiter, count=2), [], []][:2]
    return [field.strip() for field in first], [field.strip() for field in second]


def sniff(content: bytes, file: TextFile) -> str:
    """Return the delimiter of a file; see `find_delimiter` for the errors."""
    refuse_empty(content, file)
    return find_delimiter(content, file)


def lines(
    file: TextFile, *, delimiter: str, quotes: Quotes = "fields", encoding: str = "utf-8"
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a delimited file that are not empty, with their numbers, counted from 1; slowly."""
    text = io.StringIO(file.read().removeprefix(BOM).decode(encoding), newline="")
    for row, fields in enumerate(split_rows(text, delimiter, quotes=quotes), start=1):
        if fields:
            yield row, fields


def as_number(text: str) -> float | None:
    """Return a text as a finite number, if it is one."""
    return float(text) if pc.match_substring_regex(text, _NUMBER).as_py() else None


def as_numbers(values: pa.ChunkedArray) -> tuple[Array, Array]:
    """Return texts as numbers, NaN where a text is not a number, and which of them are numbers."""
    try:
        numbers = pc.cast(values, pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        fits = pc.match_substring_regex(values, _NUMBER)
        return pc.cast(pc.if_else(fits, values, "nan"), pa.float64()).to_numpy(), fits.to_numpy()
    return numbers, np.isfinite(numbers)


def encoded(values: pa.ChunkedArray | pa.Array | Sequence[str], train: Ints) -> tuple[CategoricalFeature, Array]:
    """Return the feature whose vocabulary is the values of the training rows, and the index in it of every row.

    Values that training does not have are index 0. Numbers are in their own order.
    """
    codes, words = distinct(values)
    seen = np.unique(codes[train])
    order = sorted(seen.tolist(), key=lambda code: in_order(words[code]))
    index = np.zeros(len(words), np.int32)
    index[order] = np.arange(1, len(order) + 1)
    return CategoricalFeature(vocabulary=tuple(words[code] for code in order)), index[codes]


def distinct(values: pa.ChunkedArray | pa.Array | Sequence[str]) -> tuple[Array, list[str]]:
    """Return the number of each text, [N] int32, and the texts by their number."""
    chunked = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(values)])
    if not pa.types.is_dictionary(chunked.type):
        chunked = chunked.dictionary_encode()
    chunked = chunked.unify_dictionaries()
    codes = np.concatenate([np.empty(0, np.int32), *(chunk.indices.to_numpy() for chunk in chunked.chunks)])
    return codes, chunked.chunk(0).dictionary.to_pylist() if chunked.num_chunks else []


def in_order(word: str) -> tuple[bool, int, str]:
    """Return the key that sorts numbers in their own order, before other words."""
    return (not word.isdecimal(), len(word.lstrip("0")) if word.isdecimal() else 0, word)


def refuse_empty(content: bytes, file: TextFile) -> None:
    """Refuse a file with nothing in it."""
    if not content or content.isspace():
        raise ConfigError(f"{file} must hold at least 1 row, got an empty file.")


def text_content(file: TextFile) -> bytes:
    """Return the bytes of a text file, without a byte order mark.

    Raises:
        ConfigError: if it is empty, or holds a NUL byte: then it is no text, or in UTF-16.
    """
    _refuse_nul(file.head(), file)  # a hole of a terabyte shows in its first bytes
    content = file.read().removeprefix(BOM)
    refuse_empty(content, file)
    _refuse_nul(content, file)
    return content


def _refuse_nul(content: bytes, file: TextFile) -> None:
    place = content.find(b"\0")
    if place >= 0:
        row = content.count(b"\n", 0, place) + 1
        raise ConfigError(f"{file} must be a text file in UTF-8, got a NUL byte in row {row}. Convert it.")


def require_rows(count: int, place: object, *, least: int = 1) -> None:
    """Refuse a file with too few rows."""
    if count < least:
        raise ConfigError(f"{place} must hold at least {least} row{'s' * (least > 1)}, got {count}.")


def as_name(text: str) -> str:
    """Return a dataset's name made of any text."""
    cleaned = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")
    return cleaned[:63] or "dataset"


class _Form(NamedTuple):
    """How a file is written."""

    delimiter: str
    quoting: Quoting
    encoding: str
    names: Sequence[str] | None
    """Names of its columns, if the first row does not hold them."""
    may_lack_names: bool


def _read_table(file: TextFile, content: bytes, form: _Form, types: Mapping[str, pa.DataType]) -> pa.Table:
    names, skip = form.names, 0
    if names is None:
        names, skip = _header(content, form)
        if form.may_lack_names:
            names = [*names, *([""] if _has_trailing_delimiter(content, form, len(names)) else [])]
            names = [name or f"{UNNAMED}{place}" for place, name in enumerate(names, start=1)]
        _check_header(names, file)
    columns = {name: types.get(name, pa.string()) for name in names}
    raw_names = list(names)
    if form.delimiter == "::":  # for pyarrow, an empty column lies between every two
        raw_names = [part for name in names for part in (name, f"\0{name}")][:-1]
        columns |= {name: pa.null() for name in raw_names if name.startswith("\0")}
    references = sys.getrefcount(content)
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(content),
            read_options=arrow_csv.ReadOptions(column_names=raw_names, skip_rows=skip, block_size=_BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(
                delimiter=form.delimiter[0],
                quote_char='"' if form.quoting.quotes == "fields" else False,
                newlines_in_values=form.quoting.spans_lines,
            ),
            convert_options=arrow_csv.ConvertOptions(column_types=columns, null_values=[""]),
        )
    except pa.ArrowInvalid as error:
        ends = time.monotonic() + _LET_GO_S
        while sys.getrefcount(content) > references and time.monotonic() < ends:
            time.sleep(0.001)  # a thread of Arrow's still has the bytes: at the interpreter's end it would abort it
        raise _fault(file, form, len(names), error) from error
    return table.select(list(names))


def _header(content: bytes, form: _Form) -> tuple[list[str], int]:
    """Return the names of the columns, and the lines up to the end of that row."""
    text = io.StringIO(content[:HEAD_BYTES].decode(errors="replace"), newline="")
    reader = fields_of(text, delimiter=form.delimiter[0], quotes=form.quoting.quotes)
    names = next(fields for fields in reader if fields)
    return [name.strip() for name in names[:: len(form.delimiter)]], reader.line_num


def _has_trailing_delimiter(content: bytes, form: _Form, width: int) -> bool:
    """Whether the rows end with a delimiter that the header does not end with."""
    row = [*head_rows(content, form.delimiter, count=2), []][1]
    return len(row) == width + 1 and not row[-1].strip()


def _check_header(names: Sequence[str], file: TextFile) -> None:
    if len(names) > MOST_COLUMNS:
        raise ConfigError(
            f"{file} must have at most {MOST_COLUMNS:,} columns, got {len(names):,} or more. What has more is sparse: "
            "write it as `label column:value ...`, the format svmlight."
        )
    counts = Counter(names)
    numbers = [name for name in names if as_number(name) is not None]
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


def _fault(file: TextFile, form: _Form, width: int, error: pa.ArrowInvalid) -> ConfigError:
    """Look for what pyarrow refused, row by row."""
    words = DELIMITERS[form.delimiter]
    for row, fields in lines(file, delimiter=form.delimiter, quotes=form.quoting.quotes, encoding=form.encoding):
        if len(fields) != width:
            found = f"{file} must have {width} fields, separated by {words}, got {len(fields)} in row {row}."
            cure = f" Enclose fields that hold {words} in quotes" if len(fields) > width else ""
            if len(fields) == width + 1:
                cure += ", or if each row begins with its name, as R writes them, name that column in the header"
            return ConfigError(f"{found}{cure}{'.' if cure else ''}")
    return ConfigError(f"{file} must be a table with {words} between its fields, got {error}.")

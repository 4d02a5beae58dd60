"""The rows of delimited text files, column by column; what is large waits on disk."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import ConfigError
from models.features import CategoricalFeature
from orchestrator.data.columns import Array
from orchestrator.data.order import Ints
from orchestrator.data.sources.delimited.blocks import Content, TextFile, refuse_empty
from orchestrator.data.sources.delimited.dialect import find_delimiter, head_rows, quoting_of
from orchestrator.data.sources.delimited.encoding import Letters, encoding_of
from orchestrator.data.sources.delimited.parsing import Form, lines, names_of, parsed
from orchestrator.data.sources.delimited.shelf import Shelf, TextColumns
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import UNNAMED
from orchestrator.data.sources.splitting import consecutive

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
LARGEST = float(np.finfo(np.float32).max)  # numbers are stored in 32 bits


@dataclass(frozen=True, eq=False)
class Delimited:
    """The rows of one file, or of one file for each split; every field is text."""

    files: Mapping[str, TextFile]
    """By split."""
    forms: Mapping[str, Form]
    """How each file is written."""
    counts: Mapping[str, int]
    """Rows of each."""
    columns: TextColumns
    all_names: tuple[str, ...]
    """Names of all columns of the first file."""
    left_out: frozenset[str] = frozenset()
    """Columns that are none of the rows'."""

    def __len__(self) -> int:
        return self.columns.num_rows

    @property
    def names(self) -> list[str]:
        """Names of the columns, in their order."""
        return [name for name in self.all_names if name not in self.left_out]

    @property
    def unnamed(self) -> tuple[str, ...]:
        """Columns without a name in the header, under that of their place; see `UNNAMED`."""
        return tuple(name for name in self.names if name.startswith(UNNAMED))

    @property
    def place(self) -> str:
        """The files, as an error names them."""
        return " and ".join(map(str, self.files.values()))

    @property
    def encoding(self) -> str:
        """That all files are in."""
        return next(iter(self.forms.values())).encoding

    @property
    def rows(self) -> dict[str, Ints]:
        """The rows of each file."""
        return consecutive(self.counts)

    @property
    def shelf(self) -> Shelf | None:
        """Where what is made of the rows waits, if they are too many for memory."""
        return self.columns.shelf

    def where(self, index: int) -> tuple[str, int]:
        """Return the file of a row, and its number in it, counted from 1 with the header and empty rows."""
        for split, file in self.files.items():
            if index < self.counts[split]:
                form = self.forms[split]
                found = (row for row, _ in lines(Content(file), form))
                return str(file), next(islice(found, index + (form.names is None), None))
            index -= self.counts[split]
        raise IndexError(index)

    def first(self, count: int) -> pa.Table:
        """Return the first rows."""
        return self.columns.first(count).select(self.names)

    def parts(self, name: str) -> Iterator[pa.Array]:
        """Yield the values of a column as text, without the blanks around them, some rows at a time."""
        return map(pc.utf8_trim_whitespace, self.columns.parts(name))

    def trimmed(self, name: str) -> pa.ChunkedArray:
        """Return a column as text, without the blanks around it; an empty field is an empty text."""
        return pc.utf8_trim_whitespace(self.columns.column(name))

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

    def numbers(self, name: str, *, dtype: npt.DTypeLike = np.float64) -> Array:
        """Return a column as finite numbers, [N].

        Raises:
            ConfigError: if a field is not a number, or does not fit 32 bits.
        """
        values = self.columns.column(name)
        codes, words = distinct(values) if pa.types.is_dictionary(values.type) else (None, values)
        words = pc.utf8_trim_whitespace(pa.chunked_array([pa.array(words)]) if isinstance(words, list) else words)
        numbers, _ = as_numbers(words)
        wrong = ~(np.abs(numbers) <= LARGEST)
        if wrong.any():
            index = int((wrong if codes is None else wrong[codes]).argmax())
            file, row = self.where(index)
            found = words[index if codes is None else int(codes[index])].as_py()
            raise ConfigError(f"{name} in {file} must be a finite number in 32 bits, got {found!r} in row {row}.")
        return numbers.astype(dtype, copy=False) if codes is None else numbers.astype(dtype)[codes]

    def words(self, name: str) -> tuple[Array, list[str]]:
        """Return the number of each field's text without the blanks around it, [N] int32, and the texts by number."""
        codes, words = distinct(self.columns.column(name))
        plain = [word.strip() for word in words]
        if plain == words:
            return codes, words
        numbers = {word: number for number, word in enumerate(dict.fromkeys(plain))}
        return np.array([numbers[word] for word in plain], np.int32)[codes], [*numbers]


def read_delimited(
    files: Mapping[str, TextFile],
    *,
    options: SourceOptions | None = None,
    delimiter: str | None = None,
    names: Sequence[str] | None = None,
    types: Mapping[str, pa.DataType] | None = None,
    only: Sequence[str] | None = None,
    may_lack_names: bool = False,
) -> Delimited:
    """Read files that have the same columns: once for how they are written, then for their fields.

    Args:
        files: one, or one for each split.
        options: what the person says about delimiter and quotes.
        delimiter: one of `DELIMITERS`; found out from the first rows when left out.
        names: of the columns; without them the first row is a header.
        types: of columns that shall be something else than `pa.string()`.
        only: the columns that are read; default: all.
        may_lack_names: whether the header may leave columns without a name.

    Raises:
        ConfigError: if a file is empty, no text or not rectangular, or the files differ in their columns.
    """
    options = options or SourceOptions()
    contents = {split: Content(file) for split, file in files.items()}
    letters = {split: _letters(content) for split, content in contents.items()}
    encoding = encoding_of(letters, contents, lambda split, seen: contents[split].row_at(*seen))
    first, head = next(iter(files.values())), next(next(iter(contents.values())).blocks())
    delimiter = delimiter or options.delimiter or sniff(head, first)
    columns, forms, counts = TextColumns(), {}, {}
    for split, content in contents.items():
        chosen = options.quotes if letters[split].has_quotes else "letters"
        quoting = quoting_of(content, delimiter, chosen, encoding)
        form = Form(delimiter, quoting, encoding, names, may_lack_names)
        before = columns.num_rows
        for table in parsed(content, form, types=types or {}, only=only):
            columns.names = columns.names or list(table.column_names)
            _require_names(table.column_names, columns.names, content, first)
            columns.add(table)
        forms[split], counts[split] = form, columns.num_rows - before
        require_rows(counts[split], content)
        content.let_go()
    split, content = next(iter(contents.items()))
    return Delimited(files, forms, counts, columns, tuple(names_of(content, forms[split])))


def _letters(content: Content) -> Letters:
    found = Letters()
    for block in content.blocks():
        found.look_at(block)
    return found


def _require_names(names: Sequence[str], known: Sequence[str], content: Content, first: TextFile) -> None:
    if set(names) != set(known):
        raise ConfigError(f"{content} must have the columns of {first}, {','.join(known)!r}, got {','.join(names)!r}.")


def first_rows(content: bytes, *, delimiter: str) -> tuple[list[str], list[str]]:
    """Return the fields of the first two rows that are not empty, of what may be no table at all."""
    first, second = [*head_rows(content, delimiter, count=2), [], []][:2]
    return [field.strip() for field in first], [field.strip() for field in second]


def sniff(content: bytes, file: TextFile) -> str:
    """Return the delimiter of a file; see `find_delimiter` for the errors."""
    refuse_empty(content, file)
    return find_delimiter(content, file)


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
    return encode(*distinct(values), train)


def encode(codes: Array, words: Sequence[str], train: Ints) -> tuple[CategoricalFeature, Array]:
    """Return what `encoded` does of numbered words."""
    seen = np.zeros(len(words), bool)
    seen[codes[train]] = True
    order = sorted(np.flatnonzero(seen).tolist(), key=lambda code: in_order(words[code]))
    index = np.zeros(len(words), np.int32)
    index[order] = np.arange(1, len(order) + 1)
    return CategoricalFeature(vocabulary=tuple(words[code] for code in order)), index[codes]


def distinct(values: pa.ChunkedArray | pa.Array | Sequence[str]) -> tuple[Array, list[str]]:
    """Return the number of each text, [N] int32, and the texts by their number."""
    chunked = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(values)])
    if not pa.types.is_dictionary(chunked.type):
        chunked = chunked.dictionary_encode()  # chunk by chunk
    chunked = chunked.unify_dictionaries()
    codes = np.concatenate([np.empty(0, np.int32), *(chunk.indices.to_numpy() for chunk in chunked.chunks)])
    return codes, chunked.chunk(0).dictionary.to_pylist() if chunked.num_chunks else []


def in_order(word: str) -> tuple[bool, int, str]:
    """Return the key that sorts numbers in their own order, before other words."""
    return (not word.isdecimal(), len(word.lstrip("0")) if word.isdecimal() else 0, word)


def require_rows(count: int, place: object, *, least: int = 1) -> None:
    """Refuse a file with too few rows."""
    if count < least:
        raise ConfigError(f"{place} must hold at least {least} row{'s' * (least > 1)}, got {count}.")


def as_name(text: str) -> str:
    """Return a dataset's name made of any text."""
    cleaned = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")
    return cleaned[:63] or "dataset"

"""Sparse rows, `label column:value ...`, in the text format of libsvm, SVMlight and libFM."""

import re

import numpy as np

from cluster.errors import ConfigError
from models.features import TARGET, SparseFeature
from orchestrator.data.columns import SPARSE, Array, Ragged, join, take
from orchestrator.data.manifest import Change, Source
from orchestrator.data.precision import merged
from orchestrator.data.row_hashes import equal_rows
from orchestrator.data.sources.delimited.blocks import Content, TextFile
from orchestrator.data.sources.located import ALL, source_name, split_files
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.splitting import consecutive, drawn, refuse_draw
from orchestrator.data.sources.targets import number_labels

SUFFIXES = (".svm", ".svmlight", ".libsvm", ".libfm")
ROW = re.compile(rb"^[+-]?[\d.]\S*([ \t]+qid:\d+)?([ \t]+\d+:\S+)+[ \t\r]*(#.*)?$")
"""What a row with a number in some column looks like."""
FIRST_COLUMN = "first_column"
"""What the manifest calls the number with which columns begin."""

_COMMENT = re.compile(rb"#[^\n]*")
_LOOSE_COLON = re.compile(rb"\s:|:\s|:$|^:")
_MOST_COLUMNS = 2**31 - 2  # an index in a batch is one more, and is stored in 32 bits
_LARGEST = float(np.finfo(np.float32).max)


def read_svmlight(source: str, options: SourceOptions) -> Prepared:
    """Read sparse rows; columns count from 0 if any file has a column 0, else from 1."""
    only(options, "svmlight", "task", "seed", "test_share")
    files = split_files(source, suffixes=SUFFIXES)
    parsed = {split: parse_rows(file) for split, file in files.items()}
    place = " and ".join(map(str, files.values()))
    labels = number_labels(np.concatenate([values for values, _ in parsed.values()]), options, f"label in {place}")
    sparse = join([rows for _, rows in parsed.values()])
    assert isinstance(sparse, Ragged)
    if not len(sparse.values):
        raise ConfigError(f"{place} must hold a number in some column, got rows of labels only.")
    first_column = int(sparse.values["column"].min() > 0)
    sparse.values["column"] -= first_column
    if ALL in files:
        splits = drawn(labels.strata, groups=equal_rows([sparse]), options=options, place=place)
    else:
        refuse_draw(options, place)
        splits = consecutive({split: len(values) for split, (values, _) in parsed.items()})
    return Prepared(
        name=source_name(files),
        features={"sparse": SparseFeature(columns=int(sparse.values["column"].max()) + 1)},
        target=labels.target(splits, place),
        splits={
            split: Part.of({"sparse": take(sparse, chosen), TARGET: labels.values[chosen]})
            for split, chosen in splits.items()
        },
        source=Source(format="svmlight", uri=source, changes=(_counting(first_column),)),
    )


def _counting(first_column: int) -> Change:
    """Say from where columns are counted, so that rows that are appended can be read alike."""
    return Change(text=f"Columns count from {first_column}.", numbers={FIRST_COLUMN: float(first_column)})


def parse_rows(file: TextFile) -> tuple[Array, Ragged]:
    """Return the labels [N] and the rows, whose columns are counted as in the file.

    Raises:
        ConfigError: if a row is no label and `column:value`; names it.
    """
    labels, parts, row = [], [], 1
    for block in Content(file).blocks():
        lines = _COMMENT.sub(b"", block).split(b"\n")
        rows = [(number, line) for number, line in enumerate(lines, start=row) if line.strip()]
        row += len(lines) - 1
        if rows:
            values, sparse = _parse(file, rows)
            labels.append(values)
            parts.append(sparse)
    if not parts:
        raise ConfigError(f"{file} must hold at least 1 row, got comments only.")
    joined = join(parts)
    assert isinstance(joined, Ragged)
    return np.concatenate(labels), joined


def _parse(file: TextFile, rows: list[tuple[int, bytes]]) -> tuple[Array, Ragged]:
    """Return the labels [N] and the values of lines, which have their numbers in the file."""
    colons = np.array([line.count(b":") for _, line in rows])
    numbers = _numbers(b"\n".join(line for _, line in rows))
    if numbers is None or len(numbers) != len(rows) + 2 * colons.sum() or _is_odd(rows, colons):
        raise _fault(file, rows)
    starts = np.cumsum([0, *(1 + 2 * colons)])[:-1]
    is_label = np.zeros(len(numbers), bool)
    is_label[starts] = True
    columns, values = numbers[~is_label].reshape(-1, 2).T
    offsets = np.concatenate([[0], np.cumsum(colons)])
    _check_values(file, rows, numbers[starts], columns, values, offsets)
    sparse = np.empty(len(columns), SPARSE)
    sparse["column"], sparse["value"] = columns, values
    order = np.lexsort((columns, np.repeat(np.arange(len(rows)), colons)))
    sparse = sparse[order]
    _check_copies(file, rows, sparse["column"], offsets)
    return numbers[starts], Ragged(sparse, offsets)


def _numbers(text: bytes) -> Array | None:
    """Return all numbers of a text, or nothing if something else is in it."""
    try:
        return np.fromstring(text.replace(b":", b" ").decode("ascii"), np.float64, sep=" ")
    except ValueError:
        return None


def _is_odd(rows: list[tuple[int, bytes]], colons: Array) -> bool:
    """Whether a row has other fields than a label and column:value."""
    return any(
        len(line.split()) != count + 1 or _LOOSE_COLON.search(line)
        for (_, line), count in zip(rows, colons.tolist(), strict=True)
    )


def _check_values(
    file: TextFile, rows: list[tuple[int, bytes]], labels: Array, columns: Array, values: Array, offsets: Array
) -> None:
    owner = np.repeat(np.arange(len(rows)), np.diff(offsets))
    for what, found, fits, where in (
        ("label", labels, np.abs(labels) <= _LARGEST, np.arange(len(rows))),
        ("a value", values, np.abs(values) <= _LARGEST, owner),
    ):
        if not fits.all():
            index = int((~fits).argmax())
            raise ConfigError(
                f"{what} in {file} must be a finite number in 32 bits, got {found[index]} in row "
                f"{rows[where[index]][0]}."
            )
    lost = merged(values)
    if lost:
        raise ConfigError(
            f"a value in {file} must be one that 32 bits can tell from others, got {lost[0]:.17g} and {lost[1]:.17g}. "
            "Subtract a number from all of its column."
        )
    fits = (columns >= 0) & (columns <= _MOST_COLUMNS) & (columns == np.rint(columns))
    if not fits.all():
        index = int((~fits).argmax())
        raise ConfigError(
            f"a column in {file} must be a whole number from 0 to {_MOST_COLUMNS}, got {columns[index]:.17g} in row "
            f"{rows[owner[index]][0]}."
        )


def _check_copies(file: TextFile, rows: list[tuple[int, bytes]], columns: Array, offsets: Array) -> None:
    owner = np.repeat(np.arange(len(rows)), np.diff(offsets))
    copies = np.flatnonzero((columns[1:] == columns[:-1]) & (owner[1:] == owner[:-1]))
    if len(copies):
        raise ConfigError(
            f"{file} must name each column once per row, got column {columns[copies[0]]} twice in row "
            f"{rows[owner[copies[0]]][0]}."
        )


def _fault(file: TextFile, rows: list[tuple[int, bytes]]) -> ConfigError:
    """Look for the row that is not `label column:value ...`."""
    for row, line in rows:
        for place, field in enumerate(line.split()):
            if field.startswith(b"qid:"):
                return ConfigError(f"{file} must have no query ids, got {_shown(field)} in row {row}. Remove them.")
            parts = field.split(b":")
            if len(parts) != 1 + (place > 0) or not all(map(_is_number, parts)):
                rule = "column:value" if place else "a number as label"
                return ConfigError(f"{file} must have {rule} in field {place + 1}, got {_shown(field)} in row {row}.")
    raise AssertionError(file)


def _is_number(text: bytes) -> bool:
    numbers = _numbers(text)
    return numbers is not None and len(numbers) == 1


def _shown(field: bytes) -> str:
    return repr(field[:40].decode(errors="replace"))

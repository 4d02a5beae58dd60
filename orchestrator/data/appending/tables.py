"""Reads rows of a table by the rules of a version, as a request to a model is read: its notations, fills, categories.

What `models/preparing/rows.py` does with one row is done here with columns.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import ConfigError
from models.features import TARGET, CategoricalFeature, VectorFeature
from models.preparing.rows import (
    NUMBERS,
    CategoryColumn,
    DateColumn,
    NumberColumn,
    RowColumn,
    date_of,
    date_parts,
    example_of,
    number_pattern,
    vector_names,
)
from orchestrator.data.appending.rules import CURE, RowRules, Rules
from orchestrator.data.appending.targets import named_target, read_targets
from orchestrator.data.columns import Array, Columns, take
from orchestrator.data.manifest import Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.delimited.encoding import in_encoding
from orchestrator.data.sources.delimited.fields import missing_in, policy_of
from orchestrator.data.sources.delimited.notations import numbers_in
from orchestrator.data.sources.delimited.table import SUFFIXES
from orchestrator.data.sources.located import split_files
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import LARGEST, Delimited, distinct, read_delimited

Where = Callable[[int], str]
"""Returns what to call a row in a message."""


def read_more_table(source: str, rules: Rules) -> Prepared:
    """Read a table by the rules of a version.

    Raises:
        ConfigError: if a column is missing or unknown, or a value does not fit its column; names the row.
    """
    files = split_files(source, suffixes=SUFFIXES)
    rows = read_delimited(files, options=rules.options, may_lack_names=True)
    target = named_target(rows.names, rules, rows.place)
    check_columns(rows, rules)
    kept, notes = _kept(rows, target, rules)
    columns, gone = features_of_rows(rows, kept, rules)
    filled = [
        f"filled {int(found.sum()):,} missing values of {name} as in {rules}"
        for name, found in gone.items()
        if not isinstance(rules.schema.columns[name], CategoryColumn)
    ]
    columns[TARGET] = read_targets(rows, target, rules, kept)
    return rules.read(
        {split: _part(columns, np.isin(kept, chosen)) for split, chosen in rows.rows.items()},
        Source(format=in_encoding("table", rows.encoding), uri=source),
        (*notes, *filled),
    )


def check_columns(rows: Delimited, rules: RowRules) -> None:
    """Refuse a table without a column that the version reads, or with one that its source did not have."""
    schema = rules.schema
    names = [name for name in rows.names if name not in rows.unnamed]
    missing = [name for name in schema.columns if name not in names]
    extra = [name for name in names if name not in schema.columns and name not in schema.ignored]
    if missing or extra:
        found = [f"no {', '.join(missing)}"] if missing else []
        found += [f"{', '.join(extra)} beside them"] if extra else []
        raise ConfigError(
            f"{rows.place} must have the columns of {rules}, {', '.join(schema.columns)}, got {' and '.join(found)}. "
            f"{rules.cure}"
        )


def _kept(rows: Delimited, target: str, rules: Rules) -> tuple[Ints, tuple[str, ...]]:
    """Return the rows that stay where those without some value are left out, as in the version, and a note."""
    dropping = [name for name in (*rules.schema.columns, target) if policy_of(name, rules.options) == "drop"]
    gone = {name: missing_in(rows.trimmed(name), name, rules.options) for name in dropping}
    left_out = np.any([np.zeros(len(rows), bool), *gone.values()], axis=0)
    kept = np.flatnonzero(~left_out)
    if not len(kept):
        raise ConfigError(f"missing=drop must leave rows of {rows.place}, got none. {CURE}")
    if len(kept) == len(rows):
        return kept, ()
    listed = ", ".join(f"{name} in {int(found.sum()):,}" for name, found in gone.items() if found.any())
    return kept, (f"left out {len(rows) - len(kept):,} of {len(rows):,} rows, with no value of {listed}",)


def _part(columns: Columns, chosen: Array) -> Part:
    rows = np.flatnonzero(chosen)
    return Part.of(columns if len(rows) == len(chosen) else {name: take(c, rows) for name, c in columns.items()})


def features_of_rows(rows: Delimited, kept: Ints, rules: RowRules) -> tuple[Columns, dict[str, Array]]:
    """Return the features of the rows that stay, and by column which of its values are missing, where some are."""
    columns: Columns = {}
    gone: dict[str, Array] = {}
    numbers: dict[str, Array] = {}
    for name, column in rules.schema.columns.items():
        texts = rows.trimmed(name).take(pa.array(kept))

        def where(row: int, name: str = name) -> str:
            file, number = rows.where(int(kept[row]))
            return f"{name} in row {number} of {file}"

        keeps_words = isinstance(column, CategoryColumn) and column.keeps_words
        found = _missing(texts, () if keeps_words else rules.schema.missing_words)
        gone |= {name: found} if found.any() else {}
        if isinstance(column, CategoryColumn):
            columns[column.feature] = _category(texts, found, column, rules, where)
        else:
            words = vector_names(name, column)
            numbers |= dict(zip(words, _numbers(texts, found, column, rules, where), strict=True))
    vector = rules.features.get(NUMBERS)
    if isinstance(vector, VectorFeature):
        columns[NUMBERS] = _vector(numbers, vector, len(kept))
    return columns, gone


def _category(texts: pa.ChunkedArray, gone: Array, column: CategoryColumn, rules: RowRules, where: Where) -> Array:
    """Return the index of each category, 0 for one that training never saw."""
    if gone.any() and column.missing is None:
        raise _no_value(int(gone.argmax()), rules, where)
    words = pc.if_else(pa.array(gone), column.missing, texts) if gone.any() else texts
    return category_index(words, rules, column.feature)


def category_index(words: pa.ChunkedArray, rules: RowRules, feature: str) -> Array:
    """Return the index of each word in the vocabulary of a feature, 0 for those that it does not have."""
    known = rules.features[feature]
    assert isinstance(known, CategoricalFeature)
    codes, found = distinct(words)
    places = pc.index_in(pa.array(found, pa.string()), value_set=pa.array(known.vocabulary, pa.string()))
    index: Array = (pc.fill_null(places, -1).to_numpy(zero_copy_only=False) + 1).astype(np.int32)
    return index[codes]


def _numbers(texts: pa.ChunkedArray, gone: Array, column: RowColumn, rules: RowRules, where: Where) -> list[Array]:
    """Return the numbers that a column becomes, [N] float64 each."""
    assert isinstance(column, NumberColumn | DateColumn)
    fills: Sequence[float] | None
    if isinstance(column, NumberColumn):
        fills = None if column.fill is None else (column.fill,)
        found = [_plain_numbers(texts, gone, column, rules, where)]
    else:
        fills = column.fills
        found = _dates(texts, gone, column, rules, where)
    if gone.any():
        if fills is None:
            raise _no_value(int(gone.argmax()), rules, where)
        found = [np.where(gone, fill, values) for fill, values in zip(fills, found, strict=True)]
    return [*found, gone.astype(np.float64)] if column.indicator else found


def _plain_numbers(texts: pa.ChunkedArray, gone: Array, column: NumberColumn, rules: RowRules, where: Where) -> Array:
    matches: Array = pc.match_substring_regex(texts, number_pattern(column.notation)).to_numpy()
    wrong = ~(matches | gone)
    numbers = np.full(len(gone), np.nan)
    if not wrong.any():
        numbers[~gone] = numbers_in(pc.filter(texts, pa.array(~gone)), column.notation)
        wrong = ~gone & ~(np.abs(numbers) <= LARGEST)
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(
            f"{where(row)} must be a finite number in 32 bits, written like {example_of(column.notation)}, got "
            f"{texts[row].as_py()!r}. {rules.cure}"
        )
    return numbers


def _dates(texts: pa.ChunkedArray, gone: Array, column: DateColumn, rules: RowRules, where: Where) -> list[Array]:
    codes, words = distinct(texts)
    dates = [date_of(word, column.format) for word in words]
    wrong = np.array([date is None for date in dates], bool)[codes] & ~gone
    if wrong.any():
        row = int(wrong.argmax())
        form = f"like {column.format}" if column.format else "in ISO 8601"
        raise ConfigError(f"{where(row)} must be a date {form}, got {texts[row].as_py()!r}. {rules.cure}")
    no_date = (np.nan,) * len(column.parts)
    parts = np.array([date_parts(date, column.parts) if date else no_date for date in dates], np.float64)
    return [*parts[codes].T]


def _vector(numbers: dict[str, Array], vector: VectorFeature, rows: int) -> Array:
    """Return the numbers side by side as they are stored, [N, D] float32; -0 is 0."""
    rows_ND = np.empty((rows, len(vector.names)), np.float32)
    for place, (name, offset) in enumerate(zip(vector.names, vector.offsets, strict=True)):
        rows_ND[:, place] = numbers[name] - offset + 0.0
    return rows_ND


def _missing(texts: pa.ChunkedArray, words: Sequence[str]) -> Array:
    gone: Array = pc.is_in(texts, value_set=pa.array(["", *words], pa.string())).to_numpy()
    return gone


def _no_value(row: int, rules: RowRules, where: Where) -> ConfigError:
    return ConfigError(
        f"{where(row)} must be given, as {rules} has no value for a missing one, got nothing. {rules.cure}"
    )

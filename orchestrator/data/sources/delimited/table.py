"""Tables: CSV and TSV files with a header, columns of numbers, dates and categories, and one column to predict."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import ConfigError
from models.features import TARGET, Feature, VectorFeature
from models.preparing.rows import NUMBERS, CategoryColumn, RowSchema, vector_names
from orchestrator.data.columns import Array, Column, Columns, row_statistics, take
from orchestrator.data.manifest import Source
from orchestrator.data.order import Ints
from orchestrator.data.precision import centre_of, merged
from orchestrator.data.sources.delimited.dialect import in_encoding
from orchestrator.data.sources.delimited.fields import (
    Field,
    FieldError,
    in_brackets,
    missing_words,
    read_field,
    refuse_fields,
)
from orchestrator.data.sources.delimited.missing import check_policies, filled, gaps_of, kept_rows, with_rules
from orchestrator.data.sources.located import ALL, source_name, split_files
from orchestrator.data.sources.options import DELIMITED, SourceOptions, only
from orchestrator.data.sources.prepared import Part, Prepared, columns_left_out
from orchestrator.data.sources.rows import Delimited, distinct, encoded, read_delimited
from orchestrator.data.sources.splitting import drawn, equal_rows, refuse_draw, together
from orchestrator.data.sources.targets import Labels, read_labels, target_column

SUFFIXES = (".csv", ".tsv")

_OPTIONS = ("target", "ignore", "task", "seed", "test_share", "missing", "missing_words", "indicators", "decimal")
_MORE = ("thousands", "dates", "date_format", "categories", "numbers", *DELIMITED)


@dataclass(frozen=True, eq=False)
class _Table:
    """The rows that stay, column by column."""

    place: str
    fields: tuple[Field, ...]
    labels: Labels
    splits: dict[str, Ints] | None
    """The rows of each split, if the source says so."""

    @property
    def numeric(self) -> list[Field]:
        return [field for field in self.fields if field.is_numeric]

    @property
    def categories(self) -> list[Field]:
        return [field for field in self.fields if not field.is_numeric]


def read_table(source: str, options: SourceOptions) -> Prepared:
    """Read a table; its rows are split stratified by class, or at random, unless the files are the splits."""
    only(options, "table", *_OPTIONS, *_MORE)
    files = split_files(source, suffixes=SUFFIXES)
    rows, notes = named_columns(read_delimited(files, options=options, may_lack_names=True), options)
    target = target_column(rows.names, options, rows.place)
    table, dropped = _without_gaps(rows, target, options)
    splits = _split(table, options)
    table = replace(table, fields=tuple(filled(field, splits["train"], options) for field in table.fields))
    coded = {field.name: encoded(_words(field), splits["train"]) for field in table.categories}
    features: dict[str, Feature] = {name: feature for name, (feature, _) in coded.items()}
    columns: Columns = {TARGET: table.labels.values, **{name: indices for name, (_, indices) in coded.items()}}
    if table.numeric:
        features[NUMBERS], columns[NUMBERS] = _vector(table, splits["train"])
    notes += [*([dropped] if dropped else []), *(note for field in table.fields for note in field.notes)]
    ignored = [name for name in rows.names if name not in {field.name for field in table.fields}]
    notes += (*table.labels.notes, *columns_left_out([name for name in ignored if name != target]))
    return Prepared(
        name=source_name(files),
        features=features,
        target=table.labels.target(splits, rows.place),
        splits={s: Part.of({n: take(column, chosen) for n, column in columns.items()}) for s, chosen in splits.items()},
        source=Source(format=in_encoding("table", rows.encoding), uri=source),
        notes=tuple(notes),
        rows=RowSchema(
            columns={field.name: field.column for field in table.fields},
            ignored=tuple(ignored),
            missing_words=missing_words(options),
        ),
    )


# ---- columns


def named_columns(rows: Delimited, options: SourceOptions) -> tuple[Delimited, list[str]]:
    """Return the rows without columns that have neither a name nor a value, and a note about each of those.

    Raises:
        ConfigError: if a column without a name has values, and is not left out by its place.
    """
    places = {name: rows.names.index(name) + 1 for name in rows.unnamed}
    empty = [name for name in places if not _holds_anything(rows, name)]
    for name, place in places.items():
        if name not in empty and not {name, place} & set(options.ignore or ()):
            shown = ", ".join(repr(value.as_py()) for value in rows.table.column(name)[:2])
            raise ConfigError(
                f"{rows.place} must name its columns, got no name for column {place}, which holds {shown}, … Leave it "
                f"out with --option ignore={place}, or name it."
            )
    notes = [f"left out column {places[name]}, which has neither a name nor a value" for name in empty]
    return replace(rows, table=rows.table.drop_columns(empty)), notes


def _holds_anything(rows: Delimited, name: str) -> bool:
    return bool(pc.any(pc.not_equal(rows.trimmed(name), "")).as_py())


def _feature_names(rows: Delimited, target: str, options: SourceOptions) -> list[str]:
    known = set(rows.names)
    by_place = dict(enumerate(rows.all_names, start=1))
    ignored = {by_place.get(word, word) if isinstance(word, int) else word for word in options.ignore or ()}
    unknown = [word for word in ignored if word == target or (word not in known and word not in rows.unnamed)]
    if unknown:
        raise ConfigError(
            f"ignore must name columns of {rows.place} that are not predicted, got {unknown[0]!r}; there are "
            f"{', '.join(rows.names)}."
        )
    names = [name for name in rows.names if name != target and name not in ignored]
    taken = [name for name in names if name in (NUMBERS, TARGET)]
    if taken:
        raise ConfigError(f"{rows.place} must not call a column {taken[0]!r}, a name that is taken. Rename it.")
    if not names:
        raise ConfigError(f"{rows.place} must have a column besides {target}, got none to predict it from.")
    return names


def _without_gaps(rows: Delimited, target: str, options: SourceOptions) -> tuple[_Table, str]:
    """Return the columns, without rows that are to be dropped, and a note about those.

    Raises:
        ConfigError: names all columns that cannot be read, and all in which a value is missing.
    """
    check_policies(rows.names, options, rows.place)
    fields, faults = [], {}
    for name in _feature_names(rows, target, options):
        try:
            fields.append(with_rules(read_field(rows, name, options), options))
        except FieldError as error:
            faults[name] = error
    gaps = gaps_of(rows, fields, target, options)
    if faults:
        raise refuse_fields(faults, rows.place, f" Also, {gaps}" if gaps else "")
    if gaps:
        raise ConfigError(gaps)
    kept, note = kept_rows(rows, fields, target, options)
    if len(kept) < len(rows):
        fields = [_taken(field, kept) for field in fields]
    labels = read_labels(rows, target, options, kept=kept if len(kept) < len(rows) else None)
    splits = None
    if ALL not in rows.files:
        refuse_draw(options, rows.place)
        splits = {split: np.flatnonzero(np.isin(kept, chosen)) for split, chosen in rows.rows.items()}
    _check_vector(fields, rows.place)
    return _Table(rows.place, tuple(fields), labels, splits), note


def _taken(field: Field, kept: Ints) -> Field:
    return replace(
        field,
        texts=field.texts.take(pa.array(kept)),
        is_missing=field.is_missing[kept],
        numbers=tuple(numbers[kept] for numbers in field.numbers),
    )


def _check_vector(fields: Sequence[Field], place: str) -> None:
    names = [word for field in fields for word in vector_names(field.name, field.column)]
    names += [field.name for field in fields if not field.is_numeric]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ConfigError(f"{place} must not call a column {twice!r}, a name that another makes. Rename one.")


# ---- splits


def _split(table: _Table, options: SourceOptions) -> dict[str, Ints]:
    """Return the rows of each split; of one that is drawn here, no test row is what a training row is once filled."""
    if table.splits is not None:
        return table.splits
    categories: list[Column] = [distinct(_words(field))[0] for field in table.categories]
    numbers: list[Column] = [_exact(table.numeric)] if table.numeric else []
    groups = equal_rows([*numbers, *categories])
    rows = drawn(table.labels.strata, groups=groups, options=options, place=table.place)
    if not any(field.is_missing.any() for field in table.numeric):
        return rows
    while True:
        same = _equal_once_filled(table, rows["train"], categories, options)
        if not np.isin(same[rows["test"]], same[rows["train"]]).any():
            return rows
        groups = together(groups, same)  # moving such rows to training could leave next to none to test
        rows = drawn(table.labels.strata, groups=groups, options=options, place=table.place)


def _equal_once_filled(table: _Table, train: Ints, categories: Sequence[Column], options: SourceOptions) -> Ints:
    """Return a number for each row that rows share which are equal once training has filled their missing values."""
    return equal_rows([_exact([filled(field, train, options) for field in table.numeric]), *categories])


def _exact(fields: Sequence[Field]) -> Array:
    """Return columns of numbers side by side, in 64 bits if any needs them."""
    return np.stack([numbers for field in fields for numbers in field.numbers], axis=1)


# ---- features


def _words(field: Field) -> pa.ChunkedArray:
    """Return the categories of a column, a missing value being one."""
    column = field.column
    assert isinstance(column, CategoryColumn)
    if column.missing is None or not field.is_missing.any():
        return field.texts
    return pc.if_else(pa.array(field.is_missing), column.missing, field.texts)


def _vector(table: _Table, train: Ints) -> tuple[VectorFeature, Array]:
    """Return the feature of all columns of numbers, and their values, [N, D] float32.

    Raises:
        ConfigError: if 32 bits cannot tell values of a column apart.
    """
    names = [word for field in table.numeric for word in vector_names(field.name, field.column)]
    found = [numbers for field in table.numeric for numbers in field.numbers]
    rows_ND = np.empty((len(found[0]), len(names)), np.float32)
    offsets = np.zeros(len(names))
    for place, numbers in enumerate(found):
        if numbers.dtype == np.float64:
            offsets[place] = centre_of(numbers, numbers[train])
            _refuse_merged(names[place], numbers - offsets[place], offsets[place], table.place)
            rows_ND[:, place] = numbers - offsets[place]
        else:
            rows_ND[:, place] = numbers
    mean, std = row_statistics(rows_ND[train])
    offset = tuple(offsets.tolist()) if offsets.any() else ()
    return VectorFeature(names=tuple(names), mean=mean, std=std, offset=offset), rows_ND


def _refuse_merged(name: str, numbers: Array, offset: float, place: str) -> None:
    lost = merged(numbers)
    if lost:
        one, other = (f"{value + offset:.17g}" for value in lost)
        word = in_brackets([name])
        raise ConfigError(
            f"{name} in {place} must be numbers that 32 bits can tell apart, less their mean, got {one} and {other}. "
            f"Leave it out with --option 'ignore={word}', or make it categories with --option 'categories={word}'."
        )

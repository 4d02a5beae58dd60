"""Tables: CSV and TSV files with a header, columns of numbers, dates and categories, and one column to predict."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from cluster.errors import ConfigError
from models.features import TARGET, Feature, VectorFeature
from models.preparing.rows import NUMBERS, CategoryColumn, RowSchema, vector_names
from orchestrator.data.columns import Array, Columns, RowStatistics
from orchestrator.data.manifest import Source
from orchestrator.data.order import Ints
from orchestrator.data.precision import centre_of, merged
from orchestrator.data.row_hashes import equal_rows
from orchestrator.data.sources.delimited.encoding import in_encoding
from orchestrator.data.sources.delimited.fields import (
    Field,
    FieldError,
    Words,
    in_brackets,
    missing_words,
    read_field,
    refuse_fields,
)
from orchestrator.data.sources.delimited.missing import check_policies, filled, gaps_of, kept_rows, with_rules
from orchestrator.data.sources.delimited.plain import plain_fields
from orchestrator.data.sources.delimited.shelf import PIECE_BYTES, Shelf, let_go, shelved
from orchestrator.data.sources.located import ALL, source_name, split_files
from orchestrator.data.sources.options import DELIMITED, SourceOptions, only
from orchestrator.data.sources.prepared import Part, Prepared, columns_left_out
from orchestrator.data.sources.rows import Delimited, encode, read_delimited
from orchestrator.data.sources.splitting import drawn, refuse_draw, together
from orchestrator.data.sources.targets import Labels, read_labels, target_column

SUFFIXES = (".csv", ".tsv")
_TOGETHER_BYTES = 2**20  # of columns that are compared side by side

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
    shelf: Shelf | None
    """Where columns wait, if they are too large for memory."""

    def kept(self, array: Array) -> Array:
        """Return an array, perhaps one that waits on disk."""
        return self.shelf.put(array) if self.shelf else array

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
    table = replace(table, fields=tuple(_filled(table, splits["train"], options)))
    coded = {field.name: encode(*_words(field), splits["train"]) for field in table.categories}
    columns = {TARGET: table.labels.values, **{name: table.kept(index) for name, (_, index) in coded.items()}}
    parts, vector = _parts(table, columns, splits)
    features: dict[str, Feature] = {name: feature for name, (feature, _) in coded.items()}
    features |= {NUMBERS: vector} if vector else {}
    notes += [*([dropped] if dropped else []), *(note for field in table.fields for note in field.notes)]
    ignored = [name for name in rows.names if name not in {field.name for field in table.fields}]
    notes += (*table.labels.notes, *columns_left_out([name for name in ignored if name != target]))
    return Prepared(
        name=source_name(files),
        features=features,
        target=table.labels.target(splits, rows.place),
        splits=parts,
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
            shown = ", ".join(repr(value.as_py()) for value in rows.first(2).column(name))
            raise ConfigError(
                f"{rows.place} must name its columns, got no name for column {place}, which holds {shown}, … Leave it "
                f"out with --option ignore={place}, or name it."
            )
    notes = [f"left out column {places[name]}, which has neither a name nor a value" for name in empty]
    return replace(rows, left_out=frozenset(empty)), notes


def _holds_anything(rows: Delimited, name: str) -> bool:
    return any(pc.any(pc.not_equal(part, "")).as_py() for part in rows.parts(name))


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
    names = _feature_names(rows, target, options)
    fields, faults, plain = [], {}, plain_fields(rows, names, options)
    for name in names:
        try:
            field = with_rules(plain.get(name) or read_field(rows, name, options), options)
            fields.append(field.changed(rows.shelf.put) if rows.shelf else field)
        except FieldError as error:
            faults[name] = error
    gaps = gaps_of(rows, fields, target, options)
    if faults:
        raise refuse_fields(faults, rows.place, f" Also, {gaps}" if gaps else "")
    if gaps:
        raise ConfigError(gaps)
    kept, note = kept_rows(rows, fields, target, options)
    if len(kept) < len(rows):
        fields = [_taken(field, kept, rows.shelf) for field in fields]
    labels = read_labels(rows, target, options, kept=kept if len(kept) < len(rows) else None)
    splits = None
    if ALL not in rows.files:
        refuse_draw(options, rows.place)
        splits = {split: np.flatnonzero(np.isin(kept, chosen)) for split, chosen in rows.rows.items()}
    _check_vector(fields, rows.place)
    return _Table(rows.place, tuple(fields), labels, splits, rows.shelf), note


def _taken(field: Field, kept: Ints, shelf: Shelf | None) -> Field:
    taken = field.changed(lambda array: shelf.put(array[kept]) if shelf else array[kept])
    let_go(field.arrays)
    return taken


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
    groups = equal_rows(_compared(table.fields))
    rows = drawn(table.labels.strata, groups=groups, options=options, place=table.place)
    if not any(field.is_missing.any() for field in table.numeric):
        return rows
    while True:
        same = equal_rows(_compared(filled(field, rows["train"], options) for field in table.fields))
        if not np.isin(same[rows["test"]], same[rows["train"]]).any():
            return rows
        groups = together(groups, same)  # moving such rows to training could leave next to none to test
        rows = drawn(table.labels.strata, groups=groups, options=options, place=table.place)


def _compared(fields: Iterable[Field]) -> Iterator[Array]:
    """Yield what tells a row from another."""
    waiting: list[Array] = []
    for field in fields:
        for column in field.numbers if field.is_numeric else (_words(field).codes,):
            if column.nbytes > _TOGETHER_BYTES:
                yield column
                continue
            if waiting and (column.dtype != waiting[0].dtype or len(waiting) * column.nbytes > _TOGETHER_BYTES):
                yield np.stack(waiting, 1)
                waiting = []
            waiting.append(column)
        let_go(field.arrays)
    if waiting:
        yield np.stack(waiting, 1)


# ---- features


def _filled(table: _Table, train: Ints, options: SourceOptions) -> Iterator[Field]:
    for field in table.fields:
        found = filled(field, train, options)
        yield found if found is field or table.shelf is None else found.changed(table.shelf.put)
        let_go(field.arrays)


def _words(field: Field) -> Words:
    """Return the categories of a column, a missing value being one."""
    column = field.column
    assert isinstance(column, CategoryColumn) and field.words is not None
    if column.missing is None or not field.is_missing.any():
        return field.words
    codes, words = field.words
    place = words.index(column.missing) if column.missing in words else len(words)
    return Words(np.where(field.is_missing, place, codes), [*words, column.missing][: max(len(words), place + 1)])


def _parts(
    table: _Table, columns: Mapping[str, Array], splits: Mapping[str, Ints]
) -> tuple[dict[str, Part], VectorFeature | None]:
    """Return the rows of each split, and the feature of all columns of numbers.

    Raises:
        ConfigError: if 32 bits cannot tell values of a column apart.
    """
    names = [word for field in table.numeric for word in vector_names(field.name, field.column)]
    numbers = [numbers for field in table.numeric for numbers in field.numbers]
    offset_D = np.array([_offset(name, n, splits["train"], table) for name, n in zip(names, numbers, strict=True)])
    statistics = RowStatistics(len(names))

    def read(split: str, rows: Ints) -> Columns:
        found: Columns = {name: column[rows] for name, column in columns.items()}
        if names:
            rows_ND = np.empty((len(rows), len(names)), np.float32)
            for place, (column, offset) in enumerate(zip(numbers, offset_D, strict=True)):
                rows_ND[:, place] = column[rows] - offset if offset else column[rows]
            found[NUMBERS] = rows_ND
            if split == "train":
                statistics.add(rows_ND)
        let_go([*columns.values(), *numbers])
        return found

    parts = {}
    for split, rows in splits.items():
        if table.shelf is None:
            parts[split] = Part.of(read(split, rows))
        else:
            step = (
                -(-PIECE_BYTES // (4 * len(names) + 8 * len(columns)) // statistics.block_rows) * statistics.block_rows
            )
            blocks = (rows[start : start + step] for start in range(0, len(rows), step))
            parts[split] = shelved(table.shelf, (read(split, block) for block in blocks))
    if not names:
        return parts, None
    mean, std = statistics.result()
    offset = tuple(offset_D.tolist()) if offset_D.any() else ()
    return parts, VectorFeature(names=tuple(names), mean=mean, std=std, offset=offset)


def _offset(name: str, numbers: Array, train: Ints, table: _Table) -> float:
    """Return what to subtract from a column before it is stored in 32 bits."""
    if numbers.dtype != np.float64:
        return 0.0
    offset = centre_of(numbers, numbers[train])
    _refuse_merged(name, numbers - offset, offset, table.place)
    let_go([numbers])
    return offset


def _refuse_merged(name: str, numbers: Array, offset: float, place: str) -> None:
    lost = merged(numbers)
    if lost:
        one, other = (f"{value + offset:.17g}" for value in lost)
        word = in_brackets([name])
        raise ConfigError(
            f"{name} in {place} must be numbers that 32 bits can tell apart, less their mean, got {one} and {other}. "
            f"Leave it out with --option 'ignore={word}', or make it categories with --option 'categories={word}'."
        )

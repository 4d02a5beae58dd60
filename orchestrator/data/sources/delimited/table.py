"""Tables: CSV and TSV files with a header, columns of numbers and of categories, and one column to predict."""

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc

from cluster.errors import ConfigError
from models.features import TARGET, Feature, VectorFeature
from orchestrator.data.columns import Array, Columns, row_statistics, take
from orchestrator.data.manifest import Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.located import ALL, source_name, split_files
from orchestrator.data.sources.options import DELIMITED, SourceOptions, only
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import Delimited, as_numbers, distinct, encoded, read_delimited
from orchestrator.data.sources.splitting import drawn, equal_rows, refuse_draw
from orchestrator.data.sources.targets import read_labels, target_column

SUFFIXES = (".csv", ".tsv")
NUMBERS = "numbers"
"""The feature of all columns of numbers."""

_FEW, _MOST_CATEGORIES = 20, 1000
_DATE = r"^\d{4}-\d{1,2}-\d{1,2}([T ].*)?$|^\d{1,2}[./-]\d{1,2}[./-]\d{2,4}( .*)?$"
_ID_NAMES = ("id", "index", "uuid", "guid")


def read_table(source: str, options: SourceOptions) -> Prepared:
    """Read a table; its rows are split stratified by class, or at random, unless the files are the splits."""
    only(options, "table", "target", "ignore", "task", "seed", "test_share", *DELIMITED)
    files = split_files(source, suffixes=SUFFIXES)
    rows = read_delimited(files, options=options)
    target_name = target_column(rows.names, options, rows.place)
    names = _feature_names(rows, target_name, options)
    labels = read_labels(rows, target_name, options)
    numeric = [name for name in names if _is_numeric(rows, name)]
    categories = {name: rows.column(name) for name in names if name not in numeric}
    numbers_ND = _matrix(rows, numeric)
    groups = equal_rows([numbers_ND, *(distinct(values)[0] for values in categories.values())])
    splits = split_rows(rows, labels.strata, groups, options)
    coded = {name: encoded(values, splits["train"]) for name, values in categories.items()}
    features: dict[str, Feature] = {name: feature for name, (feature, _) in coded.items()}
    columns: Columns = {TARGET: labels.values, **{name: indices for name, (_, indices) in coded.items()}}
    if numeric:
        mean, std = row_statistics(numbers_ND[splits["train"]])
        features[NUMBERS] = VectorFeature(names=tuple(numeric), mean=mean, std=std)
        columns[NUMBERS] = numbers_ND
    return Prepared(
        name=source_name(files),
        features=features,
        target=labels.target(splits, rows.place),
        splits={s: Part.of({n: take(column, chosen) for n, column in columns.items()}) for s, chosen in splits.items()},
        source=Source(format=rows.in_encoding("table"), uri=source),
    )


def split_rows(rows: Delimited, strata: Array, groups: Ints, options: SourceOptions) -> dict[str, Ints]:
    """Return the rows of each split: those of its file, or drawn if there is one file."""
    if ALL in rows.files:
        return drawn(strata, groups=groups, options=options, place=rows.place)
    refuse_draw(options, rows.place)
    return rows.rows


def _feature_names(rows: Delimited, target: str, options: SourceOptions) -> list[str]:
    ignored = options.ignore or ()
    unknown = [name for name in ignored if name not in rows.names or name == target]
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


def _matrix(rows: Delimited, names: Sequence[str]) -> Array:
    """Return columns of numbers, [N, D] float32."""
    numbers_ND = np.empty((len(rows), len(names)), np.float32)
    for column, name in enumerate(names):
        numbers_ND[:, column] = rows.numbers(name)
    return numbers_ND + 0.0  # -0 is 0


def _is_numeric(rows: Delimited, name: str) -> bool:
    """Whether a column is of numbers; refuses what is neither numbers nor categories."""
    values = rows.column(name)
    _, is_number = as_numbers(values)
    cure = f"Leave it out with --option ignore={name}"
    if is_number.any() and not is_number.all() and 2 * is_number.sum() >= len(rows):
        file, row = rows.where(int((~is_number).argmax()))
        raise ConfigError(
            f"{name} in {file} must be a finite number in every row or in few, got "
            f"{values[int((~is_number).argmax())].as_py()!r} in row {row}. Correct it, or remove the row. {cure}."
        )
    different = len(distinct(values)[1])
    is_id = name.lower() in _ID_NAMES or name.lower().endswith(("_id", " id"))
    if is_id and different == len(rows):
        raise ConfigError(f"{name} in {rows.place} must not tell every row, got an identifier. {cure}.")
    if is_number.all():
        return True
    if pc.all(pc.match_substring_regex(values, _DATE)).as_py():
        raise ConfigError(f"{name} in {rows.place} must be numbers or categories, got dates. {cure}.")
    if different > _MOST_CATEGORIES or (different > _FEW and 2 * different > len(rows)):
        raise ConfigError(
            f"{name} in {rows.place} must be numbers or few categories, got {different} different texts in "
            f"{len(rows)} rows. {cure}, or push it with --format text."
        )
    return False

"""Reads ratings by the rules of a version: its users and items, and each pair of them once."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.errors import ConfigError
from models.features import TARGET
from models.preparing.rows import CategoryColumn
from orchestrator.data.appending.rules import CURE, Rules
from orchestrator.data.appending.tables import category_index, check_columns
from orchestrator.data.columns import Array, Columns, take
from orchestrator.data.manifest import Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.delimited.encoding import in_encoding
from orchestrator.data.sources.delimited.ratings import FILES, SUFFIXES, rating_columns
from orchestrator.data.sources.located import ALL, split_files
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import Delimited, distinct, first_rows, read_delimited, sniff

_WITHOUT_HEADER = ("user", "item", "rating", "timestamp")


@dataclass(frozen=True)
class _Names:
    """What the columns are called."""

    user: str
    item: str
    rating: str
    header: tuple[str, ...] | None
    """The names of all columns where the file does not say them."""


def read_more_ratings(source: str, rules: Rules) -> Prepared:
    """Read ratings by the rules of a version.

    Raises:
        ConfigError: if the version's rows had no rating, or a user rates an item twice.
    """
    if rules.options.negatives is not None:
        raise ConfigError(
            f"ratings must have a column of ratings to be appended, got {rules} with "
            f"negatives={rules.options.negatives}: a pair that was drawn as one that is not may be in the new rows. "
            "Push all rows together as a new version, without --append."
        )
    files = split_files(source, suffixes=SUFFIXES, known=FILES)
    first = next(iter(files.values()))
    delimiter = rules.options.delimiter or sniff(first.head(), first)
    names = _names(first_rows(first.head(), delimiter=delimiter)[0], rules)
    rows = read_delimited(files, options=rules.options, delimiter=delimiter, names=names.header)
    check_columns(rows, rules)
    if names.rating not in rows.names:
        raise ConfigError(f"{rows.place} must have the column {names.rating} of {rules}, got none. {CURE}")
    columns, notes = _columns(rows, names, rules)
    rows_of = rows.rows if ALL not in files else {ALL: np.arange(len(columns[TARGET]))}
    splits = {split: Part.of({n: take(c, chosen) for n, c in columns.items()}) for split, chosen in rows_of.items()}
    return rules.read(splits, Source(format=in_encoding("ratings", rows.encoding), uri=source), notes)


def _names(fields: list[str], rules: Rules) -> _Names:
    """Return what the version's source calls its columns, and whether the new file has a header."""
    called = {column.feature: name for name, column in _categories(rules).items()}
    user, item = called["user"], called["item"]
    if {user, item} <= set(fields):
        found = rating_columns(fields, rules.options) or {}
        return _Names(user, item, rules.options.rating or found.get("rating", "rating"), None)
    return _Names(user, item, "rating", _WITHOUT_HEADER[: len(fields)])


def _categories(rules: Rules) -> dict[str, CategoryColumn]:
    return {name: column for name, column in rules.schema.columns.items() if isinstance(column, CategoryColumn)}


def _columns(rows: Delimited, names: _Names, rules: Rules) -> tuple[Columns, tuple[str, ...]]:
    """Return users, items and ratings, each pair once, and a note about the others."""
    users, items = (rows.column(name) for name in (names.user, names.item))
    values = rows.numbers(names.rating)
    kept, values, notes = _once(rows, users, items, values, rules)
    columns: Columns = {
        "user": category_index(users, rules, "user")[kept],
        "item": category_index(items, rules, "item")[kept],
        TARGET: values.astype(np.float32),
    }
    return columns, notes


def _once(
    rows: Delimited, users: pa.ChunkedArray, items: pa.ChunkedArray, values: Array, rules: Rules
) -> tuple[Ints, Array, tuple[str, ...]]:
    """Return the rows that stay where each user rates an item once, and their ratings.

    Raises:
        ConfigError: if there are copies, and nothing says which of them counts.
    """
    user_codes, user_words = distinct(users)
    item_codes, item_words = distinct(items)
    pairs = user_codes.astype(np.int64) * len(item_words) + item_codes
    _, group, sizes = np.unique(pairs, return_inverse=True, return_counts=True)
    if (sizes == 1).all():
        return np.arange(len(pairs)), values, ()
    if rules.options.copies in (None, "refuse") or ALL not in rows.files:
        row = int((sizes[group] > 1).argmax())
        other = int(np.flatnonzero(group == group[row])[1])
        (file, number), (_, first) = rows.where(other), rows.where(row)
        raise ConfigError(
            f"{file} must rate each item once per user, got user {user_words[user_codes[row]]} and item "
            f"{item_words[item_codes[row]]} in rows {first} and {number}. Take one with --option copies=last or "
            "--option copies=mean, or remove one."
        )
    kept = np.sort(len(pairs) - 1 - np.unique(pairs[::-1], return_index=True)[1])
    taken = values[kept]
    if rules.options.copies == "mean":
        taken = (np.bincount(group, values) / sizes)[group[kept]]
    note = f"took the {rules.options.copies} of {len(pairs):,} rows that rate {len(kept):,} pairs of user and item"
    return kept, taken, (note,)

"""Ratings: user, item, rating and timestamp, as MovieLens has them, or with a header that names them.

Without a rating (who bought what), `negatives` draws items that a user has not: those are 0, what is there is 1.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from cluster.errors import ConfigError
from models.counters import counter_key
from models.features import TARGET
from models.preparing.rows import CategoryColumn, RowSchema
from orchestrator.data.columns import Array, number_target
from orchestrator.data.manifest import Source
from orchestrator.data.order import Ints, permutation, random_bits
from orchestrator.data.sources.delimited.encoding import in_encoding
from orchestrator.data.sources.delimited.shelf import parts_of
from orchestrator.data.sources.located import ALL, SourceFile, source_name, split_files
from orchestrator.data.sources.options import DELIMITED, SourceOptions, only
from orchestrator.data.sources.prepared import Prepared, columns_left_out
from orchestrator.data.sources.rows import (
    Delimited,
    encode,
    first_rows,
    read_delimited,
    require_rows,
    sniff,
)
from orchestrator.data.sources.splitting import SPLIT_KEY, refuse_draw

FILES = ("u.data", "ratings.dat", "ratings.csv")
"""MovieLens' names, of the 100k, the 1M and 10M, and the 20M and later."""

SUFFIXES = (".data", ".dat", ".csv", ".tsv")
_COLUMNS = ("user", "item", "rating", "timestamp")
_THINGS = (
    "item",
    "movie",
    "book",
    "product",
    "song",
    "track",
    "artist",
    "anime",
    "game",
    "business",
    "recipe",
    "video",
)
_NAMES: Mapping[str, Sequence[str]] = {
    "user": ("user", "userid", "uid", "reviewerid", "customerid", "visitorid", "memberid", "readerid"),
    "item": (*(f"{thing}{ending}" for thing in _THINGS for ending in ("", "id")), "isbn", "asin", "articleid"),
    "rating": ("rating", "ratings", "stars", "score", "overall", "bookrating"),
}
"""What columns are called in lower case, letters and digits only."""

_TEST_SHARE = 0.1
_NEGATIVES_KEY = 104  # first word of the key, so that drawing shares no random numbers with splitting


@dataclass(frozen=True, eq=False)
class _Ratings:
    """Who rated what, and how."""

    users: Array
    """[N], numbers of `user_words`; so are the items."""
    items: Array
    user_words: list[str]
    item_words: list[str]
    values: Array
    """[N] float32."""
    splits: dict[str, Ints] | None
    """The rows of each split, if the source says so."""

    @property
    def pairs(self) -> Array:
        """[N], a number for each user and item."""
        return self.users.astype(np.int64) * len(self.item_words) + self.items


def read_ratings(source: str, options: SourceOptions) -> Prepared:
    """Read ratings, and hold 10 % of them, drawn at random, back as the test split."""
    only(options, "ratings", "user", "item", "rating", "copies", "negatives", "seed", "test_share", *DELIMITED)
    files = split_files(source, suffixes=SUFFIXES, known=FILES)
    rows, names = _read(files, options)
    require_rows(len(rows), rows.place, least=2)
    found, notes = _once(rows, _ratings(rows, names), options)
    notes += columns_left_out([name for name in rows.names if name not in names.values()])
    if "rating" not in names:
        found, note = _with_negatives(found, options)
        notes.append(note)
    splits = found.splits or _drawn(len(found.values), options)
    if found.splits is not None:
        refuse_draw(options, rows.place)
    user, users = encode(found.users, found.user_words, splits["train"])
    item, items = encode(found.items, found.item_words, splits["train"])
    columns = {"user": users, "item": items, TARGET: found.values}
    return Prepared(
        name=source_name(files, generic=FILES),
        features={"user": user, "item": item},
        target=number_target(columns[TARGET][splits["train"]]),
        splits=parts_of(columns, splits, rows.shelf),
        source=Source(format=in_encoding("ratings", rows.encoding), uri=source),
        notes=tuple(notes),
        rows=RowSchema(
            columns={names[word]: CategoryColumn(feature=word) for word in ("user", "item")},
            ignored=tuple(name for name in rows.names if name not in (names["user"], names["item"])),
        ),
    )


def rating_columns(fields: Sequence[str], options: SourceOptions) -> dict[str, str] | None:
    """Return how a header calls user, item and rating, if it names the first two."""
    plain = {re.sub(r"[\W_]", "", field.lower()): field for field in fields}
    found = {name: plain[word] for name, words in _NAMES.items() for word in reversed(words) if word in plain}
    for name in _NAMES:
        chosen = getattr(options, name)
        if chosen is not None:
            found.pop(name, None)
            found |= {name: chosen} if chosen in fields else {}
    return found if {"user", "item"} <= found.keys() else None


def _read(files: Mapping[str, SourceFile], options: SourceOptions) -> tuple[Delimited, dict[str, str]]:
    """Return the rows, and what their columns are called."""
    first = next(iter(files.values()))
    content = first.head()
    delimiter = options.delimiter or sniff(content, first)
    fields = first_rows(content, delimiter=delimiter)[0]
    header = rating_columns(fields, options)
    _check_names(first, fields, header, options)
    names = header or dict(zip(_COLUMNS, _COLUMNS[: len(fields)], strict=False))
    read = [names[word] for word in ("user", "item", "rating") if word in names]
    rows = read_delimited(
        files,
        options=options,
        delimiter=delimiter,
        names=None if header else _COLUMNS[: len(fields)],
        types=dict.fromkeys(read, pa.dictionary(pa.int32(), pa.string())),  # 20 million rows have few different words
        only=read,
        may_lack_names=True,
    )
    return rows, names


def _check_names(
    first: SourceFile, fields: Sequence[str], header: Mapping[str, str] | None, options: SourceOptions
) -> None:
    chosen = [name for name in _NAMES if getattr(options, name) is not None]
    if header is None and (chosen or len(fields) not in (3, 4) or {"rating", "user"} & {f.lower() for f in fields}):
        raise ConfigError(
            f"{first} must have user, item, rating and timestamp, or a header that names them, got "
            f"{','.join(fields)[:80]!r} in row 1. Name the columns with --option user=NAME --option item=NAME --option "
            "rating=NAME."
        )
    rated = header is None or "rating" in header
    if not rated and (options.rating or options.negatives is None):
        raise ConfigError(
            f"{first} must have a column of ratings, called {options.rating or ' or '.join(_NAMES['rating'][:5])}, got "
            f"{', '.join(fields)}. Name it with --option rating=NAME; if a row only says that a user has an item, draw "
            "items that a user has not with --option negatives=4."
        )
    if rated and options.negatives is not None:
        raise ConfigError(f"negatives must be left out for {first}, which has ratings, got {options.negatives}.")


def _ratings(rows: Delimited, names: Mapping[str, str]) -> _Ratings:
    found = {}
    for word in ("user", "item"):
        codes, words = found[word] = rows.words(names[word])
        if "" in words:
            file, row = rows.where(int((codes == words.index("")).argmax()))
            raise ConfigError(f"{names[word]} in {file} must be given, got nothing in row {row}. Remove the row.")
        rows.columns.let_go(names[word])
    values = np.ones(len(rows), np.float32)
    if "rating" in names:
        values = rows.numbers(names["rating"], dtype=np.float32)
        rows.columns.let_go(names["rating"])
    (users, user_words), (items, item_words) = found.values()
    return _Ratings(users, items, user_words, item_words, values, None if ALL in rows.files else rows.rows)


# ---- copies


def _once(rows: Delimited, found: _Ratings, options: SourceOptions) -> tuple[_Ratings, list[str]]:
    """Return each user's rating of an item once, and a note about the others.

    Raises:
        ConfigError: if they are to be refused, or lie in two splits.
    """
    in_order = found.pairs
    in_order.sort()
    if not (in_order[1:] == in_order[:-1]).any():
        return found, []
    if options.copies in (None, "refuse") or found.splits is not None:
        raise _copies(rows, found, is_split=found.splits is not None)
    last = len(found.values) - 1 - np.unique(found.pairs[::-1], return_index=True)[1]
    kept = np.sort(last)
    values = found.values[kept]
    if options.copies == "mean":
        _, group, sizes = np.unique(found.pairs, return_inverse=True, return_counts=True)
        values = (np.bincount(group, found.values) / sizes).astype(np.float32)[group[kept]]
    note = f"took the {options.copies} of {len(found.values):,} rows that rate {len(kept):,} pairs of user and item"
    return replace(found, users=found.users[kept], items=found.items[kept], values=values), [note]


def _copies(rows: Delimited, found: _Ratings, *, is_split: bool) -> ConfigError:
    first, second = _first_copies(found.pairs)
    (file, row), (_, other) = rows.where(second), rows.where(first)
    cure = "Remove one" if is_split else "Take one with --option copies=last or --option copies=mean, or remove one"
    return ConfigError(
        f"{file} must rate each item once per user, got user {found.user_words[found.users[first]]} and item "
        f"{found.item_words[found.items[first]]} in rows {other} and {row}. {cure}: a copy "
        "in the test split would be known from training."
    )


def _first_copies(pairs: Array) -> tuple[int, int]:
    """Return the first row that repeats one, and that one: (earlier, later)."""
    order = np.argsort(pairs, kind="stable")
    repeats = np.flatnonzero(pairs[order][1:] == pairs[order][:-1])
    place = repeats[order[repeats + 1].argmin()]
    return int(order[place]), int(order[place + 1])


# ---- rows without a rating


def _with_negatives(found: _Ratings, options: SourceOptions) -> tuple[_Ratings, str]:
    """Return the rows as 1, and for each some items that its user has not as 0; a few less where users have many."""
    count, per_row = len(found.users), options.negatives or 0
    users = np.repeat(found.users, per_row)
    draws = random_bits(len(users), key=counter_key(_NEGATIVES_KEY, options.seed or 0))
    items = (draws % np.uint64(len(found.item_words))).astype(np.int64)
    pairs = users.astype(np.int64) * len(found.item_words) + items
    fresh = np.unique(pairs, return_index=True)[1]
    fresh = np.sort(fresh[~np.isin(pairs[fresh], found.pairs)])
    splits = found.splits
    if splits is not None:
        owner = np.repeat(np.arange(count), per_row)[fresh]
        splits = {s: np.append(rows, count + np.flatnonzero(np.isin(owner, rows))) for s, rows in splits.items()}
    note = f"drew {len(fresh):,} pairs of a user and an item that the user has not, as 0, to {count:,} rows, as 1"
    joined = replace(
        found,
        users=np.append(found.users, users[fresh]),
        items=np.append(found.items, items[fresh]),
        values=np.repeat(np.array([1, 0], np.float32), [count, len(fresh)]),
        splits=splits,
    )
    return joined, note


def _drawn(count: int, options: SourceOptions) -> dict[str, Ints]:
    order = permutation(count, key=counter_key(SPLIT_KEY, options.seed or 0))
    cut = count - max(1, int(count * (options.test_share or _TEST_SHARE)))
    in_test = np.zeros(count, bool)
    in_test[order[cut:]] = True
    return {"train": np.flatnonzero(~in_test), "test": np.flatnonzero(in_test)}

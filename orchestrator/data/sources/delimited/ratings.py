"""Ratings: user, item, rating and timestamp, as MovieLens' `u.data`, `ratings.dat` and `ratings.csv` have them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from cluster.errors import ConfigError
from models.counters import counter_key
from models.features import TARGET
from orchestrator.data.columns import Array, number_target
from orchestrator.data.manifest import Source
from orchestrator.data.order import Ints, permutation
from orchestrator.data.sources.located import ALL, SourceFile, source_name, split_files
from orchestrator.data.sources.options import DELIMITED, SourceOptions, only
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import (
    Delimited,
    distinct,
    encoded,
    first_rows,
    read_delimited,
    require_rows,
    sniff,
)
from orchestrator.data.sources.splitting import SPLIT_KEY, refuse_draw

FILES = ("u.data", "ratings.dat", "ratings.csv")
"""MovieLens' names, of the 100k, the 1M and 10M, and the 20M and later."""

_SUFFIXES = (".data", ".dat", ".csv", ".tsv")
_COLUMNS = ("user", "item", "rating", "timestamp")
_NAMES: Mapping[str, Sequence[str]] = {"user": ("user", "userid"), "item": ("item", "itemid", "movie", "movieid")}
_TEST_SHARE = 0.1


def read_ratings(source: str, options: SourceOptions) -> Prepared:
    """Read ratings, and hold 10 % of them, drawn at random, back as the test split."""
    only(options, "ratings", "seed", "test_share", *DELIMITED)
    files = split_files(source, suffixes=_SUFFIXES, known=FILES)
    rows, names = _read(files, options)
    require_rows(len(rows), rows.place, least=2)
    ids = {name: rows.table.column(names[name]) for name in ("user", "item")}
    _refuse_missing(rows, ids)
    _refuse_copies(rows, ids)
    splits = _splits(rows, options)
    user, users = encoded(ids["user"], splits["train"])
    item, items = encoded(ids["item"], splits["train"])
    columns = {"user": users, "item": items, TARGET: rows.numbers(names["rating"]).astype(np.float32)}
    return Prepared(
        name=source_name(files, generic=FILES),
        features={"user": user, "item": item},
        target=number_target(columns[TARGET][splits["train"]]),
        splits={split: Part.of({k: v[chosen] for k, v in columns.items()}) for split, chosen in splits.items()},
        source=Source(format=rows.in_encoding("ratings"), uri=source),
    )


def rating_columns(fields: Sequence[str]) -> dict[str, str] | None:
    """Return how a header calls user, item and rating, if it names all of them."""
    plain = {field.lower().replace("_", ""): field for field in fields}
    found = {name: plain[word] for name, words in _NAMES.items() for word in words if word in plain}
    return {**found, "rating": plain["rating"]} if "rating" in plain and len(found) == len(_NAMES) else None


def _read(files: Mapping[str, SourceFile], options: SourceOptions) -> tuple[Delimited, dict[str, str]]:
    """Return the rows, and what their columns are called."""
    first = next(iter(files.values()))
    content = first.head()
    delimiter = options.delimiter or sniff(content, first)
    fields = first_rows(content, delimiter=delimiter)[0]
    header = rating_columns(fields)
    if header is None and (len(fields) not in (3, 4) or "rating" in [field.lower() for field in fields]):
        raise ConfigError(
            f"{first} must have user, item, rating and timestamp, or a header that names them, got "
            f"{','.join(fields)[:80]!r} in row 1."
        )
    names = header or dict(zip(_COLUMNS, _COLUMNS, strict=True))
    category = pa.dictionary(pa.int32(), pa.string())  # 20 million rows have few different users and items
    rows = read_delimited(
        files,
        options=options,
        delimiter=delimiter,
        names=None if header else _COLUMNS[: len(fields)],
        types={names["user"]: category, names["item"]: category},
    )
    return rows, names


def _refuse_missing(rows: Delimited, ids: Mapping[str, pa.ChunkedArray]) -> None:
    for name, values in ids.items():
        codes, words = distinct(values)
        if "" in words:
            file, row = rows.where(int((codes == words.index("")).argmax()))
            raise ConfigError(f"{name} in {file} must be given, got nothing in row {row}. Remove the row.")


def _refuse_copies(rows: Delimited, ids: Mapping[str, pa.ChunkedArray]) -> None:
    (users, user_words), (items, item_words) = distinct(ids["user"]), distinct(ids["item"])
    pairs = users.astype(np.int64) * len(item_words) + items
    in_order = np.sort(pairs)
    if not (in_order[1:] == in_order[:-1]).any():
        return
    first, second = _first_copies(pairs)
    (file, row), (_, other) = rows.where(second), rows.where(first)
    raise ConfigError(
        f"{file} must rate each item once per user, got user {user_words[users[first]]} and item "
        f"{item_words[items[first]]} in rows {other} and {row}. Remove one: a copy in the test split would be known "
        "from training."
    )


def _first_copies(pairs: Array) -> tuple[int, int]:
    """Return the first row that repeats one, and that one: (earlier, later)."""
    order = np.argsort(pairs, kind="stable")
    repeats = np.flatnonzero(pairs[order][1:] == pairs[order][:-1])
    place = repeats[order[repeats + 1].argmin()]
    return int(order[place]), int(order[place + 1])


def _splits(rows: Delimited, options: SourceOptions) -> dict[str, Ints]:
    if ALL not in rows.files:
        refuse_draw(options, rows.place)
        return rows.rows
    order = permutation(len(rows), key=counter_key(SPLIT_KEY, options.seed or 0))
    cut = len(rows) - max(1, int(len(rows) * (options.test_share or _TEST_SHARE)))
    return {"train": np.sort(order[:cut]), "test": np.sort(order[cut:])}

"""How the rows of a split are cut into row groups, shards and groups of shards, and in which order they are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.counters import counter_key
from orchestrator.data.order import Ints, permutation
from orchestrator.data.pushing.scan import Scan
from orchestrator.data.sources.prepared import Part

SHARD_BYTES = 64 * 2**20
_ROW_GROUP_BYTES = 8 * 2**20
_LEAST_GROUP_ROWS = 1024  # below, the requests cost more than the bytes
_MOST_GROUPS = 4096  # and less than twice as many, as their rows are a power of two
_GROUPS_PER_SPLIT = 16  # small data still has row groups to shuffle and to deal out
_MOST_PARTS = 256  # of a split that is shuffled: each piece of a source is cut into so many at most
_ORDER_KEY = 103  # first word of the key, so that the order shares no random numbers with splitting

RowOrder = Literal["random", "source", "time"]


@dataclass(frozen=True)
class ShardLayout:
    """How the rows of a split are cut, and where each lies."""

    group_rows: int
    shard_rows: int
    first_shards: tuple[int, ...]
    """Number of each part's first shard; one more entry is the number of all shards."""
    edges: tuple[int, ...]
    """Where each part begins, and where the last one ends. A part is what is written in one go."""
    places: Ints | None = None
    """[N], the place at which each row of the source is written; None if that is its own."""


def layout_of(split: str, part: Part, scans: Sequence[Scan], order: RowOrder) -> ShardLayout:
    """Return how a split is written: shuffled as a whole, unless its order is to stay or is random already."""
    rows, size = sum(scan.rows for scan in scans), sum(scan.bytes for scan in scans)
    group_rows = rows_per_group(rows, size)
    shard_rows = max(1, int(SHARD_BYTES * rows / (size * group_rows))) * group_rows
    edges, places = np.cumsum([0, *(piece.rows for piece in part.pieces)]), None
    if order == "random" and not part.is_mixed:
        num_shards = -(-rows // shard_rows)
        part_rows = -(-num_shards // _MOST_PARTS) * shard_rows
        edges = np.append(np.arange(0, rows, part_rows), rows)
        places = random_places(rows, split)
    counts = -(-np.diff(edges) // shard_rows)
    first_shards = tuple(np.concatenate([[0], np.cumsum(counts)]).tolist())
    return ShardLayout(group_rows, shard_rows, first_shards, tuple(edges.tolist()), places)


def random_places(rows: int, split: str) -> Ints:
    """Return the place at which each row of a source is written: the same ones for every source of as many rows."""
    order = permutation(rows, key=counter_key(_ORDER_KEY, *split.encode()))
    places = np.empty(rows, np.int64)
    places[order] = np.arange(rows)
    return places


def rows_per_group(rows: int, size: int) -> int:
    """Return the rows of each row group, a power of two: about 8 MiB, but several groups even of small data.

    A split of more than 32 GiB has larger ones, so that the manifest of all splits stays one that can be read.

    Args:
        rows: of the split.
        size: of the split in memory, in bytes.
    """
    by_bytes = max(1, int(max(_ROW_GROUP_BYTES, size / _MOST_GROUPS) * rows / size))
    by_count = max(_LEAST_GROUP_ROWS, rows // _GROUPS_PER_SPLIT)
    return 1 << (min(by_bytes, by_count).bit_length() - 1)

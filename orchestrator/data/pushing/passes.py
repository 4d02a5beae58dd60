"""The two passes over a source: one for what must be known of all rows, and one that writes them as shards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from models.features import Feature
from orchestrator.data.columns import Columns, to_table
from orchestrator.data.manifest import DatasetTarget, Lengths, Manifest, Shard
from orchestrator.data.order import Ints
from orchestrator.data.pushing.layout import ShardLayout
from orchestrator.data.pushing.pieces import Runner
from orchestrator.data.pushing.scan import Scan, scan
from orchestrator.data.pushing.shuffling import Regrouping
from orchestrator.data.shards import sha256, write_shard
from orchestrator.data.sources.prepared import Prepared

if TYPE_CHECKING:
    from cluster.s3.store import Store

Progress = Callable[[int, int], None]
"""Called with the rows worked through so far and all rows."""


@dataclass(frozen=True)
class PushResult:
    """What a push left in the store."""

    manifest: Manifest
    changed: bool
    """False if this content was there already."""


class Counter:
    """Tells the progress over all passes."""

    def __init__(self, progress: Progress | None, *, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, rows: int) -> None:
        """Count rows that were worked through."""
        self._done += rows
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def scan_split(prepared: Prepared, split: str, runner: Runner, counter: Counter) -> list[Scan]:
    """Read all rows of a split once."""
    pieces = prepared.splits[split].pieces
    features, target = dict(prepared.features), prepared.target

    def scan_piece(_number: int, columns: Columns) -> Scan:
        return scan(columns, features, target)

    scans: dict[int, Scan] = {}
    for number, found in runner.map(scan_piece, pieces):
        scans[number] = found
        counter.add(found.rows)
    return [scans[number] for number in range(len(pieces))]


def write_split(
    store: "Store", key: str, split: str, prepared: Prepared, layout: ShardLayout, runner: Runner, counter: Counter
) -> tuple[Shard, ...]:
    """Read all rows of a split and write them into the folder `key`; return the records of the shards."""
    part, features, target = prepared.splits[split], dict(prepared.features), prepared.target
    written_layout = replace(layout, places=None)  # which workers do not need

    def write_part(number: int, columns: Columns) -> list[Shard]:
        return write_shards(store, key, split, columns, features, target, layout=written_layout, part=number)

    shards: dict[int, list[Shard]] = {}
    if layout.places is None:
        results = runner.map(write_part, part.pieces)
    else:
        results = runner.regroup(write_part, part.pieces, Regrouping(layout.places, layout.edges))
    for number, written in results:
        shards[number] = written
        counter.add(layout.edges[number + 1] - layout.edges[number])
    return tuple(shard for number in range(len(layout.edges) - 1) for shard in shards[number])


def write_shards(
    store: "Store",
    key: str,
    split: str,
    columns: Columns,
    features: Mapping[str, Feature],
    target: DatasetTarget,
    *,
    layout: ShardLayout,
    part: int,
) -> list[Shard]:
    """Write one part as Parquet files, each of whole row groups, and return their records."""
    shards = []
    rows = len(next(iter(columns.values())))
    for number, start in enumerate(range(0, rows, layout.shard_rows), start=layout.first_shards[part]):
        chosen = {name: column[start : start + layout.shard_rows] for name, column in columns.items()}
        path = f"{split}-{number:05}-of-{layout.first_shards[-1]:05}.parquet"
        data, shard = write_shard(to_table(chosen, features, target), path=path, rows_per_group=layout.group_rows)
        store.write(f"{key}/{path}", data)
        shards.append(shard)
    return shards


def lengths_of(scans: Sequence[Scan], layout: ShardLayout) -> Ints:
    """Return the length of each row in the order in which they are written; empty if rows have none."""
    lengths = np.concatenate([np.empty(0, np.int32), *(scan.lengths for scan in scans)])
    ordered = lengths if layout.places is None or not len(lengths) else lengths[np.argsort(layout.places)]
    return ordered.astype(np.int64)


def write_lengths(store: "Store", key: str, split: str, lengths: Ints) -> Lengths | None:
    """Write the length of each row of a split; None if rows have none."""
    if not len(lengths):
        return None
    data = lengths.astype("<i4").tobytes()
    path = f"{split}.lengths"
    store.write(f"{key}/{path}", data)
    return Lengths(path=path, bytes=len(data), sha256=sha256(data))

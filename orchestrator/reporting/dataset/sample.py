"""Reads as much of every split as a page about a dataset is made from."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from models.features import TARGET, BoxesTarget, ClassTarget
from orchestrator.data.columns import Array, Columns, Ragged, join, take
from orchestrator.data.dataset import Dataset
from orchestrator.data.manifest import Run, SeriesTarget, Shard, Split
from orchestrator.data.order import Ints

SPLIT_BYTES = 16 * 2**20
"""Read of each split, about: two row groups of pictures, all of most tables."""

_MOST_BYTES = 64 * 2**20  # of a split whose rows lie sorted by class


@dataclass(frozen=True)
class Sampled:
    """The rows of a split that were read."""

    columns: Columns
    row_numbers: Ints
    """The number of each row in its split; rows of the split before are not counted."""
    total_rows: int
    run_starts: Ints
    """The first row of each run of rows without a gap between them, of a series; of other data 0."""

    @property
    def rows(self) -> int:
        """How many were read."""
        return len(self.row_numbers)

    @property
    def is_all(self) -> bool:
        """Whether that is the whole split."""
        return self.rows == self.total_rows


# ---- what is read


def sample(dataset: Dataset, name: str) -> Sampled:
    """Read row groups that are spread over the split: `SPLIT_BYTES`, or more until every class has been seen."""
    split = dataset.split(name)
    groups = list(_groups(split))
    read: dict[int, Columns] = {}
    read_bytes = 0
    for place in _spread_first(len(groups)):
        shard, index, _ = groups[place]
        enough = SPLIT_BYTES if _all_classes_seen(dataset, read.values()) else _MOST_BYTES
        if read and read_bytes + shard.row_groups[index].bytes > enough:
            break
        read[place] = dataset.read_row_group(shard, index)
        read_bytes += shard.row_groups[index].bytes
    parts, numbers = [], []
    is_own = _own_rows(dataset, name)
    number_of = np.cumsum(is_own) - 1
    for place, columns in sorted(read.items()):
        shard, index, first = groups[place]
        span = slice(first, first + shard.row_groups[index].rows)
        kept = np.flatnonzero(is_own[span])
        parts.append({column: take(values, kept) for column, values in columns.items()})
        numbers.append(number_of[span][kept])
    columns = {column: join([part[column] for part in parts]) for column in parts[0]}
    own = np.array([run.rows - run.context_rows for run in _runs(dataset, name)])
    starts = np.unique(np.append(0, np.cumsum(own)[:-1]))  # a run may lie in the split before
    return Sampled(columns, np.concatenate(numbers), dataset.manifest.own_rows(name), starts)


def _own_rows(dataset: Dataset, name: str) -> Array:
    """Return which rows of a split do not belong to the split before."""
    return np.concatenate([np.arange(run.rows) >= run.context_rows for run in _runs(dataset, name)])


def _runs(dataset: Dataset, name: str) -> Sequence[Run]:
    split, target = dataset.split(name), dataset.manifest.target
    runs = target.runs if isinstance(target, SeriesTarget) else None
    return runs[name] if runs else (Run(split.rows, split.context_rows),)


def _spread_first(count: int) -> list[int]:
    """Return all places so that those of every beginning of the list are spread: the bits of 0, 1, 2 ... reversed."""
    bits = max(1, (count - 1).bit_length())
    places = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits))
    return [place for place in places if place < count]


def _all_classes_seen(dataset: Dataset, parts: Iterable[Columns]) -> bool:
    target = dataset.manifest.target
    if not isinstance(target, ClassTarget):
        return True
    labels = [columns[TARGET] for columns in parts]
    return bool(labels) and len(np.unique(join(labels))) == len(target.classes)  # type: ignore[arg-type]


def _groups(split: Split) -> Iterator[tuple[Shard, int, int]]:
    """Yield every row group: its shard, its place in it, and its first row in the split."""
    first = 0
    for shard in split.shards:
        for index, group in enumerate(shard.row_groups):
            yield shard, index, first
            first += group.rows


def class_counts(sampled: Sampled, target: ClassTarget | BoxesTarget) -> Ints:
    """Count the rows, or the boxes, of every class."""
    column = sampled.columns[TARGET]
    labels = column.values[:, 0].astype(np.int64) if isinstance(column, Ragged) else column
    return np.bincount(labels, minlength=len(target.classes))


def array_of(sampled: Sampled, name: str) -> Array:
    """Return a column whose rows are of one length."""
    column = sampled.columns[name]
    assert not isinstance(column, Ragged), name
    return column


def ragged_of(sampled: Sampled, name: str) -> Ragged:
    """Return a column whose rows differ in length."""
    column = sampled.columns[name]
    assert isinstance(column, Ragged), name
    return column


def percent_text(share: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.1f} %" if share >= 0.001 else "less than 0.1 %" if share else "0 %"

"""Looks through a dataset before a run: which rows are damaged, so that the run can leave them out.

What is left out is decided once, before the first step, and kept in the run's record. Samples are then ordered, and
steps counted, as if those rows were not in the manifest: a training is a pure function of manifest, seed and that
record, for any number of workers and after any kill. Were damage met while training, steps would depend on who reads
what and when: the cache of one machine may hold a copy from before the damage, and bytes may be damaged on their way
to one worker only. Besides, the learning rates need the number of steps, and too much damage is known before anything
is spent. The price is one reading of all rows; it leaves them in the machine's cache, where the first epoch finds them.

Damage that comes after this ends the run, as it does where nothing may be left out.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import NamedTuple

from cluster.errors import IntegrityError, NotFoundError
from models.features import ImageFeature
from models.pictures import PictureError, decode_picture, fit_for
from models.records import LeftOut
from orchestrator.data.columns import Columns, Ragged
from orchestrator.data.dataset import TRAIN, Dataset, folder
from orchestrator.data.manifest import Shard
from orchestrator.data.reading.cache import Cache

_LEAST_THREADS = 4  # one waits for the network while others verify; pictures are decoded by all cores
_NAMED = 5  # shards in a message


def survey(dataset: Dataset, *, splits: Sequence[str], cache: Cache | None) -> tuple[LeftOut, ...]:
    """Read every row of some splits from the store, and return what is damaged, by shard.

    Args:
        dataset: whose manifest is read already.
        splits: their names.
        cache: keeps what is whole. Nothing is read from it: it may hold a copy from before the damage.

    Raises:
        StoreError: if the store does not answer: what is out of reach is not damaged.
    """
    places = [
        _GroupPlace(split, shard, index)
        for split in splits
        for shard in dataset.split(split).shards
        for index in range(len(shard.row_groups))
    ]
    pool = ThreadPoolExecutor(max(_LEAST_THREADS, os.cpu_count() or 1), thread_name_prefix="survey")
    try:
        found = list(pool.map(partial(_look, dataset, cache), places))
    finally:
        pool.shutdown(cancel_futures=True)
    by_shard = groupby(zip(places, found, strict=True), lambda pair: (pair[0].split, pair[0].shard.path))
    return tuple(one for _, pairs in by_shard for one in _left_out(list(pairs)))


def require_few(dataset: Dataset, left_out: Sequence[LeftOut], *, most_share: float) -> None:
    """Refuse damage that no run may pass over.

    A split that models are judged on must be whole: metrics of fewer rows could not be compared with those of others.

    Raises:
        IntegrityError: if rows of another split than the training split are damaged, or too many of that.
    """
    place = folder(dataset.manifest.name, dataset.manifest.version)
    for split in dict.fromkeys(one.split for one in left_out):
        own = [one for one in left_out if one.split == split]
        count, rows = sum(one.count for one in own), dataset.split(split).rows
        found = f"{count:,} of {rows:,} rows damaged: {_named(own)}"
        if split != TRAIN:
            raise IntegrityError(
                f"split {split} of {place} must be whole even with data.damaged=skip, since metrics of fewer rows "
                f"cannot be compared, got {found}. Push the data again with --repair."
            )
        if count > most_share * rows:
            raise IntegrityError(
                f"data.damaged=skip must leave out at most {100 * most_share:.3g} % of the training split of {place}, "
                f"got {found}. Push the data again with --repair, or allow more with data.damaged_share."
            )


class _GroupPlace(NamedTuple):
    """Where a row group lies: its split, its shard and its number there."""

    split: str
    shard: Shard
    group: int


class _Damage(NamedTuple):
    """What is wrong with a row group."""

    reason: str
    rows: tuple[int, ...] | None = None
    """Single rows, by their number in the group; ``None``: all of them."""


def _look(dataset: Dataset, cache: Cache | None, place: _GroupPlace) -> _Damage | None:
    shard, index = place.shard, place.group
    key = shard.row_groups[index].sha256
    try:
        table = dataset.fetch_row_group(shard, index)
        columns = dataset.columns_of(table, shard, index)
    except (IntegrityError, NotFoundError) as error:
        return _Damage(str(error).partition(". ")[0].rstrip("."))
    if cache and cache.get(key) is None:
        cache.put(key, table)
    return _undecodable(dataset, columns)


def _undecodable(dataset: Dataset, columns: Columns) -> _Damage | None:
    """Decode pictures kept as files, as a training will: their bytes may be those that were pushed, and no picture."""
    fit = fit_for(dataset.manifest.target.kind)
    wrong: dict[int, str] = {}
    for name, feature in dataset.manifest.features.items():
        files = columns[name]
        if not isinstance(feature, ImageFeature) or not isinstance(files, Ragged):
            continue
        for row in range(len(files)):
            try:
                decode_picture(files[row].tobytes(), feature.shape, fit=fit)
            except PictureError as error:
                wrong.setdefault(row, f"{name} must be a whole picture, got {error}")
    return _Damage(wrong[min(wrong)], tuple(sorted(wrong))) if wrong else None


def _left_out(pairs: Sequence[tuple[_GroupPlace, _Damage | None]]) -> Iterator[LeftOut]:
    """Yield what is damaged of one shard, of which these are the row groups, if anything is."""
    split, shard, _ = pairs[0][0]
    damaged = [(place.group, damage) for place, damage in pairs if damage]
    if not damaged:
        return
    starts = [sum(group.rows for group in shard.row_groups[:index]) for index in range(len(shard.row_groups))]
    groups = tuple(index for index, damage in damaged if damage.rows is None)
    rows = tuple(starts[index] + row for index, damage in damaged for row in damage.rows or ())
    yield LeftOut(
        split=split,
        shard=shard.path,
        row_groups=groups,
        rows=rows,
        count=sum(shard.row_groups[index].rows for index in groups) + len(rows),
        of_rows=shard.rows,
        reason=damaged[0][1].reason,
    )


def _named(left_out: Sequence[LeftOut]) -> str:
    more = f"; and {len(left_out) - _NAMED:,} shards more" if len(left_out) > _NAMED else ""
    return "; ".join(one.text for one in left_out[:_NAMED]) + more

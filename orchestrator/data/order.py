"""The order of samples: a pure function of (row groups, seed, epoch, logical workers), with O(1) access to any step.

    sequence   every sample once, row group after row group, the groups in random order
    piece      one logical worker's equal share of the sequence; a cut may fall inside a row group
    segment    the part of a row group that lies in one piece
    window     consecutive segments of a piece, holding about `shuffle_rows` samples, shuffled together

A step takes the next `batch_size / L` samples of each of the L pieces. Nothing depends on time, threads, the number
of workers or a library's random generator: permutations are sorted splitmix64 hashes (Steele et al. 2014).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.errors import ConfigError
from models.counters import counter_key

Ints = npt.NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, the increment of splitmix64
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB

# The first word of a key says what its random numbers are for, so that no two uses share any.
_GROUPS, _WINDOW = 1, 2


class Positions(NamedTuple):
    """Where the samples of a micro-batch lie: two arrays of equal length, in the order of the batch."""

    groups: Ints
    """Row group of each sample."""
    offsets: Ints
    """Row of each sample in its row group."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of one epoch; make it with `plan_epoch`."""

    seed: int
    epoch: int
    shuffle: bool
    logical_workers: int
    micro_batch_size: int
    num_steps: int
    group_starts: Ints
    """Sample id of each row group's first row; one more entry closes the last."""
    piece_starts: Ints
    """Place in the sequence where each piece begins; one more entry closes the last, as in those below."""
    segment_starts: Ints
    segment_groups: Ints
    segment_offsets: Ints
    """Row of its group with which each segment begins."""
    window_starts: Ints
    _newest_order: dict[int, tuple[int, Ints]] = field(default_factory=dict, repr=False)
    """Per logical worker, the last window asked for and its permutation."""

    @property
    def num_samples(self) -> int:
        """Samples in the whole epoch; fewer than the split has when a smaller last batch is left out."""
        return min(self.num_steps * self.micro_batch_size * self.logical_workers, int(self.group_starts[-1]))

    def step_sizes(self, step: int) -> list[int]:
        """Return how many samples each logical worker has in `step`; they differ by at most 1 and may be 0."""
        return [stop - start for start, stop in (self._span(i, step) for i in range(self.logical_workers))]

    def micro_batch(self, logical_worker: int, step: int) -> Positions:
        """Return the positions of one logical worker's samples in `step`."""
        return self._positions(logical_worker, *self._span(logical_worker, step))

    def sample_ids(self, positions: Positions) -> Ints:
        """Return each sample's number in the dataset as it is stored."""
        return self.group_starts[positions.groups] + positions.offsets

    def groups_needed(self, logical_worker: int, step: int) -> Ints:
        """Return the row groups, ascending, that hold one logical worker's samples of `step`."""
        return np.unique(self.micro_batch(logical_worker, step).groups)

    def window(self, logical_worker: int, step: int) -> int:
        """Return the last window that one logical worker's samples of `step` come from."""
        return self._window_at(self._span(logical_worker, step)[1] - 1)

    def groups_ahead(self, logical_worker: int, step: int) -> tuple[Ints, Ints]:
        """Return the row groups needed from `step` to the end of its window, and those of the window after."""
        start, _ = self._span(logical_worker, step)
        window = self.window(logical_worker, step)
        piece_stop = self.piece_starts[logical_worker + 1]
        now_stop, later_stop = self.window_starts[np.minimum([window + 1, window + 2], len(self.window_starts) - 1)]
        now = np.unique(self._positions(logical_worker, start, min(now_stop, piece_stop)).groups)
        return now, self._groups(now_stop, min(later_stop, piece_stop))

    def _span(self, logical_worker: int, step: int) -> tuple[int, int]:
        """Return the places in the sequence, from and to, that a logical worker's samples of `step` fill."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step must be in 0..{self.num_steps - 1}, got {step}")
        piece_start, piece_stop = self.piece_starts[logical_worker : logical_worker + 2].tolist()
        start = piece_start + step * self.micro_batch_size
        return start, min(start + self.micro_batch_size, piece_stop)

    def _groups(self, start: int, stop: int) -> Ints:
        """Return the row groups of the whole segments from place `start` to place `stop`."""
        first, last = np.searchsorted(self.segment_starts, [start, max(start, stop)])
        groups: Ints = np.unique(self.segment_groups[first:last])
        return groups

    def _positions(self, logical_worker: int, start: int, stop: int) -> Positions:
        if stop <= start:
            return Positions(np.empty(0, np.int64), np.empty(0, np.int64))
        places = np.concatenate(
            [
                self._window_order(logical_worker, window, start, stop)
                for window in range(self._window_at(start), self._window_at(stop - 1) + 1)
            ]
        )
        segments = np.searchsorted(self.segment_starts, places, side="right") - 1
        offsets = self.segment_offsets[segments] + places - self.segment_starts[segments]
        return Positions(self.segment_groups[segments], offsets)

    def _window_at(self, place: int) -> int:
        return int(np.searchsorted(self.window_starts, place, side="right")) - 1

    def _window_order(self, logical_worker: int, window: int, start: int, stop: int) -> Ints:
        """Return the shuffled places of `window`, cut to those that come at places `start` to `stop`."""
        first, last = self.window_starts[window : window + 2].tolist()
        newest, order = self._newest_order.get(logical_worker, (-1, None))
        if newest != window or order is None:
            order = self._permutation(last - first, _WINDOW, window)
            self._newest_order[logical_worker] = (window, order)
        places: Ints = first + order[max(start - first, 0) : stop - first]
        return places

    def _permutation(self, count: int, purpose: int, index: int) -> Ints:
        if not self.shuffle:
            return np.arange(count)
        return permutation(count, key=counter_key(purpose, self.seed, self.epoch, index))


def plan_epoch(
    rows_per_group: Sequence[int],
    *,
    seed: int,
    epoch: int,
    logical_workers: int,
    shuffle_rows: int,
    batch_size: int,
    drop_last: bool,
    shuffle: bool = True,
) -> Plan:
    """Lay out the order of one epoch.

    Without `drop_last`, the samples that do not fill a batch make a smaller last one, spread evenly over the
    logical workers; with it they are left out of this epoch.

    Args:
        rows_per_group: samples in each row group of the split, as stored; may be 0.
        seed: of the run.
        epoch: counted from 0.
        logical_workers: pieces that every batch is cut into.
        shuffle_rows: samples that each logical worker shuffles among, about.
        batch_size: samples per step, over all logical workers.
        drop_last: leave out a last, smaller batch.
        shuffle: False keeps the stored order.

    Raises:
        ConfigError: if there is no sample, or not one batch, or the batch does not divide.
    """
    group_starts = _starts(rows_per_group)
    num_samples = int(group_starts[-1])
    _check(num_samples, logical_workers=logical_workers, batch_size=batch_size, drop_last=drop_last)
    group_order = np.arange(len(rows_per_group))
    if shuffle:
        group_order = permutation(len(rows_per_group), key=counter_key(_GROUPS, seed, epoch))
    piece_starts = np.arange(logical_workers + 1) * num_samples // logical_workers
    return Plan(
        seed=seed,
        epoch=epoch,
        shuffle=shuffle,
        logical_workers=logical_workers,
        micro_batch_size=batch_size // logical_workers,
        num_steps=num_samples // batch_size if drop_last else -(-num_samples // batch_size),
        group_starts=group_starts,
        piece_starts=piece_starts,
        **_layout(np.diff(group_starts)[group_order], group_order, piece_starts, shuffle_rows),
    )


def random_bits(count: int, *, key: int) -> npt.NDArray[np.uint64]:
    """Return `count` random 64-bit numbers, no two alike: the splitmix64 stream that starts at `key`."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


def permutation(count: int, *, key: int) -> Ints:
    """Return the numbers below `count` in random order."""
    return np.argsort(random_bits(count, key=key), kind="stable")


def _check(num_samples: int, *, logical_workers: int, batch_size: int, drop_last: bool) -> None:
    if batch_size % logical_workers:
        raise ConfigError(
            f"train.batch_size must be a multiple of the logical workers ({logical_workers}), got {batch_size}."
        )
    if num_samples == 0:
        raise ConfigError("the training split must hold at least one sample, got 0. Use more rows.")
    if drop_last and batch_size > num_samples:
        raise ConfigError(
            f"train.batch_size must be at most the {num_samples} samples of the training split with "
            f"train.drop_last, got {batch_size}. Lower it, or set train.drop_last=false."
        )


def _layout(sizes: Ints, groups: Ints, piece_starts: Ints, shuffle_rows: int) -> dict[str, Any]:
    """Cut the sequence of row groups (`sizes`, `groups` in shuffled order) into segments and windows."""
    starts_in_sequence = _starts(sizes)
    segment_starts = np.unique(np.concatenate([starts_in_sequence, piece_starts]))
    begins = segment_starts[:-1]
    place = np.searchsorted(starts_in_sequence, begins, side="right") - 1
    piece = np.searchsorted(piece_starts, begins, side="right") - 1
    # A segment belongs to the window in which it begins, so a window may exceed shuffle_rows by its last segment.
    number = (begins - piece_starts[piece]) // shuffle_rows
    is_first = np.concatenate([[True], (np.diff(number) != 0) | (np.diff(piece) != 0)])
    return {
        "segment_starts": segment_starts,
        "segment_groups": groups[place],
        "segment_offsets": begins - starts_in_sequence[place],
        "window_starts": np.append(begins[is_first], segment_starts[-1]),
    }


def _starts(sizes: Sequence[int] | Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))]).astype(np.int64)

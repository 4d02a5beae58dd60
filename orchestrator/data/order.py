"""The order of samples: a pure function of (row groups, seed, epoch, logical workers), with O(1) access to any step.

    sequence   every sample once, row group after row group, the groups in random order
    piece      one logical worker's equal share of the sequence; a cut may fall inside a row group
    segment    the part of a row group that lies in one piece
    window     consecutive segments of a piece, holding about `shuffle_rows` samples, shuffled together

A piece that fits into a window is one; else its first window is a quarter of a full one and its second a half, so that
the first batch need not wait for a full one. A step takes the next `batch_size / L` samples of each of the L pieces.
Samples of different lengths are sorted by length among the micro-batches of `bucket_batches` steps, whose order is then
random. Nothing depends on time, threads, the number of workers or a library's random generator: permutations are sorted
splitmix64 hashes (Steele et al. 2014).
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
_BLOCK = 2**15

# The first word of a key says what its random numbers are for, so that no two uses share any.
# `orchestrator/data/reading/augment.py` has 3 to 7.
_GROUPS, _WINDOW, _BUCKETS = 1, 2, 8


class Buckets(NamedTuple):
    """How batches come to hold samples of similar lengths."""

    lengths: Ints
    """The length of each sample, by its id."""
    batches: int
    """Micro-batches among which samples are sorted by length."""


class Segment(NamedTuple):
    """Consecutive rows of one row group, in one window."""

    group: int
    first_row: int
    """In the group."""
    rows: int
    start: int
    """Place of its first row in the window, before shuffling."""


class Slice(NamedTuple):
    """Consecutive samples of a window, as they are delivered."""

    window: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of one epoch; make it with `plan_epoch` or `plan_stored`."""

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
    buckets: Buckets | None = field(default=None, repr=False)

    @property
    def num_samples(self) -> int:
        """Samples in the whole epoch; fewer than the split has when a smaller last batch is left out."""
        return min(self.num_steps * self.micro_batch_size * self.logical_workers, int(self.group_starts[-1]))

    def step_sizes(self, step: int) -> list[int]:
        """Return how many samples each logical worker has in `step`; they differ by at most 1 and may be 0."""
        return [stop - start for start, stop in (self._span(i, step) for i in range(self.logical_workers))]

    def slices(self, logical_worker: int, step: int) -> list[Slice]:
        """Return where one logical worker's samples of `step` are; seldom in more than one window."""
        start, stop = self._span(logical_worker, step)
        if start == stop:
            return []
        windows = range(self._window_at(start), self._window_at(stop - 1) + 1)
        first = self.window_starts
        return [Slice(w, max(start, first[w]) - first[w], min(stop, first[w + 1]) - first[w]) for w in windows]

    def windows_from(self, logical_worker: int, step: int) -> range:
        """Return the windows that one logical worker needs from `step` to the end of the epoch."""
        start, stop = self._span(logical_worker, step)[0], self._span(logical_worker, self.num_steps - 1)[1]
        return range(self._window_at(start), self._window_at(stop - 1) + 1 if stop > start else 0)

    def order(self, window: int) -> Ints:
        """Return the places in a window (as stored: segment after segment) in the order in which they are delivered."""
        first, last = self.window_starts[window : window + 2].tolist()
        if not self.shuffle:
            return np.arange(last - first)
        order = permutation(last - first, key=counter_key(_WINDOW, self.seed, self.epoch, window))
        return order if self.buckets is None else self._bucketed(window, order, *self.buckets)

    def segments(self, window: int) -> list[Segment]:
        """Return what a window consists of."""
        first, last = self.window_starts[window : window + 2]
        numbers = range(*np.searchsorted(self.segment_starts, [first, last]).tolist())
        return [
            Segment(
                group=int(self.segment_groups[i]),
                first_row=int(self.segment_offsets[i]),
                rows=int(self.segment_starts[i + 1] - self.segment_starts[i]),
                start=int(self.segment_starts[i] - first),
            )
            for i in numbers
        ]

    def stored_ids(self, window: int) -> Ints:
        """Return the number of each sample of a window in the split, before shuffling."""
        ids = [self.group_starts[s.group] + s.first_row + np.arange(s.rows) for s in self.segments(window)]
        return np.concatenate(ids)

    def sample_ids(self, logical_worker: int, step: int) -> Ints:
        """Return the numbers of one logical worker's samples in `step`."""
        slices = self.slices(logical_worker, step)
        parts = [self.stored_ids(window)[self.order(window)[start:stop]] for window, start, stop in slices]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _bucketed(self, window: int, order: Ints, lengths: Ints, bucket_batches: int) -> Ints:
        """Give each micro-batch samples of similar lengths, and the micro-batches a random order."""
        first = int(self.window_starts[window])
        piece = int(np.searchsorted(self.piece_starts, first, side="right")) - 1
        places = np.arange(len(order))
        batches = (first - int(self.piece_starts[piece]) + places) // self.micro_batch_size
        pools = batches // bucket_batches
        random = random_bits(
            int(batches[-1] - batches[0]) + 1, key=counter_key(_BUCKETS, self.seed, self.epoch, window)
        )
        by_length = np.lexsort((lengths[self.stored_ids(window)[order]], pools))
        by_batch = np.lexsort((places, random[batches - batches[0]], pools))
        bucketed = np.empty_like(order)
        bucketed[by_batch] = order[by_length]
        return bucketed

    def _span(self, logical_worker: int, step: int) -> tuple[int, int]:
        """Return the places in the sequence, from and to, that a logical worker's samples of `step` fill."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step must be in 0..{self.num_steps - 1}, got {step}")
        piece_start, piece_stop = self.piece_starts[logical_worker : logical_worker + 2].tolist()
        start = min(piece_start + step * self.micro_batch_size, piece_stop)
        return start, min(start + self.micro_batch_size, piece_stop)

    def _window_at(self, place: int) -> int:
        return int(np.searchsorted(self.window_starts, place, side="right")) - 1


def plan_epoch(
    rows_per_group: Sequence[int],
    *,
    seed: int,
    epoch: int,
    logical_workers: int,
    shuffle_rows: int,
    batch_size: int,
    drop_last: bool,
    buckets: Buckets | None = None,
) -> Plan:
    """Lay out the random order of one epoch.

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
        buckets: how samples are sorted by length, where lengths differ; ``None`` does not sort.

    Raises:
        ConfigError: if there is no sample, or not one batch, or the batch does not divide.
    """
    num_samples = sum(rows_per_group)
    _check(num_samples, logical_workers=logical_workers, batch_size=batch_size, drop_last=drop_last)
    group_order = permutation(len(rows_per_group), key=counter_key(_GROUPS, seed, epoch))
    return Plan(
        seed=seed,
        epoch=epoch,
        shuffle=True,
        logical_workers=logical_workers,
        micro_batch_size=batch_size // logical_workers,
        num_steps=num_samples // batch_size if drop_last else -(-num_samples // batch_size),
        buckets=buckets,
        **_layout(rows_per_group, group_order, pieces=logical_workers, window_rows=shuffle_rows),
    )


def plan_stored(rows_per_group: Sequence[int], *, window_rows: int, batch_size: int) -> Plan:
    """Lay out the samples in the order in which they are stored, as one piece; the last batch may be smaller.

    Args:
        rows_per_group: samples in each row group of the split, as stored; may be 0.
        window_rows: samples in a window, about.
        batch_size: samples per step.
    """
    num_samples = sum(rows_per_group)
    assert num_samples, "a stored split has a sample"
    return Plan(
        seed=0,
        epoch=0,
        shuffle=False,
        logical_workers=1,
        micro_batch_size=batch_size,
        num_steps=-(-num_samples // batch_size),
        **_layout(rows_per_group, np.arange(len(rows_per_group)), pieces=1, window_rows=window_rows),
    )


def random_bits(count: int, *, key: int) -> npt.NDArray[np.uint64]:
    """Return `count` random 64-bit numbers, no two alike: the splitmix64 stream that starts at `key`."""
    z = np.arange(1, count + 1, dtype=np.uint64)
    for start in range(0, count, _BLOCK):  # a block at a time stays in the processor's cache
        block = z[start : start + _BLOCK]
        block *= np.uint64(_GOLDEN)
        block += np.uint64(key)
        block ^= block >> np.uint64(30)
        block *= np.uint64(_MIX_1)
        block ^= block >> np.uint64(27)
        block *= np.uint64(_MIX_2)
        block ^= block >> np.uint64(31)
    return z


def permutation(count: int, *, key: int) -> Ints:
    """Return the numbers below `count` in random order: that of their random bits."""
    keys = random_bits(count, key=key)
    low = np.uint64(max(0, count - 1).bit_length())
    for start in range(0, count, _BLOCK):  # numbers are sorted several times as fast as their places
        block = keys[start : start + _BLOCK]
        block >>= low
        block <<= low
        block |= np.arange(start, start + len(block), dtype=np.uint64)
    keys.sort()
    tied = []
    for start in range(0, count, _BLOCK):
        high = keys[start : start + _BLOCK + 1] >> low
        tied += (np.flatnonzero(high[1:] == high[:-1]) + start).tolist()
    keys &= (np.uint64(1) << low) - np.uint64(1)
    order = keys.view(np.int64)
    for place in tied:  # a few among millions; three alike do not occur
        if _bits_of(order[place + 1], key) < _bits_of(order[place], key):
            order[place : place + 2] = order[place : place + 2][::-1].copy()
    return order


def _bits_of(number: np.int64, key: int) -> int:
    """Return the random bits of one number."""
    return int(random_bits(1, key=(key + int(number) * _GOLDEN) % 2**64)[0])


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


def _layout(rows_per_group: Sequence[int], groups: Ints, *, pieces: int, window_rows: int) -> dict[str, Any]:
    """Cut the sequence of row groups, which come in the order of `groups`, into pieces, segments and windows."""
    group_starts = _starts(rows_per_group)
    piece_starts = np.arange(pieces + 1) * group_starts[-1] // pieces
    starts_in_sequence = _starts(np.diff(group_starts)[groups])
    segment_starts = np.unique(np.concatenate([starts_in_sequence, piece_starts]))
    begins = segment_starts[:-1]
    place = np.searchsorted(starts_in_sequence, begins, side="right") - 1
    piece = np.searchsorted(piece_starts, begins, side="right") - 1
    # A segment belongs to the window in which it begins, so a window may exceed window_rows by its last segment.
    number = _window_numbers(begins - piece_starts[piece], np.diff(piece_starts)[piece], window_rows)
    is_first = np.concatenate([[True], (np.diff(number) != 0) | (np.diff(piece) != 0)])
    return {
        "group_starts": group_starts,
        "piece_starts": piece_starts,
        "segment_starts": segment_starts,
        "segment_groups": groups[place],
        "segment_offsets": begins - starts_in_sequence[place],
        "window_starts": np.append(begins[is_first], segment_starts[-1]),
    }


def _window_numbers(places: Ints, piece_sizes: Ints, window_rows: int) -> Ints:
    """Return the window of each place in its piece: the first is a quarter as large, the second a half."""
    quarter, full = max(1, window_rows // 4), window_rows
    numbers = np.where(places < quarter, 0, np.where(places < 3 * quarter, 1, 2 + (places - 3 * quarter) // full))
    return np.where(piece_sizes <= window_rows, 0, numbers)


def _starts(sizes: Sequence[int] | Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))]).astype(np.int64)

"""The windows that are shuffled: filled row group by row group in the order of delivery, so that a batch is a slice."""

import math
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.data.columns import Column, Ragged, join, take
from orchestrator.data.order import Ints, Plan, Segment, Slice
from orchestrator.data.reading.samples import Dense, Samples, dense_columns


class Buffers:
    """Memory of windows that are over, for those to come: fresh memory costs more to get than to fill.

    A buffer comes back when the last tensor that shows a part of it is gone, wherever a consumer has kept it.
    """

    def __init__(self) -> None:
        self._free: list[npt.NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, size: int, *, at_least: int) -> npt.NDArray[np.uint8]:
        """Return `size` bytes, of a new buffer of `at_least` so many if none is free."""
        with self._lock:
            fitting = [i for i, buffer in enumerate(self._free) if len(buffer) >= size]
            best = min(fitting, key=lambda i: len(self._free[i]), default=None)
            buffer = np.empty(max(size, at_least), np.uint8) if best is None else self._free.pop(best)
        view = np.frombuffer(buffer.data, np.uint8, count=size)  # all that is made of it refers to this view
        weakref.finalize(view, self._free.append, buffer).atexit = False
        return view


class WindowsAhead:
    """The current and the next window of each logical worker, filled by a pool of threads."""

    def __init__(
        self,
        samples: Samples,
        plan: Plan,
        logical_workers: Sequence[int],
        *,
        pool: ThreadPoolExecutor,
        buffers: Buffers | None,
    ) -> None:
        self._samples, self._plan = samples, plan
        self._logical_workers = logical_workers
        self._open = partial(ShuffledWindow, samples, plan, pool=pool, buffers=buffers)
        self._windows: dict[int, ShuffledWindow] = {}
        self._current: set[int] = set()

    def move_to(self, step: int, slices: Sequence[Sequence[Slice]]) -> None:
        """Begin to fill what `step` needs, which is `slices`, and what comes after it; let go what is behind."""
        starts = {chosen.window: chosen.start for worker in slices for chosen in worker}
        if self._current == starts.keys():
            return
        self._current = set(starts)
        ahead = {window for worker in self._logical_workers for window in self._plan.windows_from(worker, step)[:2]}
        self._windows = {number: window for number, window in self._windows.items() if number in starts.keys() | ahead}
        for number in [*sorted(starts), *sorted(ahead - starts.keys())]:  # what this step waits for comes first
            if number not in self._windows:
                self._windows[number] = self._open(number, starts.get(number, 0))

    def take(self, slices: Sequence[Slice]) -> tuple[dict[str, Tensor | Column], Ints]:
        """Return the samples of one micro-batch and their ids, waiting for them if it must be."""
        if not slices:
            return self._samples.none, np.empty(0, np.int64)
        parts = [self._windows[window].take(start, stop) for window, start, stop in slices]
        ids = [self._windows[window].ids[start:stop] for window, start, stop in slices]
        columns = [_joined([part[name] for part in parts]) for name in parts[0]]
        return dict(zip(parts[0], columns, strict=True)), np.concatenate(ids)


class ShuffledWindow:
    """The samples of one window, in the order of delivery."""

    def __init__(
        self,
        samples: Samples,
        plan: Plan,
        number: int,
        start: int,
        *,
        pool: ThreadPoolExecutor,
        buffers: Buffers | None,
    ) -> None:
        order = plan.order(number)
        self.ids = plan.stored_ids(number)[order]
        """Number of each sample in the split."""
        self._samples = samples
        dense, largest = dense_columns(samples.signature), int(np.diff(plan.window_starts).max())
        self._columns: dict[str, DenseColumn | PartsColumn] = {
            name: DenseColumn(len(order), dense[name], buffers, largest=largest)
            if name in dense
            else PartsColumn(len(order))
            for name in samples.columns
        }
        place_of = np.empty_like(order)
        place_of[order] = np.arange(len(order))
        self._filling: list[Future[None]] = []
        for segment in plan.segments(number):
            places = place_of[segment.start : segment.start + segment.rows]
            if places.max() >= start:  # a resumed run needs no row group of which all samples are behind it
                self._filling.append(pool.submit(self._fill, segment, places))

    def take(self, start: int, stop: int) -> dict[str, Tensor | Column]:
        """Return consecutive samples, waiting for the whole window; dense columns are views of it."""
        while self._filling:
            self._filling[-1].result()  # raises what went wrong
            self._filling.pop()
        return {name: column.take(start, stop) for name, column in self._columns.items()}

    def _fill(self, segment: Segment, places: Ints) -> None:
        read = self._samples.read(segment.group)
        rows = slice(segment.first_row, segment.first_row + segment.rows)
        for name, column in self._columns.items():
            column.put(places, read[name][rows])


class DenseColumn:
    """Samples of one shape, each copied to its place in the order of delivery."""

    def __init__(self, count: int, dense: Dense, buffers: Buffers | None, *, largest: int) -> None:
        """Make room for `count` samples, and for the `largest` window where memory is new; pinned without buffers."""
        if buffers is None:
            self._tensor = torch.empty((count, *dense.shape), dtype=dense.dtype, pin_memory=True)
        else:
            row_bytes = math.prod(dense.shape) * dense.dtype.itemsize
            view = buffers.take(count * row_bytes, at_least=largest * row_bytes)
            self._tensor = torch.from_numpy(view).view(dense.dtype).view(count, *dense.shape)
        self._array = self._tensor.numpy()

    def put(self, places: Ints, rows: Column) -> None:
        """Copy the rows of a segment to their places."""
        assert not isinstance(rows, Ragged)
        self._array[places] = rows

    def take(self, start: int, stop: int) -> Tensor:
        """Return a view of consecutive samples."""
        return self._tensor[start:stop]


class PartsColumn:
    """Samples of different lengths, or views of a series: kept as they were read, and gathered batch by batch."""

    def __init__(self, count: int) -> None:
        self._parts: list[Column] = []
        self._part = np.empty(count, np.int64)
        self._row = np.empty(count, np.int64)
        self._lock = threading.Lock()

    def put(self, places: Ints, rows: Column) -> None:
        """Keep the rows of a segment, and where each belongs."""
        with self._lock:
            self._parts.append(rows)
            number = len(self._parts) - 1
        self._part[places] = number
        self._row[places] = np.arange(len(rows))

    def take(self, start: int, stop: int) -> Column:
        """Return consecutive samples."""
        parts, rows = self._part[start:stop], self._row[start:stop]
        by_part = np.argsort(parts, kind="stable")
        edges = np.flatnonzero(np.diff(parts[by_part], prepend=-1, append=-1))
        chosen = [by_part[first:last] for first, last in pairwise(edges)]
        found = join([take(self._parts[parts[places[0]]], rows[places]) for places in chosen])
        return take(found, np.argsort(by_part))


def _joined(parts: Sequence[Tensor | Column]) -> Tensor | Column:
    if len(parts) == 1:
        return parts[0]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else join([part for part in parts if not isinstance(part, Tensor)])

"""Streams a dataset from the store as micro-batches, in the planned order, verified and fetched ahead of need."""

import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from models.features import Signature
from models.records import LeftOut
from orchestrator.data.dataset import TRAIN, Dataset
from orchestrator.data.order import Buckets, Ints, Plan, plan_epoch, plan_stored
from orchestrator.data.reading.cache import Kind, open_cache
from orchestrator.data.reading.prefetch import Ahead
from orchestrator.data.reading.samples import Samples, decode_files, to_tensors
from orchestrator.data.reading.windows import Buffers, WindowsAhead

_FETCH_THREADS = 4  # one waits for the network while others verify and copy
_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one logical worker in one step."""

    tensors: dict[str, torch.Tensor]
    """By feature, and the target; see `models/features.py` for shapes. May hold 0 samples."""
    sample_ids: Ints
    """Number of each sample in its split as stored, not counting those left out; of a series, that of the window."""

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.sample_ids)


class Reader:
    """Makes micro-batches of the samples of one dataset that a signature describes.

    It takes memory for three windows of `shuffle_mb` for each logical worker that it reads for (the one in use, the
    next, and one of which the last batches are still to be consumed), and for twelve row groups on their way, about
    96 MiB, whatever the size of the dataset. The `cache_mb` of row groups are shared by all readers of this machine.
    """

    def __init__(
        self,
        dataset: Dataset,
        signature: Signature,
        *,
        shuffle_mb: int = 128,
        cache: Kind = "memory",
        cache_mb: int = 1024,
        pin_memory: bool = False,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        """Read nothing yet.

        Args:
            dataset: what to read.
            signature: what a model reads of it.
            shuffle_mb: size of a window, in MiB of rows as they are stored.
            cache: where row groups are kept for the next epoch.
            cache_mb: the most of them, in MiB, on this machine.
            pin_memory: put batches where a GPU can copy them from.
            left_out: rows that are not read; see `orchestrator/data/reading/survey.py`.
        """
        self.wait_s = 0.0
        """Seconds that consumers have waited for batches so far."""
        self.dataset = dataset
        self._signature = signature
        self._shuffle_bytes = shuffle_mb * 2**20
        self._pin_memory = pin_memory
        self._cache = open_cache(cache, cache_mb)
        self._buffers = None if pin_memory else Buffers()  # PyTorch keeps pinned memory for reuse by itself
        self._left_out = left_out
        self._lengths: Ints | None = None

    def num_samples(self, split: str) -> int:
        """Return the rows of a split, or of a series its windows."""
        return sum(self._samples(split).per_group)

    def plan(
        self, *, seed: int, epoch: int, logical_workers: int, batch_size: int, drop_last: bool, bucket_batches: int = 1
    ) -> Plan:
        """Lay out the order of one epoch of the training split; see `plan_epoch`."""
        samples = self._samples(TRAIN)
        return plan_epoch(
            samples.per_group,
            seed=seed,
            epoch=epoch,
            logical_workers=logical_workers,
            shuffle_rows=self._window_rows(samples),
            batch_size=batch_size,
            drop_last=drop_last,
            buckets=self._buckets(samples, bucket_batches),
        )

    def train_batches(
        self, plan: Plan, *, logical_workers: Sequence[int], start_step: int = 0
    ) -> Ahead[list[MicroBatch]]:
        """Return an iterator over the steps of `plan` from `start_step` on.

        Reading begins at once, so the next epoch's iterator may be made while the last one is evaluated.

        Args:
            plan: of the training split.
            logical_workers: those of this worker; a step has one micro-batch for each, in this order.
            start_step: steps before it cost nothing.

        Raises:
            IntegrityError: from the iterator, if a row group is damaged in the store.
            StoreError: from the iterator, if the store fails.
        """
        samples = self._samples(TRAIN)
        assert len(plan.group_starts) == len(samples.per_group) + 1, "the plan is of this split"
        return self._ahead(self._steps(samples, plan, logical_workers, range(start_step, plan.num_steps)))

    def evaluate_batches(
        self, split: str, *, worker: int, workers: int, batch_size: int
    ) -> Ahead[tuple[int, MicroBatch]]:
        """Return an iterator over one worker's batches of `split`, each with its number.

        Batches are the same for every number of workers: the split in stored order, cut every `batch_size` samples.
        Each belongs to one worker, so every sample is there exactly once, without padding.
        """
        samples = self._samples(split)
        window_rows = max(1, self._window_rows(samples) // 4)  # nothing is shuffled: enough to read ahead
        plan = plan_stored(samples.per_group, window_rows=window_rows, batch_size=batch_size)
        numbers = range(worker * plan.num_steps // workers, (worker + 1) * plan.num_steps // workers)
        return self._ahead(self._numbered(numbers, self._steps(samples, plan, (0,), numbers)))

    def _samples(self, split: str) -> Samples:
        return Samples(self.dataset, split, self._signature, self._cache, self._left_out)

    def _window_rows(self, samples: Samples) -> int:
        return max(1, int(self._shuffle_bytes / samples.row_bytes))

    def _buckets(self, samples: Samples, batches: int) -> Buckets | None:
        """Return how to sort by length; ``None`` if that is not asked for, or samples have no lengths."""
        if batches > 1 and self._lengths is None:
            lengths = self.dataset.lengths(TRAIN)
            self._lengths = None if lengths is None else samples.own(lengths)
        return None if batches == 1 or self._lengths is None else Buckets(self._lengths, batches)

    def _ahead(self, items: Generator[Any]) -> Ahead[Any]:
        return Ahead(items, depth=_BATCHES_AHEAD, on_wait=self._add_wait)

    def _add_wait(self, seconds: float) -> None:
        self.wait_s += seconds

    @staticmethod
    def _numbered(numbers: range, steps: Iterator[list[MicroBatch]]) -> Generator[tuple[int, MicroBatch], None, None]:
        for number, (batch,) in zip(numbers, steps, strict=True):
            yield number, batch

    def _steps(
        self, samples: Samples, plan: Plan, logical_workers: Sequence[int], steps: range
    ) -> Generator[list[MicroBatch], None, None]:
        fetching = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="row-groups")
        decoding = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="pictures")  # starts no thread until used
        try:
            windows = WindowsAhead(samples, plan, logical_workers, pool=fetching, buffers=self._buffers)
            decode = partial(decode_files, pool=decoding)
            for step in steps:
                slices = [plan.slices(worker, step) for worker in logical_workers]
                windows.move_to(step, slices)
                taken = [windows.take(chosen) for chosen in slices]
                yield [self._micro_batch(to_tensors(columns, self._signature, decode), ids) for columns, ids in taken]
        finally:
            fetching.shutdown(cancel_futures=True)
            decoding.shutdown(cancel_futures=True)

    def _micro_batch(self, tensors: dict[str, torch.Tensor], ids: Ints) -> MicroBatch:
        if self._pin_memory:  # windows are pinned already; this is for what was made of them
            tensors = {name: tensor if tensor.is_pinned() else tensor.pin_memory() for name, tensor in tensors.items()}
        return MicroBatch(tensors, ids)

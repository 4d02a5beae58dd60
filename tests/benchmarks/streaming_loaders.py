"""The loaders of the streaming benchmark that need nothing but this project: ours, raw pyarrow threads, Ray Data.

Raw is what a person would write by hand to be fast: threads that read whole row groups, a few ahead; batches are
slices of them, without a copy. It verifies nothing, and a resumed run would begin again.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cluster.config import StoreSettings
from cluster.s3.store import Store
from orchestrator.data.dataset import open_dataset
from orchestrator.data.reading.reader import Reader
from tests.benchmarks.streaming_timing import Batch, Passes, Task, decode, run

Columns = dict[str, Any]

AHEAD = 2  # row groups in flight for each thread
READ_BUFFER_BATCHES = 8
IMAGE_SHAPE = (3, 32, 32)


def ours(task: Task) -> Passes:
    """Our reader. Options: `shuffle_mb`, `cache_mb`, and `consumers`, one logical worker each."""
    options = task.options
    dataset = open_dataset(_store(task), task.paths[0])
    reader = Reader(dataset, dataset.signature(), shuffle_mb=options["shuffle_mb"], cache_mb=options["cache_mb"])

    def batches(number: int) -> Iterator[Batch]:
        plan = reader.plan(
            seed=0,
            epoch=number,
            logical_workers=options["consumers"],
            batch_size=task.batch_size * options["consumers"],
            drop_last=False,
        )
        for (micro_batch,) in reader.train_batches(plan, logical_workers=(task.consumer,)):
            yield micro_batch.tensors

    return batches


def raw(task: Task) -> Passes:
    """Row groups in stored order. Option: `threads`."""
    read = _RowGroups(task)

    def batches(_number: int) -> Iterator[Batch]:
        for columns in read.ahead(read.groups, task.options["threads"]):
            yield from _slices(columns, task.batch_size)

    return batches


def raw_shuffled(task: Task) -> Passes:
    """Row groups in random order, shuffled `shuffle_rows` samples at a time. Options: `threads`, `shuffle_rows`."""
    read = _RowGroups(task)

    def batches(number: int) -> Iterator[Batch]:
        random = np.random.default_rng(number)
        order = [read.groups[i] for i in random.permutation(len(read.groups))]
        for window in _windows(read.ahead(order, task.options["threads"]), task.options["shuffle_rows"]):
            shuffled = random.permutation(len(window["target"]))
            for rows in np.split(shuffled, range(task.batch_size, len(shuffled), task.batch_size)):
                yield {name: column[rows] for name, column in window.items()}

    return batches


def ray_data(task: Task) -> Passes:
    """Ray Data on a Ray of its own with two CPUs. Option: `shuffle_rows`, its local buffer; 0 does not shuffle."""
    import ray.data

    store = _store(task)
    shuffle_rows = task.options["shuffle_rows"]
    dataset = ray.data.read_parquet(
        [store.arrow_path(key) for key in task.paths],
        filesystem=_filesystem(task),
        shuffle="files" if shuffle_rows else None,
    )
    if task.kind == "pictures":
        dataset = dataset.map_batches(_decode_table, batch_format="pyarrow", batch_size=None)

    def batches(number: int) -> Iterator[Batch]:
        tables = dataset.iter_batches(
            batch_size=task.batch_size,
            batch_format="numpy" if task.kind == "pictures" else "pyarrow",
            prefetch_batches=READ_BUFFER_BATCHES,
            local_shuffle_buffer_size=shuffle_rows or None,
            local_shuffle_seed=number if shuffle_rows else None,
        )
        return (table if task.kind == "pictures" else _columns(table, task) for table in tables)

    return batches


def prepare(task: Task) -> None:
    """Start what a training has started before it reads: its clients of the store, and Ray."""
    torch.set_num_threads(1)
    _store(task).exists("")
    _filesystem(task).get_file_info(_store(task).arrow_path(""))
    if task.loader == "ray_data":
        os.environ["RAY_AUTH_MODE"] = "disabled"  # or Ray leaves a token in the home folder, for every later cluster
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2 * 2**30)
        ray.data.DataContext.get_current().enable_progress_bars = False


class _RowGroups:
    """The row groups of Parquet files in the store, read by threads; each thread has its own open files."""

    def __init__(self, task: Task) -> None:
        store = _store(task)
        self._task = task
        self._filesystem = _filesystem(task)
        self._mine = threading.local()
        self._pool = ThreadPoolExecutor(task.options["threads"])
        paths = [store.arrow_path(key) for key in task.paths]
        self._footers = dict(zip(paths, self._pool.map(self._footer, paths), strict=True))
        self.groups = [(path, i) for path, footer in self._footers.items() for i in range(footer.num_row_groups)]

    def ahead(self, groups: Iterable[tuple[str, int]], threads: int) -> Iterator[Columns]:
        """Yield row groups in the order given, a few of them read ahead."""
        waiting: deque[Future[Columns]] = deque()
        for path, index in groups:
            waiting.append(self._pool.submit(self._read, path, index))
            if len(waiting) > AHEAD * threads:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)

    def _footer(self, path: str) -> pq.FileMetaData:
        with self._filesystem.open_input_file(path) as file:
            return pq.read_metadata(file)

    def _read(self, path: str, index: int) -> Columns:
        files = self._mine.__dict__
        if path not in files:
            source = self._filesystem.open_input_file(path)
            files[path] = pq.ParquetFile(source, metadata=self._footers[path], pre_buffer=True)
        return _columns(files[path].read_row_group(index, use_threads=False), self._task)


def _columns(table: pa.Table, task: Task) -> Columns:
    """Return a table as arrays, without a copy where it has one chunk."""
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    arrays = {name: column.to_numpy() for name, column in columns.items() if name != "image"}
    if task.kind == "images":
        image = columns["image"]
        width = image.type.byte_width
        pixels = np.frombuffer(image.buffers()[1], np.uint8, len(image) * width, image.offset * width)
        arrays["image"] = pixels.reshape(-1, *IMAGE_SHAPE)
    elif task.kind == "pictures":
        arrays["image"] = _decoded(columns["image"])
    return arrays


def _decode_table(table: pa.Table) -> Columns:
    return {"image": _decoded(table.column("image").combine_chunks()), "target": table.column("target").to_numpy()}


def _decoded(pictures: pa.StructArray) -> Any:
    return np.stack([decode(file.as_buffer()) for file in pictures.field("bytes")])


def _slices(columns: Columns, size: int) -> Iterator[Batch]:
    for start in range(0, len(columns["target"]), size):
        yield {name: column[start : start + size] for name, column in columns.items()}


def _windows(groups: Iterator[Columns], rows: int) -> Iterator[Columns]:
    window: list[Columns] = []
    for group in chain(groups, (None,)):
        if window and (group is None or sum(len(part["target"]) for part in window) >= rows):
            yield {name: np.concatenate([part[name] for part in window]) for name in window[0]}
            window = []
        if group is not None:
            window.append(group)


def _store(task: Task) -> Store:
    return _connected(StoreSettings.model_validate(task.store))


def _filesystem(task: Task) -> Any:
    return _arrow(StoreSettings.model_validate(task.store))


@cache
def _connected(settings: StoreSettings) -> Store:
    return Store(settings)


@cache
def _arrow(settings: StoreSettings) -> Any:
    return _connected(settings).arrow_filesystem()


if __name__ == "__main__":
    run({"ours": ours, "raw": raw, "raw_shuffled": raw_shuffled, "ray_data": ray_data}, prepare)

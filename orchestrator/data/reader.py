"""Streams a dataset from the store as micro-batches, in the planned order, verified and fetched ahead of need."""

import threading
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from cluster.errors import ConfigError, IntegrityError, NotFoundError
from models.features import TARGET, Feature, ForecastTarget, SeriesFeature, Signature
from orchestrator.data.columns import Array, Columns, from_table
from orchestrator.data.manifest import Manifest, SeriesTarget, Shard, Split
from orchestrator.data.order import Ints, Plan, Positions, plan_epoch
from orchestrator.data.shards import read_footer, read_row_group, sha256
from orchestrator.data.stream import Ahead

if TYPE_CHECKING:
    from cluster.storage import Store

FOLDER = "datasets"
TRAIN = "train"

_FETCH_THREADS = 4  # one waits for the network while others verify and decode
_BATCHES_AHEAD = 4
_EVALUATION_WINDOW_ROWS = 8192  # how far evaluation, which does not shuffle, reads ahead


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one logical worker in one step."""

    tensors: dict[str, torch.Tensor]
    """By feature, and the target; see `models/features.py` for shapes. May hold 0 samples."""
    sample_ids: Ints
    """Number of each sample in its split as stored; of a series, the number of the window."""

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.sample_ids)


@dataclass(frozen=True)
class Dataset:
    """One version of a dataset in the store; make it with `open_dataset`."""

    store: "Store"
    manifest: Manifest
    _footers: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _footer_locks: dict[str, threading.Lock] = field(
        default_factory=lambda: defaultdict(threading.Lock), repr=False, compare=False
    )

    def signature(self, *, lookback: int | None = None, horizon: int | None = None) -> Signature:
        """Return what a model reads and answers; see `signature`."""
        return signature(self.manifest, lookback, horizon)

    def num_samples(self, split: str, signature: Signature) -> int:
        """Return the rows of a split, or of a series its windows."""
        return sum(_Samples(self, split, signature).per_group)

    def plan(
        self,
        split: str,
        signature: Signature,
        *,
        seed: int,
        epoch: int,
        logical_workers: int,
        shuffle_rows: int,
        batch_size: int,
        drop_last: bool,
    ) -> Plan:
        """Lay out the order of one epoch; see `plan_epoch`."""
        return plan_epoch(
            _Samples(self, split, signature).per_group,
            seed=seed,
            epoch=epoch,
            logical_workers=logical_workers,
            shuffle_rows=shuffle_rows,
            batch_size=batch_size,
            drop_last=drop_last,
        )

    def reader(self, signature: Signature, *, cache_mb: int, pin_memory: bool = False) -> "Reader":
        """Return a reader of the samples that `signature` describes."""
        return Reader(self, signature, cache_mb=cache_mb, pin_memory=pin_memory)

    def split(self, name: str) -> Split:
        """Return one split's record.

        Raises:
            NotFoundError: if there is none of that name.
        """
        splits = self.manifest.splits
        if name not in splits:
            raise NotFoundError(
                f"split of dataset {self.manifest.name} must be one of {', '.join(splits)}, got {name!r}."
            )
        return splits[name]

    def read_row_group(self, shard: Shard, index: int) -> Columns:
        """Fetch one row group with one ranged GET, verify it and return its columns.

        Raises:
            IntegrityError: if its bytes do not match their SHA-256, twice.
        """
        group = shard.row_groups[index]
        data = self._verified(shard, f"row group {index}", group.offset, group.bytes, group.sha256)
        table = read_row_group(data, shard=shard, index=index, footer=self._footer(shard))
        return from_table(table, self.manifest.features, self.manifest.target)

    def _footer(self, shard: Shard) -> Any:
        with self._footer_locks[shard.path]:  # threads that ask at the same time fetch it once
            if shard.path not in self._footers:
                start = shard.footer_offset
                data = self._verified(shard, "footer", start, shard.bytes - start, shard.footer_sha256)
                self._footers[shard.path] = read_footer(data)
            return self._footers[shard.path]

    def _verified(self, shard: Shard, what: str, start: int, length: int, expected: str) -> Any:
        key = f"{folder(self.manifest.name, self.manifest.version)}/{shard.path}"
        for _ in range(2):  # once more: bytes may be damaged on their way and whole in the store
            data = self.store.read_range(key, start=start, length=length)
            found = sha256(data)
            if found == expected:
                return data
        raise IntegrityError(
            f"{what} of shard {key} must have SHA-256 {expected[:12]}…, got {found[:12]}… twice. The object is "
            f"damaged: delete the folder {folder(self.manifest.name, self.manifest.version)} and push the data again."
        )


class Reader:
    """Makes micro-batches of one dataset; keeps decoded row groups for later epochs as far as `cache_mb` goes."""

    def __init__(self, dataset: Dataset, signature: Signature, *, cache_mb: int, pin_memory: bool = False) -> None:
        self.wait_s = 0.0
        """Seconds that consumers have waited for batches so far."""
        self.dataset = dataset
        self._signature = signature
        self._pin_memory = pin_memory
        self._cache = _Cache(cache_mb * 2**20)

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
        samples = _Samples(self.dataset, TRAIN, self._signature)
        assert len(plan.group_starts) == len(samples.per_group) + 1, "the plan is of this split"
        return self._ahead(self._steps(samples, plan, logical_workers, range(start_step, plan.num_steps)))

    def evaluate_batches(
        self, split: str, *, worker: int, workers: int, batch_size: int
    ) -> Ahead[tuple[int, MicroBatch]]:
        """Return an iterator over one worker's batches of `split`, each with its number.

        Batches are the same for every number of workers: the split in stored order, cut every `batch_size` samples.
        Each belongs to one worker, so every sample is there exactly once, without padding.
        """
        samples = _Samples(self.dataset, split, self._signature)
        plan = plan_epoch(
            samples.per_group,
            seed=0,
            epoch=0,
            logical_workers=1,
            shuffle_rows=_EVALUATION_WINDOW_ROWS,
            batch_size=batch_size,
            drop_last=False,
            shuffle=False,
        )
        numbers = range(worker * plan.num_steps // workers, (worker + 1) * plan.num_steps // workers)
        return self._ahead(self._numbered(numbers, self._steps(samples, plan, (0,), numbers)))

    def _ahead(self, items: Generator[Any]) -> Ahead[Any]:
        return Ahead(items, depth=_BATCHES_AHEAD, on_wait=self._add_wait)

    def _add_wait(self, seconds: float) -> None:
        self.wait_s += seconds

    @staticmethod
    def _numbered(numbers: range, steps: Iterator[list[MicroBatch]]) -> Generator[tuple[int, MicroBatch], None, None]:
        for number, (batch,) in zip(numbers, steps, strict=True):
            yield number, batch

    def _steps(
        self, samples: "_Samples", plan: Plan, logical_workers: Sequence[int], steps: range
    ) -> Generator[list[MicroBatch], None, None]:
        pool = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="row-groups")
        try:
            blocks = _BlocksAhead(samples, self._cache, pool)
            for step in steps:
                blocks.move_to(plan, logical_workers, step)
                yield [
                    self._collate(samples, plan, plan.micro_batch(worker, step), blocks) for worker in logical_workers
                ]
        finally:
            pool.shutdown(cancel_futures=True)

    def _collate(self, samples: "_Samples", plan: Plan, positions: Positions, blocks: "_BlocksAhead") -> MicroBatch:
        tensors = samples.empty(len(positions.groups), pin_memory=self._pin_memory)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        for group, rows in _by_group(positions.groups):
            block = blocks.get(group)
            offsets = positions.offsets[rows]
            for name, array in arrays.items():
                array[rows] = block[name][offsets]
        return MicroBatch(tensors, plan.sample_ids(positions))


def open_dataset(store: "Store", name: str, version: str | None = None) -> Dataset:
    """Read a dataset's manifest; the newest version's unless one is named.

    Raises:
        NotFoundError: if there is no such dataset or version; lists those there are.
        IntegrityError: if the manifest is not one.
    """
    if version is not None:
        return Dataset(store, read_manifest(store, name, version))
    manifests = [read_manifest(store, name, v) for v in versions(store, name)]
    if not manifests:
        raise NotFoundError(
            f"data.name must be a dataset in the store, got {name!r}. "
            f"{_there_are('Datasets', datasets(store))} Make one with `orchestrator data push`."
        )
    return Dataset(store, max(manifests, key=lambda manifest: (manifest.created, manifest.version)))


def datasets(store: "Store") -> list[str]:
    """Return the names of all datasets that have a complete version."""
    return [name for name in store.folders(f"{FOLDER}/") if versions(store, name)]


def versions(store: "Store", name: str) -> list[str]:
    """Return a dataset's complete versions; one without a manifest is still being pushed, or was given up."""
    return [v for v in store.folders(f"{FOLDER}/{name}/") if store.exists(manifest_key(name, v))]


def read_manifest(store: "Store", name: str, version: str) -> Manifest:
    """Read and check one version's manifest; see `open_dataset` for the errors."""
    key = manifest_key(name, version)
    if not store.exists(key):
        raise NotFoundError(
            f"data.version must be a version of dataset {name}, got {version!r}. "
            f"{_there_are('Versions', versions(store, name))}"
        )
    try:
        manifest = Manifest.model_validate_json(store.read(key))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise IntegrityError(
            f"{key} must be a manifest of this program, got an error at {where}: {first['msg']}. "
            "Delete the version and push the data again, or use the program's version that wrote it."
        ) from error
    if (manifest.name, manifest.version) != (name, version):
        raise IntegrityError(
            f"{key} must describe {name} {version}, got {manifest.name} {manifest.version}. Push the data again."
        )
    return manifest


def folder(name: str, version: str) -> str:
    """Return the folder of one version."""
    return f"{FOLDER}/{name}/{version}"


def manifest_key(name: str, version: str) -> str:
    """Return the key of one version's manifest."""
    return f"{folder(name, version)}/manifest.json"


def signature(manifest: Manifest, lookback: int | None, horizon: int | None) -> Signature:
    """Return what a model reads and answers on this dataset.

    Raises:
        ConfigError: if a series lacks `lookback` and `horizon` or is too short, or if other data have them.
    """
    target = manifest.target
    if not isinstance(target, SeriesTarget):
        if lookback is not None or horizon is not None:
            raise ConfigError(
                f"data.lookback and data.horizon must be left out for dataset {manifest.name}, which is not a "
                f"series, got {lookback} and {horizon}. Remove them."
            )
        return Signature(features=manifest.features, target=target)
    if lookback is None or horizon is None:
        raise ConfigError(
            f"data.lookback and data.horizon must be given for dataset {manifest.name}, which is a series, "
            f"got {lookback} and {horizon}. For an hourly series: data.lookback=96 data.horizon=24."
        )
    for name, split in manifest.splits.items():
        if lookback + horizon > split.rows:
            raise ConfigError(
                f"data.lookback + data.horizon must be at most the {split.rows} rows of split {name} of dataset "
                f"{manifest.name}, got {lookback} + {horizon}. Lower one of them."
            )
    return Signature(features=manifest.features, target=ForecastTarget(lookback=lookback, horizon=horizon))


class _Samples:
    """The samples of one split: its rows or, of a series, its windows, by the row group in which they begin."""

    def __init__(self, dataset: Dataset, split: str, signature: Signature) -> None:
        record = dataset.split(split)
        self._dataset = dataset
        self._split = split
        self._signature = signature
        self._locations = [(shard, i) for shard in record.shards for i in range(len(shard.row_groups))]
        sizes = [shard.row_groups[i].rows for shard, i in self._locations]
        self._row_starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        target = signature.target
        self._first_row = 0
        self._window_rows = 1
        if isinstance(target, ForecastTarget):
            # The first forecast begins where the split does, if enough rows before it are there to look back on.
            self._first_row = max(0, record.context_rows - target.lookback)
            self._window_rows = target.lookback + target.horizon
        self.per_group = [len(self._starts(group)) for group in range(len(sizes))]
        """Number of samples that begin in each row group."""

    def empty(self, count: int, *, pin_memory: bool) -> dict[str, torch.Tensor]:
        """Return tensors for `count` samples, to be filled."""
        return {
            name: torch.empty((count, *shape), dtype=dtype, pin_memory=pin_memory)
            for name, (shape, dtype) in _tensors(self._signature).items()
        }

    def block(self, group: int, cache: "_Cache") -> Columns:
        """Return the samples that begin in a row group: arrays, or views of them, with a sample on axis 0."""
        starts = self._starts(group)
        target = self._signature.target
        if not isinstance(target, ForecastTarget):
            return self._rows(group, cache)
        stop = starts.stop - 1 + self._window_rows
        first = self._row_starts[group]
        views = {}
        for name in self._signature.features:
            rows_TC = self._rows_until(stop, group, name, cache)[starts.start - first : stop - first]
            windows_NCT = np.lib.stride_tricks.sliding_window_view(rows_TC, self._window_rows, axis=0)
            windows_NTC = windows_NCT.swapaxes(1, 2)
            views[name], views[TARGET] = np.split(windows_NTC, [target.lookback], axis=1)
        return views

    def _starts(self, group: int) -> range:
        """Return the rows of a group at which samples begin."""
        last = self._row_starts[-1] - self._window_rows
        start = max(self._row_starts[group], self._first_row)
        return range(start, max(start, min(self._row_starts[group + 1], last + 1)))

    def _rows_until(self, stop: int, group: int, name: str, cache: "_Cache") -> Array:
        parts = []
        while self._row_starts[group] < stop:
            parts.append(self._rows(group, cache)[name])
            group += 1
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _rows(self, group: int, cache: "_Cache") -> Columns:
        shard, index = self._locations[group]
        return cache.get((self._split, group), lambda: self._dataset.read_row_group(shard, index))


class _BlocksAhead:
    """The blocks that the current and the next window of each logical worker need, loaded by a pool of threads."""

    def __init__(self, samples: _Samples, cache: "_Cache", pool: ThreadPoolExecutor) -> None:
        self._samples = samples
        self._cache = cache
        self._pool = pool
        self._windows: dict[int, int] = {}
        self._needed: dict[int, set[int]] = {}
        self._loading: dict[int, Future[Columns]] = {}

    def get(self, group: int) -> Columns:
        """Return one block, waiting for it if it must be."""
        return self._loading[group].result()

    def move_to(self, plan: Plan, logical_workers: Sequence[int], step: int) -> None:
        """Start to load what the logical workers that enter a new window need, and let go what none needs."""
        moved = {w: plan.window(w, step) for w in logical_workers if plan.window(w, step) != self._windows.get(w)}
        if not moved:
            return
        self._windows |= moved
        ahead = {worker: plan.groups_ahead(worker, step) for worker in moved}
        for worker, (now, later) in ahead.items():
            self._needed[worker] = {*now.tolist(), *later.tolist()}
        kept = set().union(*self._needed.values())
        self._loading = {group: block for group, block in self._loading.items() if group in kept}
        for groups in [now for now, _ in ahead.values()] + [later for _, later in ahead.values()]:
            self._load(groups.tolist())

    def _load(self, groups: list[int]) -> None:
        for group in groups:
            if group not in self._loading:
                self._loading[group] = self._pool.submit(self._samples.block, group, self._cache)


class _Cache:
    """Decoded row groups, kept from the first ones on until the memory is used up.

    Nothing is evicted: every epoch reads all row groups once, so what was used longest ago is needed next.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._room = limit_bytes
        self._kept: dict[tuple[str, int], Columns] = {}
        self._locks: dict[tuple[str, int], threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int], load: Any) -> Columns:
        """Return what is kept, or load it; two threads that ask at the same time load it once."""
        with self._lock:
            lock = self._locks[key]
        with lock:
            if key in self._kept:
                return self._kept[key]
            columns: Columns = load()
            self._offer(key, columns)
            return columns

    def _offer(self, key: tuple[str, int], columns: Columns) -> None:
        size = sum(array.nbytes for array in columns.values())
        with self._lock:
            if size <= self._room:
                self._room -= size
                self._kept[key] = columns


def _there_are(what: str, names: Sequence[str]) -> str:
    return f"{what} there: {', '.join(names)}." if names else f"There are no {what.lower()} yet."


def _by_group(groups: Ints) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """Yield each row group with the places in the micro-batch that its samples take."""
    order = np.argsort(groups, kind="stable")
    sorted_groups = groups[order]
    edges = [0, *(np.flatnonzero(np.diff(sorted_groups)) + 1).tolist(), len(groups)]
    for start, stop in pairwise(edges):
        if stop > start:
            yield int(sorted_groups[start]), order[start:stop]


def _tensors(signature: Signature) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape (without the batch) and type of every tensor in a batch."""
    tensors = {name: _feature_tensor(f, signature) for name, f in signature.features.items()}
    match signature.target.kind:
        case "class":
            tensors[TARGET] = ((), torch.int64)
        case "number":
            tensors[TARGET] = ((), torch.float32)
        case "forecast":
            (series,) = (f for f in signature.features.values() if isinstance(f, SeriesFeature))
            tensors[TARGET] = ((signature.target.horizon, len(series.channels)), torch.float32)
    return tensors


def _feature_tensor(feature: Feature, signature: Signature) -> tuple[tuple[int, ...], torch.dtype]:
    match feature.kind:
        case "image":
            return feature.shape, torch.uint8
        case "vector":
            return (len(feature.names),), torch.float32
        case "categorical":
            return (), torch.int64
        case "series":
            assert isinstance(signature.target, ForecastTarget), "only forecasts read a series"
            return (signature.target.lookback, len(feature.channels)), torch.float32

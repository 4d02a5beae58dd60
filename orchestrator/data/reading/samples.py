"""The samples of one split, as a model reads them: where each lies in the row groups, and how rows become tensors."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.features import (
    LENGTH,
    TARGET,
    VALUE,
    AudioFeature,
    Feature,
    ForecastTarget,
    ImageFeature,
    SeriesFeature,
    Signature,
)
from models.pictures import Fit, decode_picture, fit_for
from models.records import LeftOut
from orchestrator.data.columns import Array, Column, Columns, Ragged, no_rows, take
from orchestrator.data.dataset import Dataset
from orchestrator.data.manifest import Run, SeriesTarget, Split
from orchestrator.data.order import Ints
from orchestrator.data.reading.cache import Cache

Bools = npt.NDArray[np.bool_]

_DECODE_CHUNKS = 16  # of a batch, for the threads to share

# N = samples, T = longest of them, C = channels


class Samples:
    """The samples of one split: its rows or, of a series, its windows, by the row group in which they begin.

    Rows that are left out, and windows that hold one, do not exist: the others are counted as if there were no more.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        signature: Signature,
        cache: Cache | None = None,
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        record = dataset.split(split)
        self.signature = signature
        self._dataset, self._cache = dataset, cache
        self._locations = [(shard, i) for shard in record.shards for i in range(len(shard.row_groups))]
        sizes = [shard.row_groups[i].rows for shard, i in self._locations]
        self._row_starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        target = signature.target
        self._sample_rows = 1
        self._all_starts: Ints | None = None
        if isinstance(target, ForecastTarget):
            self._sample_rows = target.lookback + target.horizon
            self._all_starts = _window_starts(_runs(dataset, split), target)
        left_out = [one for one in left_out if one.split == split]
        if left_out:
            self._all_starts = _whole(self._all_starts, self._sample_rows, is_left_out=_is_left_out(record, left_out))
        self.per_group = [len(self._starts(group)) for group in range(len(sizes))]
        """Number of samples that begin in each row group."""
        self.columns = list(signature.features) if self._sample_rows > 1 else [*signature.features, TARGET]
        """Names of what `read` returns."""
        self.row_bytes = sum(shard.bytes for shard in record.shards) / record.rows
        """Bytes of a row as it is stored, in the mean."""

    def read(self, group: int) -> Columns:
        """Return the samples that begin in a row group: a sample on axis 0, or a row of a `Ragged`.

        Those of a series are views of its rows, lookback and horizon in one.
        """
        if not isinstance(self.signature.target, ForecastTarget):
            return self._own_rows(group)
        starts, first = self._starts(group), self._row_starts[group]
        stop = starts.stop - 1 + self._sample_rows
        views: Columns = {}
        for name in self.signature.features:
            rows_TC = self._rows_until(stop, group, name)[starts.start - first : stop - first]
            windows_NCT = np.lib.stride_tricks.sliding_window_view(rows_TC, self._sample_rows, axis=0)
            windows = Windows(windows_NCT.swapaxes(1, 2), starts.rows - starts.start)
            views[name] = cast(Array, windows)  # of which no more is asked than it has
        return views

    def own(self, values: Ints) -> Ints:
        """Return of one value for each row of the split those that belong to a sample that begins there."""
        return values if self._all_starts is None else values[self._all_starts]

    @cached_property
    def none(self) -> dict[str, Tensor | Column]:
        """What a batch of no samples is made of."""
        manifest, dense = self._dataset.manifest, dense_columns(self.signature)
        empty = no_rows(manifest.features, manifest.target)
        none: dict[str, Tensor | Column] = {}
        for name in self.columns:
            rows = empty[name]
            if name in dense:
                none[name] = torch.empty((0, *dense[name].shape), dtype=dense[name].dtype)
            elif isinstance(rows, Ragged):
                none[name] = rows
            else:
                none[name] = np.empty((0, self._sample_rows, rows.shape[1]), rows.dtype)
        return none

    def _starts(self, group: int) -> "Starts":
        """Return the rows of a group at which samples begin."""
        edges = self._row_starts[group : group + 2]
        if self._all_starts is None:
            return Starts(np.arange(*edges))
        first, last = np.searchsorted(self._all_starts, edges)
        return Starts(self._all_starts[first:last])

    def _rows_until(self, stop: int, group: int, name: str) -> Array:
        parts = []
        while self._row_starts[group] < stop:
            parts.append(self._rows(group)[name])
            group += 1
        return np.concatenate(parts) if len(parts) > 1 else parts[0]  # type: ignore[arg-type, return-value]

    def _own_rows(self, group: int) -> Columns:
        """Return the rows of a group without those that are left out."""
        columns, starts = self._rows(group), self._starts(group)
        first, stop = self._row_starts[group : group + 2]
        if len(starts) == stop - first:
            return columns
        return {name: take(column, starts.rows - first) for name, column in columns.items()}

    def _rows(self, group: int) -> Columns:
        shard, index = self._locations[group]
        key = shard.row_groups[index].sha256
        table = self._cache.get(key) if self._cache else None
        if table is None:
            table = self._dataset.fetch_row_group(shard, index)
            if self._cache:
                table = self._cache.put(key, table)
        return self._dataset.columns_of(table, shard, index)


@dataclass(frozen=True, eq=False)
class Starts:
    """Rows at which samples begin, in their order."""

    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def start(self) -> int:
        """The first."""
        return int(self.rows[0])

    @property
    def stop(self) -> int:
        """One more than the last."""
        return int(self.rows[-1]) + 1


@dataclass(frozen=True, eq=False)
class Windows:
    """Some of the windows of a series, as views of its rows until some are asked for; indexed as an array is."""

    views: Array
    """[all, T, C]"""
    chosen: Ints

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: slice | Ints) -> "Windows | Array":
        if isinstance(rows, slice):
            return Windows(self.views, self.chosen[rows])
        found: Array = self.views[self.chosen[rows]]
        return found


def _runs(dataset: Dataset, split: str) -> Sequence[Run]:
    """Return the rows that windows may not leave."""
    target, record = dataset.manifest.target, dataset.split(split)
    runs = target.runs if isinstance(target, SeriesTarget) else None
    return runs[split] if runs else (Run(record.rows, record.context_rows),)


def _window_starts(runs: Sequence[Run], target: ForecastTarget) -> Ints:
    """Return the rows at which windows begin: all of a window lies in one run, and its forecast in this split.

    The first forecast of a run begins where the split does, if enough rows before it are there to look back on.
    """
    parts, start = [np.empty(0, np.int64)], 0
    for run in runs:
        first = start + max(0, run.context_rows - target.lookback)
        start += run.rows
        parts.append(np.arange(first, start - target.lookback - target.horizon + 1))
    return np.concatenate(parts)


def _is_left_out(record: Split, left_out: Sequence[LeftOut]) -> Bools:
    """Return whether each row of a split is left out, [rows]."""
    by_shard = {one.shard: one for one in left_out}
    parts = []
    for shard in record.shards:
        one = by_shard.get(shard.path)
        groups = np.repeat(np.arange(len(shard.row_groups)), [group.rows for group in shard.row_groups])
        rows = np.arange(shard.rows)
        parts.append(np.isin(groups, one.row_groups) | np.isin(rows, one.rows) if one else np.zeros(len(rows), bool))
    return np.concatenate(parts)


def _whole(starts: Ints | None, sample_rows: int, *, is_left_out: Bools) -> Ints:
    """Return the rows at which samples begin of which no row is left out.

    Args:
        starts: of all samples; ``None``: every row is one.
        sample_rows: rows of a sample.
        is_left_out: see `_is_left_out`.
    """
    if starts is None:
        return np.flatnonzero(~is_left_out)
    before = np.concatenate([[0], np.cumsum(is_left_out)])
    whole: Ints = starts[before[starts + sample_rows] == before[starts]]
    return whole


@dataclass(frozen=True)
class Dense:
    """What a feature or target of one size per sample is in a batch."""

    shape: tuple[int, ...]
    """The shape of one sample."""
    dtype: torch.dtype


def dense_columns(signature: Signature) -> dict[str, Dense]:
    """Return the columns that hold one array of fixed shape per sample; the others are series or `Ragged`."""
    kinds = {name: _dense(feature) for name, feature in signature.features.items()}
    kinds[TARGET] = {"class": Dense((), torch.int64), "number": Dense((), torch.float32)}.get(signature.target.kind)
    return {name: dense for name, dense in kinds.items() if dense is not None}


def _dense(feature: Feature) -> Dense | None:
    match feature.kind:
        case "image" if feature.encoding == "raw":
            return Dense(feature.shape, torch.uint8)
        case "vector":
            return Dense((len(feature.names),), torch.float32)
        case "categorical":
            return Dense((), torch.int64)
    return None


Decoder = Callable[[Ragged, ImageFeature, Fit], Tensor]
"""Turns picture files into [N, C, H, W] uint8."""


def to_tensors(columns: Mapping[str, Tensor | Column], signature: Signature, decode: Decoder) -> dict[str, Tensor]:
    """Return a batch, as `models/features.py` describes it.

    Args:
        columns: tensors of dense features, windows of series [N, lookback + horizon, C], rows of the others.
        signature: what they are.
        decode: for pictures kept as files.
    """
    tensors: dict[str, Tensor] = {}
    for name, column in columns.items():
        if isinstance(column, Tensor):
            tensors[name] = column
        elif name == TARGET:
            tensors |= _padded(name, column, torch.float32, fill=-1)
        else:
            tensors |= _feature_tensors(name, column, signature, decode)
    return tensors


def _feature_tensors(name: str, column: Column, signature: Signature, decode: Decoder) -> dict[str, Tensor]:
    feature = signature.features[name]
    if not isinstance(column, Ragged):
        assert isinstance(feature, SeriesFeature) and isinstance(signature.target, ForecastTarget)
        lookback = signature.target.lookback
        return {name: _tensor(column[:, :lookback]), TARGET: _tensor(column[:, lookback:])}
    match feature:
        case ImageFeature():
            return {name: decode(column, feature, fit_for(signature.target.kind))}
        case AudioFeature():
            padded = _padded(name, column, torch.float32, fill=0)
            padded[name] /= 32768  # int16
            return padded
        case _ if column.values.dtype.names:
            indices = _padded(name, Ragged(column.values["column"] + 1, column.offsets), torch.int64, fill=0)
            values = _padded(name, Ragged(column.values["value"], column.offsets), torch.float32, fill=0)
            return indices | {name + VALUE: values[name]}
    return _padded(name, column, torch.int64, fill=0)


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _padded(name: str, column: Column, dtype: torch.dtype, *, fill: int) -> dict[str, Tensor]:
    """Return the rows side by side, as long as the longest of them (at least 1), and their lengths."""
    assert isinstance(column, Ragged)
    lengths = column.lengths
    longest = max(1, int(lengths.max(initial=0)))
    padded = torch.full((len(column), longest, *column.values.shape[1:]), fill, dtype=dtype)
    rows = np.repeat(np.arange(len(column)), lengths)
    places = np.arange(len(rows)) - np.repeat(column.offsets[:-1], lengths)
    padded.numpy()[rows, places] = column.values
    return {name: padded, name + LENGTH: torch.from_numpy(lengths)}


def decode_files(files: Ragged, feature: ImageFeature, fit: Fit, *, pool: ThreadPoolExecutor) -> Tensor:
    """Decode picture files with all threads of a pool; see `decode_picture`."""
    pictures = torch.empty((len(files), *feature.shape), dtype=torch.uint8)
    array = pictures.numpy()

    def decode(rows: range) -> None:
        for row in rows:
            array[row] = decode_picture(files[row].tobytes(), feature.shape, fit=fit)

    step = max(1, -(-len(files) // _DECODE_CHUNKS))
    list(pool.map(decode, [range(i, min(i + step, len(files))) for i in range(0, len(files), step)]))
    return pictures

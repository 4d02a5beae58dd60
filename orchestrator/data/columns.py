"""How each kind of feature and target lies in a Parquet column, and its statistics.

    kind                      array                          Parquet column
    image, raw                [N, C, H, W] uint8             fixed_size_binary[C*H*W]
    image, file               Ragged of uint8                struct<bytes: binary, path: string>, as Hugging Face has
    vector, series            [N, D] float32                 fixed_size_list<float>[D]
    categorical               [N] int32                      int32
    text                      Ragged of int32                list<int32>
    audio                     Ragged of int16                list<int16>
    sparse                    Ragged of `SPARSE`             list<struct<column: int32, value: float>>
    target: class · number    [N] int64 · float32            int64 · float
    target: boxes             Ragged of [5] float32          list<fixed_size_list<float>[5]>

No column may hold nulls, but for the path of a picture. A series is its own target and has no target column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.features import TARGET, Feature, ImageFeature, NumberTarget
from orchestrator.data.manifest import DatasetTarget, SeriesTarget

Array = npt.NDArray[Any]

SPARSE = np.dtype([("column", np.int32), ("value", np.float32)])
_DTYPES = {
    pa.int16(): np.int16,
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.float32(): np.float32,
}
_BLOCK_NUMBERS = 2**20  # that statistics are made of at a time
BOX_NUMBERS = 5  # class, left, top, right, bottom


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths, one after another in one array."""

    values: Array
    """[all lengths together, ...]"""
    offsets: npt.NDArray[np.int64]
    """[N + 1], from 0 to the length of the values; row i is ``values[offsets[i]:offsets[i + 1]]``."""

    @classmethod
    def of(cls, rows: Sequence[Array], *, dtype: npt.DTypeLike, width: tuple[int, ...] = ()) -> "Ragged":
        """Join arrays; ``dtype`` and ``width`` say what an empty row is made of."""
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        values = np.empty((int(offsets[-1]), *width), dtype)
        for row, start in zip(rows, offsets, strict=False):
            values[start : start + len(row)] = row
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, rows: int) -> Array: ...
    @overload
    def __getitem__(self, rows: slice) -> "Ragged": ...
    def __getitem__(self, rows: int | slice) -> "Array | Ragged":
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            assert step == 1 and stop >= start, "rows that follow each other"
            offsets = self.offsets[start : stop + 1]
            return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])
        row: Array = self.values[self.offsets[rows] : self.offsets[rows + 1]]
        return row

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The length of each row, [N]."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of the values and offsets."""
        return self.values.nbytes + self.offsets.nbytes

    def take(self, rows: npt.NDArray[np.int64]) -> "Ragged":
        """Return the given rows, in their order."""
        starts, lengths = self.offsets[rows], self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Ragged(self.values[places], offsets)


Column = Array | Ragged
Columns = dict[str, Column]


def take(column: Column, rows: npt.NDArray[np.int64]) -> Column:
    """Return the given rows of a column, in their order."""
    return column.take(rows) if isinstance(column, Ragged) else column[rows]


def join(parts: Sequence[Column]) -> Column:
    """Return columns of one kind, one after another."""
    if len(parts) == 1:
        return parts[0]
    if not all(isinstance(part, Ragged) for part in parts):
        return np.concatenate(parts)  # type: ignore[arg-type]
    ragged = [part for part in parts if isinstance(part, Ragged)]
    starts = np.cumsum([0, *(part.offsets[-1] for part in ragged)])
    offsets = [part.offsets[:-1] + start for part, start in zip(ragged, starts, strict=False)]
    return Ragged(np.concatenate([part.values for part in ragged]), np.concatenate([*offsets, starts[-1:]]))


def to_table(columns: Columns, features: Mapping[str, Feature], target: DatasetTarget) -> pa.Table:
    """Return the arrays as the Arrow table that is written to a shard."""
    schema = _schema(features, target)
    return pa.Table.from_arrays([_to_arrow(columns[f.name], f.type) for f in schema], schema=schema)


def from_table(table: pa.Table, features: Mapping[str, Feature], target: DatasetTarget) -> Columns:
    """Return a table read from a shard as arrays, without a copy where it has one chunk.

    Raises:
        KeyError: if a column is missing.
    """
    arrays = {name: _from_arrow(table.column(name)) for name in columns_of(features, target)}
    for name, feature in features.items():
        if isinstance(feature, ImageFeature) and feature.encoding == "raw":
            arrays[name] = arrays[name].reshape(-1, *feature.shape)  # type: ignore[union-attr]
    return arrays


def no_rows(features: Mapping[str, Feature], target: DatasetTarget) -> Columns:
    """Return the columns of a dataset without rows."""
    return from_table(_schema(features, target).empty_table(), features, target)


def columns_of(features: Mapping[str, Feature], target: DatasetTarget) -> list[str]:
    """Return the names of a dataset's columns."""
    return [*features] if isinstance(target, SeriesTarget) else [*features, TARGET]


def image_statistics(images_NCHW: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, on the 0..255 scale; 1 where it does not vary."""
    return level_statistics(count_levels(images_NCHW))


def count_levels(images_NCHW: Array) -> npt.NDArray[np.int64]:
    """Return how often each of the 256 levels occurs in each channel, [C, 256]; counts of parts may be added up."""
    channels = range(images_NCHW.shape[1])
    return np.stack([np.bincount(images_NCHW[:, channel].ravel(), minlength=256) for channel in channels])


def level_statistics(counts_CL: npt.NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, exact, from the counts of its levels; 1 for no deviation."""
    levels = np.arange(256.0)
    means, stds = [], []
    for counts in counts_CL:
        mean = float(counts @ levels / counts.sum())
        means.append(mean)
        stds.append(float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())) or 1.0)
    return tuple(means), tuple(stds)


def row_statistics(rows_ND: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each column; 1 where it does not vary."""
    std = rows_ND.std(0, dtype=np.float64)
    return tuple(rows_ND.mean(0, dtype=np.float64).tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


class RowStatistics:
    """Mean and standard deviation of each column of rows that come some at a time.

    The same bits come out however the rows are dealt into parts, as long as each part but the last one has a multiple
    of `block_rows`.
    """

    def __init__(self, columns: int) -> None:
        self.block_rows = max(1, _BLOCK_NUMBERS >> max(0, columns - 1).bit_length())
        self._rows = 0
        self._first_D: Array | None = None
        """Subtracted, so that sums of squares stay exact enough."""
        self._sums_2D = np.zeros((2, columns))

    def add(self, rows_ND: Array) -> None:
        """Count more rows."""
        if self._first_D is None:
            self._first_D = rows_ND[0].astype(np.float64)
        for start in range(0, len(rows_ND), self.block_rows):
            block_ND = rows_ND[start : start + self.block_rows] - self._first_D
            self._sums_2D += block_ND.sum(0), np.square(block_ND).sum(0)
        self._rows += len(rows_ND)

    def result(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each column; 1 where it does not vary."""
        assert self._first_D is not None, "rows were added"
        mean_D, squares_D = self._sums_2D / self._rows
        std_D = np.sqrt(np.maximum(squares_D - mean_D**2, 0))
        return tuple((self._first_D + mean_D).tolist()), tuple(np.where(std_D > 0, std_D, 1.0).tolist())


def number_target(values_N: Array) -> NumberTarget:
    """Return the target that the training split's numbers describe."""
    (mean,), (std,) = row_statistics(values_N[:, None])
    return NumberTarget(mean=mean, std=std, minimum=float(values_N.min()), maximum=float(values_N.max()))


def _schema(features: Mapping[str, Feature], target: DatasetTarget) -> pa.Schema:
    fields = [pa.field(name, _arrow_type(feature), nullable=False) for name, feature in features.items()]
    match target.kind:
        case "class":
            fields.append(pa.field(TARGET, pa.int64(), nullable=False))
        case "number":
            fields.append(pa.field(TARGET, pa.float32(), nullable=False))
        case "boxes":
            fields.append(pa.field(TARGET, pa.list_(_item(_numbers(BOX_NUMBERS))), nullable=False))
    return pa.schema(fields)


def _arrow_type(feature: Feature) -> pa.DataType:
    match feature.kind:
        case "image" if feature.encoding == "file":
            return pa.struct([pa.field("bytes", pa.binary(), nullable=False), pa.field("path", pa.string())])
        case "image":
            return pa.binary(int(np.prod(feature.shape)))
        case "vector":
            return _numbers(len(feature.names))
        case "series":
            return _numbers(len(feature.channels))
        case "categorical":
            return pa.int32()
        case "text":
            return pa.list_(_item(pa.int32()))
        case "audio":
            return pa.list_(_item(pa.int16()))
        case "sparse":
            columns = [pa.field("column", pa.int32(), nullable=False), pa.field("value", pa.float32(), nullable=False)]
            return pa.list_(_item(pa.struct(columns)))
    raise AssertionError(feature.kind)


def _item(arrow_type: pa.DataType) -> pa.Field:
    return pa.field("item", arrow_type, nullable=False)


def _numbers(count: int) -> pa.DataType:
    return pa.list_(_item(pa.float32()), count)


def _to_arrow(column: Column, arrow_type: pa.DataType) -> pa.Array:
    if isinstance(column, Ragged):
        return _ragged_to_arrow(column, arrow_type)
    array = np.ascontiguousarray(column)
    if pa.types.is_fixed_size_binary(arrow_type):
        return pa.FixedSizeBinaryArray.from_buffers(arrow_type, len(array), [None, pa.py_buffer(array)])
    if pa.types.is_fixed_size_list(arrow_type):
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), type=arrow_type)
    if pa.types.is_struct(arrow_type):
        names = [field.name for field in arrow_type]
        return pa.StructArray.from_arrays([pa.array(array[name].copy()) for name in names], fields=list(arrow_type))
    return pa.array(array, type=arrow_type)


def _ragged_to_arrow(column: Ragged, arrow_type: pa.DataType) -> pa.Array:
    offsets = column.offsets.astype(np.int32)
    if pa.types.is_struct(arrow_type):
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(column.values))]
        files = pa.Array.from_buffers(pa.binary(), len(column), buffers)
        return pa.StructArray.from_arrays([files, pa.nulls(len(column), pa.string())], fields=list(arrow_type))
    values = _to_arrow(column.values, arrow_type.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=arrow_type)


def _from_arrow(column: pa.ChunkedArray) -> Column:
    return _array_from_arrow(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks())


def _array_from_arrow(array: pa.Array) -> Column:
    if pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        flat = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width :]
        images: Array = flat[: len(array) * width].reshape(len(array), width)
        return images
    if pa.types.is_fixed_size_list(array.type):
        rows: Array = _values_from_arrow(array.flatten()).reshape(len(array), array.type.list_size)
        return rows
    if pa.types.is_struct(array.type):
        return _files_from_arrow(array.field("bytes"))
    if pa.types.is_list(array.type):
        return _list_from_arrow(array)
    return _values_from_arrow(array)


def _values_from_arrow(array: pa.Array) -> Array:
    """Return an array of numbers without a copy. Its own `to_numpy` imports pandas first, which takes 0.3 s."""
    dtype = _DTYPES[array.type]
    values: Array = np.frombuffer(array.buffers()[1] or b"", dtype)[array.offset : array.offset + len(array)]
    return values


def _files_from_arrow(files: pa.Array) -> Ragged:
    _, offsets, data = files.buffers()
    starts = np.frombuffer(offsets, np.int32)[files.offset : files.offset + len(files) + 1].astype(np.int64)
    values = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return Ragged(values[starts[0] : starts[-1]], starts - starts[0])


def _list_from_arrow(lists: pa.ListArray) -> Ragged:
    offsets = _values_from_arrow(lists.offsets).astype(np.int64)
    values = lists.values[int(offsets[0]) : int(offsets[-1])]
    if pa.types.is_struct(values.type):
        structs = np.empty(len(values), SPARSE)
        for name in ("column", "value"):
            structs[name] = _values_from_arrow(values.field(name))
        return Ragged(structs, offsets - offsets[0])
    items = _array_from_arrow(values)
    assert not isinstance(items, Ragged), "lists of lists are not written"
    return Ragged(items, offsets - offsets[0])

"""How each kind of feature and target lies in a Parquet column, and its statistics.

    kind                      array                    Parquet column
    image                     [N, C, H, W] uint8       fixed_size_binary[C*H*W]
    vector, series            [N, D] float32           fixed_size_list<float>[D]
    categorical               [N] int32                int32
    target: class · number    [N] int64 · float32      int64 · float

No column may hold nulls. A series is its own target and has no target column.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.features import TARGET, ClassTarget, Feature, ImageFeature, NumberTarget
from orchestrator.data.manifest import DatasetTarget, SeriesTarget

Array = npt.NDArray[Any]
Columns = dict[str, Array]


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
        if isinstance(feature, ImageFeature):
            arrays[name] = arrays[name].reshape(-1, *feature.shape)
    return arrays


def columns_of(features: Mapping[str, Feature], target: DatasetTarget) -> list[str]:
    """Return the names of a dataset's columns."""
    return [*features] if isinstance(target, SeriesTarget) else [*features, TARGET]


def image_statistics(images_NCHW: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, on the 0..255 scale; 1 where it does not vary."""
    levels = np.arange(256.0)
    means, stds = [], []
    for channel in range(images_NCHW.shape[1]):
        counts = np.bincount(images_NCHW[:, channel].ravel(), minlength=256)  # exact, in one pass
        mean = float(counts @ levels / counts.sum())
        means.append(mean)
        stds.append(float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())) or 1.0)
    return tuple(means), tuple(stds)


def row_statistics(rows_ND: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each column; 1 where it does not vary."""
    std = rows_ND.std(0, dtype=np.float64)
    return tuple(rows_ND.mean(0, dtype=np.float64).tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def number_target(values_N: Array) -> NumberTarget:
    """Return the target that the training split's numbers describe."""
    (mean,), (std,) = row_statistics(values_N[:, None])
    return NumberTarget(mean=mean, std=std, minimum=float(values_N.min()), maximum=float(values_N.max()))


def _schema(features: Mapping[str, Feature], target: DatasetTarget) -> pa.Schema:
    fields = [pa.field(name, _arrow_type(feature), nullable=False) for name, feature in features.items()]
    if isinstance(target, ClassTarget):
        fields.append(pa.field(TARGET, pa.int64(), nullable=False))
    elif isinstance(target, NumberTarget):
        fields.append(pa.field(TARGET, pa.float32(), nullable=False))
    return pa.schema(fields)


def _arrow_type(feature: Feature) -> pa.DataType:
    match feature.kind:
        case "image":
            return pa.binary(int(np.prod(feature.shape)))
        case "vector":
            return pa.list_(pa.field("item", pa.float32(), nullable=False), len(feature.names))
        case "series":
            return pa.list_(pa.field("item", pa.float32(), nullable=False), len(feature.channels))
        case "categorical":
            return pa.int32()


def _to_arrow(array: Array, arrow_type: pa.DataType) -> pa.Array:
    array = np.ascontiguousarray(array)
    if pa.types.is_fixed_size_binary(arrow_type):
        return pa.FixedSizeBinaryArray.from_buffers(arrow_type, len(array), [None, pa.py_buffer(array)])
    if pa.types.is_fixed_size_list(arrow_type):
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), type=arrow_type)
    return pa.array(array, type=arrow_type)


def _from_arrow(column: pa.ChunkedArray) -> Array:
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        flat = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width :]
        images: Array = flat[: len(array) * width].reshape(len(array), width)
        return images
    if pa.types.is_fixed_size_list(array.type):
        rows: Array = array.flatten().to_numpy(zero_copy_only=True).reshape(len(array), array.type.list_size)
        return rows
    values: Array = array.to_numpy(zero_copy_only=True)
    return values

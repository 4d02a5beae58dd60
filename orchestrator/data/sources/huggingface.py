"""Pictures in Parquet, as Hugging Face writes them: `img` or `image` of {bytes, path}, and `label`."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from cluster.errors import ConfigError
from models.features import TARGET, ClassTarget, ImageFeature
from orchestrator.data.columns import Array, image_statistics
from orchestrator.data.manifest import Source
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import as_name, require_rows

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905

_DECODE_THREADS = 4


def read_huggingface_images(source: str, options: SourceOptions) -> Prepared:
    """Read the Parquet files of a Hugging Face picture dataset and decode the pictures to raw bytes."""
    only(options, "huggingface-images", "classes")
    files = _parquet_files(Path(source))
    tables = {split: [(path, _read_parquet(path)) for path in paths] for split, paths in files.items()}
    columns = {split: _join([_decode_table(path, table) for path, table in parts]) for split, parts in tables.items()}
    _check_same_shape({split: images.shape[1:] for split, (images, _) in columns.items()}, source)
    classes = _class_names(options, [table for parts in tables.values() for _, table in parts])
    classes = classes or _numbered_classes(np.concatenate([labels for _, labels in columns.values()]), source)
    for path, table in (part for parts in tables.values() for part in parts):
        _check_labels(_labels(path, table), len(classes), path)
    images_NCHW = columns["train"][0]
    mean, std = image_statistics(images_NCHW)
    _, C, H, W = images_NCHW.shape
    return Prepared(
        name=as_name(Path(source).stem if Path(source).is_file() else Path(source).resolve().name),
        features={"image": ImageFeature(shape=(C, H, W), mean=mean, std=std)},
        target=ClassTarget(classes=classes),
        splits={split: Part.of({"image": x, TARGET: y}) for split, (x, y) in columns.items()},
        source=Source(format="huggingface-images", uri=source),
    )


def _parquet_files(path: Path) -> dict[str, list[Path]]:
    """Return the files of each split, by the word before the first '-' of their names."""
    if path.is_file():
        raise ConfigError(
            f"source must be a folder with train-*.parquet and test-*.parquet, got the file {path}. "
            "Give the folder that holds it."
        )
    found = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    files: dict[str, list[Path]] = {}
    for file in found:
        files.setdefault(file.name.split("-")[0].removesuffix(".parquet"), []).append(file)
    unknown = files.keys() - {"train", "validation", "test"}
    if unknown or not {"train", "test"} <= files.keys():
        names = ", ".join(file.name for file in found) or "no Parquet file"
        raise ConfigError(
            f"{path} must hold files named train-*.parquet and test-*.parquet (validation-*.parquet if there is "
            f"one), got {names}. Rename them."
        )
    return {split: files[split] for split in ("train", "validation", "test") if split in files}


def _read_parquet(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path} must be a Parquet file, got {error}. Download it again.") from error
    require_rows(table.num_rows, path)
    if _image_name(table) is None or "label" not in table.column_names:
        raise ConfigError(
            f"{path} must have a column 'img' or 'image' of {{bytes, path}} and a column 'label', "
            f"got {', '.join(f'{f.name}: {f.type}' for f in table.schema)}."
        )
    return table


def _image_name(table: pa.Table) -> str | None:
    for name in ("img", "image"):
        if name in table.column_names and pa.types.is_struct(table.schema.field(name).type):
            return name
    return None


def _decode_table(path: Path, table: pa.Table) -> tuple[Array, Array]:
    """Return the pictures [N, C, H, W] and labels [N] of one file."""
    encoded = table.column(_image_name(table)).combine_chunks().field("bytes")
    first = _decode(encoded[0].as_py(), path, 0)
    images_NHWC = np.empty((len(encoded), *first.shape), np.uint8)

    def decode_range(rows: range) -> None:
        for row in rows:
            image = _decode(encoded[row].as_py(), path, row)
            if image.shape != first.shape:
                raise ConfigError(
                    f"{path} must hold pictures of one size, got {_size(image.shape)} in row {row} and "
                    f"{_size(first.shape)} in row 0. Resize them to one size first."
                )
            images_NHWC[row] = image

    with ThreadPoolExecutor(_DECODE_THREADS) as pool:  # pillow decodes without holding the interpreter's lock
        list(pool.map(decode_range, _ranges(len(encoded), 256)))
    return np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)), _labels(path, table)


def _decode(encoded: bytes | None, path: Path, row: int) -> Array:
    try:
        image = Image.open(io.BytesIO(encoded or b""))
        pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"{path} must hold a picture in row {row}, got {error}. Remove the row.") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _labels(path: Path, table: pa.Table) -> Array:
    column = table.column("label")
    if not pa.types.is_integer(column.type):
        raise ConfigError(f"label in {path} must be a whole number, got type {column.type}.")
    if column.null_count:
        row = column.is_null().to_numpy().argmax()
        raise ConfigError(f"label in {path} must be given, got nothing in row {row}. Remove the row.")
    labels: Array = column.to_numpy().astype(np.int64)
    return labels


def _check_labels(labels: Array, num_classes: int, path: Path) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ConfigError(
            f"label in {path} must be in 0..{num_classes - 1}, got {labels[wrong[0]]} in row {wrong[0]}. "
            "Correct it, or name all classes."
        )


def _class_names(options: SourceOptions, tables: Iterable[pa.Table]) -> tuple[str, ...] | None:
    """Return the names given by the person or by Hugging Face's metadata."""
    if options.classes:
        return CIFAR10_CLASSES if options.classes == ("cifar10",) else options.classes
    for table in tables:
        metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = metadata.get("info", {}).get("features", {}).get("label", {}).get("names")
        if names:
            return tuple(names)
    return None


def _numbered_classes(labels: Array, source: str) -> tuple[str, ...]:
    present = np.unique(labels[labels >= 0])
    missing = np.flatnonzero(present != np.arange(len(present)))
    if len(missing):
        raise ConfigError(
            f"label in {source} must take every value from 0 to {present[-1]} if the classes have no names, got "
            f"none of {missing[0]}. Correct the labels, or name all classes."
        )
    return tuple(str(i) for i in range(len(present)))


def _check_same_shape(shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{_size((h, w, c))} in {split}" for split, (c, h, w) in shapes.items())
        raise ConfigError(f"{source} must hold pictures of one size, got {found}. Resize them to one size first.")


def _join(parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    _check_same_shape({str(i): images.shape[1:] for i, (images, _) in enumerate(parts)}, "a split")
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _size(shape_HWC: tuple[int, ...]) -> str:
    height, width, channels = shape_HWC
    return f"{width}x{height} with {channels} channel{'s' * (channels > 1)}"


def _ranges(count: int, step: int) -> Iterator[range]:
    return (range(start, min(start + step, count)) for start in range(0, count, step))

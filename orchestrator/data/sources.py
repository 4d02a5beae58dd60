"""Readers of the data that people have; each returns the columns of every split, checked.

    format              source                                                          task
    huggingface-images  folder of train-*.parquet, test-*.parquet with pictures         classes
    ratings             TSV of user, item, rating, timestamp (MovieLens `u.data`)       a number
    series              CSV of a date and numeric columns (ETT)                         a forecast
    bundle              sklearn:digits · sklearn:china · statsmodels:elnino             each its own

`sklearn:china` is the pixels of a photo, half of them missing: a factorization machine restores them.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cluster.errors import ConfigError, NotFoundError
from models.counters import counter_key
from models.features import (
    TARGET,
    CategoricalFeature,
    ClassTarget,
    Feature,
    ImageFeature,
    SeriesFeature,
)
from orchestrator.data.columns import Array, Columns, image_statistics, number_target, row_statistics
from orchestrator.data.manifest import DatasetTarget, SeriesTarget, Source
from orchestrator.data.order import Ints, permutation

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905

PHOTO_SIDE = 96

_CONTEXT_ROWS = 720  # the longest lookback of the published ETT experiments
_DECODE_THREADS = 4
_SPLIT_KEY = 101  # first word of the key, so that splitting shares no random numbers with the sample order


class SourceOptions(BaseModel):
    """What a person may say about a source; each option belongs to some formats only."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    classes: tuple[str, ...] | None = None
    """Pictures: name of class 0, 1, ...; `cifar10` alone stands for its ten."""
    split_sizes: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    """Series: rows of train, validation and test; what is left over is not used. Default: 70, 10 and 20 %."""
    side: Annotated[int, Field(ge=16, le=512)] | None = None
    """Photo: pixels of its side. Default: `PHOTO_SIDE`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Where a split is drawn at random. Default: 0."""

    @field_validator("classes", mode="before")
    @classmethod
    def _one_word_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class Part:
    """One split: arrays of equal length, as in `orchestrator/data/columns.py`."""

    columns: Columns
    context_rows: int = 0
    """Series only: leading rows that belong to the split before."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))


@dataclass(frozen=True)
class Prepared:
    """A source in the form in which it is written; statistics and vocabularies come from its training split."""

    name: str
    """A name for the dataset, if the person gives none."""
    features: Mapping[str, Feature]
    target: DatasetTarget
    splits: Mapping[str, Part]
    source: Source


def prepare(source: str, *, format: str | None = None, options: SourceOptions | None = None) -> Prepared:
    """Read and check a source.

    Args:
        source: a file, a folder, or the name of a bundled dataset.
        format: one of `FORMATS`; found out from the source when left out.
        options: what the person says about it.

    Raises:
        ConfigError: if the source is malformed (names the file and the row), or an option does not belong to it.
        NotFoundError: if there is no such file.
    """
    options = options or SourceOptions()
    format = format or _detect(source)
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if format != "bundle" and not Path(source).exists():
        raise NotFoundError(
            f"source must be a file, a folder or one of {', '.join(BUNDLES)}, got {source!r}, which does not exist."
        )
    return FORMATS[format](source, options)


def parse_options(values: Mapping[str, object]) -> SourceOptions:
    """Return the options that a person typed.

    Raises:
        ConfigError: if there is no such option, or its value does not fit.
    """
    try:
        return SourceOptions.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0] if first["loc"] else "options"
        if first["type"] == "extra_forbidden":
            known = ", ".join(SourceOptions.model_fields)
            raise ConfigError(f"option must be one of {known}, got {name!r}.") from error
        raise ConfigError(f"option {name} must fit: {first['msg']}, got {first['input']!r}.") from error


def read_huggingface_images(source: str, options: SourceOptions) -> Prepared:
    """Read the Parquet files of a Hugging Face picture dataset and decode the pictures to raw bytes."""
    _only(options, "huggingface-images", "classes")
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
        name=_as_name(Path(source).stem if Path(source).is_file() else Path(source).resolve().name),
        features={"image": ImageFeature(shape=(C, H, W), mean=mean, std=std)},
        target=ClassTarget(classes=classes),
        splits={split: Part({"image": x, TARGET: y}) for split, (x, y) in columns.items()},
        source=Source(format="huggingface-images", uri=source),
    )


def read_ratings(source: str, options: SourceOptions) -> Prepared:
    """Read a TSV of ratings, and hold 10 % of them, drawn at random, back as the test split."""
    _only(options, "ratings", "seed")
    path = Path(source)
    users, items, ratings = _parse_ratings(path)
    order = permutation(len(ratings), key=counter_key(_SPLIT_KEY, options.seed or 0))
    cut = len(ratings) - max(1, len(ratings) // 10)
    rows = {"train": np.sort(order[:cut]), "test": np.sort(order[cut:])}
    features = {
        "user": _categorical(np.array(users)[rows["train"]]),
        "item": _categorical(np.array(items)[rows["train"]]),
    }
    columns = {
        "user": _indices(users, features["user"]),
        "item": _indices(items, features["item"]),
        TARGET: np.array(ratings, np.float32),
    }
    return Prepared(
        name=_as_name(path.resolve().parent.name if path.name == "u.data" else path.stem),  # MovieLens
        features=features,
        target=number_target(columns[TARGET][rows["train"]]),
        splits={split: Part({k: v[chosen] for k, v in columns.items()}) for split, chosen in rows.items()},
        source=Source(format="ratings", uri=source),
    )


def read_series(source: str, options: SourceOptions) -> Prepared:
    """Read a CSV of a date and numeric columns, and cut it by time into train, validation and test."""
    _only(options, "series", "split_sizes")
    path = Path(source)
    names, rows_TC = _parse_series(path)
    return _series(
        rows_TC,
        names,
        sizes=options.split_sizes,
        name=_as_name(path.stem),
        source=Source(format="series", uri=source),
    )


def read_bundle(source: str, options: SourceOptions) -> Prepared:
    """Return a dataset that an installed library brings along."""
    if source not in BUNDLES:
        raise ConfigError(f"source must be one of {', '.join(BUNDLES)} for format bundle, got {source!r}.")
    return BUNDLES[source](source, options)


PIXEL_CELLS: Mapping[str, tuple[int, int]] = {"cell_a": (0, 0), "cell_b": (1, 2), "cell_c": (2, 1), "cell_d": (3, 3)}
"""How far down and to the right the grid of each field's cells is shifted."""

_CELL_SIDE = 4


def pixel_fields(side: int) -> dict[str, Ints]:
    """Return the fields that tell a factorization machine where a value of a photo is, in row, column, channel order.

    Four grids of cells, 4x4 pixels each and shifted against each other: the pixels that share cells with a missing
    one are those around it, the nearest share most. With half of a photo missing this restores 22 dB PSNR of
    `sklearn:china`, against 19.4 dB for the fields row, column, channel and 9.7 dB for the mean colour.
    """
    row, column, channel = (axis.ravel() for axis in np.mgrid[:side, :side, :3])
    fields = {"channel": channel}
    for name, (down, right) in PIXEL_CELLS.items():
        fields[name] = (row + down) // _CELL_SIDE * side + (column + right) // _CELL_SIDE
    return fields


def china_photo(side: int) -> npt.NDArray[np.uint8]:
    """Return scikit-learn's photo of a Chinese palace, scaled to [side, side, 3]."""
    from sklearn.datasets import load_sample_image

    photo = Image.fromarray(load_sample_image("china.jpg"))
    return np.asarray(photo.resize((side, side), Image.Resampling.LANCZOS))


def split_pixels(side: int, *, seed: int) -> tuple[Ints, Ints]:
    """Return the numbers (row * side + column) of the known half of a photo's pixels, and of the lost half."""
    order = permutation(side * side, key=counter_key(_SPLIT_KEY, seed))
    half = len(order) // 2
    return np.sort(order[:half]), np.sort(order[half:])


def _digits(source: str, options: SourceOptions) -> Prepared:
    from sklearn.datasets import load_digits

    _only(options, source, "seed")
    digits = load_digits()
    # 0..16 becomes 0..255
    images_NCHW = np.rint(digits.images * 15.9375).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train, test = _stratified(labels, test_share=0.2, seed=options.seed or 0)
    mean, std = image_statistics(images_NCHW[train])
    return Prepared(
        name="digits",
        features={"image": ImageFeature(shape=(1, 8, 8), mean=mean, std=std)},
        target=ClassTarget(classes=tuple(str(i) for i in range(10))),
        splits={
            split: Part({"image": images_NCHW[rows], TARGET: labels[rows]})
            for split, rows in {"train": train, "test": test}.items()
        },
        source=Source(format="bundle", uri=source, licence="CC BY 4.0 (UCI, Alpaydin and Kaynak 1998)"),
    )


def _china(source: str, options: SourceOptions) -> Prepared:
    _only(options, source, "side", "seed")
    side = options.side or PHOTO_SIDE
    known, lost = split_pixels(side, seed=options.seed or 0)
    # A pixel is missing with all its channels.
    rows = {"train": (known[:, None] * 3 + np.arange(3)).ravel(), "test": (lost[:, None] * 3 + np.arange(3)).ravel()}
    values = china_photo(side).astype(np.float32).ravel()
    fields = {name: ids.astype(np.str_) for name, ids in pixel_fields(side).items()}
    features = {name: _categorical(ids[rows["train"]]) for name, ids in fields.items()}
    columns = {name: _indices(ids, features[name]) for name, ids in fields.items()} | {TARGET: values}
    return Prepared(
        name="china",
        features=features,
        target=number_target(values[rows["train"]]),
        splits={split: Part({k: v[chosen] for k, v in columns.items()}) for split, chosen in rows.items()},
        source=Source(format="bundle", uri=source, licence="CC BY (scikit-learn's china.jpg)"),
    )


def _elnino(source: str, options: SourceOptions) -> Prepared:
    from statsmodels.datasets import elnino

    _only(options, source, "split_sizes")
    months = elnino.load_pandas().data.drop(columns="YEAR").to_numpy(np.float32)
    return _series(
        months.reshape(-1, 1),
        ["temperature"],
        sizes=options.split_sizes,
        name="elnino",
        source=Source(format="bundle", uri=source, licence="public domain (NOAA)"),
    )


FORMATS: Mapping[str, Callable[[str, SourceOptions], Prepared]] = {
    "huggingface-images": read_huggingface_images,
    "ratings": read_ratings,
    "series": read_series,
    "bundle": read_bundle,
}

BUNDLES: Mapping[str, Callable[[str, SourceOptions], Prepared]] = {
    "sklearn:digits": _digits,
    "sklearn:china": _china,
    "statsmodels:elnino": _elnino,
}


def _detect(source: str) -> str:
    path = Path(source)
    if source in BUNDLES:
        return "bundle"
    if path.is_dir() or path.suffix == ".parquet":
        return "huggingface-images"
    if path.suffix in (".data", ".tsv"):
        return "ratings"
    if path.suffix == ".csv":
        return "series"
    raise ConfigError(
        f"source must be a folder, a .parquet, .csv, .tsv or .data file, or one of {', '.join(BUNDLES)}, "
        f"got {source!r}. Or name its format: {', '.join(FORMATS)}."
    )


def _only(options: SourceOptions, format: str, *allowed: str) -> None:
    for name, value in options.model_dump(exclude_none=True).items():
        if name not in allowed:
            raise ConfigError(f"{name} must be left out for {format}, which has no such option, got {value}.")


def _as_name(text: str) -> str:
    cleaned = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")
    return cleaned[:63] or "dataset"


def _require_rows(count: int, path: Path, *, least: int = 1) -> None:
    if count < least:
        raise ConfigError(f"{path} must hold at least {least} row{'s' * (least > 1)}, got {count}.")


# --- pictures -------------------------------------------------------------------------------------------------


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
    _require_rows(table.num_rows, path)
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


def _stratified(labels: Array, *, test_share: float, seed: int) -> tuple[Ints, Ints]:
    """Return the rows of train and test, with the same share of every class in both, as near as can be."""
    test = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = permutation(len(rows), key=counter_key(_SPLIT_KEY, seed, int(label)))
        test.append(rows[order[: round(len(rows) * test_share)]])
    test_rows = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), test_rows), test_rows


# --- ratings and other categories -----------------------------------------------------------------------------


def _parse_ratings(path: Path) -> tuple[list[str], list[str], list[float]]:
    users, items, ratings = [], [], []
    rows: dict[tuple[str, str], int] = {}
    for row, fields in _lines(path, delimiter="\t"):
        if row == 1 and "rating" in fields:
            continue
        if len(fields) not in (3, 4):
            raise ConfigError(
                f"{path} must have user, item, rating and timestamp, separated by tabs, got {len(fields)} fields "
                f"in row {row}."
            )
        user, item = fields[:2]
        if (user, item) in rows:
            raise ConfigError(
                f"{path} must rate each item once per user, got user {user} and item {item} in rows "
                f"{rows[user, item]} and {row}. Remove one: a copy in the test split would be known from training."
            )
        rows[user, item] = row
        users.append(user)
        items.append(item)
        ratings.append(_number(fields[2], "rating", path, row))
    _require_rows(len(ratings), path, least=2)
    return users, items, ratings


def _lines(path: Path, *, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a delimited file that are not empty, with their numbers, counted from 1."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row, fields in enumerate(csv.reader(file, delimiter=delimiter), start=1):
                if fields:
                    yield row, fields
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} must be a text file in UTF-8, got {error}. Convert it.") from error


def _number(text: str, name: str, path: Path, row: int) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise ConfigError(f"{name} in {path} must be a finite number, got {text!r} in row {row}.")
    return number


def _categorical(values: npt.NDArray[np.str_]) -> CategoricalFeature:
    """Return the feature whose vocabulary is the values of the training split; numbers in their own order."""
    words = np.unique(values).tolist()
    return CategoricalFeature(
        vocabulary=tuple(sorted(words, key=lambda w: (not w.isdecimal(), int(w) if w.isdecimal() else 0, w)))
    )


def _indices(values: Iterable[str], feature: CategoricalFeature) -> Array:
    index = {word: i for i, word in enumerate(feature.vocabulary, start=1)}
    return np.array([index.get(str(value), 0) for value in values], np.int32)


# --- series ---------------------------------------------------------------------------------------------------


def _parse_series(path: Path) -> tuple[list[str], Array]:
    """Return the names of the numeric columns and their values [T, C]."""
    lines = _lines(path, delimiter=",")
    _, header = next(lines, (0, []))
    _require_rows(len(header), path)
    if len(header) < 2 or _date(header[0]) is not None:
        raise ConfigError(
            f"{path} must begin with a header: a date column and at least one numeric one, got {','.join(header)!r}."
        )
    names, rows = header[1:], []
    dates: list[datetime] = []
    if len(set(names)) < len(names):
        raise ConfigError(f"{path} must name each column once, got {','.join(names)!r}.")
    for row, fields in lines:
        if len(fields) != len(header):
            raise ConfigError(f"{path} must have {len(header)} fields, got {len(fields)} in row {row}.")
        date = _date(fields[0])
        if date is None:
            raise ConfigError(f"{header[0]} in {path} must be an ISO 8601 date, got {fields[0]!r} in row {row}.")
        if dates and not date > dates[-1]:
            raise ConfigError(
                f"{header[0]} in {path} must increase, got {fields[0]} in row {row} after {dates[-1]}. Sort the rows "
                "by time and remove copies."
            )
        dates.append(date)
        rows.append([_number(text, name, path, row) for name, text in zip(names, fields[1:], strict=True)])
    _require_rows(len(rows), path, least=10)
    return names, np.array(rows, np.float32)


def _date(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        return None


def _series(
    rows_TC: Array, names: Sequence[str], *, sizes: tuple[int, ...] | None, name: str, source: Source
) -> Prepared:
    """Cut a series by time; validation and test begin with rows of the split before, to look back on."""
    edges = [0, *np.cumsum(sizes or _shares(len(rows_TC))).tolist()]
    if len(edges) != 4 or edges[-1] > len(rows_TC):
        raise ConfigError(
            f"split_sizes must be three numbers that sum to at most the {len(rows_TC)} rows of {source.uri}, "
            f"got {', '.join(map(str, sizes or ()))}."
        )
    splits = {}
    for split, (start, stop) in zip(("train", "validation", "test"), pairwise(edges), strict=True):
        context = min(start, _CONTEXT_ROWS)
        splits[split] = Part({"series": rows_TC[start - context : stop]}, context_rows=context)
    mean, std = row_statistics(splits["train"].columns["series"])
    return Prepared(
        name=name,
        features={"series": SeriesFeature(channels=tuple(names), mean=mean, std=std)},
        target=SeriesTarget(),
        splits=splits,
        source=source,
    )


def _shares(count: int) -> tuple[int, int, int]:
    train, test = count * 7 // 10, count * 2 // 10
    return train, count - train - test, test

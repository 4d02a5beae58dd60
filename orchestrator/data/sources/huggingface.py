"""Pictures in Parquet, as Hugging Face writes them: `img` or `image` of {bytes, path}, and a label.

A label is a whole number, whose names are in the file's metadata if not given, or a text. Its column is `label`, or
else `fine_label` (CIFAR-100), or the one that option `target` names. The pictures are in the files: `path` is not read.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.errors import ConfigError
from cluster.machine.files import most_unpacked_bytes
from cluster.s3.store import Store
from cluster.s3.stored_json import require_bounded
from models.features import TARGET, ClassTarget, ImageFeature
from orchestrator.data.columns import Array, Columns
from orchestrator.data.manifest import Source
from orchestrator.data.sources.classes import (
    check_class_names,
    check_labels,
    numbered_classes,
)
from orchestrator.data.sources.files import Bucket, Files, Folder
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.picture_files import (
    SPLIT_NAMES,
    cut_into_pieces,
    default_name,
    list_files,
    path_of,
    with_test_split,
)
from orchestrator.data.sources.pictures import Header as Look
from orchestrator.data.sources.pictures import choose_form, look_at_some, picture_column
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.splitting import consecutive, require_classes

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905

_PICTURE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
_LOOKS = 256  # the first pictures of each file that are looked at, out of at most _LOOKED_AT files of a split
_LOOKED_AT = 4


def read_huggingface_images(source: str, options: SourceOptions) -> Prepared:
    """Read the Parquet files of a Hugging Face picture dataset: now the labels, later the pictures."""
    only(options, "huggingface-images", "classes", "target", "encoding", "side")
    files, sizes = list_files(source)
    splits = {
        split: [_read_footer(files, name, sizes[name], options.target) for name in names]
        for split, names in _split_names(files, sizes).items()
    }
    everything = [file for split in splits.values() for file in split]
    classes = _classes(everything, splits["train"], options)
    for file in everything:
        _check_labels(file, classes)
    labels = np.concatenate([_numbers(file.labels, classes) for file in everything])
    counts = {split: sum(len(file.labels) for file in found) for split, found in splits.items()}
    require_classes(labels, classes, consecutive(counts), files.uri)
    feature = choose_form([look for split in splits.values() for look in _looks(split)], options)
    return Prepared(
        name=default_name(files),
        features={"image": feature},
        target=ClassTarget(classes=classes),
        splits={
            split: Part(tuple(piece for file in found for piece in _pieces(file, classes, feature)))
            for split, found in splits.items()
        },
        source=Source(format="huggingface-images", uri=source),
    )


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file with pictures, by its footer and its labels."""

    files: Files
    name: str
    bytes: int
    picture_column: str
    label_column: str
    class_names: tuple[str, ...] | None
    """From the metadata that Hugging Face writes."""
    row_groups: tuple[tuple[int, int], ...]
    """Rows and bytes of each."""
    labels: pa.ChunkedArray

    @property
    def place(self) -> str:
        """As messages call it."""
        return path_of(self.files, self.name)


@dataclass(frozen=True)
class ParquetPiece:
    """Some row groups of a file that follow each other."""

    files: Files
    name: str
    file_bytes: int
    row_groups: tuple[int, ...]
    first_row: int
    rows: int
    source_bytes: int
    picture_column: str
    label_column: str
    classes: tuple[str, ...]
    feature: ImageFeature

    def read(self) -> Columns:
        """Return the pictures and their labels."""
        place = path_of(self.files, self.name)
        columns = [f"{self.picture_column}.bytes", self.label_column]
        with _opened(self.files, self.name, self.file_bytes) as file:
            table = file.read_row_groups(list(self.row_groups), columns)
        encoded = table.column(self.picture_column).combine_chunks().field("bytes")
        pictures = picture_column(
            self.rows,
            read=lambda row: encoded[row].as_py(),
            where=lambda row: f"row {self.first_row + row} of {place}",
            feature=self.feature,
        )
        return {"image": pictures, TARGET: _numbers(table.column(self.label_column), self.classes)}


def _pieces(file: ParquetFile, classes: tuple[str, ...], feature: ImageFeature) -> Iterator[ParquetPiece]:
    starts = np.cumsum([0, *(rows for rows, _ in file.row_groups)]).tolist()
    sizes = [num_bytes for _, num_bytes in file.row_groups]
    for run in cut_into_pieces(sizes):
        yield ParquetPiece(
            file.files,
            file.name,
            file.bytes,
            row_groups=tuple(range(len(sizes))[run]),
            first_row=starts[run.start],
            rows=starts[run.stop] - starts[run.start],
            source_bytes=sum(sizes[run]),
            picture_column=file.picture_column,
            label_column=file.label_column,
            classes=classes,
            feature=feature,
        )


def _split_names(files: Files, sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the files of each split, by the word before the first '-' of their names."""
    found = [PurePosixPath(name) for name in sizes if name.endswith(".parquet")]
    folders = sorted({str(name.parent) for name in found})
    if len(folders) > 1:
        raise ConfigError(
            f"{files.uri} must hold Parquet files in one folder, got some in {' and '.join(folders[:3])}. Give "
            "one of them."
        )
    splits: dict[str, list[str]] = {}
    for name in found:
        word = name.name.removesuffix(".parquet").split("-")[0]
        splits.setdefault(SPLIT_NAMES.get(word.lower(), word), []).append(str(name))
    complete = with_test_split(splits)
    if splits.keys() - {*SPLIT_NAMES.values()} or not {"train", "test"} <= complete.keys():
        names = ", ".join(name.name for name in found[:5]) or "no Parquet file"
        raise ConfigError(
            f"{files.uri} must hold files named train-*.parquet and test-*.parquet (validation-*.parquet if there is "
            f"one), got {names}. Rename them."
        )
    return complete


def _read_footer(files: Files, name: str, num_bytes: int, target: str | None) -> ParquetFile:
    """Read the footer and the labels of a file."""
    place = path_of(files, name)
    with _opened(files, name, num_bytes) as file:
        schema, metadata = file.schema_arrow, file.metadata
        pictures, labels = _column_names(schema, target, place)
        if not metadata.num_rows:
            raise ConfigError(f"{place} must hold at least 1 row, got 0. Remove it.")
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        _refuse_bomb(metadata.num_rows, sum(group.total_byte_size for group in groups), num_bytes, place)
        return ParquetFile(
            files,
            name,
            num_bytes,
            picture_column=pictures,
            label_column=labels,
            class_names=_names_in_metadata(schema, labels, place),
            row_groups=tuple((group.num_rows, group.total_byte_size) for group in groups),
            labels=file.read([labels]).column(labels),
        )


def _refuse_bomb(rows: int, unpacked_bytes: int, num_bytes: int, place: str) -> None:
    """Refuse a file that says of itself that it becomes far more than it is: pictures hardly shrink."""
    most_bytes = most_unpacked_bytes(num_bytes)
    if rows > num_bytes or unpacked_bytes > most_bytes:
        raise ConfigError(
            f"{place} must hold a byte or more of each row and unpack to at most {most_bytes:,} bytes, got "
            f"{num_bytes:,} bytes for {rows:,} rows and {unpacked_bytes:,} bytes. Do not trust it."
        )


def _column_names(schema: pa.Schema, target: str | None, place: str) -> tuple[str, str]:
    pictures = next((name for name in _PICTURE_COLUMNS if _holds_pictures(schema, name)), None)
    labels = next((name for name in ([target] if target else _LABEL_COLUMNS) if name in schema.names), None)
    if pictures is None or labels is None:
        raise ConfigError(
            f"{place} must have a column 'img' or 'image' of {{bytes, path}} and a column {target or 'label'!r}, got "
            f"{', '.join(f'{field.name}: {field.type}' for field in schema)}. Rename them."
        )
    return pictures, labels


def _holds_pictures(schema: pa.Schema, name: str) -> bool:
    if name not in schema.names or not pa.types.is_struct(schema.field(name).type):
        return False
    fields = {field.name: field.type for field in schema.field(name).type}
    content = fields.get("bytes", pa.null())
    return bool(pa.types.is_binary(content) or pa.types.is_large_binary(content))


def _names_in_metadata(schema: pa.Schema, column: str, place: str) -> tuple[str, ...] | None:
    """Return the names of the classes that Hugging Face has written into the file, if any."""
    try:
        body = (schema.metadata or {}).get(b"huggingface", b"{}")
        require_bounded(body)
        metadata = json.loads(body.decode("utf-8"))
        names = metadata["info"]["features"][column]["names"]
    except (KeyError, TypeError):
        return None
    except ValueError as error:
        raise ConfigError(f"the metadata 'huggingface' of {place} must be JSON, got {error}. Remove them.") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"the names of {column} in {place} must be a list of texts, got {repr(names)[:60]}. Remove them."
        )
    check_class_names(names, place)
    return tuple(names)


def _classes(files: Sequence[ParquetFile], training: Sequence[ParquetFile], options: SourceOptions) -> tuple[str, ...]:
    """Return the names that the person gives, or that the files have, or the labels themselves."""
    place = files[0].files.uri
    kinds = {_kind_of_labels(file) for file in files}
    named = {file.class_names for file in files if file.class_names}
    if len(kinds) > 1 or len(named) > 1:
        raise ConfigError(f"all files of {place} must have the same classes, got different ones. Write them anew.")
    if options.classes:
        check_class_names(options.classes, "option classes")
        return CIFAR10_CLASSES if options.classes == ("cifar10",) else options.classes
    if named:
        return named.pop()
    if kinds == {"text"}:
        found = sorted({label for file in training for label in file.labels.unique().to_pylist()})
        check_class_names(found, place)
        return tuple(found)
    return numbered_classes(np.concatenate([_numbers(file.labels, ()) for file in files]), place)


def _kind_of_labels(file: ParquetFile) -> str:
    """Return "text" or "number", after a look for labels that are neither or missing."""
    kind, column = file.labels.type, f"{file.label_column} in {file.place}"
    if file.labels.null_count:
        row = file.labels.is_null().to_numpy().argmax()
        raise ConfigError(f"{column} must be given, got nothing in row {row}. Remove the row.")
    if pa.types.is_integer(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    raise ConfigError(
        f"{column} must be a whole number or a text, got type {kind}. Name another column in option target."
    )


def _check_labels(file: ParquetFile, classes: tuple[str, ...]) -> None:
    numbers = _numbers(file.labels, classes)
    missing = np.flatnonzero(numbers < 0)
    if _kind_of_labels(file) == "text" and len(missing):
        row = int(missing[0])
        raise ConfigError(
            f"{file.label_column} in {file.place} must be a class of the training split, got "
            f"{file.labels[row].as_py()!r} in row {row}. Remove the row, or train on the class too."
        )
    check_labels(numbers, len(classes), lambda row: f"row {row} of {file.place}")


def _numbers(labels: pa.ChunkedArray, classes: Sequence[str]) -> Array:
    """Return labels as numbers; -1 for a text that is no class."""
    if pa.types.is_integer(labels.type):
        numbers: Array = labels.to_numpy()
    else:
        numbers = pc.fill_null(pc.index_in(labels, pa.array(classes, labels.type)), -1).to_numpy()
    return numbers.astype(np.int64)


def _looks(files: Sequence[ParquetFile]) -> list[Look]:
    """Look at the first pictures of some files, evenly spread over all."""
    chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), _LOOKED_AT)).astype(int))
    return [look for number in chosen for look in _first_looks(files[number])]


def _first_looks(file: ParquetFile) -> list[Look]:
    with _opened(file.files, file.name, file.bytes) as opened:
        batch = next(opened.iter_batches(_LOOKS, columns=[f"{file.picture_column}.bytes"]))
    encoded = batch.column(0).field("bytes")
    return look_at_some(
        len(encoded), read=lambda row: encoded[row].as_py(), where=lambda row: f"row {row} of {file.place}"
    )


@contextmanager
def _opened(files: Files, name: str, num_bytes: int) -> Iterator[pq.ParquetFile]:
    """Open a file of which only parts are read."""
    if isinstance(files, Bucket):
        content = pa.PythonFile(_Object(_store(files.settings), name, num_bytes), mode="r")
    else:
        assert isinstance(files, Folder)
        content = pa.OSFile(str(files.path / name))
    with content:
        try:
            yield pq.ParquetFile(content)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path_of(files, name)} must be a whole Parquet file, got {error}. Download it again."
            ) from error


class _Object(io.RawIOBase):
    """An object of a bucket, of which only what is asked for is fetched."""

    def __init__(self, store: Store, key: str, size: int) -> None:
        self._store, self._key, self._size = store, key, size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._place)
        data = self._store.read_range(self._key, start=self._place, length=left if size < 0 else min(size, left))
        self._place += len(data)
        return data


_store = cache(Store)  # a connection for all files of a source

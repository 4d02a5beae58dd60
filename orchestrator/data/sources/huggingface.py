"""Pictures in Parquet, as Hugging Face writes them: `img` or `image` of {bytes, path}, and a label.

A label is a whole number, whose names are in the file's metadata if not given, or a text. Its column is `label`, or
else `fine_label` (CIFAR-100), or the one that option `target` names. The pictures are in the files: `path` is not read.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import ConfigError
from cluster.machine.files import most_unpacked_bytes
from cluster.s3.stored_json import require_bounded
from models.features import TARGET, ClassTarget, ImageFeature
from orchestrator.data.columns import Array, Columns
from orchestrator.data.manifest import Change, Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.classes import (
    check_class_names,
    check_labels,
    numbered_classes,
)
from orchestrator.data.sources.damaged import (
    LOOKED_BYTES,
    Damage,
    DamagedFileError,
    DamagedFilesError,
    Examined,
    damaged_error,
    refuse_or_record,
)
from orchestrator.data.sources.files import Files
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.parquet_files import (
    DamagedRows,
    ParquetFile,
    but_for,
    examined,
    look_through,
    opened,
)
from orchestrator.data.sources.picture_files import (
    SPLIT_NAMES,
    cut_into_pieces,
    default_name,
    list_files,
    path_of,
    with_test_split,
)
from orchestrator.data.sources.pictures import Header, choose_form, look_at_some, picture_column
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.splitting import consecutive, require_classes, require_rows_in_each

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905

_PICTURE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
_LOOKS = 256  # the first pictures of each file that are looked at, out of at most _LOOKED_AT files of a split
_LOOKED_AT = 4


def read_huggingface_images(source: str, options: SourceOptions) -> Prepared:
    """Read the Parquet files of a Hugging Face picture dataset: now the labels, later the pictures."""
    only(options, "huggingface-images", "classes", "target", "encoding", "side", "damaged")
    files, sizes = list_files(source)
    splits, changes = readable_files(files, sizes, options)
    everything = [file for split in splits.values() for file in split]
    classes = _classes(everything, splits["train"], options)
    for file in everything:
        _check_labels(file, classes)
    labels = np.concatenate([_numbers(file.labels, classes) for file in everything])
    counts = {split: sum(len(file.labels) for file in found) for split, found in splits.items()}
    require_classes(labels, classes, consecutive(counts), files.uri)
    feature = _form(splits, options)
    return Prepared(
        name=default_name(files),
        features={"image": feature},
        target=ClassTarget(classes=classes),
        splits={
            split: Part(tuple(piece for file in found for piece in parquet_pieces(file, classes, feature)))
            for split, found in splits.items()
        },
        source=Source(format="huggingface-images", uri=source, changes=changes),
    )


@dataclass(frozen=True)
class ParquetPiece:
    """The rows that are kept of some row groups of a file."""

    file: ParquetFile
    """Without its labels."""
    row_groups: tuple[int, ...]
    row_numbers: Ints
    source_bytes: int
    classes: tuple[str, ...]
    feature: ImageFeature

    @property
    def files(self) -> Files:
        """Where the file is."""
        return self.file.files

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.row_numbers)

    def read(self) -> Columns:
        """Return the pictures and their labels.

        Raises:
            DamagedFilesError: naming all that is damaged.
        """
        file = self.file
        columns = [f"{file.picture_column}.bytes", file.label_column]
        try:
            with opened(file.files, file.name, file.bytes) as content:
                table = content.read_row_groups(list(self.row_groups), columns)
        except DamagedFileError as error:
            errors = list(file.damage(self.row_groups).errors.values())
            raise damaged_error(errors or [error]) from None
        places = np.searchsorted(file.rows_of(self.row_groups), self.row_numbers)
        encoded = table.column(file.picture_column).combine_chunks().field("bytes")
        pictures = picture_column(
            self.rows,
            read=lambda row: encoded[int(places[row])].as_py(),
            where=lambda row: f"row {self.row_numbers[row]} of {file.place}",
            feature=self.feature,
            can_skip=True,
        )
        return {"image": pictures, TARGET: _numbers(table.column(file.label_column), self.classes)[places]}


def parquet_pieces(file: ParquetFile, classes: tuple[str, ...], feature: ImageFeature) -> Iterator[ParquetPiece]:
    """Cut a file into pieces of some row groups each."""
    groups = file.readable
    sizes = [file.row_groups[group][1] for group in groups]
    without_labels = replace(file, labels=pa.chunked_array([], file.labels.type), kept=np.empty(0, np.int64))
    for run in cut_into_pieces(sizes):
        chosen = tuple(groups[run])
        piece = ParquetPiece(
            without_labels,
            row_groups=chosen,
            row_numbers=np.intersect1d(file.rows_of(chosen), file.kept, assume_unique=True),
            source_bytes=sum(sizes[run]),
            classes=classes,
            feature=feature,
        )
        if piece.rows:
            yield piece


def readable_files(
    files: Files, sizes: Mapping[str, int], options: SourceOptions
) -> tuple[dict[str, list[ParquetFile]], tuple[Change, ...]]:
    """Return the files of each split, without what cannot be read where the person says so.

    Where nothing may be left out, pictures are only looked at to name all that is damaged together with a file that is;
    otherwise they are found when they are read.
    """
    names = split_parquet_files(files, sizes)
    found = {name: _footer_or_damage(files, name, sizes[name], options) for own in names.values() for name in own}
    damaged = {name: one.error for name, one in found.items() if isinstance(one, Damage)}
    whole = {
        split: [one for one in map(found.get, own) if isinstance(one, ParquetFile)] for split, own in names.items()
    }
    everything = [file for own in whole.values() for file in own]
    pictures: dict[str, DamagedRows] = {}
    if damaged or options.damaged == "skip":
        pictures = look_through(everything, most_bytes=None if options.damaged == "skip" else LOOKED_BYTES)
    looks = [Examined("files", len(found), damaged), examined(everything, pictures)]
    changes = tuple(refuse_or_record(looks, options, place=files.uri))
    left = {split: [but_for(file, pictures) for file in own] for split, own in whole.items()}
    require_rows_in_each({split: sum(len(file.kept) for file in own) for split, own in left.items()}, files.uri)
    return {split: [file for file in own if len(file.kept)] for split, own in left.items()}, changes


def split_parquet_files(files: Files, sizes: Mapping[str, int]) -> dict[str, list[str]]:
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


def _footer_or_damage(files: Files, name: str, num_bytes: int, options: SourceOptions) -> ParquetFile | Damage:
    try:
        return read_picture_footer(files, name, num_bytes, options.target)
    except DamagedFileError as error:
        return Damage(error)


def read_picture_footer(files: Files, name: str, num_bytes: int, target: str | None) -> ParquetFile:
    """Read the footer and the labels of a file."""
    place = path_of(files, name)
    with opened(files, name, num_bytes) as file:
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
            kept=np.arange(metadata.num_rows),
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
    kinds = {kind_of_labels(file) for file in files}
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


def kind_of_labels(file: ParquetFile) -> str:
    """Return "text" or "number", after a look for labels that are neither or missing."""
    kind, column = file.labels.type, f"{file.label_column} in {file.place}"
    if file.labels.null_count:
        row = file.kept[file.labels.is_null().to_numpy().argmax()]
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
    if kind_of_labels(file) == "text" and len(missing):
        row = int(missing[0])
        raise ConfigError(
            f"{file.label_column} in {file.place} must be a class of the training split, got "
            f"{file.labels[row].as_py()!r} in row {file.kept[row]}. Remove the row, or train on the class too."
        )
    check_labels(numbers, len(classes), lambda row: f"row {file.kept[row]} of {file.place}")


def _numbers(labels: pa.ChunkedArray, classes: Sequence[str]) -> Array:
    """Return labels as numbers; -1 for a text that is no class."""
    if pa.types.is_integer(labels.type):
        numbers: Array = labels.to_numpy()
    else:
        numbers = pc.fill_null(pc.index_in(labels, pa.array(classes, labels.type)), -1).to_numpy()
    return numbers.astype(np.int64)


def _form(splits: Mapping[str, Sequence[ParquetFile]], options: SourceOptions) -> ImageFeature:
    """Return how the pictures are stored; where one is damaged, look for all that are."""
    try:
        return choose_form([header for files in splits.values() for header in look_at_first(files)], options)
    except DamagedFilesError:
        everything = [file for files in splits.values() for file in files]
        found = look_through(everything, most_bytes=LOOKED_BYTES)
        refuse_or_record([examined(everything, found)], options, place=everything[0].files.uri)
        raise


def look_at_first(files: Sequence[ParquetFile]) -> list[Header]:
    """Look at the first pictures of some files, evenly spread over all."""
    chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), _LOOKED_AT)).astype(int))
    return [header for number in chosen for header in _first_headers(files[number])]


def _first_headers(file: ParquetFile) -> list[Header]:
    encoded, numbers = _first_pictures(file)
    return look_at_some(
        len(encoded),
        read=lambda row: encoded[row].as_py(),
        where=lambda row: f"row {numbers[row]} of {file.place}",
        can_skip=True,
    )


def _first_pictures(file: ParquetFile) -> tuple[pa.Array, Ints]:
    """Return the first pictures that are kept, and the numbers of their rows."""
    numbers, start = file.rows_of(file.readable), 0
    try:
        with opened(file.files, file.name, file.bytes) as content:
            columns = [f"{file.picture_column}.bytes"]
            for batch in content.iter_batches(_LOOKS, row_groups=file.readable, columns=columns):
                kept = np.isin(numbers[start : start + len(batch)], file.kept)
                if kept.any():
                    encoded = batch.column(0).field("bytes").filter(pa.array(kept))
                    return encoded, numbers[start : start + len(batch)][kept]
                start += len(batch)
    except DamagedFileError as error:
        raise damaged_error([error]) from None
    raise AssertionError("a file without a row that is kept is left out")

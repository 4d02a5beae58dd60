"""IDX files as of MNIST, Fashion-MNIST and EMNIST, gzipped or not.

`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...` or `test-...`, also with '.idx3' instead of '-idx3'
and with a word before (`emnist-letters-train-...`); then `emnist-letters-mapping.txt` says which character a label is.

A file is a magic number (0, 0, 8 for bytes, number of dimensions), each dimension as 4 bytes, the largest first, and
the values. EMNIST's pictures are transposed, and stay so.
"""

import io
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from gzip import GzipFile
from typing import NamedTuple

import numpy as np

from cluster.errors import ConfigError
from cluster.machine.files import most_unpacked_bytes
from models.features import TARGET, ClassTarget, ImageFeature
from orchestrator.data.columns import Array
from orchestrator.data.manifest import Source
from orchestrator.data.sources.classes import check_class_names, check_labels, numbered_classes
from orchestrator.data.sources.files import Files
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.picture_files import default_name, list_files, path_of
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.splitting import consecutive, require_classes

_NAME = re.compile(r"(.*?)(train|t10k|test)-(images|labels)[.-]idx[13]-ubyte(?:\.gz)?")
_MOST_BYTES = 2**32  # eight times EMNIST


@dataclass(frozen=True, eq=False)
class Half:
    """The pictures and labels of one split."""

    images: Array
    """[N, H, W] uint8."""
    labels: Array
    """[N] int64."""
    place: str
    """The labels' file, for messages."""


def read_idx(source: str, options: SourceOptions) -> Prepared:
    """Read IDX files of pictures and of labels."""
    only(options, "idx", "classes")
    files, halves, named = read_halves(source, options)
    labels = np.concatenate([half.labels for half in halves.values()])
    classes = named or options.classes or numbered_classes(labels, files.uri)
    _check(halves, classes, files.uri)
    _, height, width = halves["train"].images.shape
    return Prepared(
        name=default_name(files),
        features={"image": ImageFeature(shape=(1, height, width), mean=(), std=())},
        target=ClassTarget(classes=classes),
        splits={split: Part.of({"image": half.images[:, None], TARGET: half.labels}) for split, half in halves.items()},
        source=Source(format="idx", uri=source),
    )


class Halves(NamedTuple):
    """What a source holds."""

    files: Files
    of_split: Mapping[str, Half]
    classes: tuple[str, ...] | None
    """What the labels stand for, if a file says it."""


def read_halves(source: str, options: SourceOptions) -> Halves:
    """Read the pictures and labels of both splits."""
    files, sizes = list_files(source)
    names, prefix = _find(sizes, files.uri)
    halves = {split: _read_half(files, names[split, "images"], names[split, "labels"]) for split in ("train", "test")}
    if len({half.images.shape[1:] for half in halves.values()}) > 1:
        found = " and ".join(f"{half.images.shape[1:]} in {split}" for split, half in halves.items())
        raise ConfigError(f"pictures of {files.uri} must have one size, got {found}. Download them again.")
    mapping = f"{prefix}mapping.txt"
    if mapping not in sizes or options.classes:
        return Halves(files, halves, None)
    characters = _read_mapping(files.read(mapping, most_bytes=2**20), path_of(files, mapping))
    halves = {split: _renumbered(half, [*characters]) for split, half in halves.items()}
    return Halves(files, halves, tuple(characters.values()))


def _find(names: Iterable[str], place: str) -> tuple[dict[tuple[str, str], str], str]:
    """Return the file of each split and kind, and what comes before that in their names."""
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    found = {("train" if m[2] == "train" else "test", m[3]): m[0] for m in matches}
    prefixes = sorted({m[1] for m in matches})
    if len(found) != 4 or len(matches) != 4 or len(prefixes) != 1:
        there = ", ".join(m[0] for m in matches[:8]) or "none of them"
        raise ConfigError(
            f"{place} must hold train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
            f"t10k-labels-idx1-ubyte once, each gzipped or not, got {there}. Add what is missing, and give each data "
            "set a folder of its own."
        )
    return found, prefixes[0]


def _read_half(files: Files, images: str, labels: str) -> Half:
    half = Half(
        _read(files.read(images), path_of(files, images), dimensions=3),
        _read(files.read(labels), path_of(files, labels), dimensions=1).astype(np.int64),
        path_of(files, labels),
    )
    if len(half.images) != len(half.labels):
        raise ConfigError(
            f"{half.place} must hold a label for each picture of {images}, got {len(half.labels)} for "
            f"{len(half.images)}. Download both again."
        )
    return half


def _read(data: bytes, place: str, *, dimensions: int) -> Array:
    """Return the values of a file."""
    file = GzipFile(fileobj=io.BytesIO(data)) if data[:2] == b"\x1f\x8b" else io.BytesIO(data)
    most_bytes = min(_MOST_BYTES, most_unpacked_bytes(len(data)))
    try:
        header = file.read(4 * (1 + dimensions))
        shape = _shape(header, place, dimensions=dimensions, most_bytes=most_bytes)
        size = math.prod(shape)
        content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{place} must be a whole gzipped file, got {error}. Download it again.") from error
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content):,}"
        raise ConfigError(
            f"{place} must hold {size:,} values after its header, which says {' x '.join(map(str, shape))}, got "
            f"{found}. Download it again."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _shape(header: bytes, place: str, *, dimensions: int, most_bytes: int) -> tuple[int, ...]:
    magic = bytes([0, 0, 8, dimensions])
    if len(header) < 4 * (1 + dimensions) or header[:4] != magic:
        raise ConfigError(
            f"{place} must begin with {magic.hex(' ')} and {dimensions} size{'s' * (dimensions > 1)}, got "
            f"{header[:4].hex(' ') or 'nothing'}. Download it again."
        )
    shape = tuple(np.frombuffer(header, ">u4")[1:].tolist())
    if not 0 < math.prod(shape) <= most_bytes:
        raise ConfigError(
            f"{place} must hold 1 to {most_bytes:,} values, got {' x '.join(map(str, shape))}. Download it again."
        )
    return shape


def _read_mapping(data: bytes, place: str) -> dict[int, str]:
    """Return the character of each label: a line has the label and the codes of its characters, the first of them."""
    try:
        rows = [[int(word) for word in line.split()] for line in data.decode("ascii").splitlines() if line.strip()]
        characters = {label: chr(code) for label, code, *_ in rows}
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"{place} must hold lines of a label and the code of its character, got {error}. Download it again."
        ) from error
    check_class_names([*characters.values()], place)
    return dict(sorted(characters.items()))


def _renumbered(half: Half, labels: list[int]) -> Half:
    """Return the labels as places in a sorted list; EMNIST's letters are counted from 1."""
    unknown = np.flatnonzero(~np.isin(half.labels, labels))
    if len(unknown):
        raise ConfigError(
            f"{half.place} must hold labels of the mapping, got {half.labels[unknown[0]]} in row {unknown[0]}. "
            "Download it again."
        )
    return replace(half, labels=np.searchsorted(labels, half.labels))


def _check(halves: Mapping[str, Half], classes: tuple[str, ...], place: str) -> None:
    check_class_names(classes, place)
    for half in halves.values():
        check_labels(half.labels, len(classes), partial("row {1} of {0}".format, half.place))
    counts = {split: len(half.labels) for split, half in halves.items()}
    require_classes(np.concatenate([half.labels for half in halves.values()]), classes, consecutive(counts), place)

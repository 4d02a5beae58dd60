"""CIFAR-10 and CIFAR-100 as their author publishes them: binary batches, or pickles of Python 2.

    files                                                              a row
    data_batch_1.bin ..., test_batch.bin, batches.meta.txt             label, picture
    train.bin, test.bin, coarse_label_names.txt, fine_label_names.txt  coarse label, fine label, picture
    data_batch_1 ..., test_batch, batches.meta                         in {labels: [int], data: uint8 [N, 3072]}
    train, test, meta                                                  in {coarse_labels, fine_labels, data}

A picture is 1024 bytes each of red, green and blue, row by row; a label is one byte.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from cluster.errors import ConfigError
from models.features import TARGET, ClassTarget, ImageFeature
from orchestrator.data.columns import Array
from orchestrator.data.manifest import Change, Source
from orchestrator.data.sources.classes import (
    check_class_names,
    numbered_classes,
    wrong_label,
    wrong_labels,
)
from orchestrator.data.sources.damaged import Damage, DamagedFileError, Examined, refuse_or_record
from orchestrator.data.sources.files import Files
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.picture_files import default_name, list_files, path_of
from orchestrator.data.sources.plain_pickle import read_plain_pickle
from orchestrator.data.sources.prepared import InMemory, Part, Prepared
from orchestrator.data.sources.splitting import consecutive, require_classes, require_rows_in_each

SHAPE = (3, 32, 32)

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """How one of the four kinds of files is named and read."""

    train: str
    """Pattern of the names of the training files; with a group, they are numbered from 1."""
    test: str
    names: Mapping[str, str]
    """The file that names the classes, for each kind of labels in the order of a row."""
    is_pickle: bool


LAYOUTS = (
    Layout(r"data_batch_(\d+)\.bin", "test_batch.bin", {"label": "batches.meta.txt"}, is_pickle=False),
    Layout(r"data_batch_(\d+)", "test_batch", {"label": "batches.meta"}, is_pickle=True),
    Layout(
        r"train\.bin",
        "test.bin",
        {"coarse_label": "coarse_label_names.txt", "fine_label": "fine_label_names.txt"},
        is_pickle=False,
    ),
    Layout("train", "test", {"coarse_label": "meta", "fine_label": "meta"}, is_pickle=True),
)


@dataclass(frozen=True, eq=False)
class Batch:
    """What a file holds."""

    name: str
    place: str
    """As messages name the file."""
    images: Array
    """[N, 3, 32, 32] uint8."""
    labels: Array
    """[N] int64."""

    @property
    def rows(self) -> int:
        """Number of pictures."""
        return len(self.labels)


def read_cifar(source: str, options: SourceOptions) -> Prepared:
    """Read CIFAR-10 or CIFAR-100; of the latter's labels the fine ones, or those that option `target` names."""
    only(options, "cifar", "classes", "target", "damaged")
    files, batches, named, changes = read_batches(source, options)
    counts = {split: len(labels_of(own)) for split, own in batches.items()}
    labels = labels_of([batch for own in batches.values() for batch in own])
    classes = named or numbered_classes(labels, files.uri)
    require_classes(labels, classes, consecutive(counts), files.uri)
    return Prepared(
        name=default_name(files),
        features={"image": ImageFeature(shape=SHAPE, mean=(), std=())},
        target=ClassTarget(classes=classes),
        splits={
            split: Part(tuple(InMemory({"image": batch.images, TARGET: batch.labels}) for batch in own if batch.rows))
            for split, own in batches.items()
        },
        source=Source(format="cifar", uri=source, changes=changes),
    )


class Batches(NamedTuple):
    """What a source holds."""

    files: Files
    of_split: Mapping[str, Sequence[Batch]]
    """Without what is damaged, where that may be left out."""
    classes: tuple[str, ...] | None
    """What the labels stand for, if the person or a file says it."""
    changes: tuple[Change, ...]


def read_batches(source: str, options: SourceOptions, *, unnamed: Sequence[str] | None = None) -> Batches:
    """Read the pictures and labels of both splits.

    Args:
        source: a folder or prefix.
        options: what the person says about it.
        unnamed: the classes, where neither the person nor a file says them; default: as many as the labels need.
    """
    files, sizes = list_files(source)
    layout, folder = _find(sizes, files.uri)
    kind = _kind_of_labels(layout, options)
    names = {"train": _training_files(layout, folder, sizes, files.uri), "test": [str(folder / layout.test)]}
    found = {name: _read_or_damage(files, name, layout, kind) for own in names.values() for name in own}
    whole = {split: [one for one in map(found.get, own) if isinstance(one, Batch)] for split, own in names.items()}
    everything = [batch for own in whole.values() for batch in own]
    names_file = str(folder / layout.names[kind])
    classes = _class_names(files, names_file if names_file in sizes else None, f"{kind}_names", options)
    count = len(classes or unnamed or numbered_classes(labels_of(everything), files.uri))
    changes = refuse_or_record(_looks(found, everything, count), options, place=files.uri)
    batches = {split: [_with_right_labels(batch, count) for batch in own] for split, own in whole.items()}
    require_rows_in_each({split: len(labels_of(own)) for split, own in batches.items()}, files.uri)
    return Batches(files, batches, classes, tuple(changes))


def _looks(found: Mapping[str, Batch | Damage], batches: Sequence[Batch], num_classes: int) -> list[Examined]:
    """Return which files cannot be read, and which rows of the others have a label that stands for no class."""
    files = {name: one.error for name, one in found.items() if isinstance(one, Damage)}
    rows = {
        f"row {row} of {batch.name}": wrong_label(int(batch.labels[row]), num_classes, f"row {row} of {batch.place}")
        for batch in batches
        for row in wrong_labels(batch.labels, num_classes).tolist()
    }
    return [Examined("files", len(found), files), Examined("pictures", len(labels_of(batches)), rows)]


def _with_right_labels(batch: Batch, num_classes: int) -> Batch:
    wrong = wrong_labels(batch.labels, num_classes)
    if not len(wrong):
        return batch
    return replace(batch, images=np.delete(batch.images, wrong, 0), labels=np.delete(batch.labels, wrong))


def labels_of(batches: Sequence[Batch]) -> Array:
    """Return the labels of all, one after another."""
    return np.concatenate([np.empty(0, np.int64), *(batch.labels for batch in batches)])


def _find(names: Iterable[str], place: str) -> tuple[Layout, PurePosixPath]:
    """Return which files there are, and in which folder."""
    paths = [PurePosixPath(name) for name in names]
    found = [
        (layout, test.parent)
        for layout in LAYOUTS
        for test in paths
        if test.name == layout.test and any(_is_training(layout, path, test.parent) for path in paths)
    ]
    if len(found) != 1:
        there = " and ".join(f"{layout.test} in {folder}" for layout, folder in found) or "none of them"
        raise ConfigError(
            f"{place} must hold CIFAR's files once: data_batch_1.bin and test_batch.bin, train.bin and test.bin, or "
            f"those without .bin, got {there}. Give the folder that holds them."
        )
    return found[0]


def _is_training(layout: Layout, path: PurePosixPath, folder: PurePosixPath) -> bool:
    return path.parent == folder and re.fullmatch(layout.train, path.name) is not None


def _training_files(layout: Layout, folder: PurePosixPath, names: Iterable[str], place: str) -> list[str]:
    """Return the names of the training files, in the order of their numbers."""
    found = [path.name for path in map(PurePosixPath, names) if _is_training(layout, path, folder)]
    numbers = sorted(int(number) for name in found for number in re.findall(r"\d+", name))
    if numbers != list(range(1, len(numbers) + 1)):
        raise ConfigError(
            f"{place} must hold data_batch_1 and so on without a gap, got numbers {', '.join(map(str, numbers))}. "
            "Download it again."
        )
    return [str(folder / name) for name in sorted(found, key=lambda name: (len(name), name))]


def _kind_of_labels(layout: Layout, options: SourceOptions) -> str:
    kinds = list(layout.names)
    if options.target not in (None, *kinds):
        raise ConfigError(f"option target must be {' or '.join(kinds)}, got {options.target!r}.")
    return options.target or kinds[-1]


def _read_or_damage(files: Files, name: str, layout: Layout, kind: str) -> Batch | Damage:
    """Return what a file holds, or that it is damaged: of a file of another length no row can be trusted."""
    try:
        return _read(files, name, layout, kind)
    except DamagedFileError as error:
        return Damage(error)


def _read(files: Files, name: str, layout: Layout, kind: str) -> Batch:
    place = path_of(files, name)
    if layout.is_pickle:
        images, labels = _read_pickle(files.read(name), place, f"{kind}s")
    else:
        images, labels = _read_binary(files.read(name), place, list(layout.names).index(kind), len(layout.names))
    return Batch(name, place, images.reshape(-1, *SHAPE), labels.astype(np.int64))


def _read_binary(data: bytes, place: str, label: int, num_labels: int) -> tuple[Array, Array]:
    row_bytes = num_labels + _PIXELS
    if not data or len(data) % row_bytes:
        raise DamagedFileError(
            f"{place} must hold rows of {row_bytes} bytes, got {len(data)} bytes, which is {len(data) // row_bytes} "
            f"rows and {len(data) % row_bytes} bytes. Download it again."
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, row_bytes)
    return rows[:, num_labels:], rows[:, label]


def _read_pickle(data: bytes, place: str, key: str) -> tuple[Array, Array]:
    content = read_plain_pickle(data, place)
    images, labels = content.get("data"), content.get(key)
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != _PIXELS or not len(images):
        raise DamagedFileError(f"data in {place} must be rows of {_PIXELS} bytes, got none. Download it again.")
    if not isinstance(labels, list) or not all(type(label) is int and abs(label) < 2**31 for label in labels):
        raise DamagedFileError(f"{key} in {place} must be a list of whole numbers, got none. Download it again.")
    if len(labels) != len(images):
        raise DamagedFileError(
            f"{place} must hold a label for each picture, got {len(labels)} {key} and {len(images)} pictures. "
            "Download it again."
        )
    return images, np.array(labels)


def _class_names(files: Files, name: str | None, key: str, options: SourceOptions) -> tuple[str, ...] | None:
    """Return the names that the person gives, or the file for them."""
    if options.classes:
        check_class_names(options.classes, "option classes")
        return options.classes
    if name is None:
        return None
    place = path_of(files, name)
    if name.endswith(".txt"):
        found = tuple(line.strip() for line in files.read(name).decode("latin-1").splitlines() if line.strip())
    else:
        found = _names_in_pickle(files.read(name), key, place)
    check_class_names(found, place)
    return found


def _names_in_pickle(data: bytes, key: str, place: str) -> tuple[str, ...]:
    names = read_plain_pickle(data, place).get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise ConfigError(f"{key} in {place} must be a list of texts, got none. Download it again.")
    return tuple(name.decode("latin-1") if isinstance(name, bytes) else name for name in names)

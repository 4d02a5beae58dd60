"""Reads pictures by the rules of a version: the form in which it stores them, and its classes."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import PurePosixPath

import numpy as np

from cluster.errors import ConfigError
from models.features import TARGET, ImageFeature
from orchestrator.data.appending.rules import CURE, Rules
from orchestrator.data.appending.targets import class_labels, classes_of, shown
from orchestrator.data.columns import Array
from orchestrator.data.manifest import Source
from orchestrator.data.sources.cifar import read_batches
from orchestrator.data.sources.classes import check_labels
from orchestrator.data.sources.files import Files
from orchestrator.data.sources.huggingface import (
    kind_of_labels,
    look_at_first,
    parquet_pieces,
    readable_files,
)
from orchestrator.data.sources.idx import read_halves
from orchestrator.data.sources.image_folder import folder_part, look_into
from orchestrator.data.sources.located import ALL
from orchestrator.data.sources.parquet_files import ParquetFile
from orchestrator.data.sources.picture_files import list_files, path_of
from orchestrator.data.sources.pictures import Header, look_at_some, read_picture
from orchestrator.data.sources.prepared import InMemory, Part, Prepared
from orchestrator.data.sources.voc import list_scenes, read_annotations, scene_part


def read_more_pictures(source: str, rules: Rules) -> Prepared:
    """Read folders of pictures by the rules of a version."""
    found = look_into(source, rules.options.model_copy(update=dict.fromkeys(("seed", "test_share", "test"))))
    files, names = found.files, list(found.sizes)
    labels = class_labels([found.class_of[n] for n in names], rules, lambda row: path_of(files, names[row]))
    feature = _form(_looks(files, names), rules)
    label_of = dict(zip(names, labels.tolist(), strict=True))
    splits = found.given or _matching(names, rules)
    return rules.read(
        {split: folder_part(found, chosen, label_of, feature, rules.options) for split, chosen in splits.items()},
        Source(format="image-folder", uri=source, changes=found.changes),
    )


def _matching(names: Sequence[str], rules: Rules) -> dict[str, list[str]]:
    """Return the names of each split by the version's pattern, or all under `ALL` if it has none."""
    pattern = rules.options.test
    if pattern is None:
        return {ALL: list(names)}
    splits: dict[str, list[str]] = {"train": [], "test": []}
    for name in names:
        splits["test" if fnmatchcase(PurePosixPath(name).name, pattern) else "train"].append(name)
    return {split: chosen for split, chosen in splits.items() if chosen}


def _looks(files: Files, names: Sequence[str]) -> list[Header]:
    """Look at some of the pictures."""

    def read(row: int) -> bytes:
        return read_picture(files, names[row])

    return look_at_some(len(names), read, lambda row: path_of(files, names[row]), can_skip=True)


def _form(looks: Sequence[Header], rules: Rules) -> ImageFeature:
    """Return the form in which the version stores pictures.

    Raises:
        ConfigError: if one of those looked at does not fit it.
    """
    feature = rules.features["image"]
    assert isinstance(feature, ImageFeature)
    channels, height, width = feature.shape
    for look in looks:
        if feature.encoding == "raw" and (look.height, look.width) != (height, width):
            raise ConfigError(
                f"{look.where} must be a picture of {width} x {height} pixels, as those of {rules} are, got "
                f"{look.size}. {CURE}"
            )
        if look.channels > channels:
            raise ConfigError(
                f"{look.where} must be a grey picture, as those of {rules} are, got one with colours. {CURE}"
            )
    return feature


def read_more_scenes(source: str, rules: Rules) -> Prepared:
    """Read pictures with boxes by the rules of a version."""
    files, sizes = list_files(source)
    splits, changes = list_scenes(files, sizes, rules.options)
    classes = classes_of(rules)
    for annotation in (one for samples in splits.values() for one in read_annotations(files, samples)):
        strange = [box.name for box in annotation.boxes if box.name not in classes]
        if strange:
            raise ConfigError(
                f"every object of {annotation.place} must be of one of the {len(classes)} classes of {rules}, "
                f"{shown(classes)}, got {strange[0]!r}. {CURE}"
            )
    pictures = [sample.picture for samples in splits.values() for sample in samples]
    feature = _form(_looks(files, pictures), rules)
    return rules.read(
        {
            split: scene_part(files, samples, sizes, classes, feature, rules.options)
            for split, samples in splits.items()
        },
        Source(format="voc", uri=source, changes=changes),
    )


# ---- pictures whose labels are numbers


def read_more_parquet(source: str, rules: Rules) -> Prepared:
    """Read Parquet files of pictures by the rules of a version."""
    files, sizes = list_files(source)
    splits, changes = readable_files(files, sizes, rules.options)
    feature = _form([look for found in splits.values() for look in look_at_first(found)], rules)
    everything = [file for found in splits.values() for file in found]
    names = next((file.class_names for file in everything if file.class_names), None)
    for file in everything:  # some may not say what their labels stand for
        _check_classes_of(file, file.class_names or names, rules)
    return rules.read(
        {
            split: Part(tuple(piece for file in found for piece in parquet_pieces(file, classes_of(rules), feature)))
            for split, found in splits.items()
        },
        Source(format="huggingface-images", uri=source, changes=changes),
    )


def _check_classes_of(file: ParquetFile, names: Sequence[str] | None, rules: Rules) -> None:
    def where(row: int) -> str:
        return f"row {row} of {file.place}"

    if kind_of_labels(file) == "text":
        class_labels(file.labels.to_pylist(), rules, where)
        return
    labels = file.labels.to_numpy().astype(np.int64)
    if _labels_of(labels, names, rules, file.place, where).tolist() != labels.tolist():
        raise ConfigError(
            f"the classes of {file.place} must be in the order of those of {rules}, {shown(classes_of(rules))}, got "
            f"{shown(names or ())}. {CURE}"
        )


def read_more_idx(source: str, rules: Rules) -> Prepared:
    """Read IDX files by the rules of a version."""
    files, halves, named = read_halves(source, rules.options)
    splits = {}
    for split, half in halves.items():
        where = partial("row {1} of {0}".format, half.place)
        _, height, width = half.images[:, None].shape[1:]
        _form([Header(half.place, width, height, channels=1, is_turned=False)], rules)
        labels = _labels_of(half.labels, named, rules, files.uri, where)
        splits[split] = Part.of({"image": half.images[:, None], TARGET: labels})
    return rules.read(splits, Source(format="idx", uri=source))


def read_more_cifar(source: str, rules: Rules) -> Prepared:
    """Read the batches of CIFAR by the rules of a version."""
    files, batches, named, changes = read_batches(source, rules.options, unnamed=classes_of(rules))
    splits = {}
    for split, found in batches.items():
        pieces = []
        for batch in found:
            where = partial("row {1} of {0}".format, batch.place)
            labels = _labels_of(batch.labels, named, rules, files.uri, where)
            pieces += [InMemory({"image": batch.images, TARGET: labels})] if batch.rows else []
        splits[split] = Part(tuple(pieces))
    return rules.read(splits, Source(format="cifar", uri=source, changes=changes))


def _labels_of(
    labels: Array, names: Sequence[str] | None, rules: Rules, place: str, where: Callable[[int], str]
) -> Array:
    """Return the version's labels for those of a source, whose classes may be named in another order.

    Raises:
        ConfigError: if a label stands for no class of the version, or nobody knows for which.
    """
    classes = classes_of(rules)
    is_numbered = rules.options.classes is not None or classes == tuple(map(str, range(len(classes))))
    if names is None or rules.options.classes is not None:
        if not is_numbered:
            raise ConfigError(f"{place} must name its classes, as the source of {rules} did, got no names. {CURE}")
        check_labels(labels, len(classes), where)
        return labels
    check_labels(labels, len(names), where)
    present = np.unique(labels)
    first = {label: int(np.flatnonzero(labels == label)[0]) for label in present.tolist()}
    of_class = class_labels([names[label] for label in first], rules, lambda i: where([*first.values()][i]))
    own: Array = of_class[np.searchsorted(present, labels)]
    return own

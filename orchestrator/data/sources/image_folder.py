"""Pictures in folders that are named after their classes: `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, or `CLASS/*.jpg`.

Beside `train`, a folder `validation` (or `val`) or `test` must be there; capitals do not matter. Folders below that of
a class belong to it. Where there are only folders of classes, a test split is drawn: the same share of every class, and
files with the same content all on one side.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from cluster.errors import ConfigError
from models.features import TARGET, ClassTarget, ImageFeature
from orchestrator.data.columns import Columns
from orchestrator.data.manifest import Change, Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.classes import check_class_names
from orchestrator.data.sources.damaged import DamagedFilesError, refuse_or_skip
from orchestrator.data.sources.files import Files, Folder, is_hidden
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.picture_files import (
    SPLIT_NAMES,
    SUFFIXES,
    cut_into_pieces,
    default_name,
    list_files,
    mixed,
    path_of,
    with_test_split,
)
from orchestrator.data.sources.pictures import (
    choose_form,
    look_at_some,
    look_for_damage,
    picture_column,
    read_picture,
)
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.splitting import drawn, numbered, refuse_draw

_READ_THREADS = 16  # files of a bucket are waited for


def read_image_folder(source: str, options: SourceOptions) -> Prepared:
    """Read a folder of pictures, in folders named after their classes."""
    only(options, "image-folder", "encoding", "side", "damaged", "test", "test_share", "seed")
    found = look_into(source, options)
    splits = found.given or _drawn(found, options)
    classes = tuple(sorted({found.class_of[name] for name in splits["train"]}))
    _check_classes(splits, found.class_of, classes, found.files)
    labels = {name: classes.index(found.class_of[name]) for names in splits.values() for name in names}
    feature = _form([name for names in splits.values() for name in names], found.files, options)
    return Prepared(
        name=default_name(found.files),
        features={"image": feature},
        target=ClassTarget(classes=classes),
        splits={split: folder_part(found, names, labels, feature, options) for split, names in splits.items()},
        source=Source(format="image-folder", uri=source, changes=found.changes),
    )


class PictureFolder(NamedTuple):
    """The pictures of a source."""

    files: Files
    sizes: Mapping[str, int]
    """Bytes of each picture by its name."""
    class_of: Mapping[str, str]
    given: Mapping[str, list[str]] | None
    """The names of each split's pictures, if the folders say them."""
    changes: tuple[Change, ...]


def look_into(source: str, options: SourceOptions) -> PictureFolder:
    """List the pictures of a source with their classes and, if the folders say them, their splits."""
    files, listed = list_files(source)
    _refuse_empty_folders(files, listed)
    class_of = _classes_of(listed, files.uri)
    sizes, changes = _whole(files, listed, options)
    given = None
    if _has_splits(sizes):
        refuse_draw(options, files.uri)
        given = _given(files, sizes)
    return PictureFolder(files, sizes, class_of, given, changes)


@dataclass(frozen=True)
class FolderPiece:
    """Some files and their classes."""

    files: Files
    names: tuple[str, ...]
    labels: tuple[int, ...]
    source_bytes: int
    feature: ImageFeature

    @property
    def rows(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def read(self) -> Columns:
        """Return the pictures and their labels."""
        pictures = picture_column(
            self.rows,
            read=lambda row: read_picture(self.files, self.names[row]),
            where=lambda row: path_of(self.files, self.names[row]),
            feature=self.feature,
            can_skip=True,
        )
        return {"image": pictures, TARGET: np.array(self.labels, np.int64)}


def folder_part(
    found: PictureFolder,
    names: Sequence[str],
    labels: Mapping[str, int],
    feature: ImageFeature,
    options: SourceOptions,
) -> Part:
    """Return some pictures in the order in which they are stored."""
    in_order = [names[row] for row in mixed(len(names), options)]
    runs = [in_order[run] for run in cut_into_pieces([found.sizes[name] for name in in_order])]
    return Part(
        tuple(
            FolderPiece(
                found.files,
                names=tuple(run),
                labels=tuple(labels[name] for name in run),
                source_bytes=sum(found.sizes[name] for name in run),
                feature=feature,
            )
            for run in runs
        ),
        is_mixed=True,
    )


def _classes_of(sizes: Mapping[str, int], place: str) -> dict[str, str]:
    """Return the class of every file: the first folder of its name, but for that of a split.

    Raises:
        ConfigError: if there is no file, one is no picture, or one is not in the folder of a class.
    """
    if not sizes:
        raise ConfigError(f"{place} must hold folders of pictures, got no file. Give the folder that holds them.")
    has_splits = _has_splits(sizes)
    for name in sizes:
        _check_place(name, place, has_splits=has_splits)
    return {name: name.split("/")[has_splits] for name in sizes}


def _has_splits(names: Iterable[str]) -> bool:
    """Whether folders of splits hold those of the classes; a class may be called train if pictures lie in it."""
    return any(name.count("/") > 1 and name.split("/")[0].lower() in SPLIT_NAMES for name in names)


def _form(names: Sequence[str], files: Files, options: SourceOptions) -> ImageFeature:
    """Return how the pictures are stored; where one is damaged, look for all that are."""

    def read(row: int) -> bytes:
        return read_picture(files, names[row])

    def where(row: int) -> str:
        return path_of(files, names[row])

    try:
        return choose_form(look_at_some(len(names), read, where, can_skip=True), options)
    except DamagedFilesError:
        refuse_or_skip(names, look_for_damage(len(names), read, where), options, place=files.uri, what="pictures")
        raise


def _whole(files: Files, sizes: Mapping[str, int], options: SourceOptions) -> tuple[dict[str, int], tuple[Change, ...]]:
    """Leave out damaged pictures where the person says so; otherwise they are found when they are read."""
    if options.damaged != "skip":
        return dict(sizes), ()
    names = list(sizes)
    damage = look_for_damage(
        len(names), read=lambda row: read_picture(files, names[row]), where=lambda row: path_of(files, names[row])
    )
    whole, _, changes = refuse_or_skip(names, damage, options, place=files.uri, what="pictures")
    return {name: sizes[name] for name in whole}, tuple(changes)


def _check_place(name: str, place: str, *, has_splits: bool) -> None:
    """Refuse a file that is no picture, or not in the folder of a class."""
    folders = name.split("/")[:-1]
    layout = "SPLIT/CLASS/PICTURE" if has_splits else "CLASS/PICTURE"
    if len(folders) < 1 + has_splits:
        raise ConfigError(f"{place} must hold files as {layout}, got {name}. Move or remove it.")
    split = folders[0].lower()
    if has_splits and split not in SPLIT_NAMES:
        raise ConfigError(
            f"{place} must hold folders named {', '.join(SPLIT_NAMES)} only, got {folders[0]} beside them. Rename or "
            "remove it."
        )
    if not has_splits and split in SPLIT_NAMES.keys() - {"train"}:  # which may be a class, beside cars
        raise ConfigError(
            f"{place} must hold a folder for each class in {folders[0]}, got the file {name} there. Move it into one."
        )
    if not name.lower().endswith(SUFFIXES):
        raise ConfigError(f"{place} must hold pictures ({', '.join(SUFFIXES)}), got {name}. Remove it.")


def _given(files: Files, sizes: Mapping[str, int]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = defaultdict(list)
    folders: dict[str, str] = {}
    for name in sizes:
        folder = name.split("/")[0]
        split = SPLIT_NAMES[folder.lower()]
        if folders.setdefault(split, folder) != folder:
            raise ConfigError(
                f"{files.uri} must hold one folder for split {split}, got {folders[split]} and {folder}. Merge them."
            )
        splits[split].append(name)
    complete = with_test_split(splits)
    if not {"train", "test"} <= complete.keys():
        raise ConfigError(
            f"{files.uri} must hold train, and test or validation, got {', '.join(folders.values())}. Add the "
            "other, or give the folder that holds the classes, and a test split is drawn."
        )
    return complete


def _drawn(found: PictureFolder, options: SourceOptions) -> dict[str, list[str]]:
    """Return the names of each split's files where the folders do not say them."""
    files, names = found.files, list(found.sizes)
    if options.test is not None:
        rows = _matching(names, options, files)
    else:
        classes = np.unique([found.class_of[name] for name in names], return_inverse=True)[1]
        rows = drawn(classes, groups=numbered(_contents(files, found.sizes)), options=options, place=files.uri)
    return {split: [names[row] for row in chosen] for split, chosen in rows.items()}


def _matching(names: Sequence[str], options: SourceOptions, files: Files) -> dict[str, Ints]:
    """Return the rows of train and test where a pattern says which files test."""
    for option in ("test_share", "seed"):
        if getattr(options, option) is not None:
            raise ConfigError(f"{option} must be left out if option test says which files test, got both. Remove one.")
    pattern = str(options.test)
    in_test = np.array([fnmatchcase(PurePosixPath(name).name, pattern) for name in names])
    if in_test.all() or not in_test.any():
        raise ConfigError(
            f"option test must match the names of some files of {files.uri}, and not of all, got {pattern!r}, which "
            f"matches {in_test.sum()} of {len(names)}."
        )
    return {"train": np.flatnonzero(~in_test), "test": np.flatnonzero(in_test)}


def _contents(files: Files, sizes: Mapping[str, int]) -> list[str]:
    """Return a word for the content of each file: its own name, unless others have as many bytes, or its SHA-256."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, size in sizes.items():
        by_size[size].append(name)
    alike = [name for names in by_size.values() if len(names) > 1 for name in names]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        digests = pool.map(lambda name: hashlib.sha256(files.read(name)).hexdigest(), alike)
        contents = {name: name for name in sizes} | dict(zip(alike, digests, strict=True))
    return list(contents.values())


def _check_classes(
    splits: Mapping[str, Sequence[str]], class_of: Mapping[str, str], classes: Sequence[str], files: Files
) -> None:
    check_class_names(classes, files.uri)
    for names in splits.values():
        for name in names:
            if class_of[name] not in classes:
                raise ConfigError(
                    f"the class of {path_of(files, name)} must be in the training split too, got none of its pictures "
                    "there. Add some, or remove it."
                )
    if len(classes) < 2:
        raise ConfigError(
            f"{files.uri} must hold folders of at least 2 classes, got {', '.join(classes)}. Sort the pictures into "
            "folders named after their classes."
        )


def _refuse_empty_folders(files: Files, names: Iterable[str]) -> None:
    if not isinstance(files, Folder):
        return  # a bucket has no folders, only names
    filled = {parent for name in names for parent in PurePosixPath(name).parents}
    for path in sorted(files.path.rglob("*")):
        name = path.relative_to(files.path)
        if path.is_dir() and not is_hidden(name.as_posix()) and PurePosixPath(name) not in filled:
            raise ConfigError(
                f"{files.uri} must hold pictures in every folder, got the empty folder {name}. Remove it."
            )

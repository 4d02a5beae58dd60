"""The files of a source with pictures: which there are, of which format and split, and how they are cut into pieces."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from cluster.errors import ConfigError
from models.counters import counter_key
from orchestrator.data.order import Ints, permutation
from orchestrator.data.sources.classes import is_plain
from orchestrator.data.sources.files import Files, Folder, open_files
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.rows import as_name

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
"""What files and folders are called, and the split that they hold."""

PIECE_FILES, PIECE_BYTES = 4096, 64 * 2**20

_NOTE = re.compile(r"(^|/)(readme|licen[cs]e|copying)(\.(md|txt|rst|html?|pdf))?$", re.IGNORECASE)
_ORDER_KEY = 102  # first word of the key, so that mixing shares no random numbers with splitting
_SIGNS: Mapping[str, re.Pattern[str]] = {
    "huggingface-images": re.compile(r"\.parquet$"),
    "idx": re.compile(r"idx[13]-ubyte(\.gz)?$"),
    "cifar": re.compile(r"(^|/)(data_batch_1|test_batch|train|test)(\.bin)?$"),
    "voc": re.compile(r"(^|/)Annotations/[^/]+\.xml$"),
    "image-folder": re.compile(rf"/[^/]+({'|'.join(map(re.escape, SUFFIXES))})$", re.IGNORECASE),
}


def detect_pictures(names: Iterable[str]) -> str | None:
    """Return the format that the names of a folder's files speak for, if any."""
    names = list(names)
    return next((format for format, sign in _SIGNS.items() if any(map(sign.search, names))), None)


def list_files(source: str) -> tuple[Files, dict[str, int]]:
    """Return the files of a folder or an `s3://` prefix, and the bytes of each by its name.

    Hidden files are left out, and notes beside pictures; `left_out` names them.

    Raises:
        ConfigError: if a name or a link leads out of the folder, or cannot be told to a person.
        NotFoundError: if there is no such folder.
    """
    files = open_files(source)
    if isinstance(files, Folder):
        _refuse_links(files)
    sizes = files.sizes()
    for name in sizes:
        refuse_hostile(name, files.uri)
    if any(name.lower().endswith(SUFFIXES) for name in sizes):
        sizes = {name: size for name, size in sizes.items() if not _NOTE.search(name)}
    return files, sizes


def left_out(files: Files, sizes: Mapping[str, int]) -> list[str]:
    """Return the names of the files of a folder or prefix that `list_files`, which has returned these, leaves out."""
    notes = [name for name in files.sizes() if name not in sizes]
    return sorted([*files.hidden(), *notes])


def refuse_hostile(name: str, place: str) -> None:
    """Refuse a file's name that leads elsewhere, or that a terminal would not show as it is."""
    if not is_plain(name) or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ConfigError(f"{place} must hold files with plain names, got {name!r}. Rename it.")


def path_of(files: Files, name: str) -> str:
    """Return what to call a file in a message."""
    return f"{files.uri.rstrip('/')}/{name}"


def default_name(files: Files) -> str:
    """Return a dataset's name made of the name of its folder or prefix."""
    return as_name(files.path.resolve().name if isinstance(files, Folder) else PurePosixPath(files.uri).name)


def with_test_split(splits: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the splits that hold anything; without a test split, as of ImageNet, validation is what one tests on."""
    found = {name: names for name, names in splits.items() if names}
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return {name: found[name] for name in ("train", "validation", "test") if name in found}


def mixed(count: int, options: SourceOptions) -> Ints:
    """Return the numbers below `count` in the order in which the files of a folder are stored.

    Folders are sorted by class, while neighbours in a row group shall be as different as any two files.
    """
    if options.order == "keep":
        return np.arange(count)
    return permutation(count, key=counter_key(_ORDER_KEY, options.seed or 0))


def cut_into_pieces(sizes: Sequence[int]) -> Iterator[slice]:
    """Yield ranges of files, each of at most `PIECE_FILES` and, unless it is one alone, `PIECE_BYTES`."""
    start = total = 0
    for row, size in enumerate(sizes):
        if row > start and (row - start == PIECE_FILES or total + size > PIECE_BYTES):
            yield slice(start, row)
            start, total = row, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))


def _refuse_links(folder: Folder) -> None:
    """Refuse links out of the folder, and those to folders, which would not be followed."""
    root = folder.path.resolve()
    for path in folder.entries():
        if path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(root)):
            raise ConfigError(
                f"{folder.path} must hold files, or links to files inside of it, got the link "
                f"{path.relative_to(folder.path).as_posix()!r} to {str(path.readlink())!r}. Copy what it stands for."
            )

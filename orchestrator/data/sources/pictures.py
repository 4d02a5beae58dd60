"""What all formats with pictures share: the form in which pictures are stored, raw or as files, and reading them."""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
from PIL import Image

from cluster.errors import ConfigError
from models.features import ImageFeature
from models.pictures import (
    MAX_PIXELS,
    STORED_FORMATS,
    PictureError,
    decode_picture,
    flatten,
    is_grey,
    is_turned,
    open_picture,
    to_array,
    upright_size,
)
from orchestrator.data.columns import Array, Column, Ragged
from orchestrator.data.sources.damaged import Damage, DamagedFileError, damaged_error
from orchestrator.data.sources.files import Files
from orchestrator.data.sources.options import SourceOptions

SOURCE_FORMATS = (*STORED_FORMATS, "BMP", "GIF", "WEBP", "TIFF")
RAW_VALUES = 64 * 64 * 3  # raw, such a picture takes 12 kB, no more than many a JPEG, and need not be decoded
DEFAULT_SIDE = 224  # what networks for ImageNet read
LOOKS = 1024  # pictures that are looked at to choose the form; all of them in a small source

_STORED_AS_THEY_ARE = (*STORED_FORMATS, "MPO")  # a JPEG with others behind it, as telephones write
_MOST_FILE_BYTES = 4 * MAX_PIXELS  # of a BMP or TIFF that holds its pixels as they are
_DECODE_THREADS = 4  # pillow decodes without holding the interpreter's lock
_CHUNK = 64  # pictures that a thread decodes before it takes the next ones

T = TypeVar("T")
Read = Callable[[int], bytes | None]
"""Returns the file of a picture by its row."""
Where = Callable[[int], str]
"""Returns what to call a picture in a message, by its row."""


@dataclass(frozen=True)
class Header:
    """What a picture's header says."""

    where: str
    width: int
    height: int
    channels: int
    is_turned: bool
    """Whether EXIF data say that the pixels have to be turned or mirrored; width and height are those after it."""

    @property
    def size(self) -> str:
        """As a message says it."""
        return f"{self.width} x {self.height}"


def read_picture(files: Files, name: str) -> bytes:
    """Return the file of a picture.

    Raises:
        ConfigError: if it is no regular file, or larger than any picture that is read.
    """
    return files.read(name, most_bytes=_MOST_FILE_BYTES)


def look_at_some(count: int, read: Read, where: Where, *, can_skip: bool = False) -> list[Header]:
    """Read the headers of up to `LOOKS` pictures, evenly spread over all; see `picture_column` for the errors."""
    rows = np.unique(np.linspace(0, count - 1, min(count, LOOKS)).astype(int)).tolist()
    return _all_whole(len(rows), lambda i: look_at(read(rows[i]), where(rows[i])), can_skip=can_skip)


def look_at(data: bytes | None, where: str) -> Header:
    """Read a picture's header.

    Raises:
        ConfigError: if there is no picture.
    """
    with _naming(where):
        picture = open_picture(data or b"", formats=SOURCE_FORMATS)
        width, height = upright_size(picture)
        return Header(where, width, height, channels=1 if is_grey(picture) else 3, is_turned=is_turned(picture))


def choose_form(looks: Sequence[Header], options: SourceOptions) -> ImageFeature:
    """Return how pictures are stored: raw if they are small and of one size, and otherwise as files.

    Raises:
        ConfigError: if they shall be raw and are not of one size.
    """
    first = looks[0]
    other = next((look for look in looks if look.size != first.size), None)
    channels = max(look.channels for look in looks)
    small = first.width * first.height * channels <= RAW_VALUES
    encoding = options.encoding or ("raw" if small and other is None and options.side is None else "file")
    if encoding == "file":
        side = options.side or DEFAULT_SIDE
        return ImageFeature(encoding="file", shape=(channels, side, side), mean=(), std=())
    if options.side is not None:
        raise ConfigError(f"side must be left out for encoding raw, which keeps the size, got {options.side}.")
    if other is not None:
        raise _another_size(other.where, other.size, f"{first.size} in {first.where}")
    return ImageFeature(encoding="raw", shape=(channels, first.height, first.width), mean=(), std=())


def picture_column(count: int, read: Read, where: Where, feature: ImageFeature, *, can_skip: bool = False) -> Column:
    """Return pictures in the form that was chosen; each is decoded, so that a damaged one is found now.

    Args:
        count: of the pictures.
        read: see `Read`.
        where: see `Where`.
        feature: the form.
        can_skip: whether the format has the option to leave damaged ones out.

    Raises:
        DamagedFilesError: naming all pictures that are damaged.
        ConfigError: naming one that does not fit.
    """
    if feature.encoding == "file":
        files = _all_whole(count, lambda row: _file(read(row), where(row), feature), can_skip=can_skip)
        return Ragged.of(files, dtype=np.uint8)
    images_NCHW = np.empty((count, *feature.shape), np.uint8)

    def decode(row: int) -> None:
        images_NCHW[row] = _pixels(read(row), where(row), feature)

    _all_whole(count, decode, can_skip=can_skip)
    return images_NCHW


def look_for_damage(count: int, read: Read, where: Where) -> list[Damage | None]:
    """Decode every picture, and return for each whether it is damaged."""

    def look(row: int) -> Damage | None:
        try:
            with _naming(where(row)):
                to_array(flatten(open_picture(read(row) or b"", formats=SOURCE_FORMATS), 3))
        except DamagedPictureError as error:
            return Damage(error)
        return None

    return _in_threads(count, look)


class DamagedPictureError(DamagedFileError):
    """A file is no whole picture."""


def _all_whole(count: int, do: Callable[[int], T], *, can_skip: bool) -> list[T]:
    """Return what is made of every picture.

    Raises:
        DamagedFilesError: naming all that are damaged.
    """

    def attempt(row: int) -> T | Damage:
        try:
            return do(row)
        except DamagedPictureError as error:
            return Damage(error)

    found = _in_threads(count, attempt)
    damaged = [one.error for one in found if isinstance(one, Damage)]
    if damaged:
        raise damaged_error(damaged, can_skip=can_skip)
    return [one for one in found if not isinstance(one, Damage)]


def _pixels(data: bytes | None, where: str, feature: ImageFeature) -> Array:
    with _naming(where):
        picture = _open(data, feature)
        width, height = upright_size(picture)
        if (height, width) != feature.shape[1:]:
            raise _another_size(where, f"{width} x {height}", f"{feature.shape[2]} x {feature.shape[1]} in others")
        return to_array(flatten(picture, feature.shape[0]))


def _file(data: bytes | None, where: str, feature: ImageFeature) -> Array:
    with _naming(where):
        picture = _open(data, feature)
        if picture.format in _STORED_AS_THEY_ARE:
            decode_picture(data or b"", feature.shape)
            return np.frombuffer(data or b"", np.uint8)
        png = io.BytesIO()
        flatten(picture, feature.shape[0]).save(png, "PNG")
        return np.frombuffer(png.getvalue(), np.uint8)


def _open(data: bytes | None, feature: ImageFeature) -> Image.Image:
    picture = open_picture(data or b"", formats=SOURCE_FORMATS)
    if feature.shape[0] == 1 and not is_grey(picture):
        raise PictureError("one with colours, while others are grey")
    return picture


def _in_threads(count: int, do: Callable[[int], T]) -> list[T]:
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    with ThreadPoolExecutor(_DECODE_THREADS) as pool:
        return list(chain.from_iterable(pool.map(lambda rows: [do(row) for row in rows], chunks)))


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except PictureError as error:
        raise DamagedPictureError(
            f"{where} must be a whole picture ({', '.join(SOURCE_FORMATS)}) of at most {MAX_PIXELS:,} pixels, got "
            f"{error}. Replace or remove it."
        ) from error


def _another_size(where: str, size: str, others: str) -> ConfigError:
    return ConfigError(
        f"pictures must have one size to be stored raw, got {size} in {where} and {others}. Let them be stored as "
        "files, with --option encoding=file, or resize them."
    )

"""Files that a person names are regular ones of bounded size: a pipe never ends, and neither does ``/dev/zero``.

What is packed may not unpack to much more than it is, either: a bomb is refused before it fills a disk or the memory.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from cluster.errors import ConfigError

MOST_RATIO = 200  # text shrinks to a tenth, sparse text to a fiftieth; a bomb to a thousandth
_SMALL_BYTES = 64 * 2**20  # below, no ratio is a danger
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class MissingFileError(ConfigError):
    """A file that was named is not on this machine."""


def most_unpacked_bytes(num_bytes: int) -> int:
    """Return how many bytes a packed file of ``num_bytes`` may become."""
    return _SMALL_BYTES + MOST_RATIO * num_bytes


def read_file(path: str | Path, *, most_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        ConfigError: It is a folder, a pipe or a device, has more than ``most_bytes``, or may not be read.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most_bytes else file.read(most_bytes + 1)
    if max(size, len(data)) > most_bytes:  # a file of /proc has no size, and some content
        raise ConfigError(f"{path} must have at most {most_bytes:,} bytes, got {max(size, len(data)):,}.")
    return data


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        MissingFileError: There is none.
        ConfigError: It is a folder, a pipe or a device, or may not be read.
    """
    try:
        require_file(path, Path(path).stat())  # to open a device may do something
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        kind = MissingFileError if isinstance(error, FileNotFoundError) else ConfigError
        raise kind(f"{path} must be a file that can be read, got {_reason(error)}.") from None
    file = os.fdopen(descriptor, "rb")
    try:
        require_file(path, os.fstat(descriptor))  # it may be another one since
    except BaseException:
        file.close()
        raise
    return file


def require_file(path: object, found: os.stat_result) -> None:
    """Refuse what is no regular file.

    Raises:
        ConfigError: It is a folder, a pipe or a device.
    """
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise ConfigError(f"{path} must be a regular file, got {kind}.")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

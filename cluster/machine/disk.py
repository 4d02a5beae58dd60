"""Full disks: how much room there is, and one error that names the disk, who needs it and the cure."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.config import StoreSettings
from cluster.errors import DiskFullError
from cluster.machine.private import HOME_VARIABLE
from cluster.machine.state import home

STORE_FOLDER = "store"
STORE_LOG = Path("logs", "store.log")
MOST_LOG_BYTES = 16 * 2**20
KEPT_LOG_BYTES = 2**20
STUCK_BYTES = 64 * 2**10  # of the log's end: what the server says of the writes that it refuses now
_STUCK = re.compile(rb"no space left on device|No writable volumes")
LEAST_VOLUME_BYTES = 8 * 2**20  # two of the pieces in which the server keeps objects
MOST_VOLUME_BYTES = 2**30


def is_disk_full(error: BaseException) -> bool:
    """Whether the system said that the disk is full, or the user's share of it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def naming_disk(path: Path, *, need: str = "what is to be written") -> Iterator[None]:
    """Turn the system's word that the disk is full into an error that names it.

    Args:
        path: what is written, or the folder in which.
        need: what the room is for.

    Raises:
        DiskFullError: the disk of ``path`` has no room.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full_error(error, path=path, need=need) from error
        raise


def disk_full_error(error: OSError, *, path: Path | None = None, need: str = "what is to be written") -> DiskFullError:
    """Return the error that names the disk.

    Args:
        error: what the system said; often without a file's name.
        path: what was written; default: the file that the system named, else the fullest disk that we write to.
        need: what the room is for.
    """
    if path is None:
        path = Path(error.filename) if isinstance(error.filename, str) else _fullest()
    return _no_room(path, need, "your quota used up" if error.errno == errno.EDQUOT else f"a full one ({_room(path)})")


def require_room(folder: Path, num_bytes: int, *, need: str = "") -> None:
    """Refuse to begin what cannot end.

    Args:
        folder: where it is to be written; it need not exist yet.
        num_bytes: how much.
        need: what the room is for; default: the bytes.

    Raises:
        DiskFullError: the disk has less room than that.
    """
    if num_bytes > shutil.disk_usage(_existing(folder)).free:
        raise _no_room(folder, f"{need} ({_size(num_bytes)})" if need else _size(num_bytes), _room(folder))


# ---- the local store


def volume_bytes(total: int) -> int:
    """Return the size of the files in which the local store keeps objects, on a disk of so many bytes.

    The largest power of two that is at most a hundredth of the disk, between 8 MiB and 1 GiB. The server stops where
    a hundredth of the disk is left; it needs the room of one such file to give back that of deleted objects.
    """
    return min(MOST_VOLUME_BYTES, max(LEAST_VOLUME_BYTES, 1 << (max(1, total // 100).bit_length() - 1)))


def least_store_bytes(folder: Path) -> int:
    """Return the free bytes below which the local store takes no new objects on the disk of this folder."""
    total = shutil.disk_usage(_existing(folder)).total
    return max(total // 100, volume_bytes(total))


def is_local_store(settings: StoreSettings) -> bool:
    """Whether this is the store that ``orchestrator up`` started on this machine."""
    return _folder_of(settings) is not None


def full_store_error(settings: StoreSettings) -> DiskFullError | None:
    """Return what to raise if this is the local store and its disk is full; the store's log says so too."""
    folder = _folder_of(settings)
    if folder is None or shutil.disk_usage(folder).free >= least_store_bytes(folder):
        return None
    error = _no_room(folder, f"the local store ({_size(least_store_bytes(folder))})", _room(folder))
    _write_in_log(folder.parent / STORE_LOG, f"the store is full: {error}\n")
    return error


def is_stuck_after_full_disk(settings: StoreSettings) -> bool:
    """Whether the local store has room again and may refuse writes all the same.

    Its index fails for good once it met a full disk, and it looks for room once a minute. A new start ends both.
    """
    folder = _folder_of(settings)
    if folder is None or shutil.disk_usage(folder).free < least_store_bytes(folder):
        return False
    return _STUCK.search(_tail(folder.parent / STORE_LOG, STUCK_BYTES)) is not None


def bound_store_log(log_file: Path) -> None:
    """Cut the beginning off a log that has become long; its server appends to whatever is left."""
    if not log_file.exists() or log_file.stat().st_size <= MOST_LOG_BYTES:
        return
    with log_file.open("r+b") as file:
        file.seek(-KEPT_LOG_BYTES, os.SEEK_END)
        kept = file.read()
        file.truncate(0)
    with log_file.open("ab") as file:
        file.write(kept)


def _folder_of(settings: StoreSettings) -> Path | None:
    """Return the folder with the local store's objects, which lies beside the keys that only this store has."""
    if settings.credentials_file is None:
        return None
    folder = Path(settings.credentials_file).parent / STORE_FOLDER
    return folder if (folder.parent / "seaweed" / "s3.json").exists() and folder.is_dir() else None


def _write_in_log(log_file: Path, line: str) -> None:
    """Say it in the log once, until something else is said there."""
    with suppress(OSError):  # the log may lie on the very disk that is full
        bound_store_log(log_file)
        if not _tail(log_file, len(line.encode())).endswith(line.encode()):
            with log_file.open("ab") as file:
                file.write(line.encode())


def _tail(log_file: Path, num_bytes: int) -> bytes:
    with log_file.open("rb") as file:
        file.seek(max(0, log_file.stat().st_size - num_bytes))
        return file.read()


# ---- words


def _no_room(path: Path, need: str, found: str) -> DiskFullError:
    return DiskFullError(f"the disk of {path} must have room for {need}, got {found}. {_cure(path)}")


def _room(path: Path) -> str:
    place = _existing(path)
    usage, system = shutil.disk_usage(place), os.statvfs(place)
    if system.f_files and not system.f_favail:
        return f"no file more, of {system.f_files}, at {_mount_point(place)}"
    return f"{_size(usage.free)} free of {_size(usage.total)} at {_mount_point(place)}"


def _cure(path: Path) -> str:
    for folder, variable in ((home(), HOME_VARIABLE), (Path(tempfile.gettempdir()), "TMPDIR")):
        if path.absolute().is_relative_to(folder):
            return f"Free space, or set {variable} to a folder on another disk."
    return "Free space, or choose a place on another disk."


def _mount_point(path: Path) -> Path:
    place = path.resolve()
    return next(folder for folder in (place, *place.parents) if folder.is_mount() or folder == folder.parent)


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _fullest() -> Path:
    candidates = (home(), Path(tempfile.gettempdir()), Path.cwd())
    return min(candidates, key=lambda place: shutil.disk_usage(_existing(place)).free)


def _size(num_bytes: int) -> str:
    if num_bytes < 2**20:
        return f"{num_bytes} bytes"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.1f} GiB"

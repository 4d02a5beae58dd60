"""Folders and files that no other account of this machine can enter, and the check that they still are."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.errors import ClusterError, ConfigError

NOT_OURS_TO_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP)
HOME_VARIABLE = "ORCHESTRATOR_HOME"
CACHE_VARIABLE = "ORCHESTRATOR_CACHE"
DEFAULT_HOME = "~/.orchestrator"
FOLDERS = {HOME_VARIABLE: DEFAULT_HOME, CACHE_VARIABLE: ""}
"""Variable that names a folder of ours -> what it is without one, where that is in the home."""


@contextmanager
def naming_folder() -> Iterator[None]:
    """Turn the system's word that a file cannot be written, or read, into an error that says whose folder it is in.

    Raises:
        ConfigError: The folder, or the file, is not one that this account can use.
    """
    try:
        yield
    except OSError as error:
        raise refused_error(error) or error from None


def refused_error(error: OSError) -> ConfigError | None:
    """Return the error that names the folder or the file; ``None`` if the system said something else."""
    if error.errno not in NOT_OURS_TO_WRITE or not isinstance(error.filename, str | bytes):
        return None
    path, reason = Path(os.fsdecode(error.filename)), error.strerror
    for variable, default in FOLDERS.items():
        chosen = os.environ.get(variable)
        folder = _absolute(chosen or default)
        if folder and (path.is_relative_to(folder) or folder.is_relative_to(path)):
            named = f"{variable}={chosen}" if chosen else f"{default} (without {variable})"
            return ConfigError(
                f"{named} must be a folder that this account can write, got {path}: {reason}. "
                f"Set {variable} to another folder."
            )
    return ConfigError(f"{path} must be a path that this account can use, got: {reason}. Name another.")


def _absolute(place: str) -> Path | None:
    """Return where a folder is; ``None`` if it is not named, or in the home of nobody."""
    with suppress(RuntimeError):
        return Path(place).expanduser().absolute() if place else None
    return None


def private_folder(path: Path) -> Path:
    """Create the folder if it is missing, close it to other accounts and return it.

    Raises:
        ClusterError: It belongs to somebody else, or is a link.
        ConfigError: It cannot be created.
    """
    with naming_folder():
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileNotFoundError as error:  # in /proc, which takes no folders
            raise PermissionError(errno.EACCES, error.strerror, str(path)) from None
        if not path.is_symlink() and path.stat().st_uid == os.geteuid():
            path.chmod(0o700)
    require_private(path)
    return path


def require_private(path: Path, *, cure: str = "Name another folder, or take it away.") -> None:
    """Refuse a folder that another account could read, fill or replace.

    Raises:
        ClusterError: It is not ours, is a link, or its mode lets others in.
    """
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise ClusterError(f"{path} must be a folder and no link, got another kind of file. {cure}")
    if found.st_uid != os.geteuid():
        raise ClusterError(f"{path} must belong to this account, got user id {found.st_uid}. {cure}")
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise ClusterError(f"{path} must be closed to other accounts (mode 700), got mode {mode:o}. {cure}")


def write_private(path: Path, text: str | bytes) -> None:
    """Write a file that was never readable by others, not even for a moment; it appears whole.

    Raises:
        ConfigError: It cannot be written.
    """
    fresh = path.with_name(path.name + ".new")
    with naming_folder():
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
        fresh.replace(path)

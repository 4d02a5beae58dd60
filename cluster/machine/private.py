"""Folders and files that no other account of this machine can enter, and the check that they still are."""

import os
import stat
from pathlib import Path

from cluster.errors import ClusterError


def private_folder(path: Path) -> Path:
    """Create the folder if it is missing, close it to other accounts and return it.

    Raises:
        ClusterError: It belongs to somebody else, or is a link.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
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
    """Write a file that was never readable by others, not even for a moment; it appears whole."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
    fresh.replace(path)

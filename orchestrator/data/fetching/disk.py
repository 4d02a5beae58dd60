"""Keeps downloads whole on this machine's disk: room, locks and checksums."""

import fcntl
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.machine.disk import naming_disk
from cluster.machine.private import naming_folder

log = logging.getLogger(__name__)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


# ---- the disk


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Make what `path` is to hold in one process and thread at a time; the lock ends with its process."""
    with naming_disk(path), naming_folder():
        path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process is making %s: waiting for it", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

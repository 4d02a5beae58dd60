"""Row groups kept on this machine for the next epoch, shared by all its workers and runs.

A row group is one file, named by the SHA-256 of what was fetched: decoded, in Arrow's own format, so that all who read
it map the same memory. A file appears whole, by a rename, and is never changed; removing one does not hurt those who
have mapped it. Therefore any number of workers and runs may use one folder, without a server between them.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

import pyarrow as pa

from cluster.errors import ClusterError
from cluster.machine.private import CACHE_VARIABLE, require_private

IDLE_S = 3600.0  # a file that nobody has opened for so long may make room for another

_SHARE_LEFT_FREE = 0.1  # of the disk or of shared memory, which Ray uses too
_DIGEST_BYTES = 32
_SUFFIX = ".arrow"

log = logging.getLogger(__name__)

Kind = Literal["memory", "disk", "none"]


def open_cache(kind: Kind, limit_mb: int) -> "Cache | None":
    """Return the machine's cache of a kind; None if there is to be none."""
    return None if kind == "none" or limit_mb == 0 else Cache(cache_folder(kind), limit_mb * 2**20)


def cache_folder(kind: Kind) -> Path:
    """Return where a kind of cache lies: in shared memory, or in the folder for temporary files.

    ``$ORCHESTRATOR_CACHE`` names another place for both.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    memory = Path("/dev/shm")
    root = memory if kind == "memory" and memory.is_dir() else Path(tempfile.gettempdir())
    return Path(chosen) / kind if chosen else root / f"orchestrator-cache-{os.getuid()}"


class Cache:
    """One folder of row groups, bounded in size. Thread-safe, and safe between processes.

    It is only ever a shortcut: when the disk is full or a file is damaged, the store is read instead.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._tables: dict[str, pa.Table] = {}
        self._closed_for = False
        self._lock = threading.Lock()

    def get(self, key: str) -> pa.Table | None:
        """Return what is kept under a key, without a copy. The first time it is verified."""
        if key in self._tables:
            return self._tables[key]
        path = self.folder / (key + _SUFFIX)
        try:
            _require_ours(self.folder)
            table = _read(path)
        except OSError:
            return None
        if table is None:
            log.warning("%s is damaged; it is removed, and the store read instead", path)
            path.unlink(missing_ok=True)
            return None
        self._tables[key] = table
        return table

    def put(self, key: str, table: pa.Table) -> pa.Table:
        """Keep a table if there is room, and return it: from the cache if it is there now."""
        if self._closed_for or key in self._tables:
            return table
        try:
            self._write(key, table)
        except OSError as error:
            with self._lock:
                if not self._closed_for:
                    log.warning("the cache %s takes no more: %s; the rest is read from the store", self.folder, error)
                self._closed_for = True
            return table
        return self.get(key) or table

    def _write(self, key: str, table: pa.Table) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_ours(self.folder)
        size = table.nbytes
        with _alone(self.folder):
            if not _make_room(self.folder, size, self.limit_bytes):
                return
            part = self.folder / f".{uuid4().hex}.part"
            try:
                _write(part, table)
                part.rename(self.folder / (key + _SUFFIX))
            finally:
                part.unlink(missing_ok=True)


def _require_ours(folder: Path) -> None:
    """Raise OSError where another account could have written what would be read."""
    try:
        require_private(folder)
    except ClusterError as error:
        raise OSError(str(error)) from error


def clear_cache(kind: Kind) -> int:
    """Remove a kind of cache from this machine, and return its bytes."""
    folder = cache_folder(kind)
    is_there = os.access(folder, os.R_OK | os.X_OK)  # what this account cannot look into, it has not filled
    size = sum(size for _, size, _ in _files(folder)) if is_there else 0
    shutil.rmtree(folder, ignore_errors=True)
    return size


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes and threads from writing meanwhile; the kernel frees the lock of one that is killed."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_room(folder: Path, size: int, limit_bytes: int) -> bool:
    """Remove what is idle until `size` bytes fit, and return whether they do.

    What is in use is not evicted: every epoch reads all row groups once, so what was read longest ago is needed next.
    """
    files = sorted(_files(folder), key=lambda file: file[2])
    used = sum(size for _, size, _ in files)
    for path, bytes_, last_used in files:
        if used + size <= limit_bytes:
            break
        if time.time() - last_used > IDLE_S:
            path.unlink(missing_ok=True)
            used -= bytes_
    disk = shutil.disk_usage(folder)
    return used + size <= limit_bytes and disk.free - size > _SHARE_LEFT_FREE * disk.total


def _files(folder: Path) -> Iterator[tuple[Path, int, float]]:
    """Yield path, bytes and time of the last use of each file, those left by a killed process included."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                stat = entry.stat()
                yield Path(entry.path), stat.st_size, stat.st_mtime


def _write(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    with path.open("wb") as file:
        file.write(data)
        file.write(hashlib.sha256(data).digest())


def _read(path: Path) -> pa.Table | None:
    """Return the table in a file, mapped; None if its bytes do not match their SHA-256."""
    with pa.memory_map(str(path)) as file:
        data = file.read_buffer()
    content, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest.to_pybytes():
        return None
    os.utime(path)
    return pa.ipc.open_stream(content).read_all()

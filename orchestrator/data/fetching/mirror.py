"""Copies the objects under an `s3://` prefix, those that have changed only."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from cluster.errors import ConfigError, IntegrityError, StoreError
from cluster.machine.disk import naming_disk, require_room
from cluster.machine.files import read_file
from cluster.s3.store import ObjectInfo, Store
from cluster.s3.stored_json import MOST_BYTES, parse_json
from orchestrator.data.fetching.http import Progress, no_progress, replace_text

_RANGE_BYTES = 16 * 2**20  # of an S3 object in one request; bounds the memory that `_S3_THREADS` take
_S3_THREADS = 8
_ROUNDS = 3  # of copying a prefix that changes meanwhile

log = logging.getLogger(__name__)


def mirror(
    store: Store,
    listed: Callable[[], list[ObjectInfo]],
    *,
    to: Path,
    record: Path,
    progress: Progress | None = None,
) -> None:
    """Make a folder hold what a listing names, fetching only objects that have changed since the last time.

    Args:
        store: what the keys are relative to.
        listed: lists the objects; called again at the end, since objects may change while they are copied.
        to: the folder.
        record: a file that remembers the etags.
        progress: told about every object.

    Raises:
        ConfigError: if a key cannot be a path.
        StoreError: if the objects change all the time.
        DiskFullError: if the disk has no room for them.
    """
    objects = listed()
    for _ in range(_ROUNDS):
        _check_keys([info.key for info in objects], store)
        _copy_changes(store, objects, to, record, progress or no_progress)
        before, objects = objects, listed()
        if [(info.key, info.etag) for info in objects] == [(info.key, info.etag) for info in before]:
            return
    raise StoreError(f"{store.settings.url} must stay the same while it is copied, got changes {_ROUNDS} times. Wait.")


def _check_keys(keys: Sequence[str], store: Store) -> None:
    folders = {str(parent) for key in keys for parent in PurePosixPath(key).parents}
    for key in keys:
        odd = (
            str(PurePosixPath(key)) != key
            or key.startswith("/")
            or ".." in key.split("/")
            or "\\" in key
            or "\0" in key
        )
        if odd or key in folders or len(key.rpartition("/")[2].encode()) > 240:  # a file name has 255
            raise ConfigError(
                f"an object of {store.settings.url} must have a key that can be a file's path, got {key!r}. Rename it."
            )


def _copy_changes(store: Store, objects: Sequence[ObjectInfo], to: Path, record: Path, progress: Progress) -> None:
    etags = _read_etags(record)
    for key in etags.keys() - {info.key for info in objects}:
        _remove(to, key)
        del etags[key]
    changed = [info for info in objects if etags.get(info.key) != info.etag or not _has_size(to / info.key, info.size)]
    total, done = sum(info.size for info in changed), 0
    to.mkdir(parents=True, exist_ok=True)
    require_room(to, total)
    pool = ThreadPoolExecutor(_S3_THREADS, thread_name_prefix="s3-copy")
    try:
        for info in pool.map(lambda info: _copy_object(store, info, to / info.key), changed):
            etags[info.key] = info.etag
            done += info.size
            progress(done, total, info.key)
    finally:
        pool.shutdown(cancel_futures=True)
        replace_text(record, json.dumps(etags))  # what is here need not come again


def _read_etags(record: Path) -> dict[str, str]:
    """Return what was copied the last time; where that record is damaged, everything is fetched again."""
    try:
        found = parse_json(read_file(record, most_bytes=MOST_BYTES), where=str(record)) if record.exists() else {}
    except (ConfigError, IntegrityError) as error:
        log.warning("copying all objects again: %s", error)
        found = {}
    return {str(key): str(etag) for key, etag in found.items()} if isinstance(found, dict) else {}


def _copy_object(store: Store, info: ObjectInfo, path: Path) -> ObjectInfo:
    """Copy one object, and compare its MD5 with its etag, if that is one; else two copies must be the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    etag = info.etag.strip('"')
    seen: list[str] = []
    while len(seen) < 3:
        digest = _copy_ranges(store, info, part)
        if digest == etag or not re.fullmatch("[0-9a-f]{32}", etag) or digest in seen:  # encrypted buckets: no MD5
            part.replace(path)
            return info
        seen.append(digest)
    raise IntegrityError(
        f"{info.key} of {store.settings.url} must come the same twice, got {len(seen)} different bodies."
    )


def _copy_ranges(store: Store, info: ObjectInfo, part: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with naming_disk(part), part.open("wb") as file:
        for start in range(0, info.size, _RANGE_BYTES):
            data = store.read_range(info.key, start=start, length=min(_RANGE_BYTES, info.size - start))
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _remove(root: Path, key: str) -> None:
    (root / key).unlink(missing_ok=True)
    for parent in PurePosixPath(key).parents:
        if parent == PurePosixPath(".") or not (root / parent).is_dir() or any((root / parent).iterdir()):
            return
        (root / parent).rmdir()


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size

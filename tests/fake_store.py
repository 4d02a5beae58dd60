"""A store in memory with the interface of `cluster.s3.store.Store`, for tests that need no server."""

import hashlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cluster.errors import IntegrityError, NotFoundError, PreconditionError
from cluster.s3.store import ObjectInfo


@dataclass(eq=False)
class MemoryStore:
    """Holds objects in a dictionary and logs every operation; `before` may fail one, `damage` may change a read."""

    objects: dict[str, bytes] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    before: Callable[[str, str], None] = lambda operation, key: None
    damage: Callable[[str, bytes], bytes] = lambda key, data: data
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def read(self, key: str, *, most_bytes: int | None = None) -> bytes:
        return self.read_with_etag(key, most_bytes=most_bytes)[0]

    def read_with_etag(self, key: str, *, most_bytes: int | None = None) -> tuple[bytes, str]:
        self._note("read", key)
        if most_bytes is not None and len(self._get(key)) > most_bytes:
            raise IntegrityError(f"{key} must have at most {most_bytes:,} bytes, got {len(self._get(key)):,}.")
        return self.damage(key, self._get(key)), _etag(self._get(key))

    def read_range(self, key: str, *, start: int, length: int) -> bytes:
        self._note("read_range", key)
        return self.damage(key, self._get(key)[start : start + length])

    def read_range_with_etag(self, key: str, *, start: int, length: int) -> tuple[bytes, str]:
        return self.read_range(key, start=start, length=length), _etag(self._get(key))

    def exists(self, key: str) -> bool:
        self._note("exists", key)
        return key in self.objects

    def folders(self, prefix: str = "") -> list[str]:
        self._note("folders", prefix)
        prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        rest = [key[len(prefix) :] for key in self.objects if key.startswith(prefix)]
        return sorted({name.split("/")[0] for name in rest if "/" in name})

    def write(self, key: str, data: bytes, *, only_if_absent: bool = False, only_if_etag: str | None = None) -> str:
        self._note("write", key)
        with self._lock:
            if only_if_absent and key in self.objects:
                raise PreconditionError(f"{key} must not exist, got an object.")
            if only_if_etag is not None and _etag(self.objects.get(key, b"")) != only_if_etag:
                raise PreconditionError(f"{key} must be unchanged, got another etag.")
            self.objects[key] = bytes(data)
        return _etag(data)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._note("delete", key)
            self.objects.pop(key, None)

    def list(self, prefix: str = "") -> "list[ObjectInfo]":
        self._note("list", prefix)
        now = datetime.now(UTC)
        return [
            ObjectInfo(key, len(data), _etag(data), now)
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        ]

    def check(self) -> None:
        """Nothing can be wrong with its address or its keys."""

    def count(self, operation: str) -> int:
        """Return how often an operation was called."""
        return sum(1 for done, _ in self.log if done == operation)

    def _note(self, operation: str, key: str) -> None:
        self.before(operation, key)
        with self._lock:
            self.log.append((operation, key))

    def _get(self, key: str) -> bytes:
        if key not in self.objects:
            raise NotFoundError(f"{key} must exist, got nothing.")
        return self.objects[key]


def _etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()

"""The files of a source, in a folder or under an `s3://` prefix, read alike and from any machine."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from stat import S_ISDIR
from typing import Protocol

from cluster.config import StoreSettings
from cluster.errors import ConfigError, IntegrityError
from cluster.machine.files import open_file, read_file, require_file
from cluster.s3.connection import check_endpoint
from cluster.s3.store import ObjectInfo, Store, parse_url
from cluster.s3.urls import shown_url
from cluster.storage import open_store

SCHEME = "s3://"
_NO_DATA = ("thumbs.db", "desktop.ini", "_success")  # in lower case; what Windows and Hadoop leave in a folder
MOST_BYTES = 2**33  # of a file that is read whole
_CREDENTIALS = "~/.aws/credentials"  # where boto3 looks


class Files(Protocol):
    """Files with names relative to one place; pickles without any secret."""

    @property
    def uri(self) -> str:
        """The place, as a person wrote it."""

    @property
    def is_everywhere(self) -> bool:
        """Whether every machine of a cluster can read them."""

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file by its name, in the names' order; hidden files are left out."""

    def hidden(self) -> list[str]:
        """Return the names of the hidden files; see `is_hidden`."""

    def stamps(self, names: Sequence[str]) -> list[str]:
        """Return for each of the files what changes when its content does: its size and time, or its etag."""

    def read(self, name: str, *, most_bytes: int = MOST_BYTES) -> bytes:
        """Return a file's content.

        Raises:
            ConfigError: if it is no regular file, or larger than that.
        """

    def pieces(self, name: str, num_bytes: int) -> Iterator[bytes]:
        """Yield a file's content, so many bytes at a time, but for the last piece.

        Raises:
            ConfigError: if it is no regular file, or another one by the end.
        """

    def head(self, name: str, num_bytes: int) -> bytes:
        """Return the beginning of a file's content."""


@dataclass(frozen=True)
class Folder:
    """A folder of this machine."""

    path: Path

    is_everywhere = False

    @property
    def uri(self) -> str:
        """The folder."""
        return str(self.path)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file below the folder."""
        return dict(sorted((name, _size(path)) for name, path in self._paths().items() if not is_hidden(name)))

    def hidden(self) -> list[str]:
        """Return the names of the hidden files below the folder."""
        return sorted(filter(is_hidden, self._paths()))

    def _paths(self) -> dict[str, Path]:
        return {path.relative_to(self.path).as_posix(): path for path in self.entries() if not path.is_dir()}

    def entries(self) -> Iterator[Path]:
        """Yield all that lies below the folder, however deep; folders that are linked to are not entered."""
        folders = [self.path]
        while folders:
            try:
                found = {path: path.lstat() for path in sorted(folders.pop().iterdir())}
            except OSError as error:
                raise ConfigError(f"{self.path} must be a folder that can be read, got {error.strerror}.") from error
            yield from found
            folders += [path for path, status in found.items() if S_ISDIR(status.st_mode)]

    def stamps(self, names: Sequence[str]) -> list[str]:
        """Return the size of each file and when it was written."""
        found = [(self.path / name).stat() for name in names]
        return [f"{status.st_size}-{status.st_mtime_ns}" for status in found]

    def read(self, name: str, *, most_bytes: int = MOST_BYTES) -> bytes:
        """Return a file's content."""
        return read_file(self.path / name, most_bytes=most_bytes)

    def pieces(self, name: str, num_bytes: int) -> Iterator[bytes]:
        """Yield a file's content, so many bytes at a time, but for the last piece."""
        with open_file(self.path / name) as file:
            while piece := file.read(num_bytes):
                yield piece

    def head(self, name: str, num_bytes: int) -> bytes:
        """Return the beginning of a file's content."""
        with open_file(self.path / name) as file:
            return file.read(num_bytes)


@dataclass(frozen=True)
class Bucket:
    """A prefix of a bucket; each process connects with its own keys."""

    settings: StoreSettings

    is_everywhere = True

    @property
    def uri(self) -> str:
        """The `s3://` address."""
        return self.settings.url

    def exists(self, name: str) -> bool:
        """Return whether there is an object of this name."""
        return self._store.exists(name)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every object below the prefix."""
        return {info.key: info.size for info in self._objects if not is_hidden(info.key)}

    def hidden(self) -> list[str]:
        """Return the names of the hidden objects below the prefix."""
        return sorted(info.key for info in self._objects if is_hidden(info.key))

    @cached_property
    def _objects(self) -> list[ObjectInfo]:
        """All objects, listed once: a million of them take a minute."""
        return [info for info in self._store.list() if not is_marker(info)]

    def stamps(self, names: Sequence[str]) -> list[str]:
        """Return the etag of each object."""
        listed = self._objects if len(names) > 1 else self._store.list(names[0])
        found = {info.key: info.etag for info in listed}
        return [found[name] for name in names]

    def read(self, name: str, *, most_bytes: int = MOST_BYTES) -> bytes:
        """Return an object's content."""
        try:
            return self._store.read(name, most_bytes=most_bytes)
        except IntegrityError as error:
            raise ConfigError(f"{self.uri.rstrip('/')}/{error}") from None

    def pieces(self, name: str, num_bytes: int) -> Iterator[bytes]:
        """Yield an object's content, so many bytes at a time, but for the last piece."""
        found, etag = self._store.read_range_with_etag(name, start=0, length=num_bytes)
        start = 0
        while found:
            yield found
            start += len(found)
            if len(found) < num_bytes:
                return
            found, now = self._store.read_range_with_etag(name, start=start, length=num_bytes)
            if found and now != etag:
                raise ConfigError(
                    f"{self.uri.rstrip('/')}/{name} must stay as it is while it is read, got another one."
                )

    def head(self, name: str, num_bytes: int) -> bytes:
        """Return the beginning of an object's content."""
        return self._store.read_range(name, start=0, length=num_bytes)

    def __reduce__(self) -> tuple[type["Bucket"], tuple[StoreSettings]]:
        return (Bucket, (self.settings,))

    @cached_property
    def _store(self) -> Store:
        return Store(self.settings)


@dataclass(frozen=True)
class Access:
    """How an `s3://` source is reached where that is not as the store is; never a key."""

    profile: str | None = None
    """Profile in the credentials file."""
    endpoint_url: str | None = None


_ACCESS: ContextVar[Access | None] = ContextVar("access to the source", default=None)


@contextmanager
def reading_with(access: Access) -> Iterator[None]:
    """Let this thread's sources be reached so; the files that it opens keep it, wherever they are read."""
    token = _ACCESS.set(access)
    try:
        yield
    finally:
        _ACCESS.reset(token)


def open_source(source: str) -> Store:
    """Return the objects below an `s3://` prefix, reached as `reading_with` says, or else as the store is.

    Raises:
        ConfigError: if it is no such address.
    """
    try:
        parse_url(source)
    except ConfigError:
        raise ConfigError(
            f"source must be s3://BUCKET or s3://BUCKET/PREFIX, without '//' or '..' in the prefix, got "
            f"{shown_url(source)!r}. Correct it."
        ) from None
    access = _ACCESS.get()
    if access is None or access == Access():
        return open_store(source)
    check_endpoint(access.endpoint_url, name="--source-endpoint")
    if access.profile is None:  # then the keys are those of the store, at another address
        return Store(open_store(source).settings.model_copy(update={"endpoint_url": access.endpoint_url}))
    file = os.environ.get("AWS_SHARED_CREDENTIALS_FILE", _CREDENTIALS)  # workers are told the one of the store
    return Store(
        StoreSettings(url=source, profile=access.profile, endpoint_url=access.endpoint_url, credentials_file=file)
    )


def is_marker(info: ObjectInfo) -> bool:
    """Whether an object is an empty one that a console made for a folder, perhaps for the prefix itself."""
    return info.size == 0 and (not info.key or info.key.endswith("/"))


def open_files(source: str) -> Files:
    """Return the files of a folder or an `s3://` prefix.

    Raises:
        ConfigError: if there is no such folder, or it is a file.
    """
    if source.startswith(SCHEME):
        return Bucket(open_source(source).settings)
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"source must be a folder, got {source!r}, which does not exist.")
    if path.is_file():
        raise ConfigError(f"source must be a folder, got the file {source}. Give the folder that holds it.")
    if not path.is_dir():
        require_file(source, path.stat())
    return Folder(path.absolute())  # a worker of a cluster stands in another folder


def _size(path: Path) -> int:
    found = path.stat()
    require_file(path, found)
    return found.st_size


def is_hidden(name: str) -> bool:
    """Whether a file is not data: `.DS_Store`, `__MACOSX/…`, `Thumbs.db`, `_SUCCESS`; `_MG_1000.JPG` is."""
    parts = name.split("/")
    return parts[-1].lower() in _NO_DATA or any(part.startswith(".") or part == "__MACOSX" for part in parts)

"""The files of a source, in a folder or under an `s3://` prefix, read alike and from any machine."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from cluster.config import StoreSettings
from cluster.errors import ConfigError, NotFoundError
from cluster.storage import Store, open_store

SCHEME = "s3://"


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

    def read(self, name: str) -> bytes:
        """Return a file's content."""


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
        files = (path for path in self.path.rglob("*") if path.is_file())
        sizes = {path.relative_to(self.path).as_posix(): path.stat().st_size for path in files}
        return dict(sorted((name, size) for name, size in sizes.items() if not _is_hidden(name)))

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return (self.path / name).read_bytes()


@dataclass(frozen=True)
class Bucket:
    """A prefix of a bucket; each process connects with its own keys."""

    settings: StoreSettings

    is_everywhere = True

    @property
    def uri(self) -> str:
        """The `s3://` address."""
        return self.settings.url

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every object below the prefix."""
        objects = (info for info in self._store.list() if not info.key.endswith("/"))  # which stand for folders
        return {info.key: info.size for info in objects if not _is_hidden(info.key)}

    def read(self, name: str) -> bytes:
        """Return an object's content."""
        return self._store.read(name)

    def __reduce__(self) -> tuple[type["Bucket"], tuple[StoreSettings]]:
        return (Bucket, (self.settings,))

    @cached_property
    def _store(self) -> Store:
        return Store(self.settings)


def open_files(source: str) -> Files:
    """Return the files of a folder or an `s3://` prefix.

    Raises:
        NotFoundError: if there is no such folder.
        ConfigError: if it is a file.
    """
    if source.startswith(SCHEME):
        return Bucket(open_store(source).settings)
    path = Path(source)
    if not path.exists():
        raise NotFoundError(f"source must be a folder, got {source!r}, which does not exist.")
    if not path.is_dir():
        raise ConfigError(f"source must be a folder, got the file {source}. Give the folder that holds it.")
    return Folder(path.absolute())  # a worker of a cluster stands in another folder


def _is_hidden(name: str) -> bool:
    """Whether a file is not data: `.DS_Store`, `_SUCCESS`, `__MACOSX/…`."""
    return any(part.startswith((".", "_")) for part in name.split("/"))

"""Where a source's text files lie: one file, or a file for each split in a folder or under an `s3://` prefix."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.errors import ConfigError
from cluster.machine.files import most_unpacked_bytes
from orchestrator.data.sources.files import SCHEME, Files, Folder
from orchestrator.data.sources.picture_files import SPLIT_NAMES, default_name, list_files
from orchestrator.data.sources.rows import as_name

ALL = "all"
"""The split of a file that is not split yet."""

GZIPPED = ".gz"
_HEAD_BYTES = 2**20
_PIECE_BYTES = 2**24


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; as text, the place that an error names."""

    files: Files
    name: str

    def __str__(self) -> str:
        return f"{self.files.uri.rstrip('/')}/{self.name}"

    def pieces(self, num_bytes: int) -> Iterator[bytes]:
        """Yield the content, unpacked if it is gzipped, so many bytes at a time, but for the last piece."""
        found = self.files.pieces(self.name, num_bytes)
        return _of_size(self._unpacked(found, num_bytes), num_bytes) if self._is_gzipped else found

    def read(self) -> bytes:
        """Return the content, unpacked if it is gzipped."""
        return b"".join(self.pieces(_PIECE_BYTES))

    def head(self) -> bytes:
        """Return the beginning of the content."""
        head = self.files.head(self.name, _HEAD_BYTES)
        if not self._is_gzipped or not head:
            return head
        try:
            return zlib.decompressobj(wbits=31).decompress(head, _HEAD_BYTES)
        except zlib.error as error:
            raise self._no_gzip(error) from error

    @property
    def _is_gzipped(self) -> bool:
        return self.name.lower().endswith(GZIPPED)

    def _unpacked(self, pieces: Iterable[bytes], num_bytes: int) -> Iterator[bytes]:
        """Yield what gzipped bytes unpack to; a file may be several, one after another."""
        reader, packed, unpacked = zlib.decompressobj(wbits=31), 0, 0
        try:
            for piece in pieces:
                packed += len(piece)
                rest = piece
                while rest:
                    found = reader.decompress(rest, num_bytes)
                    unpacked += len(found)
                    if unpacked > most_unpacked_bytes(packed):
                        raise zlib.error("more than it should unpack to")
                    yield found
                    rest = reader.unconsumed_tail or reader.unused_data
                    if reader.eof and rest:
                        reader = zlib.decompressobj(wbits=31)
            if packed and not reader.eof:
                raise zlib.error("one that ends early")
        except zlib.error as error:
            raise self._no_gzip(error) from error

    def _no_gzip(self, error: zlib.error) -> ConfigError:
        return ConfigError(f"{self} must be a whole gzipped file, got {error}. Download it again.")


def _of_size(pieces: Iterable[bytes], num_bytes: int) -> Iterator[bytes]:
    """Yield the same bytes, so many at a time, but for the last piece."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= num_bytes:
            yield bytes(waiting[:num_bytes])
            del waiting[:num_bytes]
    if waiting:
        yield bytes(waiting)


def split_files(source: str, *, suffixes: Sequence[str], known: Sequence[str] = ()) -> dict[str, SourceFile]:
    """Return the file of each split, or one file under `ALL`.

    Args:
        source: a file of any name; or a folder or prefix with one file of these suffixes, or with `train.*` and
            `test.*` (and `validation.*`).
        suffixes: in lower case, with the dot; the files may be gzipped.
        known: names of files that are taken whatever lies beside them.

    Raises:
        ConfigError: if the folder holds something else.
    """
    path = Path(source)
    if not source.startswith(SCHEME) and path.is_file():
        return {ALL: SourceFile(Folder(path.parent), path.name)}
    files, sizes = list_files(source)
    names = tables_of([*sizes], suffixes=suffixes, known=known)
    splits: dict[str | None, SourceFile] = {
        SPLIT_NAMES.get(PurePosixPath(plain_name(name)).stem): SourceFile(files, name) for name in names
    }
    found: dict[str, SourceFile] = {
        split: splits[split] for split in ("train", "validation", "test") if split in splits
    }
    if len(names) == 1:
        return {ALL: SourceFile(files, names[0])}
    if len(found) < len(names) or not {"train", "test"} <= found.keys():
        raise ConfigError(
            f"{source} must hold one {' or '.join(suffixes)} file, or train{suffixes[0]} and test{suffixes[0]}, got "
            f"{', '.join(names) or 'none of them'}. Name the file itself, or rename them."
        )
    return found


def tables_of(names: Sequence[str], *, suffixes: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """Return the files of a folder that are read as rows; see `split_files`."""
    found = [name for name in names if "/" not in name and plain_name(name).endswith(tuple(suffixes))]
    return next(([name] for name in known if name in names), found)


def plain_name(name: str) -> str:
    """Return a file's name in lower case, without the suffix that says that it is gzipped."""
    return name.lower().removesuffix(GZIPPED)


def source_name(files: dict[str, SourceFile], *, generic: Sequence[str] = ()) -> str:
    """Return a dataset's name: that of its one file, or of the folder if there are several or its name is generic."""
    first = next(iter(files.values()))
    if ALL in files and first.name not in generic:
        return as_name(PurePosixPath(plain_name(first.name)).stem)
    return default_name(first.files)

"""Parquet files with pictures and labels, of which only parts are read, and what of them cannot be read."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import ConfigError
from cluster.s3.store import Store
from orchestrator.data.order import Ints
from orchestrator.data.sources.damaged import Damage, DamagedFileError, Examined
from orchestrator.data.sources.files import Bucket, Files, Folder
from orchestrator.data.sources.picture_files import path_of
from orchestrator.data.sources.pictures import look_for_damage

_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)


@dataclass(frozen=True)
class DamagedRows:
    """What of a file with pictures cannot be read."""

    errors: dict[str, ConfigError]
    """By the name of a row, or of a row group whose rows cannot be told apart."""
    row_groups: frozenset[int]
    """Of which no row can be read."""
    rows: Ints
    """Numbers of all rows that cannot be read, those of such row groups too."""


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file with pictures, by its footer and its labels."""

    files: Files
    name: str
    bytes: int
    picture_column: str
    label_column: str
    class_names: tuple[str, ...] | None
    """From the metadata that Hugging Face writes."""
    row_groups: tuple[tuple[int, int], ...]
    """Rows and bytes of each."""
    labels: pa.ChunkedArray
    """Of the rows that are kept."""
    kept: Ints
    """Numbers of these rows."""
    unreadable: frozenset[int] = frozenset()
    """Row groups of which no row can be read."""

    @property
    def row_starts(self) -> list[int]:
        """Number of each row group's first row; one more entry closes the last."""
        return [0, *accumulate(rows for rows, _ in self.row_groups)]

    @property
    def readable(self) -> list[int]:
        """The other row groups."""
        return [group for group in range(len(self.row_groups)) if group not in self.unreadable]

    def rows_of(self, row_groups: Sequence[int]) -> Ints:
        """Return the numbers of the rows of some row groups, kept or not."""
        starts = self.row_starts
        return np.concatenate([np.arange(starts[group], starts[group + 1]) for group in row_groups])

    def damage(self, row_groups: Sequence[int] | None = None) -> DamagedRows:
        """Decode every picture of some row groups, or of all, one group after another."""
        starts, unreadable = self.row_starts, set()
        errors: dict[str, ConfigError] = {}
        rows: list[int] = []
        with opened(self.files, self.name, self.bytes) as content:
            for group in self.readable if row_groups is None else row_groups:
                start, stop = starts[group], starts[group + 1]
                found = _look_at(content, group, column=self.picture_column, start=start, place=self.place)
                if isinstance(found, Damage):
                    errors[f"row group {group} of {self.name} (rows {start} to {stop - 1})"] = found.error
                    unreadable.add(group)
                    rows += range(start, stop)
                    continue
                damaged = {row: one.error for row, one in enumerate(found, start) if one}
                errors |= {f"row {row} of {self.name}": error for row, error in damaged.items()}
                rows += damaged
        return DamagedRows(errors, frozenset(unreadable), np.array(rows, np.int64))

    def without(self, found: DamagedRows) -> "ParquetFile":
        """Return the file but for the rows that cannot be read."""
        kept = np.setdiff1d(self.kept, found.rows)
        return replace(self, labels=self.labels.take(pa.array(kept)), kept=kept, unreadable=found.row_groups)

    @property
    def place(self) -> str:
        """As messages call it."""
        return path_of(self.files, self.name)


def look_through(files: Sequence[ParquetFile], *, most_bytes: int | None) -> dict[str, DamagedRows]:
    """Return what cannot be read of each file; of files with more bytes than those only of the first ones."""
    found: dict[str, DamagedRows] = {}
    looked = 0
    for file in files:
        if most_bytes is not None and looked > most_bytes:
            break
        found[file.name] = file.damage()
        looked += file.bytes
    return found


def examined(files: Sequence[ParquetFile], pictures: Mapping[str, DamagedRows]) -> Examined:
    """Return what `look_through` has found as `refuse_or_record` takes it."""
    errors = {name: error for found in pictures.values() for name, error in found.errors.items()}
    total = sum(len(file.kept) for file in files)
    return Examined("pictures", total, errors, sum(len(found.rows) for found in pictures.values()))


def but_for(file: ParquetFile, pictures: Mapping[str, DamagedRows]) -> ParquetFile:
    """Return a file without the rows that `look_through` has found damaged."""
    return file.without(pictures[file.name]) if file.name in pictures else file


@contextmanager
def opened(files: Files, name: str, num_bytes: int) -> Iterator[pq.ParquetFile]:
    """Open a file of which only parts are read.

    Raises:
        DamagedFileError: from the block too, if what is read there is no Parquet.
    """
    if isinstance(files, Bucket):
        content = pa.PythonFile(_Object(_store(files.settings), name, num_bytes), mode="r")
    else:
        assert isinstance(files, Folder)
        content = pa.OSFile(str(files.path / name))
    with content:
        try:
            yield pq.ParquetFile(content)
        except _DAMAGED as error:
            raise DamagedFileError(
                f"{path_of(files, name)} must be a whole Parquet file, got {_told(error)}. Download it again."
            ) from error


def _look_at(file: pq.ParquetFile, group: int, *, column: str, start: int, place: str) -> Damage | list[Damage | None]:
    """Return for each picture of a row group whether it is damaged, or that the whole group is."""
    try:
        table = file.read_row_group(group, [f"{column}.bytes"])
    except _DAMAGED as error:
        return Damage(
            DamagedFileError(f"row group {group} of {place} must be whole, got {_told(error)}. Download it again.")
        )
    encoded = table.column(column).combine_chunks().field("bytes")
    return look_for_damage(
        len(encoded), read=lambda row: encoded[row].as_py(), where=lambda row: f"row {start + row} of {place}"
    )


def _told(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


class _Object(io.RawIOBase):
    """An object of a bucket, of which only what is asked for is fetched."""

    def __init__(self, store: Store, key: str, size: int) -> None:
        self._store, self._key, self._size = store, key, size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._place)
        data = self._store.read_range(self._key, start=self._place, length=left if size < 0 else min(size, left))
        self._place += len(data)
        return data


_store = cache(Store)  # a connection for all files of a source

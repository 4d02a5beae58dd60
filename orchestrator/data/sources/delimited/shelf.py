"""What is too large for memory waits on disk: columns of text, arrays, and the rows of pieces."""

import mmap
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cluster.machine.disk import naming_disk
from orchestrator.data.columns import Array, Columns, Ragged
from orchestrator.data.order import Ints
from orchestrator.data.sources.prepared import Part

LARGE_BYTES = 2**27  # of text columns, from which on they and what is made of them wait on disk
PIECE_BYTES = 2**26  # of rows that wait on disk, about


class Shelf:
    """A folder that is gone with the last one who knows it. It pickles as its path: copies remove nothing."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="orchestrator-push-"))
        self._numbers = count()
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def __reduce__(self) -> tuple[type[Path], tuple[str]]:
        return (Path, (str(self.path),))

    def new_file(self) -> Path:
        """Return a path that nothing has."""
        return self.path / f"{next(self._numbers)}"

    def put(self, array: Array) -> Array:
        """Return the same numbers, which wait on disk until they are looked at."""
        path = self.new_file()
        with naming_disk(path, need="the columns of a large source"):
            array.tofile(path)
        return np.memmap(path, array.dtype, mode="r", shape=array.shape)


def let_go(arrays: Iterable[Array]) -> None:
    """Give back the memory of arrays that wait on disk; they are read again when they are looked at."""
    for array in arrays:
        place: object = array.base
        if isinstance(place, mmap.mmap):
            place.madvise(mmap.MADV_DONTNEED)


class TextColumns:
    """Columns of text that were added table by table, on disk from `LARGE_BYTES` on."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.num_rows = 0
        self.shelf: Shelf | None = None
        self._tables: list[pa.Table] = []
        self._stored: dict[str, str] = {}
        """The names of columns that were renamed, as they were added."""
        self._bytes = 0
        self._path: Path | None = None
        self._writer: parquet.ParquetWriter | None = None
        self._file: parquet.ParquetFile | None = None

    def add(self, table: pa.Table) -> None:
        """Add rows, whose columns are those of the rows before."""
        self.names = self.names or list(table.column_names)
        table = table.select(self.names)
        self.num_rows += table.num_rows
        self._bytes += table.nbytes
        self._tables.append(table)
        if self._bytes > LARGE_BYTES:
            self.shelf = self.shelf or Shelf()
            if not all(pa.types.is_dictionary(field.type) for field in table.schema):  # those are small
                self._write()

    def let_go(self, name: str) -> None:
        """Forget a column that has been read."""
        self._tables = [table.drop_columns([name]) for table in self._tables]
        pa.default_memory_pool().release_unused()

    def rename(self, old: str, new: str) -> None:
        """Call a column something else."""
        self.names = [new if name == old else name for name in self.names]
        self._stored[new] = old

    def column(self, name: str) -> pa.ChunkedArray:
        """Return all values of a column."""
        return pa.chunked_array(list(self.parts(name)), type=self._type(name))

    def parts(self, name: str) -> Iterator[pa.Array]:
        """Yield the values of a column, some at a time."""
        for table in self._read([name]):
            yield from table.column(name).chunks

    def table(self) -> pa.Table:
        """Return all columns."""
        return pa.concat_tables([*self._read(self.names)])

    def first(self, count: int) -> pa.Table:
        """Return the first rows."""
        return next(self._read(self.names)).slice(0, count)

    def _type(self, name: str) -> pa.DataType:
        schema = self._tables[0].schema if self._tables else self._reader().schema_arrow
        return schema.field(self._stored.get(name, name)).type

    def _read(self, names: list[str]) -> Iterator[pa.Table]:
        stored = [self._stored.get(name, name) for name in names]
        if self._path is None:
            yield from (table.select(stored).rename_columns(names) for table in self._tables)
            return
        reader = self._reader()
        for number in range(reader.num_row_groups):
            yield reader.read_row_group(number, columns=stored).select(stored).rename_columns(names)

    def _write(self) -> None:
        """Move what is in memory to the disk: plain values, which are read as fast as they are written."""
        assert self.shelf is not None, "there is so much"
        self._path = self._path or self.shelf.new_file()
        with naming_disk(self._path, need="the columns of a large source"):
            for table in self._tables:
                if self._writer is None:
                    self._writer = parquet.ParquetWriter(
                        self._path, table.schema, compression="none", use_dictionary=False, write_statistics=False
                    )
                self._writer.write_table(table, row_group_size=table.num_rows)
        self._tables = []

    def _reader(self) -> parquet.ParquetFile:
        if self._tables:
            self._write()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._file is None:
            self._file = parquet.ParquetFile(self._path)
        return self._file


# ---- pieces


@dataclass(frozen=True)
class Shelved:
    """Some rows that wait on disk."""

    place: Shelf | Path
    """Where; the rows are there as long as it is."""
    path: Path
    rows: int
    source_bytes: int
    """Of the rows in memory."""
    ragged: tuple[tuple[str, bool], ...]
    """Name of each column, and whether its rows are of different lengths."""

    def read(self) -> Columns:
        """Return the rows."""
        columns: Columns = {}
        with self.path.open("rb") as file:
            for name, is_ragged in self.ragged:
                values = np.load(file, allow_pickle=False)
                columns[name] = Ragged(values, np.load(file, allow_pickle=False)) if is_ragged else values
        return columns


def parts_of(columns: Mapping[str, Array], splits: Mapping[str, Ints], shelf: Shelf | None) -> dict[str, Part]:
    """Return the rows of each split, on disk if there is a shelf."""
    step = -(-PIECE_BYTES // sum(column.itemsize for column in columns.values()))

    def read(rows: Ints) -> Columns:
        return {name: column[rows] for name, column in columns.items()}

    return {
        split: Part.of(read(rows))
        if shelf is None
        else shelved(shelf, (read(rows[start : start + step]) for start in range(0, len(rows), step)))
        for split, rows in splits.items()
    }


def shelved(shelf: Shelf, blocks: Iterable[Columns]) -> Part:
    """Return a split whose rows are written to disk, each block a piece."""
    return Part(tuple(_piece(shelf, columns) for columns in blocks))


def _piece(shelf: Shelf, columns: Columns) -> Shelved:
    path = shelf.new_file()
    with naming_disk(path, need="the rows of a large source"), path.open("wb") as file:
        for column in columns.values():
            for array in (column.values, column.offsets) if isinstance(column, Ragged) else (column,):
                np.save(file, array, allow_pickle=False)
    return Shelved(
        place=shelf,
        path=path,
        rows=len(next(iter(columns.values()))),
        source_bytes=sum(column.nbytes for column in columns.values()),
        ragged=tuple((name, isinstance(column, Ragged)) for name, column in columns.items()),
    )

"""What is predicted: parts, whose rows are read when they are needed, and what tells their rows apart."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from orchestrator.data.columns import Columns
from orchestrator.data.sources.prepared import InMemory, Piece

MOST_ROWS = 65_536
"""Rows of a part: what an interruption loses, and what a worker has in memory."""

MOST_BYTES = 2**26
"""Bytes of a part before they are decoded, unless one row has more."""

FILLED = "\0filled"
"""Name of the column that holds which columns of a row had no value, [N, columns] bool; no feature has such a name."""


@dataclass(frozen=True)
class Place:
    """What tells the rows of a part apart."""

    first: int = 0
    """Number of the first row, from 0, in its file or split."""
    names: tuple[str, ...] | None = None
    """The names of the files, where each row is one."""
    file: str | None = None
    """The file that the rows are in, where there may be several."""
    split: str | None = None
    """The split of the dataset that the rows are in."""

    def columns(self, rows: int) -> dict[str, pa.Array]:
        """Return the columns that say which rows these are."""
        found = {name: value for name, value in (("split", self.split), ("file", self.file)) if value is not None}
        columns = {name: pa.array([value] * rows, pa.string()) for name, value in found.items()}
        ids = pa.array(self.names, pa.string()) if self.names else pa.array(np.arange(self.first, self.first + rows))
        return {**columns, "id": ids}

    def where(self, row: int) -> str:
        """Return what to call a row in a message."""
        if self.names is not None:
            return self.names[row]
        inside = self.file or (f"split {self.split}" if self.split else "")
        return f"row {self.first + row}" + (f" of {inside}" if inside else "")


@dataclass(frozen=True)
class SourcePart:
    """Some rows that follow each other, and their place."""

    piece: Piece
    place: Place


@dataclass(frozen=True)
class BatchSource:
    """All that is predicted."""

    uri: str
    """The dataset's name and version, or the file, folder or prefix."""
    parts: tuple[SourcePart, ...]
    stamps: tuple[str, ...]
    """What changes when the rows do."""
    is_everywhere: bool = True
    """Whether every machine of a cluster can read the rows."""
    filled: tuple[str, ...] = ()
    """The columns that a row may have no value of, in the order of the column `FILLED`."""

    def digest(self, weights_sha256: str) -> str:
        """Return the SHA-256 of what decides the answers."""
        rows = [part.piece.rows for part in self.parts]
        return hashlib.sha256(json.dumps([weights_sha256, self.uri, self.stamps, rows]).encode()).hexdigest()


def in_memory(columns: Columns, *, file: str | None = None) -> Iterator[SourcePart]:
    """Yield rows that are read already, cut into parts."""
    rows = len(next(iter(columns.values())))
    row_bytes = max(1, sum(column.nbytes for column in columns.values()) // max(1, rows))
    step = max(1, min(MOST_ROWS, MOST_BYTES // row_bytes))
    for start in range(0, rows, step):
        piece = InMemory({name: column[start : start + step] for name, column in columns.items()})
        yield SourcePart(piece, Place(first=start, file=file))


def runs(sizes: Sequence[int], *, most_rows: int = MOST_ROWS, most_bytes: int = MOST_BYTES) -> Iterator[range]:
    """Yield ranges of things of these bytes, each of so many things and bytes at most, unless it is one alone."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and (i - start == most_rows or total + size > most_bytes):
            yield range(start, i)
            start, total = i, 0
        total += size
    if sizes:
        yield range(start, len(sizes))

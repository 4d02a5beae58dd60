"""What every format makes of its source: features, a target, and splits in pieces that can be read alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from models.features import Feature
from orchestrator.data.columns import Columns, join
from orchestrator.data.manifest import DatasetTarget, Source


class Piece(Protocol):
    """Some rows of a split, read when they are needed, perhaps on another machine: it pickles, and holds no rows."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def source_bytes(self) -> int:
        """Bytes to be read for it, about."""

    def read(self) -> Columns:
        """Return the rows, as in `orchestrator/data/columns.py`; the same ones every time.

        Raises:
            ConfigError: if one is malformed; names the file and the row.
        """


@dataclass(frozen=True)
class InMemory:
    """A piece that has been read already, of a source that is small."""

    columns: Columns

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    @property
    def source_bytes(self) -> int:
        """Bytes of the columns."""
        return sum(column.nbytes for column in self.columns.values())

    def read(self) -> Columns:
        """Return the columns."""
        return self.columns


@dataclass(frozen=True)
class Part:
    """One split: its rows, piece after piece."""

    pieces: tuple[Piece, ...]
    context_rows: int = 0
    """Series only: leading rows that belong to the split before."""

    @classmethod
    def of(cls, columns: Columns, *, context_rows: int = 0) -> "Part":
        """Return a split that is in memory."""
        return cls((InMemory(columns),), context_rows)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(piece.rows for piece in self.pieces)

    @cached_property
    def columns(self) -> Columns:
        """All rows, read into memory."""
        read = [piece.read() for piece in self.pieces]
        return {name: join([columns[name] for columns in read]) for name in read[0]}


@dataclass(frozen=True)
class Prepared:
    """A source in the form in which it is written; statistics and vocabularies come from its training split."""

    name: str
    """A name for the dataset, if the person gives none."""
    features: Mapping[str, Feature]
    """A picture may leave its statistics empty (``mean=(), std=()``): they are found when the rows are read."""
    target: DatasetTarget
    splits: Mapping[str, Part]
    source: Source

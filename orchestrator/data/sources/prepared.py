"""What every format makes of its source: features, a target, and splits in pieces that can be read alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np

from models.features import Feature
from models.preparing.rows import RowSchema
from orchestrator.data.columns import Columns, join, take
from orchestrator.data.manifest import Change, DatasetTarget, Source
from orchestrator.data.order import Ints


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
class Without:
    """A piece but for some of its rows."""

    piece: Piece
    left_out: Ints

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.piece.rows - len(self.left_out)

    @property
    def source_bytes(self) -> int:
        """Bytes to be read for it, about."""
        return self.piece.source_bytes

    def read(self) -> Columns:
        """Return the other rows."""
        kept = np.setdiff1d(np.arange(self.piece.rows), self.left_out)
        return {name: take(column, kept) for name, column in self.piece.read().items()}


@dataclass(frozen=True)
class ChosenRows:
    """Some rows of a piece; make it with `of`."""

    piece: Piece
    chosen: Ints

    @classmethod
    def of(cls, piece: Piece, rows: Ints) -> Piece:
        """Return some rows of a piece, in memory if that is."""
        if isinstance(piece, InMemory):
            return InMemory({name: take(column, rows) for name, column in piece.columns.items()})
        return cls(piece, rows)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.chosen)

    @property
    def source_bytes(self) -> int:
        """Bytes to be read for it, about."""
        return self.piece.source_bytes

    def read(self) -> Columns:
        """Return the chosen rows."""
        return {name: take(column, self.chosen) for name, column in self.piece.read().items()}


def without(pieces: Sequence[Piece], rows: Ints) -> tuple[Piece, ...]:
    """Return the pieces without some rows, which are numbered over all pieces."""
    starts = np.cumsum([0, *(piece.rows for piece in pieces)])
    cut = [rows[(rows >= start) & (rows < stop)] - start for start, stop in pairwise(starts)]
    left = [Without(piece, gone) if len(gone) else piece for piece, gone in zip(pieces, cut, strict=True)]
    return tuple(piece for piece in left if piece.rows)


@dataclass(frozen=True)
class Part:
    """One split: its rows, piece after piece."""

    pieces: tuple[Piece, ...]
    context_rows: int = 0
    """Series only: leading rows that belong to the split before."""
    is_mixed: bool = False
    """Whether the rows come in a random order already, as files do that can be read in any."""

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


UNNAMED = " column "
"""What begins the name of a column that has none, a blank as no name in a file does; its place follows, from 1."""

_NAMED = 12  # columns that are named of those left out


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
    notes: tuple[str, ...] = ()
    """What was converted, filled or left out, a sentence each, with its numbers."""
    rows: RowSchema | None = None
    """How a row of the source becomes the features, if it has named columns."""
    keeps_order: bool = False
    """Whether the rows are written as they come, and not in a random order."""


def columns_left_out(names: Sequence[str]) -> tuple[str, ...]:
    """Say which columns of a source no model reads, those without a name by their place; nothing if there are none."""
    if len(names) < 2:
        return tuple(f"left out column {name.removeprefix(UNNAMED)}" for name in names)
    listed = ", ".join(name.removeprefix(UNNAMED) for name in names[:_NAMED])
    return (f"left out {len(names):,} columns: {listed}" + (", …" if len(names) > _NAMED else ""),)


def told(prepared: Prepared, *, licence: str | None) -> Source:
    """Return where data came from as the manifest says it, with everything that was changed on the way.

    Args:
        prepared: the data.
        licence: what is recorded instead of the source's own.
    """
    changes = (*prepared.source.changes, *(Change(text=note) for note in prepared.notes))
    return prepared.source.model_copy(update={"changes": changes, "licence": licence or prepared.source.licence})

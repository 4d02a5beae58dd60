"""Brings rows that are read piece by piece into another order, with the memory of a piece and a part at a time.

A *piece* is what is read in one go, a *part* what is written in one go. Every piece is cut into the rows of each part;
a part is put together from what all pieces have for it. In between the cuts wait on disk, so that memory does not
depend on the size of the source.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np

from cluster.machine.disk import naming_disk
from orchestrator.data.columns import Column, Columns, Ragged, join, take
from orchestrator.data.order import Ints
from orchestrator.data.sources.prepared import Piece

T = TypeVar("T")


class Cut(NamedTuple):
    """Rows of one piece that belong to one part."""

    places: Ints
    """[N], where each row lies in the new order."""
    columns: Columns


@dataclass(frozen=True)
class Regrouping:
    """Where rows go."""

    places: Ints
    """[N], the place in the new order of each row, counted over all pieces; each place once."""
    edges: tuple[int, ...]
    """Where each part of the new order begins, and where the last one ends."""

    @property
    def num_parts(self) -> int:
        """Parts that the new order is cut into."""
        return len(self.edges) - 1

    def of_piece(self, number: int, pieces: Sequence[Piece]) -> "Regrouping":
        """Return where the rows of one piece go."""
        start = sum(piece.rows for piece in pieces[:number])
        return Regrouping(self.places[start : start + pieces[number].rows], self.edges)


def cut(columns: Columns, regrouping: Regrouping) -> list[Cut]:
    """Return the rows of a piece for each part."""
    parts = np.searchsorted(regrouping.edges, regrouping.places, side="right") - 1
    order = np.argsort(parts.astype(np.uint16), kind="stable")  # small numbers are sorted without comparing them
    bounds = np.cumsum([0, *np.bincount(parts, minlength=regrouping.num_parts)])
    found = []
    for start, stop in pairwise(bounds.tolist()):
        rows = order[start:stop]
        found.append(Cut(regrouping.places[rows], {name: take(column, rows) for name, column in columns.items()}))
    return found


def put_together(cuts: Sequence[Cut]) -> Columns:
    """Return the rows of a part in their order, from what the pieces have for it."""
    order = inverse(np.concatenate([found.places for found in cuts]))
    return {name: take(join([found.columns[name] for found in cuts]), order) for name in cuts[0].columns}


def inverse(places: Ints) -> Ints:
    """Return which row lies at each of some places that follow one another, [N]."""
    order = np.empty(len(places), np.int64)
    order[places - places.min() if len(places) else places] = np.arange(len(places))
    return order


def in_memory(
    function: Callable[[int, Columns], T], pieces: Sequence[Columns], regrouping: Regrouping
) -> Iterator[tuple[int, T]]:
    """Call a function with each part of rows that are in memory; only one part of them is copied at a time."""
    order = inverse(regrouping.places)
    starts = np.cumsum([0, *(len(next(iter(columns.values()))) for columns in pieces)])
    for part, (start, stop) in enumerate(pairwise(regrouping.edges)):
        rows = order[start:stop]
        owner = np.searchsorted(starts, rows, side="right") - 1
        cuts = []
        for number in np.unique(owner).tolist():
            chosen = np.flatnonzero(owner == number)
            taken = {name: take(column, rows[chosen] - starts[number]) for name, column in pieces[number].items()}
            cuts.append(Cut(chosen, taken))
        yield part, function(part, put_together(cuts))


def on_disk(
    function: Callable[[int, Columns], T],
    pieces: Sequence[Piece],
    regrouping: Regrouping,
    read: Callable[[Piece], Columns],
) -> Iterator[tuple[int, T]]:
    """Call a function with each part, the rows waiting in a folder of their own until all pieces are read.

    Raises:
        ConfigError: if the disk is full.
    """
    with TemporaryDirectory(prefix="orchestrator-shuffle-") as folder:
        ragged: Mapping[str, bool] = {}
        for number, piece in enumerate(pieces):
            columns = read(piece)
            ragged = {name: isinstance(column, Ragged) for name, column in columns.items()}
            for part, found in enumerate(cut(columns, regrouping.of_piece(number, pieces))):
                _append(Path(folder, str(part)), found)
        for part in range(regrouping.num_parts):
            path = Path(folder, str(part))
            cuts = _read_all(path, ragged)
            path.unlink()
            yield part, function(part, put_together(cuts))


def _append(path: Path, found: Cut) -> None:
    if not len(found.places):
        return
    with naming_disk(path), path.open("ab") as file:
        np.save(file, found.places, allow_pickle=False)
        for column in found.columns.values():
            for array in (column.values, column.offsets) if isinstance(column, Ragged) else (column,):
                np.save(file, array, allow_pickle=False)


def _read_all(path: Path, ragged: Mapping[str, bool]) -> list[Cut]:
    cuts = []
    with path.open("rb") as file:
        while file.peek(1):
            places = np.load(file, allow_pickle=False)
            cuts.append(Cut(places, {name: _read_column(file, is_ragged) for name, is_ragged in ragged.items()}))
    return cuts


def _read_column(file: BinaryIO, is_ragged: bool) -> Column:
    values = np.load(file, allow_pickle=False)
    return Ragged(values, np.load(file, allow_pickle=False)) if is_ragged else values

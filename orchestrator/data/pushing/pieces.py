"""Calls a function with the rows of each piece: one after another here, or on Ray Data all over a cluster."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeVar

from cluster.address import resolve_address
from cluster.errors import ClusterError, ConfigError, OrchestratorError
from cluster.machine.files import MissingFileError
from cluster.process.scoped import scoped_environment, scoped_level
from cluster.s3.store import Store
from cluster.session import ray_session
from orchestrator.data.columns import Columns
from orchestrator.data.pushing.shuffling import Regrouping, cut, in_memory, on_disk, put_together
from orchestrator.data.sources.delimited.shelf import Shelved
from orchestrator.data.sources.prepared import InMemory, Piece

KEPT_BYTES = 2**30  # rows read the first time that are not read again the second
LARGE_BYTES = 2**30  # of a source, from which on the start of a cluster's workers pays
_QUIET = {"RAY_DATA_USAGE_DISABLED": "1"}  # else a thread asks Ray and port 9090 for figures until the process ends

OnCluster = Literal["auto", "always", "never"]

T = TypeVar("T")


class Runner(Protocol):
    """Somewhere to work through the pieces of a source."""

    def map(self, function: Callable[[int, Columns], T], pieces: Sequence[Piece]) -> Iterator[tuple[int, T]]:
        """Yield each piece's number and result, in any order."""

    def regroup(
        self, function: Callable[[int, Columns], T], pieces: Sequence[Piece], regrouping: Regrouping
    ) -> Iterator[tuple[int, T]]:
        """Yield each part's number and the result of calling the function with its rows, in any order."""


class Here:
    """This process. Decoding inside a piece uses several threads; small sources are read once and kept."""

    def __init__(self, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept: dict[int, Columns] = {}
        self._room = kept_bytes

    def map(self, function: Callable[[int, Columns], T], pieces: Sequence[Piece]) -> Iterator[tuple[int, T]]:
        """Yield each piece's number and result, in order."""
        for number, piece in enumerate(pieces):
            yield number, function(number, self._read(piece))

    def regroup(
        self, function: Callable[[int, Columns], T], pieces: Sequence[Piece], regrouping: Regrouping
    ) -> Iterator[tuple[int, T]]:
        """Yield each part's number and result, in order; what is not kept in memory waits on disk."""
        if all(id(piece) in self._kept or isinstance(piece, InMemory) for piece in pieces):
            return in_memory(function, [self._read(piece) for piece in pieces], regrouping)
        return on_disk(function, pieces, regrouping, self._read)

    def _read(self, piece: Piece) -> Columns:
        if id(piece) in self._kept:
            return self._kept[id(piece)]
        columns = piece.read()
        size = sum(column.nbytes for column in columns.values())
        if size <= self._room and not isinstance(piece, Shelved):  # which is read faster than it is made
            self._room -= size
            self._kept[id(piece)] = columns
        return columns


class OnRay:
    """The connected Ray cluster, through Ray Data: a piece is a block, so as many are worked on as there are CPUs."""

    def map(self, function: Callable[[int, Columns], T], pieces: Sequence[Piece]) -> Iterator[tuple[int, T]]:
        """Yield each piece's number and result, as they are ready."""
        if not pieces:  # nothing is left to be done: Ray Data has no such thing
            return
        import ray.data

        def work(row: dict[str, Any]) -> dict[str, Any]:
            number = int(row["piece"])
            try:
                return {"piece": number, "result": function(number, pieces[number].read()), "error": None}
            except (OrchestratorError, FileNotFoundError) as error:  # handed over: Ray loses what it wraps
                return {"piece": number, "result": None, "error": error}

        ray.data.DataContext.get_current().enable_progress_bars = False
        numbers = ray.data.from_items(
            [{"piece": number} for number in range(len(pieces))], override_num_blocks=len(pieces)
        )
        with scoped_environment(_QUIET), scoped_level("ray.data", logging.CRITICAL):  # what matters is raised
            for row in numbers.map(work).iter_rows():
                if row["error"] is not None:
                    raise _for_the_person(row["error"])
                yield row["piece"], row["result"]

    def regroup(
        self, function: Callable[[int, Columns], T], pieces: Sequence[Piece], regrouping: Regrouping
    ) -> Iterator[tuple[int, T]]:
        """Yield each part's number and result; the rows wait in Ray's object store, which goes on on disk."""
        import ray

        num_parts = regrouping.num_parts
        dealt = ray.remote(_deal).options(num_returns=num_parts)
        tables: list[Any] = [dealt.remote(piece, regrouping.of_piece(i, pieces)) for i, piece in enumerate(pieces)]
        columns = [[table] for table in tables] if num_parts == 1 else tables
        gathered = ray.remote(_gather)
        waiting = [gathered.remote(function, part, *(table[part] for table in columns)) for part in range(num_parts)]
        del tables, columns
        while waiting:
            (ready,), waiting = ray.wait(waiting, num_returns=1)
            part, result, error = ray.get(ready)
            if error is not None:
                raise _for_the_person(error)
            yield part, result


@contextmanager
def runner_for(
    pieces: Sequence[Piece], *, on_cluster: OnCluster, address: str | None, store: Store
) -> Iterator[Runner]:
    """Yield where to work: with ``auto`` the cluster, if one is there and the source is large, else this process.

    Raises:
        ClusterError: with ``always``, if no cluster is there.
    """
    large = sum(piece.source_bytes for piece in pieces) >= LARGE_BYTES and len(pieces) > 1
    if on_cluster == "never" or (on_cluster == "auto" and not (large and _has_cluster(address))):
        yield Here()
        return
    if any(isinstance(piece, Shelved) for piece in pieces) and not _has_cluster(address):
        raise ConfigError(
            "--cluster must be auto or never for a large source of text, which is read on this machine and waits on "
            "its disk, got always with a cluster elsewhere. Leave it out."
        )
    with ray_session(address, store=store.settings):
        yield OnRay()


def _has_cluster(address: str | None) -> bool:
    """Whether a cluster is named that can read what this machine reads, as far as can be told."""
    try:
        return resolve_address(address).local is not None
    except ClusterError:
        return False


def _for_the_person(error: Exception) -> Exception:
    if not isinstance(error, FileNotFoundError | MissingFileError):
        return error
    return ConfigError(
        f"the source must be readable on every machine of the cluster, got {error}. Copy it to the bucket and push its "
        "s3:// address, or prepare it here with --cluster never."
    )


def _deal(piece: Piece, regrouping: Regrouping) -> Any:
    """Return a piece's rows for each part, or what is wrong with the piece: Ray loses the errors that it wraps."""
    try:
        cuts: list[Any] = list(cut(piece.read(), regrouping))
    except (OrchestratorError, FileNotFoundError) as error:
        cuts = [error] * regrouping.num_parts
    return cuts if regrouping.num_parts > 1 else cuts[0]


def _gather(function: Callable[[int, Columns], T], part: int, *cuts: Any) -> tuple[int, T | None, Exception | None]:
    errors = [found for found in cuts if isinstance(found, Exception)]
    try:
        return (part, None, errors[0]) if errors else (part, function(part, put_together(cuts)), None)
    except OrchestratorError as error:
        return part, None, error

"""What must be known of all rows before the first is written: their digest, statistics, lengths, and copies."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cluster.errors import ConfigError
from models.features import Feature, ImageFeature
from models.pictures import Fit, decode_picture, fit_for
from orchestrator.data.columns import Array, Column, Columns, Ragged, columns_of, count_levels, level_statistics
from orchestrator.data.manifest import DatasetTarget
from orchestrator.data.row_hashes import row_hashes

COMPARED = {"image", "text", "audio", "vector", "sparse"}
"""Kinds that tell a row from another. Categories alone, and series, repeat by their nature."""

_PICTURES_PER_PIECE = 256  # of those kept as files, for the statistics: the mean is then known to a fraction of a level
_RAGGED = {"text", "audio", "sparse"}


@dataclass(frozen=True)
class Scan:
    """What one piece adds to what must be known."""

    rows: int
    bytes: int
    """Bytes that the columns take in memory."""
    sha256: str
    """The SHA-256 of all values."""
    fingerprints: npt.NDArray[np.uint64]
    """[N], a hash of what a model reads of each row; empty if there is no feature of a kind in `COMPARED`."""
    lengths: npt.NDArray[np.int32]
    """[N], of each row's text, sound and sparse features together; empty if there are none."""
    levels: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """[C, 256] for each picture whose statistics are wanted: how often each level occurs."""


def scan(columns: Columns, features: Mapping[str, Feature], target: DatasetTarget) -> Scan:
    """Read one piece through."""
    first = next(iter(columns.values()))
    told_apart = any(feature.kind in COMPARED for feature in features.values())
    compared = [columns[name] for name in sorted(features)] if told_apart else []
    ragged = [columns[name] for name, feature in features.items() if feature.kind in _RAGGED]
    return Scan(
        rows=len(first),
        bytes=sum(column.nbytes for column in columns.values()),
        sha256=_digest([columns[name] for name in columns_of(features, target)]),
        fingerprints=row_hashes(compared) if compared else np.empty(0, np.uint64),
        lengths=_lengths(ragged),
        levels={
            name: _levels(columns[name], feature, fit_for(target.kind))
            for name, feature in features.items()
            if isinstance(feature, ImageFeature) and not feature.mean
        },
    )


def with_statistics(features: Mapping[str, Feature], scans: Sequence[Scan]) -> dict[str, Feature]:
    """Return the features with the statistics that were left open, from the scans of the training split."""
    found = dict(features)
    for name in scans[0].levels:
        mean, std = level_statistics(np.sum([scan.levels[name] for scan in scans], axis=0))
        found[name] = features[name].model_copy(update={"mean": mean, "std": std})
    return found


def copies(held_out: Sequence[Scan], training: Sequence[Scan]) -> npt.NDArray[np.int64]:
    """Return the rows of training that are in a held-out split too, numbered over all pieces."""
    known = np.unique(np.concatenate([scan.fingerprints for scan in held_out]))
    return np.flatnonzero(np.isin(np.concatenate([scan.fingerprints for scan in training]), known))


def refuse_copies(split: str, held_out: Sequence[Scan], training: Sequence[Scan], *, source: str) -> None:
    """Refuse rows of a held-out split that are in training too.

    Raises:
        ConfigError: names the first one.
    """
    rows = copies(held_out, training)
    if not len(rows):
        return
    there = np.concatenate([scan.fingerprints for scan in held_out])
    here = np.concatenate([scan.fingerprints for scan in training])[rows[0]]
    raise ConfigError(
        f"rows of split {split} of {source} must not be in training too, got {len(rows)} that are: row "
        f"{np.flatnonzero(there == here)[0]} of {split} is row {rows[0]} of train (counted from 0). A model is then "
        "judged by what it has seen. Leave the copies in training out with --option leakage=drop, or keep them with "
        "leakage=keep."
    )


def _digest(columns: Sequence[Column]) -> str:
    digest = hashlib.sha256()
    for column in columns:
        for array in (column.offsets, column.values) if isinstance(column, Ragged) else (column,):
            whole = np.ascontiguousarray(array).reshape(-1)
            digest.update(whole.astype(whole.dtype.newbyteorder("<"), copy=False).view(np.uint8).data)
    return digest.hexdigest()


def _lengths(columns: Sequence[Column]) -> npt.NDArray[np.int32]:
    ragged = [column.lengths for column in columns if isinstance(column, Ragged)]
    return np.sum(ragged, axis=0).astype(np.int32) if ragged else np.empty(0, np.int32)


def _levels(column: Column, feature: ImageFeature, fit: Fit) -> npt.NDArray[np.int64]:
    return count_levels(_some_pictures(column, feature.shape, fit) if isinstance(column, Ragged) else column)


def _some_pictures(files: Ragged, shape: tuple[int, int, int], fit: Fit) -> Array:
    step = -(-len(files) // _PICTURES_PER_PIECE)
    return np.stack([decode_picture(files[row].tobytes(), shape, fit=fit) for row in range(0, len(files), step)])

"""A number for every row that equal rows share: hashes of 64 bits, made column by column."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from orchestrator.data.columns import Array, Column, Ragged
from orchestrator.data.order import Ints

Hashes = npt.NDArray[np.uint64]

_FACTORS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)  # of splitmix64 (Steele et al. 2014)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)
_BLOCK = 2**15  # words at a time: what they need stays in the processor's cache


def row_hashes(columns: Iterable[Column]) -> Hashes:
    """Return a hash of each row, [N]: equal rows have the same, two others with a chance of one in 2**64."""
    hashes: Hashes | None = None
    for column in columns:
        if hashes is None:
            hashes = np.full(len(column), _STEP)
        words = _of_ragged(column) if isinstance(column, Ragged) else _of_array(column)
        for start in range(0, len(hashes), _BLOCK):
            block = hashes[start : start + _BLOCK]
            block ^= words[start : start + _BLOCK]
            _mix(block)
    assert hashes is not None, "there is a column"
    return hashes


def equal_rows(columns: Iterable[Column]) -> Ints:
    """Return a number for each row that equal rows share: 0, 1, ... in order of their first rows."""
    hashes = row_hashes(columns)
    in_order = np.sort(hashes)
    if not (in_order[1:] == in_order[:-1]).any():
        return np.arange(len(hashes))
    del in_order
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _mix(words: Hashes) -> None:
    """Let every bit depend on every other, in place."""
    for factor in _FACTORS:
        words *= factor
        words ^= words >> _SHIFT


def _of_array(column: Array) -> Array:
    """Return a whole number for each row of an array: the bytes themselves where they are no more than that."""
    rows = np.ascontiguousarray(column).reshape(len(column), -1)
    width = rows.itemsize * rows.shape[1]
    if not rows.size:
        return np.zeros(len(rows), np.uint64)
    size = next(size for size in (8, 4, 2, 1) if width % size == 0)
    words = rows.view(np.uint8).reshape(len(rows), width).view(f"u{size}")
    if words.shape[1] == 1:
        return words[:, 0]
    hashes = np.empty(len(rows), np.uint64)
    places = np.arange(words.shape[1], dtype=np.uint64) * _STEP
    step = max(1, _BLOCK // words.shape[1])
    for start in range(0, len(rows), step):
        block = words[start : start + step] ^ places
        _mix(block)
        hashes[start : start + step] = block.sum(1)
    return hashes


def _of_ragged(column: Ragged) -> Hashes:
    """Return a hash of each row's values and their number; each value counts by its place."""
    hashes = column.lengths.astype(np.uint64)
    filled = np.flatnonzero(column.lengths)
    if len(filled):
        places = np.arange(len(column.values), dtype=np.uint64)
        places -= np.repeat(column.offsets[:-1].astype(np.uint64), column.lengths)
        values = row_hashes([places, column.values])
        hashes[filled] += np.add.reduceat(values, column.offsets[filled])
    return hashes

"""Which rows train and which test, where the source does not say: a pure function of the rows and a seed."""

import numpy as np

from models.counters import counter_key
from orchestrator.data.columns import Array
from orchestrator.data.order import Ints, permutation

SPLIT_KEY = 101  # first word of the key, so that splitting shares no random numbers with the sample order


def stratified(labels: Array, *, test_share: float, seed: int) -> tuple[Ints, Ints]:
    """Return the rows of train and test, with the same share of every class in both, as near as can be."""
    test = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = permutation(len(rows), key=counter_key(SPLIT_KEY, seed, int(label)))
        test.append(rows[order[: round(len(rows) * test_share)]])
    test_rows = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), test_rows), test_rows

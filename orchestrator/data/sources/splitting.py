"""Which rows train and which test, where the source does not say: a pure function of the rows and a seed."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from cluster.errors import ConfigError
from models.counters import counter_key
from orchestrator.data.columns import Array
from orchestrator.data.order import Ints, permutation
from orchestrator.data.sources.options import SourceOptions

SPLIT_KEY = 101  # first word of the key, so that splitting shares no random numbers with the sample order
TEST_SHARE = 0.2


def stratified(labels: Array, *, test_share: float, seed: int, groups: Ints | None = None) -> tuple[Ints, Ints]:
    """Return the rows of train and test, with the same share of every class in both, as near as can be.

    Args:
        labels: [N], class of each row; all of one class are simply drawn at random.
        test_share: of the rows.
        seed: of the draw.
        groups: [N], the rows with the same number (0, 1, ... in order of their first rows) stay together; a group
            counts for the class of its first row.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels[first] == label)
        order = members[permutation(len(members), key=counter_key(SPLIT_KEY, seed, int(label)))]
        chosen += _fitting(order, sizes, round(int(sizes[members].sum()) * test_share))
    in_test = np.isin(groups, np.concatenate(chosen))
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def _fitting(order: Ints, sizes: Ints, quota: int) -> list[Ints]:
    """Return groups in their order, but for those that are larger than what is left of the quota."""
    chosen = [order[:0]]
    while len(order := order[sizes[order] <= quota]):
        count = int((np.cumsum(sizes[order]) <= quota).sum())
        chosen.append(order[:count])
        quota -= int(sizes[order[:count]].sum())
        order = order[count:]
    return chosen


def together(one: Ints, other: Ints) -> Ints:
    """Return a number for each row that rows share which are in one group of either kind, directly or by others.

    Args:
        one: [N], the number of each row's group: 0, 1, ...
        other: [N], that of another kind.
    """
    found, before = one, np.empty(0, np.int64)
    while not np.array_equal(found, before):
        before = found
        for groups in (other, one):
            least = np.full(int(groups.max()) + 1, len(found), np.int64)
            np.minimum.at(least, groups, found)
            found = least[groups]
    return numbered(found.tolist())


def drawn(labels: Array, *, groups: Ints, options: SourceOptions, place: str) -> dict[str, Ints]:
    """Return the rows of train and test of a source that does not say which is which; see `stratified`.

    Raises:
        ConfigError: if there are too few rows for a test split.
    """
    share = options.test_share or TEST_SHARE
    train, test = stratified(labels, test_share=share, seed=options.seed or 0, groups=groups)
    if not len(test):
        raise ConfigError(
            f"{place} must hold enough different rows for a test split of {share:.0%}, got {len(labels)} rows, "
            f"{groups.max(initial=-1) + 1} of them different. Add rows, or raise test_share."
        )
    return {"train": train, "test": test}


def refuse_draw(options: SourceOptions, place: str) -> None:
    """Refuse options for drawing a split where the source says which rows test."""
    for name in ("test_share", "seed", "test"):
        value = getattr(options, name)
        if value is not None:
            raise ConfigError(f"{name} must be left out for {place}, which says itself what tests, got {value}.")


def consecutive(counts: Mapping[str, int]) -> dict[str, Ints]:
    """Return the rows of each split where they follow one another."""
    edges = np.cumsum([0, *counts.values()]).tolist()
    return {split: np.arange(start, stop) for split, (start, stop) in zip(counts, pairwise(edges), strict=True)}


def numbered(keys: Iterable[Hashable]) -> Ints:
    """Return a number for each key that equal keys share: 0, 1, ... in order of their first places."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def require_classes(labels: Array, classes: Sequence[str], rows: Mapping[str, Ints], place: str) -> None:
    """Refuse a source with one class only, or of whose classes training does not have all."""
    if len(classes) < 2:
        raise ConfigError(f"{place} must hold two classes or more, got {' and '.join(classes) or 'none'} only.")
    missing = np.setdiff1d(np.arange(len(classes)), labels[rows["train"]])
    if len(missing):
        raise ConfigError(
            f"the training split of {place} must hold every class, got no row of {classes[missing[0]]!r}. Add some, or "
            "remove those of the other splits."
        )


def require_rows_in_each(counts: Mapping[str, int], place: str) -> None:
    """Refuse a source of which a split has no row, once damaged ones are left out."""
    for split, count in counts.items():
        if not count:
            raise ConfigError(f"split {split} of {place} must hold a row that can be read, got none. Add some.")

"""Which split the new rows belong to: that of the version's rows that they equal, what the source says, or a draw."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from cluster.errors import ConfigError
from models.counters import counter_key
from orchestrator.data.appending.looking import OldRows, Seen, compared_by
from orchestrator.data.appending.rules import Rules
from orchestrator.data.columns import Array
from orchestrator.data.dataset import TRAIN
from orchestrator.data.manifest import Change
from orchestrator.data.order import Ints, permutation
from orchestrator.data.pushing.scan import Scan
from orchestrator.data.shards import sha256
from orchestrator.data.sources.image_folder import FolderPiece
from orchestrator.data.sources.located import ALL
from orchestrator.data.sources.prepared import ChosenRows, Part, Piece, Prepared
from orchestrator.data.sources.sound import SoundPiece
from orchestrator.data.sources.splitting import SPLIT_KEY


class NewRows(NamedTuple):
    """All rows that are appended."""

    keys: Array
    is_compared: Array
    labels: Ints
    splits: Mapping[str, Ints]
    """The rows of each split as the source says, or all under `ALL`."""


def rows_of_splits(
    prepared: Prepared, looks: Mapping[str, Sequence[Seen]], old: OldRows, rules: Rules
) -> tuple[dict[str, Ints], tuple[Change, ...]]:
    """Return the rows of each split, counted over all pieces of the source, and what is worth saying about them.

    Raises:
        ConfigError: if a row is in training here and in another split there, or a rating was given already.
    """
    new = _joined(looks)
    uri = prepared.source.uri
    _refuse_rated(new, old, rules, uri)
    if ALL not in prepared.splits:
        return _given(new, old, rules, uri)
    follows = _followed(new, old)
    equal = sum(len(rows) for rows in follows.values())
    text = (
        f"{equal:,} of {len(new.keys):,} rows equal rows of version {rules.manifest.version}, and are in their split."
    )
    change = Change(text=text, numbers={"equal": float(equal)})
    return _drawn(new, old, follows, rules), (change,) if equal else ()


def chosen(part: Part, looks: Sequence[Seen], rows: Ints) -> tuple[Part, list[Scan]]:
    """Return some rows of a part, and what is known of them."""
    edges = np.cumsum([0, *(piece.rows for piece in part.pieces)])
    pieces, scans = [], []
    for piece, found, (start, stop) in zip(part.pieces, looks, pairwise(edges.tolist()), strict=True):
        own = rows[(rows >= start) & (rows < stop)] - start
        if len(own):
            pieces.append(piece if len(own) == piece.rows else _some_rows(piece, own))
            scans.append(found.scan if len(own) == piece.rows else _scan_of(found.scan, own))
    return replace(part, pieces=tuple(pieces)), scans


def _joined(looks: Mapping[str, Sequence[Seen]]) -> NewRows:
    every = [look for found in looks.values() for look in found]
    edges = np.cumsum([0, *(sum(look.scan.rows for look in found) for found in looks.values())]).tolist()
    return NewRows(
        keys=np.concatenate([look.keys for look in every]),
        is_compared=np.concatenate([look.is_compared for look in every]),
        labels=np.concatenate([look.labels for look in every]),
        splits={split: np.arange(*span) for split, span in zip(looks, pairwise(edges), strict=True)},
    )


def _refuse_rated(new: NewRows, old: OldRows, rules: Rules, uri: str) -> None:
    """Refuse a pair of user and item that the version has, unless the person says that later ratings count as well."""
    if compared_by(rules) != "pair" or rules.options.copies not in (None, "refuse"):
        return
    known = np.concatenate([*old.keys.values()])
    rated = np.flatnonzero(new.is_compared & np.isin(new.keys, known))
    if len(rated):
        raise ConfigError(
            f"{uri} must rate no item that its user has rated in {rules}, got {len(rated):,} such rows, the first is "
            f"row {rated[0]} (counted from 0). Leave them out, or keep both ratings with --option copies=last: the "
            "new one is then in the split of the old one."
        )


# ---- a source that does not say the splits


def _followed(new: NewRows, old: OldRows) -> dict[str, Ints]:
    """Return for each split the new rows that equal rows of it; one that equals rows of two trains."""
    left = new.is_compared.copy()
    follows = {}
    for split in sorted(old.keys, key=lambda name: name != TRAIN):
        mine = left & np.isin(new.keys, old.keys[split])
        follows[split] = np.flatnonzero(mine)
        left &= ~mine
    return follows


def _drawn(new: NewRows, old: OldRows, follows: Mapping[str, Ints], rules: Rules) -> dict[str, Ints]:
    """Return the rows of each split: the others are drawn so that each split keeps its share of every class."""
    groups = _groups(new, rules)
    strata = new.labels[groups]
    taken = np.zeros(len(new.keys), bool)
    for rows in follows.values():
        taken[rows] = True
    splits = {}
    for number, split in enumerate(name for name in ("test", "validation") if name in old.keys):
        found = [follows[split]]
        for label in np.unique(strata).tolist():
            of_class = strata == label
            quota = _quota(split, label, old, int(of_class.sum())) - int(of_class[follows[split]].sum())
            key = counter_key(SPLIT_KEY, rules.options.seed or 0, label, number)
            found.append(_draw(np.flatnonzero(of_class & ~taken), groups, quota, key))
        splits[split] = np.unique(np.concatenate(found))
        taken[splits[split]] = True
    held_out = np.concatenate([np.empty(0, np.int64), *splits.values()])
    splits[TRAIN] = np.setdiff1d(np.arange(len(new.keys)), held_out)
    return {split: splits[split] for split in old.keys if len(splits.get(split, ()))}


def _quota(split: str, label: int, old: OldRows, new_rows: int) -> int:
    """Return how many new rows of a class a split is to have, so that it keeps the share that it had at first.

    What it lacks, because earlier additions were too small for a row of it, is made up for, at most one row at a time.
    """
    first = sum(counts[label] for counts in old.first.values())
    share = old.first[split][label] / first if first else 0.0
    total = sum(counts[label] for counts in old.counts.values()) + new_rows
    wanted = round(float(share * total)) - int(old.counts[split][label])
    return max(0, min(wanted, int(np.ceil(share * new_rows))))


def _draw(rows: Ints, groups: Ints, quota: int, key: int) -> Ints:
    """Return about as many of some rows as the quota says, and never more; those of a group stay together."""
    if quota <= 0 or not len(rows):
        return np.empty(0, np.int64)
    members, sizes = np.unique(groups[rows], return_counts=True)
    order = permutation(len(members), key=key)
    order = order[sizes[order] <= quota]
    drawn = members[order[np.cumsum(sizes[order]) <= quota]]
    return rows[np.isin(groups[rows], drawn)]


def _groups(new: NewRows, rules: Rules) -> Ints:
    """Return for each row the first one that it equals, with which it stays and for whose class it counts."""
    if compared_by(rules) == "pair":  # each pair is there once, and strangers may look alike
        return np.arange(len(new.keys))
    _, first, group = np.unique(new.keys, return_index=True, return_inverse=True)
    return first[group].astype(np.int64)


# ---- a source that says the splits


def _given(new: NewRows, old: OldRows, rules: Rules, uri: str) -> tuple[dict[str, Ints], tuple[Change, ...]]:
    """Return the rows of each split as the source says, without those that another split knows if they are to go."""
    leaks = {split: _leaks(split, rows, new, old) for split, rows in new.splits.items()}
    count = sum(int(found.sum()) for found in leaks.values())
    leakage = rules.options.leakage or "refuse"
    if count and leakage == "refuse":
        split = next(name for name, found in leaks.items() if found.any())
        other = "a split that is tested on" if split == TRAIN else "the training split"
        raise ConfigError(
            f"rows of {uri} must not be in training and in another split of {rules} too, got {count:,} that are: the "
            f"first is row {leaks[split].argmax()} of {split} (counted from 0), which {other} has. A model is then "
            "judged by what it has seen. Leave those rows of the new source out with --option leakage=drop, or keep "
            "them with leakage=keep."
        )
    if not count or leakage == "keep":
        return dict(new.splits), ()
    text = f"{count:,} of {len(new.keys):,} rows were left out, which another split has."
    kept = {split: rows[~leaks[split]] for split, rows in new.splits.items()}
    change = Change(option="leakage=drop", text=text, numbers={"left_out": float(count)})
    return {split: rows for split, rows in kept.items() if len(rows)}, (change,)


def _leaks(split: str, rows: Ints, new: NewRows, old: OldRows) -> Array:
    """Return which new rows of a split may not be in it: training ones held out elsewhere, held-out ones trained on."""
    if split != TRAIN:
        known = old.keys[TRAIN]
    else:
        known = np.concatenate(
            [
                *(keys for name, keys in old.keys.items() if name != TRAIN),
                *(new.keys[own[new.is_compared[own]]] for name, own in new.splits.items() if name != TRAIN),
            ]
        )
    found: Array = new.is_compared[rows] & np.isin(new.keys[rows], known)
    return found


# ---- some rows of a piece


def _some_rows(piece: Piece, rows: Ints) -> Piece:
    """Return a piece of some rows of another; one of files reads no others than its own."""
    if isinstance(piece, FolderPiece | SoundPiece):
        return replace(
            piece,
            names=tuple(piece.names[row] for row in rows.tolist()),
            labels=tuple(piece.labels[row] for row in rows.tolist()),
            source_bytes=piece.source_bytes * len(rows) // piece.rows,
        )
    return ChosenRows.of(piece, rows)


def _scan_of(scan: Scan, rows: Ints) -> Scan:
    return Scan(
        rows=len(rows),
        bytes=max(1, scan.bytes * len(rows) // scan.rows),
        sha256=sha256(scan.sha256.encode() + rows.astype("<i8").tobytes()),
        fingerprints=scan.fingerprints[rows] if len(scan.fingerprints) else scan.fingerprints,
        lengths=scan.lengths[rows] if len(scan.lengths) else scan.lengths,
    )

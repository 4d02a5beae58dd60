"""Looks at the rows that are appended, and back at those of the version: which are equal, and how many of each class.

Rows are equal if a model reads the same of them. Of ratings, those of one user and item are, if both are known; other
rows of categories alone, which repeat by their nature, are not compared.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from models.features import TARGET, UNKNOWN, CategoricalFeature, ClassTarget, Feature, NumberTarget, TextFeature
from orchestrator.data.appending.rules import Rules
from orchestrator.data.columns import Array, Column, Columns, Ragged, join
from orchestrator.data.dataset import Dataset
from orchestrator.data.manifest import DatasetTarget, Manifest, Shard
from orchestrator.data.order import Ints
from orchestrator.data.pushing.passes import Counter
from orchestrator.data.pushing.pieces import Here, Runner
from orchestrator.data.pushing.scan import COMPARED, Scan, scan
from orchestrator.data.sources.located import ALL
from orchestrator.data.sources.prepared import Prepared

if TYPE_CHECKING:
    from cluster.s3.store import Store

Keys = npt.NDArray[np.uint64]
"""A number for each row that equal rows share."""
Compared = Literal["row", "pair", "nothing"]
"""What tells a row from another: all that a model reads of it, the user and the item, or nothing."""

OUTSIDE = "target"
"""What counts of targets outside of the version's range are called, beside the names of features."""

_FETCH_THREADS = 4  # one waits for the store while others verify
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # as in `orchestrator/data/order.py`


class Seen(NamedTuple):
    """What is known of some rows that are appended."""

    scan: Scan
    keys: Keys
    is_compared: Array
    """[N] bool, whether a row is compared with those of the version."""
    labels: Ints
    """[N], the class of each row; 0 if the target is none."""
    strange: dict[str, int]
    """How many values of each feature its vocabulary does not have, and targets outside of the range of training."""


class OldRows(NamedTuple):
    """What is known of the rows of the version."""

    keys: Mapping[str, Keys]
    """By split: those keys of new rows that rows of it have."""
    counts: Mapping[str, Ints]
    """By split: the rows of each class, or all of them if the target is none."""
    first: Mapping[str, Ints]
    """The same of the rows that were pushed first, whose shares the splits keep."""


@dataclass(frozen=True)
class StoredShard:
    """A piece: the rows of one shard of a version."""

    store: "Store"
    manifest: Manifest
    """Without its splits, so that it travels quickly."""
    shard: Shard

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.shard.rows

    @property
    def source_bytes(self) -> int:
        """Bytes to be read for it."""
        return self.shard.bytes

    def read(self) -> Columns:
        """Fetch and verify all rows."""
        dataset = Dataset(self.store, self.manifest)
        with ThreadPoolExecutor(_FETCH_THREADS) as pool:
            groups = range(len(self.shard.row_groups))
            parts = list(pool.map(lambda group: dataset.read_row_group(self.shard, group), groups))
        return {name: join([part[name] for part in parts]) for name in parts[0]}


def compared_by(rules: Rules) -> Compared:
    """Return what tells a row of the version from another."""
    if any(feature.kind in COMPARED for feature in rules.features.values()):
        return "row"
    return "pair" if rules.format == "ratings" else "nothing"


def look_at_split(prepared: Prepared, split: str, rules: Rules, runner: Runner, counter: Counter) -> list[Seen]:
    """Read all new rows of a split once."""
    pieces, compared = prepared.splits[split].pieces, compared_by(rules)
    features, target = dict(rules.features), rules.target

    def look_at_piece(_number: int, columns: Columns) -> Seen:
        return look(columns, features, target, compared)

    looks: dict[int, Seen] = {}
    for number, found in runner.map(look_at_piece, pieces):
        looks[number] = found
        counter.add(found.scan.rows)
    return [looks[number] for number in range(len(pieces))]


def look(columns: Columns, features: Mapping[str, Feature], target: DatasetTarget, compared: Compared) -> Seen:
    """Read one piece through."""
    found = scan(columns, features, target)
    keys, is_compared = _keys(columns, features, found, compared)
    return Seen(found, keys, is_compared, _labels(columns, target), _strange(columns, features, target))


def stored_shards(store: "Store", manifest: Manifest) -> dict[str, list[StoredShard]]:
    """Return the shards of each split of a version as pieces."""
    brief = manifest.model_copy(update={"splits": {}})
    return {
        name: [StoredShard(store, brief, shard) for shard in split.shards] for name, split in manifest.splits.items()
    }


def needs_old_rows(prepared: Prepared, rules: Rules) -> bool:
    """Whether the shards of the version have to be read: to compare its rows, or to count those of each class."""
    is_drawn = ALL in prepared.splits
    if is_drawn and isinstance(rules.target, ClassTarget):
        return True
    return compared_by(rules) != "nothing" and (is_drawn or rules.options.leakage != "keep")


def look_back(
    store: "Store", prepared: Prepared, rules: Rules, looks: Sequence[Seen], runner: Runner, counter: Counter
) -> OldRows:
    """Read the rows of the version, shard after shard, and keep only what must be known of them."""
    manifest, compared = rules.manifest, compared_by(rules)
    if not needs_old_rows(prepared, rules):
        return OldRows(
            keys={split: np.empty(0, np.uint64) for split in manifest.splits},
            counts={name: np.array([split.rows]) for name, split in manifest.splits.items()},
            first={split: np.array([manifest.first_rows(split)]) for split in manifest.splits},
        )
    new_keys = np.unique(np.concatenate([found.keys[found.is_compared] for found in looks]))
    num_classes = len(rules.target.classes) if isinstance(rules.target, ClassTarget) else 1
    features, target = dict(rules.features), rules.target

    def look_at_shard(_number: int, columns: Columns) -> tuple[Keys, Ints]:
        keys, is_compared = _keys(columns, features, scan(columns, features, target), compared)
        counts = np.bincount(_labels(columns, target), minlength=num_classes)
        return np.intersect1d(keys[is_compared], new_keys), counts

    found_keys, counts, first = {}, {}, {}
    root = manifest.additions[0].appended_to if manifest.additions else None
    for split, shards in stored_shards(store, manifest).items():
        keys = [np.empty(0, np.uint64)]
        counts[split], first[split] = np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64)
        for number, (found, count) in _reading_once(runner).map(look_at_shard, shards):
            keys.append(found)
            counts[split] += count
            first[split] += count if shards[number].shard.version == root else 0
            counter.add(shards[number].rows)
        found_keys[split] = np.unique(np.concatenate(keys))
    return OldRows(found_keys, counts, first)


def _reading_once(runner: Runner) -> Runner:
    """Return where old shards are read: as they are not read again, this process need not keep them."""
    return Here(kept_bytes=0) if isinstance(runner, Here) else runner


def _keys(
    columns: Columns, features: Mapping[str, Feature], found: Scan, compared: Compared
) -> tuple[Keys, npt.NDArray[np.bool_]]:
    """Return the keys of rows, and which of them are compared."""
    if compared == "row":
        return found.fingerprints, np.ones(found.rows, bool)
    if compared == "pair":
        user, item = _array(columns["user"]), _array(columns["item"])
        return user.astype(np.uint64) << np.uint64(32) | item.astype(np.uint64), (user > 0) & (item > 0)
    keys = np.zeros(found.rows, np.uint64)
    for name in sorted(features):
        keys = (keys ^ _array(columns[name]).astype(np.uint64)) * _GOLDEN
        keys ^= keys >> np.uint64(29)
    return keys, np.zeros(found.rows, bool)


def _labels(columns: Columns, target: DatasetTarget) -> Ints:
    if isinstance(target, ClassTarget):
        return _array(columns[TARGET]).astype(np.int64)
    return np.zeros(len(next(iter(columns.values()))), np.int64)


def _strange(columns: Columns, features: Mapping[str, Feature], target: DatasetTarget) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, feature in features.items():
        column = columns[name]
        if isinstance(feature, CategoricalFeature):
            found[name] = int((_array(column) == 0).sum())
        elif isinstance(feature, TextFeature) and isinstance(column, Ragged):
            found[name] = int((column.values == UNKNOWN).sum())
    if isinstance(target, NumberTarget):
        values = _array(columns[TARGET])
        found[OUTSIDE] = int(((values < target.minimum) | (values > target.maximum)).sum())
    return found


def _array(column: Column) -> Array:
    assert not isinstance(column, Ragged)
    return column

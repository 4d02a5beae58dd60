"""Makes a new version of a dataset out of one that is there and more rows; the shards that are there stay as they are.

The manifest of the new version lists the old shards, in the folders in which they lie, and behind them the new ones.
Features and target are those of the old version, so that a model that was trained on it reads the new one as well.
"""

import hashlib
import json
from collections import Counter as Counts
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from cluster.errors import ConfigError, PreconditionError
from models.features import CategoricalFeature, NumberTarget
from orchestrator.data.appending.drawing import chosen, rows_of_splits
from orchestrator.data.appending.looking import OUTSIDE, Seen, look_at_split, look_back, needs_old_rows
from orchestrator.data.appending.rules import CURE, Rules
from orchestrator.data.dataset import folder, manifest_key, open_dataset, read_manifest
from orchestrator.data.manifest import FORMAT_VERSION, Addition, Change, Manifest, Shard, Source, Split
from orchestrator.data.pushing.layout import RowOrder, ShardLayout, layout_of
from orchestrator.data.pushing.passes import Counter, Progress, PushResult, lengths_of, write_lengths, write_split
from orchestrator.data.pushing.pieces import Here, Runner
from orchestrator.data.pushing.scan import Scan
from orchestrator.data.sources.prepared import Part, Prepared, told

if TYPE_CHECKING:
    from cluster.s3.store import Store


@dataclass(frozen=True)
class _Additional:
    """What is written of one split."""

    part: Part
    scans: Sequence[Scan]
    layout: ShardLayout


@dataclass(frozen=True)
class _Appending:
    """What is appended to what, and how it is worked through."""

    store: "Store"
    prepared: Prepared
    rules: Rules
    looks: Mapping[str, Sequence[Seen]]
    runner: Runner
    counter: Counter

    @property
    def every(self) -> list[Seen]:
        """What was seen of all pieces."""
        return [seen for found in self.looks.values() for seen in found]


def append_prepared(
    store: "Store",
    prepared: Prepared,
    rules: Rules,
    *,
    licence: str | None = None,
    repair: bool = False,
    runner: Runner | None = None,
    progress: Progress | None = None,
) -> PushResult:
    """Write the version that consists of another one and of new rows, unless it is there already.

    The new rows are read twice, those of the version once, to compare them and to count the rows of each class. An
    interrupted appending leaves objects without a manifest, which no reader sees; repeating it completes it.

    Args:
        store: where both are.
        prepared: the new rows, read by the rules.
        rules: of the version that they are appended to.
        licence: of the new rows, to be recorded; default: the source's own.
        repair: write the objects of these rows again, even if they are there already.
        runner: where rows are read; default: here.
        progress: called with the rows worked through.

    Raises:
        ConfigError: if a row may not be in its split, or none is left.
        PreconditionError: if somebody else has pushed another version meanwhile.
    """
    runner, counter = runner or Here(), Counter(progress, total=_work(prepared, rules))
    looks = {split: look_at_split(prepared, split, rules, runner, counter) for split in prepared.splits}
    digest = _digest(looks)
    earlier = next((addition for addition in rules.manifest.additions if addition.sha256 == digest), None)
    if earlier and not repair:
        return PushResult(rules.manifest, changed=False)
    if earlier:
        base = open_dataset(store, rules.manifest.name, earlier.appended_to)
        rules = replace(rules, dataset=base, is_newest=False)
    appending = _Appending(store, prepared, rules, looks, runner, counter)
    added, changes = _decided(appending)
    name, version = rules.manifest.name, appended_version(rules.manifest, added)
    if not repair and store.exists(manifest_key(name, version)):
        return PushResult(read_manifest(store, name, version), changed=False)
    splits = _write(appending, added, version)
    addition = Addition(
        version=version,
        appended_to=rules.manifest.version,
        rows={split: found.part.rows for split, found in added.items()},
        sha256=digest,
        source=_source(appending, changes, licence),
    )
    return _finish(store, rules, _manifest(rules.manifest, addition, splits))


def appended_version(manifest: Manifest, added: Mapping[str, _Additional]) -> str:
    """Return the first 12 hex digits of the SHA-256 of the old version's name and all that readers see of the rows."""
    meaning = {
        "format_version": FORMAT_VERSION,
        "appended_to": manifest.version,
        "splits": {
            split: [
                found.layout.group_rows,
                found.layout.shard_rows,
                found.layout.places is not None,
                [[scan.rows, scan.sha256] for scan in found.scans],
            ]
            for split, found in sorted(added.items())
        },
    }
    return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:12]


def _work(prepared: Prepared, rules: Rules) -> int:
    new = sum(part.rows for part in prepared.splits.values())
    old = sum(split.rows for split in rules.manifest.splits.values()) if needs_old_rows(prepared, rules) else 0
    return 2 * new + old


def _digest(looks: Mapping[str, Sequence[Seen]]) -> str:
    """Return the SHA-256 of all rows, as the source has them."""
    content = {split: [[look.scan.rows, look.scan.sha256] for look in found] for split, found in sorted(looks.items())}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _decided(appending: _Appending) -> tuple[dict[str, _Additional], tuple[Change, ...]]:
    """Return the rows of each split that has some, how they are written, and what is worth saying about them."""
    prepared, rules, every = appending.prepared, appending.rules, appending.every
    old = look_back(appending.store, prepared, rules, every, appending.runner, appending.counter)
    rows, changes = rows_of_splits(prepared, appending.looks, old, rules)
    if not rows:
        raise ConfigError(f"{prepared.source.uri} must hold a row that can be appended to {rules}, got none. {CURE}")
    parts = [*prepared.splits.values()]
    whole = replace(parts[0], pieces=tuple(piece for part in parts for piece in part.pieces))
    order: RowOrder = "random" if rules.manifest.order == "random" else "source"
    added = {}
    for split, found in rows.items():
        part, scans = chosen(whole, every, found)
        added[split] = _Additional(part, scans, layout_of(split, part, scans, order))
    return added, changes


def _write(appending: _Appending, added: Mapping[str, _Additional], version: str) -> dict[str, Split]:
    """Write the new rows, and return all splits: the old shards first."""
    store, rules = appending.store, appending.rules
    key, splits = folder(rules.manifest.name, version), {}
    new = replace(appending.prepared, splits={split: found.part for split, found in added.items()})
    for split, record in rules.manifest.splits.items():
        shards = [_kept(shard, rules.manifest.version) for shard in record.shards]
        known = rules.dataset.lengths(split)
        lengths = np.empty(0, np.int64) if known is None else known
        if split in added:
            layout = added[split].layout
            shards += write_split(store, key, split, new, layout, appending.runner, appending.counter)
            lengths = np.concatenate([lengths, lengths_of(added[split].scans, layout)])
        rows = sum(shard.rows for shard in shards)
        splits[split] = Split(rows=rows, lengths=write_lengths(store, key, split, lengths), shards=tuple(shards))
    return splits


def _kept(shard: Shard, version: str) -> Shard:
    """Return the record of a shard of a version for the manifest of another."""
    return shard if shard.version else shard.model_copy(update={"version": version})


def _source(appending: _Appending, changes: Sequence[Change], licence: str | None) -> Source:
    """Return where the new rows are from, with what is worth saying about them."""
    source = appending.prepared.source
    every = (*source.changes, *changes, *_strange(appending))
    return told(replace(appending.prepared, source=source.model_copy(update={"changes": every})), licence=licence)


def _strange(appending: _Appending) -> Iterator[Change]:
    """Say what of the new rows the version's features do not know."""
    rules, target = appending.rules, appending.rules.target
    totals: Counts[str] = Counts()
    for seen in appending.every:
        totals.update(seen.strange)
    for name, count in totals.items():
        if not count:
            continue
        if isinstance(target, NumberTarget) and name == OUTSIDE:
            span = f"{target.minimum:.6g} to {target.maximum:.6g}"
            text = f"{count:,} targets are outside of {span}, within which a model answers."
        elif isinstance(rules.features[name], CategoricalFeature):
            text = f"{count:,} values of {name} are none of its vocabulary, and have index 0."
        else:
            text = f"{count:,} words of {name} are none of its vocabulary."
        yield Change(text=text, numbers={"unknown": float(count)})


def _manifest(old: Manifest, addition: Addition, splits: dict[str, Split]) -> Manifest:
    return Manifest(
        name=old.name,
        version=addition.version,
        features=old.features,
        target=old.target,
        rows=old.rows,
        order=old.order,
        splits=splits,
        source=old.source,
        additions=(*old.additions, addition),
        created=datetime.now(UTC).isoformat(),
    )


def _finish(store: "Store", rules: Rules, manifest: Manifest) -> PushResult:
    """Write the manifest, unless another version has become the newest one meanwhile."""
    name, version = manifest.name, manifest.version
    newest = open_dataset(store, name).manifest.version if rules.is_newest else rules.manifest.version
    if newest not in (rules.manifest.version, version):
        raise PreconditionError(
            f"the newest version of {name} must still be {rules.manifest.version} when rows were appended to it, got "
            f"{newest}, which was pushed meanwhile. Repeat the command to append to that."
        )
    try:
        store.write(manifest_key(name, version), manifest.model_dump_json(indent=1).encode(), only_if_absent=True)
    except PreconditionError:  # it was there, or somebody appended the same rows meanwhile
        return PushResult(read_manifest(store, name, version), changed=False)
    return PushResult(manifest, changed=True)

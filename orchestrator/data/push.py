"""Puts a dataset into the store: shards first, the manifest last, so that a reader sees all of it or nothing.

The version is a hash of the content, so the same content is the same version and pushing it again writes nothing.
Nothing in the store is changed: the newest version is the one with the latest `created`, without a pointer that two
pushes could fight over. After pushing A, then B, pushing A again leaves B the newest; `data.version` names another.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from cluster.config import checked_name
from cluster.errors import ConfigError, PreconditionError
from orchestrator.data.columns import columns_of, to_table
from orchestrator.data.manifest import FORMAT_VERSION, Manifest, Shard, Split
from orchestrator.data.reader import (
    datasets,
    folder,
    manifest_key,
    open_dataset,
    read_manifest,
    versions,
)
from orchestrator.data.shards import write_shard
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import Part, Prepared

if TYPE_CHECKING:
    from cluster.storage import Store

SHARD_BYTES = 64 * 2**20
_ROW_GROUP_BYTES = 8 * 2**20
_LEAST_GROUP_ROWS = 1024  # below, the requests cost more than the bytes
_GROUPS_PER_SPLIT = 16  # small data still has row groups to shuffle and to deal out

Progress = Callable[[int, int], None]
"""Called with the rows written so far and all rows."""


@dataclass(frozen=True)
class PushResult:
    """What a push left in the store."""

    manifest: Manifest
    changed: bool
    """False if this content was there already."""


class DatasetSummary(BaseModel):
    """One dataset as `data ls` lists it: its newest version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    versions: int
    """How many versions there are."""
    created: str
    rows: dict[str, int]
    """By split; of a series, without the rows that belong to the split before."""
    bytes: int
    features: dict[str, str]
    """Kind of each feature."""
    target: str
    """Kind of the target."""
    source: str


def push(
    store: "Store",
    source: str,
    *,
    name: str | None = None,
    format: str | None = None,
    options: SourceOptions | None = None,
    licence: str | None = None,
    progress: Progress | None = None,
) -> PushResult:
    """Read a source and write it as a dataset; see `prepare` for formats, options and errors."""
    prepared = prepare(source, format=format, options=options)
    return push_prepared(store, prepared, name=name, licence=licence, progress=progress)


def push_prepared(
    store: "Store",
    prepared: Prepared,
    *,
    name: str | None = None,
    licence: str | None = None,
    progress: Progress | None = None,
) -> PushResult:
    """Write columns as a dataset, unless this content is there already.

    A push that was interrupted leaves objects without a manifest, which no reader sees; repeating it completes it.
    """
    name = _checked(name or prepared.name)
    version = content_version(prepared)
    if store.exists(manifest_key(name, version)):
        return PushResult(read_manifest(store, name, version), changed=False)
    source = prepared.source.model_copy(update={"licence": licence} if licence else {})
    manifest = Manifest(
        name=name,
        version=version,
        features=dict(prepared.features),
        target=prepared.target,
        splits=_write_splits(store, prepared, folder(name, version), progress or _no_progress),
        source=source,
        created=datetime.now(UTC).isoformat(),
    )
    try:
        store.write(manifest_key(name, version), manifest.model_dump_json(indent=1).encode(), only_if_absent=True)
    except PreconditionError:  # somebody pushed the same content meanwhile
        return PushResult(read_manifest(store, name, version), changed=False)
    return PushResult(manifest, changed=True)


def content_version(prepared: Prepared) -> str:
    """Return the first 12 hex digits of the SHA-256 of all that readers depend on: meaning, values, row groups."""
    meaning = {
        "format_version": FORMAT_VERSION,
        "features": {name: feature.model_dump(mode="json") for name, feature in prepared.features.items()},
        "target": prepared.target.model_dump(mode="json"),
        "splits": {
            split: [part.rows, part.context_rows, rows_per_group(part)]
            for split, part in sorted(prepared.splits.items())
        },
    }
    digest = hashlib.sha256(json.dumps(meaning).encode())
    for _, part in sorted(prepared.splits.items()):
        for column in columns_of(prepared.features, prepared.target):
            array = np.ascontiguousarray(part.columns[column])
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()[:12]


def rows_per_group(part: Part) -> int:
    """Return the rows of each row group, a power of two: about 8 MiB, but several groups even of small data."""
    row_bytes = sum(array.nbytes for array in part.columns.values()) / part.rows
    by_bytes = max(1, int(_ROW_GROUP_BYTES / row_bytes))
    by_count = max(_LEAST_GROUP_ROWS, part.rows // _GROUPS_PER_SPLIT)
    return 1 << (min(by_bytes, by_count).bit_length() - 1)


def ls(store: "Store") -> list[DatasetSummary]:
    """Return a summary of every dataset's newest version."""
    return [summarize(show(store, name), len(versions(store, name))) for name in datasets(store)]


def show(store: "Store", name: str, version: str | None = None) -> Manifest:
    """Return one version's manifest, the newest by default; see `open_dataset` for the errors."""
    return open_dataset(store, name, version).manifest


def summarize(manifest: Manifest, num_versions: int) -> DatasetSummary:
    """Return what `data ls` says about a version."""
    return DatasetSummary(
        name=manifest.name,
        version=manifest.version,
        versions=num_versions,
        created=manifest.created,
        rows={name: split.rows - split.context_rows for name, split in manifest.splits.items()},
        bytes=sum(shard.bytes for split in manifest.splits.values() for shard in split.shards),
        features={name: feature.kind for name, feature in manifest.features.items()},
        target=manifest.target.kind,
        source=f"{manifest.source.format} {manifest.source.uri}",
    )


def _write_splits(store: "Store", prepared: Prepared, key: str, progress: Progress) -> dict[str, Split]:
    total = sum(part.rows for part in prepared.splits.values())
    done = 0
    splits: dict[str, Split] = {}
    for name, part in prepared.splits.items():
        shards = []
        for data, shard in _shards(name, part, prepared):
            store.write(f"{key}/{shard.path}", data)
            shards.append(shard)
            done += shard.rows
            progress(done, total)
        splits[name] = Split(rows=part.rows, context_rows=part.context_rows, shards=tuple(shards))
    return splits


def _shards(split: str, part: Part, prepared: Prepared) -> Iterator[tuple[bytes, Shard]]:
    """Yield the Parquet files of one split, each of whole row groups."""
    group_rows = rows_per_group(part)
    row_bytes = sum(array.nbytes for array in part.columns.values()) / part.rows
    shard_rows = max(1, int(SHARD_BYTES / (row_bytes * group_rows))) * group_rows
    starts = range(0, part.rows, shard_rows)
    for number, start in enumerate(starts):
        columns = {name: array[start : start + shard_rows] for name, array in part.columns.items()}
        table = to_table(columns, prepared.features, prepared.target)
        yield write_shard(table, path=f"{split}-{number:05}-of-{len(starts):05}.parquet", rows_per_group=group_rows)


def _checked(name: str) -> str:
    try:
        return checked_name(name)
    except ValueError as error:
        raise ConfigError(f"name of the dataset {error}. Give another one.") from error


def _no_progress(_done: int, _total: int) -> None:
    pass

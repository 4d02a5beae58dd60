"""Puts a dataset into the store: shards first, the manifest last, so that a reader sees all of it or nothing.

The version is a hash of the content, so the same content is the same version and pushing it again writes nothing.
Nothing in the store is changed: the newest version is the one with the latest `created`, without a pointer that two
pushes could fight over. After pushing A, then B, pushing A again leaves B the newest; `data.version` names another.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from cluster.config import checked_name
from cluster.errors import ConfigError, PreconditionError
from cluster.s3.records import named_folders
from cluster.s3.stored_json import Listing
from orchestrator.data.appending.append import append_prepared
from orchestrator.data.appending.formats import read_more
from orchestrator.data.appending.looking import needs_old_rows, stored_shards
from orchestrator.data.appending.rules import Rules, name_of, rules_of
from orchestrator.data.dataset import (
    FOLDER,
    TRAIN,
    folder,
    manifest_key,
    newest,
    open_dataset,
    read_manifest,
    readable_versions,
)
from orchestrator.data.fetching.archives import is_archive
from orchestrator.data.fetching.download import LocalCopy, local_copy
from orchestrator.data.fetching.http import Progress as DownloadProgress
from orchestrator.data.manifest import FORMAT_VERSION, Manifest, SeriesTarget, Split
from orchestrator.data.pushing.layout import RowOrder, ShardLayout, layout_of
from orchestrator.data.pushing.passes import (
    Counter,
    Progress,
    PushResult,
    lengths_of,
    scan_split,
    write_lengths,
    write_split,
)
from orchestrator.data.pushing.pieces import Here, OnCluster, Runner, runner_for
from orchestrator.data.pushing.scan import Scan, copies, refuse_copies, with_statistics
from orchestrator.data.sources.damaged import naming_all_damaged
from orchestrator.data.sources.files import SCHEME, open_files
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.options import SourceOptions, parse_options
from orchestrator.data.sources.prepared import Piece, Prepared, told, without

if TYPE_CHECKING:
    from cluster.s3.store import Store


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
    append: bool = False,
    to: str | None = None,
    repair: bool = False,
    on_cluster: OnCluster = "auto",
    address: str | None = None,
    progress: Progress | None = None,
    download_progress: DownloadProgress | None = None,
) -> PushResult:
    """Read a source and write it as a dataset, or append its rows to one.

    Args:
        store: where to.
        source: see `local_copy`.
        name: of the dataset; default: from the source.
        format: see `prepare`; default: found out.
        options: what the person says about the source.
        licence: to be recorded; default: what is known of the source.
        append: make a new version of the dataset that has the rows of the newest one and after them these, which are
            read by its rules; see `append_prepared`.
        to: the version to append to; default: the newest.
        repair: see `push_prepared`.
        on_cluster: whether the rows are read on Ray Data; `auto`: if the source is large and the local cluster runs.
        address: of the cluster; see `resolve_address`.
        progress: called with the rows worked through.
        download_progress: called with the bytes of a download.

    Raises:
        OrchestratorError: see `local_copy`, `prepare`, `push_prepared`, `rules_of` and `append_prepared`.
    """
    if to is not None and not append:
        raise ConfigError(f"to must be left out unless rows are appended, got {to}. Add --append.")
    copy = _brought_here(source, download_progress)
    options = parse_options({**copy.options, **(options or SourceOptions()).model_dump(exclude_none=True)})
    format = format or copy.format
    rules = None
    if append:
        rules = rules_of(store, name or copy.name or name_of(copy.source), to=to, options=options, format=format)
    prepared = read_more(copy.source, rules) if rules else prepare(copy.source, format=format, options=options)
    prepared = replace(prepared, source=prepared.source.model_copy(update=_origin(copy, prepared, options)))
    pieces = [piece for part in prepared.splits.values() for piece in part.pieces]
    every = [*pieces, *_old_pieces(store, prepared, rules)]
    if rules:
        write = partial(append_prepared, store, prepared, rules)
    else:
        leakage = options.leakage or "refuse"
        write = partial(push_prepared, store, prepared, name=name or copy.name, leakage=leakage)
    with (
        naming_all_damaged(pieces),
        runner_for(every, on_cluster=on_cluster, address=address, store=store) as runner,
    ):
        return write(licence=licence, repair=repair, runner=runner, progress=progress)


def _origin(copy: LocalCopy, prepared: Prepared, options: SourceOptions) -> dict[str, object]:
    """Return what the manifest says about where rows are from."""
    return {
        "uri": copy.uri,
        "licence": copy.licence or prepared.source.licence,
        "options": options.model_dump(mode="json", exclude_none=True, exclude={"unknown"}),
    }


def _old_pieces(store: "Store", prepared: Prepared, rules: Rules | None) -> list[Piece]:
    """Return what is read of the version that rows are appended to."""
    if rules is None or not needs_old_rows(prepared, rules):
        return []
    return [shard for shards in stored_shards(store, rules.manifest).values() for shard in shards]


def push_prepared(
    store: "Store",
    prepared: Prepared,
    *,
    name: str | None = None,
    licence: str | None = None,
    leakage: Literal["refuse", "drop", "keep"] = "refuse",
    repair: bool = False,
    runner: Runner | None = None,
    progress: Progress | None = None,
) -> PushResult:
    """Write what a source holds as a dataset, unless this content is there already.

    All rows are read twice: for what must be known before the first is written, then to write them. A push that was
    interrupted leaves objects without a manifest, which no reader sees; repeating it completes it.

    Args:
        store: where to.
        prepared: what.
        name: of the dataset; default: the source's own.
        licence: to be recorded; default: the source's own.
        leakage: what to do with rows of training that are in another split too.
        repair: write all objects again even if this content is there already: one of them is damaged.
        runner: where the rows are read; default: here.
        progress: called with the rows worked through.

    Raises:
        ConfigError: if the source is malformed, or a split holds rows of the training split.
    """
    name = _checked(name or prepared.name)
    runner = runner or Here()
    counter = Counter(progress, total=2 * sum(part.rows for part in prepared.splits.values()))
    prepared, scans = _scanned(prepared, runner, leakage, counter)
    order = _order_of(prepared)
    layouts = {split: layout_of(split, part, scans[split], order) for split, part in prepared.splits.items()}
    version = content_version(prepared, scans, layouts, order)
    if not repair and store.exists(manifest_key(name, version)):
        return PushResult(read_manifest(store, name, version), changed=False)
    key = folder(name, version)
    splits = {
        split: Split(
            rows=part.rows,
            context_rows=part.context_rows,
            lengths=write_lengths(store, key, split, lengths_of(scans[split], layouts[split])),
            shards=write_split(store, key, split, prepared, layouts[split], runner, counter),
        )
        for split, part in prepared.splits.items()
    }
    manifest = _manifest(prepared, name, version, order, splits, licence)
    try:
        store.write(manifest_key(name, version), manifest.model_dump_json(indent=1).encode(), only_if_absent=True)
    except PreconditionError:  # it was there, or somebody pushed the same content meanwhile
        return PushResult(read_manifest(store, name, version), changed=False)
    return PushResult(manifest, changed=True)


def _manifest(
    prepared: Prepared, name: str, version: str, order: RowOrder, splits: dict[str, Split], licence: str | None
) -> Manifest:
    return Manifest(
        name=name,
        version=version,
        features=dict(prepared.features),
        target=prepared.target,
        order=order,
        splits=splits,
        source=told(prepared, licence=licence),
        rows=prepared.rows,
        created=datetime.now(UTC).isoformat(),
    )


def content_version(
    prepared: Prepared, scans: Mapping[str, Sequence[Scan]], layouts: Mapping[str, ShardLayout], order: RowOrder
) -> str:
    """Return the first 12 hex digits of the SHA-256 of all that readers depend on: meaning, values, order, groups."""
    meaning = {
        "format_version": FORMAT_VERSION,
        "features": {name: feature.model_dump(mode="json") for name, feature in prepared.features.items()},
        "target": prepared.target.model_dump(mode="json"),
        **({"order": order} if order == "random" else {}),
        **({"rows": prepared.rows.model_dump(mode="json")} if prepared.rows else {}),
        "splits": {
            split: [
                part.context_rows,
                layouts[split].group_rows,
                layouts[split].shard_rows,
                [[scan.rows, scan.sha256] for scan in scans[split]],
            ]
            for split, part in sorted(prepared.splits.items())
        },
    }
    return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()[:12]


def ls(store: "Store") -> Listing[DatasetSummary]:
    """Return a summary of every dataset's newest version, and which manifests are damaged."""
    names = named_folders(store, FOLDER)
    found: list[DatasetSummary] = []
    damaged = names.damaged
    for name in names.found:
        readable = readable_versions(store, name)
        damaged += readable.damaged
        if readable.found:
            found.append(summarize(newest(readable.found), len(readable.found)))
    return Listing(found, damaged)


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
        rows={name: manifest.own_rows(name) for name in manifest.splits},
        bytes=sum(shard.bytes for split in manifest.splits.values() for shard in split.shards),
        features={name: feature.kind for name, feature in manifest.features.items()},
        target=manifest.target.kind,
        source=_source_text(manifest),
    )


def _source_text(manifest: Manifest) -> str:
    count = len(manifest.additions)
    more = f" and {count} appended to it" if count else ""
    return f"{manifest.source.format} {manifest.source.uri}{more}"


def _brought_here(source: str, progress: DownloadProgress | None) -> LocalCopy:
    """Download what is not here. The files of a prefix are read where they are, by whatever machine needs them."""
    if source.startswith(SCHEME) and not is_archive(source) and open_files(source).sizes():
        return LocalCopy(source=source, uri=source)
    return local_copy(source, progress=progress)


def _scanned(
    prepared: Prepared, runner: Runner, leakage: str, counter: Counter
) -> tuple[Prepared, dict[str, list[Scan]]]:
    """Read all rows once; return the source with its statistics, without copies in training if they are to go."""
    scans = {split: scan_split(prepared, split, runner, counter) for split in prepared.splits}
    held_out = {split: found for split, found in scans.items() if split != TRAIN}
    for split, found in held_out.items() if leakage == "refuse" else ():
        refuse_copies(split, found, scans[TRAIN], source=prepared.source.uri)
    if leakage == "drop" and len(rows := copies([*chain(*held_out.values())], scans[TRAIN])):
        train = prepared.splits[TRAIN]
        rest = replace(train, pieces=without(train.pieces, rows))
        prepared = replace(prepared, splits={**prepared.splits, TRAIN: rest})
        scans[TRAIN] = scan_split(prepared, TRAIN, runner, Counter(None, total=0))
    return replace(prepared, features=with_statistics(prepared.features, scans[TRAIN])), scans


def _checked(name: str) -> str:
    try:
        return checked_name(name)
    except ValueError as error:
        raise ConfigError(f"name of the dataset {error}. Give another one.") from error


def _order_of(prepared: Prepared) -> RowOrder:
    if isinstance(prepared.target, SeriesTarget):
        return "time"
    return "source" if prepared.keeps_order else "random"

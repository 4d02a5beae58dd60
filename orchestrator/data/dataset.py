"""One version of a dataset in the store: its manifest, and its row groups, verified."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cluster.errors import ConfigError, IntegrityError, NotFoundError
from cluster.process.typed import typed
from cluster.s3.records import named_folders, read_model
from cluster.s3.stored_json import MANY_VALUES, Listing, listing
from models.features import ForecastTarget, Signature
from orchestrator.data.columns import Columns, from_table
from orchestrator.data.manifest import Manifest, Run, SeriesTarget, Shard, Split
from orchestrator.data.order import Ints
from orchestrator.data.shards import read_footer, read_row_group, require_rows, sha256

if TYPE_CHECKING:
    from cluster.s3.store import Store

FOLDER = "datasets"
TRAIN = "train"


@dataclass(frozen=True)
class Dataset:
    """One version of a dataset in the store; make it with `open_dataset`."""

    store: "Store"
    manifest: Manifest
    _footers: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _footer_locks: dict[str, threading.Lock] = field(
        default_factory=lambda: defaultdict(threading.Lock), repr=False, compare=False
    )

    def signature(self, *, lookback: int | None = None, horizon: int | None = None) -> Signature:
        """Return what a model reads and answers; see `signature`."""
        return signature(self.manifest, lookback, horizon)

    def split(self, name: str) -> Split:
        """Return one split's record.

        Raises:
            NotFoundError: if there is none of that name.
        """
        splits = self.manifest.splits
        if name not in splits:
            raise NotFoundError(
                f"split of dataset {self.manifest.name} must be one of {', '.join(splits)}, got {name!r}."
            )
        return splits[name]

    def lengths(self, split: str) -> Ints | None:
        """Return the length of each row of a split; None if all are alike.

        Raises:
            IntegrityError: if they do not match their SHA-256, twice.
        """
        record = self.split(split).lengths
        if record is None:
            return None
        place = f"{folder(self.manifest.name, self.manifest.version)}/{record.path}"
        data = self._verified(place, "the whole", 0, record.bytes, record.sha256)
        return np.frombuffer(data, "<i4").astype(np.int64)

    def read_row_group(self, shard: Shard, index: int) -> Columns:
        """Fetch one row group and return its columns; see `fetch_row_group`."""
        return self.columns_of(self.fetch_row_group(shard, index), shard, index)

    def columns_of(self, table: pa.Table, shard: Shard, index: int) -> Columns:
        """Return a row group that was fetched as arrays.

        Raises:
            IntegrityError: if it lacks a column.
        """
        try:
            return from_table(table, self.manifest.features, self.manifest.target)
        except (KeyError, ValueError) as error:
            raise self._mismatch(shard, index, error) from error

    def fetch_row_group(self, shard: Shard, index: int) -> pa.Table:
        """Fetch one row group with one ranged GET and verify it.

        Raises:
            IntegrityError: if its bytes do not match their SHA-256, twice.
        """
        group = shard.row_groups[index]
        data = self._verified(self._key(shard), f"row group {index}", group.offset, group.bytes, group.sha256)
        try:
            footer = self._footer(shard)
            require_rows(footer, shard=shard, index=index)
            return read_row_group(data, shard=shard, index=index, footer=footer)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._mismatch(shard, index, error) from error

    def _key(self, shard: Shard) -> str:
        """Return the key of a shard, which may lie in the folder of a version that this one was appended to."""
        return f"{folder(self.manifest.name, shard.version or self.manifest.version)}/{shard.path}"

    def _mismatch(self, shard: Shard, index: int, error: Exception) -> IntegrityError:
        reason = " ".join(str(error).split())[:100]
        return IntegrityError(
            f"row group {index} of shard {self._key(shard)} must hold what its manifest says, got "
            f"{type(error).__name__}: {reason}. {self._cure(self._key(shard))}"
        )

    def _footer(self, shard: Shard) -> Any:
        key = self._key(shard)
        with self._footer_locks[key]:  # threads that ask at the same time fetch it once
            if key not in self._footers:
                start = shard.footer_offset
                data = self._verified(key, "footer", start, shard.bytes - start, shard.footer_sha256)
                self._footers[key] = read_footer(data)
            return self._footers[key]

    def _verified(self, key: str, what: str, start: int, length: int, expected: str) -> Any:
        for _ in range(2):  # once more: bytes may be damaged on their way and whole in the store
            data = self.store.read_range(key, start=start, length=length)
            found = sha256(data)
            if found == expected:
                return data
        raise IntegrityError(
            f"{what} of shard {key} must have SHA-256 {expected[:12]}…, got {found[:12]}… twice. The object "
            f"is damaged. {self._cure(key)}"
        )

    def _cure(self, key: str) -> str:
        """Say what writes a damaged object again: pushing or appending the rows that it holds."""
        version = key.split("/")[-2]
        addition = next((found for found in self.manifest.additions if found.version == version), None)
        if addition is None:
            return "Push the data again with --repair."
        return f"Append {addition.source.uri} again with --append --to {addition.appended_to} --repair."


def open_dataset(store: "Store", name: str, version: str | None = None) -> Dataset:
    """Read a dataset's manifest; the newest version's unless one is named.

    Raises:
        NotFoundError: if there is no such dataset or version; lists those there are.
        IntegrityError: if the manifest is not one.
    """
    if version is not None:
        return Dataset(store, read_manifest(store, name, version))
    manifests = [read_manifest(store, name, v) for v in versions(store, name)]
    if not manifests:
        raise NotFoundError(
            f"data.name must be a dataset in the store, got {name!r}. "
            f"{_there_are('Datasets', datasets(store))} Make one with `{typed('data', 'push', 'SOURCE')}`."
        )
    return Dataset(store, newest(manifests))


def newest(manifests: Sequence[Manifest]) -> Manifest:
    """Return the manifest of the version that was pushed last."""
    return max(manifests, key=lambda manifest: (manifest.created, manifest.version))


def readable_versions(store: "Store", name: str) -> Listing[Manifest]:
    """Return the manifests of a dataset's versions, and which of them are damaged."""
    names = named_folders(store, f"{FOLDER}/{name}")
    manifests = listing(names.found, lambda version: read_manifest(store, name, version))
    return Listing(manifests.found, names.damaged + manifests.damaged)


def datasets(store: "Store") -> list[str]:
    """Return the names of all datasets that have a complete version."""
    return [name for name in named_folders(store, FOLDER).found if versions(store, name)]


def versions(store: "Store", name: str) -> list[str]:
    """Return a dataset's complete versions; one without a manifest is still being pushed, or was given up."""
    return [v for v in named_folders(store, f"{FOLDER}/{name}").found if store.exists(manifest_key(name, v))]


def read_manifest(store: "Store", name: str, version: str) -> Manifest:
    """Read and check one version's manifest; see `open_dataset` for the errors."""
    key = manifest_key(name, version)
    cure = "Delete the version and push the data again, or use the program's version that wrote it."
    try:
        manifest = read_model(
            store, key, Manifest, what="a manifest of this program", cure=cure, most_values=MANY_VALUES
        )
    except NotFoundError:
        raise NotFoundError(
            f"data.version must be a version of dataset {name}, got {version!r}. "
            f"{_there_are('Versions', versions(store, name))}"
        ) from None
    if (manifest.name, manifest.version) != (name, version):
        raise IntegrityError(
            f"{key} must describe {name} {version}, got {manifest.name} {manifest.version}. Push the data again."
        )
    return manifest


def folder(name: str, version: str) -> str:
    """Return the folder of one version."""
    return f"{FOLDER}/{name}/{version}"


def manifest_key(name: str, version: str) -> str:
    """Return the key of one version's manifest."""
    return f"{folder(name, version)}/manifest.json"


def signature(manifest: Manifest, lookback: int | None, horizon: int | None) -> Signature:
    """Return what a model reads and answers on this dataset.

    Raises:
        ConfigError: if a series lacks `lookback` and `horizon` or is too short, or if other data have them.
    """
    target = manifest.target
    if not isinstance(target, SeriesTarget):
        if lookback is not None or horizon is not None:
            raise ConfigError(
                f"data.lookback and data.horizon must be left out for dataset {manifest.name}, which is not a "
                f"series, got {lookback} and {horizon}. Remove them."
            )
        return Signature(features=manifest.features, target=target, rows=manifest.rows)
    if lookback is None or horizon is None:
        raise ConfigError(
            f"data.lookback and data.horizon must be given for dataset {manifest.name}, which is a series, "
            f"got {lookback} and {horizon}. For an hourly series: data.lookback=96 data.horizon=24."
        )
    for name, split in manifest.splits.items():
        runs = (target.runs or {}).get(name, (Run(split.rows, split.context_rows),))
        longest = max(run.rows - max(0, run.context_rows - lookback) for run in runs)
        if lookback + horizon > longest:
            where = f"rows of split {name}" if len(runs) == 1 else f"rows between gaps that split {name} has at most,"
            raise ConfigError(
                f"data.lookback + data.horizon must be at most the {longest} {where} of dataset {manifest.name}, got "
                f"{lookback} + {horizon}. Lower one of them."
            )
    return Signature(features=manifest.features, target=ForecastTarget(lookback=lookback, horizon=horizon))


def _there_are(what: str, names: Sequence[str]) -> str:
    return f"{what} there: {', '.join(names)}." if names else f"There are no {what.lower()} yet."

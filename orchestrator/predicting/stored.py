"""The rows of a dataset in the store, as they are stored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cluster.errors import ConfigError
from cluster.s3.store import Store
from models.features import Feature, ForecastTarget, ImageFeature, SeriesFeature, Signature, VectorFeature
from orchestrator.data.columns import Column, Columns, join
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.manifest import Manifest, SeriesTarget
from orchestrator.data.reading.samples import Samples, Windows
from orchestrator.predicting.parts import MOST_BYTES, MOST_ROWS, BatchSource, Place, SourcePart
from serving.requests.outputs import series_channels


@dataclass(frozen=True)
class _SplitRows:
    """The samples of a split; pickles without what it has fetched."""

    store: Store
    manifest: Manifest
    """With this split alone, so that it travels quickly."""
    split: str
    signature: Signature

    @cached_property
    def samples(self) -> Samples:
        """Where each sample lies."""
        return Samples(Dataset(self.store, self.manifest), self.split, self.signature)

    def __reduce__(self) -> tuple[object, ...]:
        return (_SplitRows, (self.store, self.manifest, self.split, self.signature))


@dataclass(frozen=True)
class StoredRows:
    """A piece: the samples that begin in some row groups of a split."""

    of: _SplitRows
    groups: tuple[int, ...]
    rows: int
    source_bytes: int

    def read(self) -> Columns:
        """Fetch and verify the rows; of a series, windows of what the model looks back on."""
        samples, names = self.of.samples, self.of.signature.features
        parts = [samples.read(group) for group in self.groups if samples.per_group[group]]
        return {name: join([self._inputs(part[name]) for part in parts]) for name in names}

    def _inputs(self, column: Column) -> Column:
        if not isinstance(column, Windows):
            return column
        target = self.of.signature.target
        assert isinstance(target, ForecastTarget)
        windows = column[np.arange(len(column))]
        return np.asarray(windows)[:, : target.lookback]


def stored_source(
    store: Store, name: str, version: str | None, split: str | None, *, model: str, signature: Signature
) -> BatchSource:
    """Return the rows of a dataset, of all its splits or of one.

    Args:
        store: where it is.
        name: of the dataset.
        version: of it; default: the newest.
        split: of it; default: all.
        model: name and version of the model, for messages.
        signature: of the model.

    Raises:
        NotFoundError: if there is no such dataset, version or split.
        ConfigError: if the model does not read such rows, or there are none.
    """
    dataset = open_dataset(store, name, version)
    manifest = dataset.manifest
    _check_features(manifest, model, signature)
    splits = [split] if split is not None else [*manifest.splits]
    parts = [part for each in splits for part in _parts(store, dataset, each, signature)]
    uri = f"{name}@{manifest.version}" + (f" split {split}" if split else "")
    if not parts:
        raise ConfigError(f"{uri} must hold a row to predict, got none. Name another split.")
    return BatchSource(uri, tuple(parts), stamps=(manifest.version, *splits))


def _parts(store: Store, dataset: Dataset, split: str, signature: Signature) -> Iterator[SourcePart]:
    record = dataset.split(split)
    of = _SplitRows(store, dataset.manifest.model_copy(update={"splits": {split: record}}), split, signature)
    counts = of.samples.per_group
    group_bytes = [group.bytes for shard in record.shards for group in shard.row_groups]
    first, rows, size = 0, 0, 0
    groups: list[int] = []
    most_rows = _most_rows(signature)
    for group, count in enumerate(counts):
        if groups and (rows + count > most_rows or size + group_bytes[group] > MOST_BYTES):
            yield SourcePart(StoredRows(of, tuple(groups), rows, size), Place(first=first, split=split))
            first, groups, rows, size = first + rows, [], 0, 0
        if count:
            groups.append(group)
            rows, size = rows + count, size + group_bytes[group]
    if groups:
        yield SourcePart(StoredRows(of, tuple(groups), rows, size), Place(first=first, split=split))


def _most_rows(signature: Signature) -> int:
    """Return the rows of a part: windows of a series are many times the rows that they are cut from."""
    if not isinstance(signature.target, ForecastTarget):
        return MOST_ROWS
    channels = len(series_channels(signature))
    return max(1, min(MOST_ROWS, MOST_BYTES // (4 * channels * signature.target.lookback)))


def _check_features(manifest: Manifest, model: str, signature: Signature) -> None:
    """Refuse a dataset whose stored rows mean something else to the model.

    Raises:
        ConfigError: naming the first feature that differs.
    """
    place = f"{manifest.name}@{manifest.version}"
    is_series = isinstance(manifest.target, SeriesTarget)
    if is_series != (signature.target.kind == "forecast"):
        wanted, got = ("other rows than a series", "one") if is_series else ("a series", "other rows")
        raise ConfigError(f"{place} must be {wanted} for {model}, got {got}. Name another dataset.")
    known, found = _meanings(signature.features), _meanings(manifest.features)
    for name in {**known, **found}:
        if known.get(name) != found.get(name):
            what = "another one" if name in known and name in found else "none" if name in known else "it beside them"
            raise ConfigError(
                f"{place} must have the features of {model} ({', '.join(known)}), with their vocabularies and sizes, "
                f"got {what} for {name}. Give the files that the dataset was made of instead: the model reads them by "
                "its own rules."
            )


def _meanings(features: Mapping[str, Feature]) -> dict[str, Feature]:
    """Return features without their statistics, by which stored rows are not changed."""
    statistics = {"mean": (), "std": ()}
    found: dict[str, Feature] = {}
    for name, feature in sorted(features.items()):
        match feature:
            case SeriesFeature():  # nor by how its file was read
                found[name] = SeriesFeature(channels=feature.channels, mean=(), std=())
            case ImageFeature() | VectorFeature():
                found[name] = feature.model_copy(update=statistics)
            case _:
                found[name] = feature
    return found

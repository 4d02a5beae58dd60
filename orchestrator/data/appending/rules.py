"""The rules by which rows are read that are appended to a version: those by which its own rows were read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from pydantic import ValidationError

from cluster.errors import ConfigError, NotFoundError
from models.features import Feature
from models.preparing.rows import RowSchema
from orchestrator.data.dataset import Dataset, datasets, open_dataset
from orchestrator.data.manifest import DatasetTarget, Manifest, Source
from orchestrator.data.sources.files import SCHEME
from orchestrator.data.sources.located import plain_name
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import as_name

if TYPE_CHECKING:
    from cluster.s3.store import Store

CURE = "Mend it, or push all rows together as a new version, without --append."

OF_THE_NEW_FILES = ("delimiter", "quotes", "damaged", "leakage", "copies")
"""Options that say how the new files are written, or what to do with what is found in them."""

OF_OLD_VERSIONS = ("target", "text", "rating", "label", "ignore", "missing", "test", "seed")
"""Options that the person gives again where the version was written before its manifest recorded them."""


class RowRules(Protocol):
    """How rows of a table become features, and what a message calls that; as text, whose rules they are."""

    @property
    def features(self) -> Mapping[str, Feature]:
        """The features that rows become."""

    @property
    def schema(self) -> RowSchema:
        """How a row of the source becomes the features."""

    @property
    def cure(self) -> str:
        """What to do where a row does not fit; follows the message."""


@dataclass(frozen=True)
class Rules:
    """A version of a dataset that rows are appended to, and how they are read."""

    dataset: Dataset
    options: SourceOptions
    """What was said of the version's own source, and what is said of the new one."""
    is_newest: bool
    """Whether the version was found as the newest one; otherwise the person has named it."""

    @property
    def manifest(self) -> Manifest:
        """The version's manifest."""
        return self.dataset.manifest

    @property
    def features(self) -> Mapping[str, Feature]:
        """The version's features, which stay as they are."""
        return self.manifest.features

    @property
    def target(self) -> DatasetTarget:
        """The version's target, which stays as it is."""
        return self.manifest.target

    @property
    def schema(self) -> RowSchema:
        """How a row of the source becomes the features."""
        if self.manifest.rows is None:
            raise ConfigError(
                f"{self} must say how its rows were read, to append others, got a manifest without it: an earlier "
                f"version of this program wrote it. Push all rows together as a new version, without --append."
            )
        return self.manifest.rows

    @property
    def format(self) -> str:
        """The format of the version's source, without the encoding."""
        return format_of(self.manifest)

    @property
    def cure(self) -> str:
        """What to do where a row does not fit."""
        return CURE

    def __str__(self) -> str:
        return f"{self.manifest.name} version {self.manifest.version}"

    def read(self, splits: Mapping[str, Part], source: Source, notes: tuple[str, ...] = ()) -> Prepared:
        """Return rows that were read by these rules.

        Args:
            splits: the rows of each split, or all of them under `ALL` if they are still to be split.
            source: where they are from.
            notes: what was converted or left out.
        """
        return Prepared(
            name=self.manifest.name,
            features=self.features,
            target=self.target,
            splits=splits,
            source=source,
            notes=notes,
            rows=self.manifest.rows,
            keeps_order=self.manifest.order != "random",
        )


def rules_of(store: "Store", name: str, *, to: str | None, options: SourceOptions, format: str | None = None) -> Rules:
    """Return how rows are read that are appended to a dataset.

    Args:
        store: where it is.
        name: of the dataset.
        to: its version; default: the newest.
        options: what the person says about the new source.
        format: of the new source, if the person says it.

    Raises:
        NotFoundError: if there is no such dataset or version.
        ConfigError: if an option or the format contradicts the version.
    """
    if to is None and name not in (found := datasets(store)):
        raise NotFoundError(
            f"name must be a dataset in the store to append to, got {name!r}. "
            f"{'Datasets there: ' + ', '.join(found) if found else 'There are no datasets yet'}. Name it with --name."
        )
    dataset = open_dataset(store, name, to)
    manifest = dataset.manifest
    if format is not None and format != format_of(manifest):
        raise ConfigError(
            f"format must be that of {name} version {manifest.version}, {format_of(manifest)}, to append to it, got "
            f"{format}. {CURE}"
        )
    return Rules(dataset, _options(manifest, options), is_newest=to is None)


def format_of(manifest: Manifest) -> str:
    """Return the format of a version's source, without the encoding that follows it in brackets."""
    return manifest.source.format.partition(" (")[0]


def name_of(source: str) -> str:
    """Return the dataset that is meant where the person names none: the one called like the source."""
    path = source if source.startswith(SCHEME) else str(Path(source).resolve())
    return as_name(PurePosixPath(plain_name(path)).stem)


def _options(manifest: Manifest, options: SourceOptions) -> SourceOptions:
    """Return what was said of the version's source with what is said of the new one, which must not contradict it."""
    recorded = manifest.source.options
    known = _recorded(manifest)
    given = options.model_dump(mode="json", exclude_none=True, exclude={"unknown"})
    if options.unknown:
        given = {options.unknown[0]: None, **given}
    allowed = OF_THE_NEW_FILES if recorded is not None else (*OF_THE_NEW_FILES, *OF_OLD_VERSIONS)
    for option, value in given.items():
        if option not in allowed and known.get(option) != value:
            raise ConfigError(
                f"option {option} must be left out with --append, as rows are read by the rules of {manifest.name} "
                f"version {manifest.version}, got {value!r}. Options that may be given are {', '.join(allowed)}."
            )
    return SourceOptions.model_validate({**known, **given})


def _recorded(manifest: Manifest) -> dict[str, object]:
    """Return the options that the manifest records, in the form in which they were compared and written."""
    try:
        recorded = SourceOptions.model_validate(manifest.source.options or {})
    except ValidationError as error:
        raise ConfigError(
            f"the options of {manifest.name} version {manifest.version} must be ones that this program knows, got "
            f"{manifest.source.options}. Use the program's version that wrote it."
        ) from error
    return recorded.model_dump(mode="json", exclude_none=True)

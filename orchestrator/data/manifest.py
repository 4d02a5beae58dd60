"""The manifest of a dataset: its features, its splits, and every shard with its size and SHA-256."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.config import Name
from models.features import ClassTarget, Feature, NumberTarget

FORMAT_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RowGroup(_Frozen):
    """One row group of a Parquet shard: what one ranged GET fetches and one SHA-256 verifies."""

    rows: int = Field(gt=0)
    offset: int = Field(ge=0)
    """First byte of its column chunks in the shard."""
    bytes: int = Field(gt=0)
    sha256: str


class Shard(_Frozen):
    """One Parquet file, in the dataset's folder."""

    path: str
    rows: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: str
    footer_sha256: str
    """SHA-256 of everything after the last row group: the Parquet footer."""
    row_groups: tuple[RowGroup, ...] = Field(min_length=1)


class Split(_Frozen):
    """One part of a dataset: train, validation or test."""

    rows: int = Field(gt=0)
    context_rows: int = Field(default=0, ge=0)
    """Series only: leading rows that belong to the split before, there for the first windows to look back on."""
    shards: tuple[Shard, ...] = Field(min_length=1)


class Source(_Frozen):
    """Where the data came from."""

    format: str
    uri: str
    licence: str | None = None


class SeriesTarget(_Frozen):
    """The series itself is what is predicted; how far is the experiment's choice (`data.horizon`)."""

    kind: Literal["series"] = "series"


DatasetTarget = Annotated[ClassTarget | NumberTarget | SeriesTarget, Field(discriminator="kind")]


class Manifest(_Frozen):
    """A version of a dataset, immutable once written."""

    format_version: Literal[1] = 1
    name: Name
    version: Name
    """First 12 hex digits of the SHA-256 of the content, so the same content is the same version."""
    features: dict[str, Feature]
    target: DatasetTarget
    splits: dict[str, Split]
    source: Source
    created: str
    """UTC, ISO 8601."""

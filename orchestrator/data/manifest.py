"""The manifest of a dataset: its features, its splits, and every shard with its size and SHA-256."""

from typing import Annotated, Literal

from pydantic import FailFast, Field, model_validator

from cluster.config import Name
from models.features import BoxesTarget, ClassTarget, Feature, NumberTarget
from models.records import Frozen
from models.rows import RowSchema

FORMAT_VERSION = 1

SplitName = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]{0,62}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class RowGroup(Frozen):
    """One row group of a Parquet shard: what one ranged GET fetches and one SHA-256 verifies."""

    rows: int = Field(gt=0)
    offset: int = Field(ge=0)
    """First byte of its column chunks in the shard."""
    bytes: int = Field(gt=0)
    sha256: Sha256

    @model_validator(mode="after")
    def _rows_have_bytes(self) -> "RowGroup":
        if self.rows > self.bytes:
            raise ValueError(f"rows must be at most the bytes of their row group ({self.bytes}), got {self.rows}")
        return self


class Shard(Frozen):
    """One Parquet file, in the dataset's folder."""

    path: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*\.parquet$")
    rows: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: Sha256
    footer_sha256: Sha256
    """SHA-256 of everything after the last row group: the Parquet footer."""
    row_groups: Annotated[tuple[RowGroup, ...], FailFast(), Field(min_length=1)]

    @property
    def footer_offset(self) -> int:
        """First byte after the last row group."""
        return self.row_groups[-1].offset + self.row_groups[-1].bytes

    @model_validator(mode="after")
    def _row_groups_fit(self) -> "Shard":
        if self.rows != sum(group.rows for group in self.row_groups):
            raise ValueError(f"rows of shard {self.path} must be the sum of its row groups, got {self.rows}")
        if self.footer_offset >= self.bytes:
            raise ValueError(f"bytes of shard {self.path} must exceed {self.footer_offset}, got {self.bytes}")
        return self


class Lengths(Frozen):
    """How long each row of a split is, for batches of similar lengths: an object of little-endian int32."""

    path: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*\.lengths$")
    bytes: int = Field(gt=0)
    sha256: Sha256


class Split(Frozen):
    """One part of a dataset: train, validation or test."""

    rows: int = Field(gt=0)
    lengths: Lengths | None = None
    """Only where rows have text, sound or a sparse row: those of a row together."""
    context_rows: int = Field(default=0, ge=0)
    """Series only: leading ones of `rows` that belong to the split before, for the first windows to look back on."""
    shards: Annotated[tuple[Shard, ...], FailFast(), Field(min_length=1)]

    @model_validator(mode="after")
    def _shards_fit(self) -> "Split":
        if self.rows != sum(shard.rows for shard in self.shards):
            raise ValueError(f"rows of a split must be the sum of its shards, got {self.rows}")
        if self.context_rows >= self.rows:
            raise ValueError(f"context_rows must be less than rows ({self.rows}), got {self.context_rows}")
        return self


class Source(Frozen):
    """Where the data came from."""

    format: str
    uri: str
    licence: str | None = None


class SeriesTarget(Frozen):
    """The series itself is what is predicted; how far is the experiment's choice (`data.horizon`)."""

    kind: Literal["series"] = "series"


DatasetTarget = Annotated[ClassTarget | NumberTarget | BoxesTarget | SeriesTarget, Field(discriminator="kind")]


class Manifest(Frozen):
    """A version of a dataset, immutable once written."""

    format_version: Literal[1] = 1
    name: Name
    version: Name
    """First 12 hex digits of the SHA-256 of the content, so the same content is the same version."""
    features: dict[str, Feature]
    target: DatasetTarget
    rows: RowSchema | None = None
    """How a row of the source becomes the features, if it has named columns."""
    order: Literal["random", "source", "time"] | None = None
    """How the rows lie: in a random order, as in the source (`order=keep`), or as a series in time. Datasets written
    before the order was random do not say: theirs is the source's."""
    splits: dict[SplitName, Split]
    source: Source
    notes: tuple[str, ...] = ()
    """What was converted, filled or left out when the source was read, a sentence each, with its numbers."""
    created: str
    """UTC, ISO 8601."""

    @property
    def judged_on(self) -> str:
        """The split that every epoch is judged on: the validation split where there is one, else the test split."""
        return "validation" if "validation" in self.splits else "test"

"""The manifest of a dataset: its features, its splits, and every shard with its size and SHA-256."""

from typing import Annotated, Literal, NamedTuple

from pydantic import FailFast, Field, JsonValue, model_validator

from cluster.config import Name
from models.describe import describe_target
from models.features import BoxesTarget, ClassTarget, Feature, NumberTarget
from models.preparing.rows import RowSchema
from models.records import Frozen

FORMAT_VERSION = 1
MOST_RUNS = 100_000  # of a split

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
    """One Parquet file, in the folder of a version."""

    path: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*\.parquet$")
    version: Name | None = None
    """The version of the same dataset in whose folder the file lies; ``None``: the manifest's own."""
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


class Change(Frozen):
    """Something that was converted, filled in or left out on the way from the source."""

    option: str | None = None
    """As it was given: `rate=8000`; where the program chose it, what it chose; ``None``: there is no such choice."""
    text: str
    """What was done, in words with its numbers."""
    numbers: dict[str, float] = {}
    names: Annotated[tuple[str, ...], FailFast()] = ()
    """Files that were left out."""


class Source(Frozen):
    """Where the data came from."""

    format: str
    uri: str
    licence: str | None = None
    changes: tuple[Change, ...] = ()
    """Nothing else was changed on the way."""
    options: dict[str, JsonValue] | None = None
    """What the person said about the source, so that more rows can be read as these were; ``None``: it is not known."""


class Addition(Frozen):
    """Rows that were appended to a version of the dataset, by which another version came about."""

    version: Name
    """The version that came about."""
    appended_to: Name
    """The version that the rows were appended to, whose shards it goes on using."""
    rows: dict[SplitName, int]
    """How many rows each split was given."""
    sha256: Sha256
    """Of all the rows that were read, so that nobody appends them twice."""
    source: Source


class Run(NamedTuple):
    """Rows of a series without a gap between them, all of one series where there are many."""

    rows: int
    context_rows: int = 0
    """Leading ones that belong to the split before."""


Runs = Annotated[tuple[Run, ...], FailFast(), Field(min_length=1, max_length=MOST_RUNS)]


class SeriesTarget(Frozen):
    """The series itself is what is predicted; how far is the experiment's choice (`data.horizon`)."""

    kind: Literal["series"] = "series"
    runs: dict[SplitName, Runs] | None = None
    """By split, where windows must not cross from some rows to the next; all together they are its rows."""


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
    """Of the rows that were pushed first; those that were appended to them have their own."""
    additions: tuple[Addition, ...] = ()
    """Every appending that led to this version, the first one first."""
    created: str
    """UTC, ISO 8601."""

    @property
    def appended_to(self) -> str | None:
        """The version whose rows come first in this one, if rows were appended to one."""
        return self.additions[-1].appended_to if self.additions else None

    def first_rows(self, split: str) -> int:
        """Rows of a split that were pushed first, before any were appended."""
        return self.splits[split].rows - sum(addition.rows.get(split, 0) for addition in self.additions)

    def own_rows(self, split: str) -> int:
        """Rows of a split that do not belong to the split before."""
        found = self.splits[split]
        if isinstance(self.target, SeriesTarget) and self.target.runs:
            return found.rows - sum(run.context_rows for run in self.target.runs[split])
        return found.rows - found.context_rows

    @model_validator(mode="after")
    def _runs_fit(self) -> "Manifest":
        runs = self.target.runs if isinstance(self.target, SeriesTarget) else None
        for name, found in (runs or {}).items():
            wrong = [run for run in found if not 0 <= run.context_rows <= run.rows]
            rows = self.splits[name].rows if name in self.splits else 0
            if wrong or rows != sum(run.rows for run in found):
                raise ValueError(f"runs of split {name} must be its {rows} rows, got {sum(run.rows for run in found)}")
        if runs is not None and runs.keys() != self.splits.keys():
            raise ValueError(f"runs must be given for {', '.join(self.splits)}, got {', '.join(runs)}")
        return self

    @model_validator(mode="after")
    def _additions_follow_each_other(self) -> "Manifest":
        ends = [addition.version for addition in self.additions]
        begins = [addition.appended_to for addition in self.additions]
        if ends and (ends[-1] != self.version or begins[1:] != ends[:-1]):
            raise ValueError(f"additions must lead to version {self.version}, got {', '.join(ends)}")
        for name, split in self.splits.items():
            strange = {shard.version for shard in split.shards} - {None, *begins}
            if strange or (ends and self.first_rows(name) < 1):
                raise ValueError(f"split {name} must consist of what was appended, got {split.rows} rows")
        return self

    @property
    def target_text(self) -> str:
        """What a model of it is to answer, in a few words."""
        return describe_target(self.target) if self.target.kind != "series" else "the series itself, some steps ahead"

    @property
    def judged_on(self) -> str:
        """The split that every epoch is judged on: the validation split where there is one, else the test split."""
        return "validation" if "validation" in self.splits else "test"

    def __repr__(self) -> str:
        """Name the dataset, its version, its rows and its folder; the fields hold the rest."""
        rows = ", ".join(f"{split.rows} {name} rows" for name, split in self.splits.items())
        return f"<Manifest {self.name} {self.version}: {rows}; datasets/{self.name}/{self.version}/>"

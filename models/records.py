"""What settings and stored records are made from: immutable, and strict about names. Imports pydantic only."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Frozen):
    """A group of settings; the docstrings under its fields are their help."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class FiniteSettings(Settings):
    """A group of settings whose numbers must be finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class Finite(Frozen):
    """A stored record whose numbers must be finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class StoredWithNaN(Frozen):
    """A stored record in which a metric may be NaN.

    NaN is written as such: as null, which is pydantic's default, a metric that is not defined could not be read back.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")


class Evidence(Frozen):
    """A part of a ledger, in which a number may be NaN.

    JSON has no NaN: written as null, pydantic's default, it could not be read back, and a cell would count as damaged.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")


class DatasetRef(Frozen):
    """The dataset version that a run reads, or that a model was trained on."""

    name: str
    version: str


class LeftOut(Frozen):
    """Rows of one shard of a dataset that a run does not read, since they are damaged in the store."""

    split: str
    shard: str
    """Its name in the dataset's folder."""
    row_groups: tuple[int, ...] = ()
    """Whole row groups, by their number in the shard."""
    rows: tuple[int, ...] = ()
    """Single rows of other row groups, by their number in the shard."""
    count: int
    """All of these rows."""
    of_rows: int
    """Rows of the shard."""
    reason: str
    """Why the first of them cannot be read."""

    @property
    def text(self) -> str:
        """Which rows are left out, and why, in one line."""
        groups = f"row group{'s' * (len(self.row_groups) > 1)} {_listed(self.row_groups)}" if self.row_groups else ""
        rows = f"row{'s' * (len(self.rows) > 1)} {_listed(self.rows)}" if self.rows else ""
        which = " and ".join(filter(None, (groups, rows)))
        return f"{self.count:,} of {self.of_rows:,} rows of shard {self.shard} ({which}): {self.reason}"


def _listed(numbers: tuple[int, ...], *, shown: int = 5) -> str:
    more = f" and {len(numbers) - shown:,} more" if len(numbers) > shown else ""
    return ", ".join(map(str, numbers[:shown])) + more

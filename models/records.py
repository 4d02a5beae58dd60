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

"""What the registry records about a version of a model. Imports pydantic only."""

import hashlib
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from cluster.config import checked_name
from cluster.errors import ConfigError
from cluster.s3.stored_json import MANY_VALUES, parse_model
from models.config import ModelConfig, ResolvedTechniques
from models.features import Signature
from models.records import DatasetRef, Frozen, LeftOut

Parsed = TypeVar("Parsed", bound=BaseModel)


def parsed(kind: type[Parsed], body: bytes, key: str) -> Parsed:
    """Read a stored record.

    Raises:
        IntegrityError: it is damaged.
    """
    return parse_model(kind, body, where=key, what="what this version of orchestrator writes", most_values=MANY_VALUES)


def check_name(what: str, value: str) -> None:
    """Refuse a name that cannot be part of a key.

    Raises:
        ConfigError: naming what it was to be the name of.
    """
    try:
        checked_name(value)
    except ValueError as error:
        raise ConfigError(f"{what} {error}") from None


def key_of(name: str, version: str, file: str) -> str:
    """Return the key of an object of a version."""
    return f"models/{name}/{version}/{file}"


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class Lineage(Frozen):
    """Where a version came from."""

    run: str
    dataset: DatasetRef
    left_out: tuple[LeftOut, ...] | None = None
    """Damaged rows of the dataset that it was not trained on; ``None``: there was no leave to leave any out."""
    code_version: str
    versions: dict[str, str]
    """Versions of the libraries it was trained with."""
    experiment: dict[str, Any]


class Version(Frozen):
    """A trained model in the registry; the content of its ``model.json``."""

    format_version: Literal[1] = 1
    name: str
    version: str
    created: str
    """UTC, ISO 8601."""
    weights_sha256: str
    weights_bytes: int
    model: ModelConfig
    techniques: ResolvedTechniques
    signature: Signature
    metrics: dict[str, float]
    primary_metric: str
    """The metric that decides between two models of this kind."""
    evaluated_on: str
    """The split that ``metrics`` describe."""
    lineage: Lineage

"""What the registry records about a version of a model. Imports pydantic only."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from models.config import ModelConfig, ResolvedTechniques
from models.features import Signature


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Lineage(_Frozen):
    """Where a version came from."""

    run: str
    dataset: str
    dataset_version: str
    code_version: str | None
    versions: dict[str, str]
    """Of the libraries it was trained with."""
    experiment: dict[str, Any]


class Version(_Frozen):
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
    metrics: dict[str, Any]
    primary_metric: str | None
    lineage: Lineage

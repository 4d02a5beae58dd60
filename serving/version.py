"""What the registry records about a version of a model. Imports pydantic only."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from models.config import ModelConfig, ResolvedTechniques
from models.features import Signature


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetRef(_Frozen):
    """The dataset version that a model was trained on."""

    name: str
    version: str


class Lineage(_Frozen):
    """Where a version came from."""

    run: str
    dataset: DatasetRef
    code_version: str
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
    metrics: dict[str, float]
    primary_metric: str
    """The metric that decides between two models of this kind."""
    evaluated_on: str
    """The split that ``metrics`` describe."""
    lineage: Lineage

"""What the registry takes from a finished run: its record and its verified weights."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import ConfigError, IntegrityError, NotFoundError
from cluster.process.typed import typed
from cluster.s3.records import read_model
from cluster.s3.store import Store
from cluster.s3.stored_json import MOST_BYTES
from models.config import ResolvedTechniques
from models.features import Signature
from models.records import DatasetRef, LeftOut
from serving.version import check_name, parsed


class Excerpt(BaseModel):
    """What the registry needs of a record that has more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class FinishedRun(Excerpt):
    """What matters here of a run's ``run.json``."""

    run: str
    state: str
    experiment: dict[str, Any]
    techniques: ResolvedTechniques
    signature: Signature
    dataset: DatasetRef
    left_out: tuple[LeftOut, ...] | None = None
    evaluated_on: str
    """The split that ``metrics`` describe."""
    primary_metric: str
    code_version: str
    versions: dict[str, str]
    metrics: dict[str, float]
    checkpoint: str | None


class WeightsFile(Excerpt):
    """The weights of a checkpoint, as they were written."""

    bytes: int
    sha256: str


class CheckpointFiles(Excerpt):
    """The files of a checkpoint."""

    weights: WeightsFile = Field(alias="weights.safetensors")


class RunCheckpoint(Excerpt):
    """What matters here of a checkpoint's ``manifest.json``."""

    files: CheckpointFiles


def read_run(store: Store, run: str) -> FinishedRun:
    """The record of a finished run.

    Raises:
        NotFoundError: if there is no such run.
        ConfigError: if it is not finished.
    """
    check_name("run", run)
    try:
        body = store.read(f"runs/{run}/run.json", most_bytes=MOST_BYTES)
    except NotFoundError:
        raise NotFoundError(f"the run must exist, got {run!r}. See `{typed('runs')}`.") from None
    record = parsed(FinishedRun, body, f"runs/{run}/run.json")
    if record.state != "finished" or not record.checkpoint:
        raise ConfigError(
            f"run {run} must be finished to be promoted, got {record.state!r}. Complete it: `{typed('resume', run)}`."
        )
    return record


def checkpoint_weights(store: Store, run: FinishedRun) -> tuple[str, WeightsFile]:
    """The key of the weights that a run ended with, and what is recorded of them."""
    assert run.checkpoint is not None
    prefix = run.checkpoint.rstrip("/") + "/"
    if not prefix.startswith(f"runs/{run.run}/checkpoints/"):
        raise IntegrityError(f"run {run.run} must name a checkpoint of its own, got {prefix!r}.")
    manifest = read_model(store, prefix + "manifest.json", RunCheckpoint, what="a checkpoint's manifest")
    return prefix + "weights.safetensors", manifest.files.weights

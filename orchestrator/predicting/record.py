"""What the store holds of a batch prediction: a plan, written first, a Parquet file for each part, a manifest last.

predictions/NAME/VERSION-DIGEST/
    plan.json                      which version predicts which rows, and how many each part has
    part-00000-of-00007.parquet    an answer for each row, in order
    manifest.json                  written last: every part with its rows, bytes and SHA-256

The digest is of the version's weights and of the source, so that the same prediction has the same folder: a repeated
command finds the parts that are there, and goes on. Nothing in it depends on when or where it ran.
"""

from typing import Annotated, Literal

from pydantic import FailFast, Field

from cluster.errors import ConfigError, NotFoundError
from cluster.s3.records import read_model
from cluster.s3.store import Store
from cluster.s3.stored_json import MANY_VALUES
from models.records import Frozen

FOLDER = "predictions"
_PLAN = "a plan of predictions"

PartRows = Annotated[tuple[int, ...], FailFast(), Field(min_length=1)]


class PredictionPlan(Frozen):
    """Which version predicts which rows; the content of ``plan.json``."""

    format_version: Literal[1] = 1
    model: str
    version: str
    weights_sha256: str
    source: str
    """The dataset's name and version, or the file, folder or prefix."""
    digest: str
    """SHA-256 of the version's weights, of what the source is made of, and of the parts."""
    part_rows: PartRows
    """Rows of each part."""

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(self.part_rows)

    def path(self, number: int) -> str:
        """Return the name of the file of a part."""
        return f"part-{number:05}-of-{len(self.part_rows):05}.parquet"


class PredictedPart(Frozen):
    """One Parquet file of answers."""

    path: str
    rows: int
    bytes: int
    sha256: str


class PredictionManifest(Frozen):
    """A finished batch prediction; the content of ``manifest.json``."""

    plan: PredictionPlan
    parts: Annotated[tuple[PredictedPart, ...], FailFast()]

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(part.rows for part in self.parts)


def plan_key(folder: str) -> str:
    """Return the key of the plan of a folder of predictions."""
    return f"{folder}/plan.json"


def prediction_manifest_key(folder: str) -> str:
    """Return the key of the manifest of a folder of predictions."""
    return f"{folder}/manifest.json"


def read_predictions(store: Store, folder: str) -> PredictionManifest:
    """Return the manifest of a finished batch prediction.

    Raises:
        NotFoundError: if there is none, or it is not finished.
        IntegrityError: if it is damaged.
    """
    key = prediction_manifest_key(folder)
    return read_model(store, key, PredictionManifest, what="a manifest of predictions", most_values=MANY_VALUES)


def claim(store: Store, folder: str, plan: PredictionPlan) -> None:
    """Write the plan into a folder, where the same one may be already.

    Raises:
        ConfigError: if the folder holds other predictions.
    """
    try:
        known = read_model(
            store, plan_key(folder), PredictionPlan, what="a plan of predictions", most_values=MANY_VALUES
        )
    except NotFoundError:
        store.write(plan_key(folder), plan.model_dump_json(indent=1).encode())
        return
    if known != plan:
        raise ConfigError(
            f"--out must be a folder without other predictions, got {folder}, which holds those of {known.model} "
            f"{known.version} for {known.source}. Name another one."
        )

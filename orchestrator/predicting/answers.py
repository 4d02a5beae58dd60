"""Answers of a network as the columns of a Parquet file, with the words and numbers that an endpoint answers with.

# B = rows, K = classes, H = horizon, C = channels

    target      columns
    class       class: string, probability: float, probabilities: float[K] in the order of the metadata's `classes`
    number      value: float
    forecast    forecast: list of {channel: float}, a step ahead each
"""

import io
import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from torch import Tensor

from cluster.errors import ConfigError
from models.features import CategoricalFeature, ClassTarget, ForecastTarget, NumberTarget, Signature
from orchestrator.data.columns import Array, Columns
from orchestrator.predicting.parts import FILLED, Place
from orchestrator.predicting.record import PredictionPlan
from serving.requests.outputs import series_channels

METADATA = b"orchestrator"
"""Key of the file's metadata: JSON with the model, its version, its weights and the source."""


def answer_table(
    output: Tensor, columns: Columns, place: Place, signature: Signature, *, filled: tuple[str, ...]
) -> pa.Table:
    """Return one row for each that was asked.

    Args:
        output: class: probabilities [B, K]; number: [B]; forecast: [B, H, C].
        columns: what was asked.
        place: which rows these are.
        signature: of the model.
        filled: names of the columns of `FILLED`.

    Raises:
        ConfigError: if an answer is not finite, which inputs near the limits of float32 can cause; names the row.
    """
    _require_finite(output, place)
    found = {**place.columns(len(output)), **_answers(output.numpy(), signature)}
    if FILLED in columns:
        found["filled"] = _named(_array(columns[FILLED]), filled)
    categories = [name for name, feature in signature.features.items() if isinstance(feature, CategoricalFeature)]
    if categories:
        unseen = np.stack([_array(columns[name]) == 0 for name in categories], axis=1)
        found["unseen"] = _named(unseen, categories)
    return pa.table(found)


def parquet_bytes(table: pa.Table, plan: PredictionPlan, signature: Signature, *, part: int) -> bytes:
    """Return a part as a Parquet file that says which version has answered; the same answers are the same bytes."""
    about = plan.model_dump(mode="json", include={"model", "version", "weights_sha256", "source", "digest"})
    about |= {"part": part, "parts": len(plan.part_rows)}
    if isinstance(signature.target, ClassTarget):
        about["classes"] = signature.target.classes
    sink = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({METADATA: json.dumps(about)}), sink)
    return sink.getvalue()


def rows_in(data: bytes, plan: PredictionPlan, *, part: int) -> int | None:
    """Return the rows of a part that is there already; None if it is damaged, or of something else."""
    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        about: Mapping[str, object] = json.loads(file.schema_arrow.metadata[METADATA])
        file.read()
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None
    return file.metadata.num_rows if (about["digest"], about["part"]) == (plan.digest, part) else None


def _answers(output: Array, signature: Signature) -> dict[str, pa.Array]:
    match signature.target:
        case ClassTarget(classes=classes):
            best_B = output.argmax(axis=1)
            return {
                "class": pa.array(classes, pa.string()).take(pa.array(best_B)),
                "probability": pa.array(output[np.arange(len(output)), best_B]),
                "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(output.ravel()), output.shape[1]),
            }
        case NumberTarget():
            return {"value": pa.array(output)}
        case ForecastTarget(horizon=horizon):
            channels = series_channels(signature)
            steps = [pa.array(np.ascontiguousarray(output[:, :, c]).ravel()) for c in range(len(channels))]
            offsets = np.arange(len(output) + 1, dtype=np.int32) * horizon
            return {"forecast": pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(steps, list(channels)))}
    raise AssertionError(f"no model answers {signature.target.kind}")


def _require_finite(output: Tensor, place: Place) -> None:
    is_finite_B = output.isfinite().reshape(len(output), -1).all(1)
    if not bool(is_finite_B.all()):
        where = place.where(int((~is_finite_B).nonzero()[0]))
        raise ConfigError(f"{where} must lead to a finite answer, got NaN or infinity. Mend or remove it.")


def _named(is_so: Array, names: tuple[str, ...] | list[str]) -> pa.Array:
    """Return for each row the names of which something is so, [B, names] bool."""
    offsets = np.concatenate([[0], np.cumsum(is_so.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(names, pa.string()).take(pa.array(np.nonzero(is_so)[1])))


def _array(column: object) -> Array:
    assert isinstance(column, np.ndarray)
    return column

"""A worker's part: rows become tensors, the network answers, and the answers become an object in the store."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cluster.failpoints import failpoint
from models.features import Signature
from orchestrator.data.columns import Column, Columns, Ragged, take
from orchestrator.data.reading.samples import decode_files, dense_columns, to_tensors
from orchestrator.predicting.answers import answer_table, parquet_bytes
from orchestrator.predicting.parts import FILLED, Place
from orchestrator.predicting.record import PredictedPart, PredictionPlan
from serving.golden import LoadedModel
from serving.registry import load

if TYPE_CHECKING:
    from cluster.s3.store import Store

BATCH = 256  # rows; more make no network here faster on a CPU, and take memory
DECODE_THREADS = 2  # of each part; several are worked on at a time

_models: dict[str, LoadedModel] = {}
_loading = threading.Lock()


@dataclass(frozen=True)
class PartWork:
    """What every worker must know; it pickles without a secret."""

    store: "Store"
    folder: str
    plan: PredictionPlan
    places: tuple[Place, ...]
    filled: tuple[str, ...]

    def do(self, number: int, columns: Columns) -> PredictedPart:
        """Predict the rows of a part and write their answers."""
        model = loaded_model(self.store, self.plan)
        signature = model.version.signature
        output = predict_rows(model, columns)
        assert len(output) == self.plan.part_rows[number], "an answer for each row"
        table = answer_table(output, columns, self.places[number], signature, filled=self.filled)
        data = parquet_bytes(table, self.plan, signature, part=number)
        path = self.plan.path(number)
        self.store.write(f"{self.folder}/{path}", data)
        failpoint("predicting.after_part")
        return PredictedPart(path=path, rows=table.num_rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def loaded_model(store: "Store", plan: PredictionPlan) -> LoadedModel:
    """Return the version, loaded once in a process."""
    key = f"{plan.model} {plan.version} {plan.weights_sha256}"
    with _loading:
        if key not in _models:
            _models.clear()
            _models[key] = load(store, name=plan.model, version=plan.version)
        return _models[key]


def predict_rows(model: LoadedModel, columns: Columns) -> Tensor:
    """Return the answers of all rows in their order: probabilities [B, K], numbers [B] or forecasts [B, H, C].

    Rows of similar lengths are asked together, which spares padding.
    """
    signature = model.version.signature
    features = {name: column for name, column in columns.items() if name != FILLED}
    order = _by_length(features)
    outputs = []
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for batch in _batches(features, order, signature, pool):
            outputs.append(model.predict(batch))
    output = torch.cat(outputs)
    if order is None:
        return output
    in_place = torch.empty_like(output)
    in_place[torch.from_numpy(order)] = output
    return in_place


def _by_length(features: Columns) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """Return the rows in the order of their lengths, if they have such."""
    lengths = [column.lengths for column in features.values() if isinstance(column, Ragged)]
    return np.argsort(sum(lengths), kind="stable") if lengths else None


def _batches(
    features: Columns,
    order: np.ndarray[tuple[int], np.dtype[np.int64]] | None,
    signature: Signature,
    pool: ThreadPoolExecutor,
) -> Iterator[dict[str, Tensor]]:
    rows = len(next(iter(features.values())))
    for start in range(0, rows, BATCH):
        if order is None:
            chosen = {name: column[start : start + BATCH] for name, column in features.items()}
        else:
            chosen = {name: take(column, order[start : start + BATCH]) for name, column in features.items()}
        tensors = {name: _tensor(name, column, signature) for name, column in chosen.items()}
        yield to_tensors(tensors, signature, lambda files, feature, fit: decode_files(files, feature, fit, pool=pool))


def _tensor(name: str, column: Column, signature: Signature) -> Tensor | Column:
    """Return a column of one size per row as a tensor; the others wait for their batch."""
    if isinstance(column, Ragged):
        return column
    dense = dense_columns(signature).get(name)
    tensor = torch.from_numpy(np.array(column))  # a copy: what was fetched must not be written to
    return tensor if dense is None else tensor.to(dense.dtype)

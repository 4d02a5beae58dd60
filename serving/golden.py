"""The golden example: inputs and outputs that a replica must reproduce before it takes traffic."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cluster.errors import ConfigError, IntegrityError
from cluster.s3.store import Store
from cluster.s3.stored_json import MOST_BYTES
from models.network import Network, example_batch
from models.records import Frozen
from serving.requests.inputs import Batch
from serving.requests.protocol import describe_output, output_tensor, parse_request, request_of
from serving.requests.values import InputError
from serving.version import Version, key_of, parsed

GOLDEN_SIZE = 4
GOLDEN_SEED = 0
# Another processor or another batch size changes the last bits of a float32 sum; other weights change far more.
GOLDEN_RTOL, GOLDEN_ATOL = 1e-3, 1e-4


class Golden(Frozen):
    """A request and its answer's ``outputs``, both in the Open Inference Protocol."""

    request: dict[str, Any]
    outputs: list[dict[str, Any]]


@dataclass(frozen=True)
class LoadedModel:
    """A version whose weights are verified and in memory."""

    version: Version
    network: Network

    def predict(self, batch: Batch) -> Tensor:
        """Probabilities [B, K], numbers [B] or a forecast [B, horizon, C]."""
        with torch.inference_mode():
            return self.network.predict(batch)


def read_golden(store: Store, *, name: str, version: str) -> Golden:
    """The request and answer that every replica of a version must reproduce.

    Raises:
        NotFoundError: if the version does not exist.
        IntegrityError: if the object is not a golden file.
    """
    key = key_of(name, version, "golden.json")
    return parsed(Golden, store.read(key, most_bytes=MOST_BYTES), key)


def check_golden(model: LoadedModel, golden: Golden) -> None:
    """Ask the model its golden request.

    Raises:
        IntegrityError: if it answers something else.
    """
    signature = model.version.signature
    where = f"{model.version.name} {model.version.version}"
    try:
        answer = model.predict(parse_request(golden.request, signature))
    except InputError as error:
        raise IntegrityError(f"golden.json of {where} must be a request the model reads, got: {error}") from None
    require_golden(answer, golden, where=where)


def require_golden(answer: Tensor, golden: Golden, *, where: str) -> None:
    """Compare an answer with the recorded one.

    Raises:
        IntegrityError: naming the largest difference.
    """
    expected = _expected(golden, where)
    if answer.shape != expected.shape:
        raise IntegrityError(
            f"{where} must answer its golden request with shape {list(expected.shape)}, got {list(answer.shape)}."
        )
    if not torch.allclose(answer, expected, rtol=GOLDEN_RTOL, atol=GOLDEN_ATOL):
        difference = (answer - expected).abs().max().item()
        raise IntegrityError(
            f"{where} must answer its golden request as recorded, got a difference of {difference:.3g}. "
            "Train again with the installed versions, or install those of the version's lineage."
        )


def _expected(golden: Golden, where: str) -> Tensor:
    try:
        return output_tensor(golden.outputs)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise IntegrityError(
            f"golden.json of {where} must hold one answer, with shape and data, got {type(error).__name__}: {reason}."
        ) from None


def record_golden(model: LoadedModel) -> Golden:
    """Ask a model a few random questions and write down what it answers."""
    signature = model.version.signature
    example = example_batch(signature, size=GOLDEN_SIZE, seed=GOLDEN_SEED)
    request = request_of(example, signature)
    try:
        outputs = describe_output(model.predict(parse_request(request, signature)), signature)
    except InputError as error:
        run = model.version.lineage.run
        raise ConfigError(f"run {run} must give finite answers to be promoted, got: {error}") from None
    return Golden(request=request, outputs=outputs)

"""Weights become a network: their size is compared with the configuration before anything is fetched or allocated."""

import hashlib

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from cluster.errors import IntegrityError
from cluster.s3.store import Store
from models.config import ModelConfig, ResolvedTechniques
from models.features import Signature
from models.network import Network, build, weight_bytes

MOST_HEADER = 2**20  # bytes of a safetensors file beside its tensors: 200 for each


def read_weights(
    store: Store,
    key: str,
    *,
    sha256: str,
    cure: str,
    model: ModelConfig,
    techniques: ResolvedTechniques,
    signature: Signature,
) -> bytes:
    """Return weights whose bytes are as recorded, and as many as the configuration needs.

    Args:
        store: where they are.
        key: of the object.
        sha256: what was recorded when they were written.
        cure: what to do where it is another one; follows the message.
        model: the configuration that they belong to.
        techniques: that the network is built with.
        signature: of the data.

    Raises:
        NotFoundError: if there is no such object.
        IntegrityError: if they are fewer, more or other bytes, or nobody could build such a network.
    """
    needed = _needed(key, model, techniques, signature)
    weights = store.read(key, most_bytes=needed + MOST_HEADER)
    if hashlib.sha256(weights).hexdigest() != sha256:
        raise IntegrityError(f"{key} must match its SHA-256, got other bytes. {cure}")
    if len(weights) < needed:
        raise IntegrityError(
            f"{key} must hold weights that fit its model configuration, {needed:,} bytes, got {len(weights):,}."
        )
    return weights


def build_network(
    model: ModelConfig, techniques: ResolvedTechniques, signature: Signature, weights: bytes, *, where: str
) -> Network:
    """Return the network with these weights, ready to answer. Nothing is unpickled.

    Raises:
        IntegrityError: if the weights do not fit the configuration.
    """
    try:
        tensors = load_safetensors(weights)
        network = build(model, techniques, signature, seed=0)
        network.load_state_dict(tensors, strict=True)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise _misfit(where, error) from None
    return network.eval()


def _needed(where: str, model: ModelConfig, techniques: ResolvedTechniques, signature: Signature) -> int:
    try:
        return weight_bytes(model, techniques, signature)
    except (RuntimeError, ValueError) as error:
        raise _misfit(where, error) from None


def _misfit(where: str, error: Exception) -> IntegrityError:
    reason = " ".join(str(error).split())[:300]
    return IntegrityError(f"{where} must hold weights that fit its model configuration, got: {reason}")

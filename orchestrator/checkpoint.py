"""Checkpoints in the store: written once, verified before use, never unpickled.

    runs/RUN/checkpoints/STEP-ATTEMPT/
        weights.safetensors  optimizer.safetensors  progress.json
        manifest.json        every file's size and SHA-256
        COMPLETE             written last: its body is the SHA-256 of the manifest

A checkpoint is valid when the marker, the manifest and every file agree. Nothing is overwritten or renamed: a second
attempt at the same step has a folder of its own, and resuming takes the newest valid one.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cluster.errors import IntegrityError, NotFoundError
from cluster.storage import Store

FORMAT_VERSION = 1
MARKER = "COMPLETE"
_FOLDER = re.compile(r"^(\d{8})-([0-9a-f]{8})$")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Progress(_Frozen):
    """How far a training is, and what its result so far depends on."""

    epoch: int
    """Epochs completed."""
    update: int
    """Weight updates completed."""
    logical_workers: int
    dataset_version: str
    environment: dict[str, str]
    """Processor, threads and library versions; where they differ, the same bits are not promised."""
    history: list[dict[str, float]]
    """Metrics of every completed epoch."""


class FileEntry(_Frozen):
    """Size and hash of one file of a checkpoint."""

    bytes: int
    sha256: str


class CheckpointManifest(_Frozen):
    """The list of exactly the files that make up a checkpoint."""

    format_version: int
    step: int
    attempt: str
    files: dict[str, FileEntry]


class State(NamedTuple):
    """What is saved: two groups of named tensors, and how far the training is."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: Progress


class Restored(NamedTuple):
    """What was found: the newest valid state, and the newer ones that were passed over, with the reasons."""

    prefix: str
    state: State
    passed_over: list[str]


def save_checkpoint(store: Store, *, run: str, attempt: str, state: State) -> str:
    """Write a checkpoint and return its key prefix; it counts only once its marker is there.

    Raises:
        StoreError: if the store fails for longer than its retry budget. What was written before is no checkpoint.
    """
    prefix = f"{_checkpoints(run)}{state.progress.update:08d}-{attempt}/"
    files = {
        "weights.safetensors": save(state.weights),
        "optimizer.safetensors": save(state.optimizer),
        "progress.json": state.progress.model_dump_json().encode(),
    }
    for name, data in files.items():
        store.write(prefix + name, data)
    manifest = CheckpointManifest(
        format_version=FORMAT_VERSION,
        step=state.progress.update,
        attempt=attempt,
        files={name: FileEntry(bytes=len(data), sha256=_sha256(data)) for name, data in files.items()},
    )
    body = manifest.model_dump_json().encode()
    store.write(prefix + "manifest.json", body)
    store.write(prefix + MARKER, _sha256(body).encode())
    return prefix


def newest_valid(store: Store, *, run: str) -> Restored | None:
    """The newest checkpoint whose every byte is as written; ``None`` when there is none."""
    passed_over: list[str] = []
    for prefix in checkpoint_prefixes(store, run=run):
        try:
            return Restored(prefix, load_checkpoint(store, prefix=prefix), passed_over)
        except IntegrityError as error:
            passed_over.append(str(error))
    return None


def load_checkpoint(store: Store, *, prefix: str) -> State:
    """Read and verify one checkpoint.

    Raises:
        IntegrityError: naming the file and what is wrong with it.
    """
    manifest = _read_manifest(store, prefix)
    files = {name: _verified(store, prefix + name, entry) for name, entry in manifest.files.items()}
    try:
        return State(
            weights=load(files["weights.safetensors"]),
            optimizer=load(files["optimizer.safetensors"]),
            progress=Progress.model_validate_json(files["progress.json"]),
        )
    except (KeyError, SafetensorError, ValidationError) as error:
        raise IntegrityError(f"checkpoint {prefix} must hold weights, optimizer and progress, got {error}.") from None


def checkpoint_prefixes(store: Store, *, run: str) -> Iterator[str]:
    """Key prefixes of all checkpoint folders, newest step first, valid or not; other names are ignored."""
    root = _checkpoints(run)
    names = [folder.removeprefix(root).strip("/") for folder in store.folders(root)]
    for name in sorted((n for n in names if _FOLDER.match(n)), reverse=True):
        yield f"{root}{name}/"


def prune(store: Store, *, run: str, keep: int) -> list[str]:
    """Remove all but the ``keep`` newest marked checkpoints, and unmarked ones older than those; return what went.

    A marked checkpoint is only counted, not read: reading gigabytes to delete older ones would cost more than the
    one extra folder that a damaged newest checkpoint leaves.
    """
    kept, removed = 0, []
    for prefix in checkpoint_prefixes(store, run=run):
        if kept >= keep:
            # the marker goes first: a half-removed folder must not look complete
            store.delete([prefix + MARKER])
            store.delete([info.key for info in store.list(prefix)])
            removed.append(prefix)
        elif store.exists(prefix + MARKER):
            kept += 1
    return removed


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, ``PARAMETER.KEY``; numbers become 0-d tensors."""
    tensors: dict[str, Tensor] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"{names[index]}.{key}"] = (
                    torch.as_tensor(value).detach().cpu().clone(memory_format=torch.contiguous_format)
                )
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`; what has a parameter's shape gets its memory layout too."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(".")
        index = names.index(parameter)
        like = torch.empty_like(parameters[index]) if tensor.shape == parameters[index].shape else tensor.clone()
        state.setdefault(index, {})[key] = like.detach().copy_(tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _checkpoints(run: str) -> str:
    return f"runs/{run}/checkpoints/"


def _read_manifest(store: Store, prefix: str) -> CheckpointManifest:
    try:
        marker = store.read(prefix + MARKER)
        body = store.read(prefix + "manifest.json")
    except NotFoundError:
        raise IntegrityError(f"checkpoint {prefix} must be complete, got no marker or no manifest.") from None
    if marker.decode("ascii", "replace") != _sha256(body):
        raise IntegrityError(f"{prefix}manifest.json must match its marker, got other bytes.")
    try:
        manifest = CheckpointManifest.model_validate_json(body)
    except ValidationError:
        raise IntegrityError(f"{prefix}manifest.json must be a checkpoint's manifest, got {body[:40]!r}.") from None
    if manifest.format_version > FORMAT_VERSION:
        found = manifest.format_version
        raise IntegrityError(
            f"{prefix}manifest.json must be of format {FORMAT_VERSION} or older, got {found}. Upgrade."
        )
    if any("/" in name or name.startswith(".") for name in manifest.files):
        raise IntegrityError(f"{prefix}manifest.json must name files of its own folder, got {list(manifest.files)}.")
    return manifest


def _verified(store: Store, key: str, entry: FileEntry) -> bytes:
    for _ in range(2):  # once more: bytes may be damaged on their way and whole in the store
        try:
            data = store.read(key)
        except NotFoundError:
            raise IntegrityError(f"{key} must exist, got no such object.") from None
        if len(data) == entry.bytes and _sha256(data) == entry.sha256:
            return data
    raise IntegrityError(f"{key} must match its SHA-256, got {len(data)} bytes of {entry.bytes} with another hash.")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

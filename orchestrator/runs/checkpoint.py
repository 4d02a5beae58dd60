"""Checkpoints in the store: written once, verified before use, never unpickled.

    runs/RUN/checkpoints/STEP-ATTEMPT/
        weights.safetensors  optimizer.safetensors  progress.json
        manifest.json        every file's size and SHA-256
        COMPLETE             written last: its body is the SHA-256 of the manifest

A checkpoint is valid when the marker, the manifest and every file agree. Nothing is overwritten or renamed: a second
attempt at the same step has a folder of its own, and resuming takes the newest valid one. What the manifest does not
list is never read, so a stray object beside the files does no harm; it goes with the folder.

A driver that takes a run over first collects its garbage, then looks for the newest valid checkpoint. So a stopped and
continued owner of before cannot commit: it finds its lease taken before it writes a marker, or, if it was stopped in
between, its late marker lies in a folder whose files are gone.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cluster.errors import IntegrityError, NotFoundError
from cluster.failpoints import failpoint
from cluster.s3.store import ObjectInfo, Store
from cluster.s3.stored_json import MANY_BRANCHES, MOST_BYTES, parse_model
from models.records import StoredWithNaN
from orchestrator.runs.lease import check_lease

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MARKER = "COMPLETE"
PROGRESS = "the progress of a training"
FILES = ("progress.json", "optimizer.safetensors", "weights.safetensors")
_FOLDER = re.compile(r"\d{8,}-[0-9a-f]{8}/")

log = logging.getLogger(__name__)


class Progress(StoredWithNaN):
    """How far a training is, and what its result so far depends on."""

    epoch: int
    """Epochs completed."""
    step: int = 0
    """Steps completed of the epoch that is under way."""
    update: int
    """Weight updates completed."""
    loss_sum: float = 0.0
    """Sum of the training loss over the samples of the epoch that is under way."""
    samples: int = 0
    """How many samples that were."""
    logical_workers: int
    dataset_version: str
    environment: dict[str, str]
    """Processor, threads and library versions; where they differ, the same bits are not promised."""
    history: list[dict[str, Any]]
    """Metrics and the why panel of every completed epoch, see `EpochRecord` in `orchestrator/runs/record.py`."""
    why: dict[str, Any] = {}
    """What the why panel has seen of the epoch that is under way, see `Diagnostics.state`."""
    lease: int = 0
    """Number of the lease under which it was written, see `orchestrator/runs/lease.py`; 0 where there is none."""


class FileEntry(StoredWithNaN):
    """Size and hash of one file of a checkpoint."""

    bytes: int
    sha256: str


class CheckpointManifest(StoredWithNaN):
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


class ResumePoint(NamedTuple):
    """Where a run goes on: its newest valid checkpoint, if any, and why newer ones are not used."""

    restored: Restored | None
    passed_over: list[str]


class StoredCheckpoint(NamedTuple):
    """What lies in one checkpoint folder."""

    prefix: str
    step: int
    """Weight updates completed."""
    complete: bool
    """Whether marker and manifest are there; the bytes are not looked at."""
    keys: list[str]
    bytes: int


def save_checkpoint(store: Store, *, run: str, attempt: str, state: State) -> str:
    """Write a checkpoint and return its key prefix; it counts only once its marker is there.

    Args:
        store: where to.
        run: whose checkpoint it is.
        attempt: 8 random hexadecimal digits; new ones for every call, so that two calls never share a folder.
        state: tensors of memory of their own; they need not be contiguous. With a `Progress.lease` the marker is
            written only while that lease is the run's newest.

    Raises:
        StoreError: if the store fails for longer than its retry budget. What was written before is no checkpoint.
        LeaseLostError: if another driver took the run over. What was written is no checkpoint.
    """
    folder = f"{state.progress.update:08d}-{attempt}/"
    assert _FOLDER.fullmatch(folder), folder
    prefix = _checkpoints(run) + folder
    entries = {}
    for name in FILES:  # one after the other: no more than one is in memory twice
        data = _serialized(state, name)
        store.write(prefix + name, data, only_if_absent=True)
        entries[name] = FileEntry(bytes=len(data), sha256=_sha256(data))
        failpoint("checkpoint.after_file")
    manifest = CheckpointManifest(
        format_version=FORMAT_VERSION, step=state.progress.update, attempt=attempt, files=entries
    )
    body = manifest.model_dump_json().encode()
    store.write(prefix + MANIFEST, body, only_if_absent=True)
    if state.progress.lease:
        check_lease(store, run=run, number=state.progress.lease)
    failpoint("checkpoint.before_marker")
    store.write(prefix + MARKER, _sha256(body).encode(), only_if_absent=True)
    failpoint("checkpoint.after_marker")
    return prefix


def recover(store: Store, *, run: str, keep: int | None = None) -> ResumePoint:
    """Find where to go on, for the owner of the run's lease: what was left unfinished is removed first.

    Removing it also bars whoever was stopped just before writing a marker. With ``keep`` the run is pruned too, which
    bounds what drivers leave that die between saving and pruning: there are never more than ``keep`` + 1 checkpoints.
    """
    unfinished = collect_garbage(store, run=run, dry_run=False)
    restored, passed_over = _newest_valid(store, run)
    if keep is not None:
        prune(store, run=run, keep=keep)
    newer = [c for c in unfinished if restored is None or c.step > restored.state.progress.update]
    return ResumePoint(
        restored, [f"{c.prefix}{MARKER} must exist, got an unfinished upload." for c in newer] + passed_over
    )


def newest_valid(store: Store, *, run: str) -> Restored | None:
    """The newest checkpoint whose every byte is as written; ``None`` when there is none."""
    return _newest_valid(store, run)[0]


def load_checkpoint(store: Store, *, prefix: str) -> State:
    """Read and verify one checkpoint.

    Raises:
        IntegrityError: naming the file and what is wrong with it.
    """
    entries = _read_manifest(store, prefix).files
    name = prefix + "progress.json"
    progress = parse_model(
        Progress,
        _verified(store, name, entries, most_bytes=MOST_BYTES),
        where=name,
        what=PROGRESS,
        most_branches=MANY_BRANCHES,
    )
    try:  # the largest first and one at a time: the bytes of one file and the tensors of all are the most in memory
        return State(
            progress=progress,
            optimizer=load(_verified(store, prefix + "optimizer.safetensors", entries)),
            weights=load(_verified(store, prefix + "weights.safetensors", entries)),
        )
    except (KeyError, SafetensorError) as error:
        raise IntegrityError(f"checkpoint {prefix} must hold weights and optimizer, got {error}.") from None


def verify_checkpoint(store: Store, *, prefix: str) -> None:
    """Read every byte of one checkpoint, one file at a time.

    Raises:
        IntegrityError: naming the file and what is wrong with it.
    """
    entries = _read_manifest(store, prefix).files
    for name in entries:
        _verified(store, prefix + name, entries)


def list_checkpoints(store: Store, *, run: str) -> list[StoredCheckpoint]:
    """All checkpoint folders with their sizes, newest step first, valid or not; other names are ignored."""
    root = _checkpoints(run)
    folders: dict[str, list[ObjectInfo]] = {}
    for info in store.list(root):
        if match := _FOLDER.match(info.key, pos=len(root)):
            folders.setdefault(match[0], []).append(info)
    return sorted((_stored(root, folder, infos) for folder, infos in folders.items()), key=_order, reverse=True)


def checkpoint_prefixes(store: Store, *, run: str) -> Iterator[str]:
    """Key prefixes of all checkpoint folders, newest step first, valid or not; other names are ignored."""
    return (checkpoint.prefix for checkpoint in list_checkpoints(store, run=run))


def prune(store: Store, *, run: str, keep: int) -> list[str]:
    """Remove what newer checkpoints have made superfluous; return the prefixes that went.

    The ``keep`` newest complete checkpoints stay. Before an older one goes, one that stays is read and verified: where
    all of them are damaged, the newest valid older one stays too, and where none at all is valid, all stay. Unfinished
    uploads go up to the newest complete step: a later one may still be under way.
    """
    found = list_checkpoints(store, run=run)
    complete = [c for c in found if c.complete]
    removed = _superfluous(store, complete, keep=keep)
    if complete:
        removed += [c for c in found if not c.complete and c.step <= complete[0].step]
    _remove(store, removed)
    return [c.prefix for c in removed]


def collect_garbage(store: Store, *, run: str, dry_run: bool) -> list[StoredCheckpoint]:
    """Remove every unfinished upload of a run; return what went, or what would go with ``dry_run``.

    The caller holds the run's lease and uploads nothing at the time: what is unfinished then will never be finished.
    """
    garbage = [c for c in list_checkpoints(store, run=run) if not c.complete]
    if not dry_run:
        _remove(store, garbage)
    return garbage


def _checkpoints(run: str) -> str:
    return f"runs/{run}/checkpoints/"


def _serialized(state: State, name: str) -> bytes:
    if name == "progress.json":
        return state.progress.model_dump_json().encode()
    tensors = state.weights if name == "weights.safetensors" else state.optimizer
    return save({key: tensor.contiguous() for key, tensor in tensors.items()})


def _newest_valid(store: Store, run: str) -> tuple[Restored | None, list[str]]:
    passed_over: list[str] = []
    for prefix in checkpoint_prefixes(store, run=run):
        try:
            return Restored(prefix, load_checkpoint(store, prefix=prefix), passed_over), passed_over
        except IntegrityError as error:
            log.warning("passing over a checkpoint: %s", error)
            passed_over.append(str(error))
    return None, passed_over


def _stored(root: str, folder: str, infos: list[ObjectInfo]) -> StoredCheckpoint:
    prefix, keys = root + folder, [info.key for info in infos]
    return StoredCheckpoint(
        prefix=prefix,
        step=int(folder.partition("-")[0]),
        complete=prefix + MARKER in keys and prefix + MANIFEST in keys,
        keys=keys,
        bytes=sum(info.size for info in infos),
    )


def _order(checkpoint: StoredCheckpoint) -> tuple[int, str]:
    return checkpoint.step, checkpoint.prefix


def _superfluous(store: Store, complete: list[StoredCheckpoint], *, keep: int) -> list[StoredCheckpoint]:
    """The complete checkpoints, newest first, that may go."""
    if len(complete) <= keep:
        return []
    valid = next((c for c in complete if _is_valid(store, c.prefix)), None)
    if valid is None:  # then it may be the reader that is at fault
        return []
    return [c for c in complete[keep:] if c is not valid]


def _is_valid(store: Store, prefix: str) -> bool:
    try:
        verify_checkpoint(store, prefix=prefix)
    except IntegrityError as error:
        log.warning("a checkpoint is damaged: %s", error)
        return False
    return True


def _remove(store: Store, checkpoints: list[StoredCheckpoint]) -> None:
    # the markers go first: a half-removed folder must not look complete
    store.delete([c.prefix + MARKER for c in checkpoints if c.complete])
    store.delete([key for c in checkpoints for key in c.keys])


def _read_manifest(store: Store, prefix: str) -> CheckpointManifest:
    for _ in range(2):  # once more, as for the files
        marker = _present(store, prefix + MARKER, most_bytes=MOST_BYTES)
        body = _present(store, prefix + MANIFEST, most_bytes=MOST_BYTES)
        if marker == _sha256(body).encode():
            return _parsed_manifest(prefix, body)
    raise IntegrityError(f"{prefix}{MANIFEST} must match its marker {MARKER}, got other bytes.")


def _parsed_manifest(prefix: str, body: bytes) -> CheckpointManifest:
    name = prefix + MANIFEST
    manifest = parse_model(CheckpointManifest, body, where=name, what="a checkpoint's manifest")
    if not 1 <= manifest.format_version <= FORMAT_VERSION:
        found = manifest.format_version
        raise IntegrityError(f"{name} must be of format {FORMAT_VERSION} or older, got {found}. Upgrade.")
    if (owner := f"{manifest.step:08d}-{manifest.attempt}/") != prefix[-len(owner) :]:
        raise IntegrityError(f"{name} must be the manifest of its own folder, got that of {owner}.")
    if set(manifest.files) != set(FILES):
        raise IntegrityError(f"{name} must name the files {', '.join(FILES)}, got {', '.join(manifest.files)}.")
    return manifest


def _verified(store: Store, key: str, entries: dict[str, FileEntry], *, most_bytes: int | None = None) -> bytes:
    entry = entries[key.rpartition("/")[2]]
    most_bytes = entry.bytes if most_bytes is None else min(most_bytes, entry.bytes)
    for _ in range(2):  # once more: bytes may be damaged on their way and whole in the store
        data = _present(store, key, most_bytes=most_bytes)
        if len(data) == entry.bytes and _sha256(data) == entry.sha256:
            return data
    raise IntegrityError(f"{key} must match its SHA-256, got {len(data)} bytes of {entry.bytes} with another hash.")


def _present(store: Store, key: str, *, most_bytes: int) -> bytes:
    try:
        return store.read(key, most_bytes=most_bytes)
    except NotFoundError:
        raise IntegrityError(f"{key} must exist, got no such object.") from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

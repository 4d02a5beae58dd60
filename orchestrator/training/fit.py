"""Fits a model in this worker: goes on from the newest checkpoint to the last epoch, and reports."""

import secrets
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch.distributed as dist

from cluster.failpoints import failpoint
from cluster.s3.store import Store
from orchestrator.config import TrainConfig
from orchestrator.runs.checkpoint import Restored, State, load_checkpoint, newest_valid, prune, recover, save_checkpoint
from orchestrator.runs.log import RunLog
from orchestrator.runs.pulse import PULSE, TrainingStoppedError
from orchestrator.runs.record import Metrics, RunRecord
from orchestrator.training.epoch import evaluate, train_epoch
from orchestrator.training.saving import CheckpointWriter
from orchestrator.training.trainer import Position, Trainer, World, build_trainer, load_state, save


def fit(
    record: RunRecord,
    *,
    store: Store,
    world: World,
    log: RunLog | None = None,
    checkpoints: Literal["all", "last"] = "all",
    lease: int = 0,
) -> Trainer:
    """Train from the newest valid checkpoint, or from the start, to the last epoch.

    Args:
        record: what to train.
        store: where the data is and the checkpoints go.
        world: this worker's place; a default process group must exist when there are several.
        log: where the first worker reports; without one nothing is written but checkpoints.
        checkpoints: `last` writes only the final one and starts afresh: a sweep's cell is repeated, not resumed.
        lease: number of the lease under which the driver works on the run; 0: nobody else can.

    Raises:
        RunFailedError: if the loss is no longer a number.
        TrainingStoppedError: on request, after a checkpoint.
        LeaseLostError: if another driver has taken the run over.
    """
    trainer = build_trainer(record, store=store, world=world, log=log)
    trainer.lease = lease
    with CheckpointWriter(partial(write_checkpoint, trainer), settings=trainer.settings) as writer:
        if checkpoints == "all":
            restore(trainer)
            writer.begin_at(trainer.update)
        between_steps = writer if checkpoints == "all" else None
        for _ in train_epochs(trainer, judged_on=trainer.dataset.manifest.judged_on, writer=between_steps):
            _save_epoch(trainer, writer, checkpoints)
    return trainer


def train_epochs(trainer: Trainer, *, judged_on: str, writer: CheckpointWriter | None = None) -> Iterator[Metrics]:
    """Train from where the trainer is to its last epoch; yield each epoch's metrics on a split, once they are reported.

    Args:
        trainer: changed in place.
        judged_on: the split.
        writer: see `train_epoch`.

    Raises:
        RunFailedError, TrainingStoppedError: see `train_epoch`.
    """
    for epoch in range(trainer.position.epoch, trainer.settings.epochs):
        trained = train_epoch(trainer, epoch, writer)
        metrics = evaluate(trainer, judged_on)
        report(trainer, epoch, trained | metrics)
        yield metrics


def restore(trainer: Trainer) -> None:
    """Load the newest valid checkpoint, the same on every worker; without one the training begins afresh."""
    failpoint("restore.before", rank=trainer.world.rank)
    found = _agreed_checkpoint(trainer)
    if found is None:
        return
    load_state(trainer, found.state)
    progress = found.state.progress
    trainer.checkpoint = PULSE.resumed_from = found.prefix
    PULSE.resumed_step = PULSE.step = progress.epoch * trainer.steps_per_epoch + progress.step
    failpoint("restore.after", rank=trainer.world.rank)


def report(trainer: Trainer, epoch: int, metrics: Metrics) -> None:
    """Add a finished epoch to the history, and tell the log."""
    why = {"why": trainer.why.end_epoch()} if trainer.why else {}
    trainer.history.append({"epoch": epoch + 1, **metrics, **why})
    trainer.position = Position(epoch + 1)
    if trainer.log:
        trainer.log.epoch(trainer.history)


def is_checkpoint_due(epochs_done: int, settings: TrainConfig) -> bool:
    """Whether the end of this epoch wants a checkpoint."""
    every = settings.checkpoint_epochs
    return every is not None and epochs_done % every == 0


def write_checkpoint(trainer: Trainer, state: State) -> None:
    """Put a checkpoint into the store, and remove what it makes superfluous."""
    run = trainer.record.run
    trainer.checkpoint = save_checkpoint(trainer.store, run=run, attempt=secrets.token_hex(4), state=state)
    prune(trainer.store, run=run, keep=trainer.settings.keep_checkpoints)
    if trainer.log:
        trainer.log.status(checkpoint_update=state.progress.update, checkpoint_at=time.time())


def _save_epoch(trainer: Trainer, writer: CheckpointWriter, checkpoints: Literal["all", "last"]) -> None:
    """Save after an epoch where that is due, and always after the last; end the training where that is asked.

    Never write two checkpoints of the same update: their names would not say which is newer.
    """
    epoch, asked = trainer.position.epoch, trainer.is_stopping and checkpoints == "all"
    is_last = epoch == trainer.settings.epochs
    if trainer.world.rank == 0:
        is_wanted = is_checkpoint_due(epoch, trainer.settings)
        if is_last or asked or (checkpoints == "all" and writer.is_due(trainer.update, asked=is_wanted)):
            save(trainer, writer, wait=is_last or asked)
    if asked and not is_last:
        raise TrainingStoppedError(PULSE.stop or "resized")


def _agreed_checkpoint(trainer: Trainer) -> Restored | None:
    """The newest valid checkpoint that the first worker finds, for every worker."""
    store, world = trainer.store, trainer.world
    found = _newest_checkpoint(trainer) if world.rank == 0 else None
    if world.size == 1:
        return found
    choice: list[Any] = [found and found.prefix]
    dist.broadcast_object_list(choice, src=0, device=world.device)
    if found or choice[0] is None:
        return found
    return Restored(choice[0], load_checkpoint(store, prefix=choice[0]), [])


def _newest_checkpoint(trainer: Trainer) -> Restored | None:
    if not trainer.lease:
        return newest_valid(trainer.store, run=trainer.record.run)
    restored, passed_over = recover(trainer.store, run=trainer.record.run, keep=trainer.settings.keep_checkpoints)
    PULSE.passed_over = passed_over
    if trainer.log and passed_over:
        trainer.log.status(passed_over=passed_over)
    return restored

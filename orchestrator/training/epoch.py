"""One epoch: batches in, gradients summed, weights updated; and the evaluation of a split."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.errors import RunFailedError
from cluster.failpoints import failpoint
from models.features import TARGET, ImageFeature
from orchestrator.config import TrainConfig
from orchestrator.data.order import Plan
from orchestrator.data.reading.augment import augment
from orchestrator.data.reading.reader import MicroBatch
from orchestrator.runs.pulse import PULSE, TrainingStoppedError
from orchestrator.runs.record import Metrics, RunRecord
from orchestrator.training.saving import CheckpointWriter
from orchestrator.training.trace import trace
from orchestrator.training.trainer import Counters, Trainer, channels_last, precision, save


def train_epoch(trainer: Trainer, epoch: int, writer: CheckpointWriter | None = None) -> Metrics:
    """Go through the training split, from where `trainer.position` is; returns the mean loss and the speed.

    Args:
        trainer: changed in place.
        epoch: number, from 0.
        writer: takes checkpoints between the steps; ``None``: there are none, and no request to stop is heard.

    Raises:
        RunFailedError: if the loss is no longer a number.
        TrainingStoppedError: on request, after a checkpoint.
    """
    plan, clock, waited_s = trainer.plan(epoch), time.perf_counter(), trainer.reader.wait_s
    position = trainer.position
    first, trained = position.step, position.samples
    trainer.network.train()
    loss = torch.tensor(position.loss_sum, dtype=torch.float64, device=trainer.world.device)
    batches = trainer.reader.train_batches(plan, logical_workers=trainer.logical_workers, start_step=first)
    PULSE.enter("data")
    for step, micro_batches in enumerate(batches, first):
        began = time.monotonic()
        taken = train_step(trainer, micro_batches, plan, step=step)
        loss += taken.loss
        trainer.is_stopping = taken.is_stopping
        position.step, position.samples = step + 1, position.samples + sum(plan.step_sizes(step))
        PULSE.end_step(epoch * plan.num_steps + step + 1, seconds=time.monotonic() - began)
        _report_step(trainer, plan, position.samples - trained, clock, waited_s)
        if writer and not _is_mid_update(trainer, plan) and step + 1 < plan.num_steps:  # after the last: _save_epoch
            _save_step(trainer, writer, loss)
        failpoint("train.after_step", rank=trainer.world.rank)
        PULSE.enter("data")
    seconds = time.perf_counter() - clock
    mean_loss = finite_loss(trainer, loss.item() / position.samples)
    return {
        "train_loss": mean_loss,
        "learning_rate": learning_rate(trainer.settings, trainer.update - 1, total_updates(trainer)),
        "samples_per_s": (position.samples - trained) / seconds,
        "waiting_share": (trainer.reader.wait_s - waited_s) / seconds,
        "seconds": seconds,
        **left_out(trainer.record),
    }


def left_out(record: RunRecord) -> Metrics:
    """How many rows of the training split an epoch does not read; no metric where it reads all."""
    return {"rows_left_out": float(record.rows_left_out)} if record.rows_left_out else {}


class Step(NamedTuple):
    """What a step of all workers together came to."""

    loss: Tensor
    """Summed over the samples."""
    is_stopping: bool
    """Whether any worker was asked to stop."""


def train_step(trainer: Trainer, micro_batches: Sequence[MicroBatch], plan: Plan, *, step: int) -> Step:
    """Take one step of all workers together."""
    PULSE.enter("compute")
    rank, epoch = trainer.world.rank, trainer.position.epoch
    by_batch = trainer.record.techniques.gradient == "batch"
    samples = plan.num_samples if by_batch else sum(plan.step_sizes(step))
    trace(trainer.attempt, epoch, step, zip(trainer.logical_workers, micro_batches, strict=True))
    accumulate(trainer, micro_batches, epoch=epoch, step=step, samples=samples)
    failpoint("train.before_exchange", rank=rank)
    PULSE.enter("exchange")
    if PULSE.stop is not None:
        trainer.parts.vote()  # all must end after the same step
    is_update = not by_batch or step == plan.num_steps - 1
    loss = trainer.parts.end_step(
        with_gradient=is_update,
        workers=trainer.world.size,
        logical_workers=trainer.num_logical_workers,
        reduction=trainer.record.experiment.scaling.reduction,
    )
    failpoint("train.after_exchange", rank=rank)
    if is_update:
        apply_update(trainer)
    return Step(loss, _is_vote_read(trainer, step, plan) and trainer.parts.votes.item() > 0)


def accumulate(trainer: Trainer, micro_batches: Sequence[MicroBatch], *, epoch: int, step: int, samples: int) -> None:
    """Add the gradient of each logical worker's loss, divided by ``samples``, to its row of ``trainer.parts``."""
    trainer.parts.begin_step()
    for row, (logical_worker, micro_batch) in enumerate(zip(trainer.logical_workers, micro_batches, strict=True)):
        failpoint("train.mid_backward", rank=trainer.world.rank)
        trainer.parts.begin_row(row)
        counters = Counters(trainer.settings.seed, epoch, step, logical_worker)
        loss = _backward(trainer, micro_batch, counters, samples) if micro_batch.size else None
        trainer.parts.end_row(row, loss)


def apply_update(trainer: Trainer) -> None:
    """One step of the optimizer along the summed gradient of the mean loss."""
    with trainer.why.update() if trainer.why else nullcontext():
        trainer.updater.apply([learning_rate(trainer.settings, trainer.update, total_updates(trainer))])
    trainer.update += 1
    trainer.first_step_at = PULSE.first_step_at = trainer.first_step_at or time.time()


def learning_rate(settings: TrainConfig, update: int, total: int) -> float:
    """The learning rate of one update, a pure function of its number (from 0) and their total."""
    rising = settings.warmup * total if settings.schedule != "constant" else 0.0
    if update + 1 < rising:
        return settings.learning_rate * (update + 1) / rising
    rest = (update + 1 - rising) / max(1.0, total + 1 - rising)  # 0..1, reaches neither end
    if settings.schedule == "constant":
        return settings.learning_rate
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * rest))
    return settings.learning_rate * (1 - max(0.0, rest))


def total_updates(trainer: Trainer) -> int:
    """Weight updates from the first epoch to the last."""
    return trainer.settings.epochs * trainer.updates_per_epoch


def finite_loss(trainer: Trainer, mean_loss: float) -> float:
    """Return the loss of an epoch.

    Raises:
        RunFailedError: if it is no number.
    """
    if math.isfinite(mean_loss):
        return mean_loss
    raise RunFailedError(
        f"train_loss must be a finite number, got {mean_loss} in epoch {trainer.position.epoch + 1}. Lower "
        f"train.learning_rate ({trainer.settings.learning_rate}) or set train.clip_norm."
    )


def evaluate(trainer: Trainer, split: str) -> Metrics:
    """Metrics over one whole split, the same bits for every worker count."""
    PULSE.enter("data")
    failpoint("evaluate.before", rank=trainer.world.rank)
    network, world = trainer.network.eval(), trainer.world
    count = trainer.reader.num_samples(split)
    num_batches = -(-count // trainer.settings.evaluate_batch_size)
    names = network.task.sum_names
    sums = torch.zeros(num_batches, len(names), dtype=torch.float64, device=world.device)
    with torch.inference_mode():
        for index, micro_batch in trainer.reader.evaluate_batches(
            split, worker=world.rank, workers=world.size, batch_size=trainer.settings.evaluate_batch_size
        ):
            PULSE.enter("evaluate")
            batch = to_device(micro_batch.tensors, trainer)
            with _autocast(trainer):
                outputs = network(batch)
            found = network.task.metric_sums(outputs, batch[TARGET])
            sums[index] = torch.stack([found[name].double() for name in names])
            PULSE.enter("data")
    if world.size > 1:
        PULSE.enter("exchange")
        dist.all_reduce(sums)  # each row has one owner: adding zeros is exact in any order
    return network.task.metrics(dict(zip(names, sums.cpu().sum(0).tolist(), strict=True)), count)


def to_device(
    tensors: Mapping[str, Tensor], trainer: Trainer, *, augment_key: Counters | None = None
) -> dict[str, Tensor]:
    """Move a batch, from pinned memory beside the computation; change its pictures where a key is given."""
    batch = {name: t.to(trainer.world.device, non_blocking=True) for name, t in tensors.items()}
    kinds = trainer.record.experiment.data.augment
    for name, feature in trainer.record.signature.features.items():
        if not isinstance(feature, ImageFeature):
            continue
        if augment_key and kinds:
            batch[name] = augment(batch[name], kinds, key=augment_key)
        if channels_last(trainer.record):
            batch[name] = batch[name].contiguous(memory_format=torch.channels_last)
    return batch


def _backward(trainer: Trainer, micro_batch: MicroBatch, counters: Counters, samples: int) -> Tensor:
    experiment = trainer.record.experiment
    batch = to_device(micro_batch.tensors, trainer, augment_key=counters)
    trainer.network.begin_batch(micro_batch.size, **counters._asdict())
    why = trainer.why
    look = why.look(counters.step, logical_worker=counters.logical_worker) if why else nullcontext()
    with _autocast(trainer), look:
        outputs = trainer.network(batch)
    smoothing = experiment.train.label_smoothing
    loss: Tensor = trainer.network.task.loss_sum(outputs, batch[TARGET], label_smoothing=smoothing)
    loss.backward(torch.full_like(loss, 1 / samples))  # type: ignore[no-untyped-call]
    return loss.detach()


def _is_mid_update(trainer: Trainer, plan: Plan) -> bool:
    """Whether gradients are still being summed.

    With batch gradient descent the weights change once per epoch, and a checkpoint does not contain the sum so far.
    """
    return trainer.record.techniques.gradient == "batch" and trainer.position.step < plan.num_steps


VOTE_STEPS = 16  # reading a number from a GPU waits for all that it still has to do


def _is_vote_read(trainer: Trainer, step: int, plan: Plan) -> bool:
    return trainer.world.device.type == "cpu" or step % VOTE_STEPS == 0 or step == plan.num_steps - 1


def _save_step(trainer: Trainer, writer: CheckpointWriter, loss: Tensor) -> None:
    """Save where a checkpoint is due; end the training where that is asked."""
    if trainer.world.rank == 0 and (trainer.is_stopping or writer.is_due(trainer.update)):
        trainer.position.loss_sum = finite_loss(trainer, loss.item())
        save(trainer, writer, wait=trainer.is_stopping)
    if trainer.is_stopping:
        raise TrainingStoppedError(PULSE.stop or "resized")


def _autocast(trainer: Trainer) -> AbstractContextManager[object]:
    device = trainer.world.device
    is_bf16 = precision(trainer.settings, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if is_bf16 else nullcontext()


def _report_step(trainer: Trainer, plan: Plan, samples: int, clock: float, waited_s: float) -> None:
    if trainer.log:
        seconds = time.perf_counter() - clock
        trainer.log.status(
            phase="training",
            epoch=trainer.position.epoch,
            epochs=trainer.settings.epochs,
            step=trainer.position.step,
            steps=plan.num_steps,
            samples_per_s=samples / seconds,
            waiting_share=(trainer.reader.wait_s - waited_s) / seconds,
            first_step_at=trainer.first_step_at,
        )

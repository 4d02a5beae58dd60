"""Fits one network on this worker's share of the data: steps, evaluation, checkpoints. Knows nothing of Ray."""

import math
import platform
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.errors import RunFailedError
from cluster.failpoints import failpoint
from cluster.storage import Store
from models.diagnostics import Diagnostics
from models.features import TARGET, ImageFeature
from models.network import Network, build
from models.techniques import penalty, set_random_state
from orchestrator.checkpoint import (
    Progress,
    Restored,
    State,
    load_checkpoint,
    load_optimizer_tensors,
    newest_valid,
    optimizer_tensors,
    prune,
    recover,
    save_checkpoint,
)
from orchestrator.checkpoint_writer import CheckpointWriter
from orchestrator.config import TrainConfig
from orchestrator.data.augment import augment
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.order import Plan
from orchestrator.data.reader import MicroBatch, Reader
from orchestrator.gradients import Parts, share
from orchestrator.pulse import PULSE, TrainingStoppedError
from orchestrator.runs import EpochRecord, Metrics, RunLog, RunRecord
from orchestrator.trace import trace

# P = all numbers of a gradient


class Counters(NamedTuple):
    """What every random number depends on, and nothing else."""

    seed: int
    epoch: int
    step: int
    logical_worker: int


@dataclass(frozen=True)
class World:
    """This worker's place among all."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass
class Position:
    """How far a training is within its epochs."""

    epoch: int = 0
    step: int = 0
    """Steps done of this epoch."""
    loss_sum: float = 0.0
    """Of the epoch's samples so far."""
    samples: int = 0


@dataclass
class Trainer:
    """Everything that a training consists of. Built by `build_trainer`."""

    record: RunRecord
    world: World
    store: Store
    dataset: Dataset
    reader: Reader
    network: Network
    optimizer: torch.optim.Optimizer
    parts: Parts
    log: RunLog | None
    """Of the first worker only."""
    attempt: str
    steps_per_epoch: int
    updates_per_epoch: int
    """One with batch gradient descent, else one per step."""
    why: Diagnostics | None = None
    """Where logical worker 0 runs, which is the first worker."""
    history: list[EpochRecord] = field(default_factory=list)
    lease: int = 0
    """Number of the driver's lease; 0: nobody else can work on this run."""
    position: Position = field(default_factory=Position)
    update: int = 0
    """Weight updates done."""
    checkpoint: str | None = None
    """Key prefix of the one that was restored or written last."""
    is_stopping: bool = False
    """Whether the last step's workers agreed to stop after it."""
    first_step_at: float | None = None

    @property
    def settings(self) -> TrainConfig:
        """The `train` group of the experiment."""
        return self.record.experiment.train

    @property
    def num_logical_workers(self) -> int:
        """Over all workers."""
        return self.record.experiment.scaling.num_logical_workers

    @property
    def logical_workers(self) -> range:
        """Those that this worker runs."""
        return share(self.num_logical_workers, rank=self.world.rank, workers=self.world.size)

    def plan(self, epoch: int) -> Plan:
        """The order of one epoch's samples."""
        return epoch_plan(self.record, self.reader, epoch)


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
        for epoch in range(trainer.position.epoch, trainer.settings.epochs):
            trained = train_epoch(trainer, epoch, writer if checkpoints == "all" else None)
            report(trainer, epoch, trained | evaluate(trainer, validation_split(trainer.dataset)))
            _save_epoch(trainer, writer, checkpoints)
    return trainer


def build_trainer(
    record: RunRecord, *, store: Store, world: World, log: RunLog | None = None, dataset: Dataset | None = None
) -> Trainer:
    """Open the data and build the network with its initial weights, the same on every worker.

    Args:
        record: what to train.
        store: where the data is and the checkpoints go.
        world: this worker's place.
        log: where the first worker reports.
        dataset: where it is open already.
    """
    experiment, device = record.experiment, world.device
    torch.set_num_threads(experiment.scaling.num_threads)
    dataset = dataset or open_dataset(store, record.dataset.name, version=record.dataset.version)
    network = build(experiment.model, record.techniques, record.signature, seed=experiment.train.seed).to(device)
    if channels_last(record):
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows = len(share(experiment.scaling.num_logical_workers, rank=world.rank, workers=world.size))
    reader = build_reader(record, dataset, device=device)
    plan = epoch_plan(record, reader, epoch=0)
    return Trainer(
        record=record,
        world=world,
        store=store,
        dataset=dataset,
        reader=reader,
        network=network,
        optimizer=build_optimizer(network.parameters(), experiment.train),
        parts=Parts(network, rows=rows, device=device),
        log=log,
        attempt=secrets.token_hex(4),
        steps_per_epoch=plan.num_steps,
        updates_per_epoch=updates_per_epoch(record, plan),
        why=Diagnostics(network, num_steps=plan.num_steps) if world.rank == 0 else None,
    )


def build_reader(record: RunRecord, dataset: Dataset, *, device: torch.device | None = None) -> Reader:
    """The reader of a run's samples, for a model on ``device``."""
    data = record.experiment.data
    return Reader(
        dataset,
        record.signature,
        shuffle_mb=data.shuffle_mb,
        cache=data.cache,
        cache_mb=data.cache_mb,
        pin_memory=device is not None and device.type == "cuda",
    )


def epoch_plan(record: RunRecord, reader: Reader, epoch: int) -> Plan:
    """The order of one epoch's samples, a pure function of the run's record, the dataset and the epoch."""
    experiment = record.experiment
    return reader.plan(
        seed=experiment.train.seed,
        epoch=epoch,
        logical_workers=experiment.scaling.num_logical_workers,
        batch_size=experiment.train.batch_size,
        drop_last=experiment.train.drop_last,
        bucket_batches=experiment.data.bucket_batches,
    )


def updates_per_epoch(record: RunRecord, plan: Plan) -> int:
    """How often an epoch of this plan changes the weights."""
    return 1 if record.techniques.gradient == "batch" else plan.num_steps


def build_optimizer(parameters: Iterable[Any], settings: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of parameters, or of groups of them; its learning rate is set before every update."""
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.learning_rate)
    return torch.optim.SGD(
        parameters, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0
    )


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


def load_state(trainer: Trainer, state: State) -> None:
    """Go on from a `snapshot`."""
    weights, optimizer, progress = state
    trainer.network.load_state_dict(weights)
    load_optimizer_tensors(trainer.optimizer, _parameter_names(trainer.network), optimizer)
    trainer.history, trainer.update = list(progress.history), progress.update
    trainer.position = Position(progress.epoch, progress.step, progress.loss_sum, progress.samples)
    if trainer.why:
        trainer.why.restore(progress.why)


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
        trainer.is_stopping = train_step(trainer, micro_batches, plan, step=step, loss=loss)
        position.step, position.samples = step + 1, position.samples + sum(plan.step_sizes(step))
        PULSE.step = epoch * plan.num_steps + step + 1
        PULSE.slowest_step_s = max(PULSE.slowest_step_s, time.monotonic() - began)
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
    }


def train_step(trainer: Trainer, micro_batches: Sequence[MicroBatch], plan: Plan, *, step: int, loss: Tensor) -> bool:
    """One step of all workers together; adds to ``loss``, and returns whether any of them was asked to stop."""
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
    gradient_P, step_loss = trainer.parts.end_step(
        with_gradient=not by_batch or step == plan.num_steps - 1,
        workers=trainer.world.size,
        logical_workers=trainer.num_logical_workers,
        reduction=trainer.record.experiment.scaling.reduction,
    )
    failpoint("train.after_exchange", rank=rank)
    if gradient_P is not None:
        with trainer.why.update() if trainer.why else nullcontext():
            apply_update(trainer, gradient_P)
    loss += step_loss
    return _is_vote_read(trainer, step, plan) and trainer.parts.votes.item() > 0


def accumulate(trainer: Trainer, micro_batches: Sequence[MicroBatch], *, epoch: int, step: int, samples: int) -> None:
    """Add the gradient of each logical worker's loss, divided by ``samples``, to its row of ``trainer.parts``."""
    trainer.parts.begin_step()
    for row, (logical_worker, micro_batch) in enumerate(zip(trainer.logical_workers, micro_batches, strict=True)):
        failpoint("train.mid_backward", rank=trainer.world.rank)
        trainer.parts.begin_row(row)
        counters = Counters(trainer.settings.seed, epoch, step, logical_worker)
        loss = _backward(trainer, micro_batch, counters, samples) if micro_batch.size else None
        trainer.parts.end_row(row, loss)


def apply_update(trainer: Trainer, gradient_P: Tensor) -> None:
    """One step of the optimizer along the summed gradient, with penalty, clipping, decay and schedule.

    Args:
        trainer: whose parameters' gradients are views of ``gradient_P``.
        gradient_P: the gradient of the mean loss.
    """
    settings, network = trainer.settings, trainer.network
    if trainer.record.techniques.regularization == "penalty" and (settings.l1 or settings.l2):
        penalty(network, l1=settings.l1, l2=settings.l2).backward()  # type: ignore[no-untyped-call]
    if settings.clip_norm is not None:
        gradient_P.mul_(torch.clamp(settings.clip_norm / gradient_P.norm(), max=1.0))
    rate = learning_rate(settings, trainer.update, total_updates(trainer))
    if settings.weight_decay:
        decayed: list[Tensor] = [p for p in network.parameters() if p.ndim > 1]
        with torch.no_grad():
            torch._foreach_mul_(decayed, 1 - rate * settings.weight_decay)
    for group in trainer.optimizer.param_groups:
        group["lr"] = rate
    trainer.optimizer.step()
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


def validation_split(dataset: Dataset) -> str:
    """The split that every epoch is judged on."""
    return "validation" if "validation" in dataset.manifest.splits else "test"


def snapshot(trainer: Trainer) -> State:
    """A copy of everything that a checkpoint holds."""
    progress = Progress(
        **asdict(trainer.position),
        update=trainer.update,
        logical_workers=trainer.num_logical_workers,
        dataset_version=trainer.record.dataset.version,
        environment=environment(trainer),
        lease=trainer.lease,
        history=list(trainer.history),
        why=trainer.why.state() if trainer.why else {},
    )
    weights = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in trainer.network.state_dict().items()
    }
    return State(weights, optimizer_tensors(trainer.optimizer, _parameter_names(trainer.network)), progress)


def write_checkpoint(trainer: Trainer, state: State) -> None:
    """Put a checkpoint into the store, and remove what it makes superfluous."""
    run = trainer.record.run
    trainer.checkpoint = save_checkpoint(trainer.store, run=run, attempt=secrets.token_hex(4), state=state)
    prune(trainer.store, run=run, keep=trainer.settings.keep_checkpoints)
    if trainer.log:
        trainer.log.status(checkpoint_update=state.progress.update, checkpoint_at=time.time())


def environment(trainer: Trainer) -> dict[str, str]:
    """What the bits of a result depend on besides the experiment."""
    device = trainer.world.device
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "precision": precision(trainer.settings, device),
    }


def precision(settings: TrainConfig, device: torch.device) -> str:
    """`auto` is bf16 on a GPU that has it, fp32 elsewhere: on a CPU it depends on processor and model which wins."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def channels_last(record: RunRecord) -> bool:
    """`auto` is channels_last for a CNN, where convolutions are faster on CPU and GPU alike."""
    chosen = record.experiment.train.memory_format
    return chosen == "channels_last" or (chosen == "auto" and record.experiment.model.type == "cnn")


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


def freeze_statistics_of_one(network: nn.Module, size: int) -> None:
    """One sample has no variance: batch normalization uses its running statistics for it."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train(size > 1)


def _backward(trainer: Trainer, micro_batch: MicroBatch, counters: Counters, samples: int) -> Tensor:
    experiment = trainer.record.experiment
    batch = to_device(micro_batch.tensors, trainer, augment_key=counters)
    set_random_state(trainer.network, **counters._asdict())
    freeze_statistics_of_one(trainer.network, micro_batch.size)
    why = trainer.why
    look = why.look(counters.step, logical_worker=counters.logical_worker) if why else nullcontext()
    with _autocast(trainer), look:
        outputs = trainer.network(batch)
    smoothing = experiment.train.label_smoothing
    loss: Tensor = trainer.network.task.loss_sum(outputs, batch[TARGET], label_smoothing=smoothing)
    (loss / samples).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _is_mid_update(trainer: Trainer, plan: Plan) -> bool:
    """Batch gradient descent: gradients of steps that no checkpoint holds wait for the epoch's end."""
    return trainer.record.techniques.gradient == "batch" and trainer.position.step < plan.num_steps


VOTE_STEPS = 16  # reading a number from a GPU waits for all that it still has to do


def _is_vote_read(trainer: Trainer, step: int, plan: Plan) -> bool:
    return trainer.world.device.type == "cpu" or step % VOTE_STEPS == 0 or step == plan.num_steps - 1


def _save_step(trainer: Trainer, writer: CheckpointWriter, loss: Tensor) -> None:
    """Save where a checkpoint is due; end the training where that is asked."""
    if trainer.world.rank == 0 and (trainer.is_stopping or writer.is_due(trainer.update)):
        trainer.position.loss_sum = finite_loss(trainer, loss.item())
        _save(trainer, writer, wait=trainer.is_stopping)
    if trainer.is_stopping:
        raise TrainingStoppedError(PULSE.stop or "resized")


def _save_epoch(trainer: Trainer, writer: CheckpointWriter, checkpoints: Literal["all", "last"]) -> None:
    """Save after an epoch where that is due, and always after the last; end the training where that is asked.

    An update has one checkpoint: of two, the later could not be told.
    """
    epoch, asked = trainer.position.epoch, trainer.is_stopping and checkpoints == "all"
    is_last = epoch == trainer.settings.epochs
    if trainer.world.rank == 0:
        is_wanted = is_checkpoint_due(epoch, trainer.settings)
        if is_last or asked or (checkpoints == "all" and writer.is_due(trainer.update, asked=is_wanted)):
            _save(trainer, writer, wait=is_last or asked)
    if asked and not is_last:
        raise TrainingStoppedError(PULSE.stop or "resized")


def _save(trainer: Trainer, writer: CheckpointWriter, *, wait: bool) -> None:
    if wait:
        PULSE.enter("checkpoint")
    (writer.save_and_wait if wait else writer.save)(snapshot(trainer))


def _parameter_names(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters()]


def _autocast(trainer: Trainer) -> torch.autocast:
    device = trainer.world.device
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(trainer.settings, device) == "bf16")


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

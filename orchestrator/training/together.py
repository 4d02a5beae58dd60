"""Trains runs that differ in seed and learning rate only as one batched network, each with the numbers it has alone.

On one core small MLPs take about half of the time, see `tests/benchmarks/replicates.py`. Sums are rounded in
another order: a weight differs by about 1e-7 from the one trained alone. A long training may enlarge that, and so does
batch normalization over a handful of samples.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import functional_call

from cluster.errors import RunFailedError
from cluster.failpoints import failpoint
from cluster.s3.store import Store, all_at_once
from models.diagnostics import Diagnostics, look_steps
from models.features import TARGET
from models.networks.stacked import StackedNetwork
from orchestrator.config import TrainConfig
from orchestrator.data.dataset import TRAIN, Dataset, open_dataset
from orchestrator.data.order import Plan
from orchestrator.data.reading.reader import MicroBatch
from orchestrator.runs.record import Metrics, RunRecord
from orchestrator.training.epoch import (
    evaluate,
    finite_loss,
    learning_rate,
    left_out,
    to_device,
    total_updates,
)
from orchestrator.training.fit import report, write_checkpoint
from orchestrator.training.packs import can_train_together
from orchestrator.training.trainer import Counters, Trainer, World, build_trainer, snapshot
from orchestrator.training.updater import Updater

# R = replicates, L = logical workers, P = numbers of a network's parameters

WINDOWS_MB = 1024  # of samples that are shuffled, over all replicates: as much as a machine's cache has by default
WINDOWS = 3  # of `data.shuffle_mb` that a reader takes for each logical worker


@dataclass
class Group:
    """Trainers whose steps are taken together."""

    trainers: list[Trainer]
    network: StackedNetwork
    """Owns the weights; each trainer's network is a view of one row."""
    updater: Updater
    failures: dict[int, RunFailedError] = field(default_factory=dict)
    """By the trainer's place. The others go on; a failed one's numbers are computed too, which harms nobody."""

    @property
    def settings(self) -> TrainConfig:
        """What all have in common; seed and learning rate are the first one's."""
        return self.trainers[0].settings

    @property
    def sums_whole_epochs(self) -> bool:
        """Whether an epoch is one update."""
        return self.trainers[0].record.techniques.gradient == "batch"


def fit_together(records: Sequence[RunRecord], *, store: Store, world: World) -> list[Trainer | RunFailedError]:
    """Train several runs from their starts to their last epochs, as `fit` does with ``checkpoints="last"``.

    The seconds of an epoch in a history are a replicate's equal share: over all of them, they add up to what was spent.

    Args:
        records: alike, but for their names, seeds and learning rates; `can_train_together` says yes to them.
        store: where the data is and the checkpoints go.
        world: of one worker.

    Returns:
        For every record, in their order, its trainer, whose final checkpoint is written; or why this one failed.

    Raises:
        StoreError: if the store fails; then no run is finished.
    """
    first = records[0]
    assert can_train_together(first) and all(_common(record) == _common(first) for record in records)
    dataset = open_dataset(store, first.dataset.name, version=first.dataset.version)
    count = most_at_once(first, dataset)
    found: list[Trainer | RunFailedError] = []
    for start in range(0, len(records), count):
        chosen = records[start : start + count]
        found += _fit(build_group([build_trainer(r, store=store, world=world, dataset=dataset) for r in chosen]))
    return found


def most_at_once(record: RunRecord, dataset: Dataset) -> int:
    """How many replicates' shuffled samples fit into memory: each reads in an order of its own."""
    split_mb = sum(shard.bytes for shard in dataset.split(TRAIN).shards) / 2**20
    scaling, data = record.experiment.scaling, record.experiment.data
    windows_mb = WINDOWS * scaling.num_logical_workers * data.shuffle_mb
    return max(1, math.floor(WINDOWS_MB / min(split_mb, windows_mb)))


def build_group(trainers: list[Trainer]) -> Group:
    """Put the networks of trainers, just built, side by side."""
    network, own = StackedNetwork([trainer.network for trainer in trainers]), trainers[0].network
    records = [trainer.record for trainer in trainers]
    updater = Updater(records, own, weights_RP=network.weights_RP, gradients_RP=network.gradients_RP)
    return Group(trainers, network, updater)


def train_epoch(group: Group, epoch: int) -> list[Metrics]:
    """Go through the training split once, every replicate in its own order; returns each one's loss and speed."""
    trainers = group.trainers
    plans, clock, waited_s = [t.plan(epoch) for t in trainers], time.perf_counter(), _wait_s(group)
    plan, losses_R = plans[0], torch.zeros(len(trainers), dtype=torch.float64)
    for trainer in trainers:
        trainer.network.train()
    readers = [
        t.reader.train_batches(p, logical_workers=t.logical_workers) for t, p in zip(trainers, plans, strict=True)
    ]
    for step, micro_batches in enumerate(zip(*readers, strict=True)):
        train_step(group, micro_batches, plan, step=step, losses_R=losses_R)
        failpoint("train.after_step")
    seconds = time.perf_counter() - clock
    return [
        {
            "train_loss": loss / plan.num_samples,
            "learning_rate": learning_rate(trainer.settings, trainer.update - 1, total_updates(trainer)),
            "samples_per_s": plan.num_samples * len(trainers) / seconds,
            "waiting_share": (_wait_s(group) - waited_s) / seconds,
            "seconds": seconds / len(trainers),
            **left_out(trainer.record),
        }
        for trainer, loss in zip(trainers, losses_R.tolist(), strict=True)
    ]


def train_step(
    group: Group, micro_batches: Sequence[Sequence[MicroBatch]], plan: Plan, *, step: int, losses_R: Tensor
) -> None:
    """One step of every replicate.

    Args:
        group: changed in place.
        micro_batches: for every replicate and logical worker.
        plan: any replicate's; they differ in order only.
        step: its number in the epoch.
        losses_R: the step's are added to it.
    """
    sizes, is_last = plan.step_sizes(step), step == plan.num_steps - 1
    keys = [[Counters(t.settings.seed, plan.epoch, step, i) for i in t.logical_workers] for t in group.trainers]
    batches = [
        to_device(micro_batch.tensors, trainer, augment_key=key)
        for trainer, row in zip(group.trainers, zip(keys, micro_batches, strict=True), strict=True)
        for key, micro_batch in zip(*row, strict=True)
    ]
    if step in look_steps(plan.num_steps) and sizes[0]:
        for place, trainer in enumerate(group.trainers):
            _look(trainer, batches[place * len(sizes)], keys[place][0], size=sizes[0])
    group.network.begin_step(sizes, keys)
    samples = plan.num_samples if group.sums_whole_epochs else sum(sizes)
    losses_R += backward(group, {n: torch.cat([b[n] for b in batches]) for n in batches[0]}, samples=samples)
    if is_last or not group.sums_whole_epochs:
        apply_update(group)


def backward(group: Group, batch: dict[str, Tensor], *, samples: int) -> Tensor:
    """Add the gradient of each replicate's loss, divided by ``samples``; return the losses as losses_R.

    Args:
        group: whose gradients grow.
        batch: the samples of the first replicate, then those of the second, …
        samples: in the batch, or the epoch, of one replicate.
    """
    count, smoothing = len(group.trainers), group.settings.label_smoothing
    outputs, targets = group.network(batch).chunk(count), batch[TARGET].chunk(count)
    task = group.trainers[0].network.task
    losses_R = torch.stack(
        [task.loss_sum(o, target, label_smoothing=smoothing) for o, target in zip(outputs, targets, strict=True)]
    )
    group.network.backward(losses_R.sum() / samples)
    return losses_R.detach()


def apply_update(group: Group) -> None:
    """One step of the optimizer for every replicate."""
    with ExitStack() as looks:
        for trainer in group.trainers:
            looks.enter_context(_why(trainer).update())
        group.updater.apply([learning_rate(t.settings, t.update, total_updates(t)) for t in group.trainers])
    group.network.gradients_RP.zero_()
    for trainer in group.trainers:
        trainer.update += 1


def _fit(group: Group) -> list[Trainer | RunFailedError]:
    for epoch in range(group.settings.epochs):
        for place, metrics in enumerate(train_epoch(group, epoch)):
            _end_epoch(group, place, epoch, metrics)
        if len(group.failures) == len(group.trainers):
            break
    living = list(_living(group))
    for place, trainer in living:
        trainer.updater.load(group.updater.tensors(place))
    all_at_once(lambda one: write_checkpoint(one[1], snapshot(one[1])), living)
    return [group.failures.get(place, trainer) for place, trainer in enumerate(group.trainers)]


def _end_epoch(group: Group, place: int, epoch: int, metrics: Metrics) -> None:
    """Judge a replicate, or let it fail alone."""
    trainer = group.trainers[place]
    if place in group.failures:
        return
    try:
        finite_loss(trainer, metrics["train_loss"])
    except RunFailedError as failure:
        group.failures[place] = failure
        return
    report(trainer, epoch, metrics | evaluate(trainer, trainer.dataset.manifest.judged_on))


def _living(group: Group) -> Iterator[tuple[int, Trainer]]:
    return ((place, trainer) for place, trainer in enumerate(group.trainers) if place not in group.failures)


def _look(trainer: Trainer, batch: dict[str, Tensor], key: Counters, *, size: int) -> None:
    """Show the why panel what this replicate's network makes of logical worker 0's samples; nothing is changed."""
    network = trainer.network
    network.begin_batch(size, **key._asdict())
    copies = {name: buffer.clone() for name, buffer in network.named_buffers()}  # batch normalization writes to them
    with torch.no_grad(), _why(trainer).look(key.step, logical_worker=key.logical_worker):
        functional_call(network, copies, (batch,))


def _common(record: RunRecord) -> tuple[object, ...]:
    """What replicates share."""
    train = record.experiment.train.model_copy(update={"seed": 0, "learning_rate": 1.0})
    return record.experiment.model_copy(update={"train": train}), record.techniques, record.signature, record.dataset


def _why(trainer: Trainer) -> Diagnostics:
    assert trainer.why is not None, "the first worker has a panel"
    return trainer.why


def _wait_s(group: Group) -> float:
    return sum(trainer.reader.wait_s for trainer in group.trainers)

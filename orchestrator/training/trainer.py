"""Everything that one worker's training consists of: how it is built, saved and loaded."""

import platform
import secrets
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import torch

from cluster.s3.store import Store
from models.diagnostics import Diagnostics
from models.network import Network, build
from orchestrator.config import TrainConfig
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.order import Plan
from orchestrator.data.reading.reader import Reader
from orchestrator.runs.checkpoint import Progress, State
from orchestrator.runs.log import RunLog
from orchestrator.runs.pulse import PULSE
from orchestrator.runs.record import EpochRecord, RunRecord
from orchestrator.training.gradients import GradientParts, share
from orchestrator.training.saving import CheckpointWriter
from orchestrator.training.updater import Updater, flat_weights

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
    """The loss, summed over the epoch's samples so far."""
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
    updater: Updater
    parts: GradientParts
    log: RunLog | None
    """Where metrics go; only the first worker has one."""
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
    weights_P = flat_weights(network)
    rows = len(share(experiment.scaling.num_logical_workers, rank=world.rank, workers=world.size))
    reader = build_reader(record, dataset, device=device)
    plan = epoch_plan(record, reader, epoch=0)
    parts = GradientParts(network, rows=rows, device=device)
    return Trainer(
        record=record,
        world=world,
        store=store,
        dataset=dataset,
        reader=reader,
        network=network,
        updater=Updater(
            [record], network, weights_RP=weights_P.unsqueeze(0), gradients_RP=parts.gradient_P.unsqueeze(0)
        ),
        parts=parts,
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
        left_out=record.left_out or (),
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


def load_state(trainer: Trainer, state: State) -> None:
    """Go on from a `snapshot`."""
    weights, optimizer, progress = state
    trainer.network.load_state_dict(weights)
    trainer.updater.load(optimizer)
    trainer.history, trainer.update = list(progress.history), progress.update
    trainer.position = Position(progress.epoch, progress.step, progress.loss_sum, progress.samples)
    if trainer.why:
        trainer.why.restore(progress.why)


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
    return State(weights, trainer.updater.tensors(), progress)


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


def save(trainer: Trainer, writer: CheckpointWriter, *, wait: bool) -> None:
    """Hand a snapshot to the writer; with ``wait``, return once it is in the store."""
    if wait:
        PULSE.enter("checkpoint")
    (writer.save_and_wait if wait else writer.save)(snapshot(trainer))

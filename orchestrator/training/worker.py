"""What other processes call in a worker: train a run, describe one without training it, join the others."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from cluster.clouds.preemption import watching_node
from cluster.config import StoreSettings
from cluster.errors import ConfigError
from cluster.lazy import imported
from cluster.s3.store import Store
from cluster.staging import check_packages
from models.records import DatasetRef, LeftOut
from orchestrator.data.dataset import TRAIN, Dataset, open_dataset
from orchestrator.runs.log import RunLog
from orchestrator.runs.pulse import PULSE
from orchestrator.runs.record import RunRecord


class Arithmetic(NamedTuple):
    """What a training will do, said before it begins."""

    samples: int
    steps_per_epoch: int
    updates: int
    batch_per_logical_worker: int
    parameters: int


def describe(record: RunRecord, dataset: Dataset) -> tuple[RunRecord, Arithmetic]:
    """Build the network once, to learn its size and whether it can read the data, and do the arithmetic.

    Raises:
        ConfigError: the model cannot read the dataset's features.
    """
    from models.network import build, example_batch, example_target
    from orchestrator.training.trainer import build_reader, epoch_plan, updates_per_epoch

    experiment, signature = record.experiment, record.signature
    try:
        network = build(experiment.model, record.techniques, signature, seed=experiment.train.seed).eval()
        outputs = network(example_batch(signature, size=1, seed=0))
        target = example_target(signature, size=1, seed=0)
        network.task.loss_sum(outputs, target, label_smoothing=experiment.train.label_smoothing)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    parameters = sum(p.numel() for p in network.parameters())
    plan = epoch_plan(record, build_reader(record, dataset), epoch=0)
    arithmetic = Arithmetic(
        samples=plan.num_samples,
        steps_per_epoch=plan.num_steps,
        updates=updates_per_epoch(record, plan) * experiment.train.epochs,
        batch_per_logical_worker=experiment.train.batch_size // experiment.scaling.num_logical_workers,
        parameters=parameters,
    )
    return record.model_copy(update={"parameters": parameters}), arithmetic


def look_through(records: Sequence[RunRecord], datasets: Mapping[DatasetRef, Dataset]) -> list[RunRecord]:
    """Find what those runs leave out that may leave out damaged rows and have not begun; each dataset is read once.

    Raises:
        IntegrityError: more is damaged than one of them may leave out.
    """
    from orchestrator.data.reading.cache import open_cache
    from orchestrator.data.reading.survey import require_few, survey

    found: dict[DatasetRef, tuple[LeftOut, ...]] = {}

    def looked_through(record: RunRecord) -> RunRecord:
        data, dataset = record.experiment.data, datasets[record.dataset]
        if data.damaged == "fail" or record.left_out is not None:
            return record
        if record.dataset not in found:
            splits = dict.fromkeys((record.evaluated_on, dataset.manifest.judged_on, TRAIN))
            cache = open_cache(data.cache, data.cache_mb)
            found[record.dataset] = survey(dataset, splits=[*splits], cache=cache)
        left_out = found[record.dataset]
        require_few(dataset, left_out, most_share=data.damaged_share)
        return record.model_copy(update={"left_out": left_out})

    return [looked_through(record) for record in records]


def train_worker(settings: Mapping[str, Any], *, rank: int, workers: int, device: str) -> dict[str, Any]:
    """Train in this process, as one of ``workers``; the first one reports and returns the result."""
    import torch

    from orchestrator.training.baseline import baseline
    from orchestrator.training.epoch import evaluate
    from orchestrator.training.fit import fit
    from orchestrator.training.trainer import World

    check_packages()
    record = RunRecord.model_validate(settings["record"])
    store = Store(StoreSettings.model_validate(settings["store"]))
    world = World(rank, workers, torch.device(device))
    with watching_node(), RunLog(store, record.run) if rank == 0 else nullcontext() as log:
        trainer = fit(record, store=store, world=world, log=log, lease=settings["lease"])
        metrics = evaluate(trainer, record.evaluated_on)
        PULSE.enter("finished")
        if log is None:
            return {}
        season = record.experiment.data.season
        rule = baseline(trainer.reader, record.signature, split=record.evaluated_on, season=season)
        log.status(phase="finished")
    return {
        "metrics": metrics,
        "baseline": rule and rule.name,
        "baseline_metrics": rule.metrics if rule else {},
        "checkpoint": trainer.checkpoint,
        "history": trainer.history,
        "first_step_at": trainer.first_step_at,
    }


def describe_stored(record: dict[str, Any], store: dict[str, Any]) -> tuple[RunRecord, Arithmetic]:
    """`describe` of what can be sent to another process, once it is looked through. Runs in a worker."""
    plan = RunRecord.model_validate(record)
    datasets = _open_datasets([plan], store)
    (plan,) = look_through([plan], datasets)
    return describe(plan, datasets[plan.dataset])


def describe_all(records: list[dict[str, Any]], store: dict[str, Any]) -> list[RunRecord]:
    """`describe_stored` of many runs, where PyTorch is: the driver does without it."""
    runs = [RunRecord.model_validate(record) for record in records]
    datasets = _open_datasets(runs, store)
    return [describe(run, datasets[run.dataset])[0] for run in look_through(runs, datasets)]


def _open_datasets(runs: Sequence[RunRecord], store: dict[str, Any]) -> dict[DatasetRef, Dataset]:
    opened = Store(StoreSettings.model_validate(store))
    return {ref: open_dataset(opened, ref.name, version=ref.version) for ref in {run.dataset for run in runs}}


def join_group(name: str, rank: int, *, workers: int, backend: str, timeout_s: float) -> None:
    """Become a member of the default process group of PyTorch. Runs in the worker."""
    from datetime import timedelta

    import torch.distributed as dist

    from orchestrator.training.meeting import Meeting

    PULSE.in_group = True
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(
        backend, store=Meeting(name, timeout=timeout), rank=rank, world_size=workers, timeout=timeout
    )


def leave_group() -> None:
    """Leave the default process group, where this process is in one."""
    if not PULSE.in_group:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def warm_up() -> None:
    """Import what a training needs first; where a process was started ahead, nobody waits for it."""
    imported("orchestrator.training.fit")

"""Fits one experiment on the cluster: checks everything, drives its workers, follows it, records what came out."""

import importlib
import importlib.metadata
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, NamedTuple

from cluster.config import StoreSettings
from cluster.errors import (
    ConfigError,
    DiskFullError,
    LeaseLostError,
    NotFoundError,
    RunCancelledError,
    RunInterruptedError,
    RunUnfinishedError,
    StoreError,
)
from cluster.failpoints import VARIABLE, parse_failpoints
from cluster.head_watch import continued_by
from cluster.preemption import watching_node
from cluster.session import cluster_resources, ray_session, require_resources
from cluster.staging import check_packages, stage
from cluster.storage import Store, open_store
from models.config import has_activation, resolve_techniques
from orchestrator.config import Experiment
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.lease import Lease
from orchestrator.polling import polling
from orchestrator.pulse import PULSE
from orchestrator.recovery import Job, import_ahead, prepare, run_to_end
from orchestrator.runs import (
    DatasetRef,
    EpochRecord,
    Metrics,
    RunLog,
    RunRecord,
    RunStatus,
    create_run,
    new_run_id,
    read_history,
    read_run,
    read_status,
    update_run,
    utc_now,
)
from orchestrator.workers import call_in_worker

Progress = Callable[[RunStatus], None]


class Arithmetic(NamedTuple):
    """What a training will do, said before it begins."""

    samples: int
    steps_per_epoch: int
    updates: int
    batch_per_logical_worker: int
    parameters: int


class RunResult(NamedTuple):
    """What a finished training leaves behind."""

    run: str
    metrics: Metrics
    """Of the split `record.evaluated_on`."""
    history: list[EpochRecord]
    """One entry per epoch."""
    record: RunRecord


def train(
    experiment: Experiment,
    *,
    store: Store | None = None,
    address: str | None = None,
    run: str | None = None,
    on_start: Callable[[RunRecord, Arithmetic], None] | None = None,
    on_progress: Progress | None = None,
    failpoints: str | None = None,
) -> RunResult:
    """Train one experiment to its end on a Ray cluster.

    Args:
        experiment: from `orchestrator.configfile.load_experiment`, or built in Python.
        store: where the dataset is and the run goes; default: `cluster.storage.open_store()`.
        address: of the cluster, in any of Ray's forms; default: see `cluster.session.resolve_address`.
        run: name of the new run; default: made of dataset, model and time.
        on_start: called once everything is checked, before any worker starts.
        on_progress: called about twice a second with the newest status.
        failpoints: where workers shall die or fail on purpose, see `cluster/failpoints.py`; for drills and tests.

    Raises:
        ConfigError, StoreAccessError, ClusterError: before any worker starts.
        RunFailedError: a worker failed more often than `scaling.max_failures`; what it had written can be resumed.
        RunUnfinishedError: there was no room for what the run has to write; it can be resumed when there is.
        RunCancelledError: interrupted.
    """
    started = time.time()
    environment = {VARIABLE: failpoints} if failpoints and parse_failpoints(failpoints) else {}
    store = store or open_store()
    store.check()
    dataset = dataset_of(experiment, store)
    import_ahead(experiment)
    with ray_session(address, store=store.settings):
        record = plan_run(experiment, dataset, run=run, gpus=cluster_resources().get("GPU", 0))
        _require(record)
        record, arithmetic = _describe_in_worker(record, store)
        create_run(store, record)
        with _unfinished_on_full_disk(record.run), _leased(record.run, store) as lease:
            if on_start:
                on_start(record, arithmetic)
            return _run(record, store, lease, started=started, on_progress=on_progress, environment=environment)


def resume(
    run: str,
    *,
    store: Store | None = None,
    address: str | None = None,
    workers: int | None = None,
    on_start: Callable[[RunRecord, Arithmetic], None] | None = None,
    on_progress: Progress | None = None,
) -> RunResult:
    """Continue a run from its newest valid checkpoint; a finished one is returned as it is.

    Args:
        run: its name.
        workers: another number of workers than before; at most the logical workers.
        store: see `train`.
        address: see `train`.
        on_start: see `train`.
        on_progress: see `train`.

    Raises:
        NotFoundError: there is no such run.
        ConfigError: somebody works on it at this moment, or ``workers`` does not fit. Else see `train`.
    """
    started = time.time()
    store = store or open_store()
    store.check()
    record = read_run(store, run)
    if record.state == "finished":
        return RunResult(run, record.metrics, read_history(store, run), record)
    if workers is not None:
        record = record.model_copy(update={"experiment": _with_workers(record.experiment, workers)})
    with _resumable(run), ray_session(address, store=store.settings):
        _require(record)
        record, arithmetic = _describe_in_worker(record, store)
        with _unfinished_on_full_disk(record.run), _leased(record.run, store) as lease:
            if on_start:
                on_start(record, arithmetic)
            return _run(record, store, lease, started=started, on_progress=on_progress)


def dataset_of(experiment: Experiment, store: Store) -> Dataset:
    """Open the dataset that an experiment names.

    Raises:
        ConfigError: there is none of that name or version: the experiment is wrong.
    """
    try:
        return open_dataset(store, experiment.data.name, version=experiment.data.version)
    except NotFoundError as error:
        raise ConfigError(str(error)) from None


def plan_run(
    experiment: Experiment, dataset: Dataset, *, run: str | None = None, gpus: float = 0, code: str | None = None
) -> RunRecord:
    """Decide everything that a run depends on; pure but for the time and the random part of its name.

    Args:
        experiment: what is asked for.
        dataset: the data it names.
        run: name of the new run; default: made of dataset, model and time.
        gpus: that the cluster has.
        code: its `code_version`, where that is known: to find it takes a tenth of a second.

    Raises:
        ConfigError: the experiment does not fit the dataset.
    """
    signature = dataset.signature(lookback=experiment.data.lookback, horizon=experiment.data.horizon)
    techniques = resolve_techniques(
        experiment.techniques, experiment.model, gpu_available=gpus >= experiment.scaling.max_workers
    )
    return RunRecord(
        run=run or new_run_id(experiment),
        state="running",
        created=utc_now(),
        experiment=experiment,
        techniques=techniques,
        not_applicable=() if has_activation(experiment.model) else ("techniques.activation",),
        signature=signature,
        dataset=DatasetRef(name=dataset.manifest.name, version=dataset.manifest.version),
        evaluated_on="test",
        primary_metric=signature.target.primary_metric,
        higher_is_better=signature.target.higher_is_better,
        code_version=code or code_version(),
        versions=versions(),
    )


def describe(record: RunRecord, dataset: Dataset) -> tuple[RunRecord, Arithmetic]:
    """Build the network once, to learn its size and whether it can read the data, and do the arithmetic.

    Raises:
        ConfigError: the model cannot read the dataset's features.
    """
    from models.network import build, example_batch, example_target
    from orchestrator.trainer import build_reader, epoch_plan, updates_per_epoch

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


def fit_on_ray(
    record: RunRecord, store: Store, *, lease: Lease | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a training on the connected cluster, through every loss of workers; return what the first worker returned.

    Args:
        record: what to train.
        store: where everything is.
        lease: under which this driver works; ``None``: nobody else can work on the run.
        environment: more variables for the workers.
    """
    settings = {
        "record": record.model_dump(mode="json"),
        "store": store.settings.model_dump(mode="json"),
        "lease": lease.number if lease else 0,
    }
    return run_to_end(record, Job(train_worker, worker_loop, settings, environment or {}), store=store, lease=lease)


def worker_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Train one model on this worker's share of the data. Runs once in every worker of Ray Train."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    use_gpu = settings["record"]["techniques"]["processor"] == "gpu"
    return train_worker(
        settings,
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        device=str(ray.train.torch.get_device()) if use_gpu else "cpu",
    )


def train_worker(settings: Mapping[str, Any], *, rank: int, workers: int, device: str) -> dict[str, Any]:
    """Train in this process, as one of ``workers``; the first one reports and returns the result."""
    import torch

    from orchestrator.baseline import baseline
    from orchestrator.trainer import World, evaluate, fit

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


def code_version() -> str:
    """Version of this package, and a hash of the very files that the workers run."""
    return f"{importlib.metadata.version('orchestrator')}+{stage().name[-8:]}"


def versions() -> dict[str, str]:
    """Versions of what a result's bits depend on."""
    names = ("torch", "ray", "numpy", "pyarrow")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}


def _describe_in_worker(record: RunRecord, store: Store) -> tuple[RunRecord, Arithmetic]:
    """`describe` in a process that has PyTorch loaded or will need it anyway; here that would take seconds."""
    prepare(record)
    return call_in_worker(
        describe_stored,
        record.model_dump(mode="json"),
        store.settings.model_dump(mode="json"),
        threads=record.experiment.scaling.num_threads,
    )


def describe_stored(record: dict[str, Any], store: dict[str, Any]) -> tuple[RunRecord, Arithmetic]:
    """`describe` of what can be sent to another process. Runs in a worker."""
    plan = RunRecord.model_validate(record)
    settings = StoreSettings.model_validate(store)
    return describe(plan, open_dataset(Store(settings), plan.dataset.name, version=plan.dataset.version))


def _require(record: RunRecord) -> None:
    scaling = record.experiment.scaling
    gpus = scaling.min_workers if record.techniques.processor == "gpu" else 0
    require_resources(cpus=scaling.min_workers * scaling.cpus_per_worker, gpus=gpus)


def _with_workers(experiment: Experiment, workers: int) -> Experiment:
    from orchestrator.configfile import Document, validate

    values = experiment.model_dump(mode="json")
    values["scaling"] |= {"workers": workers, "logical_workers": experiment.scaling.num_logical_workers}
    return validate(Document("--workers", values, {}))


@contextmanager
def _leased(run: str, store: Store) -> Iterator[Lease]:
    """Hold the run's lease, and give it back even if the head dies: whoever resumes the run need not wait for it."""
    with Lease(store, run=run) as lease, _resumable(run, release=lease.release):
        yield lease


def _resumable(run: str, *, release: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
    return continued_by(f"orchestrator resume {run}", what=f"run {run}", release=release)


def _run(
    record: RunRecord,
    store: Store,
    lease: Lease,
    *,
    started: float,
    on_progress: Progress | None,
    environment: Mapping[str, str] | None = None,
) -> RunResult:
    record = record.model_copy(update={"state": "running", "error": None})
    cancelled = record.model_copy(update={"state": "cancelled"})
    terminated = threading.Event()

    def write(changed: RunRecord) -> None:
        lease.check()
        update_run(store, changed)

    def on_sigterm() -> None:
        terminated.set()
        write(cancelled)  # Ray kills a job 3 s after this, which ending the workers may outlast

    write(record)
    try:
        with polling(_teller(store, record.run, on_progress)), _sigterm_as_interrupt(on_sigterm):
            outcome = fit_on_ray(record, store, lease=lease, environment=environment)
    except (KeyboardInterrupt, RunCancelledError):
        write(cancelled)
        stopped = RunCancelledError if terminated.is_set() else RunInterruptedError
        raise stopped(f"run {record.run} was stopped. Continue it: orchestrator resume {record.run}.") from None
    except LeaseLostError:
        raise
    except DiskFullError as error:
        with suppress(StoreError):  # which has no room for this either
            write(record.model_copy(update={"state": "unfinished", "error": str(error)}))
        raise
    except Exception as error:
        write(record.model_copy(update={"state": "failed", "error": str(error)}))
        raise
    first_step_at = outcome["first_step_at"]
    finished = record.model_copy(
        update={
            "state": "finished",
            **{name: outcome[name] for name in ("metrics", "baseline", "baseline_metrics", "checkpoint")},
            "seconds": round(time.time() - started, 3),
            "first_step_s": first_step_at and round(first_step_at - started, 3),
        }
    )
    write(finished)
    return RunResult(record.run, finished.metrics, outcome["history"], finished)


@contextmanager
def _unfinished_on_full_disk(run: str) -> Iterator[None]:
    """Say that nothing is lost where there was no room for what a run has to write."""
    try:
        yield
    except DiskFullError as error:
        raise RunUnfinishedError(
            f"run {run} stopped before its end: {error} Then continue it: orchestrator resume {run}."
        ) from error


def _teller(store: Store, run: str, on_progress: Progress | None) -> Callable[[], None]:
    """A function that calls ``on_progress`` when the run's status in the store has changed."""
    seen = 0.0

    def look() -> None:
        nonlocal seen
        status = read_status(store, run) if on_progress else None
        if status and on_progress and status.updated > seen:
            seen = status.updated
            on_progress(status)

    return look


@contextmanager
def _sigterm_as_interrupt(first: Callable[[], None]) -> Iterator[None]:
    """Let a stopped job end its workers as Ctrl-C does, after ``first``; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def handle(_number: int, _frame: FrameType | None) -> None:
        first()
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Fits one experiment on the cluster: checks everything, starts Ray Train, follows it, records what came out."""

import importlib
import importlib.metadata
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, NamedTuple

from cluster.config import StoreSettings
from cluster.errors import (
    ClusterError,
    ConfigError,
    NotFoundError,
    OrchestratorError,
    RunCancelledError,
    RunFailedError,
    RunInterruptedError,
)
from cluster.session import cluster_resources, num_nodes, ray_session, require_resources
from cluster.staging import check_packages, stage
from cluster.storage import Store, open_store
from models.config import has_activation, resolve_techniques
from models.task import task_of
from orchestrator.config import Experiment
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.polling import POLL_S, polling
from orchestrator.runs import (
    DatasetRef,
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
    with_live_state,
)

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
    history: list[Metrics]
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
) -> RunResult:
    """Train one experiment to its end on a Ray cluster.

    Args:
        experiment: from `orchestrator.configfile.load_experiment`, or built in Python.
        store: where the dataset is and the run goes; default: `cluster.storage.open_store()`.
        address: of the cluster, in any of Ray's forms; default: see `cluster.session.resolve_address`.
        run: name of the new run; default: made of dataset, model and time.
        on_start: called once everything is checked, before any worker starts.
        on_progress: called about twice a second with the newest status.

    Raises:
        ConfigError, StoreAccessError, ClusterError: before any worker starts.
        RunFailedError: a worker failed more often than `scaling.max_failures`; what it had written can be resumed.
        RunCancelledError: interrupted.
    """
    started = time.time()
    store = store or open_store()
    store.check()
    dataset = dataset_of(experiment, store)
    with ray_session(address, store=store.settings):
        record = plan_run(experiment, dataset, run=run, gpus=cluster_resources().get("GPU", 0))
        _require(record)
        record, arithmetic = describe(record, dataset)
        create_run(store, record)
        if on_start:
            on_start(record, arithmetic)
        return _run(record, store=store, started=started, on_progress=on_progress)


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
        workers: another number of workers than before; it must divide the logical workers.
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
    if record.state == "running":
        _require_lost(store, record)
    if workers is not None:
        record = record.model_copy(update={"experiment": _with_workers(record.experiment, workers)})
    dataset = open_dataset(store, record.dataset.name, version=record.dataset.version)
    with ray_session(address, store=store.settings):
        _require(record)
        record, arithmetic = describe(record, dataset)
        record = record.model_copy(update={"state": "running", "error": None})
        update_run(store, record)
        if on_start:
            on_start(record, arithmetic)
        return _run(record, store=store, started=started, on_progress=on_progress)


def dataset_of(experiment: Experiment, store: Store) -> Dataset:
    """Open the dataset that an experiment names.

    Raises:
        ConfigError: there is none of that name or version: the experiment is wrong.
    """
    try:
        return open_dataset(store, experiment.data.name, version=experiment.data.version)
    except NotFoundError as error:
        raise ConfigError(str(error)) from None


def plan_run(experiment: Experiment, dataset: Dataset, *, run: str | None = None, gpus: float = 0) -> RunRecord:
    """Decide everything that a run depends on; pure but for the time and the random part of its name.

    Raises:
        ConfigError: the experiment does not fit the dataset.
    """
    signature = dataset.signature(lookback=experiment.data.lookback, horizon=experiment.data.horizon)
    techniques = resolve_techniques(
        experiment.techniques, experiment.model, gpu_available=gpus >= experiment.scaling.max_workers
    )
    task = task_of(signature)
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
        primary_metric=task.primary_metric,
        higher_is_better=task.mode == "max",
        code_version=code_version(),
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


def fit_on_ray(record: RunRecord, store: StoreSettings) -> dict[str, Any]:
    """Run a training on the connected cluster; return what the first worker returned.

    One worker needs no group: it is a single Ray task, which starts in a third of the time, and in a process that
    has trained before at once. Several are a worker group of Ray Train.
    """
    settings = {"record": record.model_dump(mode="json"), "store": store.model_dump(mode="json")}
    fit = _fit_in_one_task if record.experiment.scaling.max_workers == 1 else _fit_in_group
    result = fit(record, settings)
    if result is None:
        raise RunCancelledError(f"run {record.run} was stopped.")
    return result


def worker_loop(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train one model on this worker's share of the data. Runs once in every worker of Ray Train."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    return train_worker(
        settings,
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        device=str(ray.train.torch.get_device()),
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
    with RunLog(store, record.run) if rank == 0 else nullcontext() as log:
        trainer = fit(record, store=store, world=world, log=log)
        metrics = evaluate(trainer, record.evaluated_on)
        if log is None:
            return {}
        season = record.experiment.data.season
        rule = baseline(trainer.reader, record.signature, split=record.evaluated_on, season=season)
        log.status(phase="finished")
    return {
        "metrics": metrics,
        "baseline": rule and rule.name,
        "baseline_metrics": rule.metrics if rule else {},
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


def _require_lost(store: Store, record: RunRecord) -> None:
    """Return once it is sure that nobody works on a run; until then wait for its next sign of life."""
    first = read_status(store, record.run)
    while with_live_state(store, record).state == "running":
        if read_status(store, record.run) != first:
            raise ConfigError(
                f"run {record.run} must be stopped to be resumed, got one that works. "
                f"Follow it: orchestrator show {record.run}."
            )
        time.sleep(POLL_S)


def _require(record: RunRecord) -> None:
    scaling = record.experiment.scaling
    gpus = scaling.max_workers if record.techniques.processor == "gpu" else 0
    require_resources(cpus=scaling.max_workers * scaling.cpus_per_worker, gpus=gpus)


def _with_workers(experiment: Experiment, workers: int) -> Experiment:
    from orchestrator.configfile import Document, validate

    values = experiment.model_dump(mode="json")
    values["scaling"] |= {"workers": workers, "logical_workers": experiment.scaling.num_logical_workers}
    return validate(Document("--workers", values, {}))


def _run(record: RunRecord, *, store: Store, started: float, on_progress: Progress | None) -> RunResult:
    cancelled = record.model_copy(update={"state": "cancelled"})
    terminated = threading.Event()

    def on_sigterm() -> None:
        terminated.set()
        update_run(store, cancelled)  # Ray kills a job 3 s after this, which ending the workers may outlast

    try:
        with polling(_teller(store, record.run, on_progress)), _sigterm_as_interrupt(on_sigterm):
            outcome = fit_on_ray(record, store.settings)
    except (KeyboardInterrupt, RunCancelledError):
        update_run(store, cancelled)
        stopped = RunCancelledError if terminated.is_set() else RunInterruptedError
        raise stopped(f"run {record.run} was stopped. Continue it: orchestrator resume {record.run}.") from None
    except Exception as error:
        failure = _failure(error, record)
        update_run(store, record.model_copy(update={"state": "failed", "error": str(failure)}))
        raise failure from None
    from orchestrator.checkpoint import checkpoint_prefixes

    first_step_at = outcome["first_step_at"]
    finished = record.model_copy(
        update={
            "state": "finished",
            **{name: outcome[name] for name in ("metrics", "baseline", "baseline_metrics")},
            "checkpoint": next(checkpoint_prefixes(store, run=record.run)),
            "seconds": round(time.time() - started, 3),
            "first_step_s": first_step_at and round(first_step_at - started, 3),
        }
    )
    update_run(store, finished)
    return RunResult(record.run, finished.metrics, outcome["history"], finished)


def _fit_in_one_task(record: RunRecord, settings: dict[str, Any]) -> dict[str, Any]:
    ray: Any = importlib.import_module("ray")
    ray_util: Any = importlib.import_module("ray.util")
    strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
    resources, scaling = _resources(record), record.experiment.scaling
    place = ray_util.placement_group([resources])
    try:
        if not place.wait(timeout_seconds=scaling.start_timeout_s):
            raise _too_full(record)
        task = ray.remote(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            max_retries=scaling.max_failures,  # a process that died is started again; an error is final
            scheduling_strategy=strategies.PlacementGroupSchedulingStrategy(place),
        )(train_worker)
        device = "cuda" if record.techniques.processor == "gpu" else "cpu"
        result: dict[str, Any] = ray.get(task.remote(settings, rank=0, workers=1, device=device))
        return result
    finally:
        ray_util.remove_placement_group(place)  # ends the task too, if it still works


def _fit_in_group(record: RunRecord, settings: dict[str, Any]) -> dict[str, Any] | None:
    os.environ.update(_train_environment(record))
    ray_train: Any = importlib.import_module("ray.train")  # its annotations describe the API before V2
    ray_torch: Any = importlib.import_module("ray.train.torch")
    scaling, use_gpu = record.experiment.scaling, record.techniques.processor == "gpu"
    with tempfile.TemporaryDirectory(prefix="orchestrator-train-") as folder:
        trainer = ray_torch.TorchTrainer(
            worker_loop,
            train_loop_config=settings,
            torch_config=ray_torch.TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ray_train.ScalingConfig(
                num_workers=scaling.max_workers, use_gpu=use_gpu, resources_per_worker=_resources(record)
            ),
            # Ray's own records stay on the driver's disk: our checkpoints go to the store by themselves
            run_config=ray_train.RunConfig(
                name=record.run,
                storage_path=folder,
                failure_config=ray_train.FailureConfig(max_failures=scaling.max_failures, controller_failure_limit=0),
            ),
        )
        result: dict[str, Any] | None = trainer.fit().return_value
    return result


def _resources(record: RunRecord) -> dict[str, float]:
    cpus = {"CPU": record.experiment.scaling.cpus_per_worker}
    return cpus | ({"GPU": 1} if record.techniques.processor == "gpu" else {})


def _train_environment(record: RunRecord) -> dict[str, str]:
    """Ray Train reads its knobs from the driver's environment."""
    return {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # how soon an end or a failure is noticed; Ray's default is 2
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(record.experiment.scaling.start_timeout_s),
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        # one more process, that waits for notices which a single node never gets
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1" if num_nodes() > 1 else "0",
    }


def _failure(error: Exception, record: RunRecord) -> Exception:
    """The worker's own error first; collateral errors of the others are left out."""
    if "WorkerGroupStartupTimeout" in f"{type(error).__name__} {error}":
        return _too_full(record)
    failures = list(getattr(error, "worker_failures", {}).values())
    first = ([e for e in failures if not _is_collateral(e)] or failures or [error])[0]
    cause = getattr(first, "cause", None) or first  # Ray wraps what a worker raised
    if isinstance(cause, OrchestratorError) and not isinstance(cause, RunFailedError):
        return cause
    told = cause if isinstance(cause, OrchestratorError) else first  # others with their traceback
    return RunFailedError(
        f"run {record.run} failed: {str(told).strip()}\nContinue it: orchestrator resume {record.run}."
    )


def _too_full(record: RunRecord) -> ClusterError:
    scaling = record.experiment.scaling
    return ClusterError(
        f"the cluster must place {scaling.min_workers} workers within scaling.start_timeout_s "
        f"({scaling.start_timeout_s:g} s), got fewer. Is other work running? See `orchestrator status`."
    )


def _is_collateral(error: Exception) -> bool:
    """Whether this worker only noticed that another had gone."""
    return any(word in str(error) for word in ("Connection closed by peer", "Connection reset", "gloo", "NCCL"))


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

"""Fits one experiment on the cluster: checks everything, drives its workers, follows it, records what came out."""

import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import NamedTuple

from cluster.errors import (
    DiskFullError,
    LeaseLostError,
    RunCancelledError,
    RunInterruptedError,
    RunUnfinishedError,
    StoreError,
)
from cluster.failpoints import VARIABLE, parse_failpoints
from cluster.head_watch import continued_by
from cluster.process.scoped import scoped_handler
from cluster.process.typed import typed
from cluster.s3.store import Store
from cluster.session import cluster_resources, ray_session, require_resources
from cluster.storage import open_store
from orchestrator.config import Experiment
from orchestrator.driving.following import following
from orchestrator.driving.plan import dataset_of, plan_run, warn_of_left_out
from orchestrator.driving.recovery import fit_on_ray, importing_ahead
from orchestrator.driving.room import prepare
from orchestrator.driving.workers import call_in_worker
from orchestrator.runs.lease import Lease
from orchestrator.runs.record import (
    EpochRecord,
    Metrics,
    RunRecord,
    RunStatus,
    create_run,
    metrics_text,
    read_history,
    read_run,
    read_status,
    update_run,
)
from orchestrator.training.worker import Arithmetic, describe_stored

Progress = Callable[[RunStatus], None]


class RunResult(NamedTuple):
    """What a finished training leaves behind."""

    run: str
    metrics: Metrics
    """Metrics on the split `record.evaluated_on`."""
    history: list[EpochRecord]
    """One entry per epoch."""
    record: RunRecord

    def __repr__(self) -> str:
        """Name the run, its state, its metrics and its folder; the fields hold the rest."""
        found = f"{self.record.evaluated_on} {metrics_text(self.metrics)}"
        return f"<RunResult {self.run}: {self.record.state}, {found}, {len(self.history)} epochs; runs/{self.run}/>"


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
        address: of the cluster, in any of Ray's forms; default: see `cluster.address.resolve_address`.
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
    with importing_ahead(experiment), ray_session(address, store=store.settings):
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


def _describe_in_worker(record: RunRecord, store: Store) -> tuple[RunRecord, Arithmetic]:
    """`describe` in a process that has PyTorch loaded or will need it anyway; here that would take seconds."""
    prepare(record)
    described, arithmetic = call_in_worker(
        describe_stored,
        record.model_dump(mode="json"),
        store.settings.model_dump(mode="json"),
        threads=record.experiment.scaling.num_threads,
    )
    warn_of_left_out([described])
    return described, arithmetic


def _require(record: RunRecord) -> None:
    scaling = record.experiment.scaling
    gpus = scaling.min_workers if record.techniques.processor == "gpu" else 0
    require_resources(cpus=scaling.min_workers * scaling.cpus_per_worker, gpus=gpus)


def _with_workers(experiment: Experiment, workers: int) -> Experiment:
    from orchestrator.configfile import validate
    from orchestrator.document import Document

    values = experiment.model_dump(mode="json")
    values["scaling"] |= {"workers": workers, "logical_workers": experiment.scaling.num_logical_workers}
    return validate(Document("--workers", values, {}))


@contextmanager
def _leased(run: str, store: Store) -> Iterator[Lease]:
    """Hold the run's lease, and give it back even if the head dies: whoever resumes the run need not wait for it."""
    with Lease(store, run=run) as lease, _resumable(run, release=lease.release):
        yield lease


def _resumable(run: str, *, release: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
    return continued_by(typed("resume", run), what=f"run {run}", release=release)


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
    newest = partial(_newest_status, store, record.run)
    with _recorded(record, store, lease) as write, following(newest, on_progress):
        outcome = fit_on_ray(record, store, lease=lease, environment=environment)
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
def _recorded(record: RunRecord, store: Store, lease: Lease) -> Iterator[Callable[[RunRecord], None]]:
    """Write the state of a run: running now, and another where the block does not come to its end."""
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
        with _sigterm_as_interrupt(on_sigterm):
            yield write
    except (KeyboardInterrupt, RunCancelledError):
        write(cancelled)
        stopped = RunCancelledError if terminated.is_set() else RunInterruptedError
        raise stopped(f"run {record.run} was stopped. Continue it: `{typed('resume', record.run)}`.") from None
    except LeaseLostError:
        raise
    except DiskFullError as error:
        with suppress(StoreError):  # which has no room for this either
            write(record.model_copy(update={"state": "unfinished", "error": str(error)}))
        raise
    except Exception as error:
        write(record.model_copy(update={"state": "failed", "error": str(error)}))
        raise


@contextmanager
def _unfinished_on_full_disk(run: str) -> Iterator[None]:
    """Say that nothing is lost where there was no room for what a run has to write."""
    try:
        yield
    except DiskFullError as error:
        raise RunUnfinishedError(
            f"run {run} stopped before its end: {error} Then continue it: `{typed('resume', run)}`."
        ) from error


def _newest_status(store: Store, run: str) -> dict[Hashable, RunStatus]:
    status = read_status(store, run)
    return {run: status} if status else {}


@contextmanager
def _sigterm_as_interrupt(first: Callable[[], None]) -> Iterator[None]:
    """Let a stopped job end its workers as Ctrl-C does, after ``first``; only the main thread can."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        first()
        signal.raise_signal(signal.SIGINT)

    with scoped_handler(signal.SIGTERM, handle), scoped_handler(signal.SIGINT):  # Ray Train takes the second too
        yield

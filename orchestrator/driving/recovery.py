"""Sees one training to its end: decides what a lost, hung or failed worker means, and begins again.

Each start of a group is an attempt (`orchestrator/runs/attempts.py`), and resumes from the newest valid checkpoint.
What ends an attempt is either asked for (a node is to be taken away, the group may grow), which costs nothing, or a
failure, of which `scaling.max_failures` are forgiven. An error that a training raises about itself (a loss that is no
number, a store that refuses our keys) is final: it would come again.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from cluster.errors import ClusterError
from cluster.lazy import imported, importing
from cluster.nodes import living_nodes
from cluster.process.typed import typed
from cluster.s3.store import Store
from cluster.session import store_environment
from orchestrator.config import Experiment
from orchestrator.driving.room import SMALLER_S, resources_of, room
from orchestrator.driving.watch import Watch, classify
from orchestrator.driving.worker_process import Look, worker_loop
from orchestrator.driving.workers import kill_workers, lease_workers, release_workers
from orchestrator.runs.attempts import begin_attempt
from orchestrator.runs.lease import Lease
from orchestrator.runs.record import RunRecord
from orchestrator.training.worker import train_worker

log = logging.getLogger(__name__)

LOOK_S = 0.1  # between two polls of a worker


class Job(NamedTuple):
    """What every worker runs: `function(settings, rank=, workers=, device=)`."""

    function: Callable[..., dict[str, Any]]
    loop: Callable[[dict[str, Any]], dict[str, Any]]
    """The same as Ray Train calls it."""
    settings: dict[str, Any]
    environment: Mapping[str, str] = {}
    """More variables for the workers."""


def run_to_end(record: RunRecord, job: Job, *, store: Store, lease: Lease | None = None) -> dict[str, Any]:
    """Start groups of workers until one has finished the training; return what its first worker returned.

    Raises:
        ClusterError: the fewest workers could not be placed within `scaling.start_timeout_s`.
        RunFailedError: more failures than `scaling.max_failures`; the first worker's own error is told.
        OrchestratorError: what a worker raised about itself.
    """
    scaling, failures = record.experiment.scaling, 0
    while True:
        place, workers = _reserve(record)
        watch = Watch(record, store, begin_attempt(store, record.run, workers=workers), lease)
        try:
            result = _start(record, job, place, workers, watch)
        except KeyboardInterrupt:
            watch.close("cancelled", "stopped by its user")
            raise
        except Exception as error:
            ending = classify(error, watch)
            watch.close(ending.end, ending.detail)
            failures += ending.end not in ("preempted", "resized")
            if ending.is_final or failures > scaling.max_failures:
                raise ending.error from None
            log.warning("run %s: %s; begins again", record.run, ending.detail)
        else:
            watch.close("finished", "")
            return result
        finally:
            _give_back(place)


def importing_ahead(experiment: Experiment) -> AbstractContextManager[None]:
    """Import Ray Train, which takes seconds, while the block waits for others; one worker does without."""
    return importing("orchestrator.driving.ray_train") if experiment.scaling.max_workers > 1 else nullcontext()


def _reserve(record: RunRecord) -> tuple[Any, int]:
    """Reserve room for as many workers as there are to be, or for an elastic run as there can be.

    Raises:
        ClusterError: not even the fewest fit in time.
    """
    util: Any = imported("ray.util")
    scaling, need = record.experiment.scaling, resources_of(record)
    count = scaling.max_workers
    while True:
        if count > scaling.min_workers:
            count = max(scaling.min_workers, min(count, room(living_nodes(), need)))
        place = util.placement_group([need] * count)
        if place.wait(timeout_seconds=scaling.start_timeout_s if count == scaling.min_workers else SMALLER_S):
            return place, count
        util.remove_placement_group(place)
        if count == scaling.min_workers:
            raise ClusterError(
                f"the cluster must place {count} workers within scaling.start_timeout_s "
                f"({scaling.start_timeout_s:g} s), got fewer. Is other work running? See `{typed('status')}`."
            )
        count -= 1


def _give_back(place: Any) -> None:
    util: Any = imported("ray.util")
    util.remove_placement_group(place)


def _environment(job: Job, store: Store) -> dict[str, str]:
    return {**store_environment(store.settings), **job.environment}


def _start(record: RunRecord, job: Job, place: Any, workers: int, watch: Watch) -> dict[str, Any]:
    if workers == 1:
        return _run_alone(record, job, place, watch)
    group: Any = imported("orchestrator.driving.ray_train")  # imports Ray Train: one worker does without
    plan = group.GroupPlan(
        run=record.run,
        place=place,
        workers=workers,
        resources=resources_of(record),
        environment=_environment(job, watch.store),
        threads=record.experiment.scaling.num_threads,
        hang_timeout_s=record.experiment.scaling.hang_timeout_s,
    )
    result: dict[str, Any] = group.run_group(job.loop, job.settings, plan=plan, watch=watch)
    return result


def _run_alone(record: RunRecord, job: Job, place: Any, watch: Watch) -> dict[str, Any]:
    """One worker needs no group."""
    ray: Any = imported("ray")
    leased = lease_workers(
        place,
        resources_of(record),
        environment=_environment(job, watch.store),
        threads=record.experiment.scaling.num_threads,
    )
    device = "cuda" if record.techniques.processor == "gpu" else "cpu"
    actor, ended = leased[0].actor, False
    try:
        ray.get(actor.start.remote(job.function, settings=job.settings, rank=0, workers=1, device=device))
        looks = _looks(actor)
        while True:
            look = next(looks)
            error = watch([look and look.pulse], leased)
            if look and not look.is_running:
                ended = True
                if look.error is not None:
                    raise look.error
                result: dict[str, Any] = look.result
                return result
            if error:
                raise error
    finally:
        (release_workers if ended else kill_workers)(leased)


def _looks(actor: Any) -> Iterator[Look | None]:
    """Ask a worker how it is, again and again; ``None`` stands for every `LOOK_S` in which it does not answer.

    Raises:
        ray.exceptions.RayActorError: it is dead.
    """
    ray: Any = imported("ray")
    asked = actor.look.remote()
    while True:
        answered, _ = ray.wait([asked], timeout=LOOK_S)
        if not answered:
            yield None
            continue
        try:
            yield ray.get(asked)
        except ray.exceptions.ActorUnavailableError:  # asked again, it is dead once its node is known to be
            yield None
        time.sleep(LOOK_S)
        asked = actor.look.remote()


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

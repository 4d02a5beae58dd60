"""Ray Train's worker group, with its controller in the driver's process and with workers that were there before.

Ray Train starts a process for its controller, four for helpers, and one for every worker, each time: on two cores 15 of
the 20 seconds before the first step. What is replaced here are three seams of its version 2 (`worker_group_cls`,
`_create_workers`, the policies); ranks, contexts, the training thread, polling and errors stay Ray Train's. All of its
private names that we use are in this file and in `orchestrator/driving/worker_process.py`; the version
of Ray is pinned.
"""

import asyncio
import logging
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray.train
from ray.exceptions import ActorUnavailableError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.backend_setup import BackendSetupCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingPolicy
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.worker import Worker as TrainWorker
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.nodes import closing_meeting
from cluster.process.scoped import scoped_environment, scoped_level
from orchestrator.driving.failures import is_collateral, unwrapped
from orchestrator.driving.workers import Worker, kill_workers, lease_workers, release_workers
from orchestrator.training.worker import join_group

POLL_S = 0.1
ECHO_S = 30.0  # a cluster needs 15 to be sure that a node is gone
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_S),
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the driver looks for notices, see orchestrator/driving/watch.py
}


@dataclass(frozen=True)
class GroupPlan:
    """What a group needs to start."""

    run: str
    place: Any
    """A placement group with one bundle for each worker; its owner removes it."""
    workers: int
    resources: Mapping[str, float]
    """What each worker reserves: `CPU` and perhaps `GPU`."""
    environment: Mapping[str, str]
    threads: int
    hang_timeout_s: float


Watch = Callable[[Sequence[dict[str, Any] | None], Sequence[Worker]], Exception | None]
"""Gets the pulse of every worker by rank (``None``: no answer) at each poll; an error it returns ends the group."""


def run_group(loop: Callable[[dict[str, Any]], Any], settings: dict[str, Any], *, plan: GroupPlan, watch: Watch) -> Any:
    """Run a function in every worker of a group, and return what the first one returned.

    Raises:
        ray.train.TrainingFailedError: `worker_failures` holds each worker's error; see
            `orchestrator/driving/failures.py`.
    """
    backend = _ProcessGroup("nccl" if plan.resources.get("GPU") else "gloo")
    with (
        scoped_environment(ENVIRONMENT | {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(plan.hang_timeout_s)}),
        scoped_level("ray.train", logging.CRITICAL),  # what it would say, we say in our words
        tempfile.TemporaryDirectory(prefix="orchestrator-train-") as folder,
        closing_meeting(backend.meeting),
    ):
        trainer = _Trainer(
            loop,
            train_loop_config=settings,
            backend_config=backend,
            scaling_config=ray.train.ScalingConfig(
                num_workers=plan.workers,
                use_gpu=bool(plan.resources.get("GPU")),
                resources_per_worker=dict(plan.resources),
            ),
            # Ray's own records stay on the driver's disk: our checkpoints go to the store by themselves
            run_config=ray.train.RunConfig(name=plan.run, storage_path=folder),
        )
        trainer.groups = _Groups(plan, watch)
        result: Any = trainer.fit()
        return result.return_value


class _Trainer(DataParallelTrainer):
    """Runs the controller here instead of in an actor."""

    groups: "_Groups"

    def _create_default_callbacks(self) -> list[Any]:
        return [BackendSetupCallback(self.backend_config)]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        scaling, failure = _OneSize(self.scaling_config), _NoRetry(self.run_config.failure_config)  # type: ignore[arg-type]
        controller: Any = TrainController(**settings | {"scaling_policy": scaling, "failure_policy": failure})
        controller.worker_group_cls = self.groups
        try:
            _run_in_thread(controller)
        finally:
            self.groups.end()
        return controller.get_result()


def _run_in_thread(controller: Any) -> None:
    """Run the controller's loop in a thread: this one may have a loop already (notebooks), and gets Ctrl-C."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(controller.run())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="ray-train-controller", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


class _Groups:
    """What the controller takes for the class of its worker group."""

    def __init__(self, plan: GroupPlan, watch: Watch) -> None:
        self._plan, self._watch = plan, watch
        self._group: _Group | None = None

    def create(self, **settings: Any) -> "_Group":
        """Start the group."""
        self._group = group = _Group(**settings)
        group.plan, group.watch = self._plan, self._watch
        group._start()  # type: ignore[no-untyped-call]
        return group

    def end(self) -> None:
        """However the controller ended, leave no worker behind."""
        if self._group is not None:
            self._group.end()


class _Group(WorkerGroup):
    """Leases its workers, and shows their pulses to `watch`."""

    plan: GroupPlan
    watch: Watch
    leased: tuple[Worker, ...] = ()
    ranked: tuple[Worker, ...] = ()
    """By rank."""
    echo_since: float | None = None

    def end(self) -> None:
        """End what still runs; after an orderly shutdown nothing does."""
        workers, self.leased = self.leased, ()
        kill_workers(workers)

    def shutdown(self) -> None:
        """Give the workers back, and only then end the rest of the group."""
        workers, self.leased = self.leased, ()
        release_workers(workers)
        state: Any = self._worker_group_state
        ray.kill(state.sync_actor)
        self._clear_state()  # type: ignore[no-untyped-call]

    def poll_status(self, timeout: float | None = None) -> Any:
        """Ray Train's poll; an error that `watch` finds is the first worker's."""
        polled = super().poll_status(timeout)
        pulses = [getattr(status, "pulse", None) for _, status in sorted(polled.worker_statuses.items())]
        found = self._without_echoes(polled)
        error = self.watch(pulses, self.ranked)  # of the last poll, too: it tells what was reached
        if error is None or found.errors or found.finished:
            return found
        first = replace(found.worker_statuses[0], error=error, running=False)
        return replace(found, worker_statuses={**found.worker_statuses, 0: first})

    def _without_echoes(self, found: Any) -> Any:
        """Delay errors that only follow from a lost worker, for up to ECHO_S, so that the cause is reported first."""
        errors = [unwrapped(error) for error in found.errors.values()]
        if not errors or not all(isinstance(e, ActorUnavailableError) or is_collateral(e) for e in errors):
            return found
        self.echo_since = self.echo_since or time.monotonic()
        if time.monotonic() - self.echo_since > ECHO_S:
            return found
        held = {rank: replace(found.worker_statuses[rank], error=None, running=True) for rank in found.errors}
        return replace(found, worker_statuses={**found.worker_statuses, **held})

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:  # noqa: ARG002
        return _Place(self.plan.place)

    def _create_workers(  # type: ignore[override]
        self,
        num_workers: int,  # noqa: ARG002
        placement_group: Any,
        resources_per_worker: Any,
        **_: Any,
    ) -> list[Any]:
        self.leased = tuple(
            lease_workers(
                placement_group, self.plan.resources, environment=self.plan.environment, threads=self.plan.threads
            )
        )
        places = ray.get([w.actor.get_metadata.remote() for w in self.leased])
        by_actor = {w.actor: w for w in self.leased}
        workers = [TrainWorker(w.actor, p, resources_per_worker) for w, p in zip(self.leased, places, strict=True)]
        ranked: list[Any] = WorkerGroup._assign_worker_ranks(workers)
        self.ranked = tuple(by_actor[w.actor] for w in ranked)
        return ranked

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, arguments: Mapping[str, Any]) -> None:
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=[],
                    controller_actor=None,
                    **{name: values[i] for name, values in arguments.items()},
                )
                for i, worker in enumerate(workers)
            ]
        )


class _Place(DefaultPlacementGroupHandle):
    def shutdown(self) -> None:
        """Leave it: the next attempt may want it."""


class _ProcessGroup(BackendConfig):
    """PyTorch's process group. Ray Train's own `TorchConfig` imports PyTorch in the driver, which takes seconds."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.meeting = secrets.token_hex(8)

    @property
    def backend_cls(self) -> type[Backend]:
        return _JoinGroup


GROUP_TIMEOUT_S = 1800.0  # hangs are found by their pulse long before


class _JoinGroup(Backend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        join = partial(
            join_group,
            backend_config.meeting,
            workers=len(worker_group),
            backend=backend_config.backend,
            timeout_s=GROUP_TIMEOUT_S,
        )
        ray.get([worker.actor.execute.remote(join, r) for r, worker in enumerate(worker_group.get_workers())])


class _OneSize(ScalingPolicy):
    """The number of workers is decided between groups, see `orchestrator/driving/recovery.py`."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Register nothing: that would start one more actor, and the placement group asks for nodes by itself."""

    def _get_num_workers_for_resource_request(self) -> int:
        return self.scaling_config.max_workers

    def make_decision_for_non_running_worker_group(self) -> Any:
        scaling = self.scaling_config
        return ResizeDecision(scaling.max_workers, scaling._resources_per_worker_not_none)

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:  # noqa: ARG002
        return NoopDecision()


class _NoRetry(FailurePolicy):
    """Whether to begin again is decided in `orchestrator/driving/recovery.py`, alike for one worker and for many."""

    def make_decision(self, training_failed_error: Exception) -> Any:  # noqa: ARG002
        return FailureDecision.RAISE

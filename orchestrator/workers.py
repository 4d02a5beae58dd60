"""Processes that train. They outlive a run, so that the next one, or a recovery, waits for no process and no import.

A worker is a named, detached Ray actor that reserves nothing by itself: a run reserves its CPUs in a placement group,
and then leases, on the nodes of that group, workers of the same code and environment; what is missing is started. A
worker ends when its driver is gone, or when nobody has leased it for a while. A GPU belongs to the process that Ray
started for it, so workers with GPUs serve one run only.
"""

import hashlib
import importlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from cluster.errors import WorkerLostError
from cluster.preemption import draining_nodes
from cluster.session import HOOK_VARIABLE, NAMESPACE, STORE_VARIABLES
from orchestrator.pulse import PULSE, StopReason

T = TypeVar("T")

IDLE_S = 300.0  # a person edits a file between two runs; an idle worker holds about 400 MB
WATCH_S = 2.0
START_S = 60.0  # for a process that was started ahead; it takes 2 to 10
SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.01, 0.25  # between two looks at a call
MEETINGS = b"orchestrator.meetings"  # the namespace of their keys in the control service
RELEASE_S = 5.0  # a training whose peers are gone ends within milliseconds; one that hangs is killed


class Look(NamedTuple):
    """What a worker says when it is asked."""

    pulse: dict[str, Any]
    is_running: bool
    result: Any = None
    error: BaseException | None = None


class TrainingProcess:
    """The actor. Its own thread answers; the training runs in another one."""

    def __init__(self, idle_s: float, reserved_for: str | None = None) -> None:
        # `reserved_for`: the token of the first lease, where somebody starts a worker for himself
        _HERE.append(self)
        self._idle_s, self._reserved_for = idle_s, reserved_for
        self._owner: str | None = None
        self._before: dict[str, str | None] = {}
        self._alone: _Outcome | None = None
        self._train: Any = None  # Ray Train's half, only in a group
        # Calls wait until all is imported: what a call brings imports PyTorch too, and two threads that do so at the
        # same time abort the process.
        _import_ahead()
        self._idle_since = time.monotonic()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def lease(self, owner: str, environment: Mapping[str, str], token: str | None = None) -> bool:
        """Belong to a driver's job from now on, unless another has been faster."""
        if self._owner is not None or self._reserved_for not in (None, token):
            return False
        self._reserved_for = None
        self._owner, self._alone = owner, None
        self._before = {name: os.environ.get(name) for name in environment}
        _set_environment(environment)
        PULSE.begin()
        return True

    def release(self) -> bool:
        """Belong to nobody again; ``False`` where the training has not ended: this process is of no use."""
        if not _training_has_ended(RELEASE_S / 2):
            return False
        leave_group()
        _set_environment(self._before)
        PULSE.begin()  # who waits for work must not look like one that trains
        self._owner, self._idle_since = None, time.monotonic()
        return True

    def execute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run something here and return what it returns; Ray Train calls it too."""
        return function(*args, **kwargs)

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Run something in the training's thread; `look` tells how it went."""
        self._alone = outcome = _Outcome()
        call = partial(function, *args, **kwargs)
        threading.Thread(target=outcome.run, args=(call,), name="training", daemon=True).start()

    def look(self) -> Look:
        """The pulse, and the outcome of `start`."""
        outcome = self._alone
        if outcome is None or outcome.is_running:
            return Look(PULSE.read(), outcome is not None)
        return Look(PULSE.read(), False, outcome.result, outcome.error)

    def ask_to_stop(self, reason: StopReason) -> None:
        """Let the training end after its next step, with a checkpoint."""
        PULSE.stop = reason

    # What Ray Train's controller calls, see orchestrator/group.py

    def init_train_context(self, **context: Any) -> None:
        """Begin as a worker of Ray Train."""
        worker: Any = importlib.import_module("ray.train.v2._internal.execution.worker_group.worker")
        self._train = worker.RayTrainWorker()
        self._train.init_train_context(**context)

    def get_metadata(self) -> Any:
        """Where this process is."""
        worker: Any = importlib.import_module("ray.train.v2._internal.execution.worker_group.worker")
        return worker.RayTrainWorker.get_metadata(self)

    def run_train_fn(self, function: Any) -> None:
        """Start the training's thread."""
        self._train.run_train_fn(function)

    def poll_status(self) -> Any:
        """Ray Train's status, with the pulse."""
        status = self._train.poll_status()
        status.pulse = PULSE.read()
        return status

    def shutdown(self) -> None:
        """Ray Train's callbacks, of which we have none."""

    def _watch(self) -> None:
        while True:
            time.sleep(WATCH_S)
            owner, idle_since = self._owner, self._idle_since
            is_idle = owner is None and time.monotonic() - idle_since > self._idle_s
            if is_idle or (owner is not None and _is_dead(owner)):
                os._exit(0)


_HERE: list[TrainingProcess] = []
"""This process, where it is one."""


def is_abandoned() -> bool:
    """Whether this process works for somebody who has ended. It notices by itself, but only after seconds."""
    owners = [process._owner for process in _HERE if process._owner]
    return any(_is_dead(owner) for owner in owners)


class _Outcome:
    """Of a function that runs in a thread."""

    def __init__(self) -> None:
        self.is_running = True
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, call: Callable[[], Any]) -> None:
        try:
            self.result = call()
        except BaseException as error:
            self.error = _with_traceback(error)
        self.is_running = False


@dataclass(frozen=True)
class Worker:
    """A leased process, as the driver knows it."""

    actor: Any
    node: str
    """Id of its node, in hexadecimal digits."""
    is_reusable: bool


def lease_workers(
    place: Any, resources: Mapping[str, float], *, environment: Mapping[str, str], threads: int
) -> list[Worker]:
    """Return one worker for each bundle of a placement group that is there, warm ones first.

    Args:
        place: the placement group; its bundles are of equal resources.
        resources: of one bundle.
        environment: variables for the time of the lease.
        threads: of each worker's tensor operations; workers of another number are not the same.
    """
    ray: Any = importlib.import_module("ray")
    if resources.get("GPU"):
        return [_start_with_gpu(place, bundle, resources, environment) for bundle in range(len(place.bundle_specs))]
    util: Any = importlib.import_module("ray.util")
    nodes = list(util.placement_group_table(place)["bundles_to_node_id"].values())
    owner, key = _owner(), _key(threads)
    warm = _lease_warm(key, nodes, owner, environment)
    missing = list(nodes)
    for worker in warm:
        missing.remove(worker.node)
    token = secrets.token_hex(8)  # others see a new worker by its name before it is ours
    new = [_start(key, node, threads, reserved_for=token) for node in missing]
    ray.get([w.actor.lease.remote(owner, dict(environment), token) for w in new])
    return warm + new


def start_ahead(nodes: Sequence[str], *, threads: int) -> None:
    """Let there be a worker for each of these places soon; does not wait for them.

    Args:
        nodes: ids, one for each place; the same node may come several times.
        threads: as for `lease_workers`.
    """
    key = _key(threads)
    missing = list(nodes)
    for _, node in _named(key):
        if node in missing:
            missing.remove(node)
    for node in missing:
        _start(key, node, threads)


def call_in_worker(
    function: Callable[..., T], *args: Any, threads: int, environment: Mapping[str, str] | None = None
) -> T:
    """Run something in a worker on this node, and return what it returns; what it takes, its caller has reserved.

    Args:
        function: what to run.
        *args: of the function.
        threads: see `lease_workers`.
        environment: see `lease_workers`.

    Raises:
        Exception: what the function raised.
        WorkerLostError: the worker died.
    """
    ray: Any = importlib.import_module("ray")
    try:
        worker = _borrow(threads, environment or {})
        look = _run(worker, partial(function, *args))
    except ray.exceptions.RayActorError as error:
        raise WorkerLostError(
            f"a worker must live until its work is done, got: {str(error).strip()} See the logs of the cluster."
        ) from None
    if look.error is not None:
        raise look.error
    result: T = look.result
    return result


def _run(worker: Worker, call: Callable[[], Any]) -> Look:
    """Let a leased worker do something, and give it back."""
    ray: Any = importlib.import_module("ray")
    try:
        ray.get(worker.actor.start.remote(call))
        pause_s = SHORTEST_LOOK_S
        while (look := ray.get(worker.actor.look.remote())).is_running:
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, LONGEST_LOOK_S)
        return cast("Look", look)
    finally:
        worker.actor.release.remote()


def _borrow(threads: int, environment: Mapping[str, str]) -> Worker:
    ray: Any = importlib.import_module("ray")
    owner, key = _owner(), _key(threads)
    here = ray.get_runtime_context().get_node_id()
    for name in [name for name, node in _named(key) if node == here]:
        with suppress(ValueError, ray.exceptions.RayActorError):  # it has just ended
            worker = Worker(ray.get_actor(name, namespace=NAMESPACE), here, is_reusable=True)
            if ray.get(worker.actor.lease.remote(owner, dict(environment))):
                return worker
    token = secrets.token_hex(8)
    worker = _start(key, here, threads, reserved_for=token)
    ray.get(worker.actor.lease.remote(owner, dict(environment), token))
    return worker


def release_workers(workers: Sequence[Worker]) -> None:
    """Give workers back; those that do not come to rest, those with GPUs, and those on a node that will go, end."""
    ray: Any = importlib.import_module("ray")
    going = draining_nodes()  # such a node ends by itself once nothing lives on it
    released = {w.actor.release.remote(): w for w in workers if w.is_reusable and w.node not in going}
    done, _ = ray.wait(list(released), num_returns=len(released), timeout=RELEASE_S) if released else ([], [])
    rested = {id(released[ref]) for ref in done if _answer(ref)}
    kill_workers([w for w in workers if id(w) not in rested])


def kill_workers(workers: Sequence[Worker]) -> None:
    """End workers at once, whatever they do."""
    ray: Any = importlib.import_module("ray")
    for worker in workers:
        ray.kill(worker.actor)


def join_group(name: str, rank: int, *, workers: int, backend: str, timeout_s: float) -> None:
    """Become a member of the default process group of PyTorch. Runs in the worker."""
    from datetime import timedelta

    import torch.distributed as dist

    from orchestrator.meeting import Meeting

    PULSE.in_group = True
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(
        backend, store=Meeting(name, timeout=timeout), rank=rank, world_size=workers, timeout=timeout
    )


@contextmanager
def closing_meeting(name: str) -> Iterator[None]:
    """Remove at the end what the workers of a group told each other to meet. Runs in the driver."""
    kv: Any = importlib.import_module("ray.experimental.internal_kv")
    try:
        yield
    finally:
        kv._internal_kv_del(f"{name}/".encode(), del_by_prefix=True, namespace=MEETINGS)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _training_has_ended(patience_s: float) -> bool:
    """Wait for the training's thread; one whose peers have gone notices at its next exchange."""
    ends = time.monotonic() + patience_s
    threads = [t for t in threading.enumerate() if t.name.startswith(("TrainingThread", "training"))]
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def leave_group() -> None:
    """Leave the default process group, where this process is in one."""
    if not PULSE.in_group:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _import_ahead() -> None:
    """What a training needs first; where a process was started ahead, nobody waits for it."""
    importlib.import_module("orchestrator.train")
    importlib.import_module("orchestrator.trainer")
    importlib.import_module("torch._dynamo")  # two seconds that an optimizer takes at its first step


def _owner() -> str:
    """Whom a lease belongs to: this process's actor where it is one, else the driver's job."""
    ray: Any = importlib.import_module("ray")
    context = ray.get_runtime_context()
    actor = context.get_actor_id()
    return f"actor {actor}" if actor else f"job {context.get_job_id()}"


def _is_dead(owner: str) -> bool:
    """Whether an actor or a driver's job has ended, by its own will or not."""
    state: Any = importlib.import_module("ray._private.state")
    kind, _, number = owner.partition(" ")
    if kind == "actor":
        return bool(state.actors(number).get("State", "DEAD") == "DEAD")
    return any(job["JobID"] == number and job["IsDead"] for job in state.jobs())


def _key(threads: int) -> str:
    """Only workers of the same code, environment and threads may stand in for each other."""
    ray: Any = importlib.import_module("ray")
    runtime_env = dict(ray.get_runtime_context().runtime_env)
    variables = runtime_env.pop("env_vars", {})
    passing = (*STORE_VARIABLES, HOOK_VARIABLE)  # those come with a lease; this names the driver
    own = {name: value for name, value in variables.items() if name not in passing}
    text = json.dumps([runtime_env, own, threads], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _lease_warm(key: str, nodes: Sequence[str], owner: str, environment: Mapping[str, str]) -> list[Worker]:
    """Lease idle workers, at most as many on each node as it has places."""
    ray: Any = importlib.import_module("ray")
    asked: dict[Any, Worker] = {}
    for name, node in _named(key):
        if node in nodes:
            with suppress(ValueError):  # it has just ended
                worker = Worker(ray.get_actor(name, namespace=NAMESPACE), node, is_reusable=True)
                asked[worker.actor.lease.remote(owner, dict(environment))] = worker
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=START_S) if asked else ([], [])
    room, leased = list(nodes), []
    for ref in done:
        worker = asked[ref]
        if not _answer(ref):
            continue
        if worker.node in room:
            room.remove(worker.node)
            leased.append(worker)
        else:
            worker.actor.release.remote()
    return leased


def _named(key: str) -> list[tuple[str, str]]:
    """Name and node of every worker of this kind that lives or starts, leased or not."""
    util: Any = importlib.import_module("ray.util")
    found = [(name, name.partition(f"worker-{key}-")[2].partition("-")[0]) for name in sorted(util.list_named_actors())]
    return [(name, node) for name, node in found if node]


def _start(key: str, node: str, threads: int, *, reserved_for: str | None = None) -> Worker:
    ray: Any = importlib.import_module("ray")
    strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
    actor = (
        ray.remote(TrainingProcess)
        .options(
            name=f"worker-{key}-{node}-{secrets.token_hex(4)}",
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        )
        .remote(IDLE_S, reserved_for)
    )
    return Worker(actor, node, is_reusable=True)


def _start_with_gpu(place: Any, bundle: int, resources: Mapping[str, float], environment: Mapping[str, str]) -> Worker:
    ray: Any = importlib.import_module("ray")
    util: Any = importlib.import_module("ray.util")
    strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
    strategy = strategies.PlacementGroupSchedulingStrategy(place, placement_group_bundle_index=bundle)
    actor = (
        ray.remote(TrainingProcess)
        .options(num_cpus=resources["CPU"], num_gpus=resources["GPU"], scheduling_strategy=strategy)
        .remote(IDLE_S)
    )
    ray.get(actor.lease.remote(_owner(), dict(environment)))
    node = list(util.placement_group_table(place)["bundles_to_node_id"].values())[bundle]
    return Worker(actor, node, is_reusable=False)


def _answer(ref: Any) -> bool:
    """What an actor answered; a dead one answers no."""
    ray: Any = importlib.import_module("ray")
    try:
        return bool(ray.get(ref))
    except ray.exceptions.RayError:
        return False


def _with_traceback(error: BaseException) -> BaseException:
    """Errors lose their traceback on the way to another process: carry it as a note."""
    import traceback

    error.add_note("".join(traceback.format_exception(error)[:-1]).strip())
    return error

"""Leases processes that train. They outlive a run, so that the next one, or a recovery, waits for no process.

A worker is a named, detached Ray actor that reserves nothing by itself: a run reserves its CPUs in a placement group,
and then leases, on the nodes of that group, workers of the same code and environment; what is missing is started. A
worker ends when its driver is gone, or when nobody has leased it for a while. A GPU belongs to the process that Ray
started for it, so workers with GPUs serve one run only.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from cluster.errors import WorkerLostError
from cluster.lazy import imported
from cluster.nodes import draining_nodes
from cluster.session import HOOK_VARIABLE, NAMESPACE, STORE_VARIABLES
from orchestrator.driving.worker_process import RELEASE_S, Look, TrainingProcess

T = TypeVar("T")

IDLE_S = 300.0  # a person edits a file between two runs; an idle worker holds about 400 MB
START_S = 60.0  # for a process that was started ahead; it takes 2 to 10
SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.01, 0.25  # between two looks at a call


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
    ray: Any = imported("ray")
    if resources.get("GPU"):
        return [_start_with_gpu(place, bundle, resources, environment) for bundle in range(len(place.bundle_specs))]
    util: Any = imported("ray.util")
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
    ray: Any = imported("ray")
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
    ray: Any = imported("ray")
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
    ray: Any = imported("ray")
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
    ray: Any = imported("ray")
    going = draining_nodes()  # such a node ends by itself once nothing lives on it
    released = {w.actor.release.remote(): w for w in workers if w.is_reusable and w.node not in going}
    done, _ = ray.wait(list(released), num_returns=len(released), timeout=RELEASE_S) if released else ([], [])
    rested = {id(released[ref]) for ref in done if _answer(ref)}
    kill_workers([w for w in workers if id(w) not in rested])


def kill_workers(workers: Sequence[Worker]) -> None:
    """End workers at once, whatever they do."""
    ray: Any = imported("ray")
    for worker in workers:
        ray.kill(worker.actor)


def _owner() -> str:
    """Whom a lease belongs to: this process's actor where it is one, else the driver's job."""
    ray: Any = imported("ray")
    context = ray.get_runtime_context()
    actor = context.get_actor_id()
    return f"actor {actor}" if actor else f"job {context.get_job_id()}"


def _key(threads: int) -> str:
    """Only workers of the same code, environment and threads may stand in for each other."""
    ray: Any = imported("ray")
    runtime_env = dict(ray.get_runtime_context().runtime_env)
    variables = runtime_env.pop("env_vars", {})
    passing = (*STORE_VARIABLES, HOOK_VARIABLE)  # those come with a lease; this names the driver
    own = {name: value for name, value in variables.items() if name not in passing}
    text = json.dumps([runtime_env, own, threads], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _lease_warm(key: str, nodes: Sequence[str], owner: str, environment: Mapping[str, str]) -> list[Worker]:
    """Lease idle workers, at most as many on each node as it has places."""
    ray: Any = imported("ray")
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
    util: Any = imported("ray.util")
    found = [(name, name.partition(f"worker-{key}-")[2].partition("-")[0]) for name in sorted(util.list_named_actors())]
    return [(name, node) for name, node in found if node]


def _start(key: str, node: str, threads: int, *, reserved_for: str | None = None) -> Worker:
    ray: Any = imported("ray")
    strategies: Any = imported("ray.util.scheduling_strategies")
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
    ray: Any = imported("ray")
    util: Any = imported("ray.util")
    strategies: Any = imported("ray.util.scheduling_strategies")
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
    ray: Any = imported("ray")
    try:
        return bool(ray.get(ref))
    except ray.exceptions.RayError:
        return False

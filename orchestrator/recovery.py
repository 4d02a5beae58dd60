"""Drives a training to its end through every loss of workers: starts a group, watches it, and decides what follows.

Each start of a group is an attempt (`orchestrator/attempts.py`), and resumes from the newest valid checkpoint. What
ends an attempt is either asked for (a node is to be taken away, the group may grow), which costs nothing, or a failure,
of which `scaling.max_failures` are forgiven. An error that a training raises about itself (a loss that is no number, a
store that refuses our keys) is final: it would come again.
"""

import importlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.errors import ClusterError, LeaseLostError, OrchestratorError, RunFailedError, StoreError
from cluster.local import mend_store
from cluster.preemption import draining_nodes
from cluster.session import store_environment
from cluster.storage import Store
from orchestrator.attempts import Attempt, End, begin_attempt, write_attempt
from orchestrator.config import Experiment
from orchestrator.lease import Lease
from orchestrator.pulse import StopReason, TrainingStoppedError
from orchestrator.runs import RunRecord
from orchestrator.workers import Worker, kill_workers, lease_workers, release_workers, start_ahead

log = logging.getLogger(__name__)

LOOK_S = 0.1  # between two polls of a worker
NODES_S = 1.0  # between two looks at the cluster's nodes
GROW_S = 10.0  # so long must room for more workers last before a run stops to take it
SMALLER_S = 10.0  # so long an elastic run waits for a worker more before it starts with one fewer
RECORD_S = 1.0  # between two writes of an attempt's progress
SLOWER = 10.0  # a step that takes this many times longer than the slowest before is no longer slow, but hung


class Job(NamedTuple):
    """What every worker runs: `function(settings, rank=, workers=, device=)`."""

    function: Callable[..., dict[str, Any]]
    loop: Callable[[dict[str, Any]], dict[str, Any]]
    """The same as Ray Train calls it."""
    settings: dict[str, Any]
    environment: Mapping[str, str] = {}
    """More variables for the workers."""


class HungError(RunFailedError):
    """A worker gives no sign of life, or its training does not get on."""


class Ending(NamedTuple):
    """How an attempt ended, in the words of its record."""

    end: End
    detail: str
    error: Exception
    is_final: bool = False


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


def import_ahead(experiment: Experiment) -> None:
    """Import Ray Train, which takes seconds, while this process waits for others."""
    if experiment.scaling.max_workers > 1:
        threading.Thread(target=importlib.import_module, args=("orchestrator.group",), daemon=True).start()


def prepare(record: RunRecord, *, workers: int | None = None) -> None:
    """Begin to start the processes that a run, or so many workers of several like it, will wait for."""
    if record.techniques.processor == "gpu":
        return
    scaling, need = record.experiment.scaling, resources_of(record)
    free = free_resources(without=set(draining_nodes()))
    nodes = [node for node, resources in sorted(free.items()) for _ in range(room({node: resources}, need))]
    start_ahead(nodes[: workers or scaling.max_workers], threads=scaling.num_threads)


@dataclass
class Watch:
    """Looks at the pulses of one attempt: finds hangs, hears of nodes that will go, and keeps the attempt's record."""

    record: RunRecord
    store: Store
    attempt: Attempt
    lease: Lease | None = None
    lost_nodes: set[str] = field(default_factory=set)
    stopping: StopReason | None = None
    workers: Sequence[Worker] = ()
    _warned_of: str | None = None
    _heard_at: dict[int, float] = field(default_factory=dict)
    _written_at: float = 0.0
    _looked_at: float = 0.0
    _room_since: float | None = None

    def __call__(self, pulses: Sequence[dict[str, Any] | None], workers: Sequence[Worker]) -> Exception | None:
        """Take note of what the workers said; return an error where one of them hangs."""
        now, self.workers = time.monotonic(), workers
        self._note(pulses, now)
        if now - self._looked_at > NODES_S:
            self._looked_at = now
            self._look_at_nodes(now)
            if self._warned_of:
                mend_store(self.store.settings)
        return self._taken_over() or self._hung(pulses, now)

    def close(self, end: End, detail: str) -> None:
        """Record how the attempt ended."""
        self.attempt = self.attempt.model_copy(update={"end": end, "detail": detail, "ended": time.time()})
        with suppress(StoreError):  # a store that is away costs the receipt a line, not the run its recovery
            write_attempt(self.store, self.record.run, self.attempt)

    def _note(self, pulses: Sequence[dict[str, Any] | None], now: float) -> None:
        first = pulses[0]
        self._heard_at |= {rank: now for rank, pulse in enumerate(pulses) if pulse is not None}
        if first is None:
            return
        self._warn(first["warning"])
        known = {name: first[name] for name in ("resumed_from", "resumed_step", "passed_over", "first_step_at")}
        step = max(first["step"], first["resumed_step"])
        if step > self.attempt.reached_step:
            known |= {"reached_step": step, "last_step_at": time.time() if first["first_step_at"] else None}
        before, self.attempt = self.attempt, self.attempt.model_copy(update=known)
        if before != self.attempt and now - self._written_at > RECORD_S:
            self._written_at = now
            with suppress(StoreError):
                write_attempt(self.store, self.record.run, self.attempt)

    def _warn(self, warning: str | None) -> None:
        """Tell what the first worker warns of, once while it lasts."""
        if warning and not self._warned_of:
            log.warning("run %s: %s", self.record.run, warning)
        elif self._warned_of and not warning:
            log.warning("run %s: the store takes its checkpoints again", self.record.run)
        self._warned_of = warning

    def _look_at_nodes(self, now: float) -> None:
        """Stop in good time before a node goes, or when there is room for more workers."""
        going = set(draining_nodes())
        if self.stopping is None and going & {w.node for w in self.workers}:
            self._ask_to_stop("preempted")
        scaling = self.record.experiment.scaling
        if self.stopping is not None or len(self.workers) >= scaling.max_workers:
            return
        free = room(free_resources(without=going), resources_of(self.record))
        self._room_since = (self._room_since or now) if free else None
        if self._room_since is not None and now - self._room_since >= GROW_S:
            self._ask_to_stop("resized")

    def _taken_over(self) -> Exception | None:
        """Another driver works on the run by now: this one was stopped, or cut off from the store, for too long."""
        if self.lease is None or not self.lease.lost.is_set():
            return None
        try:
            self.lease.check()
        except LeaseLostError as error:
            return error
        return None

    def _ask_to_stop(self, reason: StopReason) -> None:
        self.stopping = reason
        for worker in self.workers:
            worker.actor.ask_to_stop.remote(reason)

    def _hung(self, pulses: Sequence[dict[str, Any] | None], now: float) -> Exception | None:
        limit_s = self.record.experiment.scaling.hang_timeout_s
        silent = [rank for rank in range(len(pulses)) if now - self._heard_at.setdefault(rank, now) > limit_s]
        if silent:
            return HungError(f"{_ranks(silent)} gave no sign of life for {limit_s:g} s")
        stuck = stuck_ranks([pulse for pulse in pulses if pulse is not None], limit_s=limit_s)
        return HungError(f"{_ranks(stuck)} got no further for {limit_s:g} s") if stuck else None


_WORKING = ("compute", "evaluate")


def stuck_ranks(pulses: Sequence[Mapping[str, Any]], *, limit_s: float) -> list[int]:
    """Ranks whose training hangs although their process answers.

    A worker that waits for data or writes a checkpoint waits for the store, which has its own deadlines; the others
    then wait for it in the exchange. Where all that get no further are in the exchange, it is the exchange that hangs.
    """
    if any(pulse["phase"] in ("data", "checkpoint", "starting", "finished") for pulse in pulses):
        return []
    late = [
        rank
        for rank, pulse in enumerate(pulses)
        if pulse["silent_s"] > max(limit_s, SLOWER * pulse["slowest_step_s"] if pulse["phase"] in _WORKING else 0.0)
    ]
    working = [rank for rank in late if pulses[rank]["phase"] in _WORKING]
    if working:
        return working
    return late if len(late) == len(pulses) and all(pulse["phase"] == "exchange" for pulse in pulses) else []


def classify(error: Exception, watch: Watch) -> Ending:
    """Tell from what a group raised why it ended; the first own error of a worker counts, not what it did to others."""
    if isinstance(error, ClusterError):
        return Ending("error", str(error), error, is_final=True)
    errors = _errors_of(error)
    own = [e for e in errors.values() if not is_collateral(e)] or list(errors.values()) or [error]
    stopped = [e for e in own if isinstance(e, TrainingStoppedError)]
    if stopped:
        reason = watch.stopping or stopped[0].reason
        return Ending(reason, _STOPPED[reason], stopped[0])
    lost = {rank: e for rank, e in errors.items() if _is_death(e)}
    if lost:
        return _lost(lost, watch)
    first = own[0]
    told = _told(first, watch.record)
    if isinstance(first, HungError):
        return Ending("hung", str(first), told)
    from_worker = bool(getattr(error, "worker_failures", None)) or hasattr(first, "__notes__")
    is_final = isinstance(first, OrchestratorError) or not from_worker
    return Ending("error", str(first).splitlines()[0] if str(first) else type(first).__name__, told, is_final=is_final)


_STOPPED = {"preempted": "its node is to be taken away", "resized": "there was room for more workers"}


def room(free: Mapping[str, Mapping[str, float]], need: Mapping[str, float]) -> int:
    """How many workers fit into what is free on each node."""
    return sum(
        min(int(node.get(kind, 0.0) / amount + 1e-6) for kind, amount in need.items() if amount)
        for node in free.values()
    )


def free_resources(*, without: set[str]) -> dict[str, dict[str, float]]:
    """What nobody has reserved on each living node, except on those named."""
    state: Any = importlib.import_module("ray._private.state")
    found = state.available_resources_per_node()
    return {node: dict(resources) for node, resources in found.items() if node not in without}


def resources_of(record: RunRecord) -> dict[str, float]:
    """What one worker reserves."""
    cpus = {"CPU": record.experiment.scaling.cpus_per_worker}
    return cpus | ({"GPU": 1.0} if record.techniques.processor == "gpu" else {})


def _reserve(record: RunRecord) -> tuple[Any, int]:
    """Reserve room for as many workers as there are to be, or for an elastic run as there can be.

    Raises:
        ClusterError: not even the fewest fit in time.
    """
    util: Any = importlib.import_module("ray.util")
    scaling, need = record.experiment.scaling, resources_of(record)
    count = scaling.max_workers
    while True:
        if count > scaling.min_workers:
            count = max(scaling.min_workers, min(count, room(_living_nodes(), need)))
        place = util.placement_group([need] * count)
        if place.wait(timeout_seconds=scaling.start_timeout_s if count == scaling.min_workers else SMALLER_S):
            return place, count
        util.remove_placement_group(place)
        if count == scaling.min_workers:
            raise ClusterError(
                f"the cluster must place {count} workers within scaling.start_timeout_s "
                f"({scaling.start_timeout_s:g} s), got fewer. Is other work running? See `orchestrator status`."
            )
        count -= 1


def _living_nodes() -> dict[str, dict[str, float]]:
    """What each living node has in all, except those that are to be taken away."""
    ray: Any = importlib.import_module("ray")
    going = draining_nodes()
    return {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"] and n["NodeID"] not in going}


def _give_back(place: Any) -> None:
    util: Any = importlib.import_module("ray.util")
    util.remove_placement_group(place)


def _environment(job: Job, store: Store) -> dict[str, str]:
    return {**store_environment(store.settings), **job.environment}


def _start(record: RunRecord, job: Job, place: Any, workers: int, watch: Watch) -> dict[str, Any]:
    if workers == 1:
        return _run_alone(record, job, place, watch)
    group: Any = importlib.import_module("orchestrator.group")  # imports Ray Train: one worker does without
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
    ray: Any = importlib.import_module("ray")
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
        asked = actor.look.remote()
        while True:
            answered, _ = ray.wait([asked], timeout=LOOK_S)
            try:
                look = ray.get(asked) if answered else None
            except ray.exceptions.ActorUnavailableError:  # asked again, it is dead once its node is known to be
                look, asked = None, actor.look.remote()
                time.sleep(LOOK_S)
            error = watch([look and look.pulse], leased)
            if look and not look.is_running:
                ended = True
                if look.error is not None:
                    raise look.error
                result: dict[str, Any] = look.result
                return result
            if error:
                raise error
            if look:
                time.sleep(LOOK_S)
                asked = actor.look.remote()
    finally:
        (release_workers if ended else kill_workers)(leased)


def _errors_of(error: Exception) -> dict[int, Exception]:
    """Each worker's own error by rank, without what Ray Train wraps it in."""
    failures = getattr(error, "worker_failures", None)
    return {rank: unwrapped(e) for rank, e in failures.items()} if failures else {0: unwrapped(error)}


def unwrapped(error: Exception) -> Exception:
    """A worker's own error, without what Ray Train wraps it in, and with its traceback as a note."""
    for name in ("_base_exc", "health_check_failure", "controller_failure"):
        inner = getattr(error, name, None)
        if isinstance(inner, Exception):
            if name == "_base_exc" and not getattr(inner, "__notes__", None):
                inner.add_note(getattr(error, "_traceback_str", ""))
            return inner
    return error


def _is_death(error: Exception) -> bool:
    ray: Any = importlib.import_module("ray")
    names = ("WorkerHealthCheckTimeoutError", "WorkerGroupStartupFailedError")
    return isinstance(error, ray.exceptions.RayActorError) or type(error).__name__ in names


def is_collateral(error: Exception) -> bool:
    """Whether this worker only noticed that another had gone."""
    return any(word in str(error) for word in ("Connection closed by peer", "Connection reset", "gloo", "NCCL"))


def _lost(lost: Mapping[int, Exception], watch: Watch) -> Ending:
    """A process died, or was silent for too long: with its node, before its node was to go, or by itself."""
    rank, error = next(iter(lost.items()))
    node = watch.workers[rank].node if rank < len(watch.workers) else ""
    told = RunFailedError(f"run {watch.record.run} lost {_ranks(list(lost))}: {_first_line(error)}")
    if "Timeout" in type(error).__name__:
        limit_s = watch.record.experiment.scaling.hang_timeout_s
        return Ending("hung", f"{_ranks(list(lost))} gave no sign of life for {limit_s:g} s", told)
    if watch.stopping == "preempted" or getattr(error, "preempted", False) or node in draining_nodes():
        return Ending("preempted", f"{_ranks(list(lost))} went with its node", told)
    if node and node not in _alive_nodes():
        return Ending("node_lost", f"{_ranks(list(lost))} died with node {node[:8]}", told)
    return Ending("worker_lost", f"{_ranks(list(lost))} died: {_first_line(error)}", told)


def _alive_nodes() -> set[str]:
    ray: Any = importlib.import_module("ray")
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _told(error: Exception, record: RunRecord) -> Exception:
    """An error for the user: our own as they are, others with the traceback of the worker."""
    if isinstance(error, OrchestratorError) and not isinstance(error, RunFailedError):
        return error
    notes = getattr(error, "__notes__", [])
    text = (
        str(error)
        if isinstance(error, OrchestratorError)
        else "\n".join([f"{type(error).__name__}: {error}", *notes[:1]])
    )
    return RunFailedError(f"run {record.run} failed: {text}\nContinue it: orchestrator resume {record.run}.")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _ranks(ranks: Sequence[int]) -> str:
    return ("worker " if len(ranks) == 1 else "workers ") + ", ".join(map(str, ranks))

"""Watches the pulses of one attempt, and tells from them and from errors why it ended."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.errors import ClusterError, LeaseLostError, OrchestratorError, RunFailedError, StoreError
from cluster.lazy import imported
from cluster.local import mend_store
from cluster.nodes import alive_nodes, draining_nodes, free_resources
from cluster.process.typed import typed
from cluster.s3.store import Store
from orchestrator.driving.failures import HungError, is_collateral, unwrapped
from orchestrator.driving.room import resources_of, room
from orchestrator.driving.workers import Worker
from orchestrator.runs.attempts import Attempt, End, write_attempt
from orchestrator.runs.lease import Lease
from orchestrator.runs.pulse import StopReason, TrainingStoppedError
from orchestrator.runs.record import RunRecord

log = logging.getLogger(__name__)
NODES_S = 1.0  # between two looks at the cluster's nodes
GROW_S = 10.0  # so long must room for more workers last before a run stops to take it
RECORD_S = 1.0  # between two writes of an attempt's progress
SLOWER = 10.0  # a step that takes this many times longer than the slowest before is no longer slow, but hung


class Ending(NamedTuple):
    """How an attempt ended, in the words of its record."""

    end: End
    detail: str
    error: Exception
    is_final: bool = False


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
        heard = {rank: pulse for rank, pulse in enumerate(pulses) if pulse is not None}
        self._heard_at |= dict.fromkeys(heard, now)
        if not heard:
            return
        furthest = max(
            heard.values(), key=lambda pulse: int(pulse["step"])
        )  # survivors tell how far a dead worker came
        known = {name: furthest[name] for name in ("resumed_from", "resumed_step", "first_step_at")}
        if first := heard.get(0):  # the one that looks for checkpoints and writes them
            self._warn(first["warning"])
            known["passed_over"] = first["passed_over"]
        step = max(furthest["step"], furthest["resumed_step"])
        if step > self.attempt.reached_step:
            known |= {"reached_step": step, "last_step_at": time.time() if furthest["first_step_at"] else None}
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


def _errors_of(error: Exception) -> dict[int, Exception]:
    """Each worker's own error by rank, without what Ray Train wraps it in."""
    failures = getattr(error, "worker_failures", None)
    return {rank: unwrapped(e) for rank, e in failures.items()} if failures else {0: unwrapped(error)}


def _is_death(error: Exception) -> bool:
    ray: Any = imported("ray")
    names = ("WorkerHealthCheckTimeoutError", "WorkerGroupStartupFailedError")
    return isinstance(error, ray.exceptions.RayActorError) or type(error).__name__ in names


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
    if node and node not in alive_nodes():
        return Ending("node_lost", f"{_ranks(list(lost))} died with node {node[:8]}", told)
    return Ending("worker_lost", f"{_ranks(list(lost))} died: {_first_line(error)}", told)


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
    return RunFailedError(f"run {record.run} failed: {text}\nContinue it: `{typed('resume', record.run)}`.")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _ranks(ranks: Sequence[int]) -> str:
    return ("worker " if len(ranks) == 1 else "workers ") + ", ".join(map(str, ranks))

"""The process in which a training runs: an actor that outlives a run, and what is run in it."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from cluster.lazy import imported
from cluster.process.scoped import set_environment
from orchestrator.runs.pulse import PULSE, StopReason
from orchestrator.training.worker import leave_group, train_worker, warm_up

WATCH_S = 2.0
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
        warm_up()
        self._idle_since = time.monotonic()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def lease(self, owner: str, environment: Mapping[str, str], token: str | None = None) -> bool:
        """Belong to a driver's job from now on, unless another has been faster."""
        if self._owner is not None or self._reserved_for not in (None, token):
            return False
        self._reserved_for = None
        self._owner, self._alone = owner, None
        self._before = {name: os.environ.get(name) for name in environment}
        set_environment(environment)
        PULSE.begin()
        return True

    def release(self) -> bool:
        """Belong to nobody again; ``False`` where the training has not ended: this process is of no use."""
        if not _training_has_ended(RELEASE_S / 2):
            return False
        leave_group()
        set_environment(self._before)
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

    # What Ray Train's controller calls, see orchestrator/driving/ray_train.py

    def init_train_context(self, **context: Any) -> None:
        """Begin as a worker of Ray Train."""
        worker: Any = imported("ray.train.v2._internal.execution.worker_group.worker")
        self._train = worker.RayTrainWorker()
        self._train.init_train_context(**context)

    def get_metadata(self) -> Any:
        """Where this process is."""
        worker: Any = imported("ray.train.v2._internal.execution.worker_group.worker")
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
"""The TrainingProcess that runs in this process; empty in any other process."""


def is_abandoned() -> bool:
    """Whether this process works for somebody who has ended. It notices by itself, but only after seconds."""
    owners = [process._owner for process in _HERE if process._owner]
    return any(_is_dead(owner) for owner in owners)


class _Outcome:
    """What a function that runs in a thread has come to."""

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


def _training_has_ended(patience_s: float) -> bool:
    """Wait for the training's thread; one whose peers have gone notices at its next exchange."""
    ends = time.monotonic() + patience_s
    threads = [t for t in threading.enumerate() if t.name.startswith(("TrainingThread", "training"))]
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def _is_dead(owner: str) -> bool:
    """Whether an actor or a driver's job has ended, by its own will or not."""
    state: Any = imported("ray._private.state")
    kind, _, number = owner.partition(" ")
    if kind == "actor":
        return bool(state.actors(number).get("State", "DEAD") == "DEAD")
    return any(job["JobID"] == number and job["IsDead"] for job in state.jobs())


def _with_traceback(error: BaseException) -> BaseException:
    """Errors lose their traceback on the way to another process: carry it as a note."""
    import traceback

    error.add_note("".join(traceback.format_exception(error)[:-1]).strip())
    return error


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

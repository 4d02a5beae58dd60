"""The sign of life of a training process, and the request to stop it: written by the training's thread and its actor's.

The driver asks every worker's actor for it a few times a second. A worker whose training hangs still answers, and its
pulse tells where it has been since when.
"""

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Phase = Literal["starting", "data", "compute", "exchange", "evaluate", "checkpoint", "finished"]
StopReason = Literal["preempted", "resized"]


@dataclass
class Pulse:
    """Where this process's training is; there is one in a process, `PULSE`."""

    phase: Phase = "starting"
    step: int = 0
    """Steps done since the run began, of all epochs."""
    resumed_from: str | None = None
    """Key prefix of the checkpoint that this attempt began with."""
    resumed_step: int = 0
    passed_over: list[str] = field(default_factory=list)
    """Newer checkpoints that could not be used, and why."""
    warning: str | None = None
    """What the person who follows the run should hear now."""
    first_step_at: float | None = None
    """Unix time of this attempt's first weight update."""
    slowest_step_s: float = 0.0
    in_group: bool = False
    """Whether this process has joined a process group."""
    stop: StopReason | None = None
    """Set by the driver: end after the next step that all workers can agree on."""
    _since: float = field(default_factory=time.monotonic)

    def enter(self, phase: Phase) -> None:
        """Say what begins now."""
        self.phase, self._since = phase, time.monotonic()

    def end_step(self, step: int, *, seconds: float) -> None:
        """Say which step of the run is done, and how long it took."""
        self.step, self.slowest_step_s = step, max(self.slowest_step_s, seconds)

    def warn(self, warning: str) -> bool:
        """Keep a warning until it is cleared; return whether it is a new one."""
        is_new, self.warning = self.warning is None, self.warning or warning
        return is_new

    def begin(self) -> None:
        """Forget the training before: this process begins another."""
        self.__dict__.update(Pulse().__dict__)

    def read(self) -> dict[str, Any]:
        """A copy for the driver; `silent_s` is how long the phase has lasted, by this machine's own clock."""
        found = asdict(self)
        return found | {"silent_s": time.monotonic() - found.pop("_since")}


PULSE = Pulse()


class TrainingStoppedError(Exception):
    """Raised in every worker after the step and the checkpoint with which it ended on request."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason: StopReason = reason

"""What every trial of Ray Tune needs: an environment, a time limit, and how many lost processes are forgiven."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.process.scoped import scoped_environment, scoped_level

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep, not only this attempt
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has no metric
    "RAY_AIR_NEW_OUTPUT": "0",
}

FORGIVEN_LOSSES = 1  # deaths of the process that trains a cell: the first may be its node's fault


@contextmanager
def quiet_tune() -> Iterator[None]:
    """Let Ray Tune work as this project wants it, and say nothing: what matters of it, we say."""
    with scoped_environment(TUNE_ENVIRONMENT), scoped_level("ray.tune", logging.CRITICAL):
        yield


@contextmanager
def time_limit(minutes: float | None, tell: Callable[[], None]) -> Iterator[None]:
    """Call ``tell`` and end this process if the block has not ended in time: a thread that hangs cannot be ended."""
    if minutes is None:
        yield
        return

    def give_up() -> None:
        tell()
        os._exit(1)

    timer = threading.Timer(minutes * 60, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def lost_text(*, concurrency: str) -> str:
    """Why a training failed whose process died more often than is forgiven.

    Args:
        concurrency: the setting that says how many train at a time.
    """
    return (
        f"a training must not end its process, got {FORGIVEN_LOSSES + 1} deaths in a row. Its machine may be out of "
        f"memory: use a smaller model, batch or {concurrency}; or see the logs of the cluster."
    )


def timed_out_text(minutes: float, *, setting: str, what: str) -> str:
    """Why a training failed that took longer than `time_limit`.

    Args:
        minutes: the limit.
        setting: where it was set.
        what: the user can train alone to find out where it hangs.
    """
    return (
        f"a training must end within {setting} ({minutes:g}), got no end. "
        f"Allow more, or find out where it hangs: train {what} alone."
    )

"""What every trial of Ray Tune needs: an environment, a time limit, and how many lost processes are forgiven."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep, not only this attempt
    "RAY_AIR_NEW_OUTPUT": "0",
}

FORGIVEN_LOSSES = 1  # deaths of the process that trains a cell: the first may be its node's fault


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

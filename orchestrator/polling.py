"""Watches from a thread while work goes on: what has come of it, and whether it takes too long."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_S = 0.5
REST = 20  # pauses are this many times as long as a look took: the cores belong to the work


@contextmanager
def polling(look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` about twice a second, less often if it takes long, until the block ends, and once more then."""
    stop = threading.Event()

    def watch() -> None:
        pause_s = POLL_S
        while not stop.wait(pause_s):
            began = time.perf_counter()
            look()
            pause_s = max(POLL_S, REST * (time.perf_counter() - began))
        look()

    thread = threading.Thread(target=watch, name="polling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


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

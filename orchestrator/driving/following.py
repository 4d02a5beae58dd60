"""Follows from a thread what has come of some work while it goes on."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_S = 0.5
REST = 20  # pauses are this many times as long as the last look took, so looking uses at most 5 % of a core


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

"""Follows from a thread what has come of some work while it goes on."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.5
REST = 20  # pauses are this many times as long as the last look took, so looking uses at most 5 % of a core


@contextmanager
def following(read: Callable[[], Mapping[Hashable, T]], tell: Callable[[T], None] | None) -> Iterator[None]:
    """Tell of everything that is new or has changed, about twice a second, until the block ends, and once more then.

    Args:
        read: returns all that is there, each under a name that stays its own.
        tell: called with one thing at a time, in the order of ``read``; ``None``: nobody listens, so nobody looks.
    """
    if tell is None:
        yield
        return
    told: dict[Hashable, T] = {}

    def look() -> None:
        for name, found in read().items():
            if name not in told or told[name] != found:
                told[name] = found
                tell(found)

    with _polling(look):
        yield


@contextmanager
def _polling(look: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()

    def watch() -> None:
        pause_s = POLL_S
        while not stop.wait(pause_s):
            began = time.perf_counter()
            look()
            pause_s = max(POLL_S, REST * (time.perf_counter() - began))
        look()

    thread = threading.Thread(target=watch, name="following", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

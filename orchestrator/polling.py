"""Looks at something from a thread, again and again, while other work goes on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_S = 0.5


@contextmanager
def polling(look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` about twice a second until the block ends, and once more then."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_S):
            look()
        look()

    thread = threading.Thread(target=watch, name="polling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

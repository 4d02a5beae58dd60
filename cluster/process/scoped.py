"""What holds in this process for a while and is then put back: its environment, levels of loggers, signal handlers."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType


def set_environment(values: Mapping[str, str | None]) -> None:
    """Set variables of this process; ``None`` removes one."""
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@contextmanager
def scoped_environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables as `set_environment` does; after the block they are as before, whoever changed them meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    set_environment(values)
    try:
        yield
    finally:
        set_environment(before)


@contextmanager
def scoped_level(logger: str, level: int) -> Iterator[None]:
    """Let a logger say nothing below a level; serves as a decorator too."""
    found = logging.getLogger(logger)
    before = found.level
    found.setLevel(level)
    try:
        yield
    finally:
        found.setLevel(before)


@contextmanager
def scoped_handler(
    number: signal.Signals, handle: Callable[[int, FrameType | None], object] | None = None
) -> Iterator[None]:
    """Answer a signal with a function; only the main thread can, and in another nothing changes.

    Args:
        number: of the signal.
        handle: ``None`` leaves the handler as it is, and undoes what the block does to it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number)
    if handle is not None:
        signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)

"""What holds in this process for a while and is then put back: variables of its environment, levels of loggers."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


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

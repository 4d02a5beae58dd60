"""Imports at the moment of need what takes seconds to import, or what is private to Ray."""

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def imported(name: str) -> Any:
    """Import a module and return it. Type checkers do not look into it: Ray's types cover little of what it returns."""
    return importlib.import_module(name)


@contextmanager
def importing(name: str) -> Iterator[None]:
    """Import a module in the background while the block works; it is there when the block ends."""
    thread = threading.Thread(target=imported, args=(name,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()  # an interpreter that ends while a thread imports aborts

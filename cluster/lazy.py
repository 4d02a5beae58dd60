"""Imports at the moment of need what takes seconds to import, or what is private to Ray."""

import importlib
from typing import Any


def imported(name: str) -> Any:
    """Import a module and return it. Type checkers do not look into it: Ray's types cover little of what it returns."""
    return importlib.import_module(name)

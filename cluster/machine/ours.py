"""Runs at the first import of each of our packages, as a file: finds what stands in the way of one of them.

The packages have names that others use too. A `models.py` beside a person's script, or a folder `cluster` on their
PYTHONPATH, would be imported instead of ours, and fail somewhere inside with an error that explains nothing.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

OURS = ("cluster", "models", "orchestrator", "serving")
HERE = Path(__file__).absolute().parents[2]


def in_the_way(folder: Path) -> tuple[str, str] | None:
    """Return the name of the first package that would not be imported from a folder, and the file that would be."""
    for name in OURS:
        found = _origin(name)
        if found is None or not (folder / name / "__init__.py").samefile(found):
            return name, found or "nothing"
    return None


def _origin(name: str) -> str | None:
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    spec = find_spec(name)
    return spec.origin if spec else None


def refuse_others() -> None:
    """End the process with one line if one of the packages is not ours; an exception would show a traceback."""
    found = in_the_way(HERE)
    if found is None:
        return
    name, file = found
    sys.stderr.write(
        f"error: the package `{name}` must be the one of orchestrator at {HERE / name}, got {file}. Rename that file "
        "or folder, or start from another folder and take it off PYTHONPATH.\n"
    )
    raise SystemExit(2)


refuse_others()

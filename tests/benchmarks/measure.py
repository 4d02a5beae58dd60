"""What every benchmark prints: a readable table, and one JSON object as its last line."""

import importlib.metadata
import json
import platform
import statistics
from collections.abc import Mapping, Sequence

PACKAGES = ("torch", "ray", "numpy", "pyarrow")


def print_report(
    benchmark: str,
    *,
    ratios: Mapping[str, Sequence[float]],
    values: Mapping[str, Sequence[float]],
    notes: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Print median, least and most of every figure, then all of it as JSON.

    Args:
        benchmark: its name.
        ratios: one entry for each pair of runs made side by side.
        values: the measurements behind them, with their unit in the name.
        notes: why something is not among them.
        versions: of packages in other environments.
    """
    for name, found in {**ratios, **values}.items():
        spread = f"{min(found):.4g} … {max(found):.4g}"
        print(f"{name:<32} median {statistics.median(found):>10.4g}   {spread}   n = {len(found)}")
    for name, why in (notes or {}).items():
        print(f"{name:<32} absent: {why}")
    own_versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    result = {
        "benchmark": benchmark,
        "ratios": {name: _summary(found) for name, found in ratios.items()},
        "values": {name: _summary(found) for name, found in values.items()},
        "n": max(len(found) for found in ratios.values()),
        "absent": dict(notes or {}),
        "versions": {**own_versions, **(versions or {})},
    }
    print(json.dumps(result))


def _summary(found: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}

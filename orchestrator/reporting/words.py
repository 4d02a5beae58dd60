"""Numbers, sizes and durations as people write them."""

from collections.abc import Mapping
from typing import Any


def number(value: Any) -> str:
    """A number as a person writes it: 4 significant digits, thousands apart."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def data_value(value: float) -> str:
    """A value of a dataset: as `number`, but with its digits together, for it may be a year or an id."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def metrics_line(metrics: Mapping[str, float]) -> str:
    """`accuracy 0.9722 · loss 0.103`."""
    return " · ".join(f"{name} {number(value)}" for name, value in metrics.items())


def size(num_bytes: float) -> str:
    """Bytes in the largest fitting unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as a person would say it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

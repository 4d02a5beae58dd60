"""From values to places on an axis, with round ticks."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

LARGEST = 1e300  # drawn: sums and differences of larger numbers overflow
LOG_FROM = 30.0  # largest to smallest value, from which on a scale of equal steps hides the small ones
MARGIN = 0.05  # of a scale, free at both ends


class Tick(NamedTuple):
    """A value on an axis."""

    at: float
    label: str


class Scale(NamedTuple):
    """Maps values to percent of a length."""

    low: float
    high: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Percent of the way from ``low`` to ``high``."""
        low, high, place = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        return round(100 * (drawable(place) - low) / (high - low), 2)

    def ticks(self, most: int = 6, *, text: Callable[[float], str] = "{:.4g}".format) -> tuple[Tick, ...]:
        """At most about ``most`` round values, written by ``text``."""
        values = _log_ticks(self.low, self.high, most) if self.is_log else _linear_ticks(self.low, self.high, most)
        return tuple(Tick(self.at(value), text(value)) for value in values)


def scale_of(values: Iterable[float], *, can_be_log: bool = False) -> Scale:
    """A scale that holds all finite ``values``, with a margin that does not go below zero for its sake."""
    found = [drawable(v) for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(found), max(found)
    if can_be_log and low > 0 and high / low >= LOG_FROM:
        margin = (high / low) ** MARGIN
        return Scale(low / margin, high * margin, is_log=True)
    margin = (high - low) * MARGIN or abs(high) * MARGIN or 0.5
    return Scale(0.0 if 0 <= low < margin else low - margin, high + margin)


def drawable(value: float) -> float:
    """Bring a value into the range that a chart can show."""
    return max(-LARGEST, min(LARGEST, value))


def epoch_scale(series: Iterable[Sequence[Any]]) -> Scale:
    """One for places from 1 to the end of the longest series."""
    longest = max(map(len, series), default=1)
    return Scale(1.0, float(longest)) if longest > 1 else Scale(0.5, 1.5)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten, or also their double and fivefold where there are few."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    if last - first >= 1:
        return [10.0**power for power in range(first, last + 1, max(1, math.ceil((last - first + 1) / most)))]
    return [
        v for power in range(first - 1, last + 1) for factor in (1, 2, 5) if low <= (v := factor * 10.0**power) <= high
    ]

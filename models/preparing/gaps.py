"""The steps of a series: what is usual, where some are missing, and filling them in."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.preparing.dates import Micros
from models.preparing.rows import MISSING_WORDS
from models.preparing.steps import TimeStep, described

# T = steps, C = channels

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

# In a table, case counts: `none` may be a category of a house. A series has numbers only.
MISSING = ("", *dict.fromkeys(word.lower() for word in MISSING_WORDS))
"""What stands for a missing value of a series, once it is in lower case."""

_LONGEST_MONTH = 28 * 86_400 * 10**6  # dates on the same day of months are this far apart or more


class Gaps(NamedTuple):
    """Where steps are missing."""

    step: TimeStep
    """The usual one."""
    missing: Ints
    """[T - 1], steps that are missing between a row and the next."""

    @property
    def places(self) -> int:
        """Number of gaps."""
        return int((self.missing > 0).sum())

    @property
    def largest(self) -> str:
        """The largest distance of two rows, in words."""
        return described((int(self.missing.max(initial=0)) + 1) * self.step.size, self.step.unit)

    @property
    def share(self) -> float:
        """How many of all steps are missing."""
        return float(self.missing.sum() / (self.missing.sum() + len(self.missing) + 1))


def find_gaps(times: Micros, step: TimeStep | None = None) -> Gaps:
    """Return the usual step of increasing times, the most frequent one, and how many are missing between rows.

    A distance of less than one and a half steps is no gap, so that times may be inexact.
    """
    if step is None:
        step = usual_step([times])
    ticks = _months(times) if step.unit == "months" else times
    return Gaps(step, np.maximum(0, np.floor(np.diff(ticks) / step.size + 0.5).astype(np.int64) - 1))


def usual_step(series: Sequence[Micros]) -> TimeStep:
    """Return the most frequent step of one or more series, in months if all rows are on the same day of them."""
    diffs = np.concatenate([np.diff(times) for times in series])
    if len(diffs) and diffs.min() >= _LONGEST_MONTH and all(map(_is_monthly, series)):
        diffs = np.concatenate([np.diff(_months(times)) for times in series])
        return TimeStep(size=_mode(diffs), unit="months")
    return TimeStep(size=_mode(diffs))


def usual_count(series: Sequence[Ints]) -> TimeStep:
    """Return the most frequent step of one or more series whose rows are counted, and not dated."""
    return TimeStep(size=_mode(np.concatenate([np.diff(counts) for counts in series])), unit="counts")


def spread_out(rows_TC: Floats, missing: Ints) -> tuple[Floats, Ints]:
    """Return the rows with empty ones (NaN) where steps are missing, and the new place of every row."""
    places = np.arange(len(rows_TC)) + np.concatenate([[0], np.cumsum(missing)])
    wide_TC = np.full((int(places[-1]) + 1, rows_TC.shape[1]), np.nan)
    wide_TC[places] = rows_TC
    return wide_TC, places


def fill(rows_TC: Floats, edges: Sequence[int] = ()) -> Floats:
    """Put a straight line in the place of each NaN, from the value before to the value after.

    Before the first value its column holds that value, after the last one the last. A row before one of the ``edges``
    never takes anything from a row after it: it repeats the value before.

    Raises:
        ValueError: naming a column without a value before the first edge.
    """
    filled_TC = rows_TC.copy()
    stops = np.array([*edges, len(rows_TC)])
    rows = np.arange(len(rows_TC))
    end_of = stops[np.searchsorted(stops, rows, side="right").clip(max=len(stops) - 1)]
    for column, values in enumerate(rows_TC.T):
        known = ~np.isnan(values)
        if known.all():
            continue
        before = np.maximum.accumulate(np.where(known, rows, -1))
        after = np.minimum.accumulate(np.where(known, rows, len(rows))[::-1])[::-1]
        if ((before < 0) & (after >= end_of)).any():
            raise ValueError(column)
        after = np.where(after >= end_of, before, after)
        before = np.where(before < 0, after, before)
        weight = (rows - before) / np.maximum(1, after - before)
        line = values[before] + (values[after] - values[before]) * weight
        filled_TC[:, column] = np.where(known, values, line)
    return filled_TC


def _mode(diffs: Ints) -> int:
    values, counts = np.unique(diffs, return_counts=True)
    return int(values[counts.argmax()]) if len(values) else 1


def _is_monthly(times: Micros) -> bool:
    """Whether all times are on the same day of a month, or all on its last day, at the same time."""
    dates = times.view("datetime64[us]")
    months = dates.astype("datetime64[M]")
    into, until = dates - months, (months + 1).astype("datetime64[us]") - dates
    return bool((into == into[0]).all() or (until == until[0]).all())


def _months(times: Micros) -> Ints:
    return times.view("datetime64[us]").astype("datetime64[M]").astype(np.int64)

"""What is lost when numbers are stored in 32 bits, and the centre around which they are stored so that nothing is."""

import numpy as np

from orchestrator.data.columns import Array

_FEW = 0.01  # share of different values that may fall together if they are no whole numbers
_NOISE = 1e-12  # of a value or of their spread: what is left of sums in 64 bits, as in 0.1 + 0.2
DECIMALS = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
_FIRST = 1000  # values that are looked at before all are
LEVELS = 2.0**23  # that 32 bits tell apart within a factor of two


def merged(values: Array) -> tuple[float, float] | None:
    """Return two different numbers that would be one in 32 bits, if that matters.

    It does if they are whole. Fractions are measured: they may differ by the noise of sums in 64 bits, and so many of a
    few million may fall together as fall together by chance.

    Args:
        values: [N] float64; NaN is passed over.
    """
    with np.errstate(over="ignore"):
        if np.array_equal(values.astype(np.float32), values, equal_nan=True) or _has_few_digits(values):
            return None
        present = np.sort(values[~np.isnan(values)])
        differ = present[1:] != present[:-1]
        stored = present.astype(np.float32)
    lost = np.flatnonzero(differ & (stored[1:] == stored[:-1]))
    if not len(lost):
        return None
    different = int(differ.sum()) + 1
    if not (present == np.rint(present)).all():
        scale = np.maximum(np.abs(present[lost]), present.std())
        lost = lost[present[lost + 1] - present[lost] > _NOISE * scale]
        if len(lost) <= max(_FEW, different / LEVELS) * different:
            return None
    return float(present[lost[0]]), float(present[lost[0] + 1])


def _has_few_digits(values: Array) -> bool:
    """Whether these are decimal fractions of so few digits that 32 bits tell any two of them apart."""
    for factor in DECIMALS:
        if all(
            np.array_equal(np.rint(some * factor) / factor, some, equal_nan=True) for some in (values[:_FIRST], values)
        ):
            return bool(max(np.nanmax(values), -np.nanmin(values)) * factor < LEVELS)
    return False


def centre_of(values: Array, training: Array) -> float:
    """Return what to subtract before numbers are stored in 32 bits; 0 if nothing is lost without.

    Args:
        values: [N] float64; NaN is passed over.
        training: those of them that train.
    """
    if merged(values) is None:
        return 0.0
    return float(np.rint(np.nanmean(training)))

"""What a sweep showed: every arm's mean with its interval, and a winner only where the evidence names one."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

CONFIDENCE = 0.95


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cell(_Frozen):
    """One training of a sweep: an arm with one seed. One object in the store, written once."""

    arm: str
    seed: int
    run: str
    """The run that holds its weights."""
    state: str
    """`finished` or `failed`."""
    metrics: dict[str, float] = {}
    seconds: float
    error: str | None = None


class ArmSummary(_Frozen):
    """One row of the table."""

    arm: str
    settings: dict[str, Any]
    mean: float | None
    low: float | None
    """Lower end of the 95 % interval of the mean (Student's t over seeds); ``None`` with fewer than two seeds."""
    high: float | None
    seconds: float
    """Mean per training."""
    finished: int
    failed: int


class Ledger(_Frozen):
    """The result of a sweep."""

    metric: str
    higher_is_better: bool
    arms: list[ArmSummary]
    """Best mean first."""
    winner: str | None
    """The arm that beats every other one with 95 % confidence over all comparisons together."""
    reason: str
    """Why this is the winner, or why there is none."""
    best_run: str | None
    """The best training of the arm with the best mean."""


def summarize(
    cells: Sequence[Cell], *, arms: Mapping[str, dict[str, Any]], metric: str, higher_is_better: bool
) -> Ledger:
    """Turn finished cells into the table and the verdict. The order of ``cells`` does not matter.

    Args:
        cells: finished and failed trainings; a failed one, or one whose metric is no number, counts for nothing.
        arms: settings of every arm, also of those without a single good cell.
        metric: name in `Cell.metrics`.
        higher_is_better: whether the largest mean is the best.
    """
    values = {arm: _values(cells, arm, metric) for arm in arms}
    rows = [_row(arm, arms[arm], values[arm], [c for c in cells if c.arm == arm]) for arm in arms]
    sign = -1 if higher_is_better else 1
    rows.sort(key=lambda r: (r.mean is None, sign * (r.mean or 0.0), r.arm))
    winner, reason = _verdict(rows, values, sign)
    return Ledger(
        metric=metric,
        higher_is_better=higher_is_better,
        arms=rows,
        winner=winner,
        reason=reason,
        best_run=_best_run(cells, rows[0].arm, metric, sign) if rows and rows[0].mean is not None else None,
    )


def interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's t interval of the mean; ``None`` with fewer than two values."""
    if len(values) < 2:
        return None
    from scipy import stats

    half = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return float(mean - half), float(mean + half)


def _values(cells: Sequence[Cell], arm: str, metric: str) -> dict[int, float]:
    """Seed -> metric, of the arm's good cells."""
    found = {c.seed: c.metrics.get(metric, math.nan) for c in cells if c.arm == arm and c.state == "finished"}
    return {seed: value for seed, value in sorted(found.items()) if math.isfinite(value)}


def _row(arm: str, settings: dict[str, Any], values: Mapping[int, float], cells: Sequence[Cell]) -> ArmSummary:
    bounds = interval(list(values.values()))
    return ArmSummary(
        arm=arm,
        settings=settings,
        mean=statistics.fmean(values.values()) if values else None,
        low=bounds and bounds[0],
        high=bounds and bounds[1],
        seconds=statistics.fmean(c.seconds for c in cells) if cells else 0.0,
        finished=len(values),
        failed=len(cells) - len(values),
    )


def _verdict(
    rows: Sequence[ArmSummary], values: Mapping[str, Mapping[int, float]], sign: int
) -> tuple[str | None, str]:
    """The best arm wins when its paired difference to each other arm stays on one side of zero.

    Arms share their seeds (and with them data order and initial weights), so differences are taken seed by seed;
    Bonferroni's correction keeps the error of all comparisons together at 5 %.
    """
    good = [r for r in rows if r.mean is not None]
    if len(good) < 2:
        return None, "fewer than two arms have a result"
    best, others = good[0], good[1:]
    confidence = 1 - (1 - CONFIDENCE) / len(others)
    close: list[str] = []
    for other in others:
        seeds = sorted(set(values[best.arm]) & set(values[other.arm]))
        bounds = interval([sign * (values[other.arm][s] - values[best.arm][s]) for s in seeds], confidence=confidence)
        if bounds is None:
            return None, "one seed tells nothing of chance: set sweep.seeds to 2 or more"
        if bounds[0] <= 0:
            close.append(other.arm)
    if close:
        named = ", ".join(close) if len(close) <= 3 else f"{len(close)} of {len(others)} others"
        return None, f"{best.arm} has the best mean, but {named} may be as good"
    return best.arm, f"its paired difference to every other arm excludes zero ({CONFIDENCE:.0%}, Bonferroni)"


def _best_run(cells: Sequence[Cell], arm: str, metric: str, sign: int) -> str:
    good = [
        c for c in cells if c.arm == arm and c.state == "finished" and math.isfinite(c.metrics.get(metric, math.nan))
    ]
    return min(good, key=lambda c: (sign * c.metrics[metric], c.seed)).run

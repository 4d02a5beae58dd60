"""What a sweep showed: which choice mattered, by how much and how surely, and a winner only where evidence names one.

How the numbers are made:

- *Model.* value = seed + factors + interactions + noise, by least squares with sum contrasts. The seed is a block: what
  it does to all arms alike is no noise. Where seeds repeat every arm, interactions of three and more factors are in the
  model, so that the residual is what repetitions differ by and nothing else; with one seed they are the residual. A
  term that the trainings cannot tell from others (fractions, failed arms) is named and left out.
- *Effects* are differences of means over all arms in equal shares, in the unit of the response: the deep level minus
  the traditional one, else the later minus the earlier. An interaction is a difference of two such differences.
- *Intervals.* Each effect has one that holds with 95 % for itself (Student's t), and a wider one that holds with 95 %
  together with those of all other effects of the response (Šidák 1967: valid however the estimates are correlated). A
  level is better only where the wider one excludes zero. In a balanced sweep they hold though some arms spread more
  than others: an effect's variance is the mean of the arms' variances.
- *Missing.* Failed cells are counted, named and left out, never imputed. Sums of squares are of type III: each source
  given all others.
- *Not applicable.* A factor that some arms do not have is estimated from the others.
- *Time to a target* is censored where a training never reaches it. All times are then counted up to the same horizon,
  see `restrict`.
"""

import functools
import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import special

from models.config import PRESETS
from orchestrator.design import level_name

CONFIDENCE = 0.95
ROUNDING = 1e-12  # of the largest value: smaller differences are what double precision leaves of none
DEPENDENT = 1e-9  # of a column's length: what is left of it, when it is a sum of others

SEED = "seed"
OTHER = "other interactions"
RESIDUAL = "residual"

Key = tuple[str, int]
"""Arm and seed."""
Array = NDArray[np.float64]


class _Frozen(BaseModel):
    # JSON has no NaN: without this it would come back as null, and the cell as damaged
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


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
    history: list[dict[str, float]] = []
    """Metrics of every epoch, with the `seconds` that it took."""
    error: str | None = None


class Mean(_Frozen):
    """A mean with its 95 % interval."""

    mean: float
    low: float | None
    """``None`` where nothing tells of chance."""
    high: float | None


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
    reached: int | None = None
    """Trainings that reached the target; ``None`` without a target."""
    responses: dict[str, Mean] = {}
    """Every response with its interval by Student's t over seeds; those to a target up to `Response.horizon`."""


class Effect(_Frozen):
    """What changing one factor does, or how much that depends on a second one."""

    factors: tuple[str, ...]
    """One: a main effect. Two: an interaction: effect of the first at ``to[1]`` minus the same at ``base[1]``."""
    base: tuple[str, ...]
    """Level of each factor that is subtracted."""
    to: tuple[str, ...]
    """Level of each factor that it is subtracted from."""
    estimate: float
    """In the unit of the response."""
    low: float | None
    """95 % interval of this effect by itself; ``None`` without a residual."""
    high: float | None
    simultaneous_low: float | None
    """Interval that holds with 95 % together with those of all other effects of the response."""
    simultaneous_high: float | None
    p: float | None
    adjusted_p: float | None
    """Corrected for all effects of the response; below 0.05 exactly where the simultaneous interval excludes zero."""
    clear: bool
    """Whether the simultaneous interval excludes zero."""
    better: str | None
    """The better of two levels, of a main effect that is clear."""

    @property
    def name(self) -> str:
        """Such as ``relu − tanh`` or ``(relu − tanh) × (normalized − constant)``."""
        parts = [f"{to} − {base}" for to, base in zip(self.to, self.base, strict=True)]
        return parts[0] if len(parts) == 1 else " × ".join(f"({part})" for part in parts)


class Variance(_Frozen):
    """One source of differences: a row of the analysis of variance, type III."""

    source: str
    """A factor, `A × B`, or one of `SEED`, `OTHER` and `RESIDUAL`."""
    factors: tuple[str, ...]
    """None of the last three."""
    degrees_of_freedom: int
    sum_of_squares: float
    eta_squared: float | None
    """Share of all squared deviations from the mean; ``None`` where there are none."""
    partial_eta_squared: float | None
    """Share of what this source and the residual have together; ``None`` without a residual."""
    f: float | None
    p: float | None
    """Of the whole source, not corrected for the number of sources."""


class LevelMean(Mean):
    """Mean of a level, or of a pair of levels, over all arms in equal shares; for interaction plots."""

    factors: tuple[str, ...]
    levels: tuple[str, ...]


class Response(_Frozen):
    """What the sweep showed of one quantity."""

    name: str
    """The metric, `seconds`, `seconds_to_target`, `dollars` or `dollars_to_target`."""
    unit: str
    higher_is_better: bool
    cells: int
    """Trainings that the numbers are from."""
    missing: int = 0
    """Trainings without a value, left out."""
    censored: int = 0
    """Trainings that never reached the target; they count with ``horizon``."""
    horizon: float | None = None
    """Up to where the way to the target is counted; ``None`` if all reached it."""
    effects: list[Effect]
    variance: list[Variance]
    means: list[LevelMean]
    residual_std: float | None
    residual_degrees_of_freedom: int
    not_estimable: dict[str, str]
    """Factor, or `A × B`, whose effect these trainings cannot tell -> why."""
    notes: list[str]
    """What a reader must know to read the numbers, in words."""

    @property
    def direction(self) -> str:
        """How to read the sign of an effect."""
        return f"positive is {'better' if self.higher_is_better else 'worse'}"


class Comparison(_Frozen):
    """`traditional` against `deep` as a whole: all techniques that vary change at once."""

    response: str
    techniques: tuple[str, ...]
    arms: list[tuple[str, str]]
    """Pairs of a traditional and a deep arm that are otherwise alike."""
    seeds: int
    """Seeds that all of these arms have."""
    estimate: float
    """Deep minus traditional, in the unit of the response: mean over pairs and seeds."""
    low: float | None
    """95 % interval (Student's t over seeds); ``None`` with fewer than two."""
    high: float | None
    better: str | None
    """`traditional` or `deep`, where the interval excludes zero."""


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
    target: float | None = None
    """Quality that the responses `..._to_target` are counted to."""
    factors: dict[str, list[str]] = {}
    """Levels of every factor that varies: traditional first, deep last."""
    responses: list[Response] = []
    """The metric first."""
    traditional_against_deep: list[Comparison] = []
    """One for each response, where both are in the sweep."""
    notes: list[str] = []
    """Failed arms and what else concerns all responses, in words."""


def summarize(
    cells: Sequence[Cell],
    *,
    arms: Mapping[str, dict[str, Any]],
    metric: str,
    higher_is_better: bool,
    target: float | None = None,
    dollars_per_hour: Mapping[str, float] | None = None,
    factors: Mapping[str, Sequence[Any]] | None = None,
) -> Ledger:
    """Turn finished cells into the table, the effects and the verdict. The order of ``cells`` does not matter.

    Args:
        cells: finished and failed trainings; a failed one, or one whose metric is no number, counts for nothing.
        arms: settings of every arm, also of those without a single good cell.
        metric: name in `Cell.metrics` and in `Cell.history`.
        higher_is_better: whether the largest mean is the best.
        target: quality to which seconds and dollars are counted as well.
        dollars_per_hour: price of all that one training of an arm holds (its workers); without it there are no dollars.
        factors: levels in the order in which they are to be compared; default: as the arms name them.
    """
    cells = sorted((c for c in cells if c.arm in arms), key=lambda c: (c.arm, c.seed))
    good = [c for c in cells if c.state == "finished" and math.isfinite(c.metrics.get(metric, math.nan))]
    values = {arm: {c.seed: c.metrics[metric] for c in good if c.arm == arm} for arm in arms}
    way = _way_to(target, good, metric=metric, higher_is_better=higher_is_better)
    quality = _Measured(metric, "", higher_is_better, {(c.arm, c.seed): c.metrics[metric] for c in good})
    measured = [quality, *_costs(good, way, dollars_per_hour)]
    rows = [_row(arm, arms[arm], values[arm], [c for c in cells if c.arm == arm]) for arm in arms]
    rows = [row.model_copy(update=_arm_responses(row.arm, measured, way)) for row in rows]
    sign = -1 if higher_is_better else 1
    rows.sort(key=lambda r: (r.mean is None, sign * (r.mean or 0.0), r.arm))
    winner, reason = _verdict(rows, values, sign)
    return Ledger(
        metric=metric,
        higher_is_better=higher_is_better,
        arms=rows,
        winner=winner,
        reason=reason,
        best_run=_best_run(good, rows[0].arm, metric, sign) if rows and rows[0].mean is not None else None,
        target=target,
        factors=_grid(arms, factors).levels,
        responses=[_respond(one, arms, factors, planned=len(cells)) for one in measured],
        traditional_against_deep=[c for one in measured if (c := _compare_presets(one, arms))],
        notes=[*_failures(cells, good, arms), *_target_notes(way, metric, target)],
    )


def analyze(
    values: Mapping[Key, float],
    *,
    arms: Mapping[str, Mapping[str, Any]],
    name: str,
    higher_is_better: bool,
    unit: str = "",
    factors: Mapping[str, Sequence[Any]] | None = None,
) -> Response:
    """Main effects, two-factor interactions and their shares of the variance.

    Args:
        values: finite numbers; whatever arm and seed is missing is left out of the model.
        arms: settings of every arm; an arm lacks the factors that do not apply to it.
        name: of the response.
        higher_is_better: which sign is an improvement.
        unit: such as ``s``.
        factors: see `summarize`.
    """
    observed = {arm for arm, _ in values}
    grid = _grid({arm: settings for arm, settings in arms.items() if arm in observed}, factors)
    lost = _lost_levels(_grid(arms, factors), grid)
    if not values:
        return _unknown(name, unit, higher_is_better=higher_is_better, lost=lost)
    fit = _fit(values, grid)
    effects = _effects(fit, higher_is_better=higher_is_better)
    return Response(
        name=name,
        unit=unit,
        higher_is_better=higher_is_better,
        cells=len(values),
        effects=effects,
        variance=_variances(fit),
        means=_level_means(fit),
        residual_std=None if fit.noise is None else math.sqrt(fit.noise),
        residual_degrees_of_freedom=fit.degrees_of_freedom,
        not_estimable={k: v for k, v in lost.items() if k not in grid.levels} | fit.not_estimable,
        notes=[*lost.values(), *fit.not_estimable.values(), *_fit_notes(fit, effects)],
    )


def seconds_to_target(
    history: Sequence[Mapping[str, float]], target: float, *, metric: str, higher_is_better: bool
) -> float | None:
    """Training seconds until the end of the first epoch whose ``metric`` is as good as ``target``.

    Args:
        history: an entry for each epoch, with its `seconds` (without evaluation) and metrics of the validation split.
        target: quality to reach.
        metric: its name in ``history``.
        higher_is_better: whether the target is reached from below.

    Returns:
        Seconds; ``None`` if the target was never reached: all that is known then is that it takes longer.
    """
    sign = 1 if higher_is_better else -1
    seconds = 0.0
    for entry in history:
        seconds += entry["seconds"]
        if sign * entry[metric] >= sign * target:
            return seconds
    return None


def restrict(found: Mapping[Key, float | None], spent: Mapping[Key, float]) -> tuple[dict[Key, float], float | None]:
    """Make censored times comparable: count all of them up to the same horizon.

    The horizon is the least that any training spent without reaching the target. Until then every training was watched,
    so the mean of restricted times (Royston and Parmar 2013) needs no guess of what would have followed; what lies
    beyond the horizon is not seen.

    Args:
        found: way to the target; ``None`` where it was not reached.
        spent: how far each training went.

    Returns:
        The restricted ways, and the horizon: ``None`` if all reached the target.
    """
    horizon = min((spent[key] for key, value in found.items() if value is None), default=None)
    limit = math.inf if horizon is None else horizon
    return {key: limit if value is None else min(limit, value) for key, value in found.items()}, horizon


def interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's t interval of the mean; ``None`` with fewer than two values."""
    if len(values) < 2:
        return None
    half = _t_quantile(len(values) - 1, confidence) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return float(mean - half), float(mean + half)


# --------------------------------------------------------------------------------------------------- what is measured


class _Measured(NamedTuple):
    """One response of every cell that has it."""

    name: str
    unit: str
    higher_is_better: bool
    values: dict[Key, float]
    censored: int = 0
    horizon: float | None = None


class _Way(NamedTuple):
    """Seconds to the target, ``None`` where it was not reached, and all seconds of those trainings."""

    found: dict[Key, float | None]
    spent: dict[Key, float]


def _way_to(target: float | None, good: Sequence[Cell], *, metric: str, higher_is_better: bool) -> _Way | None:
    if target is None:
        return None
    watched = {(c.arm, c.seed): c.history for c in good if c.history and metric in c.history[0]}
    return _Way(
        {k: seconds_to_target(h, target, metric=metric, higher_is_better=higher_is_better) for k, h in watched.items()},
        {k: math.fsum(entry["seconds"] for entry in h) for k, h in watched.items()},
    )


def _costs(good: Sequence[Cell], way: _Way | None, dollars_per_hour: Mapping[str, float] | None) -> Iterator[_Measured]:
    """Seconds and dollars, of whole trainings and to the target."""
    per_second = {arm: price / 3600 for arm, price in (dollars_per_hour or {}).items()}
    for name, unit, rates in (("seconds", "s", {c.arm: 1.0 for c in good}), ("dollars", "$", per_second)):
        whole = {(c.arm, c.seed): c.seconds * rates[c.arm] for c in good if c.arm in rates}
        if whole:
            yield _Measured(name, unit, False, whole)
        if way is None:
            continue
        found = {k: v if v is None else v * rates[k[0]] for k, v in way.found.items() if k[0] in rates}
        if any(value is not None for value in found.values()):
            values, horizon = restrict(found, {k: way.spent[k] * rates[k[0]] for k in found})
            censored = sum(value is None for value in found.values())
            yield _Measured(f"{name}_to_target", unit, False, values, censored, horizon)


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


def _arm_responses(arm: str, measured: Sequence[_Measured], way: _Way | None) -> dict[str, Any]:
    """What a row says beside the metric."""
    found = {one.name: [value for key, value in one.values.items() if key[0] == arm] for one in measured}
    reached = way and sum(value is not None for key, value in way.found.items() if key[0] == arm)
    return {"reached": reached, "responses": {name: _mean(values) for name, values in found.items() if values}}


def _mean(values: Sequence[float]) -> Mean:
    low, high = interval(values) or (None, None)
    return Mean(mean=statistics.fmean(values), low=low, high=high)


def _respond(
    one: _Measured,
    arms: Mapping[str, Mapping[str, Any]],
    factors: Mapping[str, Sequence[Any]] | None,
    *,
    planned: int,
) -> Response:
    response = analyze(
        one.values, arms=arms, name=one.name, unit=one.unit, higher_is_better=one.higher_is_better, factors=factors
    )
    notes = list(response.notes)
    if one.horizon is not None:
        late = sum(value >= one.horizon for value in one.values.values()) - one.censored
        notes.append(
            f"{one.censored} of {len(one.values)} trainings never reached the target: all are counted up to "
            f"{one.horizon:.4g} {one.unit}, where the first of these ended; {late} others reached it later than that"
        )
    missing = planned - len(one.values)
    updates = {"missing": missing, "censored": one.censored, "horizon": one.horizon, "notes": notes}
    return response.model_copy(update=updates)


def _failures(cells: Sequence[Cell], good: Sequence[Cell], arms: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each arm with failed cells."""
    fine = {(c.arm, c.seed) for c in good}
    for arm, settings in arms.items():
        bad = [c for c in cells if c.arm == arm and (arm, c.seed) not in fine]
        if bad:
            total = sum(c.arm == arm for c in cells)
            chosen = ", ".join(f"{name} = {level_name(value)}" for name, value in settings.items())
            why = (bad[0].error or "its metric is no number").strip().splitlines()[-1]
            yield f"{arm} ({chosen}): {len(bad)} of {total} trainings failed and are left out: {why}"


def _target_notes(way: _Way | None, metric: str, target: float | None) -> Iterator[str]:
    if way is None:
        return
    if not way.found:
        yield f"no training has a learning curve of {metric}: nothing is said of the way to {target}"
    elif all(value is None for value in way.found.values()):
        yield f"no training reached {metric} {target}: nothing is said of the way to it"


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


def _best_run(good: Sequence[Cell], arm: str, metric: str, sign: int) -> str:
    return min((c for c in good if c.arm == arm), key=lambda c: (sign * c.metrics[metric], c.seed)).run


# ---------------------------------------------------------------------------------------------- the least-squares fit


class _Grid(NamedTuple):
    levels: dict[str, list[str]]
    """Of every factor with two or more."""
    arms: dict[str, dict[str, str]]
    """Level of every factor that applies to an arm."""


class _Block(NamedTuple):
    """The columns of one source of differences."""

    factors: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    """Of each factor, those at which all factors apply."""
    columns: slice


class _Fit(NamedTuple):
    blocks: dict[str, _Block]
    coefficients: Array
    inverse: Array
    """Of the normal equations' matrix: times ``noise``, the covariance of the coefficients."""
    noise: float | None
    """Variance of the residual; ``None`` without degrees of freedom."""
    degrees_of_freedom: int
    total_squares: float
    residual_squares: float
    rounding: float
    """Differences up to this are zero."""
    repeated: bool
    """Whether seeds repeat arms, so that the residual is what repetitions differ by."""
    not_estimable: dict[str, str]


class _Columns:
    """The model's columns: a source joins while it is independent of those before it."""

    def __init__(self, rows: int) -> None:
        self.matrix: Array = np.ones((rows, 1))
        self.blocks: dict[str, _Block] = {}
        self._basis: Array = self.matrix / math.sqrt(rows)

    def add(
        self, source: str, columns: Array, *, factors: tuple[str, ...] = (), levels: tuple[tuple[str, ...], ...] = ()
    ) -> bool:
        """Take all of ``columns``, or none if the model holds a part of them already."""
        fresh = self.fresh(columns)
        if fresh.shape[1] < columns.shape[1]:
            return False
        start = self.matrix.shape[1]
        self.blocks[source] = _Block(factors, levels, slice(start, start + columns.shape[1]))
        self.matrix = np.hstack([self.matrix, columns])
        self._basis = np.hstack([self._basis, fresh])
        return True

    def fresh(self, columns: Array) -> Array:
        """An orthonormal basis of what ``columns`` add to the model."""
        rest = columns
        for _ in range(2):  # once more against rounding
            rest = rest - self._basis @ (self._basis.T @ rest)
        left, sizes, _ = np.linalg.svd(rest, full_matrices=False)
        return left[:, sizes > DEPENDENT * np.linalg.norm(columns)]

    def like(self, columns: Array) -> list[str]:
        """The sources that ``columns`` are made of."""
        parts = np.linalg.lstsq(self.matrix, columns, rcond=None)[0]
        return [source for source, block in self.blocks.items() if np.abs(parts[block.columns]).max() > 1e-6]


def _grid(arms: Mapping[str, Mapping[str, Any]], factors: Mapping[str, Sequence[Any]] | None = None) -> _Grid:
    named = {arm: {name: level_name(value) for name, value in s.items()} for arm, s in arms.items()}
    names = dict.fromkeys(name for settings in named.values() for name in settings)
    levels = {}
    for name in names:
        found = dict.fromkeys(settings[name] for settings in named.values() if name in settings)
        listed = [level_name(value) for value in (factors or {}).get(name, ())]
        order = [level for level in listed if level in found] + [level for level in found if level not in listed]
        if len(order) > 1:
            levels[name] = sorted(dict.fromkeys(order), key=functools.partial(_role, name))
    return _Grid(levels, {arm: {n: v for n, v in s.items() if n in levels} for arm, s in named.items()})


def _role(factor: str, level: str) -> int:
    """0: the traditional choice of a technique, 2: the deep one, 1: any other."""
    for order, preset in ((0, "traditional"), (2, "deep")):
        choices: dict[str, str] = PRESETS[preset]  # type: ignore[index]
        if level == (preset if factor == "techniques" else choices.get(factor.removeprefix("techniques."))):
            return order
    return 1


def _fit(values: Mapping[Key, float], grid: _Grid) -> _Fit:
    keys = sorted(values)
    y = np.array([values[key] for key in keys], dtype=np.float64)
    repeated = len(keys) >= len(grid.arms) + len({seed for _, seed in keys})
    columns, not_estimable = _model(keys, grid, repeated=repeated)
    q, r = np.linalg.qr(columns.matrix)
    root = np.linalg.inv(r)
    coefficients = root @ (q.T @ y)
    rounding = ROUNDING * float(np.abs(y).max())
    least = len(keys) * rounding**2
    total, residual = _squares(y - y.mean(), least), _squares(y - columns.matrix @ coefficients, least)
    freedom = len(keys) - columns.matrix.shape[1]
    return _Fit(
        blocks=columns.blocks,
        coefficients=coefficients,
        inverse=root @ root.T,
        noise=residual / freedom if freedom > 0 else None,
        degrees_of_freedom=max(freedom, 0),
        total_squares=total,
        residual_squares=residual,
        rounding=rounding,
        repeated=repeated,
        not_estimable=not_estimable,
    )


def _squares(deviations: Array, least: float) -> float:
    found = float(deviations @ deviations)
    return found if found > least else 0.0


def _model(keys: Sequence[Key], grid: _Grid, *, repeated: bool) -> tuple[_Columns, dict[str, str]]:
    """Code the cells, lowest order first, and say which main effects and two-factor interactions found no room."""
    columns, not_estimable = _Columns(len(keys)), {}
    seeds = sorted({seed for _, seed in keys})
    if len(seeds) > 1:
        columns.add(SEED, _sum_codes(len(seeds))[[seeds.index(seed) for _, seed in keys]])
    for order in range(1, len(grid.levels) + 1 if repeated else 3):
        if order > 2 and columns.matrix.shape[1] >= len(seeds) + len(grid.arms) - 1:
            break  # every arm has a mean of its own by now
        for factors in itertools.combinations(grid.levels, order):
            levels = _common_levels(grid, factors)
            coded = _coded(keys, grid, factors, levels)
            if not coded.shape[1] or columns.add(" × ".join(factors), coded, factors=factors, levels=levels):
                continue
            if order <= 2:
                not_estimable[" × ".join(factors)] = _alias_note(factors, columns.like(coded))
    if repeated:
        names = list(grid.arms)
        rest = columns.fresh(np.eye(len(names))[[names.index(arm) for arm, _ in keys]])
        if rest.shape[1]:
            columns.add(OTHER, rest)
    return columns, not_estimable


def _common_levels(grid: _Grid, factors: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Levels of each factor in the arms to which all of them apply."""
    arms = [settings for settings in grid.arms.values() if all(name in settings for name in factors)]
    return tuple(tuple(v for v in grid.levels[name] if any(s[name] == v for s in arms)) for name in factors)


def _coded(keys: Sequence[Key], grid: _Grid, factors: Sequence[str], levels: Sequence[Sequence[str]]) -> Array:
    """Products of the factors' sum contrasts for every cell; zero where one of them does not apply."""
    zeros = np.zeros(math.prod(len(names) - 1 for names in levels))
    by_arm = {
        arm: _product(_code(names, settings[factor]) for factor, names in zip(factors, levels, strict=True))
        if all(factor in settings for factor in factors)
        else zeros
        for arm, settings in grid.arms.items()
    }
    return np.array([by_arm[arm] for arm, _ in keys])


def _code(levels: Sequence[str], level: str) -> Array:
    """Sum contrasts of a level: columns add up to zero, so that the constant is the mean of levels in equal shares."""
    return _sum_codes(len(levels))[levels.index(level)]  # type: ignore[no-any-return]


@functools.cache
def _sum_codes(num_levels: int) -> Array:
    """A row for each level."""
    return np.vstack([np.eye(num_levels - 1), -np.ones((1, num_levels - 1))])


def _product(rows: Iterable[Array]) -> Array:
    """Products of one column of each row, in all combinations."""
    found: Array = np.ones(1)
    for row in rows:
        found = np.multiply.outer(found, row).ravel()
    return found


def _alias_note(factors: Sequence[str], like: Sequence[str]) -> str:
    source, others = " × ".join(factors), " and ".join(like)
    return f"{source} cannot be told from {others} with these trainings: what is shown for {others} holds both"


# ------------------------------------------------------------------------------------------------ what the fit says


def _effects(fit: _Fit, *, higher_is_better: bool) -> list[Effect]:
    """All pairs of levels of every factor; interactions against the first levels."""
    contrasts = [c for block in fit.blocks.values() if len(block.factors) in (1, 2) for c in _contrasts(block)]
    return [_effect(fit, *contrast, family=len(contrasts), higher_is_better=higher_is_better) for contrast in contrasts]


def _effect(
    fit: _Fit, block: _Block, base: tuple[str, ...], to: tuple[str, ...], *, family: int, higher_is_better: bool
) -> Effect:
    """One of ``family`` effects that are judged together."""
    weights = np.zeros(len(fit.coefficients))
    weights[block.columns] = _product(_code(n, t) - _code(n, b) for n, b, t in zip(block.levels, base, to, strict=True))
    found, (low, high) = _estimate(fit, weights, CONFIDENCE)
    _, (wide_low, wide_high) = _estimate(fit, weights, CONFIDENCE ** (1 / family))
    p = _p_value(fit, found, weights)
    better = _better(wide_low, wide_high, (base[0], to[0]), higher_is_better=higher_is_better)
    return Effect(
        factors=block.factors,
        base=base,
        to=to,
        estimate=found,
        low=low,
        high=high,
        simultaneous_low=wide_low,
        simultaneous_high=wide_high,
        p=p,
        adjusted_p=None if p is None else 1 - (1 - p) ** family,
        clear=better is not None,
        better=better if len(base) == 1 else None,
    )


def _contrasts(block: _Block) -> Iterator[tuple[_Block, tuple[str, ...], tuple[str, ...]]]:
    """(base, to) of each effect of a block."""
    if len(block.factors) == 1:
        for base, to in itertools.combinations(block.levels[0], 2):
            yield block, (base,), (to,)
    else:
        first, second = block.levels
        for pair in itertools.product(first[1:], second[1:]):
            yield block, (first[0], second[0]), pair


def _estimate(fit: _Fit, weights: Array, confidence: float) -> tuple[float, tuple[float | None, float | None]]:
    """A sum of coefficients with its interval."""
    found = float(weights @ fit.coefficients)
    found = found if abs(found) > 10 * fit.rounding else 0.0
    if fit.noise is None:
        return found, (None, None)
    half = _t_quantile(fit.degrees_of_freedom, confidence) * _standard_error(fit, weights)
    return found, (found - half, found + half)


def _standard_error(fit: _Fit, weights: Array) -> float:
    assert fit.noise is not None
    return math.sqrt(fit.noise * float(weights @ fit.inverse @ weights))


def _p_value(fit: _Fit, found: float, weights: Array) -> float | None:
    """Two-sided, of no effect."""
    if fit.noise is None:
        return None
    error = _standard_error(fit, weights)
    if error == 0:
        return 1.0 if found == 0 else 0.0
    return float(2 * special.stdtr(fit.degrees_of_freedom, -abs(found) / error))


def _t_quantile(degrees_of_freedom: int, confidence: float) -> float:
    """Half the width of a two-sided interval, in standard errors."""
    return float(special.stdtrit(degrees_of_freedom, 0.5 + confidence / 2))


def _variances(fit: _Fit) -> list[Variance]:
    """The sources in the order of the model; those of three and more factors in one row."""
    shown = {source: block for source, block in fit.blocks.items() if source == SEED or len(block.factors) in (1, 2)}
    others = [block.columns for source, block in fit.blocks.items() if source not in shown]
    rows = [_variance(fit, source, block.factors, [block.columns]) for source, block in shown.items()]
    if others:
        rows.append(_variance(fit, OTHER, (), others))
    residual = Variance(
        source=RESIDUAL,
        factors=(),
        degrees_of_freedom=fit.degrees_of_freedom,
        sum_of_squares=fit.residual_squares,
        eta_squared=fit.residual_squares / fit.total_squares if fit.total_squares else None,
        partial_eta_squared=None,
        f=None,
        p=None,
    )
    return [*rows, residual]


def _variance(fit: _Fit, source: str, factors: tuple[str, ...], columns: Sequence[slice]) -> Variance:
    """What the residual would grow by without these columns (type III)."""
    which = np.concatenate([np.arange(len(fit.coefficients))[part] for part in columns])
    part = fit.coefficients[which]
    squares = float(part @ np.linalg.solve(fit.inverse[np.ix_(which, which)], part))
    squares = squares if fit.total_squares and squares > fit.rounding**2 else 0.0
    both = squares + fit.residual_squares
    f = squares / len(which) / fit.noise if fit.noise else None
    return Variance(
        source=source,
        factors=factors,
        degrees_of_freedom=len(which),
        sum_of_squares=squares,
        eta_squared=squares / fit.total_squares if fit.total_squares else None,
        partial_eta_squared=squares / both if fit.noise is not None and both else None,
        f=f,
        p=None if f is None else float(special.fdtrc(len(which), fit.degrees_of_freedom, f)),
    )


def _level_means(fit: _Fit) -> list[LevelMean]:
    """Of every factor and of every pair of factors in the model, with the noise of these seeds alone."""
    means = []
    for block in fit.blocks.values():
        if len(block.factors) not in (1, 2):
            continue
        for levels in itertools.product(*block.levels):
            at = dict(zip(block.factors, levels, strict=True))
            mean, (low, high) = _estimate(fit, _mean_weights(fit, at), CONFIDENCE)
            means.append(LevelMean(factors=block.factors, levels=levels, mean=mean, low=low, high=high))
    return means


def _mean_weights(fit: _Fit, at: Mapping[str, str]) -> Array:
    """Coefficients that add up to the mean at some factors' levels: all other columns have mean zero."""
    weights = np.zeros(len(fit.coefficients))
    weights[0] = 1
    for block in fit.blocks.values():
        if block.factors and set(block.factors) <= set(at):
            weights[block.columns] = _product(
                _code(names, at[factor]) for factor, names in zip(block.factors, block.levels, strict=True)
            )
    return weights


def _unknown(name: str, unit: str, *, higher_is_better: bool, lost: dict[str, str]) -> Response:
    return Response(
        name=name,
        unit=unit,
        higher_is_better=higher_is_better,
        cells=0,
        effects=[],
        variance=[],
        means=[],
        residual_std=None,
        residual_degrees_of_freedom=0,
        not_estimable=lost,
        notes=["no training has a value"],
    )


def _lost_levels(planned: _Grid, observed: _Grid) -> dict[str, str]:
    """Factor -> what is not known of it, since none of the trainings at some level has a value."""
    notes = {}
    for name, levels in planned.levels.items():
        found = {planned.arms[arm][name] for arm in observed.arms if name in planned.arms[arm]}
        lost = [level for level in levels if level not in found]
        if name not in observed.levels:
            notes[name] = f"{name}: its effect is not known, since no training has a value at {', '.join(lost)}"
        elif lost:
            notes[name] = f"{name}: no training has a value at {', '.join(lost)}; nothing is said of it"
    return notes


def _fit_notes(fit: _Fit, effects: Sequence[Effect]) -> Iterator[str]:
    if not fit.total_squares:
        yield "all values are the same"
    elif fit.noise is None:
        yield "nothing is repeated, so nothing tells of chance: effects have no intervals. Set sweep.seeds to 2 or more"
    elif not fit.repeated:
        yield (
            f"one seed: interactions of three and more factors ({fit.degrees_of_freedom} degrees of freedom) are taken "
            "for chance. Set sweep.seeds to 2 or more"
        )
    elif not fit.noise:
        yield "repetitions do not differ at all: intervals have no width, and tell nothing of chance"
    for first, second in dict.fromkeys(e.factors for e in effects if e.clear and len(e.factors) == 2):
        yield f"what {first} does depends on {second}: their effects are means over the other's levels"


def _compare_presets(one: _Measured, arms: Mapping[str, Mapping[str, Any]]) -> Comparison | None:
    """Pair the arms seed by seed, as in `_verdict`: these two may well spread by more or less than the others."""
    techniques, pairs = _preset_pairs(_grid(arms))
    seeds = sorted({seed for _, seed in one.values})
    seeds = [s for s in seeds if all((arm, s) in one.values for pair in pairs for arm in pair)]
    if not pairs or not seeds:
        return None
    values = [statistics.fmean(one.values[deep, s] - one.values[old, s] for old, deep in pairs) for s in seeds]
    found = _mean(values)
    return Comparison(
        response=one.name,
        techniques=techniques,
        arms=pairs,
        seeds=len(seeds),
        estimate=found.mean,
        low=found.low,
        high=found.high,
        better=_better(found.low, found.high, ("traditional", "deep"), higher_is_better=one.higher_is_better),
    )


def _preset_pairs(grid: _Grid) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """The techniques with both roles among their levels, and the (traditional, deep) arms that agree in all else."""
    techniques = tuple(n for n, levels in grid.levels.items() if {0, 2} <= {_role(n, level) for level in levels})
    if len(techniques) < 2 and techniques != ("techniques",):
        return techniques, []  # one technique alone is no whole: its effect says the same
    sides: dict[tuple[int, frozenset[tuple[str, str]]], str] = {}
    for arm, settings in grid.arms.items():
        roles = {_role(name, settings[name]) for name in techniques if name in settings}
        if len(roles) == 1:
            rest = frozenset((name, level) for name, level in settings.items() if name not in techniques)
            sides[roles.pop(), rest] = arm
    return techniques, [
        (arm, sides[2, rest]) for (role, rest), arm in sides.items() if role == 0 and (2, rest) in sides
    ]


def _better(low: float | None, high: float | None, levels: tuple[str, str], *, higher_is_better: bool) -> str | None:
    """Which of (base, to) the interval of ``to`` minus ``base`` names; none where it holds zero."""
    if low is None or high is None or low <= 0 <= high:
        return None
    return levels[(low > 0) == higher_is_better]

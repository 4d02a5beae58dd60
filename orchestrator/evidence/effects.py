"""What every factor of a sweep does to one quantity: effects, interactions, their intervals and shares of the variance.

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
- *Missing* values are left out, never imputed. Sums of squares are of type III: each source given all others.
- *Not applicable.* A factor that some arms do not have is estimated from the others.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from models.records import Evidence
from orchestrator.evidence.fitting import (
    OTHER,
    RESIDUAL,
    SEED,
    Array,
    Fit,
    Grid,
    Key,
    Term,
    code,
    fit_model,
    grid_of,
    product,
)

CONFIDENCE = 0.95


class Mean(Evidence):
    """A mean with its 95 % interval."""

    mean: float
    low: float | None
    """``None`` where nothing tells of chance."""
    high: float | None


class Effect(Evidence):
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


class Variance(Evidence):
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
    """The p-value of the whole source, not corrected for the number of sources."""


class LevelMean(Mean):
    """Mean of a level, or of a pair of levels, over all arms in equal shares; for interaction plots."""

    factors: tuple[str, ...]
    levels: tuple[str, ...]


class Response(Evidence):
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
    grid = grid_of({arm: settings for arm, settings in arms.items() if arm in observed}, factors)
    lost = _lost_levels(grid_of(arms, factors), grid)
    if not values:
        return _unknown(name, unit, higher_is_better=higher_is_better, lost=lost)
    fit = fit_model(values, grid)
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


def interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's t interval of the mean; ``None`` with fewer than two values."""
    if len(values) < 2:
        return None
    half = t_quantile(len(values) - 1, confidence) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return float(mean - half), float(mean + half)


def t_quantile(degrees_of_freedom: int, confidence: float) -> float:
    """Half the width of a two-sided interval, in standard errors."""
    from scipy import special  # not with this module: whoever trains a cell imports that, and needs no quantiles

    return float(special.stdtrit(degrees_of_freedom, 0.5 + confidence / 2))


def f_tail(numerator: int, denominator: int, value: float) -> float:
    """Probability that an F-distributed number of these degrees of freedom is greater."""
    from scipy import special

    return float(special.fdtrc(numerator, denominator, value))


def better_level(
    low: float | None, high: float | None, levels: tuple[str, str], *, higher_is_better: bool
) -> str | None:
    """Which of (base, to) the interval of ``to`` minus ``base`` names; none where it holds zero."""
    if low is None or high is None or low <= 0 <= high:
        return None
    return levels[(low > 0) == higher_is_better]


def _effects(fit: Fit, *, higher_is_better: bool) -> list[Effect]:
    """All pairs of levels of every factor; interactions against the first levels."""
    contrasts = [c for block in fit.blocks.values() if len(block.factors) in (1, 2) for c in _contrasts(block)]
    return [_effect(fit, *contrast, family=len(contrasts), higher_is_better=higher_is_better) for contrast in contrasts]


def _effect(
    fit: Fit, block: Term, base: tuple[str, ...], to: tuple[str, ...], *, family: int, higher_is_better: bool
) -> Effect:
    """One of ``family`` effects that are judged together."""
    weights = np.zeros(len(fit.coefficients))
    weights[block.columns] = product(code(n, t) - code(n, b) for n, b, t in zip(block.levels, base, to, strict=True))
    found, (low, high) = _estimate(fit, weights, CONFIDENCE)
    _, (wide_low, wide_high) = _estimate(fit, weights, CONFIDENCE ** (1 / family))
    p = _p_value(fit, found, weights)
    better = better_level(wide_low, wide_high, (base[0], to[0]), higher_is_better=higher_is_better)
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


def _contrasts(block: Term) -> Iterator[tuple[Term, tuple[str, ...], tuple[str, ...]]]:
    """(base, to) of each effect of a block."""
    if len(block.factors) == 1:
        for base, to in itertools.combinations(block.levels[0], 2):
            yield block, (base,), (to,)
    else:
        first, second = block.levels
        for pair in itertools.product(first[1:], second[1:]):
            yield block, (first[0], second[0]), pair


def _estimate(fit: Fit, weights: Array, confidence: float) -> tuple[float, tuple[float | None, float | None]]:
    """A sum of coefficients with its interval."""
    found = float(weights @ fit.coefficients)
    found = found if abs(found) > 10 * fit.rounding else 0.0
    if fit.noise is None:
        return found, (None, None)
    half = t_quantile(fit.degrees_of_freedom, confidence) * _standard_error(fit, weights)
    return found, (found - half, found + half)


def _standard_error(fit: Fit, weights: Array) -> float:
    assert fit.noise is not None
    return math.sqrt(fit.noise * float(weights @ fit.inverse @ weights))


def _p_value(fit: Fit, found: float, weights: Array) -> float | None:
    """Two-sided, of no effect."""
    if fit.noise is None:
        return None
    error = _standard_error(fit, weights)
    if error == 0:
        return 1.0 if found == 0 else 0.0
    from scipy import special

    return float(2 * special.stdtr(fit.degrees_of_freedom, -abs(found) / error))


def _variances(fit: Fit) -> list[Variance]:
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


def _variance(fit: Fit, source: str, factors: tuple[str, ...], columns: Sequence[slice]) -> Variance:
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
        p=None if f is None else f_tail(len(which), fit.degrees_of_freedom, f),
    )


def _level_means(fit: Fit) -> list[LevelMean]:
    """Return the mean of every level, and of every pair of levels in the model, with the noise of these seeds alone."""
    means = []
    for block in fit.blocks.values():
        if len(block.factors) not in (1, 2):
            continue
        for levels in itertools.product(*block.levels):
            at = dict(zip(block.factors, levels, strict=True))
            mean, (low, high) = _estimate(fit, _mean_weights(fit, at), CONFIDENCE)
            means.append(LevelMean(factors=block.factors, levels=levels, mean=mean, low=low, high=high))
    return means


def _mean_weights(fit: Fit, at: Mapping[str, str]) -> Array:
    """Coefficients that add up to the mean at some factors' levels: all other columns have mean zero."""
    weights = np.zeros(len(fit.coefficients))
    weights[0] = 1
    for block in fit.blocks.values():
        if block.factors and set(block.factors) <= set(at):
            weights[block.columns] = product(
                code(names, at[factor]) for factor, names in zip(block.factors, block.levels, strict=True)
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


def _lost_levels(planned: Grid, observed: Grid) -> dict[str, str]:
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


def _fit_notes(fit: Fit, effects: Sequence[Effect]) -> Iterator[str]:
    if not fit.total_squares:
        yield "all values are the same"
    elif fit.noise is None:
        yield "nothing is repeated, so nothing tells of chance: effects have no intervals"
    elif not fit.repeated:
        yield (
            f"one value for each combination: interactions of three and more factors ({fit.degrees_of_freedom} degrees "
            "of freedom) are taken for chance"
        )
    elif not fit.noise:
        yield "repetitions do not differ at all: intervals have no width, and tell nothing of chance"
    for first, second in dict.fromkeys(e.factors for e in effects if e.clear and len(e.factors) == 2):
        yield f"what {first} does depends on {second}: their effects are means over the other's levels"

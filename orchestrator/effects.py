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

import functools
import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

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


class Mean(_Frozen):
    """A mean with its 95 % interval."""

    mean: float
    low: float | None
    """``None`` where nothing tells of chance."""
    high: float | None


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


class Grid(NamedTuple):
    """Which factors vary, and the level of each in every arm."""

    levels: dict[str, list[str]]
    """Of every factor with two or more."""
    arms: dict[str, dict[str, str]]
    """Level of every factor that applies to an arm."""


def grid_of(arms: Mapping[str, Mapping[str, Any]], factors: Mapping[str, Sequence[Any]] | None = None) -> Grid:
    """Name the levels of the arms' settings; traditional ones come first, deep ones last."""
    named = {arm: {name: level_name(value) for name, value in s.items()} for arm, s in arms.items()}
    names = dict.fromkeys(name for settings in named.values() for name in settings)
    levels = {}
    for name in names:
        found = dict.fromkeys(settings[name] for settings in named.values() if name in settings)
        listed = [level_name(value) for value in (factors or {}).get(name, ())]
        order = [level for level in listed if level in found] + [level for level in found if level not in listed]
        if len(order) > 1:
            levels[name] = sorted(dict.fromkeys(order), key=functools.partial(role_of, name))
    return Grid(levels, {arm: {n: v for n, v in s.items() if n in levels} for arm, s in named.items()})


def role_of(factor: str, level: str) -> int:
    """0: the traditional choice of a technique, 2: the deep one, 1: any other."""
    for order, preset in ((0, "traditional"), (2, "deep")):
        choices: dict[str, str] = PRESETS[preset]  # type: ignore[index]
        if level == (preset if factor == "techniques" else choices.get(factor.removeprefix("techniques."))):
            return order
    return 1


def better_level(
    low: float | None, high: float | None, levels: tuple[str, str], *, higher_is_better: bool
) -> str | None:
    """Which of (base, to) the interval of ``to`` minus ``base`` names; none where it holds zero."""
    if low is None or high is None or low <= 0 <= high:
        return None
    return levels[(low > 0) == higher_is_better]


# ---------------------------------------------------------------------------------------------- the least-squares fit


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


def _fit(values: Mapping[Key, float], grid: Grid) -> _Fit:
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


def _model(keys: Sequence[Key], grid: Grid, *, repeated: bool) -> tuple[_Columns, dict[str, str]]:
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


def _common_levels(grid: Grid, factors: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Levels of each factor in the arms to which all of them apply."""
    arms = [settings for settings in grid.arms.values() if all(name in settings for name in factors)]
    return tuple(tuple(v for v in grid.levels[name] if any(s[name] == v for s in arms)) for name in factors)


def _coded(keys: Sequence[Key], grid: Grid, factors: Sequence[str], levels: Sequence[Sequence[str]]) -> Array:
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
    half = t_quantile(fit.degrees_of_freedom, confidence) * _standard_error(fit, weights)
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
    from scipy import special

    return float(2 * special.stdtr(fit.degrees_of_freedom, -abs(found) / error))


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
        p=None if f is None else f_tail(len(which), fit.degrees_of_freedom, f),
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


def _fit_notes(fit: _Fit, effects: Sequence[Effect]) -> Iterator[str]:
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

"""Fits a linear model of factors and seeds to the trainings of a sweep, by least squares."""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.config import PRESETS
from orchestrator.evidence.design import level_name

ROUNDING = 1e-12  # of the largest value: smaller differences are what double precision leaves of none
DEPENDENT = 1e-9  # of a column's length: what is left of it, when it is a sum of others

SEED = "seed"
OTHER = "other interactions"
RESIDUAL = "residual"

Key = tuple[str, int]
"""Arm and seed."""
Array = NDArray[np.float64]


class Grid(NamedTuple):
    """Which factors vary, and the level of each in every arm."""

    levels: dict[str, list[str]]
    """The levels of every factor with two or more."""
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


class Term(NamedTuple):
    """The columns of one source of differences."""

    factors: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    """The levels of each factor at which all factors apply."""
    columns: slice


class Fit(NamedTuple):
    """A linear model that was fitted by least squares."""

    blocks: dict[str, Term]
    coefficients: Array
    inverse: Array
    """The inverse of the normal equations' matrix: times ``noise``, the covariance of the coefficients."""
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
        self.blocks: dict[str, Term] = {}
        self._basis: Array = self.matrix / math.sqrt(rows)

    def add(
        self, source: str, columns: Array, *, factors: tuple[str, ...] = (), levels: tuple[tuple[str, ...], ...] = ()
    ) -> bool:
        """Take all of ``columns``, or none if the model holds a part of them already."""
        fresh = self.fresh(columns)
        if fresh.shape[1] < columns.shape[1]:
            return False
        start = self.matrix.shape[1]
        self.blocks[source] = Term(factors, levels, slice(start, start + columns.shape[1]))
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


def fit_model(values: Mapping[Key, float], grid: Grid) -> Fit:
    """Fit factors, their interactions and seeds to one value for every arm and seed."""
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
    return Fit(
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
        arm: product(code(names, settings[factor]) for factor, names in zip(factors, levels, strict=True))
        if all(factor in settings for factor in factors)
        else zeros
        for arm, settings in grid.arms.items()
    }
    return np.array([by_arm[arm] for arm, _ in keys])


def code(levels: Sequence[str], level: str) -> Array:
    """Sum contrasts of a level: columns add up to zero, so that the constant is the mean of levels in equal shares."""
    return _sum_codes(len(levels))[levels.index(level)]  # type: ignore[no-any-return]


@functools.cache
def _sum_codes(num_levels: int) -> Array:
    """A row for each level."""
    return np.vstack([np.eye(num_levels - 1), -np.ones((1, num_levels - 1))])


def product(rows: Iterable[Array]) -> Array:
    """Products of one column of each row, in all combinations."""
    found: Array = np.ones(1)
    for row in rows:
        found = np.multiply.outer(found, row).ravel()
    return found


def _alias_note(factors: Sequence[str], like: Sequence[str]) -> str:
    source, others = " × ".join(factors), " and ".join(like)
    return f"{source} cannot be told from {others} with these trainings: what is shown for {others} holds both"

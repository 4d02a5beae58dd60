"""What a sweep showed: which choice mattered, by how much and how surely, and a winner only where evidence names one.

How single effects are estimated is in `orchestrator/evidence/effects.py`. Here:

- *The verdict* pairs arms seed by seed, and names a winner only if it beats every other arm with 95 % together.
- *Missing.* Failed cells are counted, named and left out, never imputed.
- *CPU against GPU* by model size is in `orchestrator/evidence/crossover.py`.
- *Time of trainings together.* Seeds that were trained as one batched model share its time, which is one measurement:
  it counts once, and says nothing of chance.
- *Time to a target* is censored where a training never reaches it. All times are then counted up to the same horizon,
  see `restrict`.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from orchestrator.evidence.crossover import Crossover, estimate_crossover
from orchestrator.evidence.design import level_name
from orchestrator.evidence.effects import CONFIDENCE, Mean, Response, analyze, better_level, interval
from orchestrator.evidence.fitting import Grid, Key, grid_of, role_of
from orchestrator.evidence.record import ArmSummary, Cell, Comparison, Ledger


class Goal(NamedTuple):
    """What arms are judged by."""

    metric: str
    """Its name in `Cell.metrics` and in `Cell.history`."""
    higher_is_better: bool
    """Whether the largest mean is the best."""
    target: float | None = None
    """The quality to which seconds and dollars are counted as well."""

    @property
    def sign(self) -> int:
        """What a value is multiplied by so that less is better."""
        return -1 if self.higher_is_better else 1


def summarize(
    cells: Sequence[Cell],
    *,
    arms: Mapping[str, dict[str, Any]],
    goal: Goal,
    dollars_per_hour: Mapping[str, float] | None = None,
    factors: Mapping[str, Sequence[Any]] | None = None,
    parameters: Mapping[str, int] | None = None,
    together: Sequence[Sequence[int]] = (),
) -> Ledger:
    """Turn finished cells into the table, the effects and the verdict. The order of ``cells`` does not matter.

    Args:
        cells: finished and failed trainings; a failed one, or one whose metric is no number, counts for nothing.
        arms: settings of every arm, also of those without a single good cell.
        goal: what the arms are judged by.
        dollars_per_hour: price of all that one training of an arm holds (its workers); without it there are no dollars.
        factors: levels in the order in which they are to be compared; default: as the arms name them.
        parameters: of the model of every arm; without them nothing is said of the size from which a GPU pays.
        together: groups of seeds whose trainings, of at least some arms, shared the time of one batched model.
    """
    in_order = sorted((c for c in cells if c.arm in arms), key=lambda c: (c.arm, c.seed))
    trained = _Trainings(tuple(in_order), arms, goal)
    way = None if goal.target is None else _way_to(goal, trained.good)
    found = {(c.arm, c.seed): c.metrics[goal.metric] for c in trained.good}
    quality = _Measured(goal.metric, "", goal.higher_is_better, found)
    packs = {seed: group[0] for group in together for seed in group if len(group) > 1}
    measured = [quality, *(_pooled(cost, packs) for cost in _costs(trained.good, way, dollars_per_hour))]
    rows = [_row(trained, arm, measured, way) for arm in arms]
    rows.sort(key=lambda r: (r.mean is None, goal.sign * (r.mean or 0.0), r.arm))
    winner, reason = _verdict(rows, trained.values, goal.sign)
    return Ledger(
        metric=goal.metric,
        higher_is_better=goal.higher_is_better,
        arms=rows,
        winner=winner,
        reason=reason,
        best_run=trained.best_run(rows[0].arm) if rows and rows[0].mean is not None else None,
        target=goal.target,
        factors=grid_of(arms, factors).levels,
        responses=[_respond(one, arms, factors, planned=len(trained.cells)) for one in measured],
        traditional_against_deep=[c for one in measured if (c := _compare_presets(one, arms))],
        crossover=_crossover(trained.good, way, arms, parameters or {}, dollars_per_hour or {}, packs),
        notes=[*_failures(trained), *_target_notes(way, goal)],
    )


def seconds_to_target(history: Sequence[Mapping[str, float]], goal: Goal) -> float | None:
    """Training seconds until the end of the first epoch that is as good as the goal's target.

    Args:
        history: an entry for each epoch, with its `seconds` (without evaluation) and metrics of the validation split.
        goal: with a target.

    Returns:
        Seconds; ``None`` if the target was never reached: all that is known then is that it takes longer.
    """
    assert goal.target is not None
    seconds = 0.0
    for entry in history:
        seconds += entry["seconds"]
        if goal.sign * entry[goal.metric] <= goal.sign * goal.target:
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


@dataclass(frozen=True)
class _Trainings:
    """The trainings of all arms."""

    cells: tuple[Cell, ...]
    arms: Mapping[str, dict[str, Any]]
    goal: Goal

    @cached_property
    def good(self) -> list[Cell]:
        """Those that finished with a number for the metric."""
        finished = [c for c in self.cells if c.state == "finished"]
        return [c for c in finished if math.isfinite(c.metrics.get(self.goal.metric, math.nan))]

    @cached_property
    def values(self) -> dict[str, dict[int, float]]:
        """The metric of the good ones, by arm and seed."""
        found: dict[str, dict[int, float]] = {arm: {} for arm in self.arms}
        for cell in self.good:
            found[cell.arm][cell.seed] = cell.metrics[self.goal.metric]
        return found

    def of(self, arm: str) -> list[Cell]:
        """All of one arm."""
        return [c for c in self.cells if c.arm == arm]

    def best_run(self, arm: str) -> str:
        """The run of an arm's best training."""
        good = [c for c in self.good if c.arm == arm]
        return min(good, key=lambda c: (self.goal.sign * c.metrics[self.goal.metric], c.seed)).run


class _Measured(NamedTuple):
    """One response of every cell that has it."""

    name: str
    unit: str
    higher_is_better: bool
    values: dict[Key, float]
    censored: int = 0
    late: int = 0
    """Trainings that reached the target after the horizon."""
    horizon: float | None = None
    trainings: int | None = None
    """How many trainings stand behind the values where several share one measured time; ``None``: one each."""


class _Way(NamedTuple):
    """Seconds to the target, ``None`` where it was not reached, and all seconds of those trainings."""

    found: dict[Key, float | None]
    spent: dict[Key, float]


def _way_to(goal: Goal, good: Sequence[Cell]) -> _Way:
    watched = {(c.arm, c.seed): c.history for c in good if c.history and goal.metric in c.history[0]}
    return _Way(
        {k: seconds_to_target(h, goal) for k, h in watched.items()},
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
            late = 0 if horizon is None else sum(v >= horizon for v in values.values()) - censored
            yield _Measured(f"{name}_to_target", unit, False, values, censored, late, horizon)


def _pooled(cost: _Measured, packs: Mapping[int, int]) -> _Measured:
    """With one value, the mean, for seeds that were measured together; of all arms alike, so that they stay paired."""
    return cost._replace(values=_pack_means(cost.values, packs), trainings=len(cost.values))


def _pack_means(values: Mapping[Key, float], packs: Mapping[int, int]) -> dict[Key, float]:
    """One value for each arm and pack; ``packs``: seed -> the first of those that were measured together with it."""
    found: dict[Key, list[float]] = {}
    for (arm, seed), value in values.items():
        found.setdefault((arm, packs.get(seed, seed)), []).append(value)
    return {key: statistics.fmean(shared) for key, shared in found.items()}


def _row(trained: _Trainings, arm: str, measured: Sequence[_Measured], way: _Way | None) -> ArmSummary:
    cells, values = trained.of(arm), list(trained.values[arm].values())
    low, high = interval(values) or (None, None)
    responses = {one.name: [value for key, value in one.values.items() if key[0] == arm] for one in measured}
    return ArmSummary(
        arm=arm,
        settings=trained.arms[arm],
        mean=statistics.fmean(values) if values else None,
        low=low,
        high=high,
        seconds=statistics.fmean(c.seconds for c in cells) if cells else 0.0,
        finished=len(values),
        failed=len(cells) - len(values),
        reached=way and sum(value is not None for key, value in way.found.items() if key[0] == arm),
        responses={name: _mean(found) for name, found in responses.items() if found},
    )


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
    trainings = len(one.values) if one.trainings is None else one.trainings
    updates = {
        "cells": trainings,
        "missing": planned - trainings,
        "censored": one.censored,
        "horizon": one.horizon,
        "notes": [*response.notes, *_measuring_notes(one, trainings)],
    }
    return response.model_copy(update=updates)


def _measuring_notes(one: _Measured, trainings: int) -> Iterator[str]:
    if trainings > len(one.values):
        yield (
            f"seeds that are trained together have one time: {trainings} trainings are {len(one.values)} measurements. "
            "To see how much time varies, set sweep.replicates to alone"
        )
    if one.horizon is not None:
        yield (
            f"{one.censored} of {trainings} trainings never reached the target: all are counted up to "
            f"{one.horizon:.4g} {one.unit}, where the first of these ended; {one.late} others reached it later"
        )


def _failures(trained: _Trainings) -> Iterator[str]:
    """A sentence for each arm with failed cells."""
    for arm, settings in trained.arms.items():
        cells = trained.of(arm)
        bad = [c for c in cells if c.seed not in trained.values[arm]]
        if bad:
            chosen = ", ".join(f"{name} = {level_name(value)}" for name, value in settings.items())
            why = (bad[0].error or "its metric is no number").strip().splitlines()[-1]
            yield f"{arm} ({chosen}): {len(bad)} of {len(cells)} trainings failed and are left out: {why}"


def _target_notes(way: _Way | None, goal: Goal) -> Iterator[str]:
    if way is None:
        return
    if not way.found:
        yield f"no training has a learning curve of {goal.metric}: nothing is said of the way to {goal.target}"
    elif all(value is None for value in way.found.values()):
        yield f"no training reached {goal.metric} {goal.target}: nothing is said of the way to it"


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


def _compare_presets(one: _Measured, arms: Mapping[str, Mapping[str, Any]]) -> Comparison | None:
    """Pair the arms seed by seed, as in `_verdict`: these two may well spread by more or less than the others."""
    techniques, pairs = _preset_pairs(grid_of(arms))
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
        better=better_level(found.low, found.high, ("traditional", "deep"), higher_is_better=one.higher_is_better),
    )


def _crossover(
    good: Sequence[Cell],
    way: _Way | None,
    arms: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, int],
    dollars_per_hour: Mapping[str, float],
    packs: Mapping[int, int],
) -> Crossover | None:
    """In dollars where all prices are known, else in seconds; to the target where one was reached."""
    priced = all(c.arm in dollars_per_hour for c in good)
    rates = {c.arm: dollars_per_hour[c.arm] / 3600 if priced else 1.0 for c in good}
    name = "dollars" if priced else "seconds"
    costs: dict[Key, float | None] = {(c.arm, c.seed): c.seconds for c in good}
    if way and any(value is not None for value in way.found.values()):
        name, costs = f"{name}_to_target", dict(way.found)
    found = {key: value * rates[key[0]] for key, value in costs.items() if value is not None}
    seeds = {packs.get(c.seed, c.seed) for c in good}
    return estimate_crossover(_pack_means(found, packs), arms=arms, parameters=parameters, cost=name, seeds=seeds)


def _preset_pairs(grid: Grid) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """The techniques with both roles among their levels, and the (traditional, deep) arms that agree in all else."""
    techniques = tuple(n for n, levels in grid.levels.items() if {0, 2} <= {role_of(n, level) for level in levels})
    if len(techniques) < 2 and techniques != ("techniques",):
        return techniques, []  # one technique alone is no whole: its effect says the same
    sides: dict[tuple[int, frozenset[tuple[str, str]]], str] = {}
    for arm, settings in grid.arms.items():
        roles = {role_of(name, settings[name]) for name in techniques if name in settings}
        if len(roles) == 1:
            rest = frozenset((name, level) for name, level in settings.items() if name not in techniques)
            sides[roles.pop(), rest] = arm
    return techniques, [
        (arm, sides[2, rest]) for (role, rest), arm in sides.items() if role == 0 and (2, rest) in sides
    ]

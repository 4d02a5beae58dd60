"""The model size from which a GPU pays: where it costs as much as a CPU, from trainings that differ in nothing else.

- *Pairs.* A training on a GPU and one on a CPU with the same seed and otherwise equal settings give one ratio of costs.
- *Line.* log(cost on GPU / cost on CPU) = a + b · log(parameters), by least squares. Costs are equal at -a / b.
- *Interval.* By Fieller (1954): the sizes at which the line's 95 % band holds zero. That is exact where the noise of
  the logarithms is normal. It has no end where the slope is not clear of zero: then nothing is said.
- *Lack of fit.* Where pairs of arms lie off the line by more than their seeds explain (F test), seeds are no evidence
  of the line: each pair of arms then counts once, by its mean. The test is at 25 %, after Bancroft (1964): at 5 % it
  passes over differences that should widen the interval. In simulation the interval then covers in 91 to 97 % of all
  sweeps, the least with only four pairs of arms, and models that differ as much as seeds do.
- *Missing.* A pair of trainings that lacks a cost is left out and counted.
- Sizes beyond those that were tried are named as such.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from models.records import Evidence
from orchestrator.evidence.design import level_name
from orchestrator.evidence.effects import CONFIDENCE, f_tail, interval, t_quantile
from orchestrator.evidence.fitting import Array, Key

PROCESSOR = "techniques.processor"
LACK_OF_FIT = 0.25  # chance of a needless remedy, which costs width and no truth
LINE_POINTS = 33  # of the drawn line and its band
LARGEST_LOG = 300.0  # of a size: what is beyond, e^300, is no number of parameters


class SizeRatio(Evidence):
    """Cost on the GPU over cost on the CPU, at one size."""

    parameters: float
    ratio: float
    low: float | None
    """95 % interval; ``None`` where nothing tells of chance."""
    high: float | None


class ArmRatio(SizeRatio):
    """The geometric mean over seeds of a pair of arms, with Student's t interval of the logarithms."""

    cpu: str
    gpu: str


class Crossover(Evidence):
    """From which number of parameters on the GPU costs less than the CPU."""

    cost: str
    """As in `orchestrator.evidence.effects.Response.name`."""
    pairs: int
    """Pairs of trainings that the numbers are from."""
    missing: int
    """Pairs that lack a cost, left out."""
    smallest: int
    """Parameters of the smallest model tried."""
    largest: int
    parameters: float | None = None
    """At which both cost the same, where its interval is bounded; may lie beyond the sizes tried."""
    low: float | None = None
    """95 % interval of ``parameters``."""
    high: float | None = None
    gpu_pays: Literal["from", "up to", "always", "never"] | None = None
    """``always`` and ``never`` speak of the sizes tried; ``None``: not to be told."""
    conclusion: str
    """In words."""
    ratios: list[ArmRatio]
    line: list[SizeRatio] = []
    """From the smallest to the largest size, with the 95 % band at each."""
    notes: list[str] = []


def estimate_crossover(
    costs: Mapping[Key, float],
    *,
    arms: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, int],
    cost: str,
    seeds: Collection[int],
) -> Crossover | None:
    """Estimate the size from which a GPU pays.

    Args:
        costs: of the trainings, above zero, where they are known: one that did not reach the target has none.
        arms: settings of every arm.
        parameters: of the model of every arm.
        cost: what ``costs`` are.
        seeds: of all trainings.

    Returns:
        ``None`` where no two arms differ in the processor alone.
    """
    pairs = _arm_pairs(arms, parameters)
    if not pairs:
        return None
    logs = {pair: _log_ratios(pair, costs) for pair in pairs}
    found = sum(map(len, logs.values()))
    missing = len(pairs) * len(seeds) - found
    common = {
        "cost": cost,
        "pairs": found,
        "missing": missing,
        "smallest": min(pair.parameters for pair in pairs),
        "largest": max(pair.parameters for pair in pairs),
        "ratios": [_arm_ratio(pair, values) for pair, values in logs.items() if values],
    }
    sizes = {pair.parameters for pair, values in logs.items() if values}
    left_out = [f"{missing} pairs of trainings on CPU and GPU lack a cost of one of them, and are left out"]
    notes = left_out if missing else []
    if len(sizes) < 2:
        return Crossover(**common, conclusion=_words_of_one_size(logs), notes=notes)
    x, y, fit_notes = _observations(logs)
    line = fit_line(x, y)
    drawn = [_at(line, place) for place in np.linspace(x.min(), x.max(), LINE_POINTS)]
    return Crossover(**common, **_answer(line, x), line=drawn, notes=[*notes, *fit_notes])


class FittedLine(NamedTuple):
    """A fitted line, y = ``middle`` + ``slope`` · (x - ``center``): its two coefficients are not correlated."""

    center: float
    middle: float
    slope: float
    middle_variance: float | None
    """``None`` without degrees of freedom."""
    slope_variance: float | None
    degrees_of_freedom: int


def fit_line(x: Array, y: Array) -> FittedLine:
    """Least squares; ``x`` must hold two different values."""
    center = float(x.mean())
    around = x - center
    squares = float(around @ around)
    slope = float(around @ y) / squares
    rest = y - y.mean() - slope * around
    freedom = len(x) - 2
    noise = float(rest @ rest) / freedom if freedom else None
    return FittedLine(
        center=center,
        middle=float(y.mean()),
        slope=slope,
        middle_variance=None if noise is None else noise / len(x),
        slope_variance=None if noise is None else noise / squares,
        degrees_of_freedom=freedom,
    )


def fieller_interval(line: FittedLine) -> tuple[float, float] | None:
    """Where ``line`` crosses zero, with 95 %; ``None`` where that has no end.

    Fieller, E. C. (1954): Some problems in interval estimation. Journal of the Royal Statistical Society B 16, 175-185.
    The places z at which (middle + slope · z)² <= t² (variance of middle + z² · variance of slope).
    """
    if line.middle_variance is None or line.slope_variance is None:
        return None
    t2 = t_quantile(line.degrees_of_freedom, CONFIDENCE) ** 2
    steep = line.slope**2 - t2 * line.slope_variance
    if steep <= 0:
        return None
    reach = math.sqrt(t2 * (line.middle**2 * line.slope_variance + line.middle_variance * steep))
    middle = line.center - line.middle * line.slope / steep
    return middle - reach / steep, middle + reach / steep


def size_text(parameters: float) -> str:
    """Such as ``840``, ``12 k`` or ``1.2 M``."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= 0.9995 * factor:
            return f"{_two_digits(parameters / factor)} {unit}"
    return _two_digits(parameters)


def _two_digits(value: float) -> str:
    """Two significant digits, three of what has three before the point: more would promise too much."""
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"


class _ArmPair(NamedTuple):
    parameters: int
    cpu: str
    gpu: str


def _arm_pairs(arms: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, int]) -> list[_ArmPair]:
    """Arms that differ in the processor alone, the smallest models first."""
    sides: dict[frozenset[tuple[str, str]], dict[str, str]] = {}
    for arm, settings in arms.items():
        if settings.get(PROCESSOR) in ("cpu", "gpu") and arm in parameters:
            rest = frozenset((name, level_name(value)) for name, value in settings.items() if name != PROCESSOR)
            sides.setdefault(rest, {})[settings[PROCESSOR]] = arm
    return sorted(_ArmPair(parameters[s["cpu"]], s["cpu"], s["gpu"]) for s in sides.values() if len(s) == 2)


def _log_ratios(pair: _ArmPair, costs: Mapping[Key, float]) -> list[float]:
    """One for each seed that both arms have a cost with."""
    sides = [{seed: v for (name, seed), v in costs.items() if name == arm and v > 0} for arm in (pair.gpu, pair.cpu)]
    return [math.log(sides[0][seed] / sides[1][seed]) for seed in sorted(sides[0].keys() & sides[1].keys())]


def _arm_ratio(pair: _ArmPair, logs: Sequence[float]) -> ArmRatio:
    low, high = interval(logs) or (None, None)
    return ArmRatio(
        parameters=pair.parameters,
        ratio=_size(statistics.fmean(logs)),
        low=None if low is None else _size(low),
        high=None if high is None else _size(high),
        cpu=pair.cpu,
        gpu=pair.gpu,
    )


def _observations(logs: Mapping[_ArmPair, Sequence[float]]) -> tuple[Array, Array, list[str]]:
    """What the line is fitted to: every pair of trainings; where that does not fit, the mean of each pair of arms."""
    known = {pair: values for pair, values in logs.items() if values}
    sizes = [math.log(pair.parameters) for pair in known]
    x = np.repeat(sizes, [len(values) for values in known.values()])
    y = np.concatenate([np.array(values) for values in known.values()])
    notes = []
    if len(set(sizes)) == 2:
        notes.append("two sizes: that the ratio of costs follows a line between them is not checked")
    if not _lacks_fit(x, y, list(known.values())):
        return x, y, notes
    notes.append(
        "models lie off the line by more than their seeds explain: each counts once, whatever the number of seeds"
    )
    return np.array(sizes), np.array([statistics.fmean(values) for values in known.values()]), notes


def _lacks_fit(x: Array, y: Array, groups: Sequence[Sequence[float]]) -> bool:
    """The F test of lack of fit against what repetitions differ by (Draper and Smith 1998, section 2.2)."""
    line = fit_line(x, y)
    rest = y - line.middle - line.slope * (x - line.center)
    pure = math.fsum((v - statistics.fmean(values)) ** 2 for values in groups for v in values)
    between, within = len(groups) - 2, len(y) - len(groups)
    if between < 1 or within < 1 or pure == 0:
        return False
    f = max(0.0, float(rest @ rest) - pure) / between / (pure / within)
    return f_tail(between, within, f) < LACK_OF_FIT


def _answer(line: FittedLine, x: Array) -> dict[str, Any]:
    """The fields of `Crossover` that follow from the line, over the sizes ``x`` (logarithms)."""
    if line.middle_variance is None:
        return {"conclusion": "not to be told: nothing is repeated. Set sweep.seeds to 2 or more"}
    ends = [_at(line, float(place)) for place in (x.min(), x.max())]
    always = all(end.high is not None and end.high < 1 for end in ends)
    never = all(end.low is not None and end.low > 1 for end in ends)
    bounds = fieller_interval(line)
    found: dict[str, Any] = {}
    if bounds:
        places = (line.center - line.middle / line.slope, *bounds)
        found = dict(zip(("parameters", "low", "high"), map(_size, places), strict=True))
    side = "from" if line.slope < 0 else "up to"
    pays = "always" if always else "never" if never else side if bounds else None
    sizes = (ends[0].parameters, ends[1].parameters)
    return {**found, "gpu_pays": pays, "conclusion": _words(pays, side, found, sizes)}


def _words(pays: str | None, side: str, found: Mapping[str, float], tried: tuple[float, float]) -> str:
    sizes = f"{size_text(tried[0])} to {size_text(tried[1])} parameters"
    if pays is None:
        return (
            f"not to be told: the interval is unbounded, since the ratio of costs does not clearly change over {sizes}"
        )
    where = ""
    if found:
        ends = f"95 %: {size_text(found['low'])} to {size_text(found['high'])}"
        where = f"{side} about {size_text(found['parameters'])} parameters ({ends})"
    if pays in ("always", "never"):
        text = f"the GPU costs {'less' if pays == 'always' else 'more'} at every size tried ({sizes})"
        return f"{text}. If the line went on, it would pay {where}, which was not tried" if where else text
    if not tried[0] <= found["parameters"] <= tried[1]:
        return f"the GPU would pay {where}, if the line went on: that is beyond the sizes tried ({sizes})"
    within = tried[0] <= found["low"] and found["high"] <= tried[1]
    return f"the GPU pays {where}" + ("" if within else f"; tried were {sizes}, and the interval goes beyond them")


def _words_of_one_size(logs: Mapping[_ArmPair, Sequence[float]]) -> str:
    values = [value for found in logs.values() for value in found]
    if not values:
        return "not to be told: no pair of trainings on CPU and GPU has both costs"
    size = next(pair.parameters for pair, found in logs.items() if found)
    bounds = interval(values)
    spread = f" (95 %: {_size(bounds[0]):.3g} to {_size(bounds[1]):.3g})" if bounds else ""
    return (
        f"not to be told from one size: at {size_text(size)} parameters the GPU costs "
        f"{_size(statistics.fmean(values)):.3g} times as much as the CPU{spread}"
    )


def _at(line: FittedLine, place: float) -> SizeRatio:
    """The line and its band at a logarithm of a size."""
    z = place - line.center
    value = line.middle + line.slope * z
    low = high = None
    if line.middle_variance is not None and line.slope_variance is not None:
        error = math.sqrt(line.middle_variance + z**2 * line.slope_variance)
        half = t_quantile(line.degrees_of_freedom, CONFIDENCE) * error
        low, high = _size(value - half), _size(value + half)
    return SizeRatio(parameters=_size(place), ratio=_size(value), low=low, high=high)


def _size(logarithm: float) -> float:
    return math.exp(max(-LARGEST_LOG, min(LARGEST_LOG, logarithm)))

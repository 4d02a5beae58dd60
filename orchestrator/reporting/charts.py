"""The charts of a sweep's report: where each mark goes, in percent of its box. The template draws them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from orchestrator.evidence.crossover import Crossover, size_text
from orchestrator.evidence.effects import Effect, LevelMean, Mean, Response
from orchestrator.evidence.fitting import role_of
from orchestrator.reporting.scales import Scale, Tick, drawable, scale_of
from orchestrator.reporting.words import number

LABEL_PERCENT = 6.0  # of a chart's width and height: labels that are nearer overlap
NUM_KINDS = 6  # colours and dashes of series


class Mark(NamedTuple):
    """A point."""

    x: float
    y: float
    kind: str
    title: str
    label: str = ""


class Line(NamedTuple):
    """A line, or the outline of a band."""

    path: str
    kind: str
    title: str = ""


class Label(NamedTuple):
    """An entry of a legend."""

    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    """Two axes and what is drawn between them; ``y`` counts from the top."""

    title: str
    description: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_label: str = ""
    y_label: str = ""
    bands: tuple[Line, ...] = ()
    lines: tuple[Line, ...] = ()
    marks: tuple[Mark, ...] = ()
    legend: tuple[Label, ...] = ()


class Point(NamedTuple):
    """What some series have in common at one place."""

    x: float
    mean: float
    low: float
    high: float


Series = Sequence[Point]


def kind(index: int) -> str:
    """The class of a series: its colour and dashes."""
    return f"s{index % NUM_KINDS}"


def average(series: Iterable[Sequence[float | None]]) -> list[Point]:
    """Mean and range at every place from 1 on, over those series that have a finite value there."""
    rows = [list(values) for values in series]
    points = []
    for i in range(max(map(len, rows), default=0)):
        here = [drawable(v) for row in rows if i < len(row) and (v := row[i]) is not None and math.isfinite(v)]
        if here:
            points.append(Point(i + 1, math.fsum(here) / len(here), min(here), max(here)))
    return points


def spread_chart(
    title: str,
    series: Mapping[str, Series],
    *,
    description: str,
    x: Scale,
    y: Scale,
    behind: Series = (),
    num_ticks: int = 6,
) -> Chart:
    """A line of means in a band of the range for each series; that of ``behind`` for comparison."""
    drawn = [(kind(i), label, points) for i, (label, points) in enumerate(series.items()) if points]
    means = [
        Line(_path((x.at(p.x), 100 - y.at(p.mean)) for p in points), name, _said(label, points))
        for name, label, points in drawn
    ]
    around = (Line(_band(behind, x, y), "behind"),) if behind else ()
    return Chart(
        title=title,
        description=description,
        x_ticks=tuple(tick for tick in x.ticks(num_ticks) if float(tick.label).is_integer()),
        y_ticks=_from_top(y.ticks(num_ticks)),
        bands=(*around, *(Line(_band(points, x, y), name) for name, _, points in drawn)),
        lines=tuple(means),
        legend=tuple(Label(name, label) for name, label, _ in drawn) if len(series) > 1 else (),
    )


def _said(name: str, points: Series) -> str:
    last = points[-1]
    spread = f" ({number(last.low)} … {number(last.high)})" if last.low < last.high else ""
    return f"{name}: {number(last.mean)}{spread} after epoch {last.x:.0f}"


def _path(points: Iterable[tuple[float, float]]) -> str:
    found = [f"{x:g} {y:.4g}" for x, y in points]
    return f"M{'L'.join(found)}" + ("h.01" if len(found) == 1 else "")  # with round ends, a dot


def _band(points: Series, x: Scale, y: Scale) -> str:
    if len(points) == 1:
        return f"M{x.at(points[0].x):g} {100 - y.at(points[0].low):.4g}V{100 - y.at(points[0].high):.4g}"
    around = [(p.x, p.high) for p in points] + [(p.x, p.low) for p in reversed(points)]
    return _path((x.at(place), 100 - y.at(value)) for place, value in around) + "Z"


def _from_top(ticks: Iterable[Tick]) -> tuple[Tick, ...]:
    return tuple(Tick(round(100 - tick.at, 2), tick.label) for tick in ticks)


@dataclass(frozen=True)
class Strip:
    """A value with its intervals on a horizontal line, in percent."""

    at: float
    kind: str
    inner: tuple[float, float] | None
    outer: tuple[float, float] | None
    zero: float | None
    title: str


def mean_strips(means: Sequence[Mean | None]) -> tuple[list[Strip | None], tuple[Tick, ...]]:
    """Means with their intervals on one common scale, and its ticks; a mean that is absent stays so."""
    known = [v for m in means if m for v in (m.low, m.mean, m.high) if v is not None]
    scale = scale_of(known)
    return [None if m is None else _mean_strip(m, scale) for m in means], scale.ticks(3) if known else ()


def outcome_strips(rows: Sequence[tuple[float, Mean | None]]) -> tuple[list[Strip | None], tuple[Tick, ...]]:
    """What was taken, with its interval, beside a mark at what was predicted; and the ticks of the common scale."""
    took = [mean for _, mean in rows if mean]
    ends = [v for mean in took for v in (mean.low, mean.mean, mean.high) if v is not None]
    scale = scale_of([0.0, *(predicted for predicted, _ in rows), *(v for v in ends if v > 0)])
    strips = [None if m is None else replace(_mean_strip(m, scale), zero=scale.at(p)) for p, m in rows]
    return strips, scale.ticks(4)


def _mean_strip(mean: Mean, scale: Scale) -> Strip:
    title = number(mean.mean) + _interval(mean.low, mean.high)
    return Strip(scale.at(mean.mean), "s0", _ends(mean.low, mean.high, scale), None, None, title)


def effect_scale(effects: Iterable[Effect]) -> Scale:
    """One that holds all of these effects, their intervals and zero."""
    ends = [v for e in effects for v in (e.estimate, e.low, e.high, e.simultaneous_low, e.simultaneous_high)]
    return scale_of([0.0, *(v for v in ends if v is not None)])


def effect_strip(effect: Effect, scale: Scale) -> Strip:
    """An effect with its own interval in the simultaneous one, coloured by the level that is better."""
    side = "s2" if effect.better is None else "s0" if effect.better == effect.to[0] else "s1"
    return Strip(
        at=scale.at(effect.estimate),
        kind=side if effect.clear else "unclear",
        inner=_ends(effect.low, effect.high, scale),
        outer=_ends(effect.simultaneous_low, effect.simultaneous_high, scale),
        zero=scale.at(0.0),
        title=f"{effect.name}: {number(effect.estimate)}{_interval(effect.simultaneous_low, effect.simultaneous_high)}",
    )


def sides(effects: Sequence[Effect], *, higher_is_better: bool) -> tuple[str, str]:
    """What is better left and right of zero, for main effects."""
    roles = {(role_of(e.factors[0], e.base[0]), role_of(e.factors[0], e.to[0])) for e in effects}
    pairs = {(e.base[0], e.to[0]) for e in effects}
    base, to = "the second", "the first"
    if roles == {(0, 2)}:
        base, to = "traditional", "deep"
    elif len(pairs) == 1:
        base, to = next(iter(pairs))
    left, right = (base, to) if higher_is_better else (to, base)
    return f"{left} is better", f"{right} is better"


def interaction_charts(response: Response, names: Mapping[str, str]) -> list[Chart]:
    """For each pair of factors the mean at every pair of levels, on one scale; parallel lines are no interaction.

    Args:
        response: with its means.
        names: factor -> how it is written.
    """
    pairs = dict.fromkeys(m.factors for m in response.means if len(m.factors) == 2)
    shown = [m for m in response.means if len(m.factors) == 2]
    scale = scale_of(v for m in shown for v in (m.low, m.mean, m.high) if v is not None)
    clear = {e.factors for e in response.effects if e.clear}
    order = sorted(pairs, key=lambda pair: pair not in clear)
    return [_interaction(response, pair, names, scale, is_clear=pair in clear) for pair in order]


def _interaction(
    response: Response, pair: tuple[str, ...], names: Mapping[str, str], scale: Scale, *, is_clear: bool
) -> Chart:
    means = [m for m in response.means if m.factors == pair]
    firsts = list(dict.fromkeys(m.levels[0] for m in means))
    lines = list(dict.fromkeys(m.levels[1] for m in means))
    x = Scale(-0.35, len(firsts) - 0.65)
    marks, bars, paths = [], [], []
    for i, level in enumerate(lines):
        row = [(x.at(firsts.index(m.levels[0])), m) for m in means if m.levels[1] == level]
        paths.append(Line(_path((at, 100 - scale.at(m.mean)) for at, m in row), kind(i), level))
        marks += [Mark(at, round(100 - scale.at(m.mean), 2), kind(i), _mean_title(m)) for at, m in row]
        bars += [
            Line(f"M{at + shift:g} {100 - scale.at(m.low):.4g}V{100 - scale.at(m.high):.4g}", kind(i), _mean_title(m))
            for at, m in row
            for shift in [1.2 * (i - (len(lines) - 1) / 2)]  # bars of several levels lie beside each other
            if m.low is not None and m.high is not None
        ]
    first, second = (names.get(factor, factor) for factor in pair)
    return Chart(
        title=f"{first} × {second}",
        description=f"{'clear' if is_clear else 'not clear'}; lines: {second}",
        x_ticks=tuple(Tick(x.at(i), level) for i, level in enumerate(firsts)),
        y_ticks=_from_top(scale.ticks()),
        bands=tuple(bars),
        lines=tuple(paths),
        marks=tuple(marks),
        legend=tuple(Label(kind(i), level) for i, level in enumerate(lines)),
    )


def _mean_title(mean: LevelMean) -> str:
    return f"{', '.join(mean.levels)}: {number(mean.mean)}{_interval(mean.low, mean.high)}"


def _ends(low: float | None, high: float | None, scale: Scale) -> tuple[float, float] | None:
    return None if low is None or high is None else (scale.at(low), scale.at(high))


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None else f" ({number(low)} … {number(high)})"


class Offer(NamedTuple):
    """What an arm costs and what it gives."""

    arm: str
    cost: float
    quality: float


def pareto_front(offers: Iterable[Offer], *, higher_is_better: bool) -> list[Offer]:
    """Those that no other one matches at the same or less cost, the cheapest first."""
    sign = -1 if higher_is_better else 1
    front: list[Offer] = []
    for offer in sorted(offers, key=lambda o: (o.cost, sign * o.quality, o.arm)):
        if not front or sign * offer.quality < sign * front[-1].quality:
            front.append(offer)
    return front


def cost_chart(offers: Sequence[Offer], *, quality: str, cost: str, unit: str, higher_is_better: bool) -> Chart:
    """Every arm as a point, the front of the best ones as a line of steps."""
    x, y = scale_of((o.cost for o in offers), can_be_log=True), scale_of(o.quality for o in offers)
    front = pareto_front(offers, higher_is_better=higher_is_better)
    places = {o: (x.at(o.cost), round(100 - y.at(o.quality), 2)) for o in offers}
    steps = "H".join(f"{places[o][0]:g}{'V' if i else ' '}{places[o][1]:g}" for i, o in enumerate(front))
    numbers = _numbers(front, places)
    marks = [
        Mark(
            *at, "s0" if o in numbers else "unclear", f"{o.arm}: {number(o.quality)} for {number(o.cost)} {unit}", label
        )
        for label, o, at in sorted((numbers.get(o, ""), o, places[o]) for o in offers)  # those of the front on top
    ]
    return Chart(
        title=f"{quality} against {cost}",
        description="a point for each arm; no arm is both better and cheaper than those on the line",
        x_ticks=x.ticks(),
        y_ticks=_from_top(y.ticks()),
        x_label=f"{cost} per training",
        y_label=quality,
        lines=(Line(f"M{steps}H100", "s0", "Pareto front"),) if front else (),
        marks=tuple(marks),
    )


def _numbers(front: Sequence[Offer], places: Mapping[Offer, tuple[float, float]]) -> dict[Offer, str]:
    """Those of the front from 1 on; of neighbours whose numbers would overlap the first has all."""
    found: dict[Offer, str] = {}
    last: Offer | None = None
    for i, offer in enumerate(front, 1):
        if last and all(abs(a - b) < LABEL_PERCENT for a, b in zip(places[last], places[offer], strict=True)):
            found[last], found[offer] = f"{found[last]}, {i}", ""
        else:
            last, found[offer] = offer, str(i)
    return found


_PAIR, _TREND, _SAME = "s0", "s2", "s1"  # kinds of what the chart of sizes shows


def crossover_chart(found: Crossover) -> Chart:
    """Cost on the GPU over cost on the CPU against the size of the model, both by powers of ten."""
    points = (*found.ratios, *found.line)
    x, y = _log_scale(p.parameters for p in points), _log_scale([1.0, *(p.ratio for p in points)], margin=1.6)
    cost = found.cost.replace("_", " ")
    trend = _path((x.at(p.parameters), _top(y, p.ratio)) for p in found.line)
    return Chart(
        title=f"{cost} on the GPU over {cost} on the CPU",
        description="below 1 the GPU pays; a point for each pair of arms that differ in nothing else, mean over seeds",
        x_ticks=x.ticks(text=size_text),
        y_ticks=_from_top(y.ticks()),
        x_label="parameters of the model",
        y_label="GPU / CPU",
        bands=tuple(_crossover_bands(found, x, y)),
        lines=(Line(f"M0 {_top(y, 1.0):g}H100", "unclear", "the same cost"), Line(trend, _TREND, found.conclusion)),
        marks=tuple(_crossover_marks(found, x, y)),
        legend=(
            Label(_PAIR, "a pair of arms"),
            Label(_TREND, "the line, with its 95 % band"),
            Label(_SAME, "the same cost, with its 95 % interval"),
        ),
    )


def _crossover_bands(found: Crossover, x: Scale, y: Scale) -> Iterator[Line]:
    """Yield the bands of the line, of the size at which both cost the same, and of every pair of arms."""
    band = [(p.parameters, p.high) for p in found.line] + [(p.parameters, p.low) for p in reversed(found.line)]
    if all(value is not None for _, value in band):
        yield Line(_path((x.at(size), _top(y, value or 0.0)) for size, value in band) + "Z", _TREND)
    if found.low is not None and found.high is not None:
        left, right = (min(100.0, max(0.0, x.at(end))) for end in (found.low, found.high))
        yield Line(f"M{left:g} 0H{right:g}V100H{left:g}Z", _SAME, found.conclusion)
    for p in found.ratios:
        if p.low is not None and p.high is not None:
            yield Line(f"M{x.at(p.parameters):g} {_top(y, p.low):g}V{_top(y, p.high):g}", _PAIR)


def _crossover_marks(found: Crossover, x: Scale, y: Scale) -> Iterator[Mark]:
    for p in found.ratios:
        title = f"{size_text(p.parameters)} parameters: {number(p.ratio)}{_interval(p.low, p.high)}"
        yield Mark(x.at(p.parameters), _top(y, p.ratio), _PAIR, title)
    if found.parameters is not None and 0 <= x.at(found.parameters) <= 100:
        yield Mark(x.at(found.parameters), _top(y, 1.0), _SAME, found.conclusion, size_text(found.parameters))


def _log_scale(values: Iterable[float], *, margin: float = 1.15) -> Scale:
    """One of powers of ten, with ``margin`` as a factor at both ends."""
    found = list(values)
    return Scale(min(found) / margin, max(found) * margin, is_log=True)


def _top(scale: Scale, value: float) -> float:
    """Percent from the top; at the edge for what lies beyond it."""
    return round(100 - min(100.0, max(0.0, scale.at(max(value, scale.low)))), 2)

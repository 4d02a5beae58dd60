"""The why panel: what every layer's units and weights did at each level of a factor, beside that factor's effect."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.evidence.record import Cell, Ledger
from orchestrator.reporting.charts import Chart, Label, Point, average, kind, spread_chart
from orchestrator.reporting.scales import Scale, epoch_scale, scale_of
from orchestrator.reporting.sentences import level_of

MEASURES: Mapping[str, str] = {
    "dead": "dead units, share",
    "saturated": "saturated, share",
    "variance": "variance / input's",
    "gradient_norm": "gradient norm",
    "update_ratio": "update / weight",
}
"""Key in an entry of a cell's history -> title."""

_MOST_LAYERS = 8  # of a deep model, spread over its depth


@dataclass(frozen=True)
class WhyGroup:
    """What the layers did at each level of one factor, beside its effect."""

    factor: str | None
    clear: bool
    """Whether the factor has a clear effect on the metric."""
    legend: tuple[Label, ...]
    """The legend of all levels, also those that the first chart lacks."""
    layers: tuple[tuple[str, tuple[Chart, ...]], ...]
    hidden_layers: int
    rows: tuple[tuple[Any, ...], ...]
    """Layer, level, and the mean of every measure after the last epoch."""


def why_groups(ledger: Ledger, cells: Sequence[Cell]) -> list[WhyGroup]:
    """A group for each factor, clear effects first; one of all arms where nothing varies; none without data."""
    seen = _seen(cells)
    if not any(seen.values()):
        return []
    scales = _scales(seen)
    if not ledger.factors:
        return [_group(None, {arm: [arm] for arm in seen}, seen, scales, clear=True)]
    clear = {e.factors[0] for r in ledger.responses[:1] for e in r.effects if e.clear and len(e.factors) == 1}
    arms_at = {
        factor: {level: [row.arm for row in ledger.arms if level_of(row, factor) == level] for level in levels}
        for factor, levels in ledger.factors.items()
    }
    order = sorted(arms_at, key=lambda factor: factor not in clear)
    return [_group(factor, arms_at[factor], seen, scales, clear=factor in clear) for factor in order]


def samples_looked_at(cells: Sequence[Cell]) -> str:
    """Return how many samples the last epochs looked at, such as ``32`` or ``32 to 719``; empty without data."""
    last: list[Any] = [entry.get("why") or () for cell in cells for entry in cell.history[-1:]]
    known = sorted({row["samples"] for rows in last for row in rows if "samples" in row})
    return " to ".join(f"{count:,}" for count in dict.fromkeys((*known[:1], *known[-1:])))


_Seen = dict[str, dict[tuple[str, str], list[float | None]]]
"""Arm -> layer and measure -> mean over seeds after every epoch."""


def _seen(cells: Sequence[Cell]) -> _Seen:
    found: dict[str, dict[tuple[str, str], list[list[float | None]]]] = {}
    for cell in cells:
        series: dict[tuple[str, str], list[float | None]] = {}
        for epoch, entry in enumerate(cell.history):
            rows: Any = entry.get("why") or ()
            for row in rows:
                for measure in MEASURES:
                    values = series.setdefault((row["layer"], measure), [])
                    values += [None] * (epoch - len(values))
                    values.append(row.get(measure))
        for place, values in series.items():
            found.setdefault(cell.arm, {}).setdefault(place, []).append(values)
    return {arm: {place: _means(runs) for place, runs in places.items()} for arm, places in found.items()}


def _means(series: Iterable[Sequence[float | None]]) -> list[float | None]:
    points = {int(p.x): p.mean for p in average(series)}
    return [points.get(i + 1) for i in range(max(points, default=0))]


def _scales(seen: _Seen) -> dict[str, tuple[Scale, Scale]]:
    """Epochs and values of every measure that has any, over all arms and layers: panels can be compared."""
    x = epoch_scale(values for places in seen.values() for values in places.values())
    scales = {}
    for measure in MEASURES:
        values = [v for places in seen.values() for (_, m), found in places.items() if m == measure for v in found]
        known = [v for v in values if v is not None]
        if known:
            is_share = measure in ("dead", "saturated")
            y = Scale(0.0, max(0.05, *known)) if is_share else scale_of(known, can_be_log=True)
            scales[measure] = (x, y)
    return scales


def _group(
    factor: str | None,
    arms: Mapping[str, Sequence[str]],
    seen: _Seen,
    scales: Mapping[str, tuple[Scale, Scale]],
    *,
    clear: bool,
) -> WhyGroup:
    layers = list(dict.fromkeys(layer for places in seen.values() for layer, _ in places))
    shown = [layers[i] for i in _spread(len(layers), _MOST_LAYERS)]
    found = {
        (layer, measure, level): average(seen[arm].get((layer, measure), []) for arm in chosen if arm in seen)
        for layer in layers
        for measure in scales
        for level, chosen in arms.items()
    }
    charts = []
    for layer in shown:
        series = {measure: {level: found[layer, measure, level] for level in arms} for measure in scales}
        charts.append((layer, tuple(_chart(layer, m, s, *scales[m]) for m, s in series.items())))
    rows = (
        (layer, level, *(points[-1].mean if (points := found[layer, m, level]) else None for m in scales))
        for layer in layers
        for level in arms
    )
    legend = tuple(Label(kind(i), level) for i, level in enumerate(arms)) if len(arms) > 1 else ()
    return WhyGroup(factor, clear, legend, tuple(charts), len(layers) - len(shown), tuple(rows))


def _chart(layer: str, measure: str, series: Mapping[str, Sequence[Point]], x: Scale, y: Scale) -> Chart:
    return spread_chart(
        MEASURES[measure],
        series,
        description=f"{MEASURES[measure]} of {layer} over epochs, mean and range over arms",
        x=x,
        y=y,
        num_ticks=3,
    )


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly apart, with both ends."""
    return sorted({round(i * (count - 1) / max(1, min(count, most) - 1)) for i in range(min(count, most))})

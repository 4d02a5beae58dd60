"""One HTML file about a sweep: the verdict, every arm and effect, why, what it cost, and how to repeat it.

The page needs no network and no other file, and shows nothing that the ledger or the cells do not hold.
"""

import html
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from cluster.errors import ConfigError
from cluster.machine.disk import naming_disk
from orchestrator.evidence.effects import Effect, Mean, Response, Variance
from orchestrator.evidence.record import ArmSummary, Cell, Ledger
from orchestrator.reporting.charts import (
    Chart,
    Offer,
    Strip,
    average,
    cost_chart,
    crossover_chart,
    effect_scale,
    effect_strip,
    interaction_charts,
    mean_strips,
    outcome_strips,
    pareto_front,
    sides,
    spread_chart,
)
from orchestrator.reporting.scales import Tick, epoch_scale, scale_of
from orchestrator.reporting.sentences import (
    ArmOutcome,
    choices,
    conclusion,
    counted,
    design_notes,
    findings,
    level_of,
    notes,
    outcome_of,
    outcome_sentence,
    outcome_spread,
    percent,
    short_names,
    signed,
    title_of,
    trainings,
    verdict,
)
from orchestrator.reporting.timeline import TimedTask, Timeline, timeline
from orchestrator.reporting.why import samples_looked_at, why_groups
from orchestrator.reporting.words import duration, number

if TYPE_CHECKING:
    from orchestrator.sweeping.record import SweepResult

_MOST_CURVES = 12  # shown at once; the other arms' can be unfolded
_NOTEBOOK_HEIGHT = "46rem"


def write_report(result: "SweepResult", path: Path) -> Path:
    """Write the page and return its path.

    Raises:
        ConfigError: if the file cannot be written.
    """
    try:
        with naming_disk(path):
            path.write_text(render_report(result), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--html must be a file that can be written, got {path}: {error.strerror}.") from error
    return path


def render_report(result: "SweepResult") -> str:
    """Return the page as HTML."""
    ledger, cells = result.ledger, result.cells
    names = short_names(ledger)
    return _template().render(
        result=result,
        ledger=ledger,
        names=names,
        facts=list(_facts(result)),
        verdict=verdict(ledger),
        findings=list(findings(ledger)),
        board=_board(ledger, cells),
        responses=[_response_section(response, names) for response in ledger.responses],
        curves=_curves(ledger, cells),
        costs=_costs(ledger),
        crossover_chart=crossover_chart(ledger.crossover) if ledger.crossover and ledger.crossover.line else None,
        outcome=_outcome(result),
        timeline=_timeline(ledger, cells),
        has_clock=all(c.started is not None for c in cells),
        why=[(group, _effects_of(group.factor, ledger, names)) for group in why_groups(ledger, cells)],
        why_samples=samples_looked_at(cells),
        failed=[(c, choices(ledger, c.arm)) for c in cells if _failed(c, ledger)],
        notes=notes(ledger),
        design=design_notes(result.record),
        commands=commands(result),
        settings=experiment_yaml(result),
    )


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("orchestrator", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "percent": percent,
        "duration": duration,
        "title_of": title_of,
        "conclusion": conclusion,
    }
    return environment.get_template("report.html")


def notebook_html(result: "SweepResult") -> str:
    """Return the page in a frame, so that a notebook's style and its own do not meet."""
    page = html.escape(render_report(result), quote=True)
    style = f"width:100%;height:{_NOTEBOOK_HEIGHT};border:0"
    return f'<iframe sandbox title="Report of {html.escape(result.sweep)}" style="{style}" srcdoc="{page}"></iframe>'


def _facts(result: "SweepResult") -> Iterator[str]:
    record, cells = result.record, result.cells
    finished = sum(c.state == "finished" for c in cells)
    total = len(record.arms) * len(record.seeds)
    yield f"{counted(len(record.arms), 'arm')} × {counted(len(record.seeds), 'seed')} of {record.experiment.model.type}"
    yield f"data {record.experiment.data.name}"
    took = f" in {duration(result.seconds)}" if result.seconds > 0 else ""
    yield f"{finished} of {total} trainings finished{took}"
    yield f"{record.metric}, {'higher' if record.higher_is_better else 'lower'} is better"
    yield f"begun {record.created}"


def _failed(cell: Cell, ledger: Ledger) -> bool:
    return cell.state != "finished" or not math.isfinite(cell.metrics.get(ledger.metric, math.nan))


@dataclass(frozen=True)
class BoardRow:
    """An arm, with its mean and interval drawn."""

    arm: ArmSummary
    levels: tuple[str | None, ...]
    """The level of each factor; ``None`` where the factor does not apply."""
    strip: Strip | None
    trainings: str
    learning_rates: str


@dataclass(frozen=True)
class Board:
    """The scoreboard."""

    factors: tuple[str, ...]
    rows: tuple[BoardRow, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class EffectRow:
    """An effect, drawn."""

    effect: Effect
    strip: Strip


@dataclass(frozen=True)
class ResponseSection:
    """What the sweep showed of one quantity, drawn."""

    response: Response
    main: tuple[EffectRow, ...]
    interactions: tuple[EffectRow, ...]
    sides: tuple[str, str]
    ticks: tuple[Tick, ...]
    variance: tuple[Variance, ...]
    """Largest share first, the residual last."""
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class CostSection:
    """Quality against one cost."""

    chart: Chart
    front: tuple[Offer, ...]
    name: str
    unit: str


@dataclass(frozen=True)
class OutcomeRow:
    """An arm's predicted and actual seconds, drawn."""

    arm: ArmOutcome
    strip: Strip | None


@dataclass(frozen=True)
class OutcomeSection:
    """Predicted against actual."""

    sentences: tuple[str, ...]
    rows: tuple[OutcomeRow, ...]
    ticks: tuple[Tick, ...]


def _board(ledger: Ledger, cells: Sequence[Cell]) -> Board:
    factors = short_names(ledger)
    means = [None if r.mean is None else Mean(mean=r.mean, low=r.low, high=r.high) for r in ledger.arms]
    strips, ticks = mean_strips(means)
    rows = tuple(
        BoardRow(row, tuple(level_of(row, f) for f in factors), strip, trainings(row), _rates(cells, row.arm))
        for row, strip in zip(ledger.arms, strips, strict=True)
    )
    return Board(tuple(factors), rows, ticks)


def _rates(cells: Sequence[Cell], arm: str) -> str:
    return ", ".join(
        map(number, sorted({c.learning_rate for c in cells if c.arm == arm and c.learning_rate is not None}))
    )


def _response_section(response: Response, names: Mapping[str, str], factor: str | None = None) -> ResponseSection:
    """All of a response, or only what is clear of one factor, and its main effects."""
    effects = [
        e for e in response.effects if factor is None or e.factors == (factor,) or (e.clear and factor in e.factors)
    ]
    scale = effect_scale(effects)
    rows = [EffectRow(effect, effect_strip(effect, scale)) for effect in effects]
    main = tuple(row for row in rows if len(row.effect.factors) == 1)
    return ResponseSection(
        response=response,
        main=main,
        interactions=tuple(row for row in rows if len(row.effect.factors) == 2),
        sides=sides([row.effect for row in main], higher_is_better=response.higher_is_better),
        ticks=scale.ticks(),
        variance=tuple(sorted(response.variance, key=_variance_order)),
        charts=tuple(interaction_charts(response, names)) if factor is None else (),
    )


def _effects_of(factor: str | None, ledger: Ledger, names: Mapping[str, str]) -> ResponseSection | None:
    return _response_section(ledger.responses[0], names, factor) if factor and ledger.responses else None


def _variance_order(row: Variance) -> tuple[bool, float]:
    return not row.factors, -(row.eta_squared or 0.0)


def _curves(ledger: Ledger, cells: Sequence[Cell]) -> tuple[list[Chart], list[Chart]]:
    """Learning curves of the best arms, and of the others; behind each the range of all arms' means."""
    runs = {row.arm: _histories(cells, row.arm, ledger.metric) for row in ledger.arms}
    seen = {arm: points for arm, found in runs.items() if (points := average(found))}
    behind = average([p.mean for p in points] for points in seen.values()) if len(seen) > 1 else ()
    x, is_loss = epoch_scale(seen.values()), not ledger.higher_is_better
    y = scale_of((v for points in seen.values() for p in points for v in (p.low, p.high)), can_be_log=is_loss)
    charts = [
        spread_chart(arm, {arm: points}, description=choices(ledger, arm), x=x, y=y, behind=behind, num_ticks=4)
        for arm, points in seen.items()
    ]
    return charts[:_MOST_CURVES], charts[_MOST_CURVES:]


def _histories(cells: Sequence[Cell], arm: str, metric: str) -> list[list[float | None]]:
    return [[entry.get(metric) for entry in c.history] for c in cells if c.arm == arm and c.state == "finished"]


def _costs(ledger: Ledger) -> list[CostSection]:
    return [_cost_section(ledger, response) for response in ledger.responses if response.name in ("seconds", "dollars")]


def _cost_section(ledger: Ledger, response: Response) -> CostSection:
    known = [row for row in ledger.arms if row.mean is not None and response.name in row.responses]
    offers = [Offer(row.arm, row.responses[response.name].mean, row.mean or 0.0) for row in known]
    better = ledger.higher_is_better
    chart = cost_chart(offers, quality=ledger.metric, cost=response.name, unit=response.unit, higher_is_better=better)
    return CostSection(chart, tuple(pareto_front(offers, higher_is_better=better)), response.name, response.unit)


def _outcome(result: "SweepResult") -> OutcomeSection | None:
    outcome = outcome_of(result)
    if outcome is None:
        return None
    strips, ticks = outcome_strips([(row.predicted_s, row.took_s) for row in outcome.arms])
    rows = tuple(OutcomeRow(row, strip) for row, strip in zip(outcome.arms, strips, strict=True))
    return OutcomeSection((outcome_sentence(outcome), outcome_spread(outcome)), rows, ticks)


def _timeline(ledger: Ledger, cells: Sequence[Cell]) -> Timeline:
    """A row for each lane, by the clock; where starts are not known, one for each arm, one training after the other."""
    starts = [c.started for c in cells if c.started is not None]
    if starts and len(starts) == len(cells):
        by_lane = sorted(cells, key=lambda c: (c.lane is None, c.lane or 0))
        return timeline([_task(c, f"lane {c.lane}", (c.started or 0.0) - min(starts), ledger) for c in by_lane])
    tasks = []
    for row in ledger.arms:
        start_s = 0.0
        for cell in sorted((c for c in cells if c.arm == row.arm), key=lambda c: c.seed):
            tasks.append(_task(cell, row.arm, start_s, ledger))
            start_s += cell.seconds
    return timeline(tasks)


def _task(cell: Cell, row: str, start_s: float, ledger: Ledger) -> TimedTask:
    state = "failed" if _failed(cell, ledger) else "finished"
    title = f"{cell.arm}, seed {cell.seed}: {duration(cell.seconds)}, {state}"
    return TimedTask(title, row, start_s, cell.seconds, failed=state == "failed")


def experiment_yaml(result: "SweepResult") -> str:
    """The settings as the file that `orchestrator sweep` reads; what it leaves out has its default."""
    values = result.record.experiment.model_dump(mode="json", exclude_defaults=True)
    values["sweep"]["seeds"] = len(result.record.seeds)  # those that a budget paid for
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def commands(result: "SweepResult") -> list[tuple[str, str]]:
    """What each does, and the line to type."""
    record, ledger = result.record, result.ledger
    file, name = shlex.quote(f"{record.sweep}.yaml"), shlex.quote(record.sweep)
    found = [("The whole sweep again, with the settings below in this file", f"orchestrator sweep {file}")]
    if len(result.cells) < len(record.arms) * len(record.seeds):
        found.append(("The trainings that are missing", f"orchestrator sweep --resume {name}"))
    found.append(("This page", f"orchestrator report {name} --html {shlex.quote(f'{record.sweep}.html')}"))
    best = next((c for c in result.cells if c.run == ledger.best_run), None)
    if best is not None:
        settings = next(row.settings for row in ledger.arms if row.arm == best.arm)
        words = [*(f"{k}={_word(v)}" for k, v in settings.items()), f"train.seed={best.seed}"]
        found.append(("The best training alone", f"orchestrator train {file} {shlex.join(words)}"))
        found.append(("The best training's record", f"orchestrator show {shlex.quote(best.run)}"))
        model = shlex.quote(record.experiment.data.name)
        found.append(("Its model, to serve", f"orchestrator models promote {shlex.quote(best.run)} {model}"))
    return found


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

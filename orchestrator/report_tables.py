"""What a sweep showed, as sentences and tables: on the terminal, as JSON and as Parquet."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.disk import naming_disk
from cluster.errors import ConfigError
from orchestrator.budget import cost_text
from orchestrator.crossover import PROCESSOR
from orchestrator.design import level_name
from orchestrator.display import number, out, table
from orchestrator.effects import Effect, Mean, Response
from orchestrator.ledger import ArmSummary, Cell, Comparison, Ledger, busy_seconds

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.sweep import SweepRecord, SweepResult


def print_report(result: "SweepResult") -> None:
    """The verdict, the table of arms, and what every choice does to every response."""
    ledger = result.ledger
    _say(verdict(ledger), style="bold")
    for line in findings(ledger):
        _say(line)
    outcome = outcome_of(result)
    _print_arms(ledger, outcome)
    if outcome:
        _say(f"{outcome_sentence(outcome)} {outcome_spread(outcome)}")
    for response in ledger.responses:
        _print_effects(response, short_names(ledger))
    for line in [*design_notes(result.record), *notes(ledger)]:
        _say(line, style="dim")


def report_data(result: "SweepResult") -> dict[str, Any]:
    """All of it, for `display.emit`: names and units as in the ledger."""
    return {
        "sweep": result.sweep,
        "verdict": verdict(result.ledger),
        "findings": list(findings(result.ledger)),
        "ledger": result.ledger,
        "seeds": result.record.seeds,
        "experiment": result.record.experiment,
        "outcome": outcome_of(result),
        "cells": result.cells,
        "seconds": result.seconds,
    }


def write_parquet(result: "SweepResult", path: Path) -> tuple[Path, Path]:
    """Write a row for each training to ``path``, and one for each effect to a file `...-effects` beside it.

    Returns:
        Both paths.

    Raises:
        ConfigError: if a file cannot be written.
    """
    import pyarrow.parquet as pq

    effects = path.with_name(f"{path.stem}-effects{path.suffix}")
    try:
        with naming_disk(path):
            pq.write_table(cell_table(result.ledger, result.cells), path)
            pq.write_table(effect_table(result.ledger), effects)
    except OSError as error:
        raise ConfigError(f"--parquet must be a file that can be written, got {path}: {error}.") from error
    return path, effects


def cell_table(ledger: Ledger, cells: Sequence[Cell]) -> "pa.Table":
    """A row for each training: arm, seed, state, every setting by its name, and every metric as `metrics.NAME`."""
    import pyarrow as pa

    settings = {row.arm: row.settings for row in ledger.arms}
    metrics = dict.fromkeys(name for cell in cells for name in cell.metrics)
    chosen = {name: [settings.get(c.arm, {}).get(name) for c in cells] for name in _settings_of(ledger)}
    return pa.table(
        {
            "arm": pa.array([c.arm for c in cells], pa.string()),
            "seed": pa.array([c.seed for c in cells], pa.int64()),
            "run": pa.array([c.run for c in cells], pa.string()),
            "state": pa.array([c.state for c in cells], pa.string()),
            "seconds": pa.array([c.seconds for c in cells], pa.float64()),
            "started": pa.array([c.started for c in cells], pa.float64()),
            "lane": pa.array([c.lane for c in cells], pa.int64()),
            "learning_rate": pa.array([c.learning_rate for c in cells], pa.float64()),
            "error": pa.array([c.error for c in cells], pa.string()),
            **{name: _setting_column(values) for name, values in chosen.items()},
            **{f"metrics.{name}": pa.array([c.metrics.get(name) for c in cells], pa.float64()) for name in metrics},
        }
    )


def effect_table(ledger: Ledger) -> "pa.Table":
    """A row for each effect on each response, with the fields of `Effect`."""
    import pyarrow as pa

    rows = [(response, effect) for response in ledger.responses for effect in response.effects]
    texts = {
        "response": [r.name for r, _ in rows],
        "unit": [r.unit for r, _ in rows],
        "factors": [" × ".join(e.factors) for _, e in rows],
        "effect": [e.name for _, e in rows],
        "better": [e.better for _, e in rows],
    }
    fields = ("estimate", "low", "high", "simultaneous_low", "simultaneous_high", "p", "adjusted_p")
    return pa.table(
        {name: pa.array(values, pa.string()) for name, values in texts.items()}
        | {name: pa.array([getattr(e, name) for _, e in rows], pa.float64()) for name in fields}
        | {"clear": pa.array([e.clear for _, e in rows], pa.bool_())}
    )


def _settings_of(ledger: Ledger) -> list[str]:
    return list(dict.fromkeys(name for row in ledger.arms for name in row.settings))


def _setting_column(values: Sequence[Any]) -> "pa.Array":
    """Of its own type where all levels are of one, else as the names of the levels."""
    import pyarrow as pa

    known = {type(value) for value in values if value is not None}
    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    if known == {int, float}:
        known = {float}
    if len(known) == 1 and (found := next(iter(known))) in types:
        return pa.array(values, types[found])
    return pa.array([None if value is None else level_name(value) for value in values], pa.string())


def _print_arms(ledger: Ledger, outcome: "Outcome | None") -> None:
    names = short_names(ledger)
    predicted = {row.arm: row.predicted_s for row in outcome.arms} if outcome else {}
    costs = [r for r in ledger.responses[1:] if r.unit]
    rows = [
        (
            row.arm,
            *(level_of(row, factor) or "not applicable" for factor in names),
            row.mean,
            _ends(row.low, row.high),
            *(row.responses[r.name].mean if r.name in row.responses else None for r in costs),
            *([predicted[row.arm]] if predicted else []),
            trainings(row),
        )
        for row in ledger.arms
    ]
    titles = ("arm", *names.values(), ledger.metric, "95 % interval", *(title_of(r) for r in costs))
    out.print()
    table((*titles, *(["seconds predicted"] if predicted else []), "trainings"), rows)


def _print_effects(response: Response, names: Mapping[str, str]) -> None:
    if not response.effects:
        return
    rows = [
        (
            " × ".join(names.get(factor, factor) for factor in effect.factors),
            effect.name,
            signed(effect.estimate),
            _ends(effect.low, effect.high),
            _ends(effect.simultaneous_low, effect.simultaneous_high),
            percent(next((v.eta_squared for v in response.variance if v.factors == effect.factors), None)),
            conclusion(effect),
        )
        for effect in response.effects
    ]
    out.print()
    columns = ("factor", "effect", "estimate", "95 % interval", "all together", "of differences", "conclusion")
    table(columns, rows, title=f"effects on {title_of(response)}, {response.direction}")


def _say(text: str, *, style: str = "") -> None:
    out.print(text, style=style)


# ------------------------------------------------------------------------------------- what was predicted of the sweep


@dataclass(frozen=True)
class ArmOutcome:
    """Seconds of one training of an arm."""

    arm: str
    predicted_s: float
    took_s: Mean | None
    """Over the arm's trainings that count; ``None`` without one."""

    @property
    def ratio(self) -> float | None:
        """Taken over predicted."""
        return self.took_s.mean / self.predicted_s if self.took_s and self.predicted_s else None


@dataclass(frozen=True)
class Outcome:
    """What a sweep was predicted to take, and what it took."""

    predicted_minutes: float
    """From the command to the end."""
    predicted_dollars: float | None
    took_minutes: float | None
    took_dollars: float | None
    by_clock: bool
    """Whether ``took_minutes`` is the time in which trainings ran: all that the cells tell."""
    is_complete: bool
    arms: tuple[ArmOutcome, ...]
    """As in the ledger: the best first."""


def outcome_of(result: "SweepResult") -> Outcome | None:
    """Predicted against actual; ``None`` where nothing was predicted."""
    from orchestrator.sweep import dollars_spent

    record, prediction = result.record, result.record.prediction
    if prediction is None:
        return None
    by_clock = not math.isfinite(result.seconds)
    seconds = busy_seconds(result.cells) if by_clock else result.seconds
    rows = [
        ArmOutcome(row.arm, prediction.seconds[row.arm], row.responses.get("seconds"))
        for row in result.ledger.arms
        if row.arm in prediction.seconds
    ]
    return Outcome(
        predicted_minutes=prediction.minutes(seeds=len(record.seeds)),
        predicted_dollars=prediction.dollars(seeds=len(record.seeds)),
        took_minutes=None if seconds is None else seconds / 60,
        took_dollars=dollars_spent(result),
        by_clock=by_clock,
        is_complete=len(result.cells) >= len(record.arms) * len(record.seeds),
        arms=tuple(rows),
    )


def outcome_sentence(outcome: Outcome) -> str:
    """Such as `Predicted: 3.2 min and $0.05; taken: 3 min and $0.05` as a sentence."""
    expected = cost_text(outcome.predicted_minutes, outcome.predicted_dollars)
    took = cost_text(outcome.took_minutes, outcome.took_dollars) or "not known"
    so_far = "" if outcome.is_complete else " so far"
    clock = ", minutes counted while trainings ran" if outcome.by_clock and outcome.took_minutes is not None else ""
    return f"Predicted: {expected}; taken{so_far}: {took}{clock}."


def outcome_spread(outcome: Outcome) -> str:
    """How far the arms were from what was predicted of them."""
    ratios = [row.ratio for row in outcome.arms if row.ratio is not None]
    if not ratios:
        return "No arm has a training to compare."
    return f"A training took {min(ratios):.2f} to {max(ratios):.2f} times what was predicted of its arm."


# ------------------------------------------------------------------------------------------------------- in sentences


def verdict(ledger: Ledger) -> str:
    """One sentence: the winner and why, or why there is none."""
    if ledger.winner is None:
        return f"No clear winner: {ledger.reason}."
    row = next(row for row in ledger.arms if row.arm == ledger.winner)
    return f"{row.arm} wins with {ledger.metric} {number(row.mean)}{between(row.low, row.high)}: {ledger.reason}."


def findings(ledger: Ledger) -> Iterator[str]:
    """What is clear beside the winner, a sentence each: main effects before interactions, large ones first."""
    units = {response.name: response.unit for response in ledger.responses}
    for comparison in ledger.traditional_against_deep[:2]:  # quality and seconds: dollars say the same as seconds
        yield _comparison_sentence(comparison, units.get(comparison.response, ""))
    yield from _processor_findings(ledger)
    for response in ledger.responses[:1]:
        clear = sorted((e for e in response.effects if e.clear), key=lambda e: (len(e.factors), -abs(e.estimate)))
        yield from (_effect_sentence(effect, response) for effect in clear)
        if response.effects and not clear:
            yield f"No single choice has a clear effect on {response.name}."


def notes(ledger: Ledger) -> list[str]:
    """What failed, what could not be estimated, and what else a reader must know; each once."""
    sizes = ledger.crossover.notes if ledger.crossover else []
    found = dict.fromkeys(ledger.notes, "") | dict.fromkeys(sizes, "CPU against GPU: ")
    for i, response in enumerate(ledger.responses):
        for note in response.notes:
            found.setdefault(note, f"{response.name}: " if i else "")
    return [f"{of}{note}" for note, of in found.items()]


def design_notes(record: "SweepRecord") -> list[str]:
    """What the choice of arms leaves open: of a fraction, what it cannot tell apart."""
    fraction = []
    if record.resolution is not None:
        fraction.append(f"a fraction of resolution {record.resolution}: {', '.join(record.generators)}")
    return [*fraction, *record.aliases, *record.notes]


def conclusion(effect: Effect) -> str:
    """What an effect says, in a word or two."""
    if not effect.clear:
        return "not clear" if effect.low is not None else "–"
    return f"{effect.better} is better" if effect.better else "clear"


def short_names(ledger: Ledger) -> dict[str, str]:
    """Every factor, or setting if none varies -> the last part of its name, where no other one ends alike."""
    names = list(ledger.factors) or list(dict.fromkeys(name for row in ledger.arms for name in row.settings))
    lasts = [name.rpartition(".")[2] for name in names]
    return {name: last if lasts.count(last) == 1 else name for name, last in zip(names, lasts, strict=True)}


def level_of(row: ArmSummary, factor: str) -> str | None:
    """The arm's choice; ``None`` where the factor does not apply."""
    return level_name(row.settings[factor]) if factor in row.settings else None


def choices(ledger: Ledger, arm: str) -> str:
    """Levels of an arm that distinguish it from others."""
    row = next(row for row in ledger.arms if row.arm == arm)
    return ", ".join(level for name in short_names(ledger) if (level := level_of(row, name)) is not None)


def trainings(row: ArmSummary) -> str:
    """How many an arm's mean is from."""
    return f"{row.finished}" + (f" ({row.failed} failed)" if row.failed else "")


def title_of(response: Response) -> str:
    """Such as ``dollars to target``: what has a unit has it in its name."""
    return response.name.replace("_", " ")


def signed(value: float | None) -> str:
    """A difference."""
    return ("+" if value is not None and value > 0 else "") + number(value)


def percent(share: float | None) -> str:
    """A share, of which small ones matter little."""
    return "–" if share is None else f"{100 * share:.1f} %"


def between(low: float | None, high: float | None) -> str:
    """An interval after its estimate."""
    return "" if low is None else f" ({number(low)} … {number(high)})"


def counted(count: int, what: str) -> str:
    """Such as ``3 seeds``."""
    return f"{count} {what}" + ("s" if count != 1 else "")


def _comparison_sentence(found: Comparison, unit: str) -> str:
    title = found.response.replace("_", " ")
    value = f"{signed(found.estimate)} {unit}".strip() + between(found.low, found.high)
    base = f"over {counted(len(found.arms), 'pair')} of arms and {counted(found.seeds, 'seed')}"
    if found.low is None:
        return f"Deep against traditional in {title}: {value}; measured once, so nothing tells of chance."
    if found.better is None:
        return f"Deep against traditional: no clear difference in {title}, {value}, {base}."
    other = "traditional" if found.better == "deep" else "deep"
    ranks = f"{found.better.capitalize()} is better than {other} in {title}"
    return f"{ranks}: deep − traditional is {value}, {base}."


def _processor_findings(ledger: Ledger) -> Iterator[str]:
    """CPU against GPU in what matters of their cost, and from which size of the model on the GPU pays."""
    responses = {response.name: response for response in ledger.responses}
    order = ("dollars_to_target", "dollars", "seconds_to_target", "seconds")
    response = next((responses[name] for name in order if name in responses), None)
    for effect in response.effects if response else ():
        if response and effect.factors == (PROCESSOR,):
            mean = "As a mean over all models, " if ledger.crossover and ledger.crossover.line else ""
            yield mean + _effect_sentence(effect, response)
    if ledger.crossover:
        yield f"Model size and processor, in {ledger.crossover.cost.replace('_', ' ')}: {ledger.crossover.conclusion}."


def _effect_sentence(effect: Effect, response: Response) -> str:
    value = f"{signed(effect.estimate)} {response.unit}".strip()
    value += between(effect.simultaneous_low, effect.simultaneous_high)
    name = title_of(response)
    if not effect.clear:
        return f"{effect.factors[0]}: no clear difference in {name}; {effect.name} is {value}."
    if effect.better is None:
        first, second = effect.factors
        return f"What {first} does to {name} depends on {second}: {effect.name} is {value}."
    worse = effect.base[0] if effect.better == effect.to[0] else effect.to[0]
    depends = any(e.clear and len(e.factors) == 2 and effect.factors[0] in e.factors for e in response.effects)
    ranks = f"{effect.better} is better than {worse} in {name}{' on average' if depends else ''}"
    return f"{effect.factors[0]}: {ranks}; {effect.name} is {value}."


def _ends(low: float | None, high: float | None) -> str:
    return "–" if low is None else f"{number(low)} … {number(high)}"

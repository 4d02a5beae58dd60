"""The sentences of a sweep's report: verdict, findings, notes, and how numbers are said in them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.evidence.crossover import PROCESSOR
from orchestrator.evidence.design import level_name
from orchestrator.evidence.effects import Effect, Mean, Response
from orchestrator.evidence.record import ArmSummary, Comparison, Ledger, busy_seconds
from orchestrator.reporting.words import number
from orchestrator.sweeping.budget import cost_text

if TYPE_CHECKING:
    from orchestrator.sweeping.record import SweepRecord, SweepResult


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
    from orchestrator.sweeping.record import dollars_spent

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

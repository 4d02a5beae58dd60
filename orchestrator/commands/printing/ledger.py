"""Prints the report of a sweep: the verdict, every arm, every effect, and what it cost."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.commands.printing.tables import table
from orchestrator.commands.terminal import out
from orchestrator.evidence.effects import Response
from orchestrator.evidence.record import Ledger
from orchestrator.reporting.sentences import (
    Outcome,
    conclusion,
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
from orchestrator.reporting.words import number

if TYPE_CHECKING:
    from orchestrator.sweeping.record import SweepResult


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
    columns = (*titles, *(["seconds predicted"] if predicted else []), "trainings")
    least = ("seconds predicted", "trainings", *reversed([title_of(r) for r in costs]), *reversed(list(names.values())))
    table(columns, rows, least=least, ids=list(names.values()))


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
    least = ("all together", "of differences", "effect", "95 % interval")
    title = f"effects on {title_of(response)}, {response.direction}"
    table(columns, rows, title=title, least=least, prose=["factor", "effect", "conclusion"])


def _say(text: str, *, style: str = "") -> None:
    out.print(text, style=style)


def _ends(low: float | None, high: float | None) -> str:
    return "–" if low is None else f"{number(low)} … {number(high)}"

"""What is said of a run's restarts, and of a drill."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster.process.typed import typed
from orchestrator.commands import terminal
from orchestrator.commands.printing.tables import table
from orchestrator.reporting.words import duration, number

if TYPE_CHECKING:
    from orchestrator.drill import DrillResult
    from orchestrator.runs.attempts import End, Receipt, Recovery


def print_receipt(receipt: "Receipt") -> None:
    """What the restarts of a run cost: one line when there were none, else a row for every cause."""
    if not receipt.attempts:
        terminal.out.print("no attempts are recorded for this run")
    elif not receipt.recoveries:
        terminal.out.print(f"no restarts; 0 steps lost{_price(receipt)}")
    else:
        columns = ["restarts", "count", "steps lost", "seconds lost", "dollars lost", "resumed from"]
        rows = [_receipt_row(receipt, cause) for cause in receipt.restarts]
        shown = [i for i, name in enumerate(columns) if name != "dollars lost" or receipt.dollars is not None]
        least = ("seconds lost", "dollars lost")
        chosen = [columns[i] for i in shown]
        table(chosen, [[row[i] for i in shown] for row in rows], least=least, prose=["resumed from"])
        waited = f"; waited {duration(receipt.waited_s)} to be resumed" if receipt.waited_s >= 1 else ""
        terminal.out.print(
            f"{receipt.steps_lost:,} of {receipt.steps_executed:,} executed steps and "
            f"{duration(receipt.seconds_lost)} lost{waited}{_price(receipt)}"
        )
    for reason in dict.fromkeys(reason for r in receipt.recoveries for reason in r.passed_over):
        terminal.out.print(f"passed over: {reason}", style="dim")
    for line in receipt.notes:
        terminal.out.print(line, style="dim")


def _receipt_row(receipt: "Receipt", cause: "End") -> list[Any]:
    found = [recovery for recovery in receipt.recoveries if recovery.cause == cause]
    return [
        cause.replace("_", " "),
        len(found),
        sum(r.steps_lost for r in found),
        sum(r.seconds_lost for r in found),
        sum(r.dollars_lost or 0.0 for r in found),
        _resumed_from(found),
    ]


def _resumed_from(recoveries: Sequence["Recovery"], *, shown: int = 3) -> str:
    """The folders of the checkpoints, the newest few."""
    names = [r.checkpoint.rstrip("/").rpartition("/")[2] if r.checkpoint else "the beginning" for r in recoveries]
    more = f", {len(names) - shown} before" if len(names) > shown else ""
    return ", ".join(reversed(names[-shown:])) + more


def _price(receipt: "Receipt") -> str:
    if receipt.dollars is None or receipt.dollars_lost is None:
        return ""
    lost = f"${number(receipt.dollars_lost)} of " if receipt.recoveries else ""
    return f"; {lost}${number(receipt.dollars)} for {number(receipt.worker_hours)} worker-hours"


def print_drill(result: "DrillResult") -> None:
    """Whether the bits are the same, what the kill cost, and where the runs are."""
    expected, found = result.expected.model_dump(), result.found.model_dump()
    rows = [(name, expected[name][:16], found[name][:16], _same(expected[name] == found[name])) for name in expected]
    table(("SHA-256", "unbroken", "killed", "same"), rows)
    if result.recovery_s is not None:
        terminal.out.print(
            f"killed one {result.kill} after step {result.kill_step}; the next step came after "
            f"{duration(result.recovery_s)}"
        )
    print_receipt(result.receipt)
    terminal.out.print(*drill_verdict(result), sep="\n", style="bold" if result.passed else "bold red")
    kept = "with their checkpoints" if result.has_checkpoints else "without their checkpoints"
    terminal.out.print(f"runs {result.unbroken} and {result.killed} stay, {kept}", style="dim")


def _same(value: bool) -> str:
    return "yes" if value else "NO"


def drill_verdict(result: "DrillResult") -> list[str]:
    """Passed, or what failed, a line each."""
    if result.passed:
        return ["passed: the killed run ended with the same bits as the unbroken one"]
    lines = []
    if not result.was_killed:
        lines.append(
            f"failed: the run must have lost one {result.kill}, got none that was recorded, so nothing was proved. "
            f"See `{typed('show', result.killed)}`."
        )
    if result.differences:
        lines.append(f"failed: the two runs must end with the same bits, got other {', '.join(result.differences)}.")
        lines += [f"they ran in different environments: {line}" for line in result.environments]
    return lines

"""What commands print with: two consoles, tables, progress bars and next steps."""

import dataclasses
import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import BaseModel
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from orchestrator.reporting.words import duration, number, size

if TYPE_CHECKING:
    from orchestrator.drill import DrillResult
    from orchestrator.runs.attempts import End, Receipt, Recovery

PIPE_WIDTH = 200  # what is not read on a terminal should not be folded for one

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, DEL, and C1, of which some begin a sequence
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # turn the direction of what follows
    "\u2028\u2029\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"  # line ends, marks, halves, hidden tags
)


def visible(text: str) -> str:
    r"""Return a text as a terminal may show it: what would control the terminal becomes its escape, ``\x1b``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def shortened(text: str, *, most: int = 2000) -> str:
    """Return a text whose lines have at most so many characters; the cure at the end of a message stays."""
    kept = [(line[: most // 2] + " … " + line[-most // 2 :]) if len(line) > most else line for line in text.split("\n")]
    return "\n".join(kept)


class _Terminal(Console):
    """A console that takes a text for nothing but text."""

    def __init__(self, *, stderr: bool, width: int | None) -> None:
        super().__init__(stderr=stderr, width=width, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return what is printed of a text; rich calls it for whatever is not styled already."""
        return super().render_str(visible(text), **settings)


class _Words(TextColumn):
    """A column of a progress bar, of text that is nothing but text."""

    def __init__(self, words: str) -> None:
        super().__init__(words, markup=False)

    def render(self, task: Task) -> Text:
        """Return the words of a task."""
        return Text(visible(self.text_format.format(task=task)))


out = _Terminal(stderr=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
"""Results."""
err = _Terminal(stderr=True, width=None if sys.stderr.isatty() else PIPE_WIDTH)
"""Progress, notes and errors: data on stdout stays clean."""
_kept: list[TextIO] = []
"""The true stdout, where something else stands in its place."""


class LogLines(logging.Handler):
    """Shows what modules log, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        err.print(self.format(record))


def print_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Show an error that nobody expected; stands in for ``sys.excepthook``."""
    err.print("".join(traceback.format_exception(kind, error, where)).rstrip())


def print_log(text: str) -> None:
    """Print a part of a log on stdout, as it came but for what would control the terminal."""
    sys.stdout.write(visible(text))
    sys.stdout.flush()


@contextmanager
def stdout_kept_for_json() -> Iterator[None]:
    """Let stdout hold what `emit` prints and nothing else: Ray tells on it which of its processes has died."""
    _kept.append(sys.stdout)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = _kept.pop()


def emit(value: Any, *, as_json: bool, show: Callable[[], None]) -> None:
    """Print ``value`` as one JSON object, or call ``show``."""
    if as_json:
        stdout = _kept[-1] if _kept else sys.stdout
        stdout.write(json.dumps(plain(value), allow_nan=False, indent=None) + "\n")
        stdout.flush()
    else:
        show()


def plain(value: Any) -> Any:
    """What JSON can hold: records become objects; NaN and infinity become null."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.repr})
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
    """Print rows; a column of numbers is aligned to the right."""
    view = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for i, name in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[i], int | float | None) for row in rows)
        view.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        view.add_row(*(number(cell).replace("\n", "\\n") for cell in row))  # a name must not make a row of its own
    out.print(view)


def note_damaged(lines: Sequence[str]) -> None:
    """Name what could not be listed, beside what could."""
    for line in lines:
        err.print(f"damaged: {line}", style="yellow")


def note(text: str) -> None:
    """A line for the person, not part of the result."""
    err.print(text, style="dim")


def print_receipt(receipt: "Receipt") -> None:
    """What the restarts of a run cost: one line when there were none, else a row for every cause."""
    if not receipt.attempts:
        out.print("no attempts are recorded for this run")
    elif not receipt.recoveries:
        out.print(f"no restarts; 0 steps lost{_price(receipt)}")
    else:
        columns = ["restarts", "count", "steps lost", "seconds lost", "dollars lost", "resumed from"]
        rows = [_receipt_row(receipt, cause) for cause in receipt.restarts]
        shown = [i for i, name in enumerate(columns) if name != "dollars lost" or receipt.dollars is not None]
        table([columns[i] for i in shown], [[row[i] for i in shown] for row in rows])
        waited = f"; waited {duration(receipt.waited_s)} to be resumed" if receipt.waited_s >= 1 else ""
        out.print(
            f"{receipt.steps_lost:,} of {receipt.steps_executed:,} executed steps and "
            f"{duration(receipt.seconds_lost)} lost{waited}{_price(receipt)}"
        )
    for reason in dict.fromkeys(reason for r in receipt.recoveries for reason in r.passed_over):
        out.print(f"passed over: {reason}", style="dim")
    for line in receipt.notes:
        out.print(line, style="dim")


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
        out.print(
            f"killed one {result.kill} after step {result.kill_step:,}; the next step came after "
            f"{duration(result.recovery_s)}"
        )
    print_receipt(result.receipt)
    out.print(*drill_verdict(result), sep="\n", style="bold" if result.passed else "bold red")
    kept = "with their checkpoints" if result.has_checkpoints else "without their checkpoints"
    out.print(f"runs {result.unbroken} and {result.killed} stay, {kept}", style="dim")


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
            f"See `orchestrator show {result.killed}`."
        )
    if result.differences:
        lines.append(f"failed: the two runs must end with the same bits, got other {', '.join(result.differences)}.")
        lines += [f"they ran in different environments: {line}" for line in result.environments]
    return lines


def next_steps(*commands: str) -> None:
    """The closing lines: what one would type next."""
    out.print("\nNext:")
    for command in commands:
        out.print(f"  {command}", style="bold")


_shown: list[Progress] = []
"""The bars on the terminal at this moment."""


@contextmanager
def _bars(*columns: ProgressColumn) -> Iterator[Progress]:
    """Show bars below what is printed, on a terminal only; they are gone afterwards."""
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
        _shown.append(progress)
        try:
            yield progress
        finally:
            _shown.remove(progress)


def stop_bars() -> None:
    """Remove all bars and show the cursor again: for a thread that is about to end the process."""
    for progress in _shown:
        progress.stop()


@contextmanager
def training_progress(on_epoch: Callable[[int], str | None]) -> Iterator[Callable[[Any], None]]:
    """Yield a callback for `RunStatus`; a bar on a terminal, one line per epoch elsewhere.

    Args:
        on_epoch: called with the number of finished epochs when it has grown; returns the line to print.
    """
    columns = (
        SpinnerColumn(),
        _Words("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Words("{task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    with _bars(*columns) as bar:
        task = bar.add_task("starting workers", total=None, speed="")
        done, told = 0, 0

        def update(status: Any) -> None:
            nonlocal done, told
            for reason in status.passed_over[told:]:
                note(f"passed over a checkpoint: {reason}")
            told = len(status.passed_over)
            if status.phase == "training" and status.epoch > done:
                done = status.epoch
                if line := on_epoch(done):
                    bar.console.print(line) if err.is_terminal else note(line)
            if status.phase == "training":
                speed = f"{status.samples_per_s:,.0f} samples/s · waiting {status.waiting_share:.0%}"
                bar.update(
                    task,
                    description=f"epoch {status.epoch + 1}/{status.epochs}",
                    completed=status.step,
                    total=status.steps,
                    speed=speed,
                )

        yield update


@contextmanager
def counting_progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a callback `(done, total, detail)`; a bar on a terminal, a line for every tenth elsewhere."""
    columns = (SpinnerColumn(), _Words(what), BarColumn(), MofNCompleteColumn(), _Words("{task.description}"))
    with _bars(*columns) as bar:
        task = bar.add_task("", total=None)

        def update(done: int, total: int, detail: str) -> None:
            bar.update(task, completed=done, total=total, description=detail)
            if not err.is_terminal and (done == total or done % max(1, total // 10) == 0):
                note(f"{what} {done}/{total} {detail}")

        yield update


@contextmanager
def push_progress() -> Iterator[tuple[Callable[[int, int], None], Callable[[int, int | None, str], None]]]:
    """Yield callbacks for the rows of a push, and for the bytes of the downloads before it."""
    columns = (SpinnerColumn(), _Words("{task.description}"), BarColumn(), _Words("{task.fields[amount]}"))
    with _bars(*columns, TimeElapsedColumn()) as bar:
        rows = bar.add_task("rows", total=None, amount="")
        downloads: dict[str, TaskID] = {}

        def on_download(done: int, total: int | None, what: str) -> None:
            if what not in downloads:
                downloads[what] = bar.add_task(what, total=total, amount="")
                note(f"downloading {what}")
            amount = size(done) + (f" of {size(total)}" if total else "")
            bar.update(downloads[what], completed=done, total=total, amount=amount)

        def on_rows(done: int, total: int) -> None:
            doing = "reading rows" if 2 * done <= total else "writing rows"  # all rows are read through, then written
            bar.update(rows, description=doing, completed=done, total=total, amount=f"{done:,} of {total:,}")

        yield on_rows, on_download

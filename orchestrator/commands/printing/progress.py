"""How far some work is: bars on a terminal; elsewhere lines that each say what they are about, on the same stream."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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
from rich.text import Text

from orchestrator.commands import terminal
from orchestrator.reporting.words import size


class _Words(TextColumn):
    """A column of a progress bar, of text that is nothing but text."""

    def __init__(self, words: str) -> None:
        super().__init__(words, markup=False)

    def render(self, task: Task) -> Text:
        """Return the words of a task."""
        return Text(terminal.visible(self.text_format.format(task=task)))


_shown: list[Progress] = []
"""The bars on the terminal at this moment."""


@contextmanager
def _bars(*columns: ProgressColumn) -> Iterator[Progress]:
    """Show bars below what is printed, on a terminal only; they are gone afterwards."""
    with Progress(*columns, console=terminal.err, disable=not terminal.err.is_terminal, transient=True) as progress:
        _shown.append(progress)
        try:
            yield progress
        finally:
            _shown.remove(progress)


def stop_bars() -> None:
    """Remove all bars and show the cursor again: for a thread that is about to end the process."""
    for progress in _shown:
        progress.stop()


class Tenths:
    """Tells when another tenth of some work is done, for those who want a line and not a bar."""

    def __init__(self) -> None:
        self._told = 0

    def is_new(self, done: int, total: int | None) -> bool:
        """Whether another tenth is done since this was last so."""
        tenth = 10 * done // total if total else 0
        is_new, self._told = tenth > self._told, max(tenth, self._told)
        return is_new


def say(subject: str, text: str) -> None:
    """Print a line of progress: with its subject where no bar shows it."""
    if terminal.err.is_terminal:
        terminal.err.print(text)
    else:
        terminal.note(f"{subject}: {text}")


@contextmanager
def training_progress(
    subject: Callable[[], str], on_epoch: Callable[[int], Sequence[str]]
) -> Iterator[Callable[[Any], None]]:
    """Yield a callback for `RunStatus`; a bar on a terminal, and everywhere a line for each epoch.

    Args:
        subject: What is trained, in words; it is asked once training has begun.
        on_epoch: Called with the number of finished epochs when it has grown; returns the lines to print.
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
                say(subject(), f"passed over a checkpoint: {reason}")
            told = max(told, len(status.passed_over))
            if status.phase != "training":
                return
            if status.epoch > done:
                done = status.epoch
                for line in on_epoch(done):
                    say(subject(), line)
            bar.update(
                task,
                description=f"epoch {status.epoch + 1}/{status.epochs}",
                completed=status.step,
                total=status.steps,
                speed=f"{status.samples_per_s:,.0f} samples/s · waiting {status.waiting_share:.0%}",
            )

        yield update


@contextmanager
def counting_progress(subject: Callable[[], str], what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a callback `(done, total, detail)`; a bar on a terminal, a line for every tenth elsewhere.

    Args:
        subject: The whole work in words; it is asked once a part of it is done.
        what: What is counted, such as `cells`.
    """
    columns = (SpinnerColumn(), _Words(what), BarColumn(), MofNCompleteColumn(), _Words("{task.description}"))
    with _bars(*columns) as bar:
        task, tenths = bar.add_task("", total=None), Tenths()

        def update(done: int, total: int, detail: str) -> None:
            bar.update(task, completed=done, total=total, description=detail)
            if tenths.is_new(done, total) and not terminal.err.is_terminal:
                say(subject(), f"{done}/{total} {what}" + (f", {detail}" if detail else ""))

        yield update


@contextmanager
def push_progress(subject: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[int, int | None, str], None]]]:
    """Yield callbacks for the rows of a push, and for the bytes of the downloads before it.

    Args:
        subject: What is pushed, in words.
    """
    columns = (SpinnerColumn(), _Words("{task.description}"), BarColumn(), _Words("{task.fields[amount]}"))
    with _bars(*columns, TimeElapsedColumn()) as bar:
        rows, row_tenths = bar.add_task("rows", total=None, amount=""), Tenths()
        downloads: dict[str, tuple[TaskID, Tenths]] = {}

        def on_download(done: int, total: int | None, what: str) -> None:
            if what not in downloads:
                downloads[what] = bar.add_task(what, total=total, amount=""), Tenths()
                say(subject, f"downloading {what}")
            task, tenths = downloads[what]
            amount = size(done) + (f" of {size(total)}" if total else "")
            bar.update(task, completed=done, total=total, amount=amount)
            if total and tenths.is_new(done, total) and not terminal.err.is_terminal:
                say(subject, f"downloading {what}, {done / total:.0%} of {size(total)}")

        def on_rows(done: int, total: int) -> None:
            doing = "reading rows" if 2 * done <= total else "writing rows"  # all rows are read through, then written
            bar.update(rows, description=doing, completed=done, total=total, amount=f"{done:,} of {total:,}")
            if row_tenths.is_new(done, total) and not terminal.err.is_terminal:
                say(subject, f"{doing}, {done / total:.0%}")

        yield on_rows, on_download


@contextmanager
def prediction_progress(subject: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback for the rows that have answers; a bar with the rate, or a line for every tenth.

    Args:
        subject: What is predicted, in words.
    """
    columns = (SpinnerColumn(), _Words("{task.description}"), BarColumn(), _Words("{task.fields[amount]}"))
    with _bars(*columns, TimeElapsedColumn()) as bar:
        task, tenths = bar.add_task("reading rows", total=None, amount=""), Tenths()
        first: tuple[float, int] | None = None

        def update(done: int, total: int) -> None:
            nonlocal first
            first = first or (time.monotonic(), done)
            seconds = time.monotonic() - first[0]
            rate = f" · {(done - first[1]) / seconds:,.0f} rows/s" if seconds and done > first[1] else ""
            amount = f"{done:,} of {total:,}{rate}"
            bar.update(task, description="predicting", completed=done, total=total, amount=amount)
            if tenths.is_new(done, total) and not terminal.err.is_terminal:
                say(subject, f"{done:,} of {total:,} rows{rate}")

        yield update

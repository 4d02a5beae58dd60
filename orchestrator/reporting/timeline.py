"""When each training of a sweep ran, as bars over the time that any of them ran."""

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.reporting.scales import Scale, Tick
from orchestrator.reporting.words import duration

PAUSE_S = 60.0  # without any training: longer than a start of workers, so the sweep was stopped


class TimedTask(NamedTuple):
    """One training on the timeline."""

    title: str
    row: str
    start_s: float
    seconds: float
    failed: bool


class Bar(NamedTuple):
    """A training, in percent of the width."""

    x: float
    width: float
    kind: str
    title: str


class Timeline(NamedTuple):
    """Rows of bars over a common axis of seconds."""

    rows: dict[str, list[Bar]]
    ticks: tuple[Tick, ...]
    pauses_s: float
    """Time in which nothing ran, cut out."""


def timeline(tasks: Sequence[TimedTask]) -> Timeline:
    """Every training as long as it took, in its row; without the time from a stop of the sweep to its resumption."""
    kept, pauses_s = _without_pauses(tasks)
    scale = Scale(0.0, max((task.start_s + task.seconds for task in kept), default=0.0) or 1.0)
    rows: dict[str, list[Bar]] = {row: [] for row in dict.fromkeys(task.row for task in tasks)}
    for task in kept:
        bar = Bar(scale.at(task.start_s), scale.at(task.seconds), "bad" if task.failed else "s0", task.title)
        rows[task.row].append(bar)
    return Timeline(rows, tuple(Tick(tick.at, duration(float(tick.label))) for tick in scale.ticks()), pauses_s)


def _without_pauses(tasks: Sequence[TimedTask]) -> tuple[list[TimedTask], float]:
    kept, pauses_s, busy_until = [], 0.0, 0.0
    for task in sorted(tasks, key=lambda t: t.start_s):
        if task.start_s - busy_until > PAUSE_S:
            pauses_s += task.start_s - busy_until
        kept.append(task._replace(start_s=task.start_s - pauses_s))
        busy_until = max(busy_until, task.start_s + task.seconds)
    return kept, pauses_s

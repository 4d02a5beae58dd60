"""The attempts of a run, one for every start of a worker group, and the receipt: what its restarts cost.

    runs/RUN/attempts/0001.json     written by the driver only; numbered over the whole life of a run

The time of a run is cut into pieces, none of which is counted twice. Of an attempt: its *start* (up to its first weight
update), its *training* (up to its last known step) and its *tail* (up to its end). Between two attempts: a *gap*. A run
needs one start, the one that led to its first step ever. Every other start and every tail is lost, and so is a gap in
which the driver lived; a gap between two drivers was spent waiting for somebody to resume, and is told apart.
"""

import logging
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

from pydantic import Field

from cluster.errors import IntegrityError
from cluster.s3.records import read_model
from cluster.s3.store import Store
from cluster.s3.stored_json import listing
from models.records import Finite

log = logging.getLogger(__name__)

CLOCK_SLACK_S = 1.0  # clocks that are kept by NTP agree better than this
_NAME = re.compile(r"^(\d{4,9})\.json$")

End = Literal[
    "finished", "resized", "preempted", "worker_lost", "node_lost", "hung", "error", "driver_lost", "cancelled"
]


class Attempt(Finite):
    """One life of a worker group. Times are Unix seconds; steps are global, counted over all epochs."""

    number: int = Field(gt=0)
    driver: str
    """`HOST:PID`."""
    workers: int = Field(gt=0)
    started: float
    resumed_from: str | None = None
    """Key prefix of a checkpoint; `None`: from the beginning."""
    resumed_step: int = Field(default=0, ge=0)
    passed_over: list[str] = []
    """Newer checkpoints that were not used, with the reasons."""
    first_step_at: float | None = None
    """When its first weight update was done."""
    reached_step: int = Field(default=0, ge=0)
    """The last step that is known to be done."""
    last_step_at: float | None = None
    """When that was known."""
    ended: float | None = None
    end: End | None = None
    """`None`: still running, or its driver died without recording an end."""
    detail: str = ""
    """One line on how it ended."""


class Recovery(Finite):
    """One attempt that ended too early, and what it took the next one to make up for it."""

    attempt: int
    """Number of the attempt that ended."""
    cause: End
    detail: str
    workers_before: int
    workers_after: int
    checkpoint: str | None
    """Key prefix of the one that the next attempt resumed from; `None`: from the beginning."""
    resumed_step: int
    passed_over: tuple[str, ...]
    """Newer checkpoints that were not used, with the reasons."""
    steps_lost: int
    """Steps that had been done and had to be done again. The driver hears of steps a few times a second, so the very
    last ones before a kill may be missing here."""
    down_s: float
    """Without progress: from the last known step to the first one after it, less `waited_s`."""
    redo_s: float
    """What the lost steps had taken, at the mean pace of the attempt that did them; without the first of them, which
    was done again within `down_s`."""
    seconds_lost: float
    """`down_s` and `redo_s`."""
    waited_s: float
    """No driver lived and no machine was used: until somebody resumed the run. Not lost."""
    dollars_lost: float | None
    """Price of the workers in `seconds_lost`, but not in a gap, where there were none."""


class Receipt(Finite):
    """What the restarts of a run cost. `steps_executed` is `final_step` + `steps_lost` where all was recorded."""

    attempts: int
    end: End | None
    """How the newest attempt ended; `None` while it works. What it lost is known once it is resumed."""
    restarts: dict[End, int]
    """Number of restarts by cause."""
    final_step: int
    """The last step that is known to be done."""
    steps_executed: int
    steps_lost: int
    seconds_lost: float
    waited_s: float
    dollars_lost: float | None
    """`None` without a price (`scaling.dollars_per_hour`)."""
    worker_hours: float
    """From start to end of every attempt, times its workers."""
    dollars: float | None
    recoveries: tuple[Recovery, ...]
    notes: tuple[str, ...]
    """What was missing or contradicted itself, and how it was counted."""


def begin_attempt(store: Store, run: str, *, workers: int) -> Attempt:
    """Record that a worker group starts; an attempt before it without an end has lost its driver.

    Raises:
        PreconditionError: another driver began an attempt at this moment.
    """
    for attempt in read_attempts(store, run):
        if attempt.end is None:
            write_attempt(store, run, _closed(attempt))
    number = max(_numbers(store, run), default=0) + 1
    driver = f"{socket.gethostname()}:{os.getpid()}"
    attempt = Attempt(number=number, driver=driver, workers=workers, started=time.time())
    store.write(_key(run, number), _body(attempt), only_if_absent=True)
    return attempt


def write_attempt(store: Store, run: str, attempt: Attempt) -> None:
    """Replace the record of an attempt."""
    store.write(_key(run, attempt.number), _body(attempt))


def read_attempts(store: Store, run: str) -> list[Attempt]:
    """All attempts of a run, oldest first; an object that is not an attempt is named in the log and left out."""
    found, damaged = listing([info.key for info in store.list(_folder(run))], partial(_read, store))
    for reason in damaged:
        log.warning("left out of the receipt of run %s: %s", run, reason)
    return sorted(found, key=lambda attempt: attempt.number)


def receipt(attempts: Sequence[Attempt], *, dollars_per_hour: float | None) -> Receipt:
    """Add up what the restarts of a run cost; pure, and the order of ``attempts`` does not matter.

    Args:
        attempts: all of one run; none for a run that was made before attempts were recorded.
        dollars_per_hour: price of one worker; without one no dollars are told.
    """
    known = _with_proven_steps(sorted(attempts, key=lambda attempt: attempt.number))
    recoveries = tuple(_recoveries(known, dollars_per_hour))
    worker_hours = sum(a.workers * _seconds(a.started, _last_sign(a)) for a in known) / 3600
    return Receipt(
        attempts=len(known),
        end=known[-1].end if known else None,
        restarts=dict(Counter(recovery.cause for recovery in recoveries)),
        final_step=known[-1].reached_step if known else 0,
        steps_executed=sum(a.reached_step - a.resumed_step for a in known),
        steps_lost=sum(r.steps_lost for r in recoveries),
        seconds_lost=sum(r.seconds_lost for r in recoveries),
        waited_s=sum(r.waited_s for r in recoveries),
        dollars_lost=None if dollars_per_hour is None else sum(r.dollars_lost or 0.0 for r in recoveries),
        worker_hours=worker_hours,
        dollars=None if dollars_per_hour is None else worker_hours * dollars_per_hour,
        recoveries=recoveries,
        notes=(*_gaps_in_numbers(known), *_contradicting_clocks(known)),
    )


def _with_proven_steps(attempts: list[Attempt]) -> list[Attempt]:
    """Raise what each attempt reached to what it began with, and to the checkpoint that the next one found.

    A checkpoint proves its steps, though the driver may not have heard of them. Where it is one of a still older
    attempt, that was passed over in between, this counts more steps than were done, and never fewer.
    """
    began = [*(attempt.resumed_step for attempt in attempts), 0]
    return [
        attempt.model_copy(update={"reached_step": max(attempt.reached_step, attempt.resumed_step, began[i + 1])})
        for i, attempt in enumerate(attempts)
    ]


def _recoveries(attempts: list[Attempt], dollars_per_hour: float | None) -> Iterator[Recovery]:
    first_trained = next((a.number for a in attempts if a.first_step_at is not None), None)
    mean_pace_s = _pace_s(attempts)
    for before, after in pairwise(attempts):
        is_trained = first_trained is not None and before.number >= first_trained
        yield _recovery(
            before,
            after,
            lost_start=after if is_trained else before,  # the start that led to the first step ever is not lost
            pace_s=_pace_s([before]) or mean_pace_s,
            dollars_per_hour=dollars_per_hour,
        )


def _recovery(
    before: Attempt, after: Attempt, *, lost_start: Attempt, pace_s: float, dollars_per_hour: float | None
) -> Recovery:
    steps_lost = before.reached_step - after.resumed_step
    tail_s, gap_s = _tail_s(before), _seconds(_last_sign(before), after.started)
    start_s, redo_s = _start_s(lost_start), pace_s * max(0, steps_lost - 1)
    waited_s = gap_s if _is_resumed_by_hand(before, after) else 0.0
    down_s = tail_s + start_s + gap_s - waited_s
    worker_s = before.workers * (tail_s + redo_s) + lost_start.workers * start_s
    return Recovery(
        attempt=before.number,
        cause=_cause(before),
        detail=before.detail,
        workers_before=before.workers,
        workers_after=after.workers,
        checkpoint=after.resumed_from,
        resumed_step=after.resumed_step,
        passed_over=tuple(after.passed_over),
        steps_lost=steps_lost,
        down_s=down_s,
        redo_s=redo_s,
        seconds_lost=down_s + redo_s,
        waited_s=waited_s,
        dollars_lost=None if dollars_per_hour is None else worker_s / 3600 * dollars_per_hour,
    )


def _cause(before: Attempt) -> End:
    """A finished attempt that another one follows has lost its driver before the run was recorded as finished."""
    return "driver_lost" if before.end in (None, "finished") else before.end


def _is_resumed_by_hand(before: Attempt, after: Attempt) -> bool:
    return before.driver != after.driver or _cause(before) in ("driver_lost", "cancelled")


def _start_s(attempt: Attempt) -> float:
    """Up to its first step; all of it where it made none."""
    first_step_at = attempt.first_step_at
    return _seconds(attempt.started, _last_sign(attempt) if first_step_at is None else first_step_at)


def _tail_s(attempt: Attempt) -> float:
    """From its last known step to its end; nothing where it made no step: then it was all start."""
    if attempt.first_step_at is None:
        return 0.0
    last_step_at = attempt.first_step_at if attempt.last_step_at is None else attempt.last_step_at
    return _seconds(last_step_at, _last_sign(attempt))


def _pace_s(attempts: Sequence[Attempt]) -> float:
    """Mean seconds per step between first and last known steps, evaluation included; 0 where none is known."""
    seconds, steps = 0.0, 0
    for attempt in attempts:
        if attempt.first_step_at is not None and attempt.last_step_at is not None:
            seconds += _seconds(attempt.first_step_at, attempt.last_step_at)
            steps += max(0, attempt.reached_step - attempt.resumed_step - 1)
    return seconds / steps if steps else 0.0


def _last_sign(attempt: Attempt) -> float:
    """When it ended, or the last that was heard of it."""
    if attempt.ended is not None:
        return attempt.ended
    return max(attempt.started, attempt.first_step_at or 0.0, attempt.last_step_at or 0.0)


def _seconds(start: float, end: float) -> float:
    """The time between; none where clocks of two machines say that the end came first."""
    return max(0.0, end - start)


def _gaps_in_numbers(attempts: list[Attempt]) -> Iterator[str]:
    if attempts and attempts[0].resumed_step and attempts[0].number == 1:
        yield f"attempt 1 began at step {attempts[0].resumed_step}; what was before is not recorded"
    for before, after in pairwise([0, *(attempt.number for attempt in attempts)]):
        for number in range(before + 1, after):
            yield f"attempt {number} has no readable record; it is not counted"


def _contradicting_clocks(attempts: list[Attempt]) -> Iterator[str]:
    moments: list[tuple[str, float | None]] = []
    for a in attempts:
        names = ("start", "first step", "last step", "end")
        times = (a.started, a.first_step_at, a.last_step_at, a.ended)
        moments += [(f"the {name} of attempt {a.number}", at) for name, at in zip(names, times, strict=True)]
    known = [(name, at) for name, at in moments if at is not None]
    for (before, before_at), (after, after_at) in pairwise(known):
        if before_at - after_at > CLOCK_SLACK_S:
            early_s = before_at - after_at
            yield f"{after} is {early_s:.1f} s before {before}; clocks of two machines differ, counted as 0 s"


def _closed(attempt: Attempt) -> Attempt:
    """Its end was at its last sign of life: how much longer it lived nobody can know."""
    detail = f"driver {attempt.driver} left no word of its end"
    return attempt.model_copy(update={"end": "driver_lost", "ended": _last_sign(attempt), "detail": detail})


def _read(store: Store, key: str) -> Attempt:
    name = _NAME.match(key.rpartition("/")[2])
    if name is None:
        raise IntegrityError(f"{key} must be named NNNN.json, got another name.")
    attempt = read_model(store, key, Attempt, what="an attempt's record")
    if attempt.number != int(name[1]):
        raise IntegrityError(f"{key} must hold attempt {int(name[1])}, got attempt {attempt.number}.")
    return attempt


def _numbers(store: Store, run: str) -> list[int]:
    """Numbers that are taken, by records that can be read or not."""
    names = [_NAME.match(info.key.rpartition("/")[2]) for info in store.list(_folder(run))]
    return [int(name[1]) for name in names if name]


def _folder(run: str) -> str:
    return f"runs/{run}/attempts/"


def _key(run: str, number: int) -> str:
    return f"{_folder(run)}{number:04d}.json"


def _body(attempt: Attempt) -> bytes:
    return attempt.model_dump_json(indent=1).encode()

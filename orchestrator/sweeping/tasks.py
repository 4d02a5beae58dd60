"""What the lanes of a sweep have to do, and what of it is done.

    sweeps/SWEEP/
        attempts/ATTEMPT.json    what one driver asked its lanes to do
        claims/ATTEMPT/TASK      which lane of which attempt took the pack of this task (conditional PUT)
        cells/TASK.json          a finished cell, written once: the source of truth

Results do not depend on where a cell runs. So nothing is kept but finished cells: whatever dies, the cells in work are
trained again from their beginning.
"""

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from cluster.errors import RunUnfinishedError
from cluster.s3.store import Store
from cluster.s3.write_once import append, read_all
from models.records import Frozen
from orchestrator.driving.tune import FORGIVEN_LOSSES, lost_text
from orchestrator.evidence.record import Cell
from orchestrator.runs.record import RunRecord, utc_now

log = logging.getLogger(__name__)


class CellTask(Frozen):
    """One cell to train."""

    name: str
    """Names the result object and the claim. The run is called `SWEEP.NAME`."""
    arm: str
    seed: int
    folder: Literal["cells", "tuning"] = "cells"
    learning_rate: float | None = None
    """To be tried instead of the arm's."""
    evaluated_on: str | None = None
    """Split to be judged on instead of the arm's."""
    pack: str | None = None
    """Tasks of one pack are trained together; which they are does not depend on what was lost, so no bit does."""


class LanePlan(Frozen):
    """`attempts/ATTEMPT.json`."""

    sweep: str
    attempt: str
    arms: dict[str, RunRecord]
    """What each arm trains, but for the seed and the name of the run."""
    tasks: list[CellTask]
    timeout_minutes: float | None
    """The longest time that one task may take."""

    @property
    def key(self) -> str:
        """Where it is."""
        return f"sweeps/{self.sweep}/attempts/{self.attempt}.json"


Launch = Callable[[LanePlan], str]
"""Runs the lanes of one attempt to their end, and returns what ended one of them before its time, if anything did."""


class StoredCells(NamedTuple):
    """What a folder of cells holds."""

    cells: list[Cell]
    """In the order of arms and seeds."""
    damaged: list[str]
    """Keys of objects that are not as they were written."""


def finish_tasks(
    tasks: Sequence[CellTask],
    *,
    sweep: str,
    arms: Mapping[str, RunRecord],
    timeout_minutes: float | None,
    store: Store,
    launch: Launch,
) -> None:
    """Launch lanes until every task has a cell; one whose process dies again and again gets a failed one.

    Args:
        tasks: in the order in which they are to be begun.
        sweep: name of the sweep.
        arms: what each arm trains.
        timeout_minutes: of one task.
        store: where the cells go.
        launch: see `Launch`.

    Raises:
        RunUnfinishedError: no lane could begin any of them.
    """
    losses: Counter[str] = Counter()
    still_open = open_tasks(tasks, sweep=sweep, store=store)
    while still_open:
        plan = LanePlan(
            sweep=sweep,
            attempt=secrets.token_hex(4),
            arms=dict(arms),
            tasks=_to_train(tasks, still_open, losses),
            timeout_minutes=timeout_minutes,
        )
        store.write(plan.key, plan.model_dump_json().encode(), only_if_absent=True)
        error = launch(plan)
        claimed = claimed_tasks(store, plan)
        if not claimed:
            raise RunUnfinishedError(f"sweep {sweep} must keep a lane alive, got {error.strip() or 'none'}.")
        still_open = open_tasks(tasks, sweep=sweep, store=store)
        losses.update(task.name for task in still_open if task.name in claimed)
        for task in still_open:
            if losses[task.name] > FORGIVEN_LOSSES:
                write_cell(store, sweep, _lost(plan, task), folder=task.folder)
        still_open = [task for task in still_open if losses[task.name] <= FORGIVEN_LOSSES]


def _to_train(tasks: Sequence[CellTask], still_open: Sequence[CellTask], losses: Counter[str]) -> list[CellTask]:
    """The open tasks and those of their packs; what its process did not survive comes last, and alone."""
    packs = {task.pack for task in still_open if task.pack and not losses[task.name]}
    whole = [task for task in tasks if task.pack in packs]
    alone = [task.model_copy(update={"pack": None}) for task in still_open if task.pack not in packs]
    return whole + sorted(alone, key=lambda task: losses[task.name])


def open_tasks(tasks: Sequence[CellTask], *, sweep: str, store: Store) -> list[CellTask]:
    """Those without a cell that is as it was written."""
    stored = [read_stored(store, sweep, folder=folder) for folder in sorted({task.folder for task in tasks})]
    for key in (key for found in stored for key in found.damaged):
        log.warning("%s is damaged: its cell is trained again", key)
    done = {cell.run for found in stored for cell in found.cells}
    return [task for task in tasks if f"{sweep}.{task.name}" not in done]


def packs_of(plan: LanePlan) -> list[list[CellTask]]:
    """The tasks of each pack, and each of the others by itself."""
    packs: dict[str, list[CellTask]] = {}
    for task in plan.tasks:
        packs.setdefault(task.pack or task.name, []).append(task)
    return list(packs.values())


def claimed_tasks(store: Store, plan: LanePlan) -> set[str]:
    """Names of the tasks that a lane of this attempt has begun."""
    claimed = {info.key.removeprefix(claims(plan)) for info in store.list(claims(plan))}
    return {task.name for pack in packs_of(plan) if pack[0].name in claimed for task in pack}


def failed_cell(plan: LanePlan, task: CellTask, error: str, *, seconds: float = 0.0, lane: int | None = None) -> Cell:
    """A cell that could not say itself how it ended."""
    run = run_record(plan, task).run
    return Cell(arm=task.arm, seed=task.seed, run=run, state="failed", seconds=seconds, lane=lane, error=error)


def run_record(plan: LanePlan, task: CellTask) -> RunRecord:
    """The run that trains a task."""
    arm = plan.arms[task.arm]
    rate = task.learning_rate or arm.experiment.train.learning_rate
    train = arm.experiment.train.model_copy(update={"seed": task.seed, "learning_rate": rate})
    return arm.model_copy(
        update={
            "run": f"{plan.sweep}.{task.name}",
            "sweep": plan.sweep,
            "created": utc_now(),
            "experiment": arm.experiment.model_copy(update={"train": train, "sweep": None}),
            "evaluated_on": task.evaluated_on or arm.evaluated_on,
        }
    )


def write_cell(store: Store, sweep: str, cell: Cell, *, folder: str = "cells") -> None:
    """Append to the ledger. A cell that is there already stays: the first result counts."""
    append(store, f"sweeps/{sweep}/{folder}/{cell.run.removeprefix(f'{sweep}.')}.json", cell, kind="cell")


def read_stored(store: Store, sweep: str, *, folder: str = "cells") -> StoredCells:
    """Read every cell of a sweep, and see which objects are no longer what was written."""
    found = read_all(store, f"sweeps/{sweep}/{folder}/", Cell, kind="cell")
    cells = sorted((cell for cell in found.values() if cell), key=lambda c: (c.arm, c.seed, c.run))
    return StoredCells(cells, [key for key, cell in found.items() if cell is None])


def _lost(plan: LanePlan, task: CellTask) -> Cell:
    return failed_cell(plan, task, lost_text(concurrency="sweep.concurrency"))


def claims(plan: LanePlan) -> str:
    """Return the folder in which lanes of one attempt claim their tasks."""
    return f"sweeps/{plan.sweep}/claims/{plan.attempt}/"

"""What the store holds of a sweep, and what can be read from it.

sweeps/SWEEP/
    sweep.json    the experiment, the arms, the state
    tuning/       trainings that choose learning rates, as cells
    cells/        see `orchestrator/sweeping/tasks.py`
    result.json   the ledger
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from cluster.errors import NotFoundError
from cluster.process.typed import typed
from cluster.s3.records import read_model
from cluster.s3.store import Store
from models.records import Frozen, LeftOut
from orchestrator.config import Experiment
from orchestrator.configfile import near_miss
from orchestrator.evidence.ledger import Goal, summarize
from orchestrator.evidence.record import Cell, Ledger
from orchestrator.sweeping.budget import Prediction
from orchestrator.sweeping.tasks import read_stored
from orchestrator.sweeping.tuning import Tuned, tuning_notes


class Arm(Frozen):
    """One combination of choices."""

    name: str
    settings: dict[str, Any]
    """Dotted name -> value, of what varies and applies."""
    not_applicable: tuple[str, ...] = ()
    """Varied settings that this arm's model does not have."""
    experiment: Experiment
    """At the learning rate that was chosen, once that is done."""
    tuned: Tuned | None = None
    parameters: int | None = None
    """Numbers that its model learns; ``None`` in a sweep that did not write it down."""
    left_out: tuple[LeftOut, ...] | None = None
    """Damaged rows that none of its cells reads; ``None``: nobody has looked."""


class SweepRecord(Frozen):
    """`sweep.json`."""

    format_version: Literal[1] = 1
    sweep: str
    state: Literal["running", "finished", "unfinished", "cancelled"]
    created: str
    experiment: Experiment
    arms: list[Arm]
    seeds: list[int]
    metric: str
    higher_is_better: bool
    dollars_per_hour: dict[str, float] = {}
    """Arm -> price of all workers of one training, where it is known."""
    resolution: int | None = None
    """The resolution of a fraction of the combinations; see `orchestrator.evidence.design.Design`."""
    generators: list[str] = []
    aliases: list[str] = []
    notes: list[str] = []
    """What else the reader of the plan should know."""
    together: dict[str, int] = {}
    """Arm -> how many of its trainings are taken as one batched model; see `orchestrator/training/packs.py`."""
    prediction: Prediction | None = None
    """What it was expected to take, where that was asked."""


class SweepProgress(NamedTuple):
    """How far a sweep is."""

    done: int
    failed: int
    total: int
    newest: Cell | None


class SweepResult(NamedTuple):
    """What a sweep leaves behind."""

    sweep: str
    ledger: Ledger
    cells: list[Cell]
    record: SweepRecord
    seconds: float
    """Seconds that the sweep took. Of the time before a `resume`, only that in which trainings ran is known."""

    def __repr__(self) -> str:
        """Name the sweep, how far it is, what won and its folder; the fields hold the rest."""
        found = f"winner {self.ledger.winner}" if self.ledger.winner else "no clear winner"
        done = f"{len(self.cells)} trainings of {len(self.record.arms)} arms"
        return f"<SweepResult {self.sweep}: {self.record.state}, {done}, {found}; sweeps/{self.sweep}/>"


def dollars_spent(result: SweepResult) -> float | None:
    """On all trainings, those that chose learning rates too; ``None`` if the price of one is not known."""
    spent, prices = list(_all_seconds(result)), result.record.dollars_per_hour
    known = prices and all(arm in prices for arm, _ in spent)
    return math.fsum(seconds / 3600 * prices[arm] for arm, seconds in spent) if known else None


def _all_seconds(result: SweepResult) -> Iterator[tuple[str, float]]:
    for cell in result.cells:
        yield cell.arm, cell.seconds
    for arm in result.record.arms:
        for trial in arm.tuned.trials if arm.tuned else ():
            yield arm.name, trial.seconds


def read_sweep(store: Store, name: str) -> SweepRecord:
    """The record of a sweep.

    Raises:
        NotFoundError: naming the nearest there is.
        IntegrityError: it is damaged.
    """
    try:
        return read_model(store, f"sweeps/{name}/sweep.json", SweepRecord, what="the record of a sweep")
    except NotFoundError:
        known = [found for found in store.folders("sweeps/") if store.exists(f"sweeps/{found}/sweep.json")]
        raise NotFoundError(f"sweep must exist, got {name!r}. {near_miss(name, known)}") from None


def read_cells(store: Store, name: str) -> list[Cell]:
    """Every finished cell, in the order of its arm and seed; an object that is damaged counts as not done."""
    return read_stored(store, name).cells


def ledger_of(record: SweepRecord, cells: list[Cell]) -> Ledger:
    """The table, the effects and the verdict."""
    sweep = record.experiment.sweep
    assert sweep is not None
    size = max(record.together.values(), default=1)
    ledger = summarize(
        cells,
        arms={arm.name: arm.settings for arm in record.arms},
        goal=Goal(record.metric, record.higher_is_better, sweep.target),
        dollars_per_hour=record.dollars_per_hour or None,
        factors=sweep.vary,
        parameters={arm.name: arm.parameters for arm in record.arms if arm.parameters},
        together=[record.seeds[i : i + size] for i in range(0, len(record.seeds), size)],
    )
    if "train.learning_rate" in sweep.vary:
        return ledger
    notes = tuning_notes(
        {arm.name: arm.tuned for arm in record.arms},
        metric=record.metric,
        center=record.experiment.train.learning_rate,
        dollars_per_hour=record.dollars_per_hour,
    )
    return ledger.model_copy(update={"notes": [*ledger.notes, *notes]})


def how_to_continue(record: SweepRecord) -> str:
    """Name the command that goes on with a stopped sweep."""
    return f"Continue it: `{typed('sweep', '--resume', record.sweep)}`."


def body_of(record: SweepRecord) -> bytes:
    """Write a record as it is stored."""
    return record.model_dump_json(indent=1).encode()

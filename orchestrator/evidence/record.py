"""What a sweep's trainings showed, as it is stored: cells, and the ledger that sums them up."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from models.records import Evidence
from orchestrator.evidence.crossover import Crossover
from orchestrator.evidence.effects import Mean, Response


class Cell(Evidence):
    """One training of a sweep: an arm with one seed. One object in the store, written once."""

    arm: str
    seed: int
    run: str
    """The run that holds its weights."""
    state: str
    """`finished` or `failed`."""
    metrics: dict[str, float] = {}
    seconds: float
    history: list[dict[str, Annotated[float | Any, Field(union_mode="left_to_right")]]] = []
    """Metrics of every epoch, with the `seconds` that it took and the why panel as `why`."""
    error: str | None = None
    started: float | None = None
    """Unix time."""
    lane: int | None = None
    """Which of the trainings at the same time it was among."""
    learning_rate: float | None = None
    """The learning rate of the training."""


def busy_seconds(cells: Sequence[Cell]) -> float | None:
    """Time in which any training ran, by the clock; ``None`` where starts are not known."""
    busy, until = 0.0, -math.inf
    for cell in sorted(cells, key=lambda c: c.started or 0.0):
        if cell.started is None:
            return None
        end = cell.started + cell.seconds
        busy += max(0.0, end - max(cell.started, until))
        until = max(until, end)
    return busy if cells else None


class ArmSummary(Evidence):
    """One row of the table."""

    arm: str
    settings: dict[str, Any]
    mean: float | None
    low: float | None
    """Lower end of the 95 % interval of the mean (Student's t over seeds); ``None`` with fewer than two seeds."""
    high: float | None
    seconds: float
    """Mean per training."""
    finished: int
    failed: int
    reached: int | None = None
    """Trainings that reached the target; ``None`` without a target."""
    responses: dict[str, Mean] = {}
    """Every response with its interval by Student's t over seeds; those to a target up to `Response.horizon`."""


class Comparison(Evidence):
    """`traditional` against `deep` as a whole: all techniques that vary change at once."""

    response: str
    techniques: tuple[str, ...]
    arms: list[tuple[str, str]]
    """Pairs of a traditional and a deep arm that are otherwise alike."""
    seeds: int
    """Seeds, or packs of seeds that were measured together, that all of these arms have."""
    estimate: float
    """Deep minus traditional, in the unit of the response: mean over pairs and seeds."""
    low: float | None
    """95 % interval (Student's t over seeds); ``None`` with fewer than two."""
    high: float | None
    better: str | None
    """`traditional` or `deep`, where the interval excludes zero."""


class Ledger(Evidence):
    """The result of a sweep."""

    metric: str
    higher_is_better: bool
    arms: list[ArmSummary]
    """Best mean first."""
    winner: str | None
    """The arm that beats every other one with 95 % confidence over all comparisons together."""
    reason: str
    """Why this is the winner, or why there is none."""
    best_run: str | None
    """The best training of the arm with the best mean."""
    target: float | None = None
    """Quality that the responses `..._to_target` are counted to."""
    factors: dict[str, list[str]] = {}
    """Levels of every factor that varies: traditional first, deep last."""
    responses: list[Response] = []
    """The metric first."""
    traditional_against_deep: list[Comparison] = []
    """One for each response, where both are in the sweep."""
    crossover: Crossover | None = None
    """From which model size on a GPU pays, where arms differ in the processor alone."""
    notes: list[str] = []
    """Failed arms and what else concerns all responses, in words."""

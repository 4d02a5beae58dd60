"""Predicts what a sweep will take from a short probe of its arms, and how many seeds a budget pays for."""

import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from cluster.errors import ConfigError
from cluster.s3.store import Store
from orchestrator.config import BudgetConfig
from orchestrator.runs.record import RunRecord
from orchestrator.sweeping.tasks import CellTask as Task
from orchestrator.sweeping.tasks import Launch, finish_tasks, read_stored

Prices = Mapping[str, float]
FEWEST_SEEDS = 2  # one tells nothing of chance


class Prediction(BaseModel):
    """What one training of each arm takes, and how many go on at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: dict[str, float]
    """Seconds of one training of each arm."""
    dollars_per_hour: dict[str, float]
    """Price of one training of each arm, where it is known."""
    lanes: int
    """Trainings at the same time."""
    trials: int
    """Trainings of each arm beside those with the seeds: they choose its learning rate."""
    start_seconds: float
    """Seconds in which Ray Tune and the lanes start, before the first training."""
    probe_seconds: float
    """Seconds that the probe itself took."""

    def minutes(self, *, seeds: int) -> float:
        """From the command to the end, without the probe."""
        return (self.start_seconds + math.fsum(self.seconds.values()) * (seeds + self.trials) / self.lanes) / 60

    def dollars(self, *, seeds: int) -> float | None:
        """The price of all trainings; ``None`` if the price of an arm is not known."""
        if set(self.seconds) - set(self.dollars_per_hour):
            return None
        each = math.fsum(seconds * self.dollars_per_hour[arm] / 3600 for arm, seconds in self.seconds.items())
        return each * (seeds + self.trials)


def probe(
    sweep: str,
    runs: Mapping[str, RunRecord],
    *,
    store: Store,
    launch: Launch,
    lanes: int,
    trials: int,
    prices: Prices,
    together: Mapping[str, int],
) -> Prediction:
    """Train every arm for one epoch and for two, and infer what a whole training takes.

    Args:
        sweep: its name; nothing of the probe stays in the store.
        runs: what each arm trains.
        store: where the data is.
        launch: see `orchestrator.sweeping.tasks.Launch`.
        lanes: trainings at the same time.
        trials: see `Prediction`.
        prices: dollars per hour of a training of each arm.
        together: arm → how many of its trainings run as one batched model. The probe runs them the same way; arms that
            are not listed train one by one.
    """
    started = time.perf_counter()
    probes = [_Probe(arm, epochs, run) for arm, run in runs.items() for epochs in _epochs(run)]
    with _probe_sweep(f"{sweep}-probe", store) as name:
        finish_tasks(
            [task for one in probes for task in one.tasks(together.get(one.arm))],
            sweep=name,
            arms={one.name: one.shortened for one in probes},
            timeout_minutes=None,
            store=store,
            launch=launch,
        )
        spent = defaultdict(list)
        for cell in read_stored(store, name).cells:
            spent[cell.arm].append(cell.seconds)
    wall_s = time.perf_counter() - started
    took: dict[str, list[float]] = defaultdict(list)
    for one in probes:
        took[one.arm].append(statistics.fmean(spent[one.name]))
    return Prediction(
        seconds={arm: _whole(run, took[arm]) for arm, run in runs.items()},
        dollars_per_hour=dict(prices),
        lanes=lanes,
        trials=trials,
        start_seconds=max(0.0, wall_s - math.fsum(itertools.chain(*spent.values())) / lanes),
        probe_seconds=wall_s,
    )


class _Probe(NamedTuple):
    """An arm, trained for a few epochs."""

    arm: str
    epochs: int
    run: RunRecord

    @property
    def name(self) -> str:
        """What the probe calls it."""
        return f"{self.arm}-e{self.epochs}"

    @property
    def shortened(self) -> RunRecord:
        """What is trained."""
        train = self.run.experiment.train.model_copy(update={"epochs": self.epochs})
        return self.run.model_copy(update={"experiment": self.run.experiment.model_copy(update={"train": train})})

    def tasks(self, together: int | None) -> list[Task]:
        """One training, or as many as are one batched model."""
        first, pack = self.run.experiment.train.seed, self.name if together else None
        seeds = range(first, first + (together or 1))
        return [Task(name=f"{self.name}-s{seed}", arm=self.name, seed=seed, pack=pack) for seed in seeds]


@contextmanager
def _probe_sweep(name: str, store: Store) -> Iterator[str]:
    """A sweep of which nothing stays; what a killed probe of this name has left may be of other settings."""
    _remove(name, store)
    try:
        yield name
    finally:
        _remove(name, store)


def _remove(name: str, store: Store) -> None:
    store.delete([info.key for prefix in (f"sweeps/{name}/", f"runs/{name}.") for info in store.list(prefix)])


def _epochs(run: RunRecord) -> range:
    return range(1, min(2, run.experiment.train.epochs) + 1)


def _whole(run: RunRecord, found: Sequence[float]) -> float:
    """Seconds of all epochs, from those of one, and of two."""
    return found[0] + (run.experiment.train.epochs - 1) * max(0.0, found[-1] - found[0])


def seeds_within(budget: BudgetConfig, prediction: Prediction, *, most: int) -> int:
    """The most seeds, up to ``most``, that the budget pays for.

    Raises:
        ConfigError: it does not even pay for two, or a price is not known.
    """
    if budget.dollars is not None and prediction.dollars(seeds=1) is None:
        raise ConfigError(
            "scaling.dollars_per_hour must be given for sweep.budget.dollars, got nothing. Say what one worker costs."
        )

    def fits(seeds: int) -> bool:
        dollars = prediction.dollars(seeds=seeds)
        return (budget.minutes is None or prediction.minutes(seeds=seeds) <= budget.minutes) and (
            budget.dollars is None or dollars is None or dollars <= budget.dollars
        )

    found = next((seeds for seeds in range(most, 0, -1) if fits(seeds)), 0)
    if found < min(FEWEST_SEEDS, most):
        raise ConfigError(
            f"sweep.budget must pay for {FEWEST_SEEDS} seeds, which are predicted to take "
            f"{prediction_text(prediction, seeds=FEWEST_SEEDS)}, got {budget_text(budget)}. Raise it, vary less, or "
            "train a fraction of the combinations: sweep.resolution."
        )
    return found


def prediction_text(prediction: Prediction, *, seeds: int) -> str:
    """Such as ``3.2 min and $0.05``."""
    dollars = prediction.dollars(seeds=seeds)
    return cost_text(prediction.minutes(seeds=seeds), dollars)


def budget_text(budget: BudgetConfig) -> str:
    """As in `prediction_text`."""
    return cost_text(budget.minutes, budget.dollars)


def cost_text(minutes: float | None, dollars: float | None) -> str:
    """Minutes and dollars, those that are known."""
    parts = [] if minutes is None else [f"{minutes:.3g} min"]
    return " and ".join(parts + ([] if dollars is None else [f"${dollars:.3g}"]))

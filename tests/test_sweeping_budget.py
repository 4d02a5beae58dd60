"""What a sweep is predicted to take, and how many seeds a budget pays for."""

import itertools
from typing import Any

import pytest

from cluster.errors import ConfigError
from orchestrator.config import BudgetConfig
from orchestrator.evidence.record import Cell
from orchestrator.sweeping.budget import Prediction, prediction_text, probe, seeds_within
from orchestrator.sweeping.lane import claim_packs
from orchestrator.sweeping.tasks import CellTask as Task
from orchestrator.sweeping.tasks import LanePlan, run_record, write_cell
from tests.example_runs import JsonMemoryStore
from tests.test_sweeping_lane import (
    RELU,
    TANH,
    plan,
)
from tests.test_sweeping_lane import digits as digits  # a fixture


def prediction(**changes: Any) -> Prediction:
    fields = {
        "seconds": {"a": 20.0, "b": 40.0},
        "dollars_per_hour": {"a": 36.0, "b": 18.0},
        "lanes": 2,
        "trials": 0,
        "start_seconds": 30.0,
        "probe_seconds": 5.0,
    }
    return Prediction(**fields | changes)


def test_time_is_shared_among_lanes_and_money_is_not() -> None:
    assert prediction().minutes(seeds=3) == pytest.approx((30 + 3 * 60 / 2) / 60)
    assert prediction().dollars(seeds=3) == pytest.approx(3 * (0.2 + 0.2))
    assert prediction(trials=2).dollars(seeds=3) == pytest.approx(5 * 0.4), "what tunes costs, too"
    assert prediction(dollars_per_hour={"a": 36.0}).dollars(seeds=3) is None
    assert prediction_text(prediction(), seeds=3) == "2 min and $1.2"


@pytest.mark.parametrize(
    ("budget", "most", "seeds"),
    [
        ({"minutes": 2.0}, 1000, 3),
        ({"minutes": 1.99}, 1000, 2),
        ({"dollars": 2.01}, 1000, 5),
        ({"minutes": 2.0, "dollars": 0.81}, 1000, 2),
        ({"minutes": 600.0}, 4, 4),
        ({"minutes": 1.0}, 1, 1),
    ],
)
def test_the_most_seeds_that_fit_are_taken(budget: dict[str, float], most: int, seeds: int) -> None:
    assert seeds_within(BudgetConfig(**budget), prediction(), most=most) == seeds


def test_a_budget_that_pays_for_no_comparison_is_refused_with_the_figures() -> None:
    message = r"sweep.budget must pay for 2 seeds, which are predicted to take 1.5 min and \$0.8, got 1.4 min. Raise"
    with pytest.raises(ConfigError, match=message):
        seeds_within(BudgetConfig(minutes=1.4), prediction(), most=1000)
    with pytest.raises(ConfigError, match=r"scaling\.dollars_per_hour must be given for sweep\.budget\.dollars"):
        seeds_within(BudgetConfig(dollars=1.0), prediction(dollars_per_hour={}), most=1000)


def test_the_probe_infers_all_epochs_from_one_and_two_and_leaves_nothing(digits: dict[str, bytes]) -> None:
    store: Any = JsonMemoryStore(objects=dict(digits))
    runs = plan(store, epochs=10).arms

    def launch(attempt: LanePlan) -> str:
        """Every epoch takes 3 s, and the rest 1 s, or twice that."""
        packs.extend(pack := list(claim_packs(store, attempt, lane=0, lanes=1)))
        for task in itertools.chain(*pack):
            run = run_record(attempt, task)
            seconds = (1.0 + 3.0 * run.experiment.train.epochs) * (2 if task.arm.startswith(RELU) else 1)
            cell = Cell(arm=task.arm, seed=task.seed, run=run.run, state="finished", seconds=seconds)
            write_cell(store, attempt.sweep, cell)
        return ""

    packs: list[list[Task]] = []
    old = Cell(arm=f"{TANH}-e1", seed=3, run=f"s-probe.{TANH}-e1-s3", state="finished", seconds=999.0)
    write_cell(store, "s-probe", old)  # by a probe that was killed
    found = probe("s", runs, store=store, launch=launch, lanes=1, trials=0, prices={}, together={TANH: 3})
    assert sorted(map(len, packs)) == [1, 1, 3, 3]
    assert found.seconds == {TANH: pytest.approx(31.0), RELU: pytest.approx(62.0)}
    assert set(store.objects) == set(digits)
    once = probe("s", plan(store, epochs=1).arms, store=store, launch=launch, lanes=1, trials=0, prices={}, together={})
    assert once.seconds == {TANH: pytest.approx(4.0), RELU: pytest.approx(8.0)}

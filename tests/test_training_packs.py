"""Which trainings of a sweep are taken together, and what is said of it."""

from typing import Any

import pytest

from cluster.errors import ConfigError
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.driving.plan import plan_run
from orchestrator.sweeping.plan import plan_arms
from orchestrator.training.packs import Packing, choose_packing
from tests.example_runs import JsonMemoryStore
from tests.test_sweeping_lane import digits as digits  # a fixture

MLP, CNN = {"type": "mlp", "hidden": [8]}, {"type": "cnn", "channels": [4]}


def packing(digits: dict[str, bytes], *, lanes: int = 2, models: Any = (MLP, MLP), **sweep: Any) -> Packing:
    store: Any = JsonMemoryStore(objects=dict(digits))
    experiment = Experiment.model_validate(
        {
            "data": {"name": "digits"},
            "model": MLP,
            "train": {"epochs": 1, "learning_rate": 0.05},
            "sweep": {"vary": {"model": list(models), "train.momentum": [0, 0.9]}, "seeds": 5, **sweep},
        }
    )
    dataset = open_dataset(store, "digits")
    assert experiment.sweep is not None
    runs = {arm.name: plan_run(arm.experiment, dataset) for arm in plan_arms(experiment)}
    return choose_packing(experiment.sweep, runs, lanes=lanes)


def test_seeds_of_mlps_are_taken_together(digits: dict[str, bytes]) -> None:
    found = packing(digits, models=[MLP])
    assert (len(found.arms), found.size) == (2, 5)
    assert found.note == "each arm trains 5 seeds as one batched model; its seconds are shared equally"


def test_no_lane_is_left_without_work(digits: dict[str, bytes]) -> None:
    assert packing(digits, models=[MLP], lanes=5).size == 2
    found = packing(digits, models=[MLP], lanes=10)
    assert (found.arms, found.note) == (
        frozenset(),
        "each training by itself (there are as many lanes as trainings)",
    )


def test_other_models_are_trained_one_by_one_beside_them(digits: dict[str, bytes]) -> None:
    found = packing(digits, models=[MLP, CNN])
    assert len(found.arms) == 2
    assert "each of 2 arms (MLPs) trains 5 seeds as one batched model" in found.note


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [
        ({"models": [CNN]}, "batched models are for MLPs on one CPU worker"),
        ({"models": [MLP], "replicates": "alone"}, "sweep.replicates: alone"),
        ({"models": [MLP], "cell_timeout_minutes": 3}, "sweep.cell_timeout_minutes holds for each"),
        ({"models": [MLP], "seeds": 1}, "there is one seed"),
        ({"models": [MLP, CNN], "target": 0.9}, "costs are compared, and not all arms could be batched"),
        ({"models": [MLP, CNN], "dollars_per_hour": {"cpu": 1}}, "costs are compared"),
    ],
    ids=["cnn", "named", "time limit", "one seed", "target", "prices"],
)
def test_why_each_is_trained_by_itself_is_said(digits: dict[str, bytes], sweep: dict[str, Any], reason: str) -> None:
    found = packing(digits, **sweep)
    assert (found.arms, found.size) == (frozenset(), 1)
    assert reason in found.note


def test_what_is_named_and_cannot_be_is_refused(digits: dict[str, bytes]) -> None:
    with pytest.raises(
        ConfigError, match=r"sweep\.replicates must be auto or alone here, got together: batched models"
    ):
        packing(digits, models=[CNN], replicates="together")
    found = packing(digits, models=[MLP, CNN], replicates="together", target=0.9)
    assert len(found.arms) == 2, "whoever names it knows that costs are shares"

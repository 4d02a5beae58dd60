"""Sweeps: what is planned, what is run, and that nothing is run twice."""

from typing import Any

import pytest

from cluster.errors import ConfigError, NotFoundError
from cluster.state import RayState
from cluster.storage import Store
from orchestrator.config import Experiment
from orchestrator.data.push import push
from orchestrator.ledger import Cell
from orchestrator.runs import list_runs, read_run
from orchestrator.sweep import plan_arms, read_cells, read_sweep, resume_sweep, sweep

BASE: dict[str, Any] = {
    "data": {"name": "digits"},
    "model": {"type": "mlp", "hidden": [8]},
    "train": {"epochs": 1, "batch_size": 64, "learning_rate": 0.05},
}


def experiment(vary: dict[str, list[Any]], **groups: Any) -> Experiment:
    return Experiment.model_validate(BASE | groups | {"sweep": {"vary": vary, "seeds": 2}})


def test_the_plan_is_the_product_in_the_order_of_the_file() -> None:
    arms = plan_arms(experiment({"techniques.activation": ["tanh", "relu"], "model.dropout": [0.0, 0.2, 0.4]}))
    assert [arm.name for arm in arms] == [f"arm-0{i}" for i in range(6)]
    assert arms[1].settings == {"techniques.activation": "tanh", "model.dropout": 0.2}
    assert arms[1].experiment.techniques.activation == "tanh"
    assert arms[1].experiment.model.dropout == 0.2


def test_a_preset_may_be_varied() -> None:
    arms = plan_arms(experiment({"techniques": ["traditional", "deep"]}))
    assert [arm.experiment.techniques.preset for arm in arms] == ["traditional", "deep"]


def test_a_technique_that_a_model_lacks_is_named_and_not_run_twice() -> None:
    vary = {"model": [{"type": "fm"}, {"type": "mlp"}], "techniques.activation": ["tanh", "relu"]}
    arms = plan_arms(experiment(vary))
    assert [(arm.experiment.model.type, arm.settings.get("techniques.activation")) for arm in arms] == [
        ("fm", None),
        ("mlp", "tanh"),
        ("mlp", "relu"),
    ]
    assert arms[0].not_applicable == ("techniques.activation",)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (
            {"techniques.activaton": ["tanh"]},
            "sweep.vary.techniques.activaton must name a setting.*techniques.activation",
        ),
        ({"techniques.activation": ["tanh", "rleu"]}, r"sweep.vary \(techniques.activation=rleu\).*Did you mean relu"),
        ({"train.batch_size": [64, 33]}, r"sweep.vary \(train.batch_size=33\).*multiple of the logical workers"),
        ({"train.seed": [1, 2]}, "sweep.vary.train.seed must name a setting"),
        ({"sweep.seeds": [1, 2]}, "sweep.vary.sweep.seeds must name a setting"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_starts(vary: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_arms(experiment(vary))


def test_an_experiment_without_a_sweep_has_no_plan() -> None:
    with pytest.raises(ConfigError, match="sweep must be given"):
        plan_arms(Experiment.model_validate(BASE))


@pytest.mark.ray
@pytest.mark.store
def test_a_sweep_runs_every_cell_once_and_resuming_runs_only_what_is_missing(
    store: Store, ray_cluster: RayState
) -> None:
    push(store, "sklearn:digits")
    vary = {"techniques.activation": ["tanh", "relu"], "train.learning_rate": [0.05, 1e38]}
    seen: list[int] = []
    result = sweep(
        experiment(vary),
        store=store,
        address=ray_cluster.address,
        name="all",
        on_progress=lambda progress: seen.append(progress.done),
    )
    assert sorted(seen) == list(range(1, len(seen) + 1))
    assert [(c.arm, c.seed) for c in result.cells] == [(f"arm-0{a}", s) for a in range(4) for s in range(2)]
    # a learning rate of 1e38 leaves no number: those cells failed, the others went on
    states = {arm.arm: (arm.finished, arm.failed) for arm in result.ledger.arms}
    assert states == {"arm-00": (2, 0), "arm-01": (0, 2), "arm-02": (2, 0), "arm-03": (0, 2)}
    assert all("train_loss must be a finite number" in (c.error or "") for c in result.cells if c.state == "failed")
    assert result.ledger.best_run is not None
    assert read_run(store, result.ledger.best_run).checkpoint
    assert {r.sweep for r in list_runs(store)} == {"all"}

    key = "sweeps/all/cells/arm-02-s1.json"
    lost = Cell.model_validate_json(store.read(key))
    store.delete([key])
    others = {info.key: info.etag for info in store.list("sweeps/all/cells/")}
    assert len(others) == 7
    again = resume_sweep("all", store=store, address=ray_cluster.address)
    assert {i.key: i.etag for i in store.list("sweeps/all/cells/") if i.key != key} == others
    (repeated,) = (c for c in again.cells if (c.arm, c.seed) == ("arm-02", 1))
    assert repeated.metrics == lost.metrics
    assert again.ledger.winner == result.ledger.winner
    assert read_sweep(store, "all").state == "finished"
    assert read_cells(store, "all") == again.cells


@pytest.mark.ray
@pytest.mark.store
def test_a_sweep_of_data_parallel_trainings_gives_the_results_of_single_ones(
    store: Store, ray_cluster: RayState
) -> None:
    push(store, "sklearn:digits")
    vary = {"techniques.activation": ["tanh"]}
    alone = sweep(experiment(vary), store=store, address=ray_cluster.address, name="alone")
    nested = sweep(experiment(vary, scaling={"workers": 2}), store=store, address=ray_cluster.address, name="nested")
    assert [c.metrics for c in nested.cells] == [c.metrics for c in alone.cells]


@pytest.mark.store
def test_an_unknown_sweep_is_named(store: Store) -> None:
    with pytest.raises(NotFoundError, match="sweep must exist, got 'none'"):
        read_sweep(store, "none")

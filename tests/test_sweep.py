"""Sweeps: what is planned, what is run, and that nothing is run twice."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError, NotFoundError
from cluster.machine.state import RayState
from cluster.s3.store import Store
from cluster.s3.write_once import unsealed
from orchestrator.config import Experiment
from orchestrator.data.push import push
from orchestrator.evidence.record import Cell, busy_seconds
from orchestrator.reporting.sentences import outcome_of, outcome_sentence
from orchestrator.runs.record import list_runs, read_run
from orchestrator.sweep import resume_sweep, sweep
from orchestrator.sweeping.budget import Prediction
from orchestrator.sweeping.lane import claim_packs, run_pack
from orchestrator.sweeping.plan import plan_arms, plan_lines, plan_sweep
from orchestrator.sweeping.record import SweepRecord, SweepResult, dollars_spent, ledger_of, read_cells, read_sweep
from orchestrator.sweeping.tasks import CellTask as Task
from orchestrator.sweeping.tasks import LanePlan, finish_tasks, read_stored

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


def test_a_fraction_of_the_combinations_names_its_aliases() -> None:
    vary = {
        "techniques.activation": ["tanh", "relu"],
        "techniques.initialization": ["constant", "normalized"],
        "techniques.regularization": ["penalty", "layers"],
    }
    base = experiment(vary)
    assert base.sweep is not None
    third = base.sweep.model_copy(update={"resolution": 3})
    design, arms = plan_sweep(base.model_copy(update={"sweep": third}))
    assert len(arms) == 4
    assert design.generators == [
        "techniques.regularization = techniques.activation × techniques.initialization",
    ]
    assert (
        "techniques.activation is aliased with techniques.initialization × techniques.regularization" in design.aliases
    )
    assert arms[0].experiment.techniques.regularization == "layers"  # the product of two minus signs


def record_of(cells_of: Experiment, **fields: Any) -> SweepRecord:
    known = {"state": "running", "created": "", "seeds": [0, 1], "metric": "accuracy", "higher_is_better": True}
    return SweepRecord(sweep="s", experiment=cells_of, arms=plan_arms(cells_of), **known | fields)


def test_the_ledger_counts_dollars_and_the_way_to_the_target() -> None:
    base = experiment({"techniques.activation": ["tanh", "relu"]})
    assert base.sweep is not None
    base = base.model_copy(update={"sweep": base.sweep.model_copy(update={"target": 0.8})})
    cells = [
        Cell(
            arm=arm,
            seed=seed,
            run=f"{arm}-{seed}",
            state="finished",
            metrics={"accuracy": 0.9},
            seconds=seconds,
            history=[{"accuracy": 0.5, "seconds": 1.0}, {"accuracy": 0.9, "seconds": seconds}],
        )
        for arm, seconds in (("arm-00", 10.0), ("arm-01", 20.0))
        for seed in (0, 1)
    ]
    ledger = ledger_of(record_of(base, dollars_per_hour={"arm-00": 36.0, "arm-01": 18.0}), cells)
    found = {response.name: response for response in ledger.responses}
    assert list(found) == ["accuracy", "seconds", "seconds_to_target", "dollars", "dollars_to_target"]
    assert ledger.target == 0.8
    assert found["seconds_to_target"].effects[0].estimate == pytest.approx(10.0)
    assert found["dollars"].effects[0].estimate == pytest.approx(0.0)  # twice as long at half the price
    assert [r.name for r in ledger_of(record_of(base), cells).responses] == ["accuracy", "seconds", "seconds_to_target"]


def test_what_is_planned_and_what_it_took_is_said() -> None:
    base = experiment({"techniques.activation": ["tanh", "relu"]})
    assert plan_lines(record_of(base)) == ["all arms at one learning rate (0.05)"]
    prediction = Prediction(
        seconds={"arm-00": 30.0, "arm-01": 30.0},
        dollars_per_hour={"arm-00": 60.0, "arm-01": 60.0},
        lanes=2,
        trials=0,
        start_seconds=0.0,
        probe_seconds=4.0,
    )
    record = record_of(base, prediction=prediction, dollars_per_hour=prediction.dollars_per_hour)
    assert plan_lines(record)[-1] == "predicted: 1 min and $2, 2 trainings at a time; the probe took 4 s"
    cells = [
        Cell(arm=arm, seed=seed, run="r", state="finished", metrics={"accuracy": 0.5}, seconds=45.0)
        for arm in ("arm-00", "arm-01")
        for seed in (0, 1)
    ]
    result = SweepResult("s", ledger_of(record, cells), cells, record, seconds=99.0)
    assert dollars_spent(result) == pytest.approx(3.0)
    outcome = outcome_of(result)
    assert outcome is not None
    assert outcome_sentence(outcome) == "Predicted: 1 min and $2; taken: 1.65 min and $3."
    assert outcome_of(result._replace(record=record_of(base))) is None


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
    lost = unsealed(store.read(key), Cell, kind="cell")
    assert lost is not None
    store.delete([key])
    others = {info.key: info.etag for info in store.list("sweeps/all/cells/")}
    assert len(others) == 7
    again = resume_sweep("all", store=store, address=ray_cluster.address)
    assert {i.key: i.etag for i in store.list("sweeps/all/cells/") if i.key != key} == others
    (repeated,) = (c for c in again.cells if (c.arm, c.seed) == ("arm-02", 1))
    assert repeated.metrics == lost.metrics
    earlier = busy_seconds([cell for cell in again.cells if cell != repeated])
    assert earlier is not None and again.seconds > earlier + repeated.seconds  # what was there already counts too
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
    assert [c.error for c in nested.cells] == [None, None]
    assert [c.metrics for c in nested.cells] == [c.metrics for c in alone.cells]


SIXTEEN: dict[str, Any] = BASE | {
    "sweep": {
        "vary": {"techniques.activation": ["tanh", "relu"], "techniques.initialization": ["constant", "normalized"]},
        "seeds": 4,
        "concurrency": 2,
        "replicates": "alone",  # together they would be done before they can be killed; see tests/test_sweeping_lane.py
    }
}


@pytest.mark.ray
@pytest.mark.store
@pytest.mark.timeout(900)  # four drivers start, one after the other
def test_a_driver_that_is_killed_three_times_loses_and_repeats_nothing(
    store: Store, ray_cluster: RayState, tmp_path: Path
) -> None:
    push(store, "sklearn:digits")
    config = tmp_path / "sweep.yaml"
    config.write_text(json.dumps(SIXTEEN))
    before: list[set[str]] = []
    for words in ([str(config), "--name", "killed"], RESUME, RESUME):
        before.append(cell_keys(store))  # a worker ends its cell after the death of the driver
        kill_driver(words, store, ray_cluster, when=lambda: len(cell_keys(store)) > len(before[-1]))
        time.sleep(1)
    etags = {info.key: info.etag for info in store.list("sweeps/killed/cells/")}
    before.append(set(etags))
    result = resume_sweep("killed", store=store, address=ray_cluster.address)

    assert len(result.cells) == 16
    assert {i.key: i.etag for i in store.list("sweeps/killed/cells/") if i.key in etags} == etags
    plans = [LanePlan.model_validate_json(store.read(i.key)) for i in store.list("sweeps/killed/attempts/")]
    asked = sorted(({f"sweeps/killed/cells/{t.name}.json" for t in p.tasks} for p in plans), key=len, reverse=True)
    assert len(asked) == 4
    for cells, done in zip(asked, before, strict=True):
        assert not cells & done, "what was finished is not even asked for again"
    expected = unbroken(result.record, plans[0], store)
    assert [c.metrics for c in result.cells] == [c.metrics for c in expected]
    ledger = ledger_of(result.record, expected)
    assert (result.ledger.winner, [row.arm for row in result.ledger.arms]) == (
        ledger.winner,
        [row.arm for row in ledger.arms],
    )


RESUME = ["--resume", "killed"]


def cell_keys(store: Store) -> set[str]:
    return {info.key for info in store.list("sweeps/killed/cells/")}


def kill_driver(words: list[str], store: Store, cluster: RayState, *, when: Callable[[], bool]) -> None:
    """Start a sweep as a user does, and SIGKILL it."""
    options = ["--store", store.settings.url, "--address", cluster.address]
    command = [sys.executable, "-m", "orchestrator", "sweep", *words, *options]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not when():
            assert driver.poll() is None, driver.stderr and driver.stderr.read()
            time.sleep(0.02)
    finally:
        driver.kill()
        driver.communicate()


def unbroken(record: SweepRecord, plan: LanePlan, store: Store) -> list[Cell]:
    """The same cells, trained one after the other in this process."""

    def launch(attempt: LanePlan) -> str:
        for pack in claim_packs(store, attempt, lane=0, lanes=1):
            run_pack(attempt, pack, store=store)
        return ""

    tasks = [Task(name=f"{arm.name}-s{seed}", arm=arm.name, seed=seed) for seed in record.seeds for arm in record.arms]
    finish_tasks(tasks, sweep="unbroken", arms=plan.arms, timeout_minutes=None, store=store, launch=launch)
    return read_stored(store, "unbroken").cells


@pytest.mark.store
def test_an_unknown_sweep_is_named_and_only_sweeps_are_offered(store: Store) -> None:
    store.write("sweeps/some-probe/cells/arm.json", b"{}")
    with pytest.raises(NotFoundError, match=re.escape("sweep must exist, got 'none'. There are none yet.")):
        read_sweep(store, "none")
    store.write("sweeps/some/sweep.json", b"{}")
    with pytest.raises(NotFoundError, match=r"got 'none'. Known: some[.]"):
        read_sweep(store, "none")

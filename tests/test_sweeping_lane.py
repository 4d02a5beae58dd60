"""Cells: what is written down, what one bad cell does to the others, and that nothing is lost or done twice."""

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RunUnfinishedError, StoreUnavailableError
from cluster.s3.store import Store
from cluster.s3.write_once import unsealed
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.driving.plan import plan_run
from orchestrator.evidence.record import Cell
from orchestrator.runs.record import read_run
from orchestrator.sweeping.lane import claim_packs, run_cell, run_pack, run_task
from orchestrator.sweeping.plan import plan_arms
from orchestrator.sweeping.record import SweepRecord, ledger_of, read_sweep
from orchestrator.sweeping.run import finish_sweep
from orchestrator.sweeping.tasks import CellTask as Task
from orchestrator.sweeping.tasks import LanePlan, finish_tasks, read_stored, write_cell
from tests.example_runs import JsonMemoryStore

ROOT = Path(__file__).parents[1]
TANH, RELU = "arm-00", "arm-01"
SEEDS = (3, 4)


def experiment(**train: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"type": "mlp", "hidden": [8]},
            "train": {"epochs": 1, "batch_size": 256, "learning_rate": 0.05, "seed": SEEDS[0], **train},
            "sweep": {"vary": {"techniques.activation": ["tanh", "relu"]}, "seeds": len(SEEDS)},
        }
    )


def plan(store: Any, *, timeout_minutes: float | None = None, attempt: str = "a", **train: Any) -> LanePlan:
    arms = plan_arms(experiment(**train))
    dataset = open_dataset(store, "digits")
    return LanePlan(
        sweep="s",
        attempt=attempt,
        arms={arm.name: plan_run(arm.experiment, dataset) for arm in arms},
        tasks=[Task(name=f"{arm.name}-s{s}", arm=arm.name, seed=s) for s in SEEDS for arm in arms],
        timeout_minutes=timeout_minutes,
    )


@pytest.fixture(scope="module")
def digits() -> dict[str, bytes]:
    store: Any = JsonMemoryStore()
    push(store, "sklearn:digits")
    return dict(store.objects)


@pytest.fixture
def memory(digits: dict[str, bytes]) -> Any:
    return JsonMemoryStore(objects=dict(digits))


def a_cell(arm: str = TANH, seed: int = 3, **changes: Any) -> Cell:
    fields = {"state": "finished", "metrics": {"accuracy": 0.9875}, "seconds": 1.5, **changes}
    return Cell(arm=arm, seed=seed, run=f"s.{arm}-s{seed}", **fields)


# ---- one cell


def test_a_cell_holds_what_the_training_found_and_how_it_got_there(memory: Any) -> None:
    cell = run_cell(plan(memory, epochs=2), plan(memory).tasks[0], store=memory, lane=1)
    assert (cell.arm, cell.seed, cell.state, cell.lane, cell.learning_rate) == (TANH, 3, "finished", 1, 0.05)
    assert [entry["epoch"] for entry in cell.history] == [1, 2]
    assert cell.history[-1]["accuracy"] == cell.metrics["accuracy"]  # digits are judged on their test split
    assert sum(entry["seconds"] for entry in cell.history) < cell.seconds
    record = read_run(memory, cell.run)
    assert (record.state, record.sweep, record.metrics) == ("finished", "s", cell.metrics)
    assert record.experiment.train.seed == 3
    assert record.checkpoint


def test_a_cell_is_the_same_in_whatever_order_cells_are_trained(memory: Any) -> None:
    todo = plan(memory)
    first = [run_cell(todo, task, store=memory).metrics for task in todo.tasks]
    again = [run_cell(todo, task, store=memory).metrics for task in todo.tasks[::-1]]
    assert first == again[::-1]
    assert len({json.dumps(metrics) for metrics in first}) == len(first)


@pytest.mark.parametrize(
    ("train", "failpoint", "message"),
    [
        ({"learning_rate": 1e38}, "", "train_loss must be a finite number"),
        ({}, "train.after_step=raise", "FailpointError: failpoint train.after_step"),
    ],
    ids=["no number", "a bug"],
)
def test_a_bad_cell_says_why_and_does_not_stop_the_others(
    memory: Any, train: dict[str, Any], failpoint: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if failpoint:
        monkeypatch.setenv("ORCHESTRATOR_FAILPOINTS", failpoint)
    good = plan(memory)
    bad = run_cell(plan(memory, **train), good.tasks[0], store=memory)
    assert bad.state == "failed"
    assert message in (bad.error or "")
    assert read_run(memory, bad.run).state == "failed"
    assert run_cell(good, good.tasks[1], store=memory).state == "finished"


def test_memory_that_cannot_be_had_fails_one_cell(memory: Any) -> None:
    todo = plan(memory)
    arms = todo.arms | {TANH: todo.arms[TANH].model_copy(update={"experiment": huge()})}
    assert "alloc" in (run_cell(todo.model_copy(update={"arms": arms}), todo.tasks[0], store=memory).error or "")
    assert run_cell(todo, todo.tasks[1], store=memory).state == "finished"


def huge() -> Experiment:
    """Its first layer has 2^46 weights."""
    found = experiment()
    return found.model_copy(update={"model": found.model.model_copy(update={"hidden": (2**40,)})})


def test_a_store_that_is_away_is_no_fault_of_the_cell(memory: Any) -> None:
    def refuse(operation: str, key: str) -> None:
        raise StoreUnavailableError("the store must answer, got nothing.")

    todo = plan(memory)
    memory.before = refuse
    with pytest.raises(StoreUnavailableError):
        run_cell(todo, todo.tasks[0], store=memory)


HANGING_LANE = """
import sys
from cluster.config import StoreSettings
from cluster.s3.store import Store
from orchestrator.sweeping.tasks import LanePlan; from orchestrator.sweeping.lane import run_task
store = Store(StoreSettings.model_validate_json(sys.argv[1]))
plan = LanePlan.model_validate_json(store.read(sys.argv[2]))
run_task(plan, plan.tasks[0], store=store, lane=7)
"""


@pytest.mark.store
def test_a_cell_that_hangs_is_ended_and_counts_as_failed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    push(store, "sklearn:digits")
    hanging = plan(store, timeout_minutes=0.02)
    store.write(hanging.key, hanging.model_dump_json().encode())
    monkeypatch.setenv("ORCHESTRATOR_FAILPOINTS", "train.after_step=sleep:600")
    command = [sys.executable, "-c", HANGING_LANE, store.settings.model_dump_json(), hanging.key]
    assert subprocess.run(command, check=False, cwd=ROOT, timeout=120).returncode == 1
    (cell,) = read_stored(store, "s").cells
    assert (cell.arm, cell.seed, cell.state, cell.lane) == (TANH, 3, "failed", 7)
    assert "must end within sweep.cell_timeout_minutes (0.02)" in (cell.error or "")


# ---- the ledger's objects


def test_the_first_result_of_a_cell_counts(memory: Any) -> None:
    write_cell(memory, "s", a_cell())
    write_cell(memory, "s", a_cell(metrics={"accuracy": 0.1}))
    assert read_stored(memory, "s").cells == [a_cell()]


def test_a_cell_may_hold_what_is_no_number(memory: Any) -> None:
    write_cell(memory, "s", a_cell(metrics={"accuracy": 0.5, "loss": float("inf")}))
    assert read_stored(memory, "s").cells[0].metrics["loss"] == float("inf")


def damaged_bodies(body: bytes) -> Iterator[bytes]:
    yield b""
    yield body[:-1]
    yield body[: len(body) // 2]
    yield body[1:]
    yield body.replace(b"0.9875", b"0.9675")  # still a cell, but not the one that was written
    yield body.replace(b"finished", b"finish\xff")
    yield json.dumps(json.loads(body)["cell"]).encode()
    yield body.replace(b'"arm"', b'"are"')
    yield b"[]"
    yield bytes(len(body))


def test_ten_damaged_cells_are_named_and_done_again_and_nothing_else_is_touched(memory: Any) -> None:
    for seed in range(12):
        write_cell(memory, "s", a_cell(seed=seed))
    keys = [f"sweeps/s/cells/{TANH}-s{seed}.json" for seed in range(10)]
    sound = {key: body for key, body in memory.objects.items() if key not in keys}
    for key, body in zip(keys, damaged_bodies(memory.objects[keys[0]]), strict=True):
        memory.objects[key] = body
    found = read_stored(memory, "s")
    assert found.damaged == sorted(keys)
    assert [cell.seed for cell in found.cells] == [10, 11]
    for seed in range(12):
        write_cell(memory, "s", a_cell(seed=seed))
    assert [cell.seed for cell in read_stored(memory, "s").cells] == list(range(12))
    assert {key: memory.objects[key] for key in sound} == sound


def test_any_changed_byte_of_a_cell_is_noticed(memory: Any) -> None:
    write_cell(memory, "s", a_cell())
    (body,) = (data for key, data in memory.objects.items() if "/cells/" in key)
    changed = [body[:i] + bytes([body[i] ^ 1]) + body[i + 1 :] for i in range(len(body))]
    found = [unsealed(data, Cell, kind="cell") for data in changed]
    assert [cell for cell in found if cell not in (None, a_cell())] == []


def test_who_looks_again_reads_only_what_has_come_or_changed(memory: Any) -> None:
    for seed in range(3):
        write_cell(memory, "s", a_cell(seed=seed))
    first = read_stored(memory, "s")
    key = f"sweeps/s/cells/{TANH}-s1.json"
    memory.objects[key] = b"damaged"
    write_cell(memory, "s", a_cell(seed=3))
    memory.log.clear()
    found = read_stored(memory, "s")
    assert [name for operation, name in memory.log if operation == "read"] == [key, key.replace("-s1", "-s3")]
    assert (found.damaged, [cell.seed for cell in found.cells]) == ([key], [0, 2, 3])
    assert found.cells[:2] == [first.cells[0], first.cells[2]]


# ---- lanes


def test_lanes_at_the_same_time_take_every_task_once(memory: Any) -> None:
    todo = plan(memory).model_copy(update={"tasks": [Task(name=f"t{i}", arm=TANH, seed=i) for i in range(40)]})
    taken: list[list[str]] = [[], [], []]

    def lane(number: int) -> None:
        taken[number] += [task.name for (task,) in claim_packs(memory, todo, lane=number, lanes=3)]

    threads = [threading.Thread(target=lane, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(itertools.chain(*taken)) == sorted(task.name for task in todo.tasks)


class Lanes:
    """Stands for Ray Tune: one lane in this process, which dies where it is told to."""

    def __init__(self, store: Any, *, deadly: Callable[[Task], bool] = lambda task: False):
        self.store, self.deadly = store, deadly
        self.trained: list[str] = []

    def __call__(self, plan: LanePlan) -> str:
        for (task,) in claim_packs(self.store, plan, lane=0, lanes=1):
            if self.deadly(task):
                return "the process died"
            self.trained.append(task.name)
            run_task(plan, task, store=self.store)
        return ""


def finish(store: Any, launch: Callable[[LanePlan], str]) -> list[Cell]:
    todo = plan(store)
    finish_tasks(todo.tasks, sweep="s", arms=todo.arms, timeout_minutes=None, store=store, launch=launch)
    return read_stored(store, "s").cells


def test_a_cell_that_kills_its_process_twice_has_failed_and_the_others_are_done_once(memory: Any) -> None:
    lanes = Lanes(memory, deadly=lambda task: task.name == f"{RELU}-s3")
    cells = finish(memory, lanes)
    assert [(c.arm, c.seed, c.state) for c in cells if c.state == "failed"] == [(RELU, 3, "failed")]
    assert sorted(lanes.trained) == [f"{TANH}-s3", f"{TANH}-s4", f"{RELU}-s4"]
    assert "must not end its process, got 2 deaths in a row" in next(c.error or "" for c in cells if c.error)


def test_a_process_that_dies_once_costs_its_cell_nothing(memory: Any) -> None:
    died: list[str] = []
    lanes = Lanes(memory, deadly=lambda task: task.seed == 4 and not died and not died.append(task.name))  # type: ignore[func-returns-value]
    assert [cell.state for cell in finish(memory, lanes)] == ["finished"] * 4
    assert died == [f"{TANH}-s4"]


# ---- packs


def packed(store: Any, **train: Any) -> LanePlan:
    """Both seeds of an arm together."""
    alone = plan(store, **train)
    return alone.model_copy(update={"tasks": [t.model_copy(update={"pack": f"{t.arm}-0"}) for t in alone.tasks]})


class Packs:
    """Stands for Ray Tune: one lane in this process, which dies where it is told to."""

    def __init__(self, store: Any, *, deadly: Callable[[list[Task]], bool] = lambda pack: False):
        self.store, self.deadly = store, deadly
        self.begun: list[list[str]] = []

    def __call__(self, plan: LanePlan) -> str:
        for pack in claim_packs(self.store, plan, lane=0, lanes=1):
            self.begun.append([task.name for task in pack])
            if self.deadly(pack):
                return "the process died"
            run_pack(plan, pack, store=self.store)
        return ""


def finish_packed(store: Any, launch: Callable[[LanePlan], str], **train: Any) -> list[Cell]:
    todo = packed(store, **train)
    finish_tasks(todo.tasks, sweep="s", arms=todo.arms, timeout_minutes=None, store=store, launch=launch)
    return read_stored(store, "s").cells


def test_a_pack_gives_the_cells_of_single_trainings_and_shares_its_seconds(memory: Any) -> None:
    other: Any = JsonMemoryStore(objects=dict(memory.objects))
    alone, together = finish(other, Lanes(other)), finish_packed(memory, lanes := Packs(memory))
    assert lanes.begun == [[f"{TANH}-s3", f"{TANH}-s4"], [f"{RELU}-s3", f"{RELU}-s4"]]
    for one, cell in zip(alone, together, strict=True):
        assert (cell.run, cell.state, cell.metrics) == (one.run, one.state, pytest.approx(one.metrics, rel=1e-5))
        assert read_run(memory, cell.run).checkpoint
    assert together[0].seconds == together[1].seconds
    assert together[1].started == pytest.approx((together[0].started or 0) + together[0].seconds, abs=0.01)


def test_one_bad_training_of_a_pack_fails_alone(memory: Any) -> None:
    todo = packed(memory)
    rates = {3: 0.05, 4: 1e38}
    tasks = [task.model_copy(update={"learning_rate": rates[task.seed]}) for task in todo.tasks if task.arm == TANH]
    run_pack(todo, tasks, store=memory)
    cells = read_stored(memory, "s").cells
    assert [cell.state for cell in cells] == ["finished", "failed"]
    assert "train_loss must be a finite number" in (cells[1].error or "")
    assert read_run(memory, cells[1].run).state == "failed"


def test_a_pack_that_its_process_does_not_survive_is_trained_one_by_one(memory: Any) -> None:
    lanes = Packs(memory, deadly=lambda pack: len(pack) > 1 and pack[0].arm == RELU)
    assert [cell.state for cell in finish_packed(memory, lanes)] == ["finished"] * 4
    assert [len(pack) for pack in lanes.begun] == [2, 2, 1, 1]


def test_a_pack_that_cannot_be_trained_together_is_trained_one_by_one(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_FAILPOINTS", "train.after_step=raise#1")
    assert [cell.state for cell in finish_packed(memory, Packs(memory))] == ["finished"] * 4


def test_what_a_pack_had_finished_stays_when_it_is_trained_again(memory: Any) -> None:
    unbroken: Any = JsonMemoryStore(objects=dict(memory.objects))
    expected = finish_packed(unbroken, Packs(unbroken))
    todo = packed(memory)
    first = next(cell for cell in expected if cell.run == f"s.{TANH}-s3")
    write_cell(memory, "s", first)
    before = memory.objects[f"sweeps/s/cells/{TANH}-s3.json"]
    found = finish_packed(memory, Packs(memory))
    assert memory.objects[f"sweeps/s/cells/{TANH}-s3.json"] == before
    assert [(cell.run, cell.metrics) for cell in found] == [(cell.run, cell.metrics) for cell in expected]
    assert len(todo.tasks) == len(found)


def test_a_sweep_without_a_living_lane_ends(memory: Any) -> None:
    with pytest.raises(RunUnfinishedError, match="sweep s must keep a lane alive, got no GPU here"):
        finish(memory, lambda plan: "no GPU here")


class DriverKilledError(Exception):
    """Stands for SIGKILL."""


def test_a_driver_that_is_killed_again_and_again_loses_and_repeats_nothing(memory: Any) -> None:
    unbroken: Any = JsonMemoryStore(objects=dict(memory.objects))
    expected = finish(unbroken, Lanes(unbroken))
    attempts = []
    for budget in (1, 0, 2, 99):  # cells that each driver lives for
        lanes = Lanes(memory)
        lanes.deadly = dies_after(budget, lanes)
        attempts.append(lanes)
        try:
            finish(memory, lanes)
        except DriverKilledError:
            continue
    trained = [name for lanes in attempts for name in lanes.trained]
    assert sorted(trained) == sorted(task.name for task in plan(memory).tasks)
    found = read_stored(memory, "s").cells
    assert [(c.run, c.metrics) for c in found] == [(c.run, c.metrics) for c in expected]
    assert verdict(found) == verdict(expected)


def dies_after(budget: int, lanes: Lanes) -> Callable[[Task], bool]:
    def deadly(task: Task) -> bool:
        if len(lanes.trained) >= budget:
            raise DriverKilledError
        return False

    return deadly


def verdict(cells: list[Cell]) -> tuple[str | None, str | None]:
    ledger = ledger_of(sweep_record(experiment()), cells)
    return ledger.winner, ledger.best_run


def sweep_record(base: Experiment) -> SweepRecord:
    return SweepRecord(
        sweep="s",
        state="running",
        created="",
        experiment=base,
        arms=plan_arms(base),
        seeds=list(SEEDS),
        metric="accuracy",
        higher_is_better=True,
    )


# ---- learning rates


def tuned_sweep() -> SweepRecord:
    base = experiment(learning_rate=0.2)
    assert base.sweep is not None
    return sweep_record(base.model_copy(update={"sweep": base.sweep.model_copy(update={"tune_learning_rate": 3})}))


def test_every_arm_is_compared_at_the_learning_rate_that_suits_it_and_a_kill_changes_nothing(memory: Any) -> None:
    runs = plan(memory).arms
    unbroken: Any = JsonMemoryStore(objects=dict(memory.objects))
    expected = finish_sweep(tuned_sweep(), runs, store=unbroken, launch=Lanes(unbroken))
    record, trained = tuned_sweep(), []
    for budget in (2, 5, 99):  # within the tuning, and within what is compared
        lanes = Lanes(memory)
        lanes.deadly = dies_after(budget, lanes)
        with suppress(DriverKilledError):
            found = finish_sweep(record, runs, store=memory, launch=lanes)
        trained += lanes.trained
        if memory.exists("sweeps/s/sweep.json"):
            record = read_sweep(memory, "s")
    assert sorted(trained) == sorted(
        [f"{arm}-lr{i}" for arm in runs for i in range(3)] + [f"{arm}-s{seed}" for arm in runs for seed in SEEDS]
    )
    assert [c.metrics for c in found.cells] == [c.metrics for c in expected.cells]
    chosen = {arm.name: arm.tuned.learning_rate for arm in found.record.arms if arm.tuned}
    assert chosen == {arm.name: arm.tuned.learning_rate for arm in expected.record.arms if arm.tuned}
    assert {c.arm: c.learning_rate for c in found.cells} == chosen
    assert any("every arm at a learning rate of its own, the best of 3" in note for note in found.ledger.notes)
    tuning = read_stored(memory, "s", folder="tuning").cells
    assert {c.seed for c in tuning} == {SEEDS[-1] + 1}
    assert sorted({c.learning_rate for c in tuning}) == [0.0632, 0.2, 0.632]
    for arm in found.record.arms:
        best = max((c for c in tuning if c.arm == arm.name), key=lambda c: c.metrics["accuracy"])
        assert best.learning_rate == chosen[arm.name]

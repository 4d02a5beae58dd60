"""The drill: what is compared, when it passes and fails, what it leaves behind, and one on a real cluster."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import ConfigError
from cluster.failpoints import parse_failpoints
from cluster.machine.state import RayState
from cluster.s3.store import Store
from orchestrator.commands.printing.runs import drill_verdict, print_drill, print_receipt
from orchestrator.commands.terminal import plain
from orchestrator.config import Experiment
from orchestrator.data.push import push
from orchestrator.drill import (
    DrillPlan,
    DrillResult,
    Fingerprint,
    choose_kill_step,
    delete_drills,
    drill,
    fingerprint,
    list_drills,
    perform,
    plan_drill,
    tensors_sha256,
)
from orchestrator.runs.attempts import begin_attempt, receipt, write_attempt
from orchestrator.runs.checkpoint import Progress, State
from orchestrator.runs.record import read_run
from orchestrator.train import RunResult
from orchestrator.training.worker import Arithmetic
from tests.example_runs import JsonMemoryStore, write_run
from tests.test_runs_attempts import attempt, killed_then_finished

NAME = "drill-digits-20261122-101500-a1b2"


def experiment(**changes: Any) -> Experiment:
    groups: dict[str, Any] = {
        "data": {"name": "digits"},
        "model": {"type": "cnn", "channels": [4, 8]},
        "train": {"epochs": 30, "batch_size": 64, "learning_rate": 0.05},
        "scaling": {"workers": 1, "logical_workers": 2},
    }
    return Experiment.model_validate({n: {**g, **changes.get(n, {})} for n, g in groups.items()})


class Training:
    """Stands for `train` on a cluster: leaves what a finished run leaves; a kill costs it an attempt."""

    def __init__(self, store: Any, *, is_killed: bool = True, seed_after_kill: int = 0):
        self.store, self.is_killed, self.seed_after_kill = store, is_killed, seed_after_kill
        self.failpoints: dict[str, str | None] = {}

    def __call__(self, experiment: Experiment, *, run: str, on_start: Any, failpoints: str | None = None) -> RunResult:
        self.failpoints[run] = failpoints
        assert self.store.exists(f"runs/{run}/drill.json"), "a drill that dies here can still be found"
        killed = failpoints is not None and self.is_killed
        if killed:
            self._attempt(run, end="worker_lost", first_step_at=10.0, last_step_at=20.0, ended=21.0, reached_step=34)
        resumed = {"resumed_step": 23, "started": 22.0, "first_step_at": 26.5} if killed else {}
        self._attempt(run, end="finished", reached_step=46, **resumed)
        write_run(self.store, run=run, kind="pictures", seed=self.seed_after_kill if killed else 0)
        record = read_run(self.store, run)
        on_start(record, Arithmetic(1438, 23, 46, 32, 1000))
        return RunResult(run, record.metrics, [], record)

    def _attempt(self, run: str, **fields: Any) -> None:
        begun = begin_attempt(self.store, run, workers=2)
        write_attempt(self.store, run, begun.model_copy(update=fields))


@pytest.fixture
def memory() -> Any:
    return JsonMemoryStore()


@pytest.fixture
def plan() -> DrillPlan:
    return plan_drill(experiment(), name=NAME)


def checkpoints(store: Any, run: str) -> list[str]:
    return [info.key for info in store.list(f"runs/{run}/checkpoints/")]


# ---- what is planned


def test_a_drill_is_the_experiment_shortened(plan: DrillPlan) -> None:
    assert plan.experiment.train.epochs == 2
    assert plan.experiment.model == experiment().model
    assert (plan.unbroken, plan.killed) == (f"{NAME}-unbroken", f"{NAME}-killed")


def test_a_drill_can_resume_whatever_the_experiment_says() -> None:
    without = experiment(train={"checkpoint_epochs": 10}, scaling={"max_failures": 0, "dollars_per_hour": 1.5})
    planned = plan_drill(without, workers=2, epochs=3).experiment
    assert (planned.train.checkpoint_epochs, planned.scaling.max_failures) == (1, 1)
    assert (planned.scaling.workers, planned.scaling.dollars_per_hour, planned.train.epochs) == (2, 1.5, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kill": "workers"}, r"kill must be one of worker, got 'workers'\. Did you mean worker\?"),
        ({"epochs": 0}, "train.epochs must be greater than 0, got 0"),
        ({"workers": 3}, "scaling.logical_workers must be at least scaling.workers"),
    ],
)
def test_what_cannot_be_drilled_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_drill(experiment(), **changes)


def test_names_of_a_drills_runs_fit_where_names_may_be_long() -> None:
    planned = plan_drill(experiment(data={"name": "d" * 63}))
    assert planned.unbroken.startswith("drill-ddd")
    assert len(planned.unbroken) <= 63


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(2, 23, 34), (1, 10, 5), (2, 1, 2), (1, 1, 1)])
def test_the_kill_comes_amid_the_last_epoch(epochs: int, steps: int, expected: int) -> None:
    assert choose_kill_step(epochs=epochs, steps_per_epoch=steps) == expected


# ---- what is compared


def state(**changes: Any) -> State:
    progress = Progress(
        epoch=1,
        update=2,
        logical_workers=2,
        dataset_version="d",
        environment={},
        history=[{"epoch": 1, "loss": 0.5, "seconds": 1.0} | changes.get("history", {})],
    )
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 2)}
    optimizer = {"a.step": torch.tensor(3.0)}
    return State(weights | changes.get("weights", {}), optimizer | changes.get("optimizer", {}), progress)


def test_times_do_not_count_and_all_else_does() -> None:
    same = fingerprint(state(), {"accuracy": 0.5})
    assert fingerprint(state(history={"seconds": 9.0, "samples_per_s": 1.0}), {"accuracy": 0.5}) == same
    other = {
        "metrics": [
            fingerprint(state(), {"accuracy": 0.6}),
            fingerprint(state(history={"loss": 0.4}), {"accuracy": 0.5}),
        ],
        "weights": [fingerprint(state(weights={"a": torch.tensor([1.0, 2.0000002])}), {"accuracy": 0.5})],
        "optimizer": [fingerprint(state(optimizer={"a.step": torch.tensor(4.0)}), {"accuracy": 0.5})],
    }
    for part, prints in other.items():
        for found in prints:
            assert {p for p in Fingerprint.model_fields if getattr(found, p) != getattr(same, p)} == {part}


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([0.0, -0.0]),
        torch.tensor([[0.0, 0.0]]),
        torch.tensor([0.0, 0.0], dtype=torch.float64),
        torch.tensor([0, 0]),
        torch.tensor(0.0),
        torch.tensor([]),
        torch.tensor([0.0, 0.0], dtype=torch.bfloat16),
    ],
)
def test_tensors_are_the_same_only_in_every_bit_shape_and_type(tensor: torch.Tensor) -> None:
    zeros = torch.tensor([0.0, 0.0])
    assert tensors_sha256({"a": tensor}) != tensors_sha256({"a": zeros})
    assert tensors_sha256({"a": tensor}) == tensors_sha256({"a": tensor.clone()})
    assert tensors_sha256({"b": zeros, "a": tensor}) == tensors_sha256({"a": tensor, "b": zeros})


def test_the_memory_layout_of_a_tensor_does_not_count() -> None:
    picture = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert tensors_sha256({"a": picture.to(memory_format=torch.channels_last)}) == tensors_sha256({"a": picture})


# ---- what a drill does


def test_a_drill_passes_when_the_killed_run_ends_with_the_same_bits(memory: Any, plan: DrillPlan) -> None:
    training = Training(memory)
    started: list[str] = []
    result = perform(plan, store=memory, fit=training, on_start=lambda record, _: started.append(record.run))
    assert (result.passed, result.was_killed, result.differences) == (True, True, ())
    assert (result.kill_step, result.recovery_s, result.steps_lost) == (34, 1 + 1 + 4.5, 11)
    assert result.expected == result.found
    assert started == [plan.unbroken, plan.killed]
    assert training.failpoints[plan.unbroken] is None
    rule = training.failpoints[plan.killed]
    assert rule == f"train.after_step=kill@rank0#34!orchestrator-{plan.killed}"
    assert len(parse_failpoints(rule)) == 1


def test_a_drill_that_passed_removes_its_checkpoints_unless_asked_to_keep_them(memory: Any, plan: DrillPlan) -> None:
    result = perform(plan, store=memory, fit=Training(memory))
    assert not result.has_checkpoints
    assert checkpoints(memory, plan.unbroken) == checkpoints(memory, plan.killed) == []
    assert read_run(memory, plan.killed).state == "finished"
    kept = perform(plan, store=memory, fit=Training(memory), keep_checkpoints=True)
    assert kept.has_checkpoints
    assert checkpoints(memory, plan.unbroken)
    assert checkpoints(memory, plan.killed)


def test_markers_of_removed_checkpoints_go_first(memory: Any, plan: DrillPlan) -> None:
    perform(plan, store=memory, fit=Training(memory))
    deleted = [key for operation, key in memory.log if operation == "delete" and f"{plan.killed}/checkpoints" in key]
    assert deleted[0].endswith("/COMPLETE")


def test_other_bits_fail_a_drill_and_leave_the_evidence(memory: Any, plan: DrillPlan) -> None:
    result = perform(plan, store=memory, fit=Training(memory, seed_after_kill=1))
    assert (result.passed, result.was_killed, result.differences) == (False, True, ("weights",))
    assert result.has_checkpoints
    assert checkpoints(memory, plan.unbroken)
    assert "must end with the same bits, got other weights" in drill_verdict(result)[0]


def test_a_kill_that_did_not_happen_proves_nothing(memory: Any, plan: DrillPlan) -> None:
    result = perform(plan, store=memory, fit=Training(memory, is_killed=False))
    assert (result.passed, result.was_killed, result.differences, result.recovery_s) == (False, False, (), None)
    assert "so nothing was proved" in drill_verdict(result)[0]


def test_a_drill_that_failed_tells_how_the_machines_differed(memory: Any, plan: DrillPlan) -> None:
    result = perform(plan, store=memory, fit=Training(memory, seed_after_kill=1))
    result = result.model_copy(update={"environments": ("processor: x86_64 and aarch64",)})
    assert drill_verdict(result)[1] == "they ran in different environments: processor: x86_64 and aarch64"


def test_runs_of_drills_are_found_by_their_mark_and_deleted_whole(memory: Any, plan: DrillPlan) -> None:
    perform(plan, store=memory, fit=Training(memory))
    write_run(memory, run="drill-is-my-own-name", kind="pictures")
    write_run(memory, run="other", kind="pictures")
    memory.write("runs/drill-died-early-killed/drill.json", b"{}")
    found = list_drills(memory)
    assert sorted(found) == sorted(["drill-died-early-killed", plan.killed, plan.unbroken])
    delete_drills(memory, found)
    assert list_drills(memory) == []
    assert {info.key.split("/")[1] for info in memory.list("runs/")} == {"drill-is-my-own-name", "other"}


def test_a_drill_at_work_is_not_deleted(memory: Any, plan: DrillPlan) -> None:
    perform(plan, store=memory, fit=Training(memory))
    write_run(memory, run=plan.killed, kind="pictures", state="running", created="2999-01-01T00:00:00+00:00")
    assert list_drills(memory) == [plan.unbroken]


# ---- what is printed


def test_a_receipt_without_restarts_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    only = attempt(1, first_step_at=1005.0, reached_step=9, last_step_at=1014.0, ended=1018.0, end="finished")
    print_receipt(receipt([only], dollars_per_hour=None))
    print_receipt(receipt([only], dollars_per_hour=3.6))
    print_receipt(receipt([], dollars_per_hour=None))
    assert capsys.readouterr().out.splitlines() == [
        "no restarts; 0 steps lost",
        "no restarts; 0 steps lost; $0.036 for 0.01 worker-hours",
        "no attempts are recorded for this run",
    ]


def test_a_receipt_has_a_row_for_every_cause(capsys: pytest.CaptureFixture[str]) -> None:
    first, last = killed_then_finished()
    between = last.model_copy(update={"number": 3, "end": "preempted", "started": 1057.0, "first_step_at": 1062.0})
    last = last.model_copy(update={"number": 4, "driver": "b:2", "started": 8257.0, "first_step_at": 8258.0})
    last = last.model_copy(update={"last_step_at": 8260.0, "ended": 8261.0})
    print_receipt(receipt([first, between, last], dollars_per_hour=3.6))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "restarts"
    assert lines[1].split()[:4] == ["worker", "lost", "1", "5"]
    assert lines[2].split()[:3] == ["preempted", "1", "15"]
    assert "00000015-0a0b0c0d" in lines[1]
    assert lines[3].startswith("20 of 50 executed steps and ")
    assert "waited 2.0 h to be resumed; $" in lines[3]
    assert lines[4] == "passed over: runs/r/checkpoints/00000018-0a0b0c0d/ has no marker"
    assert "attempt 2 has no readable record" in lines[5]


def test_the_receipt_in_the_documentation_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    first, last = killed_then_finished()
    print_receipt(receipt([first, last.model_copy(update={"passed_over": []})], dollars_per_hour=3.6))
    page = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    assert "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) in page


def test_a_receipt_without_a_price_has_no_column_of_dollars(capsys: pytest.CaptureFixture[str]) -> None:
    print_receipt(receipt(killed_then_finished(), dollars_per_hour=None))
    assert "dollars" not in capsys.readouterr().out


def test_a_drill_is_printed_and_is_json(memory: Any, plan: DrillPlan, capsys: pytest.CaptureFixture[str]) -> None:
    result = perform(plan, store=memory, fit=Training(memory, seed_after_kill=1))
    print_drill(result)
    text = capsys.readouterr().out
    assert result.expected.weights[:16] in text
    assert "killed one worker after step 34; the next step came after 6.5 s" in text
    assert "failed: the two runs must end with the same bits, got other weights." in text
    assert f"runs {plan.unbroken} and {plan.killed} stay, with their checkpoints" in text
    assert DrillResult.model_validate_json(json.dumps(plain(result))) == result
    print_drill(result.model_copy(update={"passed": True, "differences": ()}))
    assert "passed: the killed run ended with the same bits as the unbroken one" in capsys.readouterr().out


# ---- a real cluster


@pytest.mark.ray
@pytest.mark.store
@pytest.mark.chaos
def test_a_drill_on_a_real_cluster_kills_a_worker_and_passes(store: Store, ray_cluster: RayState) -> None:
    push(store, "sklearn:digits")
    result = drill(plan_drill(experiment(), workers=2), store=store, address=ray_cluster.address)
    assert result.was_killed
    assert result.differences == ()
    assert result.passed
    assert 0 < result.steps_lost <= result.kill_step
    assert result.recovery_s is not None
    assert checkpoints(store, result.killed) == []
    assert sorted(list_drills(store)) == [result.killed, result.unbroken]

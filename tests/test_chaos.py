"""Processes of real trainings are killed, and every run ends with the bits and the samples of an unbroken one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from cluster.machine.state import RayState, StoreState
from cluster.s3.store import Store
from orchestrator.runs.attempts import Attempt, End
from tests.chaos import (
    FAULTS,
    KILLS,
    Arena,
    Case,
    Step,
    Strike,
    arena,
    damage,
    once_each,
    run_case,
    run_node_cases,
    sample_problem,
    seconds_to_next_step,
)
from tests.fake_store import MemoryStore
from tests.test_runs_attempts import attempt

LOST: tuple[End, ...] = ("worker_lost",)
LIMIT_S = 300  # of one test on a machine that does other things too; alone it takes a tenth of that


@pytest.fixture(scope="module")
def chaos(store_server: StoreState, ray_cluster: RayState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """One session for all cases: they find their workers warm."""
    settings = store_server.settings
    store = Store(settings.model_copy(update={"url": f"{settings.url}/chaos-{os.getpid()}"}))
    with arena(store, ray_cluster.address, tmp_path_factory.mktemp("trace")) as found:
        yield found


def lost_worker(name: str, model: str, workers: int, failpoints: str, *, times: int = 1) -> Case:
    return Case(name, "worker, named point", model, (workers,), LOST * times, failpoints)


NAMED_POINTS = [
    lost_worker("cnn-backward", "cnn", 2, "train.mid_backward=kill@rank1#27"),
    lost_worker("cnn-before-exchange", "cnn", 2, "train.before_exchange=kill@rank0#20"),
    lost_worker("cnn-evaluation", "cnn", 1, "evaluate.before=kill@rank0#3"),
    lost_worker("rnn-after-exchange", "rnn", 2, "train.after_exchange=kill@rank1#31"),
    lost_worker("rnn-after-step", "rnn", 1, "train.after_step=kill@rank0#6"),
    lost_worker(
        "rnn-restore", "rnn", 2, "train.after_step=kill@rank0#14; restore.after=kill@rank1", times=2
    ),  # and again while it recovers
    lost_worker("fm-amid-upload", "fm", 2, "checkpoint.after_file=kill#5"),
    lost_worker("fm-before-marker", "fm", 1, "checkpoint.before_marker=kill#3"),
    lost_worker("fm-after-marker", "fm", 2, "checkpoint.after_marker=kill#1"),
]

DRIVERS = [
    Case("driver-early", "driver", "cnn", (1, 1), ("driver_lost",), strikes=(Strike("driver", 1),)),
    Case("driver-amid", "driver", "rnn", (2, 1), ("driver_lost",), strikes=(Strike("driver", 26, 0.01),)),
    Case(  # all is trained and saved, but not yet recorded as finished
        "driver-at-the-end",
        "driver",
        "fm",
        (1, 2),
        ("driver_lost",),
        failpoints="evaluate.before=sleep:60#9",
        strikes=(Strike("driver", 48, 3.0),),
    ),
]

HUNG = [
    Case(
        "stopped-rank",
        "worker stopped (SIGSTOP)",
        "cnn",
        (2,),
        ("hung",),
        "train.before_exchange=stop@rank1#14",
        hang_timeout_s=8,
    )
]

OTHERS = [
    Case("exception", "exception in a worker", "fm", (2,), ("error",), "train.after_exchange=raise@rank1#14"),
    Case(
        "damaged",
        "newest checkpoint damaged",
        "cnn",
        (1,),
        ("worker_lost",),
        strikes=(Strike("all workers and a checkpoint", 24),),
    ),
]


def sequence(model: str, *workers: int) -> Case:
    """Cut off by a kill at equal distances, and resumed each time with another number of workers."""
    cuts = len(workers) - 1
    strikes = tuple(Strike("worker", 36 * (i + 1) // (cuts + 1) + 2, pick=i) for i in range(cuts))
    name = f"{model}-{'-'.join(map(str, workers))}"
    return Case(name, "resumed with other workers", model, workers, LOST * cuts, strikes=strikes)


SEQUENCES = [
    sequence("cnn", 1, 2),
    sequence("rnn", 2, 1),
    sequence("fm", 4, 2),
    sequence("cnn", 2, 3, 1),
    sequence("rnn", 3, 4, 2),
    sequence("fm", 1, 3),
]

NODES = [
    Case("elastic", "node", "cnn", ((1, 2),), ("node_lost", "resized"), strikes=(Strike("node", 8),)),
    Case("waiting", "node", "rnn", (2,), ("node_lost",), strikes=(Strike("node", 20),)),
]


def named(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", NAMED_POINTS + DRIVERS + HUNG + OTHERS + SEQUENCES, ids=named)
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.ray
@pytest.mark.store
@pytest.mark.chaos
def test_a_run_ends_with_the_bits_and_samples_of_an_unbroken_one(chaos: Arena, case: Case) -> None:
    result = run_case(chaos, case)
    assert result.passed, result
    assert result.kills == case.kills
    if case.name == "fm-after-marker":  # the first checkpoint, within the first epoch
        assert result.resumed_steps == [0, 4]


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.ray
@pytest.mark.store
@pytest.mark.chaos
def test_a_run_survives_its_nodes_and_an_elastic_one_shrinks_and_grows(chaos: Arena) -> None:
    results = run_node_cases(chaos, NODES)
    assert [result for result in results if not result.passed] == []
    assert [result.workers for result in results] == [[2, 1, 2], [2, 2]]


# ---- what the harness itself would notice

PLAN: dict[Step, list[int]] = {(0, step, worker): [10 * step + worker] for step in range(4) for worker in range(2)}


def traced(folder: Path, attempts: list[tuple[int, int]], *, skip: tuple[int, ...] = ()) -> list[Attempt]:
    """Write what attempts from one step to before another would: each begins 100 s after the one before."""
    found = []
    for i, (first, stop) in enumerate(attempts):
        began = 1000.0 + 100 * i
        lines = [
            f'{{"epoch": 0, "step": {s}, "logical_worker": {w}, "samples": {ids}}}\n'
            for (_, s, w), ids in PLAN.items()
            if first <= s < stop and s not in skip
        ]
        (folder / f"{i}.jsonl").write_text("".join(lines))
        os.utime(folder / f"{i}.jsonl", (began + 50, began + 50))
        end = "finished" if i == len(attempts) - 1 else "worker_lost"
        found.append(attempt(i + 1, started=began, ended=began + 90, end=end))
    return found


def test_steps_that_were_undone_do_not_count(tmp_path: Path) -> None:
    assert sample_problem(tmp_path, traced(tmp_path, [(0, 3), (2, 4)]), PLAN) is None


@pytest.mark.parametrize(
    ("attempts", "message"),
    [([(0, 2), (3, 4)], "step 2, logical worker 0 counted 0 times"), ([(0, 3)], "step 3, logical worker 0 counted 0")],
)
def test_a_missing_step_is_noticed(tmp_path: Path, attempts: list[tuple[int, int]], message: str) -> None:
    assert message in str(sample_problem(tmp_path, traced(tmp_path, attempts), PLAN))


def test_a_step_that_two_workers_did_is_noticed(tmp_path: Path) -> None:
    attempts = traced(tmp_path, [(0, 4)])
    (tmp_path / "other.jsonl").write_text('{"epoch": 0, "step": 1, "logical_worker": 1, "samples": [11]}\n')
    os.utime(tmp_path / "other.jsonl", (1050, 1050))
    assert "step 1, logical worker 1 counted 2 times" in str(sample_problem(tmp_path, attempts, PLAN))


def test_a_foreign_sample_is_noticed(tmp_path: Path) -> None:
    planned = PLAN | {(0, 2, 1): [99]}
    told = sample_problem(tmp_path, traced(tmp_path, [(0, 4)]), planned)
    assert told == "epoch 0, step 2, logical worker 1 counted 1 times, 1 of its samples missing, 1 foreign"


def test_a_line_that_a_kill_cut_off_does_not_count(tmp_path: Path) -> None:
    attempts = traced(tmp_path, [(0, 4)])
    with (tmp_path / "0.jsonl").open("a") as file:
        file.write('{"epoch": 0, "st')
    os.utime(tmp_path / "0.jsonl", (1050, 1050))
    assert sample_problem(tmp_path, attempts, PLAN) is None


def test_recovery_is_timed_to_the_next_step_that_was_done() -> None:
    times = [
        attempt(1, started=0, first_step_at=5, last_step_at=10, ended=12, end="worker_lost"),
        attempt(2, started=13, ended=14, end="worker_lost"),
        attempt(3, started=15, first_step_at=18, last_step_at=20, ended=30, end="finished"),
    ]
    assert seconds_to_next_step(times) == [8, 5]


def test_every_rule_fires_once_in_the_life_of_a_run() -> None:
    rules = once_each("a=kill#2; b=raise@rank1", "run")
    assert rules == "a=kill#2!chaos-run-0; b=raise@rank1!chaos-run-1"
    assert once_each("", "run") is None


def test_damage_changes_one_bit() -> None:
    store = MemoryStore(objects={"c/weights.safetensors": bytes(9)})
    damage(store, "c/")  # type: ignore[arg-type]
    assert store.objects["c/weights.safetensors"] == bytes([0, 0, 0, 0, 1, 0, 0, 0, 0])


def test_every_kill_is_an_end_that_attempts_have() -> None:
    assert set(KILLS) < set(FAULTS) < set(get_args(End))

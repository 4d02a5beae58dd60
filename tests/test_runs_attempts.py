"""The attempts of a run in the store, and the receipt that is made of them."""

import json
import logging
import random
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import PreconditionError
from orchestrator.runs.attempts import Attempt, Receipt, begin_attempt, read_attempts, receipt, write_attempt
from tests.fake_store import MemoryStore

CAUSES = ("resized", "preempted", "worker_lost", "node_lost", "hung", "error", "driver_lost", "cancelled")


@pytest.fixture
def store() -> Any:
    return MemoryStore()


def attempt(number: int, **fields: Any) -> Attempt:
    """An attempt of two workers that began at 1000 times its number."""
    return Attempt(**{"number": number, "driver": "here:1", "workers": 2, "started": 1000.0 * number, **fields})


def killed_then_finished() -> list[Attempt]:
    """20 steps of 1 s, the last 5 of them lost with a worker; detected after 2 s, started again 3 s later in 10 s."""
    first = attempt(
        1,
        started=1000.0,
        first_step_at=1008.0,
        reached_step=20,
        last_step_at=1027.0,
        ended=1029.0,
        end="worker_lost",
        detail="rank 1 was killed by signal 9",
    )
    second = attempt(
        2,
        started=1032.0,
        resumed_from="runs/r/checkpoints/00000015-0a0b0c0d/",
        resumed_step=15,
        passed_over=["runs/r/checkpoints/00000018-0a0b0c0d/ has no marker"],
        first_step_at=1042.0,
        reached_step=30,
        last_step_at=1056.0,
        ended=1057.0,
        end="finished",
    )
    return [first, second]


# ---- the store


def test_attempts_are_numbered_over_the_whole_life_of_a_run(store: Any) -> None:
    first = begin_attempt(store, "r", workers=2)
    assert (first.number, first.workers, first.end) == (1, 2, None)
    write_attempt(store, "r", first.model_copy(update={"end": "worker_lost", "ended": first.started + 1}))
    assert begin_attempt(store, "r", workers=1).number == 2
    assert begin_attempt(store, "other", workers=1).number == 1
    assert [(a.number, a.end) for a in read_attempts(store, "r")] == [(1, "worker_lost"), (2, None)]


def test_an_attempt_without_an_end_is_closed_at_its_last_sign_of_life(store: Any) -> None:
    left = attempt(1, started=10.0, first_step_at=15.0, last_step_at=40.0, reached_step=7, driver="gone:9")
    write_attempt(store, "r", left)
    begin_attempt(store, "r", workers=2)
    closed = read_attempts(store, "r")[0]
    assert (closed.end, closed.ended, closed.reached_step) == ("driver_lost", 40.0, 7)
    assert "gone:9" in closed.detail


def test_what_is_no_attempt_is_named_and_left_out(store: Any, caplog: pytest.LogCaptureFixture) -> None:
    for _ in (1, 2, 3, 4):
        begin_attempt(store, "r", workers=2)
    keys = [f"runs/r/attempts/{number:04d}.json" for number in (1, 2, 3, 4)]
    store.write(keys[1], store.read(keys[1])[:-9])
    store.write(keys[2], store.read(keys[3]))
    store.write("runs/r/attempts/notes.txt", b"mine")
    with caplog.at_level(logging.WARNING):
        found = read_attempts(store, "r")
    assert [a.number for a in found] == [1, 4]
    assert "0002.json must be an attempt's record" in caplog.text
    assert "0003.json must hold attempt 3, got attempt 4" in caplog.text
    assert "notes.txt must be named NNNN.json" in caplog.text
    assert receipt(found, dollars_per_hour=None).notes == tuple(
        f"attempt {number} has no readable record; it is not counted" for number in (2, 3)
    )


def test_an_unreadable_record_keeps_its_number(store: Any) -> None:
    store.write("runs/r/attempts/0007.json", b"torn")
    assert begin_attempt(store, "r", workers=1).number == 8


def test_an_object_that_goes_away_while_it_is_read_is_left_out(store: Any) -> None:
    begin_attempt(store, "r", workers=1)
    begin_attempt(store, "r", workers=1)

    def remove(operation: str, key: str) -> None:
        if operation == "read" and key.endswith("0001.json"):
            store.objects.pop(key, None)

    store.before = remove
    assert [a.number for a in read_attempts(store, "r")] == [2]


def test_two_drivers_cannot_begin_the_same_attempt(store: Any) -> None:
    def other_driver(operation: str, key: str) -> None:
        if operation == "write":
            store.objects.setdefault(key, b"the other's")

    store.before = other_driver
    with pytest.raises(PreconditionError):
        begin_attempt(store, "r", workers=1)


# ---- the receipt


def test_a_kill_is_accounted_for_second_by_second() -> None:
    found = receipt(killed_then_finished(), dollars_per_hour=3.6)
    (recovery,) = found.recoveries
    assert found.restarts == {"worker_lost": 1}
    assert (found.final_step, found.steps_executed, found.steps_lost) == (30, 35, 5)
    assert recovery.down_s == 2 + 3 + 10
    assert recovery.redo_s == 4  # the fifth lost step was done again within down_s
    assert found.seconds_lost == 19
    assert found.waited_s == 0
    assert found.dollars_lost == pytest.approx(2 * (2 + 10 + 4) * 0.001)
    assert found.worker_hours == pytest.approx(2 * (29 + 25) / 3600)
    assert found.dollars == pytest.approx(2 * (29 + 25) * 0.001)
    assert recovery.checkpoint == "runs/r/checkpoints/00000015-0a0b0c0d/"
    assert recovery.passed_over == ("runs/r/checkpoints/00000018-0a0b0c0d/ has no marker",)
    assert recovery.detail == "rank 1 was killed by signal 9"
    assert found.notes == ()


def test_without_a_price_no_dollars_are_told() -> None:
    found = receipt(killed_then_finished(), dollars_per_hour=None)
    assert (found.dollars, found.dollars_lost, found.recoveries[0].dollars_lost) == (None, None, None)
    assert found.worker_hours > 0


def test_a_receipt_is_json_and_back() -> None:
    found = receipt(killed_then_finished(), dollars_per_hour=1.0)
    assert Receipt.model_validate_json(json.dumps(found.model_dump(mode="json"))) == found


def test_an_unbroken_run_lost_nothing() -> None:
    only = attempt(1, first_step_at=1005.0, reached_step=9, last_step_at=1014.0, ended=1015.0, end="finished")
    found = receipt([only], dollars_per_hour=1.0)
    assert (found.restarts, found.steps_lost, found.seconds_lost, found.dollars_lost) == ({}, 0, 0, 0)
    assert (found.end, found.final_step, found.steps_executed) == ("finished", 9, 9)


def test_a_run_without_recorded_attempts_has_an_empty_receipt() -> None:
    found = receipt([], dollars_per_hour=1.0)
    assert (found.attempts, found.end, found.final_step, found.notes) == (0, None, 0, ())


def test_a_run_that_works_is_counted_up_to_its_last_sign_of_life() -> None:
    now = attempt(1, started=1000.0, first_step_at=1010.0, reached_step=50, last_step_at=1100.0)
    found = receipt([now], dollars_per_hour=None)
    assert (found.end, found.final_step) == (None, 50)
    assert found.worker_hours == pytest.approx(2 * 100 / 3600)


def test_an_attempt_that_died_before_its_first_step_loses_no_steps_but_its_time() -> None:
    first, last = killed_then_finished()
    stillborn = attempt(2, started=1032.0, resumed_step=15, ended=1036.0, end="worker_lost")
    last = last.model_copy(update={"number": 3, "started": 1037.0})
    found = receipt([first, stillborn, last], dollars_per_hour=None)
    assert [r.steps_lost for r in found.recoveries] == [5, 0]
    assert [r.down_s for r in found.recoveries] == [2 + 3 + 4, 1 + 5]
    assert found.steps_executed == 35


def test_a_run_that_failed_to_start_lost_all_but_the_start_that_led_to_its_first_step() -> None:
    stuck = attempt(1, started=1000.0, ended=1060.0, end="hung")
    last = attempt(2, started=1061.0, first_step_at=1069.0, reached_step=5, last_step_at=1073.0, end="finished")
    (recovery,) = receipt([stuck, last], dollars_per_hour=3.6).recoveries
    assert recovery.down_s == 61
    assert recovery.dollars_lost == pytest.approx(2 * 60 * 0.001)
    assert (recovery.steps_lost, recovery.redo_s) == (0, 0)


def test_a_checkpoint_proves_steps_that_the_driver_had_not_heard_of() -> None:
    first, second = killed_then_finished()
    found = receipt([first, second.model_copy(update={"resumed_step": 23})], dollars_per_hour=None)
    assert (found.steps_lost, found.final_step, found.steps_executed) == (0, 30, 30)


def test_a_resize_with_a_just_in_time_checkpoint_costs_seconds_and_no_steps() -> None:
    first, second = killed_then_finished()
    first = first.model_copy(update={"end": "resized"})
    second = second.model_copy(update={"resumed_step": 20, "workers": 1})
    (recovery,) = receipt([first, second], dollars_per_hour=3.6).recoveries
    assert (recovery.cause, recovery.steps_lost, recovery.redo_s) == ("resized", 0, 0)
    assert (recovery.workers_before, recovery.workers_after) == (2, 1)
    assert recovery.seconds_lost == 15
    assert recovery.dollars_lost == pytest.approx((2 * 2 + 1 * 10) * 0.001)


@pytest.mark.parametrize(
    "changes",
    [
        {"driver": "there:2"},
        {"end": "cancelled"},
        {"end": None, "ended": None},
        {"end": "finished"},  # but the run was never recorded as finished
    ],
)
def test_waiting_for_somebody_to_resume_is_told_apart(changes: dict[str, Any]) -> None:
    first, second = killed_then_finished()
    night_s = 30_000.0
    second = second.model_copy(update={"started": 1032.0 + night_s, "first_step_at": 1042.0 + night_s})
    (recovery,) = receipt([first.model_copy(update=changes), second], dollars_per_hour=None).recoveries
    assert recovery.seconds_lost < 20
    assert recovery.waited_s >= night_s
    assert recovery.cause == (changes.get("end") or ("worker_lost" if "driver" in changes else "driver_lost")).replace(
        "finished", "driver_lost"
    )


def test_lost_steps_are_timed_at_the_pace_of_the_attempt_that_did_them() -> None:
    first, second = killed_then_finished()
    slower = second.model_copy(update={"workers": 1, "last_step_at": 1042.0 + 14 * 9, "ended": 1170.0})
    assert receipt([first, slower], dollars_per_hour=None).recoveries[0].redo_s == 4


def test_lost_steps_without_a_pace_of_their_own_are_timed_at_the_pace_of_the_run() -> None:
    first, last = killed_then_finished()
    one_step = attempt(2, started=1032.0, resumed_step=20, first_step_at=1042.0, reached_step=21, ended=1043.0)
    one_step = one_step.model_copy(update={"end": "node_lost"})
    last = last.model_copy(update={"number": 3, "started": 1044.0})
    recovery = receipt([first, one_step, last], dollars_per_hour=None).recoveries[1]
    assert recovery.steps_lost == 6
    assert recovery.redo_s == pytest.approx(5 * (19 + 14) / (19 + 14))


def test_clocks_that_contradict_each_other_count_as_nothing_and_are_named() -> None:
    first, second = killed_then_finished()
    second = second.model_copy(update={"started": 1020.0, "first_step_at": 1015.5})
    found = receipt([first, second], dollars_per_hour=None)
    assert found.recoveries[0].down_s == 2
    assert found.notes == (
        "the start of attempt 2 is 9.0 s before the end of attempt 1; clocks of two machines differ, counted as 0 s",
        "the first step of attempt 2 is 4.5 s before the start of attempt 2; clocks of two machines differ, "
        "counted as 0 s",
    )


def test_a_run_that_was_begun_before_attempts_were_recorded_says_so() -> None:
    found = receipt([attempt(1, resumed_step=40, reached_step=60)], dollars_per_hour=None)
    assert found.notes == ("attempt 1 began at step 40; what was before is not recorded",)
    assert (found.final_step, found.steps_executed) == (60, 20)


# ---- properties

times = st.none() | st.floats(0, 1e10)


@st.composite
def any_attempts(draw: st.DrawFn) -> list[Attempt]:
    """Records as a driver may leave them, with clocks and steps that need not agree."""
    numbers = draw(st.lists(st.integers(1, 12), unique=True, max_size=8))
    return [
        Attempt(
            number=number,
            driver=draw(st.sampled_from(("a:1", "a:2", "b:1"))),
            workers=draw(st.integers(1, 8)),
            started=draw(st.floats(0, 1e10)),
            resumed_step=0 if number == min(numbers) else draw(st.integers(0, 50)),
            first_step_at=draw(times),
            reached_step=draw(st.integers(0, 60)),
            last_step_at=draw(times),
            ended=draw(times),
            end=draw(st.none() | st.sampled_from((*CAUSES, "finished"))),
        )
        for number in numbers
    ]


@given(any_attempts(), st.none() | st.floats(0, 1e4), st.randoms())
def test_every_receipt_adds_up_and_does_not_depend_on_the_order(
    attempts: list[Attempt], price: float | None, shuffler: random.Random
) -> None:
    found = receipt(attempts, dollars_per_hour=price)
    assert found.steps_executed == found.final_step + found.steps_lost
    assert found.steps_lost == sum(r.steps_lost for r in found.recoveries)
    assert found.seconds_lost == sum(r.down_s + r.redo_s for r in found.recoveries)
    assert sum(found.restarts.values()) == len(found.recoveries) == max(0, found.attempts - 1)
    assert (found.dollars is None) == (found.dollars_lost is None) == (price is None)
    numbers = [found.final_step, found.worker_hours, found.waited_s, found.dollars or 0, found.dollars_lost or 0]
    for recovery in found.recoveries:
        numbers += [recovery.steps_lost, recovery.down_s, recovery.redo_s, recovery.waited_s]
    assert min(numbers) >= 0
    shuffler.shuffle(attempts)
    assert receipt(attempts, dollars_per_hour=price) == found


class Simulation(NamedTuple):
    """What a run on one clock went through, and what was seen while it did."""

    attempts: list[Attempt]
    repeated_steps: int
    idle_s: float
    """Time without progress, but for the start that led to the first step and the end after the last one."""
    step_s: float


@st.composite
def finished_runs(draw: st.DrawFn) -> Simulation:
    """Do steps one by one, with kills and checkpoints at any of them, to the end of the run."""
    step_s, clock, checkpoint, repeated, idle_s = draw(st.sampled_from((0.5, 1.0, 2.0))), 1e6, 0, 0, 0.0
    attempts: list[Attempt] = []
    done: set[int] = set()
    plans = draw(st.lists(st.tuples(*[st.integers(0, 20)] * 4, st.integers(1, 8)), min_size=1, max_size=6))
    for number, (start_s, num_steps, tail_s, gap_s, workers) in enumerate(plans, start=1):
        is_last = number == len(plans)
        stop = max([checkpoint, *done]) + 1 if is_last else checkpoint + num_steps
        was_idle = bool(done) or stop == checkpoint
        times: list[float] = []
        started, resumed, clock = clock, checkpoint, clock + start_s
        for step in range(checkpoint + 1, stop + 1):
            clock += step_s if times else 0.0  # the start includes the first step
            times.append(clock)
            repeated += step in done
            done.add(step)
            checkpoint = step if draw(st.booleans()) else checkpoint
        clock += tail_s
        idle_s += (start_s if was_idle else 0) + (0 if is_last else tail_s + gap_s)
        attempts.append(
            attempt(
                number,
                workers=workers,
                started=started,
                resumed_step=resumed,
                first_step_at=times[0] if times else None,
                reached_step=stop,
                last_step_at=times[-1] if times else None,
                ended=clock,
                end="finished" if is_last else "worker_lost",
            )
        )
        clock += gap_s
    return Simulation(attempts, repeated, idle_s, step_s)


@given(finished_runs())
def test_lost_steps_and_seconds_are_those_of_a_simulated_run(run: Simulation) -> None:
    found = receipt(run.attempts, dollars_per_hour=3600.0)
    assert found.steps_lost == run.repeated_steps
    assert found.steps_executed == found.final_step + run.repeated_steps
    assert sum(r.down_s for r in found.recoveries) == pytest.approx(run.idle_s)
    assert sum(r.redo_s for r in found.recoveries) <= run.repeated_steps * run.step_s
    assert found.notes == ()

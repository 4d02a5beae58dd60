"""What ended an attempt, and what follows: decided from pulses and errors alone, without a cluster."""

import time
from typing import Any

import pytest

from cluster.errors import ClusterError, ConfigError, LeaseLostError, RunFailedError, StoreAccessError
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.driving import watch as recovery
from orchestrator.driving.failures import HungError
from orchestrator.driving.plan import plan_run
from orchestrator.driving.room import room
from orchestrator.driving.watch import Watch, classify, stuck_ranks
from orchestrator.driving.workers import Worker
from orchestrator.runs.attempts import begin_attempt, read_attempts
from orchestrator.runs.lease import Lease, LeaseRecord
from orchestrator.runs.pulse import Pulse, TrainingStoppedError
from orchestrator.runs.record import RunRecord
from tests.fake_store import MemoryStore


class GroupError(Exception):
    """As Ray Train raises it: an error by rank."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("group")
        self.worker_failures = failures


@pytest.fixture(scope="module")
def record() -> RunRecord:
    store: Any = MemoryStore()
    push(store, "sklearn:digits")
    experiment = Experiment.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"type": "mlp"},
            "train": {"epochs": 1, "learning_rate": 0.1},
            "scaling": {"workers": [1, 4], "hang_timeout_s": 5},
        }
    )
    return plan_run(experiment, open_dataset(store, "digits"), run="run")


@pytest.fixture
def watch(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> Watch:
    store: Any = MemoryStore()
    monkeypatch.setattr(recovery, "alive_nodes", lambda: {"node-a", "node-b"})
    monkeypatch.setattr(recovery, "draining_nodes", dict)
    monkeypatch.setattr(recovery, "free_resources", lambda *, without: {})
    found = Watch(record, store, begin_attempt(store, "run", workers=2))
    found.workers = [Worker(None, "node-a", True), Worker(None, "node-b", True)]
    return found


def pulse(phase: str, silent_s: float = 0.0, **changes: Any) -> dict[str, Any]:
    return {**Pulse(phase=phase).read(), "silent_s": silent_s, **changes}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pulses", "stuck"),
    [
        ([pulse("compute", 1), pulse("exchange", 1)], []),
        ([pulse("compute", 61), pulse("exchange", 61)], [0]),  # the other only waits for it
        ([pulse("exchange", 61), pulse("exchange", 61)], [0, 1]),
        ([pulse("exchange", 61), pulse("exchange", 59)], []),
        ([pulse("data", 500), pulse("exchange", 500)], []),  # the store has its own deadlines
        ([pulse("checkpoint", 500), pulse("finished", 500)], []),
        ([pulse("starting", 500)], []),
        ([pulse("compute", 61, slowest_step_s=10.0)], []),  # its steps take so long
        ([pulse("compute", 101, slowest_step_s=10.0)], [0]),
        ([pulse("evaluate", 61), pulse("exchange", 61)], [0]),
    ],
)
def test_a_worker_hangs_when_it_computes_for_too_long_and_not_when_it_waits(
    pulses: list[dict[str, Any]], stuck: list[int]
) -> None:
    assert stuck_ranks(pulses, limit_s=60) == stuck


def test_a_worker_without_an_answer_hangs_after_the_limit(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert watch([pulse("compute"), pulse("compute")], watch.workers) is None
    now += 4
    assert watch([pulse("compute"), None], watch.workers) is None
    now += 2
    error = watch([pulse("compute"), None], watch.workers)
    assert str(error) == "worker 1 gave no sign of life for 5 s"


def test_the_pulse_of_the_first_worker_fills_the_attempts_record(watch: Watch) -> None:
    said = {"step": 7, "resumed_step": 4, "resumed_from": "runs/run/checkpoints/x/", "first_step_at": 12.5}
    watch([pulse("compute", **said), None], watch.workers)
    watch.close("finished", "")
    (attempt,) = read_attempts(watch.store, "run")
    assert (attempt.reached_step, attempt.resumed_step, attempt.first_step_at) == (7, 4, 12.5)
    assert (attempt.resumed_from, attempt.end) == ("runs/run/checkpoints/x/", "finished")


def test_the_survivors_tell_how_far_a_lost_worker_came(watch: Watch) -> None:
    watch([pulse("starting", passed_over=["damaged"]), pulse("starting")], watch.workers)
    watch([None, pulse("exchange", step=34, first_step_at=12.5)], watch.workers)
    watch.close("worker_lost", "")
    (attempt,) = read_attempts(watch.store, "run")
    assert (attempt.reached_step, attempt.first_step_at, attempt.passed_over) == (34, 12.5, ["damaged"])
    assert attempt.last_step_at is not None


@pytest.mark.parametrize(
    ("error", "end", "is_final", "told"),
    [
        (GroupError({1: ValueError("a bug")}), "error", False, "ValueError: a bug"),
        (
            GroupError({0: RuntimeError("[gloo] Connection closed"), 1: ValueError("bug")}),
            "error",
            False,
            "bug",
        ),
        (GroupError({0: RunFailedError("train_loss must be a finite number")}), "error", True, "train_loss must be"),
        (GroupError({0: StoreAccessError("keys")}), "error", True, "keys"),
        (GroupError({0: LeaseLostError("taken")}), "error", True, "taken"),
        (GroupError({0: HungError("worker 0 got no further for 5 s")}), "hung", False, "got no further"),
        (GroupError({0: RuntimeError("gloo"), 1: TrainingStoppedError("preempted")}), "preempted", False, "preempted"),
        (ClusterError("the cluster must place 2 workers"), "error", True, "must place 2 workers"),
        (TypeError("a bug of this program"), "error", True, "a bug of this program"),
    ],
)
def test_an_ending_is_named_after_the_worker_that_caused_it(
    watch: Watch, error: Exception, end: str, is_final: bool, told: str
) -> None:
    ending = classify(error, watch)
    assert (ending.end, ending.is_final) == (end, is_final)
    assert told in str(ending.error)


@pytest.mark.parametrize(
    ("alive", "draining", "end"),
    [
        ({"node-a", "node-b"}, {}, "worker_lost"),
        ({"node-a"}, {}, "node_lost"),
        ({"node-a", "node-b"}, {"node-b": None}, "preempted"),
    ],
)
def test_a_death_is_told_apart_by_what_became_of_the_node(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, alive: set[str], draining: dict[str, None], end: str
) -> None:
    import ray

    monkeypatch.setattr(recovery, "alive_nodes", lambda: alive)
    monkeypatch.setattr(recovery, "draining_nodes", lambda: draining)
    died = ray.exceptions.RayActorError("worker", "The actor died.")
    ending = classify(GroupError({0: RuntimeError("Connection reset"), 1: died}), watch)
    assert (ending.end, ending.is_final) == (end, False)
    assert ending.detail.startswith("worker 1 ")


class AskedActor:
    """Stands for a worker's actor; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ask_to_stop = self

    def remote(self, reason: str) -> None:
        self.asked.append(reason)


def test_workers_are_asked_once_to_stop_before_their_node_goes(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    actors = [AskedActor(), AskedActor()]
    workers = [Worker(actors[0], "node-a", True), Worker(actors[1], "node-b", True)]
    monkeypatch.setattr(recovery, "draining_nodes", lambda: {"node-b": None})
    monkeypatch.setattr(recovery, "NODES_S", -1.0)
    for _ in range(3):
        watch([pulse("compute"), pulse("compute")], workers)
    assert [a.asked for a in actors] == [["preempted"], ["preempted"]]


def test_a_run_that_another_driver_took_over_ends_here(watch: Watch) -> None:
    store: Any = watch.store
    with Lease(store, run="run", renew_s=0.01) as lease:
        watch.lease = lease
        assert watch([pulse("compute")], watch.workers[:1]) is None
        taken = LeaseRecord(number=lease.number + 1, owner="7-other", host="elsewhere")
        store.write("runs/run/lease.json", taken.model_dump_json().encode())
        assert lease.lost.wait(10)
        error = watch([pulse("compute")], watch.workers[:1])
    assert isinstance(error, LeaseLostError)
    assert "process 7 on elsewhere took it over" in str(error)


def test_an_elastic_run_stops_to_grow_once_the_room_has_lasted(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    now, actor = 1000.0, AskedActor()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(recovery, "NODES_S", -1.0)
    monkeypatch.setattr(recovery, "free_resources", lambda *, without: {"node-b": {"CPU": 1.0}})
    for _ in range(2):
        watch([pulse("data")], [Worker(actor, "node-a", True)])
        now += recovery.GROW_S - 1
        assert actor.asked == []
    watch([pulse("data")], [Worker(actor, "node-a", True)])
    assert actor.asked == ["resized"]


def test_room_is_counted_node_by_node() -> None:
    free = {"a": {"CPU": 3.5, "GPU": 1.0}, "b": {"CPU": 0.5}, "c": {"CPU": 2.0, "GPU": 2.0}}
    assert room(free, {"CPU": 1.0}) == 5
    assert room(free, {"CPU": 1.0, "GPU": 1.0}) == 3
    assert room(free, {"CPU": 0.1}) == 60


def test_a_failure_of_the_configuration_is_not_tried_again(watch: Watch) -> None:
    assert classify(GroupError({0: ConfigError("wrong")}), watch).is_final


def test_what_a_worker_warns_of_is_told_once_while_it_lasts(
    watch: Watch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended: list[Any] = []
    monkeypatch.setattr(recovery, "mend_store", mended.append)
    monkeypatch.setattr(recovery, "NODES_S", 0.0)
    watch.store.settings = "settings"
    for warning in ("full: 1 byte", "full: 0 bytes", None, None, "full again"):
        watch([pulse("compute", warning=warning), pulse("compute")], watch.workers)
    assert [record.getMessage() for record in caplog.records] == [
        "run run: full: 1 byte",
        "run run: the store takes its checkpoints again",
        "run run: full again",
    ]
    assert mended == ["settings"] * 3

"""One driver works on a run, whoever is slow, stopped, cut off or dead."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

from cluster.config import StoreSettings
from cluster.errors import (
    ConfigError,
    IntegrityError,
    LeaseLostError,
    OrchestratorError,
    PreconditionError,
    StoreUnavailableError,
)
from cluster.s3.store import Store
from orchestrator.runs.lease import LEASE_S, Lease, check_lease, read_lease
from tests.fake_store import MemoryStore

RUN = "run"
KEY = f"runs/{RUN}/lease.json"
DEADLINE_S = 60.0  # of a wait that takes milliseconds: only a fault lasts that long


@dataclass
class FakeTime:
    """A clock that only sleeping moves; `events` happen when their time has come."""

    now: float = 0.0
    events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [event for event in self.events if event[0] <= self.now]
        self.events = [event for event in self.events if event[0] > self.now]
        for _, happen in due:
            happen()


def lease_of(store: Any, *, time: FakeTime | None = None, renew_s: float = 60.0) -> Lease:
    if time is None:
        return Lease(store, run=RUN, renew_s=renew_s)
    return Lease(store, run=RUN, renew_s=renew_s, clock=time.clock, sleep=time.sleep)


def memory() -> Any:
    return MemoryStore()


def left_by_a_dead_owner(store: Any) -> None:
    store.objects[KEY] = b'{"number": 4, "owner": "77-ab", "host": "gone"}'


def renewed(store: Any, count: int) -> None:
    store.objects[KEY] = b'{"number": 4, "owner": "77-ab", "host": "away", "renewed_count": %d}' % count


def test_every_owner_has_the_next_number() -> None:
    store = memory()
    for number in (1, 2, 3):
        with lease_of(store) as lease:
            assert lease.number == number
            check_lease(store, run=RUN, number=number)
    with pytest.raises(LeaseLostError, match="got lease 3, which was released"):
        check_lease(store, run=RUN, number=3)


def test_a_released_lease_is_taken_without_waiting() -> None:
    store, time = memory(), FakeTime()
    with lease_of(store):
        pass
    with lease_of(store, time=time):
        assert time.now == 0


def test_a_lease_of_a_dead_owner_is_taken_after_its_time_and_within_twelve_seconds() -> None:
    store, time = memory(), FakeTime()
    left_by_a_dead_owner(store)
    with lease_of(store, time=time) as lease:
        assert lease.number == 5
        assert LEASE_S <= time.now <= 12


def test_a_live_owner_is_named_as_soon_as_it_renews() -> None:
    store, time = memory(), FakeTime()
    left_by_a_dead_owner(store)
    time.events = [(3.0, partial(renewed, store, 1))]
    with pytest.raises(ConfigError, match=r"must be stopped to be resumed, .* process 77 on away\. Follow it"):
        lease_of(store, time=time).acquire()
    assert 3.0 <= time.now < 4.0


def test_a_real_owner_renews_often_enough_to_be_noticed() -> None:
    store = memory()
    with lease_of(store, renew_s=0.01), pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
        lease_of(store).acquire()


def test_of_two_that_wait_for_a_dead_owner_the_second_names_the_first() -> None:
    store, first, second = memory(), FakeTime(), FakeTime()
    left_by_a_dead_owner(store)
    taken: list[Lease] = []
    second.events = [(LEASE_S - 0.5, lambda: taken.append(lease_of(store, time=first).acquire()))]
    with pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
        lease_of(store, time=second).acquire()
    check_lease(store, run=RUN, number=5)
    taken[0].release()


@pytest.mark.parametrize("there_is_one", [True, False])
def test_whoever_writes_second_loses(there_is_one: bool) -> None:
    store, winners = memory(), []

    def taken_first(operation: str, key: str) -> None:
        if operation == "write" and not winners:
            winners.append(True)
            renewed(store, 9)

    if there_is_one:
        store.objects[KEY] = b'{"number": 3, "owner": "77-ab", "host": "gone", "released": true}'
    store.before = taken_first
    with pytest.raises(ConfigError, match="process 77 on away"):
        lease_of(store).acquire()


def test_an_owner_that_releases_while_another_waits_is_followed_at_once() -> None:
    store, time = memory(), FakeTime()
    held = lease_of(store).acquire()
    time.events = [(2.0, held.release)]
    with lease_of(store, time=time) as lease:
        assert lease.number == 2
        assert 2.0 <= time.now < 3.0


def test_while_the_store_is_away_no_time_counts_against_the_owner() -> None:
    store, time, answers = memory(), FakeTime(), []
    left_by_a_dead_owner(store)

    def slow(operation: str, key: str) -> None:
        answers.append(operation)
        if len(answers) == 20:
            time.now += 300  # one answer came after five minutes

    store.before = slow
    with lease_of(store, time=time) as lease:
        assert lease.number == 5
        assert time.now >= 300 + LEASE_S
    store.before = lambda operation, key: None


def test_an_owner_keeps_its_lease_through_an_outage_in_which_nobody_took_it() -> None:
    store, calls, over = memory(), [], threading.Event()

    def outage(operation: str, key: str) -> None:
        calls.append(operation)
        if 3 <= len(calls) < 9:
            raise StoreUnavailableError("away")
        if len(calls) > 12:
            over.set()

    store.before = outage
    with Lease(store, run=RUN, renew_s=0.01) as lease:
        assert over.wait(DEADLINE_S)
        assert not lease.lost.is_set()
        lease.check()
    found = read_lease(store, run=RUN)
    assert found is not None
    assert found.released
    assert found.renewed_count >= 2


class LostAnswers(MemoryStore):
    """The third write arrives, but the writer is not told."""

    def write(self, key: str, data: bytes, *, only_if_absent: bool = False, only_if_etag: str | None = None) -> str:
        etag = super().write(key, data, only_if_absent=only_if_absent, only_if_etag=only_if_etag)
        if self.count("write") == 3:
            raise StoreUnavailableError("the answer was lost")
        return etag


def test_an_owner_recognizes_a_renewal_whose_answer_was_lost() -> None:
    store: Any = LostAnswers()
    renewals = threading.Semaphore(0)
    store.before = lambda operation, key: renewals.release()
    with Lease(store, run=RUN, renew_s=0.01) as lease:
        for _ in range(10):
            assert renewals.acquire(timeout=DEADLINE_S)
        assert not lease.lost.is_set()
        lease.check()


def test_an_owner_whose_run_was_taken_over_is_told_and_cannot_release_it() -> None:
    store = memory()
    slow = Lease(store, run=RUN, renew_s=0.01)
    with slow:
        left_by_a_dead_owner(store)
        assert slow.lost.wait(DEADLINE_S)
        with pytest.raises(LeaseLostError, match="got lease 1 where process 77 on gone took it over with lease 4"):
            slow.check()
    found = read_lease(store, run=RUN)
    assert found is not None
    assert (found.number, found.released) == (4, False)


def test_an_owner_whose_run_was_removed_is_told() -> None:
    store = memory()
    with Lease(store, run=RUN, renew_s=0.01) as lease:
        del store.objects[KEY]
        assert lease.lost.wait(DEADLINE_S)
        with pytest.raises(LeaseLostError, match="Somebody removed the run"):
            lease.check()
    assert KEY not in store.objects


def test_a_damaged_lease_says_what_to_do() -> None:
    store = memory()
    store.objects[KEY] = b"{torn"
    with pytest.raises(
        IntegrityError, match=f"{KEY} must be a lease, got Invalid JSON: .* column 2. Delete it once no driver"
    ):
        lease_of(store).acquire()


# ---- two processes and a real store


@contextmanager
def processes(
    act: Callable[..., None], settings: StoreSettings, *, count: int
) -> Iterator[list[tuple[int, Connection]]]:
    """Run ``act(connection, settings)`` in processes of their own; yield their ids and connections."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    started = [context.Process(target=act, args=(theirs, settings)) for _, theirs in pipes]
    for process in started:
        process.start()
    try:
        yield [(process.pid or 0, ours) for process, (ours, _) in zip(started, pipes, strict=True)]
        for ours, _ in pipes:
            ours.send(None)
        for process in started:
            process.join(DEADLINE_S)
            assert process.exitcode == 0
    finally:
        for process in started:
            process.kill()
            process.join()


def receive(connection: Connection) -> Any:
    assert wait([connection], DEADLINE_S)
    return connection.recv()


def racer(connection: Connection, settings: StoreSettings) -> None:
    """Try to take the lease of every run that is named, each in a thread of its own, and tell how it went."""
    store, held, told = Store(settings), dict[str, Lease](), threading.Lock()

    def race(run: str) -> None:
        # a live owner is noticed at its renewal, however slow this machine is; only for a dead one the time runs out
        lease = Lease(store, run=run, renew_s=0.2, lease_s=3.0 if run.startswith("dead") else DEADLINE_S)
        try:
            outcome: Any = lease.acquire().number
            held[run] = lease
        except OrchestratorError as error:
            outcome = error
        with told:
            connection.send((run, outcome))

    with told:
        connection.send("ready")
    while (message := connection.recv()) is not None:
        if message in held:
            held.pop(message).release()
        else:
            threading.Thread(target=race, args=(message,)).start()


@pytest.mark.store
def test_of_two_processes_that_race_for_a_run_exactly_one_wins_fifty_times(store: Store) -> None:
    kinds = {
        "new": None,
        "released": b'{"number": 6, "owner": "77-ab", "host": "gone", "released": true}',
        "dead": b'{"number": 6, "owner": "77-ab", "host": "gone"}',
    }
    rounds = [["new"]] * 15 + [["released"]] * 15 + [["dead"] * 10] * 2  # the dead ones take time: many at once
    names = [[f"{kind}-{number}-{place}" for place, kind in enumerate(row)] for number, row in enumerate(rounds)]
    assert sum(map(len, names)) == 50
    for run in chain.from_iterable(names):
        if body := kinds[run.partition("-")[0]]:
            store.write(f"runs/{run}/lease.json", body)
    with processes(racer, store.settings, count=2) as found:
        racers = [connection for _, connection in found]
        assert [receive(connection) for connection in racers] == ["ready", "ready"]
        for runs in names:
            for run in runs:
                for connection in racers:
                    connection.send(run)
            outcomes = [dict(receive(connection) for _ in runs) for connection in racers]
            for run in runs:
                (winner,) = [number for number in (0, 1) if isinstance(outcomes[number][run], int)]
                assert outcomes[winner][run] == (1 if run.startswith("new") else 7)
                refusal = outcomes[1 - winner][run]
                assert isinstance(refusal, ConfigError)
                assert f"process {found[winner][0]} on" in str(refusal)
                racers[winner].send(run)


class StoppingStore(Store):
    """A store whose process stops before it writes a certain object."""

    stops_before = ""

    def write(self, key: str, data: bytes, *, only_if_absent: bool = False, only_if_etag: str | None = None) -> str:
        if key.endswith(self.stops_before):
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().write(key, data, only_if_absent=only_if_absent, only_if_etag=only_if_etag)


def owner(connection: Connection, settings: StoreSettings) -> None:
    """Take the lease, stop while a checkpoint is written, and tell what happens to it and to the run's record."""
    store = StoppingStore(settings)
    store.stops_before = connection.recv()
    with Lease(store, run=RUN, renew_s=0.1) as lease:
        connection.send(lease.number)
        connection.send(outcome_of(partial(save, store, update=2, lease=lease.number)))
        connection.send(outcome_of(lease.check))
        connection.send(lease.lost.wait(DEADLINE_S))
    connection.recv()


def outcome_of(act: Callable[[], None]) -> str:
    try:
        act()
    except (LeaseLostError, PreconditionError) as error:
        return type(error).__name__
    return "done"


def save(store: Store, *, update: int, lease: int) -> None:
    import torch

    from orchestrator.runs.checkpoint import Progress, State, save_checkpoint

    progress = Progress(
        epoch=0, update=update, logical_workers=1, dataset_version="v", environment={}, history=[], lease=lease
    )
    save_checkpoint(
        store, run=RUN, attempt=f"{lease:08x}", state=State({"w": torch.ones(2)}, {"m": torch.ones(2)}, progress)
    )


@pytest.mark.store
@pytest.mark.parametrize(("stops_before", "saved"), [("weights.safetensors", "LeaseLostError"), ("/COMPLETE", "done")])
def test_a_stopped_owner_that_goes_on_cannot_commit(store: Store, stops_before: str, saved: str) -> None:
    from orchestrator.runs.checkpoint import list_checkpoints, newest_valid, recover

    with Lease(store, run=RUN) as first:
        save(store, update=1, lease=first.number)
    with processes(owner, store.settings, count=1) as [(pid, connection)]:
        connection.send(stops_before)
        assert receive(connection) == 2
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        with Lease(store, run=RUN, lease_s=0.5) as second:
            recovered = recover(store, run=RUN)
            assert recovered.restored is not None
            assert recovered.restored.state.progress.update == 1
            assert len(recovered.passed_over) == 1
            os.kill(pid, signal.SIGCONT)
            assert receive(connection) == saved  # a late marker arrives, but its files are gone
            assert receive(connection) == "LeaseLostError"
            assert receive(connection) is True
            second.check()
            assert not second.lost.is_set()
    found = newest_valid(store, run=RUN)
    assert found is not None
    assert found.state.progress.update == 1
    assert [c.complete for c in list_checkpoints(store, run=RUN)] == [False, True]

"""A driver that dies before or after any of its calls to the store leaves a run that goes on."""

import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal

import pytest
import torch

from cluster.s3.store import Store
from orchestrator.runs.checkpoint import (
    FILES,
    MANIFEST,
    MARKER,
    Progress,
    State,
    list_checkpoints,
    newest_valid,
    prune,
    recover,
    save_checkpoint,
    verify_checkpoint,
)
from orchestrator.runs.lease import Lease
from tests.fake_store import MemoryStore

RUN = "run"
ROOT = f"runs/{RUN}/checkpoints/"
OBJECTS = len((*FILES, MANIFEST, MARKER))  # of one checkpoint
When = Literal["before", "after"]


class Died(BaseException):
    """What a killed process would not even notice."""


class MortalStore:
    """A store of a process that dies before or after one of its calls; from then on nothing of it arrives."""

    def __init__(self, store: Any, *, dies: tuple[int, When] | None = None):
        self.calls: list[tuple[str, str]] = []
        self._store, self._dies, self._dead = store, dies, [False]  # a list: copies of this store die together

    def _call(self, operation: str, key: str, act: Callable[[], Any]) -> Any:
        if self._dead[0] or self._dies == (len(self.calls), "before"):
            self._dead[0] = True
            raise Died
        self.calls.append((operation, key))
        try:
            return act()
        finally:
            if self._dies == (len(self.calls) - 1, "after"):
                self._dead[0] = True
                raise Died

    def read(self, key: str, **limit: Any) -> Any:
        return self._call("read", key, lambda: self._store.read(key, **limit))

    def read_with_etag(self, key: str, **limit: Any) -> Any:
        return self._call("read", key, lambda: self._store.read_with_etag(key, **limit))

    def list(self, prefix: str = "") -> Any:
        return self._call("list", prefix, lambda: self._store.list(prefix))

    def write(self, key: str, data: bytes, **condition: Any) -> Any:
        return self._call("write", key, lambda: self._store.write(key, data, **condition))

    def delete(self, keys: Iterable[str]) -> None:
        for key in reversed(list(keys)):  # one call may have deleted a part of its keys, in any order
            self._call("delete", key, lambda key=key: self._store.delete([key]))  # type: ignore[misc]


def state(update: int, *, lease: int) -> State:
    progress = Progress(
        epoch=0, step=update, update=update, logical_workers=1, dataset_version="v", environment={}, history=[],
        lease=lease,
    )  # fmt: skip
    return State({"w": torch.full((2,), float(update))}, {"w.momentum_buffer": torch.ones(2)}, progress)


def drive(store: Any, *, keep: int, attempt: str) -> int:
    """Take the run over, train on by one update, prune and end; return the update."""
    with Lease(store, run=RUN, lease_s=0, renew_s=60) as lease:
        restored, _ = recover(store, run=RUN, keep=keep)
        update = restored.state.progress.update + 1 if restored else 1
        save_checkpoint(store, run=RUN, attempt=attempt, state=state(update, lease=lease.number))
        prune(store, run=RUN, keep=keep)
    return update


def run_before(*, keep: int) -> MemoryStore:
    """A run with one more checkpoint than is kept, and an upload that was not finished."""
    store = MemoryStore()
    for update in range(1, keep + 1):
        assert drive(store, keep=keep, attempt=f"{update:08x}") == update
    save_checkpoint(store, run=RUN, attempt="aaaaaaaa", state=state(keep + 1, lease=0))  # type: ignore[arg-type]
    save_checkpoint(store, run=RUN, attempt="bbbbbbbb", state=state(keep + 2, lease=0))  # type: ignore[arg-type]
    store.delete([f"{ROOT}{keep + 2:08d}-bbbbbbbb/{MARKER}"])
    return store


def clone(store: MemoryStore) -> MemoryStore:
    return MemoryStore(objects=dict(store.objects))


def calls_of(store: MemoryStore, *, keep: int) -> list[tuple[str, str]]:
    mortal = MortalStore(clone(store))
    drive(mortal, keep=keep, attempt="cccccccc")
    return mortal.calls


def points_of_death(store: MemoryStore, *, keep: int) -> list[tuple[int, When]]:
    whens: tuple[When, When] = ("before", "after")
    return [(call, when) for call in range(len(calls_of(store, keep=keep))) for when in whens]


def die_and_go_on(store: Any, *, keep: int, dies: tuple[int, When]) -> None:
    """Check one point of death: the newest valid checkpoint is found, and training goes on from it."""
    newest = max((c.step for c in list_checkpoints(store, run=RUN) if c.complete), default=0)
    with pytest.raises(Died):
        drive(MortalStore(store, dies=dies), keep=keep, attempt="cccccccc")
    committed = any(key.endswith(f"-cccccccc/{MARKER}") for key in keys_of(store))
    assert newest_update(store) == newest + committed
    assert sum(c.complete for c in list_checkpoints(store, run=RUN)) <= keep + 1
    assert drive(store, keep=keep, attempt="dddddddd") == newest + committed + 1
    assert_exactly_kept(store, keep=keep)


def newest_update(store: Any) -> int:
    found = newest_valid(store, run=RUN)
    return found.state.progress.update if found else 0


def assert_exactly_kept(store: Any, *, keep: int) -> None:
    """The newest ``keep`` checkpoints and the lease, and not one object more."""
    found, newest = list_checkpoints(store, run=RUN), newest_update(store)
    assert [c.step for c in found] == list(range(newest, max(0, newest - keep), -1))
    assert len(keys_of(store)) == len(found) * OBJECTS + 1


def keys_of(store: Any) -> list[str]:
    return [info.key for info in store.list(f"runs/{RUN}/")]


def test_every_kind_of_call_is_among_those_that_a_driver_dies_at() -> None:
    calls = calls_of(run_before(keep=2), keep=2)
    written = [key.rpartition("/")[2] for operation, key in calls if operation == "write"]
    assert written == ["lease.json", *FILES, MANIFEST, MARKER, "lease.json"]
    assert {"read", "list", "write", "delete"} == {operation for operation, _ in calls}
    assert [key for operation, key in calls if operation == "delete" and MARKER in key] != []
    assert len(calls) >= 30


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_death_at_any_call_leaves_a_run_that_goes_on(keep: int) -> None:
    before = run_before(keep=keep)
    for dies in points_of_death(before, keep=keep):
        die_and_go_on(clone(before), keep=keep, dies=dies)


def test_nothing_that_is_half_written_or_half_removed_looks_complete() -> None:
    before = run_before(keep=1)
    for dies in points_of_death(before, keep=1):
        store: Any = clone(before)
        with pytest.raises(Died):
            drive(MortalStore(store, dies=dies), keep=1, attempt="cccccccc")
        for checkpoint in list_checkpoints(store, run=RUN):
            if checkpoint.complete:
                verify_checkpoint(store, prefix=checkpoint.prefix)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_death_at_any_call_of_a_new_run_leaves_one_that_goes_on(keep: int) -> None:
    for dies in points_of_death(MemoryStore(), keep=keep):
        die_and_go_on(MemoryStore(), keep=keep, dies=dies)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_death_at_any_call_does_not_cost_the_only_valid_checkpoint(keep: int) -> None:
    before = run_before(keep=keep)
    for update in range(2, keep + 2):
        for checkpoint in list_checkpoints(before, run=RUN):  # type: ignore[arg-type]
            if checkpoint.step == update:
                before.objects[f"{checkpoint.prefix}weights.safetensors"] = b""
    assert newest_update(before) == 1
    for call, when in points_of_death(before, keep=keep):
        store: Any = clone(before)
        with pytest.raises(Died):
            drive(MortalStore(store, dies=(call, when)), keep=keep, attempt="cccccccc")
        committed = any(key.endswith(f"-cccccccc/{MARKER}") for key in store.objects)
        assert newest_update(store) == 1 + committed
        assert drive(store, keep=keep, attempt="dddddddd") == 2 + committed
        assert newest_update(store) == 2 + committed
        assert sum(c.complete for c in list_checkpoints(store, run=RUN)) <= keep + 1


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_thirty_deaths_leave_no_more_than_is_kept(keep: int, seed: int) -> None:
    store: Any = MemoryStore()
    chance = random.Random(seed)
    for death in range(30):
        mortal = MortalStore(store, dies=(chance.randrange(30), chance.choice(("before", "after"))))
        with suppress(Died):
            drive(mortal, keep=keep, attempt=f"{death:08x}")
        found = list_checkpoints(store, run=RUN)
        assert sum(c.complete for c in found) <= keep + 1
        assert sum(not c.complete for c in found) <= 2  # one that was being written, one that was being removed
    drive(store, keep=keep, attempt="ffffffff")
    assert_exactly_kept(store, keep=keep)


def test_thirty_deaths_before_the_marker_leave_one_unfinished_upload() -> None:
    store: Any = run_before(keep=2)
    for death in range(30):
        marker = calls_of(store, keep=2).index(("write", f"{ROOT}00000004-cccccccc/{MARKER}"))
        with pytest.raises(Died):
            drive(MortalStore(store, dies=(marker, "before")), keep=2, attempt=f"{death:08x}")
        assert [c.complete for c in list_checkpoints(store, run=RUN)] == [False, True, True]
        assert len(keys_of(store)) == 2 * OBJECTS + (OBJECTS - 1) + 1


@pytest.mark.store
def test_thirty_deaths_at_calls_to_a_real_store_leave_runs_that_go_on(store: Store) -> None:
    kept = (1, 2, 3)
    points = [(keep, dies) for keep in kept for dies in points_of_death(run_before(keep=keep), keep=keep)]
    for number, (keep, dies) in enumerate(random.Random(0).sample(points, 30)):
        url = f"{store.settings.url}/{number}"
        own = Store(store.settings.model_copy(update={"url": url}), policy=store.policy)
        for key, data in run_before(keep=keep).objects.items():
            own.write(key, data)
        die_and_go_on(own, keep=keep, dies=dies)

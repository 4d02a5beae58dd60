"""The record of a run: how it is written while it works, and how a lost one is told from a working one."""

import json
import shutil
import tempfile
import time
from typing import Any

import pytest

from cluster.errors import ConfigError, IntegrityError, NotFoundError, PreconditionError, StoreUnavailableError
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.driving.plan import plan_run
from orchestrator.runs.log import RunLog
from orchestrator.runs.record import (
    LOST_AFTER_S,
    RunRecord,
    RunStatus,
    create_run,
    list_runs,
    read_history,
    read_run,
    read_status,
    with_live_state,
)
from tests.fake_store import MemoryStore


@pytest.fixture(scope="module")
def datasets() -> dict[str, bytes]:
    found = MemoryStore()
    push(found, "sklearn:digits")  # type: ignore[arg-type]
    return found.objects


@pytest.fixture
def store(datasets: dict[str, bytes]) -> Any:
    return MemoryStore(objects=dict(datasets))


def record_of(store: Any, run: str, **changes: Any) -> RunRecord:
    experiment = Experiment.model_validate(
        {"data": {"name": "digits"}, "model": {"type": "mlp"}, "train": {"epochs": 2, "learning_rate": 0.1}}
    )
    return plan_run(experiment, open_dataset(store, "digits"), run=run).model_copy(update=changes)


def test_a_record_reads_back_as_itself_and_is_made_once(store: Any) -> None:
    record = record_of(store, "one")
    create_run(store, record)
    assert read_run(store, "one") == record
    with pytest.raises(PreconditionError):
        create_run(store, record)


def test_runs_are_listed_newest_first_and_foreign_folders_are_passed_over(store: Any) -> None:
    create_run(store, record_of(store, "old", created="2020-01-01T00:00:00+00:00", state="finished"))
    create_run(store, record_of(store, "new", state="finished"))
    store.write("runs/foreign/run.json", b"{}")
    store.write("runs/empty/other", b"")
    assert [record.run for record in list_runs(store)] == ["new", "old"]


def test_what_is_no_run_is_named(store: Any) -> None:
    with pytest.raises(NotFoundError, match=r"run must exist, got 'none'\. There are none yet"):
        read_run(store, "none")
    create_run(store, record_of(store, "there", state="finished"))
    with pytest.raises(NotFoundError, match="The newest is there"):
        read_run(store, "none")
    with pytest.raises(ConfigError, match="run must be 1 to 63"):
        read_run(store, "../there")
    store.write("runs/broken/run.json", b'{"run": 1}')
    with pytest.raises(IntegrityError, match=r"runs/broken/run\.json must be a run's record"):
        read_run(store, "broken")


def test_a_run_without_a_recent_sign_of_life_is_unfinished(store: Any) -> None:
    record = record_of(store, "lost")
    assert with_live_state(store, record).state == "running"  # it may still be starting
    for age_s, state in ((0.0, "running"), (LOST_AFTER_S + 1, "unfinished")):
        status = RunStatus(phase="training", updated=time.time() - age_s)
        store.write("runs/lost/status.json", status.model_dump_json().encode())
        assert with_live_state(store, record).state == state


def test_the_log_is_in_the_store_when_it_is_closed(store: Any) -> None:
    history: list[dict[str, float]] = []
    with RunLog(store, "one") as log:
        for epoch in (1.0, 2.0):
            history.append({"epoch": epoch, "train_loss": 1 / epoch})
            log.epoch(history)
        log.status(phase="finished", epoch=1)
    assert read_history(store, "one") == history
    assert [json.loads(line)["epoch"] for line in store.read("runs/one/metrics.jsonl").splitlines()] == [1, 2]
    status = read_status(store, "one")
    assert status is not None
    assert (status.phase, status.epoch) == ("finished", 1)
    (events,) = store.list("runs/one/tensorboard/")
    assert b"train_loss" in store.read(events.key)


def test_a_full_local_disk_costs_the_events_and_nothing_else(store: Any, monkeypatch, tmp_path, caplog) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    log = RunLog(store, "one")
    history = [{"epoch": 1.0, "train_loss": 0.5}]
    shutil.rmtree(next(tmp_path.iterdir()))  # as little to be written to as a full disk
    next_to_it = tmp_path / "orchestrator-events"
    monkeypatch.setattr(log._events._folder, "name", str(next_to_it))
    next_to_it.write_text("a file where a folder must be")
    with log:
        log.epoch(history)
    assert read_history(store, "one") == history
    assert [r.getMessage() for r in caplog.records if "no more TensorBoard events" in r.getMessage()]
    assert store.list("runs/one/tensorboard/") == []


def test_an_error_of_the_store_reaches_the_training(store: Any) -> None:
    def refuse(operation: str, key: str) -> None:
        raise StoreUnavailableError("gone")

    store.before = refuse
    log = RunLog(store, "one")
    with pytest.raises(StoreUnavailableError, match="gone"), log:
        log.epoch([{"epoch": 1.0}])


def test_there_is_no_status_and_no_history_before_the_first(store: Any) -> None:
    assert read_status(store, "none") is None
    assert read_history(store, "none") == []

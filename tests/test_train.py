"""Training on a real Ray cluster, with a real S3 server."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster import local
from cluster.errors import ClusterError, ConfigError, IntegrityError, RunFailedError
from cluster.machine.state import RayState
from cluster.s3.store import Store
from cluster.session import ray_session
from models.features import ClassTarget
from orchestrator.config import Experiment
from orchestrator.data.push import push
from orchestrator.data.pushing import layout
from orchestrator.reporting.run import left_out_lines
from orchestrator.runs.attempts import read_attempts
from orchestrator.runs.checkpoint import checkpoint_prefixes, load_checkpoint
from orchestrator.runs.record import read_history, read_run, read_status
from orchestrator.train import RunResult, resume, train

pytestmark = [pytest.mark.ray, pytest.mark.store]

SETTINGS: dict[str, Any] = {
    "data": {"name": "digits"},
    "model": {"type": "cnn", "channels": [4, 8]},
    "train": {"epochs": 3, "batch_size": 64, "learning_rate": 0.05},
    "scaling": {"workers": 1, "logical_workers": 2, "cpus_per_worker": 1, "max_failures": 0},
}


@pytest.fixture
def digits(store: Store) -> Store:
    push(store, "sklearn:digits")
    return store


def experiment(**changes: Any) -> Experiment:
    """The settings above with some changed; a model of another type replaces the one there."""
    groups = {name: {**SETTINGS[name], **changes.get(name, {})} for name in SETTINGS}
    groups |= {name: group for name, group in changes.items() if name not in SETTINGS}
    if "type" in changes.get("model", {}):
        groups["model"] = changes["model"]
    return Experiment.model_validate(groups)


def weights(store: Store, run: str) -> str:
    """SHA-256 of the finished weights and optimizer state."""
    prefix = next(checkpoint_prefixes(store, run=run))
    state = load_checkpoint(store, prefix=prefix)
    tensors = {**state.weights, **{f"optimizer.{k}": v for k, v in state.optimizer.items()}}
    return hashlib.sha256(b"".join(tensors[k].numpy().tobytes() for k in sorted(tensors))).hexdigest()


def losses(result: RunResult) -> list[float]:
    return [entry["train_loss"] for entry in result.history]


def test_one_and_two_workers_train_to_the_same_bits(digits: Store, ray_cluster: RayState) -> None:
    with ray_session(ray_cluster.address, store=digits.settings):
        one = train(experiment(), store=digits, address=ray_cluster.address)
        two = train(experiment(scaling={"workers": 2}), store=digits, address=ray_cluster.address)
    assert losses(one) == losses(two)
    assert one.metrics == two.metrics
    assert weights(digits, one.run) == weights(digits, two.run)
    assert one.metrics["accuracy"] > 0.5  # guessing reaches 0.1


def test_a_finished_run_leaves_a_complete_record(digits: Store, ray_cluster: RayState) -> None:
    seen = []
    result = train(
        experiment(train={"epochs": 2}),
        store=digits,
        address=ray_cluster.address,
        run="complete",
        on_start=lambda record, arithmetic: seen.append(arithmetic),
    )
    (arithmetic,) = seen
    assert (arithmetic.samples, arithmetic.steps_per_epoch, arithmetic.updates) == (1438, 23, 46)
    record = read_run(digits, "complete")
    assert record == result.record
    assert (record.state, record.parameters) == ("finished", arithmetic.parameters)
    assert isinstance(record.signature.target, ClassTarget)
    assert [entry["epoch"] for entry in read_history(digits, "complete")] == [1, 2]
    status = read_status(digits, "complete")
    assert status is not None
    assert (status.phase, status.step, status.steps) == ("finished", 23, 23)
    keys = {info.key.removeprefix("runs/complete/").split("/")[0] for info in digits.list("runs/complete/")}
    assert keys == {
        "run.json",
        "status.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "attempts",
        "lease.json",
    }
    again = resume("complete", store=digits, address=ray_cluster.address)
    assert again.metrics == result.metrics


def test_damaged_rows_are_left_out_counted_and_named(
    store: Store, ray_cluster: RayState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layout, "_LEAST_GROUP_ROWS", 32)
    manifest = push(store, "sklearn:digits").manifest
    (shard,) = manifest.splits["train"].shards
    key = f"datasets/digits/{manifest.version}/{shard.path}"
    data = bytearray(store.read(key))
    data[shard.row_groups[2].offset + 50] ^= 1
    store.write(key, bytes(data))
    skip = {"damaged": "skip", "cache": "none"}
    with ray_session(ray_cluster.address, store=store.settings):
        with pytest.raises(IntegrityError, match=rf"row group 2 of shard {key} must have SHA-256"):
            train(experiment(data={"cache": "none"}), store=store, address=ray_cluster.address)
        one = train(experiment(data=skip), store=store, address=ray_cluster.address)
        two = train(experiment(data=skip, scaling={"workers": 2}), store=store, address=ray_cluster.address)
    rows = shard.row_groups[2].rows
    (left_out,) = one.record.left_out or ()
    assert (left_out.shard, left_out.row_groups, left_out.count) == (shard.path, (2,), rows)
    assert weights(store, one.run) == weights(store, two.run) and losses(one) == losses(two)
    assert [entry["rows_left_out"] for entry in read_history(store, one.run)] == [rows] * 3
    assert f"{rows} of 1,438 rows of shard {shard.path} (row group 2)" in caplog.text
    assert left_out_lines(read_run(store, one.run)) == [
        f"left out of every epoch: {rows} damaged training rows in 1 shard",
        left_out.text,
    ]


def killed_after_an_epoch(store: Store, address: str, run: str) -> None:
    """Train in a process of its own and kill that process once the second epoch has begun."""
    program = (
        "import json, sys\n"
        "from cluster.config import StoreSettings\n"
        "from cluster.s3.store import Store\n"
        "from orchestrator.config import Experiment\n"
        "from orchestrator.train import train\n"
        "store, experiment, address, run = json.loads(sys.argv[1])\n"
        "train(Experiment.model_validate(experiment), store=Store(StoreSettings.model_validate(store)),"
        " address=address, run=run, on_progress=lambda s: print(s.epoch, flush=True))\n"
    )
    settings = experiment(train={"epochs": 30}).model_dump(mode="json")
    arguments = json.dumps([store.settings.model_dump(mode="json"), settings, address, run])
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", program, arguments], cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit() and int(line) >= 1:
                break
        os.killpg(process.pid, signal.SIGKILL)
    assert read_run(store, run).state == "running"


@pytest.mark.chaos
def test_a_run_whose_driver_was_killed_resumes_to_the_weights_of_an_unbroken_one(
    digits: Store, ray_cluster: RayState
) -> None:
    killed_after_an_epoch(digits, ray_cluster.address, "killed")
    before = len(read_history(digits, "killed"))
    assert 1 <= before < 30
    with ray_session(ray_cluster.address, store=digits.settings):
        resumed = resume("killed", store=digits, address=ray_cluster.address, workers=2)
        unbroken = train(experiment(train={"epochs": 30}), store=digits, address=ray_cluster.address)
    assert losses(resumed) == losses(unbroken)
    assert weights(digits, "killed") == weights(digits, unbroken.run)


def test_a_run_that_works_cannot_be_resumed(digits: Store, ray_cluster: RayState) -> None:
    started = threading.Event()
    refused: list[Exception] = []

    def try_resume() -> None:
        started.wait(60)
        try:
            resume("working", store=digits, address=ray_cluster.address)
        except ConfigError as error:
            refused.append(error)

    thread = threading.Thread(target=try_resume)
    thread.start()
    train(
        experiment(train={"epochs": 30}),
        store=digits,
        address=ray_cluster.address,
        run="working",
        on_progress=lambda status: started.set(),
    )
    thread.join()
    assert "run working must be stopped to be resumed" in str(refused)


def test_a_dashboard_that_does_not_answer_restarts_nothing(digits: Store, ray_cluster: RayState) -> None:
    """The training's driver needs the cluster's control service, but neither dashboard nor job server."""
    (dashboard,) = [p for p in local.processes_of(local.status()) if "dashboard/dashboard.py" in " ".join(p.cmdline())]
    dashboard.suspend()
    try:
        train(experiment(scaling={"workers": 2}), store=digits, address=ray_cluster.address, run="undisturbed")
    finally:
        dashboard.resume()
    assert [attempt.end for attempt in read_attempts(digits, "undisturbed")] == ["finished"]


def test_a_failing_run_says_why_and_can_be_found(digits: Store, ray_cluster: RayState) -> None:
    broken = experiment(model={"type": "mlp", "hidden": [8]}, train={"learning_rate": 1e38, "warmup": 0})
    with pytest.raises(RunFailedError, match="train_loss must be a finite number") as error:
        train(broken, store=digits, address=ray_cluster.address, run="broken")
    assert "Traceback" not in str(error.value).splitlines()[0]
    record = read_run(digits, "broken")
    assert record.state == "failed"
    assert "train_loss must be a finite number" in (record.error or "")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"data": {"name": "digit"}}, ConfigError, "data.name must be a dataset in the store, got 'digit'"),
        ({"data": {"version": "000"}}, ConfigError, "data.version must be a version of dataset digits, got '000'"),
        ({"scaling": {"workers": 64, "logical_workers": 64}, "train": {"batch_size": 128}}, ClusterError, "64 CPUs"),
        ({"data": {"lookback": 3, "horizon": 1}}, ConfigError, "data.lookback and data.horizon must be left out"),
        ({"model": {"type": "fm"}}, ConfigError, "image"),
        ({"techniques": {"processor": "gpu"}}, ClusterError, "the cluster must have 1 GPUs, got 0"),
        ({"train": {"batch_size": 4096, "drop_last": True}}, ConfigError, "drop_last"),
    ],
)
def test_what_cannot_work_is_refused_before_any_worker_starts(
    digits: Store, ray_cluster: RayState, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        train(experiment(**changes), store=digits, address=ray_cluster.address)
    assert digits.list("runs/") == []

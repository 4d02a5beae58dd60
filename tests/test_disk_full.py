"""A full disk is named at once, costs nothing that was written, and what waited goes on when there is room."""

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from cluster import local
from cluster.config import StoreSettings
from cluster.errors import DiskFullError, RunUnfinishedError
from cluster.machine import disk
from cluster.machine.disk import bound_store_log, disk_full_error, naming_disk, require_room, volume_bytes
from cluster.machine.state import LocalState, RayState, StoreState, write_state
from cluster.s3.errors import fatal_error
from cluster.s3.store import Store
from cluster.storage import open_store
from orchestrator.commands.doctor import check_store
from orchestrator.commands.ending import CommandEnd, run_to_end
from orchestrator.config import Experiment, TrainConfig
from orchestrator.data.push import push
from orchestrator.runs.log import RunLog
from orchestrator.runs.pulse import PULSE
from orchestrator.runs.record import read_history, read_run, read_status
from orchestrator.train import _unfinished_on_full_disk, train
from orchestrator.training.saving import CheckpointWriter
from tests.fake_store import MemoryStore

MIB = 2**20
STATE: Any = type("State", (), {"progress": type("Progress", (), {"update": 1})})
FULL = DiskFullError("the disk of /d must have room for it, got none. Free space.")


# ---- the error


def test_a_full_disk_is_named_with_its_room_and_the_cure(tmp_path: Path) -> None:
    with (
        pytest.raises(
            DiskFullError, match=r"^the disk of .*/page must have room for the page, got a full one \(.*\)\. "
        ),
        naming_disk(tmp_path / "page", need="the page"),
        Path("/dev/full").open("w") as file,
    ):
        file.write("x" * 10**6)


def test_another_error_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), naming_disk(tmp_path):
        (tmp_path / "none").read_bytes()


def test_the_cure_names_the_variable_that_moves_the_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert "set ORCHESTRATOR_HOME to a folder" in str(disk_full_error(full, path=home / "staged" / "x"))
    assert "set TMPDIR to a folder" in str(disk_full_error(full, path=tmp_path / "x"))
    assert "choose a place on another disk" in str(disk_full_error(full, path=Path("/dev/x")))
    assert "got your quota used up." in str(disk_full_error(OSError(errno.EDQUOT, "Quota"), path=home))


def test_what_cannot_fit_is_not_begun(tmp_path: Path) -> None:
    require_room(tmp_path / "not" / "yet", 1)
    with pytest.raises(DiskFullError, match=r"room for the store \(\d+\.0 GiB\), got .* free of .* GiB at /"):
        require_room(tmp_path / "not" / "yet", 2**60, need="the store")


def test_the_command_line_tells_a_full_disk_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/x")

    with pytest.raises(SystemExit, match="1"):
        run_to_end(command, CommandEnd(as_json=False))
    assert capsys.readouterr().err.startswith(
        "error: the disk of /data/x must have room for what is to be written, got"
    )


@pytest.mark.parametrize(
    ("total", "expected"),
    [(100 * MIB, 8 * MIB), (5 * 2**30, 32 * MIB), (100 * 2**30, 1024 * MIB), (10 * 2**40, 1024 * MIB)],
)
def test_one_file_of_the_store_fits_into_what_it_leaves_free(total: int, expected: int) -> None:
    assert volume_bytes(total) == expected


@pytest.mark.parametrize(("code", "status"), [("QuotaExceeded", 403), ("XMinioStorageFull", 507), ("Unknown", 507)])
def test_a_store_elsewhere_that_is_full_is_not_asked_again(code: str, status: int) -> None:
    refusal = ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")
    found = fatal_error(refusal, settings=StoreSettings(url="s3://far"), what="write x")
    assert isinstance(found, DiskFullError)
    assert f"the store s3://far must have room to write x, got {code}" in str(found)


def test_the_log_of_the_store_is_cut_at_its_beginning(tmp_path: Path) -> None:
    log_file = tmp_path / "store.log"
    bound_store_log(log_file)  # there is none yet
    with log_file.open("ab") as server:
        server.write(b"old\n" * (5 * MIB))
        server.flush()
        bound_store_log(log_file)
        server.write(b"newest\n")
    assert log_file.stat().st_size == disk.KEPT_LOG_BYTES + len(b"newest\n")
    assert log_file.read_bytes().endswith(b"old\nnewest\n")


# ---- a training


def settled(writer: CheckpointWriter) -> bool:
    """Let the write under way end; return whether another is due."""
    writer._executor.submit(lambda: None).result()
    return writer.is_due(2)


def test_a_checkpoint_without_room_is_told_once_and_the_next_one_tried(caplog: pytest.LogCaptureFixture) -> None:
    PULSE.begin()
    answers = iter([FULL, FULL, None])

    def write(_state: Any) -> None:
        if error := next(answers):
            raise error

    with CheckpointWriter(write, settings=TrainConfig(epochs=1, learning_rate=0.1)) as writer:
        for expected in (True, True, False):
            writer.save(STATE)
            settled(writer)
            assert (PULSE.warning is not None) is expected
    assert [r.getMessage() for r in caplog.records] == [f"no checkpoint was written, training goes on: {FULL}"]


def test_the_last_checkpoint_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    PULSE.begin()
    monkeypatch.setattr("orchestrator.training.saving.FULL_DISK_PAUSE_S", 0.01)
    answers = iter([FULL, FULL, None])

    def write(_state: Any) -> None:
        if error := next(answers):
            raise error

    settings = TrainConfig(epochs=1, learning_rate=0.1)
    with CheckpointWriter(write, settings=settings) as writer:
        writer.save_and_wait(STATE)
    assert PULSE.warning is None
    answers = iter([FULL] * 1000)
    with pytest.raises(DiskFullError), CheckpointWriter(write, settings=settings, full_disk_s=0.05) as writer:
        writer.save_and_wait(STATE)
    assert str(PULSE.warning).startswith("the checkpoint that is needed here waits for room, for 0 s: the disk of /d")
    PULSE.begin()


def test_a_run_without_room_is_unfinished_and_says_how_to_go_on() -> None:
    message = r"run r stopped .* the disk of /d .* `orchestrator resume r`\."
    with pytest.raises(RunUnfinishedError, match=message), _unfinished_on_full_disk("r"):
        raise FULL
    assert RunUnfinishedError.exit_code == 101


def test_what_a_full_store_did_not_take_of_the_metrics_is_written_later() -> None:
    PULSE.begin()
    store: Any = MemoryStore()
    refused = threading.Event()

    def refuse(operation: str, _key: str) -> None:
        if operation == "write" and not refused.is_set():
            refused.set()
            raise FULL

    store.before = refuse
    with RunLog(store, "one", tensorboard=False) as log:
        log.epoch([{"epoch": 1}])
        assert refused.wait(30)
        log.epoch([{"epoch": 1}, {"epoch": 2}])
    assert read_history(store, "one") == [{"epoch": 1}, {"epoch": 2}]
    assert str(PULSE.warning).startswith("its status and metrics are not written, training goes on: the disk of /d")
    PULSE.begin()


# ---- a real disk that fills up


class SmallDisk:
    """A file system of a few megabytes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._ballast = folder, folder / "ballast"

    def fill(self) -> None:
        """Leave nothing, as another program would."""
        with self._ballast.open("ab") as file:
            while True:
                try:
                    os.write(file.fileno(), bytes(64 * 1024))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    return

    def free(self) -> None:
        """Take it back."""
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_home(small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(small_disk.folder / "home"))
    return small_disk.folder / "home"


@pytest.fixture
def small_store(small_disk: SmallDisk, small_home: Path) -> Iterator[StoreState]:
    state = local.up(with_ray=False).store
    assert state is not None
    yield state
    small_disk.free()
    write_state(LocalState(store=local.status().store))  # the session's Ray head is not ours to end
    local.down()


def test_up_names_the_full_disk_before_it_starts_anything(small_disk: SmallDisk, small_home: Path) -> None:
    small_home.mkdir()
    small_disk.fill()
    words = [sys.executable, "-m", "orchestrator", "up", "--no-ray"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    expected = (
        f"error: the disk of {small_home} must have room for the local store (8.0 MiB), got 0 bytes free of 96.0 MiB"
    )
    assert done.stderr.startswith(f"{expected} at {small_disk.folder}. Free space, or set ORCHESTRATOR_HOME")
    assert (done.returncode, done.stderr.count("\n"), local.status()) == (1, 1, LocalState())


@pytest.mark.store
def test_a_push_into_a_full_store_fails_at_once_and_finishes_when_there_is_room(
    small_disk: SmallDisk, small_store: StoreState
) -> None:
    store = open_store()
    store.write("kept", b"before")
    small_disk.fill()
    began = time.monotonic()
    with pytest.raises(DiskFullError, match=r"disk of .*/store must have room for the local store .* got 0 bytes free"):
        push(store, "sklearn:china")
    assert time.monotonic() - began < store.policy.total_s / 3  # which an unnamed failure would have taken
    assert store.read("kept") == b"before"
    with pytest.raises(DiskFullError, match="the local store"):
        check_store(None)
    small_disk.free()
    assert push(store, "sklearn:china").changed
    assert not push(store, "sklearn:china").changed
    assert store.read("kept") == b"before"


@pytest.mark.store
def test_a_store_that_a_full_disk_left_stuck_starts_anew(small_disk: SmallDisk, small_store: StoreState) -> None:
    store = Store(small_store.settings)
    small_disk.fill()
    for number in range(40):  # small ones, in many folders: until its index has met the full disk
        with pytest.raises(DiskFullError):
            while True:
                store.write(f"{number}/{time.monotonic_ns()}", os.urandom(2000))
    assert not local.mend_store(small_store.settings)  # there is no room yet
    small_disk.free()
    assert local.mend_store(small_store.settings)
    assert not local.mend_store(small_store.settings)
    after = local.status().store
    assert after is not None
    assert (after.settings, after.process != small_store.process) == (small_store.settings, True)
    store.write("again", b"there is room")


@pytest.mark.ray
def test_a_training_goes_on_without_its_checkpoints_and_ends_when_there_is_room(
    ray_cluster: RayState, small_disk: SmallDisk, small_store: StoreState, caplog: pytest.LogCaptureFixture
) -> None:
    write_state(LocalState(ray=ray_cluster, store=small_store))
    store = open_store()
    push(store, "sklearn:digits")
    told = threading.Event()

    class FreeOnceTold(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "must have room for the local store" in record.getMessage() and not told.is_set():
                told.set()
                small_disk.free()

    def fill(_status: Any) -> None:
        if not filled.is_set():
            filled.set()
            small_disk.fill()

    filled, handler = threading.Event(), FreeOnceTold()
    logging.getLogger("orchestrator.driving.watch").addHandler(handler)
    try:
        result = train(experiment(epochs=60), store=store, run="full", on_progress=fill)
    finally:
        logging.getLogger("orchestrator.driving.watch").removeHandler(handler)
    assert filled.is_set() and told.is_set()
    assert read_run(store, "full").state == "finished"
    assert [record["epoch"] for record in read_history(store, "full")] == list(range(1, 61))
    status = read_status(store, "full")
    assert status is not None and status.phase == "finished"
    assert result.record.checkpoint
    warnings = [r.getMessage() for r in caplog.records if r.name == "orchestrator.driving.watch"]
    assert warnings[0].startswith("run full: ") and "the disk of" in warnings[0]


def experiment(*, epochs: int) -> Experiment:
    return Experiment.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"type": "mlp"},
            "train": {"epochs": epochs, "batch_size": 64, "learning_rate": 0.05},
            "scaling": {"cpus_per_worker": 1},
        }
    )

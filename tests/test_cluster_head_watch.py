"""When the head of the cluster dies, its driver says what died and what goes on, gives back its lease, and ends."""

import json
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import local, session
from cluster.address import ClusterAddress
from cluster.errors import ClusterError, RunUnfinishedError
from cluster.head_watch import Patience, Work, continued_by, head_lost, local_trouble, watching_head
from cluster.machine.processes import end_processes
from cluster.machine.state import LocalState, ProcessRecord, RayState
from cluster.s3.store import Store
from cluster.session import client_environment
from orchestrator.data.push import push
from orchestrator.drill import fingerprint
from orchestrator.runs.attempts import read_attempts
from orchestrator.runs.checkpoint import load_checkpoint
from orchestrator.runs.lease import read_lease
from orchestrator.runs.record import read_run
from serving.client import Client
from tests.example_runs import write_run
from tests.ports import free_port

NOON = 1_800_000_000.0
AT = time.strftime("%H:%M:%S", time.localtime(NOON))
UP = "Start it again: `orchestrator up`."
RUN = Work("run digits-1", "orchestrator resume digits-1", lambda: None)
LIMIT_S = 40.0  # 3 s on a quiet machine


# ---- what a person reads


def test_a_driver_with_a_run_names_what_died_and_the_two_commands_that_go_on() -> None:
    error = head_lost("the local Ray head at H:1", "the death of gcs_server", at=NOON, cure=UP, work=RUN)
    assert isinstance(error, RunUnfinishedError)
    assert str(error) == (
        f"the local Ray head at H:1 must live until run digits-1 has ended, got the death of gcs_server at {AT}. The "
        "store keeps what was written. Start it again: `orchestrator up`. Then continue: "
        "`orchestrator resume digits-1`."
    )


def test_a_driver_without_a_run_is_told_to_repeat_its_command() -> None:
    error = head_lost("the local Ray head at H:1", "no answer", at=NOON, cure=UP, work=None)
    assert isinstance(error, ClusterError)
    assert str(error) == (
        f"the local Ray head at H:1 must live as long as it is used, got no answer at {AT}. "
        "Start it again: `orchestrator up`. Then repeat this command."
    )


def test_a_cluster_on_another_machine_is_silent_where_nobody_listens() -> None:
    found = ClusterAddress(f"127.0.0.1:{free_port()}", "--address")
    with client_environment(found):
        assert session._silence(found) == "no answer"


@pytest.mark.ray
def test_a_cluster_that_refuses_our_token_is_not_silent(ray_cluster: RayState) -> None:
    found = ClusterAddress(ray_cluster.address, "--address")
    with client_environment(found), pytest.raises(ClusterError, match="must accept our token, got UNAUTHENTICATED"):
        session.check_reachable(found)
    with client_environment(found):
        assert session._silence(found) is None


# ---- what is wrong with a local head


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[RayState, psutil.Popen]]:
    """A process that listens on a port and does nothing else."""
    code = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
    command = [sys.executable, "-c", code + "sys.stdin.read()"]
    with psutil.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        port = int(process.stdout.readline())
        yield (
            RayState(
                process=ProcessRecord(pid=process.pid, created=process.create_time()),
                address=f"127.0.0.1:{port}",
                dashboard_url="http://127.0.0.1:1",
                token_file="",
                temp_dir=str(tmp_path),
            ),
            process,
        )
        end_processes([process], grace_s=0)


def test_a_head_that_lives_and_listens_is_well(head: tuple[RayState, psutil.Popen]) -> None:
    assert local_trouble(head[0]) is None


def test_a_head_whose_control_service_is_closed_does_not_answer(head: tuple[RayState, psutil.Popen]) -> None:
    closed = head[0].model_copy(update={"address": "127.0.0.1:1"})
    assert local_trouble(closed) == "no answer of its control service (GCS)"


def test_a_head_whose_process_ended_is_dead_and_its_first_victim_is_named(
    head: tuple[RayState, psutil.Popen], tmp_path: Path
) -> None:
    state, process = head
    process.kill()
    process.wait()
    assert local_trouble(state) == f"the end of its process {process.pid} (`ray start`)"
    record = tmp_path / "ray" / "session_latest" / "logs" / "ray_process_exit.log"
    record.parent.mkdir(parents=True)
    record.write_text("Some Ray subprocesses exited unexpectedly:\n  gcs_server [exit code=-9 (signal 9)]\n")
    assert local_trouble(state) == "the death of gcs_server, exit code -9 (signal 9),"


# ---- what the watch does


def test_the_process_ends_with_its_releases_done_and_the_outermost_command_named() -> None:
    code = """
        import threading
        from cluster.head_watch import Patience, continued_by, watching_head
        with (
            continued_by("orchestrator sweep --resume s", what="sweep s", release=lambda: print("outer released")),
            continued_by("orchestrator resume r", what="run r", release=lambda: print("inner released")),
            watching_head("the head", lambda: "its death", patience=Patience(60, 0), cure="Bring it back."),
        ):
            threading.Event().wait()  # as a driver waits in Ray's core
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 101
    assert found.stdout == "inner released\nouter released\n"
    told = r"error: the head must live until sweep s has ended, got its death at [\d:]{8}\. .* Bring it back\. "
    assert re.fullmatch(told + r"Then continue: `orchestrator sweep --resume s`\.\n", found.stderr)


def test_a_head_that_comes_back_in_time_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    looks, seen = iter(["no answer", "no answer", None]), threading.Event()

    def trouble() -> str | None:
        try:
            return next(looks)
        except StopIteration:  # the look before has been told of
            seen.set()
            return None

    patience = Patience(notice_s=0.0, gone_s=300.0)
    with (
        continued_by("orchestrator resume r", what="run r"),
        watching_head("the head", trouble, patience=patience, cure="Bring it back."),
    ):
        assert seen.wait(60)
    told = capfd.readouterr().err.splitlines()
    assert told == [
        "the head gives no answer. It is waited for until 300 s have passed; then this command ends, "
        "to be continued by: `orchestrator resume r`",
        "the head answers again",
    ]


# ---- a real head


@pytest.fixture
def own_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalState]:
    """A second local cluster, beside the session's, to be killed."""
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "own"))
    yield local.up(cpus=2)
    local.down()


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "orchestrator", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def orchestrator(*words: str) -> dict[str, Any]:
    with start(*words, "--json") as process:
        stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return dict(json.loads(stdout))


def kill_gcs(state: LocalState) -> None:
    assert state.ray is not None
    (gcs,) = [p for p in local.ray_processes(state.ray) if p.name() == "gcs_server"]
    gcs.kill()


def bits(store: Store, run: str) -> object:
    record = read_run(store, run)
    assert record.checkpoint
    return fingerprint(load_checkpoint(store, prefix=record.checkpoint), record.metrics)


@pytest.mark.ray
@pytest.mark.store
def test_a_killed_gcs_is_told_within_seconds_and_run_and_endpoint_go_on(own_cluster: LocalState) -> None:
    assert own_cluster.store is not None
    store = Store(own_cluster.store.settings)
    push(store, "sklearn:digits")
    write_run(store, run="table-1", kind="table")
    orchestrator("models", "promote", "table-1", "table")
    deployed = orchestrator("deploy", "table", "--port", "0")
    settings = ["digits-mlp", "train.epochs=100"]

    with start("train", *settings, "--run", "killed", "--json") as process:
        assert process.stderr is not None
        while "epoch " not in process.stderr.readline():
            assert process.poll() is None
        kill_gcs(own_cluster)
        killed_at = time.monotonic()
        told, noise = process.communicate(timeout=LIMIT_S)
        print(f"told {time.monotonic() - killed_at:.1f} s after the kill", file=sys.stderr)
    error = json.loads(told)
    assert (process.returncode, error["exit_code"], error["error"]) == (101, 101, "RunUnfinishedError"), noise
    assert re.search(r"must live until run killed has ended, got the death of gcs_server, exit code -9", told)
    assert error["message"].endswith("Start it again: `orchestrator up`. Then continue: `orchestrator resume killed`.")
    lease = read_lease(store, run="killed")
    assert lease is not None
    assert lease.released

    up = orchestrator("up", "--cpus", "2")
    assert [(e["name"], e["version"]) for e in up["gone_endpoints"]] == [("table", "v1")]
    (back,) = orchestrator("up", "--redeploy")["redeployed"]
    assert (back["url"], back["version"]) == (deployed["url"], "v1")
    assert Client().predict("table", {"size": [5.0, 3.0], "colour": "red"})["version"] == "v1"
    assert orchestrator("up")["gone_endpoints"] == []

    orchestrator("resume", "killed")
    orchestrator("train", *settings, "--run", "unbroken")
    assert bits(store, "killed") == bits(store, "unbroken")
    assert [attempt.end for attempt in read_attempts(store, "killed")] == ["driver_lost", "finished"]

"""Jobs on a cluster that somebody started by hand with `ray start --head`."""

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import requests

from cluster.machine.processes import end_processes
from cluster.s3.connection import is_loopback
from cluster.s3.store import Store
from orchestrator.data.push import push
from orchestrator.runs.attempts import read_attempts
from orchestrator.runs.record import read_run, read_status
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.store]

OUTAGE_S = 60.0
START_S = 120.0
ROOT = Path(__file__).resolve().parents[1]


class Head(NamedTuple):
    """A Ray head that somebody started in a terminal."""

    process: psutil.Process
    dashboard: str
    home: Path
    """Of the person; the token is in it."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray head as the README says to start one, in the foreground and at ports of its own."""
    home = tmp_path_factory.mktemp("person")
    ports = {"port": free_port(), "dashboard-port": free_port(), "ray-client-server-port": free_port()}
    flags = ["--block", "--num-cpus=2", "--disable-usage-stats", *(f"--{name}={port}" for name, port in ports.items())]
    programs = str(Path(sys.executable).parent)
    environment = os.environ | {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}"}
    script = f"{readme_start()} {' '.join(flags)}"
    said = home / "said"
    with (
        said.open("wb") as out,
        subprocess.Popen(["bash", "-c", script], env=environment, stdout=out, stderr=out) as process,
    ):
        try:
            wait_for_start(said)
            yield Head(psutil.Process(process.pid), f"http://127.0.0.1:{ports['dashboard-port']}", home)
        finally:
            end_processes([psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)])


@pytest.fixture
def dashboard(head: Head, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the head's job service, for the person who started it."""
    monkeypatch.setenv("HOME", str(head.home))
    return head.dashboard


def readme_start() -> str:
    """The lines of the README that start a closed head."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "ray start --head" in block]
    return "\n".join(line.removeprefix("$ ") for line in block.splitlines())


def test_the_head_of_the_readme_is_closed(head: Head) -> None:
    processes = [head.process, *head.process.children(recursive=True)]
    ports = [c.laddr for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert len(ports) > 6
    assert [port for port in ports if not is_loopback(port.ip.removeprefix("::ffff:"))] == []
    assert requests.get(f"{head.dashboard}/api/jobs/", timeout=10).status_code == 401
    token = head.home / ".ray" / "auth_token"
    assert (stat.S_IMODE(token.stat().st_mode), stat.S_IMODE(token.parent.stat().st_mode)) == (0o600, 0o700)
    (folder,) = {
        Path(word.partition("=")[2]).parent for word in head.process.cmdline() if word.startswith("--temp-dir=")
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def wait_for_start(said: Path) -> None:
    deadline = time.monotonic() + START_S
    while "Ray runtime started" not in said.read_text():
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("orchestrator")), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)


def orchestrator(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    with start(*words, cwd=cwd) as process:
        stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the user stands: a folder with packages of the same names as ours."""
    for name in ("models", "cluster", "serving", "orchestrator"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a foreign package was imported')\n")
    return tmp_path


def test_a_job_trains_is_followed_and_another_is_stopped(store: Store, dashboard: str, folder: Path) -> None:
    push(store, "sklearn:digits")
    where = ["--address", dashboard, "--store", store.settings.url]
    settings = ["digits-mlp", "train.epochs=2"]
    first = orchestrator("submit", "train", *settings, "--job", "first", "--json", *where, cwd=folder)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["new"] is True
    again = orchestrator("submit", "train", *settings, "--job", "first", "--json", *where, cwd=folder)
    assert json.loads(again.stdout)["new"] is False
    followed = orchestrator("logs", "first", "--follow", "--address", dashboard, cwd=folder)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "epoch 2/2" in followed.stdout
    record = read_run(store, "first")
    assert record.state == "finished"
    assert record.checkpoint

    orchestrator("submit", "train", "digits-mlp", "train.epochs=100000", "--job", "second", *where, cwd=folder)
    wait_until_training("second", dashboard, folder)
    stopped = orchestrator("stop", "second", "--address", dashboard, "--json", cwd=folder)
    assert json.loads(stopped.stdout)["status"] == "STOPPED", stopped.stderr
    assert read_run(store, "second").state == "cancelled"
    found = json.loads(orchestrator("jobs", "--address", dashboard, "--json", cwd=folder).stdout)
    assert {job["job"]: job["status"] for job in found} == {"first": "SUCCEEDED", "second": "STOPPED"}
    assert found[0]["metadata"]["command"].startswith("train digits-mlp")


def test_an_outage_of_the_job_service_disturbs_no_job_and_loses_no_stop(
    store: Store, dashboard: str, folder: Path
) -> None:
    push(store, "sklearn:digits")
    where = ["--address", dashboard, "--store", store.settings.url]
    sent = orchestrator("submit", "train", "digits-mlp", "train.epochs=100000", "--job", "third", *where, cwd=folder)
    assert sent.returncode == 0, sent.stderr
    wait_until_training("third", dashboard, folder)
    with suspended(dashboard):
        stopping = start("stop", "third", "--address", dashboard, "--json", cwd=folder)
        before = read_status(store, "third")
        time.sleep(OUTAGE_S)
        after = read_status(store, "third")
        assert before is not None
        assert after is not None and after.epoch > before.epoch
        assert stopping.poll() is None, "it waits for an answer"
    told, _ = stopping.communicate(timeout=60)
    assert json.loads(told)["status"] == "STOPPED"
    assert read_run(store, "third").state == "cancelled"
    assert len(read_attempts(store, "third")) == 1


@contextmanager
def suspended(dashboard: str) -> Iterator[None]:
    """Let the process behind an address answer nobody."""
    port = "--port=" + dashboard.rpartition(":")[2]
    lines = {process: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
    (found,) = [p for p, line in lines.items() if port in line and any("dashboard.py" in word for word in line)]
    found.suspend()
    try:
        yield
    finally:
        found.resume()


def wait_until_training(job: str, dashboard: str, folder: Path) -> None:
    """Follow a job's log until its first epoch has ended."""
    with start("logs", job, "--follow", "--address", dashboard, cwd=folder) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if ": epoch " in line:
                break
        else:
            raise AssertionError("".join(lines) + process.communicate()[1])
        process.terminate()

"""Jobs on a cluster that somebody started by hand with `ray start --head`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from cluster.local import end_processes
from cluster.storage import Store
from orchestrator.data.push import push
from orchestrator.runs import read_run
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.store]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray head as a person starts it: in the foreground, without our variables. Returns its dashboard's address."""
    folder = tmp_path_factory.mktemp("r")
    ports = {"port": free_port(), "dashboard-port": free_port(), "ray-client-server-port": free_port()}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats", f"--temp-dir=/tmp/{folder.name}-{os.getpid()}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}  # Ray asks for a token where ~/.ray holds one
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            address = f"http://127.0.0.1:{ports['dashboard-port']}"
            wait_for(f"{address}/api/version")
            yield address
        finally:
            end_processes([psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)])


def wait_for(url: str) -> None:
    session = requests.Session()
    retry = requests.adapters.Retry(total=60, backoff_factor=0.1, backoff_max=1, status_forcelist=[404, 500, 503])
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
    assert session.get(url, timeout=5).ok


def orchestrator(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("orchestrator")), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


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
    wait_until_training(dashboard, folder)
    stopped = orchestrator("stop", "second", "--address", dashboard, "--json", cwd=folder)
    assert json.loads(stopped.stdout)["status"] == "STOPPED", stopped.stderr
    assert read_run(store, "second").state == "cancelled"
    found = json.loads(orchestrator("jobs", "--address", dashboard, "--json", cwd=folder).stdout)
    assert {job["job"]: job["status"] for job in found} == {"first": "SUCCEEDED", "second": "STOPPED"}
    assert found[0]["metadata"]["command"].startswith("train digits-mlp")


def wait_until_training(dashboard: str, folder: Path) -> None:
    """Follow the second job's log until its first epoch has ended."""
    command = [
        str(Path(sys.executable).with_name("orchestrator")),
        "logs",
        "second",
        "--follow",
        "--address",
        dashboard,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        lines: list[Any] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("epoch "):
                break
        else:
            raise AssertionError("".join(lines))
        process.terminate()

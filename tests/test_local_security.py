"""Nobody else on this machine reads, changes or stops anything: every port and file of `up`, `deploy` and a training.

What is tried is in `tests/stranger.py`. A port of a process that this file does not name makes a test fail.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psutil
import pytest

from cluster import local
from cluster.address import resolve_address
from cluster.errors import ClusterError
from cluster.machine.private import private_folder, require_private
from cluster.machine.processes import find_program
from cluster.machine.ray_head import require_closed
from cluster.machine.state import RayState, StoreState
from cluster.s3.connection import is_loopback
from cluster.s3.store import Store
from cluster.session import client_environment, ray_session
from orchestrator.configfile import load_experiment
from orchestrator.data.push import push
from orchestrator.data.reading.cache import cache_folder
from orchestrator.runs.record import list_runs, read_history
from orchestrator.train import train
from serving import deploy, registry

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 120
SHELL_S = 10
ALONE = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account and try as that one")
STATISTICS = {"GET statistics", "GET /status", "GET /healthz"}
PAGES = {"GET /", "GET /docs", "GET /openapi.json", "GET /-/routes", "GET /healthz", "GET /v2/health/live"}

ANSWERS: dict[str, dict[str, set[str]]] = {
    # process -> protocol of its ports -> what anybody may ask there
    "weed": {"tls": set(), "http": STATISTICS},  # how full the disk is, and counters: no names, no content
    "gcs_server": {"grpc": set()},
    "raylet": {"grpc": set()},
    "dashboard.py": {"http": {"GET /", "GET statistics"}},  # the page asks for the token
    "/monitor.py": {"http": {"GET statistics"}},  # of the autoscaler
    "ray.util.client.server": {"grpc": set()},
    "ray::DashboardAgent": {"grpc": set(), "http": {"GET statistics", "GET /api/local_raylet_healthz"}},
    "ray::RuntimeEnvAgent": {"http": set()},
    "ray::ServeController": {"grpc": set()},
    "ray::ServeReplica": {"grpc": set()},
    "ray::ProxyActor": {"grpc": set(), "http": PAGES},
    "ray::TrainingProcess": {"grpc": set(), "other": set()},  # gloo, which takes nobody once its group is complete
    "ray::": {"grpc": set()},  # all other workers, of Ray's own libraries too
}


class Alive(NamedTuple):
    """A cluster with an endpoint and a training."""

    store: Store
    ray: RayState
    server: StoreState


@pytest.fixture(scope="module")
def alive(store_server: StoreState, ray_cluster: RayState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alive]:
    """`up`, `deploy` and a training of two workers, all at once."""
    settings = store_server.settings
    store = Store(settings.model_copy(update={"url": f"{settings.url}/{uuid4().hex[:12]}"}))
    push(store, "sklearn:digits")
    with ray_session(store=store.settings, serves=True):
        result = train(load_experiment("digits-mlp", ["train.epochs=1"]), store=store)
        registry.promote(store, run=result.run, name="digits")
        deploy.deploy(store, name="digits", port=0)
    command = [str(Path(sys.executable).with_name("orchestrator")), "train", "digits-mlp"]
    command += ["train.epochs=100000", "scaling.workers=2", "--store", store.settings.url]
    said = tmp_path_factory.mktemp("training") / "said"
    with said.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as training:
        try:
            wait_for_an_epoch(store, training, said)
            yield Alive(store, ray_cluster, store_server)
        finally:
            training.terminate()
    with ray_session(store=store.settings):
        deploy.undeploy("digits")


def wait_for_an_epoch(store: Store, training: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any(read_history(store, run.run) for run in list_runs(store) if run.state == "running"):
        assert training.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.2)


class Port(NamedTuple):
    """Where somebody listens."""

    owner: str
    address: str
    number: int


def listening() -> list[Port]:
    """Every port of the local cluster's processes."""
    return [
        Port(owner_of(process), c.laddr.ip.removeprefix("::ffff:"), c.laddr.port)
        for process in local.processes_of(local.status())
        for c in process.net_connections()
        if c.status == psutil.CONN_LISTEN
    ]


def owner_of(process: psutil.Process) -> str:
    """The name in `ANSWERS` of a process, or its command where there is none."""
    words = " ".join(process.cmdline())
    return next((name for name in ANSWERS if name in words), words)


def stranger(**wanted: Any) -> dict[str, Any]:
    """What worked for another account."""
    said = subprocess.run(
        [sys.executable, "-m", "tests.stranger"],
        input=json.dumps({"ports": [], "paths": [], "sockets": [], "moves": [], **wanted}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=PATIENCE_S,
    )
    report: dict[str, Any] = json.loads(said.stdout)
    return report


@pytest.mark.ray
def test_every_port_of_up_deploy_and_a_training_is_on_loopback(alive: Alive) -> None:
    ports = listening()
    owners = {port.owner for port in ports}
    assert {"weed", "gcs_server", "raylet", "ray::ServeReplica", "ray::ProxyActor", "ray::TrainingProcess"} <= owners
    assert [port for port in ports if not is_loopback(port.address)] == []


@ALONE
@pytest.mark.ray
def test_no_port_does_anything_for_another_account(alive: Alive) -> None:
    ports = {str(port.number): port.owner for port in listening()}
    found = stranger(ports=[int(number) for number in ports])["ports"]
    allowed = [(ports[number], what["kind"]) for number, what in found.items()]
    assert [(owner, kind) for owner, kind in allowed if kind not in ANSWERS.get(owner, {})] == []
    did = {
        (ports[number], request)
        for number, what in found.items()
        for request in set(what["did"]) - ANSWERS[ports[number]][what["kind"]]
    }
    assert did == set()
    assert len(registry.models(alive.store)) == 1, "it is all there"


@ALONE
@pytest.mark.ray
def test_the_stores_own_shell_works_for_its_owner_alone(alive: Alive, home: Path) -> None:
    ports = json.loads((home / "ports.json").read_text())
    command = ["-master", f"127.0.0.1:{ports['master']}", "-filer", f"127.0.0.1:{ports['filer']}"]
    weed = find_program("weed", cure="")
    ours = shell([weed, f"-config_dir={home / 'seaweed'}", "shell", *command])
    assert "orchestrator" in ours
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        copy = shutil.copy(weed, folder)  # the environment may lie where others cannot go
        theirs = shell([copy, "-logtostderr=true", "shell", *command], user="nobody", cwd=folder)
    assert "orchestrator" not in theirs


def shell(command: list[str], **settings: Any) -> str:
    """What the store's shell tells of the buckets; it tries for ever where it is refused."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings
    ) as process:
        try:
            return process.communicate("fs.ls /buckets\nexit\n", timeout=SHELL_S)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0]


@ALONE
@pytest.mark.ray
def test_no_file_or_socket_is_open_to_another_account(alive: Alive, home: Path) -> None:
    folders = [home, Path(alive.ray.temp_dir), Path(str(alive.server.temp_dir)), cache_folder("memory")]
    files = [path for folder in folders for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    assert len(files) > 100
    pids = {process.pid for process in local.processes_of(local.status())}
    unix = {c.laddr for c in psutil.net_connections("unix") if c.pid in pids and str(c.laddr).startswith("/")}
    assert len(unix) > 5
    found = stranger(paths=[str(path) for path in files], sockets=sorted(unix))
    assert found["paths"] == []
    assert found["sockets"] == []


@ALONE
@pytest.mark.ray
def test_a_staged_package_cannot_be_swapped(alive: Alive, home: Path) -> None:
    staged = [*(home / "staged").iterdir(), *Path(alive.ray.temp_dir).glob("ray/session_*/runtime_resources/*/*")]
    assert any((folder / "orchestrator").is_dir() for folder in staged)
    assert stranger(moves=[str(folder) for folder in staged])["moves"] == []


@pytest.mark.ray
def test_a_worker_refuses_a_package_that_was_changed(ray_cluster: RayState) -> None:
    import ray

    def where() -> str:
        return str(Path.cwd())

    class Sleeper:
        def wake(self) -> None:
            pass

    with ray_session():
        folder = Path(ray.get(ray.remote(where).remote()))
        changed = folder / "cluster" / "config.py"
        before = changed.read_bytes()
        changed.write_bytes(before + b"\n")
        try:
            process = ray.remote(Sleeper).options(runtime_env={"env_vars": {"COLOUR": uuid4().hex}}).remote()
            with pytest.raises(ray.exceptions.ActorDiedError, match="must be those that the driver sent, got other"):
                ray.get(process.wake.remote(), timeout=PATIENCE_S)
        finally:
            changed.write_bytes(before)


@pytest.mark.ray
def test_a_cluster_whose_files_are_open_is_not_used(ray_cluster: RayState) -> None:
    folder = Path(ray_cluster.temp_dir)
    folder.chmod(0o777)
    try:
        with pytest.raises(ClusterError, match=r"closed to other accounts \(mode 700\), got mode 777\. Run `orch"):
            require_closed(ray_cluster)
        with pytest.raises(ClusterError, match="got mode 777"), client_environment(resolve_address()):
            pass
    finally:
        folder.chmod(0o700)


def test_a_private_folder_is_ours_closed_and_no_link(tmp_path: Path) -> None:
    made = private_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    assert stat.S_IMODE(private_folder(made).stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(made)
    with pytest.raises(ClusterError, match="must be a folder and no link, got another kind"):
        private_folder(tmp_path / "link")


@ALONE
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 65534, -1)
    with pytest.raises(ClusterError, match=r"must belong to this account, got user id 65534\. Name another folder"):
        require_private(theirs)

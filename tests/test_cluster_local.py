"""The local Ray head and store: started once, repaired, reachable from this machine alone, ended completely."""

import json
import os
import signal
import socket
import stat
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from cluster import local
from cluster.config import StoreSettings
from cluster.errors import ClusterError, ConfigError
from cluster.machine import processes
from cluster.machine import store_server as local_store
from cluster.machine.processes import Launches
from cluster.machine.state import LocalState, ProcessRecord, RayState, StoreState
from cluster.s3.connection import is_loopback
from cluster.s3.store import Store
from cluster.storage import open_store


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A second local cluster, beside the session's."""
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "own"))
    return tmp_path / "own"


@pytest.mark.store
def test_the_store_starts_once_keeps_its_data_and_its_address_and_ends(own_home: Path) -> None:
    first = local.up(with_ray=False)
    try:
        assert local.up(with_ray=False) == first == local.status()
        open_store().write("kept", b"data")
        assert local.down() == [
            f"ended the store at {first.store.settings.endpoint_url} (process {first.store.process.pid})"
        ]
        assert local.processes_of(first) == []
        assert local.status() == LocalState()
        assert not Path(first.store.temp_dir).exists()
        ports = json.loads((own_home / "ports.json").read_text())
        sockets = [Path(f"/tmp/seaweedfs-{role}-grpc-{port + 10000}.sock") for role, port in ports.items()]
        assert not [path for path in sockets if path.exists()]
        second = local.up(with_ray=False)
        assert second.store.settings == first.store.settings
        assert open_store().read("kept") == b"data"
    finally:
        local.down(delete_data=True)
    assert not (own_home / "store").exists()
    assert local.down() == []


@pytest.mark.store
def test_a_store_that_died_is_started_again(own_home: Path) -> None:
    before = local.up(with_ray=False).store
    try:
        open_store().write("kept", b"data")
        process = before.process.find()
        process.kill()
        process.wait()
        assert local.status().store is None
        after = local.up(with_ray=False).store
        assert after.process != before.process
        assert open_store().read("kept") == b"data"
    finally:
        local.down()


@pytest.mark.store
def test_an_address_moves_when_its_port_was_taken(own_home: Path) -> None:
    before = local.up(with_ray=False).store.settings
    try:
        open_store().write("kept", b"data")
        local.down()
        port = int(before.endpoint_url.rsplit(":", 1)[1])
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
            taken.listen()
            after = local.up(with_ray=False).store.settings
            assert after.endpoint_url != before.endpoint_url
            assert open_store().read("kept") == b"data"
    finally:
        local.down()


@pytest.mark.store
def test_only_the_owner_can_read_the_keys(home: Path, store: Store) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home, *home.iterdir(), *home.glob("*/*"))}
    assert modes[home.name] == 0o700
    secret = ("credentials", "s3.json", "security.toml")
    assert {modes[name] for name in secret} == {0o600}
    assert {modes[name] for name in ("seaweed", "store", "logs")} == {0o700}


@pytest.mark.store
def test_no_key_is_in_the_state_the_log_or_the_arguments_of_the_store(home: Path, store: Store) -> None:
    keys = [line.split(" = ")[1] for line in (home / "credentials").read_text().splitlines()[1:]]
    process = local.status().store.process.find()
    seen = [(home / "local.json").read_text(), (home / "logs" / "store.log").read_text(), *process.cmdline()]
    assert len(keys) == 2
    assert not [key for key in keys for text in seen if key in text]


@pytest.mark.ray
def test_every_port_is_open_to_this_machine_alone(ray_cluster: RayState) -> None:
    processes = local.processes_of(local.status())
    ports = [c.laddr for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert len(ports) > 10
    assert [port for port in ports if not is_loopback(port.ip.removeprefix("::ffff:"))] == []


@pytest.mark.ray
def test_the_dashboard_answers_only_with_the_token(ray_cluster: RayState) -> None:
    url = f"{ray_cluster.dashboard_url}/api/jobs/"
    with pytest.raises(HTTPError, match="401"):
        urlopen(url, timeout=10)
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(url, headers={"Authorization": "Bearer " + "0" * 64}), timeout=10)
    token = Path(ray_cluster.token_file)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    with urlopen(Request(url, headers={"Authorization": f"Bearer {token.read_text()}"}), timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.ray
def test_a_second_up_changes_nothing(ray_cluster: RayState) -> None:
    before = {process.pid for process in local.processes_of(local.status())}
    assert local.up().ray == ray_cluster
    assert before <= {process.pid for process in local.processes_of(local.status())}


@pytest.mark.ray
def test_a_second_cluster_lives_beside_the_first_is_repaired_and_ends_alone(
    ray_cluster: RayState, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    before = local.up(cpus=1, with_store=False)
    try:
        processes = local.processes_of(before)
        assert len(processes) > 3
        environments = [" ".join(process.environ().values()) for process in processes]
        assert not [text for text in environments if "canary-secret" in text]
        (gcs,) = [process for process in processes if process.name() == "gcs_server"]
        gcs.kill()
        gcs.wait()
        after = local.up(cpus=1, with_store=False)  # while `ray start` may not have noticed yet
        assert after.ray.process != before.ray.process
        assert local.ray_processes(before.ray) == []
    finally:
        local.down()
    assert local.ray_processes(after.ray) == []
    assert not Path(after.ray.temp_dir).exists()
    assert ray_cluster.running()


def test_a_process_of_the_same_id_but_another_time_is_not_ours() -> None:
    own = psutil.Process()
    assert ProcessRecord(pid=own.pid, created=own.create_time()).find() == own
    assert ProcessRecord(pid=own.pid, created=own.create_time() - 60).find() is None


def test_a_state_that_is_none_of_ours_is_named(own_home: Path) -> None:
    own_home.mkdir()
    (own_home / "local.json").write_text('{"ray": 7}')
    with pytest.raises(ConfigError, match=r"local\.json must be a state that `orchestrator up` wrote"):
        local.status()


def test_a_missing_program_names_the_cure() -> None:
    with pytest.raises(ClusterError, match=r"'no-such-weed' must be installed, got none\. Run `pip"):
        processes.find_program("no-such-weed", cure="Run `pip install it`.")


def test_a_server_that_does_not_start_says_why(own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "weed"
    broken.write_text("#!/bin/sh\necho no room for volumes\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(local_store, "find_program", lambda name, *, cure: str(broken))
    with pytest.raises(ClusterError, match=r"got 3 failures\..* its last words: no room for volumes"):
        local.up(with_ray=False)
    assert local.status() == LocalState()


def test_the_ports_of_the_store_are_distinct_and_leave_room_for_their_partners() -> None:
    ports = local_store.free_store_ports()
    both = {*ports.values(), *(port + 10000 for port in ports.values())}
    assert (len(ports), len(both)) == (5, 10)
    assert max(both) < 32768


def test_who_gives_up_a_start_leaves_nothing_unknown(own_home: Path) -> None:
    own_home.mkdir(mode=0o700)
    here = psutil.Process()
    started = StoreState(
        process=ProcessRecord(pid=here.pid, created=here.create_time()), settings=StoreSettings(url="s3://bucket")
    )
    ended = threading.Event()

    def start_store(_: Launches) -> StoreState:
        os.kill(os.getpid(), signal.SIGINT)  # it wakes the main thread, as Ctrl-C does
        return started

    def start_ray(launches: Launches) -> RayState:
        launches.given_up.wait()
        ended.set()
        raise ClusterError("the start must not be given up, got an interrupt.")

    with pytest.raises(KeyboardInterrupt):
        local._started(LocalState(), start_ray, start_store)
    assert ended.is_set()
    found = local.status().store
    assert found is not None
    assert found.process.pid == here.pid


def test_what_a_person_gave_up_is_killed_and_nothing_begins_any_more() -> None:
    launches, killed = Launches(), []
    assert [launches.begin(lambda name=name: name, killed.append) for name in ("ray", "store")] == ["ray", "store"]
    launches.kill()
    assert killed == ["ray", "store"]
    with pytest.raises(ClusterError, match=r"must not be given up, got an interrupt"):
        launches.begin(pytest.fail, killed.append)

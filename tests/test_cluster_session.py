"""Which cluster is meant, connecting to it, and what its workers see."""

import os
import sys
import time
from pathlib import Path

import pytest
import ray

from cluster import staging
from cluster.address import ClusterAddress, resolve_address
from cluster.config import StoreSettings
from cluster.errors import ClusterError, ConfigError
from cluster.machine.ours import OURS
from cluster.machine.state import RayState
from cluster.s3.store import Store
from cluster.session import (
    check_reachable,
    client_environment,
    cluster_resources,
    ray_session,
    require_resources,
    require_token,
    store_environment,
)
from cluster.staging import check_packages, stage


@pytest.fixture
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "own"))


# ---- which cluster


def test_no_cluster_names_the_cure(no_cluster: None) -> None:
    with pytest.raises(ClusterError, match=r"must be running, got none\. Run `orchestrator up`, or start one"):
        resolve_address()


def test_addresses_are_taken_in_order_and_say_where_from(no_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("RAY_DASHBOARD_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, f"http://{name.lower().replace('_', '-')}:8265")
        found.append(resolve_address().source)
    assert found == ["RAY_DASHBOARD_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"]
    assert resolve_address("head:6379") == ClusterAddress("head:6379", "--address")


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("10.0.0.1:6379", ("", "10.0.0.1", 6379)),
        ("[::1]:6379", ("", "::1", 6379)),
        ("ray://head:10001", ("ray", "head", 10001)),
        ("ray://head", ("ray", "head", 10001)),
        ("http://head:8265/", ("http", "head", 8265)),
        ("https://head", ("https", "head", 443)),
    ],
)
def test_every_form_of_an_address_is_understood(no_cluster: None, address: str, parts: tuple[str, str, int]) -> None:
    found = resolve_address(address)
    assert (found.scheme, found.host, found.port) == parts


@pytest.mark.parametrize("address", ["head", "ftp://head:1", "head:port", "http://", ":6379", "head:99999"])
def test_a_malformed_address_is_refused_with_its_source(no_cluster: None, address: str) -> None:
    with pytest.raises(ConfigError, match=r"must be HOST:PORT, ray://HOST:PORT.*\(from --address\)"):
        resolve_address(address)


@pytest.mark.ray
def test_the_local_cluster_is_found_and_recognized(ray_cluster: RayState, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_address() == resolve_address("auto")
    assert resolve_address() == ClusterAddress(ray_cluster.address, "the local cluster", ray_cluster)
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    assert resolve_address() == ClusterAddress(ray_cluster.address, "RAY_ADDRESS", ray_cluster)
    assert resolve_address(ray_cluster.dashboard_url).local == ray_cluster
    assert resolve_address("127.0.0.1:1").local is None


# ---- refusing early


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_dead_address_is_named_at_once(no_cluster: None, address: str) -> None:
    began = time.monotonic()
    with pytest.raises(ClusterError, match=rf"Ray cluster at {address} \(from --address\) must answer within 10 s"):
        ray_session(address).__enter__()
    assert time.monotonic() - began < 10


@pytest.mark.store
def test_a_server_that_is_not_ray_is_named(store: Store) -> None:
    address = str(store.settings.endpoint_url).removeprefix("http://")
    with pytest.raises(ClusterError, match=f"Ray cluster at {address} .* must answer"):
        ray_session(address).__enter__()


def test_a_dashboard_address_cannot_be_connected_to(no_cluster: None) -> None:
    with pytest.raises(ClusterError, match=r"must be HOST:PORT or ray://HOST:PORT, got http.*`orchestrator submit`"):
        ray_session("http://127.0.0.1:8265").__enter__()


def test_a_cluster_elsewhere_without_a_token_is_refused(
    no_cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ClusterError, match=r"must check a token, got 10\.9\.8\.7:6379 without one\. Start it with"):
        ray_session("10.9.8.7:6379").__enter__()
    found = resolve_address("10.9.8.7:6379")
    with client_environment(found):
        require_token(found, allow_unauthenticated=True)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with client_environment(found):
        require_token(found, allow_unauthenticated=False)


@pytest.mark.ray
def test_a_wrong_token_is_named(ray_cluster: RayState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    found = ClusterAddress(ray_cluster.address, "--address")
    with client_environment(found), pytest.raises(ClusterError, match="must accept our token, got UNAUTHENTICATED"):
        check_reachable(found)


@pytest.mark.ray
def test_another_version_of_ray_is_named(ray_cluster: RayState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "__version__", "2.9.3")
    with pytest.raises(ClusterError, match=r"must run Ray 2\.9\.3 like this machine, got Ray 2\.60"):
        ray_session().__enter__()


# ---- connected


@ray.remote(num_cpus=0)
def look(key: str) -> dict[str, str]:
    import models
    from cluster.storage import open_store

    open_store().write(key, b"from a worker")
    return {"models": models.__file__, "cwd": os.getcwd(), **os.environ}  # noqa: PTH109


def settings_of_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


@pytest.mark.ray
def test_workers_import_our_packages_and_reach_the_store_without_a_key_in_their_environment(
    ray_cluster: RayState, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    before = settings_of_ray()
    with ray_session(store=store.settings, environment={"OMP_NUM_THREADS": "3"}) as found:
        assert found.local == ray_cluster
        seen = ray.get(look.remote("x"), timeout=60)
        assert ray.get_runtime_context().namespace == "orchestrator"
    assert settings_of_ray() == before
    assert not ray.is_initialized()
    assert store.read("x") == b"from a worker"
    assert Path(seen["models"]).parents[1] == Path(seen["cwd"])
    assert Path(seen["cwd"]) != Path.cwd()
    assert seen["OMP_NUM_THREADS"] == "3"
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert capfd.readouterr().out == ""


@pytest.mark.ray
def test_a_session_within_a_session_joins_it(ray_cluster: RayState) -> None:
    with ray_session() as outer:
        with ray_session() as inner:
            assert inner == outer
        assert ray.is_initialized()
        with pytest.raises(ClusterError, match=r"connected to one cluster, got 127\.0\.0\.1:1 \(from --address\)"):
            ray_session("127.0.0.1:1").__enter__()
    assert not ray.is_initialized()


@pytest.mark.ray
def test_what_the_cluster_can_never_hold_is_refused(ray_cluster: RayState) -> None:
    with ray_session():
        assert cluster_resources()["CPU"] == 4
        require_resources(cpus=4)
        with pytest.raises(ClusterError, match=r"the cluster must have 5 CPUs, got 4\. Ask for fewer workers, or add"):
            require_resources(cpus=5)
        with pytest.raises(ClusterError, match="must have 1 GPUs, got 0"):
            require_resources(gpus=1)


def test_the_environment_says_where_the_store_is_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_environment(None) == {}
    settings = StoreSettings(url="s3://b/p", endpoint_url="https://s3.example.org", profile="p")
    assert store_environment(settings) == {
        "ORCHESTRATOR_STORE": "s3://b/p",
        "AWS_ENDPOINT_URL": "https://s3.example.org",
        "AWS_PROFILE": "p",
    }
    monkeypatch.setenv("ORCHESTRATOR_STORE_PLAIN_HTTP", "1")
    assert store_environment(settings)["ORCHESTRATOR_STORE_PLAIN_HTTP"] == "1", "what the driver may, its workers may"


# ---- staging


def test_staging_copies_our_packages_and_files_and_is_the_same_twice() -> None:
    staged = stage({"experiment.yaml": b"a: 1"})
    assert {path.name for path in staged.iterdir()} == {*OURS, "experiment.yaml"}
    assert (staged / "experiment.yaml").read_bytes() == b"a: 1"
    assert (staged / "cluster" / "staging.py").read_bytes() == Path(staging.__file__).read_bytes()
    assert not list(staged.rglob("__pycache__"))
    assert stage({"experiment.yaml": b"a: 1"}) == staged
    assert stage({"experiment.yaml": b"a: 2"}) != staged


@pytest.mark.parametrize("name", ["../x", "a/b", "models", "", ".", ".."])
def test_a_file_cannot_stand_elsewhere_or_for_a_package(name: str) -> None:
    with pytest.raises(ConfigError, match="must have a plain name of its own"):
        stage({name: b""})


def test_a_foreign_package_that_comes_first_is_named_with_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_packages()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "models", raising=False)
    ours = Path(staging.__file__).parents[1]
    with pytest.raises(ConfigError, match=f"'models' must be imported from {ours}, got {tmp_path / 'models'}"):
        check_packages()

"""Fixtures shared by every test: nothing of the user's machine leaks in, and the servers are started once."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from cluster import local
from cluster.machine.state import RayState, StoreState
from cluster.process import typed
from cluster.s3.store import Store

SECOND_HALF = (
    "test_chaos.py",
    "test_commands_demo.py",
    "test_runs_checkpoint_crashes.py",
)  # of the tests that mostly wait
OWN_CLUSTER = ("test_submit.py", "test_cluster_head_watch.py", "test_secrets.py")  # for the process that is done first
USER_VARIABLES = ("AWS_", "RAY_", "ORCHESTRATOR_")
LOGICAL_CPUS = 4  # more than a small machine has: the tests wait more than they compute


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``-n 2``: one half of what waits for Ray in each process and its cluster, the other tests in either."""
    for item in items:
        if item.path.name in SECOND_HALF:
            item.add_marker(pytest.mark.xdist_group("second half"))
        elif item.path.name in OWN_CLUSTER:
            item.add_marker(pytest.mark.xdist_group("own cluster"))
        elif item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("first half"))


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of its own for the local cluster, and an environment without the user's AWS and Ray settings.

    Whatever the session started under this folder has ended after the last test.
    """
    path = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(USER_VARIABLES)]:
            patch.delenv(name)
        patch.setenv("ORCHESTRATOR_HOME", str(path))
        patch.setenv("ORCHESTRATOR_CACHE", str(path / "cache"))
        patch.setenv("AWS_CONFIG_FILE", str(path / "no-aws-config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path / "no-aws-credentials"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("ORCHESTRATOR_METADATA_URL", "http://127.0.0.1:9")  # nobody listens: no notices from this machine
        patch.setenv("OMP_NUM_THREADS", "1")  # the workers inherit it; sums are the same bits every time
        yield path
        state = local.status()
        local.down()
        assert local.processes_of(state) == []


@pytest.fixture(autouse=True)
def nothing_given() -> None:
    """No command line of another test is repeated in what this one is told to type."""
    for option in typed.BOTH:
        typed.give(option, None)


@pytest.fixture(scope="session")
def store_server(home: Path) -> StoreState:
    """The session's S3 server: a real SeaweedFS with generated keys."""
    state = local.up(with_ray=False).store
    assert state is not None
    return state


@pytest.fixture
def store(store_server: StoreState) -> Store:
    """An empty store: a prefix of its own on the session's S3 server."""
    settings = store_server.settings
    return Store(settings.model_copy(update={"url": f"{settings.url}/{uuid4().hex[:12]}"}))


@pytest.fixture(scope="session")
def ray_cluster(store_server: StoreState) -> RayState:
    """The session's Ray head. Its environment holds no secret; connect with ``cluster.session.ray_session``."""
    state = local.up(cpus=LOGICAL_CPUS).ray
    assert state is not None
    return state

"""Fixtures shared by every test: nothing of the user's machine leaks in, and the servers are started once."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from cluster import local
from cluster.errors import OrchestratorError
from cluster.head_watch import told_by
from cluster.machine.state import RayState, StoreState
from cluster.process import typed
from cluster.s3.store import Store

USER_VARIABLES = ("AWS_", "RAY_", "ORCHESTRATOR_")
LAST_WORDS = 600  # characters
LOGICAL_CPUS = 4  # more than a small machine has: the tests wait more than they compute


def pytest_configure(config: pytest.Config) -> None:
    """With ``-n``: let the process that the others report to say at once what failed."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(config))


class FailuresAtOnce:
    """Names each test as it fails: a run that is ended from outside never comes to its summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the name of a test that failed, and the last lines of why."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\n{report.when} of {report.nodeid} failed:\n{report.longreprtext[-LAST_WORDS:]}")


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


@pytest.fixture(scope="session", autouse=True)
def last_words(request: pytest.FixtureRequest) -> Iterator[None]:
    """Show why this process ends when the head of a cluster dies: what it prints otherwise ends with it."""
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def tell(error: OrchestratorError) -> None:
        with capture.global_and_fixture_disabled():
            print(error, file=sys.stderr, flush=True)

    with told_by(tell):
        yield


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

"""What the gateway makes of Serve's word about the models, with that word in place of a cluster."""

import asyncio
import threading

import pytest
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from serving import app
from serving.app import StatusReader, model_state, require_living
from serving.http.gateway import UnavailableError

TABLE = {"table": "living"}


def overview(status: str, **replicas: int) -> ApplicationStatusOverview:
    deployment = DeploymentStatusOverview(
        status="HEALTHY", status_trigger="UNSPECIFIED", replica_states=replicas, message=""
    )
    return ApplicationStatusOverview(
        status=status, message="", last_deployed_time_s=0.0, deployments={"Model": deployment}
    )


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (overview("RUNNING", RUNNING=1), "living"),
        (overview("DEPLOYING", RUNNING=1, STARTING=1), "living"),  # a version replaces another
        (overview("DEPLOYING", RECOVERING=1), "living"),  # the controller has restarted
        (overview("DEPLOYING", STARTING=1), "deploying"),
        (overview("NOT_STARTED"), "deploying"),
        (overview("RUNNING", STARTING=1), "dead"),
        (overview("UNHEALTHY"), "dead"),
        (overview("DEPLOY_FAILED", STOPPING=1), "dead"),
    ],
)
def test_a_model_lives_while_a_replica_does(seen, state):
    assert model_state(seen) == state


def test_a_model_that_nobody_can_answer_for_is_not_waited_for():
    require_living("table", {"table": "living"})
    with pytest.raises(UnavailableError, match="table must have started, got one that is being deployed") as refused:
        require_living("table", {"table": "deploying"})
    assert (refused.value.status, refused.value.code) == (503, "deploying")
    for states in ({"table": "dead"}, {}):
        with pytest.raises(UnavailableError, match="table must have a living replica, got none") as refused:
            require_living("table", states)
        assert (refused.value.status, refused.value.code) == (503, "unavailable")


class Controller:
    """Serve's word, which may fail to come or be late."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()

    def read(self) -> dict[str, str]:
        self.asked += 1
        self.answers.wait()
        if self.failure is not None:
            raise self.failure
        return TABLE


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "STATUS_AGE_S", 0.0)
    monkeypatch.setattr(app, "STATUS_WAIT_S", 0.01)


def test_the_states_are_read_once_for_many_requests():
    controller = Controller()

    async def read_often() -> None:
        reader = StatusReader(controller.read)
        assert await asyncio.gather(*(reader.read() for _ in range(20))) == [TABLE] * 20
        assert await reader.read() == TABLE

    asyncio.run(read_often())
    assert controller.asked == 1


def test_no_name_is_called_unknown_before_the_controller_has_answered(at_once):
    controller = Controller()
    controller.failure = RayServeException("no controller")

    async def read_twice() -> None:
        reader = StatusReader(controller.read)
        with pytest.raises(UnavailableError, match="must tell which models it has, got no answer"):
            await reader.read()
        controller.failure = None
        assert await reader.read() == TABLE

    asyncio.run(read_twice())


@pytest.mark.parametrize("failure", [RayServeException("no controller"), None])
def test_the_last_states_count_while_the_controller_fails_or_does_not_answer(at_once, failure):
    controller = Controller()

    async def read_on() -> None:
        reader = StatusReader(controller.read)
        assert await reader.read() == TABLE
        controller.failure = failure
        if failure is None:
            controller.answers.clear()
        assert [await reader.read() for _ in range(3)] == [TABLE] * 3
        controller.answers.set()

    asyncio.run(read_on())
    assert controller.asked <= 4  # at most one thread waits at a time

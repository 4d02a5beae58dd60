"""A cluster that anybody could use is told apart from one that is closed or asks for a token."""

import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import grpc
import psutil
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from cluster.address import ClusterAddress
from cluster.machine.exposure import describe_danger, listens_beyond_loopback, warn_if_open
from cluster.s3.connection import is_loopback
from orchestrator.commands import doctor
from tests.web_server import Quiet, listening

EVERYWHERE, HERE = "0.0.0.0", "127.0.0.1"
OWN = [a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET]
NETWORKED = pytest.mark.skipif(all(map(is_loopback, OWN)), reason="this machine has no address but loopback")


@contextmanager
def dashboard(host: str, *, status: int) -> Iterator[ClusterAddress]:
    """A server that answers a question for its jobs, without a token, by a status."""

    class Answer(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

    with listening(Answer, host=host) as server:
        yield ClusterAddress(f"http://127.0.0.1:{server.server_port}", "--address")


@contextmanager
def control_service(host: str, *, takes_anybody: bool) -> Iterator[ClusterAddress]:
    """A control service of Ray's interface that asks for a token, or does not."""

    class Service(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
        def CheckAlive(self, request: object, context: grpc.ServicerContext) -> object:  # noqa: N802
            if not takes_anybody:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
            return gcs_service_pb2.CheckAliveReply()

    server = grpc.server(ThreadPoolExecutor(1))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port(f"{host}:0")
    server.start()
    yield ClusterAddress(f"127.0.0.1:{port}", "--address")
    server.stop(None).wait()


@NETWORKED
def test_a_dashboard_that_answers_everybody_everywhere_is_a_danger(caplog: pytest.LogCaptureFixture) -> None:
    with dashboard(EVERYWHERE, status=200) as found:
        danger = describe_danger(found)
        with caplog.at_level(logging.WARNING):
            warn_if_open(found)
    assert danger is not None
    assert danger.startswith(
        f"the cluster at {found.address} must ask for a token where others than this machine reach"
    )
    assert [
        record.getMessage().startswith(f"warning: {danger} Start it as README.md") for record in caplog.records
    ] == [True]


@NETWORKED
def test_a_control_service_that_answers_everybody_everywhere_is_a_danger() -> None:
    with control_service(EVERYWHERE, takes_anybody=True) as found:
        assert describe_danger(found) is not None


def test_what_asks_for_a_token_is_none() -> None:
    with dashboard(EVERYWHERE, status=401) as one, control_service(EVERYWHERE, takes_anybody=False) as other:
        assert [describe_danger(found) for found in (one, other)] == [None, None]


def test_what_listens_on_loopback_alone_is_none() -> None:
    with dashboard(HERE, status=200) as one, control_service(HERE, takes_anybody=True) as other:
        assert [listens_beyond_loopback(found) for found in (one, other)] == [False, False]
        assert [describe_danger(found) for found in (one, other)] == [None, None]


def test_another_machine_can_always_be_reached_by_others() -> None:
    assert listens_beyond_loopback(ClusterAddress("10.9.8.7:6379", "--address"))


@NETWORKED
def test_doctor_says_that_a_cluster_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with dashboard(EVERYWHERE, status=200) as found:
        check = doctor.check_ray(found.address)
    assert not check.ok
    assert "must ask for a token" in check.detail
    assert "orchestrator up" in check.cure

"""Processes that listen beyond loopback are found by their sockets, and refused."""

import socket

import psutil
import pytest

from cluster.errors import ConfigError, RunFailedError
from serving.applications import require_free
from serving.http.sockets import exposed_addresses, require_loopback

HERE = psutil.Process()


@pytest.mark.parametrize(
    ("family", "ip", "shown"), [(socket.AF_INET, "0.0.0.0", "0.0.0.0"), (socket.AF_INET6, "::", "[::]")]
)
def test_a_process_that_listens_on_every_interface_is_refused_with_its_port(family, ip, shown):
    with socket.create_server((ip, 0), family=family) as server:
        address = f"{shown}:{server.getsockname()[1]}"
        assert exposed_addresses(HERE) == [address]
        with pytest.raises(RunFailedError) as refused:
            require_loopback([HERE], what="each replica of table v1")
    message = f"each replica of table v1 must listen on loopback only, got {address} (process {HERE.pid})"
    assert message in str(refused.value)
    require_loopback([HERE], what="it")


@pytest.mark.parametrize(("family", "ip"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_loopback_is_not_exposed(family, ip):
    with socket.create_server((ip, 0), family=family):
        assert exposed_addresses(HERE) == []


def test_a_process_that_has_ended_listens_nowhere():
    ended = psutil.Popen(["true"])
    ended.wait()
    assert exposed_addresses(ended) == []


def test_a_taken_port_names_the_flag_that_chooses_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"got 127.0.0.1:{port}: .* Name another with --port, or let --port 0 find"
        ):
            require_free("127.0.0.1", port)
    require_free("127.0.0.1", port)

"""Tells a Ray cluster that anybody could use: it asks for no token where others than this machine reach it."""

import logging
import socket
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil

from cluster.address import ClusterAddress
from cluster.lazy import imported
from cluster.nodes import ask_alive
from cluster.s3.connection import is_loopback

LOOK_S = 2.0
FAMILIES = (socket.AF_INET, socket.AF_INET6)
CURE = "Start it as README.md shows under “On a cluster”, or run `orchestrator up`."

log = logging.getLogger(__name__)


def warn_if_open(found: ClusterAddress) -> None:
    """Log one line where the cluster is open; never fail."""
    if (danger := describe_danger(found)) is not None:
        log.warning("warning: %s %s", danger, CURE)


def describe_danger(found: ClusterAddress) -> str | None:
    """Return what is wrong with a cluster that anybody could use, or ``None``."""
    if not listens_beyond_loopback(found) or not _takes_no_token(found):
        return None
    return (
        f"the cluster at {found.address} must ask for a token where others than this machine reach it, got none: "
        "whoever reaches it can run programs as its user."
    )


def listens_beyond_loopback(found: ClusterAddress) -> bool:
    """Whether the cluster's port can be reached from another machine (of one on another machine: yes)."""
    if found.local is not None:
        return False
    if not is_loopback(found.host):
        return True
    own = [a.address for addresses in psutil.net_if_addrs().values() for a in addresses if a.family in FAMILIES]
    return any(_answers(address, found.port) for address in own if not is_loopback(address.partition("%")[0]))


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=LOOK_S).close()
    except OSError:
        return False
    return True


def _takes_no_token(found: ClusterAddress) -> bool:
    """Whether a request without a token is answered; of `ray://`, whose service tells nothing without a session, no."""
    if found.scheme == "ray":
        return False
    return _dashboard_is_open(found.address) if found.scheme else _control_service_is_open(found)


def _dashboard_is_open(url: str) -> bool:
    try:
        with urlopen(Request(f"{url}/api/jobs/"), timeout=LOOK_S) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _control_service_is_open(found: ClusterAddress) -> bool:
    grpc: Any = imported("grpc")
    try:
        ask_alive(found.host, found.port, timeout_s=LOOK_S, headers={})
    except grpc.RpcError:
        return False
    return True

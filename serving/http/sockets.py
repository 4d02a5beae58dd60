"""Keeps the replicas' own gRPC servers off the network, and finds those that are on it."""

from collections.abc import Iterable
from typing import Any

import psutil

from cluster.errors import RunFailedError
from cluster.lazy import imported
from cluster.s3.connection import is_loopback


def listen_on_node_address() -> None:
    """Let this process's replica listen at the node's address alone. Call it in a deployment's constructor.

    Serve starts a gRPC server in every replica after its constructor, for calls between deployments, on ``[::]:0``:
    every interface, and no setting changes that (``ray/serve/_private/replica.py`` of Ray 2.60). Callers use the
    node's address, so nothing is lost; on a cluster that `orchestrator up` started it is 127.0.0.1.
    """
    replica: Any = imported("ray.serve._private.replica")
    tls: Any = imported("ray._common.tls_utils")
    util: Any = imported("ray.util")
    address = _join(util.get_node_ip_address(), 0)

    def add_port(server: Any, _: str) -> Any:
        return tls.add_port_to_grpc_server(server, address)

    assert hasattr(replica, "add_port_to_grpc_server"), "another version of Ray, which calls it by another name"
    replica.add_port_to_grpc_server = add_port


def require_loopback(processes: Iterable[psutil.Process], *, what: str) -> None:
    """Refuse processes that others on the network can reach.

    Raises:
        RunFailedError: One of them listens on another interface than loopback; the message names address and process.
    """
    for process in processes:
        for address in exposed_addresses(process):
            raise RunFailedError(
                f"{what} must listen on loopback only, got {address} (process {process.pid}). "
                "Use the version of Ray that constraints.txt names."
            )


def exposed_addresses(process: psutil.Process) -> list[str]:
    """The addresses beyond loopback at which a process listens, as ``HOST:PORT``; none of one that has ended."""
    try:
        connections = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return []
    listening = [c.laddr for c in connections if c.status == psutil.CONN_LISTEN]
    return [_join(ip, port) for ip, port in listening if not is_loopback(ip.removeprefix("::ffff:"))]


def _join(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

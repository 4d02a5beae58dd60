"""The nodes of the connected cluster: what they have free, which of them live, and which will go."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster.errors import ClusterError
from cluster.lazy import imported

DRAIN_S = 5.0  # for one call to the cluster's control service, which answers in milliseconds


def draining_nodes() -> dict[str, float | None]:
    """Return the nodes that the connected cluster will lose: id (hex) to Unix seconds, ``None`` where no time is known.

    Whoever asked for the drain is not told apart: our watcher, an autoscaler, or Kubernetes by a SIGTERM. A node leaves
    the list when it dies, which it does by itself once nothing runs on it. Takes about 2 ms.
    """
    state: Any = imported("ray._private.state")
    nodes: dict[str, int] = state.state.get_draining_nodes()
    return {node: deadline_ms / 1000 if deadline_ms else None for node, deadline_ms in nodes.items()}


def drain_node(node_id: str, *, deadline: float | None, reason: str) -> None:
    """Let the connected cluster give no more work to a node; what runs there goes on.

    Draining again replaces the deadline, not the reason. Ray does nothing at the deadline, but ends the node as soon
    as it is idle.

    Args:
        node_id: In hex.
        deadline: Unix seconds.
        reason: One line; Ray names it as the cause of the node's death.

    Raises:
        ClusterError: The cluster did not accept it.
    """
    ray: Any = imported("ray")
    raylet: Any = imported("ray._raylet")
    messages: Any = imported("ray.core.generated.autoscaler_pb2")
    deadline_ms = 0 if deadline is None else max(1, int(deadline * 1000))  # 0 stands for none
    try:
        client = raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        accepted, answer = client.drain_node(
            node_id, messages.DRAIN_NODE_REASON_PREEMPTION, reason, deadline_ms, timeout=DRAIN_S
        )
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the cluster must drain node {node_id}, got {error}.") from error
    if not accepted:
        raise ClusterError(f"the cluster must drain node {node_id}, got {answer}.")


def free_resources(*, without: set[str]) -> dict[str, dict[str, float]]:
    """What nobody has reserved on each living node, except on those named."""
    state: Any = imported("ray._private.state")
    found = state.available_resources_per_node()
    return {node: dict(resources) for node, resources in found.items() if node not in without}


def living_nodes() -> dict[str, dict[str, float]]:
    """What each living node has in all, except those that are to be taken away."""
    ray: Any = imported("ray")
    going = draining_nodes()
    return {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"] and n["NodeID"] not in going}


def alive_nodes() -> set[str]:
    """Return the ids (hex) of the nodes that live."""
    ray: Any = imported("ray")
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


MEETINGS = b"orchestrator.meetings"  # the namespace of their keys in the control service


@contextmanager
def closing_meeting(name: str) -> Iterator[None]:
    """Remove at the end what the workers of a group told each other to meet. Runs in the driver."""
    kv: Any = imported("ray.experimental.internal_kv")
    try:
        yield
    finally:
        kv._internal_kv_del(f"{name}/".encode(), del_by_prefix=True, namespace=MEETINGS)


def control_keys() -> Any:
    """Return Ray's module for keys and values in the cluster's control service, which asks for the cluster's token."""
    return imported("ray.experimental.internal_kv")


def ask_alive(host: str, port: int, *, timeout_s: float, headers: Mapping[str, str]) -> Any:
    """Ask a cluster's control service whether it lives; return its answer, in which the version of Ray is.

    Raises:
        grpc.RpcError: It gave no answer in time, or refused the headers' token.
    """
    grpc: Any = imported("grpc")
    messages: Any = imported("ray.core.generated.gcs_service_pb2")
    services: Any = imported("ray.core.generated.gcs_service_pb2_grpc")
    metadata = tuple((name.lower(), value) for name, value in headers.items())
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        ask = services.NodeInfoGcsServiceStub(channel).CheckAlive
        return ask(messages.CheckAliveRequest(), timeout=timeout_s, metadata=metadata)

"""Tells the cluster that a node is about to be taken away, and tells a driver which nodes are."""

import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.errors import ClusterError
from cluster.notices import MetadataService, Notice, find_service, metadata_url

DRAIN_S = 5.0  # for one call to the cluster's control service, which answers in milliseconds

logger = logging.getLogger(__name__)


@contextmanager
def watching_node() -> Iterator[None]:
    """Within the block, drain the node of this Ray process as soon as its cloud gives notice.

    A thread of this process asks, and not an actor beside it: a node on which an actor lives, even one of 0 CPUs,
    counts as busy, so that no autoscaler would ever remove it. Where no metadata service answers, the thread ends
    after half a second. One process per node is enough; several do no harm.

    Raises:
        ConfigError: ``ORCHESTRATOR_METADATA_URL`` holds no ``http://HOST:PORT``.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(metadata_url(), stop), name="preemption", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=1.0)  # seldom a request is under way; then the thread ends after it


def draining_nodes() -> dict[str, float | None]:
    """Return the nodes that the connected cluster will lose: id (hex) to Unix seconds, ``None`` where no time is known.

    Whoever asked for the drain is not told apart: our watcher, an autoscaler, or Kubernetes by a SIGTERM. A node leaves
    the list when it dies, which it does by itself once nothing runs on it. Takes about 2 ms.
    """
    state: Any = importlib.import_module("ray._private.state")
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
    ray: Any = importlib.import_module("ray")
    raylet: Any = importlib.import_module("ray._raylet")
    messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
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


def poll_until_drained(
    service: MetadataService, *, drain: Callable[[Notice], None], stop: threading.Event, interval_s: float
) -> None:
    """Ask the service until it announces the end and ``drain`` has succeeded, or until ``stop`` is set.

    Recommendations and failures are logged once for as long as they stay the same; after a failure it asks again.
    """
    said = ""
    while not stop.is_set():
        try:
            notice = service.read()
            if notice is not None and notice.certain:
                drain(notice)
                return
            news = "" if notice is None else f"{notice.detail} ({notice.cloud}: {notice.action})."
        except ClusterError as error:
            news = str(error)
        if news not in ("", said):
            logger.warning(news)
        said = news
        stop.wait(interval_s)


def _watch(url: str, stop: threading.Event) -> None:
    service = find_service(url)
    if service is not None:
        poll_until_drained(service, drain=_drain_this_node, stop=stop, interval_s=service.interval_s)


def _drain_this_node(notice: Notice) -> None:
    ray: Any = importlib.import_module("ray")
    node_id = ray.get_runtime_context().get_node_id()
    logger.warning("%s (%s: %s); draining node %s.", notice.detail, notice.cloud, notice.action, node_id)
    drain_node(node_id, deadline=notice.deadline, reason=notice.detail)

"""Watches for the notice that a cloud takes this node away, and drains it."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.clouds.notices import MetadataService, Notice, find_service, metadata_url
from cluster.errors import ClusterError
from cluster.lazy import imported
from cluster.nodes import drain_node

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
    ray: Any = imported("ray")
    node_id = ray.get_runtime_context().get_node_id()
    logger.warning("%s (%s: %s); draining node %s.", notice.detail, notice.cloud, notice.action, node_id)
    drain_node(node_id, deadline=notice.deadline, reason=notice.detail)

"""Where workers fit: counts what nodes have free, reserves it, and starts processes ahead."""

from collections.abc import Mapping

from cluster.nodes import draining_nodes, free_resources
from orchestrator.driving.workers import start_ahead
from orchestrator.runs.record import RunRecord

SMALLER_S = 10.0  # so long an elastic run waits for a worker more before it starts with one fewer


def prepare(record: RunRecord, *, workers: int | None = None) -> None:
    """Start worker processes in the background, so that the run finds them ready."""
    if record.techniques.processor == "gpu":
        return
    scaling, need = record.experiment.scaling, resources_of(record)
    free = free_resources(without=set(draining_nodes()))
    nodes = [node for node, resources in sorted(free.items()) for _ in range(room({node: resources}, need))]
    start_ahead(nodes[: workers or scaling.max_workers], threads=scaling.num_threads)


def room(free: Mapping[str, Mapping[str, float]], need: Mapping[str, float]) -> int:
    """How many workers fit into what is free on each node."""
    return sum(
        min(int(node.get(kind, 0.0) / amount + 1e-6) for kind, amount in need.items() if amount)
        for node in free.values()
    )


def resources_of(record: RunRecord) -> dict[str, float]:
    """What one worker reserves."""
    cpus = {"CPU": record.experiment.scaling.cpus_per_worker}
    return cpus | ({"GPU": 1.0} if record.techniques.processor == "gpu" else {})

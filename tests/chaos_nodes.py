"""A driver on a cluster of several nodes, whose nodes it takes away and adds: `python -m tests.chaos_nodes JSON`.

The nodes are Ray's own test cluster on this machine: a head that has no CPUs, and nodes of one CPU each. What came out
is in the store.
"""

import json
import os
import signal
import sys
import threading
import time
from typing import Any

from ray.cluster_utils import Cluster

from cluster.config import StoreSettings
from cluster.nodes import free_resources
from cluster.s3.store import Store
from cluster.session import ray_session
from orchestrator.config import Experiment
from orchestrator.driving import watch as recovery
from orchestrator.driving.room import room
from orchestrator.runs.attempts import read_attempts
from orchestrator.train import train
from orchestrator.training.trace import VARIABLE as TRACE
from tests.chaos import wait_for_step

recovery.GROW_S = 1.0  # a run of seconds cannot wait ten for more room
NODE: dict[str, Any] = {"node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}
HEALTH_CHECKS = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}  # a node is dead after 2 s, not 15
HEAD = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH_CHECKS}


def main() -> None:
    """Do every case of the argument, one after the other."""
    arguments = json.loads(sys.argv[1])
    store = Store(StoreSettings.model_validate(arguments["store"]))
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    nodes = {node.node_id: node for node in [cluster.add_node(num_cpus=1, **NODE) for _ in range(2)]}
    with ray_session(cluster.address, store=store.settings, environment={TRACE: arguments["trace"]}):
        for case in arguments["cases"]:
            training = Training(case, store, cluster.address)
            training.start()
            for kill in case["node_kills"]:
                lose_a_node(cluster, nodes, training, **kill)
            training.join()
    cluster.shutdown()  # type: ignore[no-untyped-call]


class Training(threading.Thread):
    """Trains while the main thread, the only one that can, takes nodes away."""

    def __init__(self, case: dict[str, Any], store: Store, address: str) -> None:
        super().__init__(name="training-driver", daemon=True)
        self._case, self._store, self._address, self._run = case, store, address, case["run"]
        self.ended = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Train to the end."""
        settings = Experiment.model_validate(self._case["experiment"])
        try:
            train(settings, store=self._store, address=self._address, run=self._run)
        except BaseException as error:
            self.error = error
        self.ended.set()

    def attempts(self) -> int:
        """How many groups of workers have been started."""
        return len(read_attempts(self._store, self._run))

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end; raises what ended it too early."""
        super().join(timeout)
        if self.error is not None:
            raise self.error


def lose_a_node(cluster: Cluster, nodes: dict[str, Any], training: Training, *, step: int, is_elastic: bool) -> None:
    """Kill all processes of a node that trains, and let there be another one.

    A run of as many workers as there are nodes waits for that. An elastic one goes on with fewer; it is held, so that
    it has not ended before it can grow.
    """
    trainees = wait_for_step(step, stop=training.ended)
    assert trainees, "the run must reach the step of the kill"
    attempts = training.attempts()
    cluster.remove_node(nodes.pop(trainees[0].node), allow_graceful=False)
    held = _hold(training, attempts + 1) if is_elastic else None
    node = cluster.add_node(num_cpus=1, **NODE)
    nodes[node.node_id] = node
    if held is not None:
        while not room(free_resources(without=set()), {"CPU": 1.0}):
            time.sleep(0.1)
        time.sleep(recovery.GROW_S + 3 * recovery.NODES_S)  # then the driver has seen it too
        os.kill(held, signal.SIGCONT)


def _hold(training: Training, attempt: int) -> int:
    """Stop the one worker that goes on."""
    while training.attempts() < attempt and not training.ended.is_set():
        time.sleep(0.05)
    found = wait_for_step(0, stop=training.ended)
    assert len(found) == 1, "the run must go on with one worker"
    os.kill(found[0].pid, signal.SIGSTOP)
    return found[0].pid


if __name__ == "__main__":
    main()

"""A driver that trains, in a process of its own which the chaos harness kills: `python -m tests.chaos_driver JSON`."""

import json
import sys

from cluster.config import StoreSettings
from cluster.s3.store import Store
from cluster.session import ray_session
from orchestrator.config import Experiment
from orchestrator.train import train
from orchestrator.training.trace import VARIABLE as TRACE


def main() -> None:
    """Train what the argument says."""
    arguments = json.loads(sys.argv[1])
    store = Store(StoreSettings.model_validate(arguments["store"]))
    settings = Experiment.model_validate(arguments["experiment"])
    address, run = arguments["address"], arguments["run"]
    with ray_session(address, store=store.settings, environment={TRACE: arguments["trace"]}):
        train(settings, store=store, address=address, run=run, failpoints=arguments["failpoints"])


if __name__ == "__main__":
    main()

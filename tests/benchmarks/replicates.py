"""Five replicates of an arm as one batched network, side by side with one after the other.

    together_vs_alone_SETTING   CPU seconds one after the other / together: higher is better
    cnn_vmap_vs_alone           the same of nothing but gradients of a small CNN, batched by torch.func.vmap
    wall_…                      the same of the time that passes, in which a second core reads ahead
    difference_SETTING          the largest of a replicate's test loss to that of the one trained alone

A replicate is `fit` and the evaluation of the test split: opening the data, reading it in its own order, 3 epochs with
their evaluation, the why panel and the final checkpoint. The data are digits in batches of 128, as in
`tests/benchmarks/sweep.py`; the store is in memory, so that requests to a real one, of which both sides make as many,
are left out. 1 thread. `layers` is batch normalization and dropout, whose masks must be drawn one by one.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from cluster.s3.store import Store
from models.features import TARGET
from models.network import Network, build, example_batch, example_target
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.driving.plan import plan_run
from orchestrator.runs.record import RunRecord
from orchestrator.training.epoch import evaluate
from orchestrator.training.fit import fit
from orchestrator.training.together import fit_together
from orchestrator.training.trainer import Trainer, World
from tests.benchmarks.measure import print_report
from tests.benchmarks.reduction import as_store
from tests.fake_store import MemoryStore

REPLICATES = 5
SETTINGS: Mapping[str, tuple[tuple[int, ...], str, str]] = {
    "64x64_penalty": ((64, 64), "penalty", "stochastic"),
    "64x64_layers": ((64, 64), "layers", "stochastic"),
    "64x64_batch": ((64, 64), "penalty", "batch"),
    "256x128_penalty": ((256, 128), "penalty", "stochastic"),
    "256x128_layers": ((256, 128), "layers", "stochastic"),
    "1024x1024_penalty": ((1024, 1024), "penalty", "stochastic"),
}
KINDS = ("alone", "together")
CNN, CNN_STEPS = "64x64_penalty", 5  # its techniques

Kind = Callable[[], Any]


class Seconds(NamedTuple):
    """Of one turn."""

    cpu: float
    """Of all threads."""
    wall: float


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 turns, within a minute")
    parser.add_argument("--turns", type=int, default=10)
    arguments = parser.parse_args()
    turns = 2 if arguments.quick else arguments.turns
    ratios: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        os.environ |= {"ORCHESTRATOR_HOME": f"{folder}/home", "ORCHESTRATOR_CACHE": f"{folder}/cache"}
        store = as_store(MemoryStore())
        push(store, "sklearn:digits")
        for name in SETTINGS:
            records = [record_of(store, name, seed=seed) for seed in range(REPLICATES)]
            alone, together = partial(train_alone, records, store), partial(train_together, records, store)
            found = in_turns(alone, together, turns)
            ratios |= ratios_of(f"together_vs_alone_{name}", *found)
            values |= {f"{kind}_s_{name}": [s.cpu for s in seconds] for kind, seconds in zip(KINDS, found, strict=True)}
            values[f"difference_{name}"] = [max(abs(a - b) for a, b in zip(alone(), together(), strict=True))]
            print(f"{name} measured", file=sys.stderr)
        ratios |= ratios_of("cnn_vmap_vs_alone", *in_turns(*cnn_gradients(record_of(store, CNN, seed=0)), turns))
    print_report("replicates", ratios=ratios, values=values)


def in_turns(alone: Kind, together: Kind, turns: int) -> tuple[list[Seconds], list[Seconds]]:
    """Seconds of both kinds; which is first changes from turn to turn, and one turn more warms up."""
    found: dict[Kind, list[Seconds]] = {alone: [], together: []}
    for turn in range(turns + 1):
        for kind in (alone, together) if turn % 2 else (together, alone):
            wall, cpu = time.perf_counter(), time.process_time()
            kind()
            found[kind].append(Seconds(time.process_time() - cpu, time.perf_counter() - wall))
    return found[alone][1:], found[together][1:]


def ratios_of(name: str, alone: list[Seconds], together: list[Seconds]) -> dict[str, list[float]]:
    """How many times as long the first took, by both clocks."""
    pairs = list(zip(alone, together, strict=True))
    return {name: [a.cpu / b.cpu for a, b in pairs], f"wall_{name}": [a.wall / b.wall for a, b in pairs]}


def record_of(store: Store, setting: str, *, seed: int) -> RunRecord:
    """One replicate."""
    hidden, regularization, gradient = SETTINGS[setting]
    values = {
        "data": {"name": "digits"},
        "model": {"type": "mlp", "hidden": hidden},
        "techniques": {"regularization": regularization, "gradient": gradient, "processor": "cpu"},
        "train": {"epochs": 3, "batch_size": 128, "learning_rate": 0.05, "seed": seed},
        "scaling": {"threads_per_worker": 1},
    }
    return plan_run(Experiment.model_validate(values), open_dataset(store, "digits"), run=f"{setting}-{seed}")


def train_alone(records: list[RunRecord], store: Store) -> list[float]:
    """Test loss of each replicate, one trained after the other."""
    trainers = (fit(record, store=store, world=World(), checkpoints="last") for record in records)
    return [evaluate(trainer, "test")["loss"] for trainer in trainers]


def train_together(records: list[RunRecord], store: Store) -> list[float]:
    """Test loss of each replicate, all trained at once."""
    found = fit_together(records, store=store, world=World())
    return [evaluate(trainer, "test")["loss"] for trainer in found if isinstance(trainer, Trainer)]


def cnn_gradients(record: RunRecord) -> tuple[Kind, Kind]:
    """Steps of a CNN's replicates, one after the other and batched: gradients of 64 samples each, and nothing else."""
    config = Experiment.model_validate(
        record.experiment.model_dump(mode="json") | {"model": {"type": "cnn", "channels": [8, 16]}}
    )
    networks = [build(config.model, record.techniques, record.signature, seed=seed) for seed in range(REPLICATES)]
    batch = example_batch(record.signature, size=64, seed=0)
    batch[TARGET] = example_target(record.signature, size=64, seed=0)

    def alone() -> None:
        for network in networks * CNN_STEPS:
            network.task.loss_sum(network(batch), batch[TARGET]).backward()  # type: ignore[no-untyped-call]

    parameters, buffers = stack_module_state(networks)
    gradients = vmap(grad(partial(loss_of, networks[0])))
    batches = {name: torch.stack([tensor] * REPLICATES) for name, tensor in batch.items()}

    def batched() -> None:
        for _ in range(CNN_STEPS):
            gradients(parameters, buffers, batches)

    return alone, batched


def loss_of(network: Network, parameters: Any, buffers: Any, batch: dict[str, Tensor]) -> Tensor:
    """The summed loss of a network with other parameters."""
    return network.task.loss_sum(functional_call(network, (parameters, buffers), (batch,)), batch[TARGET])


if __name__ == "__main__":
    main()

"""What the why panel costs: epochs of training with it, side by side with epochs without.

    why_cost_RECIPE    CPU seconds of an epoch with the panel / without: lower is better, 1.02 is the most it may be
    noise_RECIPE       the same of two epochs without: how far it is from 1 is the error of one such ratio
    why_share_RECIPE   CPU seconds that the panel's own code takes / of such an epoch, hooks included

One trainer goes on from epoch to epoch; the panel, which changes no bit, is there in one of three, in an order that
rotates. An epoch is `train_epoch` and `report`; evaluation and checkpoints, which would make the ratio smaller, are
left out. The time is the training thread's own, with 1 thread for tensors. `cifar10-cnn` runs with batches of 64, so
that a short epoch has as many looks to a step as a long one. Where the noise is more than the cost, the share tells
more than the ratio; it includes the benchmark's own clock, but not what the panel pushes out of the caches.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from cluster.s3.store import Store
from models.diagnostics import Diagnostics, LayerRow
from orchestrator.configfile import load_experiment, validate
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push, push_prepared
from orchestrator.document import Document
from orchestrator.driving.plan import plan_run
from orchestrator.training.epoch import train_epoch
from orchestrator.training.fit import report
from orchestrator.training.trainer import Trainer, World, build_trainer
from tests.benchmarks.measure import print_report
from tests.benchmarks.reduction import as_store
from tests.benchmarks.train import as_dataset, load_pictures
from tests.fake_store import MemoryStore

TURNS = {"digits-mlp": 60, "digits-cnn": 30, "cifar10-cnn": 6}
QUICK_TURNS = {"digits-mlp": 15, "digits-cnn": 8, "cifar10-cnn": 2}
STEPS_OF_PICTURES = 16
PICTURES_BATCH = 64
KINDS = ("with", "without", "again")

Seconds = dict[str, float]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few turns, within a minute")
    turns = QUICK_TURNS if parser.parse_args().quick else TURNS
    ratios: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        os.environ |= {"ORCHESTRATOR_HOME": f"{folder}/home", "ORCHESTRATOR_CACHE": f"{folder}/cache"}
        store = as_store(MemoryStore())
        push(store, "sklearn:digits")
        pictures = load_pictures(STEPS_OF_PICTURES * PICTURES_BATCH)
        push_prepared(store, as_dataset(*pictures), leakage="keep")  # the test split is not judged
        for recipe, count in turns.items():
            found = measure(store, recipe, turns=count)
            ratios[f"why_cost_{recipe}"] = [s["with"] / s["without"] for s in found]
            ratios[f"noise_{recipe}"] = [s["again"] / s["without"] for s in found]
            ratios[f"why_share_{recipe}"] = [s["panel"] / s["with"] for s in found]
            values[f"epoch_s_{recipe}"] = [s["without"] for s in found]
            print(f"{recipe} measured", file=sys.stderr)
    print_report("why", ratios=ratios, values=values)


def measure(store: Store, recipe: str, *, turns: int) -> list[Seconds]:
    """CPU seconds of an epoch of each kind, and of the panel within the first, turn by turn; one turn warms up."""
    trainer = trainer_of(store, recipe, epochs=(turns + 1) * len(KINDS))
    panel = TimedDiagnostics(trainer.network, num_steps=trainer.plan(0).num_steps)
    found = []
    for turn in range(turns + 1):
        seconds: Seconds = {}
        for i in range(len(KINDS)):
            kind = KINDS[(turn + i) % len(KINDS)]
            trainer.why = panel if kind == "with" else None
            panel.seconds = 0.0
            seconds[kind] = time_epoch(trainer)
            if kind == "with":
                seconds["panel"] = panel.seconds
        found.append(seconds)
    return found[1:]


class TimedDiagnostics(Diagnostics):
    """The panel, which adds up the CPU seconds that its hooks and updates take."""

    seconds = 0.0

    def _see_layer(self, *arguments: Any) -> None:
        started = time.thread_time()
        super()._see_layer(*arguments)
        self.seconds += time.thread_time() - started

    def _see_input(self, *arguments: Any) -> None:
        started = time.thread_time()
        super()._see_input(*arguments)
        self.seconds += time.thread_time() - started

    @contextmanager
    def look(self, step: int, *, logical_worker: int) -> Iterator[None]:
        """Time what comes before and after the forward pass."""
        with self._timed_around(super().look(step, logical_worker=logical_worker)):
            yield

    @contextmanager
    def update(self) -> Iterator[None]:
        """Time what comes before and after the update."""
        with self._timed_around(super().update()):
            yield

    def end_epoch(self) -> list[LayerRow]:
        """Time it."""
        started = time.thread_time()
        rows = super().end_epoch()
        self.seconds += time.thread_time() - started
        return rows

    @contextmanager
    def _timed_around(self, inner: AbstractContextManager[None]) -> Iterator[None]:
        started = time.thread_time()
        with inner:
            self.seconds += time.thread_time() - started
            yield
            started = time.thread_time()
        self.seconds += time.thread_time() - started


def trainer_of(store: Store, recipe: str, *, epochs: int) -> Trainer:
    """A trainer of the recipe, for one worker of one thread."""
    values = load_experiment(recipe).model_dump(mode="json", exclude_unset=True)
    values["scaling"] = {"workers": 1, "threads_per_worker": 1}
    values["train"] |= {"epochs": epochs}
    if recipe == "cifar10-cnn":
        values["data"] |= {"name": "pictures"}
        values["train"] |= {"batch_size": PICTURES_BATCH, "learning_rate": 0.05}
    experiment = validate(Document("benchmark", values, {}))
    record = plan_run(experiment, open_dataset(store, experiment.data.name))
    return build_trainer(record, store=store, world=World())


def time_epoch(trainer: Trainer) -> float:
    """CPU seconds of the next epoch."""
    started = time.thread_time()
    epoch = trainer.position.epoch
    report(trainer, epoch, train_epoch(trainer, epoch))
    return time.thread_time() - started


if __name__ == "__main__":
    main()

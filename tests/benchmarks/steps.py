"""One training step of small models, side by side with plain PyTorch loops (`plain_loops.py`).

    MODEL_vs_plain       seconds of a step there / here: higher is better
    MODEL_us, plain_…    the seconds behind them, in microseconds
    MODEL_alone_vs_plain the same with `scaling.logical_workers: 1`

Here a step is what `train_epoch` does: batches that are planned, read ahead, shuffled within windows and verified, the
gradient of every logical worker, their sum, the why panel's looks, the update. There the data lie in memory. Both use 1
thread, no penalty and no evaluation; turns alternate within one process, and the median of the ratios counts.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from orchestrator.configfile import load_experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.driving.plan import plan_run
from orchestrator.training.epoch import train_epoch
from orchestrator.training.trainer import Position, World, build_trainer
from tests.benchmarks import plain_loops
from tests.benchmarks.measure import print_report
from tests.fake_store import MemoryStore

SOURCES = {"digits": "sklearn:digits", "elnino": "statsmodels:elnino", "china": "sklearn:china"}
CASES: Mapping[str, tuple[str, Callable[[], plain_loops.Epoch]]] = {
    "digits_mlp": ("digits-mlp", plain_loops.digits_mlp),
    "digits_cnn": ("digits-cnn", plain_loops.digits_cnn),
    "elnino_rnn": ("elnino-rnn", plain_loops.elnino_rnn),
    "china_fm": ("china-fm", plain_loops.china_fm),
}
PLAIN = ["techniques.regularization=penalty", "train.l1=0", "train.l2=0", "train.epochs=100000"]


def ours(store: Any, recipe: str, *overrides: str) -> plain_loops.Epoch:
    """A callable that trains one epoch here, of a trainer that stays."""
    experiment = load_experiment(recipe, [*PLAIN, *overrides])
    record = plan_run(experiment, open_dataset(store, experiment.data.name), run="steps")
    trainer = build_trainer(record, store=store, world=World())
    epochs = iter(range(100_000))

    def train() -> int:
        trainer.position = Position(next(epochs))
        train_epoch(trainer, trainer.position.epoch)
        assert trainer.why is not None
        trainer.why.end_epoch()
        return trainer.steps_per_epoch

    return train


def step_us(train: plain_loops.Epoch, *, seconds: float) -> float:
    """Microseconds of a step, over whole epochs that take about so long."""
    began, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds:
        steps += train()
    return 1e6 * spent / steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: within a minute")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", choices=CASES)
    arguments = parser.parse_args()
    turns, seconds = (3, 0.5) if arguments.quick else (arguments.turns, 2.0)
    torch.set_num_threads(1)
    store: Any = MemoryStore()
    for source in SOURCES.values():
        push(store, source)
    ratios: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    for name, (recipe, plain) in CASES.items():
        if arguments.only not in (None, name):
            continue
        loops = {
            "plain": plain(),
            "here": ours(store, recipe),
            "alone": ours(store, recipe, "scaling.logical_workers=1"),
        }
        for train in loops.values():
            train()  # warm
        for _ in range(turns):
            found = {kind: step_us(train, seconds=seconds) for kind, train in loops.items()}
            ratios.setdefault(f"{name}_vs_plain", []).append(found["plain"] / found["here"])
            ratios.setdefault(f"{name}_alone_vs_plain", []).append(found["plain"] / found["alone"])
            values.setdefault(f"{name}_us", []).append(found["here"])
            values.setdefault(f"{name}_alone_us", []).append(found["alone"])
            values.setdefault(f"plain_{name}_us", []).append(found["plain"])
    print_report("steps", ratios=ratios, values=values)


if __name__ == "__main__":
    main()

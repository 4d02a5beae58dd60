"""What it costs to sum gradients in a fixed order, side by side with a plain all-reduce.

    fixed_vs_all_reduce_wW        seconds of a fixed-order sum / of local sums and an all-reduce: lower is better
    fixed_vs_all_reduce_wW_lL_N   the same for L logical workers and N numbers; wW is over all of these
    fixed_vs_all_reduce_step      the same within training steps of the recipe `cifar10-cnn`, 2 workers of 1 thread
    fixed_step_share              the part of such a step that the fixed-order sum takes (all_reduce_step_share: theirs)

W processes sum over gloo on loopback. The two kinds take turns, of several sums each; the time is from one barrier to
the next. L is W, 2 W, and a count that W does not divide, with shares of which one worker at least sends two rows.
Two workers with equal shares do the same in both kinds: how far these ratios are from 1 is the noise of the run.
Neither kind overlaps with the backward pass. In the training steps, which alternate between the kinds, workers meet at
a barrier before they sum, so that waiting for the slower one is not taken for communication.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from cluster.s3.store import Store
from orchestrator.configfile import load_experiment, validate
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push_prepared
from orchestrator.document import Document
from orchestrator.driving.plan import plan_run
from orchestrator.runs.record import RunRecord
from orchestrator.training.epoch import accumulate, apply_update
from orchestrator.training.gradients import Reduction, all_reduce_sum, fixed_order_sum, share
from orchestrator.training.trainer import World, build_trainer
from tests.benchmarks.measure import print_report
from tests.benchmarks.train import as_dataset, load_pictures
from tests.fake_store import MemoryStore
from tests.ports import free_port

WORLDS = {2: (2, 4, 5), 3: (3, 6, 8), 4: (4, 8, 10)}
"""Logical workers for each number of workers."""
SIZES = {"15k": 15_000, "400k": 400_000, "5m": 5_000_000}
"""Numbers in a gradient."""
REPEATS = {"15k": 50, "400k": 10, "5m": 2}
"""Sums in one turn."""
KINDS: tuple[Reduction, ...] = ("fixed_order", "all_reduce")
STEPS_PER_EPOCH = 4
TIMEOUT = timedelta(seconds=300)

Seconds = dict[Reduction, list[float]]
"""Of one sum, turn by turn."""


class Case(NamedTuple):
    """One kind of sum to measure."""

    workers: int
    logical_workers: int
    size: str

    @property
    def name(self) -> str:
        """As in the report."""
        return f"w{self.workers}_l{self.logical_workers}_{self.size}"


class Steps(NamedTuple):
    """Training steps that used one kind of sum."""

    sum_s: list[float]
    step_s: list[float]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two short turns, within a minute")
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()
    turns, shorter, epochs = (2, 5, 1) if arguments.quick else (arguments.turns, 1, 8)
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes inherit it
    sums: dict[Case, Seconds] = {}
    for workers in WORLDS:
        sums |= in_world(workers, partial(time_sums, turns=turns, shorter=shorter))
        print(f"world of {workers} measured", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        os.environ |= {"ORCHESTRATOR_HOME": f"{folder}/home", "ORCHESTRATOR_CACHE": f"{folder}/cache"}
        record, objects = prepare()
        steps = in_world(2, partial(time_steps, record=record, objects=objects, epochs=epochs))
    report(sums, steps)


def report(sums: dict[Case, Seconds], steps: dict[Reduction, Steps]) -> None:
    """Print every ratio, and the milliseconds behind it."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for case, seconds in sums.items():
        found = quotients(seconds["fixed_order"], seconds["all_reduce"])
        ratios[f"fixed_vs_all_reduce_w{case.workers}"] += found
        ratios[f"fixed_vs_all_reduce_{case.name}"] = found
    ratios["fixed_vs_all_reduce_step"] = quotients(steps["fixed_order"].sum_s, steps["all_reduce"].sum_s)
    ratios["fixed_step_share"] = quotients(*steps["fixed_order"])
    ratios["all_reduce_step_share"] = quotients(*steps["all_reduce"])
    values = {f"fixed_ms_{case.name}": [1e3 * s for s in seconds["fixed_order"]] for case, seconds in sums.items()}
    print_report("reduction", ratios=ratios, values=values | {"step_s": steps["fixed_order"].step_s})


def quotients(ours: list[float], theirs: list[float]) -> list[float]:
    """Of what was measured side by side."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def in_world(workers: int, measure: Callable[[int, int], Any]) -> Any:
    """Run ``measure(rank, workers)`` in as many processes; return what the first one found."""
    port = free_port()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed"])  # imported once, not by each of the processes
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        of_ranks = [executor.submit(join_world, rank, workers, port, measure) for rank in range(workers)]
        found = [future.result() for future in of_ranks]
    return found[0]


def join_world(rank: int, workers: int, port: int, measure: Callable[[int, int], Any]) -> Any:
    """Be one of its processes."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=workers, timeout=TIMEOUT)
    found = measure(rank, workers)
    dist.barrier()
    dist.destroy_process_group()
    return found


def time_sums(rank: int, workers: int, *, turns: int, shorter: int) -> dict[Case, Seconds]:
    """Seconds of one sum, for every case of this world; with turns that are ``shorter`` times as short."""
    cases = [Case(workers, logical_workers, size) for logical_workers in WORLDS[workers] for size in SIZES]
    return {
        case: time_case(case, rank=rank, turns=turns, repeats=max(1, REPEATS[case.size] // shorter)) for case in cases
    }


def time_case(case: Case, *, rank: int, turns: int, repeats: int) -> Seconds:
    """Both kinds in turns; each is first in every second turn."""
    workers, logical_workers = case.workers, case.logical_workers
    rows_KN = torch.zeros(len(share(logical_workers, rank=rank, workers=workers)), SIZES[case.size])
    scratch = torch.empty(0)
    calls: dict[Reduction, Callable[[], object]] = {
        "fixed_order": lambda: fixed_order_sum(
            rows_KN, workers=workers, logical_workers=logical_workers, scratch=scratch
        ),
        "all_reduce": lambda: all_reduce_sum(rows_KN, workers=workers),
    }
    for kind in KINDS:
        time_turn(calls[kind], repeats=2)  # the first use of the memory and of the connections
    found: Seconds = {kind: [] for kind in KINDS}
    for turn in range(turns):
        for kind in KINDS if turn % 2 else reversed(KINDS):
            found[kind].append(time_turn(calls[kind], repeats=repeats))
    return found


def time_turn(call: Callable[[], object], *, repeats: int) -> float:
    """Seconds of one call, when all workers have done theirs."""
    dist.barrier()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    dist.barrier()
    return (time.perf_counter() - started) / repeats


def prepare() -> tuple[RunRecord, dict[str, bytes]]:
    """The recipe, over as many pictures as a few steps need; and the objects of their dataset."""
    store = MemoryStore()
    values = load_experiment("cifar10-cnn").model_dump(mode="json", exclude_unset=True)
    values["data"] |= {"name": "pictures"}
    experiment = validate(Document("benchmark", values, {}))
    pictures = load_pictures(STEPS_PER_EPOCH * experiment.train.batch_size)
    push_prepared(as_store(store), as_dataset(*pictures), leakage="keep")  # the test split is not judged
    return plan_run(experiment, open_dataset(as_store(store), "pictures")), store.objects


def time_steps(
    rank: int, workers: int, *, record: RunRecord, objects: dict[str, bytes], epochs: int
) -> dict[Reduction, Steps]:
    """Train, with each kind of sum in every second step; the first step of each kind is not counted."""
    trainer = build_trainer(record, store=as_store(MemoryStore(objects=objects)), world=World(rank, workers))
    trainer.network.train()
    found = {kind: Steps([], []) for kind in KINDS}
    ended = time.perf_counter()
    for epoch in range(epochs):
        plan = trainer.plan(epoch)
        batches = trainer.reader.train_batches(plan, logical_workers=trainer.logical_workers)
        for step, micro_batches in enumerate(batches):
            kind = KINDS[step % 2]
            accumulate(trainer, micro_batches, epoch=epoch, step=step, samples=sum(plan.step_sizes(step)))
            dist.barrier()
            summing = time.perf_counter()
            trainer.parts.end_step(
                with_gradient=True, workers=workers, logical_workers=trainer.num_logical_workers, reduction=kind
            )
            found[kind].sum_s.append(time.perf_counter() - summing)
            apply_update(trainer)
            started, ended = ended, time.perf_counter()
            found[kind].step_s.append(ended - started)
    return {kind: Steps(steps.sum_s[1:], steps.step_s[1:]) for kind, steps in found.items()}


def as_store(store: MemoryStore) -> Store:
    """It has a store's methods."""
    return store  # type: ignore[return-value]


if __name__ == "__main__":
    main()

"""80 small trainings as one sweep, side by side with a plain loop and with Ray Tune's one trial for each.

    sweep_vs_loop   seconds of a loop over the same cells in one process / ours: higher is better
    sweep_vs_tune   seconds of Ray Tune, one trial for each cell, reuse_actors=True / ours: higher is better

The cells are a feed-forward net and a CNN on digits, with the traditional and the deep form of three techniques. All
sides train each cell with the same code and write the same objects to the store, but ours trains the seeds of an MLP
as one batched model (`orchestrator/training/together.py`), the same up to rounding; the metrics are compared.
Each is timed from its command to its end, imports included, on a cluster of 2 CPUs that runs already and has trained:
the first sweep of a cluster, which starts the workers that the next one finds, is told as `ours_first_s`. Ours also
plans and validates the sweep and makes the ledger; the others are given the finished plan.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.s3.store import Store
from cluster.session import ray_session
from cluster.storage import open_store
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.driving.plan import plan_run
from orchestrator.sweeping.lane import run_cell
from orchestrator.sweeping.plan import plan_arms
from orchestrator.sweeping.tasks import CellTask as Task
from orchestrator.sweeping.tasks import LanePlan, read_stored, write_cell
from tests.benchmarks.local_cluster import ROOT, started_cluster
from tests.benchmarks.measure import print_report

TIMEOUT_S = 3600
SIDES = ("ours", "loop", "tune")


def main() -> None:
    """Measure and report; or be one of the peers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 cells once, within a minute")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--peer", choices=["loop", "tune"], help=argparse.SUPPRESS)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        {"loop": run_loop, "tune": run_tune}[arguments.peer](arguments.plan)
        return
    pairs = 1 if arguments.quick else arguments.pairs
    seconds = measure(settings(quick=arguments.quick), pairs=pairs)
    print_report(
        "sweep",
        ratios={
            f"sweep_vs_{peer}": [a / b for a, b in zip(seconds[peer], seconds["ours"], strict=True)]
            for peer in ("loop", "tune")
        },
        values={f"{side}_s": found for side, found in seconds.items()},
    )


def settings(*, quick: bool) -> dict[str, Any]:
    """The experiment: 16 arms with 5 seeds, or 8 arms with one."""
    vary: dict[str, list[Any]] = {
        "model": [{"type": "mlp", "hidden": [64, 64]}, {"type": "cnn", "channels": [8, 16]}],
        "techniques.activation": ["tanh", "relu"],
        "techniques.regularization": ["penalty", "layers"],
        "techniques.initialization": ["constant", "normalized"],
    }
    if quick:
        vary.pop("techniques.initialization")
    return {
        "data": {"name": "digits"},
        "model": {"type": "mlp"},
        "train": {"epochs": 3, "batch_size": 128, "learning_rate": 0.05},
        "sweep": {"seeds": 1 if quick else 5, "vary": vary},
    }


def measure(values: dict[str, Any], *, pairs: int) -> dict[str, list[float]]:
    """Seconds of each side, taken in turns, and of a first sweep before them."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with started_cluster() as (store, folder):
        push(store, "sklearn:digits")
        config = folder / "sweep.yaml"
        config.write_text(json.dumps(values))
        seconds["ours_first"] = [timed(our_sweep(config, "first"))]
        for pair in range(pairs):
            names = {side: f"{side}-{pair}" for side in SIDES}
            seconds["ours"].append(timed(our_sweep(config, names["ours"])))
            for peer in ("loop", "tune"):
                key = write_plan(store, values, sweep=names[peer])
                seconds[peer].append(timed(("tests.benchmarks.sweep", "--peer", peer, "--plan", key)))
            require_same_metrics(store, list(names.values()))
            found = ", ".join(f"{side} {seconds[side][-1]:.1f} s" for side in SIDES)
            print(f"pair {pair + 1}/{pairs}: {found}", file=sys.stderr)
    return seconds


def our_sweep(config: Path, name: str) -> tuple[str, ...]:
    """Words of the command."""
    return ("orchestrator", "sweep", str(config), "--name", name, "--json")


def timed(words: Sequence[str]) -> float:
    """Seconds that a command takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", *words], stdout=subprocess.DEVNULL, check=True, cwd=ROOT, timeout=TIMEOUT_S)
    return time.perf_counter() - started


def write_plan(store: Store, values: dict[str, Any], *, sweep: str) -> str:
    """Put all cells where a peer finds them; return the key."""
    experiment = Experiment.model_validate(values)
    arms, dataset = plan_arms(experiment), open_dataset(store, experiment.data.name)
    assert experiment.sweep is not None
    plan = LanePlan(
        sweep=sweep,
        attempt="peer",
        arms={arm.name: plan_run(arm.experiment, dataset) for arm in arms},
        tasks=[Task(name=f"{a.name}-s{s}", arm=a.name, seed=s) for s in range(experiment.sweep.seeds) for a in arms],
        timeout_minutes=None,
    )
    store.write(plan.key, plan.model_dump_json().encode())
    return plan.key


def require_same_metrics(store: Store, sweeps: Sequence[str]) -> None:
    """See that all sides have done the same work."""
    found = [[(c.arm, c.seed, c.state, c.metrics) for c in read_stored(store, sweep).cells] for sweep in sweeps]
    assert found[0], "there are cells"
    for cells in found[1:]:
        assert [cell[:3] for cell in cells] == [cell[:3] for cell in found[0]], "all sides train the same cells"
        for ours, peers in zip(found[0], cells, strict=True):
            for name, value in ours[3].items():
                assert math.isclose(value, peers[3][name], rel_tol=1e-4, abs_tol=3e-3), (
                    ours,
                    peers,
                )  # one sample is 1/360


def run_loop(key: str) -> None:
    """A peer: one cell after the other, here."""
    store = open_store()
    plan = LanePlan.model_validate_json(store.read(key))
    for task in plan.tasks:
        write_cell(store, plan.sweep, run_cell(plan, task, store=store))


def run_tune(key: str) -> None:
    """A peer: each cell is a trial of Ray Tune, in actors that are used again."""
    from ray import tune

    store = open_store()
    plan = LanePlan.model_validate_json(store.read(key))
    with ray_session(store=store.settings), tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            tune.with_resources(train_trial, {"cpu": 1}),
            param_space={"plan": key, "task": tune.grid_search(list(range(len(plan.tasks))))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(name=plan.sweep, storage_path=folder, verbose=0),
        ).fit()
    assert not results.errors


def train_trial(config: dict[str, Any]) -> None:
    """One trial."""
    from ray import tune

    store = open_store()
    plan = LanePlan.model_validate_json(store.read(config["plan"]))
    cell = run_cell(plan, plan.tasks[config["task"]], store=store)
    write_cell(store, plan.sweep, cell)
    tune.report(cell.metrics)


if __name__ == "__main__":
    main()

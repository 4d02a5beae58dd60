"""How soon a training makes its first step, and what checkpoints cost it.

    first_step_vs_torchrun   seconds from the command to the first step, 2 workers, ours / torchrun's: lower is better
    first_step_vs_script     the same with 1 worker, ours / a plain script's: lower is better
    speed_with_checkpoints   samples/s with a checkpoint every 50 steps / without: higher is better

The network is the one of the recipe `cifar10-cnn`, the script the one of `train.py` without torchrun. The cluster is
started and has trained once: that first command, which has to start the workers too, is told as `cold_first_step_s`.
Nothing of a peer is warm but the disk's cache, as nothing of it outlives its command.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

from cluster.s3.store import Store
from orchestrator.runs.record import read_history
from tests.benchmarks.local_cluster import ROOT, started_cluster
from tests.benchmarks.measure import print_report
from tests.benchmarks.train import TIMEOUT_S, Timing, prepare, run_ours, run_torchrun

SMALL_BATCH = 64
STEPS = 50  # of an epoch, and between checkpoints


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one pair of each, within a minute or so")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    pairs = 1 if arguments.quick else arguments.pairs
    with started_cluster() as (store, folder):
        plan = prepare(store, folder, 1024)  # the first step does not depend on how many more there are
        cold = run_ours(store, plan, name="cold").first_step_s
        torchrun, script, ours, alone = [], [], [], []
        for pair in range(pairs):
            torchrun.append(run_torchrun(plan).first_step_s)
            ours.append(run_ours(store, plan, name=f"two-{pair}").first_step_s)
            script.append(run_script(plan).first_step_s)
            alone.append(run_ours(store, with_workers(plan, 1), name=f"one-{pair}").first_step_s)
            print(
                f"pair {pair + 1}/{pairs}: torchrun {torchrun[-1]:.1f} s, ours {ours[-1]:.1f} s; "
                f"script {script[-1]:.1f} s, ours {alone[-1]:.1f} s",
                file=sys.stderr,
            )
        steady = prepare(store, folder, STEPS * SMALL_BATCH, batch_size=SMALL_BATCH)
        with_s, without_s = measure_checkpoints(store, steady, pairs=2 if arguments.quick else 20)
    print_report(
        "start",
        ratios={
            "first_step_vs_torchrun": [a / b for a, b in zip(ours, torchrun, strict=True)],
            "first_step_vs_script": [a / b for a, b in zip(alone, script, strict=True)],
            "speed_with_checkpoints": [a / b for a, b in zip(with_s, without_s, strict=True)],
        },
        values={
            "ours_2_workers_first_step_s": ours,
            "torchrun_first_step_s": torchrun,
            "ours_1_worker_first_step_s": alone,
            "script_first_step_s": script,
            "cold_first_step_s": [cold],
            "samples_per_s_with_checkpoints": with_s,
            "samples_per_s_without": without_s,
        },
    )


def measure_checkpoints(store: Store, plan: Path, *, pairs: int) -> tuple[list[float], list[float]]:
    """Samples/s of epochs of 50 steps during which a checkpoint is written, and of their neighbours without.

    One run with a checkpoint in every second epoch: what else the machine does changes too much from run to run.
    """
    values = json.loads(plan.read_text())
    values["experiment"]["train"] |= {
        "epochs": 2 * pairs + 2,
        "checkpoint_epochs": None,
        "checkpoint_steps": 2 * STEPS,  # at the end of the second epoch, the fourth, ...: written during the next
    }
    changed = plan.with_name("checkpoints.json")
    changed.write_text(json.dumps(values))
    run_ours(store, changed, name="checkpoints")
    speeds = [epoch["samples_per_s"] for epoch in read_history(store, "checkpoints")]
    neighbours = [mean(pair) for pair in zip(speeds[1::2], speeds[3::2], strict=False)]
    return speeds[2::2], neighbours


def with_workers(plan: Path, workers: int) -> Path:
    """The same plan with another number of workers."""
    values = json.loads(plan.read_text())
    values["experiment"]["scaling"] |= {"workers": workers}
    changed = plan.with_name(f"{workers}-workers.json")
    changed.write_text(json.dumps(values))
    return changed


def run_script(plan: Path) -> Timing:
    """The plain script alone: one process, no process group."""
    script = str(Path(__file__).with_name("torchrun_ddp.py"))
    started = time.time()
    found = subprocess.run(
        [sys.executable, script, str(plan)], capture_output=True, text=True, check=True, cwd=ROOT, timeout=TIMEOUT_S
    )
    result = json.loads(found.stdout.splitlines()[-1])
    return Timing(result["first_step_at"] - started, result["samples_per_s"])


if __name__ == "__main__":
    main()

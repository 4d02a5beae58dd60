"""Training speed and start, side by side with a plain torchrun DDP script of the same network.

    cnn_vs_torchrun         samples/s of ours / samples/s of torchrun (fp32, NCHW): higher is better
    first_step_vs_torchrun  seconds from the command to the first step, ours / torchrun's: lower is better

The network is the one of the recipe `cifar10-cnn`; the pictures are CIFAR-10's where they are at hand
(../shared/data/cifar10), random ones of the same size elsewhere: the speed does not depend on what they show.
Both sides run 2 workers of 1 thread, in turns, over the same pictures; the second epoch is timed.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.s3.store import Store
from models.features import TARGET, ClassTarget, ImageFeature
from orchestrator.configfile import load_experiment, validate
from orchestrator.data.dataset import open_dataset
from orchestrator.data.manifest import Source
from orchestrator.data.push import push_prepared
from orchestrator.data.sources.huggingface import read_huggingface_images
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.document import Document
from orchestrator.driving.plan import plan_run
from orchestrator.runs.record import read_history, read_status
from tests.benchmarks.local_cluster import ROOT, started_cluster
from tests.benchmarks.measure import print_report
from tests.ports import free_port

TIMEOUT_S = 600
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"


class Timing(NamedTuple):
    """One run of either side."""

    first_step_s: float
    samples_per_s: float


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short pair, within a minute")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    pairs, pictures = (1, 1024) if arguments.quick else (arguments.pairs, 4096)
    with started_cluster() as (store, folder):
        plan = prepare(store, folder, pictures)
        peers, ours = [], []
        for pair in range(pairs):
            peers.append(run_torchrun(plan))
            ours.append(run_ours(store, plan, name=f"pair-{pair}"))
            print(f"pair {pair + 1}/{pairs}: torchrun {peers[-1]}, ours {ours[-1]}", file=sys.stderr)
    print_report(
        "train",
        ratios={
            "cnn_vs_torchrun": [a.samples_per_s / b.samples_per_s for a, b in zip(ours, peers, strict=True)],
            "first_step_vs_torchrun": [a.first_step_s / b.first_step_s for a, b in zip(ours, peers, strict=True)],
        },
        values={
            "ours_samples_per_s": [t.samples_per_s for t in ours],
            "torchrun_samples_per_s": [t.samples_per_s for t in peers],
            "ours_first_step_s": [t.first_step_s for t in ours],
            "torchrun_first_step_s": [t.first_step_s for t in peers],
        },
    )


def prepare(store: Store, folder: Path, pictures: int, *, batch_size: int | None = None) -> Path:
    """Push the pictures and write them for the peer too; return the plan that both sides follow."""
    images, labels = load_pictures(pictures)
    push_prepared(store, as_dataset(images, labels), leakage="keep")  # the test split is not judged
    values = load_experiment("cifar10-cnn").model_dump(mode="json", exclude_unset=True)
    values["data"] = {"name": "pictures"}
    values["train"] |= {"epochs": 2, "label_smoothing": 0.0, "weight_decay": 0.0}
    values["train"] |= {"batch_size": batch_size} if batch_size else {}
    experiment = validate(Document("benchmark", values, {}))
    record = plan_run(experiment, open_dataset(store, "pictures"))
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    plan = folder / "plan.json"
    plan.write_text(
        json.dumps(
            {
                "experiment": experiment.model_dump(mode="json"),
                "techniques": record.techniques.model_dump(mode="json"),
                "signature": record.signature.model_dump(mode="json"),
                "images": str(folder / "images.npy"),
                "labels": str(folder / "labels.npy"),
            }
        )
    )
    return plan


def load_pictures(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The first pictures of CIFAR-10, or random ones."""
    if CIFAR10.exists():
        part = read_huggingface_images(str(CIFAR10), SourceOptions(classes=("cifar10",))).splits["train"]
        return part.columns["image"][:count].reshape(-1, 3, 32, 32), part.columns[TARGET][:count]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return images, random.integers(0, 10, count)


def as_dataset(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Prepared:
    """Pictures as `data push` prepares them; a few of them again as a small test split."""
    feature = ImageFeature(shape=(3, 32, 32), mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 67.0))
    return Prepared(
        name="pictures",
        features={"image": feature},
        target=ClassTarget(classes=tuple("0123456789")),
        splits={
            "train": Part.of({"image": images, TARGET: labels}),
            "test": Part.of({"image": images[:64], TARGET: labels[:64]}),
        },
        source=Source(format="benchmark", uri="benchmark"),
    )


def run_torchrun(plan: Path) -> Timing:
    """The plain script, two workers."""
    script = str(Path(__file__).with_name("torchrun_ddp.py"))
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    started = time.time()
    found = subprocess.run(
        [sys.executable, *command, f"--master-port={free_port()}", script, str(plan)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=TIMEOUT_S,
    )
    result = json.loads(found.stdout.splitlines()[-1])
    return Timing(result["first_step_at"] - started, result["samples_per_s"])


def run_ours(store: Store, plan: Path, *, name: str) -> Timing:
    """The same through the command line, on the running cluster."""
    config = plan.with_name("experiment.yaml")
    config.write_text(json.dumps(json.loads(plan.read_text())["experiment"]))
    started = time.time()
    subprocess.run(
        [sys.executable, "-m", "orchestrator", "train", str(config), "--run", name, "--json"],
        capture_output=True,
        check=True,
        cwd=ROOT,
        timeout=TIMEOUT_S,
    )
    status = read_status(store, name)
    assert status is not None
    assert status.first_step_at is not None
    return Timing(status.first_step_at - started, read_history(store, name)[-1]["samples_per_s"])


if __name__ == "__main__":
    main()

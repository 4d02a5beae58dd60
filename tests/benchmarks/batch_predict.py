"""Batch prediction: rows per second beside the network alone, called in a loop over tensors that lie in memory.

    KIND_vs_forward      rows per second of `batch_predict` / of the loop: higher is better

The loop is what a user would write: batches of 256 of the same rows, ready in memory, in inference mode, once with one
thread and once with as many as there are processors, of which the faster counts; its answers stay in memory.
`batch_predict` fetches or parses the rows, verifies them, predicts, and writes Parquet files to the store, with the
model loaded. `pictures` are 3 x 32 x 32 in a dataset, for a CNN with batch normalization; `table` is a dataset of 24
numbers, for an MLP of three layers; `csv` is that table as a file. Both run in turns in one process.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.s3.store import Store
from models.config import CNNConfig, MLPConfig, ModelConfig
from models.features import TARGET, ClassTarget, ImageFeature
from orchestrator.batch_predict import batch_predict
from orchestrator.data.dataset import open_dataset
from orchestrator.data.manifest import Source
from orchestrator.data.push import push, push_prepared
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.predicting.parts import in_memory
from serving import registry
from tests import example_runs
from tests.benchmarks.local_cluster import started_store
from tests.benchmarks.measure import print_report

BATCH = 256
COLUMNS = 24
KINDS: Mapping[str, ModelConfig] = {
    "pictures": CNNConfig(type="cnn", channels=(32, 64, 128)),
    "table": MLPConfig(type="mlp", hidden=(256, 256, 256)),
}


def push_pictures(store: Store, rows: int) -> None:
    """Push random pictures, all of them a test split but for a few."""
    draw = np.random.default_rng(0)

    def part(count: int) -> Part:
        images = draw.integers(0, 256, (count, 3, 32, 32), np.uint8)
        labels = draw.integers(0, 10, count)
        return Part(tuple(each.piece for each in in_memory({"image": images, TARGET: labels})))

    prepared = Prepared(
        name="pictures",
        features={"image": ImageFeature(shape=(3, 32, 32), mean=(), std=())},
        target=ClassTarget(classes=tuple("abcdefghij")),
        splits={"train": part(1000), "test": part(rows)},
        source=Source(format="bench", uri="random"),
    )
    push_prepared(store, prepared, name="pictures")


def write_table(path: Path, rows: int) -> None:
    """Write numbers and a class."""
    draw = np.random.default_rng(0)
    header = ",".join([*(f"x{k}" for k in range(COLUMNS)), "label"])
    numbers = np.round(draw.normal(size=(rows, COLUMNS)), 3)
    with path.open("w") as file:
        file.write(header + "\n")
        for row, label in zip(numbers.tolist(), draw.integers(0, 2, rows).tolist(), strict=True):
            file.write(",".join(map(str, row)) + f",{'ab'[label]}\n")


def promote(store: Store, kind: str) -> None:
    """Promote an untrained model of a dataset."""
    dataset = open_dataset(store, kind)
    example_runs.EXAMPLES[kind] = (KINDS[kind], dataset.signature())
    reference = {"name": kind, "version": dataset.manifest.version}
    example_runs.write_run(store, run=f"{kind}-1", kind=kind, dataset=reference)
    registry.promote(store, run=f"{kind}-1", name=kind)


def forward(store: Store, kind: str, rows: int) -> Callable[[], float]:
    """Return the loop, which returns its rows per second."""
    model = registry.load(store, name=kind, version="v1")
    dataset = open_dataset(store, kind)
    name = next(iter(dataset.manifest.features))
    shards = dataset.split("test").shards
    groups = [dataset.read_row_group(s, i)[name] for s in shards for i in range(len(s.row_groups))]
    tensor = torch.from_numpy(np.concatenate([np.array(group) for group in groups]))
    assert len(tensor) == rows

    def loop(threads: int) -> float:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        with torch.inference_mode():
            found = [model.network.predict({name: batch}) for batch in tensor.split(BATCH)]
        assert sum(map(len, found)) == rows
        return rows / (time.perf_counter() - began)

    def fastest() -> float:
        threads = torch.get_num_threads()
        try:
            return max(loop(1), loop(len(os.sched_getaffinity(0))))
        finally:
            torch.set_num_threads(threads)

    return fastest


def measured(store: Store, kind: str, source: str, turn: int, **more: Any) -> float:
    """Return the rows per second of one batch prediction, with all that belongs to it."""
    began = time.perf_counter()
    found = batch_predict(store, kind, source, out=f"bench/{kind}-{turn}-{len(source)}", on_cluster="never", **more)
    assert found.new_rows == found.manifest.rows
    return found.manifest.rows / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows: within a minute")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    pictures, rows = (6_000, 100_000) if arguments.quick else (50_000, 1_000_000)
    turns = 2 if arguments.quick else arguments.turns
    ratios: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    with started_store() as store, tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        path = Path(folder) / "table.csv"
        write_table(path, rows)
        push_pictures(store, pictures)
        manifest = push(
            store, str(path), name="table", options=SourceOptions(target="label"), on_cluster="never"
        ).manifest
        for kind in KINDS:
            promote(store, kind)
        loops = {
            "pictures": forward(store, "pictures", pictures),
            "table": forward(store, "table", manifest.splits["test"].rows),
        }
        for turn in range(turns):
            for name, kind, source, more in (
                ("pictures", "pictures", "pictures", {"split": "test"}),
                ("table", "table", "table", {}),
                ("csv", "table", str(path), {}),
            ):
                plain, batch = loops[kind](), measured(store, kind, source, turn, **more)
                ratios.setdefault(f"{name}_vs_forward", []).append(batch / plain)
                values.setdefault(f"{name}_rows_per_s", []).append(batch)
                values.setdefault(f"{name}_forward_rows_per_s", []).append(plain)
    print_report("batch_predict", ratios=ratios, values=values)


if __name__ == "__main__":
    main()

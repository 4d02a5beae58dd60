"""Writes down which samples each step really used, when a test or a drill asks for it: one line per micro-batch.

The variable ORCHESTRATOR_TRACE names a folder; every worker of every attempt appends to a file of its own there. What
the committed steps used can then be compared with the plan.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from orchestrator.data.reading.reader import MicroBatch

VARIABLE = "ORCHESTRATOR_TRACE"


def trace(attempt: str, epoch: int, step: int, micro_batches: Iterable[tuple[int, MicroBatch]]) -> None:
    """Append the sample ids of this worker's micro-batches, each with the number of its logical worker."""
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return
    with (Path(folder) / f"{attempt}-{os.getpid()}.jsonl").open("a") as file:
        for logical_worker, batch in micro_batches:
            line = {
                "epoch": epoch,
                "step": step,
                "logical_worker": logical_worker,
                "samples": batch.sample_ids.tolist(),
            }
            file.write(json.dumps(line) + "\n")

"""The local cluster that a benchmark measures on: started for it, and ended with it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import local
from cluster.s3.store import Store

ROOT = Path(__file__).parents[2]


@contextmanager
def started_cluster() -> Iterator[tuple[Store, Path]]:
    """Start Ray with 2 CPUs and a store; yield the store and a folder for files, both gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        os.environ |= {"ORCHESTRATOR_HOME": f"{folder}/home", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        state = local.up(cpus=2)
        try:
            assert state.store is not None
            yield Store(state.store.settings), Path(folder)
        finally:
            local.down()

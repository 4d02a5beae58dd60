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


@contextmanager
def started_store() -> Iterator[Store]:
    """Start a store alone; the environment tells programs of others where it is, and with which keys to reach it."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        os.environ |= {"ORCHESTRATOR_HOME": f"{folder}/home", "PYTHONPATH": str(ROOT)}
        state = local.up(with_ray=False)
        try:
            assert state.store is not None
            settings = state.store.settings
            store = Store(settings)
            os.environ |= {
                "BENCH_ENDPOINT": settings.endpoint_url or "",
                "BENCH_BUCKET": store.bucket,
                "AWS_SHARED_CREDENTIALS_FILE": settings.credentials_file or "",
                "AWS_PROFILE": settings.profile or "default",
                "AWS_DEFAULT_REGION": settings.region or "us-east-1",
            }
            yield store
        finally:
            local.down()

"""Pushes one file to the store of the environment, and prints the seconds and the memory that it took."""

import sys
import time

from cluster.storage import open_store
from orchestrator.data.push import push
from tests.benchmarks.push_peers import print_figures


def main() -> None:
    """Push and print."""
    store = open_store(None)
    began = time.perf_counter()
    push(store, sys.argv[1], repair=True, on_cluster="never")
    print_figures(time.perf_counter() - began)


if __name__ == "__main__":
    main()

"""What a user would run instead of a push: pyarrow's `read_csv`, alone, or to mix, split, write Parquet and upload.

None of our packages is imported; the store's address and keys come from the environment, as boto3 reads them.
"""

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import boto3
import numpy as np
from pyarrow import csv, parquet

BUCKET = "script"


def script(path: str) -> None:
    """Put a table into a bucket, mixed and split: all of it in memory."""
    table = csv.read_csv(path)
    order = np.random.default_rng(0).permutation(table.num_rows)
    cut = int(0.8 * table.num_rows)
    s3 = boto3.client("s3", endpoint_url=os.environ["BENCH_ENDPOINT"])
    with tempfile.TemporaryDirectory() as folder:
        for split, rows in {"train": order[:cut], "test": order[cut:]}.items():
            file = Path(folder) / f"{split}.parquet"
            parquet.write_table(table.take(rows), file)
            s3.upload_file(str(file), os.environ["BENCH_BUCKET"], f"{BUCKET}/{split}.parquet")


def print_figures(seconds: float) -> None:
    """Print what this process took, as JSON."""
    status = Path("/proc/self/status").read_text()  # `getrusage` counts what the process that forked us had
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    print(json.dumps({"seconds": seconds, "peak_mib": peak / 1024}))


def main() -> None:
    """Run one of them."""
    program, path = sys.argv[1:]
    began = time.perf_counter()
    if program == "read":
        csv.read_csv(path)
    else:
        script(path)
    print_figures(time.perf_counter() - began)


if __name__ == "__main__":
    main()

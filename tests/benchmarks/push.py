"""Pushing large text files: seconds and memory, beside pyarrow's reading alone and a script that a user would write.

    KIND_vs_read         seconds of pyarrow's `read_csv` of the same file / of `push`: higher is better
    KIND_vs_script       seconds of the script (`push_peers.py`: read, mix, split, write Parquet, upload) / of `push`
    KIND_peak_mib, …     the most memory that each process took, its imports included

`table` has 20 columns of numbers, 3 of categories and a class; `ratings` has user, item, rating and timestamp. Each
program runs in a process of its own, in turns, with as many threads as there are processors; the seconds are without
imports. A push reads the file twice, checks it, draws the splits, mixes the rows, and writes shards with their SHA-256.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from tests.benchmarks.local_cluster import started_store
from tests.benchmarks.measure import print_report

PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "push": ("-m", "tests.benchmarks.push_once"),
    "read": ("-m", "tests.benchmarks.push_peers", "read"),
    "script": ("-m", "tests.benchmarks.push_peers", "script"),
}
CHUNK_ROWS = 500_000


def table_of(rows: int, draw: np.random.Generator) -> pa.Table:
    """Rows of a table as people have them: some 160 bytes of text each."""
    columns = {f"x{k}": np.round(draw.normal(size=rows) * 10 ** (k % 4), 3) for k in range(16)}
    columns |= {f"n{k}": draw.integers(0, 10 ** (k + 2), rows) for k in range(4)}
    for k in range(3):
        words = np.array([f"word{i}" for i in range(20 * (k + 1))])
        columns[f"c{k}"] = words[draw.integers(0, len(words), rows)]
    columns["label"] = np.array(["yes", "no"])[draw.integers(0, 2, rows)]
    return pa.table(columns)


def ratings_of(first: int, rows: int, draw: np.random.Generator) -> pa.Table:
    """Ratings of 138,493 users: each rates an item once."""
    number = np.arange(first, first + rows, dtype=np.int64) * 48_271 % (138_493 * 27_278)
    return pa.table(
        {
            "userId": number // 27_278 + 1,
            "movieId": number % 27_278 + 1,
            "rating": draw.integers(1, 11, rows) / 2,
            "timestamp": draw.integers(8e8, 14e8, rows),
        }
    )


def write(path: Path, kind: str, rows: int) -> None:
    """Write a file of one kind."""
    draw = np.random.default_rng(0)
    with path.open("wb") as file:
        for first in range(0, rows, CHUNK_ROWS):
            count = min(CHUNK_ROWS, rows - first)
            table = table_of(count, draw) if kind == "table" else ratings_of(first, count, draw)
            csv.write_csv(table, file, csv.WriteOptions(include_header=first == 0, quoting_style="none"))


def run(program: str, path: Path) -> dict[str, float]:
    """Run one program on a file; return its seconds and the most MiB that it took."""
    command = [sys.executable, *PROGRAMS[program], str(path)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small files: within a minute")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rows", type=int, default=20_000_000, help="of each file")
    parser.add_argument("--only", choices=("table", "ratings"))
    arguments = parser.parse_args()
    turns, rows = (1, 1_200_000) if arguments.quick else (arguments.turns, arguments.rows)
    ratios: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    with started_store(), tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        for kind in ("table", "ratings"):
            if arguments.only not in (None, kind):
                continue
            path = Path(folder) / f"{kind}.csv"
            write(path, kind, rows)
            values[f"{kind}_file_mib"] = [path.stat().st_size / 2**20]
            run("read", path)  # so that the file is in memory for all
            for _ in range(turns):
                found = {program: run(program, path) for program in PROGRAMS}
                for peer in ("read", "script"):
                    ratio = found[peer]["seconds"] / found["push"]["seconds"]
                    ratios.setdefault(f"{kind}_vs_{peer}", []).append(ratio)
                for program, figures in found.items():
                    for name, figure in figures.items():
                        values.setdefault(f"{kind}_{program}_{name}", []).append(figure)
            path.unlink()
    print_report("push", ratios=ratios, values=values)


if __name__ == "__main__":
    main()

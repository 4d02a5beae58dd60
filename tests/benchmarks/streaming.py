"""Streaming speed, side by side with raw pyarrow threads, Ray Data, MosaicML Streaming, WebDataset and litdata.

    shuffled_vs_raw           samples/s of ours, shuffled, / raw threads that do not shuffle; both first passes
    shuffled_vs_raw_shuffled  the same / raw threads that shuffle
    shuffled_vs_best_peer     the same / the fastest peer with its shuffle on; both first passes
    shuffled_vs_best_mixing   the same, of peers whose shuffle leaves neighbours' classes correlated by less than 0.5
    cached_vs_best_peer       ours from the memory cache / the fastest shuffled peer; both second passes
    cached_vs_store           ours, second pass from the memory cache / second pass from the store
    two_consumers_vs_one      samples/s of two processes together / of one

Higher is better in all. `images` are 3x32x32 uint8 (344,064 of them are 1 GiB), `pictures` JPEG files of about 100 kB
that every loader decodes with Pillow to 3x224x224, `rows` are user, item, context and rating; all sorted by class.
The S3 server and the loader share the machine. Each run is a process of its own; imports, clients of the store and
the start of Ray are not counted, everything after is: opening the dataset, its index and footers. Every sample is
touched, and every pass is checked for samples that are missing or repeated. The loaders take turns; of a loader's
variants (threads, workers) the fastest in the first turn goes on. A local cache of a peer serves its second pass.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import psutil
import torch

from cluster import local
from cluster.s3.store import Store
from orchestrator.config import DataConfig
from tests.benchmarks import streaming_data
from tests.benchmarks.measure import print_report
from tests.benchmarks.streaming_data import Data
from tests.benchmarks.streaming_timing import Pass, Task, neighbours

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TIMEOUT_S = 900
LOOK_S = 0.2  # how often memory is looked at
MIB = 2**20
SHUFFLE_MB = DataConfig(name="benchmark").shuffle_mb
BUFFER_MB = 48
"""A smaller window of ours, in the comparison of memory too; as many images as the other buffers hold."""
BUFFER_ROWS = 16_384
"""What the raw and Ray's shuffle buffers hold."""
QUICK = ("ours", "ours_cached", "raw", "ray_data_shuffled")
PEERS = {"mosaic": "mosaicml-streaming", "webdataset": "webdataset", "litdata": "litdata"}
LITDATA: dict[str, dict[str, Any]] = {
    "as_is": {"window": "auto", "batch_decode": "auto"},
    "full": {"window": "full", "batch_decode": 0},
}
"""As it is, it shuffles 256 samples that lie together, which hardly mixes sorted data: both are measured."""
MIXED = 0.5
"""A loader mixes the data if neighbours' classes correlate less than this, in its first pass."""
PEER_SHARE = 10
"""One row of numbers costs a peer as much as an image does: they get one in so many of the rows."""
MEMORY_CACHE_MB = 64
LONGEST_REASON = 300  # characters of an error in the report


@dataclass(frozen=True)
class Entry:
    """A line of the report: a loader, and the variants of which the fastest counts."""

    name: str
    loader: str
    variants: tuple[dict[str, Any], ...]
    consumers: int = 1
    shuffled_peer: bool = False


class Run(NamedTuple):
    """What one run showed."""

    passes: list[list[Pass]]
    """Of each consumer."""
    memory_mb: float
    """Most that the process and its children held, above what they held before the loader was made."""
    load: float
    """Of the machine, over the minute before."""

    def samples_per_s(self, number: int) -> float:
        """Speed of all consumers together in one pass."""
        passes = [consumer[number] for consumer in self.passes]
        started = min(done.started_at for done in passes)
        return sum(done.samples for done in passes) / max(p.started_at + p.seconds - started for p in passes)


@dataclass
class Bench:
    """The store, and what was found so far."""

    store: Store
    folder: Path
    peers: Path | None
    """The peers' Python."""
    cache: Path
    """Of our reader, in memory where the machine can."""
    ratios: dict[str, list[float]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Why a line is not in the report."""


def main() -> None:
    """Measure and report."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the store ends with us
    shared_memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder,
        tempfile.TemporaryDirectory(
            prefix="orchestrator-bench-", dir=shared_memory if shared_memory.is_dir() else None
        ) as cache,
        _local_store(folder) as store,
    ):
        bench = Bench(store, Path(folder), peers=None, cache=Path(cache) / "cache")
        if arguments.peers:
            bench.peers, bench.absent = make_peers(arguments.peers, may_install=not arguments.quick)
        else:
            bench.absent = dict.fromkeys(PEERS, "no --peers FOLDER was given")
        for kind in arguments.kinds:
            measure(bench, kind, getattr(arguments, kind), repetitions=arguments.repetitions, quick=arguments.quick)
        if "images" in arguments.kinds:
            measure_memory(bench, arguments.images)
        versions = peer_versions(bench.peers) if bench.peers else {}
    print_report("streaming", ratios=bench.ratios, values=bench.values, notes=bench.absent, versions=versions)


def measure(bench: Bench, kind: str, rows: int, *, repetitions: int, quick: bool) -> None:
    """Write one kind of data in every format and time all loaders, in turns."""
    data = streaming_data.make(kind, rows)
    entries = _entries(data, peers=[name for name in PEERS if bench.peers and name not in bench.absent])
    if quick:
        entries = [replace(e, variants=e.variants[:1]) for e in entries if e.name in QUICK or e.loader in PEERS]
    paths = _write(bench, data, {entry.loader for entry in entries})
    entries = [entry for entry in entries if entry.loader in paths]
    runs: dict[str, list[Run]] = defaultdict(list)
    for repetition in range(repetitions):
        for number, entry in enumerate(entries):
            variant, found = _run_fastest(bench, data, entry, paths)
            entries[number] = replace(entry, variants=(variant,) if found else ())
            runs[entry.name] += found
            _say(f"{kind} {repetition + 1}/{repetitions} {entry.name}: {_in_words(variant, found)}")
    complete = {name: found for name, found in runs.items() if len(found) == repetitions}
    _note_ratios(bench, kind, complete, peers=[e.name for e in entries if e.shuffled_peer and e.name in complete])
    _note_values(bench, kind, complete, rows=data.rows)


def measure_memory(bench: Bench, rows: int) -> None:
    """See how much memory our reader takes for a fifth of the images and for all of them."""
    used = []
    options = _ours(shuffle_mb=BUFFER_MB, cache_mb=MEMORY_CACHE_MB)
    for name, count in (("fifth", rows // 5), ("all", rows)):
        data = streaming_data.make("images", count)
        streaming_data.push(bench.store, data, name=f"memory-{name}")
        task = _task(bench, data, "ours", {"ours": [f"memory-{name}"]}, options)
        try:
            used.append(run(bench, task, 1).memory_mb)
        except RunError as error:
            bench.absent["memory"] = str(error)
            return
        bench.values[f"memory_{name}_mb"] = [used[-1]]
    bench.values["memory_named_mb"] = [MEMORY_CACHE_MB + 2 * BUFFER_MB]
    bench.ratios["memory_all_vs_fifth"] = [used[1] / used[0]]


def _run_fastest(
    bench: Bench, data: Data, entry: Entry, paths: dict[str, list[str]]
) -> tuple[dict[str, Any], list[Run]]:
    """Run all variants of a line and return the fastest in its first pass; no run, with the reason noted, if none."""
    found: list[tuple[dict[str, Any], Run]] = []
    for variant in entry.variants:
        try:
            found.append((variant, run(bench, _task(bench, data, entry.loader, paths, variant), entry.consumers)))
        except RunError as error:
            bench.absent[f"{data.kind} {entry.name} {json.dumps(variant)}"] = str(error)
    if not found:
        return {}, []
    variant, best = max(found, key=lambda pair: pair[1].samples_per_s(0))
    return variant, [best]


def run(bench: Bench, task: Task, consumers: int) -> Run:
    """Run one loader in a process of its own for each consumer.

    Raises:
        RunError: if it ends with an error or leaves a sample out.
    """
    for cache in (task.folder, bench.cache):
        shutil.rmtree(cache, ignore_errors=True)
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(Consumer(bench, task, number)) for number in range(consumers)]
        for process in processes:
            process.wait_until_ready()
        before = sum(process.memory_mb() for process in processes)
        for process in processes:
            process.go()
        most = _watch_memory(processes)
        passes = [process.passes() for process in processes]
    _check(task, passes)
    return Run(passes, most - before, load)


class RunError(Exception):
    """A loader cannot do it; the message says why."""


def make_peers(folder: Path, *, may_install: bool) -> tuple[Path | None, dict[str, str]]:
    """Return the Python of the peers' virtual environment, made if it is not there, and which peers it lacks."""
    python = folder.resolve() / "bin" / "python"
    if not python.exists() and not may_install:
        return None, dict.fromkeys(PEERS, f"{folder} does not exist, and --quick installs nothing")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        release = torch.__version__.split("+")[0]
        # First torch by itself, as `make install` does: so that a processor-only build is taken where there is one.
        for packages in ([f"torch=={release}"], ["numpy", "pillow", "psutil", "boto3"]):
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        for package in PEERS.values():
            _say(f"installing {package}")
            subprocess.run([str(python), "-m", "pip", "install", "-q", f"torch=={release}", package], check=False)
    missing = set(PEERS.values()) - set(peer_versions(python))
    return python, {peer: f"{package} is not installed" for peer, package in PEERS.items() if package in missing}


def peer_versions(python: Path) -> dict[str, str]:
    """Return the versions of the peers that are installed."""
    found = subprocess.run([str(python), "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
    installed = {package["name"]: package["version"] for package in json.loads(found.stdout)}
    return {package: installed[package] for package in PEERS.values() if package in installed}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small turn of one variant each; installs nothing")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="the peers' virtual environment; made if absent")
    parser.add_argument("--kinds", nargs="+", choices=("images", "pictures", "rows"))
    parser.add_argument("--samples", type=int, dest="images", help="images; 344,064 (1 GiB) unless told")
    parser.add_argument("--pictures", type=int, help="encoded pictures")
    parser.add_argument("--rows", type=int, help="rows of numbers")
    parser.add_argument("--repetitions", type=int)
    full = {"images": 344_064, "pictures": 1536, "rows": 4_000_000, "repetitions": 3}
    quick = {"images": 40_960, "pictures": 128, "rows": 409_600, "repetitions": 1, "kinds": ["images"]}
    found = parser.parse_args()
    for name, value in {"kinds": ["images", "pictures", "rows"], **full, **(quick if found.quick else {})}.items():
        setattr(found, name, getattr(found, name) or value)
    return found


@contextlib.contextmanager
def _local_store(folder: str) -> Iterator[Store]:
    os.environ |= {"ORCHESTRATOR_HOME": f"{folder}/home", "OMP_NUM_THREADS": "1"}
    state = local.up(with_ray=False)
    try:
        assert state.store is not None
        yield Store(state.store.settings)
    finally:
        local.down()


def _entries(data: Data, *, peers: list[str]) -> list[Entry]:
    """Return what is compared on one kind of data."""
    threads = [{"threads": number, "shuffle_rows": BUFFER_ROWS} for number in (2, 4)]
    return [
        Entry("ours", "ours", (_ours(),)),
        Entry("ours_small_window", "ours", (_ours(shuffle_mb=BUFFER_MB),)),
        Entry("ours_cached", "ours", (_ours(cache_mb=2048),)),
        Entry("ours_two_consumers", "ours", (_ours(consumers=2),), consumers=2),
        Entry("raw", "raw", tuple(threads)),
        Entry("raw_shuffled", "raw_shuffled", tuple(threads)),
        Entry("ray_data", "ray_data", ({"shuffle_rows": 0},)),
        Entry("ray_data_shuffled", "ray_data", ({"shuffle_rows": BUFFER_ROWS},), shuffled_peer=True),
        *(_peer(peer, peer, {}) for peer in peers if peer != "litdata"),
        *(_peer(f"litdata_{name}", "litdata", options) for name, options in LITDATA.items() if "litdata" in peers),
    ]


def _peer(name: str, loader: str, options: dict[str, Any]) -> Entry:
    return Entry(name, loader, tuple({"workers": number, **options} for number in (0, 1, 2)), shuffled_peer=True)


def _ours(*, shuffle_mb: int = SHUFFLE_MB, cache_mb: int = 0, consumers: int = 1) -> dict[str, Any]:
    return {"shuffle_mb": shuffle_mb, "cache_mb": cache_mb, "consumers": consumers}


def _write(bench: Bench, data: Data, loaders: set[str]) -> dict[str, list[str]]:
    """Put the data into the store in every format; return where each loader finds it."""
    streaming_data.push(bench.store, data, name=data.kind)
    parquet = streaming_data.write_parquet(bench.store, data, folder=f"parquet/{data.kind}")
    paths = {"ours": [data.kind], "raw": parquet, "raw_shuffled": parquet, "ray_data": parquet}
    records = bench.folder / "records.npz"
    few = _peers_share(data)
    if loaders & set(PEERS):
        streaming_data.save_records(few, records)
    for peer in loaders & set(PEERS):
        task = _task(bench, few, peer, {peer: [f"peers/{peer}/{data.kind}"]}, {"workers": 0})
        try:
            paths[peer] = _written_by_peer(bench, task, records)
        except RunError as error:
            bench.absent[f"{data.kind} {peer}"] = f"could not write: {error}"
    return paths


def _written_by_peer(bench: Bench, task: Task, records: Path) -> list[str]:
    folder = Path(task.folder)
    shutil.rmtree(folder, ignore_errors=True)  # what the last run left
    folder.mkdir()
    command = [*_command(bench, task.loader), "write", json.dumps(asdict(task)), str(records)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=_environment(bench), timeout=TIMEOUT_S
    )
    shutil.rmtree(folder)
    if done.returncode:
        raise RunError(_reason(done.stderr))
    return list(json.loads(done.stdout.splitlines()[-1]))


def _peers_share(data: Data) -> Data:
    if data.kind != "rows":
        return data
    return Data(data.kind, data.batch_size, {k: v[: data.rows // PEER_SHARE] for k, v in data.columns.items()})


def _task(bench: Bench, data: Data, loader: str, paths: dict[str, list[str]], options: dict[str, Any]) -> Task:
    return Task(
        loader=loader,
        kind=data.kind,
        rows=_peers_share(data).rows if loader in PEERS else data.rows,
        batch_size=data.batch_size,
        paths=paths[loader],
        store=bench.store.settings.model_dump(),
        bucket=bench.store.bucket,
        folder=str(bench.folder / "cache"),
        options=options,
    )


class Consumer:
    """A process that runs one loader; the end of its `with` block ends its children too."""

    def __init__(self, bench: Bench, task: Task, number: int) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed on exit
        self._process = subprocess.Popen(
            [*_command(bench, task.loader), json.dumps(asdict(task) | {"consumer": number})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(bench),
        )
        self._tree = psutil.Process(self._process.pid)
        self._children: set[psutil.Process] = set()

    def __enter__(self) -> Self:
        return self

    def wait_until_ready(self) -> None:
        """Wait for its imports."""
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RunError(self._why())

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def memory_mb(self) -> float:
        """Resident memory of the process and its children; what they share counts for each."""
        found = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            self._children |= set(self._tree.children(recursive=True))
            for process in [self._tree, *self._children]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    found += process.memory_info().rss
        return found / MIB

    def passes(self) -> list[Pass]:
        """Return what it measured, after its end."""
        assert self._process.stdout is not None
        lines = self._process.stdout.read().splitlines()
        if self._process.wait() or not lines:
            raise RunError(self._why())
        return [Pass(**found) for found in json.loads(lines[-1])]

    def __exit__(self, *_: object) -> None:
        for process in [self._tree, *self._children]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.communicate()
        self._errors.close()

    def _why(self) -> str:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        return _reason(self._errors.read())


def _watch_memory(processes: list[Consumer]) -> float:
    """Return the most memory that the processes held together until they ended."""
    most, deadline = 0.0, time.monotonic() + TIMEOUT_S
    while any(process.running() for process in processes):
        if time.monotonic() > deadline:
            raise RunError(f"it did not end within {TIMEOUT_S} s")
        most = max(most, sum(process.memory_mb() for process in processes))
        time.sleep(LOOK_S)
    return most


def _command(bench: Bench, loader: str) -> list[str]:
    if loader in PEERS:
        return [str(bench.peers), "-P", str(HERE / "streaming_peers.py")]
    return [sys.executable, "-P", str(HERE / "streaming_loaders.py")]


def _environment(bench: Bench) -> dict[str, str]:
    """Every loader finds the keys through the profile of the local store, and runs one thread where it can choose."""
    settings = bench.store.settings
    named = {
        "AWS_PROFILE": settings.profile,
        "AWS_SHARED_CREDENTIALS_FILE": settings.credentials_file,
        "AWS_REGION": settings.region,
        "AWS_ENDPOINT_URL": settings.endpoint_url,
        "S3_ENDPOINT_URL": settings.endpoint_url,  # MosaicML's name for it
        "ORCHESTRATOR_CACHE": str(bench.cache),
        "PYTHONPATH": str(ROOT),
        "RAY_DEDUP_LOGS": "0",
    }
    return os.environ | {name: value for name, value in named.items() if value}


def _check(task: Task, passes: list[list[Pass]]) -> None:
    """Refuse a run whose consumers together did not see every sample; a peer may say what it does instead."""
    for number in range(task.passes):
        found = sum(consumer[number].samples for consumer in passes)
        if found != task.rows:
            raise RunError(f"pass {number} must deliver {task.rows} samples, got {found}")
    if len(passes) == 1 and any(done.missing for done in passes[0]):
        raise RunError(f"every sample must come, got {passes[0][0].missing} missing")


def _note_ratios(bench: Bench, kind: str, runs: dict[str, list[Run]], *, peers: list[str]) -> None:
    """Divide what was measured in the same turn."""

    def speeds(name: str, number: int) -> list[float]:
        return [run.samples_per_s(number) for run in runs[name]]

    def note(ratio: str, above: list[float], below: list[float]) -> None:
        bench.ratios[f"{ratio}{suffix}"] = [a / b for a, b in zip(above, below, strict=True)]

    def best(names: list[str], number: int) -> list[float]:
        return [max(turn) for turn in zip(*(speeds(name, number) for name in names), strict=True)]

    suffix = "" if kind == "images" else f"_{kind}"
    if "ours" not in runs:
        return
    for other in ("raw", "raw_shuffled"):
        if other in runs:
            note(f"shuffled_vs_{other}", speeds("ours", 0), speeds(other, 0))
            note(f"shuffled_vs_{other}_second", speeds("ours", 1), speeds(other, 1))
    if peers:
        note("shuffled_vs_best_peer", speeds("ours", 0), best(peers, 0))
        note("shuffled_vs_best_peer_second", speeds("ours", 1), best(peers, 1))
    mixing = [peer for peer in peers if abs(runs[peer][0].passes[0][0].neighbour_correlation) < MIXED]
    if mixing:
        note("shuffled_vs_best_mixing", speeds("ours", 0), best(mixing, 0))
    if peers and "ours_cached" in runs:
        note("cached_vs_best_peer", speeds("ours_cached", 1), best(peers, 1))
    if "ours_cached" in runs:
        note("cached_vs_store", speeds("ours_cached", 1), speeds("ours", 1))
    if "ours_two_consumers" in runs:
        note("two_consumers_vs_one", speeds("ours_two_consumers", 0), speeds("ours", 0))


def _note_values(bench: Bench, kind: str, runs: dict[str, list[Run]], *, rows: int) -> None:
    for name, found in runs.items():
        values = {
            "first_pass_samples_per_s": [run.samples_per_s(0) for run in found],
            "second_pass_samples_per_s": [run.samples_per_s(1) for run in found],
            "cpu_us_per_sample": [1e6 * sum(c[0].cpu_s for c in run.passes) / rows for run in found],
            "first_batch_s": [max(consumer[0].first_batch_s for consumer in run.passes) for run in found],
            "memory_mb": [run.memory_mb for run in found],
            "load": [run.load for run in found],
        }
        if kind == "images":
            values["neighbour_correlation"] = [run.passes[0][0].neighbour_correlation for run in found]
            values["neighbour_distance"] = [run.passes[0][0].neighbour_distance for run in found]
        bench.values |= {f"{kind}_{name}_{value}": numbers for value, numbers in values.items()}
    if kind == "images":
        correlation, distance = neighbours(np.random.default_rng(0).permutation(rows), rows)
        bench.values["images_full_shuffle_neighbour_correlation"] = [correlation]
        bench.values["images_full_shuffle_neighbour_distance"] = [distance]


def _in_words(variant: dict[str, Any], found: list[Run]) -> str:
    return "; ".join(
        f"{variant}: {run.samples_per_s(0):,.0f} and {run.samples_per_s(1):,.0f} samples/s, first batch "
        f"{run.passes[0][0].first_batch_s:.2f} s, {run.memory_mb:.0f} MB, load {run.load:.1f}"
        for run in found
    )


def _reason(errors: str) -> str:
    """Return the line of a traceback that says what was wrong, or the last one of anything else."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["it ended without a word"]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    return (raised or lines)[-1][:LONGEST_REASON]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

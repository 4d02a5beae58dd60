"""The long run: kills and stops processes of many trainings, from a seed, and records what became of them.

    python -m tests.chaos_run --kills 100 --seed 0            writes tests/chaos_results.json and the table in the docs
    python -m tests.chaos_run --kills 10 --json trial.json    writes only that file
    python -m tests.chaos_run --seed 0 --only 007-random-rnn  repeats one case and prints what became of it

Which process is hit where follows from the seed; when exactly, within a step, does not.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster import local
from cluster.s3.store import Store
from tests.chaos import (
    FAULTS,
    LOGICAL_WORKERS,
    MODELS,
    ROOT,
    Arena,
    Case,
    CaseResult,
    Strike,
    arena,
    as_json,
    run_case,
    run_node_cases,
)

RESULTS = ROOT / "tests" / "chaos_results.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- chaos table: begin -->", "<!-- chaos table: end -->"
CASE_S = 600  # a case that hangs has failed
HANG_S = 8.0
HEADER = (
    "fault",
    "runs",
    "kills",
    "other bits or samples",
    "not recovered",
    "unexpected",
    "steps lost",
    "seconds to the next step",
)
POINTS: Mapping[str, Callable[[int], int]] = {
    "restore.before": lambda workers: 1,
    "train.mid_backward": lambda workers: 40 * (LOGICAL_WORKERS // workers),
    "train.before_exchange": lambda workers: 40,
    "train.after_exchange": lambda workers: 40,
    "train.after_step": lambda workers: 40,
    "evaluate.before": lambda workers: 9,
    "checkpoint.after_file": lambda workers: 6,
    "checkpoint.before_marker": lambda workers: 2,
    "checkpoint.after_marker": lambda workers: 2,
}
"""Failpoints, and how often each is certainly reached with so many workers."""


def named_point(name: str, model: str, rng: random.Random) -> Case:
    """A worker is killed at a named point in the code."""
    workers = rng.choice((1, 2, 3))
    point = rng.choice(sorted(POINTS))
    rank = 0 if point.startswith("checkpoint") else rng.randrange(workers)
    rule = f"{point}=kill@rank{rank}#{rng.randint(1, POINTS[point](workers))}"
    return Case(name, "worker, at a named point", model, (workers,), ("worker_lost",), rule)


def random_moments(name: str, model: str, rng: random.Random) -> Case:
    """Three workers are killed, one after the other."""
    strikes = tuple(_strike("worker", rng, part) for part in range(3))
    workers, fault = rng.choice((1, 2, 3)), "worker, at random, three in a run"
    return Case(name, fault, model, (workers,), ("worker_lost",) * 3, strikes=strikes)


def in_recovery(name: str, model: str, rng: random.Random) -> Case:
    """A worker is killed, and another while the run recovers from that."""
    workers = rng.choice((1, 2))
    first = f"train.after_step=kill@rank{rng.randrange(workers)}#{rng.randint(20, 40)}"
    rules = f"{first}; restore.after=kill@rank{rng.randrange(workers)}"
    return Case(name, "worker, again during recovery", model, (workers,), ("worker_lost",) * 2, rules)


def all_workers(name: str, model: str, rng: random.Random) -> Case:
    """All workers are killed at once, twice."""
    strikes = (_strike("all workers", rng, 0), _strike("all workers", rng, 2))
    return Case(name, "all workers at once", model, (2,), ("worker_lost",) * 2, strikes=strikes)


def damaged(name: str, model: str, rng: random.Random) -> Case:
    """All workers are killed, and the newest checkpoint is damaged."""
    strike = Strike("all workers and a checkpoint", rng.randint(16, 36), rng.uniform(0, 0.05))
    return Case(name, "all workers, newest checkpoint damaged", model, (2,), ("worker_lost",), strikes=(strike,))


def other_workers(name: str, model: str, rng: random.Random) -> Case:
    """A worker is killed and the run ends; it is resumed with another number of workers, twice."""
    first = rng.randint(1, LOGICAL_WORKERS)
    second = rng.choice([n for n in range(1, LOGICAL_WORKERS + 1) if n != first])
    third = rng.choice([n for n in range(1, LOGICAL_WORKERS + 1) if n != second])
    strikes = (_strike("worker", rng, 0), _strike("worker", rng, 2))
    fault = "worker, resumed with other workers"
    return Case(name, fault, model, (first, second, third), ("worker_lost",) * 2, strikes=strikes)


def driver(name: str, model: str, rng: random.Random) -> Case:
    """The driver is killed, and the run resumed."""
    strike = Strike("driver", rng.randint(1, 40), rng.uniform(0, 0.05))
    return Case(name, "driver", model, (rng.choice((1, 2)), rng.choice((1, 2))), ("driver_lost",), strikes=(strike,))


def stopped(name: str, model: str, rng: random.Random) -> Case:
    """A worker is stopped, or its training sleeps."""
    action = rng.choice(("stop", "sleep:600"))
    point = rng.choice(("train.mid_backward", "train.before_exchange"))
    rule = f"{point}={action}@rank{rng.randrange(2)}#{rng.randint(8, 40)}"
    fault = "worker stopped (SIGSTOP)" if action == "stop" else "training of a worker hangs"
    return Case(name, fault, model, (2,), ("hung",), rule, hang_timeout_s=HANG_S)


def exception(name: str, model: str, rng: random.Random) -> Case:
    """The code of a worker raises."""
    rule = f"train.{rng.choice(('mid_backward', 'after_exchange'))}=raise@rank{rng.randrange(2)}#{rng.randint(1, 40)}"
    return Case(name, "exception in a worker", model, (2,), ("error",), rule)


def node(name: str, model: str, rng: random.Random) -> Case:
    """A node is killed: an elastic run shrinks and grows, others wait for room or find some."""
    workers = rng.choice(((1, 2), 2, 1))
    strikes = (Strike("node", rng.randint(6, 30)),)
    if isinstance(workers, tuple):
        return Case(name, "node, elastic run", model, (workers,), ("node_lost", "resized"), strikes=strikes)
    return Case(name, "node", model, (workers,), ("node_lost",), strikes=strikes)


ROUND: Sequence[tuple[str, Callable[[str, str, random.Random], Case]]] = (
    *[("named", named_point)] * 3,
    ("random", random_moments),
    ("driver", driver),
    ("recovery", in_recovery),
    *[("named", named_point)] * 3,
    ("random", random_moments),
    ("resumed", other_workers),
    ("stopped", stopped),
    ("all", all_workers),
    ("random", random_moments),
    ("damaged", damaged),
    ("node", node),
    ("exception", exception),
)
"""About 24 kills."""


def plan_cases(*, seed: int, kills: int) -> list[Case]:
    """The same cases for the same seed; more kills add cases at the end."""
    cases: list[Case] = []
    while sum(case.kills for case in cases) < kills:
        i = len(cases)
        kind, make = ROUND[i % len(ROUND)]
        model = list(MODELS)[(i + i // len(ROUND)) % len(MODELS)]
        cases.append(make(f"{i:03}-{kind}-{model}", model, random.Random(f"{seed}/{i}")))
    return cases


def main() -> int:
    """Run and record; exit status 1 when anything was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="at least so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=RESULTS, help="where to write; the default is what is committed")
    parser.add_argument("--only", metavar="CASE", help="repeat one case; writes nothing")
    arguments = parser.parse_args()
    cases = plan_cases(seed=arguments.seed, kills=arguments.kills)
    if arguments.only:
        cases = [case for case in cases if case.name == arguments.only] or parser.error(f"no case {arguments.only}")
    started = time.monotonic()
    with _cluster() as place:
        results = list(_run_all(place, cases))
    if arguments.only:
        print(json.dumps([as_json(result) for result in results], indent=1))
    else:
        recorded = record(cases, results, seed=arguments.seed, seconds=time.monotonic() - started)
        arguments.json.write_text(json.dumps(recorded, indent=1) + "\n")
        if arguments.json == RESULTS:
            PAGE.write_text(with_table(PAGE.read_text(), recorded))
        print(render(recorded))
    return 0 if all(result.passed for result in results) else 1


def record(cases: Sequence[Case], results: Sequence[CaseResult], *, seed: int, seconds: float) -> dict[str, Any]:
    """What is committed: a row for each fault, and all of the cases that were not as they should be."""
    specs = {case.name: case for case in cases}
    names = ("torch", "ray", "numpy")
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": seed,
        "seconds": round(seconds),
        "processors": f"{os.cpu_count()} × {platform.machine()}",
        "versions": versions,
        "rows": [row(fault, [r for r in results if r.fault == fault]) for fault in sorted({r.fault for r in results})],
        "failed": [
            {"case": specs[result.case]._asdict(), "result": as_json(result)} for result in results if not result.passed
        ],
    }


def row(fault: str, results: Sequence[CaseResult]) -> dict[str, Any]:
    """Add up the cases of one fault."""
    finished = [result for result in results if result.finished]
    return {
        "fault": fault,
        "runs": len(results),
        "faults": sum(end in FAULTS for result in results for end in result.ends),
        "kills": sum(result.kills for result in results),
        "mismatches": sum(bool(result.mismatches) for result in finished),
        "not_recovered": len(results) - len(finished),
        "unexpected": sum(bool(result.problems) and not result.mismatches for result in finished),
        "steps_lost": _median_and_max([steps for result in finished for steps in result.steps_lost]),
        "seconds": _median_and_max([seconds for result in finished for seconds in result.seconds]),
    }


def render(recorded: Mapping[str, Any]) -> str:
    """The table and what it was measured with, as Markdown."""
    rows = recorded["rows"]
    runs, kills, mismatches = (sum(row[name] for row in rows) for name in ("runs", "kills", "mismatches"))
    versions = ", ".join(f"{name} {version}" for name, version in recorded["versions"].items())
    lines = [
        f"{recorded['date']}, seed {recorded['seed']}, {recorded['processors']}, {versions}: {kills} kills in "
        f"{runs} runs, {mismatches} mismatches. Steps and seconds: median (most).",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---|" + "--:|" * (len(HEADER) - 1),
        *(_line(row) for row in rows),
    ]
    return "\n".join(lines)


def with_table(page: str, recorded: Mapping[str, Any]) -> str:
    """The page with the table between its markers replaced."""
    return replaced(page, render(recorded), begin=BEGIN, end=END)


def replaced(page: str, text: str, *, begin: str, end: str) -> str:
    """The page with other text between two markers."""
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    assert found, f"the page must have {begin} and {end}"
    return f"{before}{begin}\n{text}\n{end}{after}"


def _strike(target: Any, rng: random.Random, part: int) -> Strike:
    """In one third of the run, at any moment of a step; a step takes about 30 ms."""
    return Strike(target, rng.randint(14 * part + 3, 14 * part + 10), rng.uniform(0, 0.05), rng.randrange(4))


def _run_all(place: Arena, cases: Sequence[Case]) -> Iterator[CaseResult]:
    """One after the other; those that kill nodes together, on a cluster of their own."""
    done: list[CaseResult] = []
    for group in [[case] for case in cases if not _is_node(case)] + [[case for case in cases if _is_node(case)]]:
        if not group:
            continue
        started = time.monotonic()
        done += _run_in_time(place, group)
        for result in done[-len(group) :]:
            _tell(result, done, len(cases), time.monotonic() - started)
            yield result


def _run_in_time(place: Arena, group: Sequence[Case]) -> list[CaseResult]:
    def stop(_number: int, _frame: Any) -> None:
        raise TimeoutError(f"the case must end within {CASE_S} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(CASE_S * len(group))
    try:
        return run_node_cases(place, group) if _is_node(group[0]) else [run_case(place, group[0])]
    finally:
        signal.alarm(0)


def _tell(result: CaseResult, done: Sequence[CaseResult], cases: int, seconds: float) -> None:
    kills, mismatches = sum(r.kills for r in done), sum(bool(r.mismatches) for r in done)
    how = "passed" if result.passed else f"FAILED {result}"
    print(
        f"[{len(done)}/{cases}] {kills} kills, {mismatches} mismatches; {result.case}: {how} ({seconds:.0f} s)",
        file=sys.stderr,
        flush=True,
    )


def _is_node(case: Case) -> bool:
    return any(strike.target == "node" for strike in case.strikes)


def _median_and_max(values: Sequence[float]) -> list[float] | None:
    return [round(statistics.median(values), 1), round(max(values), 1)] if values else None


def _line(row: Mapping[str, Any]) -> str:
    counts = [str(row[name]) for name in ("runs", "kills", "mismatches", "not_recovered", "unexpected")]
    spans = ["—" if row[name] is None else "{:g} ({:g})".format(*row[name]) for name in ("steps_lost", "seconds")]
    return "| " + " | ".join([row["fault"], *counts, *spans]) + " |"


@contextmanager
def _cluster() -> Iterator[Arena]:
    """A local cluster and store of our own, in a folder that goes at the end."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        os.environ |= {
            "ORCHESTRATOR_HOME": f"{folder}/home",
            "ORCHESTRATOR_CACHE": f"{folder}/cache",
            "ORCHESTRATOR_METADATA_URL": "http://127.0.0.1:9",  # nobody listens: no notices from this machine
            "OMP_NUM_THREADS": "1",
        }
        trace = Path(folder) / "trace"
        trace.mkdir()
        state = local.up(cpus=LOGICAL_WORKERS)
        try:
            assert state.store is not None
            assert state.ray is not None
            with arena(Store(state.store.settings), state.ray.address, trace) as place:
                yield place
        finally:
            local.down()


if __name__ == "__main__":
    sys.exit(main())

"""Trains small models while their processes are killed, and compares every run with one that nothing happened to.

A case is data: a model, worker counts, and faults with the moment of each. A fault is a failpoint inside the workers
(`cluster/failpoints.py`), or a strike from outside once the training has reached a step. A run has passed when its
weights, optimizer state and metrics have the SHA-256 of the unbroken run, when the steps that count used exactly the
samples of the plan, and when it ended each of its attempts for the cause that was meant.
"""

import dataclasses
import importlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cluster.errors import ClusterError, NotFoundError, OrchestratorError, RunFailedError
from cluster.s3.store import Store
from cluster.session import NAMESPACE, ray_session
from orchestrator.config import Experiment
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.drill import Fingerprint, outcome
from orchestrator.runs.attempts import Attempt, End, read_attempts, receipt
from orchestrator.runs.checkpoint import list_checkpoints
from orchestrator.runs.record import RunRecord, read_history, read_run
from orchestrator.train import RunResult, resume, train
from orchestrator.training.trace import VARIABLE as TRACE
from orchestrator.training.trainer import build_reader, epoch_plan

ROOT = Path(__file__).parents[1]
SOURCES = ("sklearn:digits", "statsmodels:elnino", "sklearn:china")
EPOCHS, STEPS = 8, 48
"""Of every model below: 6 steps in each epoch."""
LOGICAL_WORKERS = 4
KEPT = 3  # checkpoints, the default
LOOK_S = 0.01
ANSWER_S = 1.0  # a stopped process gives no answer
DRIVER_S = 300.0  # for a driver that is to be killed to reach the step where it is
NODES_S = 300.0  # for each case on a cluster of several nodes
MODELS: Mapping[str, dict[str, Any]] = {
    "cnn": {
        "data": {"name": "digits", "augment": ["crop"]},
        "model": {"type": "cnn", "channels": [4, 8]},
        "train": {"batch_size": 240, "learning_rate": 0.1, "label_smoothing": 0.1},
    },
    "rnn": {
        "data": {"name": "elnino", "lookback": 12, "horizon": 3},
        "model": {"type": "rnn", "cell": "lstm", "hidden_size": 8, "layers": 2},
        "train": {"batch_size": 96, "learning_rate": 0.01, "optimizer": "adam", "clip_norm": 0.5},
    },
    "fm": {
        "data": {"name": "china"},
        "model": {"type": "fm", "factors": 4},
        "techniques": {"preset": "deep", "regularization": "penalty"},
        "train": {"batch_size": 2400, "learning_rate": 0.01, "weight_decay": 0.01},
    },
}

KILLS: tuple[End, ...] = ("worker_lost", "node_lost", "driver_lost", "hung")
"""Ends by a SIGKILL; a worker that hangs gets it from the driver."""
FAULTS: tuple[End, ...] = (*KILLS, "error")

Target = Literal["worker", "all workers", "all workers and a checkpoint", "driver", "node"]
Step = tuple[int, int, int]
"""Epoch, step of the epoch, logical worker."""


class Strike(NamedTuple):
    """A SIGKILL from outside."""

    target: Target
    step: int
    """The global step that a worker must have reached before."""
    delay_s: float = 0.0
    """After that was seen: any moment of a step is as likely as another."""
    pick: int = 0
    """Which of the workers, by their process ids."""


class Case(NamedTuple):
    """One training and what shall happen to it."""

    name: str
    fault: str
    """The row of the table that it counts for."""
    model: str
    workers: tuple[int | tuple[int, int], ...]
    """Of the run, and of each resume after it was cut off."""
    ends: tuple[End, ...]
    """How the attempts before the last must have ended."""
    failpoints: str = ""
    """Each rule fires once in the life of the run."""
    strikes: tuple[Strike, ...] = ()
    """In this order."""
    hang_timeout_s: float = 60.0

    @property
    def kills(self) -> int:
        """How many attempts are meant to end by a SIGKILL."""
        return sum(end in KILLS for end in self.ends)


@dataclass
class CaseResult:
    """What became of a case."""

    case: str
    fault: str
    ends: list[str]
    """Of all attempts."""
    workers: list[int]
    """Of all attempts."""
    resumed_steps: list[int] = field(default_factory=list)
    """Of all attempts."""
    kills: int = 0
    """Attempts that ended by a SIGKILL."""
    steps_lost: list[int] = field(default_factory=list)
    """By each fault."""
    seconds: list[float] = field(default_factory=list)
    """From the last step that was known before each fault to the first one after it."""
    mismatches: list[str] = field(default_factory=list)
    """Of `weights`, `optimizer`, `metrics` and `samples`: those that are not as in the unbroken run."""
    problems: list[str] = field(default_factory=list)
    """All else that is not as it should be."""
    finished: bool = True

    @property
    def passed(self) -> bool:
        """Whether everything is as it should be."""
        return self.finished and not self.mismatches and not self.problems


class Expected(NamedTuple):
    """What an unbroken run shows."""

    fingerprint: Fingerprint
    samples: Mapping[Step, list[int]]
    """The plan."""


@dataclass
class Arena:
    """A connected cluster and a store with the datasets."""

    store: Store
    address: str
    trace: Path
    """Folder in which the workers write down the samples they use."""
    _expected: dict[str, Expected] = field(default_factory=dict)

    def expected(self, model: str) -> Expected:
        """Of the unbroken run of one worker, which is done once."""
        if model not in self._expected:
            result = train(
                experiment(model, workers=1), store=self.store, address=self.address, run=f"{model}-unbroken"
            )
            found = Expected(outcome(self.store, result).fingerprint, planned_samples(self.store, result.record))
            problem = sample_problem(self.trace, read_attempts(self.store, result.run), found.samples)
            assert problem is None, problem
            self._expected[model] = found
        return self._expected[model]


@contextmanager
def arena(store: Store, address: str, trace: Path) -> Iterator[Arena]:
    """Connect once for many cases, so that they find their workers warm.

    Args:
        store: gets the datasets.
        address: of the cluster.
        trace: an empty folder.
    """
    for source in SOURCES:
        push(store, source)
    with ray_session(address, store=store.settings, environment={TRACE: str(trace)}):
        yield Arena(store, address, trace)


def experiment(
    model: str, *, workers: int | tuple[int, int], max_failures: int = 0, hang_timeout_s: float = 60.0
) -> Experiment:
    """Training of about a second; nearly all of its checkpoints are within epochs."""
    settings = MODELS[model]
    scaling = {
        "workers": workers,
        "logical_workers": LOGICAL_WORKERS,
        "max_failures": max_failures,
        "hang_timeout_s": hang_timeout_s,
    }
    intervals = {"epochs": EPOCHS, "checkpoint_epochs": None, "checkpoint_steps": 4, "keep_checkpoints": KEPT}
    return Experiment.model_validate({**settings, "train": settings["train"] | intervals, "scaling": scaling})


def run_case(arena: Arena, case: Case) -> CaseResult:
    """Let a case happen, and compare what comes out."""
    expected = arena.expected(case.model)
    run = f"{case.name}-{secrets.token_hex(3)}"
    with _saboteur(arena.store, run, case.strikes) as saboteur:
        error = _train_through(arena, case, run, saboteur)
    return examine(arena, case, run, expected, error=error, damaged=saboteur.damaged)


def run_node_cases(arena: Arena, cases: Sequence[Case]) -> list[CaseResult]:
    """Let cases of killed nodes happen, one after the other, on a cluster of nodes of one CPU each.

    An elastic run goes on with fewer workers and grows when there is a new node; the others wait for it.
    """
    expected = [arena.expected(case.model) for case in cases]
    runs = [f"{case.name}-{secrets.token_hex(3)}" for case in cases]
    arguments = {
        "store": arena.store.settings.model_dump(mode="json"),
        "trace": str(arena.trace),
        "cases": [_node_arguments(case, run) for case, run in zip(cases, runs, strict=True)],
    }
    said = _run_on_nodes(json.dumps(arguments), timeout_s=NODES_S * len(cases))
    return [
        examine(arena, case, run, wanted, error=_error_of(arena.store, run, said))
        for case, run, wanted in zip(cases, runs, expected, strict=True)
    ]


def examine(
    arena: Arena, case: Case, run: str, expected: Expected, *, error: Exception | None, damaged: Sequence[str] = ()
) -> CaseResult:
    """Compare a run with the unbroken one.

    Args:
        arena: where it ran.
        case: what should have happened.
        run: its name.
        expected: of the unbroken run.
        error: with which it ended, if it did.
        damaged: key prefixes of the checkpoints that were damaged.
    """
    attempts = read_attempts(arena.store, run)
    found = CaseResult(case.name, case.fault, [str(a.end) for a in attempts], [a.workers for a in attempts])
    if error is not None:
        found.finished = False
        found.problems.append(f"{type(error).__name__}: {error}")
        return found
    found.resumed_steps = [attempt.resumed_step for attempt in attempts]
    found.kills = sum(attempt.end in KILLS for attempt in attempts)
    recoveries = receipt(attempts, dollars_per_hour=None).recoveries
    found.steps_lost = [r.steps_lost for r in recoveries if r.cause in FAULTS]
    found.seconds = seconds_to_next_step(attempts)
    parts = list(Fingerprint.model_fields)
    try:
        prints = outcome(arena.store, _result(arena.store, run)).fingerprint
        found.mismatches = [part for part in parts if getattr(prints, part) != getattr(expected.fingerprint, part)]
    except OrchestratorError as unreadable:
        found.mismatches = parts
        found.problems.append(str(unreadable))
    if problem := sample_problem(arena.trace, attempts, expected.samples):
        found.mismatches.append("samples")
        found.problems.append(problem)
    found.problems += _other_problems(arena.store, case, run, attempts, damaged)
    return found


def planned_samples(store: Store, record: RunRecord) -> dict[Step, list[int]]:
    """The sample ids of every epoch, step and logical worker."""
    reader = build_reader(record, open_dataset(store, record.dataset.name, version=record.dataset.version))
    plans = [epoch_plan(record, reader, epoch) for epoch in range(record.experiment.train.epochs)]
    return {
        (epoch, step, logical_worker): plan.sample_ids(logical_worker, step).tolist()
        for epoch, plan in enumerate(plans)
        for step in range(plan.num_steps)
        for logical_worker in range(plan.logical_workers)
    }


def sample_problem(trace: Path, attempts: Sequence[Attempt], planned: Mapping[Step, list[int]]) -> str | None:
    """Say what is wrong with the samples of the steps that count, if anything is.

    A step counts in the last attempt that began at or before it: what earlier ones did of it was undone.
    """
    counting: dict[Step, list[list[int]]] = {}
    for lines in _traces(trace, attempts):
        if not lines:
            continue
        began = min(step for step, _ in lines)[:2]
        counting = {step: ids for step, ids in counting.items() if step[:2] < began}
        for step, ids in lines:
            counting.setdefault(step, []).append(ids)
    for step, ids in planned.items():
        found = counting.pop(step, [])
        if found != [ids]:
            number = Counter(sample for executed in found for sample in executed)
            return (
                f"epoch {step[0]}, step {step[1]}, logical worker {step[2]} counted {len(found)} times, "
                f"{len(set(ids) - set(number))} of its samples missing, {len(set(number) - set(ids))} foreign"
            )
    return f"{len(counting)} steps more than planned" if counting else None


def seconds_to_next_step(attempts: Sequence[Attempt]) -> list[float]:
    """From the last known step of each attempt that failed to the first step after it."""
    found = []
    for i, attempt in enumerate(attempts[:-1]):
        later = [a.first_step_at for a in attempts[i + 1 :] if a.first_step_at is not None]
        if later and attempt.end in FAULTS:
            found.append(round(later[0] - (attempt.last_step_at or attempt.first_step_at or attempt.started), 3))
    return found


class Trainee(NamedTuple):
    """A process that trains at this moment."""

    pid: int
    node: str
    step: int
    phase: str


def trainees() -> list[Trainee]:
    """All training processes of the connected cluster that answer; those that wait for work are left out."""
    ray: Any = importlib.import_module("ray")
    names = [n for n in importlib.import_module("ray.util").list_named_actors() if n.startswith("worker-")]
    asked = {}
    for name in names:
        with suppress(ValueError):  # it has just ended
            actor = ray.get_actor(name, namespace=NAMESPACE)
            asked[name] = (actor.execute.remote(os.getpid), actor.look.remote())
    looks = [ref for refs in asked.values() for ref in refs]
    done = set(ray.wait(looks, num_returns=len(looks), timeout=ANSWER_S)[0] if looks else ())
    found = []
    for name, refs in asked.items():
        if not done.issuperset(refs):
            continue
        with suppress(ray.exceptions.RayError):
            pid, look = ray.get(list(refs))
            if look.pulse["phase"] not in ("starting", "finished"):
                found.append(Trainee(pid, name.split("-")[2], look.pulse["step"], look.pulse["phase"]))
    return sorted(found)


def wait_for_step(step: int, *, stop: threading.Event) -> list[Trainee]:
    """Wait until a training process has reached a step, and return all of them; none when ``stop`` was set."""
    while not stop.is_set():
        found = trainees()
        if any(trainee.step >= step for trainee in found):
            return found
        stop.wait(LOOK_S)
    return []


@dataclass
class _Saboteur:
    store: Store
    run: str
    stop: threading.Event = field(default_factory=threading.Event)
    driver: subprocess.Popen[str] | None = None
    damaged: list[str] = field(default_factory=list)

    def strike(self, strikes: Sequence[Strike]) -> None:
        for strike in strikes:
            found = wait_for_step(strike.step, stop=self.stop)
            if not found or self.stop.wait(strike.delay_s):
                return
            pids = [trainee.pid for trainee in found]
            match strike.target:
                case "driver":
                    assert self.driver is not None
                    self.driver.kill()
                case "worker":
                    _kill(pids[strike.pick % len(pids)])
                case "all workers":
                    for pid in pids:
                        _kill(pid)
                case "all workers and a checkpoint":
                    self._damage_then_kill(pids)

    def _damage_then_kill(self, pids: Sequence[int]) -> None:
        """No newer checkpoint may appear once the newest is damaged: the processes are stopped before."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        complete = [c.prefix for c in list_checkpoints(self.store, run=self.run) if c.complete]
        while complete and complete[0] not in self.damaged:
            damage(self.store, complete[0])
            self.damaged.append(complete[0])
            complete = [c.prefix for c in list_checkpoints(self.store, run=self.run) if c.complete]
        for pid in pids:
            _kill(pid)


@contextmanager
def _saboteur(store: Store, run: str, strikes: Sequence[Strike]) -> Iterator[_Saboteur]:
    saboteur = _Saboteur(store, run)
    thread = threading.Thread(target=saboteur.strike, args=(strikes,), name="saboteur", daemon=True)
    thread.start()
    try:
        yield saboteur
    finally:
        saboteur.stop.set()
        thread.join()


def damage(store: Store, prefix: str) -> None:
    """Flip one bit in the middle of a checkpoint's weights."""
    key = f"{prefix}weights.safetensors"
    data = bytearray(store.read(key))
    data[len(data) // 2] ^= 1
    store.write(key, bytes(data))


def _train_through(arena: Arena, case: Case, run: str, saboteur: _Saboteur) -> Exception | None:
    """Train, and resume with the next number of workers as often as the case says; return what ended it too early."""
    first, *rest = case.workers
    settings = experiment(
        case.model,
        workers=first,
        max_failures=0 if rest else len(case.ends),
        hang_timeout_s=case.hang_timeout_s,
    )
    failpoints = once_each(case.failpoints, run)
    is_driver = any(strike.target == "driver" for strike in case.strikes)
    try:
        if is_driver:
            _train_in_own_process(arena, settings, run, failpoints, saboteur)
        else:
            with _cut(expected=bool(rest)):
                train(settings, store=arena.store, address=arena.address, run=run, failpoints=failpoints)
        for i, workers in enumerate(rest, 1):
            assert isinstance(workers, int)
            with _cut(expected=i < len(rest)):
                resume(run, store=arena.store, address=arena.address, workers=workers)
    except (OrchestratorError, TimeoutError, subprocess.TimeoutExpired) as error:
        return error
    finally:
        remove_marks(run)
    return None


@contextmanager
def _cut(*, expected: bool) -> Iterator[None]:
    """A run of no forgiven failure ends with the worker that was killed."""
    try:
        yield
    except RunFailedError:
        if not expected:
            raise
    else:
        if expected:
            raise ClusterError("the run must be cut off before its end, got a finished one.")


def _train_in_own_process(
    arena: Arena, settings: Experiment, run: str, failpoints: str | None, saboteur: _Saboteur
) -> None:
    """Train in a driver that is killed."""
    arguments = {
        "store": arena.store.settings.model_dump(mode="json"),
        "experiment": settings.model_dump(mode="json"),
        "address": arena.address,
        "run": run,
        "failpoints": failpoints,
        "trace": str(arena.trace),
    }
    command = [sys.executable, "-m", "tests.chaos_driver", json.dumps(arguments)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE) as process:
        saboteur.driver = process
        try:
            said = process.communicate(timeout=DRIVER_S)[1]
        finally:
            process.kill()
    if process.returncode != -signal.SIGKILL:
        raise ClusterError(f"the driver must be killed, got exit status {process.returncode}: {said[-2000:]}")


def _node_arguments(case: Case, run: str) -> dict[str, Any]:
    (workers,) = case.workers
    settings = experiment(case.model, workers=workers, max_failures=len(case.ends))
    kills = [{"step": strike.step, "is_elastic": not isinstance(workers, int)} for strike in case.strikes]
    return {"run": run, "experiment": settings.model_dump(mode="json"), "node_kills": kills}


def _run_on_nodes(arguments: str, *, timeout_s: float) -> str:
    """Run the program with a Ray of its own, whose processes end with it; return its last words if it failed."""
    folder = tempfile.mkdtemp(prefix="nodes-", dir="/tmp")  # short: the path of a Unix socket
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN_PATH"} | {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # stay on 127.0.0.1, see cluster/machine/ray_head.py
    }
    command = [sys.executable, "-m", "tests.chaos_nodes", arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE) as process:
        try:
            said = process.communicate(timeout=timeout_s)[1]
        except subprocess.TimeoutExpired as error:
            said = str(error)
        finally:
            process.terminate()  # its handler ends the cluster's processes
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
    return said[-2000:] if process.returncode else ""


def _error_of(store: Store, run: str, said: str) -> Exception | None:
    try:
        record = read_run(store, run)
    except NotFoundError:
        return ClusterError(f"the run must begin, got none: {said}")
    return None if record.state == "finished" else RunFailedError(f"it ended {record.state}: {record.error}\n{said}")


def once_each(failpoints: str, run: str) -> str | None:
    """Give every rule a file, so that it fires once in the life of a run: warm processes keep their counts."""
    rules = [rule.strip() for rule in failpoints.split(";") if rule.strip()]
    return "; ".join(f"{rule}!chaos-{run}-{i}" for i, rule in enumerate(rules)) or None


def remove_marks(run: str) -> None:
    """Remove the files of `once_each`."""
    for file in Path(tempfile.gettempdir()).glob(f"chaos-{run}-*"):
        file.unlink()


def _traces(trace: Path, attempts: Sequence[Attempt]) -> Iterator[list[tuple[Step, list[int]]]]:
    """Of each attempt, what its workers wrote down: a file whose last change falls into the attempt's time."""
    files = [(file.stat().st_mtime, file) for file in trace.iterdir()]
    begins = [attempt.started for attempt in attempts]
    ends = [*begins[1:], attempts[-1].ended or time.time()]
    for begin, end in zip(begins, ends, strict=True):
        yield [line for changed, file in files if begin <= changed < end for line in _lines(file)]


def _lines(file: Path) -> Iterator[tuple[Step, list[int]]]:
    for text in file.read_text().splitlines(keepends=True):
        if text.endswith("\n"):  # else its writer was killed within the line, before the step
            line = json.loads(text)
            yield (line["epoch"], line["step"], line["logical_worker"]), line["samples"]


def _other_problems(
    store: Store, case: Case, run: str, attempts: Sequence[Attempt], damaged: Sequence[str]
) -> Iterator[str]:
    ends = tuple(attempt.end for attempt in attempts)
    if ends != (*case.ends, "finished"):
        told = "; ".join(f"{a.end}: {a.detail}" for a in attempts)
        yield f"attempts must end {', '.join(case.ends)} and then finish, got {told}"
    if attempts[-1].reached_step != STEPS:
        yield f"the last attempt must be recorded to have reached step {STEPS}, got {attempts[-1].reached_step}"
    for before, after in pairwise(attempts):
        if after.first_step_at is not None and after.resumed_step and after.resumed_from is None:
            yield f"attempt {after.number} resumed at step {after.resumed_step} from nothing, after {before.number}"
    passed_over = " ".join(text for attempt in attempts for text in attempt.passed_over)
    yield from (f"no attempt passed over the damaged {prefix}" for prefix in damaged if prefix not in passed_over)
    if len(kept := list_checkpoints(store, run=run)) > KEPT + 1:
        yield f"there must be at most {KEPT + 1} checkpoints, got {len(kept)}"


def _result(store: Store, run: str) -> RunResult:
    record = read_run(store, run)
    return RunResult(run, record.metrics, read_history(store, run), record)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def as_json(result: CaseResult) -> dict[str, Any]:
    """A result as it is recorded."""
    return dataclasses.asdict(result)

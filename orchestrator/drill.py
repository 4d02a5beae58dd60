"""Proves on a cluster that training survives a kill: trains once unbroken and once with a kill, and compares the bits.

    runs/drill-DATASET-TIME-RANDOM-unbroken/     both are runs like any other, listed by `orchestrator runs`
    runs/drill-DATASET-TIME-RANDOM-killed/
        drill.json                               marks a run that `delete_drills` may remove

The kill is a failpoint (`cluster/failpoints.py`) that the workers of the second run get.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from torch import Tensor, uint8

from cluster.errors import ConfigError, NotFoundError
from cluster.s3.store import Store
from cluster.session import ray_session
from cluster.storage import open_store
from models.records import Finite
from orchestrator.config import Experiment
from orchestrator.configfile import near_miss, validate
from orchestrator.document import Document
from orchestrator.runs.attempts import Receipt, read_attempts, receipt
from orchestrator.runs.checkpoint import MARKER, State, load_checkpoint
from orchestrator.runs.record import Metrics, RunRecord, RunStatus, read_run, with_live_state
from orchestrator.train import RunResult, train
from orchestrator.training.worker import Arithmetic

KILLS: Mapping[str, str] = {"worker": "train.after_step=kill@rank0"}
"""What may be killed, and the failpoint that does it; rank 0 is the one that writes checkpoints."""
MEASURED = frozenset({"samples_per_s", "waiting_share", "seconds"})
"""Entries of a run's history that tell of time, which no two runs share."""
DRILL_FILE = "drill.json"

OnStart = Callable[[RunRecord, Arithmetic], None]


class Fingerprint(Finite):
    """SHA-256 of what a finished run leaves."""

    weights: str
    optimizer: str
    metrics: str
    """The SHA-256 of the metrics of the final evaluation and of every epoch, without times."""


class DrillResult(Finite):
    """What a drill showed."""

    passed: bool
    """The worker was killed, and the run ended with the bits of the unbroken one."""
    unbroken: str
    """Name of the run that nothing happened to."""
    killed: str
    kill: str
    kill_step: int
    """The global step after which the worker was killed."""
    was_killed: bool
    """Whether the run's receipt has a lost worker: without one nothing was proved."""
    expected: Fingerprint
    """The fingerprint of the unbroken run."""
    found: Fingerprint
    """The fingerprint of the killed run."""
    differences: tuple[str, ...]
    """`weights`, `optimizer`, `metrics`: those whose SHA-256 differ."""
    environments: tuple[str, ...]
    """What was different where the two runs finished, such as the processor: then the same bits are not promised."""
    recovery_s: float | None
    """From the last known step before the kill to the first one after it."""
    steps_lost: int
    receipt: Receipt
    """The receipt of the killed run."""
    has_checkpoints: bool
    """Whether the checkpoints of both runs are still there: on request, and as evidence when the drill failed."""

    def __repr__(self) -> str:
        """Say whether it passed, what was killed, what it cost and which runs are left; the fields hold the rest."""
        verdict = "passed" if self.passed else "failed"
        differences = f", other {', '.join(self.differences)}" if self.differences else ""
        kill = f"{self.kill} killed after step {self.kill_step}" if self.was_killed else f"no {self.kill} was killed"
        runs = f"runs/{self.unbroken}/ and runs/{self.killed}/"
        return f"<DrillResult {verdict}: {kill}{differences}, {self.steps_lost} steps lost; {runs}>"

    __str__ = __repr__


class DrillPlan(NamedTuple):
    """What a drill will train, under which name, and what it will kill."""

    experiment: Experiment
    name: str
    kill: str

    @property
    def unbroken(self) -> str:
        """Name of the run that nothing happens to."""
        return f"{self.name}-unbroken"

    @property
    def killed(self) -> str:
        """Name of the run in which a worker is killed."""
        return f"{self.name}-killed"


class TrainingOutcome(NamedTuple):
    """All that is compared of a finished run."""

    fingerprint: Fingerprint
    environment: Mapping[str, str]


def drill(
    plan: DrillPlan,
    *,
    store: Store | None = None,
    address: str | None = None,
    keep_checkpoints: bool = False,
    on_start: OnStart | None = None,
    on_progress: Callable[[RunStatus], None] | None = None,
) -> DrillResult:
    """Train what was planned twice on a cluster: once unbroken, once with a kill, and compare what comes out.

    The killed worker takes down no other work: it is a process of the drill's own run.

    Args:
        plan: made by `plan_drill`.
        store: where the dataset is and the runs go; default: `cluster.storage.open_store()`.
        address: of the cluster; default: see `cluster.address.resolve_address`.
        keep_checkpoints: leave those of a drill that passed, too.
        on_start: called before each of the two trainings, as by `train`.
        on_progress: as for `train`.

    Raises:
        ConfigError, StoreAccessError, ClusterError: before any worker starts.
        RunFailedError: one of the two runs did not reach its end; its checkpoints stay.
    """
    store = store or open_store()
    fit = partial(train, store=store, address=address, on_progress=on_progress)
    with ray_session(address, store=store.settings):  # one for both: the second finds its workers warm
        return perform(plan, store=store, fit=fit, keep_checkpoints=keep_checkpoints, on_start=on_start)


def plan_drill(
    experiment: Experiment,
    *,
    name: str | None = None,
    kill: str = "worker",
    workers: int | None = None,
    epochs: int = 2,
) -> DrillPlan:
    """Shorten an experiment for a drill.

    Args:
        experiment: what to train; its intervals of checkpoints hold, with one after every epoch at least.
        name: what the names of both runs begin with; default: made of the dataset and the time.
        kill: a key of `KILLS`.
        workers: another number of workers than the experiment's.
        epochs: to train, instead of the experiment's.

    Raises:
        ConfigError: ``kill`` is none of `KILLS`, or ``workers`` or ``epochs`` do not fit the experiment.
    """
    if kill not in KILLS:
        raise ConfigError(f"kill must be one of {', '.join(KILLS)}, got {kill!r}. {near_miss(kill, KILLS)}")
    values = experiment.model_dump(mode="json") | {"sweep": None}
    values["train"] |= {"epochs": epochs, "checkpoint_epochs": 1}
    values["scaling"] |= {"max_failures": max(1, experiment.scaling.max_failures)}
    if workers is not None:
        values["scaling"] |= {"workers": workers}
    return DrillPlan(validate(Document("drill", values, {})), name or new_drill_name(experiment), kill)


def new_drill_name(experiment: Experiment) -> str:
    """`drill-DATASET-TIME-RANDOM`, short enough for the names of its runs."""
    time_utc = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"drill-{experiment.data.name[:20]}-{time_utc}-{secrets.token_hex(2)}"


def perform(
    plan: DrillPlan,
    *,
    store: Store,
    fit: Callable[..., RunResult],
    keep_checkpoints: bool = False,
    on_start: OnStart | None = None,
) -> DrillResult:
    """Do what was planned, where ``fit`` is `orchestrator.train.train` on some cluster."""
    steps_per_epoch: list[int] = []

    def started(record: RunRecord, arithmetic: Arithmetic) -> None:
        steps_per_epoch.append(arithmetic.steps_per_epoch)
        if on_start:
            on_start(record, arithmetic)

    for run in (plan.unbroken, plan.killed):
        store.write(f"runs/{run}/{DRILL_FILE}", json.dumps({"drill": plan.name, "kill": plan.kill}).encode())
    expected = outcome(store, fit(plan.experiment, run=plan.unbroken, on_start=started))
    kill_step = choose_kill_step(epochs=plan.experiment.train.epochs, steps_per_epoch=steps_per_epoch[0])
    rule = failpoint_rule(plan, kill_step)
    found = outcome(store, fit(plan.experiment, run=plan.killed, on_start=started, failpoints=rule))
    price = plan.experiment.scaling.dollars_per_hour
    cost = receipt(read_attempts(store, plan.killed), dollars_per_hour=price)
    result = judge(plan, kill_step=kill_step, expected=expected, found=found, cost=cost)
    if keep_checkpoints or not result.passed:
        return result
    for run in (plan.unbroken, plan.killed):
        remove_checkpoints(store, run)
    return result.model_copy(update={"has_checkpoints": False})


def choose_kill_step(*, epochs: int, steps_per_epoch: int) -> int:
    """The middle of the last epoch: between two checkpoints, with steps to lose and steps to come."""
    return (epochs - 1) * steps_per_epoch + max(1, steps_per_epoch // 2)


def failpoint_rule(plan: DrillPlan, kill_step: int) -> str:
    """Kill once in the life of the run, as far as the workers share a folder for temporary files.

    Another machine has no such file, but a worker that resumed from a checkpoint does not reach the count again.
    """
    return f"{KILLS[plan.kill]}#{kill_step}!orchestrator-{plan.killed}"


def outcome(store: Store, result: RunResult) -> TrainingOutcome:
    """Read the final checkpoint of a finished run, and hash it.

    Raises:
        IntegrityError: the checkpoint is damaged.
    """
    assert result.record.checkpoint is not None, "a finished run has a checkpoint"
    state = load_checkpoint(store, prefix=result.record.checkpoint)
    return TrainingOutcome(fingerprint(state, result.metrics), state.progress.environment)


def fingerprint(state: State, metrics: Metrics) -> Fingerprint:
    """Hash weights, optimizer state and metrics; equal only where every bit is."""
    history = [{k: v for k, v in epoch.items() if k not in MEASURED} for epoch in state.progress.history]
    told = json.dumps({"metrics": metrics, "history": history}, sort_keys=True)
    return Fingerprint(
        weights=tensors_sha256(state.weights),
        optimizer=tensors_sha256(state.optimizer),
        metrics=hashlib.sha256(told.encode()).hexdigest(),
    )


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.reshape(-1).view(uint8).numpy().tobytes())
    return found.hexdigest()


def judge(
    plan: DrillPlan, *, kill_step: int, expected: TrainingOutcome, found: TrainingOutcome, cost: Receipt
) -> DrillResult:
    """Compare the two runs; pure."""
    lost = [recovery for recovery in cost.recoveries if recovery.cause == "worker_lost"]
    parts = list(Fingerprint.model_fields)
    differences = tuple(p for p in parts if getattr(expected.fingerprint, p) != getattr(found.fingerprint, p))
    return DrillResult(
        passed=bool(lost) and not differences,
        unbroken=plan.unbroken,
        killed=plan.killed,
        kill=plan.kill,
        kill_step=kill_step,
        was_killed=bool(lost),
        expected=expected.fingerprint,
        found=found.fingerprint,
        differences=differences,
        environments=_environment_differences(expected.environment, found.environment),
        recovery_s=lost[0].down_s if lost else None,
        steps_lost=cost.steps_lost,
        receipt=cost,
        has_checkpoints=True,
    )


def remove_checkpoints(store: Store, run: str) -> None:
    """Remove all checkpoints of a run; markers first, so that a half-removed one does not look complete."""
    keys = [info.key for info in store.list(f"runs/{run}/checkpoints/")]
    store.delete([key for key in keys if key.endswith(f"/{MARKER}")])
    store.delete(keys)


def list_drills(store: Store) -> list[str]:
    """Names of all runs that drills have made and that do not work at this moment."""
    names = store.folders("runs/")
    return [name for name in names if name.startswith("drill-") and _is_removable(store, name)]


def delete_drills(store: Store, runs: Sequence[str]) -> None:
    """Remove runs that `list_drills` named, with all that they left."""
    for run in runs:
        marker = f"runs/{run}/{DRILL_FILE}"
        store.delete([info.key for info in store.list(f"runs/{run}/") if info.key != marker])
        store.delete([marker])  # last: what is half removed can still be found


def _is_removable(store: Store, run: str) -> bool:
    if not store.exists(f"runs/{run}/{DRILL_FILE}"):
        return False
    try:
        return with_live_state(store, read_run(store, run)).state != "running"
    except NotFoundError:
        return True  # it ended before it was a run


def _environment_differences(expected: Mapping[str, str], found: Mapping[str, str]) -> tuple[str, ...]:
    names = sorted({*expected, *found})
    return tuple(
        f"{name}: {expected.get(name, 'unknown')} and {found.get(name, 'unknown')}"
        for name in names
        if expected.get(name) != found.get(name)
    )

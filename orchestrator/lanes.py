"""Trains the cells of a sweep one after the other, each claimed, timed and written down: what a Ray Tune trial runs.

Cells of a *pack* (see `orchestrator/packs.py`) are trained together, as one batched model.

    sweeps/SWEEP/
        attempts/ATTEMPT.json    what one driver asked its lanes to do
        claims/ATTEMPT/TASK      which lane of which attempt took the pack of this task (conditional PUT)
        cells/TASK.json          a finished cell, written once: the source of truth

Results do not depend on where a cell runs. So nothing is kept but finished cells: whatever dies, the cells in work are
trained again from their beginning.
"""

import importlib
import logging
import secrets
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from cluster.config import StoreSettings
from cluster.errors import (
    OrchestratorError,
    PreconditionError,
    RunFailedError,
    RunUnfinishedError,
    StoreUnavailableError,
    WorkerLostError,
)
from cluster.failpoints import failpoint
from cluster.session import store_environment
from cluster.staging import check_packages
from cluster.storage import Store, all_at_once
from cluster.stored_json import read_model
from orchestrator.ledger import Cell
from orchestrator.polling import time_limit
from orchestrator.runs import Metrics, RunRecord, update_run, utc_now
from orchestrator.sealed import append, read_all
from orchestrator.train import fit_on_ray
from orchestrator.workers import call_in_worker, is_abandoned

log = logging.getLogger(__name__)

FORGIVEN_LOSSES = 1  # deaths of the process that trains a cell: the first may be its node's fault


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(_Frozen):
    """One cell to train."""

    name: str
    """Of the object and of the claim; with the sweep's in front, of the run."""
    arm: str
    seed: int
    folder: Literal["cells", "tuning"] = "cells"
    learning_rate: float | None = None
    """To be tried instead of the arm's."""
    evaluated_on: str | None = None
    """Split to be judged on instead of the arm's."""
    pack: str | None = None
    """Tasks of one pack are trained together; which they are does not depend on what was lost, so no bit does."""


class LanePlan(_Frozen):
    """`attempts/ATTEMPT.json`."""

    sweep: str
    attempt: str
    arms: dict[str, RunRecord]
    """What each arm trains, but for the seed and the name of the run."""
    tasks: list[Task]
    timeout_minutes: float | None
    """Of one task."""

    @property
    def key(self) -> str:
        """Where it is."""
        return f"sweeps/{self.sweep}/attempts/{self.attempt}.json"


Launch = Callable[[LanePlan], str]
"""Runs the lanes of one attempt to their end, and returns what ended one of them before its time, if anything did."""


class StoredCells(NamedTuple):
    """What a folder of cells holds."""

    cells: list[Cell]
    """In the order of arms and seeds."""
    damaged: list[str]
    """Keys of objects that are not as they were written."""


def finish_tasks(
    tasks: Sequence[Task],
    *,
    sweep: str,
    arms: Mapping[str, RunRecord],
    timeout_minutes: float | None,
    store: Store,
    launch: Launch,
) -> None:
    """Launch lanes until every task has a cell; one whose process dies again and again gets a failed one.

    Args:
        tasks: in the order in which they are to be begun.
        sweep: name of the sweep.
        arms: what each arm trains.
        timeout_minutes: of one task.
        store: where the cells go.
        launch: see `Launch`.

    Raises:
        RunUnfinishedError: no lane could begin any of them.
    """
    losses: Counter[str] = Counter()
    still_open = open_tasks(tasks, sweep=sweep, store=store)
    while still_open:
        plan = LanePlan(
            sweep=sweep,
            attempt=secrets.token_hex(4),
            arms=dict(arms),
            tasks=_to_train(tasks, still_open, losses),
            timeout_minutes=timeout_minutes,
        )
        store.write(plan.key, plan.model_dump_json().encode(), only_if_absent=True)
        error = launch(plan)
        claimed = claimed_tasks(store, plan)
        if not claimed:
            raise RunUnfinishedError(f"sweep {sweep} must keep a lane alive, got {error.strip() or 'none'}.")
        still_open = open_tasks(tasks, sweep=sweep, store=store)
        losses.update(task.name for task in still_open if task.name in claimed)
        for task in still_open:
            if losses[task.name] > FORGIVEN_LOSSES:
                write_cell(store, sweep, _lost(plan, task), folder=task.folder)
        still_open = [task for task in still_open if losses[task.name] <= FORGIVEN_LOSSES]


def _to_train(tasks: Sequence[Task], still_open: Sequence[Task], losses: Counter[str]) -> list[Task]:
    """The open tasks and those of their packs; what its process did not survive comes last, and alone."""
    packs = {task.pack for task in still_open if task.pack and not losses[task.name]}
    whole = [task for task in tasks if task.pack in packs]
    alone = [task.model_copy(update={"pack": None}) for task in still_open if task.pack not in packs]
    return whole + sorted(alone, key=lambda task: losses[task.name])


def open_tasks(tasks: Sequence[Task], *, sweep: str, store: Store) -> list[Task]:
    """Those without a cell that is as it was written."""
    stored = [read_stored(store, sweep, folder=folder) for folder in sorted({task.folder for task in tasks})]
    for key in (key for found in stored for key in found.damaged):
        log.warning("%s is damaged: its cell is trained again", key)
    done = {cell.run for found in stored for cell in found.cells}
    return [task for task in tasks if f"{sweep}.{task.name}" not in done]


def trains_in_workers(arms: Mapping[str, RunRecord]) -> bool:
    """Whether a lane lets a worker train, which may be warm: Tune's process would first have to import PyTorch.

    Where GPUs are used, or several workers for a training, the lane's own process does it, or starts them.
    """
    return all(arm.experiment.scaling.max_workers == 1 and arm.techniques.processor == "cpu" for arm in arms.values())


def run_lanes(config: Mapping[str, Any]) -> None:
    """Train tasks until none is left unclaimed. Runs as one Ray Tune trial.

    Args:
        config: `store` settings, the key of the `plan`, the numbers of this trial's `lanes`, and how many there are
            over all trials as `num_lanes`.
    """
    from ray import tune

    check_packages()
    store = Store(StoreSettings.model_validate(config["store"]))
    plan = _read_plan(store, config["plan"])
    if trains_in_workers(plan.arms):
        with ThreadPoolExecutor(len(config["lanes"])) as pool:
            train = partial(_train_in_worker, plan, store=store, lanes=config["num_lanes"])
            list(pool.map(lambda lane: train(lane=lane), config["lanes"]))
    else:
        for lane in config["lanes"]:
            train_tasks(plan, store=store, lane=lane, lanes=config["num_lanes"])
    tune.report({"is_done": True})


def _train_in_worker(plan: LanePlan, *, store: Store, lane: int, lanes: int) -> None:
    """Let one worker train all tasks of a lane; when it dies, let another do the rest."""
    threads = max(arm.experiment.scaling.num_threads for arm in plan.arms.values())
    settings = store.settings.model_dump(mode="json")
    work = partial(train_stored_tasks, plan.key, settings=settings, lane=lane, lanes=lanes)
    while True:
        claimed = claimed_tasks(store, plan)
        try:
            return call_in_worker(work, threads=threads, environment=store_environment(store.settings))
        except WorkerLostError:
            if claimed_tasks(store, plan) == claimed:
                raise  # it could not even begin


def train_stored_tasks(key: str, *, settings: dict[str, Any], lane: int, lanes: int) -> None:
    """`train_tasks`, in a worker."""
    store = Store(StoreSettings.model_validate(settings))
    train_tasks(_read_plan(store, key), store=store, lane=lane, lanes=lanes)


def _read_plan(store: Store, key: str) -> LanePlan:
    return read_model(store, key, LanePlan, what="the plan of a sweep")


def train_tasks(plan: LanePlan, *, store: Store, lane: int, lanes: int) -> None:
    """Train in this process what no lane has claimed."""
    for module in ("orchestrator.trainer", "torch._dynamo"):  # seconds that are no part of the first cell's
        importlib.import_module(module)
    for pack in claim_packs(store, plan, lane=lane, lanes=lanes):
        run_pack(plan, pack, store=store, lane=lane)
        if is_abandoned():
            return


def packs_of(plan: LanePlan) -> list[list[Task]]:
    """The tasks of each pack, and each of the others by itself."""
    packs: dict[str, list[Task]] = {}
    for task in plan.tasks:
        packs.setdefault(task.pack or task.name, []).append(task)
    return list(packs.values())


def claim_packs(store: Store, plan: LanePlan, *, lane: int, lanes: int) -> Iterator[list[Task]]:
    """Claim one pack after the other; lanes begin at different places, so that they seldom collide."""
    packs = packs_of(plan)
    start = len(packs) * lane // lanes
    for pack in packs[start:] + packs[:start]:
        try:
            # the lane's number tells, after a lost answer, whose claim it is that exists
            store.write(_claims(plan) + pack[0].name, str(lane).encode(), only_if_absent=True)
        except PreconditionError:
            continue
        yield pack


def claimed_tasks(store: Store, plan: LanePlan) -> set[str]:
    """Names of the tasks that a lane of this attempt has begun."""
    claimed = {info.key.removeprefix(_claims(plan)) for info in store.list(_claims(plan))}
    return {task.name for pack in packs_of(plan) if pack[0].name in claimed for task in pack}


def run_pack(plan: LanePlan, pack: Sequence[Task], *, store: Store, lane: int = 0) -> None:
    """Train tasks, together if they are several, and write their cells; what fails together is trained alone."""
    if len(pack) > 1:
        try:
            cells = run_cells_together(plan, pack, store=store, lane=lane)
        except StoreUnavailableError:
            raise
        except Exception:
            log.warning("%s: %d trainings are taken one by one", pack[0].name, len(pack), exc_info=True)
        else:
            all_at_once(lambda cell: write_cell(store, plan.sweep, cell, folder=pack[0].folder), cells)
            return
    for task in pack:
        run_task(plan, task, store=store, lane=lane)


def run_task(plan: LanePlan, task: Task, *, store: Store, lane: int = 0) -> Cell:
    """Train one task within its time limit and write its cell; one that takes longer ends this process."""

    def give_up() -> None:
        write_cell(store, plan.sweep, _timed_out(plan, task, lane), folder=task.folder)

    with time_limit(plan.timeout_minutes, give_up):  # Tune starts the lane again, for the next task
        cell = run_cell(plan, task, store=store, lane=lane)
        failpoint("sweep.before_cell")
        write_cell(store, plan.sweep, cell, folder=task.folder)
        failpoint("sweep.after_cell")
    return cell


def run_cell(plan: LanePlan, task: Task, *, store: Store, lane: int = 0) -> Cell:
    """Train one task; an error becomes a failed cell, so that the others go on.

    Raises:
        StoreUnavailableError: no fault of the cell, which stays to be done.
    """
    started, clock = time.time(), time.perf_counter()
    record = run_record(plan, task)
    found: dict[str, Any]
    try:
        metrics, history = _train(record, store)
        found = {"state": "finished", "metrics": metrics, "history": history}
    except StoreUnavailableError:
        raise
    except OrchestratorError as failure:
        found = {"state": "failed", "error": str(failure)}
    except Exception:  # whatever a cell does, the sweep goes on; the traceback is kept
        found = {"state": "failed", "error": traceback.format_exc(limit=-5)}
    if found["state"] == "failed":
        update_run(store, record.model_copy(update=found))
    return _cell(task, record, found, seconds=time.perf_counter() - clock, started=started, lane=lane)


def run_cells_together(plan: LanePlan, tasks: Sequence[Task], *, store: Store, lane: int = 0) -> list[Cell]:
    """Train tasks of one arm as one batched model; each has an equal share of the seconds."""
    import torch

    from orchestrator.replicates import fit_together
    from orchestrator.trainer import World, evaluate

    started, clock = time.time(), time.perf_counter()
    records = [run_record(plan, task) for task in tasks]
    all_at_once(partial(update_run, store), records)
    trained = fit_together(records, store=store, world=World(device=torch.device("cpu")))
    ends: list[dict[str, Any]] = []
    ended: list[RunRecord] = []
    for record, end in zip(records, trained, strict=True):
        if isinstance(end, RunFailedError):
            ends.append({"state": "failed", "error": str(end)})
            ended.append(record.model_copy(update=ends[-1]))
        else:
            found: dict[str, Any] = {"state": "finished", "metrics": evaluate(end, record.evaluated_on)}
            ends.append(found | {"history": end.history})
            ended.append(record.model_copy(update=found | {"checkpoint": end.checkpoint}))
    all_at_once(partial(update_run, store), ended)
    seconds = (time.perf_counter() - clock) / len(tasks)
    return [
        _cell(task, record, end, seconds=seconds, started=started + place * seconds, lane=lane)
        for place, (task, record, end) in enumerate(zip(tasks, records, ends, strict=True))
    ]


def _cell(task: Task, record: RunRecord, end: dict[str, Any], *, seconds: float, started: float, lane: int) -> Cell:
    return Cell(
        arm=task.arm,
        seed=task.seed,
        run=record.run,
        seconds=round(seconds, 3),
        started=round(started, 3),
        lane=lane,
        learning_rate=record.experiment.train.learning_rate,
        **end,
    )


def failed_cell(plan: LanePlan, task: Task, error: str, *, seconds: float = 0.0, lane: int | None = None) -> Cell:
    """A cell that could not say itself how it ended."""
    run = run_record(plan, task).run
    return Cell(arm=task.arm, seed=task.seed, run=run, state="failed", seconds=seconds, lane=lane, error=error)


def run_record(plan: LanePlan, task: Task) -> RunRecord:
    """The run that trains a task."""
    arm = plan.arms[task.arm]
    rate = task.learning_rate or arm.experiment.train.learning_rate
    train = arm.experiment.train.model_copy(update={"seed": task.seed, "learning_rate": rate})
    return arm.model_copy(
        update={
            "run": f"{plan.sweep}.{task.name}",
            "sweep": plan.sweep,
            "created": utc_now(),
            "experiment": arm.experiment.model_copy(update={"train": train, "sweep": None}),
            "evaluated_on": task.evaluated_on or arm.evaluated_on,
        }
    )


def write_cell(store: Store, sweep: str, cell: Cell, *, folder: str = "cells") -> None:
    """Append to the ledger. A cell that is there already stays: the first result counts."""
    append(store, f"sweeps/{sweep}/{folder}/{cell.run.removeprefix(f'{sweep}.')}.json", cell, kind="cell")


def read_stored(store: Store, sweep: str, *, folder: str = "cells") -> StoredCells:
    """Read every cell of a sweep, and see which objects are no longer what was written."""
    found = read_all(store, f"sweeps/{sweep}/{folder}/", Cell, kind="cell")
    cells = sorted((cell for cell in found.values() if cell), key=lambda c: (c.arm, c.seed, c.run))
    return StoredCells(cells, [key for key, cell in found.items() if cell is None])


def _train(record: RunRecord, store: Store) -> tuple[Metrics, list[dict[str, Any]]]:
    """Metrics of the split that the record names, and what is known of every epoch."""
    import torch

    from orchestrator.trainer import World, evaluate, fit

    update_run(store, record)
    if record.experiment.scaling.max_workers > 1:
        outcome = fit_on_ray(record, store)
        metrics, history, checkpoint = outcome["metrics"], outcome["history"], outcome["checkpoint"]
    else:
        world = World(device=torch.device("cuda" if record.techniques.processor == "gpu" else "cpu"))
        trainer = fit(record, store=store, world=world, checkpoints="last")
        metrics, history, checkpoint = evaluate(trainer, record.evaluated_on), trainer.history, trainer.checkpoint
    update_run(store, record.model_copy(update={"state": "finished", "metrics": metrics, "checkpoint": checkpoint}))
    return metrics, history


def _lost(plan: LanePlan, task: Task) -> Cell:
    error = (
        f"a training must not end its process, got {FORGIVEN_LOSSES + 1} deaths in a row. Its machine may be out of "
        "memory: use a smaller model, batch or sweep.concurrency; or see the logs of the cluster."
    )
    return failed_cell(plan, task, error)


def _timed_out(plan: LanePlan, task: Task, lane: int) -> Cell:
    assert plan.timeout_minutes is not None
    error = (
        f"a training must end within sweep.cell_timeout_minutes ({plan.timeout_minutes:g}), got no end. "
        "Allow more, or find out where it hangs: train this arm alone."
    )
    return failed_cell(plan, task, error, seconds=plan.timeout_minutes * 60, lane=lane)


def _claims(plan: LanePlan) -> str:
    return f"sweeps/{plan.sweep}/claims/{plan.attempt}/"

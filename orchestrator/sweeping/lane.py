"""Trains the tasks of a lane one after the other. Runs in a trial of Ray Tune, or in a worker.

Cells of a *pack* (see `orchestrator/training/packs.py`) are trained together, as one batched model.
"""

import logging
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from cluster.config import StoreSettings
from cluster.errors import OrchestratorError, PreconditionError, RunFailedError, StoreUnavailableError, WorkerLostError
from cluster.failpoints import failpoint
from cluster.s3.records import read_model
from cluster.s3.store import Store, all_at_once
from cluster.session import store_environment
from cluster.staging import check_packages
from orchestrator.driving.recovery import fit_on_ray
from orchestrator.driving.tune import time_limit, timed_out_text
from orchestrator.driving.worker_process import is_abandoned
from orchestrator.driving.workers import call_in_worker
from orchestrator.evidence.record import Cell
from orchestrator.runs.record import Metrics, RunRecord, update_run
from orchestrator.sweeping.tasks import (
    CellTask,
    LanePlan,
    claimed_tasks,
    claims,
    failed_cell,
    packs_of,
    run_record,
    write_cell,
)
from orchestrator.training.worker import warm_up

log = logging.getLogger(__name__)


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
    warm_up()  # seconds that are no part of the first cell's
    for pack in claim_packs(store, plan, lane=lane, lanes=lanes):
        run_pack(plan, pack, store=store, lane=lane)
        if is_abandoned():
            return


def claim_packs(store: Store, plan: LanePlan, *, lane: int, lanes: int) -> Iterator[list[CellTask]]:
    """Claim one pack after the other; lanes begin at different places, so that they seldom collide."""
    packs = packs_of(plan)
    start = len(packs) * lane // lanes
    for pack in packs[start:] + packs[:start]:
        try:
            # the lane's number tells, after a lost answer, whose claim it is that exists
            store.write(claims(plan) + pack[0].name, str(lane).encode(), only_if_absent=True)
        except PreconditionError:
            continue
        yield pack


def run_pack(plan: LanePlan, pack: Sequence[CellTask], *, store: Store, lane: int = 0) -> None:
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


def run_task(plan: LanePlan, task: CellTask, *, store: Store, lane: int = 0) -> Cell:
    """Train one task within its time limit and write its cell; one that takes longer ends this process."""

    def give_up() -> None:
        write_cell(store, plan.sweep, _timed_out(plan, task, lane), folder=task.folder)

    with time_limit(plan.timeout_minutes, give_up):  # Tune starts the lane again, for the next task
        cell = run_cell(plan, task, store=store, lane=lane)
        failpoint("sweep.before_cell")
        write_cell(store, plan.sweep, cell, folder=task.folder)
        failpoint("sweep.after_cell")
    return cell


def run_cell(plan: LanePlan, task: CellTask, *, store: Store, lane: int = 0) -> Cell:
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


def run_cells_together(plan: LanePlan, tasks: Sequence[CellTask], *, store: Store, lane: int = 0) -> list[Cell]:
    """Train tasks of one arm as one batched model; each has an equal share of the seconds."""
    import torch

    from orchestrator.training.epoch import evaluate
    from orchestrator.training.together import fit_together
    from orchestrator.training.trainer import World

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


def _cell(task: CellTask, record: RunRecord, end: dict[str, Any], *, seconds: float, started: float, lane: int) -> Cell:
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


def _train(record: RunRecord, store: Store) -> tuple[Metrics, list[dict[str, Any]]]:
    """Metrics of the split that the record names, and what is known of every epoch."""
    import torch

    from orchestrator.training.epoch import evaluate
    from orchestrator.training.fit import fit
    from orchestrator.training.trainer import World

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


def _timed_out(plan: LanePlan, task: CellTask, lane: int) -> Cell:
    assert plan.timeout_minutes is not None
    error = timed_out_text(plan.timeout_minutes, setting="sweep.cell_timeout_minutes", what="this arm")
    return failed_cell(plan, task, error, seconds=plan.timeout_minutes * 60, lane=lane)

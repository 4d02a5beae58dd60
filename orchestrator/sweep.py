"""Compares many trainings: the factorial of `sweep.vary` times the seeds, on a few long-lived Ray Tune trials.

    sweeps/SWEEP/
        sweep.json               the experiment, the arms, the state
        claims/ATTEMPT/CELL      which lane of which attempt took a cell (conditional PUT)
        cells/CELL.json          a finished cell, written once: the source of truth
        result.json              the ledger

A trial costs Ray Tune seconds, a small training takes less: so a trial is a *lane* that trains one cell after the
other, in its own process when one worker is asked for. Since results do not depend on where a cell runs, killing
the driver loses only the cells in work, and `resume` does the rest.
"""

import itertools
import logging
import os
import secrets
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.config import StoreSettings
from cluster.errors import ConfigError, NotFoundError, OrchestratorError, PreconditionError, RunUnfinishedError
from cluster.session import cluster_resources, ray_session, require_resources
from cluster.staging import check_packages
from cluster.storage import Store, open_store
from models.config import has_activation
from orchestrator.config import Experiment
from orchestrator.configfile import Document, near_miss, set_dotted, setting_names, validate
from orchestrator.ledger import Cell, Ledger, summarize
from orchestrator.polling import polling
from orchestrator.runs import RunRecord, update_run, utc_now
from orchestrator.train import dataset_of, describe, fit_on_ray, plan_run

ACTIVATION = "techniques.activation"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(_Frozen):
    """One combination of choices."""

    name: str
    settings: dict[str, Any]
    """Dotted name -> value, of what varies and applies."""
    not_applicable: tuple[str, ...] = ()
    """Varied settings that this arm's model does not have."""
    experiment: Experiment


class SweepRecord(_Frozen):
    """`sweep.json`."""

    format_version: Literal[1] = 1
    sweep: str
    state: Literal["running", "finished", "unfinished", "cancelled"]
    created: str
    experiment: Experiment
    arms: list[Arm]
    seeds: list[int]
    metric: str
    higher_is_better: bool


class SweepProgress(NamedTuple):
    """How far a sweep is."""

    done: int
    failed: int
    total: int
    newest: Cell | None


class SweepResult(NamedTuple):
    """What a sweep leaves behind."""

    sweep: str
    ledger: Ledger
    cells: list[Cell]
    record: SweepRecord
    seconds: float


def sweep(
    experiment: Experiment,
    *,
    store: Store | None = None,
    address: str | None = None,
    name: str | None = None,
    on_start: Callable[[SweepRecord], None] | None = None,
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> SweepResult:
    """Train every arm with every seed and say what came out.

    Args:
        experiment: with a `sweep` group.
        store: see `orchestrator.train.train`.
        address: see `orchestrator.train.train`.
        name: of the new sweep; default: made of dataset, model and time.
        on_start: called once everything is checked, before anything starts.
        on_progress: called whenever cells have finished.

    Raises:
        ConfigError, StoreAccessError, ClusterError: before anything starts.
        RunUnfinishedError: some cells could not be done; `resume_sweep` does them.
    """
    store = store or open_store()
    store.check()
    arms = plan_arms(experiment)
    with ray_session(address, store=store.settings):
        gpus = cluster_resources().get("GPU", 0)
        records = [_checked(arm, store, gpus) for arm in arms]
        record = _sweep_record(experiment, arms, records[0], name)
        store.write(f"sweeps/{record.sweep}/sweep.json", _body(record), only_if_absent=True)
        if on_start:
            on_start(record)
        return _run_cells(record, store=store, on_progress=on_progress)


def resume_sweep(
    name: str,
    *,
    store: Store | None = None,
    address: str | None = None,
    on_start: Callable[[SweepRecord], None] | None = None,
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> SweepResult:
    """Do the cells that a stopped sweep has not finished; finished ones are neither lost nor repeated."""
    store = store or open_store()
    store.check()
    record = read_sweep(store, name)
    with ray_session(address, store=store.settings):
        if on_start:
            on_start(record)
        return _run_cells(record, store=store, on_progress=on_progress)


def plan_arms(experiment: Experiment) -> list[Arm]:
    """All combinations of `sweep.vary`, each validated; one that differs only in what its model lacks is dropped.

    Raises:
        ConfigError: naming the setting or the combination that is wrong.
    """
    if experiment.sweep is None:
        raise ConfigError(
            "sweep must be given, got nothing. Add what to vary, such as sweep: {vary: {model.dropout: [0, 0.2]}}."
        )
    _check_names(experiment.sweep.vary)
    arms: dict[str, Arm] = {}
    for values in itertools.product(*experiment.sweep.vary.values()):
        settings, missing = _applicable(dict(zip(experiment.sweep.vary, values, strict=True)), experiment)
        key = repr(sorted(settings.items()))
        if key not in arms:
            arm_experiment = _with_settings(experiment, settings)
            arms[key] = Arm(
                name=f"arm-{len(arms):02d}", settings=settings, not_applicable=missing, experiment=arm_experiment
            )
    return list(arms.values())


def read_sweep(store: Store, name: str) -> SweepRecord:
    """The record of a sweep.

    Raises:
        NotFoundError: naming the nearest there is.
    """
    try:
        return SweepRecord.model_validate_json(store.read(f"sweeps/{name}/sweep.json"))
    except NotFoundError:
        known = [folder.removeprefix("sweeps/").strip("/") for folder in store.folders("sweeps/")]
        raise NotFoundError(
            f"sweep must exist, got {name!r}. {near_miss(name, known) if known else 'There are none yet.'}"
        ) from None


def read_cells(store: Store, name: str) -> list[Cell]:
    """Every finished cell, in the order of its arm and seed; an object that is no cell counts as not done."""
    cells = []
    for info in store.list(f"sweeps/{name}/cells/"):
        try:
            cells.append(Cell.model_validate_json(store.read(info.key)))
        except ValidationError:
            continue
    return sorted(cells, key=lambda c: (c.arm, c.seed))


def ledger_of(record: SweepRecord, cells: list[Cell]) -> Ledger:
    """The table and the verdict."""
    arms = {arm.name: arm.settings for arm in record.arms}
    return summarize(cells, arms=arms, metric=record.metric, higher_is_better=record.higher_is_better)


def run_lane(config: Mapping[str, Any]) -> None:
    """Train cells until none is left unclaimed. Runs as one Ray Tune trial."""
    from ray import tune

    check_packages()
    store = Store(StoreSettings.model_validate(config["store"]))
    record = read_sweep(store, config["sweep"])
    done = 0
    for arm, seed in _unclaimed(store, record, attempt=config["attempt"], lane=config["lane"], lanes=config["lanes"]):
        cell = run_cell(record, arm, seed, store=store)
        _write_cell(store, record.sweep, cell)
        done += 1
        tune.report({"cells_done": done})
    if not done:
        tune.report({"cells_done": 0})


def run_cell(record: SweepRecord, arm: Arm, seed: int, *, store: Store) -> Cell:
    """Train one arm with one seed; an error becomes a failed cell, so that the others go on."""
    started = time.perf_counter()
    run = f"{record.sweep}.{arm.name}.s{seed}"
    try:
        metrics = _train_cell(arm, seed, run=run, sweep=record.sweep, store=store)
        state, error = "finished", None
    except OrchestratorError as failure:
        metrics, state, error = {}, "failed", str(failure)
    except Exception:  # whatever a cell does, the sweep goes on; the traceback is kept
        metrics, state, error = {}, "failed", traceback.format_exc(limit=-5)
    seconds = round(time.perf_counter() - started, 3)
    return Cell(arm=arm.name, seed=seed, run=run, state=state, metrics=metrics, seconds=seconds, error=error)


def _train_cell(arm: Arm, seed: int, *, run: str, sweep: str, store: Store) -> dict[str, float]:
    import torch

    from orchestrator.checkpoint import checkpoint_prefixes
    from orchestrator.trainer import World, evaluate, fit

    train = arm.experiment.train.model_copy(update={"seed": seed})
    experiment = arm.experiment.model_copy(update={"train": train, "sweep": None})
    dataset = dataset_of(experiment, store)
    record = plan_run(experiment, dataset, run=run, gpus=cluster_resources().get("GPU", 0))
    record = record.model_copy(update={"sweep": sweep})
    update_run(store, record)
    if experiment.scaling.max_workers > 1:
        metrics: dict[str, float] = fit_on_ray(record, store)["metrics"]
    else:
        world = World(device=torch.device("cuda" if record.techniques.processor == "gpu" else "cpu"))
        trainer = fit(record, store=store, world=world, checkpoints="last")
        metrics = evaluate(trainer, record.evaluated_on)
    prefix = next(checkpoint_prefixes(store, run=run))
    update_run(store, record.model_copy(update={"state": "finished", "metrics": metrics, "checkpoint": prefix}))
    return metrics


def _unclaimed(store: Store, record: SweepRecord, *, attempt: str, lane: int, lanes: int) -> Iterator[tuple[Arm, int]]:
    """Claim one open cell after the other; lanes begin at different places, so that they seldom collide."""
    done = {(c.arm, c.seed) for c in read_cells(store, record.sweep)}
    open_cells = [(a, s) for s in record.seeds for a in record.arms if (a.name, s) not in done]
    start = len(open_cells) * lane // lanes
    for arm, seed in open_cells[start:] + open_cells[:start]:
        try:
            # the lane's number tells, after a lost answer, whose claim it is that exists
            claim = f"sweeps/{record.sweep}/claims/{attempt}/{arm.name}-s{seed}"
            store.write(claim, str(lane).encode(), only_if_absent=True)
        except PreconditionError:
            continue
        yield arm, seed


def _write_cell(store: Store, sweep: str, cell: Cell) -> None:
    """Append to the ledger. A cell that is there already stays: the first result counts."""
    try:
        store.write(_cell_key(sweep, cell), cell.model_dump_json().encode(), only_if_absent=True)
    except PreconditionError:
        if _is_cell(store.read(_cell_key(sweep, cell))):
            return
        store.write(_cell_key(sweep, cell), cell.model_dump_json().encode())  # what was there was damaged


def _cell_key(sweep: str, cell: Cell) -> str:
    return f"sweeps/{sweep}/cells/{cell.arm}-s{cell.seed}.json"


def _is_cell(body: bytes) -> bool:
    try:
        Cell.model_validate_json(body)
    except ValidationError:
        return False
    return True


def _run_cells(
    record: SweepRecord, *, store: Store, on_progress: Callable[[SweepProgress], None] | None
) -> SweepResult:
    started = time.perf_counter()
    total = len(record.arms) * len(record.seeds)
    attempt = secrets.token_hex(4)
    todo = total - len(read_cells(store, record.sweep))
    if todo:
        with polling(_teller(store, record.sweep, total, on_progress)):
            _run_lanes(record, store.settings, attempt=attempt, lanes=_num_lanes(record, todo))
    cells = read_cells(store, record.sweep)
    if len(cells) < total:
        raise RunUnfinishedError(
            f"sweep {record.sweep} must finish {total} trainings, got {len(cells)}. "
            f"Continue it: orchestrator sweep --resume {record.sweep}."
        )
    ledger = ledger_of(record, cells)
    finished = record.model_copy(update={"state": "finished"})
    store.write(f"sweeps/{record.sweep}/result.json", ledger.model_dump_json(indent=1).encode())
    store.write(f"sweeps/{record.sweep}/sweep.json", _body(finished))
    return SweepResult(record.sweep, ledger, cells, finished, time.perf_counter() - started)


def _run_lanes(record: SweepRecord, store: StoreSettings, *, attempt: str, lanes: int) -> None:
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses result files that we do not let it write
    from ray import tune

    shared = {"store": store.model_dump(mode="json"), "sweep": record.sweep, "attempt": attempt, "lanes": lanes}
    with tempfile.TemporaryDirectory(prefix="orchestrator-sweep-") as folder:
        results = tune.Tuner(
            tune.with_resources(run_lane, _lane_resources(record)),
            param_space={**shared, "lane": tune.grid_search(list(range(lanes)))},
            tune_config=tune.TuneConfig(max_concurrent_trials=lanes),
            # Tune's own state holds pickles: it stays on the driver's disk, and ours is in the store
            run_config=tune.RunConfig(name=record.sweep, storage_path=folder, verbose=0),
        ).fit()
    errors = [str(e) for e in results.errors]
    if len(errors) == lanes:
        raise RunUnfinishedError(f"sweep {record.sweep} must keep a lane alive, got: {errors[0].strip()}")


def _num_lanes(record: SweepRecord, todo: int) -> int:
    """As many as the cluster has room for, the file allows and the work needs."""
    resources, need = cluster_resources(), _cell_resources(record)
    room = min(int(resources.get(kind, 0) // amount) for kind, amount in need.items() if amount)
    asked = record.experiment.sweep.concurrency if record.experiment.sweep else None
    return max(1, min(asked or room, room, todo))


def _cell_resources(record: SweepRecord) -> dict[str, float]:
    """The most that one cell of any arm needs at a time."""
    scaling = [arm.experiment.scaling for arm in record.arms]
    gpu = any(arm.experiment.techniques.processor == "gpu" for arm in record.arms)
    cpus = max(s.max_workers * s.cpus_per_worker for s in scaling)
    return {"CPU": cpus} | ({"GPU": max(s.max_workers for s in scaling)} if gpu else {})


def _lane_resources(record: SweepRecord) -> dict[str, float]:
    """A lane that trains in its own process holds the cell's share; one that starts workers leaves all to them."""
    if any(arm.experiment.scaling.max_workers > 1 for arm in record.arms):
        return {"cpu": 0, "memory": 1}  # bytes: Tune refuses a trial that asks for nothing
    return {kind.lower(): amount for kind, amount in _cell_resources(record).items()}


def _checked(arm: Arm, store: Store, gpus: float) -> RunRecord:
    """Validate one arm against its dataset and the cluster, as a single training would be."""
    scaling = arm.experiment.scaling
    dataset = dataset_of(arm.experiment, store)
    record = plan_run(arm.experiment, dataset, gpus=gpus)
    gpus_needed = scaling.max_workers if record.techniques.processor == "gpu" else 0
    require_resources(cpus=scaling.max_workers * scaling.cpus_per_worker, gpus=gpus_needed)
    return describe(record, dataset)[0]


def _sweep_record(experiment: Experiment, arms: list[Arm], first: RunRecord, name: str | None) -> SweepRecord:
    assert experiment.sweep is not None
    metric = experiment.sweep.metric or first.primary_metric
    known = {"accuracy": True, "loss": False, "rmse": False, "mse": False, "mae": False}
    if metric not in known:
        raise ConfigError(f"sweep.metric must be a metric of the task, got {metric!r}. {near_miss(metric, known)}")
    seed = experiment.train.seed
    return SweepRecord(
        sweep=name or f"{first.run}-sweep"[:50],
        state="running",
        created=utc_now(),
        experiment=experiment,
        arms=arms,
        seeds=list(range(seed, seed + experiment.sweep.seeds)),
        metric=metric,
        higher_is_better=known[metric],
    )


def _check_names(vary: Mapping[str, list[Any]]) -> None:
    known = {name for name, _ in setting_names()} | {"techniques"}
    for name in vary:
        if name not in known or name.startswith(("sweep", "train.seed")):
            raise ConfigError(f"sweep.vary.{name} must name a setting, got {name!r}. {near_miss(name, known)}")


def _applicable(settings: dict[str, Any], experiment: Experiment) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Split an arm's settings into those that apply and the names of those that its model lacks."""
    without = {k: v for k, v in settings.items() if k != ACTIVATION}
    if ACTIVATION not in settings or has_activation(_with_settings(experiment, without).model):
        return settings, ()
    return without, (ACTIVATION,)


def _with_settings(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    values = experiment.model_dump(mode="json", exclude_unset=True)
    for name, value in settings.items():
        set_dotted(values, name, value)
    arm = ", ".join(f"{k}={v}" for k, v in settings.items())
    return validate(Document(f"sweep.vary ({arm})", values, {}))


def _body(record: SweepRecord) -> bytes:
    return record.model_dump_json(indent=1).encode()


def _teller(
    store: Store, sweep: str, total: int, on_progress: Callable[[SweepProgress], None] | None
) -> Callable[[], None]:
    """A function that calls ``on_progress`` for every cell that has come into the store since the last call."""
    seen: set[str] = set()
    failed = 0

    def look() -> None:
        nonlocal failed
        keys = {info.key for info in store.list(f"sweeps/{sweep}/cells/")} if on_progress else set()
        for key in sorted(keys - seen):
            seen.add(key)
            if not _is_cell(body := store.read(key)):
                continue  # damaged: a lane will do it again
            newest = Cell.model_validate_json(body)
            failed += newest.state == "failed"
            assert on_progress
            on_progress(SweepProgress(len(seen), failed, total, newest))

    return look

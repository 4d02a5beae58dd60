"""Does what is open of a sweep: tunes learning rates, runs the lanes, writes the result."""

import math
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

from cluster.config import StoreSettings
from cluster.errors import RunInterruptedError, RunUnfinishedError
from cluster.head_watch import continued_by
from cluster.lazy import importing
from cluster.process.typed import typed
from cluster.s3.store import Store
from cluster.session import cluster_resources, num_nodes, require_resources
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.driving.following import following
from orchestrator.driving.plan import code_version, dataset_of, plan_run, warn_of_left_out
from orchestrator.driving.room import prepare
from orchestrator.driving.tune import quiet_tune
from orchestrator.driving.workers import call_in_worker
from orchestrator.evidence.record import Cell, busy_seconds
from orchestrator.runs.record import RunRecord
from orchestrator.sweeping.budget import Prediction, probe
from orchestrator.sweeping.lane import run_lanes, trains_in_workers
from orchestrator.sweeping.plan import cell_resources, num_lanes
from orchestrator.sweeping.record import (
    Arm,
    SweepProgress,
    SweepRecord,
    SweepResult,
    body_of,
    how_to_continue,
    ledger_of,
    read_cells,
)
from orchestrator.sweeping.tasks import CellTask, LanePlan, Launch, finish_tasks, packs_of, read_stored
from orchestrator.sweeping.tuning import Trial, Tuned, choose, learning_rates
from orchestrator.training.worker import describe_all

LANE_RESTARTS = 3  # by Tune, which is faster than another round of all lanes


def finish_sweep(
    record: SweepRecord,
    runs: Mapping[str, RunRecord],
    *,
    store: Store,
    launch: Launch,
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> SweepResult:
    """Do what is open of a sweep, and write down what it showed.

    Args:
        record: of the sweep.
        runs: what each arm trains, without the learning rate that tuning may choose.
        store: where everything is.
        launch: see `orchestrator.sweeping.tasks.finish_tasks`.
        on_progress: see `sweep`.
    """
    started, clock = time.time(), time.perf_counter()
    tasks = _cell_tasks(record)
    trials = _tuning_tasks(record, runs, store)
    folders = sorted({task.folder for task in trials + tasks}, reverse=True)  # the tuning comes first
    read, tell = partial(_cells, store, record.sweep, folders=folders), _told(on_progress, total=len(trials + tasks))
    try:
        again = continued_by(typed("sweep", "--resume", record.sweep), what=f"sweep {record.sweep}")
        with again, following(read, tell):
            if trials and any(arm.tuned is None for arm in record.arms):
                record = _tune(record, runs, trials, store=store, launch=launch)
            _finish(record, runs, tasks, store=store, launch=launch)
    except KeyboardInterrupt:
        raise RunInterruptedError(f"sweep {record.sweep} was stopped. {how_to_continue(record)}") from None
    cells = read_cells(store, record.sweep)
    ledger = ledger_of(record, cells)
    finished = record.model_copy(update={"state": "finished"})
    store.write(f"sweeps/{record.sweep}/result.json", ledger.model_dump_json(indent=1).encode())
    store.write(f"sweeps/{record.sweep}/sweep.json", body_of(finished))
    earlier = busy_seconds([cell for cell in cells if cell.started is not None and cell.started < started]) or 0.0
    return SweepResult(record.sweep, ledger, cells, finished, earlier + time.perf_counter() - clock)


def predict(record: SweepRecord, runs: Mapping[str, RunRecord], store: Store) -> Prediction:
    """Predict from a short probe what a sweep will take."""
    assert record.experiment.sweep is not None
    return probe(
        record.sweep,
        runs,
        store=store,
        launch=partial(launch_lanes, record, runs, store.settings),
        lanes=num_lanes(record.experiment, runs, len(record.arms) * len(record.seeds)),
        trials=record.experiment.sweep.tune_learning_rate or 0,
        prices=record.dollars_per_hour,
        together=record.together,
    )


def _cell_tasks(record: SweepRecord) -> list[CellTask]:
    """Every arm with every seed; all arms are begun before an arm comes again."""
    return [
        CellTask(name=f"{arm.name}-s{seed}", arm=arm.name, seed=seed, pack=_pack(record, arm.name, place))
        for place, seed in enumerate(record.seeds)
        for arm in record.arms
    ]


def _pack(record: SweepRecord, arm: str, place: int) -> str | None:
    """Name of the pack of an arm's task with its ``place``-th seed."""
    size = record.together.get(arm)
    return f"{arm}-{place // size}" if size else None


def _tuning_tasks(record: SweepRecord, runs: Mapping[str, RunRecord], store: Store) -> list[CellTask]:
    """The trainings that choose learning rates, all with one seed that the sweep does not use."""
    tasks = []
    for arm in record.arms if record.experiment.sweep and record.experiment.sweep.tune_learning_rate else ():
        data = runs[arm.name].dataset
        judged_on = open_dataset(store, data.name, version=data.version).manifest.judged_on
        tasks += [
            CellTask(
                name=f"{arm.name}-lr{i}",
                arm=arm.name,
                seed=max(record.seeds) + 1,
                folder="tuning",
                pack=f"{arm.name}-lr" if arm.name in record.together else None,
                learning_rate=rate,
                evaluated_on=judged_on,
            )
            for i, rate in enumerate(_rates(record))
        ]
    return tasks


def _rates(record: SweepRecord) -> list[float]:
    assert record.experiment.sweep is not None
    trials = record.experiment.sweep.tune_learning_rate
    return learning_rates(record.experiment.train.learning_rate, trials=trials) if trials else []


def _tune(
    record: SweepRecord, runs: Mapping[str, RunRecord], tasks: Sequence[CellTask], *, store: Store, launch: Launch
) -> SweepRecord:
    """Choose every arm's learning rate, and write it into the sweep's record."""
    _finish(record, runs, tasks, store=store, launch=launch)
    found = {cell.run: cell for cell in read_stored(store, record.sweep, folder="tuning").cells}
    center = record.experiment.train.learning_rate
    arms = []
    for arm in record.arms:
        own = [task for task in tasks if task.arm == arm.name]
        trials = [_trial(task, found[f"{record.sweep}.{task.name}"], record.metric) for task in own]
        rate = choose(trials, center=center, higher_is_better=record.higher_is_better)
        tuned = Tuned(learning_rate=rate, seed=own[0].seed, split=own[0].evaluated_on or "test", trials=trials)
        train = arm.experiment.train.model_copy(update={"learning_rate": rate})
        experiment = arm.experiment.model_copy(update={"train": train})
        arms.append(arm.model_copy(update={"experiment": experiment, "tuned": tuned}))
    record = record.model_copy(update={"arms": arms})
    store.write(f"sweeps/{record.sweep}/sweep.json", body_of(record))
    return record


def _trial(task: CellTask, cell: Cell, metric: str) -> Trial:
    value = cell.metrics.get(metric, math.nan)
    assert task.learning_rate is not None
    return Trial(learning_rate=task.learning_rate, value=value if math.isfinite(value) else None, seconds=cell.seconds)


def _finish(
    record: SweepRecord, runs: Mapping[str, RunRecord], tasks: Sequence[CellTask], *, store: Store, launch: Launch
) -> None:
    assert record.experiment.sweep is not None
    try:
        finish_tasks(
            tasks,
            sweep=record.sweep,
            arms={arm.name: runs[arm.name].model_copy(update={"experiment": arm.experiment}) for arm in record.arms},
            timeout_minutes=record.experiment.sweep.cell_timeout_minutes,
            store=store,
            launch=launch,
        )
    except RunUnfinishedError as error:
        raise RunUnfinishedError(f"{error} {how_to_continue(record)}") from None


def launch_lanes(record: SweepRecord, runs: Mapping[str, RunRecord], store: StoreSettings, plan: LanePlan) -> str:
    """Run the lanes of one attempt to their end; return an error of one, if any had one."""
    from ray import tune

    lanes = num_lanes(record.experiment, runs, len(packs_of(plan)))
    each = lanes if trains_in_workers(runs) and num_nodes() == 1 else 1  # a trial's process takes seconds to start
    shared = {"store": store.model_dump(mode="json"), "plan": plan.key, "num_lanes": lanes}
    trials = [list(range(first, first + each)) for first in range(0, lanes, each)]
    with quiet_tune(), tempfile.TemporaryDirectory(prefix="orchestrator-sweep-") as folder:
        results = tune.Tuner(
            tune.with_resources(run_lanes, _trial_resources(runs, lanes=each)),
            param_space={**shared, "lanes": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(max_concurrent_trials=len(trials)),
            run_config=tune.RunConfig(
                name=record.sweep,
                storage_path=folder,  # Tune's own state holds pickles: it stays on the driver's disk
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=LANE_RESTARTS),
            ),
        ).fit()
    return next((str(error) for error in results.errors), "")


def _trial_resources(runs: Mapping[str, RunRecord], *, lanes: int) -> dict[str, float]:
    """What its cells take at a time; where they start several workers each, it leaves all to these."""
    if any(run.experiment.scaling.max_workers > 1 for run in runs.values()):
        return {"cpu": 0, "memory": 1}  # bytes: Tune refuses a trial that asks for nothing
    return {kind.lower(): amount * lanes for kind, amount in cell_resources(runs).items()}


def planned_runs(arms: Sequence[Arm], store: Store) -> dict[str, RunRecord]:
    """Validate every arm against its dataset and the cluster, as a single training would be.

    Meanwhile Ray Tune is imported, and the processes that will train are started.
    """
    with importing("ray.tune"):
        runs = _plan_runs(arms, store, gpus=cluster_resources().get("GPU", 0))
        _start_lanes_ahead(arms, runs)
        threads = next(iter(runs.values())).experiment.scaling.num_threads
        records = [run.model_dump(mode="json") for run in runs.values()]
        described = call_in_worker(describe_all, records, store.settings.model_dump(mode="json"), threads=threads)
    warn_of_left_out(described)
    return dict(zip(runs, described, strict=True))


def _plan_runs(arms: Sequence[Arm], store: Store, *, gpus: float) -> dict[str, RunRecord]:
    """What each arm trains.

    Raises:
        ConfigError, ClusterError: an arm does not fit its dataset or the cluster.
    """
    datasets: dict[tuple[str, str | None], Dataset] = {}
    runs, code = {}, code_version()
    for arm in arms:
        data, scaling = arm.experiment.data, arm.experiment.scaling
        if (data.name, data.version) not in datasets:
            datasets[data.name, data.version] = dataset_of(arm.experiment, store)
        run = plan_run(arm.experiment, datasets[data.name, data.version], gpus=gpus, code=code)
        gpus_needed = scaling.max_workers if run.techniques.processor == "gpu" else 0
        require_resources(cpus=scaling.max_workers * scaling.cpus_per_worker, gpus=gpus_needed)
        runs[arm.name] = run.model_copy(update={"left_out": arm.left_out})
    return runs


def _start_lanes_ahead(arms: Sequence[Arm], runs: Mapping[str, RunRecord]) -> None:
    """Start the processes that will train, in the background."""
    experiment = arms[0].experiment
    seeds = experiment.sweep.seeds if experiment.sweep else 1
    lanes = num_lanes(experiment, runs, len(arms) * seeds)
    first = next(iter(runs.values()))
    prepare(first, workers=lanes * first.experiment.scaling.max_workers)


def _cells(store: Store, sweep: str, *, folders: Sequence[str]) -> dict[Hashable, Cell]:
    return {cell.run: cell for folder in folders for cell in read_stored(store, sweep, folder=folder).cells}


def _told(on_progress: Callable[[SweepProgress], None] | None, *, total: int) -> Callable[[Cell], None] | None:
    """A function that calls ``on_progress`` with a new cell, and with how many have come before it."""
    if on_progress is None:
        return None
    cells: list[Cell] = []

    def tell(cell: Cell) -> None:
        cells.append(cell)
        on_progress(SweepProgress(len(cells), sum(c.state == "failed" for c in cells), total, cell))

    return tell

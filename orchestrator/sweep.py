"""Compares many trainings: the arms of a design times the seeds, on a few long-lived Ray Tune trials.

    sweeps/SWEEP/
        sweep.json    the experiment, the arms, the state
        tuning/       trainings that choose learning rates, as cells
        cells/        see `orchestrator/lanes.py`
        result.json   the ledger

A trial costs Ray Tune seconds, a small training takes less: so a trial runs *lanes* that train one cell after the
other, in workers that may be warm; and seeds of one arm are a batched model where that pays. Since results do not
depend on where a cell runs, killing the driver loses only the cells in work, and `resume` does the rest. A cell whose
process dies is tried once more.
"""

import importlib
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from cluster.config import StoreSettings
from cluster.errors import ConfigError, NotFoundError, RunInterruptedError, RunUnfinishedError
from cluster.head_watch import continued_by
from cluster.session import cluster_resources, num_nodes, ray_session, require_resources
from cluster.storage import Store, open_store
from cluster.stored_json import read_model
from models.config import has_activation
from orchestrator.budget import Prediction, budget_text, prediction_text, probe, seeds_within
from orchestrator.config import Experiment, SweepConfig
from orchestrator.configfile import Document, near_miss, set_dotted, setting_names, validate
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.design import Design, Settings, plan_design
from orchestrator.lanes import (
    LanePlan,
    Launch,
    Task,
    finish_tasks,
    packs_of,
    read_stored,
    run_lanes,
    trains_in_workers,
)
from orchestrator.ledger import Cell, Ledger, busy_seconds, summarize
from orchestrator.packs import choose_packing
from orchestrator.polling import polling
from orchestrator.recovery import prepare
from orchestrator.runs import RunRecord, utc_now
from orchestrator.train import code_version, dataset_of, describe, plan_run
from orchestrator.tuning import Trial, Tuned, choose, learning_rates, tuning_notes
from orchestrator.workers import call_in_worker

ACTIVATION = "techniques.activation"
MOST_SEEDS = 1000
LANE_RESTARTS = 3  # by Tune, which is faster than another round of all lanes
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep, not only this attempt
    "RAY_AIR_NEW_OUTPUT": "0",
}


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
    """At the learning rate that was chosen, once that is done."""
    tuned: Tuned | None = None
    parameters: int | None = None
    """Numbers that its model learns; ``None`` in a sweep that did not write it down."""


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
    dollars_per_hour: dict[str, float] = {}
    """Arm -> price of all workers of one training, where it is known."""
    resolution: int | None = None
    """Of a fraction of the combinations; see `orchestrator.design.Design`."""
    generators: list[str] = []
    aliases: list[str] = []
    notes: list[str] = []
    """What else the reader of the plan should know."""
    together: dict[str, int] = {}
    """Arm -> how many of its trainings are taken as one batched model; see `orchestrator/packs.py`."""
    prediction: Prediction | None = None
    """What it was expected to take, where that was asked."""


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
    """That it took. Of what was done before a `resume` only the time in which trainings ran is known."""

    def _repr_html_(self) -> str:
        """The report, in a notebook."""
        from orchestrator.report import notebook_html  # with its template engine, which a sweep itself needs not

        return notebook_html(self)


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
    design, arms = plan_sweep(experiment)
    with ray_session(address, store=store.settings):
        runs = _planned_runs(arms, store)
        record = _sweep_record(experiment, design, arms, runs, name)
        if experiment.sweep and experiment.sweep.budget:
            record = _within(experiment.sweep, _predict(record, runs, store), record)
        store.write(f"sweeps/{record.sweep}/sweep.json", _body(record), only_if_absent=True)
        if on_start:
            on_start(record)
        return finish_sweep(
            record, runs, store=store, launch=partial(_run_lanes, record, runs, store.settings), on_progress=on_progress
        )


def predict_sweep(experiment: Experiment, *, store: Store | None = None, address: str | None = None) -> SweepRecord:
    """What `sweep` would begin with, and, from a short probe, what it would take. Nothing of it stays in the store.

    Args:
        experiment: see `sweep`.
        store: see `sweep`.
        address: see `sweep`.

    Raises:
        ConfigError, StoreAccessError, ClusterError: as `sweep` would.
    """
    store = store or open_store()
    store.check()
    design, arms = plan_sweep(experiment)
    assert experiment.sweep is not None
    with ray_session(address, store=store.settings):
        runs = _planned_runs(arms, store)
        record = _sweep_record(experiment, design, arms, runs, None)
        return _within(experiment.sweep, _predict(record, runs, store), record)


def resume_sweep(
    name: str,
    *,
    store: Store | None = None,
    address: str | None = None,
    on_start: Callable[[SweepRecord], None] | None = None,
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> SweepResult:
    """Do the cells that a stopped sweep has not finished; finished ones are neither lost nor repeated.

    Args:
        name: of the sweep.
        store: see `sweep`.
        address: see `sweep`.
        on_start: see `sweep`.
        on_progress: see `sweep`.

    Raises:
        NotFoundError: there is no such sweep. Else see `sweep`.
    """
    store = store or open_store()
    store.check()
    record = read_sweep(store, name)
    with ray_session(address, store=store.settings):
        runs = _planned_runs(record.arms, store)
        if on_start:
            on_start(record)
        return finish_sweep(
            record, runs, store=store, launch=partial(_run_lanes, record, runs, store.settings), on_progress=on_progress
        )


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
        launch: see `orchestrator.lanes.finish_tasks`.
        on_progress: see `sweep`.
    """
    started, clock = time.time(), time.perf_counter()
    tasks = _cell_tasks(record)
    trials = _tuning_tasks(record, runs, store)
    folders = sorted({task.folder for task in trials + tasks}, reverse=True)  # the tuning comes first
    look = _teller(store, record.sweep, folders=folders, total=len(trials) + len(tasks), on_progress=on_progress)
    try:
        again = continued_by(f"orchestrator sweep --resume {record.sweep}", what=f"sweep {record.sweep}")
        with again, polling(look):
            if trials and any(arm.tuned is None for arm in record.arms):
                record = _tune(record, runs, trials, store=store, launch=launch)
            _finish(record, runs, tasks, store=store, launch=launch)
    except KeyboardInterrupt:
        raise RunInterruptedError(f"sweep {record.sweep} was stopped. {_continue(record)}") from None
    cells = read_cells(store, record.sweep)
    ledger = ledger_of(record, cells)
    finished = record.model_copy(update={"state": "finished"})
    store.write(f"sweeps/{record.sweep}/result.json", ledger.model_dump_json(indent=1).encode())
    store.write(f"sweeps/{record.sweep}/sweep.json", _body(finished))
    earlier = busy_seconds([cell for cell in cells if cell.started is not None and cell.started < started]) or 0.0
    return SweepResult(record.sweep, ledger, cells, finished, earlier + time.perf_counter() - clock)


def plan_sweep(experiment: Experiment) -> tuple[Design, list[Arm]]:
    """The design of `sweep.vary`, and its arms, each validated; one that differs only in what its model lacks is none.

    Raises:
        ConfigError: naming the setting or the combination that is wrong.
    """
    if experiment.sweep is None:
        raise ConfigError(
            "sweep must be given, got nothing. Add what to vary, such as sweep: {vary: {model.dropout: [0, 0.2]}}."
        )
    _check_names(experiment.sweep.vary)
    design = plan_design(
        experiment.sweep.vary,
        resolution=experiment.sweep.resolution,
        applicable=lambda settings: _applicable(settings, experiment),
    )
    arms = [Arm(**dict(arm), experiment=_with_settings(experiment, arm.settings)) for arm in design.arms]
    return design, arms


def plan_arms(experiment: Experiment) -> list[Arm]:
    """The arms of `plan_sweep`."""
    return plan_sweep(experiment)[1]


def plan_lines(record: SweepRecord) -> list[str]:
    """What a person should know of a sweep before it begins, beside its arms and seeds."""
    settings = record.experiment.sweep
    assert settings is not None
    rate = record.experiment.train.learning_rate
    lines = [*record.generators, *record.aliases, *record.notes]
    if settings.tune_learning_rate:
        lines.append(f"learning rate: tuned, {settings.tune_learning_rate} trainings for each arm")
    elif "train.learning_rate" not in settings.vary:
        lines.append(f"all arms at one learning rate ({rate:g})")
    if record.prediction:
        expected = prediction_text(record.prediction, seeds=len(record.seeds))
        within = f" of a budget of {budget_text(settings.budget)}" if settings.budget else ""
        lines.append(
            f"predicted: {expected}{within}, {record.prediction.lanes} trainings at a time; "
            f"the probe took {record.prediction.probe_seconds:.0f} s"
        )
    return lines


def dollars_spent(result: SweepResult) -> float | None:
    """On all trainings, those that chose learning rates too; ``None`` if the price of one is not known."""
    spent, prices = list(_all_seconds(result)), result.record.dollars_per_hour
    known = prices and all(arm in prices for arm, _ in spent)
    return math.fsum(seconds / 3600 * prices[arm] for arm, seconds in spent) if known else None


def _all_seconds(result: SweepResult) -> Iterator[tuple[str, float]]:
    for cell in result.cells:
        yield cell.arm, cell.seconds
    for arm in result.record.arms:
        for trial in arm.tuned.trials if arm.tuned else ():
            yield arm.name, trial.seconds


def read_sweep(store: Store, name: str) -> SweepRecord:
    """The record of a sweep.

    Raises:
        NotFoundError: naming the nearest there is.
        IntegrityError: it is damaged.
    """
    try:
        return read_model(store, f"sweeps/{name}/sweep.json", SweepRecord, what="the record of a sweep")
    except NotFoundError:
        known = [found for found in store.folders("sweeps/") if store.exists(f"sweeps/{found}/sweep.json")]
        raise NotFoundError(
            f"sweep must exist, got {name!r}. {near_miss(name, known) if known else 'There are none yet.'}"
        ) from None


def read_cells(store: Store, name: str) -> list[Cell]:
    """Every finished cell, in the order of its arm and seed; an object that is damaged counts as not done."""
    return read_stored(store, name).cells


def ledger_of(record: SweepRecord, cells: list[Cell]) -> Ledger:
    """The table, the effects and the verdict."""
    sweep = record.experiment.sweep
    assert sweep is not None
    size = max(record.together.values(), default=1)
    ledger = summarize(
        cells,
        arms={arm.name: arm.settings for arm in record.arms},
        metric=record.metric,
        higher_is_better=record.higher_is_better,
        target=sweep.target,
        dollars_per_hour=record.dollars_per_hour or None,
        factors=sweep.vary,
        parameters={arm.name: arm.parameters for arm in record.arms if arm.parameters},
        together=[record.seeds[i : i + size] for i in range(0, len(record.seeds), size)],
    )
    if "train.learning_rate" in sweep.vary:
        return ledger
    notes = tuning_notes(
        {arm.name: arm.tuned for arm in record.arms},
        metric=record.metric,
        center=record.experiment.train.learning_rate,
        dollars_per_hour=record.dollars_per_hour,
    )
    return ledger.model_copy(update={"notes": [*ledger.notes, *notes]})


def _predict(record: SweepRecord, runs: Mapping[str, RunRecord], store: Store) -> Prediction:
    assert record.experiment.sweep is not None
    return probe(
        record.sweep,
        runs,
        store=store,
        launch=partial(_run_lanes, record, runs, store.settings),
        lanes=_num_lanes(record.experiment, runs, len(record.arms) * len(record.seeds)),
        trials=record.experiment.sweep.tune_learning_rate or 0,
        prices=record.dollars_per_hour,
        together=record.together,
    )


def _within(settings: SweepConfig, prediction: Prediction, record: SweepRecord) -> SweepRecord:
    """With the seeds that the budget pays for, if there is one."""
    most = settings.seeds if settings.budget is None or "seeds" in settings.model_fields_set else MOST_SEEDS
    seeds = seeds_within(settings.budget, prediction, most=most) if settings.budget else most
    first = record.seeds[0]
    return record.model_copy(update={"seeds": list(range(first, first + seeds)), "prediction": prediction})


def _cell_tasks(record: SweepRecord) -> list[Task]:
    """Every arm with every seed; all arms are begun before an arm comes again."""
    return [
        Task(name=f"{arm.name}-s{seed}", arm=arm.name, seed=seed, pack=_pack(record, arm.name, place))
        for place, seed in enumerate(record.seeds)
        for arm in record.arms
    ]


def _pack(record: SweepRecord, arm: str, place: int) -> str | None:
    """Name of the pack of an arm's task with its ``place``-th seed."""
    size = record.together.get(arm)
    return f"{arm}-{place // size}" if size else None


def _tuning_tasks(record: SweepRecord, runs: Mapping[str, RunRecord], store: Store) -> list[Task]:
    """The trainings that choose learning rates, all with one seed that is none of the sweep's."""
    tasks = []
    for arm in record.arms if record.experiment.sweep and record.experiment.sweep.tune_learning_rate else ():
        data = runs[arm.name].dataset
        splits = open_dataset(store, data.name, version=data.version).manifest.splits
        tasks += [
            Task(
                name=f"{arm.name}-lr{i}",
                arm=arm.name,
                seed=max(record.seeds) + 1,
                folder="tuning",
                pack=f"{arm.name}-lr" if arm.name in record.together else None,
                learning_rate=rate,
                evaluated_on="validation" if "validation" in splits else "test",
            )
            for i, rate in enumerate(_rates(record))
        ]
    return tasks


def _rates(record: SweepRecord) -> list[float]:
    assert record.experiment.sweep is not None
    trials = record.experiment.sweep.tune_learning_rate
    return learning_rates(record.experiment.train.learning_rate, trials=trials) if trials else []


def _tune(
    record: SweepRecord, runs: Mapping[str, RunRecord], tasks: Sequence[Task], *, store: Store, launch: Launch
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
    store.write(f"sweeps/{record.sweep}/sweep.json", _body(record))
    return record


def _trial(task: Task, cell: Cell, metric: str) -> Trial:
    value = cell.metrics.get(metric, math.nan)
    assert task.learning_rate is not None
    return Trial(learning_rate=task.learning_rate, value=value if math.isfinite(value) else None, seconds=cell.seconds)


def _finish(
    record: SweepRecord, runs: Mapping[str, RunRecord], tasks: Sequence[Task], *, store: Store, launch: Launch
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
        raise RunUnfinishedError(f"{error} {_continue(record)}") from None


def _continue(record: SweepRecord) -> str:
    return f"Continue it: orchestrator sweep --resume {record.sweep}."


def _run_lanes(record: SweepRecord, runs: Mapping[str, RunRecord], store: StoreSettings, plan: LanePlan) -> str:
    """Run the lanes of one attempt to their end; return an error of one, if any had one."""
    os.environ |= TUNE_ENVIRONMENT
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of what it would say, we say what matters
    from ray import tune

    lanes = _num_lanes(record.experiment, runs, len(packs_of(plan)))
    each = lanes if trains_in_workers(runs) and num_nodes() == 1 else 1  # a trial's process takes seconds to start
    shared = {"store": store.model_dump(mode="json"), "plan": plan.key, "num_lanes": lanes}
    trials = [list(range(first, first + each)) for first in range(0, lanes, each)]
    with tempfile.TemporaryDirectory(prefix="orchestrator-sweep-") as folder:
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


def _num_lanes(experiment: Experiment, runs: Mapping[str, RunRecord], todo: int) -> int:
    """As many as the cluster has room for, the file allows and the work needs."""
    resources, need = cluster_resources(), _cell_resources(runs)
    room = min(int(resources.get(kind, 0) // amount) for kind, amount in need.items() if amount)
    asked = experiment.sweep.concurrency if experiment.sweep else None
    return max(1, min(asked or room, room, todo))


def _cell_resources(runs: Mapping[str, RunRecord]) -> dict[str, float]:
    """The most that one cell of any arm needs at a time."""
    scaling = [run.experiment.scaling for run in runs.values()]
    gpus = max(run.experiment.scaling.max_workers * (run.techniques.processor == "gpu") for run in runs.values())
    return {"CPU": max(s.max_workers * s.cpus_per_worker for s in scaling)} | ({"GPU": gpus} if gpus else {})


def _trial_resources(runs: Mapping[str, RunRecord], *, lanes: int) -> dict[str, float]:
    """What its cells take at a time; where they start several workers each, it leaves all to these."""
    if any(run.experiment.scaling.max_workers > 1 for run in runs.values()):
        return {"cpu": 0, "memory": 1}  # bytes: Tune refuses a trial that asks for nothing
    return {kind.lower(): amount * lanes for kind, amount in _cell_resources(runs).items()}


def _planned_runs(arms: Sequence[Arm], store: Store) -> dict[str, RunRecord]:
    """Validate every arm against its dataset and the cluster, as a single training would be."""
    ahead = threading.Thread(target=importlib.import_module, args=("ray.tune",), daemon=True)
    ahead.start()
    gpus = cluster_resources().get("GPU", 0)
    datasets: dict[tuple[str, str | None], Dataset] = {}
    runs, code = {}, code_version()
    for arm in arms:
        data, scaling = arm.experiment.data, arm.experiment.scaling
        if (data.name, data.version) not in datasets:
            datasets[data.name, data.version] = dataset_of(arm.experiment, store)
        run = plan_run(arm.experiment, datasets[data.name, data.version], gpus=gpus, code=code)
        gpus_needed = scaling.max_workers if run.techniques.processor == "gpu" else 0
        require_resources(cpus=scaling.max_workers * scaling.cpus_per_worker, gpus=gpus_needed)
        runs[arm.name] = run
    _start_lanes_ahead(arms, runs)
    threads = next(iter(runs.values())).experiment.scaling.num_threads
    records = [run.model_dump(mode="json") for run in runs.values()]
    described = call_in_worker(describe_all, records, store.settings.model_dump(mode="json"), threads=threads)
    ahead.join()  # a thread that imports must not outlive the process's other threads
    return dict(zip(runs, described, strict=True))


def _start_lanes_ahead(arms: Sequence[Arm], runs: Mapping[str, RunRecord]) -> None:
    """Begin to start the processes that will train."""
    experiment = arms[0].experiment
    seeds = experiment.sweep.seeds if experiment.sweep else 1
    lanes = _num_lanes(experiment, runs, len(arms) * seeds)
    first = next(iter(runs.values()))
    prepare(first, workers=lanes * first.experiment.scaling.max_workers)


def describe_all(records: list[dict[str, Any]], store: dict[str, Any]) -> list[RunRecord]:
    """`orchestrator.train.describe` of many runs, where PyTorch is: the driver does without it."""
    opened = Store(StoreSettings.model_validate(store))
    runs = [RunRecord.model_validate(record) for record in records]
    named = {(run.dataset.name, run.dataset.version) for run in runs}
    datasets = {(name, version): open_dataset(opened, name, version=version) for name, version in named}
    return [describe(run, datasets[run.dataset.name, run.dataset.version])[0] for run in runs]


def _sweep_record(
    experiment: Experiment, design: Design, arms: list[Arm], runs: Mapping[str, RunRecord], name: str | None
) -> SweepRecord:
    assert experiment.sweep is not None
    first = runs[arms[0].name]
    metric = experiment.sweep.metric or first.primary_metric
    known = {"accuracy": True, "loss": False, "rmse": False, "mse": False, "mae": False}
    if metric not in known:
        raise ConfigError(f"sweep.metric must be a metric of the task, got {metric!r}. {near_miss(metric, known)}")
    seed = experiment.train.seed
    lanes = _num_lanes(experiment, runs, len(arms) * experiment.sweep.seeds)
    packing = choose_packing(experiment.sweep, runs, lanes=lanes)
    return SweepRecord(
        sweep=name or f"{first.run}-sweep"[:50],
        state="running",
        created=utc_now(),
        experiment=experiment,
        arms=[_as_planned(arm, runs[arm.name]) for arm in arms],
        seeds=list(range(seed, seed + experiment.sweep.seeds)),
        metric=metric,
        higher_is_better=known[metric],
        dollars_per_hour=_prices(experiment, runs),
        resolution=design.resolution,
        generators=design.generators,
        aliases=design.aliases,
        notes=[*design.notes, packing.note],
        together=dict.fromkeys(sorted(packing.arms), packing.size),
    )


def _as_planned(arm: Arm, run: RunRecord) -> Arm:
    """Every cell reads the same data, also where a newer version is pushed before the sweep ends."""
    data = arm.experiment.data.model_copy(update={"version": run.dataset.version})
    experiment = arm.experiment.model_copy(update={"data": data})
    return arm.model_copy(update={"experiment": experiment, "parameters": run.parameters or None})


def _prices(experiment: Experiment, runs: Mapping[str, RunRecord]) -> dict[str, float]:
    assert experiment.sweep is not None
    prices = {}
    for arm, run in runs.items():
        scaling = run.experiment.scaling
        price = experiment.sweep.dollars_per_hour.get(run.techniques.processor, scaling.dollars_per_hour)
        if price is not None:
            prices[arm] = price * scaling.max_workers
    return prices


def _check_names(vary: Mapping[str, list[Any]]) -> None:
    known = {name for name, _ in setting_names()} | {"techniques"}
    for name in vary:
        if name not in known or name.startswith(("sweep", "search", "train.seed")):
            raise ConfigError(f"sweep.vary.{name} must name a setting, got {name!r}. {near_miss(name, known)}")


def _applicable(settings: Settings, experiment: Experiment) -> tuple[Settings, tuple[str, ...]]:
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
    store: Store,
    sweep: str,
    *,
    folders: Sequence[str],
    total: int,
    on_progress: Callable[[SweepProgress], None] | None,
) -> Callable[[], None]:
    """A function that calls ``on_progress`` for every cell that has come into the store since the last call."""
    seen: set[str] = set()
    failed = 0

    def look() -> None:
        nonlocal failed
        for folder in folders if on_progress else ():
            for cell in read_stored(store, sweep, folder=folder).cells:
                if cell.run in seen:
                    continue
                seen.add(cell.run)
                failed += cell.state == "failed"
                assert on_progress
                on_progress(SweepProgress(len(seen), failed, total, cell))

    return look

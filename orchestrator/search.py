"""Looks for the best model: many trainings with settings from a space, on Ray Tune. The other kind of sweep.

    searches/SEARCH/
        search.json           the experiment and the state
        trials/trial-007.json see `orchestrator/search_trial.py`
        result.json           the best trial

A sweep compares: every choice with every seed, to the last epoch. A search hunts: it tries more where it looks good,
and may stop a training early. So nothing of it goes into a ledger, which reads sweeps only.
"""

import importlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from cluster.errors import ConfigError, NotFoundError, PreconditionError, RunInterruptedError, RunUnfinishedError
from cluster.head_watch import continued_by
from cluster.session import cluster_resources, ray_session, require_resources
from cluster.storage import Store, open_store
from cluster.stored_json import read_model
from orchestrator.config import Experiment, RangeConfig
from orchestrator.configfile import near_miss
from orchestrator.polling import polling
from orchestrator.runs import Metrics, RunRecord, read_run, update_run, utc_now
from orchestrator.sealed import read_all
from orchestrator.search_space import probes
from orchestrator.search_trial import TrialRecord, finish_best, trial_name, trials_folder
from orchestrator.sweep import describe_all
from orchestrator.train import dataset_of, plan_run
from orchestrator.workers import call_in_worker

HIGHER_IS_BETTER = {"accuracy": True, "loss": False, "rmse": False, "mse": False, "mae": False}
STATES = ("finished", "stopped", "failed")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SearchRecord(_Frozen):
    """`search.json`."""

    format_version: Literal[1] = 1
    search: str
    state: Literal["running", "finished"]
    created: str
    experiment: Experiment
    """With the version of the data that all trials read."""
    metric: str
    higher_is_better: bool
    judged_on: str
    """Split that the metric is of."""


class SearchProgress(NamedTuple):
    """How far a search is."""

    done: int
    total: int
    counts: dict[str, int]
    """Trials by their state."""
    best: TrialRecord | None


class SearchResult(NamedTuple):
    """What a search leaves behind."""

    search: str
    record: SearchRecord
    trials: list[TrialRecord]
    """The best first."""
    best: TrialRecord | None
    """Of those that were trained to the end."""
    metrics: Metrics
    """Of the best one on the test split."""
    seconds: float


class _Plan(NamedTuple):
    """What all trials have in common."""

    base: RunRecord
    gpus: float
    gpu_available: bool


def search(
    experiment: Experiment,
    *,
    store: Store | None = None,
    address: str | None = None,
    name: str | None = None,
    on_start: Callable[[SearchRecord], None] | None = None,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> SearchResult:
    """Train `search.trials` models with settings of `search.space`, and say which is the best.

    Args:
        experiment: with a `search` group.
        store: see `orchestrator.train.train`.
        address: see `orchestrator.train.train`.
        name: of the new search; default: made of dataset, model and time.
        on_start: called once everything is checked, before anything starts.
        on_progress: called whenever trials have ended.

    Raises:
        ConfigError, StoreAccessError, ClusterError: before anything starts.
        RunUnfinishedError: some trials could not be done; `resume_search` does them.
    """
    store = store or open_store()
    store.check()
    tried = probes(experiment)
    with ray_session(address, store=store.settings):
        plan = _planned(experiment, tried, store)
        record = _search_record(experiment, plan.base, store, name)
        try:
            store.write(f"searches/{record.search}/search.json", _body(record), only_if_absent=True)
        except PreconditionError:
            raise ConfigError(
                f"search must have a new name, got {record.search!r}. {_continue(record.search)}"
            ) from None
        return _finish(record, plan, store, on_start=on_start, on_progress=on_progress)


def resume_search(
    name: str,
    *,
    store: Store | None = None,
    address: str | None = None,
    on_start: Callable[[SearchRecord], None] | None = None,
    on_progress: Callable[[SearchProgress], None] | None = None,
) -> SearchResult:
    """Do the trials that a stopped search has not ended; those that have ended are neither lost nor repeated.

    Args:
        name: of the search.
        store: see `search`.
        address: see `search`.
        on_start: see `search`.
        on_progress: see `search`.

    Raises:
        NotFoundError: there is no such search. Else see `search`.
    """
    store = store or open_store()
    store.check()
    record = read_search(store, name)
    with ray_session(address, store=store.settings):
        plan = _planned(record.experiment, probes(record.experiment), store)
        return _finish(record, plan, store, on_start=on_start, on_progress=on_progress)


def read_search(store: Store, name: str) -> SearchRecord:
    """The record of a search.

    Raises:
        NotFoundError: naming the nearest there is.
        IntegrityError: it is damaged.
    """
    try:
        return read_model(store, f"searches/{name}/search.json", SearchRecord, what="the record of a search")
    except NotFoundError:
        known = [found for found in store.folders("searches/") if is_search(store, found)]
        raise NotFoundError(
            f"search must exist, got {name!r}. {near_miss(name, known) if known else 'There are none yet.'}"
        ) from None


def is_search(store: Store, name: str) -> bool:
    """Whether a name is that of a search, and not of a sweep."""
    return store.exists(f"searches/{name}/search.json")


def read_trials(store: Store, name: str) -> list[TrialRecord]:
    """Every trial that has ended, in the order of their numbers; an object that is damaged counts as not done."""
    found = read_all(store, trials_folder(name), TrialRecord, kind="trial").values()
    return sorted((trial for trial in found if trial), key=lambda trial: trial.number)


def read_result(store: Store, name: str) -> SearchResult:
    """What a search has found so far; how long it took is not known."""
    record, trials = read_search(store, name), read_trials(store, name)
    best = best_of(trials, higher_is_better=record.higher_is_better)
    run = read_run(store, best.run) if best else None
    metrics = run.metrics if run and run.evaluated_on == "test" else {}
    return _result(record, trials, metrics, seconds=float("nan"))


def ranked(trials: Iterable[TrialRecord], *, higher_is_better: bool) -> list[TrialRecord]:
    """The best first; those that were stopped after those that finished, and what failed last."""
    sign = -1 if higher_is_better else 1

    def order(trial: TrialRecord) -> tuple[int, float, int]:
        return STATES.index(trial.state), 0.0 if trial.value is None else sign * trial.value, trial.number

    return sorted(trials, key=order)


def best_of(trials: Iterable[TrialRecord], *, higher_is_better: bool) -> TrialRecord | None:
    """The best of those that were trained to the end; of equals, the first."""
    finished = [trial for trial in trials if trial.state == "finished"]
    return next(iter(ranked(finished, higher_is_better=higher_is_better)), None)


def space_rows(experiment: Experiment) -> list[tuple[str, str]]:
    """Every setting of the space, and in words what it may be."""
    assert experiment.search is not None
    return [(name, _domain_text(domain)) for name, domain in experiment.search.space.items()]


def plan_lines(record: SearchRecord) -> list[str]:
    """What a person should know of a search before it begins."""
    settings = record.experiment.search
    assert settings is not None
    lines = [f"{name}: {text}" for name, text in space_rows(record.experiment)]
    best = "highest" if record.higher_is_better else "lowest"
    lines.append(f"best: the {best} {record.metric} of the {record.judged_on} split after the last epoch")
    if record.judged_on == "test":
        lines.append("the dataset has no validation split: the test split chooses, and so flatters the best trial")
    if settings.concurrency == 1 and settings.method != "pbt":
        lines.append(f"one trial at a time: search.seed {settings.seed} leads to the same trials again")
    return lines


def _finish(
    record: SearchRecord,
    plan: _Plan,
    store: Store,
    *,
    on_start: Callable[[SearchRecord], None] | None,
    on_progress: Callable[[SearchProgress], None] | None,
) -> SearchResult:
    if on_start:
        on_start(record)
    started = time.perf_counter()
    try:
        again = continued_by(f"orchestrator sweep --resume {record.search}", what=f"search {record.search}")
        with again, polling(_teller(store, record, on_progress)):
            _run_open(record, plan, store)
    except KeyboardInterrupt:
        raise RunInterruptedError(f"search {record.search} was stopped. {_continue(record.search)}") from None
    trials = read_trials(store, record.search)
    metrics = _judge(record, trials, store)
    finished = record.model_copy(update={"state": "finished"})
    result = _result(finished, trials, metrics, seconds=time.perf_counter() - started)
    store.write_json(f"searches/{record.search}/result.json", _summary(result))
    store.write(f"searches/{record.search}/search.json", _body(finished))
    return result


def _run_open(record: SearchRecord, plan: _Plan, store: Store) -> None:
    """Run every trial that has not ended."""
    settings = record.experiment.search
    assert settings is not None
    known = read_trials(store, record.search)
    numbers = sorted(set(range(settings.trials)) - {trial.number for trial in known})
    if not numbers:
        return
    from orchestrator.search_tune import run_trials  # imports Ray Tune, which takes seconds

    resources, room = _resources(record.experiment, plan)
    error = run_trials(
        record.experiment,
        base=plan.base.model_copy(update={"run": record.search, "evaluated_on": record.judged_on}),
        metric=record.metric,
        higher_is_better=record.higher_is_better,
        gpu_available=plan.gpu_available,
        numbers=numbers,
        known=known,
        store=store,
        concurrency=max(1, min(settings.concurrency or room, room, len(numbers))),
        resources=resources,
    )
    done = len(read_trials(store, record.search))
    if done < settings.trials:
        raise RunUnfinishedError(
            f"search {record.search} must end {settings.trials} trials, got {done}. "
            f"{error.strip() or 'The store did not answer.'} {_continue(record.search)}"
        )


def _resources(experiment: Experiment, plan: _Plan) -> tuple[dict[str, float], int]:
    """What a trial reserves, and how many have room.

    With `pbt` trials copy each other through a folder of Tune's on the driver's machine, so they stay there.
    """
    need = {"CPU": experiment.scaling.cpus_per_worker} | ({"GPU": plan.gpus} if plan.gpus else {})
    if experiment.search is None or experiment.search.method != "pbt":
        has = cluster_resources()
        return need, min(int(has.get(kind, 0) // amount) for kind, amount in need.items())
    here, has = _this_node()
    room = min(int(has.get(kind, 0) // amount) for kind, amount in need.items())
    limit = experiment.search.concurrency
    return need | {here: int(1e4 / limit) / 1e4 if limit else 0.001}, room


def _this_node() -> tuple[str, dict[str, float]]:
    """Name of the resource that only the driver's node has, and all that this node has."""
    ray: Any = importlib.import_module("ray")
    own = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == own)
    return f"node:{node['NodeManagerAddress']}", dict(node["Resources"])


def _planned(experiment: Experiment, tried: list[Experiment], store: Store) -> _Plan:
    """Check the ends of the space against the dataset and the cluster, as single trainings would be."""
    ahead = threading.Thread(target=importlib.import_module, args=("ray.tune",), daemon=True)
    ahead.start()
    dataset, gpus = dataset_of(experiment, store), cluster_resources().get("GPU", 0)
    runs = [plan_run(one, dataset, gpus=gpus) for one in tried]
    need = 1.0 if any(run.techniques.processor == "gpu" for run in runs) else 0.0
    require_resources(cpus=experiment.scaling.cpus_per_worker, gpus=need)
    bodies = [run.model_dump(mode="json") for run in runs]
    described = call_in_worker(describe_all, bodies, store.settings.model_dump(mode="json"), threads=1)
    ahead.join()  # a thread that imports must not outlive the process's other threads
    judged_on = "validation" if "validation" in dataset.manifest.splits else "test"
    return _Plan(described[0].model_copy(update={"evaluated_on": judged_on}), need, gpus >= 1)


def _search_record(experiment: Experiment, base: RunRecord, store: Store, name: str | None) -> SearchRecord:
    assert experiment.search is not None
    metric = experiment.search.metric or base.primary_metric
    if metric not in HIGHER_IS_BETTER:
        raise ConfigError(
            f"search.metric must be a metric of the task, got {metric!r}. {near_miss(metric, HIGHER_IS_BETTER)}"
        )
    search = name or f"{base.run}-search"[:50]
    if store.exists(f"sweeps/{search}/sweep.json"):
        raise ConfigError(f"search must have a new name, got {search!r}, which is a sweep. Name another.")
    data = experiment.data.model_copy(update={"version": base.dataset.version})
    return SearchRecord(
        search=search,
        state="running",
        created=utc_now(),
        experiment=experiment.model_copy(update={"data": data}),
        metric=metric,
        higher_is_better=HIGHER_IS_BETTER[metric],
        judged_on=base.evaluated_on,
    )


def _judge(record: SearchRecord, trials: list[TrialRecord], store: Store) -> Metrics:
    """Metrics of the best trial on the test split, which its run is then known by."""
    best = best_of(trials, higher_is_better=record.higher_is_better)
    settings = record.experiment.search
    assert settings is not None
    if best is None:
        return {}
    copied = [trial.run for trial in trials] if settings.method == "pbt" else []
    metrics = call_in_worker(finish_best, best.run, store.settings.model_dump(mode="json"), copied, threads=1)
    run = read_run(store, best.run)
    update_run(store, run.model_copy(update={"metrics": metrics, "evaluated_on": "test"}))
    return metrics


def _result(record: SearchRecord, trials: list[TrialRecord], metrics: Metrics, *, seconds: float) -> SearchResult:
    return SearchResult(
        search=record.search,
        record=record,
        trials=ranked(trials, higher_is_better=record.higher_is_better),
        best=best_of(trials, higher_is_better=record.higher_is_better),
        metrics=metrics,
        seconds=seconds,
    )


def _summary(result: SearchResult) -> dict[str, Any]:
    """`result.json`."""
    best = result.best
    return {
        "format_version": 1,
        "best": best and trial_name(best.number),
        "run": best and best.run,
        "values": best and best.values,
        "metric": result.record.metric,
        "value": best and best.value,
        "judged_on": result.record.judged_on,
        "test_metrics": result.metrics,
        "trials": counts_of(result.trials),
        "seconds": round(result.seconds, 3),
    }


def counts_of(trials: Iterable[TrialRecord]) -> dict[str, int]:
    """How many trials ended in which way."""
    states: list[str] = [trial.state for trial in trials]
    return {state: states.count(state) for state in STATES}


def _teller(
    store: Store, record: SearchRecord, on_progress: Callable[[SearchProgress], None] | None
) -> Callable[[], None]:
    """A function that calls ``on_progress`` for every trial that has come into the store since the last call."""
    seen: dict[int, TrialRecord] = {}
    total = record.experiment.search.trials if record.experiment.search else 0

    def look() -> None:
        for trial in read_trials(store, record.search) if on_progress else ():
            if trial.number in seen:
                continue
            seen[trial.number] = trial
            trials = list(seen.values())
            best = best_of(trials, higher_is_better=record.higher_is_better)
            assert on_progress
            on_progress(SearchProgress(len(trials), total, counts_of(trials), best))

    return look


def _domain_text(domain: RangeConfig | list[Any]) -> str:
    if isinstance(domain, list):
        return "one of " + ", ".join(map(str, domain))
    details = (["logarithmic"] if domain.scale == "log" else []) + ([f"step {domain.step:g}"] if domain.step else [])
    return ", ".join([f"{domain.low:g} to {domain.high:g}", *details])


def _continue(search: str) -> str:
    return f"Continue it: orchestrator sweep --resume {search}."


def _body(record: SearchRecord) -> bytes:
    return record.model_dump_json(indent=1).encode()

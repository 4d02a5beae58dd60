"""Does the trials of a search that are open, judges the best one, and writes the result."""

import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

from cluster.errors import RunInterruptedError, RunUnfinishedError
from cluster.head_watch import continued_by
from cluster.lazy import imported, importing
from cluster.process.typed import typed
from cluster.s3.store import Store
from cluster.session import cluster_resources, require_resources
from models.records import LeftOut
from orchestrator.config import Experiment
from orchestrator.driving.following import following
from orchestrator.driving.plan import dataset_of, plan_run, warn_of_left_out
from orchestrator.driving.workers import call_in_worker
from orchestrator.runs.record import Metrics, RunRecord, read_run, update_run
from orchestrator.searching.record import (
    SearchProgress,
    SearchRecord,
    SearchResult,
    TrialRecord,
    best_of,
    body_of,
    counts_of,
    read_trials,
    result_of,
    trial_name,
)
from orchestrator.searching.trial import finish_best
from orchestrator.training.worker import describe_all


class _Plan(NamedTuple):
    """What all trials have in common."""

    base: RunRecord
    gpus: float
    gpu_available: bool


def finish_search(
    record: SearchRecord,
    plan: _Plan,
    store: Store,
    *,
    on_start: Callable[[SearchRecord], None] | None,
    on_progress: Callable[[SearchProgress], None] | None,
) -> SearchResult:
    """Run the trials that are open, judge the best one, and write down the result."""
    if on_start:
        on_start(record)
    started = time.perf_counter()
    try:
        again = continued_by(typed("sweep", "--resume", record.search), what=f"search {record.search}")
        with again, following(partial(_trials, store, record.search), _told(record, on_progress)):
            _run_open(record, plan, store)
    except KeyboardInterrupt:
        raise RunInterruptedError(f"search {record.search} was stopped. {how_to_continue(record.search)}") from None
    trials = read_trials(store, record.search)
    metrics = _judge(record, trials, store)
    finished = record.model_copy(update={"state": "finished"})
    result = result_of(finished, trials, metrics, seconds=time.perf_counter() - started)
    store.write_json(f"searches/{record.search}/result.json", _summary(result))
    store.write(f"searches/{record.search}/search.json", body_of(finished))
    return result


def _run_open(record: SearchRecord, plan: _Plan, store: Store) -> None:
    """Run every trial that has not ended."""
    settings = record.experiment.search
    assert settings is not None
    known = read_trials(store, record.search)
    numbers = sorted(set(range(settings.trials)) - {trial.number for trial in known})
    if not numbers:
        return
    from orchestrator.searching.tune import run_trials  # imports Ray Tune, which takes seconds

    resources, room = _resources(record.experiment, plan)
    error = run_trials(
        record,
        base=plan.base.model_copy(update={"run": record.search, "evaluated_on": record.judged_on}),
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
            f"{error.strip() or 'The store did not answer.'} {how_to_continue(record.search)}"
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
    ray: Any = imported("ray")
    own = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == own)
    return f"node:{node['NodeManagerAddress']}", dict(node["Resources"])


def planned(
    experiment: Experiment, tried: list[Experiment], store: Store, *, left_out: tuple[LeftOut, ...] | None = None
) -> _Plan:
    """Check the ends of the space against the dataset and the cluster, as single trainings would be.

    Args:
        experiment: what is searched for.
        tried: with settings from the ends of the space.
        store: where the dataset is.
        left_out: rows that no trial reads, where that is known from before.
    """
    with importing("ray.tune"):
        dataset, gpus = dataset_of(experiment, store), cluster_resources().get("GPU", 0)
        runs = [plan_run(one, dataset, gpus=gpus) for one in tried]
        need = 1.0 if any(run.techniques.processor == "gpu" for run in runs) else 0.0
        require_resources(cpus=experiment.scaling.cpus_per_worker, gpus=need)
        bodies = [run.model_copy(update={"left_out": left_out}).model_dump(mode="json") for run in runs]
        described = call_in_worker(describe_all, bodies, store.settings.model_dump(mode="json"), threads=1)
    warn_of_left_out(described)
    run = described[0].model_copy(update={"evaluated_on": dataset.manifest.judged_on})
    return _Plan(run, need, gpus >= 1)


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


def _trials(store: Store, search: str) -> dict[Hashable, TrialRecord]:
    return {trial.number: trial for trial in read_trials(store, search)}


def _told(
    record: SearchRecord, on_progress: Callable[[SearchProgress], None] | None
) -> Callable[[TrialRecord], None] | None:
    """A function that calls ``on_progress`` when a trial has ended, with what all so far have come to."""
    settings = record.experiment.search
    if on_progress is None or settings is None:
        return None
    trials: list[TrialRecord] = []

    def tell(trial: TrialRecord) -> None:
        trials.append(trial)
        best = best_of(trials, higher_is_better=record.higher_is_better)
        on_progress(SearchProgress(len(trials), settings.trials, counts_of(trials), best))

    return tell


def how_to_continue(search: str) -> str:
    """Name the command that goes on with a stopped search."""
    return f"Continue it: `{typed('sweep', '--resume', search)}`."

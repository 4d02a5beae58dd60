"""Lets Ray Tune run the trials of a search: who is next, who is stopped, who copies whom, and what is written down.

Everything here runs on the driver (with Ray Client: on the cluster's head, where Tune is then).
"""

# ruff: noqa: ARG002  (Tune passes its callbacks more than they need)

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from cluster.storage import Store
from models.config import has_activation, resolve_techniques
from orchestrator.config import Experiment, RangeConfig, SearchConfig
from orchestrator.lanes import FORGIVEN_LOSSES
from orchestrator.runs import RunRecord, read_run, update_run, utc_now
from orchestrator.search_space import Known, Values, suggest, with_values
from orchestrator.search_trial import TrialRecord, run_trial, trial_name, write_trial
from orchestrator.sweep import TUNE_ENVIRONMENT

REDUCTION = 3  # of ASHA: the best third goes on
LOST = (
    f"a training must not end its process, got {FORGIVEN_LOSSES + 1} deaths in a row. Its machine may be out of "
    "memory: use a smaller model, batch or search.concurrency; or see the logs of the cluster."
)


def run_trials(
    experiment: Experiment,
    *,
    base: RunRecord,
    metric: str,
    higher_is_better: bool,
    gpu_available: bool,
    numbers: Sequence[int],
    known: Iterable[TrialRecord],
    store: Store,
    concurrency: int,
    resources: Mapping[str, float],
) -> str:
    """Run trials to their end, and write each into the store as it ends; return an error, if there was one.

    Args:
        experiment: with a `search` group.
        base: what a trial trains, but for its settings, and of the search's name.
        metric: that decides.
        higher_is_better: whether it is to grow.
        gpu_available: whether the cluster has a GPU.
        numbers: of the trials to run.
        known: those that have ended before.
        store: where the runs go.
        concurrency: trials at the same time.
        resources: that a trial reserves, by Ray's names.
    """
    assert experiment.search is not None
    settings, mode = experiment.search, "max" if higher_is_better else "min"
    os.environ |= TUNE_ENVIRONMENT | {"TUNE_DISABLE_STRICT_METRIC_CHECKING": "1"}  # a failed trial has no metric
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of what it would say, we say what matters
    journal = Journal(experiment, base, known=known, gpu_available=gpu_available, store=store)
    shared = {
        "store": store.settings.model_dump(mode="json"),
        "metric": metric,
        "method": settings.method,
        "timeout_minutes": settings.trial_timeout_minutes,
    }
    if settings.method == "pbt":
        starts = [journal.begin(number, higher_is_better=higher_is_better) for number in numbers]
        searcher, samples = None, 1
        shared["trial"] = tune.grid_search(starts)
    else:
        searcher, samples = Suggester(journal, numbers, mode=mode), len(numbers)
    with tempfile.TemporaryDirectory(prefix="orchestrator-search-") as folder:
        results = tune.Tuner(
            tune.with_resources(run_trial, PlacementGroupFactory([dict(resources)])),
            param_space=shared,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler_of(settings, epochs=experiment.train.epochs, mode=mode),
                num_samples=samples,
                # of a population all must be there, running or paused: its number at a time is a matter of resources
                max_concurrent_trials=concurrency if searcher else None,
                reuse_actors=True,
                trial_name_creator=journal.run_of,
                trial_dirname_creator=journal.run_of,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,  # Tune's own state holds pickles: it stays on the driver's disk
                verbose=0,
                stop={"epoch": experiment.train.epochs},  # no schedulers' matter: a finished trial copies nobody
                callbacks=[journal],
                failure_config=tune.FailureConfig(max_failures=FORGIVEN_LOSSES),
            ),
        ).fit()
    return next((str(error) for error in results.errors), "")


def scheduler_of(settings: SearchConfig, *, epochs: int, mode: str) -> TrialScheduler:
    """What stops trials early, or lets them copy each other."""
    if settings.method == "asha":
        return ASHAScheduler(
            time_attr="epoch", metric="value", mode=mode, max_t=epochs, grace_period=1, reduction_factor=REDUCTION
        )
    if settings.method != "pbt":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return PopulationBasedTraining(
        time_attr="epoch",
        metric="value",
        mode=mode,
        perturbation_interval=max(1, epochs // 10),
        hyperparam_mutations={"trial": {"values": {name: _drawn(domain) for name, domain in settings.space.items()}}},
        custom_explore_fn=_Within(settings),
        log_config=False,
        require_attrs=False,
    )


class Journal(tune.Callback):
    """Writes the runs of the trials: when they begin, and, with the trials' own records, when they end."""

    def __init__(
        self,
        experiment: Experiment,
        base: RunRecord,
        known: Iterable[TrialRecord],
        *,
        gpu_available: bool,
        store: Store,
    ) -> None:
        self.experiment, self.base, self.gpu_available, self.store = experiment, base, gpu_available, store
        self.known = [Known(trial.values, trial.value if trial.state != "failed" else None) for trial in known]
        self._values: dict[int, Values] = {}
        self._latest: dict[int, dict[str, Any]] = {}
        self._seconds: dict[int, float] = {}

    def begin(self, number: int, *, higher_is_better: bool) -> dict[str, Any]:
        """Choose the settings of a trial, write its run, and return the trial as Tune's configuration holds it."""
        search = self.experiment.search
        assert search is not None
        values = suggest(search, number=number, known=self.known, higher_is_better=higher_is_better)
        record = self._record(number, values)
        update_run(self.store, record)
        self._values[number] = values
        return {"number": number, "values": values if search.method == "pbt" else {}}

    def run_of(self, trial: Any) -> str:
        """The name of a trial's run; its number in Tune's configuration goes over to those that copy it."""
        return f"{self.base.run}.{trial_name(trial.config['trial']['number'])}"

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Keep the newest epoch of a trial."""
        if "value" in result:
            number = _number(trial)
            self._latest[number] = dict(result)
            self._seconds[number] = self._seconds.get(number, 0.0) + result["epoch_seconds"]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Write down a trial that has ended, or that the scheduler has ended."""
        last = trial.last_result or {}
        if "undone" not in last:
            self._end(trial, error=last.get("error"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Write down a trial whose process died more often than is forgiven."""
        self._end(trial, error=LOST)

    def _end(self, trial: Any, *, error: str | None) -> None:
        number = _number(trial)
        last = self._latest.get(number, {})
        found = TrialRecord(
            number=number,
            run=str(trial),
            state=_state(last, error, epochs=self.experiment.train.epochs),
            values=self._values[number] | trial.config["trial"]["values"],
            value=last.get("value"),
            epochs=last.get("epoch", 0),
            seconds=round(self._seconds.get(number, 0.0), 3),
            history=last.get("history", []),
            stages=last.get("stages", []) if trial.config["trial"]["values"] else [],
            error=error,
        )
        self._write_run(found, last)
        write_trial(self.store, self.base.run, found)
        self.known.append(Known(found.values, found.value if found.state != "failed" else None))

    def _write_run(self, trial: TrialRecord, last: Mapping[str, Any]) -> None:
        lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in trial.history)
        self.store.write(f"runs/{trial.run}/metrics.jsonl", lines.encode())
        changes = {
            "state": "unfinished" if trial.state == "stopped" else trial.state,
            "metrics": last.get("metrics", {}),
            "checkpoint": last.get("checkpoint_prefix"),
            "seconds": trial.seconds,
            "error": trial.error,
        }
        update_run(self.store, read_run(self.store, trial.run).model_copy(update=changes))

    def _record(self, number: int, values: Values) -> RunRecord:
        experiment = with_values(self.experiment, values)
        techniques = resolve_techniques(experiment.techniques, experiment.model, gpu_available=self.gpu_available)
        return self.base.model_copy(
            update={
                "run": f"{self.base.run}.{trial_name(number)}",
                "sweep": self.base.run,
                "created": utc_now(),
                "experiment": experiment,
                "techniques": techniques,
                "not_applicable": () if has_activation(experiment.model) else ("techniques.activation",),
            }
        )


class Suggester(Searcher):
    """Tells Tune what the next trial tries. Each choice is made from what is known then, so nothing need be kept.

    Tune's own `OptunaSearch` begins its random numbers again where a search is resumed, and takes no failed trials.
    """

    def __init__(self, journal: Journal, numbers: Sequence[int], *, mode: str) -> None:
        super().__init__(metric="value", mode=mode)
        self._journal, self._open = journal, list(numbers)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The configuration of the next trial."""
        return {"trial": self._journal.begin(self._open.pop(0), higher_is_better=self.mode == "max")}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The journal knows."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a stopped search goes on from the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Within:
    """Keeps what `pbt` has changed within its range."""

    def __init__(self, settings: SearchConfig) -> None:
        self._ranges = {name: domain for name, domain in settings.space.items() if isinstance(domain, RangeConfig)}

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        values = config["trial"]["values"]
        for name, domain in self._ranges.items():
            values[name] = min(max(values[name], domain.low), domain.high)
        return config


def _drawn(domain: RangeConfig | list[Any]) -> Any:
    if isinstance(domain, list):
        return domain
    return (tune.loguniform if domain.scale == "log" else tune.uniform)(domain.low, domain.high)


def _number(trial: Any) -> int:
    return int(str(trial).rpartition("-")[2])


def _state(last: Mapping[str, Any], error: str | None, *, epochs: int) -> str:
    if error is not None:
        return "failed"
    return "finished" if last.get("epoch") == epochs else "stopped"

"""Runs the trials of a search on Ray Tune: its schedulers and where suggestions come from."""

# ruff: noqa: ARG002  (Tune passes its callbacks more than they need)

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from cluster.s3.store import Store
from orchestrator.config import RangeConfig, SearchConfig
from orchestrator.driving.tune import FORGIVEN_LOSSES, quiet_tune
from orchestrator.runs.record import RunRecord
from orchestrator.searching.journal import Journal
from orchestrator.searching.record import SearchRecord, TrialRecord
from orchestrator.searching.trial import run_trial

REDUCTION = 3  # of ASHA: the best third goes on


def run_trials(
    record: SearchRecord,
    *,
    base: RunRecord,
    gpu_available: bool,
    numbers: Sequence[int],
    known: Iterable[TrialRecord],
    store: Store,
    concurrency: int,
    resources: Mapping[str, float],
) -> str:
    """Run trials to their end, and write each into the store as it ends; return an error, if there was one.

    Args:
        record: the search.
        base: what a trial trains, but for its settings, and of the search's name.
        gpu_available: whether the cluster has a GPU.
        numbers: of the trials to run.
        known: those that have ended before.
        store: where the runs go.
        concurrency: trials at the same time.
        resources: that a trial reserves, by Ray's names.
    """
    journal = Journal(record.experiment, base, known=known, gpu_available=gpu_available, store=store)
    epochs = record.experiment.train.epochs
    with quiet_tune(), tempfile.TemporaryDirectory(prefix="orchestrator-search-") as folder:
        results = tune.Tuner(
            tune.with_resources(run_trial, PlacementGroupFactory([dict(resources)])),
            param_space=_settings_of_trials(record, journal, numbers, store),
            tune_config=_tune_config(record, journal, numbers, concurrency),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,  # Tune's own state holds pickles: it stays on the driver's disk
                verbose=0,
                stop={"epoch": epochs},  # Tune itself ends a trial: left to PBT, a finished one could be overwritten
                callbacks=[journal],
                failure_config=tune.FailureConfig(max_failures=FORGIVEN_LOSSES),
            ),
        ).fit()
    return next((str(error) for error in results.errors), "")


def _settings_of_trials(record: SearchRecord, journal: Journal, numbers: Sequence[int], store: Store) -> dict[str, Any]:
    """Return what every trial is given; a population is given its trials' first settings, too."""
    settings = _search_settings(record)
    shared: dict[str, Any] = {
        "store": store.settings.model_dump(mode="json"),
        "metric": record.metric,
        "method": settings.method,
        "timeout_minutes": settings.trial_timeout_minutes,
    }
    if settings.method == "pbt":
        starts = [journal.begin(number, higher_is_better=record.higher_is_better) for number in numbers]
        shared["trial"] = tune.grid_search(starts)
    return shared


def _tune_config(record: SearchRecord, journal: Journal, numbers: Sequence[int], concurrency: int) -> tune.TuneConfig:
    settings, mode = _search_settings(record), "max" if record.higher_is_better else "min"
    is_population = settings.method == "pbt"
    return tune.TuneConfig(
        search_alg=None if is_population else Suggester(journal, numbers, mode=mode),
        scheduler=scheduler_of(settings, epochs=record.experiment.train.epochs, mode=mode),
        num_samples=1 if is_population else len(numbers),
        # all of a population must be there, running or paused: its number at a time is a matter of resources
        max_concurrent_trials=None if is_population else concurrency,
        reuse_actors=True,
        trial_name_creator=journal.run_of,
        trial_dirname_creator=journal.run_of,
    )


def _search_settings(record: SearchRecord) -> SearchConfig:
    settings = record.experiment.search
    assert settings is not None
    return settings


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

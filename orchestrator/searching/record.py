"""What the store holds of a search, and what can be read from it.

searches/SEARCH/
    search.json             the experiment and the state
    trials/trial-007.json   a trial that has ended, written once: the source of truth
    result.json             the best trial
runs/SEARCH.trial-007/      the same as an ordinary run, with its checkpoints
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from cluster.errors import NotFoundError
from cluster.s3.records import read_model
from cluster.s3.store import Store
from cluster.s3.write_once import append, read_all
from models.records import Frozen, LeftOut, StoredWithNaN
from orchestrator.config import Experiment
from orchestrator.configfile import near_miss
from orchestrator.runs.record import EpochRecord, Metrics, metrics_text, read_run
from orchestrator.searching.space import Values


class Stage(StoredWithNaN):
    """A part of a training, from one change of its settings to the next."""

    run: str
    """Who trained it. With `pbt` the first stages of a training may be another's, from which it was copied."""
    after_epoch: int
    """Epochs that were done when it began."""
    values: Values


class TrialRecord(StoredWithNaN):
    """`trials/trial-007.json`."""

    number: int
    run: str
    state: Literal["finished", "stopped", "failed"]
    values: Values
    """Values of the settings in the space; with `pbt` those of the last epoch."""
    value: float | None = None
    """The metric after the last epoch that was trained."""
    epochs: int = 0
    """Epochs that were trained."""
    seconds: float = 0.0
    """Seconds that this trial took, without what it copied."""
    history: list[EpochRecord] = []
    """As in a run."""
    stages: list[Stage] = []
    """More than one only with `pbt`."""
    error: str | None = None


def trial_name(number: int) -> str:
    """Return the name of the trial's object. Its run is called `SEARCH.NAME`."""
    return f"trial-{number:03d}"


def write_trial(store: Store, search: str, trial: TrialRecord) -> None:
    """Append a trial. One that is there already stays: the first result counts."""
    append(store, f"{trials_folder(search)}{trial_name(trial.number)}.json", trial, kind="trial")


def trials_folder(search: str) -> str:
    """Where the trials of a search are."""
    return f"searches/{search}/trials/"


STATES = ("finished", "stopped", "failed")


class SearchRecord(Frozen):
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
    left_out: tuple[LeftOut, ...] | None = None
    """Damaged rows that no trial reads; ``None``: nobody has looked."""


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
    """The best trial of those that were trained to the end."""
    metrics: Metrics
    """Metrics of the best trial on the test split."""
    seconds: float

    def __repr__(self) -> str:
        """Name the search, how far it is, its best run with its metrics, and its folder; the fields hold the rest."""
        found = f"best {self.best.run}, test {metrics_text(self.metrics)}" if self.best else "no best yet"
        done = f"{len(self.trials)} trials"
        return f"<SearchResult {self.search}: {self.record.state}, {done}, {found}; searches/{self.search}/>"


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
        raise NotFoundError(f"search must exist, got {name!r}. {near_miss(name, known)}") from None


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
    return result_of(record, trials, metrics, seconds=float("nan"))


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


def result_of(record: SearchRecord, trials: list[TrialRecord], metrics: Metrics, *, seconds: float) -> SearchResult:
    """Put the result of a search together, the best trial first."""
    return SearchResult(
        search=record.search,
        record=record,
        trials=ranked(trials, higher_is_better=record.higher_is_better),
        best=best_of(trials, higher_is_better=record.higher_is_better),
        metrics=metrics,
        seconds=seconds,
    )


def counts_of(trials: Iterable[TrialRecord]) -> dict[str, int]:
    """How many trials ended in which way."""
    states: list[str] = [trial.state for trial in trials]
    return {state: states.count(state) for state in STATES}


def body_of(record: SearchRecord) -> bytes:
    """Write a record as it is stored."""
    return record.model_dump_json(indent=1).encode()

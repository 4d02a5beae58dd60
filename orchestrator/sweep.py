"""Compares many trainings: the arms of a design times the seeds, on a few long-lived Ray Tune trials.

A trial costs Ray Tune seconds, a small training takes less: so a trial runs *lanes* that train one cell after the
other, in workers that may be warm; and seeds of one arm are a batched model where that pays. Since results do not
depend on where a cell runs, killing the driver loses only the cells in work, and `resume` does the rest. A cell whose
process dies is tried once more.
"""

from collections.abc import Callable, Mapping
from functools import partial

from cluster.s3.store import Store
from cluster.session import ray_session
from cluster.storage import open_store
from orchestrator.config import Experiment
from orchestrator.runs.record import RunRecord
from orchestrator.sweeping.plan import plan_sweep, sweep_record, within
from orchestrator.sweeping.record import SweepProgress, SweepRecord, SweepResult, body_of, read_sweep
from orchestrator.sweeping.run import finish_sweep, launch_lanes, planned_runs, predict


class NotebookResult(SweepResult):
    """A sweep's result that a notebook shows as its report."""

    def _repr_html_(self) -> str:
        from orchestrator.reporting.page import notebook_html  # brings a template engine, which a sweep does not need

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
        runs = planned_runs(arms, store)
        record = sweep_record(experiment, design, arms, runs, name)
        if experiment.sweep and experiment.sweep.budget:
            record = within(experiment.sweep, predict(record, runs, store), record)
        store.write(f"sweeps/{record.sweep}/sweep.json", body_of(record), only_if_absent=True)
        if on_start:
            on_start(record)
        return _finish(record, runs, store=store, on_progress=on_progress)


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
        runs = planned_runs(arms, store)
        record = sweep_record(experiment, design, arms, runs, None)
        return within(experiment.sweep, predict(record, runs, store), record)


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
        runs = planned_runs(record.arms, store)
        if on_start:
            on_start(record)
        return _finish(record, runs, store=store, on_progress=on_progress)


def _finish(
    record: SweepRecord,
    runs: Mapping[str, RunRecord],
    *,
    store: Store,
    on_progress: Callable[[SweepProgress], None] | None,
) -> NotebookResult:
    launch = partial(launch_lanes, record, runs, store.settings)
    return NotebookResult(*finish_sweep(record, runs, store=store, launch=launch, on_progress=on_progress))

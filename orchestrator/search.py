"""Looks for the best model: many trainings with settings from a space, on Ray Tune. The other kind of sweep.

A sweep compares: every choice with every seed, to the last epoch. A search hunts: it tries more where it looks good,
and may stop a training early. So nothing of it goes into a ledger, which reads sweeps only.
"""

from collections.abc import Callable

from cluster.errors import ConfigError, PreconditionError
from cluster.s3.store import Store
from cluster.session import ray_session
from cluster.storage import open_store
from orchestrator.config import Experiment
from orchestrator.searching.plan import search_record
from orchestrator.searching.record import SearchProgress, SearchRecord, SearchResult, body_of, read_search
from orchestrator.searching.run import finish_search, how_to_continue, planned
from orchestrator.searching.space import probes


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
        plan = planned(experiment, tried, store)
        record = search_record(experiment, plan.base, store, name)
        try:
            store.write(f"searches/{record.search}/search.json", body_of(record), only_if_absent=True)
        except PreconditionError:
            raise ConfigError(
                f"search must have a new name, got {record.search!r}. {how_to_continue(record.search)}"
            ) from None
        return finish_search(record, plan, store, on_start=on_start, on_progress=on_progress)


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
        plan = planned(record.experiment, probes(record.experiment), store, left_out=record.left_out)
        return finish_search(record, plan, store, on_start=on_start, on_progress=on_progress)

"""Decides everything that a run depends on, before anything starts."""

import importlib
import importlib.metadata
import logging
import platform
from collections.abc import Iterable

from cluster.errors import ConfigError, NotFoundError
from cluster.s3.store import Store
from cluster.staging import packages_sha256
from models.config import has_activation, resolve_techniques
from models.records import DatasetRef
from orchestrator.config import Experiment
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.runs.record import RunRecord, new_run_id, utc_now

log = logging.getLogger(__name__)


def dataset_of(experiment: Experiment, store: Store) -> Dataset:
    """Open the dataset that an experiment names.

    Raises:
        ConfigError: there is none of that name or version: the experiment is wrong.
    """
    try:
        return open_dataset(store, experiment.data.name, version=experiment.data.version)
    except NotFoundError as error:
        raise ConfigError(str(error)) from None


def plan_run(
    experiment: Experiment, dataset: Dataset, *, run: str | None = None, gpus: float = 0, code: str | None = None
) -> RunRecord:
    """Decide everything that a run depends on. Reads the clock and our own sources, and changes nothing.

    Args:
        experiment: what is asked for.
        dataset: the data it names.
        run: name of the new run; default: made of dataset, model and time.
        gpus: that the cluster has.
        code: its `code_version`, where that is known: to find it takes a tenth of a second.

    Raises:
        ConfigError: the experiment does not fit the dataset.
    """
    signature = dataset.signature(lookback=experiment.data.lookback, horizon=experiment.data.horizon)
    techniques = resolve_techniques(
        experiment.techniques, experiment.model, gpu_available=gpus >= experiment.scaling.max_workers
    )
    return RunRecord(
        run=run or new_run_id(experiment),
        state="running",
        created=utc_now(),
        experiment=experiment,
        techniques=techniques,
        not_applicable=() if has_activation(experiment.model) else ("techniques.activation",),
        signature=signature,
        dataset=DatasetRef(name=dataset.manifest.name, version=dataset.manifest.version),
        evaluated_on="test",
        primary_metric=signature.target.primary_metric,
        higher_is_better=signature.target.higher_is_better,
        code_version=code or code_version(),
        versions=versions(),
    )


def code_version() -> str:
    """Version of this package, and a hash of the very files that the workers run."""
    return f"{importlib.metadata.version('orchestrator')}+{packages_sha256()[8:16]}"


def versions() -> dict[str, str]:
    """Versions of what a result's bits depend on."""
    names = ("torch", "ray", "numpy", "pyarrow")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}


def warn_of_left_out(records: Iterable[RunRecord]) -> None:
    """Tell which shards the runs leave rows of, each shard once."""
    lines = {
        f"dataset {run.dataset.name} {run.dataset.version}: left out {one.text}"
        for run in records
        for one in run.left_out or ()
    }
    for line in sorted(lines):
        log.warning("%s", line)

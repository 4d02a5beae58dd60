"""Runs a training or a sweep as a Ray job, so that the machine it was submitted from may go."""

from collections.abc import Sequence
from typing import NamedTuple

import yaml

from cluster.errors import ConfigError
from cluster.jobs import submit as submit_job
from cluster.s3.store import Store
from cluster.session import store_environment
from orchestrator.configfile import load_experiment
from orchestrator.driving.plan import dataset_of
from orchestrator.runs.record import new_run_id

EXPERIMENT_FILE = "experiment.yaml"
VERBS = {"train": "--run", "sweep": "--name"}
"""What can be submitted, and the option that names what it makes."""


class Submitted(NamedTuple):
    """A job that the cluster has accepted."""

    job: str
    """Its id; the run or sweep that it makes has the same name."""
    address: str
    new: bool
    """``False`` when a job of this id was there already."""


def submit(
    verb: str,
    config: str,
    overrides: Sequence[str] = (),
    *,
    store: Store,
    address: str | None = None,
    job: str | None = None,
) -> Submitted:
    """Check everything here, then start the job.

    Args:
        verb: `train` or `sweep`.
        config: YAML file or recipe.
        overrides: `key=value` words.
        store: must be reachable from the cluster too, with credentials that its nodes have.
        address: of the cluster; see `cluster.address.resolve_address`.
        job: its id. The same id again changes nothing, so repeating a submission is safe.

    Raises:
        ConfigError, StoreAccessError, ClusterError: before anything is submitted.
    """
    if verb not in VERBS:
        raise ConfigError(f"submit must be given train or sweep, got {verb!r}.")
    experiment = load_experiment(config, overrides)
    if verb == "sweep" and experiment.sweep is None and experiment.search is None:
        raise ConfigError(f"{config} must have a sweep or a search group, got neither. Add sweep: {{vary: …}}.")
    store.check()
    dataset_of(experiment, store)
    job = job or new_run_id(experiment)
    text = yaml.safe_dump(experiment.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    accepted = submit_job(
        ["python", "-m", "orchestrator", verb, EXPERIMENT_FILE, VERBS[verb], job],
        address=address,
        submission_id=job,
        files={EXPERIMENT_FILE: text.encode()},
        env=store_environment(store.settings),
        metadata={"command": " ".join([verb, config, *overrides])},
    )
    return Submitted(accepted.job, accepted.address, accepted.new)

"""The record of a run in the store: what was asked, how far it is, what came out.

runs/RUN/
    run.json         the resolved experiment, the data and code it used, its state and its result
    status.json      where it is now, rewritten about once a second while it works
    metrics.jsonl    one line per epoch
    tensorboard/     the same as TensorBoard events
    checkpoints/     see `orchestrator/runs/checkpoint.py`
"""

import secrets
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from cluster.config import checked_name
from cluster.errors import ConfigError, IntegrityError, NotFoundError
from cluster.process.typed import typed
from cluster.s3.records import named_folders, read_model
from cluster.s3.store import Store
from cluster.s3.stored_json import MANY_VALUES, MOST_BYTES, Listing, listing, parse_json, require_bounded
from models.config import ResolvedTechniques
from models.features import Signature
from models.records import DatasetRef, Frozen, LeftOut
from orchestrator.config import Experiment

MOST_EPOCHS = 1_000_000
LOST_AFTER_S = 10.0  # a run that says "running" and has not written for this long has lost its driver

RunState = Literal["running", "finished", "failed", "cancelled", "unfinished"]
Metrics = dict[str, float]
EpochRecord = dict[str, Any]  # its number as `epoch`, its metrics, and the rows of `models.diagnostics` as `why`


def _time(text: str) -> str:
    try:
        datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("should be a time in ISO 8601") from None
    return text


class RunRecord(Frozen):
    """`run.json`."""

    format_version: Literal[1] = 1
    run: str
    state: RunState
    sweep: str | None = None
    """The sweep that this run is a cell of."""
    created: Annotated[str, AfterValidator(_time)]
    """UTC, ISO 8601."""
    experiment: Experiment
    techniques: ResolvedTechniques
    not_applicable: tuple[str, ...]
    """Techniques that the model does not have."""
    signature: Signature
    dataset: DatasetRef
    evaluated_on: str
    """The split that `metrics` describe."""
    primary_metric: str
    higher_is_better: bool
    code_version: str
    versions: dict[str, str]
    """The versions of Python, torch and Ray."""
    parameters: int = 0
    left_out: tuple[LeftOut, ...] | None = None
    """What `data.damaged: skip` leaves out of every epoch, by shard: found once, before the first attempt, and then the
    same for all of them. ``None``: nobody has looked, since a damaged row ends the run."""
    metrics: Metrics = {}
    baseline: str | None = None
    """The rule without learning that the run is compared with."""
    baseline_metrics: Metrics = {}
    checkpoint: str | None = None
    """Key prefix of the final checkpoint."""
    seconds: float | None = None
    """Wall time of the attempt that finished, start-up included."""
    first_step_s: float | None = None
    """From the command to the first weight update of that attempt."""
    error: str | None = None

    @property
    def rows_left_out(self) -> int:
        """Rows of the training split that no epoch reads."""
        return sum(one.count for one in self.left_out or ())


class RunStatus(Frozen):
    """`status.json`: the newest sign of life."""

    phase: str
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    samples_per_s: float = 0.0
    waiting_share: float = 0.0
    """Share of the training time in which a worker waited for data."""
    first_step_at: float | None = None
    """Unix time of the first weight update."""
    passed_over: list[str] = []
    """Newer checkpoints that this attempt could not resume from, and why."""
    checkpoint_update: int | None = None
    """Weight updates in the newest checkpoint."""
    checkpoint_at: float | None = None
    """Unix time at which it was complete."""
    updated: float
    """Unix time."""


def new_run_id(experiment: Experiment) -> str:
    """`DATASET-MODEL-TIME-RANDOM`, sorted by time within one dataset and model."""
    time_utc = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{experiment.data.name[:30]}-{experiment.model.type}-{time_utc}-{secrets.token_hex(2)}"


def metrics_text(metrics: Metrics) -> str:
    """The metrics in a few words, as the `repr` of a result has them: `accuracy 0.9722, loss 0.103`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or "no metrics"


def utc_now() -> str:
    """The time in the form that records use."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def create_run(store: Store, record: RunRecord) -> None:
    """Write a new run's record.

    Raises:
        PreconditionError: if a run of this name exists.
    """
    store.write(f"runs/{record.run}/run.json", _body(record), only_if_absent=True)


def update_run(store: Store, record: RunRecord) -> None:
    """Replace the record of an existing run."""
    store.write(f"runs/{record.run}/run.json", _body(record))


def read_run(store: Store, run: str) -> RunRecord:
    """Read one record.

    Raises:
        NotFoundError: naming the nearest run there is.
    """
    try:
        checked_name(run)
    except ValueError as error:
        raise ConfigError(f"run {error}.") from None
    try:
        return _read_record(store, run)
    except NotFoundError:
        known = [r.run for r in list_runs(store)]
        newest = f"The newest is {known[0]}." if known else "There are none yet: `{typed('train', 'CONFIG')}`."
        raise NotFoundError(f"run must exist, got {run!r}. {newest} See `{typed('runs')}`.") from None


def list_runs(store: Store) -> list[RunRecord]:
    """All runs that can be read, newest first; one whose driver was lost shows as `unfinished`."""
    return find_runs(store).found


def find_runs(store: Store) -> Listing[RunRecord]:
    """All runs, newest first, and those that cannot be read: damaged, or of a newer format."""
    names = named_folders(store, "runs")
    records = listing(names.found, lambda name: with_live_state(store, _read_record(store, name)))
    newest_first = sorted(records.found, key=lambda record: record.created, reverse=True)
    return Listing(newest_first, names.damaged + records.damaged)


def _read_record(store: Store, run: str) -> RunRecord:
    return read_model(store, f"runs/{run}/run.json", RunRecord, what="a run's record", most_values=MANY_VALUES)


def with_live_state(store: Store, record: RunRecord) -> RunRecord:
    """Tell a run that works from one whose driver has died without a word."""
    if record.state != "running":
        return record
    status = read_status(store, record.run)
    last_sign = status.updated if status else datetime.fromisoformat(record.created).timestamp()
    lost = time.time() - last_sign > LOST_AFTER_S + record.experiment.scaling.start_timeout_s * (status is None)
    return record.model_copy(update={"state": "unfinished"}) if lost else record


def read_status(store: Store, run: str) -> RunStatus | None:
    """The newest sign of life; ``None`` before the first."""
    try:
        return read_model(store, f"runs/{run}/status.json", RunStatus, what="a run's status")
    except (NotFoundError, IntegrityError):
        return None


def read_history(store: Store, run: str) -> list[EpochRecord]:
    """Metrics and the why panel of every finished epoch, oldest first.

    Raises:
        IntegrityError: a line is damaged; the message names it.
    """
    key = f"runs/{run}/metrics.jsonl"
    try:
        body = store.read(key, most_bytes=MOST_BYTES)
        require_bounded(body)  # of all lines together
    except NotFoundError:
        return []
    except ValueError as error:
        raise IntegrityError(f"{key} must hold the metrics of a run, got {error}.") from None
    lines = body.split(b"\n", MOST_EPOCHS)
    found = [parse_json(line, where=f"{key}:{i}") for i, line in enumerate(lines, start=1) if line.strip()]
    if not all(isinstance(entry, dict) for entry in found):
        raise IntegrityError(f"{key} must hold an object in each line, got something else.")
    return found


def _body(record: RunRecord) -> bytes:
    return record.model_dump_json(indent=1).encode()

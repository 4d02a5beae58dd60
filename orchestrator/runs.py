"""The record of a run in the store: what was asked, how far it is, what came out.

runs/RUN/
    run.json         the resolved experiment, the data and code it used, its state and its result
    status.json      where it is now, rewritten about once a second while it works
    metrics.jsonl    one line per epoch
    tensorboard/     the same as TensorBoard events
    checkpoints/     see `orchestrator/checkpoint.py`
"""

import json
import logging
import queue
import secrets
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict

from cluster.config import checked_name
from cluster.errors import ConfigError, DiskFullError, IntegrityError, NotFoundError
from cluster.storage import Store
from cluster.stored_json import (
    MANY_VALUES,
    MOST_BYTES,
    Listing,
    listing,
    named_folders,
    parse_json,
    read_model,
    require_bounded,
)
from models.config import ResolvedTechniques
from models.features import Signature
from orchestrator.config import Experiment
from orchestrator.pulse import PULSE

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
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


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetRef(_Frozen):
    """The dataset version that a run reads."""

    name: str
    version: str


class RunRecord(_Frozen):
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
    """Of Python, torch and Ray."""
    parameters: int = 0
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


class RunStatus(_Frozen):
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
        newest = f"The newest is {known[0]}." if known else "There are none yet: `orchestrator train CONFIG`."
        raise NotFoundError(f"run must exist, got {run!r}. {newest} See `orchestrator runs`.") from None


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


class RunLog:
    """Writes a run's status, metrics and TensorBoard events from a thread of its own, so that no step waits.

    Use as a context manager; on exit everything that was reported is in the store.
    """

    def __init__(self, store: Store, run: str, *, tensorboard: bool = True) -> None:
        self._store, self._run = store, run
        self._status = RunStatus(phase="starting", updated=time.time())
        self._epochs: queue.SimpleQueue[list[EpochRecord]] = queue.SimpleQueue()
        self._unwritten: list[list[EpochRecord]] = []
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._events = _TensorBoard() if tensorboard else None
        self._thread = threading.Thread(target=self._write_until_stopped, name="run-log", daemon=True)

    def status(self, **changes: Any) -> None:
        """Change some fields of the status; cheap, may be called at every step."""
        self._status = self._status.model_copy(update=changes)

    def epoch(self, history: list[EpochRecord]) -> None:
        """Report a finished epoch; ``history`` holds all of them.

        Raises:
            StoreError: if an earlier report could not be written.
        """
        if self._error:
            raise self._error
        self._epochs.put(list(history))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None and self._error:
            raise self._error

    def _write_until_stopped(self) -> None:
        try:
            while not self._stop.wait(HEARTBEAT_S):
                try:
                    self._write()
                except DiskFullError as error:  # what is missing is written with what comes later
                    PULSE.warn(f"its status and metrics are not written, training goes on: {error}")
            self._write()
            self._write_events([], last=True)
        except Exception as error:  # carried to the training thread, which raises it
            self._error = error

    def _write(self) -> None:
        while not self._epochs.empty():
            self._unwritten.append(self._epochs.get())
        if reported := self._unwritten:
            lines = "".join(json.dumps(m, sort_keys=True) + "\n" for m in reported[-1])
            self._store.write(f"runs/{self._run}/metrics.jsonl", lines.encode())
            self._unwritten = []
            self._write_events([history[-1] for history in reported], last=False)
        body = self._status.model_copy(update={"updated": time.time()}).model_dump_json()
        self._store.write(f"runs/{self._run}/status.json", body.encode())

    def _write_events(self, epochs: list[EpochRecord], *, last: bool) -> None:
        if self._events is None:
            return
        try:
            for epoch in epochs:
                self._events.add(epoch)
            if found := self._events.file(complete=last):
                self._store.write(f"runs/{self._run}/tensorboard/{found.name}", found.read_bytes())
            if last:
                self._events.close()
        except OSError as error:  # the local disk: a copy of the metrics is not worth a training
            log.warning("run %s: no more TensorBoard events, which are first written to disk: %s", self._run, error)
            self._events = None


class _TensorBoard:
    """An event file on the local disk, to be copied to the store as it grows."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="orchestrator-events-")
        self._writer: Any = None

    def add(self, epoch: EpochRecord) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter  # half a second to import: not before the first epoch ends

            self._writer = SummaryWriter(self._folder.name)
        for name, value in _scalars(epoch).items():
            self._writer.add_scalar(name, value, int(epoch["epoch"]))
        self._writer.flush()

    def file(self, *, complete: bool) -> Path | None:
        """The event file; its newest events may still be on their way unless it is to be ``complete``."""
        if complete and self._writer:
            self._writer.close()  # waits for the writer's own thread, which `flush` does not
        return next(Path(self._folder.name).iterdir(), None)

    def close(self) -> None:
        """Remove the local copy."""
        self._folder.cleanup()


def _scalars(epoch: EpochRecord) -> Metrics:
    """Every number of an epoch by a name of its own: `loss`, `why/hidden_1/dead`."""
    found = {name: value for name, value in epoch.items() if name not in ("epoch", "why")}
    for row in epoch.get("why", []):
        layer = row["layer"].replace(" ", "_")  # a name that TensorBoard takes
        measured = {name: value for name, value in row.items() if name not in ("layer", "samples")}
        found |= {f"why/{layer}/{name}": value for name, value in measured.items() if value is not None}
    return found


def _body(record: RunRecord) -> bytes:
    return record.model_dump_json(indent=1).encode()

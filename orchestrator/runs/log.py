"""Writes a run's history, status and TensorBoard events into the store while it trains."""

import json
import logging
import queue
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.errors import DiskFullError
from cluster.s3.store import Store
from orchestrator.runs.pulse import PULSE
from orchestrator.runs.record import EpochRecord, Metrics, RunStatus

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0


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

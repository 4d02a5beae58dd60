"""Decides when a checkpoint is due, and writes it from a thread of its own so that no step waits for the store."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from cluster.errors import DiskFullError, StoreUnavailableError
from orchestrator.config import TrainConfig
from orchestrator.runs.checkpoint import State
from orchestrator.runs.pulse import PULSE

FULL_DISK_S = 60.0  # enough for a person who reads the warning and makes room, too short to waste machines
FULL_DISK_PAUSE_S = 2.0

log = logging.getLogger(__name__)


class CheckpointWriter:
    """Holds at most one copy of the state; use as a context manager, which waits for the last write.

    While one is being written no other is due: with a slow store checkpoints become rarer, and training goes on. A
    store that cannot be reached, or has no room, costs the checkpoint, not the training; the next one is tried. A
    store that refuses (wrong or expired keys) ends it.
    """

    def __init__(
        self, write: Callable[[State], None], *, settings: TrainConfig, full_disk_s: float = FULL_DISK_S
    ) -> None:
        self._write, self._settings, self._full_disk_s = write, settings, full_disk_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._is_owed = False
        self._saved_update, self._saved_at = 0, time.monotonic()

    def begin_at(self, update: int) -> None:
        """Count intervals from this update on: there is a checkpoint of it."""
        self._saved_update, self._saved_at = update, time.monotonic()

    def is_due(self, update: int, *, asked: bool = False) -> bool:
        """Whether to save after this update.

        Args:
            update: number of updates done.
            asked: an epoch ended that wants a checkpoint; kept in mind while the one before is being written.

        Raises:
            StoreError: the write before was refused.
        """
        self._is_owed |= asked
        if self._pending and not self._pending.done():
            return False
        self._settle()
        steps, minutes = self._settings.checkpoint_steps, self._settings.checkpoint_minutes
        return (
            self._is_owed
            or (steps is not None and update - self._saved_update >= steps)
            or (minutes is not None and time.monotonic() - self._saved_at >= minutes * 60)
        )

    def save(self, state: State) -> None:
        """Begin to write, once the write before has ended."""
        self._settle()
        self._is_owed = False
        self.begin_at(state.progress.update)
        self._pending = self._executor.submit(self._write, state)

    def save_and_wait(self, state: State) -> None:
        """Write now: nothing comes after. Where there is no room for it, wait for somebody to make some.

        Raises:
            DiskFullError: nobody did.
            StoreError: the store fails for longer than its retry budget.
        """
        self._settle()
        ends = time.monotonic() + self._full_disk_s
        while True:
            try:
                self._write(state)
            except DiskFullError as error:
                if time.monotonic() + FULL_DISK_PAUSE_S > ends:
                    raise
                self._warn(f"the checkpoint that is needed here waits for room, for {self._full_disk_s:.0f} s: {error}")
                time.sleep(FULL_DISK_PAUSE_S)
            else:
                PULSE.warning = None
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True)
        if kind is None:
            self._settle()

    def _settle(self) -> None:
        """Wait for the write under way; one that did not reach the store is only told."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except StoreUnavailableError as error:
            self._warn(f"no checkpoint was written, training goes on: {error}")
        else:
            PULSE.warning = None

    def _warn(self, text: str) -> None:
        """Say it in this process's log, and to the driver, which tells the person; once while it lasts."""
        if PULSE.warn(text):
            log.warning("%s", text)

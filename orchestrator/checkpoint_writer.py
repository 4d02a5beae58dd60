"""Decides when a checkpoint is due, and writes it from a thread of its own so that no step waits for the store."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from cluster.errors import StoreUnavailableError
from orchestrator.checkpoint import State
from orchestrator.config import TrainConfig

log = logging.getLogger(__name__)


class CheckpointWriter:
    """Holds at most one copy of the state; use as a context manager, which waits for the last write.

    While one is being written no other is due: with a slow store checkpoints become rarer, and training goes on. A
    store that cannot be reached costs the checkpoint, not the training; the next one is tried. A store that
    refuses (wrong or expired keys) ends it.
    """

    def __init__(self, write: Callable[[State], None], *, settings: TrainConfig) -> None:
        self._write, self._settings = write, settings
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
        """Write now: nothing comes after.

        Raises:
            StoreError: the store fails for longer than its retry budget.
        """
        self._settle()
        self._write(state)

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
            log.warning("no checkpoint was written, training goes on: %s", error)

"""How long and how often a call to the store is tried again, and what is logged of it."""

import logging
import random
import threading
import time
from dataclasses import dataclass

from cluster.s3.errors import reason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait for the store, in seconds."""

    total_s: float = 300.0
    """Time budget of one operation, all its attempts and pauses together; bytes that were read extend it."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    """Longest silence within an answer, and how long an object's bytes may flow at less than `min_bytes_per_s`."""
    min_bytes_per_s: float = 8 * 2**10
    """What is slower is cut and goes on over a new connection: a sixteenth of a 1 Mbit/s link, but no drip. Of
    listings and other small answers only the silence is watched."""
    expired_s: float = 60.0
    """How long to look for new credentials: enough for whoever rotates them, too short to waste machines."""
    first_pause_s: float = 0.1
    longest_pause_s: float = 10.0
    calm_s: float = 10.0
    """A burst of retries is over when the store has answered for this long without one."""

    def pause_s(self, attempt: int, *, jitter: float) -> float:
        """Return the pause after failed attempt number ``attempt`` (from 0); ``jitter`` is uniform in [0, 1)."""
        return jitter * min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(attempt, 30))


class TimeBudget:
    """How much longer something may take: time uses it up, every byte that moves gives some back."""

    def __init__(self, limit_s: float, *, bytes_per_s: float = float("inf")):
        self._limit_s = limit_s
        self._bytes_per_s = bytes_per_s
        self._ends = time.monotonic() + limit_s

    def moved(self, num_bytes: int) -> None:
        """Give back the time that these bytes may take, up to the limit."""
        self._ends = min(time.monotonic() + self._limit_s, self._ends + num_bytes / self._bytes_per_s)

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self._ends - time.monotonic()


class Retrying:
    """Decides after each failure of one operation how long to pause, or that it is given up."""

    def __init__(self, policy: RetryPolicy, patience: TimeBudget | None = None):
        self.attempts = 0
        """Attempts that have failed."""
        self._policy = policy
        self._patience = patience or TimeBudget(policy.total_s)
        self._renewal: TimeBudget | None = None
        self._began_s = time.monotonic()

    @property
    def spent_s(self) -> float:
        """Seconds since the operation began."""
        return time.monotonic() - self._began_s

    def pause_s(self, *, expired: bool) -> float | None:
        """Count a failure; return the pause before the next attempt, or ``None`` if that would come too late.

        Args:
            expired: The credentials have expired: new ones are waited for, but not for as long as for a server.
        """
        left_s = self._patience.left_s()
        if expired:
            self._renewal = self._renewal or TimeBudget(self._policy.expired_s)
            left_s = min(left_s, self._renewal.left_s())
        pause_s = self._policy.pause_s(self.attempts, jitter=random.random())
        self.attempts += 1
        return pause_s if pause_s <= left_s else None

    def begin_again(self) -> None:
        """Be as patient as at the beginning."""
        self._patience = TimeBudget(self._policy.total_s)


class Burst:
    """Logs one line when a burst of retries begins and one when it is over, however many there are."""

    def __init__(self, name: str, *, calm_s: float):
        self._name = name
        self._calm_s = calm_s
        self._lock = threading.Lock()
        self._retries = 0
        self._began_s = 0.0
        self._answered_s: float | None = None

    def failed(self, what: str, error: Exception) -> None:
        """Note an attempt that will be repeated."""
        with self._lock:
            self._retries += 1
            self._answered_s = None
            if self._retries > 1:
                return
            self._began_s = time.monotonic()
        log.warning("%s: could not %s: %s; trying again", self._name, what, reason(error))

    def answered(self) -> None:
        """Note a call that went well."""
        if not self._retries:  # nearly always, so without the lock
            return
        with self._lock:
            now = time.monotonic()
            self._answered_s = self._answered_s or now
            if not self._retries or now - self._answered_s < self._calm_s:
                return
            retries, lasted_s = self._retries, self._answered_s - self._began_s
            self._retries = 0
        log.warning("%s: answers again after %d retries in %.1f s", self._name, retries, lasted_s)

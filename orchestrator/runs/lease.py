"""Exactly one driver works on a run: it holds the run's lease, a numbered object that it renews while it lives.

    runs/RUN/lease.json     {number, owner, host, renewed_count, released}

Every new owner takes the next number by a conditional write, so of several that try one wins. A lease is dead when it
says released, or when it has not changed for `LEASE_S` by the clock of the process that waits: no two clocks are
compared. An owner that was only slow, stopped or cut off works on until somebody takes its lease; from then on
`check_lease` refuses its number, and whoever writes for a run asks that first.
"""

import copy
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict

from cluster.errors import ConfigError, LeaseLostError, NotFoundError, PreconditionError, StoreError
from cluster.process.typed import typed
from cluster.s3.retries import RetryPolicy
from cluster.s3.store import Store
from cluster.s3.stored_json import MOST_BYTES, parse_model

LEASE_S = 10.0  # ten renewals may fail before anybody may take the run
RENEW_S = 1.0
POLL_S = 0.2  # a live owner is noticed at its next renewal
SLOW_ANSWER_S = 2.0  # a store that needs longer was away, and the owner could not renew either
# A renewal that fails is made again after RENEW_S: waiting longer for one could cost the lease.
IMPATIENT = RetryPolicy(total_s=3.0, connect_timeout_s=1.0, read_timeout_s=2.0, longest_pause_s=0.5)


class LeaseRecord(BaseModel):
    """`lease.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Counts the owners of a run, from 1."""
    owner: str
    """Process id and a random part, so that no two owners write the same bytes."""
    host: str
    renewed_count: int = 0
    released: bool = False


class Lease:
    """The right to work on a run. As a context manager it is acquired on entry and released on exit.

    Attributes:
        lost: set when another driver has taken the run over. The owner should stop then; it is safe if it does not
            notice, because its checkpoints and records are refused.
    """

    def __init__(
        self,
        store: Store,
        *,
        run: str,
        lease_s: float = LEASE_S,
        renew_s: float = RENEW_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.lost = threading.Event()
        self._store, self._run = store, run
        self._lease_s, self._renew_s = lease_s, renew_s
        self._clock, self._sleep = clock, sleep
        self._impatient = copy.copy(store)
        self._impatient.policy = IMPATIENT
        self._record: LeaseRecord | None = None
        self._etag = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="lease", daemon=True)

    @property
    def number(self) -> int:
        """What fences this owner's writes: the next owner has a higher one."""
        assert self._record is not None, "the lease must be acquired first"
        return self._record.number

    def acquire(self) -> Self:
        """Take the lease, and renew it from now on. Needs up to ``lease_s`` when the owner before died.

        Raises:
            ConfigError: naming the owner, when there is a live one.
        """
        found = self._wait_until_free()
        number = found[0].number + 1 if found else 1
        record = LeaseRecord(number=number, owner=f"{os.getpid()}-{secrets.token_hex(4)}", host=socket.gethostname())
        try:
            if found is None:
                self._etag = self._store.write(_key(self._run), _body(record), only_if_absent=True)
            else:
                self._etag = self._store.write(_key(self._run), _body(record), only_if_etag=found[1])
        except (PreconditionError, NotFoundError):
            raise _is_held(self._run, read_lease(self._store, run=self._run)) from None
        self._record = record
        self._thread.start()
        return self

    def check(self) -> None:
        """Refuse to go on once another driver has taken the run over.

        Raises:
            LeaseLostError: naming the new owner.
        """
        check_lease(self._store, run=self._run, number=self.number)

    def release(self) -> None:
        """Stop renewing, and let the next owner start at once."""
        self._stop.set()
        self._thread.join()
        assert self._record is not None, "the lease must be acquired first"
        released = self._record.model_copy(update={"released": True})
        with suppress(StoreError, NotFoundError):  # what is not released, or no longer ours, needs nothing more
            self._impatient.write(_key(self._run), _body(released), only_if_etag=self._etag)

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _wait_until_free(self) -> tuple[LeaseRecord, str] | None:
        """Return the dead lease and its etag; ``None`` when there was never one."""
        found = _read(self._store, self._run)
        since = self._clock()
        while found and not found[0].released and self._clock() - since < self._lease_s:
            self._sleep(POLL_S)
            asked = self._clock()
            newer = _read(self._store, self._run)
            if newer and newer[1] != found[1] and not newer[0].released:
                raise _is_held(self._run, newer[0])
            if self._clock() - asked > SLOW_ANSWER_S:
                since = self._clock()
            found = newer
        return found

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._renew_s):
            if not self._renew():
                self.lost.set()
                return

    def _renew(self) -> bool:
        """Show that the owner lives; ``False`` when there is another."""
        assert self._record is not None
        record = self._record.model_copy(update={"renewed_count": self._record.renewed_count + 1})
        try:
            self._etag = self._impatient.write(_key(self._run), _body(record), only_if_etag=self._etag)
            self._record = record
        except (PreconditionError, NotFoundError):
            return self._is_still_ours()
        except StoreError:  # the store is away: as long as nobody takes the lease, it is ours
            pass
        return True

    def _is_still_ours(self) -> bool:
        """After a refused renewal: an earlier one may have arrived although its answer did not."""
        assert self._record is not None
        try:
            found = _read(self._impatient, self._run)
        except StoreError:
            return True  # not known: the next renewal tells
        if found is None or found[0].owner != self._record.owner:
            return False
        self._record, self._etag = found
        return True


def read_lease(store: Store, *, run: str) -> LeaseRecord | None:
    """The lease of a run; ``None`` when it never had one."""
    found = _read(store, run)
    return found and found[0]


def check_lease(store: Store, *, run: str, number: int) -> None:
    """Refuse to go on unless lease ``number`` is the newest of the run, and not released.

    Raises:
        LeaseLostError: naming who has it now.
    """
    found = read_lease(store, run=run)
    if found is None:
        raise LeaseLostError(f"run {run} must have lease {number}, got none. Somebody removed the run.")
    if found.number != number:
        raise LeaseLostError(
            f"run {run} must be written by its owner, got lease {number} where {_owner(found)} took it over with lease "
            f"{found.number}. It goes on there: `{typed('show', run)}`."
        )
    if found.released:
        raise LeaseLostError(f"run {run} must be written by its owner, got lease {number}, which was released.")


def _is_held(run: str, record: LeaseRecord | None) -> Exception:
    by = _owner(record) if record else "another"
    return ConfigError(
        f"run {run} must be stopped to be resumed, got one that works, driven by {by}. "
        f"Follow it: `{typed('show', run)}`."
    )


def _owner(record: LeaseRecord) -> str:
    return f"process {record.owner.partition('-')[0]} on {record.host}"


def _read(store: Store, run: str) -> tuple[LeaseRecord, str] | None:
    try:
        body, etag = store.read_with_etag(_key(run), most_bytes=MOST_BYTES)
    except NotFoundError:
        return None
    cure = "Delete it once no driver works on the run."
    return parse_model(LeaseRecord, body, where=_key(run), what="a lease", cure=cure), etag


def _key(run: str) -> str:
    return f"runs/{run}/lease.json"


def _body(record: LeaseRecord) -> bytes:
    return record.model_dump_json().encode()

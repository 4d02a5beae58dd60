"""Submits commands to a cluster as Ray jobs, with our packages beside them, and follows them."""

import asyncio
import logging
import shlex
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cluster.address import ClusterAddress, resolve_address
from cluster.errors import (
    ClusterError,
    NotFoundError,
    OrchestratorError,
    RunCancelledError,
    RunFailedError,
    RunUnfinishedError,
)
from cluster.machine.exposure import warn_if_open
from cluster.machine.typed import typed
from cluster.session import check_reachable, client_environment, require_token, token_header
from cluster.staging import stage

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

T = TypeVar("T")

POLL_S = 0.25
NO_AGENT = "No available agent"  # what the job service says of a cluster that has just started
AGENT_S = 90.0  # to wait for one: seconds on a quiet machine, a minute on a crowded one
CHATTY_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env")
MOST_BREAKS = 20  # of a log in a row, without a word between them
FINAL = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class JobRecord:
    """What the cluster knows of one job."""

    job: str
    status: str
    """``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED`` or ``STOPPED``."""
    entrypoint: str
    message: str
    started: str | None
    """UTC, ISO 8601."""
    ended: str | None
    metadata: Mapping[str, str]


class Accepted(NamedTuple):
    """A job that the cluster has."""

    job: str
    address: str
    """The dashboard it was sent to."""
    new: bool
    """``False`` when a job of this id was there already."""


def submit(
    entrypoint: Sequence[str],
    *,
    address: str | None = None,
    submission_id: str | None = None,
    files: Mapping[str, bytes] | None = None,
    env: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    allow_unauthenticated: bool = False,
) -> Accepted:
    """Start a command on the cluster, in a folder that holds our packages and ``files``.

    Args:
        entrypoint: Program and arguments; they are quoted for the shell here. ``python`` is the cluster's own, also
            when Ray was started outside of its virtual environment.
        address: See ``cluster.address.resolve_address``.
        submission_id: Id of the job. The same id again changes nothing, so repeating a call is safe.
        files: Name to content, put beside the packages.
        env: Variables of the job and its workers; nothing secret, Ray shows them to every client.
        metadata: Words to find the job by.
        allow_unauthenticated: Accept a cluster on another machine that asks for no token.

    Raises:
        ClusterError: No cluster, not reachable, a wrong token, or no token check.
    """
    runtime_env = {"working_dir": str(stage(files)), "env_vars": dict(env or {})}
    with _client(address, allow_unauthenticated=allow_unauthenticated) as client:
        try:
            job = _once_ready(
                lambda: client.submit_job(
                    entrypoint=_shell_command(entrypoint),
                    submission_id=submission_id,
                    runtime_env=runtime_env,
                    metadata=dict(metadata or {}),
                )
            )
        except RuntimeError as error:
            if submission_id is None or "already exists" not in str(error):
                raise
            return Accepted(submission_id, client.get_address(), new=False)
        return Accepted(job, client.get_address(), new=True)


def jobs(address: str | None = None) -> list[JobRecord]:
    """Return the submitted jobs of the cluster, the newest first."""
    with _client(address) as client:
        found = [_record(details) for details in client.list_jobs() if details.submission_id]
    return sorted(found, key=lambda record: record.started or "", reverse=True)


def job(job_id: str, *, address: str | None = None) -> JobRecord:
    """Return one job.

    Raises:
        NotFoundError: The cluster has no such job.
    """
    with _client(address) as client:
        return _record(client.get_job_info(job_id))


def logs(job_id: str, *, address: str | None = None, follow: bool = False) -> Iterator[str]:
    """Yield what the job has printed, in pieces; with ``follow``, until it ends.

    Raises:
        NotFoundError: The cluster has no such job.
    """
    if not follow:
        with _client(address) as client:
            yield client.get_job_logs(job_id)
        return

    def tail() -> AsyncIterator[str]:
        with _client(address) as client:
            return client.tail_job_logs(job_id)

    yield from _followed(tail, lambda: job(job_id, address=address).status in FINAL)


def wait(job_id: str, *, address: str | None = None, timeout_s: float | None = None) -> JobRecord:
    """Return the job once it has ended.

    Raises:
        RunUnfinishedError: It has not within ``timeout_s``.
    """
    deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    with _client(address) as client:
        return _wait(lambda: _record(client.get_job_info(job_id)), deadline=deadline)


def stop(job_id: str, *, address: str | None = None) -> str:
    """Stop the job and return its final status, which is another than STOPPED if it ended by itself before."""
    with _client(address) as client:
        client.stop_job(job_id)
        return _wait(lambda: _record(client.get_job_info(job_id)), deadline=float("inf")).status


def require_success(job_id: str, *, address: str | None = None) -> None:
    """Turn the job's end into the error of a command that ran here.

    Raises:
        RunFailedError: It failed.
        RunCancelledError: Somebody stopped it.
        RunUnfinishedError: It still runs.
    """
    record = job(job_id, address=address)
    if record.status != "SUCCEEDED":
        kind = {"FAILED": RunFailedError, "STOPPED": RunCancelledError}.get(record.status, RunUnfinishedError)
        raise kind(f"job {job_id} must succeed, got {record.status}: {record.message or 'no message'}")


def _shell_command(entrypoint: Sequence[str]) -> str:
    """Quote a command; for ``python``, find the first interpreter over there that has Ray."""
    if entrypoint[0] != "python":
        return shlex.join(entrypoint)
    candidates = shlex.join(["python", "python3", sys.executable])
    has_ray = shlex.quote("import importlib.util as u, sys; sys.exit(u.find_spec('ray') is None)")
    find = f'for p in {candidates}; do "$p" -c {has_ray} 2>/dev/null && echo "$p" && break; done'
    return f'P=$({find}); exec "${{P:-python}}" {shlex.join(entrypoint[1:])}'


def _once_ready(request: Callable[[], str]) -> str:
    """What a request returns, once the cluster has somebody to take it."""
    ends = time.monotonic() + AGENT_S
    while True:
        try:
            return request()
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() >= ends:
                raise
        time.sleep(POLL_S)


def _wait(look: Callable[[], JobRecord], *, deadline: float) -> JobRecord:
    while (record := look()).status not in FINAL:
        if time.monotonic() > deadline:
            raise RunUnfinishedError(f"job {record.job} must end within the time given, got {record.status}.")
        time.sleep(POLL_S)
    return record


def _followed(tail: Callable[[], AsyncIterator[str]], has_ended: Callable[[], bool]) -> Iterator[str]:
    """Yield each piece of a log once, though its stream may break off, and begins at the first line again.

    Args:
        tail: Opens the stream.
        has_ended: Whether all that will ever be in the log is there.
    """
    told, breaks, is_last = 0, 0, False
    while not is_last:
        is_last, seen = has_ended(), 0
        try:
            for piece in _plain(tail()):
                new, seen = piece[max(0, told - seen) :], seen + len(piece)
                if new:
                    told, breaks = seen, 0
                    yield new
        except (RuntimeError, OSError) as error:
            breaks, is_last = breaks + 1, False
            if breaks == MOST_BREAKS:
                raise ClusterError(f"the log must go on until the job ends, got {error}. Watch again.") from error
        if not is_last:
            time.sleep(POLL_S)


def _plain(pieces: AsyncIterator[str]) -> Iterator[str]:
    """Turn Ray's asynchronous log into a plain iterator."""
    loop = asyncio.new_event_loop()
    try:
        while (piece := _run(loop, _next(pieces))) is not None:
            yield piece
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _run(loop: asyncio.AbstractEventLoop, work: "Coroutine[Any, Any, T]") -> T:
    """Return what the work returns; Ctrl-C ends it, so that it does not stand half done in the loop."""
    task = loop.create_task(work)
    try:
        return loop.run_until_complete(task)
    except KeyboardInterrupt:
        task.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        raise


async def _next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)


@contextmanager
def _client(address: str | None, *, allow_unauthenticated: bool = False) -> "Iterator[JobSubmissionClient]":
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    found = resolve_address(address)
    with client_environment(found):
        require_token(found, allow_unauthenticated=allow_unauthenticated)
        warn_if_open(found)
        try:
            yield JobSubmissionClient(_dashboard_url(found), headers=token_header())
        except AuthenticationError as error:
            raise ClusterError(
                f"the cluster at {found.address} must accept our token, got a refusal. "
                "Set RAY_AUTH_TOKEN_PATH to the file with its token."
            ) from error
        except (RuntimeError, OSError) as error:  # requests' own errors are OSErrors
            raise _error(found, error) from error


def _dashboard_url(found: ClusterAddress) -> str:
    check_reachable(found)
    if found.local is not None:
        return found.local.dashboard_url
    if found.scheme in ("http", "https"):
        return found.address
    from ray.dashboard.utils import get_address_for_submission_client

    return str(get_address_for_submission_client(found.address))


def _error(found: ClusterAddress, error: Exception) -> OrchestratorError:
    text = " ".join(str(error).split())
    if NO_AGENT in text:
        return ClusterError(
            f"the head of {found.address} must have a dashboard agent, which starts jobs, got none in {AGENT_S:g} s. "
            "Its port (52365 unless told) may have been taken: start Ray with --dashboard-agent-listen-port=0."
        )
    if "status code 404" in text:
        return NotFoundError(
            f"the job must be one of the cluster at {found.address}, got none of that id. List them: `{typed('jobs')}`."
        )
    return ClusterError(f"the job service of {found.address} must answer, got: {text[:300]}.")


def _record(details: Any) -> JobRecord:
    return JobRecord(
        job=details.submission_id,
        status=details.status.value,
        entrypoint=details.entrypoint,
        message=details.message or "",
        started=_utc(details.start_time),
        ended=_utc(details.end_time),
        metadata=details.metadata or {},
    )


def _utc(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")

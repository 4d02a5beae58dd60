"""Ends this process in our words when the head of its Ray cluster has died; Ray's core would abort it a minute later.

A driver whose head has died cannot work on, nor end in order: its next question to Ray may never be answered. So a
thread looks at the head, and once that is gone for good it gives back what the driver holds in the store, says what
died and what goes on, and ends the process.
"""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cluster.errors import ClusterError, OrchestratorError, RunUnfinishedError
from cluster.machine.state import RayState

LOOK_S = 1.0
PROBE_S = 2.0
DEAD_SERVER = re.compile(r"^ *(\w+) \[exit code=([^\]]+)\]", re.MULTILINE)


class Patience(NamedTuple):
    """How long a head may be silent."""

    notice_s: float
    """Until the person is told that it is."""
    gone_s: float
    """Until it counts as dead."""


LOCAL = Patience(notice_s=60.0, gone_s=3.0)  # `ray start` ends a second after one of its servers; nothing restarts it
REMOTE = Patience(notice_s=8.0, gone_s=45.0)  # one that keeps its state may come back; after 60 s Ray aborts us


class Work(NamedTuple):
    """What a driver does, that can be continued after it."""

    what: str
    command: str
    release: Callable[[], None]


_work: list[Work] = []  # of this process, the outermost first


def _print_plainly(error: OrchestratorError) -> None:
    _note(f"error: {error}")


_tell: Callable[[OrchestratorError], None] = _print_plainly


@contextmanager
def continued_by(command: str, *, what: str, release: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Name the command that continues the work of this block, should the head die meanwhile.

    Args:
        command: For the person to type; of nested blocks the outermost one's is shown.
        what: The work, such as ``run NAME``.
        release: Gives back what keeps others from continuing. It is called from another thread.
    """
    work = Work(what, command, release)
    _work.append(work)
    try:
        yield
    finally:
        _work.remove(work)


@contextmanager
def told_by(tell: Callable[[OrchestratorError], None]) -> Iterator[None]:
    """Let ``tell`` print the error with which this process ends; it is called from another thread."""
    global _tell  # noqa: PLW0603
    before, _tell = _tell, tell
    try:
        yield
    finally:
        _tell = before


@contextmanager
def watching_head(where: str, trouble: Callable[[], str | None], *, patience: Patience, cure: str) -> Iterator[None]:
    """End this process if the head of its cluster dies before the block ends.

    Args:
        where: The head in words, with its address.
        trouble: Looks at the head; says what is wrong with it, or ``None``.
        patience: How long there may be something wrong.
        cure: What the person can do about a dead one, as a sentence.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(where, trouble, patience, cure, stop), name="head watch", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()


def work_in_hand() -> Work | None:
    """Return what this process does at the moment, that can be continued after it."""
    return _work[0] if _work else None


def release_work() -> None:
    """Give back whatever keeps others from continuing the work of this process."""
    for work in reversed(list(_work)):  # the main thread may still leave a block
        with suppress(OrchestratorError):
            work.release()


def local_trouble(state: RayState) -> str | None:
    """What is wrong with the head that `orchestrator up` started; ``None`` when it lives and answers."""
    host, port = state.address.rsplit(":", 1)
    try:
        if not state.running():
            return _last_words(state) or f"the end of its process {state.process.pid} (`ray start`)"
        socket.create_connection((host, int(port)), timeout=PROBE_S).close()
    except ConnectionRefusedError:
        return "no answer of its control service (GCS)"
    except OSError:  # this process cannot look, for want of a file descriptor or so: the head may be well
        return None
    return None


def head_lost(where: str, trouble: str, *, at: float, cure: str, work: Work | None) -> OrchestratorError:
    """Return what a person reads when the head has died: what died and when, and what goes on from here."""
    if work is None:
        return ClusterError(
            f"{where} must live as long as it is used, got {trouble} at {_clock(at)}. {cure} Then repeat this command."
        )
    return RunUnfinishedError(
        f"{where} must live until {work.what} has ended, got {trouble} at {_clock(at)}. The store keeps what was "
        f"written. {cure} Then continue: `{work.command}`."
    )


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


def _watch(where: str, trouble: Callable[[], str | None], patience: Patience, cure: str, stop: threading.Event) -> None:
    since, is_noticed = None, False
    while not stop.wait(LOOK_S):
        found = trouble()
        if found is None:
            if is_noticed:
                _note(f"{where} answers again")
            since, is_noticed = None, False
            continue
        since = since or time.monotonic()
        silent_s, work = time.monotonic() - since, work_in_hand()
        if silent_s >= patience.gone_s:
            _end_process(head_lost(where, found, at=time.time() - silent_s, cure=cure, work=work))
        if not is_noticed and silent_s >= patience.notice_s:
            is_noticed = True
            then = f"; then this command ends, to be continued by: `{work.command}`" if work else ""
            _note(f"{where} gives {found}. It is waited for until {patience.gone_s:.0f} s have passed{then}")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _end_process(error: OrchestratorError) -> None:
    """Let others continue, say why, and end. Nothing else can be cleaned up: Ray would not answer."""
    release_work()
    _tell(error)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(error.exit_code)


def _last_words(state: RayState) -> str | None:
    """Which of Ray's servers died first, as `ray start` recorded before it ended the others."""
    with suppress(OSError):
        record = Path(state.temp_dir) / "ray" / "session_latest" / "logs" / "ray_process_exit.log"
        dead = DEAD_SERVER.findall(record.read_text(errors="replace"))
        if dead:
            return "the death of " + " and ".join(f"{name}, exit code {code}," for name, code in dead)
    return None

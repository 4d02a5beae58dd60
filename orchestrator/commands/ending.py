"""How a command ends: with one clear message and its exit code, and soon when a person presses Ctrl-C."""

import atexit
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import typer

from cluster.errors import ConfigError, OrchestratorError, RunCancelledError, RunInterruptedError

INTERRUPTED = RunInterruptedError.exit_code
QUIET_S = 1.0  # to end by itself, before it is said that this takes longer
IDLE_GRACE_S = 2.0  # for a command that has nothing to write down
WORK_GRACE_S = 20.0  # to write that a run was cancelled, to end its workers and to release it
LINGER_S = 0.5  # for the interpreter to end once all is said; threads of libraries may hold it longer
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports this one of its subclasses alone

GOES_ON: Mapping[str, str] = {
    "data push": "Nothing goes on; no reader sees what was written so far, and the same command completes it",
    "deploy": "What the cluster was told goes on: see `orchestrator endpoints`. Complete it",
    "rollback": "What the cluster was told goes on: see `orchestrator endpoints`. Complete it",
    "undeploy": "What the cluster was told goes on: see `orchestrator endpoints`. Complete it",
    "submit": "The job goes on if it was submitted: see `orchestrator jobs`. Once more",
    "stop": "The job ends if it was told to: see `orchestrator jobs`. Once more",
    "up": "What had started goes on, and `orchestrator down` ends it. Complete it",
    "down": "What still runs goes on. End it",
}
"""Command -> what goes on when a person stops it before there is a run to resume, up to the command that follows."""


class CommandEnd:
    """The end of this process: what it says, and that it does not take for ever."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._told = threading.Event()
        self._interrupted = threading.Event()
        self._lock = threading.Lock()
        self._code = INTERRUPTED

    def tell(self, error: OrchestratorError) -> None:
        """Print an error, once; it may be called from another thread than that which shows bars."""
        public = next(kind.__name__ for kind in type(error).__mro__ if not kind.__name__.startswith("_"))
        self._say(public, str(error), error.exit_code)

    def tell_usage(self, error: Any) -> None:
        """Print what is wrong with the words of the command line."""
        if not self._as_json:
            from typer.rich_utils import rich_format_error

            rich_format_error(error)
        else:
            self._say("UsageError", error.format_message(), error.exit_code)

    def tell_fault(self, error: Exception) -> None:
        """Print an error that nobody expected: a fault of ours, and a traceback helps to report it."""
        from cluster.s3.urls import masked

        sys.stderr.write(masked("".join(traceback.format_exception(error))))
        if self._as_json:
            self._say(type(error).__name__, str(error), 1)

    def _say(self, kind: str, message: str, exit_code: int) -> None:
        from cluster.s3.urls import masked
        from orchestrator.commands.printing.progress import stop_bars
        from orchestrator.commands.terminal import emit

        with self._lock:
            if self._told.is_set():
                return
            stop_bars()
            text = masked(message)
            emit(
                {"error": kind, "message": text, "exit_code": exit_code},
                as_json=self._as_json,
                show=lambda: _print_error(text),
            )
            self._code = exit_code
            self._told.set()

    @contextmanager
    def answering_ctrl_c(self) -> Iterator[None]:
        """Let Ctrl-C raise KeyboardInterrupt, and end the process soon even if something keeps it from ending."""
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.default_int_handler:  # in the background of a shell it is ignored, and stays so
            yield
            return
        signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            yield
        finally:
            if not self._interrupted.is_set():
                signal.signal(signal.SIGINT, before)

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._interrupted.is_set():
            self._end_now()
        self._interrupted.set()
        threading.Thread(target=self._hurry, name="interrupted", daemon=True).start()
        raise KeyboardInterrupt

    def _hurry(self) -> None:
        from cluster.head_watch import work_in_hand
        from orchestrator.commands.terminal import note

        grace_s = WORK_GRACE_S if work_in_hand() else IDLE_GRACE_S
        if not self._told.wait(QUIET_S):
            note("stopping; Ctrl-C again stops at once")
            self._told.wait(grace_s - QUIET_S)
        if self._told.is_set():
            time.sleep(LINGER_S)
        self._end_now()

    def _end_now(self) -> NoReturn:
        """End without waiting for threads, but let others continue what this process works on."""
        from cluster.head_watch import release_work, work_in_hand

        work = work_in_hand()
        if not self._told.is_set():
            releasing = threading.Thread(target=release_work, daemon=True)
            releasing.start()
            releasing.join(IDLE_GRACE_S)
        self.tell(
            RunInterruptedError(f"{work.what} was stopped. Continue it: `{work.command}`.") if work else stopped()
        )
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(self._code)


def run_to_end(command_line: Callable[[], int | None], ending: CommandEnd) -> NoReturn:
    """Run the command line, and end the process with one clear message and an exit code if something is wrong."""
    code: int | None = 1
    try:
        code = command_line()
    except OrchestratorError as error:
        ending.tell(error)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):  # Abort: at a question
        ending.tell(stopped())
        code = INTERRUPTED
    except UsageError as error:
        ending.tell_usage(error)
        code = ConfigError.exit_code
    except Exception as error:
        code = _told_code(error, ending)
    sys.exit(code or 0)


def leave(end: SystemExit) -> NoReturn:
    """End the process as the interpreter would, but for taking the interpreter down.

    A thread of a library in C++ that needs the interpreter then is ended inside of what must not fail, and the process
    aborts (exit code 134: "terminate called without an active exception"), though all was said and done. And it would
    look through a million objects of Ray's, for 0.6 s.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def _told_code(error: Exception, ending: CommandEnd) -> int:
    """Tell a full disk, or a path that cannot be used, by its name; anything else is a fault of ours."""
    from cluster.machine.disk import disk_full_error, is_disk_full
    from cluster.machine.private import refused_error

    if isinstance(error, OSError) and is_disk_full(error):
        full = disk_full_error(error)
        ending.tell(full)
        return full.exit_code
    if isinstance(error, OSError) and (refused := refused_error(error)) is not None:
        ending.tell(refused)
        return refused.exit_code
    ending.tell_fault(error)
    return 1


def stopped() -> RunInterruptedError:
    """What a person reads who has stopped a command that leaves no run to resume."""
    words = sys.argv[1:]
    known = GOES_ON.get(" ".join(words[:2]), GOES_ON.get(" ".join(words[:1]), "Nothing goes on. Begin again"))
    return RunInterruptedError(f"this command was stopped. {known}: `{shlex.join(['orchestrator', *words])}`.")


def confirm(question: str, *, yes: bool) -> None:
    """Return if the person wants it.

    Raises:
        ConfigError: if nobody can be asked.
        RunCancelledError: if the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"--yes must be given where nobody can be asked {question!r}, got no terminal. Add --yes.")
    if not typer.confirm(question, err=True):
        raise RunCancelledError("the answer must be yes to go on, got no. Nothing was changed.")


def _print_error(message: str) -> None:
    from orchestrator.commands.terminal import err, shortened

    err.print("error:", style="bold red", end=" ")
    err.print(shortened(message))

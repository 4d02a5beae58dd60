"""Programs that run on beside this one: started with a private log, found again, and ended by their own ids."""

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import psutil

from cluster.errors import ClusterError
from cluster.machine.private import private_folder
from cluster.machine.state import ProcessRecord, home

T = TypeVar("T")

STOP_GRACE_S = 5.0
ONLY_OURS = 0o077  # umask: whatever the programs write is ours alone


def spawn(command: list[str], *, name: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that a Ctrl-C here does not reach it; it logs to ``log_file``."""
    private_folder(log_file(name).parent)
    log_file(name).write_bytes(b"")
    with log_file(name).open("ab") as output:  # appending: others may cut or add to it meanwhile
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=home(),
            umask=ONLY_OURS,
            start_new_session=True,
        )


class Launches:
    """Programs that are being started together, until it is written down where they are."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        """Once it is set, whoever waits for a program ends it, and no other begins."""
        self._lock = threading.Lock()
        self._ends: list[Callable[[], object]] = []

    def begin(self, start: Callable[[], T], kill: Callable[[T], object]) -> T:
        """Start a program and return it.

        Raises:
            ClusterError: The start was given up before.
        """
        with self._lock:
            if self.given_up.is_set():
                raise ClusterError("the start of the local cluster must not be given up, got an interrupt.")
            started = start()
            self._ends.append(partial(kill, started))
            return started

    def kill(self) -> None:
        """End what has begun without waiting for it; nothing begins after this."""
        self.given_up.set()
        with self._lock:  # one that begins at this moment is among them
            ends = [*self._ends]
        for end in ends:
            end()


def record(pid: int) -> ProcessRecord:
    """Return what tells this process from a later one with the same id."""
    return ProcessRecord(pid=pid, created=psutil.Process(pid).create_time())


def end_processes(processes: list[psutil.Process], *, grace_s: float = STOP_GRACE_S) -> None:
    """Ask the processes to end, wait for it, and kill those that did not within ``grace_s``."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM if grace_s > 0 else signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=grace_s or STOP_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_GRACE_S)


def find_program(name: str, *, cure: str) -> str:
    """Return the path of an installed program.

    Raises:
        ClusterError: There is none of that name.
    """
    beside = Path(sys.executable).with_name(name)  # the environment may not be activated
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ClusterError(f"the program {name!r} must be installed, got none. {cure}")
    return found


def log_file(name: str) -> Path:
    """Return the file that holds what a program printed."""
    return home() / "logs" / f"{name}.log"


def last_words(name: str) -> str:
    """Return the end of a program's log on one line."""
    lines = log_file(name).read_text(errors="replace").split("\n")
    return " | ".join(line.strip() for line in lines if line.strip())[-600:]


def free_ports(count: int) -> list[int]:
    """Choose distinct ports below those that Linux hands out to programs that name none."""
    return list(islice(filter(is_free, random.sample(range(23000, 29999), k=6999)), count))


def is_free(port: int) -> bool:
    """Return whether a server on this machine could take the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def listening_at(port: int, processes: Iterable[psutil.Process]) -> psutil.Process | None:
    """Return which of the processes listens at a port; ``None`` if none of them does."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            connections = process.net_connections("tcp")
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
                return process
    return None


def port_answers(port: int) -> bool:
    """Return whether a server listens at the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

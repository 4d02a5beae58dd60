"""The local Ray head: on loopback, with a token, its files in a folder that no other account can enter.

Ray opens its own folder to everybody (mode 0777), so it gets one inside a folder that stays closed. The README shows
how to start a head by hand that is closed like this one.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil

from cluster.errors import ClusterError
from cluster.machine.private import require_private, write_private
from cluster.machine.processes import (
    Launches,
    end_processes,
    free_ports,
    last_words,
    log_file,
    port_answers,
    record,
    spawn,
)
from cluster.machine.state import RayState, home

MARK = "ORCHESTRATOR_RAY_TEMP_DIR"  # in the environment of every process below our Ray head, to find them again
SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
SECRET_ENDINGS = (
    "TOKEN", "SECRET", "SECRET_KEY", "ACCESS_KEY", "ACCESS_KEY_ID", "PRIVATE_KEY", "API_KEY", "APIKEY",
    "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIALS",
)  # fmt: skip
FOREIGN_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_AUTH_TOKEN")
START_S = 90.0  # seconds on a quiet machine, a minute on a crowded one
GRACE_S = 2.0  # a raylet drains for up to 30 s, for nobody: all its workers end with it
OPEN_CURE = "Run `orchestrator down`, then `orchestrator up`."


class Ports(NamedTuple):
    """Where the head listens for clients; its other ports are its own choice."""

    gcs: int
    dashboard: int
    client: int


def start_ray(cpus: int | None, gpus: int | None, launches: Launches) -> RayState:
    """Start the head and return where it is.

    Raises:
        ClusterError: It did not start (the message ends with its last words), or its files are open to others.
    """
    resources = [
        *([] if cpus is None else [f"--num-cpus={cpus}"]),
        *([] if gpus is None else [f"--num-gpus={gpus}"]),
    ]
    process, state = launches.begin(lambda: _spawn(resources), lambda started: stop_ray(started[1], grace_s=0))
    try:
        _wait(process, state, launches.given_up)
        require_closed(state)
    except ClusterError:
        stop_ray(state)
        raise
    return state


def _spawn(resources: Sequence[str]) -> tuple[subprocess.Popen[bytes], RayState]:
    token_file = home() / "ray_token"
    if not token_file.exists():
        write_private(token_file, secrets.token_hex(32))
    temp_dir = tempfile.mkdtemp(prefix="orchestrator-", dir="/tmp")  # mode 700; short: see ``_ray_dir``
    ports = Ports(*free_ports(len(Ports._fields)))
    command = [*_command(temp_dir, ports), "--block", *resources]
    process = spawn(command, name="ray", environment=ray_environment(token_file, temp_dir))
    state = RayState(
        process=record(process.pid),
        address=f"127.0.0.1:{ports.gcs}",
        dashboard_url=f"http://127.0.0.1:{ports.dashboard}",
        token_file=str(token_file),
        temp_dir=temp_dir,
    )
    return process, state


def _command(temp_dir: str, ports: Ports) -> list[str]:
    """Return the command that starts a head on loopback; it needs the environment of ``ray_environment``."""
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
        "--node-ip-address=127.0.0.1",
        f"--port={ports.gcs}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports.dashboard}",
        f"--ray-client-server-port={ports.client}",
        "--dashboard-agent-listen-port=0",
        "--min-worker-port=0",  # the default range, 10002-19999, is shared by every cluster of the machine
        "--max-worker-port=0",
        f"--temp-dir={_ray_dir(temp_dir)}",
        "--disable-usage-stats",
    ]


def ray_environment(token_file: Path, temp_dir: str) -> dict[str, str]:
    """Return the environment of the Ray head, which all its workers inherit: no keys of the user in it."""
    return {
        **{name: value for name, value in os.environ.items() if not _is_hidden(name)},
        MARK: temp_dir,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Processes started ahead, which cannot serve our work: they lack our code, and take its CPUs while it starts
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        # Despite its name: off, Ray keeps 127.0.0.1 as its address and listens there alone; on, it listens everywhere.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),  # `python` of a job
    }


def _is_hidden(variable: str) -> bool:
    """Whether a variable holds a secret, by its name, or leads to another cluster; a path to a secret is not one."""
    return variable in (*SECRET_VARIABLES, *FOREIGN_VARIABLES) or variable.upper().endswith(SECRET_ENDINGS)


def require_closed(state: RayState) -> None:
    """Refuse a head whose files another account could change: it would run that account's code as ours.

    Raises:
        ClusterError: The folder around its files is open, or not ours.
    """
    require_private(Path(state.temp_dir), cure=OPEN_CURE)


def answers(state: RayState) -> bool:
    """Return whether the head's control service (GCS) listens."""
    return port_answers(int(state.address.rsplit(":", 1)[1]))


def stop_ray(state: RayState, *, grace_s: float = GRACE_S) -> str:
    """End every process of the head, remove its files, and return in words what was ended."""
    processes = ray_processes(state)
    end_processes(processes, grace_s=grace_s)
    end_processes(ray_processes(state), grace_s=0)  # what was born meanwhile
    shutil.rmtree(state.temp_dir, ignore_errors=True)
    return f"ended Ray at {state.address} ({len(processes)} processes)"


def ray_processes(state: RayState) -> list[psutil.Process]:
    """Return every live process that descends from our Ray head, even one whose parent is gone.

    Ray's workers have a session of their own and are known by the mark in their environment; its agents write a title
    over theirs, and are known by the session that the head began.
    """
    sessions = set(_sessions(state))
    return [
        process
        for process in psutil.process_iter()
        if _is_alive(process) and (_mark(process) == state.temp_dir or _session(process) in sessions)
    ]


def _ray_dir(temp_dir: str) -> str:
    """Return the folder for Ray; the paths of its Unix sockets, 70 characters longer, must stay below 108 bytes."""
    return f"{temp_dir}/ray"


def _wait(process: subprocess.Popen[bytes], state: RayState, stop: threading.Event) -> None:
    """Return once the head has started all its processes and the dashboard answers our token."""
    deadline = time.monotonic() + START_S
    token = Path(state.token_file).read_text()
    while not (b"Ray runtime started" in log_file("ray").read_bytes() and _dashboard_answers(state, token)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ClusterError(
                f"the local Ray head must start within {START_S:.0f} s, got "
                f"{'no answer' if process.returncode is None else f'exit code {process.returncode}'}. "
                f"See {log_file('ray')}; its last words: {last_words('ray')}"
            )
        if stop.wait(0.05):
            raise ClusterError("the start of the local Ray head must not be given up, got an interrupt.")


def _dashboard_answers(state: RayState, token: str) -> bool:
    request = Request(f"{state.dashboard_url}/api/version", headers={"Authorization": f"Bearer {token}"})
    try:
        with urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _sessions(state: RayState) -> Iterator[int]:
    """Yield the head's session, unless its id belongs to a later process by now."""
    head = state.process
    if head.find() is not None or not psutil.pid_exists(head.pid):
        yield head.pid


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # another user's, or just ended
        return None


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None

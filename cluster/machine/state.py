"""What ``orchestrator up`` has started on this machine, remembered in one folder that only its owner can read."""

import os
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from cluster.config import StoreSettings
from cluster.errors import ConfigError, IntegrityError
from cluster.machine.files import read_file
from cluster.machine.private import DEFAULT_HOME, HOME_VARIABLE, write_private
from cluster.s3.stored_json import MOST_BYTES, parse_model

STATE_FILE = "local.json"


class ProcessRecord(BaseModel):
    """A process that we started. The creation time tells it from a later one with the same id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    created: float
    """Seconds since the epoch, as the kernel reports it."""

    def find(self) -> psutil.Process | None:
        """Return the live process, or ``None`` when it has ended."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 0.01  # it is rounded in the file
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class RayState(BaseModel):
    """The local Ray head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessRecord
    address: str
    """Where ``ray.init`` connects: ``HOST:PORT`` of the cluster's control service."""
    dashboard_url: str
    token_file: str
    temp_dir: str
    """The folder around its files, which nobody else can enter."""

    def running(self) -> bool:
        """Whether its process is alive."""
        return self.process.find() is not None


class StoreState(BaseModel):
    """The local object store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessRecord
    settings: StoreSettings
    temp_dir: str | None = None
    """The folder of its Unix sockets; ``None`` where an earlier release started it."""

    def running(self) -> bool:
        """Whether its process is alive."""
        return self.process.find() is not None


class LocalState(BaseModel):
    """Both halves of the local cluster; ``None`` stands for a half that was not started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ray: RayState | None = None
    store: StoreState | None = None


def home() -> Path:
    """Return the folder of the local cluster: ``$ORCHESTRATOR_HOME``, or ``~/.orchestrator``.

    Raises:
        ConfigError: There is no home to be found.
    """
    value = os.environ.get(HOME_VARIABLE)
    try:
        return Path(value or DEFAULT_HOME).expanduser().absolute()
    except RuntimeError:  # `~` of nobody, or no HOME and an account without a home
        raise ConfigError(f"{HOME_VARIABLE} must be the folder of an account, got {value or 'none'}. Set it.") from None


def read_state() -> LocalState:
    """Return what runs: what was started, dead halves left out.

    Raises:
        ConfigError: The state file is not one that this version wrote.
    """
    state = read_started()
    return LocalState(
        ray=state.ray if state.ray and state.ray.running() else None,
        store=state.store if state.store and state.store.running() else None,
    )


def read_started() -> LocalState:
    """Return what was started, whether it still runs or not; it raises like ``read_state``."""
    path = home() / STATE_FILE
    if not path.exists():
        return LocalState()
    cure = "Delete the file, then run `orchestrator up`."
    try:
        body = read_file(path, most_bytes=MOST_BYTES)
        return parse_model(LocalState, body, where=str(path), what="a state that `orchestrator up` wrote", cure=cure)
    except IntegrityError as error:
        raise ConfigError(str(error)) from None


def write_state(state: LocalState) -> None:
    """Replace the state file in one step."""
    write_private(home() / STATE_FILE, state.model_dump_json(indent=2) + "\n")

"""What was deployed to the local cluster, kept in the user's folder: Ray Serve forgets it when its head ends."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.config import Name, StoreSettings
from cluster.errors import ConfigError
from cluster.machine.state import ProcessRecord, RayState, StoreState, home
from cluster.s3.store import Store

FOLDER = "deployed"


class Deployed(BaseModel):
    """All that it takes to serve an endpoint again: ``$ORCHESTRATOR_HOME/deployed/NAME.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    version: str
    replicas: int
    cpus: float
    """CPUs that each replica reserves."""
    url: str
    """The gateway's address, which clients know."""
    store: StoreSettings
    """The store with the registry."""
    head: ProcessRecord
    """The Ray head that served it; no other one knows of it."""


def remember(deployed: Deployed) -> None:
    """Keep what was deployed, in a file that only its owner can read; an older record of that name is replaced."""
    path = _path(deployed.name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(deployed.model_dump_json(indent=2) + "\n")
    fresh.replace(path)


def forget(name: str) -> bool:
    """Drop the record of an endpoint; return whether there was one."""
    found = _path(name).exists()
    _path(name).unlink(missing_ok=True)
    return found


def forget_deleted() -> None:
    """Drop the records of endpoints whose models went with the data of the local store."""
    for deployed in _all():
        if _is_local(deployed.store):
            forget(deployed.name)


def gone_endpoints(head: RayState | None) -> list[Deployed]:
    """Return, by name, the endpoints that an earlier head served; empty where no head runs that could serve them.

    Raises:
        ConfigError: A record is not one that this version wrote.
    """
    return [deployed for deployed in _all() if head is not None and deployed.head != head.process]


def store_of(deployed: Deployed, local: StoreState | None) -> Store:
    """Open the store with an endpoint's registry; the local one may have another address since."""
    settings = deployed.store
    if local is not None and _is_local(settings):
        settings = settings.model_copy(update={"endpoint_url": local.settings.endpoint_url})
    return Store(settings)


def _all() -> list[Deployed]:
    return [_read(path) for path in sorted((home() / FOLDER).glob("*.json"))]


def _read(path: Path) -> Deployed:
    try:
        return Deployed.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(
            f"{path} must be a record that `orchestrator deploy` wrote, got {error.errors()[0]['msg']!r}. "
            "Delete the file, then deploy that model again."
        ) from None


def _path(name: str) -> Path:
    return home() / FOLDER / f"{name}.json"


def _is_local(settings: StoreSettings) -> bool:
    return settings.credentials_file == str(home() / "credentials")

"""Which Ray cluster is meant: an address in any of Ray's forms, or the place where one is named."""

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from cluster.errors import ClusterError, ConfigError
from cluster.machine.state import RayState, read_state
from cluster.s3.connection import is_loopback
from cluster.s3.urls import shown_url

ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")
START_CURE = "Run `orchestrator up`, or start one as the README shows and give its address."


@dataclass(frozen=True)
class ClusterAddress:
    """Where a Ray cluster is, and who said so."""

    address: str
    """``HOST:PORT``, ``ray://HOST:PORT`` or the dashboard's ``http(s)://HOST:PORT``."""
    source: str
    """``--address``, the name of a variable, or ``the local cluster``."""
    local: RayState | None = None
    """Set when it is the cluster that ``orchestrator up`` started."""

    @property
    def scheme(self) -> str:
        """``http``, ``https`` or ``ray``; empty for ``HOST:PORT``."""
        return self.address.split("://")[0] if "://" in self.address else ""

    @property
    def host(self) -> str:
        """The machine's name or address."""
        return urlsplit(self.address if self.scheme else f"//{self.address}").hostname or ""

    @property
    def port(self) -> int:
        """The TCP port; where none is given, the scheme's."""
        parts = urlsplit(self.address if self.scheme else f"//{self.address}")
        return parts.port or {"http": 80, "https": 443, "ray": 10001}.get(parts.scheme, 6379)


def resolve_address(address: str | None = None) -> ClusterAddress:
    """Return the cluster that the argument, Ray's variables or the local state name, in this order.

    Raises:
        ClusterError: None of them names one.
        ConfigError: The address has none of Ray's forms.
    """
    candidates = [(address, "--address"), *((os.environ.get(name), name) for name in ADDRESS_VARIABLES)]
    local = read_state().ray
    for value, source in candidates:
        if value and value != "auto":
            return _parsed(value, source, local)
        if value == "auto":
            break
    if local is None:
        raise ClusterError(f"a Ray cluster must be running, got none. {START_CURE}")
    return ClusterAddress(local.address, "the local cluster", local)


def named_cluster() -> ClusterAddress | None:
    """Return the cluster that one of Ray's variables names; ``None`` when the local one is meant."""
    named = any(os.environ.get(name, "auto") != "auto" for name in ADDRESS_VARIABLES)
    return resolve_address() if named else None


def _parsed(value: str, source: str, local: RayState | None) -> ClusterAddress:
    found = ClusterAddress(value.removesuffix("/"), source)
    if not re.fullmatch(r"(ray|https?)://[^/@?#]+|[^/@?#]+:\d+", found.address) or not _is_valid(found):
        raise ConfigError(
            f"the cluster's address must be HOST:PORT, ray://HOST:PORT, http(s)://HOST:PORT or auto, "
            f"got {shown_url(value)!r} (from {source})."
        )
    ours = local is not None and is_loopback(found.host) and found.port in _ports(local)
    return ClusterAddress(found.address, source, local if ours else None)


def _is_valid(found: ClusterAddress) -> bool:
    try:
        return bool(found.host) and found.port > 0
    except ValueError:  # a port that is no number, or too large
        return False


def _ports(local: RayState) -> tuple[int, int]:
    return int(local.address.rsplit(":", 1)[1]), int(local.dashboard_url.rsplit(":", 1)[1])

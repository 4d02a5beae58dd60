"""Where the workers of a group find each other: keys in the cluster's control service, which asks for its token.

PyTorch's own meeting point, a TCPStore, is a server on every interface that serves whoever connects.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store

from cluster.nodes import MEETINGS, control_keys

POLL_S = 0.005


class Meeting(Store):
    """A key-value store that the processes connected to a Ray cluster share; see `torch.distributed.Store`.

    Args:
        name: Of the group; groups of different names do not see each other's keys.
        timeout: How long to wait for a key.
    """

    def __init__(self, name: str, *, timeout: timedelta) -> None:
        super().__init__()
        self._name, self._timeout = name, timeout
        self._kv: Any = control_keys()

    @property
    def timeout(self) -> timedelta:
        """How long to wait for a key."""
        return self._timeout

    def set_timeout(self, timeout: timedelta) -> None:
        """Change how long to wait for a key."""
        self._timeout = timeout

    def set(self, key: str, value: str | bytes) -> None:
        """Write a value, over one that is there."""
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._kv._internal_kv_put(self._key(key), data, overwrite=True, namespace=MEETINGS)

    def get(self, key: str) -> bytes:
        """Return a value, once somebody has written it.

        Raises:
            RuntimeError: Nobody has within the timeout.
        """
        self.wait([key])
        found: bytes = self._kv._internal_kv_get(self._key(key), namespace=MEETINGS)
        return found

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Return once all keys are there.

        Raises:
            RuntimeError: They are not within the timeout.
        """
        limit = self._timeout if timeout is None else timeout
        ends = time.monotonic() + limit.total_seconds()
        while not self.check(keys):
            if time.monotonic() > ends:
                raise RuntimeError(f"the workers of a group must meet within {limit}, got no {', '.join(keys)}.")
            time.sleep(POLL_S)

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys are there."""
        return all(self._kv._internal_kv_exists(self._key(key), namespace=MEETINGS) for key in keys)

    def _key(self, key: str) -> bytes:
        return f"{self._name}/{key}".encode()

"""Reads the errors that a group of workers raises: whose they are, and which only follow."""

from cluster.errors import RunFailedError


class HungError(RunFailedError):
    """A worker gives no sign of life, or its training does not get on."""


def unwrapped(error: Exception) -> Exception:
    """A worker's own error, without what Ray Train wraps it in, and with its traceback as a note."""
    for name in ("_base_exc", "health_check_failure", "controller_failure"):
        inner = getattr(error, name, None)
        if isinstance(inner, Exception):
            if name == "_base_exc" and not getattr(inner, "__notes__", None):
                inner.add_note(getattr(error, "_traceback_str", ""))
            return inner
    return error


def is_collateral(error: Exception) -> bool:
    """Whether this worker only noticed that another had gone."""
    return any(word in str(error) for word in ("Connection closed by peer", "Connection reset", "gloo", "NCCL"))

"""The endpoint's token: from the environment, or one that is created once and kept in the user's folder."""

import hashlib
import os
import secrets
from pathlib import Path

from cluster.errors import ConfigError
from cluster.state import home

TOKEN_VARIABLE = "ORCHESTRATOR_ENDPOINT_TOKEN"
TOKEN_FILE = "endpoint_token"
TOKEN_BYTES = 32


def token_path() -> Path:
    """Where the token is kept when the environment gives none."""
    return home() / TOKEN_FILE


def read_token() -> str | None:
    """The token that clients send: the environment's, else the first line of the file, else ``None``."""
    return next(iter(_tokens()), None)


def ensure_tokens() -> list[str]:
    """All valid tokens, the one to send first; creates one when there is none.

    A second line in the file is a token that stays valid while clients change over to the first.

    Raises:
        ConfigError: if a token is empty or not printable ASCII, which no HTTP header can carry.
    """
    if not _tokens():
        _create(token_path())
    tokens = _tokens()
    if not all(token.isascii() and token.isprintable() and " " not in token for token in tokens):
        raise ConfigError(f"a token must be printable ASCII without spaces, got another. Delete {token_path()}.")
    return tokens


def token_sha256(token: str) -> str:
    """What the gateway knows of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def _tokens() -> list[str]:
    if token := os.environ.get(TOKEN_VARIABLE):
        return [token]
    path = token_path()
    return path.read_text("utf-8").split() if path.exists() else []


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")

"""Where the gateway is, its names, and the token that opens it: from the environment, or kept in the user's folder."""

import hashlib
import os
import re
import secrets
from pathlib import Path

from cluster.errors import ConfigError
from cluster.machine.private import naming_folder
from cluster.machine.state import home

URL_VARIABLE = "ORCHESTRATOR_ENDPOINT"
URL_FILE = "endpoint_url"
DEFAULT_URL = "http://127.0.0.1:8000"
TOKEN_VARIABLE = "ORCHESTRATOR_ENDPOINT_TOKEN"
TOKEN_FILE = "endpoint_token"
TOKEN_BYTES = 32
HOSTS_VARIABLE = "ORCHESTRATOR_ENDPOINT_HOSTS"


def read_url() -> str:
    """The gateway that clients ask: the environment's, else the one deployed last from here, else Serve's default."""
    path = home() / URL_FILE
    return os.environ.get(URL_VARIABLE) or (path.read_text("utf-8").strip() if path.exists() else DEFAULT_URL)


def write_url(url: str) -> None:
    """Remember the gateway for clients on this machine."""
    with naming_folder():
        home().mkdir(parents=True, exist_ok=True, mode=0o700)
        (home() / URL_FILE).write_text(url + "\n", "utf-8")


def read_allowed_hosts() -> tuple[str, ...]:
    """Names by which a proxy in front of the gateway is reached, from the environment, with spaces or commas between.

    Raises:
        ConfigError: if one is no host name, or has more than a name and a port.
    """
    names = tuple(os.environ.get(HOSTS_VARIABLE, "").replace(",", " ").split())
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?", name):
            raise ConfigError(f"{HOSTS_VARIABLE} must hold names like models.example.com, got {name!r}.")
    return names


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
    with naming_folder():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")

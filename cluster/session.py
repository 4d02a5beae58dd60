"""Finds the Ray cluster that is meant and connects to it, with the right token and our own code on its workers."""

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cluster.address import ADDRESS_VARIABLES, START_CURE, ClusterAddress, resolve_address
from cluster.config import StoreSettings
from cluster.errors import ClusterError
from cluster.head_watch import LOCAL, REMOTE, local_trouble, watching_head
from cluster.lazy import imported
from cluster.machine.exposure import listens_beyond_loopback, warn_if_open
from cluster.machine.proxies import spare_loopback
from cluster.machine.ray_head import require_closed
from cluster.machine.state import RayState, read_state
from cluster.nodes import ask_alive
from cluster.process.scoped import scoped_environment
from cluster.s3.connection import PLAIN_HTTP_VARIABLE, is_loopback
from cluster.staging import content_check, stage

NAMESPACE = "orchestrator"
STORE_VARIABLES = (
    "ORCHESTRATOR_STORE",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    PLAIN_HTTP_VARIABLE,
)
HOOK_VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"  # Ray's, in the workers of a job; another in each job
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the driver of a submitted job
CONNECT_S = 10.0


@contextmanager
def ray_session(
    address: str | None = None,
    *,
    store: StoreSettings | None = None,
    environment: Mapping[str, str] | None = None,
    log_to_driver: bool = False,
    allow_unauthenticated: bool = False,
    serves: bool = False,
) -> Iterator[ClusterAddress]:
    """Connect this process to the cluster; its workers import our packages and can reach the store.

    Within a connected process (a nested call, a task, a Tune trial) it joins what is there and leaves it open.
    Should the cluster's head die meanwhile, the process ends and says so, see ``cluster/head_watch.py``.

    Args:
        address: See ``resolve_address``.
        store: Its place and profile, never its keys, are put into the workers' environment.
        environment: More variables for the workers; nothing secret, Ray shows them to every client.
        log_to_driver: Print what the workers print.
        allow_unauthenticated: Accept a cluster on another machine that asks for no token.
        serves: The session may deploy. Serve starts replicas again after this process has ended, and with it ends the
            check of the code's hash that new workers make otherwise.

    Raises:
        ClusterError: No cluster, not reachable, other versions of Ray or Python, a wrong token, or no token check.
    """
    import ray

    found = resolve_address(address)
    if ray.is_initialized():
        _require_same(found, ray.get_runtime_context().gcs_address)
        yield found
        return
    if found.scheme in ("http", "https"):
        raise ClusterError(
            f"a session's address must be HOST:PORT or ray://HOST:PORT, got {found.address} (from {found.source}). "
            "Use `orchestrator submit` with this one."
        )
    with client_environment(found):
        require_token(found, allow_unauthenticated=allow_unauthenticated)
        check_reachable(found)
        warn_if_open(found)
        variables = store_environment(store) | dict(environment or {})
        runtime_env: dict[str, Any] = {"working_dir": str(stage()), "env_vars": variables}
        if not serves:
            runtime_env["worker_process_setup_hook"] = content_check()
        with _watching_head(found):
            _connect(found, _without_jobs_own(runtime_env), log_to_driver=log_to_driver)
            try:
                yield found
            finally:
                ray.shutdown()


def cluster_resources() -> dict[str, float]:
    """Return what the connected cluster has in all: ``{"CPU": 4.0, "GPU": 1.0, ...}``."""
    ray: Any = imported("ray")
    return {name: float(amount) for name, amount in ray.cluster_resources().items()}


def local_head() -> RayState | None:
    """Return the local Ray head if it is the one that this process is connected to."""
    ray: Any = imported("ray")
    head = read_state().ray
    return head if head is not None and ray.get_runtime_context().gcs_address == head.address else None


def num_nodes() -> int:
    """Return how many machines of the connected cluster are alive."""
    ray: Any = imported("ray")
    return sum(bool(node["Alive"]) for node in ray.nodes())


def require_resources(*, cpus: float = 0, gpus: float = 0) -> None:
    """Refuse what the connected cluster can never hold; Ray itself would wait for ever.

    Raises:
        ClusterError: It has less.
    """
    there = cluster_resources()
    for kind, asked in (("CPU", cpus), ("GPU", gpus)):
        has = there.get(kind, 0.0)
        if asked > has:
            raise ClusterError(
                f"the cluster must have {asked:g} {kind}s, got {has:g}. "
                f"Ask for fewer workers, or add nodes (locally: `orchestrator down`, then `orchestrator up` "
                f"with --{kind.lower()}s)."
            )


def store_environment(store: StoreSettings | None) -> dict[str, str]:
    """Return the variables that tell boto3 and us where the store is; no key is among them."""
    if store is None:
        return {}
    plain_http = os.environ.get(PLAIN_HTTP_VARIABLE)  # what the driver may, its workers may, of a source too
    values = (store.url, store.endpoint_url, store.region, store.profile, store.credentials_file, plain_http)
    return {name: value for name, value in zip(STORE_VARIABLES, values, strict=True) if value is not None}


@contextmanager
def client_environment(found: ClusterAddress) -> Iterator[None]:
    """Let Ray's clients in this process use the cluster's token, and nothing but its address; then undo it.

    Ray keeps both in process-wide caches and lets its variables override an address given as an argument.

    Raises:
        ClusterError: It is the local cluster, and its files are open to other accounts.
    """
    from ray._private import ray_constants

    spare_loopback()
    if found.local is not None:
        require_closed(found.local)
    cluster_mode = ray_constants.ENABLE_RAY_CLUSTER
    if is_loopback(found.host) and not listens_beyond_loopback(found):
        # Otherwise Ray replaces 127.0.0.1 by an address on which this head does not listen, and waits for minutes.
        ray_constants.ENABLE_RAY_CLUSTER = False
    token: dict[str, str | None] = {name: os.environ.get(name) for name in TOKEN_VARIABLES}  # Ray changes them itself
    token.update(_token_variables(found))
    try:
        with scoped_environment(token | dict.fromkeys(ADDRESS_VARIABLES)):
            _forget_token()
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = cluster_mode
        _forget_token()


def require_token(found: ClusterAddress, *, allow_unauthenticated: bool) -> None:
    """Refuse to hand work to a cluster on another machine without a token: anybody could do the same.

    Call it within ``client_environment``.

    Raises:
        ClusterError: There is no token and ``allow_unauthenticated`` is false.
    """
    if is_loopback(found.host) or JOB_VARIABLE in os.environ or allow_unauthenticated:
        return
    if os.environ.get("RAY_AUTH_MODE") != "token":
        raise ClusterError(
            f"a cluster on another machine must check a token, got {found.address} without one. Start it with "
            "RAY_AUTH_MODE=token and set RAY_AUTH_TOKEN_PATH here to the file with its token."
        )


def token_header() -> dict[str, str]:
    """Return the HTTP header with the cluster's token, empty without one; call it within ``client_environment``."""
    raylet: Any = imported("ray._raylet")
    return dict(raylet.AuthenticationTokenLoader.instance().get_token_for_http_header())


def check_reachable(found: ClusterAddress) -> None:
    """Ask the cluster for its version; call it within ``client_environment``.

    Ray's own clients may try a dead address for minutes.

    Raises:
        ClusterError: No answer in time, another version of Ray, or our token is refused.
    """
    if found.scheme:
        _require_port(found)
        return
    import ray

    grpc: Any = imported("grpc")
    try:
        reply = ask_alive(found.host, found.port, timeout_s=CONNECT_S, headers=token_header())
    except grpc.RpcError as error:
        raise _probe_error(found, error.code().name) from error
    if reply.ray_version != ray.__version__:
        raise ClusterError(
            f"the cluster at {found.address} must run Ray {ray.__version__} like this machine, "
            f"got Ray {reply.ray_version}. Install the same version on both."
        )


def _require_same(found: ClusterAddress, connected: str) -> None:
    host, port = connected.rsplit(":", 1)
    same_host = found.host == host or is_loopback(found.host)
    if found.scheme == "" and not (same_host and found.port == int(port)):
        raise ClusterError(
            f"a process can be connected to one cluster, got {found.address} (from {found.source}) "
            f"while connected to {connected}. End that session first."
        )


def _token_variables(found: ClusterAddress) -> dict[str, str]:
    """Pin Ray's mode: left open, some of its clients would send the token and others not."""
    if found.local is not None:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": found.local.token_file}
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    has_token = (
        "RAY_AUTH_TOKEN" in os.environ
        or "RAY_AUTH_TOKEN_PATH" in os.environ
        or (Path.home() / ".ray" / "auth_token").exists()
    )
    return {"RAY_AUTH_MODE": "token" if has_token else "disabled"}


def _forget_token() -> None:
    """Make Ray read the mode and the token from the environment again."""
    raylet: Any = imported("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _probe_error(found: ClusterAddress, code: str) -> ClusterError:
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ClusterError(
            f"the cluster at {found.address} must accept our token, got {code}. "
            "Set RAY_AUTH_TOKEN_PATH to the file with its token."
        )
    return _unreachable(found, code)


class _UnreachableError(ClusterError):
    """Nobody answers at the cluster's address."""


def _unreachable(found: ClusterAddress, reason: str) -> ClusterError:
    return _UnreachableError(
        f"the Ray cluster at {found.address} (from {found.source}) must answer within {CONNECT_S:.0f} s, "
        f"got {reason}. {START_CURE}"
    )


def _require_port(found: ClusterAddress) -> None:
    try:
        socket.create_connection((found.host, found.port), timeout=CONNECT_S).close()
    except OSError as error:
        raise _unreachable(found, type(error).__name__) from error


def _watching_head(found: ClusterAddress) -> AbstractContextManager[None]:
    if found.local is not None:
        return watching_head(
            f"the local Ray head at {found.address}",
            partial(local_trouble, found.local),
            patience=LOCAL,
            cure="Start it again: `orchestrator up`.",
        )
    return watching_head(
        f"the head of the Ray cluster at {found.address}",
        partial(_silence, found),
        patience=REMOTE,
        cure="Bring it back, or name another cluster with --address.",
    )


def _silence(found: ClusterAddress) -> str | None:
    """What is wrong with a head on another machine; ``None`` when it answers, be it to refuse us."""
    try:
        check_reachable(found)
    except _UnreachableError:
        return "no answer"
    except ClusterError:
        pass
    return None


def _connect(found: ClusterAddress, runtime_env: dict[str, Any], *, log_to_driver: bool) -> None:
    import ray

    try:
        ray.init(
            address=found.address,
            namespace=NAMESPACE,
            runtime_env=runtime_env,
            log_to_driver=log_to_driver,
            logging_level=logging.WARNING,
        )
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise ClusterError(
            f"the cluster at {found.address} must run the same Ray and Python as this machine. "
            f"{' '.join(str(error).split())} Install the same versions on both."
        ) from error
    except ConnectionError as error:
        raise _unreachable(found, type(error).__name__) from error


def _without_jobs_own(runtime_env: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a submitted job has set already; Ray refuses to be told twice."""
    text = os.environ.get(JOB_VARIABLE)
    if text is None:
        return runtime_env
    jobs_own = json.loads(text).get("runtime_env", {})
    variables = {k: v for k, v in runtime_env["env_vars"].items() if k not in jobs_own.get("env_vars", {})}
    rest = {key: value for key, value in runtime_env.items() if key not in jobs_own}
    return {**rest, "env_vars": variables}

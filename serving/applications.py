"""Applications of Ray Serve on the connected cluster: started, watched and ended."""

import logging
import socket
import time

import psutil
import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatusOverview

from cluster.errors import ClusterError, ConfigError, RunFailedError
from cluster.machine.ray_head import ray_processes
from cluster.machine.state import read_state
from cluster.process.scoped import scoped_level
from serving.app import GATEWAY, MODEL_PREFIX, PROXY_TIMEOUT_S, running_replicas
from serving.http.proxy import CONTROLLER_ENVIRONMENT
from serving.http.sockets import require_loopback

LOOPBACK = "127.0.0.1"
POLL_S = 0.2

quietly = scoped_level("ray.serve", logging.WARNING)  # at INFO Serve tells whoever deploys about its own connections


@quietly
def run_application(
    application: serve.Application, app_name: str, *, route_prefix: str | None, deadline: float, what: str
) -> None:
    """Start an application and wait until Serve calls it running.

    Raises:
        RunFailedError: with the replica's own error, or with what Serve was waiting for, or because a replica on the
            local cluster listens beyond loopback.
    """
    target = serve.RunTarget(target=application, name=app_name, route_prefix=route_prefix)
    serve.run_many([target], wait_for_applications_running=False)
    while True:
        overview = serve.status().applications[app_name]
        if overview.status == "RUNNING":
            return _require_loopback(app_name, what=what)
        if overview.status == "DEPLOY_FAILED":
            raise RunFailedError(f"{what} must start, got an error in its replica:\n{reason_of(overview)}")
        if time.monotonic() > deadline:
            raise RunFailedError(f"{what} must start in time, got no running replica: {reason_of(overview)}")
        time.sleep(POLL_S)


def _require_loopback(app_name: str, *, what: str) -> None:
    """On the local cluster: refuse replicas that others on the network can reach.

    Raises:
        RunFailedError: if one listens beyond loopback.
    """
    ray_state = read_state().ray
    if ray_state is None or ray.get_runtime_context().gcs_address != ray_state.address:
        return
    title = f"ServeReplica:{app_name}:"
    replicas = [process for process in ray_processes(ray_state) if title in _title(process)]
    require_loopback(replicas, what=f"each replica of {what}")


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def reason_of(overview: ApplicationStatusOverview) -> str:
    """What Serve says of an application that does not run."""
    texts = [overview.message, *(d.message for d in overview.deployments.values())]
    return "\n".join(dict.fromkeys(text for text in texts if text)) or str(overview.status.value)


@quietly
def start_proxy(*, host: str, port: int) -> str:
    """Start Serve with its HTTP proxy on the head node."""
    others = [app for app in all_applications() if app != GATEWAY and not app.startswith(MODEL_PREFIX)]
    if others:
        raise ClusterError(
            f"Ray Serve must run for orchestrator alone, got the applications {', '.join(others)}, whose HTTP address "
            "cannot be changed. Remove them, or use another cluster."
        )
    end_serve()  # one that is left over keeps its address and ignores ours
    port = port or _free_port(host)
    require_free(host, port)
    options = {"host": host, "port": port, "request_timeout_s": PROXY_TIMEOUT_S}
    controller = {"runtime_env": {"env_vars": CONTROLLER_ENVIRONMENT}}
    serve.start(proxy_location="HeadOnly", http_options=options, controller_options=controller)
    return f"http://{host}:{port}"


@quietly
def gateway_url() -> str | None:
    """URL of the gateway that runs; ``None`` when none does."""
    gateway = all_applications().get(GATEWAY)
    if gateway is None or not running_replicas(gateway):
        return None
    return str(serve.get_app_handle(GATEWAY).url.remote().result(timeout_s=PROXY_TIMEOUT_S))


def all_applications() -> dict[str, ApplicationStatusOverview]:
    """Serve's applications by name; none when it does not run."""
    try:
        return dict(serve.status().applications)
    except RayServeException:
        return {}


@quietly
def end_serve() -> None:
    """End Ray Serve on the connected cluster."""
    serve.shutdown()  # type: ignore[no-untyped-call]


@quietly
def stop_when_unused() -> None:
    """End Ray Serve once no model is served any more."""
    applications = all_applications()
    if any(app.startswith(MODEL_PREFIX) for app in applications):
        return
    if GATEWAY in applications:
        serve.delete(GATEWAY)
    if not applications.keys() - {GATEWAY}:
        end_serve()


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def require_free(host: str, port: int) -> None:
    """Refuse a port that somebody else listens at.

    Raises:
        ConfigError: it is taken.
    """
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ConfigError(
            f"the port must be free, got {host}:{port}: {error.strerror}. Name another with --port, or let "
            "--port 0 find a free one."
        ) from None

"""Deploys a version from the registry to Ray Serve, and takes it back. Call inside a Ray session."""

import logging
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import psutil
import ray
import requests
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatusOverview

from cluster.errors import ClusterError, ConfigError, IntegrityError, NotFoundError, OrchestratorError, RunFailedError
from cluster.local_ray import ray_processes
from cluster.session import local_head
from cluster.state import read_state
from cluster.storage import Store
from serving import registry
from serving.access import ensure_tokens, read_allowed_hosts, token_path, token_sha256, write_url
from serving.app import (
    GATEWAY,
    MODEL_PREFIX,
    PROXY_TIMEOUT_S,
    deployed_names,
    gateway_application,
    model_application,
    running_replicas,
)
from serving.client import Client
from serving.deployed import Deployed, forget, remember
from serving.gateway import GatewaySettings
from serving.protocol import output_tensor
from serving.proxy import CONTROLLER_ENVIRONMENT
from serving.registry import read_golden, require_golden
from serving.sockets import require_loopback
from serving.version import Version

LOOPBACK = "127.0.0.1"
POLL_S = 0.2

# at INFO Serve tells whoever deploys about its own connections
logging.getLogger("ray.serve").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Endpoint:
    """A deployed model."""

    name: str
    version: str
    weights_sha256: str
    url: str
    """Of the gateway; the page to try models by hand is there."""
    replicas: int
    cpus: float
    """Per replica."""
    status: str
    """Serve's word for it: `running`; `deploying`, `unhealthy`, ... otherwise."""
    token_file: str

    @property
    def predict_url(self) -> str:
        """Where to POST inputs."""
        return f"{self.url}/models/{self.name}/predict"


def deploy(
    store: Store,
    *,
    name: str,
    version: str | None = None,
    host: str = LOOPBACK,
    port: int = 8000,
    replicas: int = 1,
    cpus: float = 0,
    wait_s: float = 120,
) -> Endpoint:
    """Serve a version, or the champion, and return once a real query through HTTP was answered as recorded.

    An endpoint of that name goes on answering with its old version until the new one does; one that serves this
    version already is only asked. A gateway that runs is kept, with its host and port.

    Args:
        store: where the registry is.
        name: of the model.
        version: to serve; default: the champion.
        host: address that the gateway listens on. The token travels unencrypted: keep to loopback, or put TLS before.
        port: of the gateway; 0 chooses a free one.
        replicas: processes that answer.
        cpus: that Ray reserves for each; 0 leaves them all to training.
        wait_s: until the new replicas must answer.

    Raises:
        NotFoundError: if there is no such version.
        ConfigError: if ``replicas`` or ``cpus`` make no sense.
        RunFailedError: with the replica's error; the old version, if any, is served as before.
    """
    if replicas < 1 or cpus < 0:
        raise ConfigError(f"replicas must be 1 or more and cpus 0 or more, got {replicas} and {cpus}.")
    wanted = registry.show(store, name=name, version=version)
    deadline = time.monotonic() + wait_s
    tokens = ensure_tokens()
    before = _describe(name)
    try:
        url = _gateway_url() or _start_proxy(host=host, port=port)
        if not _serves(before, version=wanted.version, replicas=replicas, cpus=cpus):
            _roll_out(store, name=name, version=wanted.version, replicas=replicas, cpus=cpus, deadline=deadline)
        _ensure_gateway(tokens, url=url, deadline=deadline)
        _query_golden(store, Client(url, tokens[0]), wanted, deadline=deadline)
    except OrchestratorError:
        _restore(store, name, before, wait_s=wait_s)
        raise
    write_url(url)
    endpoint = _endpoint(name, url)
    _remember(endpoint, store)
    return endpoint


def redeploy(gone: Deployed, store: Store) -> Endpoint:
    """Serve again what an earlier head served: the same version, and the same address if its port is free.

    Args:
        gone: from `serving.deployed.gone_endpoints`.
        store: from `serving.deployed.store_of`.

    Raises:
        NotFoundError, RunFailedError: as `deploy` does.
    """
    where = urlsplit(gone.url)
    assert where.hostname is not None
    assert where.port is not None
    port = where.port if _is_free(where.hostname, where.port) else 0
    return deploy(
        store,
        name=gone.name,
        version=gone.version,
        host=where.hostname,
        port=port,
        replicas=gone.replicas,
        cpus=gone.cpus,
    )


def endpoints() -> list[Endpoint]:
    """All deployed models; empty when Serve does not run."""
    url = _gateway_url()
    return [_endpoint(name, url) for name in deployed_names()] if url else []


def undeploy(name: str) -> None:
    """Stop serving a model. With the last one the gateway ends, and Serve with it unless others use it.

    One that went with an earlier local head is forgotten, so that it is not brought back.

    Raises:
        NotFoundError: if it is not deployed.
    """
    applications = _applications()
    was_remembered = local_head() is not None and forget(name)
    if MODEL_PREFIX + name not in applications:
        if was_remembered:
            return
        raise _not_deployed(name, applications)
    serve.delete(MODEL_PREFIX + name)
    _stop_when_unused()


def rollback_endpoint(store: Store, name: str, *, wait_s: float = 120) -> Endpoint:
    """Point the champion back at the version before, and serve it with as many replicas as now.

    Raises:
        NotFoundError: if the model is not deployed, or has no version to go back to.
        RunFailedError: if that version does not start; alias and endpoint are left as they were.
    """
    before = _describe(name)
    if before is None:
        raise _not_deployed(name, _applications())
    failed = registry.champion(store, name)
    version = registry.rollback(store, name).version
    try:
        return deploy(store, name=name, version=version, replicas=before.replicas, cpus=before.cpus, wait_s=wait_s)
    except OrchestratorError:
        registry.set_champion(store, name=name, version=failed)
        raise


def _serves(endpoint: Endpoint | None, *, version: str, replicas: int, cpus: float) -> bool:
    if endpoint is None or endpoint.status != "running":
        return False
    return (endpoint.version, endpoint.replicas, endpoint.cpus) == (version, replicas, cpus)


def _roll_out(store: Store, *, name: str, version: str, replicas: int, cpus: float, deadline: float) -> None:
    application = model_application(store, name=name, version=version, replicas=replicas, cpus=cpus)
    _run(application, MODEL_PREFIX + name, route_prefix=None, deadline=deadline, what=f"{name} {version}")


def _run(
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
            raise RunFailedError(f"{what} must start, got an error in its replica:\n{_reason(overview)}")
        if time.monotonic() > deadline:
            raise RunFailedError(f"{what} must start in time, got no running replica: {_reason(overview)}")
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


def _reason(overview: ApplicationStatusOverview) -> str:
    """What Serve says of an application that does not run."""
    texts = [overview.message, *(d.message for d in overview.deployments.values())]
    return "\n".join(dict.fromkeys(text for text in texts if text)) or str(overview.status.value)


def _query_golden(store: Store, client: Client, wanted: Version, *, deadline: float) -> None:
    """Ask through HTTP what the version must answer; for a moment the old replicas may still be asked."""
    golden = read_golden(store, name=wanted.name, version=wanted.version)
    while True:
        try:
            answer = client.infer(wanted.name, golden.request)
        except NotFoundError:  # the gateway has not noticed a new model yet
            answer = {"model_version": None}
        if answer["model_version"] == wanted.version:
            break
        if time.monotonic() > deadline:
            found = answer["model_version"]
            raise RunFailedError(f"{client.url} must answer with {wanted.name} {wanted.version}, got {found}.")
        time.sleep(POLL_S)
    try:
        require_golden(output_tensor(answer["outputs"]), golden, where=f"{wanted.name} {wanted.version}")
    except IntegrityError as error:
        raise RunFailedError(str(error)) from error


def _restore(store: Store, name: str, before: Endpoint | None, *, wait_s: float) -> None:
    """After a failed start: serve what was served, or nothing.

    The old replicas still answer, but Serve would not replace one that dies while the failed version is its target.
    """
    if before is None:
        if MODEL_PREFIX + name in _applications():
            serve.delete(MODEL_PREFIX + name)
        _stop_when_unused()
        return
    deadline = time.monotonic() + wait_s
    _roll_out(store, name=name, version=before.version, replicas=before.replicas, cpus=before.cpus, deadline=deadline)


def _ensure_gateway(tokens: list[str], *, url: str, deadline: float) -> None:
    """Start the gateway if none runs, and renew one that refuses the first token or an allowed host.

    The first model is there before: until then clients find nobody, rather than a gateway that knows no model.
    """
    allowed_hosts = read_allowed_hosts()
    if _gateway_url() is not None and _accepts(url, tokens[0], allowed_hosts):
        return
    settings = GatewaySettings(
        token_sha256=tuple(token_sha256(token) for token in tokens),
        host=urlsplit(url).hostname or LOOPBACK,
        allowed_hosts=allowed_hosts,
    )
    _run(gateway_application(settings, url=url), GATEWAY, route_prefix="/", deadline=deadline, what="the gateway")


def _start_proxy(*, host: str, port: int) -> str:
    """Start Serve with its HTTP proxy on the head node."""
    others = [app for app in _applications() if app != GATEWAY and not app.startswith(MODEL_PREFIX)]
    if others:
        raise ClusterError(
            f"Ray Serve must run for orchestrator alone, got the applications {', '.join(others)}, whose HTTP address "
            "cannot be changed. Remove them, or use another cluster."
        )
    _shutdown()  # one that is left over keeps its address and ignores ours
    port = port or _free_port(host)
    _require_free(host, port)
    options = {"host": host, "port": port, "request_timeout_s": PROXY_TIMEOUT_S}
    controller = {"runtime_env": {"env_vars": CONTROLLER_ENVIRONMENT}}
    serve.start(proxy_location="HeadOnly", http_options=options, controller_options=controller)
    return f"http://{host}:{port}"


def _accepts(url: str, token: str, allowed_hosts: Iterable[str]) -> bool:
    """Whether the gateway accepts the token, and requests that name each of the hosts."""
    with requests.Session() as session:
        session.trust_env = False  # a proxy of the user's must not see the token
        session.headers["Authorization"] = f"Bearer {token}"
        answers = [
            session.get(f"{url}/v2", headers={"Host": host}, timeout=PROXY_TIMEOUT_S)
            for host in (urlsplit(url).netloc, *allowed_hosts)
        ]
    return all(answer.status_code == HTTPStatus.OK for answer in answers)


def _gateway_url() -> str | None:
    """URL of the gateway that runs; ``None`` when none does."""
    gateway = _applications().get(GATEWAY)
    if gateway is None or not running_replicas(gateway):
        return None
    return str(serve.get_app_handle(GATEWAY).url.remote().result(timeout_s=PROXY_TIMEOUT_S))


def _applications() -> dict[str, ApplicationStatusOverview]:
    """Serve's applications by name; none when it does not run."""
    try:
        return dict(serve.status().applications)
    except RayServeException:
        return {}


def _shutdown() -> None:
    """End Ray Serve on the connected cluster."""
    serve.shutdown()  # type: ignore[no-untyped-call]


def _stop_when_unused() -> None:
    """End Ray Serve once no model is served any more."""
    applications = _applications()
    if any(app.startswith(MODEL_PREFIX) for app in applications):
        return
    if GATEWAY in applications:
        serve.delete(GATEWAY)
    if not applications.keys() - {GATEWAY}:
        _shutdown()


def _describe(name: str) -> Endpoint | None:
    url = _gateway_url()
    return _endpoint(name, url) if url and name in deployed_names() else None


def _endpoint(name: str, url: str) -> Endpoint:
    handle = serve.get_app_handle(MODEL_PREFIX + name)
    found = handle.describe.remote().result(timeout_s=PROXY_TIMEOUT_S)
    overview = _applications()[MODEL_PREFIX + name]
    return Endpoint(
        name=name,
        version=found["version"],
        weights_sha256=found["weights_sha256"],
        url=url,
        replicas=running_replicas(overview),
        status=overview.status.value.lower(),
        cpus=handle.reserved_cpus.remote().result(timeout_s=PROXY_TIMEOUT_S),
        token_file=str(token_path()),
    )


def _remember(endpoint: Endpoint, store: Store) -> None:
    """Keep what it takes to serve the endpoint again on this machine; other clusters are not ours to start again."""
    head = local_head()
    if head is None:
        return
    remember(
        Deployed(
            name=endpoint.name,
            version=endpoint.version,
            replicas=endpoint.replicas,
            cpus=endpoint.cpus,
            url=endpoint.url,
            store=store.settings,
            head=head.process,
        )
    )


def _not_deployed(name: str, applications: Iterable[str]) -> NotFoundError:
    known = (
        ", ".join(sorted(a.removeprefix(MODEL_PREFIX) for a in applications if a.startswith(MODEL_PREFIX))) or "none"
    )
    return NotFoundError(f"the model must be deployed, got {name!r}; deployed: {known}.")


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _require_free(host: str, port: int) -> None:
    """Refuse a port that somebody else listens at.

    Raises:
        ConfigError: it is taken.
    """
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ConfigError(f"the port must be free, got {host}:{port}: {error.strerror}. Choose another port.") from None


def _is_free(host: str, port: int) -> bool:
    try:
        _require_free(host, port)
    except ConfigError:
        return False
    return True

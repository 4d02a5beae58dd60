"""Deploys a version from the registry to Ray Serve, and takes it back. Call inside a Ray session."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import requests
from ray import serve

from cluster.errors import ConfigError, IntegrityError, NotFoundError, OrchestratorError, RunFailedError
from cluster.s3.store import Store
from cluster.session import local_head
from serving import registry
from serving.app import (
    GATEWAY,
    MODEL_PREFIX,
    PROXY_TIMEOUT_S,
    deployed_names,
    gateway_application,
    model_application,
    running_replicas,
)
from serving.applications import (
    LOOPBACK,
    POLL_S,
    all_applications,
    gateway_url,
    quietly,
    require_free,
    run_application,
    start_proxy,
    stop_when_unused,
)
from serving.client import Client
from serving.deployed import Deployed, forget, remember
from serving.golden import read_golden, require_golden
from serving.http.access import ensure_tokens, read_allowed_hosts, token_path, token_sha256, write_url
from serving.http.gateway import GatewaySettings
from serving.requests.protocol import output_tensor
from serving.version import Version


@dataclass(frozen=True)
class Endpoint:
    """A deployed model."""

    name: str
    version: str
    weights_sha256: str
    url: str
    """The gateway's address; the page to try models by hand is there."""
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

    def __repr__(self) -> str:
        """Name the model, its version, its state and its address; the fields hold the rest."""
        return f"<Endpoint {self.name} {self.version}: {self.status}, {self.replicas} replicas at {self.predict_url}>"


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
        url = gateway_url() or start_proxy(host=host, port=port)
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
    url = gateway_url()
    return [_endpoint(name, url) for name in deployed_names()] if url else []


def undeploy(name: str) -> None:
    """Stop serving a model. With the last one the gateway ends, and Serve with it unless others use it.

    One that went with an earlier local head is forgotten, so that it is not brought back.

    Raises:
        NotFoundError: if it is not deployed.
    """
    applications = all_applications()
    was_remembered = local_head() is not None and forget(name)
    if MODEL_PREFIX + name not in applications:
        if was_remembered:
            return
        raise _not_deployed(name, applications)
    serve.delete(MODEL_PREFIX + name)
    stop_when_unused()


def rollback_endpoint(store: Store, name: str, *, wait_s: float = 120) -> Endpoint:
    """Point the champion back at the version before, and serve it with as many replicas as now.

    Raises:
        NotFoundError: if the model is not deployed, or has no version to go back to.
        RunFailedError: if that version does not start; alias and endpoint are left as they were.
    """
    before = _describe(name)
    if before is None:
        raise _not_deployed(name, all_applications())
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
    run_application(application, MODEL_PREFIX + name, route_prefix=None, deadline=deadline, what=f"{name} {version}")


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
        if MODEL_PREFIX + name in all_applications():
            serve.delete(MODEL_PREFIX + name)
        stop_when_unused()
        return
    deadline = time.monotonic() + wait_s
    _roll_out(store, name=name, version=before.version, replicas=before.replicas, cpus=before.cpus, deadline=deadline)


def _ensure_gateway(tokens: list[str], *, url: str, deadline: float) -> None:
    """Start the gateway if none runs, and renew one that refuses the first token or an allowed host.

    The first model is there before: until then clients find nobody, rather than a gateway that knows no model.
    """
    allowed_hosts = read_allowed_hosts()
    if gateway_url() is not None and _accepts(url, tokens[0], allowed_hosts):
        return
    settings = GatewaySettings(
        token_sha256=tuple(token_sha256(token) for token in tokens),
        host=urlsplit(url).hostname or LOOPBACK,
        allowed_hosts=allowed_hosts,
    )
    run_application(
        gateway_application(settings, url=url), GATEWAY, route_prefix="/", deadline=deadline, what="the gateway"
    )


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


def _describe(name: str) -> Endpoint | None:
    url = gateway_url()
    return _endpoint(name, url) if url and name in deployed_names() else None


@quietly
def _endpoint(name: str, url: str) -> Endpoint:
    handle = serve.get_app_handle(MODEL_PREFIX + name)
    found = handle.describe.remote().result(timeout_s=PROXY_TIMEOUT_S)
    overview = all_applications()[MODEL_PREFIX + name]
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


def _is_free(host: str, port: int) -> bool:
    try:
        require_free(host, port)
    except ConfigError:
        return False
    return True

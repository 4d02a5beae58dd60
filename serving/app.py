"""The Ray Serve applications: one gateway for HTTP, and one ``model-NAME`` for each deployed model.

A replica serves one version for its whole life. To change the version Serve starts new replicas, which load it,
verify it and answer its golden request before they are sent anything, and stops the old ones after that. Swapping the
weights inside a replica (Serve's ``reconfigure``) would be quicker by seconds, but when it fails Serve stops that
replica, which with one replica is an outage.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Literal, TypeVar

import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatusOverview
from torch import Tensor

from cluster.s3.store import Store
from models.features import CategoricalFeature, Signature, TextFeature
from serving.golden import LoadedModel, check_golden, read_golden
from serving.http.gateway import GatewaySettings, Kind, UnavailableError, create_app
from serving.http.limits import BODY_TIMEOUT_S
from serving.http.sockets import listen_on_node_address
from serving.registry import load
from serving.requests.inputs import Batch, join_batches, parse_file, parse_samples, read_json
from serving.requests.outputs import describe_answers, name_filled
from serving.requests.protocol import describe_output, describe_tensors, parse_request
from serving.requests.values import InputError

GATEWAY = "gateway"
MODEL_PREFIX = "model-"

ANSWER_TIMEOUT_S = 30.0
PROXY_TIMEOUT_S = BODY_TIMEOUT_S + ANSWER_TIMEOUT_S + 5  # only when the gateway itself hangs
STATUS_AGE_S = 1.0  # a model that was deployed, was removed or died is noticed after this long
STATUS_WAIT_S = 0.5  # while the controller does not answer, what it said last counts
HEALTH_PERIOD_S = 2.0  # a replica that died is replaced after at most this long; Serve's default is 10
LIVING_STATES = frozenset({"RUNNING", "UPDATING", "RECOVERING", "PENDING_MIGRATION"})  # RECOVERING: found again
ATTEMPTS = 3  # a prediction changes nothing, so one that a dying replica took is asked again

MAX_BATCH_REQUESTS = 32
BATCH_WAIT_S = 0.002
MAX_ONGOING_REQUESTS = 64
MAX_QUEUED_REQUESTS = 256
START_ATTEMPTS = 1  # what fails is damage or a wrong version, which stays; the store retries by itself
LISTED_VALUES = 200  # of a category, in a model's description

T = TypeVar("T")
log = logging.getLogger(__name__)


class Model:
    """A replica: one version of one model."""

    def __init__(self, store: Store, name: str, version: str) -> None:
        listen_on_node_address()
        torch.set_num_threads(1)  # more replicas scale better than more threads on networks this small
        self._model = load(store, name=name, version=version)
        check_golden(self._model, read_golden(store, name=name, version=version))

    async def describe(self) -> dict[str, Any]:
        """Name, version, weights hash, metrics, what it reads and what it answers."""
        return describe_model(self._model)

    async def reserved_cpus(self) -> float:
        """CPUs that Ray reserves for this replica."""
        resources = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
        return float(resources.get("CPU", 0))

    async def ask(self, kind: Kind, content: bytes) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON body of the answer; a bad input is an answer too, not a failure of the replica."""
        try:
            request, batch = await asyncio.to_thread(parse_content, kind, content, self._model.version.signature)
            return 200, describe_answer(kind, request, batch, await self._forward(batch), self._model)
        except InputError as error:
            return error.status, error.body()

    @serve.batch(max_batch_size=MAX_BATCH_REQUESTS, batch_wait_timeout_s=BATCH_WAIT_S)
    async def _forward(self, batches: list[Batch]) -> list[Tensor]:
        return predict_together(self._model, batches)


class Gateway:
    """The replica that `serving.http.gateway` answers HTTP in."""

    def __init__(self, url: str) -> None:
        listen_on_node_address()
        self._url = url

    async def url(self) -> str:
        """Where it is reached."""
        return self._url


def predict_together(model: LoadedModel, batches: list[Batch]) -> list[Tensor]:
    """Answer several requests in one pass, each with its own number of samples."""
    sizes = [len(next(iter(batch.values()))) for batch in batches]
    return list(torch.split(model.predict(join_batches(batches)), sizes))


def parse_content(kind: Kind, content: bytes, signature: Signature) -> tuple[Any, Batch]:
    """The parsed JSON (``None`` for a file) and the batch in a request's body.

    Raises:
        InputError: if it is not what the model reads.
    """
    if kind == "file":
        return None, parse_file(content, signature)
    request = read_json(content)
    parse = parse_request if kind == "infer" else parse_samples
    return request, parse(request, signature)


def describe_answer(kind: Kind, request: Any, batch: Batch, output: Tensor, model: LoadedModel) -> dict[str, Any]:
    """The JSON body of an answer, in the form that the request's kind asks for.

    Raises:
        InputError: if the answer is not finite.
    """
    version = model.version
    if kind == "infer":
        body = {"model_name": version.name, "model_version": version.version}
        body |= {"id": request["id"]} if "id" in request else {}
        outputs = describe_output(output, version.signature)
        return {**body, "parameters": {"weights_sha256": version.weights_sha256}, "outputs": outputs}
    answers = describe_answers(output, batch, version.signature)
    name_filled(answers, request, version.signature)
    found = {"predictions": answers} if isinstance(request, list) else {"prediction": answers[0]}
    return {"model": version.name, "version": version.version, "weights_sha256": version.weights_sha256, **found}


def describe_model(model: LoadedModel) -> dict[str, Any]:
    """What clients need to know about a model. Long vocabularies are cut to their first values."""
    version = model.version
    features = {
        name: feature.model_copy(update={"vocabulary": feature.vocabulary[:LISTED_VALUES]})
        if isinstance(feature, CategoricalFeature | TextFeature)
        else feature
        for name, feature in version.signature.features.items()
    }
    return {
        "name": version.name,
        "version": version.version,
        "weights_sha256": version.weights_sha256,
        "run": version.lineage.run,
        "dataset": version.lineage.dataset.name,
        "metrics": version.metrics,
        "primary_metric": version.primary_metric,
        "signature": version.signature.model_copy(update={"features": features}).model_dump(mode="json"),
        "tensors": describe_tensors(version.signature),
    }


class ServeEndpoints:
    """The models deployed on this Ray cluster, asked through Serve's handles.

    A model is asked whatever Serve says of it; only when it has not answered for a while does Serve's word decide
    whether to go on waiting. So no request fails while Serve's controller is away or has not yet found its replicas.
    """

    def __init__(self) -> None:
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        self._status = StatusReader(read_model_states)

    async def names(self) -> list[str]:
        """Names of all deployed models, those without a living replica included."""
        known = await self._status.read()
        for name in self._handles.keys() - known.keys():
            del self._handles[name]
        return sorted(known)

    async def describe(self, name: str) -> dict[str, Any]:
        """The served version. Raises ``UnavailableError``."""
        return await self._call(name, lambda handle: handle.describe.remote())

    async def ask(self, name: str, kind: Kind, content: bytes) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON body of the answer. Raises ``UnavailableError``."""
        return await self._call(name, lambda handle: handle.ask.remote(kind, content))

    async def _call(self, name: str, call: Callable[[DeploymentHandle[Any]], Awaitable[T]]) -> T:
        answer = asyncio.ensure_future(self._call_again(name, call))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                while not (await asyncio.wait({answer}, timeout=STATUS_AGE_S))[0]:
                    require_living(name, await self._status.read())
                return answer.result()
        except TimeoutError:
            message = f"{name} must answer within {ANSWER_TIMEOUT_S:g} s, got no answer."
            raise UnavailableError("timeout", message, status=504) from None
        finally:
            answer.cancel()

    async def _call_again(self, name: str, call: Callable[[DeploymentHandle[Any]], Awaitable[T]]) -> T:
        for _ in range(ATTEMPTS):
            try:
                return await call(await self._handle(name))
            except BackPressureError:
                message = f"{name} must have room for another request, got {MAX_QUEUED_REQUESTS} waiting."
                raise UnavailableError("overloaded", message, status=503) from None
            except RayServeException:  # the application has gone, and perhaps come back
                self._handles.pop(name, None)
            except ray.exceptions.RayActorError:
                pass
        raise _no_replica(name)

    async def _handle(self, name: str) -> DeploymentHandle[Any]:
        if name not in self._handles:
            self._handles[name] = await asyncio.to_thread(serve.get_app_handle, MODEL_PREFIX + name)
        return self._handles[name]


ModelState = Literal["living", "deploying", "dead"]


class StatusReader:
    """Reads the states of all models at most once in ``STATUS_AGE_S``, in one thread; keeps the last when it fails."""

    def __init__(self, read: Callable[[], dict[str, ModelState]]) -> None:
        self._read = read
        self._states: dict[str, ModelState] | None = None
        self._read_at = -STATUS_AGE_S
        self._reading: asyncio.Task[None] | None = None

    async def read(self) -> dict[str, ModelState]:
        """The state of each deployed model by name; an old one while Serve's controller does not answer.

        Raises:
            UnavailableError: It has never answered.
        """
        if time.monotonic() - self._read_at >= STATUS_AGE_S:
            self._reading = self._reading or asyncio.create_task(self._renew())
            await asyncio.wait({self._reading}, timeout=None if self._states is None else STATUS_WAIT_S)
        if self._states is None:
            message = "Serve's controller must tell which models it has, got no answer. Ask again."
            raise UnavailableError("unavailable", message, status=503)
        return self._states

    async def _renew(self) -> None:
        try:
            self._states = await asyncio.to_thread(self._read)
        except (RayServeException, ray.exceptions.RayError) as error:
            log.warning("Serve's controller does not tell which models it has: %s", type(error).__name__)
        finally:
            self._read_at = time.monotonic()
            self._reading = None


def require_living(name: str, states: Mapping[str, ModelState]) -> None:
    """Refuse to wait for a model that nobody can answer for now.

    Raises:
        UnavailableError: It has no living replica.
    """
    match states.get(name):
        case "living":
            return
        case "deploying":
            message = f"{name} must have started, got one that is being deployed. Ask again."
            raise UnavailableError("deploying", message, status=503)
        case _:
            raise _no_replica(name)


def _no_replica(name: str) -> UnavailableError:
    message = f"{name} must have a living replica, got none. Ask again: another one is being started."
    return UnavailableError("unavailable", message, status=503)


def read_model_states() -> dict[str, ModelState]:
    """The state of each deployed model by name, as Serve sees it."""
    applications = serve.status().applications
    return {
        app.removeprefix(MODEL_PREFIX): model_state(overview)
        for app, overview in applications.items()
        if app.startswith(MODEL_PREFIX) and overview.status != "DELETING"
    }


def model_state(overview: ApplicationStatusOverview) -> ModelState:
    """Whether a model has a replica that answers, or is expected to have one soon because it is being deployed."""
    if count_replicas(overview, LIVING_STATES):
        return "living"
    return "deploying" if overview.status in ("NOT_STARTED", "DEPLOYING") else "dead"


def deployed_names() -> list[str]:
    """Names of the models that have a running replica, in order."""
    applications = serve.status().applications
    return sorted(
        app.removeprefix(MODEL_PREFIX)
        for app, overview in applications.items()
        if app.startswith(MODEL_PREFIX) and running_replicas(overview) and overview.status != "DELETING"
    )


def running_replicas(overview: ApplicationStatusOverview) -> int:
    """Replicas of an application that answer."""
    return count_replicas(overview, {"RUNNING"})


def count_replicas(overview: ApplicationStatusOverview, states: Collection[str]) -> int:
    """Replicas of an application that are in one of Serve's states."""
    items = (item for deployment in overview.deployments.values() for item in deployment.replica_states.items())
    return sum(count for state, count in items if state in states)


def model_application(store: Store, *, name: str, version: str, replicas: int, cpus: float) -> serve.Application:
    """The Serve application of one model."""
    deployment = serve.deployment(
        name="Model",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        graceful_shutdown_timeout_s=ANSWER_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.5,
        max_surge_percent=100,  # new replicas first, then stop the old ones
        max_constructor_retry_count=START_ATTEMPTS,
        health_check_period_s=HEALTH_PERIOD_S,
    )
    return deployment(Model).bind(store, name, version)


def gateway_application(settings: GatewaySettings, *, url: str) -> serve.Application:
    """The Serve application that answers HTTP."""

    def build_app() -> FastAPI:
        return create_app(settings, ServeEndpoints())

    deployment = serve.deployment(
        name="Gateway",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=2 * MAX_QUEUED_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        max_surge_percent=100,
        max_constructor_retry_count=START_ATTEMPTS,
        health_check_period_s=HEALTH_PERIOD_S,
    )
    return deployment(serve.ingress(build_app)(Gateway)).bind(url)

"""The HTTP side of serving: a FastAPI application that checks, limits and routes requests, and knows no model.

Every answer that is no success is JSON ``{"code", "field", "message"}``. Headers, host, origin and token are checked
before anything else of a request is looked at, and its size before it is read.
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Literal, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from cluster.errors import OrchestratorError
from serving.http.docs import write_docs
from serving.http.edge import OPEN_PATHS, BodyLimit, Checks, check_headers, check_host, check_origin, check_token
from serving.http.failures import RETRY_AFTER, describe_failures, failure
from serving.http.limits import BODY_LIMIT_BYTES
from serving.requests.values import InputError

Kind = Literal["json", "file", "infer"]

FILE_TYPES = ("image/png", "image/jpeg", "audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave")
# {scripts}: the hashes of the page's own; nothing that somebody smuggled into it would run
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src {scripts}; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class GatewaySettings(BaseModel):
    """What the gateway accepts. Holds hashes of tokens, never a token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_sha256: tuple[str, ...]
    """Hex SHA-256 of each valid token; two while a token is being replaced."""
    host: str = "127.0.0.1"
    """Where it listens; the Host header of a request may name it. 0.0.0.0 and :: stand for any address."""
    allowed_hosts: tuple[str, ...] = ()
    """More names that the Host header, and the Origin header of pages, may hold: those of a proxy in front."""
    body_limit_bytes: int = BODY_LIMIT_BYTES


class UnavailableError(OrchestratorError):
    """A model did not answer: overloaded, being deployed or dead (503), or too slow (504)."""

    def __init__(self, code: str, message: str, *, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class Endpoints(Protocol):
    """The deployed models, as the gateway sees them."""

    async def names(self) -> list[str]:
        """Names of all deployed models, whether they answer or not. Raises ``UnavailableError``."""

    async def describe(self, name: str) -> dict[str, Any]:
        """The served version, see `serving.app.Model.describe`. Raises ``UnavailableError``."""

    async def ask(self, name: str, kind: Kind, content: bytes) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON body of a model's answer. Raises ``UnavailableError``."""


def create_app(settings: GatewaySettings, endpoints: Endpoints) -> FastAPI:
    """Build the application; `endpoints` is where its answers come from."""
    app = FastAPI(
        title="orchestrator",
        description="Models trained by orchestrator. Send the endpoint's token as `Authorization: Bearer TOKEN`.",
        redirect_slashes=False,
        docs_url=None,  # FastAPI's page runs scripts of another server, beside the token
        redoc_url=None,
        responses=describe_failures(),
    )
    _add_health(app, endpoints)
    _add_models(app, endpoints)
    _add_predictions(app, endpoints)
    _describe_token(app.openapi())
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    checks = (
        check_headers,
        check_host((settings.host, *settings.allowed_hosts)),
        check_origin(settings.allowed_hosts),
        check_token(settings.token_sha256),
    )
    # the one added last sees a request first
    app.add_middleware(BodyLimit, limit_bytes=settings.body_limit_bytes)
    app.add_middleware(Checks, checks=checks)
    return app


def _describe_token(schema: dict[str, Any]) -> None:
    """Add to OpenAPI's description, which FastAPI keeps, where the token is needed."""
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"token": []}]
    for path in OPEN_PATHS & schema["paths"].keys():
        schema["paths"][path]["get"]["security"] = []


def _add_health(app: FastAPI, endpoints: Endpoints) -> None:
    page = files("serving.http").joinpath("page.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def try_by_hand() -> HTMLResponse:
        return HTMLResponse(page, headers=_page_headers(page))

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        text = write_docs(app.openapi())
        return HTMLResponse(text, headers=_page_headers(text))

    @app.get("/v2", summary="The server")
    async def server() -> dict[str, Any]:
        return {"name": "orchestrator", "version": app.version, "extensions": []}

    @app.get("/v2/health/live", summary="Whether the gateway runs")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Whether the gateway reaches its models")
    async def ready() -> dict[str, bool]:
        for name in await endpoints.names():
            await endpoints.describe(name)
        return {"ready": True}


def _add_models(app: FastAPI, endpoints: Endpoints) -> None:
    @app.get("/models", summary="All models that answer, with what they read and answer; the names of the others")
    async def models() -> dict[str, Any]:
        names = await endpoints.names()
        found = await asyncio.gather(*(_try_to_describe(endpoints, name) for name in names))
        unavailable = [name for name, model in zip(names, found, strict=True) if model is None]
        return {"models": [model for model in found if model is not None], "unavailable": unavailable}

    @app.get("/models/{name}", summary="A model, with what it reads and answers")
    async def model(name: str) -> dict[str, Any]:
        return await _describe(endpoints, name)

    @app.get("/v2/models/{name}", summary="A model's tensors")
    async def metadata(name: str) -> JSONResponse:
        model = await _describe(endpoints, name)
        body = {"name": name, "versions": [model["version"]], "platform": "pytorch", **model["tensors"]}
        body["parameters"] = {"weights_sha256": model["weights_sha256"]}
        return JSONResponse(body, headers=_version_headers(model["version"], model["weights_sha256"]))

    @app.get("/v2/models/{name}/ready", summary="Whether a model answers")
    async def model_ready(name: str) -> JSONResponse:
        model = await _describe(endpoints, name)
        body = {"name": name, "ready": True, "version": model["version"]}
        return JSONResponse(body, headers=_version_headers(model["version"], model["weights_sha256"]))


def _add_predictions(app: FastAPI, endpoints: Endpoints) -> None:
    @app.post("/models/{name}/predict", summary="Ask a model", openapi_extra=PREDICT_SCHEMA)
    async def predict(name: str, request: Request) -> JSONResponse:
        """Send one sample `{feature: value}` or row of the source, a list of them, or a PNG, JPEG or WAV file."""
        await _require_name(endpoints, name)
        return await _ask(endpoints, name, *await _read_content(request))

    @app.post(
        "/v2/models/{name}/infer", summary="Ask a model in the Open Inference Protocol", openapi_extra=INFER_SCHEMA
    )
    async def infer(name: str, request: Request) -> JSONResponse:
        await _require_name(endpoints, name)
        _require_json(request)
        return await _ask(endpoints, name, "infer", await request.body())


async def _ask(endpoints: Endpoints, name: str, kind: Kind, content: bytes) -> JSONResponse:
    status, body = await endpoints.ask(name, kind, content)
    version = body.get("version") or body.get("model_version")
    if status != HTTPStatus.OK or version is None:
        return JSONResponse(body, status_code=status)
    weights_sha256 = body.get("weights_sha256") or body["parameters"]["weights_sha256"]
    return JSONResponse(body, headers=_version_headers(version, weights_sha256))


async def _describe(endpoints: Endpoints, name: str) -> dict[str, Any]:
    await _require_name(endpoints, name)
    return await endpoints.describe(name)


async def _try_to_describe(endpoints: Endpoints, name: str) -> dict[str, Any] | None:
    try:
        return await endpoints.describe(name)
    except UnavailableError:
        return None


async def _require_name(endpoints: Endpoints, name: str) -> None:
    known = await endpoints.names()
    if name not in known:
        deployed = ", ".join(known) or "none"
        message = f"the model must be deployed, got another name. Deployed: {deployed}."
        raise InputError("model_not_found", "name", message, status=404)


async def _read_content(request: Request) -> tuple[Kind, bytes]:
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type in FILE_TYPES:
        return "file", await request.body()
    if media_type == "multipart/form-data":
        return "file", await _read_upload(request)
    _require_json(request)
    return "json", await request.body()


def _require_json(request: Request) -> None:
    media_type, _, rest = request.headers.get("content-type", "application/json").partition(";")
    charset = rest.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        message = f"Content-Type must be application/json in UTF-8; predict also takes {', '.join(FILE_TYPES[:3])}."
        raise InputError("unsupported_type", "Content-Type", message, status=415)


async def _read_upload(request: Request) -> bytes:
    async with request.form(max_files=1, max_fields=0) as form:
        upload = form.get("file")
        if upload is None or isinstance(upload, str):
            raise InputError("missing_field", "file", "the form must hold a file named 'file', got none.")
        return await upload.read()


def _version_headers(version: str, weights_sha256: str) -> dict[str, str]:
    return {"X-Model-Version": version, "X-Weights-SHA256": weights_sha256}


def _page_headers(page: str) -> dict[str, str]:
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return {"Content-Security-Policy": PAGE_POLICY.format(scripts=sources), "Referrer-Policy": "no-referrer"}


def _input_failure(error: InputError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status)


async def _on_input_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InputError)
    return _input_failure(error)


async def _on_unavailable(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UnavailableError)
    return failure(error.status, error.code, str(error), headers=RETRY_AFTER)


async def _on_http_exception(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    headers = dict(error.headers) if error.headers else None
    return failure(error.status_code, code, f"{error.detail}.", headers=headers)


async def _on_any_error(_: Request, error: Exception) -> JSONResponse:
    """A fault of ours: the log has the traceback, the client only its kind."""
    return failure(500, "internal_error", f"the server failed with {type(error).__name__}. Its log says why.")


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
    InputError: _on_input_error,
    UnavailableError: _on_unavailable,
    HTTPException: _on_http_exception,
    Exception: _on_any_error,
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
PREDICT_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"oneOf": [{"type": "object"}, {"type": "array"}]}},
            "image/png": _BINARY,
            "image/jpeg": _BINARY,
            "audio/wav": _BINARY,
            "multipart/form-data": {"schema": _FORM},
        },
    }
}
INFER_SCHEMA = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}

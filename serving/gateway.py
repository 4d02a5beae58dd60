"""The HTTP side of serving: a FastAPI application that checks, limits and routes requests, and knows no model.

Every answer that is no success is JSON ``{"code", "field", "message"}``. The token is checked before anything else of
a request is looked at, and its size before it is read.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Literal, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import OrchestratorError
from serving.inputs import InputError

Kind = Literal["json", "file", "infer"]

BODY_LIMIT_BYTES = 16 * 2**20  # a phone's photo has 3 to 8 MB
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"})
FILE_TYPES = ("image/png", "image/jpeg", "audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class GatewaySettings(BaseModel):
    """What the gateway accepts. Holds hashes of tokens, never a token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_sha256: tuple[str, ...]
    """Hex SHA-256 of each valid token; two while a token is being replaced."""
    body_limit_bytes: int = BODY_LIMIT_BYTES


class UnavailableError(OrchestratorError):
    """A model did not answer: overloaded (503) or too slow (504)."""

    def __init__(self, code: str, message: str, *, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class Endpoints(Protocol):
    """The deployed models, as the gateway sees them."""

    async def names(self) -> list[str]:
        """Names of all deployed models."""

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
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    _add_health(app, endpoints)
    _add_models(app, endpoints)
    _add_predictions(app, endpoints)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    # the one added last sees a request first
    app.add_middleware(BodyLimit, limit_bytes=settings.body_limit_bytes)
    app.add_middleware(TokenCheck, token_sha256=settings.token_sha256)
    return app


class TokenCheck:
    """ASGI layer that refuses a request without a valid bearer token, before its body is read."""

    def __init__(self, app: ASGIApp, *, token_sha256: tuple[str, ...]) -> None:
        self.app = app
        self.token_sha256 = [bytes.fromhex(digest) for digest in token_sha256]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._valid(scope):
            return await self.app(scope, receive, send)
        message = "the request must carry a valid token: `Authorization: Bearer TOKEN`."
        answer = _failure(401, "unauthorized", message, headers={"WWW-Authenticate": 'Bearer realm="orchestrator"'})
        return await answer(scope, receive, send)

    def _valid(self, scope: Scope) -> bool:
        values = [value for key, value in scope["headers"] if key == b"authorization"]
        scheme, _, token = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        digest = hashlib.sha256(token.strip()).digest()
        matches = [hmac.compare_digest(digest, valid) for valid in self.token_sha256]
        return scheme.lower() == b"bearer" and any(matches)


class BodyLimit:
    """ASGI layer that refuses a body over the limit: by its announced length, or once more than that has arrived."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counted body, or answer 400, 413 or 415."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if refusal := self._refusal(dict(scope["headers"])):
            return await _input_failure(refusal)(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit_bytes:
                raise self._too_large()
            return message

        return await self.app(scope, counted, send)

    def _refusal(self, headers: dict[bytes, bytes]) -> InputError | None:
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return InputError("bad_length", "Content-Length", "Content-Length must be a whole number.", status=400)
        if len(length) > 18 or int(length) > self.limit_bytes:
            return self._too_large()
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            message = "the body must be sent uncompressed, got a Content-Encoding."
            return InputError("unsupported_encoding", "Content-Encoding", message, status=415)
        return None

    def _too_large(self) -> InputError:
        message = f"the body must be {self.limit_bytes} bytes or fewer, got more. Send fewer samples at a time."
        return InputError("too_large", None, message, status=413)


def _add_health(app: FastAPI, endpoints: Endpoints) -> None:
    page = files("serving").joinpath("page.html").read_text("utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def try_by_hand() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

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
    @app.get("/models", summary="All models, with what they read and answer")
    async def models() -> dict[str, Any]:
        return {"models": [await endpoints.describe(name) for name in await endpoints.names()]}

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
        """Send one sample `{feature: value}`, a list of samples, or a PNG, JPEG or WAV file."""
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


def _failure(
    status: int, code: str, message: str, *, field: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    body = {"code": code, "field": field, "message": message}
    return JSONResponse(body, status_code=status, headers=headers)


def _input_failure(error: InputError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status)


async def _on_input_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InputError)
    return _input_failure(error)


async def _on_unavailable(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UnavailableError)
    return _failure(error.status, error.code, str(error), headers={"Retry-After": "1"})


async def _on_http_exception(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    headers = dict(error.headers) if error.headers else None
    return _failure(error.status_code, code, f"{error.detail}.", headers=headers)


async def _on_any_error(_: Request, error: Exception) -> JSONResponse:
    """A fault of ours: the log has the traceback, the client only its kind."""
    return _failure(500, "internal_error", f"the server failed with {type(error).__name__}. Its log says why.")


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

"""The one form of every HTTP answer that is no success: JSON ``{"code", "field", "message"}``."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse

RETRY_AFTER = {"Retry-After": "1"}  # seconds


class Failure(BaseModel):
    """The body of an answer that is no success."""

    model_config = ConfigDict(extra="forbid")

    code: str
    """A word for programs: `model_not_found`, `too_large`, ..."""
    field: str | None
    """The part of the request that is wrong, where one is."""
    message: str
    """A sentence for people."""


FAILURES: Mapping[int, str] = {
    400: "The request is malformed: no HTTP, no JSON, a broken form, or a Content-Length that is no number.",
    401: "The request carries no valid token.",
    403: "The request comes from a web page of another origin.",
    404: "There is no such path, or no such model.",
    405: "The path does not take this method.",
    408: "The request did not arrive in time.",
    413: "The body is larger than the gateway takes.",
    415: "The body is of a type, or in an encoding, that the path or the model does not take.",
    421: "The Host header names another server.",
    422: "The inputs are not what the model reads.",
    431: "The request has too many headers, or too large ones.",
    500: "The server failed; its log says why.",
    503: "The model has no room for another request, is being deployed, or has no living replica. Ask again.",
    504: "The model did not answer in time.",
}


def failure(
    status: int, code: str, message: str, *, field: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An answer that is no success."""
    return JSONResponse(failure_body(code, message, field=field), status_code=status, headers=headers)


def failure_body(code: str, message: str, *, field: str | None = None) -> dict[str, str | None]:
    """Its JSON."""
    return Failure(code=code, field=field, message=message).model_dump()


def describe_failures() -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of them, for every route."""
    return {status: {"model": Failure, "description": text} | _headers(status) for status, text in FAILURES.items()}


def _headers(status: int) -> dict[str, Any]:
    if status != 503:
        return {}
    seconds = {"description": "Seconds after which to ask again.", "schema": {"type": "integer"}}
    return {"headers": {"Retry-After": seconds}}

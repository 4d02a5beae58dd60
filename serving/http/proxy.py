"""Serve's HTTP proxy, which reads every request first, made ours: bounded, and silent about itself.

Serve calls `configure` in the proxy's process, because the controller that starts the proxy has
`CONTROLLER_ENVIRONMENT`, which the proxy inherits.
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from serving.http.failures import RETRY_AFTER, failure

CONTROLLER_ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.http.proxy.configure",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # a proxy that died is replaced after three; 10 is the default
}
SERVES_OWN_PATHS = "/-/"  # its health and the names of its applications, without a token


def configure() -> list[Middleware]:
    """Have uvicorn read connections with limits, and put our layer around Serve's application.

    Serve builds uvicorn's configuration itself, after this call, and leaves the class that reads connections at
    uvicorn's default, which is an entry of this table.
    """
    HTTP_PROTOCOLS["auto"] = "serving.http.wire:BoundedProtocol"
    return [Middleware(OwnAnswers)]


class OwnAnswers:
    """ASGI layer that hides Serve's own pages, and turns what Serve answers when it has no gateway to ask into ours."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its answer is the gateway's, or JSON of ours."""
        if scope["path"].startswith(SERVES_OWN_PATHS):
            await failure(404, "not_found", "Not Found.")(scope, receive, send)
            return
        began = False
        failed = None

        async def send_ours(message: Message) -> None:
            nonlocal began, failed
            if message["type"] == "http.response.start":
                failed = serve_failure(message["status"], Headers(raw=message["headers"]))
                began = failed is None
            if began:
                await send(message)

        await self.app(scope, receive, send_ours)
        if not began:
            answer = failed or failure(503, "unavailable", UNAVAILABLE, headers=RETRY_AFTER)
            await answer(scope, receive, send)


UNAVAILABLE = "the gateway must be running, got none. Ask again: another one is being started."


def serve_failure(status: int, headers: Headers) -> ASGIApp | None:
    """What to answer in place of a failure that Serve itself has answered; ``None`` for the gateway's answers.

    Serve answers 404 without a gateway, 503 when too many wait for it, and 408 when it took too long.
    """
    if status < 400 or headers.get("content-type", "").startswith("application/json"):
        return None
    if status == 408:
        return failure(504, "timeout", "the gateway must answer in time, got no answer.")
    message = "the gateway must have room for another request, got too many." if status == 503 else UNAVAILABLE
    return failure(503, "overloaded" if status == 503 else "unavailable", message, headers=RETRY_AFTER)

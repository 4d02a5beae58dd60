"""What a request must be before the gateway looks at what it asks: small checks, each of which a request may fail.

A web page that somebody else wrote can make a browser on this machine send requests to loopback. It cannot read our
page's token, which a browser keeps for its origin; these checks hold where that alone would not:

- its own name resolves to 127.0.0.1 (DNS rebinding): the Host header is not ours, `check_host`;
- it posts across origins: the Origin header is not ours, `check_origin`.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.s3.connection import is_loopback
from serving.http.access import HOSTS_VARIABLE
from serving.http.failures import failure
from serving.http.limits import BODY_TIMEOUT_S, BODY_TOO_SLOW, HEADERS_TOO_LARGE, MAX_HEADER_BYTES, MAX_HEADERS
from serving.requests.values import InputError

Check = Callable[[Scope], JSONResponse | None]

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"})
ANY_ADDRESS = frozenset({"0.0.0.0", "::"})
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
PROXY_CURE = f"Behind a proxy, set {HOSTS_VARIABLE} to the proxy's host name, then run `orchestrator deploy NAME`."
SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class Checks:
    """ASGI layer that answers in place of the application when a check fails, before the body is read."""

    def __init__(self, app: ASGIApp, *, checks: Sequence[Check]) -> None:
        self.app = app
        self.checks = checks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with the first refusal."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusals = (refusal for check in self.checks if (refusal := check(scope)) is not None)
        await next(refusals, self.app)(scope, receive, with_safe_headers(send))


def with_safe_headers(send: Send) -> Send:
    """A `send` that adds the headers which keep browsers from storing, guessing or embedding an answer."""

    async def send_safely(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SAFE_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_safely


def check_headers(scope: Scope) -> JSONResponse | None:
    """Their number and size; a server that reads them first may have limits of its own."""
    sizes = [len(name) + len(value) for name, value in scope["headers"]]
    if len(sizes) <= MAX_HEADERS and sum(sizes) <= MAX_HEADER_BYTES:
        return None
    return failure(*HEADERS_TOO_LARGE)


def check_host(allowed_hosts: Collection[str]) -> Check:
    """The Host header must name loopback or one of the allowed hosts."""
    allowed = {host_name(host) or host for host in allowed_hosts}

    def check(scope: Scope) -> JSONResponse | None:
        values = Headers(scope=scope).getlist("host")
        host = host_name(values[0]) if len(values) == 1 else None
        if host is not None and is_allowed(host, allowed):
            return None
        message = (
            f"the Host header must name this server, got {', '.join(values)[:100]!r}. Use the address that "
            f"`orchestrator endpoints` prints. {PROXY_CURE}"
        )
        return failure(421, "wrong_host", message, field="Host")

    return check


def is_allowed(host: str, allowed: Collection[str]) -> bool:
    """Whether a host is loopback or an allowed one; with 0.0.0.0 or :: among these, any address, but no other name."""
    return is_loopback(host) or host in allowed or (not ANY_ADDRESS.isdisjoint(allowed) and _is_address(host))


def host_name(value: str) -> str | None:
    """The name or address in a Host header, in lower case and without port and brackets; ``None`` if it is no such."""
    found = HOST.fullmatch(value)
    return found[1].strip("[]").lower() if found else None


def check_origin(allowed_hosts: Collection[str]) -> Check:
    """An Origin header, which browsers send, must name the server of the Host header, or an allowed host.

    Another port is another origin: who listens there may be another user of this machine.
    """
    allowed = {host.lower() for host in allowed_hosts}

    def check(scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        origins, host = headers.getlist("origin"), headers.get("host", "").lower()
        if all(_network_location(origin) in {host, *allowed} - {""} for origin in origins):
            return None
        message = f"a web page that asks must be of this server, got one of {', '.join(origins)[:100]!r}. {PROXY_CURE}"
        return failure(403, "cross_origin", message, field="Origin")

    return check


def check_token(token_sha256: Collection[str]) -> Check:
    """The request must carry one of the tokens with these hashes, except for the pages and the health."""
    known = [bytes.fromhex(digest) for digest in token_sha256]

    def check(scope: Scope) -> JSONResponse | None:
        values = Headers(scope=scope).getlist("authorization")
        scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()
        matches = [hmac.compare_digest(digest, valid) for valid in known]
        if scope["path"] in OPEN_PATHS or (scheme.lower() == "bearer" and any(matches)):
            return None
        message = "the request must carry a valid token: `Authorization: Bearer TOKEN`."
        return failure(401, "unauthorized", message, headers={"WWW-Authenticate": 'Bearer realm="orchestrator"'})

    return check


class BodyLimit:
    """ASGI layer that refuses a body which is too large, by its announced length or once it is, or too slow."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counted and timed body, or answer 400, 413 or 415; late, it raises 408."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if refusal := self._refusal(Headers(scope=scope)):
            answer = failure(refusal.status, refusal.code, str(refusal), field=refusal.field)
            return await answer(scope, receive, send)
        return await self.app(scope, self._limited(receive), send)

    def _limited(self, receive: Receive) -> Receive:
        received, ends, complete = 0, asyncio.get_running_loop().time() + BODY_TIMEOUT_S, False

        async def limited() -> Message:
            nonlocal received, complete
            try:
                async with asyncio.timeout_at(None if complete else ends):
                    message = await receive()
            except TimeoutError:
                raise InputError(BODY_TOO_SLOW.code, None, BODY_TOO_SLOW.message, status=BODY_TOO_SLOW.status) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.limit_bytes:
                raise self._too_large()
            return message

        return limited

    def _refusal(self, headers: Headers) -> InputError | None:
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return InputError("bad_length", "Content-Length", "Content-Length must be a whole number.", status=400)
        if len(length) > 18 or int(length) > self.limit_bytes:
            return self._too_large()
        if headers.get("content-encoding", "identity").lower() != "identity":
            message = "the body must be sent uncompressed, got a Content-Encoding."
            return InputError("unsupported_encoding", "Content-Encoding", message, status=415)
        return None

    def _too_large(self) -> InputError:
        message = f"the body must be {self.limit_bytes} bytes or fewer, got more. Send fewer samples at a time."
        return InputError("too_large", None, message, status=413)


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def _network_location(origin: str) -> str:
    """The host of an origin, with its port if one is named; empty for ``null``, which is no place."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""

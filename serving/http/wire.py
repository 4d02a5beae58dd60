"""HTTP/1.1 as uvicorn reads it, with an end to everything that a client may send and to how long it may take.

uvicorn itself bounds neither: headers of any size and number, sent one byte a minute, are read for ever, and so is a
connection on which nothing is ever sent. It has no setting for that, only for the class that reads a connection.
"""

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.http.failures import failure_body
from serving.http.limits import (
    BODY_LIMIT_BYTES,
    BODY_TIMEOUT_S,
    BODY_TOO_SLOW,
    HEADERS_TIMEOUT_S,
    HEADERS_TOO_LARGE,
    HEADERS_TOO_SLOW,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    Refusal,
)

MAX_REQUEST_BYTES = 2 * BODY_LIMIT_BYTES  # on the wire, where each chunk of a body has a line of its own
WHOLE_BODY_TIMEOUT_S = BODY_TIMEOUT_S + 5  # the gateway, which knows more, is to answer first
LINGER_S = 5.0  # for a client that still sends to read why it was refused; it would see a broken connection otherwise
TOO_LARGE = Refusal(413, "too_large", f"the request must be {MAX_REQUEST_BYTES} bytes or fewer, got more.")


class BoundedProtocol(HttpToolsProtocol):
    """One connection. At most one timer runs: for the headers, the body, or the time to read a refusal."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.ws_protocol_class = None  # no WebSockets: the request is answered as if it had not asked for one
        self._timer: asyncio.TimerHandle | None = None
        self._refusal: Refusal | None = None
        self._message_bytes = 0
        self._in_headers = False
        self._in_body = False

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        self._start_timer(HEADERS_TIMEOUT_S, self._headers_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the request has been refused."""
        if self._refusal is not None:
            return
        self._message_bytes += len(data)
        super().data_received(data)
        if self._refusal is None and self._in_headers and self._message_bytes > MAX_HEADER_BYTES:
            self._refuse(HEADERS_TOO_LARGE)
        elif self._refusal is None and self._in_body and self._message_bytes > MAX_REQUEST_BYTES:
            self._refuse(TOO_LARGE)
        elif self._timer is None and not self._is_answering():  # an empty line before a request, for example
            self._start_timer(HEADERS_TIMEOUT_S, self._headers_late)

    # ---- what the parser calls

    def on_message_begin(self) -> None:
        """Expect headers."""
        super().on_message_begin()
        self._in_headers = True
        self._start_timer(HEADERS_TIMEOUT_S, self._headers_late)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count; those after a body, its trailers, are added to the others."""
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            raise self._refused(HEADERS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Expect the body."""
        self._in_headers, self._in_body = False, True
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES:
            raise self._refused(HEADERS_TOO_LARGE)
        self._start_timer(WHOLE_BODY_TIMEOUT_S, self._body_late)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect nothing until it is answered."""
        super().on_message_complete()
        self._in_body, self._message_bytes = False, 0
        self._stop_timer()

    # ---- what the answer calls

    def on_response_complete(self) -> None:
        """Wait no longer for the rest of a request that has its answer."""
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._start_timer(LINGER_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse what is no HTTP, or what a callback of the parser refused by raising."""
        refusal, self._refusal = self._refusal, None
        self._refuse(refusal or Refusal(400, "bad_request", "the request must be HTTP/1.1, got something else."))

    # ---- refusals

    def _refused(self, refusal: Refusal) -> ValueError:
        """What to raise in a callback of the parser: it stops, and has ``send_400_response`` called."""
        self._refusal = refusal
        return ValueError(refusal.code)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer in place of the application, which sees a client that has gone; then close."""
        self._refusal = refusal
        if not self._end_answer():
            self.transport.write(_answer(refusal))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start_timer(LINGER_S, self.transport.close)

    def _end_answer(self) -> bool:
        """Let the application stop working on the request; whether an answer to it has begun."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None:
            return False
        if cycle.response_complete:
            return self._in_body  # or else it was the answer to an earlier request
        cycle.disconnected = True
        cycle.message_event.set()
        return cycle.response_started

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # ---- the timer

    def _start_timer(self, seconds: float, late: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _headers_late(self) -> None:
        if self._message_bytes == 0:  # browsers open connections that they may never use
            self.transport.close()
        elif self.flow.read_paused:  # it is we who do not read: an earlier request has no answer yet
            self._start_timer(HEADERS_TIMEOUT_S, self._headers_late)
        else:
            self._refuse(HEADERS_TOO_SLOW)

    def _body_late(self) -> None:
        if self.flow.read_paused:
            self._start_timer(WHOLE_BODY_TIMEOUT_S, self._body_late)
        else:
            self._refuse(BODY_TOO_SLOW)


def _answer(refusal: Refusal) -> bytes:
    body = json.dumps(failure_body(refusal.code, refusal.message)).encode()
    head = (
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body

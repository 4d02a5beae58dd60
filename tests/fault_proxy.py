"""An HTTP proxy before a real S3 server that fails as its rules say, the same way for the same seed."""

import asyncio
import hashlib
import re
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

import aiohttp
from aiohttp import web
from yarl import URL

_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}
_NO_AUTOMATIC_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_PIECES_PER_S = 20  # of a body that is sent slowly


@dataclass(frozen=True)
class Fault:
    """What happens to one request; fields combine. Without any, the request passes."""

    delay_s: float = 0.0
    stall: bool = False
    """Never answer."""
    drop: bool = False
    """Close the connection instead of answering."""
    status: int | None = None
    """Answer this with `code` and `body` instead of what the server says."""
    code: str | None = None
    """S3's name of the error, sent as its XML."""
    body: bytes | None = None
    apply: bool = False
    """Let the server do the work before `drop` or `status` hides its answer."""
    flip_at: int | None = None
    """Change one bit of this byte of the body (counted from the end if negative)."""
    flip_request: bool = False
    """Change one bit of the request's body."""
    reset_at: int | None = None
    """Reset the connection after this many bytes of the body."""
    truncate_at: int | None = None
    """Announce the whole body and close the connection after this many bytes."""
    shorten_to: int | None = None
    """Announce and send only this many bytes."""
    bytes_per_s: float | None = None
    """Send the body this slowly."""
    receive_bytes_per_s: float | None = None
    """Take the request's body this slowly."""
    headers: tuple[tuple[str, str], ...] = ()
    """Replace these headers of the answer."""

    def __str__(self) -> str:
        given = ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default)
        return ",".join(f"{name}={value}" for name, value in given)


@dataclass(frozen=True)
class Rule:
    """Which requests suffer a fault: the first rule that matches counts."""

    fault: Fault
    method: str = ""
    """Regular expression; empty means all."""
    key: str = ""
    """Regular expression, searched in the path with its query."""
    header: tuple[str, str] = ("Host", "")
    """A header of the request, and a regular expression searched in it."""
    first: int = 1
    """Number of the first matching request that suffers, from 1."""
    times: int | None = None
    """How many matching requests suffer from there on; `None` means all."""
    probability: float = 1.0

    def matches(self, request: web.BaseRequest) -> bool:
        name, pattern = self.header
        return bool(
            re.fullmatch(self.method or ".*", request.method)
            and re.search(self.key, request.raw_path)
            and re.search(pattern, request.headers.get(name, ""))
        )


class Access(NamedTuple):
    """One request in the log; `status` is what the client was sent, 0 if nothing."""

    method: str
    key: str
    status: int
    fault: Fault | None


@dataclass
class FaultProxy:
    """Use as a context manager; `rules` may be replaced at any time and then count from 1 again."""

    upstream: str
    rules: tuple[Rule, ...] = ()
    seed: int = 0
    tls: ssl.SSLContext | None = None
    log: list[Access] = field(default_factory=list)
    _counts: Counter[Any] = field(default_factory=Counter)
    _came: threading.Condition = field(default_factory=threading.Condition)
    _port: int = 0

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._port}"

    def set(self, *rules: Rule) -> None:
        """Replace the rules."""
        self.rules, self._counts = rules, Counter()

    def refuse(self) -> None:
        """Break all connections and refuse new ones until `accept`."""
        self._do(self._close())

    def accept(self) -> None:
        """Accept connections again, at the same address."""
        self._do(self._listen())

    def hits(self, fault: Fault) -> int:
        """How many requests have suffered this fault so far."""
        return sum(access.fault == fault for access in self.log)

    def wait_for(self, key: str, *, method: str = "", times: int = 1) -> None:
        """Return once as many requests have come; `method` and `key` as in a rule."""

        def have_come() -> bool:
            found = (re.fullmatch(method or ".*", a.method) and re.search(key, a.key) for a in self.log)
            return sum(map(bool, found)) >= times

        with self._came:
            if not self._came.wait_for(have_come, timeout=60):
                raise TimeoutError(f"{times} requests of {method} {key} must come, got {len(self.log)} in all.")

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---- below: in the proxy's thread

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        self._stopped = asyncio.Event()
        self._client = aiohttp.ClientSession(
            auto_decompress=False, skip_auto_headers=_NO_AUTOMATIC_HEADERS, connector=aiohttp.TCPConnector(limit=0)
        )
        self._server = web.Server(self._handle, access_log=None)
        await self._listen()

    async def _listen(self) -> None:
        self._listener = await self._loop.create_server(self._server, "127.0.0.1", self._port, ssl=self.tls)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._listener.close()
        for connection in list(self._server.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def _stop(self) -> None:
        self._stopped.set()
        await self._close()
        await self._server.shutdown(1.0)
        await self._client.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        fault = self._fault_for(request)
        entry = len(self.log)
        with self._came:
            self.log.append(Access(request.method, request.raw_path, 0, fault))
            self._came.notify_all()
        try:
            answer = await self._answer(request, fault or Fault())
        except ConnectionError:  # the client has gone
            return web.Response()
        self.log[entry] = self.log[entry]._replace(status=answer.status)
        return answer

    def _fault_for(self, request: web.BaseRequest) -> Fault | None:
        for number, rule in enumerate(self.rules):
            if not rule.matches(request):
                continue
            self._counts[number] += 1
            since = self._counts[number] - rule.first
            if since >= 0 and (rule.times is None or since < rule.times) and self._drawn(rule, request):
                return rule.fault
        return None

    def _drawn(self, rule: Rule, request: web.BaseRequest) -> bool:
        """Decide by the request and how often it came, so that the order of different requests plays no part."""
        what = (request.method, request.raw_path, request.headers.get("Range"))
        self._counts[what] += 1
        drawn = hashlib.sha256(repr((self.seed, *what, self._counts[what])).encode()).digest()
        return int.from_bytes(drawn[:8], "big") < rule.probability * 2.0**64

    async def _answer(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
        body = await _receive(request, fault)
        await asyncio.sleep(fault.delay_s)
        if fault.stall:
            await self._stopped.wait()
        replaced = fault.drop or fault.status is not None
        answer = await self._forward(request, body) if fault.apply or not replaced else None
        if fault.drop or fault.stall:
            _abort(request)
            return web.Response()
        if fault.status is not None:
            answer = web.Response(status=fault.status, body=fault.body or _error_xml(fault.code))
        assert answer is not None
        for name, value in fault.headers:
            answer.headers[name] = value
        return await _send(request, answer, fault)

    async def _forward(self, request: web.BaseRequest, body: bytes) -> web.Response:
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP]  # Host too: it is signed
        url = URL(self.upstream + request.raw_path, encoded=True)
        async with self._client.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False
        ) as answer:
            dropped = _HOP_BY_HOP if request.method == "HEAD" else {*_HOP_BY_HOP, "content-length"}
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in dropped}
            return web.Response(status=answer.status, headers=kept, body=await answer.read() or None)


async def _receive(request: web.BaseRequest, fault: Fault) -> bytes:
    body = bytearray()
    if request.headers.get("Expect", "").lower() == "100-continue":
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    while piece := await request.content.read(_piece(fault.receive_bytes_per_s)):
        body += piece
        await asyncio.sleep(len(piece) / fault.receive_bytes_per_s if fault.receive_bytes_per_s else 0)
    if fault.flip_request:
        body[len(body) // 2] ^= 1
    return bytes(body)


async def _send(request: web.BaseRequest, answer: web.Response, fault: Fault) -> web.StreamResponse:
    """Send headers and body as the fault says; what was begun is finished here, so it is not sent twice."""
    assert isinstance(answer.body, bytes | None)
    body = bytearray(answer.body or b"")
    if fault.flip_at is not None and body:
        body[fault.flip_at % len(body)] ^= 1
    if request.method == "HEAD" or fault in (Fault(), Fault(delay_s=fault.delay_s)):
        return answer
    body = body[: fault.shorten_to]
    sent = web.StreamResponse(status=answer.status, headers=answer.headers)
    sent.content_length = len(body)
    await sent.prepare(request)
    stop = min(len(body), *(at for at in (fault.reset_at, fault.truncate_at) if at is not None), len(body))
    step = _piece(fault.bytes_per_s)
    for start in range(0, stop, step):
        piece = bytes(body[start : min(stop, start + step)])
        await sent.write(piece)
        await asyncio.sleep(len(piece) / fault.bytes_per_s if fault.bytes_per_s else 0)
    if fault.reset_at is not None:
        _abort(request, reset=True)
    elif fault.truncate_at is not None:
        assert request.transport is not None
        request.transport.close()
    else:
        await sent.write_eof()
    return sent


def _piece(bytes_per_s: float | None) -> int:
    return max(1, int(bytes_per_s / _PIECES_PER_S)) if bytes_per_s else 2**18


def _abort(request: web.BaseRequest, *, reset: bool = False) -> None:
    if request.transport is None:
        return
    if reset:
        request.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    request.transport.abort()


def _error_xml(code: str | None) -> bytes:
    return f"<Error><Code>{code}</Code><Message>by the fault proxy</Message></Error>".encode() if code else b""

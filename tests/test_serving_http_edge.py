"""What is refused before a request is looked at: strange hosts, foreign pages, endless headers and bodies."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httptools
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from serving.http import edge, proxy
from serving.http import wire as http_protocol
from serving.http.edge import BodyLimit, check_headers, check_host, check_origin, host_name
from serving.http.failures import failure
from serving.http.limits import MAX_HEADER_BYTES, MAX_HEADERS
from serving.http.wire import BoundedProtocol
from serving.requests.values import InputError

WAIT_S = 30.0  # for what takes a fraction of a second


def scope(*headers: tuple[str, str]) -> Scope:
    return {"type": "http", "path": "/", "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in headers]}


# ---- whose name the request has


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "127.8.9.1", "localhost", "LOCALHOST:1", "[::1]:8000", "models.example:8000"],
)
def test_loopback_and_allowed_hosts_are_ours(host):
    assert check_host(["Models.example"])(scope(("Host", host))) is None


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [""],
        ["evil.example"],
        ["evil.example:8000"],
        ["localhost.evil.example"],
        ["127.0.0.1.evil.example"],
        ["evil@127.0.0.1"],
        ["127.0.0.1/x"],
        ["127.0.0.1:8000:1"],
        ["127.0.0.1 "],
        ["10.0.0.7"],
        ["[::2]"],
        ["0.0.0.0"],
        ["models.example.evil"],
        ["127.0.0.1", "evil.example"],
        ["évil.example"],
    ],
)
def test_any_other_host_is_refused(hosts):
    answer = check_host(["models.example"])(scope(*(("Host", host) for host in hosts)))
    assert answer is not None and answer.status_code == 421
    assert b'"wrong_host"' in answer.body and b"the Host header must name this server, got" in answer.body


def test_a_gateway_on_every_interface_is_reached_by_any_address_and_still_by_no_foreign_name():
    check = check_host(["0.0.0.0"])
    assert check(scope(("Host", "10.0.0.7:8000"))) is None and check(scope(("Host", "[fe80::1]"))) is None
    assert check(scope(("Host", "evil.example"))) is not None


def test_an_allowed_host_may_be_written_with_its_port():
    assert check_host(["models.example:8443"])(scope(("Host", "models.example:8443"))) is None
    assert host_name("models.example:8443") == "models.example"


# ---- whose page sends it


@pytest.mark.parametrize(
    "origins", [[], ["http://127.0.0.1:8000"], ["HTTP://127.0.0.1:8000"], ["https://models.example"]]
)
def test_our_own_page_and_that_of_an_allowed_host_may_ask(origins):
    headers = [("Host", "127.0.0.1:8000"), *(("Origin", origin) for origin in origins)]
    assert check_origin(["models.example"])(scope(*headers)) is None


@pytest.mark.parametrize(
    "origins",
    [
        ["http://evil.example"],
        ["http://127.0.0.1:3000"],  # another user's port
        ["http://127.0.0.1"],
        ["http://localhost:8000"],
        ["null"],
        [""],
        ["http://[::1"],
        ["https://models.example:8443"],
        ["http://127.0.0.1:8000", "http://evil.example"],
    ],
)
def test_a_page_of_another_origin_is_refused(origins):
    headers = [("Host", "127.0.0.1:8000"), *(("Origin", origin) for origin in origins)]
    answer = check_origin(["models.example"])(scope(*headers))
    assert answer is not None and answer.status_code == 403
    assert b'"cross_origin"' in answer.body and b"a web page that asks must be of this server" in answer.body


# ---- headers and bodies, whatever server reads them


def test_headers_are_limited_in_number_and_size():
    assert check_headers(scope(*[("X", "1")] * MAX_HEADERS)) is None
    for headers in ([("X", "1")] * (MAX_HEADERS + 1), [("X", "1" * MAX_HEADER_BYTES)]):
        answer = check_headers(scope(*headers))
        assert answer is not None and answer.status_code == 431 and b"the headers must be" in answer.body


def test_a_body_that_stops_is_refused_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(edge, "BODY_TIMEOUT_S", 0.01)

    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    layer = BodyLimit(read, limit_bytes=10)
    with pytest.raises(InputError, match="the body must arrive within 30 s") as refused:
        asyncio.run(layer(scope(), receive, lambda _: None))  # type: ignore[arg-type]
    assert (refused.value.status, refused.value.code) == (408, "too_slow")


def test_an_answer_may_take_longer_than_the_body(monkeypatch):
    monkeypatch.setattr(edge, "BODY_TIMEOUT_S", 0.1)

    async def answer_slowly(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"x"
        assert (await receive())["type"] == "http.disconnect"

    messages = [{"type": "http.request", "body": b"x", "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.0 if len(messages) == 2 else 0.3)
        return messages.pop(0)

    asyncio.run(BodyLimit(answer_slowly, limit_bytes=10)(scope(), receive, lambda _: None))  # type: ignore[arg-type]


# ---- a connection, over a real socket


class Server:
    """uvicorn with our protocol in a thread; the application answers ``len`` with the length of the body."""

    def __init__(self) -> None:
        routes = [Route("/len", self._length, methods=["POST"]), Route("/now", self._now, methods=["GET", "POST"])]
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(
            proxy.OwnAnswers(Starlette(routes=routes)),
            http=BoundedProtocol,
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    async def _length(self, request: Request) -> JSONResponse:
        return JSONResponse(len(await request.body()))

    async def _now(self, request: Request) -> JSONResponse:
        return JSONResponse("now")

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything be late after a fraction of a second."""
    monkeypatch.setattr(http_protocol, "HEADERS_TIMEOUT_S", 0.3)
    monkeypatch.setattr(http_protocol, "WHOLE_BODY_TIMEOUT_S", 0.3)
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.3)


class Answer:
    """What has come back on a connection."""

    def __init__(self) -> None:
        self.body = b""
        self.headers: dict[str, str] = {}
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def read_answer(connection: socket.socket) -> tuple[int, str]:
    """Status and body of one answer; failures must be JSON of the one form."""
    answer = Answer()
    parser = httptools.HttpResponseParser(answer)
    while not answer.complete:
        data = connection.recv(65536)
        assert data, "the connection was closed without an answer"
        parser.feed_data(data)
    status = int(parser.get_status_code())
    assert answer.headers["content-type"] == "application/json"
    if status >= 400:
        assert answer.headers["connection"] == "close" and b'"code"' in answer.body and b'"message"' in answer.body
    return status, answer.body.decode()


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes the connection, which it has time for."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def ask(server: Server, request: bytes) -> tuple[int, str]:
    with server.connect() as connection:
        connection.sendall(request)
        return read_answer(connection)


HEAD = b"POST /len HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def test_good_requests_are_answered_on_one_connection(server):
    with server.connect() as connection:
        for body in (b"abc", b"", b"x" * 100_000):
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert read_answer(connection) == (200, str(len(body)))
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
        assert read_answer(connection) == (200, "3")


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD + b"".join(b"X-%d: 1\r\n" % i for i in range(1000)) + b"\r\n",
        HEAD + b"X: " + b"a" * 2**20 + b"\r\n\r\n",
        HEAD + b"X: " + b"a" * 2**20,  # of which no end comes
        b"GET /" + b"a" * MAX_HEADER_BYTES + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"".join(b"T-%d: 1\r\n" % i for i in range(1000)) + b"\r\n",
    ],
)
def test_too_many_or_too_large_headers_are_refused(server, request_bytes):
    status, body = ask(server, request_bytes)
    assert status == 431 and "headers_too_large" in body


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        HEAD + b"Content-Length: 1, 2\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        HEAD + b"X\x00Y: 1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\n\r\nabcdef",  # what follows is no request
    ],
)
def test_what_is_no_http_is_refused_in_json(server, request_bytes):
    status, body = ask(server, request_bytes)
    assert status == 400 and "the request must be HTTP/1.1, got something else" in body


def test_a_connection_on_which_nothing_is_asked_is_closed(server, hurried):
    connections = [server.connect() for _ in range(50)]
    assert all(is_closed(connection) for connection in connections)
    with server.connect() as connection:
        connection.sendall(b"\r\n")
        assert read_answer(connection)[0] == 408 and is_closed(connection)


def dribble(connection: socket.socket, data: bytes) -> None:
    """Send byte by byte, and often enough that no single pause is long, until the server has had enough."""
    for i in range(len(data)):
        try:
            connection.send(data[i : i + 1])
        except OSError:
            return
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (b"", HEAD + b"X: " + b"a" * 10_000),
        (HEAD + b"Content-Length: 10000\r\n\r\n", b"a" * 10_000),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 2000),
    ],
)
def test_headers_and_bodies_that_dribble_are_ended(server, hurried, head, rest):
    with server.connect() as connection:
        connection.sendall(head)
        sender = threading.Thread(target=dribble, args=(connection, rest))
        sender.start()
        status, body = read_answer(connection)
        assert status == 408 and "must arrive within" in body
        assert is_closed(connection)
        sender.join(WAIT_S)
        assert not sender.is_alive()


def test_a_body_shorter_than_announced_is_ended(server, hurried):
    assert ask(server, HEAD + b"Content-Length: 10\r\n\r\nabc")[0] == 408


def test_the_rest_of_a_body_is_not_awaited_after_its_answer(server, hurried):
    with server.connect() as connection:
        connection.sendall(b"POST /now HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10000\r\n\r\n")
        assert read_answer(connection) == (200, '"now"')
        dribble(connection, b"a" * 10_000)
        assert is_closed(connection)


def test_a_body_that_never_ends_is_ended(server, monkeypatch):
    monkeypatch.setattr(http_protocol, "MAX_REQUEST_BYTES", 2**20)
    with server.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall((b"4000\r\n" + b"a" * 0x4000 + b"\r\n") * 80)
        status, body = read_answer(connection)
    assert status == 413 and "the request must be" in body


def test_requests_sent_ahead_are_answered_in_turn(server):
    with server.connect() as connection:
        connection.sendall((HEAD + b"Content-Length: 1\r\n\r\na") * 2)
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 2:
            data = connection.recv(65536)
            assert data
            received += data


def test_an_upgrade_is_answered_as_if_it_had_not_been_asked_for(server):
    key = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHM=\r\n"
    assert ask(server, b"GET /now HTTP/1.1\r\nHost: 127.0.0.1\r\n" + key + b"\r\n") == (200, '"now"')


# ---- Serve's own answers


def answered_by(application: Callable[[Scope, Receive, Send], Any], path: str = "/x") -> tuple[int, Headers, bytes]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(proxy.OwnAnswers(application)({**scope(), "path": path}, None, send))  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], Headers(raw=sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize(
    ("served", "status", "code", "retry"),
    [
        (404, 503, b'"unavailable"', "1"),
        (500, 503, b'"unavailable"', "1"),
        (503, 503, b'"overloaded"', "1"),
        (408, 504, b'"timeout"', None),
    ],
)
def test_what_serve_answers_without_a_gateway_becomes_a_failure_of_ours(served, status, code, retry):
    found, headers, body = answered_by(PlainTextResponse("Path not found. Ping /-/routes.", status_code=served))
    assert (found, headers["content-type"], headers.get("retry-after")) == (status, "application/json", retry)
    assert code in body and b"Ping" not in body


def test_a_gateway_that_died_before_it_answered_is_503():
    async def die(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    status, headers, body = answered_by(die)
    assert (status, headers["retry-after"]) == (503, "1") and b"the gateway must be running, got none" in body


def test_the_gateways_own_answers_are_passed_on():
    status, _, body = answered_by(failure(404, "model_not_found", "m."))
    assert status == 404 and b"model_not_found" in body
    assert answered_by(PlainTextResponse("page"))[2] == b"page"


@pytest.mark.parametrize("path", ["/-/routes", "/-/healthz"])
def test_serves_own_pages_are_hidden(path):
    status, _, body = answered_by(PlainTextResponse('{"/": "gateway"}'), path)
    assert status == 404 and b"gateway" not in body


def test_serve_is_told_to_read_connections_with_limits(monkeypatch):
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    assert [layer.cls for layer in proxy.configure()] == [proxy.OwnAnswers]
    config = uvicorn.Config(PlainTextResponse("x"), log_config=None)
    config.load()
    assert config.http_protocol_class is BoundedProtocol

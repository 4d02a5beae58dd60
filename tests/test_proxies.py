"""A proxy that the environment names is never asked for an address of this machine."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import proxy_bypass, urlopen

import pytest
import requests
from botocore.utils import get_environ_proxies

from cluster.config import StoreSettings
from cluster.errors import StoreUnavailableError
from cluster.machine.proxies import LOOPBACK, VARIABLES, spare_loopback
from cluster.s3.retries import RetryPolicy
from cluster.s3.store import Store

ROOT = Path(__file__).parents[1]
HERE = re.compile(rb"^\w+ (\w+://)?(127\.|localhost|\[::1\])")  # in the first line of what a proxy is asked
PROXY_VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy")


class BlackHole:
    """A proxy that takes every connection, never answers, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._kept: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.thread = threading.Thread(target=self._take, daemon=True)
        self.thread.start()

    def _take(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._kept.append(connection)
            self.asked.append(connection.recv(200))

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.thread.join()
        for connection in self._kept:
            connection.close()


@pytest.fixture
def black_hole() -> Iterator[BlackHole]:
    found = BlackHole()
    yield found
    found.close()


@pytest.fixture
def proxied(black_hole: BlackHole, monkeypatch: pytest.MonkeyPatch) -> BlackHole:
    """Name the black hole in every variable, without an exception."""
    for name in PROXY_VARIABLES:
        monkeypatch.setenv(name, black_hole.url)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    return black_hole


@pytest.fixture
def page() -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("asked", "is_here"),
    [
        (b"GET http://127.0.0.1:80/x HTTP/1.1\r\n", True),
        (b"CONNECT localhost:443 HTTP/1.0\r\n", True),
        (b"CONNECT [::1]:443 HTTP/1.1\r\n", True),
        (b"GET http://169.254.169.254/x HTTP/1.1\r\nReferer: http://127.0.0.1/", False),
    ],
)
def test_what_a_proxy_is_asked_about_this_machine_is_recognized(asked: bytes, is_here: bool) -> None:
    assert bool(HERE.match(asked)) is is_here


@pytest.mark.parametrize(
    ("lower", "upper", "value"),
    [
        (None, None, ",".join(LOOPBACK)),
        ("", "", ",".join(LOOPBACK)),
        ("intern.example", None, ",".join(("intern.example", *LOOPBACK))),
        (None, "intern.example", ",".join(("intern.example", *LOOPBACK))),
        ("a, b", "b,c", ",".join(("a", "b", "c", *LOOPBACK))),
        ("127.0.0.1", "*", "127.0.0.1,*,localhost,::1,[::1]"),
    ],
)
def test_what_the_person_has_excepted_stays_so(
    lower: str | None, upper: str | None, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, given in zip(VARIABLES, (lower, upper), strict=True):
        monkeypatch.setenv(name, given or "")
        if given is None:
            monkeypatch.delenv(name)
    for _ in range(2):
        spare_loopback()
        assert [os.environ[name] for name in VARIABLES] == [value, value]


def test_every_library_asks_this_machine_itself_and_the_proxy_for_others(proxied: BlackHole, page: str) -> None:
    assert get_environ_proxies(page) != {}  # as it was before
    spare_loopback()
    assert urlopen(page, timeout=20).read() == b"here"
    assert requests.get(page, timeout=20).content == b"here"
    for host in ("localhost:1", "127.0.0.1:1", "[::1]:1"):
        assert get_environ_proxies(f"http://{host}/") == {}
        assert proxy_bypass(host)
    assert get_environ_proxies("http://elsewhere.example/")["http"] == proxied.url
    assert proxied.asked == []


def test_grpc_asks_this_machine_itself(proxied: BlackHole) -> None:
    import grpc

    spare_loopback()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.getsockname()[1]}") as channel,
    ):
        call = channel.unary_unary("/a/b").future(b"", wait_for_ready=True)
        connection, _ = server.accept()
        assert connection.recv(3) == b"PRI"  # HTTP/2 itself, and no request to a proxy
        call.cancel()
        connection.close()
    assert proxied.asked == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost"])
def test_a_store_on_this_machine_is_never_asked_through_a_proxy(
    proxied: BlackHole, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    settings = StoreSettings(url="s3://bucket", endpoint_url=f"http://{host}:9")
    store = Store(settings, policy=RetryPolicy(total_s=0.1, first_pause_s=0.01))
    with pytest.raises(StoreUnavailableError):
        store.read("key")
    assert proxied.asked == []


@pytest.mark.ray
@pytest.mark.store
@pytest.mark.timeout(300)
def test_all_of_it_works_on_this_machine_beside_a_proxy_that_answers_nothing(
    black_hole: BlackHole, tmp_path: Path
) -> None:
    rest = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    place = {"ORCHESTRATOR_HOME": str(tmp_path / "home"), "ORCHESTRATOR_CACHE": str(tmp_path / "cache")}
    environment = rest | place | dict.fromkeys(PROXY_VARIABLES, black_hole.url)

    def run(*words: str) -> str:
        found = subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=environment,
        )
        assert found.returncode == 0, (words, found.stderr)
        return found.stdout

    try:
        run("up", "--cpus", "2")
        run("data", "push", "sklearn:digits")
        assert [d["name"] for d in json.loads(run("data", "ls", "--json"))] == ["digits"]
        assert all(check["ok"] for check in json.loads(run("status", "--json")))
        run("train", "digits-mlp", "train.epochs=1", "--run", "r1")
        run("models", "promote", "r1", "digits")
        run("deploy", "digits", "--port", "0")
        assert len(json.loads(run("endpoints", "--json"))) == 1
        run("submit", "train", "digits-mlp", "train.epochs=1", "--job", "j1", "--follow")
    finally:
        run("down")
    assert [asked for asked in black_hole.asked if HERE.match(asked)] == []  # Ray asks others, such as clouds' metadata

"""No message, log or manifest shows the password or the signature of a URL, whatever a server does."""

import logging
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fake_store import MemoryStore
from ports import free_port

from cluster.address import resolve_address
from cluster.clouds.notices import METADATA_VARIABLE, metadata_url
from cluster.errors import ConfigError, OrchestratorError
from cluster.s3.connection import check_endpoint
from cluster.s3.retries import RetryPolicy
from cluster.s3.store import parse_url
from cluster.s3.urls import masked, shown_reason, shown_url
from orchestrator.commands.ending import CommandEnd
from orchestrator.data.fetching.download import local_copy
from orchestrator.data.push import ls, push
from orchestrator.reporting.dataset.page import write_page
from serving.client import Client
from tests.web_server import Quiet, listening

PASSWORD, SIGNATURE = "pa55w0rd-canary", "51gnature-canary"
QUERY = f"X-Amz-Credential=AKIA&X-Amz-Signature={SIGNATURE}"
QUICK = RetryPolicy(total_s=0.5, connect_timeout_s=0.5, read_timeout_s=0.5, first_pause_s=0.001, longest_pause_s=0.01)
TABLE = "".join(f"{i},{i % 7},{'ab'[i % 2]}\n" for i in range(60))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h.org/a.csv", "https://h.org/a.csv"),
        (f"https://h.org:443/a.csv?{QUERY}", "https://h.org:443/a.csv?…"),
        (f"https://me:{PASSWORD}@h.org/a.csv", "https://h.org/a.csv"),
        (f"https://me:{PASSWORD}@[::1]:9/a#{SIGNATURE}", "https://[::1]:9/a"),
        (f"https://me:a/{PASSWORD}@h.org/a.csv", "https://…/h.org/a.csv"),
        (f"https://me:a?{PASSWORD}@h.org/a.csv", "https://…?…"),
        (f"https://me:a#{PASSWORD}@h.org/a.csv", "https://…"),
        (f"me:{PASSWORD}@h.org:6379", "h.org:6379"),
        (f"ray://me:{PASSWORD}@h.org:10001", "ray://h.org:10001"),
        (f"s3://key:{PASSWORD}@bucket/prefix", "s3://bucket/prefix"),
        ("http://[::1", "http://…"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_every_url_in_a_text_is_shown_so_and_other_words_stay() -> None:
    text = (
        f"HTTPSConnectionPool(host='h'): url: /a.csv?{QUERY} (from 'https://me:{PASSWORD}@h/a?x=1') or ray://HOST:PORT."
    )
    assert masked(text) == "HTTPSConnectionPool(host='h'): url: /a.csv?… (from 'https://h/a?…') or ray://HOST:PORT."


def test_the_reason_of_a_failed_request_is_told_without_its_url() -> None:
    inner = ConnectionRefusedError(111, "Connection refused")
    outer = RuntimeError(f"https://h/a?{QUERY}", inner)
    assert shown_reason(outer) == "Connection refused"
    assert shown_reason(RuntimeError(f"https://h/a?{QUERY}")) == "RuntimeError"
    outer.__cause__ = outer  # a circle
    assert shown_reason(outer) == "Connection refused"


# ---- a server that does what it likes with a signed URL


class Handler(Quiet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Callable[["Handler"], None]

    def do_GET(self) -> None:
        type(self).answer(self)

    def send(self, status: int, body: bytes = b"", *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "text/csv", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = length is not None


Serve = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server; return its signed URL."""
    running = ExitStack()

    def start(answer: Callable[[Handler], None], *, certificate: tuple[Path, Path] | None = None) -> str:
        this = type("ThisHandler", (Handler,), {"answer": answer})
        httpd = running.enter_context(listening(this, certificate=certificate))
        scheme = "https" if certificate else "http"
        return f"{scheme}://me:{PASSWORD}@127.0.0.1:{httpd.server_port}/data.csv?{QUERY}"

    with running:
        yield start


@pytest.fixture(autouse=True)
def own_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "home"))


def require_no_secret(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Look at all that a person may get to see of an error."""
    seen = ["".join(traceback.format_exception(error)), *(record.getMessage() for record in caplog.records)]
    inner: BaseException | None = error
    while inner is not None:
        seen += [str(inner), repr(inner), repr(inner.args)]
        inner = inner.__cause__ or inner.__context__
    found = [text for text in seen if PASSWORD in text or SIGNATURE in text or "X-Amz-Signature" in text]
    assert found == []


def stall(handler: Handler) -> None:
    handler.send(200, b"1", length=1000)
    handler.close_connection = False
    handler.connection.settimeout(5)
    handler.rfile.read(1)  # until the client goes


FAULTS: dict[str, Callable[[Handler], None]] = {
    "403": lambda handler: handler.send(403),
    "404": lambda handler: handler.send(404),
    "418": lambda handler: handler.send(418),
    "503": lambda handler: handler.send(503),
    "a login page": lambda handler: handler.send(200, b"<html>", **{"Content-Type": "text/html"}),
    "a truncated body": lambda handler: handler.send(200, b"1,2", length=1000),
    "a body that stalls": stall,
    "a redirect in a circle": lambda handler: handler.send(302, Location=handler.path),
    "a redirect to nowhere": lambda handler: handler.send(302, Location=f"http://127.0.0.1:{free_port()}/x?{QUERY}"),
    "a redirect to plain HTTP": lambda handler: handler.send(302, Location=f"http://h.invalid/x?{QUERY}"),
    "a redirect to another kind": lambda handler: handler.send(302, Location=f"ftp://h.invalid/x?{QUERY}"),
    "a redirect to no URL": lambda handler: handler.send(302, Location=f"http://[::1/x?{QUERY}"),
    "no HTTP": lambda handler: handler.wfile.write(f"GET {handler.path}\r\n\r\n".encode()) and None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_is_no_file_shows_no_signature(
    fault: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="orchestrator")
    url = serve(FAULTS[fault])
    with pytest.raises(
        OrchestratorError, match=r"127\.0\.0\.1:\d+/data\.csv\?…|h\.invalid/x\?…|must be an http"
    ) as caught:
        local_copy(url, policy=QUICK)
    require_no_secret(caught.value, caplog)


def test_a_wrong_checksum_shows_no_signature(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    url = serve(lambda handler: handler.send(200, TABLE.encode()))
    with pytest.raises(OrchestratorError, match=r"data\.csv\?… must have SHA256") as caught:
        local_copy(f"{url}#sha256={'0' * 64}", policy=QUICK)
    require_no_secret(caught.value, caplog)


def test_nobody_who_listens_shows_no_signature(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OrchestratorError, match=r"must answer within .* got Connection refused\.") as caught:
        local_copy(f"http://me:{PASSWORD}@127.0.0.1:{free_port()}/data.csv?{QUERY}", policy=QUICK)
    require_no_secret(caught.value, caplog)


def test_a_certificate_that_nobody_signed_shows_no_signature(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "1"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the program openssl to make a certificate")
    url = serve(lambda handler: handler.send(200), certificate=(certificate, key))
    with pytest.raises(OrchestratorError, match="this machine trusts, got self-signed certificate") as caught:
        local_copy(url, policy=QUICK)
    require_no_secret(caught.value, caplog)


@pytest.mark.parametrize(
    "source",
    [
        f"ftp://me:{PASSWORD}@h.org/a.csv?{QUERY}",
        f"HTTPS://me:a/{PASSWORD}@h.org/a.csv?{QUERY}",
        f"https://[::1/a.csv?{QUERY}",
        f"https://h.org:port/a.csv?{QUERY}",
        f"https://h.org/a.csv?{QUERY}#{PASSWORD}",
        f"s3://key:{PASSWORD}@bucket/prefix?{QUERY}",
    ],
)
def test_a_source_that_is_malformed_shows_no_secret(source: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"must (be|begin|have)") as caught:
        local_copy(source, policy=QUICK)
    require_no_secret(caught.value, caplog)


def test_the_manifest_the_list_and_the_page_show_no_signature(serve: Serve, tmp_path: Path) -> None:
    store: Any = MemoryStore()
    url = serve(lambda handler: handler.send(200, f"a,b,label\n{TABLE}".encode()))
    manifest = push(store, url, name="signed").manifest
    assert manifest.source.uri.partition("#")[0] == shown_url(url)
    write_page(store, "signed", path=tmp_path / "page.html")
    seen = [*store.objects.values(), (tmp_path / "page.html").read_bytes(), repr(ls(store)).encode()]
    assert [text for text in seen if PASSWORD.encode() in text or SIGNATURE.encode() in text] == []


# ---- other addresses


@pytest.mark.parametrize(
    "use",
    [
        lambda: check_endpoint(f"https://h.org/bucket?{QUERY}"),
        lambda: check_endpoint(f"https://me:{PASSWORD}@h.org"),
        lambda: parse_url(f"s3://key:{PASSWORD}@bucket"),
        lambda: resolve_address(f"ray://me:{PASSWORD}@h.org:10001"),
        lambda: resolve_address(f"me:{PASSWORD}@h.org:6379"),
        lambda: resolve_address(f"http://h.org:8265?{QUERY}"),
        metadata_url,
    ],
)
def test_an_address_with_a_password_or_a_signature_is_refused_and_not_shown(
    use: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(METADATA_VARIABLE, f"http://me:{PASSWORD}@h.org")
    with pytest.raises(ConfigError, match=r"must be (http|s3|HOST)") as caught:
        use()
    require_no_secret(caught.value, caplog)


def test_an_endpoint_that_does_not_answer_is_named_without_its_password() -> None:
    port = free_port()
    with pytest.raises(OrchestratorError, match=rf"must answer at http://127\.0\.0\.1:{port}, got"):
        Client(f"http://me:{PASSWORD}@127.0.0.1:{port}").models()


def test_a_proxy_is_not_shown_with_its_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://me:{PASSWORD}@127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(OrchestratorError, match="must answer within") as caught:
        local_copy(f"https://h.invalid/data.csv?{QUERY}", policy=QUICK)
    require_no_secret(caught.value, caplog)


def test_an_unexpected_error_is_told_with_a_traceback_but_no_signature(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            raise OSError(f"Max retries exceeded with url: /a.csv?{QUERY}")
        except OSError as error:
            raise RuntimeError(f"https://me:{PASSWORD}@h.org/a.csv?{QUERY}") from error
    except RuntimeError as error:
        caught = error
    CommandEnd(as_json=False).tell_fault(caught)
    told = capsys.readouterr().err
    assert "Traceback" in told and "RuntimeError: https://h.org/a.csv?…" in told
    assert PASSWORD not in told and SIGNATURE not in told

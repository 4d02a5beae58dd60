"""The store against a real S3 server, and against small servers that fail in the ways S3 does."""

import logging
import os
import pickle
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.config import StoreSettings
from cluster.errors import (
    ConfigError,
    NotFoundError,
    OrchestratorError,
    PreconditionError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
)
from cluster.machine.state import StoreState
from cluster.s3.connection import check_endpoint
from cluster.s3.retries import RetryPolicy
from cluster.s3.store import Store, parse_url
from cluster.storage import open_store
from tests.web_server import Quiet, listening

SECRET = "canary-secret-0123456789"
FAST = RetryPolicy(
    total_s=5, connect_timeout_s=1, read_timeout_s=0.5, first_pause_s=0.001, longest_pause_s=0.01, calm_s=0.0
)

BRIEF = RetryPolicy(total_s=0.3, connect_timeout_s=1, read_timeout_s=0.5, first_pause_s=0.01, longest_pause_s=0.05)


# ---- what every store does


@pytest.mark.store
def test_what_is_written_is_read_back_whole_and_in_ranges(store: Store) -> None:
    data = os.urandom(3 * 2**20 + 17)
    etag = store.write("a/b", data)
    assert store.read("a/b") == data
    assert store.read_with_etag("a/b") == (data, etag)
    assert store.read_range("a/b", start=5, length=100) == data[5:105]
    assert store.read_range("a/b", start=len(data) - 3, length=100) == data[-3:]
    assert store.read_range("a/b", start=len(data), length=1) == b""
    assert store.read_range("a/b", start=0, length=0) == b""


@pytest.mark.store
def test_an_empty_object_is_read_back_empty(store: Store) -> None:
    store.write("empty", b"")
    assert store.read("empty") == b""
    assert store.exists("empty")


@pytest.mark.store
def test_json_is_read_back_equal_and_nan_is_refused(store: Store) -> None:
    store.write_json("x.json", {"b": [1, 2.5, None], "a": "ü"})
    assert store.read_json("x.json") == {"a": "ü", "b": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json("x.json", {"loss": float("nan")})


@pytest.mark.store
@pytest.mark.parametrize("read", [Store.read, lambda s, key: s.read_range(key, start=3, length=2)])
def test_a_missing_object_is_named(store: Store, read: Callable[[Store, str], bytes]) -> None:
    with pytest.raises(NotFoundError, match="an object must exist to read a/b, got none"):
        read(store, "a/b")


@pytest.mark.store
def test_listing_and_deleting_pass_the_limit_of_one_answer(store: Store) -> None:
    keys = [f"many/{number:04}" for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(key, b"x"), keys))
    assert [info.key for info in store.list("many/")] == keys
    store.delete([*keys, "never-was"])
    assert store.list() == []


@pytest.mark.store
def test_listings_are_relative_to_the_store_and_by_prefix(store: Store) -> None:
    for key in ("runs/b/run.json", "runs/a/run.json", "runs/a/x/y", "runs-old/z"):
        store.write(key, key.encode())
    assert [info.key for info in store.list("runs/a/")] == ["runs/a/run.json", "runs/a/x/y"]
    assert store.folders("runs") == store.folders("runs/") == ["a", "b"]
    assert store.folders() == ["runs", "runs-old"]
    assert store.folders("nothing") == []
    info = store.list("runs-old")[0]
    assert (info.size, info.modified.tzinfo is not None) == (10, True)


@pytest.mark.store
def test_an_object_exists_only_under_its_whole_key(store: Store) -> None:
    store.write("a/b", b"x")
    assert store.exists("a/b")
    assert not store.exists("a/")
    assert not store.exists("a")
    assert not store.exists("a/bc")


@pytest.mark.parametrize("key", ["/a", "../a", "a/../../b", "a\\b", "a\0"])
def test_a_key_cannot_leave_the_store(key: str) -> None:
    with pytest.raises(StoreError, match=r"must be relative, without '\.\.'"):
        Store(StoreSettings(url="s3://bucket/prefix")).read(key)


# ---- conditional writes


@pytest.mark.store
def test_of_racing_first_writers_exactly_one_wins(store: Store) -> None:
    def claim(writer: int) -> bool:
        start.wait()
        try:
            store.write(f"claim-{race}", f"writer {writer}".encode(), only_if_absent=True)
        except PreconditionError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        for race in range(3):
            start = threading.Barrier(8)
            won = list(pool.map(claim, range(8)))
            assert won.count(True) == 1
            assert store.read(f"claim-{race}") == f"writer {won.index(True)}".encode()


@pytest.mark.store
def test_of_racing_updates_of_one_state_exactly_one_wins(store: Store) -> None:
    def update(writer: int) -> bool:
        try:
            store.write("alias", f"writer {writer}".encode(), only_if_etag=etag)
        except PreconditionError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        for race in range(2):
            etag = store.write("alias", f"before {race}".encode())
            assert list(pool.map(update, range(8))).count(True) == 1


@pytest.mark.store
def test_an_update_of_an_outdated_state_is_refused(store: Store) -> None:
    first = store.write("alias", b"1")
    second = store.write("alias", b"2", only_if_etag=first)
    with pytest.raises(PreconditionError, match="to write alias, nobody else may have written it first"):
        store.write("alias", b"3", only_if_etag=first)
    assert store.read_with_etag("alias") == (b"2", second)


# ---- secrets, addresses, preflight


@pytest.mark.store
def test_a_pickled_store_works_and_holds_no_secret(store: Store) -> None:
    store.write("x", b"1")  # its client now holds the keys
    assert store.settings.credentials_file is not None
    keys = re.findall(r"= (\S+)", Path(store.settings.credentials_file).read_text())
    assert len(keys) == 2
    pickled = pickle.dumps((store, store.settings))
    assert not any(key.encode() in pickled for key in keys)
    assert pickle.loads(pickled)[0].read("x") == b"1"


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://my.bucket-1/a/b/", ("my.bucket-1", "a/b/")),
    ],
)
def test_a_url_is_bucket_and_prefix(url: str, parts: tuple[str, str]) -> None:
    assert parse_url(url) == parts


@pytest.mark.parametrize(
    "url", ["bucket", "http://bucket", "s3://", "s3://Bucket", "s3://bucket//a", "s3://k:s@bucket", "s3://bucket/../a"]
)
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="the store must be s3://BUCKET or s3://BUCKET/PREFIX, got"):
        Store(StoreSettings(url=url))


@pytest.mark.parametrize("host", ["http://127.0.0.1:1", "http://localhost", "http://[::1]:9", "https://s3.example.org"])
def test_https_and_this_machine_are_accepted(host: str) -> None:
    check_endpoint(host)


@pytest.mark.parametrize("host", ["http://10.0.0.1:9000", "http://s3.example.org", "http://127.0.0.1.example.org"])
def test_plain_http_to_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="must use https unless it is on this machine"):
        Store(StoreSettings(url="s3://bucket", endpoint_url=host))


def test_plain_http_to_another_machine_is_one_named_setting_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = "http://only-here.lan:9000"
    with pytest.raises(ConfigError, match=r"set ORCHESTRATOR_STORE_PLAIN_HTTP=1: then .* read and change all data"):
        check_endpoint(url)
    monkeypatch.setenv("ORCHESTRATOR_STORE_PLAIN_HTTP", "yes")
    with pytest.raises(ConfigError, match="must use https unless it is on this machine"):
        check_endpoint(url)
    monkeypatch.setenv("ORCHESTRATOR_STORE_PLAIN_HTTP", "1")
    with caplog.at_level(logging.WARNING):
        check_endpoint(url)
        Store(StoreSettings(url="s3://bucket", endpoint_url=url))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(
        "the store at http://only-here.lan is reached by plain http, as ORCHESTRATOR_STORE_PLAIN_HTTP=1"
    )


def test_a_password_in_the_endpoint_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"must be http\(s\)://HOST") as caught:
        check_endpoint(f"https://user:{SECRET}@host")
    assert SECRET not in str(caught.value)


def test_no_store_at_all_names_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="Run `orchestrator up` for a local one, or set ORCHESTRATOR_STORE"):
        open_store()


@pytest.mark.store
def test_the_argument_comes_before_the_variable_and_this_before_the_local_store(
    store_server: StoreState, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_store().settings == store_server.settings
    monkeypatch.setenv("ORCHESTRATOR_STORE", "s3://from-variable")
    assert open_store().settings.url == "s3://from-variable"
    assert open_store("s3://from-argument").settings.url == "s3://from-argument"
    assert open_store("s3://from-argument").settings.endpoint_url is None
    within = open_store("s3://orchestrator/team").settings
    assert (within.url, within.endpoint_url) == ("s3://orchestrator/team", store_server.settings.endpoint_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
    assert open_store("s3://orchestrator/team").settings.endpoint_url == "https://s3.example.org"


@pytest.mark.store
def test_a_good_store_passes_the_check_and_keeps_nothing_of_it(store: Store) -> None:
    store.check()
    assert store.list() == []


@pytest.mark.store
@pytest.mark.parametrize(
    ("change", "environment", "message"),
    [
        ({}, {"AWS_ACCESS_KEY_ID": "UNKNOWN", "AWS_SECRET_ACCESS_KEY": SECRET}, "Check AWS_ACCESS_KEY_ID"),
        ({}, {"AWS_ACCESS_KEY_ID": "right", "AWS_SECRET_ACCESS_KEY": SECRET}, "Check AWS_SECRET_ACCESS_KEY"),
        ({}, {}, "must get credentials, got none. Set AWS_ACCESS_KEY_ID"),
        ({"profile": "nobody"}, {}, "the AWS profile must exist, got 'nobody'. Check AWS_PROFILE"),
        (
            {"url": "s3://missing-bucket", "profile": "orchestrator", "credentials_file": "right"},
            {},
            "Create the bucket or correct the URL",
        ),
    ],
)
def test_the_check_names_what_is_wrong_and_its_cure(
    store_server: StoreState,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    environment: dict[str, str],
    message: str,
) -> None:
    right = Path(str(store_server.settings.credentials_file))
    if environment.get("AWS_ACCESS_KEY_ID") == "right":
        found = re.search(r"aws_access_key_id = (\S+)", right.read_text())
        assert found is not None
        environment = {**environment, "AWS_ACCESS_KEY_ID": found[1]}
    if change.get("credentials_file") == "right":
        change = {**change, "credentials_file": str(right)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = StoreSettings(url="s3://orchestrator", endpoint_url=store_server.settings.endpoint_url)
    with pytest.raises(StoreAccessError, match=message) as caught:
        Store(server.model_copy(update=change)).check()
    assert SECRET not in str(caught.value)


# ---- faults, from a server that does as it is told


@dataclass
class Script:
    """A server's answers, one for each request, the last one for all that follow; and the requests it got."""

    answers: list[Callable[[BaseHTTPRequestHandler], None]]
    requests: list[SimpleNamespace] = field(default_factory=list)
    url: str = ""

    def store(self, *, policy: RetryPolicy = FAST) -> Store:
        return Store(StoreSettings(url="s3://bucket", endpoint_url=self.url), policy=policy)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.requests.append(SimpleNamespace(method=handler.command, path=handler.path, headers=handler.headers))
        self.answers[min(len(self.requests), len(self.answers)) - 1](handler)


def test_an_endpoint_may_have_a_path_for_both_clients() -> None:
    listing = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    with faulty_server(sends(listing)) as script:
        script.url += "/storage/v1/s3/"
        assert script.store().list() == []
        assert script.requests.pop().path.startswith("/storage/v1/s3/bucket?list-type=2")
        with suppress(OSError):  # a listing is no answer to it
            script.store().arrow_filesystem().open_output_stream("bucket/key").close()
        assert script.requests.pop().path.startswith("/storage/v1/s3/bucket/key")


@contextmanager
def faulty_server(*answers: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Script]:
    script = Script(list(answers))

    class Handler(Quiet, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        do_GET = do_PUT = do_POST = do_DELETE = lambda self: script.answer(self)  # noqa: PLW0108

    with listening(Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the clients break off on purpose
        script.url = f"http://127.0.0.1:{server.server_port}"
        yield script


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "store" not in request.keywords:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def sends(
    body: bytes = b"", *, status: int = 200, etag: str = '"1"', total: int | None = None, start: int | None = None
) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answer with the body; ``total`` promises more bytes than come; ``start`` says that it is a range."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("ETag", etag)
        handler.send_header("Content-Length", str(len(body) if total is None else total))
        if start is not None:
            stop = start + (len(body) if total is None else total)
            handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{stop}")
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = total is not None

    return answer


def fails(code: str, status: int) -> Callable[[BaseHTTPRequestHandler], None]:
    return sends(f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode(), status=status)


def stalls(released: threading.Event) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: released.wait(30) and None


def test_a_burst_of_retries_logs_one_line_and_one_more_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    slow_down = fails("SlowDown", 503)
    with faulty_server(slow_down, slow_down, slow_down, sends(b"data")) as script, caplog.at_level(logging.WARNING):
        assert script.store().read("x") == b"data"
    assert len(script.requests) == 4
    begun, over = [record.getMessage() for record in caplog.records]
    assert begun == "s3://bucket: could not read x: SlowDown (HTTP 503); trying again"
    assert re.fullmatch(r"s3://bucket: answers again after 3 retries in \d+\.\d s", over)


def test_answers_between_failures_do_not_end_a_burst(caplog: pytest.LogCaptureFixture) -> None:
    answers = [fails("SlowDown", 503), sends(b"data")] * 3
    with faulty_server(*answers) as script, caplog.at_level(logging.WARNING):
        store = script.store(policy=replace(FAST, calm_s=60.0))
        assert [store.read("x") for _ in range(3)] == [b"data"] * 3
    assert len(caplog.records) == 1


def test_a_read_that_breaks_in_the_middle_goes_on_where_it_broke() -> None:
    data = os.urandom(100_000)
    with faulty_server(sends(data[:60_000], total=100_000), sends(data[60_000:], status=206, start=60_000)) as script:
        assert script.store().read("x") == data
    again = script.requests[1].headers
    received = int(re.fullmatch(r"bytes=(\d+)-", again["Range"])[1])
    assert received == 60_000
    assert again["If-Match"] == '"1"'


def test_a_range_that_breaks_in_the_middle_goes_on_where_it_broke() -> None:
    data = os.urandom(1000)
    first, rest = sends(data[:400], status=206, total=1000, start=50), sends(data[400:], status=206, start=450)
    with faulty_server(first, rest) as script:
        assert script.store().read_range("x", start=50, length=1000) == data
    assert [request.headers["Range"] for request in script.requests] == ["bytes=50-1049", "bytes=450-1049"]


def test_an_object_replaced_during_a_broken_read_is_read_from_its_begin() -> None:
    answers = sends(b"old-", total=8), fails("PreconditionFailed", 412), sends(b"new-new-", etag='"2"')
    with faulty_server(*answers) as script:
        assert script.store().read_with_etag("x") == (b"new-new-", '"2"')


def test_a_silent_server_is_given_up_and_asked_again() -> None:
    released = threading.Event()
    with faulty_server(stalls(released), sends(b"data")) as script:
        assert script.store().read("x") == b"data"
        released.set()


def test_a_server_that_ignores_ranges_is_named() -> None:
    with (
        faulty_server(sends(b"all of it")) as script,
        pytest.raises(StoreError, match="must be readable by range, got the whole"),
    ):
        script.store().read_range("x", start=2, length=3)


def test_no_answer_within_the_budget_says_how_often_it_was_tried() -> None:
    with (
        faulty_server(fails("SlowDown", 503)) as script,
        pytest.raises(StoreUnavailableError, match=r"got SlowDown \(HTTP 503\) \(\d+ attempts in \d+\.\d s\)\. Lower"),
    ):
        script.store(policy=BRIEF).write("x", b"data")


def test_a_refused_connection_says_where() -> None:
    with faulty_server(sends()) as script:
        url = script.url
    store = Store(StoreSettings(url="s3://bucket", endpoint_url=url), policy=BRIEF)
    with pytest.raises(StoreUnavailableError, match=f"at {url} must answer to read x, got EndpointConnectionError"):
        store.read("x")


def test_the_check_of_a_silent_server_ends_within_its_deadline() -> None:
    released = threading.Event()
    with faulty_server(stalls(released)) as script:
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="got ReadTimeoutError"):
            script.store().check(deadline_s=2.0)
        assert time.monotonic() - began < 2.0
        released.set()


@pytest.mark.parametrize(
    ("code", "status", "error", "message"),
    [
        ("AccessDenied", 403, StoreAccessError, "Grant read, write, list and delete"),
        ("PermanentRedirect", 301, StoreAccessError, "Set AWS_REGION to the bucket's region"),
        ("AuthorizationHeaderMalformed", 400, StoreAccessError, "Set AWS_REGION to the bucket's region"),
        ("RequestTimeTooSkewed", 403, StoreAccessError, "Set the clock"),
        ("InvalidToken", 400, StoreAccessError, "Check AWS_SESSION_TOKEN"),
        ("ExpiredToken", 400, StoreAccessError, "Credentials expired: renew them"),
        ("NoSuchBucket", 404, StoreAccessError, "Create the bucket or correct the URL"),
        ("InternalError", 500, StoreUnavailableError, "Lower the request rate or try later"),
        ("SomethingNew", 400, StoreError, r"got SomethingNew \(HTTP 400\)"),
    ],
)
def test_each_refusal_is_named_with_its_cure(
    code: str, status: int, error: type[OrchestratorError], message: str
) -> None:
    with faulty_server(fails(code, status)) as script, pytest.raises(error, match=message) as caught:
        script.store(policy=BRIEF).write("x", b"data")
    assert type(caught.value) is error
    assert SECRET not in str(caught.value)


def test_renewed_credentials_are_picked_up_when_the_old_ones_expire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"

    def save(key: str) -> None:
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n")

    def expire(handler: BaseHTTPRequestHandler) -> None:
        save("RENEWED")
        fails("ExpiredToken", 400)(handler)

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    save("OUTDATED")
    with faulty_server(expire, sends(b"data")) as script:
        assert script.store().read("x") == b"data"
    used = [re.search(r"Credential=(\w+)/", request.headers["Authorization"]) for request in script.requests]
    assert [match and match[1] for match in used] == ["OUTDATED", "RENEWED"]


def test_a_conditional_write_whose_answer_was_lost_has_won() -> None:
    answers = fails("InternalError", 500), fails("PreconditionFailed", 412), sends(b"mine", etag='"7"')
    with faulty_server(*answers) as script:
        assert script.store().write("claim", b"mine", only_if_absent=True) == '"7"'
    assert [request.method for request in script.requests] == ["PUT", "PUT", "GET"]


def test_a_conditional_write_that_lost_after_a_retry_has_lost() -> None:
    answers = fails("InternalError", 500), fails("PreconditionFailed", 412), sends(b"theirs", etag='"7"')
    with faulty_server(*answers) as script, pytest.raises(PreconditionError):
        script.store().write("claim", b"mine", only_if_absent=True)


def test_pauses_grow_and_stay_below_the_limit() -> None:
    policy = RetryPolicy(first_pause_s=0.1, longest_pause_s=10)
    assert [policy.pause_s(attempt, jitter=1.0) for attempt in (0, 1, 2, 6, 7, 5000)] == [0.1, 0.2, 0.4, 6.4, 10, 10]
    assert policy.pause_s(3, jitter=0.0) == 0.0

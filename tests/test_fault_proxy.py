"""The proxy that the tests of store faults stand on: honest without rules, and failing exactly as they say."""

import re
from collections.abc import Iterator

import botocore.session
import pytest
import urllib3
from botocore.config import Config

from cluster.machine.state import StoreState
from cluster.s3.store import Store
from tests.fault_proxy import Fault, FaultProxy, Rule

pytestmark = pytest.mark.store

DATA = bytes(range(256)) * 40


@pytest.fixture
def proxy(store_server: StoreState) -> Iterator[FaultProxy]:
    with FaultProxy(str(store_server.settings.endpoint_url)) as proxy:
        yield proxy


@pytest.fixture
def key(store: Store) -> str:
    """Of an object in the store, as a path of its URL."""
    store.write("object", DATA)
    return f"/{store.bucket}/{store.prefix}object"


def signed_url(store: Store, proxy: FaultProxy, method: str) -> str:
    """The object's address, signed for the proxy's host, for clients that do not retry or hide anything."""
    session = botocore.session.Session(profile=store.settings.profile)
    session.set_config_variable("credentials_file", store.settings.credentials_file)
    client = session.create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=proxy.url,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    target = {"Bucket": store.bucket, "Key": f"{store.prefix}object"}
    return str(client.generate_presigned_url(method, target))


def get(store: Store, proxy: FaultProxy) -> urllib3.BaseHTTPResponse:
    return urllib3.request("GET", signed_url(store, proxy, "get_object"), retries=False)


def test_without_rules_everything_passes_and_is_logged(store: Store, proxy: FaultProxy, key: str) -> None:
    through = Store(store.settings.model_copy(update={"endpoint_url": proxy.url}))
    etag = through.write("written", DATA)
    assert store.read_with_etag("written") == through.read_with_etag("written") == (DATA, etag)
    assert through.read_range("object", start=7, length=100) == DATA[7:107]
    assert [info.key for info in through.list()] == ["object", "written"]
    methods = [access.method for access in proxy.log]
    assert methods == ["PUT", "GET", "GET", "GET"]
    assert {(access.status // 100, access.fault) for access in proxy.log} == {(2, None)}


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        (Fault(status=503, code="SlowDown"), 503, b"<Error><Code>SlowDown</Code><Message>by the fault proxy"),
        (Fault(status=200, body=b"<html>"), 200, b"<html>"),
        (Fault(shorten_to=10), 200, DATA[:10]),
        (Fault(flip_at=3), 200, DATA[:3] + b"\x02" + DATA[4:]),
        (Fault(flip_at=-1), 200, DATA[:-1] + b"\xfe"),
        (Fault(bytes_per_s=100_000), 200, DATA),
        (Fault(delay_s=0.01), 200, DATA),
    ],
)
def test_an_answer_is_changed_as_the_fault_says(
    store: Store, proxy: FaultProxy, key: str, fault: Fault, status: int, body: bytes
) -> None:
    proxy.set(Rule(fault, method="GET", key="object", times=1))
    answer = get(store, proxy)
    assert (answer.status, answer.data[: len(body)]) == (status, body)
    assert int(answer.headers["Content-Length"]) == len(answer.data)
    assert get(store, proxy).data == DATA
    assert [access.fault for access in proxy.log] == [fault, None]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(drop=True), urllib3.exceptions.ProtocolError),
        (Fault(reset_at=100), urllib3.exceptions.ProtocolError),
        (Fault(truncate_at=100), urllib3.exceptions.ProtocolError),
    ],
)
def test_a_connection_breaks_where_the_fault_says(
    store: Store, proxy: FaultProxy, key: str, fault: Fault, error: type[Exception]
) -> None:
    proxy.set(Rule(fault))
    with pytest.raises(error):
        get(store, proxy)


def test_a_stalled_request_is_never_answered(store: Store, proxy: FaultProxy, key: str) -> None:
    proxy.set(Rule(Fault(stall=True)))
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        urllib3.request("GET", signed_url(store, proxy, "get_object"), retries=False, timeout=0.2)


def test_headers_are_replaced(store: Store, proxy: FaultProxy, key: str) -> None:
    proxy.set(Rule(Fault(headers=(("ETag", '"wrong"'),))))
    assert get(store, proxy).headers["ETag"] == '"wrong"'


@pytest.mark.parametrize("fault", [Fault(apply=True, status=500, code="InternalError"), Fault(apply=True, drop=True)])
def test_a_write_may_be_applied_though_its_answer_is_lost(
    store: Store, proxy: FaultProxy, key: str, fault: Fault
) -> None:
    proxy.set(Rule(fault, method="PUT", times=1))
    url = signed_url(store, proxy, "put_object")
    try:
        assert urllib3.request("PUT", url, body=b"new", retries=False).status == 500
    except urllib3.exceptions.ProtocolError:
        assert fault.drop
    assert store.read("object") == b"new"


def test_the_first_rule_that_matches_counts_from_its_first_to_its_last_time(
    store: Store, proxy: FaultProxy, key: str
) -> None:
    proxy.set(
        Rule(Fault(status=500), key="another"),
        Rule(Fault(status=501), method="GET|PUT", first=2, times=2),
        Rule(Fault(status=502), header=("X-Unknown", "x")),
    )
    assert [get(store, proxy).status for _ in range(5)] == [200, 501, 501, 200, 200]


def test_the_same_seed_fails_the_same_requests(store: Store, store_server: StoreState, key: str) -> None:
    def outcomes(seed: int) -> str:
        rule = Rule(Fault(status=503), probability=0.5)
        with FaultProxy(str(store_server.settings.endpoint_url), rules=(rule,), seed=seed) as proxy:
            # Unsigned: refused by the server, but the address is the same every time.
            answers = [urllib3.request("GET", proxy.url + key, retries=False).status for _ in range(24)]
        return "".join("x" if status == 503 else "." for status in answers)

    assert outcomes(seed=1) == outcomes(seed=1) != outcomes(seed=2)
    assert re.search(r"x.*\.|\..*x", outcomes(seed=1))


def test_connections_are_refused_until_they_are_accepted_again(store: Store, proxy: FaultProxy, key: str) -> None:
    before = proxy.url
    proxy.refuse()
    with pytest.raises(urllib3.exceptions.NewConnectionError):
        urllib3.request("GET", proxy.url, retries=False)
    proxy.accept()
    assert proxy.url == before
    assert get(store, proxy).data == DATA

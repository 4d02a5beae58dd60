"""Deploying to a real local Ray and S3 server: no request fails while versions change, and bad ones are refused."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse

import psutil
import pytest
import requests
import torch
from example_runs import EXAMPLES, write_run

from cluster import local
from cluster.errors import ConfigError, NotFoundError, RunFailedError
from cluster.machine.state import ProcessRecord, RayState
from cluster.s3.store import Store
from cluster.session import ray_session
from models.network import example_batch
from serving import golden as serving_golden
from serving import registry as serving_registry
from serving.client import Client
from serving.deploy import Endpoint, deploy, endpoints, rollback_endpoint, undeploy
from serving.deployed import gone_endpoints, remember
from serving.http.access import read_url, token_path
from serving.http.sockets import exposed_addresses
from serving.requests.protocol import output_tensor, request_of
from serving.requests.values import InputError

pytestmark = pytest.mark.ray
SAMPLE = {"size": [5.0, 3.0], "colour": "red"}


@pytest.fixture(scope="module")
def module_store(store_server):
    settings = store_server.settings
    return Store(settings.model_copy(update={"url": f"{settings.url}/serving"}))


@pytest.fixture(scope="module")
def session(ray_cluster, module_store) -> Iterator[None]:
    with ray_session(store=module_store.settings, serves=True):
        yield
        for endpoint in endpoints():
            undeploy(endpoint.name)


@pytest.fixture
def table(session, module_store) -> Endpoint:
    """Version v1 of `table`, deployed."""
    promote(module_store, "table-1", seed=1)
    serving_registry.set_champion(module_store, name="table", version="v1")
    return deploy(module_store, name="table", port=0)


def promote(store, run: str, seed: int) -> serving_golden.Version:
    write_run(store, run=run, kind="table", seed=seed)
    return serving_registry.promote(store, run=run, name="table")


def test_a_deployed_model_answers_over_http_as_in_this_process(table, module_store):
    signature = EXAMPLES["table"][1]
    batch = example_batch(signature, size=5, seed=8)
    answer = Client(table.url).infer("table", request_of(batch, signature))
    expected = serving_registry.load(module_store, name="table", version="v1").predict(batch)
    torch.testing.assert_close(output_tensor(answer["outputs"]), expected, atol=1e-5, rtol=0)
    assert (answer["model_version"], table.version, table.status) == ("v1", "v1", "running")
    assert answer["parameters"]["weights_sha256"] == table.weights_sha256
    assert read_url() == table.url and endpoints() == [table]


def test_an_endpoint_is_remembered_with_its_head_and_one_of_an_earlier_head_can_be_forgotten(table, ray_cluster):
    earlier = ray_cluster.model_copy(update={"process": ProcessRecord(pid=1, created=1.0)})
    (remembered,) = gone_endpoints(earlier)
    assert gone_endpoints(ray_cluster) == []
    assert (remembered.name, remembered.version, remembered.url) == ("table", "v1", table.url)
    remember(remembered.model_copy(update={"name": "lost", "head": earlier.process}))
    undeploy("lost")
    assert gone_endpoints(ray_cluster) == []
    with pytest.raises(NotFoundError, match="the model must be deployed, got 'lost'; deployed: table"):
        undeploy("lost")


def test_requests_at_the_same_time_get_each_their_own_answer(table):
    samples = [{"size": [i / 10, 3.0], "colour": "red"} for i in range(60)]
    client = Client(table.url)
    alone = [client.predict("table", sample)["prediction"]["probability"] for sample in samples]
    with ThreadPoolExecutor(12) as pool:
        together = [*pool.map(lambda s: Client(table.url).predict("table", s)["prediction"]["probability"], samples)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_only_the_token_opens_and_the_server_is_on_loopback(table):
    assert oct(token_path().stat().st_mode & 0o777) == "0o600"
    predict = f"{table.url}/models/table/predict"
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        refused = requests.post(predict, json=SAMPLE, headers=headers, timeout=30)
        assert refused.status_code == 401 and refused.headers["WWW-Authenticate"].startswith("Bearer")
        assert refused.json()["code"] == "unauthorized"
    assert requests.get(f"{table.url}/v2/health/ready", timeout=30).json() == {"ready": True}
    with pytest.raises(ConfigError, match="must accept the token, got 401"):
        Client(table.url, "wrong").predict("table", SAMPLE)
    port = int(table.url.rsplit(":", 1)[1])
    listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
    assert listening == ["127.0.0.1"]


def test_bad_requests_are_refused_and_leave_the_replica_alone(table):
    client = Client(table.url)
    with pytest.raises(InputError, match="size must be a list of 2") as refused:
        client.predict("table", {**SAMPLE, "size": [1]})
    assert (refused.value.code, refused.value.field) == ("wrong_shape", "size")
    with pytest.raises(NotFoundError, match="the model must be deployed"):
        client.predict("other", SAMPLE)
    headers = {"Authorization": f"Bearer {token_path().read_text().strip()}"}
    for body in (b"", b"[" * 100_000, b"\xff", b'{"size": [NaN, 1]}', b'{"colour": "\\ud800"}'):
        answer = requests.post(f"{table.url}/models/table/predict", data=body, headers=headers, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_json")
    large = requests.post(f"{table.url}/models/table/predict", data=b"[" * (17 * 2**20), headers=headers, timeout=30)
    assert (large.status_code, large.json()["code"]) == (413, "too_large")
    assert client.predict("table", SAMPLE)["version"] == "v1"


class Asking:
    """A thread that asks one question after the other, and remembers versions and failures."""

    def __init__(self, url: str) -> None:
        self.versions: list[str] = []
        self.failed: list[requests.Response] = []
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        headers = {"Authorization": f"Bearer {token_path().read_text().strip()}"}
        with requests.Session() as session:
            while not self._stop.is_set():
                answer = session.post(f"{self._url}/models/table/predict", json=SAMPLE, headers=headers, timeout=30)
                if answer.ok:
                    self.versions.append(answer.json()["version"])
                else:
                    self.failed.append(answer)


def test_no_request_fails_while_a_version_replaces_another_and_is_rolled_back(table, module_store):
    promote(module_store, "table-2", seed=2)
    with Asking(table.url) as asking:
        second = deploy(module_store, name="table")
        assert (second.version, second.url) == ("v2", table.url)
        assert Client(table.url).predict("table", SAMPLE)["version"] == "v2"
        first = rollback_endpoint(module_store, "table")
        assert first.version == serving_registry.champion(module_store, "table") == "v1"
        assert Client(table.url).predict("table", SAMPLE)["version"] == "v1"
    assert asking.failed == []
    changes = [v for v, before in zip(asking.versions, [None, *asking.versions], strict=False) if v != before]
    assert changes == ["v1", "v2", "v1"]


def test_a_damaged_version_is_refused_while_the_old_one_answers(table, module_store):
    version = promote(module_store, "table-bad", seed=3).version
    key = f"models/table/{version}/weights.safetensors"
    weights = module_store.read(key)
    module_store.write(key, weights[:-1] + bytes([weights[-1] ^ 1]))
    with Asking(table.url) as asking, pytest.raises(RunFailedError, match="must match its SHA-256"):
        deploy(module_store, name="table", version=version)
    assert asking.failed == [] and set(asking.versions) == {"v1"}
    [after] = endpoints()
    assert (after.version, after.status) == ("v1", "running")


def test_a_version_with_another_golden_answer_is_refused(table, module_store):
    version = promote(module_store, "table-golden", seed=4).version
    key = f"models/table/{version}/golden.json"
    golden = json.loads(module_store.read(key))
    golden["outputs"][0]["data"][0] += 0.1
    module_store.write_json(key, golden)
    with pytest.raises(RunFailedError, match="must answer its golden request as recorded"):
        deploy(module_store, name="table", version=version)
    assert Client(table.url).predict("table", SAMPLE)["version"] == "v1"


def test_more_cpus_than_there_are_is_an_error_in_time_and_leaves_the_old_one(table, module_store):
    with pytest.raises(RunFailedError, match="must start in time"):
        deploy(module_store, name="table", cpus=1000, wait_s=5)
    assert Client(table.url).predict("table", SAMPLE)["version"] == "v1"


@pytest.mark.chaos
def test_no_request_fails_when_a_replica_is_killed(table, module_store, ray_cluster):
    deploy(module_store, name="table", version="v1", replicas=2)
    client = Client(table.url)
    with ThreadPoolExecutor(4) as pool:
        asked = pool.map(lambda _: client.predict("table", SAMPLE)["version"], range(200))
        serve_processes(ray_cluster, "ServeReplica:model-table")[0].kill()
        assert set(asked) == {"v1"}


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("title", "failures"),
    [
        ("ServeReplica:model-table", {"unavailable"}),
        ("ServeReplica:gateway", {"unavailable"}),
        ("ServeController", set()),
    ],
)
def test_a_killed_process_of_serve_costs_a_503_that_says_when_to_ask_again(table, ray_cluster, title, failures):
    processes = serve_processes(ray_cluster, title)
    assert len(processes) == 1
    with Asking(table.url) as asking:
        processes[0].kill()
        psutil.wait_procs(processes, timeout=30)
        assert Client(table.url).predict("table", SAMPLE)["version"] == "v1"  # it asks again by itself
        answered = len(asking.versions)
        wait_until(lambda: len(asking.versions) > answered + 20)
    assert {failure.json()["code"] for failure in asking.failed} <= failures
    assert {(failure.status_code, failure.headers["retry-after"]) for failure in asking.failed} <= {(503, "1")}


def test_a_model_that_is_being_deployed_is_503_and_not_404(table, module_store):
    write_run(module_store, run="ratings-1", kind="ratings")
    serving_registry.promote(module_store, run="ratings-1", name="ratings")
    found: list[tuple[int, str]] = []
    headers = {"Authorization": f"Bearer {token_path().read_text().strip()}"}

    def ask() -> bool:
        answer = requests.get(f"{table.url}/models/ratings", headers=headers, timeout=60)
        found.append((answer.status_code, answer.json().get("code", "")))
        return answer.ok

    assert not ask()
    with ThreadPoolExecutor(1) as pool:
        deploying = pool.submit(deploy, module_store, name="ratings")
        wait_until(ask)
        assert deploying.result().status == "running"
    undeploy("ratings")
    assert found[0] == (404, "model_not_found") and found[-1] == (200, "")
    changes = [new for new, before in zip(found, [None, *found], strict=False) if new != before]
    assert (503, "deploying") in changes and [status for status, _ in changes].count(404) == 1
    assert {status for status, _ in found} == {404, 503, 200}


def test_nothing_of_the_cluster_listens_beyond_loopback(table, ray_cluster):
    replicas = serve_processes(ray_cluster, "ServeReplica:")
    assert len(replicas) == 2
    processes = local.processes_of(local.status())
    assert {process.pid for process in replicas} < {process.pid for process in processes}
    assert [address for process in processes for address in exposed_addresses(process)] == []


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: 1\r\n" * 1000 + b"\r\n", 431, "headers_too_large"),
        (b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"1" * 2**20, 431, "headers_too_large"),
        (b"hello\r\n\r\n", 400, "bad_request"),
        (b"GET /-/routes HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404, "not_found"),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421, "wrong_host"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1:1\r\n\r\n", 403, "cross_origin"),
    ],
)
def test_what_no_client_of_ours_sends_is_refused_where_it_arrives(table, request_bytes, status, code):
    port = int(table.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request_bytes)
        answer = HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
        assert json.loads(answer.read())["code"] == code


def test_a_proxys_host_name_is_accepted_once_it_is_named(table, module_store, monkeypatch):
    def ask() -> int:
        headers = {"Host": "models.example", "Origin": "https://models.example"}
        return requests.get(f"{table.url}/v2/health/live", headers=headers, timeout=60).status_code

    assert ask() == 421
    monkeypatch.setenv("ORCHESTRATOR_ENDPOINT_HOSTS", "models.example")
    assert deploy(module_store, name="table").url == table.url
    assert ask() == 200


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when it holds; two minutes are more than it ever takes."""
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def serve_processes(ray_cluster: RayState, title: str) -> list[psutil.Process]:
    """This session's live processes of Serve whose title holds `title`."""
    return [p for p in local.ray_processes(ray_cluster) if title in " ".join(p.cmdline())]


def test_a_model_that_does_not_exist_is_not_deployed(table, module_store):
    with pytest.raises(NotFoundError, match=r"it has: .*table"):
        deploy(module_store, name="nothing")
    with pytest.raises(NotFoundError, match="got table v999"):
        deploy(module_store, name="table", version="v999")
    with pytest.raises(NotFoundError, match="got 'nothing'; deployed: table"):
        undeploy("nothing")
    with pytest.raises(ConfigError, match="replicas must be 1 or more"):
        deploy(module_store, name="table", replicas=0)


def test_undeploying_the_last_model_leaves_no_process_of_serve(table, ray_cluster):
    before = [p for title in ("ray::Serve", "ray::Proxy") for p in serve_processes(ray_cluster, title)]
    assert len(before) >= 4  # controller, proxy, gateway, model
    undeploy("table")
    assert endpoints() == []
    assert psutil.wait_procs(before, timeout=20)[1] == []
    with pytest.raises(requests.ConnectionError):
        requests.get(table.url, timeout=5)
    with pytest.raises(NotFoundError, match="deployed: none"):
        undeploy("table")

"""Notices of preemption: each cloud's service played by a local server, the watcher's decisions, and a real drain."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clouds.notices import METADATA_VARIABLE, Aws, Azure, Gcp, Notice, find_service, metadata_url
from cluster.clouds.preemption import poll_until_drained, watching_node
from cluster.errors import ClusterError, ConfigError
from tests.ports import free_port
from tests.web_server import Quiet, listening

ROOT = Path(__file__).parents[1]
DEADLINE = datetime(2030, 9, 18, 8, 22, tzinfo=UTC)
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
NAME = "/metadata/instance/compute/name"
EVENTS = "/metadata/scheduledevents"

Answer = tuple[int, str]


class FakeService:
    """A cloud's metadata service: what stands in ``texts`` is answered to those who ask as the cloud demands."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts
        self.broken: Answer | None = None
        self.answer_headers: dict[str, str] = {}
        self.release = threading.Event()  # until it is set, nobody is answered
        self.release.set()

    def answer(self, method: str, path: str, query: dict[str, list[str]], headers: Any) -> Answer:
        raise NotImplementedError

    def text(self, path: str) -> Answer:
        return (200, self.texts[path]) if path in self.texts else (404, "Not Found")


class FakeAws(FakeService):
    def __init__(self) -> None:
        super().__init__({})
        self.tokens: list[str] = []
        self.granted = 0

    def expire_tokens(self) -> None:
        self.tokens.clear()

    def answer(self, method: str, path: str, query: dict[str, list[str]], headers: Any) -> Answer:
        if (method, path) == ("PUT", "/latest/api/token"):
            if not 1 <= int(headers.get("X-aws-ec2-metadata-token-ttl-seconds", 0)) <= 21600:
                return 400, "Bad Request"
            self.granted += 1
            self.tokens.append(f"AQAEA-token-{self.granted}==")
            return 200, self.tokens[-1]
        if headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return 401, "Unauthorized"
        return self.text(path)


class FakeGcp(FakeService):
    def __init__(self) -> None:
        super().__init__({})
        self.answer_headers = {"Metadata-Flavor": "Google"}
        self.set(preempted="FALSE", maintenance_event="NONE")

    def set(self, **keys: str) -> None:
        for key, text in keys.items():
            self.texts[f"/computeMetadata/v1/instance/{key.replace('_', '-')}"] = text

    def answer(self, method: str, path: str, query: dict[str, list[str]], headers: Any) -> Answer:
        if method != "GET":
            return 405, "Method Not Allowed"
        return self.text(path) if headers.get("Metadata-Flavor") == "Google" else (403, "Missing header")


class FakeAzure(FakeService):
    def __init__(self) -> None:
        super().__init__({NAME: "Trainer_0"})
        self.schedule()

    def schedule(self, *events: dict[str, Any]) -> None:
        self.texts[EVENTS] = json.dumps({"DocumentIncarnation": 1, "Events": events})

    def answer(self, method: str, path: str, query: dict[str, list[str]], headers: Any) -> Answer:
        if method != "GET":
            return 405, "Method Not Allowed"
        asked_well = headers.get("Metadata") == "true" and "api-version" in query
        return self.text(path) if asked_well else (400, "Bad Request")


@contextmanager
def serving(fake: FakeService) -> Iterator[str]:
    """Answer for ``fake`` on a port of this machine; yields the URL."""

    class Handler(Quiet, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            fake.release.wait()
            status, text = fake.broken or fake.answer(self.command, parts.path, parse_qs(parts.query), self.headers)
            body = text.encode()
            self.send_response(status)
            for name, value in {**fake.answer_headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError):  # who asked has given up
                self.wfile.write(body)

        do_PUT = do_GET

    with listening(Handler) as server:
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            fake.release.set()


def preempt_event(**changes: Any) -> dict[str, Any]:
    return {
        "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": ["trainer_0"],
        "EventStatus": "Scheduled",
        "NotBefore": format_datetime(DEADLINE, usegmt=True),
        **changes,
    }


def read(url: str) -> Notice | None:
    service = find_service(url)
    assert service is not None
    return service.read()


# Which service answers


@pytest.mark.parametrize(("fake", "kind"), [(FakeAws, Aws), (FakeGcp, Gcp), (FakeAzure, Azure)])
def test_each_cloud_is_recognized_and_has_no_notice_at_first(fake: Callable[[], FakeService], kind: type) -> None:
    with serving(fake()) as url:
        service = find_service(url)
        assert service is not None
        assert type(service) is kind
        assert service.read() is None


def test_a_machine_without_a_metadata_service_has_none() -> None:
    assert find_service(f"http://127.0.0.1:{free_port()}") is None


@pytest.mark.parametrize("answer", [(200, "<html>Please log in</html>"), (302, ""), (500, "oops"), (404, "")])
def test_another_server_at_the_address_is_no_metadata_service(answer: Answer) -> None:
    fake = FakeService({})
    fake.broken = answer
    fake.answer_headers = {"Location": "/latest/api/token"}
    with serving(fake) as url:
        assert find_service(url) is None


def test_a_server_that_never_answers_is_no_metadata_service() -> None:
    fake = FakeAws()
    fake.release.clear()
    with serving(fake) as url:
        assert find_service(url) is None


def test_proxy_settings_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with serving(FakeGcp()) as url:
        assert isinstance(find_service(url), Gcp)


def test_the_address_is_link_local_unless_a_variable_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(METADATA_VARIABLE, raising=False)
    assert metadata_url() == "http://169.254.169.254"
    monkeypatch.setenv(METADATA_VARIABLE, "http://127.0.0.1:8080/")
    assert metadata_url() == "http://127.0.0.1:8080"


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "https://127.0.0.1", "http://", "http://127.0.0.1/latest"])
def test_a_wrong_address_is_refused_before_anything_starts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(METADATA_VARIABLE, url)
    with pytest.raises(ConfigError, match=r"ORCHESTRATOR_METADATA_URL must be http://HOST:PORT, got"), watching_node():
        pass


# AWS


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_aws_announces_the_end_with_its_time(action: str) -> None:
    fake = FakeAws()
    fake.texts[ACTION] = json.dumps({"action": action, "time": "2030-09-18T08:22:00Z"})
    fake.texts[REBALANCE] = json.dumps({"noticeTime": "2030-09-18T08:00:00Z"})
    with serving(fake) as url:
        notice = read(url)
    assert notice == Notice("aws", action, DEADLINE.timestamp(), f"EC2 will {action} this spot instance")
    assert notice.certain


def test_aws_recommending_to_move_is_a_softer_notice() -> None:
    fake = FakeAws()
    fake.texts[REBALANCE] = json.dumps({"noticeTime": "2030-09-18T08:00:00Z"})
    with serving(fake) as url:
        notice = read(url)
    assert notice is not None
    assert (notice.action, notice.deadline, notice.certain) == ("rebalance", None, False)


def test_an_expired_aws_token_is_replaced() -> None:
    fake = FakeAws()
    fake.texts[ACTION] = json.dumps({"action": "stop", "time": "2030-09-18T08:22:00Z"})
    with serving(fake) as url:
        service = find_service(url)
        assert service is not None
        fake.expire_tokens()
        notice = service.read()
    assert notice is not None
    assert notice.action == "stop"
    assert fake.granted == 2


# GCP


def test_gcp_leaves_half_a_minute_after_preempted_turns_true() -> None:
    fake = FakeGcp()
    fake.set(preempted="TRUE", maintenance_event="TERMINATE_ON_HOST_MAINTENANCE")
    before = time.time()
    with serving(fake) as url:
        notice = read(url)
    assert notice is not None
    assert (notice.cloud, notice.action) == ("gcp", "preempt")
    assert notice.deadline is not None
    assert before + 30 <= notice.deadline <= time.time() + 30


@pytest.mark.parametrize(
    ("event", "action"), [("TERMINATE_ON_HOST_MAINTENANCE", "maintenance"), ("MIGRATE_ON_HOST_MAINTENANCE", None)]
)
def test_gcp_maintenance_counts_when_it_ends_the_machine(event: str, action: str | None) -> None:
    fake = FakeGcp()
    fake.set(maintenance_event=event)
    with serving(fake) as url:
        notice = read(url)
    assert (notice and notice.action) == action
    assert notice is None or notice.deadline is None


# Azure


@pytest.mark.parametrize("kind", ["Preempt", "Terminate"])
def test_azure_schedules_the_end_with_its_time(kind: str) -> None:
    fake = FakeAzure()
    fake.schedule(preempt_event(EventType="Freeze"), preempt_event(EventType=kind))
    with serving(fake) as url:
        notice = read(url)
    assert notice == Notice("azure", kind.lower(), DEADLINE.timestamp(), f"Azure has scheduled a {kind} event")


def test_an_azure_event_that_has_started_has_no_time() -> None:
    fake = FakeAzure()
    fake.schedule(preempt_event(EventStatus="Started", NotBefore=""))
    with serving(fake) as url:
        notice = read(url)
    assert notice is not None
    assert notice.deadline is None


@pytest.mark.parametrize("changes", [{"Resources": ["trainer_1"]}, {"EventType": "Reboot"}, {"EventType": "Freeze"}])
def test_azure_events_of_other_machines_and_pauses_do_not_count(changes: dict[str, Any]) -> None:
    fake = FakeAzure()
    fake.schedule(preempt_event(**changes))
    with serving(fake) as url:
        assert read(url) is None


# A service that misbehaves


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"action": 3}', '{"action": "stop", "time": "soon"}'])
def test_garbage_of_aws_is_an_error_and_no_notice(text: str) -> None:
    fake = FakeAws()
    fake.texts[ACTION] = text
    with serving(fake) as url, pytest.raises(ClusterError, match=r"the notice of aws must have its documented form"):
        read(url)


@pytest.mark.parametrize("text", ["", "{}", '{"Events": [{}]}', json.dumps({"Events": [preempt_event(NotBefore="?")]})])
def test_garbage_of_azure_is_an_error_and_no_notice(text: str) -> None:
    fake = FakeAzure()
    fake.texts[EVENTS] = text
    with serving(fake) as url, pytest.raises(ClusterError, match=r"the notice of azure must have its documented form"):
        read(url)


def test_garbage_of_gcp_is_an_error_and_no_notice() -> None:
    fake = FakeGcp()
    with serving(fake) as url:
        service = find_service(url)
        assert service is not None
        fake.set(preempted="PERHAPS")
        with pytest.raises(ClusterError, match=r"the metadata key preempted must be one of .*, got 'PERHAPS'"):
            service.read()


@pytest.mark.parametrize("cloud", [FakeAws, FakeGcp, FakeAzure])
def test_a_service_that_fails_is_an_error_and_then_works_again(cloud: Callable[[], FakeService]) -> None:
    fake = cloud()
    with serving(fake) as url:
        service = find_service(url)
        assert service is not None
        fake.broken = (503, "Service Unavailable")
        with pytest.raises(ClusterError, match=r"must answer \S+ with 200, got 503"):
            service.read()
        fake.broken = None
        assert service.read() is None


def test_a_service_that_has_gone_silent_or_away_is_an_error() -> None:
    fake = FakeAws()
    with serving(fake) as url:
        service = find_service(url)
        assert service is not None
        fake.release.clear()
        with pytest.raises(ClusterError, match=r"must answer within 1 s, got ReadTimeoutError"):
            service.read()
    with pytest.raises(ClusterError, match=r"must answer within 1 s, got NewConnectionError"):
        service.read()


# When to drain

SOFT = Notice("aws", "rebalance", None, "EC2 sees a higher risk for this spot instance")
HARD = Notice("aws", "stop", 1000.0, "EC2 will stop this spot instance")


class Script:
    """A service that gives the prepared answers, then stops the watcher."""

    cloud = "aws"
    interval_s = 0.0

    def __init__(self, answers: list[Notice | ClusterError | None], stop: threading.Event) -> None:
        self.answers = iter(answers)
        self.stop = stop
        self.asked = 0

    def read(self) -> Notice | None:
        self.asked += 1
        answer = next(self.answers, None)
        if self.asked > 20:
            self.stop.set()
        if isinstance(answer, ClusterError):
            raise answer
        return answer


def poll(answers: list[Notice | ClusterError | None], drain: Callable[[Notice], None]) -> int:
    stop = threading.Event()
    script = Script(answers, stop)
    poll_until_drained(script, drain=drain, stop=stop, interval_s=0)
    return script.asked


@given(st.lists(st.sampled_from([None, SOFT, HARD, ClusterError("no answer")]), max_size=15))
def test_the_first_certain_notice_drains_once_and_nothing_else_does(
    answers: list[Notice | ClusterError | None],
) -> None:
    drained: list[Notice] = []
    asked = poll(answers, drained.append)
    assert drained == ([HARD] if HARD in answers else [])
    assert asked == (answers.index(HARD) + 1 if HARD in answers else 21)


def test_a_drain_that_failed_is_tried_again_with_the_newest_notice() -> None:
    later = Notice("aws", "stop", 2000.0, HARD.detail)
    tried: list[Notice] = []

    def drain(notice: Notice) -> None:
        tried.append(notice)
        if len(tried) < 3:
            raise ClusterError("the cluster must drain node ab, got no answer.")

    poll([HARD, HARD, later], drain)
    assert tried == [HARD, HARD, later]


def test_what_stays_the_same_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    trouble = ClusterError("no answer")
    poll([SOFT, SOFT, trouble, trouble, None, SOFT], drain=lambda _: None)
    risk = "EC2 sees a higher risk for this spot instance (aws: rebalance)."
    assert [record.message for record in caplog.records] == [risk, "no answer", risk]


def test_the_watcher_runs_as_long_as_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def watchers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "preemption"]

    with serving(FakeAws()) as url:
        monkeypatch.setenv(METADATA_VARIABLE, url)
        with watching_node():
            assert len(watchers()) == 1
        assert watchers() == []


# On a real cluster

PROGRAM = """
import json, sys, time
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from cluster.nodes import drain_node, draining_nodes; from cluster.clouds.preemption import watching_node

class Worker:
    def __init__(self):
        self.watching = watching_node()
        self.watching.__enter__()
    def ready(self):
        return True

def wait_for(condition):
    while not condition():
        time.sleep(0.02)

options = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
node = cluster.add_node(**options).node_id
ray.init(address=cluster.address, log_to_driver=False)
here = NodeAffinitySchedulingStrategy(node, soft=False)
worker = ray.remote(num_cpus=1)(Worker).options(scheduling_strategy=here).remote()
ray.get(worker.ready.remote())
assert draining_nodes() == {}
print(json.dumps(node), flush=True)        # the test now announces the end
wait_for(draining_nodes)
print(json.dumps(draining_nodes()), flush=True)
drain_node(node, deadline=None, reason="again")
print(json.dumps(draining_nodes()), flush=True)
ray.kill(worker)
wait_for(lambda: not draining_nodes())     # an idle draining node ends by itself
print(json.dumps({n["NodeID"]: [n["Alive"], n["DeathReasonMessage"]] for n in ray.nodes()}), flush=True)
ray.shutdown()
cluster.shutdown()
"""


@contextmanager
def program(url: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``PROGRAM`` with a Ray of its own, whose processes end with it."""
    temp_dir = tempfile.mkdtemp(prefix="drain-", dir="/tmp")  # short: the path of a Unix socket
    environment = {
        **os.environ,
        METADATA_VARIABLE: url,
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": temp_dir,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # stay on 127.0.0.1, see cluster/machine/ray_head.py
    }
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()
        shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.mark.ray
def test_a_notice_drains_the_node_of_the_process_that_watches() -> None:
    fake = FakeAws()
    with serving(fake) as url, program(url) as process:
        assert process.stdout is not None
        lines = (json.loads(line) for line in process.stdout)
        node = next(lines)
        fake.texts[ACTION] = json.dumps({"action": "terminate", "time": "2030-09-18T08:22:00Z"})
        assert next(lines) == {node: DEADLINE.timestamp()}
        assert next(lines) == {node: None}
        ends = next(lines)
        assert ends.pop(node) == [False, "EC2 will terminate this spot instance"]
        assert [alive for alive, _ in ends.values()] == [True]
        assert process.wait() == 0

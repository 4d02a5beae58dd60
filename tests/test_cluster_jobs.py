"""Jobs on the session's Ray head: submit, follow, stop."""

import asyncio
import signal
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from ray.job_submission import JobSubmissionClient

from cluster import jobs
from cluster.errors import ClusterError, NotFoundError, RunCancelledError, RunFailedError, RunUnfinishedError
from cluster.machine.state import RayState

pytestmark = pytest.mark.ray

SCRIPT = textwrap.dedent(
    """
    import os, sys, models, ray
    from cluster.session import ray_session

    @ray.remote(num_cpus=0)
    def on_a_worker():
        import models
        return models.__file__

    print("driver", models.__file__)
    with ray_session() as found:
        print("worker", ray.get(on_a_worker.remote()))
    print("source", found.source)
    print("file", open("experiment.yaml").read())
    print("cwd", os.getcwd())
    print("variable", os.environ["GREETING"])
    """
)


def test_a_job_runs_our_packages_though_a_foreign_one_is_on_its_path(ray_cluster: RayState, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('a foreign models was imported')")
    accepted = jobs.submit(
        ["python", "-c", SCRIPT],
        files={"experiment.yaml": b"a: 1"},
        env={"GREETING": "hello 'world'", "PYTHONPATH": str(tmp_path)},
        metadata={"verb": "train"},
    )
    log = "".join(jobs.logs(accepted.job, follow=True))
    jobs.require_success(accepted.job)
    seen = dict(line.split(" ", 1) for line in log.splitlines() if line.split(" ", 1)[0] in SCRIPT and " " in line)
    cwd = Path(seen["cwd"])
    assert seen["driver"] == seen["worker"] == str(cwd / "models" / "__init__.py")
    assert (seen["file"], seen["variable"], seen["source"]) == ("a: 1", "hello 'world'", "RAY_ADDRESS")
    record = next(record for record in jobs.jobs() if record.job == accepted.job)
    assert (record.status, record.metadata) == ("SUCCEEDED", {"verb": "train"})
    assert record.started is not None
    assert record.ended is not None
    assert "".join(jobs.logs(accepted.job)) == log


def test_a_cluster_that_has_just_started_is_waited_for(ray_cluster: RayState, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["Request failed with status code 500: No available agent to submit job, please try again later."]
    submit_job = JobSubmissionClient.submit_job

    def submit_once_ready(client: JobSubmissionClient, **job: Any) -> str:
        if answers:
            raise RuntimeError(answers.pop())
        return submit_job(client, **job)

    monkeypatch.setattr(JobSubmissionClient, "submit_job", submit_once_ready)
    accepted = jobs.submit(["true"])
    assert (accepted.new, answers) == (True, [])
    assert jobs.wait(accepted.job, timeout_s=60).status == "SUCCEEDED"


def test_a_head_without_an_agent_is_named_with_the_cure(ray_cluster: RayState, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(client: JobSubmissionClient, **job: Any) -> str:
        raise RuntimeError("Request failed with status code 500: No available agent to submit job.")

    monkeypatch.setattr(jobs, "AGENT_S", 0.0)
    monkeypatch.setattr(JobSubmissionClient, "submit_job", refuse)
    with pytest.raises(ClusterError, match=r"must have a dashboard agent.*--dashboard-agent-listen-port=0"):
        jobs.submit(["true"])


def test_a_job_can_be_submitted_twice_watched_and_stopped(ray_cluster: RayState) -> None:
    name = f"job-{uuid4().hex[:8]}"
    command = ["sh", "-c", "echo begun; sleep 600"]
    first = jobs.submit(command, submission_id=name)
    assert first == jobs.Accepted(name, ray_cluster.dashboard_url, new=True)
    assert jobs.submit(command, submission_id=name) == first._replace(new=False)
    assert any("begun" in piece for piece in jobs.logs(name, follow=True) if "begun\n" in piece)
    with pytest.raises(RunUnfinishedError, match="must succeed, got RUNNING"):
        jobs.require_success(name)
    with pytest.raises(RunUnfinishedError, match="must end within the time given, got RUNNING"):
        jobs.wait(name, timeout_s=0)
    assert jobs.stop(name) == "STOPPED"
    with pytest.raises(RunCancelledError, match=f"job {name} must succeed, got STOPPED"):
        jobs.require_success(name)


def test_the_failure_of_a_job_is_an_error_here(ray_cluster: RayState) -> None:
    accepted = jobs.submit(["sh", "-c", "echo the last words; exit 3"], address=ray_cluster.dashboard_url)
    assert jobs.wait(accepted.job, timeout_s=60).status == "FAILED"
    with pytest.raises(RunFailedError, match=r"must succeed, got FAILED: (.|\n)*the last words"):
        jobs.require_success(accepted.job)
    assert jobs.stop(accepted.job) == "FAILED"


@pytest.mark.parametrize("ask", [jobs.job, jobs.wait, jobs.stop, jobs.require_success, lambda job: [*jobs.logs(job)]])
def test_an_unknown_job_is_named(ray_cluster: RayState, ask) -> None:
    with pytest.raises(NotFoundError, match="got none of that id"):
        ask("no-such-job")


def test_a_refused_token_is_named(ray_cluster: RayState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))  # so that the cluster is not recognized as ours
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(ClusterError, match="must accept our token, got a refusal"):
        jobs.jobs(ray_cluster.dashboard_url)


def test_a_dead_dashboard_is_named() -> None:
    with pytest.raises(ClusterError, match=r"at http://127\.0\.0\.1:1 .* must answer within 10 s"):
        jobs.jobs("http://127.0.0.1:1")


LOG = "".join(f"line {number}\n" for number in range(10))


def stream(text: str, *, error: Exception | None = None) -> AsyncIterator[str]:
    """A log's beginning, in uneven pieces, and then perhaps a break."""

    async def pieces() -> AsyncIterator[str]:
        for first in range(0, len(text), 7):
            yield text[first : first + 7]
        if error is not None:
            raise error

    return pieces()


def test_a_log_that_breaks_off_is_told_once_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    lost = ConnectionError("lost")
    streams = [
        stream(""),
        stream(LOG[:20], error=lost),
        stream(LOG[:3]),
        stream(LOG[:50], error=RuntimeError("closed")),
        stream(LOG[:60]),
        stream(LOG),
    ]
    told = list(jobs._followed(lambda: streams.pop(0), lambda: len(streams) == 1))
    assert "".join(told) == LOG
    assert streams == []


def test_a_log_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    with pytest.raises(ClusterError, match=r"the log must go on until the job ends, got lost\. Watch again\."):
        list(jobs._followed(lambda: stream("", error=ConnectionError("lost")), lambda: True))


def test_ctrl_c_closes_a_log_that_is_waited_for() -> None:
    closed: list[bool] = []

    async def endless() -> AsyncIterator[str]:
        try:
            yield "first"
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    pieces = jobs._plain(endless())
    assert next(pieces) == "first"
    with pytest.raises(KeyboardInterrupt):
        next(pieces)
    assert closed == [True]

"""Workers outlive a run, belong to one driver at a time, and end with it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.errors import WorkerLostError
from cluster.machine.state import RayState
from cluster.session import ray_session
from orchestrator.driving.workers import call_in_worker, kill_workers, lease_workers, release_workers

pytestmark = pytest.mark.ray

PATIENCE_S = 60


@pytest.fixture
def place(ray_cluster: RayState) -> Iterator[Any]:
    """Room for two workers."""
    with ray_session(ray_cluster.address):
        import ray.util

        found = ray.util.placement_group([{"CPU": 1.0}] * 2)
        assert found.wait(timeout_seconds=PATIENCE_S)
        yield found
        ray.util.remove_placement_group(found)


def lease(place: Any, **environment: str) -> list[Any]:
    return lease_workers(place, {"CPU": 1.0}, environment=environment, threads=1)


def ask(worker: Any, function: Any, *arguments: Any) -> Any:
    import ray

    return ray.get(worker.actor.execute.remote(function, *arguments))


def pids(workers: list[Any]) -> set[int]:
    return {ask(worker, os.getpid) for worker in workers}


def is_over(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not psutil.pid_exists(pid)


def test_what_is_given_back_is_leased_again(place: Any) -> None:
    first = lease(place, COLOUR="red")
    before = pids(first)
    assert len(before) == 2
    assert ask(first[0], os.getenv, "COLOUR") == "red"
    other = lease(place)  # the first two belong to somebody
    assert before.isdisjoint(pids(other))
    kill_workers(other)
    release_workers(first)
    again = lease(place)
    assert pids(again) == before
    assert ask(again[0], os.getenv, "COLOUR") is None
    kill_workers(again)


def test_a_worker_whose_training_does_not_end_is_not_kept(place: Any) -> None:
    import ray

    workers = lease(place)
    hanging, resting = (ask(w, os.getpid) for w in workers)
    ray.get(workers[0].actor.start.remote(partial(time.sleep, 600)))
    release_workers(workers)
    assert is_over(hanging)
    assert psutil.pid_exists(resting)


def test_what_a_function_raises_in_a_worker_is_raised_here(place: Any) -> None:
    assert call_in_worker(int, "7", threads=1) == 7
    with pytest.raises(ValueError, match="invalid literal"):
        call_in_worker(int, "seven", threads=1)


DEATH = "import os; os._exit(1)"
ENDLESS = """
import os, pathlib, time
pathlib.Path({path!r}).write_text(str(os.getpid()))
time.sleep(3600)
"""


def test_a_death_is_told_to_whom_the_worker_worked_for(place: Any) -> None:
    with pytest.raises(WorkerLostError, match="a worker must live until its work is done"):
        call_in_worker(exec, DEATH, threads=1)
    assert call_in_worker(int, "7", threads=1) == 7


def test_a_worker_ends_with_the_actor_that_it_works_for(place: Any, tmp_path: Path) -> None:
    import ray

    class User:
        def use(self, code: str) -> None:
            call_in_worker(exec, code, threads=1)

    told = tmp_path / "pid"
    user = ray.remote(User).options(num_cpus=0).remote()
    user.use.remote(ENDLESS.format(path=str(told)))
    worker = wait_for_number(told)
    assert psutil.pid_exists(worker)
    ray.kill(user)
    assert is_over(worker)


def wait_for_number(path: Path) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(path.read_text())


PROGRAM = """
import os, signal, sys
from cluster.session import ray_session
from orchestrator.driving.workers import lease_workers
import ray
with ray_session(sys.argv[1]):
    place = ray.util.placement_group([{"CPU": 1.0}])
    place.wait(60)
    (worker,) = lease_workers(place, {"CPU": 1.0}, environment={"DOOMED": "1"}, threads=1)
    print(ray.get(worker.actor.execute.remote(os.getpid)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_ends_with_its_driver(ray_cluster: RayState) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, ray_cluster.address],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert found.returncode == -9, found.stderr
    assert is_over(int(found.stdout))

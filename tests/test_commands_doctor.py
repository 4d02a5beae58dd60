"""The doctor finds what is wrong and names the cure, and finds nothing where nothing is."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.machine.state import LocalState, ProcessRecord, RayState
from cluster.s3.store import Store
from orchestrator.commands import doctor
from orchestrator.commands.doctor import Check, run_checks

RAY = RayState(
    process=ProcessRecord(pid=1, created=0.0),
    address="127.0.0.1:1",
    dashboard_url="http://127.0.0.1:2",
    token_file="/t",
    temp_dir="/tmp/none",
)
NAMES = ["python", "packages", "torch", "memory", "home", "disk", "ports", "ray", "store"]


@pytest.mark.ray
def test_a_good_machine_passes_every_check(ray_cluster: RayState, store: Store) -> None:
    checks = {check.name: check for check in run_checks()}
    assert list(checks) == NAMES
    assert [check for name, check in checks.items() if name != "ports" and not check.ok] == []
    assert checks["ray"].detail == f"2.60.0 at {ray_cluster.address} (from the local cluster)"
    assert str(store.settings.endpoint_url) in checks["store"].detail


def test_without_a_cluster_two_checks_fail_and_name_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path / "none" / "yet"))
    checks = {check.name: check for check in run_checks()}
    assert list(checks) == NAMES
    assert checks["ray"] == Check(
        "ray",
        False,
        "a Ray cluster must be running, got none.",
        "Run `orchestrator up`, or start one as the README shows and give its address.",
    )
    assert not checks["store"].ok
    assert checks["store"].cure.startswith("Run `orchestrator up` for a local one, or set ORCHESTRATOR_STORE=")
    assert all(bool(check.cure) is not check.ok for check in checks.values())


def test_an_address_that_nothing_answers_is_a_failed_check() -> None:
    check = next(check for check in run_checks(address="127.0.0.1:1") if check.name == "ray")
    assert not check.ok
    assert "the Ray cluster at 127.0.0.1:1 (from --address) must answer" in check.detail


@pytest.mark.parametrize(
    ("good", "bad", "cure"),
    [
        (doctor.check_python((3, 11, 0)), doctor.check_python((3, 10, 14)), "Install Python 3.11 or newer"),
        (doctor.check_memory(2.0), doctor.check_memory(1.9), "Free memory"),
        (doctor.check_disk(5.0, Path("/d")), doctor.check_disk(4.9, Path("/d")), "set ORCHESTRATOR_HOME"),
    ],
)
def test_each_limit_is_kept_and_its_breach_has_a_cure(good: Check, bad: Check, cure: str) -> None:
    assert (good.ok, good.cure) == (True, "")
    assert not bad.ok
    assert cure in bad.cure


@pytest.mark.parametrize(
    ("requirement", "found"),
    [
        ("ray>=2", None),
        ("torch>=2.6", None),  # installed as 2.13.0+cpu
        ("ray<2", "ray 2.60.0, not <2"),
        ("no-such-package", "no-such-package is not installed"),
        ('no-such-package; extra == "audio"', None),
        ('no-such-package; python_version < "3"', None),
    ],
)
def test_a_requirement_is_met_or_says_what_is_wrong(requirement: str, found: str | None) -> None:
    assert doctor.unmet(requirement) == found


def test_a_version_that_was_not_tested_is_told_but_no_failure(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# tested\nray==2.60.0\nnumpy==1.0  # old\nnot-installed-here==1\n")
    check = doctor.check_packages(constraints)
    assert check.ok
    assert check.detail.startswith("all requirements met; tested with ray 2.60.0; tested with another: numpy")
    assert "another: ray" not in check.detail
    assert "not-installed" not in check.detail


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "home"
    assert doctor.check_home(place) == Check(
        "home",
        False,
        f"{place} cannot be written: {tmp_path / 'file'} is no folder",
        "Set ORCHESTRATOR_HOME to another.",
    )
    assert doctor.check_home(tmp_path / "not" / "yet").ok


@pytest.fixture
def taken_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setattr(doctor, "SERVE_PORT", port)
        yield port


def test_a_taken_port_is_named(taken_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    check = doctor.check_ports()
    assert (check.ok, check.detail) == (False, f"{taken_port} is taken by another program")
    assert check.cure.startswith("Name another port, as `orchestrator deploy NAME --port 0` does, or end the program")


def test_a_port_that_the_local_cluster_serves_is_no_mistake(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "read_state", lambda: LocalState(ray=RAY))
    monkeypatch.setattr(doctor, "ray_processes", lambda _: [psutil.Process()])
    check = doctor.check_ports()
    assert (check.ok, check.cure) == (True, "")
    assert check.detail == f"{taken_port} serves the endpoints of the local cluster (process {os.getpid()})"


def test_a_port_that_another_program_has_is_seen_beside_a_local_cluster(
    taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "read_state", lambda: LocalState(ray=RAY))
    monkeypatch.setattr(doctor, "ray_processes", lambda _: [])
    assert doctor.check_ports().detail == f"{taken_port} is taken by another program"

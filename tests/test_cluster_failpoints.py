"""Failpoints fire where, when and how often they are told to, and never by themselves."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.failpoints import VARIABLE, FailpointError, failpoint, parse_failpoints


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr("cluster.failpoints._passed", {})
    return monkeypatch


def test_without_the_variable_nothing_happens(rules: pytest.MonkeyPatch) -> None:
    rules.delenv(VARIABLE, raising=False)
    failpoint("place")


def test_it_fires_at_the_named_passing_of_the_named_rank(rules: pytest.MonkeyPatch) -> None:
    rules.setenv(VARIABLE, "place=raise@rank1#3")
    for _ in range(5):
        failpoint("place", rank=0)
        failpoint("elsewhere", rank=1)
    for _ in range(2):
        failpoint("place", rank=1)
    with pytest.raises(FailpointError, match="failpoint place"):
        failpoint("place", rank=1)
    failpoint("place", rank=1)  # once in a process


def test_a_file_lets_it_fire_once_over_all_processes(rules: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rules.setattr(tempfile, "tempdir", str(tmp_path))
    rules.setenv(VARIABLE, "place=raise!fired")
    with pytest.raises(FailpointError):
        failpoint("place")
    rules.setattr("cluster.failpoints._passed", {})  # as in a new process
    failpoint("place")
    assert (tmp_path / "fired").exists()


@pytest.mark.parametrize(("action", "code"), [("kill", -signal.SIGKILL), ("exit", 1)])
def test_it_ends_a_process(action: str, code: int) -> None:
    program = "from cluster.failpoints import failpoint; failpoint('place'); print('alive')"
    found = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        env=os.environ | {VARIABLE: f"place={action}"},
        capture_output=True,
        cwd=Path(__file__).parents[1],
    )
    assert (found.returncode, found.stdout) == (code, b"")


@pytest.mark.parametrize("text", ["place", "place=explode", "place=kill@2", "place=sleep:x", "=kill", "place=kill!a/b"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="ORCHESTRATOR_FAILPOINTS must hold NAME=ACTION"):
        parse_failpoints(text)

"""A folder of ours that cannot be written is named in one line, with its variable, and ends a command with 2."""

import errno
import os
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.machine.private import naming_folder, private_folder, refused_error, write_private
from cluster.machine.state import home
from orchestrator.data.fetching.disk import alone
from serving.http.access import ensure_tokens, write_url
from tests.test_cli import run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_text("")
    return found


def test_everything_that_writes_into_the_home_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(file / "home"))
    message = rf"^ORCHESTRATOR_HOME={file}/home must be a folder that this account can write, got {file}.*: Not a direc"
    with pytest.raises(ConfigError, match=message):
        private_folder(home())
    with pytest.raises(ConfigError, match=message):
        write_private(home() / "x", "text")
    with pytest.raises(ConfigError, match=message):
        write_url("http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=message):
        ensure_tokens()
    with pytest.raises(ConfigError, match=message), alone(home() / "downloads" / "x"):
        pass


@pytest.mark.parametrize(
    ("path", "environment", "message"),
    [
        (
            "/o/x/y",
            {"ORCHESTRATOR_HOME": "/o/x"},
            "ORCHESTRATOR_HOME=/o/x must be .* got /o/x/y: .*Set ORCHESTRATOR_HOME",
        ),
        ("/o", {"ORCHESTRATOR_HOME": "/o/x"}, "ORCHESTRATOR_HOME=/o/x must be .* got /o: "),
        (
            "/c/memory",
            {"ORCHESTRATOR_CACHE": "/c"},
            "ORCHESTRATOR_CACHE=/c must be .*Set ORCHESTRATOR_CACHE to another",
        ),
        (
            "/h/.orchestrator/x",
            {"HOME": "/h"},
            r"~/.orchestrator \(without ORCHESTRATOR_HOME\) must be .* got /h/.orch",
        ),
        (
            "/elsewhere/page.html",
            {},
            "/elsewhere/page.html must be a path that this account can use, got: .* Name anothe",
        ),
    ],
)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_the_variable_that_names_the_folder_is_the_one_to_set(
    path: str, environment: dict[str, str], message: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ORCHESTRATOR_HOME", "ORCHESTRATOR_CACHE"):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), naming_folder():
        raise OSError(number, os.strerror(number), path)


def test_other_errors_of_the_system_stay_what_they_are() -> None:
    assert refused_error(OSError(errno.ENOENT, "No such file", "/x")) is None
    assert refused_error(OSError(errno.EACCES, "Permission denied")) is None
    with pytest.raises(FileNotFoundError), naming_folder():
        raise FileNotFoundError(errno.ENOENT, "No such file", "/x")


def test_a_place_that_takes_no_folders_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    monkeypatch.setenv("ORCHESTRATOR_HOME", "/proc/nothing/home")
    with pytest.raises(ConfigError, match=r"^ORCHESTRATOR_HOME=/proc/nothing/home must be a folder .* No such file"):
        private_folder(home())


def test_a_home_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", "~no-such-account/x")
    with pytest.raises(ConfigError, match="must be the folder of an account, got ~no-such-account/x"):
        home()


@pytest.mark.parametrize("words", [["up", "--no-ray"], ["down"], ["data", "push", "sklearn:digits"]])
@pytest.mark.parametrize("variable", ["ORCHESTRATOR_HOME", "HOME"])
def test_a_command_ends_with_one_line(words: list[str], variable: str, file: Path) -> None:
    rest = {"ORCHESTRATOR_HOME": ""} if variable == "HOME" else {}
    found = run(*words, **{**rest, variable: str(file)})
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert found.stderr.startswith("error: ")


def test_a_page_that_cannot_be_written_is_named_too(file: Path) -> None:
    found = run("recipes", "copy", "digits-cnn", str(file / "my.yaml"))
    line = f"error: {file}/my.yaml must be a path that this account can use, got: Not a directory. Name another.\n"
    assert (found.returncode, found.stderr) == (2, line)

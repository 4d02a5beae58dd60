"""Every command ends with its exit code and one clear line, and Ctrl-C ends it within a moment."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cluster import errors
from cluster.errors import OrchestratorError
from cluster.machine.state import RayState
from cluster.s3.store import Store
from cluster.session import store_environment
from orchestrator.commands import ending
from orchestrator.commands.ending import CommandEnd, confirm, run_to_end, stopped
from orchestrator.data.push import push
from tests.example_runs import write_run
from tests.test_cli import ROOT, run

CODES = {
    "OrchestratorError": 1,
    "ConfigError": 2,
    "StoreError": 1,
    "StoreAccessError": 2,
    "StoreUnavailableError": 1,
    "DiskFullError": 1,
    "IntegrityError": 100,
    "PreconditionError": 1,
    "NotFoundError": 102,
    "ClusterError": 2,
    "WorkerLostError": 2,
    "RunFailedError": 100,
    "RunUnfinishedError": 101,
    "LeaseLostError": 101,
    "RunCancelledError": 103,
    "RunInterruptedError": 130,
}


def test_every_error_has_the_exit_code_that_its_table_names() -> None:
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {name: kind.exit_code for name, kind in kinds.items()} == CODES
    assert errors.__doc__ is not None
    assert {name: int(code) for name, code in re.findall(r"(\w+Error) +(\d+) ", errors.__doc__)} == CODES


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("name", CODES)
def test_an_error_ends_a_command_with_its_code(name: str, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise getattr(errors, name)("x must be y, got z.")

    with pytest.raises(SystemExit) as end:
        run_to_end(command, CommandEnd(as_json=as_json))
    assert end.value.code == CODES[name]
    found = capsys.readouterr()
    if as_json:
        message = {"error": name, "message": "x must be y, got z.", "exit_code": CODES[name]}
        assert json.loads(found.out) == message
    else:
        assert (found.out, found.err) == ("", "error: x must be y, got z.\n")


def test_a_fault_of_ours_is_a_traceback_and_json_where_that_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise ZeroDivisionError("by nothing, at https://u:secret@host/x")

    with pytest.raises(SystemExit, match="1"):
        run_to_end(command, CommandEnd(as_json=True))
    found = capsys.readouterr()
    assert "Traceback" in found.err and "secret" not in found.err + found.out
    assert json.loads(found.out)["exit_code"] == 1


STORED: list[tuple[list[str], int, str]] = [
    (["check", "digits-cnn"], 0, ""),
    (["runs"], 0, ""),
    (["check", "nothing.yaml"], 2, "ConfigError"),
    (["check", "digits-cnn", "train.epochs=0"], 2, "ConfigError"),
    (["data", "push", "no-such-file.csv"], 2, "ConfigError"),
    (["data", "push", "sklearn:digits", "--name", "No Name"], 2, "ConfigError"),
    (["data", "push", "sklearn:digits", "--option", "nonsense=1"], 2, "ConfigError"),
    (["data", "show", "nothing"], 102, "NotFoundError"),
    (["data", "show", "digits", "--version", "0"], 102, "NotFoundError"),
    (["show", "nothing"], 102, "NotFoundError"),
    (["resume", "nothing", "--address", "127.0.0.1:1"], 102, "NotFoundError"),
    (["gc", "nothing"], 102, "NotFoundError"),
    (["report", "nothing"], 102, "NotFoundError"),
    (["sweep", "--resume", "nothing", "--address", "127.0.0.1:1"], 102, "NotFoundError"),
    (["models", "show", "nothing"], 102, "NotFoundError"),
    (["models", "show", "shop", "--version", "nothing"], 102, "NotFoundError"),
    (["models", "promote", "nothing", "shop"], 102, "NotFoundError"),
    (["predict", "shop", "x=1", "--url", "http://127.0.0.1:9"], 2, "ClusterError"),
    (["train", "digits-cnn", "--address", "127.0.0.1:1"], 2, "ClusterError"),
    (["jobs", "--address", "127.0.0.1:1"], 2, "ClusterError"),
    (["drill", "digits-cnn", "--kill", "everything"], 2, "UsageError"),
    (["drill", "digits-cnn", "--delete"], 2, "ConfigError"),
    (["drill", "--delete", "--epochs", "2"], 2, "ConfigError"),
    (["drill", "--delete"], 0, ""),
    (["runs", "--nonsense"], 2, "UsageError"),
    (["down", "--delete-data"], 2, "ConfigError"),
]


@pytest.mark.store
def test_every_kind_of_error_has_its_exit_code_in_every_command(store: Store) -> None:
    place = store_environment(store.settings)
    write_run(store, run="r1", kind="table")
    push(store, "sklearn:digits")
    for words, code, kind in STORED:
        found = run(*words, "--json", **place)
        assert found.returncode == code, (words, found.stdout, found.stderr)
        assert "Traceback" not in found.stderr, words
        if code:
            answer = json.loads(found.stdout)
            assert (answer["error"], answer["exit_code"]) == (kind, code), words


@pytest.mark.ray
@pytest.mark.store
def test_what_the_cluster_does_not_have_is_not_found(ray_cluster: RayState, store: Store) -> None:
    place = store_environment(store.settings)
    for words in (["logs", "nothing"], ["stop", "nothing"], ["undeploy", "nothing"], ["rollback", "nothing"]):
        found = run(*words, "--address", ray_cluster.address, **place)
        assert found.returncode == 102, (words, found.stderr)
        assert "Traceback" not in found.stderr


@pytest.mark.parametrize(("is_terminal", "kind"), [(False, errors.ConfigError), (True, errors.RunCancelledError)])
def test_a_question_that_nobody_answers_with_yes_changes_nothing(
    is_terminal: bool, kind: type[OrchestratorError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(ending.typer, "confirm", lambda question, err: False)
    confirm("Delete?", yes=True)
    with pytest.raises(kind, match="Add --yes" if kind is errors.ConfigError else "got no. Nothing was changed"):
        confirm("Delete?", yes=False)


# ----------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["runs"], "Nothing goes on. Begin again: `orchestrator runs`."),
        (
            ["data", "push", "a b.csv"],
            "Nothing goes on; no reader sees what was written so far, and the same command completes it: "
            "`orchestrator data push 'a b.csv'`.",
        ),
        (
            ["deploy", "m"],
            "What the cluster was told goes on: see `orchestrator endpoints`. Complete it: `orchestrator deploy m`.",
        ),
    ],
)
def test_who_stops_a_command_reads_what_goes_on(words: list[str], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["orchestrator", *words])
    assert str(stopped()) == f"this command was stopped. {line}"


def test_the_table_of_what_goes_on_names_commands() -> None:
    from tests.test_cli import commands

    assert set(ending.GOES_ON) <= {" ".join(words) for words in commands()}


def interrupted(words: list[str], is_busy: Callable[[], object], **environment: str) -> tuple[int, str, float]:
    """Press Ctrl-C once a command is busy; return its exit code, what it said, and how long that took."""
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    is_busy()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    return process.returncode, said, time.monotonic() - began


class Silence:
    """A server that takes every connection and never answers."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.kept: list[socket.socket] = []

    def met(self) -> None:
        """Wait for somebody."""
        connection, _ = self.server.accept()
        connection.recv(1)
        self.kept.append(connection)


@pytest.fixture
def silence() -> Iterator[Silence]:
    found = Silence()
    yield found
    for connection in (found.server, *found.kept):
        connection.close()


def test_ctrl_c_ends_a_question_to_a_silent_endpoint(silence: Silence) -> None:
    words = ["predict", "m", "x=1", "--url", f"http://127.0.0.1:{silence.port}"]
    code, said, _ = interrupted(words, silence.met)
    line = f"error: this command was stopped. Nothing goes on. Begin again: `orchestrator {' '.join(words)}`.\n"
    assert (code, said) == (130, line)


def test_ctrl_c_ends_a_command_that_waits_for_a_silent_store(silence: Silence) -> None:
    place = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silence.port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    code, said, _ = interrupted(["data", "ls", "--store", "s3://bucket"], silence.met, **place)
    line = (
        "error: this command was stopped. Nothing goes on. Begin again: `orchestrator data ls --store s3://bucket`.\n"
    )
    assert (code, said) == (130, line)


PROGRAM = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from cluster.head_watch import continued_by
from orchestrator.commands import ending
ending.QUIET_S, ending.IDLE_GRACE_S, ending.WORK_GRACE_S = 0.05, 0.2, 0.2
sys.argv = ["orchestrator", "train", "my.yaml"]

def release():
    print("released", flush=True)

def hang():
    held = threading.Event()
    try:
        print("busy", flush=True)
        held.wait()
    except KeyboardInterrupt:
        held.wait()  # what will not end

def waiting():
    print("busy", flush=True)
    threading.Event().wait()

def lingering():  # a thread of a library's that the interpreter would wait for
    threading.Thread(target=threading.Event().wait).start()
    waiting()

def reading():  # as a push does, whose threads wait for a disk or a network
    with ThreadPoolExecutor(2) as pool:
        held = pool.map(lambda _: threading.Event().wait(), range(9))
        print("busy", flush=True)
        list(held)

def working():
    with continued_by("orchestrator resume r1", what="run r1", release=release):
        hang()

end = ending.CommandEnd(as_json=False)
with end.answering_ctrl_c():
    ending.run_to_end({body}, end)
"""


@pytest.mark.parametrize(
    ("body", "out", "said"),
    [
        (
            "reading",
            "",
            "stopping; Ctrl-C again stops at once\n"
            "error: this command was stopped. Nothing goes on. Begin again: `orchestrator train my.yaml`.\n",
        ),
        (
            "waiting",
            "",
            "error: this command was stopped. Nothing goes on. Begin again: `orchestrator train my.yaml`.\n",
        ),
        (
            "lingering",
            "",
            "error: this command was stopped. Nothing goes on. Begin again: `orchestrator train my.yaml`.\n",
        ),
        (
            "hang",
            "",
            "stopping; Ctrl-C again stops at once\n"
            "error: this command was stopped. Nothing goes on. Begin again: `orchestrator train my.yaml`.\n",
        ),
        (
            "working",
            "released\n",
            "stopping; Ctrl-C again stops at once\nerror: run r1 was stopped. Continue it: `orchestrator resume r1`.\n",
        ),
    ],
)
def test_ctrl_c_ends_what_will_not_end_by_itself(body: str, out: str, said: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{body}", body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    found = process.communicate(timeout=60)
    assert (process.returncode, *found) == (130, out, said)


UP = """
import sys
from cluster.machine import store_server
from orchestrator.cli import main
from orchestrator.commands import ending
ending.QUIET_S = 0.05
program = sys.argv.pop()
store_server.find_program = lambda name, *, cure: program
sys.argv += ["up", "--no-ray"]
main()
"""
STUBBORN = """#!/bin/sh
trap '' TERM
echo $$ > "$HOME/pid.new" && mv "$HOME/pid.new" "$HOME/pid"
exec sleep 1000
"""


def test_a_second_ctrl_c_ends_up_at_once_and_leaves_nothing_running(tmp_path: Path) -> None:
    server, home = tmp_path / "stubborn", tmp_path / "home"
    server.write_text(STUBBORN)
    server.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", UP, str(server)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"ORCHESTRATOR_HOME": str(home)},
    ) as process:
        assert process.stderr is not None
        while not (home / "pid").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        started = psutil.Process(int((home / "pid").read_text()))
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "stopping; Ctrl-C again stops at once\n"
        assert started.is_running()  # it takes no notice of a request to end, and is waited for
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert said == "error: the start of the local cluster was stopped. Continue it: `orchestrator up`.\n"
    assert process.returncode == 130
    assert not started.is_running() or started.status() == psutil.STATUS_ZOMBIE
    assert not (home / "local.json").exists()


@pytest.mark.ray
@pytest.mark.store
def test_ctrl_c_ends_a_training_and_says_how_to_continue_it(ray_cluster: RayState, store: Store) -> None:
    push(store, "sklearn:digits")
    words = ["train", "digits-mlp", "train.epochs=100000", "--run", "r1", "--address", ray_cluster.address]

    def training() -> None:
        while not store.exists("runs/r1/metrics.jsonl"):
            time.sleep(0.1)

    code, said, _ = interrupted([*words, "--store", store.settings.url], training, **store_environment(store.settings))
    cure = f"orchestrator resume r1 --address {ray_cluster.address} --store {store.settings.url}"
    assert code == 130, said
    assert said.endswith(f"error: run r1 was stopped. Continue it: `{cure}`.\n")
    assert json.loads(store.read("runs/r1/run.json"))["state"] == "cancelled"


# ---------------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (2, 2), ("words", 1), (True, 1)])
def test_the_end_runs_what_was_registered_for_it_and_waits_for_no_thread(code: object, expected: int) -> None:
    program = (
        "import atexit, sys, threading\n"
        "from orchestrator.commands.ending import leave\n"
        "atexit.register(print, 'at exit')\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        f"print('said', end=' '); leave(SystemExit({code!r}))\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (found.returncode, found.stdout, found.stderr) == (expected, "said at exit\n", "")


def test_the_end_is_the_same_when_nobody_reads_what_was_said() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "check", "digits-techniques"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (1, b"")


@pytest.mark.store
def test_refused_pushes_side_by_side_all_end_with_2(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    rows = "".join(f"{n},{n * 2},{n % 3}\n" for n in range(60_000))
    source.write_text(f"a,b,label\n{rows}1,2\n{rows}")
    words = [sys.executable, "-m", "orchestrator", "data", "push", str(source), "--store", store.settings.url]
    environment = os.environ | store_environment(store.settings)
    for _ in range(3):
        running = [
            subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
            )
            for _ in range(3)
        ]
        for process in running:
            _, said = process.communicate(timeout=60)
            assert (process.returncode, said) == (
                2,
                f"error: {source} must have 3 fields, separated by commas, got 2 in row 60002.\n",
            )

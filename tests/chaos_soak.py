"""A minute of kills under 20 requests a second and a training: what a person reads each time, and for how long.

    python -m tests.chaos_soak                     writes tests/soak_results.json and the table in the docs
    python -m tests.chaos_soak --json trial.json   writes only that file

One process after another is killed on a local cluster of its own: a replica, the gateway's replica, the HTTP proxy, a
worker of the training, the store, and the cluster's control service (GCS). After the last two the commands that the
messages name are typed, as a person would.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import requests

from cluster import local
from cluster.errors import OrchestratorError
from cluster.machine.state import LocalState
from cluster.s3.store import Store
from orchestrator.data.push import push
from orchestrator.runs.log import HEARTBEAT_S
from orchestrator.runs.record import read_status
from serving.client import Client
from serving.http.access import read_token, read_url
from tests.chaos_run import replaced
from tests.example_runs import write_run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "soak_results.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- soak table: begin -->", "<!-- soak table: end -->"
HEADER = (
    "killed",
    "plain client",
    "longest",
    "answers again",
    "retrying client",
    "longest",
    "the training",
    "next step",
)
RUN, MODEL = "soak", "table"
SAMPLE = {"size": [5.0, 3.0], "colour": "red"}
PERIOD_S = 0.1  # of each of the two clients: 20 requests/s in all
PHASE_S = 10.0  # six kills make a minute; a phase lasts longer where something is still missing
LIMIT_S = 240.0  # what has not recovered by then has not recovered
QUIET_S = 3.0  # so long everything must answer to count as recovered
TIMEOUT_S = 60.0  # of the plain client
LINE = 160  # characters of a line that are shown
NOISE = re.compile(r"^(epoch |cluster |techniques |run \S+: \w+ with|[\d,]+ samples in |$)")
Sender = Literal["plain", "retrying"]


class Request(NamedTuple):
    """One question and its answer."""

    sender: Sender
    sent: float
    ended: float
    answer: str
    """The HTTP status, or the name of the error."""


class Kill(NamedTuple):
    """Whom to kill, and what a person types then."""

    what: str
    find: Callable[[LocalState], list[psutil.Process]]
    cures: tuple[tuple[str, ...], ...] = ()


def _titled(title: str) -> Callable[[LocalState], list[psutil.Process]]:
    """A function that finds the processes of our cluster whose title or program begins like this."""

    def find(state: LocalState) -> list[psutil.Process]:
        assert state.ray is not None
        return [p for p in local.ray_processes(state.ray) if _title(p).startswith(title)]

    return find


def _title(process: psutil.Process) -> str:
    try:
        return Path(process.cmdline()[0]).name
    except (psutil.Error, IndexError):
        return ""


def _store_process(state: LocalState) -> list[psutil.Process]:
    process = state.store.process.find() if state.store else None
    return [process] if process else []


KILLS: Sequence[Kill] = (
    Kill("replica of the model", _titled("ray::ServeReplica:model-")),
    Kill("replica of the gateway", _titled("ray::ServeReplica:gateway")),
    Kill("HTTP proxy", _titled("ray::ProxyActor")),
    Kill("worker of the training", _titled("ray::TrainingProcess")),
    Kill("store", _store_process, cures=(("up",),)),
    Kill("GCS", _titled("gcs_server"), cures=(("up", "--redeploy"), ("resume", RUN))),
)


class Load:
    """Sends requests at fixed times, whether answers come or not, and keeps what came."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(400)  # a waiting request must not delay the next
        self._own = threading.local()
        self._url, self._token = read_url(), read_token()
        self._thread = threading.Thread(target=self._send, name="load", daemon=True)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._pool.shutdown()

    def since(self, sender: Sender, start: float) -> list[Request]:
        """What one client sent since then and has an answer to, in the order of sending."""
        return sorted(r for r in list(self.requests) if r.sender == sender and r.sent >= start)

    def _send(self) -> None:
        due = time.time()
        while not self._stop.wait(max(0.0, due - time.time())):
            self._pool.submit(self._ask, "plain", self._plain)
            self._pool.submit(self._ask, "retrying", self._retrying)
            due += PERIOD_S

    def _ask(self, sender: Sender, ask: Callable[[], str]) -> None:
        sent = time.time()
        answer = ask()
        self.requests.append(Request(sender, sent, time.time(), answer))

    def _plain(self) -> str:
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            url = f"{self._url}/models/{MODEL}/predict"
            return str(requests.post(url, json=SAMPLE, headers=headers, timeout=TIMEOUT_S).status_code)
        except requests.RequestException as error:
            return type(error).__name__

    def _retrying(self) -> str:
        if not hasattr(self._own, "client"):
            self._own.client = Client(self._url, self._token)
        try:
            self._own.client.predict(MODEL, SAMPLE)
            return "200"
        except OrchestratorError as error:
            return type(error).__name__


class Steps:
    """Watches the steps of the run from the store: when there were more than ever before."""

    def __init__(self, store: Store) -> None:
        self._store, self._most, self._stop = store, 0, threading.Event()
        self._grew = [time.time()]
        self._thread = threading.Thread(target=self._look, name="steps", daemon=True)

    def __enter__(self) -> "Steps":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def has_grown_since(self, start: float) -> bool:
        """Whether there were new steps later than a status from before can tell of."""
        return self._grew[-1] > start + 2 * HEARTBEAT_S

    def longest_pause_s(self, start: float) -> float:
        """The longest time without a new step since then; a status comes once a second."""
        first = max(i for i, at in enumerate(self._grew) if at <= start or i == 0)
        times = [*self._grew[first:], time.time()]
        return max(after - before for before, after in pairwise(times))

    def _look(self) -> None:
        while not self._stop.wait(0.2):
            with suppress(OrchestratorError):  # the store is killed too
                status = read_status(self._store, RUN)
                step = status.epoch * status.steps + status.step if status else 0
                if step > self._most:
                    self._most = step
                    self._grew.append(time.time())


class Driver:
    """`orchestrator train` or `resume` in a process of its own, as in a terminal."""

    def __init__(self, *words: str) -> None:
        self.lines: list[tuple[float, str]] = []
        command = [sys.executable, "-m", "orchestrator", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._thread = threading.Thread(target=self._read, name="driver", daemon=True)
        self._thread.start()

    def said_since(self, start: float) -> list[str]:
        """Its lines, without those that a training prints anyway."""
        return [line for at, line in list(self.lines) if at >= start and not NOISE.match(line)]

    def exit_code(self) -> int | None:
        """``None`` while it lives."""
        return self.process.poll()

    def end(self) -> None:
        """Stop it as Ctrl-C does."""
        if self.process.poll() is None:
            self.process.send_signal(2)
        self.process.wait(60)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip()))


def main() -> int:
    """Run and record; exit status 1 when something did not recover."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS, help="where to write; the default is what is committed")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]  # of others: it makes every figure worse
    with _cluster() as store:
        recorded = record(soak(store), load=load)
    arguments.json.write_text(json.dumps(recorded, indent=1) + "\n")
    if arguments.json == RESULTS:
        PAGE.write_text(with_table(PAGE.read_text(), recorded))
    print(render(recorded))
    return 0 if all(row["recovered"] for row in recorded["rows"]) else 1


def soak(store: Store) -> list[dict[str, Any]]:
    """Kill one after the other; a row for each."""
    driver, rows = Driver("train", "digits-mlp", "train.epochs=100000", "scaling.workers=2", "--run", RUN), []
    try:
        with Steps(store) as steps:
            if _wait(partial(steps.has_grown_since, time.time())) is None:
                raise TimeoutError(f"the training must begin within {LIMIT_S:.0f} s")
            with Load() as load:
                time.sleep(QUIET_S)
                for kill in KILLS:
                    row, driver = _phase(kill, load, driver, steps)
                    print(json.dumps(row), file=sys.stderr, flush=True)
                    rows.append(row)
    finally:
        driver.end()
    return rows


def _phase(kill: Kill, load: Load, driver: Driver, steps: Steps) -> tuple[dict[str, Any], Driver]:
    """Kill one process, type what its messages say, and wait until everything works again."""
    victim = min(kill.find(local.status()), key=lambda process: process.pid)
    start, before = time.time(), driver
    victim.kill()
    if ("resume", RUN) in kill.cures:  # a person types once the terminal is theirs again
        before.process.wait(LIMIT_S)
    told_s = None if before.exit_code() is None else round(time.time() - start, 1)
    typed = [_type(*words) for words in kill.cures if words[0] != "resume"]
    if ("resume", RUN) in kill.cures:
        driver = Driver("resume", RUN)
    stepped = _wait(partial(steps.has_grown_since, start if driver is before else time.time()))
    answered = _wait(lambda: _is_quiet(load, start))
    time.sleep(max(0.0, start + PHASE_S - time.time()))
    row = {
        "killed": kill.what,
        "recovered": stepped is not None and answered is not None,
        "plain": tally(load.since("plain", start), start),
        "retrying": tally(load.since("retrying", start), start),
        "training": [as_read(line) for line in before.said_since(start)],
        "exit_code": before.exit_code(),
        "told_s": told_s,
        "pause_s": round(steps.longest_pause_s(start), 1),
        "typed": typed,
    }
    return row, driver


def as_read(line: str) -> str:
    """A line without colours, cut where a terminal's reader stops, and without what differs from run to run."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", line)
    plain = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", re.sub(r"\b\d\d:\d\d:\d\d\b", "HH:MM:SS", plain))
    return plain if len(plain) <= LINE or plain.startswith("error:") else plain[:LINE] + " …"


def tally(found: Sequence[Request], start: float) -> dict[str, Any]:
    """Count what came by answer; from the kill to the end of the last bad answer; and the longest wait."""
    bad = [request.ended - start for request in found if request.answer != "200"]
    return {
        "answers": dict(Counter(request.answer for request in found).most_common()),
        "again_s": round(max(bad), 1) if bad else 0.0,
        "longest_s": round(max((request.ended - request.sent for request in found), default=0.0), 1),
        "median_s": round(statistics.median([r.ended - r.sent for r in found]), 3) if found else None,
    }


def render(recorded: Mapping[str, Any]) -> str:
    """The table, what the driver said and what was measured with, as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in recorded["versions"].items())
    lines = [
        f"{recorded['date']}, {recorded['processors']}, load average {recorded['load']:.0f} before, {versions}; "
        "10 requests a second from each client. Seconds count from the kill; *longest* is the longest wait for one "
        "answer.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---|---|--:|--:|---|--:|---|--:|",
        *(_line(row) for row in recorded["rows"]),
    ]
    for row in recorded["rows"]:
        if row["training"]:
            lines += ["", f"What the training's terminal said when the {row['killed']} was killed:", "", "```text"]
            lines += [*row["training"], "```"]
    typed = [entry for row in recorded["rows"] for entry in row["typed"] if entry["seconds"] is not None]
    lines += ["", "Typed then: " + "; ".join(f"`{e['command']}` ({e['seconds']:g} s)" for e in typed) + "."]
    return "\n".join(lines)


def with_table(page: str, recorded: Mapping[str, Any]) -> str:
    """The page with the table between its markers replaced."""
    return replaced(page, render(recorded), begin=BEGIN, end=END)


def _line(row: Mapping[str, Any]) -> str:
    plain, retrying = row["plain"], row["retrying"]
    training = "goes on" if row["exit_code"] is None else f"exit code {row['exit_code']} after {row['told_s']:g} s"
    cells = (
        row["killed"],
        _answers(plain["answers"]),
        f"{plain['longest_s']:g} s",
        f"{plain['again_s']:g} s" if plain["again_s"] else "at once",
        _answers(retrying["answers"]),
        f"{retrying['longest_s']:g} s",
        training,
        f"{row['pause_s']:g} s",
    )
    return "| " + " | ".join(cells) + " |"


def _answers(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {answer}" for answer, count in counts.items()) or "—"


def record(rows: Sequence[Mapping[str, Any]], *, load: float) -> dict[str, Any]:
    """What is committed: a row for each kill, and what it was measured with."""
    names = ("ray", "torch")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processors": f"{os.cpu_count()} × {platform.machine()}",
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names},
        "load": round(load, 1),
        "rows": rows,
    }


def _type(*words: str) -> dict[str, Any]:
    started = time.time()
    command = [sys.executable, "-m", "orchestrator", *words]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        print(found.stderr, file=sys.stderr)
    took = round(time.time() - started, 1)
    return {"command": f"orchestrator {' '.join(words)}", "exit_code": found.returncode, "seconds": took}


def _is_quiet(load: Load, start: float) -> bool:
    """Whether both clients got nothing but answers for a while."""
    after = max(start, time.time() - QUIET_S)
    for sender in ("plain", "retrying"):
        recent = [request for request in load.since(sender, start) if request.ended >= after]
        if len(recent) < QUIET_S / PERIOD_S / 2 or any(request.answer != "200" for request in recent):
            return False
    return time.time() - start >= QUIET_S


def _wait(reached: Callable[[], bool]) -> float | None:
    """The moment when it was reached; ``None`` if it was not in time."""
    deadline = time.time() + LIMIT_S
    while time.time() < deadline:
        if reached():
            return time.time()
        time.sleep(0.1)
    return None


@contextmanager
def _cluster() -> Iterator[Store]:
    """A local cluster of our own with a dataset and an endpoint, in a folder that goes at the end."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        os.environ |= {
            "ORCHESTRATOR_HOME": f"{folder}/home",
            "ORCHESTRATOR_CACHE": f"{folder}/cache",
            "ORCHESTRATOR_METADATA_URL": "http://127.0.0.1:9",  # nobody listens: no notices from this machine
            "OMP_NUM_THREADS": "1",
        }
        state = local.up(cpus=4)
        try:
            assert state.store is not None
            store = Store(state.store.settings)
            push(store, "sklearn:digits")
            write_run(store, run="table-1", kind=MODEL)
            for words in (("models", "promote", "table-1", MODEL), ("deploy", MODEL, "--replicas", "2", "--port", "0")):
                assert _type(*words)["exit_code"] == 0, words
            yield store
        finally:
            local.down()


if __name__ == "__main__":
    sys.exit(main())

"""What hostile files and objects do to a command: how it is asked, and what it may take."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.s3.store import Store
from cluster.session import store_environment

ROOT = Path(__file__).parents[1]
MOST_MIB = 300
MOST_CPU_S = 5.0


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str
    cpu_s: float
    """Of all its threads: a busy machine does not change it."""
    more_mib: float
    """The most memory that it had at a time, above what it began with."""


class Commands:
    """Asks a process of `tests/hostile_runner.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, words: Sequence[object], *, store: Store | None = None, home: Path | None = None) -> Ended:
        """Run `orchestrator WORDS`."""
        env = {"COLUMNS": "200"} | (store_environment(store.settings) if store else {})
        env |= {"ORCHESTRATOR_HOME": str(home)} if home else {}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"words": [str(word) for word in words], "env": env}) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


@contextmanager
def commands() -> Iterator[Commands]:
    """Start the process, and end it."""
    arguments = [sys.executable, "-m", "tests.hostile_runner"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Commands(process)
        assert process.stdin
        process.stdin.close()


def require_refused(ended: Ended, *, code: int, message: str, lines: int = 1) -> None:
    """Assert that a command said what is wrong in so many lines, and took little."""
    assert message in ended.stderr, ended.stderr[-2000:]
    assert ended.code == code, ended.stderr[-2000:]
    assert len(ended.stderr.strip().splitlines()) == lines, ended.stderr[-2000:]
    require_modest(ended)


def require_modest(ended: Ended) -> None:
    """Assert that a command took little memory and time, and printed no control character."""
    assert ended.more_mib <= MOST_MIB
    assert ended.cpu_s <= MOST_CPU_S
    assert len(ended.stderr) < 20_000
    printed = ended.stdout + ended.stderr
    assert not [character for character in printed if character < " " and character not in "\n\t"]

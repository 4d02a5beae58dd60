"""Named places in the code where a test, or `orchestrator drill`, lets this process die, stop or fail on purpose.

    ORCHESTRATOR_FAILPOINTS="train.after_step=kill@rank1#3; checkpoint.before_marker=raise!once"

`NAME=ACTION[:SECONDS][@rankR][#N][!FILE]`: at the N-th passing (default: the first) of the place, by the worker of rank
R (default: any), do ACTION: `kill` (SIGKILL), `stop` (SIGSTOP), `exit`, `raise`, `sleep:SECONDS`. It fires once in a
process; with `!FILE` only where FILE, below the folder for temporary files, does not exist yet: once over all restarts.
Without the variable nothing happens.
"""

import os
import re
import signal
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from cluster.errors import ConfigError

VARIABLE = "ORCHESTRATOR_FAILPOINTS"
_RULE = re.compile(
    r"(?P<name>[\w.]+)=(?P<action>kill|stop|exit|raise|sleep)(:(?P<seconds>[\d.]+))?"
    r"(@rank(?P<rank>\d+))?(#(?P<nth>\d+))?(!(?P<file>[\w.-]+))?"
)


class FailpointError(RuntimeError):
    """Raised by the action `raise`: stands for a bug at this place."""


class Failpoint(NamedTuple):
    """One rule of the variable."""

    name: str
    action: str
    seconds: float
    rank: int | None
    nth: int
    file: str | None


_passed: dict[Failpoint, int] = {}


def failpoint(name: str, *, rank: int = 0) -> None:
    """Do here what the variable says, which is nothing when it is not set."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return
    for point in parse_failpoints(text):
        if point.name == name and point.rank in (None, rank):
            _passed[point] = _passed.get(point, 0) + 1
            if _passed[point] == point.nth and _is_first(point):
                _act(point)


def parse_failpoints(text: str) -> list[Failpoint]:
    """Read the variable's value.

    Raises:
        ConfigError: a rule has another form.
    """
    points = []
    for rule in filter(None, (part.strip() for part in text.split(";"))):
        found = _RULE.fullmatch(rule)
        if found is None:
            raise ConfigError(f"{VARIABLE} must hold NAME=ACTION[:SECONDS][@rankR][#N][!FILE], got {rule!r}.")
        rank = found["rank"]
        points.append(
            Failpoint(
                name=found["name"],
                action=found["action"],
                seconds=float(found["seconds"] or 0),
                rank=int(rank) if rank is not None else None,
                nth=int(found["nth"] or 1),
                file=found["file"],
            )
        )
    return points


def _is_first(point: Failpoint) -> bool:
    if point.file is None:
        return True
    try:
        (Path(tempfile.gettempdir()) / point.file).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _act(point: Failpoint) -> None:
    match point.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(1)
        case "sleep":
            time.sleep(point.seconds)
        case _:
            raise FailpointError(f"failpoint {point.name}")

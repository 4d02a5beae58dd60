"""The commands that messages tell a person to type: quoted for the shell, on the cluster and in the store at hand.

A command line that was given ``--address`` or ``--store`` says so here, and every command that is named from then on
carries the same option if it has it. An environment variable is not repeated: it holds for the next command too.
"""

import shlex
from collections.abc import Mapping

ADDRESS, STORE = "--address", "--store"
BOTH = (ADDRESS, STORE)
PLACED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("doctor", "status", "train", "resume", "drill", "sweep", "submit", "data push"), BOTH),
    **dict.fromkeys(("deploy", "rollback", "undeploy", "endpoints", "batch-predict"), BOTH),
    **dict.fromkeys(("data ls", "data show", "runs", "show", "gc", "report"), (STORE,)),
    **dict.fromkeys(("models ls", "models show", "models promote"), (STORE,)),
    **dict.fromkeys(("jobs", "logs", "stop"), (ADDRESS,)),
}
"""Command -> which of the two options it has. A command that is not listed has none."""

_given: dict[str, str] = {}  # the options of the command line of this process


def give(option: str, value: str | None) -> None:
    """Say what the command line of this process has for an option; ``None``: it does not name it."""
    if value is None:
        _given.pop(option, None)
    else:
        _given[option] = value


def typed(*words: str) -> str:
    """Return ``orchestrator WORDS`` as one types it into a shell.

    Args:
        words: The command, its arguments and options, each a word of its own and not quoted.
    """
    options = [word for option in _options_of(words) if option in _given for word in (option, _given[option])]
    return shlex.join(["orchestrator", *words, *options])


def _options_of(words: tuple[str, ...]) -> tuple[str, ...]:
    return PLACED.get(" ".join(words[:2]), PLACED.get(words[0], ()))

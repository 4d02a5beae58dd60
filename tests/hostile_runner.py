"""Runs commands in forked copies of one process, and says what each printed and what it took.

A request is a line of JSON on stdin, ``{"words": [...], "env": {...}}``; so is the answer on stdout. All imports are
done before the fork, so memory and seconds are those of the command alone.
"""

import json
import os
import resource
import signal
import sys
import tempfile
from typing import Any

import psutil

LIMIT_S = 100  # of one command; then it is killed


def main() -> None:
    """Answer requests until stdin ends."""
    _import_all()
    for line in sys.stdin:
        print(json.dumps(_answer(**json.loads(line))), flush=True)


def _import_all() -> None:
    import serving.registry  # noqa: F401


def _answer(*, words: list[str], env: dict[str, str]) -> dict[str, Any]:
    before_kib = psutil.Process().memory_info().rss / 2**10
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            _become(words, env, output.fileno(), errors.fileno())
        _, status, usage = os.wait4(child, 0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "stdout": _text(output),
            "stderr": _text(errors),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "more_mib": (usage.ru_maxrss - before_kib) / 2**10,
        }


def _become(words: list[str], env: dict[str, str], output: int, errors: int) -> None:
    """Be the command `orchestrator WORDS`; never returns."""
    from orchestrator.cli import run_command_line

    signal.alarm(LIMIT_S)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.environ.update(env)
    sys.argv = ["orchestrator", *words]
    code: Any = 1
    try:
        run_command_line()
        code = 0
    except SystemExit as done:
        code = done.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="backslashreplace"))


if __name__ == "__main__":
    main()
